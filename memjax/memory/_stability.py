from typing import Any, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real

from .._checks import (
    as_float_array,
    as_plain,
    as_positive,
    check_instance,
    check_positive,
    is_traced,
    shown,
)
from .._lazy import scipy
from .._text import readable
from .._typing import ArrayLike
from ..numerics import fit_line
from ..reparam import AbstractReparametrisation, as_radii
from ._perturbation import as_curve_radii

Verdict = Literal["stable", "unstable", "undecided"]


@readable()
class StabilityCriterion(eqx.Module):
    r"""The stability criterion of a reparametrisation, from [`memjax.stability_criterion`][].

    **Attributes:**

    - `radii`: the radii $\beta$, any shape, in units of the free weights.
    - `growth`: $g(\beta)$, of the same shape, without units.
    - `stable_up_to`: the supremum of the radii at which $g$ is finite: 0 for an unstable map,
        infinity for one that is stable whatever the perturbation.
    - `verdict`: `"stable"` if $g(\beta) \to 0$ as $\beta \to 0$, otherwise `"unstable"`.
    """

    radii: Float[Array, "..."]
    growth: Float[Array, "..."]
    stable_up_to: Float[Array, ""]
    verdict: Literal["stable", "unstable"] = eqx.field(static=True)


def stability_criterion(
    reparametrisation: AbstractReparametrisation,
    radii: Real[ArrayLike, "..."],
    *,
    rates: tuple[float, float] | None = None,
) -> StabilityCriterion:
    r"""Whether a reparametrisation keeps an approximation stable, and by which constant.

    $$g(\beta) = \sup_v \sup_{|\tilde v - v| \le \beta}
        \varphi(v) \int_0^\infty |e^{-\varphi(\tilde v) t} - e^{-\varphi(v) t}| \,\mathrm{d}t
        = \sup_v \sup_{|\tilde v - v| \le \beta}
        \left| \frac{\varphi(v)}{\varphi(\tilde v)} - 1 \right|$$

    The map is stable if $g$ is finite near 0 and $g(\beta) \to 0$: a perturbation of the free
    weights then changes every mode by little, relative to the mode, however slow it is.

    | map | $g(\beta)$ over all rates |
    | --- | --- |
    | [`memjax.Direct`][] | $\infty$; $\beta / (w_{\min} - \beta)$ for rates from $w_{\min}$ |
    | [`memjax.Exp`][] | $e^{g \beta} - 1$ with the gain $g$ |
    | [`memjax.Softplus`][] | $e^\beta - 1$ |
    | [`memjax.Inverse`][] | $\infty$; $(1 + \beta \sqrt{w_{\max}})^2 - 1$ up to $w_{\max}$ |
    | [`memjax.Best`][] | $\tfrac{c^2}{2} + c \sqrt{1 + \tfrac{c^2}{4}}$, $c = \beta \sqrt{a/b}$ |
    | [`memjax.Tanh`][] | $e^{2\beta} - 1$ |

    For other maps $g$ is a numerical supremum. Without a range of rates they count as stable if
    $g$ is finite and small at small radii and does not depend on how far the rates reach, from
    1e-8 to 1e8 or only from 1e-4 to 1e4.

    **Arguments:**

    - `reparametrisation`: the map $\varphi$.
    - `radii`: the radii $\beta \ge 0$, any shape, in units of the free weights.
    - `rates`: the range of $\varphi(v)$ that the supremum is over, in units of one over the
        model's clock. Defaults to all that the map reaches. Over a range that is bounded away
        from 0 even [`memjax.Direct`][] is stable, with a constant that depends on the range.

    **Returns:**

    A [`memjax.StabilityCriterion`][].

    **Raises:**

    `TypeError` for what is no reparametrisation; `ValueError` for radii that are negative or not
    finite, and for a range that is not positive and increasing.

    ??? cite "Reference"

        Wang, Li, Li, *Inverse Approximation Theory for Nonlinear Recurrent Neural Networks*,
        ICLR 2024, section 3; Wang, Li, *StableSSM*, ICML 2024, section 3 (theory, section 5).
    """
    hint = "pass for example memjax.Softplus(), or wrap a function in memjax.Elementwise"
    kind = AbstractReparametrisation
    check_instance("reparametrisation", reparametrisation, kind, "a map of rates", hint)
    radii = as_radii(radii)
    if is_traced((reparametrisation, radii)):
        raise TypeError(
            "`radii` must be concrete, got a traced array; the verdict needs numbers: call it "
            "outside of `jax.jit` and `jax.vmap`."
        )
    growth = lambda radii, rates: reparametrisation.perturbation_growth(radii, rates=rates)
    small = jnp.asarray([1e-7, 1e-6])
    first = growth(small, rates)
    stable = bool(jnp.all(first <= 1e-2))
    own = type(reparametrisation)._largest_growth
    if rates is None and own is AbstractReparametrisation._largest_growth:
        # What the range cuts off shows as growth with the range.
        stable = stable and bool(jnp.allclose(first, growth(small, (1e-4, 1e4)), rtol=0.05))
    stable_up_to = _find_largest_finite(lambda radius: growth(radius, rates)) if stable else 0.0
    values = growth(radii, rates)
    if not stable and rates is None:
        values = jnp.where(radii > 0, jnp.inf, 0.0)
    return StabilityCriterion(
        radii, values, jnp.asarray(stable_up_to), "stable" if stable else "unstable"
    )


