from collections.abc import Hashable, Sequence

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
    check_dataset,
    is_traced,
    shown,
    valid_or_nan,
)
from .._lazy import scipy, xr
from .._typing import ArrayLike, ScalarLike
from ..numerics import fit_line
from ..targets import AbstractKernel, check_kernel, KernelSum, split_exponential

CORRECTIONS = ("none", "omega^2")
_SWEEP = "memjax.sweep over 'omega'"


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
        distance = 4 * jnp.sum(jnp.log(jnp.abs((rates - w) / (rates + w)))) - jnp.log(2 * w)
        return 2 * jnp.log(jnp.abs(remainder.laplace(w))) - distance

    value, slope = jax.value_and_grad(log_gain)(silent_rate)
    return jnp.exp(-value) / slope**2


def fit_scaling_law(
    dataset: "xr.Dataset",
    *,
    memory_range: tuple[float, float] | None = None,
    pool: Sequence[Hashable] = ("seed",),
    confidence: float = 0.95,
) -> "xr.Dataset":
    r"""Fit $\log\tau = c_0/\omega + \text{const}$ to the plateau times of a sweep.

    Ordinary least squares over the cells that exited, for every combination of the dimensions
    other than `omega` and those pooled; once as it stands and once with the published
    algebraic factor, $\log\tau = c_0/\omega + 2\log\omega + \text{const}$. At moderate memory
    the first slope reads too low and the second too high: the difference tells how far the
    law's limit still is.

    **Arguments:**

    - `dataset`: a sweep over `omega` with variables `time` and `result`.
    - `memory_range`: the range of $1/\omega$ to use. By default the longer half of the
        memories at which every pooled cell exited, at least four of them: shorter memories
        have no plateau yet, and at longer ones the runs that did not exit would bias the fit.
    - `pool`: dimensions whose cells enter a fit together.
    - `confidence`: the level of the confidence intervals (Student's t; they assume
        independent deviations, which the curvature of the law itself violates).

    **Returns:**

    A dataset over the remaining dimensions and `correction` (`"none"`, `"omega^2"`) with
    `slope`, `slope_low`, `slope_high`, `intercept`, `intercept_low`, `intercept_high`, and over
    the remaining dimensions `num_cells`, `memory_low`, `memory_high`. NaN where fewer than
    three distinct memories can be used.

    **Raises:**

    `ValueError` for a dataset without these variables or for a bad range or level.
    """
    check_dataset("dataset", dataset, {"time": ["omega"], "result": ["omega"]}, _SWEEP)
    confidence = as_plain(as_share, "confidence", confidence, "0.95 is usual")
    if memory_range is not None:
        memory_range = as_pair("memory_range", memory_range, "pass (shortest, longest)")
    pool = [pool] if isinstance(pool, str) else as_list("pool", pool, "dimensions")
    poolable = [dim for dim in (*dataset["time"].dims, "seed") if dim != "omega"]
    for name in pool:
        if not isinstance(name, Hashable) or name not in poolable:
            raise ValueError(
                f"`pool` must name dimensions other than 'omega', got {shown(name)}; the "
                f"dimensions are {tuple(dataset['time'].dims)}."
            )
    pooled = [dim for dim in pool if dim in dataset["time"].dims]
    groups = [dim for dim in dataset["time"].dims if dim != "omega" and dim not in pooled]
    memory = 1 / dataset["omega"]
    exited = dataset["result"] == 0
    usable = exited & np.isfinite(dataset["time"])
    if memory_range is None:
        whole = usable.all(pooled) if pooled else usable
        chosen = whole & (_rank_from_longest(whole, memory) < _half(whole))
    else:
        chosen = (memory >= memory_range[0]) & (memory <= memory_range[1])
        chosen = chosen.broadcast_like(usable.any(pooled) if pooled else usable)
    used = (usable & chosen).transpose(*groups, "omega", *pooled)
    memories = memory.broadcast_like(used).transpose(*used.dims)
    times = dataset["time"].transpose(*used.dims)

    shape = tuple(used.sizes[dim] for dim in groups)
    fits = np.full((*shape, len(CORRECTIONS), 6), np.nan)
    ranges = np.full((*shape, 2), np.nan)
    counts = np.zeros(shape, int)
    for index in np.ndindex(*shape):
        mask = used.values[index]
        x, tau = memories.values[index][mask], times.values[index][mask]
        counts[index] = x.size
        if np.unique(x).size < 3:
            continue
        ranges[index] = x.min(), x.max()
        for k, correction in enumerate(CORRECTIONS):
            y = np.log(tau) + (2 * np.log(x) if correction == "omega^2" else 0.0)
            fits[index][k] = _fit(x, y, confidence)
    names = (
        "slope", "slope_low", "slope_high", "intercept", "intercept_low", "intercept_high",
    )  # fmt: skip
    variables = {name: ([*groups, "correction"], fits[..., i]) for i, name in enumerate(names)}
    variables |= {
        "num_cells": (groups, counts),
        "memory_low": (groups, ranges[..., 0]),
        "memory_high": (groups, ranges[..., 1]),
    }
    coords = {dim: dataset[dim] for dim in groups} | {"correction": list(CORRECTIONS)}
    rule = "given" if memory_range is not None else "the longer half of the memories that exited"
    result = xr.Dataset(variables, coords, {"confidence": confidence, "memory_range": rule})
    result["slope"].attrs["long_name"] = "slope of log time against 1/omega"
    result["slope"].attrs["units"] = "1/clock"
    if "decay_rate" in dataset:
        others = [dim for dim in dataset["decay_rate"].dims if dim not in groups]
        result["decay_rate"] = dataset["decay_rate"].min(others, keep_attrs=True)
    return result


def _rank_from_longest(whole: "xr.DataArray", memory: "xr.DataArray") -> "xr.DataArray":
    """How many longer memories are whole as well, for every memory."""
    order = memory.broadcast_like(whole).where(whole)
    return (order < order.rename(omega="other")).sum("other")


def _half(whole: "xr.DataArray") -> "xr.DataArray":
    count = whole.sum("omega")
    return xr.where(count > 4, np.ceil(count / 2).clip(min=4), count)


def _fit(x: np.ndarray, y: np.ndarray, confidence: float) -> tuple[float, ...]:
    line = fit_line(x, y)
    t = float(scipy.stats.t.ppf(0.5 + confidence / 2, x.size - 2))
    slope, intercept = line.slope, line.intercept
    ds, di = (t * error for error in line.errors())
    return slope, slope - ds, slope + ds, intercept, intercept - di, intercept + di
