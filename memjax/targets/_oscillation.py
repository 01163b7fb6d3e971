import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Complex, Float, Real

from .._checks import as_finite_array, check_same_shape, is_traced
from .._typing import ArrayLike
from ..numerics import complex_exponential_moment
from ._base import AbstractKernel
from ._exponential import (
    as_decay_rates,
    as_mode_array,
    decay_breakpoints,
    decay_support,
    ExponentialSum,
    kernel_of_modes,
)
from ._product import oscillation_points, register_inner_product
from ._system import state_space, StateSpace
from ._target import Memory


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

    memory: ClassVar[Memory] = "exponential"

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

    def decays(self) -> Bool[Array, ""]:
        return jnp.all(self.rates > 0)

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

    def _panels(self, end: Array) -> tuple[Array, bool]:
        return oscillation_points(self.frequencies, lambda frequencies: frequencies, end)

    def support(self) -> Float[Array, ""]:
        return decay_support(jnp.hypot(self.cosine, self.sine), self.rates, self.squared_norm())

    def _value(self, t: Array) -> Array:
        t = t[..., None]
        phase = self.frequencies * t
        waves = self.cosine * jnp.cos(phase) + self.sine * jnp.sin(phase)
        return jnp.sum(jnp.exp(-self.rates * t) * waves, axis=-1)

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        amplitudes, rates = self._complex()
        integrals = _decay_integral(s[..., None] + rates, horizon, 1)
        return jnp.sum(jnp.real(amplitudes * integrals), axis=-1)

    def _squared_norm(self, horizon: Array | None) -> Array:
        return oscillation_product(self, self, horizon)

    def _ramp_response(self, t: Array) -> Array:
        t = t[..., None]
        amplitudes, rates = self._complex()
        z = rates * t
        # int_0^1 (1 - u) e^(-zu) du.
        moments = complex_exponential_moment(0, z) - complex_exponential_moment(1, z)
        return jnp.sum(jnp.real(amplitudes * t**2 * moments), axis=-1)

    def _complex(self) -> tuple[Complex[Array, " modes"], Complex[Array, " modes"]]:
        """The amplitudes $a - ib$ and the rates $w - i nu$ of which rho is the real part."""
        # Re (a - i b) e^(i nu t) = a cos nu t + b sin nu t.
        return self.cosine - 1j * self.sine, self.rates - 1j * self.frequencies


@state_space.register(DampedOscillation)
def _(kernel: DampedOscillation) -> StateSpace:
    # exp(Wt) (1, 0) = exp(-wt) (cos, sin) for W = [[-w, -nu], [nu, -w]].
    modes = kernel.rates.size
    blocks = (-kernel.rates, -kernel.frequencies, kernel.frequencies, -kernel.rates)
    corners = [jnp.diag(block) for block in blocks]
    recurrent = jnp.block([corners[:2], corners[2:]])
    first = jnp.concatenate([jnp.ones(modes), jnp.zeros(modes)])
    readout = jnp.concatenate([kernel.cosine, kernel.sine])
    return StateSpace(recurrent, first[:, None], readout[None, :])


def as_oscillation(kernel: ExponentialSum | DampedOscillation) -> DampedOscillation:
    """An exponential sum as oscillations of frequency 0."""
    if isinstance(kernel, DampedOscillation):
        return kernel
    still = jnp.zeros_like(kernel.rates)
    leaves = {"cosine": kernel.amplitudes, "rates": kernel.rates}
    return kernel_of_modes(DampedOscillation, **leaves, sine=still, frequencies=still)


@register_inner_product(DampedOscillation, DampedOscillation)
def oscillation_product(
    first: DampedOscillation, second: DampedOscillation, horizon: Array | None
) -> Float[Array, "..."]:
    """The inner product of two sums of damped oscillations, mode by mode."""
    a, v = (leaf[:, None] for leaf in first._complex())
    b, w = second._complex()
    total = jnp.asarray(0.0)
    # Re(x) Re(y) = Re(x y + x conj(y)) / 2
    for amplitude, rate in ((b, w), (jnp.conj(b), jnp.conj(w))):
        integrals = jnp.real(a * amplitude * _decay_integral(v + rate, horizon, 2))
        total = total + jnp.sum(integrals, axis=(-2, -1)) / 2
    return total


def _decay_integral(rate: Array, horizon: Array | None, trailing: int) -> Array:
    """`int_0^horizon exp(-rate t) dt` for complex `rate`, which ends in `trailing` own axes."""
    if horizon is None:
        return 1 / rate
    horizon = jnp.expand_dims(horizon, tuple(range(-trailing, 0)))
    return horizon * complex_exponential_moment(0, rate * horizon)