def _find_largest_finite(growth: Any) -> float:
    """The largest radius of finite growth, to rounding; infinity if it is beyond 1e2."""
    finite = lambda radius: bool(jnp.isfinite(growth(jnp.asarray(radius))))
    low, high = 1e-7, 1e2
    if finite(high):
        return np.inf
    for _ in range(60):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if finite(middle) else (low, middle)
    return low


@readable()
class StabilityRadius(eqx.Module):
    r"""The radius up to which models stay good, by width, from [`memjax.stability_radius`][].

    **Attributes:**

    - `widths`: the widths $m$, ascending, shape `(widths,)`.
    - `radius`: $r_m$, the largest radius with $E_m \le$ `level`, shape `(..., widths)`.
    - `below`: where even the smallest radius, or the model itself, is above the level; `radius`
        is then an upper bound.
    - `above`: where even the largest radius is not; `radius` is then a lower bound.
    - `exponent`, `exponent_error`: $p$ of the fit $r_m \propto m^{-p}$ and its standard error. NaN
        if fewer than three widths can be used.
    - `limit`, `limit_low`, `limit_high`: $r_\infty$ of the fit $\log r_m = \log r_\infty + d / m$,
        with the ends of its 95 % confidence interval. It supposes that there is a positive
        limit: disregard it if the verdict is `"unstable"`.
    - `verdict`: `"stable"`, `"unstable"` or `"undecided"`.
    """

    widths: Float[Array, " widths"]
    radius: Float[Array, "... widths"]
    below: Bool[Array, "... widths"]
    above: Bool[Array, "... widths"]
    exponent: Float[Array, ""]
    exponent_error: Float[Array, ""]
    limit: Float[Array, ""]
    limit_low: Float[Array, ""]
    limit_high: Float[Array, ""]
    verdict: Verdict = eqx.field(static=True)


