import numpy as np
from jaxtyping import Real

from .._checks import as_increasing, check_instance, check_nonnegative, shown
from .._lazy import xr
from .._typing import ArrayLike
from ..targets import AbstractKernel, SampledKernel
from ._arguments import check_scalar_kernel
from ._curve import sample
from ._sum import BestExponentialSum

_POINTS = 400  # of a curve between the samples


def approximation_dataset(
    kernel: AbstractKernel, best: BestExponentialSum, times: Real[ArrayLike, " times"] | None = None
) -> "xr.Dataset":
    """A kernel beside its best exponential sum, for tables and
    [`memjax.viz.plot_approximation`][].

    **Arguments:**

    - `kernel`: The kernel.
    - `best`: Its approximation, from [`memjax.best_exponential_sum`][] or the `best` of
        [`memjax.neurons_needed`][].
    - `times`: The times to compare them at, in units of the kernel's time. Defaults, for a
        [`memjax.SampledKernel`][], to those of the samples and some in between.

    **Returns:**

    A dataset with the variables `kernel` and `fit` over `time`, and the attributes `neurons`,
    `norm` and `error`, and `samples` if there are some. Where samples were taken as points, the
    kernel is NaN in between.

    **Raises:** `ValueError` if there are no times, or negative ones, or ones that do not increase;
    `TypeError` for what is no scalar kernel, or not the samples that `best` was fitted to.
    """
    check_scalar_kernel(kernel)
    check_instance(
        "best", best, BestExponentialSum, "a BestExponentialSum",
        "pass what `best_exponential_sum` returns",
    )  # fmt: skip
    if times is None:
        if not isinstance(kernel, SampledKernel):
            raise ValueError(
                f"`times` must be given for {type(kernel).__name__}, got None; only samples say "
                "when they were taken."
            )
        samples = np.asarray(kernel.times)
        times = np.union1d(samples, np.linspace(samples[0], samples[-1], _POINTS))
    moments = as_increasing("times", times)
    check_nonnegative("times", moments)
    if best.samples == "points" and not isinstance(kernel, SampledKernel):
        raise TypeError(
            f"`kernel` must be the SampledKernel that `best` was fitted to, got {shown(kernel)}; "
            "pass that."
        )
    values, fit = np.array(kernel(moments)), best.model.kernel()(moments) + best.offset
    attributes = {"neurons": best.order, "norm": best.norm, "error": float(best.error)}
    if best.samples is not None:
        attributes["samples"] = best.samples
    if best.samples == "points":
        values[~np.isin(np.asarray(moments), np.asarray(kernel.times))] = np.nan  # pyright: ignore
    size = f"sum of {best.order} exponential" + ("s" if best.order > 1 else "")
    return xr.Dataset(
        {
            "kernel": ("time", values, {"long_name": "kernel"}),
            "fit": ("time", np.asarray(fit), {"long_name": size}),
        },
        {"time": ("time", np.asarray(moments), {"units": "the kernel's time"})},
        attributes,
    )


def between_samples(kernel: SampledKernel, best: BestExponentialSum) -> float:
    """How far the sum is from straight lines through its own values at the samples, in its norm.

    That much of the error of a sum that was the response itself would be due to the sampling.
    """
    times = np.asarray(kernel.times)
    fit = best.model.kernel()
    ends, steps = sample(fit, times), np.diff(times)
    middle = sample(fit, (times[:-1] + times[1:]) / 2)
    # Parabolas of this height stand on the lines.
    height = np.abs(middle - (ends[:-1] + ends[1:]) / 2)
    if best.norm == "sup":
        return float(np.max(height))
    if best.norm == "L1":
        return float(2 / 3 * steps @ height)
    return float(np.sqrt(8 / 15 * steps @ height**2))
