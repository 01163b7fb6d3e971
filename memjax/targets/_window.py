"""Kernels moved in time, and cut out of it."""

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._checks import as_nonnegative, as_number, is_traced, shown, valid_or_nan
from .._typing import ScalarLike
from ..numerics import integrate, panel_edges, response_integral, transform
from ._base import AbstractKernel, check_kernel
from ._target import Memory


class DelayedKernel(AbstractKernel):
    r"""A kernel moved back in time, $\rho(t) = \rho_0(t - \delta)$, and 0 for $t < \delta$.

    Its transform is $R(s) = e^{-s\delta} R_0(s)$.

    **Arguments:**

    - `kernel`: the kernel $\rho_0$ to delay.
    - `delay`: the time $\delta \ge 0$, a scalar.

    **Raises:** `TypeError` for what is no kernel, `ValueError` for a delay that is negative,
    NaN, infinite, or an array.
    """

    kernel: AbstractKernel
    delay: Float[Array, ""]

    def __init__(self, kernel: AbstractKernel, delay: Real[ScalarLike, ""]) -> None:
        check_kernel("kernel", kernel)
        self.kernel = kernel
        self.delay = as_nonnegative("delay", delay, "a causal kernel cannot start before time 0")

    def _parts(self) -> tuple[AbstractKernel, ...]:
        return (self.kernel,)

    def breakpoints(self) -> Float[Array, " points"]:
        return jnp.concatenate([jnp.zeros(1), self.delay + self.kernel.breakpoints()])

    def support(self) -> Float[Array, ""]:
        return self.delay + self.kernel.support()

    def _value(self, t: Array) -> Array:
        # By the public method, which is 0 before the kernel begins: hooks take no negative times.
        return self.kernel(t - self.delay)

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        return jnp.exp(-s * self.delay) * self.kernel._laplace(s, self._left(horizon))

    def _squared_norm(self, horizon: Array | None) -> Array:
        return self.kernel._squared_norm(self._left(horizon))

    def _heaviside_response(self, t: Array) -> Array:
        return self.kernel.heaviside_response(t - self.delay)

    def _ramp_response(self, t: Array) -> Array:
        return self.kernel.ramp_response(t - self.delay)

    def _left(self, horizon: Array | None) -> Array | None:
        """What the delay leaves of the horizon."""
        return None if horizon is None else jnp.maximum(horizon - self.delay, 0)


class WindowedKernel(AbstractKernel):
    r"""A kernel times a box: $\rho_0(t)$ for $t_0 < t < t_1$, and 0 elsewhere.

    Its integrals are taken by Gauss-Legendre quadrature between the kernel's `breakpoints`, to
    rounding in float64; where the kernel is of one sign that is relative to the result.

    **Arguments:**

    - `kernel`: the kernel $\rho_0$.
    - `start`: the time $t_0 \ge 0$, a scalar.
    - `stop`: the time $t_1 > t_0$, finite, a scalar.

    **Raises:** `TypeError` for what is no kernel, `ValueError` for times in the wrong order or
    negative, for NaN or infinity, and for arrays.
    """

    memory: ClassVar[Memory] = "finite"

    kernel: AbstractKernel
    start: Float[Array, ""]
    stop: Float[Array, ""]

    def __init__(
        self, kernel: AbstractKernel, start: Real[ScalarLike, ""], stop: Real[ScalarLike, ""]
    ) -> None:
        check_kernel("kernel", kernel)
        self.kernel = kernel
        self.start, self.stop = as_window(start, stop)

    def breakpoints(self) -> Float[Array, " points"]:
        inner = jnp.clip(self.kernel.breakpoints(), self.start, self.stop)
        return jnp.concatenate([self.start[None], inner, self.stop[None]])

    def support(self) -> Float[Array, ""]:
        return self.stop

    def _value(self, t: Array) -> Array:
        return jnp.where((t > self.start) & (t < self.stop), self.kernel(t), 0)

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        points, stop = self.kernel.breakpoints(), self._end(horizon)
        return transform(self.kernel, points, s, self.start, stop)

    def _squared_norm(self, horizon: Array | None) -> Array:
        # Jumps at both ends of the window are ends of panels.
        edges = panel_edges(self.kernel.breakpoints(), self.start, self._end(horizon))
        return integrate(lambda t: self.kernel(t) ** 2, edges)

    def _heaviside_response(self, t: Array) -> Array:
        return self._response(t, 0)

    def _ramp_response(self, t: Array) -> Array:
        return self._response(t, 1)

    def _response(self, t: Array, order: int) -> Array:
        points = self.kernel.breakpoints()
        return response_integral(self.kernel, points, t, self.start, self.stop, order)

    def _end(self, horizon: Array | None) -> Array:
        return self.stop if horizon is None else jnp.clip(horizon, self.start, self.stop)


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
