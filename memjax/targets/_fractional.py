import math
from typing import ClassVar

import jax.numpy as jnp
from jax.scipy.special import gammaln
from jaxtyping import Array, Complex, Float, Real

from .._checks import as_number, as_positive, check_integer, is_traced, valid_or_nan
from .._typing import ScalarLike
from ._base import AbstractKernel
from ._complex import complex_transforms
from ._exponential import ExponentialSum, kernel_of_modes
from ._target import Memory

# The trapezoidal rule in the logarithm of the rates: the weights are analytic for pi / 2 to both
# sides, so that with this step its error is e^(-2 pi (pi / 2) / 0.25), some 7e-18. The rates begin
# at e^(-108): what is left out is, against the kernel at t, at most (t e^(-108))^(1 - d), which is
# 1e-16 after 1e15 steps and d = 1/2. They end where the weights e^(-xd) of the smallest order are
# e^(-45).
_STEP, _LOWEST, _SMALLEST = 0.25, -108.0, 0.01
_LAST = 1e15  # steps after which the kernel is a power to the rounding of float64
_NODES = math.ceil((math.log(45 / _SMALLEST) - _LOWEST) / _STEP) + 1


class FractionalIntegration(AbstractKernel):
    r"""Memory of a fractionally integrated series (ARFIMA), which decays as $t^{d-1}$.

    $$\rho(t) = \frac{\Gamma(t/\tau + d)}{\Gamma(t/\tau + 1)\, \Gamma(d)}$$

    At $t = j\tau$ these are the weights of $(1 - B)^{-d}$ in powers of the backshift $B$, by which
    white noise becomes an ARFIMA(0, d, 0) series. For $0 < d < 1/2$ the series is stationary and
    has long memory: its autocovariances decay as $k^{2d-1}$ and are not summable. The kernel is in
    $L^2$ and not in $L^1$.

    It is a mixture of exponentials with positive weights,

    $$\rho(t) = \frac{\sin \pi d}{\pi} \int_0^\infty \frac{e^{-xd}}{(1 - e^{-x})^d}\, e^{-xt/\tau}
      \,\mathrm{d}x,$$

    whose integral, by the trapezoidal rule in $\log x$ on 467 points, is exact to the rounding of
    float64 for $t \le 10^{15} \tau$ and $s\tau \ge 10^{-15}$; so are the transforms and norms.

    **Arguments:**

    - `order`: the order $d$ of integration, from 0.01 to below 1/2.
    - `scale`: the length $\tau > 0$ of a step of the series.

    Both are scalars; batch kernels with `jax.vmap`.

    **Raises:** `ValueError` for an order out of range, for a scale that is not positive, for NaN,
    and for arrays.

    ??? cite "Reference"

        Granger, Joyeux, *An Introduction to Long-Memory Time Series Models and Fractional
        Differencing*, Journal of Time Series Analysis 1, 1980; Hosking, *Fractional Differencing*,
        Biometrika 68, 1981; Zhao et al., *Do RNN and LSTM have Long Memory?*, ICML 2020.
    """

    memory: ClassVar[Memory] = "polynomial"

    order: Float[Array, ""]
    scale: Float[Array, ""]

    def __init__(self, order: Real[ScalarLike, ""], scale: Real[ScalarLike, ""] = 1.0) -> None:
        self.order = as_number("order", order)
        if not is_traced(self.order) and not _SMALLEST <= self.order < 0.5:
            raise ValueError(
                f"`order` must be from {_SMALLEST:g} to below 0.5, got {float(self.order):g}; a "
                "series of another order is not stationary, or has no long memory."
            )
        self.order = valid_or_nan(self.order, (_SMALLEST <= self.order) & (self.order < 0.5))
        self.scale = as_positive("scale", scale)

    @property
    def in_l1(self) -> bool:
        return False

    def breakpoints(self) -> Float[Array, " points"]:
        return self.scale * (4.0 ** jnp.arange(28) - 1)

    def _mixture(self) -> ExponentialSum:
        x = jnp.exp(_LOWEST + _STEP * jnp.arange(_NODES, dtype=self.order.dtype))
        # e^(-xd) / (1 - e^(-x))^d in one exponential, with all digits of the denominator at small
        # x.
        weights = jnp.exp(-self.order * (x + jnp.log(-jnp.expm1(-x))))
        amplitudes = _STEP * jnp.sin(jnp.pi * self.order) / jnp.pi * x * weights
        return kernel_of_modes(ExponentialSum, amplitudes=amplitudes, rates=x / self.scale)

    def _value(self, t: Array) -> Array:
        return self._mixture()._value(t)

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        # At s = 0 the sum over finitely many rates is finite, the integral is not.
        found = self._mixture()._laplace(s, horizon)
        return jnp.where(s > 0, found, jnp.inf) if horizon is None else found

    def _squared_norm(self, horizon: Array | None) -> Array:
        if horizon is not None:
            return self._mixture()._squared_norm(horizon)
        # What follows has the square of t^(d - 1) / Gamma(d), which falls slowly near d = 1/2.
        whole = self._mixture()._squared_norm(_LAST * self.scale)
        power = jnp.exp(-2 * gammaln(self.order)) * _LAST ** (2 * self.order - 1)
        return whole + self.scale * power / (1 - 2 * self.order)

    def _ramp_response(self, t: Array) -> Array:
        return self._mixture()._ramp_response(t)


@complex_transforms.register(FractionalIntegration)
def _(
    kernel: FractionalIntegration, s: Complex[Array, "..."], order: int
) -> tuple[Complex[Array, "..."], ...]:
    mixture = kernel._mixture()
    inverse = 1 / (s[..., None] + mixture.rates)
    return tuple(
        (-1) ** k * math.factorial(k) * jnp.sum(mixture.amplitudes * inverse ** (k + 1), axis=-1)
        for k in range(order + 1)
    )


def fractional_weights(order: Real[ScalarLike, ""], count: int) -> Float[Array, " count"]:
    r"""The weights of fractional differencing, $(1 - B)^d = \sum_j w_j B^j$.

    $$w_j = \prod_{i=0}^{j-1} \frac{i - d}{i + 1} \approx \frac{j^{-d-1}}{\Gamma(-d)}$$

    With $-d$ in place of $d$ they are those of integration, the values of
    [`memjax.FractionalIntegration`][] at whole steps. Differentiable in $d$.

    **Arguments:**

    - `order`: the order $d$, any number.
    - `count`: how many weights.

    **Returns:**

    The weights, from $w_0 = 1$ on, shape `(count,)`.

    **Raises:**

    `ValueError` for NaN, infinity, or fewer than one weight.

    ??? cite "Reference"

        Hosking, *Fractional Differencing*, Biometrika 68, 1981; Zhao et al., *Do RNN and LSTM have
        Long Memory?*, ICML 2020 (the memory filter).
    """
    order = as_number("order", order)
    check_integer("count", count)
    steps = jnp.arange(count - 1, dtype=order.dtype)
    factors = jnp.concatenate([jnp.ones(1, order.dtype), (steps - order) / (steps + 1)])
    return jnp.cumprod(factors)
