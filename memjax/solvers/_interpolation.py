import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree, Scalar


class BubbleInterpolation(diffrax.AbstractLocalInterpolation):
    r"""The polynomial of a step: its chord, and what vanishes at both ends.

    With $s = (t - t_0) / (t_1 - t_0)$,

    $$y(t) = y_0 + s \Big(\delta + (1 - s) \sum_k b_k s^k\Big).$$

    **Arguments:**

    - `t0`, `t1`: the ends of the step.
    - `y0`: the state at `t0`.
    - `increment`: what the step adds to it, $\delta$.
    - `bubble`: the coefficients $b_k$, stacked along the first axis of every leaf.
    """

    # Diffrax names the two fields class variables, and any real numbers.
    t0: Scalar | float  # pyright: ignore[reportIncompatibleVariableOverride]
    t1: Scalar | float  # pyright: ignore[reportIncompatibleVariableOverride]
    y0: PyTree[Array]
    increment: PyTree[Array]
    bubble: PyTree[Array]

    def evaluate(
        self, t0: Scalar | float, t1: Scalar | float | None = None, left: bool = True
    ) -> PyTree[Array]:
        """The state at `t0`, or what it gains from `t0` to `t1`."""
        del left
        if t1 is None:
            return jax.tree.map(jnp.add, self.y0, self._gain(t0))
        return jax.tree.map(jnp.subtract, self._gain(t1), self._gain(t0))

    def _gain(self, t: Scalar | float) -> PyTree[Array]:
        # Diffrax evaluates steps of length zero, when a batched solve waits for its last entry.
        empty = self.t0 == self.t1
        length = jnp.where(empty, 1, self.t1 - self.t0)
        share = jnp.where(empty, 0, t - self.t0) / length

        def gain(increment: Array, bubble: Array) -> Array:
            s = share.astype(increment.dtype)
            # At s = 1 this is the increment, without rounding: steps join exactly.
            return s * (increment + (1 - s) * jnp.polyval(bubble[::-1], s))

        return jax.tree.map(gain, self.increment, self.bubble)


def rows_at(
    times: np.ndarray, increment: np.ndarray, bubble: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The weights with which the stages make up such a polynomial, less its start, at some times
    of a unit step, and its slope there, from those with which they make up its coefficients."""
    s = np.polynomial.Polynomial([0.0, 1.0])
    stages = [
        s * (end + (1 - s) * np.polynomial.Polynomial(column))
        for end, column in zip(increment, bubble.T, strict=True)
    ]
    values = np.array([stage(times) for stage in stages]).T
    return values, np.array([stage.deriv()(times) for stage in stages]).T
