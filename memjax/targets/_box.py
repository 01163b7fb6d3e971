import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._checks import (
    as_float_array,
    as_horizon,
    as_nonnegative,
    as_number,
    check_nonnegative,
    is_traced,
    shown,
    valid_or_nan,
)
from .._typing import ArrayLike, ScalarLike
from ..numerics import exponential_moment
from ._base import AbstractKernel, Memory


class Box(AbstractKernel):
    r"""Memory of one stretch of the past, $\rho(t) = 1$ for $t_0 < t < t_1$ and 0 elsewhere.

    Its transform is $R(s) = e^{-s t_0} (1 - e^{-s(t_1 - t_0)}) / s$. The "shift" target of Wang
    and Li is `Box(9, 11)`.

    **Arguments:**

    - `start`: the time $t_0 \ge 0$.
    - `stop`: the time $t_1 > t_0$, finite.

    Both are scalars; batch kernels with `jax.vmap`.

    **Raises:** `ValueError` for times in the wrong order or negative, for NaN or infinity,
    and for arrays.

    ??? cite "Reference"

        Wang, Li, *StableSSM: Alleviating the Curse of Memory in State-space Models through Stable
        Reparameterization*, ICML 2024, section 3 (theory, section 3).
    """

    start: Float[Array, ""]
    stop: Float[Array, ""]

    def __init__(self, start: Real[ScalarLike, ""], stop: Real[ScalarLike, ""]) -> None:
        self.start, self.stop = as_window(start, stop)

    @property
    def memory(self) -> Memory:
        return "finite"

    def breakpoints(self) -> Float[Array, " points"]:
        return jnp.stack([self.start, self.stop])

    def support(self) -> Float[Array, ""]:
        return self.stop

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        t = as_float_array("t", t)
        return jnp.where((t > self.start) & (t < self.stop), jnp.ones_like(t), 0)

    def laplace(
        self, s: Real[ArrayLike, "..."], horizon: Real[ArrayLike, "..."] | None = jnp.inf
    ) -> Float[Array, "..."]:
        s = as_float_array("s", s)
        check_nonnegative("s", s)
        length = self._length(as_horizon(horizon))
        return jnp.exp(-s * self.start) * length * exponential_moment(0, s * length)

    def squared_norm(self, horizon: Real[ArrayLike, "..."] | None = jnp.inf) -> Float[Array, "..."]:
        return self._length(as_horizon(horizon))

    def heaviside_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self._length(as_float_array("t", t))

    def ramp_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        t = as_float_array("t", t)
        length = self._length(t)
        return length * (jnp.maximum(t - self.start, 0) - length / 2)

    def _length(self, end: Array | None) -> Array:
        """How much of the box lies before `end`."""
        length = self.stop - self.start
        return length if end is None else jnp.clip(end - self.start, 0, length)


def as_window(
    start: Real[ScalarLike, ""], stop: Real[ScalarLike, ""]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """The checked ends of an interval of the past."""
    start = as_nonnegative("start", start, "a causal kernel starts at time 0 or later")
    stop = as_number("stop", stop)
    if not is_traced((start, stop)) and not stop > start:
        raise ValueError(
            f"`stop` must be above `start`, got {shown(stop)} and {shown(start)}; swap them."
        )
    return start, valid_or_nan(stop, stop > start)
