from typing import ClassVar

import jax.numpy as jnp
from jax.lax import stop_gradient
from jaxtyping import Array, Float, Real

from .._checks import as_positive
from .._typing import ScalarLike
from ..numerics import exponential_moment, integrate
from ._base import AbstractKernel
from ._target import Memory


class PowerLaw(AbstractKernel):
    r"""Memory that decays polynomially, $\rho(t) = (1 + t/\tau)^{-(1+\omega)}$ for $t \ge 0$.

    Its transform is $R(s) = \tau e^{s\tau} E_{1+\omega}(s\tau)$ with the generalised exponential
    integral, which is computed as

    $$\int_0^{\log(1 + h/\tau)} e^{-s\tau (e^v - 1) - \omega v} \,\mathrm{d}v$$

    by Gauss-Legendre quadrature to a relative accuracy of 1e-13 in float64, for
    $s\tau \ge 10^{-20}$ and $\omega \le 5$. The damped power law of Wang and Li,
    $(1 + 0.1 t)^{-1.1}$, is `PowerLaw(omega=0.1, scale=10)`.

    **Arguments:**

    - `omega`: the exponent $\omega > 0$ by which the decay is faster than $1/t$.
    - `scale`: the time $\tau > 0$ from which on the kernel is a power of time.

    Both are scalars; batch kernels with `jax.vmap`.

    **Raises:** `ValueError` for values that are not positive, for NaN, and for arrays.

    ??? cite "Reference"

        Wang, Li, *StableSSM: Alleviating the Curse of Memory in State-space Models through Stable
        Reparameterization*, ICML 2024, section 3 (theory, section 3).
    """

    memory: ClassVar[Memory] = "polynomial"

    omega: Float[Array, ""]
    scale: Float[Array, ""]

    def __init__(self, omega: Real[ScalarLike, ""], scale: Real[ScalarLike, ""] = 1.0) -> None:
        self.omega = as_positive("omega", omega, "without it the kernel is not integrable")
        self.scale = as_positive("scale", scale)

    def breakpoints(self) -> Float[Array, " points"]:
        # Even steps of log(1 + t / tau), up to 1e16 tau.
        return self.scale * (4.0 ** jnp.arange(28) - 1)

    def _value(self, t: Array) -> Array:
        return jnp.exp(-(1 + self.omega) * jnp.log1p(t / self.scale))

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        # With t = tau (e^v - 1) the kernel is an exponential in v, and all decades of time take
        # panels of one length.
        s = s * self.scale
        # After 50 decay times nothing is left, also of the first derivatives in s. The cut there
        # has no derivative that counts.
        end = jnp.log1p(50 / jnp.maximum(stop_gradient(s), 1e-300))
        if horizon is not None:
            end = jnp.minimum(jnp.log1p(horizon / self.scale), end)
        decay, end = (part[..., None, None] for part in jnp.broadcast_arrays(s, end))
        edges = jnp.linspace(0, 1, 33) * end[..., 0]
        integral = integrate(lambda v: jnp.exp(-decay * jnp.expm1(v) - self.omega * v), edges)
        if horizon is None:
            integral = jnp.where(s > 0, integral, 1 / self.omega)
        return self.scale * integral

    def _squared_norm(self, horizon: Array | None) -> Array:
        # rho^2 dt is tau e^(-power v) dv.
        power = 1 + 2 * self.omega
        if horizon is None:
            return self.scale / power
        end = jnp.log1p(horizon / self.scale)
        return self.scale * end * exponential_moment(0, power * end)

    def _heaviside_response(self, t: Array) -> Array:
        end = jnp.log1p(t / self.scale)
        return self.scale * end * exponential_moment(0, self.omega * end)

    def _ramp_response(self, t: Array) -> Array:
        end = jnp.log1p(t / self.scale)[..., None]
        edges = jnp.linspace(0, 1, 9) * end
        # t - u = tau (e^end - e^v) = tau e^v (e^(end - v) - 1), without the cancellation; another
        # e^v is that of du.
        weight = lambda v: jnp.expm1(end[..., None] - v) * jnp.exp((1 - self.omega) * v)
        return self.scale**2 * integrate(weight, edges)
