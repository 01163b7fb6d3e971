import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._checks import (
    as_integers,
    as_list,
    as_plain,
    as_positive,
    check_dataset,
    check_integer,
)
from .._lazy import matplotlib, tqdm, xr
from ..approximation import approximation_rate, best_exponential_sum
from ..models import DiagonalLinearRNN
from ..numerics import fit_line
from ..targets import AbstractKernel, Airy, ExponentialSum, PowerLaw
from ..viz import beside, DASHES, drawing, explain, look
from ._base import as_positives, check_known, listed, Reproduction, Verdict
from ._l21_starts import (
    CHANGE,
    DELAY,
    exponential_and_bump,
    LEARNING_RATE,
    NEAR,
    NEURONS,
    PLATEAU,
    RANDOM,
    train_from_starts,
)

SUM = "24 exponentials"
# Made when asked for: importing memjax computes nothing, least of all in float32.
KERNELS: Mapping[str, Callable[[], AbstractKernel]] = {
    SUM: lambda: ExponentialSum(np.full(24, 1 / 24), np.geomspace(_SLOWEST, 100.0, 24)),
    "Airy": Airy,
    "exponential + bump": lambda: exponential_and_bump(5.0),
}
_SLOWEST = 1.0

# How near the loss of the best sum counts as there.
_LEVEL = 1.05


def run(
    progress: bool = True,
    *,
    kernels: Sequence[str] = tuple(KERNELS),
    neurons: Sequence[int] = (2, 4, 6, 8, 10),
    omegas: Sequence[float] = (0.5, 1.0, 2.0),
    widths: Sequence[int] = (1, 2, 3, 4, 5, 6, 8, 10, 12),
    margin: float = 0.05,
    seeds: Sequence[int] = tuple(range(8)),
    updates: int = 20_000,
) -> "xr.Dataset":
    """Errors over `kernel` and `neurons`, and over `omega`, `min_rate` and `width`; losses over
    `start` and `training_time`."""
    check_known("kernels", kernels, KERNELS)
    neurons, widths = as_integers("neurons", neurons), as_integers("widths", widths)
    omegas = as_positives("omegas", omegas).tolist()
    margin = as_plain(as_positive, "margin", margin)
    seeds = [check_integer("seeds", seed, 0) for seed in as_list("seeds", seeds, "integers")]
    check_integer("updates", updates)
    neurons, widths = sorted(neurons), sorted(widths)
    runs = 1 if not seeds else 2 + 2 * len(seeds)
    with tqdm.tqdm(
        total=len(kernels) + 2 * len(omegas) + 1 + runs, unit="curve", disable=not progress
    ) as bar:
        parts = [
            _direct(kernels, neurons, bar),
            _curse(omegas, widths, margin, bar),
            train_from_starts(seeds, updates, bar),
        ]
    return xr.merge(parts)


def _direct(kernels: Sequence[str], neurons: Sequence[int], bar: "tqdm.tqdm") -> "xr.Dataset":
    shape = len(kernels), len(neurons)
    errors, lower, bound = np.full((3, *shape), np.nan)
    power, exponential = np.full((2, shape[0]), np.nan)
    for i, name in enumerate(kernels):
        rate = approximation_rate(KERNELS[name](), widths=tuple(neurons))
        errors[i], lower[i], bound[i] = rate.errors, rate.lower_bounds, rate.bound
        power[i], exponential[i] = rate.exponent, rate.exponential
        bar.update()
    return xr.Dataset(
        {
            "error": (("kernel", "neurons"), errors, {"long_name": "L1 error"}),
            "lower_bound": (("kernel", "neurons"), lower),
            "bound": (("kernel", "neurons"), bound, {"long_name": "theorem's bound, C = 1"}),
            "power": ("kernel", power),
            "exponential": ("kernel", exponential),
        },
        {"kernel": list(kernels), "neurons": list(neurons)},
    )


def _curse(
    omegas: Sequence[float], widths: Sequence[int], margin: float, bar: "tqdm.tqdm"
) -> "xr.Dataset":
    margins = [0.0, margin]
    error, slowest, confluent = np.full((3, len(omegas), 2, len(widths)), np.nan)
    for i, omega in enumerate(omegas):
        for j, rate in enumerate(margins):
            found = _curve(PowerLaw(omega), widths, rate)
            error[i, j], slowest[i, j], confluent[i, j] = found
            bar.update()
    sum_error, sum_slowest, _ = _curve(KERNELS[SUM](), widths, 0.0)
    bar.update()
    dims = ("omega", "min_rate", "width")
    return xr.Dataset(
        {
            "curse_error": (dims, error, {"long_name": "L1 error, relative"}),
            "slowest": (dims, slowest, {"long_name": "smallest rate"}),
            "confluent": (dims, confluent == 1),
            "sum_error": ("width", sum_error, {"long_name": f"L1 error, relative, {SUM}"}),
            "sum_slowest": ("width", sum_slowest, {"long_name": f"smallest rate, {SUM}"}),
        },
        {"omega": list(omegas), "min_rate": margins, "width": list(widths)},
    )