def crossings(
    radii: Real[ArrayLike, " radii"], errors: Real[ArrayLike, "... widths radii"]
) -> Float[Array, "... pairs"]:
    r"""Where the error curves of neighbouring widths cross.

    A wider model is better at its own weights. If it tolerates less, its curve
    $E_{m'}(\beta)$ rises above that of the narrower one, $E_m(\beta)$, at some radius; where
    these radii tend to 0 with the width, the target is not stably approximated. The crossing is
    interpolated linearly in the logarithms.

    **Arguments:**

    - `radii`: the positive radii $\beta$, ascending, shape `(radii,)`.
    - `errors`: the errors, widths ascending, shape `(..., widths, radii)`, infinity included.

    **Returns:**

    For each pair of neighbouring widths the first radius from which on the wider model is
    worse, shape `(..., widths - 1)`: 0 if it is from the first radius on, infinity if it is at
    none of the radii, NaN if an error up to there is NaN.

    **Raises:**

    `ValueError` for radii that are not positive or do not ascend, for errors of another shape,
    or that are negative.

    ??? cite "Reference"

        Wang, Li, Li, *Inverse Approximation Theory for Nonlinear Recurrent Neural Networks*,
        ICLR 2024, section 4 (theory, section 5).
    """
    beta, curves = _as_curves(radii, errors)
    flat = np.reshape(curves, (-1, *curves.shape[-2:]))
    found = [
        [_find_crossing(beta, *pair) for pair in zip(c[:-1], c[1:], strict=True)] for c in flat
    ]
    return jnp.asarray(np.reshape(found, (*curves.shape[:-2], curves.shape[-2] - 1)))


def _find_crossing(radii: np.ndarray, narrow: np.ndarray, wide: np.ndarray) -> float:
    worse = wide > narrow
    if not np.any(worse):
        return np.nan if np.any(np.isnan(wide) | np.isnan(narrow)) else np.inf
    first = int(np.argmax(worse))
    if np.any(np.isnan(narrow[:first]) | np.isnan(wide[:first])):
        return np.nan
    if first == 0:
        return 0.0
    both = np.stack([narrow, wide])[:, first - 1 : first + 1]
    if not np.all(np.isfinite(both)) or np.any(both == 0):
        return float(radii[first])
    before, after = np.diff(np.log(both), axis=0)[0]
    return _interpolate(radii, first, -before / (after - before))


def _interpolate(radii: np.ndarray, index: int, share: float) -> float:
    """The radius at a share of the way, in logarithms, that ends at `index`."""
    return float(radii[index - 1] * (radii[index] / radii[index - 1]) ** share)


