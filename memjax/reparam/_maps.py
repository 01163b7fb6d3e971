"""The reparametrisations, and a list of them by name."""

from typing import Any, get_args, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import (
    as_finite_array,
    as_float_array,
    as_positive,
    as_positive_array,
    is_traced,
    valid_or_nan,
)
from .._typing import ArrayLike, ScalarLike
from ..numerics import double_double as dd
from ._base import AbstractReparametrisation, relative_growth


class Direct(AbstractReparametrisation):
    r"""The rates themselves are the weights, $w = v$.

    Not stable in the sense of Wang & Li: a perturbation of fixed size can carry a small rate
    across zero.
    """

    def __call__(self, free: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        return as_float_array("free", free)

    def inverse(self, rates: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        return as_finite_array("rates", rates)

    def displacement(
        self, free: Float[Array, "*#shape"], change: Float[Array, "*#shape"]
    ) -> Float[Array, "*#shape"]:
        return change

    def displaced_pair(
        self, rates: Float[Array, "*shape"], change: dd.Pair
    ) -> tuple[dd.Pair, dd.Pair]:
        return change, dd.from_float(jnp.ones_like(rates))

    def _largest_growth(
        self, radii: Float[Array, "*shape"], low: float, high: float
    ) -> Float[Array, "*shape"]:
        reached = jnp.where(radii < low, low - radii, 1)
        return jnp.where(radii < low, radii / reached, jnp.where(radii > 0, jnp.inf, 0))


class Exp(AbstractReparametrisation):
    r"""Rates as exponentials, $w = e^{g v}$, with a gain $g$ (published: $g = 1$).

    The rates stay positive whatever the flow does. The flow of the rates is that of
    [`memjax.Direct`][] times $g^2 w^2$, so the gain is a relative learning rate of the
    recurrent weights.

    **Arguments:**

    - `gain`: the positive number $g$. Defaults to 1.
    """

    gain: Float[Array, ""]

    def __init__(self, gain: Real[ScalarLike, ""] = 1.0) -> None:
        self.gain = as_positive("gain", gain)

    def __call__(self, free: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.exp(self.gain * as_float_array("free", free))

    def inverse(self, rates: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.log(as_positive_array("rates", rates)) / self.gain

    def displacement(
        self, free: Float[Array, "*#shape"], change: Float[Array, "*#shape"]
    ) -> Float[Array, "*#shape"]:
        return jnp.exp(self.gain * free) * jnp.expm1(self.gain * change)

    def displaced_pair(
        self, rates: Float[Array, "*shape"], change: dd.Pair
    ) -> tuple[dd.Pair, dd.Pair]:
        moved = dd.multiply_float(dd.expm1(dd.multiply_float(change, self.gain)), rates)
        return moved, dd.multiply_float(_moved(rates, moved), self.gain)

    def _largest_growth(
        self, radii: Float[Array, "*shape"], low: float, high: float
    ) -> Float[Array, "*shape"]:
        return jnp.expm1(self.gain * radii)  # the same for every rate


class Softplus(AbstractReparametrisation):
    r"""Rates as soft positive parts, $w = \log(1 + e^v)$.

    Like [`memjax.Exp`][] where the rates are small, and like [`memjax.Direct`][] where they are
    large.
    """

    def __call__(self, free: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        return jax.nn.softplus(as_float_array("free", free))

    def inverse(self, rates: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        rates = as_positive_array("rates", rates)
        return rates + jnp.log(-jnp.expm1(-rates))

    def displacement(
        self, free: Float[Array, "*#shape"], change: Float[Array, "*#shape"]
    ) -> Float[Array, "*#shape"]:
        # The difference is log(1 + sigma(v) (e^d - 1)) = log(sigma(-v) + sigma(v) e^d). The
        # first form cancels where it comes near log(0), and overflows for large d; besides, XLA's
        # log1p loses two digits below -0.29.
        ordinary = (jax.nn.sigmoid(free) * jnp.expm1(jnp.minimum(change, 50)) >= -0.25) & (
            change <= 50
        )
        near = jnp.log1p(jax.nn.sigmoid(free) * jnp.expm1(jnp.where(ordinary, change, 0)))
        far = jnp.logaddexp(-jax.nn.softplus(free), change - jax.nn.softplus(-free))
        return jnp.where(ordinary, near, far)

    def displaced_pair(
        self, rates: Float[Array, "*shape"], change: dd.Pair
    ) -> tuple[dd.Pair, dd.Pair]:
        sigmoid = lambda rates: dd.negative(dd.expm1(dd.negative(rates)))
        growth = dd.multiply(sigmoid(dd.from_float(rates)), dd.expm1(change))
        moved = dd.log1p(dd.fast_two_sum(*growth))
        return moved, sigmoid(_moved(rates, moved))

    def _largest_growth(
        self, radii: Float[Array, "*shape"], low: float, high: float
    ) -> Float[Array, "*shape"]:
        if low == 0:
            return jnp.expm1(radii)
        # The slope of the logarithm falls with the rate, so that the slowest mode changes most.
        return relative_growth(self, self.inverse(jnp.asarray(low)), -radii)


class Inverse(AbstractReparametrisation):
    r"""Rates as inverse squares, $w = 1 / v^2$.

    Stable where rates are small, at large $|v|$, but not at $v \to 0$, where the rate is
    infinite: [`memjax.Best`][] bounds it. Free weights are taken positive.
    """

    def __call__(self, free: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        return 1 / as_float_array("free", free) ** 2

    def inverse(self, rates: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        return 1 / jnp.sqrt(as_positive_array("rates", rates))

    def displacement(
        self, free: Float[Array, "*#shape"], change: Float[Array, "*#shape"]
    ) -> Float[Array, "*#shape"]:
        # In this order no factor overflows unless a rate does.
        moved = free + change
        return -(change / free / moved) * ((2 * free + change) / free / moved)

    def displaced_pair(
        self, rates: Float[Array, "*shape"], change: dd.Pair
    ) -> tuple[dd.Pair, dd.Pair]:
        free = dd.sqrt(dd.reciprocal(dd.from_float(rates)))
        shrunk = dd.reciprocal(dd.two_sum(*dd.add(free, change)))
        square = dd.fast_two_sum(*dd.multiply(shrunk, shrunk))
        twice = dd.add(dd.scale(free, 2.0), change)
        moved = dd.multiply_float(dd.multiply(change, dd.two_sum(*twice)), -rates)
        slope = dd.scale(dd.multiply(square, shrunk), -2.0)
        return dd.fast_two_sum(*dd.multiply(moved, square)), dd.fast_two_sum(*slope)

    def _largest_growth(
        self, radii: Float[Array, "*shape"], low: float, high: float
    ) -> Float[Array, "*shape"]:
        # (1 + x)^2 - 1 at the fastest mode; without a perturbation nothing changes.
        x = jnp.where(radii > 0, radii * np.sqrt(high), 0)
        return x * (2 + x)


class Best(AbstractReparametrisation):
    r"""The reparametrisation of best gradient-over-weight ratio, $w = 1 / (a v^2 + b)$.

    Its gradient-over-weight scale is $2 a |v|$, in constant ratio to the weight. Rates lie in
    $(0, 1/b]$. Free weights are taken non-negative; at $v = 0$, where $w = 1/b$, the rate does
    not move under gradient flow.

    **Arguments:**

    - `a`: the positive factor $a$. Defaults to 1.
    - `b`: the positive offset $b$, in units of the model's own clock. Defaults to 0.1, as in the
        paper's code; in discrete time see
        [`multipliers`][memjax.AbstractReparametrisation.multipliers].

    ??? cite "Reference"

        Wang, Li, *StableSSM: Alleviating the Curse of Memory in State-space Models through
        Stable Reparameterization*, ICML 2024, Section 3.
    """

    a: Float[Array, ""]
    b: Float[Array, ""]

    def __init__(self, a: Real[ScalarLike, ""] = 1.0, b: Real[ScalarLike, ""] = 0.1) -> None:
        self.a = as_positive("a", a)
        self.b = as_positive("b", b)

    def __call__(self, free: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        return 1 / (self.a * as_float_array("free", free) ** 2 + self.b)

    def inverse(self, rates: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        rates = _as_rates_below(rates, 1 / self.b, "1/b = ", "choose a smaller `b`", closed=True)
        # The largest rate is a rounding above 1/b or below it.
        return jnp.sqrt(jnp.maximum(1 / rates - self.b, 0) / self.a)

    def displacement(
        self, free: Float[Array, "*#shape"], change: Float[Array, "*#shape"]
    ) -> Float[Array, "*#shape"]:
        # In this order no factor overflows unless the square of a free weight does.
        moved = free + change
        return -(self.a * change * self(free)) * ((2 * free + change) * self(moved))

    def displaced_pair(
        self, rates: Float[Array, "*shape"], change: dd.Pair
    ) -> tuple[dd.Pair, dd.Pair]:
        square = dd.add_float(dd.reciprocal(dd.from_float(rates)), -self.b)
        square = dd.multiply(dd.two_sum(*square), dd.reciprocal(dd.from_float(self.a)))
        # The largest rate is a rounding above 1/b or below it.
        least = square[0] > 0
        free = dd.sqrt((jnp.where(least, square[0], 0), jnp.where(least, square[1], 0)))
        after = dd.two_sum(*dd.add(free, change))
        divisor = dd.add_float(dd.multiply_float(dd.multiply(after, after), self.a), self.b)
        rate = dd.reciprocal(dd.fast_two_sum(*divisor))
        twice = dd.add(dd.scale(free, 2.0), change)
        moved = dd.multiply(dd.multiply(change, dd.two_sum(*twice)), rate)
        moved = dd.multiply_float(dd.multiply_float(moved, -self.a), rates)
        slope = dd.multiply(dd.multiply(rate, rate), dd.multiply_float(after, -2 * self.a))
        return dd.fast_two_sum(*moved), dd.fast_two_sum(*slope)

    def _largest_growth(
        self, radii: Float[Array, "*shape"], low: float, high: float
    ) -> Float[Array, "*shape"]:
        # (2 v beta + beta^2) / (v^2 + b / a) rises up to the zero of v^2 + beta v - b / a, and
        # falls from there on.
        offset = self.b / self.a
        steepest = 2 * offset / (radii + jnp.sqrt(radii**2 + 4 * offset))
        free = jnp.sqrt(jnp.maximum(1 / (self.a * np.array([high, low or 1e-300])) - offset, 0))
        return relative_growth(self, jnp.clip(steepest, free[0], free[1]), radii)


class Tanh(AbstractReparametrisation):
    r"""Rates as complements of hyperbolic tangents, $w = 1 - \tanh v$.

    In discrete time the step of 1 gives the residual recursion the multiplier
    $1 - w = \tanh v$ in $(-1, 1)$. Rates lie in $(0, 2)$; small ones are $2 e^{-2v}$.
    """

    def __call__(self, free: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        return 2 * jax.nn.sigmoid(-2 * as_float_array("free", free))

    def inverse(self, rates: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        rates = _as_rates_below(rates, 2.0, "", "measure time in other units", closed=False)
        return (jnp.log(2 - rates) - jnp.log(rates)) / 2

    def displacement(
        self, free: Float[Array, "*#shape"], change: Float[Array, "*#shape"]
    ) -> Float[Array, "*#shape"]:
        return -jnp.sinh(change) * _sech(free) * _sech(free + change)

    def displaced_pair(
        self, rates: Float[Array, "*shape"], change: dd.Pair
    ) -> tuple[dd.Pair, dd.Pair]:
        rest = dd.add_float(dd.from_float(-rates), 2.0)
        growth = dd.multiply(dd.two_sum(*rest), dd.expm1(dd.scale(change, 2.0)))
        growth = dd.fast_two_sum(*growth)
        quotient = dd.multiply(growth, dd.reciprocal(dd.two_sum(*dd.add_float(growth, 2.0))))
        moved = dd.fast_two_sum(*dd.multiply_float(quotient, -rates))
        after = _moved(rates, moved)
        slope = dd.multiply(after, dd.two_sum(*dd.add_float(after, -2.0)))
        return moved, dd.fast_two_sum(*slope)

    def _largest_growth(
        self, radii: Float[Array, "*shape"], low: float, high: float
    ) -> Float[Array, "*shape"]:
        if low == 0:
            return jnp.expm1(2 * radii)
        # As for the softplus, the slowest mode changes most.
        return relative_growth(self, self.inverse(jnp.asarray(low)), radii)


ReparametrisationName = Literal["direct", "exp", "softplus", "inverse", "best"]
# By name, those that every start of a plateau and every reproduction can be asked for: `Tanh`
# reaches no rate of 2 or more, and `Elementwise` needs a function.
REPARAMETRISATIONS: dict[str, type[AbstractReparametrisation]] = dict(
    zip(get_args(ReparametrisationName), (Direct, Exp, Softplus, Inverse, Best), strict=True)
)


def _moved(rates: Array, move: dd.Pair) -> dd.Pair:
    """The rates after a displacement."""
    return dd.two_sum(*dd.add_float(move, rates))


def _sech(v: Array) -> Array:
    # Through its logarithm, since the hyperbolic cosine overflows.
    return 2 * jnp.exp(-jnp.logaddexp(v, -v))


def _as_rates_below(rates: Any, bound: Any, name: str, hint: str, closed: bool) -> Array:
    """Rates that a reparametrisation reaches."""
    rates = as_positive_array("rates", rates)
    # The largest rate itself must pass, however it was rounded.
    within = rates <= bound * (1 + 1e-6) if closed else rates < bound
    if not is_traced(within) and not jnp.all(within):
        raise ValueError(
            f"`rates` must be {'at most' if closed else 'less than'} {name}{float(bound):.6g}, "
            f"got {rates[~within].ravel()[0]}; {hint}."
        )
    return valid_or_nan(rates, within)
