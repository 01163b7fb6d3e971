"""What every reparametrisation has, and how much it lets a perturbation change."""

import abc
import math
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import (
    as_float_array,
    as_pair,
    as_positive_array,
    check_choice,
    check_nonnegative,
    check_positive,
    valid_or_nan,
)
from .._typing import ArrayLike
from ..numerics import double_double as dd


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


def relative_growth(
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
        growth = relative_growth(reparametrisation, free, radius * share[None, :])
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
