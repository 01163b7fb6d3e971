from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import (
    as_list,
    as_pair,
    as_plain,
    as_positive,
    as_positive_array,
    as_share,
    is_traced,
    shown,
    valid_or_nan,
)
from .._deprecation import renamed_arguments
from .._lazy import scipy, xr
from .._typing import ArrayLike, ScalarLike
from ..numerics import fit_line
from ..targets import AbstractKernel, check_kernel, KernelSum, split_exponential
from ._axis import find_axis, MEMORY
from ._outcomes import EXITED

CORRECTIONS = ("none", "omega^2")


def plateau_lower_bound(
    omega: Real[ArrayLike, "..."],
    *,
    delta: Real[ArrayLike, "..."],
    decay_rate: Real[ArrayLike, "..."],
    width: Real[ArrayLike, "..."],
) -> Float[Array, "..."]:
    r"""The published lower bound on plateau times, up to its unnamed constant.

    $$\tau \gtrsim \omega^2 e^{c_0/\omega} \min\{\delta/\sqrt m,\ \ln(1+\delta)\},
      \qquad \omega \to 0^+.$$

    Only its growth with $1/\omega$ is a statement. The exponent that is measured tends to
    twice the smallest silent rate: the bound holds and is not attained.

    **Arguments:**

    - `omega`: one over the memory, any shape.
    - `delta`: the threshold of the hitting time.
    - `decay_rate`: $c_0$, the smallest decay rate in play, in units of `omega`.
    - `width`: the number of neurons $m$.

    **Returns:**

    The bound, of the broadcast shape of the arguments, in units of training time.

    **Raises:**

    `ValueError` for arguments that are not positive.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation
        and Optimization Analysis*, ICLR 2021, Theorem 5.1.
    """
    omega, delta = as_positive_array("omega", omega), as_positive_array("delta", delta)
    decay_rate = as_positive_array("decay_rate", decay_rate)
    width = as_positive_array("width", width)
    threshold = jnp.minimum(delta / jnp.sqrt(width), jnp.log1p(delta))
    return omega**2 * jnp.exp(decay_rate / omega) * threshold


def plateau_asymptotics(
    target: AbstractKernel, silent_rate: Real[ScalarLike, ""]
) -> Float[Array, ""]:
    r"""The plateau time of one silent mode on an on-plateau start, to leading order.

    The other modes sit at the target's own rates $W_j$ and adapt at once, so that the loss is
    reduced to $N - P(w)$ with $P = R_0(w)^2 / \mathrm{res}(w)$, $R_0$ the Laplace transform of
    the remainder and $\mathrm{res}(w) = \frac{1}{2w} \prod_j ((W_j - w)/(W_j + w))^4$ the
    squared distance of $e^{-wt}$ from what they span. The flow $\dot w = P'(w)$ takes

    $$\tau \approx \frac{1}{P c^2}, \qquad c = -\frac{d}{dw} \log P,$$

    to blow up. Its exponent tends to $2 w$. Measured times are 3 % below the formula at
    $1/\omega = 20$ and 1.5 % at 32 ($W = 1$, $w = 0.6$, a bump of width 0.5).

    **Arguments:**

    - `target`: an exponential part plus a delayed remainder.
    - `silent_rate`: the initial rate $w$ of the silent mode, below the target's own and not
        near them: at $w = 0.95$, $W = 1$ the formula is still off by a factor of 9 at
        $1/\omega = 28$.

    **Returns:**

    The time, a scalar in units of training time.

    **Raises:**

    `ValueError` if the target has no remainder, or for a rate that is not positive.
    """
    check_kernel("target", target)
    active, terms = split_exponential(target)
    if not terms:
        raise ValueError(
            f"`target` must have a remainder beside its exponentials, got {shown(target)}; add "
            "for example a memjax.GaussianBump."
        )
    silent_rate = as_positive("silent_rate", silent_rate)
    below = jnp.all(silent_rate < active.rates)
    if not is_traced(below) and not below:
        raise ValueError(
            f"`silent_rate` must be below the target's own rates, got {shown(silent_rate)} for "
            f"{shown(active.rates)}; a faster mode follows another law."
        )
    silent_rate = valid_or_nan(silent_rate, below)
    remainder = terms[0] if len(terms) == 1 else KernelSum(terms)
    rates = active.rates

    def log_gain(w: Float[Array, ""]) -> Float[Array, ""]:
        # In logarithms, as the square of the transform underflows at half of the memory at which
        # the transform does.
        distance = 4 * jnp.sum(jnp.log(jnp.abs((rates - w) / (rates + w)))) - jnp.log(2 * w)
        return 2 * jnp.log(jnp.abs(remainder.laplace(w))) - distance

    # Near the start P is exponential, so that x = w(0) - w obeys dx/dtau = c P e^(cx), which is
    # infinite after 1 / (P c^2).
    value, slope = jax.value_and_grad(log_gain)(silent_rate)
    return jnp.exp(-value) / slope**2


