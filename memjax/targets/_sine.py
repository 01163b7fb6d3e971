from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._checks import as_positive, check_positive
from .._typing import ScalarLike
from ..numerics import complex_exponential_moment
from ._base import AbstractKernel
from ._target import Memory


class Sine(AbstractKernel):
    r"""The kernel $\rho(t) = \sin(\nu t)$, which never decays.

    It is in neither $L^1$ nor $L^2$, so no model that is stable approximates it over an infinite
    horizon. Over finite ones it is a kernel like any other, and its transform
    $R(s) = \nu / (s^2 + \nu^2)$ exists for $s > 0$.

    **Arguments:**

    - `frequency`: the angular frequency $\nu > 0$, in radians per unit of time; a scalar.

    **Raises:** `ValueError` for a frequency that is not positive, for NaN, and for arrays.

    ??? cite "Reference"

        Wang, Li, *StableSSM: Alleviating the Curse of Memory in State-space Models through Stable
        Reparameterization*, ICML 2024, section 3 (theory, section 3).
    """

    memory: ClassVar[Memory] = "none"
    in_l1: ClassVar[bool] = False
    in_l2: ClassVar[bool] = False

    frequency: Float[Array, ""]

    def __init__(self, frequency: Real[ScalarLike, ""] = 1.0) -> None:
        self.frequency = as_positive("frequency", frequency)

    def breakpoints(self) -> Float[Array, " points"]:
        # Four periods a panel; they have to end somewhere, and do after 512 periods.
        return 8 * jnp.pi / self.frequency * jnp.arange(129)

    def _value(self, t: Array) -> Array:
        return jnp.sin(self.frequency * t)

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        check_positive("s", s, "the integral of a sine over the half line needs a decay")
        if horizon is None:
            return self.frequency / (s**2 + self.frequency**2)
        moment = complex_exponential_moment(0, (s - 1j * self.frequency) * horizon)
        return horizon * jnp.imag(moment)

    def _squared_norm(self, horizon: Array | None) -> Array:
        if horizon is None:
            raise ValueError(
                "`horizon` must be finite for a sine, got inf; it never decays and is not square "
                "integrable."
            )
        # sin^2 = (1 - cos(2 nu t)) / 2
        phase = 2 * self.frequency * horizon
        return horizon * phase * _ramp(phase) / 2

    def _heaviside_response(self, t: Array) -> Array:
        # 1 - cos(nu t), which would lose its digits where t is short.
        return 2 * jnp.sin(self.frequency * t / 2) ** 2 / self.frequency

    def _ramp_response(self, t: Array) -> Array:
        return t**2 * _ramp(self.frequency * t)


def _ramp(phase: Array) -> Array:
    """`int_0^1 (1 - u) sin(phase u) du`, also where `phase - sin(phase)` cancels."""
    moments = complex_exponential_moment(0, 1j * phase) - complex_exponential_moment(1, 1j * phase)
    return -jnp.imag(moments)
