import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import as_nonnegative, as_positive, is_traced
from .._lazy import scipy
from .._typing import ScalarLike
from ._base import AbstractKernel
from ._target import Memory
from ._window import WindowedKernel


class Airy(AbstractKernel):
    r"""Memory that oscillates at first and lies at a delay, $\rho(t) = \mathrm{Ai}(s_0 (t - t_0))$.

    Beyond the delay it decays faster than any exponential. Its integrals are taken by
    Gauss-Legendre quadrature, to rounding of the integral of $|\rho|$ in float64. The kernel of
    Wang and Li, $\mathrm{Ai}(t - 6)$, is the default.

    **Arguments:**

    - `scale`: the inverse time $s_0 > 0$.
    - `delay`: the time $t_0 \ge 0$ at which the oscillation turns into decay.

    Both are scalars; batch kernels with `jax.vmap`. Integrals of a traced kernel resolve the
    oscillation up to $s_0 t_0 = 80$, those of a concrete one up to any value.

    **Raises:** `ValueError` for a scale that is not positive, a negative delay, for NaN or
    infinity, and for arrays.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 5; Wang, Li, *StableSSM*, ICML 2024, section 3
        (theory, section 3).
    """

    memory: ClassVar[Memory] = "exponential"

    scale: Float[Array, ""]
    delay: Float[Array, ""]

    def __init__(
        self, scale: Real[ScalarLike, ""] = 1.0, delay: Real[ScalarLike, ""] = 6.0
    ) -> None:
        self.scale = as_positive("scale", scale)
        self.delay = as_nonnegative("delay", delay)

    def breakpoints(self) -> Float[Array, " points"]:
        # Even steps of the phase (2/3) |x|^(3/2), a little over one period each. Sixty of them
        # reach to the phase of |x| = 80.
        panels = 60
        if not is_traced((self.scale, self.delay)):
            panels = 1 + math.ceil(2 / 3 * float(self.scale * self.delay) ** 1.5 / 8)
        phases = 8.0 * np.arange(panels, -1, -1)
        # Ai(16) is 4e-20.
        decay = np.array([3.0, 6.0, 10.0, 16.0])
        points = jnp.asarray(np.concatenate([-((1.5 * phases) ** (2 / 3)), decay]))
        return jnp.maximum(points / self.scale + self.delay, 0)

    def support(self) -> Float[Array, ""]:
        return self.delay + 16 / self.scale

    def _value(self, t: Array) -> Array:
        return airy(self.scale * (t - self.delay))

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        return self._window()._laplace(s, horizon)

    def _squared_norm(self, horizon: Array | None) -> Array:
        return self._window()._squared_norm(horizon)

    def _heaviside_response(self, t: Array) -> Array:
        return self._window()._heaviside_response(t)

    def _ramp_response(self, t: Array) -> Array:
        return self._window()._ramp_response(t)

    def _window(self) -> WindowedKernel:
        return WindowedKernel(self, jnp.zeros_like(self.delay), self.support())


def airy(x: Float[Array, "..."]) -> Float[Array, "..."]:
    r"""The Airy function $\mathrm{Ai}(x)$, elementwise and differentiable to any order.

    In float64 the error is 1e-14 of the local amplitude of the oscillation for $x < 0$, apart
    from the rounding of its phase, and relative for $x > 0$.
    """
    return _airy_pair(jnp.asarray(x))[0]


# Taylor polynomials about the integers up to here, asymptotic series beyond. Half an integer away,
# 24 terms leave less than 2e-17; from 12 on the twentieth term of the series in 1 / zeta is below
# 1e-18.
_REACH = 12
_TERMS = 24


def _taylor_table() -> np.ndarray:
    """Coefficients of Ai (row 0) and Ai' (row 1) about every integer, by Ai'' = x Ai."""
    x = np.arange(-_REACH, _REACH + 1.0)
    value, slope = scipy.special.airy(x)[:2]
    coefficients = [value, slope, x * value / 2]
    for n in range(1, _TERMS):
        coefficients.append((x * coefficients[n] + coefficients[n - 1]) / ((n + 1) * (n + 2)))
    # From Ai'' = x Ai about an integer n: (k + 2) (k + 1) c_(k + 2) = n c_k + c_(k - 1). The slope
    # is that of a longer series, so that it has as many terms.
    series = np.stack(coefficients)
    slopes = series[1:] * np.arange(1, len(series))[:, None]
    return np.stack([series[:_TERMS], slopes[:_TERMS]])


def _asymptotic_table() -> np.ndarray:
    """Coefficients u_k (row 0) and v_k (row 1) of the expansions in 1/zeta (DLMF, 9.7.2)."""
    u = [1.0]
    for k in range(1, 20):
        u.append(u[-1] * (6 * k - 5) * (6 * k - 3) * (6 * k - 1) / (216 * k * (2 * k - 1)))
    v = [(6 * k + 1) / (1 - 6 * k) * uk for k, uk in enumerate(u)]
    return np.array([u, v])


_TAYLOR = _taylor_table()
_ASYMPTOTIC = _asymptotic_table()


@jax.custom_jvp
def _airy_pair(x: Array) -> tuple[Array, Array]:
    """Ai and Ai'."""
    # Both forms are evaluated, each at an argument at which it is finite, and one is chosen.
    near = jnp.clip(x, -_REACH - 0.5, _REACH + 0.5)
    node = jnp.clip(jnp.round(near), -_REACH, _REACH)
    offset = near - node
    table = jnp.asarray(_TAYLOR, x.dtype)[:, :, node.astype(int) + _REACH]
    inner = jnp.zeros((2, *x.shape), x.dtype)
    for n in reversed(range(_TERMS)):
        inner = inner * offset + table[:, n]

    # DLMF 9.7.5, 9.7.6 for positive arguments, where it is a decay, and 9.7.9, 9.7.10 for negative
    # ones, where it is a wave.
    size = jnp.maximum(jnp.abs(x), _REACH)
    zeta = 2 / 3 * size**1.5
    root = size**0.25 * math.sqrt(math.pi)

    def series(row: int, first: int, step: int, sign: int) -> Array:
        total = jnp.zeros_like(x)
        for c in _ASYMPTOTIC[row, first::step][::-1]:
            total = c + sign * total / zeta**step
        return total

    decay = jnp.exp(-zeta) / 2
    phase = zeta - math.pi / 4
    cos, sin = jnp.cos(phase), jnp.sin(phase)
    waves = (
        (cos * series(0, 0, 2, -1) + sin * series(0, 1, 2, -1) / zeta) / root,
        (sin * series(1, 0, 2, -1) - cos * series(1, 1, 2, -1) / zeta) * size**0.5 / root,
    )
    tails = (
        decay * series(0, 0, 1, -1) / root,
        -decay * series(1, 0, 1, -1) * size**0.5 / root,
    )
    far = jnp.abs(x) > _REACH
    pair = (
        jnp.where(far, jnp.where(x < 0, wave, tail), taylor)
        for wave, tail, taylor in zip(waves, tails, inner, strict=True)
    )
    value, slope = pair
    return value, slope


@_airy_pair.defjvp
def _airy_pair_jvp(primals, tangents):
    (x,), (x_dot,) = primals, tangents
    value, slope = _airy_pair(x)
    # By Ai'' = x Ai derivatives of any order are made of the pair itself, with its accuracy.
    return (value, slope), (slope * x_dot, x * value * x_dot)