def stability_radius(
    widths: Real[ArrayLike, " widths"],
    radii: Real[ArrayLike, " radii"],
    errors: Real[ArrayLike, "... widths radii"],
    *,
    level: float,
) -> StabilityRadius:
    r"""How large a perturbation models of growing width survive, and whether wide ones do.

    $$r_m = \sup \{\beta : E_m(\beta) \le \text{level}\}$$

    is interpolated in the logarithms of radius and error, and then extrapolated in the width.
    Two laws of two parameters are fitted by least squares: $\log r_m = c - p \log m$, in which
    the radius vanishes, and $\log r_m = \log r_\infty + d / m$, in which it does not. The verdict
    is

    - `"unstable"` if $p$ is above 0 at 95 % confidence and the first law fits better; or if the
        radius, once inside the range of `radii`, falls out of it below as the width grows;
    - `"stable"` if no curve reaches the level at all; or if $p$ is under 1/4 at 95 %
        confidence, and either not above 0 or the second law fits better;
    - `"undecided"` otherwise, in particular with fewer than three widths inside the range.

    It is an extrapolation from the widths that were given: three or four widths that span less
    than a decade can tell a vanishing radius from a constant one, not from one with a very
    small limit.

    **Arguments:**

    - `widths`: the widths $m$, ascending, shape `(widths,)`.
    - `radii`: the positive radii $\beta$, ascending, shape `(radii,)`.
    - `errors`: the errors, shape `(..., widths, radii)`, infinity included; leading axes, such as
        seeds, are replicates that enter the fits together.
    - `level`: the error that counts as a good approximation, in units of the errors: above the
        models' own errors, and below what a useless model has.

    **Returns:**

    A [`memjax.StabilityRadius`][].

    **Raises:**

    `ValueError` for widths or radii that are not positive or do not ascend, for errors of another
    shape or that are negative, and for a level that is not positive.

    ??? cite "Reference"

        Wang, Li, Li, *Inverse Approximation Theory for Nonlinear Recurrent Neural Networks*,
        ICLR 2024, Definition 3.3 (theory, section 5).
    """
    beta, curves = _as_curves(radii, errors)
    check_positive("widths", widths)
    m = np.asarray(as_float_array("widths", widths))
    if m.shape != curves.shape[-2:-1] or np.any(np.diff(m) <= 0):
        raise ValueError(
            f"`widths` must ascend and match `errors`, got {shown(m)} for errors of shape "
            f"{curves.shape}; pass one width per curve."
        )
    level = as_plain(as_positive, "level", level)
    flat = np.reshape(curves, (-1, beta.size))
    found = [_find_radius(beta, curve, level) for curve in flat]
    shaped = lambda k: np.reshape([part[k] for part in found], curves.shape[:-1])
    radius, below, above = shaped(0), shaped(1).astype(bool), shaped(2).astype(bool)
    inside = ~below & ~above
    every = np.broadcast_to(m, radius.shape)
    x, y = every[inside], np.log(radius[inside])
    fits = np.full(5, np.nan)
    verdict: Verdict = "undecided"
    if np.unique(x).size >= 3:
        vanishing, positive = fit_line(np.log(x), y), fit_line(1 / x, y)
        t = float(scipy.special.stdtrit(x.size - 2, 0.975))
        exponent, error = -vanishing.slope, vanishing.errors().slope
        ends = positive.intercept + t * positive.errors().intercept * np.array([0, -1, 1])
        fits = np.array([exponent, error, *np.exp(ends)])
        vanishes = vanishing.squares < positive.squares
        falls = exponent - t * error > 0
        flat_enough = exponent + t * error < 0.25
        if falls and vanishes:
            verdict = "unstable"
        elif flat_enough:
            verdict = "stable"
    # What is cut off at one end is evidence too, if it is so for every replicate.
    axes = tuple(range(radius.ndim - 1))
    all_below, all_above = np.atleast_1d(below.all(axes)), np.atleast_1d(above.all(axes))
    if all_above.all():
        verdict = "stable"
    elif all_below[-1]:
        verdict = "undecided" if all_below.all() else "unstable"
    elif all_above[-1] and verdict == "unstable":
        verdict = "undecided"
    arrays = (jnp.asarray(part) for part in (m, radius, below, above, *fits))
    return StabilityRadius(*arrays, verdict=verdict)


def _find_radius(radii: np.ndarray, errors: np.ndarray, level: float) -> tuple[float, bool, bool]:
    """The radius at which a curve passes the level, and whether it is below or above all."""
    within = errors <= level  # NaN is not
    if within.all():
        return float(radii[-1]), False, True
    first = int(np.argmin(within))
    if first == 0:
        return float(radii[0]), True, False
    before, after = errors[first - 1], errors[first]
    if not np.isfinite(after) or before == 0:
        # The last radius that is known to be good.
        return float(radii[first - 1]), False, False
    return _interpolate(radii, first, np.log(level / before) / np.log(after / before)), False, False


def _as_curves(radii: Any, errors: Any) -> tuple[np.ndarray, np.ndarray]:
    beta = np.asarray(as_curve_radii(radii))
    check_positive("radii", beta, "the logarithm of 0 cannot be interpolated")
    curves = np.asarray(as_float_array("errors", errors))
    if curves.ndim < 2 or curves.shape[-1] != beta.size:
        raise ValueError(
            f"`errors` must have shape (..., widths, radii), got {curves.shape} for {beta.size} "
            "radii; put the radii last."
        )
    if np.any(curves < 0):
        raise ValueError(
            f"`errors` must not be negative, got {curves[curves < 0][0]}; pass errors, not their "
            "logarithms."
        )
    return beta, curves