def _curve(kernel: AbstractKernel, widths: Sequence[int], min_rate: float) -> np.ndarray:
    """Relative errors and smallest rates of best sums of real rates, and whether their terms
    cancel; NaN where the error is rounding."""
    curves = np.full((3, len(widths)), np.nan)
    start = None
    for k, width in enumerate(widths):
        found = best_exponential_sum(kernel, width, norm="L1", min_rate=min_rate, start=start)
        assert isinstance(found.model, DiagonalLinearRNN)
        start = found.model
        if bool(found.resolved):
            curves[:, k] = found.relative_error, jnp.min(found.model.rates), found.confluent
    return curves


# Relative errors at which neurons are counted.
LEVELS = (0.3, 0.1, 0.03, 0.01, 0.003, 0.001)


def neurons_at(errors: np.ndarray, widths: np.ndarray, level: float) -> float:
    """The smallest width that was tried whose error is at most the level; NaN if there is none."""
    reached = np.flatnonzero(errors <= level)
    return float(widths[reached[0]]) if reached.size else math.nan


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The claims beside the errors of a dataset of `run`."""
    verdicts = [_rate(dataset.sel(kernel=name)) for name in dataset["kernel"].values]
    for omega in dataset["omega"].values:
        verdicts += _neurons(dataset.sel(omega=omega))
    return verdicts + [_inverse(dataset), *_warm(dataset)]


def _rate(cell: "xr.Dataset") -> Verdict:
    m, error, bound = (cell[name].values for name in ("neurons", "error", "bound"))
    ratio = error / bound
    constant = ratio.max()
    agrees = None
    if m.size > 1:
        agrees = bool(ratio[-1] <= ratio[0])
    return Verdict(
        f"{cell['kernel'].item()}: best error at most C gamma / (beta m^alpha) (direct rate)",
        f"errors {listed(error)} for m = {m[0]} to {m[-1]}, over the bound with C = 1 "
        f"{ratio[0]:.2g} to {ratio[-1]:.2g}, at most {constant:.2g}; as "
        f"m^-{float(cell['power']):.1f} or exp(-{float(cell['exponential']):.2g} m); no sum of "
        f"{m[-1]} is below {cell['lower_bound'].values[-1]:.2g}",
        agrees,
    )


def _neurons(cell: "xr.Dataset") -> list[Verdict]:
    omega, widths = float(cell["omega"]), cell["width"].values
    margin = float(cell["min_rate"].values[1])
    verdicts = []
    for k, rates in enumerate(("free rates", f"rates kept above {margin:g}")):
        errors = cell["curse_error"].isel(min_rate=k).values
        power = falling(errors, widths)
        counts = [neurons_at(errors, widths, level) for level in LEVELS]
        numbers = ", ".join(
            f"{count:.0f}" if np.isfinite(count) else f"> {widths[-1]}" for count in counts
        )
        # Sums whose terms cancel this much may be short of the best by what float64 can hold.
        cancel = widths[cell["confluent"].isel(min_rate=k).values]
        doubt = f" (confluent from m = {cancel[0]} on)" if cancel.size else ""
        verdicts.append(
            Verdict(
                f"(1 + t)^-{1 + omega:g}, {rates}: omega eps^(-1/omega) neurons, so errors as "
                f"m^-{omega:g} (curse of memory)",
                f"error as m^-{power:.2g} from m = {_WIDE} on, {errors[-1]:.2g} at "
                f"m = {widths[-1]}; relative L1 errors {listed(LEVELS)} with m = "
                f"{numbers}{doubt}",
                bool(power < _FASTER * omega) if np.isfinite(power) else None,
            )
        )
    return verdicts


# From this width on powers are fitted, and by which factor one may exceed the bound's.
_WIDE, _FASTER = 4, 1.5


def falling(errors: np.ndarray, widths: np.ndarray) -> float:
    """The power of the width with which errors fall; NaN if too few are known."""
    fine = (widths >= _WIDE) & np.isfinite(errors)
    if fine.sum() < 3:
        return math.nan
    return -fit_line(np.log(widths[fine]), np.log(errors[fine])).slope


def _inverse(dataset: "xr.Dataset") -> Verdict:
    widths = dataset["width"].values
    power = dataset["slowest"].isel(min_rate=0)
    falls, stays = [], dataset["sum_slowest"].values
    said = []
    for omega in dataset["omega"].values:
        values = power.sel(omega=omega).values
        fine = np.isfinite(values)
        if fine.sum() < 3:
            continue
        falls.append(values[fine][-1] / values[fine][0])
        said.append(f"(1 + t)^-{1 + omega:g} {values[fine][0]:.2g} to {values[fine][-1]:.2g}")
    fine = np.isfinite(stays)
    decided = bool(falls) and fine.sum() >= 3
    return Verdict(
        "spectra that stay away from 0 approximate exponential memory only (inverse theorem)",
        f"smallest rate of the best sums from m = {widths[0]} on: "
        + "; ".join([*said, f"{SUM} {listed(stays[fine])}, its own smallest being {_SLOWEST:g}"]),
        bool(max(falls) < 0.1 and stays[fine][-1] > 0.5 * _SLOWEST) if decided else None,
    )


def time_to_level(dataset: "xr.Dataset") -> np.ndarray:
    """The first of the curve's times at which the loss is near that of the best sum; 0 where a
    start has it, infinity if it never comes."""
    level = _LEVEL * float(dataset["best_loss"])
    reached = dataset["curve_loss"].values <= level
    times = np.append(dataset["training_time"].values, np.inf)
    first = np.where(reached.any(axis=1), reached.argmax(axis=1), -1)
    return np.where(dataset["initial_loss"].values <= level, 0.0, times[first])


def _warm(dataset: "xr.Dataset") -> list[Verdict]:
    kinds, best = dataset["kind"].values, float(dataset["best_loss"])
    times, losses = time_to_level(dataset), dataset["loss"].values
    per = lambda kind: (times[kinds == kind], losses[kinds == kind] / best)
    near, random, plateau = per(NEAR), per(RANDOM), per(PLATEAU)
    found: bool | None = None
    said = "no starts but the best sum"
    if random[0].size and near[0].size:
        said = (
            f"within {_LEVEL - 1:.0%} of its loss: the sum with weights changed by {CHANGE:.0%} "
            f"after a median of {np.median(near[0]):.3g} updates "
            f"({np.isfinite(near[0]).sum()} of {near[0].size}); random starts after "
            f"{np.median(random[0]):.3g} ({np.isfinite(random[0]).sum()} of {random[0].size}), "
            f"ending at {listed(np.sort(random[1]))} times its loss; from the plateau at "
            f"{plateau[1][0]:.3g} times"
        )
        found = bool(np.median(near[0]) < np.median(random[0]))
    lowest = losses.min() / best
    amplitude = float(dataset["real_amplitude"])
    return [
        Verdict("training from a best sum is spared the plateau (expected)", said, found),
        Verdict(
            "the best sum is a minimum: training finds nothing better (expected)",
            f"the lowest loss of {losses.size} trainings is {lowest:.6g} times that of the sum",
            bool(lowest > 0.999),
        ),
        Verdict(
            "a best sum is a start to train from, also with real rates (expected)",
            f"for a bump at a delay their rates run together: weights up to {amplitude:.1g} for a "
            f"loss of {float(dataset['real_loss']) / best:.2g} times that of complex ones",
            bool(amplitude < 1e5),
        ),
    ]


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Errors, the curse of memory, smallest rates, and training from best sums.

    Top left: the error of best sums against the number of neurons, a marker a kernel; full lines
    the error, dashed ones the certified lower bound, dotted ones the theorem's bound with C = 1.
    Top right: the relative error for power laws; full lines with free rates, dashed ones with
    rates kept above a margin, dotted ones the bound of the curse of memory, with the constant of
    the smallest width. Bottom left: the smallest rate of those with free rates. Bottom right: the
    loss in training over that of the best sum, a line a start.
    """
    needed = {
        **dict.fromkeys(("error", "lower_bound", "bound"), ["kernel", "neurons"]),
        **dict.fromkeys(("curse_error", "slowest"), ["omega", "min_rate", "width"]),
        "sum_slowest": ["width"],
        "curve_loss": ["start", "training_time"],
        "best_loss": [],
        "kind": ["start"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction l21-approximation")
    with drawing(8.6, 6.4) as figure:
        (direct, curse), (slowest, training) = figure.subplots(2, 2)
        neurons, widths = dataset["neurons"].values, dataset["width"].values
        for index, name in enumerate(dataset["kernel"].values):
            cell, full = dataset.sel(kernel=name), look(index, ls="-", lw=1.3, mew=1)
            direct.semilogy(neurons, cell["error"], label=str(name), **full)
            direct.semilogy(neurons, cell["lower_bound"], **beside(full, ls="--"))
            direct.semilogy(neurons, cell["bound"], **full | {"ls": ":", "lw": 1.1, "ms": 3})
        _draw_legend(direct, {"-": "best sum found", "--": "none below", ":": "theorem, C = 1"})
        direct.set_ylabel(r"error $\|\rho - \hat\rho\|_{L^1}$")
        margin = float(dataset["min_rate"].values[1])
        for index, omega in enumerate(dataset["omega"].values):
            cell, full = dataset.sel(omega=omega), look(index, ls="-", lw=1.3, mew=1)
            free, kept = (cell["curse_error"].isel(min_rate=k).values for k in (0, 1))
            curse.loglog(widths, free, label=rf"$\omega$ = {omega:g}", **full)
            curse.loglog(widths, kept, **full | {"ls": "--", "lw": 1.1})
            bound = free[0] * (widths / widths[0]) ** -float(omega)
            curse.loglog(widths, bound, **beside(full, lw=1.1))
            label = rf"power law, $\omega$ = {omega:g}"
            slowest.semilogy(widths, cell["slowest"].isel(min_rate=0), label=label, **full)
        kept = rf"rates $\geq$ {margin:g}"
        _draw_legend(
            curse, {"-": "free rates", "--": kept, ":": r"$m \propto \epsilon^{-1/\omega}$"}
        )
        curse.set_xticks(widths, [str(width) for width in widths])
        curse.minorticks_off()
        curse.set_ylabel("relative $L^1$ error")
        own = look(6, ls=DASHES[1], lw=1.3, mew=1, label=SUM)
        slowest.semilogy(widths, dataset["sum_slowest"], **own)
        slowest.legend()
        slowest.set_ylabel("smallest rate (1 / time)")
        for axes in (direct, curse, slowest):
            axes.set_xlabel("neurons $m$")
        best = float(dataset["best_loss"])
        for index, kind in enumerate(dict.fromkeys(dataset["kind"].values)):
            runs = dataset["curve_loss"].values[dataset["kind"].values == kind] / best
            own = look(index, ms=3, mew=1, lw=1.6 if len(runs) == 1 else 0.8)
            for number, curve in enumerate(runs):
                training.loglog(
                    dataset["training_time"], curve, markevery=(4 * index, 20),
                    label=str(kind) if number == 0 else None, **own,
                )  # fmt: skip
        training.axhline(1, color="0.6", lw=0.7, zorder=0)
        training.legend(loc="upper right")
        # Room for the legend above the lines.
        training.set_ylim(top=2.5 * training.get_ylim()[1])
        training.set(xlabel="training time (updates of Adam)", ylabel="loss / loss of the best sum")
    return figure


def _draw_legend(axes: Any, dashes: Mapping[str, str]) -> None:
    """What the dashes mean, beside what the colours do."""
    kinds = [explain(text, ls=dash, lw=1.1) for dash, text in dashes.items()]
    axes.legend(handles=[*axes.get_legend_handles_labels()[0], *kinds])


REPRODUCTION = Reproduction(
    name="l21-approximation",
    title="How many neurons a memory needs: rates, the curse of memory, and starts from best sums",
    source="Li, Han, E, Li, ICLR 2021, Section 4; Wang, Li, Li, ICLR 2024; Beylkin, Monzon, 2005",
    description="Best exponential sums in the L1 norm, which is the distance of the functionals. "
    "Direct rate: complex rates, beside the theorem's bound with C = 1; it holds as a rate if the "
    "error over the bound is no larger at the largest m than at the smallest. Curse: power laws "
    "with real rates, free or kept above a margin; neurons are counted among the widths tried; the "
    f"bound is reached if errors fall with a power of m below {_FASTER:g} omega. "
    f"Warm starts: Adam, learning rate {LEARNING_RATE:g}, on exp(-t) plus a bump at "
    f"{DELAY:g} with {NEURONS} neurons of complex rates.",
    run=run,
    check=check,
    plot=plot,
)
