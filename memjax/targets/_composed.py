import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._checks import (
    as_float_array,
    as_horizon,
    as_nonnegative,
    as_number,
    check_instance,
    check_nonnegative,
)
from .._typing import ArrayLike, ScalarLike
from ..numerics import integrate, panel_edges, response_integral, transform
from ._base import AbstractKernel, Memory
from ._box import as_window


class ScaledKernel(AbstractKernel):
    r"""A number times a kernel, $\rho(t) = c\, \rho_0(t)$. Usually made by `c * kernel`.

    **Arguments:**

    - `kernel`: the kernel to scale.
    - `factor`: the number $c$, a scalar.

    **Raises:** `TypeError` for what is no kernel or no number, `ValueError` for NaN, infinity
    and arrays.
    """

    kernel: AbstractKernel
    factor: Float[Array, ""]

    def __init__(self, kernel: AbstractKernel, factor: Real[ScalarLike, ""]) -> None:
        check_kernel("kernel", kernel)
        self.kernel = kernel
        self.factor = as_number("factor", factor)

    @property
    def memory(self) -> Memory:
        return self.kernel.memory

    @property
    def in_l1(self) -> bool:
        return self.kernel.in_l1

    @property
    def in_l2(self) -> bool:
        return self.kernel.in_l2

    def breakpoints(self) -> Float[Array, " points"]:
        return self.kernel.breakpoints()

    def support(self) -> Float[Array, ""]:
        return self.kernel.support()

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self.factor * self.kernel(t)

    def laplace(
        self, s: Real[ArrayLike, "..."], horizon: Real[ArrayLike, "..."] | None = jnp.inf
    ) -> Float[Array, "..."]:
        return self.factor * self.kernel.laplace(s, horizon)

    def laplace_derivatives(self, s: Float[Array, "..."], order: int) -> tuple[Array, ...]:
        values = self.kernel.laplace_derivatives(s, order)
        return tuple(self.factor * value for value in values)

    def squared_norm(self, horizon: Real[ArrayLike, "..."] | None = jnp.inf) -> Float[Array, "..."]:
        return self.factor**2 * self.kernel.squared_norm(horizon)

    def heaviside_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self.factor * self.kernel.heaviside_response(t)

    def ramp_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self.factor * self.kernel.ramp_response(t)


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

    @property
    def memory(self) -> Memory:
        return self.kernel.memory

    @property
    def in_l1(self) -> bool:
        return self.kernel.in_l1

    @property
    def in_l2(self) -> bool:
        return self.kernel.in_l2

    def breakpoints(self) -> Float[Array, " points"]:
        return jnp.concatenate([jnp.zeros(1), self.delay + self.kernel.breakpoints()])

    def support(self) -> Float[Array, ""]:
        return self.delay + self.kernel.support()

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self.kernel(as_float_array("t", t) - self.delay)

    def laplace(
        self, s: Real[ArrayLike, "..."], horizon: Real[ArrayLike, "..."] | None = jnp.inf
    ) -> Float[Array, "..."]:
        s = as_float_array("s", s)
        return jnp.exp(-s * self.delay) * self.kernel.laplace(s, self._left(horizon))

    def squared_norm(self, horizon: Real[ArrayLike, "..."] | None = jnp.inf) -> Float[Array, "..."]:
        return self.kernel.squared_norm(self._left(horizon))

    def heaviside_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self.kernel.heaviside_response(as_float_array("t", t) - self.delay)

    def ramp_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self.kernel.ramp_response(as_float_array("t", t) - self.delay)

    def _left(self, horizon: Real[ArrayLike, "..."] | None) -> Real[ArrayLike, "..."] | None:
        """What the delay leaves of the horizon."""
        finite = as_horizon(horizon)
        return jnp.inf if finite is None else jnp.maximum(finite - self.delay, 0)


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

    kernel: AbstractKernel
    start: Float[Array, ""]
    stop: Float[Array, ""]

    def __init__(
        self, kernel: AbstractKernel, start: Real[ScalarLike, ""], stop: Real[ScalarLike, ""]
    ) -> None:
        check_kernel("kernel", kernel)
        self.kernel = kernel
        self.start, self.stop = as_window(start, stop)

    @property
    def memory(self) -> Memory:
        return "finite"

    def breakpoints(self) -> Float[Array, " points"]:
        inner = jnp.clip(self.kernel.breakpoints(), self.start, self.stop)
        return jnp.concatenate([self.start[None], inner, self.stop[None]])

    def support(self) -> Float[Array, ""]:
        return self.stop

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        t = as_float_array("t", t)
        return jnp.where((t > self.start) & (t < self.stop), self.kernel(t), 0)

    def laplace(
        self, s: Real[ArrayLike, "..."], horizon: Real[ArrayLike, "..."] | None = jnp.inf
    ) -> Float[Array, "..."]:
        s = as_float_array("s", s)
        check_nonnegative("s", s)
        stop = self._end(as_horizon(horizon))
        return transform(self.kernel, self.kernel.breakpoints(), s, self.start, stop)

    def squared_norm(self, horizon: Real[ArrayLike, "..."] | None = jnp.inf) -> Float[Array, "..."]:
        stop = self._end(as_horizon(horizon))
        edges = panel_edges(self.kernel.breakpoints(), self.start, stop)
        return integrate(lambda t: self.kernel(t) ** 2, edges)

    def heaviside_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self._response(as_float_array("t", t), 0)

    def ramp_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self._response(as_float_array("t", t), 1)

    def _response(self, t: Array, order: int) -> Array:
        points = self.kernel.breakpoints()
        return response_integral(self.kernel, points, t, self.start, self.stop, order)

    def _end(self, horizon: Array | None) -> Array:
        return self.stop if horizon is None else jnp.clip(horizon, self.start, self.stop)


def check_kernel(name: str, kernel: object) -> None:
    """Refuse anything but a scalar kernel."""
    check_instance(
        name, kernel, AbstractKernel, "a scalar kernel", "pass an instance of memjax.AbstractKernel"
    )
