import math
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Real

from .._checks import (
    as_float_array,
    as_number,
    as_positive,
    check_positive,
    check_scalar,
    is_traced,
    valid_or_nan,
)
from .._typing import ArrayLike
from ..numerics import (
    complex_gaussian_moments,
    gaussian_moment,
    gaussian_moments,
    gaussian_transform,
)
from ..numerics import double_double as dd
from ._base import AbstractKernel
from ._complex import complex_transforms
from ._product import register_inner_product
from ._target import Memory


class GaussianBump(AbstractKernel):
    r"""A Gaussian bump delayed to time $1/\omega$: memory that sits at a distance.

    $$\rho(t) = c_0 \exp\left(-\frac{(t - 1/\omega)^2}{2\sigma^2}\right), \qquad t \ge 0$$

    This is the remainder alone; add an [`memjax.ExponentialSum`][] for the part that a model
    learns at once. Its transform is

    $$R(s) = c_0 \sigma \sqrt{\pi/2}\; e^{-s/\omega + s^2\sigma^2/2}
    \operatorname{erfc}\left(\frac{s\sigma^2 - 1/\omega}{\sigma\sqrt 2}\right)$$

    and in float64 `laplace` and its derivatives in `s` keep a relative accuracy of 1e-12 down to
    the smallest normal number, 2e-308; what is smaller is 0. Finite horizons and responses keep
    about that too, in either tail of the bump, except over times much shorter than `width`, where
    the error is rounding relative to the width.

    **Arguments:**

    - `omega`: One over the delay, $\omega > 0$; infinity is no delay.
    - `amplitude`: the height $c_0$.
    - `width`: the width $\sigma > 0$, in units of time.

    All three are scalars; batch kernels with `jax.vmap`.

    **Raises:** `ValueError` for `omega` or `width` of 0 or less, for NaN, and for arrays.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 5 (theory, section 3).
    """

    memory: ClassVar[Memory] = "exponential"

    omega: Float[Array, ""]
    amplitude: Float[Array, ""]
    width: Float[Array, ""]

    def __init__(
        self,
        omega: Real[ArrayLike, "..."],
        amplitude: Real[ArrayLike, "..."] = 1.0,
        width: Real[ArrayLike, "..."] = 1.0,
    ) -> None:
        omega = as_float_array("omega", omega)
        check_scalar("omega", omega)
        if not is_traced(omega) and not jnp.isposinf(omega):
            check_positive("omega", omega, "the bump sits at time 1/omega; `inf` is no delay")
        self.omega = valid_or_nan(omega, omega > 0)
        self.amplitude = as_number("amplitude", amplitude)
        self.width = as_positive("width", width)

    def breakpoints(self) -> Float[Array, " points"]:
        # Panels of two widths. Nine widths out the bump is e^(-40.5), some 3e-18.
        points = 1 / self.omega + self.width * jnp.linspace(-9, 9, 10)
        return jnp.maximum(jnp.concatenate([jnp.zeros(1), points]), 0)

    def support(self) -> Float[Array, ""]:
        return 1 / self.omega + 9 * self.width

    def _value(self, t: Array) -> Array:
        distance = (t - 1 / self.omega) / self.width
        return self.amplitude * jnp.exp(-(distance**2) / 2)

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        return self.amplitude * _transform(s, 1 / self.omega, self.width, horizon)

    def laplace_derivatives(self, s: Float[Array, "..."], order: int) -> tuple[Array, ...]:
        moments = gaussian_moments(order, s, 1 / self.omega, self.width)
        return tuple((-1) ** k * self.amplitude * moment for k, moment in enumerate(moments))

    def transform_pairs(self, s: dd.Pair) -> tuple[dd.Pair, dd.Pair, Bool[Array, "..."]]:
        r"""The transform and its derivative with twice the digits, and where they are that: where
        all of the bump lies at positive times, $R(s) = c_0 \sigma \sqrt{2 \pi}\,
        e^{s^2 \sigma^2 / 2 - s / \omega}$.

        **Arguments:**

        - `s`: the Laplace variable, the unevaluated sum of two arrays.
        """
        # The delay as it is rounded: that is the delay of the bump everywhere else too.
        delay, square = 1 / self.omega, dd.two_product(self.width, self.width)
        z = (s[0] * self.width**2 - delay) / (self.width * math.sqrt(2))
        along = dd.multiply(s, square)
        slope = dd.two_sum(*dd.add_float(along, -delay))
        exponent = dd.multiply(s, dd.two_sum(*dd.add_float(dd.scale(along, 0.5), -delay)))
        # What would lie at negative times is then a share of erfc(9) / 2 = 2e-37, below the last
        # digit of a pair; and the exponential of pairs is made for these exponents.
        whole = (z < -9) & (exponent[0] > -600) & (exponent[0] < 0)
        exponent = jnp.where(whole, exponent[0], 0), jnp.where(whole, exponent[1], 0)
        # The root of 2 pi.
        root = jnp.asarray(2.5066282746310007), jnp.asarray(-1.8328579980459167e-16)
        area = dd.multiply(dd.two_product(self.amplitude, self.width), root)
        value = dd.multiply(dd.exp(exponent), area)
        return value, dd.multiply(value, slope), whole

    def _squared_norm(self, horizon: Array | None) -> Array:
        return bump_product(self, self, horizon)

    def _ramp_response(self, t: Array) -> Array:
        center = 1 / self.omega
        # Counted backwards from t, where the Gaussian is in its lower tail while t < center;
        # taken off again is the part that would lie at negative times.
        before = t * gaussian_moment(0, 0.0, -center, self.width) + gaussian_moment(
            1, 0.0, -center, self.width
        )
        return self.amplitude * (gaussian_moment(1, 0.0, t - center, self.width) - before)


@complex_transforms.register(GaussianBump)
def _(bump: GaussianBump, s: Complex[Array, "..."], order: int) -> tuple[Array, ...]:
    moments = complex_gaussian_moments(order, s, 1 / bump.omega, bump.width)
    return tuple((-1) ** k * bump.amplitude * moment for k, moment in enumerate(moments))


@register_inner_product(GaussianBump, GaussianBump)
def bump_product(
    first: GaussianBump, second: GaussianBump, horizon: Array | None
) -> Float[Array, "..."]:
    """The inner product of two bumps: their product is a Gaussian again."""
    # The exponents add up to one square in t, about a mean weighted by the inverse variances, and a
    # rest that is the distance of the centres.
    variance = first.width**2 + second.width**2
    first_center, second_center = 1 / first.omega, 1 / second.omega
    center = (first_center * second.width**2 + second_center * first.width**2) / variance
    width = first.width * second.width / jnp.sqrt(variance)
    overlap = jnp.exp(-((first_center - second_center) ** 2) / (2 * variance))
    integral = _transform(0.0, center, width, horizon)
    return first.amplitude * second.amplitude * overlap * integral


def _transform(s: Array | float, center: Array, width: Array, horizon: Array | None) -> Array:
    if horizon is None:
        return gaussian_moment(0, s, center, width)
    return gaussian_transform(s, center, width, horizon)
