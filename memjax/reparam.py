"""Reparametrisations: maps from free weights to decay rates (theory: Wang & Li 2024)."""

import abc
import math
from collections.abc import Callable
from typing import Any, get_args, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from ._checks import (
    as_finite_array,
    as_float_array,
    as_pair,
    as_positive,
    as_positive_array,
    check_callable,
    check_choice,
    check_nonnegative,
    check_positive,
    is_traced,
    valid_or_nan,
)
from ._typing import ArrayLike, ScalarLike
from .numerics import double_double as dd
from .numerics import gauss_rule


class AbstractReparametrisation(eqx.Module):
    r"""A map $w = \varphi(v)$ from free weights $v$ to decay rates $w$.

    A recurrent eigenvalue is $\lambda = -w$. Gradient flow acts on $v$, so that the rates
    feel the flow multiplied by $\varphi'(v)^2$. Leaves of a reparametrisation (its own
    parameters) are held fixed by every flow; they can still be swept and differentiated.

    To write one, subclass it and give the three abstract methods below, or wrap a function in
    [`memjax.Elementwise`][].

    | name | rates | stable? | gradient over weight |
    | --- | --- | --- | --- |
    | [`memjax.Direct`][] | $v$ | no | $1 / v^2$ |
    | [`memjax.Exp`][] | $e^{g v}$ | yes | $g e^{-g v}$ |
    | [`memjax.Softplus`][] | $\log(1 + e^v)$ | yes | $\sigma(v) / \log^2(1 + e^v)$ |
    | [`memjax.Inverse`][] | $1 / v^2$ | as $w \to 0$ only | $2 \lvert v \rvert$ |
    | [`memjax.Best`][] | $1 / (a v^2 + b)$ | yes | $2 a \lvert v \rvert$ |
    | [`memjax.Tanh`][] | $1 - \tanh v$ | yes | $(1 + \tanh v) / (1 - \tanh v)$ |

    *Stable*: a perturbation of $v$ by at most $\beta$ changes the rates by a bounded factor,
    which tends to 1 with $\beta$ (theory, section 5).

    ??? cite "Reference"

        Wang, Li, *StableSSM: Alleviating the Curse of Memory in State-space Models through
        Stable Reparameterization*, ICML 2024, Section 3.
    """

    @abc.abstractmethod
    def __call__(self, free: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The decay rates of the free weights, elementwise."""

    @abc.abstractmethod
    def inverse(self, rates: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The free weights of the decay rates, elementwise."""

    @abc.abstractmethod
    def displacement(
        self, free: Float[Array, "*#shape"], change: Float[Array, "*#shape"]
    ) -> Float[Array, "*#shape"]:
        r"""$\varphi(v + \Delta) - \varphi(v)$, to full relative accuracy for tiny $\Delta$.

        Forming the two rates and subtracting them would leave only the digits of the
        difference that reach above the rounding of the rates.
        """

    def displaced_pair(
        self, rates: Float[Array, "*shape"], change: dd.Pair
    ) -> tuple[dd.Pair, dd.Pair] | None:
        r"""The displacement with twice the digits, and the slope $\varphi'(v + \Delta)$.

        What float64 does not resolve is integrated anew with it. `None`, the default, if there is
        no such form.

        **Arguments:**

        - `rates`: the rates $\varphi(v)$, which stand for the free weights, any shape.
        - `change`: $\Delta$, the unevaluated sum of two arrays of that shape.

        **Returns:**

        Two such sums, with relative errors of about 1e-30.
        """
        return None

    def slope(self, free: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""The derivative $\varphi'(v)$ of the rates in the free weights, elementwise.

        It is that of the displacement, which keeps its accuracy where the rates are tiny.

        **Arguments:**

        - `free`: the free weights $v$, any shape.

        **Returns:**

        The slopes, of the same shape, in units of one over the model's own clock.
        """
        free = as_float_array("free", free)
        move = lambda change: self.displacement(free, change)
        return jax.jvp(move, (jnp.zeros_like(free),), (jnp.ones_like(free),))[1]

    def gradient_over_weight_scale(self, free: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        r"""How the gradient scales with the recurrent weight, $|\varphi'(v)| / \varphi(v)^2$.

        The gradient of a loss in $v$ is at most a constant times this scale: where it is large
        for the rates that matter, so are the gradients. Wang & Li's criterion asks that its
        ratio to $|v|$ be constant, which [`memjax.Best`][] does.

        **Arguments:**

        - `free`: the free weights $v$, any shape.

        **Returns:**

        The scales, of the same shape, in units of the model's own clock.

        ??? cite "Reference"

            Wang, Li, *StableSSM*, ICML 2024, Section 3 (theory, section 5).
        """
        rates = self(free)
        return jnp.abs(self.slope(free)) / rates / rates

    def multipliers(
        self,
        free: Float[Array, "*shape"],
        step: Real[ArrayLike, "..."] = 1.0,
        *,
        rule: Literal["exact", "euler"] = "exact",
    ) -> Float[Array, "*shape"]:
        r"""The discrete-time counterpart: what multiplies the hidden state in one step.

        $$\lambda = e^{-\varphi(v)\, \Delta t} \quad\text{or}\quad
          \lambda = 1 - \varphi(v)\, \Delta t.$$

        With a step of 1, `"exact"` turns [`memjax.Exp`][] into $\exp(-e^v)$, and `"euler"` turns
        [`memjax.Best`][] into $1 - 1/(a v^2 + b)$ and [`memjax.Tanh`][] into $\tanh v$.

        **Arguments:**

        - `free`: the free weights $v$, any shape.
        - `step`: the time step $\Delta t > 0$.
        - `rule`: `"exact"`, as in `scan`, is stable for all positive rates; `"euler"`, as in
            `residual`, for $w \Delta t < 2$ only: with [`memjax.Best`][], choose
            $b > \Delta t / 2$.

        **Returns:**

        The multipliers $\lambda$, of the shape of `free`.

        **Raises:**

        `ValueError` for a step that is not positive, or an unknown rule.
        """
        check_choice("rule", rule, ("exact", "euler"))
        advance = self(free) * as_positive_array("step", step)
        return jnp.exp(-advance) if rule == "exact" else 1 - advance

    def perturbation_growth(
        self,
        radii: Float[Array, "*shape"],
        *,
        rates: tuple[float, float] | None = None,
    ) -> Float[Array, "*shape"]:
        r"""How much a perturbation of the free weights can change a mode, relative to itself.

        $$g(\beta) = \sup_v \sup_{|\tilde v - v| \le \beta}
            \varphi(v) \int_0^\infty |e^{-\varphi(\tilde v) t} - e^{-\varphi(v) t}| \,\mathrm{d}t
            = \sup_v \sup_{|\tilde v - v| \le \beta}
            \left| \frac{\varphi(v)}{\varphi(\tilde v)} - 1 \right|$$

        A reparametrisation is stable if $g(\beta) \to 0$ as $\beta \to 0$
        ([`memjax.stability_criterion`][]). The maps of this library have closed forms; the
        default, which holds for any map, searches the plane of $\log \varphi(v)$ and
        $\tilde v - v$ on a grid that it refines around the largest value.

        **Arguments:**

        - `radii`: the radii $\beta \ge 0$, any shape, in units of the free weights.
        - `rates`: the range of $\varphi(v)$ that the supremum is over, in units of one over the
            model's clock; $\tilde v$ may leave it. Defaults to all that the map reaches; for a
            map without a closed form, to the decades from 1e-8 to 1e8 as far as it reaches them.

        **Returns:**

        $g$ at the radii, of their shape, without units. Infinite where a perturbation reaches a
        rate that is not positive, or changes modes by unbounded factors.

        **Raises:**

        `ValueError` for radii that are negative or not finite, and for a range that is not
        positive and increasing.

        ??? cite "Reference"

            Wang, Li, Li, *Inverse Approximation Theory for Nonlinear Recurrent Neural Networks*,
            ICLR 2024, section 3 (theory, section 5).
        """
        return self._largest_growth(as_radii(radii), *_as_rate_range(rates))

    def _largest_growth(
        self, radii: Float[Array, "*shape"], low: float, high: float
    ) -> Float[Array, "*shape"]:
        """The growth over the rates from `low`, perhaps 0, to `high`, perhaps infinite.

        Overridden where it has a closed form.
        """
        low, high = (1e-8 if low == 0 else low), (1e8 if math.isinf(high) else high)
        return jnp.vectorize(lambda radius: _search_growth(self, radius, low, high))(radii)


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
        return _growth(self, self.inverse(jnp.asarray(low)), -radii)


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
        return _growth(self, jnp.clip(steepest, free[0], free[1]), radii)


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
        return _growth(self, self.inverse(jnp.asarray(low)), radii)


class Elementwise(AbstractReparametrisation):
    r"""Any function of a free weight as the rate, $w = f(v)$.

    **Arguments:**

    - `function`: a smooth positive function of one number, applied to arrays elementwise and
        differentiable by JAX. If it is an `equinox.Module`, its arrays are leaves, and held
        fixed like those of every reparametrisation.
    - `inverse`: the free weight of a rate, as a function alike. Needed wherever a model is made
        from its rates, which all constructors do.

    The displacement is found by Gauss's quadrature of $f'$ where that is small against the
    rate, to full relative accuracy, and by subtraction elsewhere.
    """

    function: Callable[[Array], Array]
    inverse_function: Callable[[Array], Array] | None

    def __init__(
        self,
        function: Callable[[Array], Array],
        inverse: Callable[[Array], Array] | None = None,
    ) -> None:
        self.function = as_callable("function", function)
        self.inverse_function = None if inverse is None else as_callable("inverse", inverse)

    def __call__(self, free: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        return as_float_array("function", self.function(as_float_array("free", free)))

    def inverse(self, rates: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        if self.inverse_function is None:
            raise ValueError(
                "`inverse` must be given to make free weights from rates, got None; pass "
                "memjax.Elementwise(function, inverse)."
            )
        rates = as_positive_array("rates", rates)
        free = as_float_array("inverse", self.inverse_function(rates))
        if not is_traced((rates, free, self)):
            again, asked = np.asarray(self.function(free)), np.asarray(rates)
            wrong = ~(np.abs(again - asked) <= 1e-3 * asked)
            if np.any(wrong):
                raise ValueError(
                    f"`inverse` must undo `function`, got rate {again[wrong].ravel()[0]} back "
                    f"for {asked[wrong].ravel()[0]}; correct it, or keep to rates in its range."
                )
        return free

    def displacement(
        self, free: Float[Array, "*#shape"], change: Float[Array, "*#shape"]
    ) -> Float[Array, "*#shape"]:
        free, change = jnp.broadcast_arrays(free, change)
        slope = lambda v: jax.jvp(self.function, (v,), (jnp.ones_like(v),))[1]
        rates = self.function(free)
        difference = self.function(free + change) - rates
        # Small by its derivatives at both ends and by its value: then the interval is short
        # against the scale on which the rate varies, and the quadrature is exact to rounding.
        largest = jnp.maximum(jnp.abs(slope(free)), jnp.abs(slope(free + change)))
        small = jnp.maximum(jnp.abs(change) * largest, jnp.abs(difference)) < rates / 8
        short = jnp.where(small, change, 0)
        mean = sum(
            weight * slope(free + node * short) for node, weight in zip(*_GAUSS, strict=True)
        )
        return jnp.where(small, short * mean, difference)


def _moved(rates: Array, move: dd.Pair) -> dd.Pair:
    """The rates after a displacement."""
    return dd.two_sum(*dd.add_float(move, rates))


def as_radii(radii: Any) -> Float[Array, "..."]:
    """`radii` as an array of numbers that are not negative."""
    array = as_float_array("radii", radii)
    check_nonnegative("radii", radii, "a ball has a radius of 0 or more")
    return valid_or_nan(array, array >= 0)


def _as_rate_range(rates: Any) -> tuple[float, float]:
    """The ends of a range of rates, positive and increasing; of all rates if there is none."""
    if rates is None:
        return 0.0, math.inf
    check_positive("rates", rates, "pass the slowest and the fastest rate")
    return as_pair("rates", rates, "pass the slowest and the fastest rate")


def _growth(
    reparametrisation: AbstractReparametrisation,
    free: Float[Array, "..."],
    change: Float[Array, "..."],
) -> Float[Array, "..."]:
    r"""$|\varphi(v) / \varphi(v + \Delta) - 1|$, infinite where the moved rate is not positive."""
    free, change = jnp.broadcast_arrays(free, change)
    moved = reparametrisation(free + change)
    growth = jnp.abs(reparametrisation.displacement(free, change)) / jnp.where(moved > 0, moved, 1)
    return jnp.where(moved > 0, growth, jnp.where(change == 0, 0, jnp.inf))


def _search_growth(
    reparametrisation: AbstractReparametrisation, radius: Float[Array, ""], low: float, high: float
) -> Float[Array, ""]:
    """The largest growth over a range of rates and the perturbations of at most `radius`."""

    def grid(rates: Array, share: Array) -> tuple[Array, Array]:
        # Rates out of the map's reach have no free weight.
        free = reparametrisation.inverse(jnp.exp(rates))[:, None]
        growth = _growth(reparametrisation, free, radius * share[None, :])
        growth = jnp.where(jnp.isnan(growth), 0, growth)
        row, column = jnp.unravel_index(jnp.argmax(growth), growth.shape)
        return jnp.stack([rates[row], share[column]]), jnp.max(growth)

    first, last = np.log(low), np.log(high)
    best, value = grid(jnp.linspace(first, last, 513), jnp.linspace(-1, 1, 33))
    widths = np.array([(last - first) / 512, 2 / 32])
    for _ in range(8):
        around = best[:, None] + widths[:, None] * np.linspace(-1, 1, 17)
        best, value = grid(jnp.clip(around[0], first, last), jnp.clip(around[1], -1, 1))
        widths = widths / 6
    # Beyond this the perturbation reaches a rate of 0, as far as rounding can tell.
    return jnp.where(value < 1e15, value, jnp.inf)


def as_callable(name: str, value: Any) -> Any:
    """A callable that is a PyTree: a module as it is, any other function without leaves."""
    check_callable(name, value, "pass one, as jnp.tanh is")
    return _Function(value) if not isinstance(value, eqx.Module) else value


class _Function(eqx.Module):
    function: Callable[..., Any] = eqx.field(static=True)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


ReparametrisationName = Literal["direct", "exp", "softplus", "inverse", "best"]
# By name, those that every start of a plateau and every reproduction can be asked for: `Tanh`
# reaches no rate of 2 or more, and `Elementwise` needs a function.
REPARAMETRISATIONS: dict[str, type[AbstractReparametrisation]] = dict(
    zip(get_args(ReparametrisationName), (Direct, Exp, Softplus, Inverse, Best), strict=True)
)


# The nodes and weights of Gauss's quadrature on [0, 1].
_GAUSS = tuple(x.tolist() for x in ((gauss_rule(8)[0] + 1) / 2, gauss_rule(8)[1] / 2))


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