@renamed_arguments(memory_range="axis_range")
def fit_scaling_law(
    dataset: "xr.Dataset",
    axis: str | None = None,
    *,
    axis_range: tuple[float, float] | None = None,
    pool: Sequence[Hashable] = ("seed",),
    confidence: float = 0.95,
) -> "xr.Dataset":
    r"""Fit $\log\tau = c x + \text{const}$ to the plateau times of a sweep, along one of its axes.

    Ordinary least squares over the cells that exited, for every combination of the dimensions
    other than that of the axis and those pooled. Against the memory $x = 1/\omega$ the slope is
    the exponent $c_0$ of the law, and there is a second fit with the published algebraic factor,
    $\log\tau = c_0/\omega + 2\log\omega + \text{const}$. At moderate memory the first slope
    reads too low and the second too high: the difference tells how far the law's limit still is.

    !!! Example

        ```python
        dataset = mj.sweep(build, {"delay": delays, "width": [2, 4], "seed": range(8)})
        fit = mj.fit_scaling_law(dataset, "delay")  # one for each width
        ```

    **Arguments:**

    - `dataset`: a sweep, with variables `time` and `result`.
    - `axis`: the name of the axis $x$: a dimension of numbers, such as `"delay"`, or a coordinate
        of numbers along one dimension, such as `"memory"`, which is one over `omega` where it is
        not assigned. (Against `"omega"` itself the published law is no straight line.) Defaults to
        the memory where there is one, and elsewhere to the only axis of several numbers that is
        not pooled.
    - `axis_range`: the range of the axis to use. By default the larger half of the values at which
        every pooled cell exited, at least four of them: at shorter memories there is no plateau
        yet, and at longer ones the runs that did not exit would bias the fit.
    - `pool`: dimensions whose cells enter a fit together.
    - `confidence`: the level of the confidence intervals (Student's t; they assume
        independent deviations, which the curvature of the law itself violates).

    **Returns:**

    A dataset over the remaining dimensions and `correction` (`"none"`, and against the memory
    `"omega^2"`) with `slope`, `slope_low`, `slope_high`, `intercept`, `intercept_low`,
    `intercept_high`, and over the remaining dimensions `num_cells` and the ends of what was used,
    named after the axis: `memory_low` and `memory_high`, or `delay_low` and `delay_high`. Cells
    that did not exit, were not finished or are missing are not used. NaN where fewer than three
    distinct values of the axis can be used.

    **Raises:**

    `ValueError` for a dataset without these variables, for an axis that is not there or not given
    where several would do, or for a bad range or level.
    """
    confidence = as_plain(as_share, "confidence", confidence, "0.95 is usual")
    if axis_range is not None:
        axis_range = as_pair("axis_range", axis_range, "pass (smallest, largest)")
    pool = [pool] if isinstance(pool, str) else as_list("pool", pool, "dimensions")
    for name in pool:
        if not isinstance(name, Hashable):
            raise ValueError(
                f"`pool` must hold names of dimensions, got {shown(name)}; name dimensions."
            )
    x = find_axis(dataset, axis, pool)
    (dim,), name, dims = x.dims, str(x.name), dataset["time"].dims
    for other in pool:
        if other == dim or other not in (*dims, "seed"):
            raise ValueError(
                f"`pool` must name dimensions other than {dim!r}, got {shown(other)}; the "
                f"dimensions are {dims}."
            )
    pooled = [other for other in dims if other in pool]
    groups = [other for other in dims if other != dim and other not in pooled]
    values = x.values.astype(float)
    corrections = CORRECTIONS if name == MEMORY else CORRECTIONS[:1]
    if name == MEMORY and not np.all(values > 0):
        raise ValueError(
            f"`dataset` must have positive values of {name!r}, got {values.min()}; name another "
            "`axis`."
        )
    time, result = (
        dataset[part].transpose(*groups, dim, *pooled).values for part in ("time", "result")
    )
    usable = (result == EXITED) & np.isfinite(time) & (time > 0)

    shape = tuple(dataset.sizes[other] for other in groups)
    fits = np.full((*shape, len(corrections), 6), np.nan)
    ranges = np.full((*shape, 2), np.nan)
    counts = np.zeros(shape, int)
    for index in np.ndindex(*shape):
        mask = usable[index]
        if axis_range is None:
            # Where a slow cell did not exit, the fast ones alone would bend the law down.
            chosen = _find_larger_half(values, mask.all(tuple(range(1, mask.ndim))))
        else:
            chosen = (values >= axis_range[0]) & (values <= axis_range[1])
        places = np.nonzero(mask & chosen.reshape(-1, *[1] * len(pooled)))
        used, tau = values[places[0]], time[index][places]
        counts[index] = used.size
        if np.unique(used).size < 3:
            continue
        ranges[index] = used.min(), used.max()
        for k, correction in enumerate(corrections):
            # log tau = c_0 x - 2 log x, with the memory x = 1 / omega, is a line once its last term
            # is on the left.
            y = np.log(tau) + (2 * np.log(used) if correction == "omega^2" else 0.0)
            fits[index][k] = _fit(used, y, confidence)
    return _gather(dataset, x, groups, corrections, fits, ranges, counts).assign_attrs(
        axis=name,
        axis_range="given" if axis_range is not None else "the larger half of what exited",
        confidence=confidence,
    )


