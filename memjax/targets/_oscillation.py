import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, Real

from .._checks import (
    as_finite_array,
    as_float_array,
    as_horizon,
    check_nonnegative,
    check_same_shape,
    is_traced,
)
from .._typing import ArrayLike
from ..numerics import complex_exponential_moment
from ._base import AbstractKernel, Memory
from ._exponential import as_decay_rates, as_mode_array, decay_breakpoints, decay_support


class DampedOscillation(AbstractKernel):
    r"""A sum of damped oscillations: what a complex diagonal linear model represents exactly.

    $$\rho(t) = \sum_j e^{-w_j t} (a_j \cos \nu_j t + b_j \sin \nu_j t)
    = \operatorname{Re} \sum_j (a_j - \mathrm{i} b_j)\, e^{-(w_j - \mathrm{i} \nu_j) t},
    \qquad t \ge 0$$

    Every mode is a pair of complex conjugate rates $w_j \mp \mathrm{i} \nu_j$; a frequency of 0
    makes it a plain exponential of amplitude $a_j$. Its transform is

    $$R(s) = \sum_j \frac{a_j (s + w_j) + b_j \nu_j}{(s + w_j)^2 + \nu_j^2}$$

    Oscillations cancel by nature, so accuracy is to rounding of the sum of the modes' sizes.

    **Arguments:**

    - `cosine`: the amplitudes $a_j$, shape `(modes,)`; a scalar is one mode.
    - `sine`: the amplitudes $b_j$.
    - `rates`: the rates $w_j > 0$, in units of one over time.
    - `frequencies`: the angular frequencies $\nu_j$, in radians per unit of time.

    All four have the same shape.

    **Raises:** `ValueError` for a rate that is not positive, for NaN or infinity, and for
    shapes that differ or have more than one dimension.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 3 (theory, section 1).
    """

    cosine: Float[Array, " modes"]
    sine: Float[Array, " modes"]
    rates: Float[Array, " modes"]
    frequencies: Float[Array, " modes"]

    def __init__(
        self,
        cosine: Real[ArrayLike, "..."],
        sine: Real[ArrayLike, "..."],
        rates: Real[ArrayLike, "..."],
        frequencies: Real[ArrayLike, "..."],
    ) -> None:
        finite = lambda name, value: as_mode_array(name, as_finite_array(name, value))
        self.cosine = finite("cosine", cosine)
        self.sine = finite("sine", sine)
        self.rates = as_decay_rates(rates)
        self.frequencies = finite("frequencies", frequencies)
        for name in ("sine", "rates", "frequencies"):
            check_same_shape("cosine", self.cosine, name, getattr(self, name))

    @property
    def memory(self) -> Memory:
        return "exponential"

    def breakpoints(self) -> Float[Array, " points"]:
        # Four periods a panel, as long as the oscillation lasts. A traced kernel's quality is not
        # known; it gets as many panels as a quality nu/w of 150 needs.
        if self.rates.size == 0:
            return jnp.zeros(1)
        panels = 256
        if not is_traced((self.rates, self.frequencies)):
            quality = np.max(np.abs(np.asarray(self.frequencies)) / np.asarray(self.rates))
            panels = max(1, math.ceil(40 * quality / (8 * math.pi)))
        even = jnp.linspace(0, 40, panels + 1) / self.rates[:, None]
        return jnp.concatenate([decay_breakpoints(self.rates), even.ravel()])

    def support(self) -> Float[Array, ""]:
        return decay_support(jnp.hypot(self.cosine, self.sine), self.rates, self.squared_norm())

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        t = as_float_array("t", t)
        since = jnp.maximum(t, 0)[..., None]
        phase = self.frequencies * since
        waves = self.cosine * jnp.cos(phase) + self.sine * jnp.sin(phase)
        return jnp.where(t < 0, 0, jnp.sum(jnp.exp(-self.rates * since) * waves, axis=-1))

    def laplace(
        self, s: Real[ArrayLike, "..."], horizon: Real[ArrayLike, "..."] | None = jnp.inf
    ) -> Float[Array, "..."]:
        s = as_float_array("s", s)
        check_nonnegative("s", s)
        amplitudes, rates = self._complex()
        integrals = _decay_integral(s[..., None] + rates, as_horizon(horizon), 1)
        return jnp.sum(jnp.real(amplitudes * integrals), axis=-1)

    def squared_norm(self, horizon: Real[ArrayLike, "..."] | None = jnp.inf) -> Float[Array, "..."]:
        return oscillation_product(self, self, horizon)

    def heaviside_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        t = jnp.maximum(as_float_array("t", t), 0)
        amplitudes, rates = self._complex()
        return jnp.sum(jnp.real(amplitudes * _decay_integral(rates, t, 1)), axis=-1)

    def ramp_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        t = jnp.maximum(as_float_array("t", t), 0)[..., None]
        amplitudes, rates = self._complex()
        z = rates * t
        moments = complex_exponential_moment(0, z) - complex_exponential_moment(1, z)
        return jnp.sum(jnp.real(amplitudes * t**2 * moments), axis=-1)

    def _complex(self) -> tuple[Complex[Array, " modes"], Complex[Array, " modes"]]:
        """The amplitudes $a - ib$ and the rates $w - i nu$ of which rho is the real part."""
        return self.cosine - 1j * self.sine, self.rates - 1j * self.frequencies


def oscillation_product(
    first: DampedOscillation, second: DampedOscillation, horizon: Real[ArrayLike, "..."] | None
) -> Float[Array, "..."]:
    """The inner product of two sums of damped oscillations, mode by mode."""
    finite = as_horizon(horizon)
    a, v = (leaf[:, None] for leaf in first._complex())
    b, w = second._complex()
    total = jnp.asarray(0.0)
    # Re(x) Re(y) = Re(x y + x conj(y)) / 2
    for amplitude, rate in ((b, w), (jnp.conj(b), jnp.conj(w))):
        integrals = jnp.real(a * amplitude * _decay_integral(v + rate, finite, 2))
        total = total + jnp.sum(integrals, axis=(-2, -1)) / 2
    return total


def _decay_integral(rate: Array, horizon: Array | None, trailing: int) -> Array:
    """`int_0^horizon exp(-rate t) dt` for complex `rate`, which ends in `trailing` own axes."""
    if horizon is None:
        return 1 / rate
    horizon = jnp.expand_dims(horizon, tuple(range(-trailing, 0)))
    return horizon * complex_exponential_moment(0, rate * horizon)
