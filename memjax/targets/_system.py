import functools
from collections.abc import Iterator, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import block_diag
from jaxtyping import Array, Float

from .._checks import is_traced
from .._paths import as_steps, even_step
from .._typing import ArrayLike
from ..numerics import exponential_action, gramian


class StateSpace(eqx.Module):
    r"""The linear system $\dot h = W h + U x$, $y = C h$ that starts from rest.

    It is the linear algebra behind kernels of finite dimension, $\rho(t) = C e^{Wt} U$. Systems
    add (they run side by side), scale, are transposed, and `after` puts one behind another.

    **Attributes:**

    - `recurrent`: The matrix $W$, shape `(m, m)`.
    - `input`: The matrix $U$, shape `(m, d)`.
    - `readout`: The matrix $C$, shape `(p, m)`.
    """

    recurrent: Float[Array, "m m"]
    input: Float[Array, "m d"]
    readout: Float[Array, "p m"]

    def __iter__(self) -> Iterator[Array]:
        return iter((self.recurrent, self.input, self.readout))

    def __add__(self, other: "StateSpace") -> "StateSpace":
        return side_by_side([self, other])

    def __rmul__(self, factor: Any) -> "StateSpace":
        return StateSpace(self.recurrent, self.input, factor * self.readout)

    @property
    def transposed(self) -> "StateSpace":
        r"""The system of the kernel $\rho(t)^\top$."""
        return StateSpace(self.recurrent.T, self.readout.T, self.input.T)

    def after(self, other: "StateSpace") -> "StateSpace":
        """The series of two systems: this one driven by the outputs of the other. Its states come
        first."""
        # With the states of both stacked, [[W_1, U_1 C_2], [0, W_2]].
        below = jnp.zeros((other.recurrent.shape[0], self.recurrent.shape[0]), other.input.dtype)
        recurrent = [[self.recurrent, self.input @ other.readout], [below, other.recurrent]]
        undriven = jnp.zeros((below.shape[1], other.input.shape[1]), other.input.dtype)
        unread = jnp.zeros((self.readout.shape[0], below.shape[0]), self.readout.dtype)
        return StateSpace(
            jnp.block(recurrent),
            jnp.concatenate([undriven, other.input]),
            jnp.concatenate([self.readout, unread], axis=1),
        )

    @property
    def integral(self) -> "StateSpace":
        r"""The system of the kernel $\int_0^t \rho(s) \,\mathrm{d}s$: behind an integrator."""
        unit = jnp.eye(self.input.shape[1], dtype=self.input.dtype)
        return self.after(StateSpace(jnp.zeros_like(unit), unit, unit))

    @property
    def reach(self) -> Float[Array, ""]:
        """A time up to which exponentials are formed. What decays has long done so by then."""
        # They are doubled 64 times, from a step that suits the norm, of which this is a bound.
        largest = jnp.max(jnp.abs(jax.lax.stop_gradient(self.recurrent)), initial=0)
        return 2.0**60 / jnp.maximum(self.recurrent.shape[0] * largest, 1e-30)

    def states(self, t: Float[Array, " times"]) -> Float[Array, "times m d"]:
        r"""The states $e^{Wt} U$ at times $t \ge 0$."""
        return exponential_action(self.recurrent, self.input, jnp.minimum(t, self.reach))

    def __call__(self, t: Float[Array, "..."]) -> Float[Array, "... p d"]:
        r"""The kernel $C e^{Wt} U$ at times $t \ge 0$ of any shape."""
        values = self.readout @ self.states(t.ravel())
        return values.reshape(*t.shape, *values.shape[1:])

    def laplace(
        self, s: Float[Array, "..."], horizon: Float[Array, "..."] | None
    ) -> Float[Array, "... p d"]:
        r"""The Laplace transform $C (s - W)^{-1} U$, or that up to a finite horizon."""
        width = self.recurrent.shape[0]
        if horizon is None:
            resolvent = s[..., None, None] * jnp.eye(width) - self.recurrent
            inputs = jnp.broadcast_to(self.input, (*s.shape, *self.input.shape))
            return self.readout @ jnp.linalg.solve(resolvent, inputs)

        def up_to(s: Array, horizon: Array) -> Array:
            # e^(-st) shifts the spectrum: the transform up to a horizon is an integral of the
            # kernel of W - s. The resolvent times 1 - e^((W - s) h) would cancel for short ones.
            damped = StateSpace(self.recurrent - s * jnp.eye(width), self.input, self.readout)
            return damped.integral(horizon)

        return jnp.vectorize(up_to, signature="(),()->(p,d)")(s, horizon)

    def inner_product(
        self, other: "StateSpace", horizon: Float[Array, "..."] | None
    ) -> Float[Array, "..."]:
        r"""The inner product of two kernels, $\operatorname{tr} C_1 X C_2^\top$ with Sylvester's
        equation $W_1 X + X W_2^\top + U_1 U_2^\top = 0$, or its like up to a finite horizon."""
        (w1, u1, c1), (w2, u2, c2) = self, other

        def product(horizon: Array | None) -> Array:
            # The trace needs the diagonal of the product only.
            return jnp.sum((c1 @ gramian(w1, w2.T, u1 @ u2.T, horizon)) * c2)

        return product(None) if horizon is None else jnp.vectorize(product)(horizon)

    def response(
        self,
        ts: Any,
        xs: Float[ArrayLike, "times d"],
        held: bool = False,
        start: Float[Array, " m"] | None = None,
    ) -> Float[Array, "times p"]:
        """The outputs for a sampled input, exactly in every step.

        **Arguments:**

        - `ts`: The times as they were given: on even ones one exponential serves all steps.
        - `xs`: The samples, which the input connects by lines, or holds until the next.
        - `held`: Whether it holds them.
        - `start`: The hidden state at the first time, at rest by default.
        """
        width, xs = self.recurrent.shape[0], jnp.asarray(xs)
        # Hidden state, input and slope in one system, whose exponential is exact over a step:
        # h' = W h + U x, x' = slope, slope' = 0 (Van Loan). No inverse of W is formed, which may be
        # nearly singular.
        generator = self.integral.integral.recurrent

        def propagator(step: Array) -> Array:
            unit = jnp.eye(generator.shape[0], dtype=generator.dtype)
            return exponential_action(generator, unit, step[None])[0, :width]

        steps = as_steps(ts)
        shared = None if even_step(ts) is None else propagator(steps[0])

        def advance(hidden: Array, interval: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            step, start, end = interval
            matrix = propagator(step) if shared is None else shared
            slope = jnp.zeros_like(start) if held else (end - start) / step
            hidden = matrix @ jnp.concatenate([hidden, start, slope])
            return hidden, self.readout @ hidden

        dtype = jnp.result_type(generator, steps, xs)
        hidden = jnp.zeros(width, dtype) if start is None else start.astype(dtype)
        _, outputs = jax.lax.scan(advance, hidden, (steps, xs[:-1], xs[1:]))
        return jnp.concatenate([(self.readout @ hidden)[None], outputs])


def side_by_side(systems: Sequence[StateSpace]) -> StateSpace:
    """The sum of state spaces, at least one, as one."""
    recurrent, inputs, readouts = zip(*systems, strict=True)
    return StateSpace(
        block_diag(*recurrent), jnp.concatenate(inputs), jnp.concatenate(readouts, axis=1)
    )


@functools.singledispatch
def state_space(kernel: object) -> StateSpace | None:
    r"""A state space of finite dimension for a kernel, $\rho(t) = C e^{Wt} U$, if it has one.

    Kernels of your own get one by `@memjax.targets.state_space.register(MyKernel)` before a
    function that maps such a kernel to its [`memjax.targets.StateSpace`][]. Inner products,
    distances and losses then treat it in closed form.

    **Arguments:**

    - `kernel`: Anything; a state space is known for exponential sums, damped oscillations, dense
        linear models, and for sums, multiples and vectors of those.

    **Returns:**

    `(W, U, C)` with two axes each, where scalar inputs and outputs have size 1, or `None`.
    A damped oscillation takes a real block of two for each mode.
    """
    return None


def check_stable(recurrent: Float[Array, "m m"]) -> None:
    """Refuse a matrix with an eigenvalue outside the open left half-plane."""
    if is_traced(recurrent):
        return
    largest = np.max(np.linalg.eigvals(np.asarray(recurrent)).real, initial=-np.inf)
    if largest >= 0:
        raise ValueError(
            f"`recurrent` must have all eigenvalues in the open left half-plane, got one of real "
            f"part {largest:.6g}; subtract a larger multiple of the unit matrix."
        )