def _gather(
    dataset: "xr.Dataset",
    x: "xr.DataArray",
    groups: list[Hashable],
    corrections: Sequence[str],
    fits: np.ndarray,
    ranges: np.ndarray,
    counts: np.ndarray,
) -> "xr.Dataset":
    """The fits of every group as a dataset."""
    name, unit = str(x.name), x.attrs.get("units")
    per = {} if unit is None else {"units": f"1/{unit}"}
    own = {} if unit is None else {"units": unit}
    slope, intercept = f"slope of log time against {name}", f"log time at {name} 0, extrapolated"
    words = {
        "slope": {"long_name": slope} | per,
        "slope_low": {"long_name": f"lower end of the {slope}"} | per,
        "slope_high": {"long_name": f"upper end of the {slope}"} | per,
        "intercept": {"long_name": intercept},
        "intercept_low": {"long_name": f"lower end of {intercept}"},
        "intercept_high": {"long_name": f"upper end of {intercept}"},
    }
    variables: dict[str, Any] = {
        part: ([*groups, "correction"], fits[..., k], attributes)
        for k, (part, attributes) in enumerate(words.items())
    }
    ends = {"low": "smallest", "high": "largest"}
    variables["num_cells"] = (groups, counts, {"long_name": "cells that were used"})
    for k, (end, word) in enumerate(ends.items()):
        text = {"long_name": f"{word} {name} that was used"}
        variables[f"{name}_{end}"] = (groups, ranges[..., k], text | own)
    # Those that say which fit is which, and what was selected before.
    coords: dict[Any, Any] = {
        other: values
        for other, values in dataset.coords.items()
        if other not in variables and set(values.dims) <= set(groups)
    }
    factor = {"long_name": "algebraic factor of the law"}
    coords["correction"] = ("correction", list(corrections), factor)
    found = xr.Dataset(variables, coords)
    if "decay_rate" in dataset and "decay_rate" not in coords:
        # The bound holds with the smallest of the rates.
        others = [other for other in dataset["decay_rate"].dims if other not in groups]
        found["decay_rate"] = dataset["decay_rate"].min(others, keep_attrs=True)
    return found


def _find_larger_half(values: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Which values are among the larger half of those that are whole, or among the largest four."""
    count = int(whole.sum())
    if count > 4:
        return whole & (values >= np.sort(values[whole])[-max(4, -(-count // 2))])
    return whole


def _fit(x: np.ndarray, y: np.ndarray, confidence: float) -> tuple[float, ...]:
    line = fit_line(x, y)
    t = float(scipy.special.stdtrit(x.size - 2, 0.5 + confidence / 2))
    slope, intercept = line.slope, line.intercept
    ds, di = (t * error for error in line.errors())
    return slope, slope - ds, slope + ds, intercept, intercept - di, intercept + di


def scale_lower_bound(
    dataset: "xr.Dataset", x: "xr.DataArray"
) -> tuple[np.ndarray, np.ndarray] | None:
    """The growth of the published bound, whose constant is free, below all times of a sweep.

    **Arguments:**

    - `dataset`: a sweep.
    - `x`: the axis, as `find_axis` gives it.

    **Returns:**

    Ascending values of the axis, and at each the smallest bound of the runs, times the constant at
    which it touches the times; `None` where the sweep has no bound along the axis.
    """
    if "lower_bound" not in dataset or x.dims[0] not in dataset["lower_bound"].dims:
        return None
    times = dataset["time"].where(np.isfinite(dataset["time"]))
    lowest, bound = (
        values.min([name for name in values.dims if name not in x.dims])
        for values in (times, dataset["lower_bound"])
    )
    # The largest at which the bound is still below all times.
    constant = float((lowest / bound).min())
    if not np.isfinite(constant):
        return None
    order = np.argsort(x.values)
    return x.values[order], bound.values[order] * constant
