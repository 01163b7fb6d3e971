from collections.abc import Sequence

import numpy as np

from .._checks import check_dataset
from .._lazy import matplotlib, xr
from ..numerics import fit_line
from ..sweeps import PlateauSweep
from ..viz import drawing, explain, look, TIME
from ._base import Reproduction, Verdict, whole


def run(
    progress: bool = True,
    *,
    memories: Sequence[float] = (12.0, 20.0),
    widths: Sequence[int] = (2, 4, 8, 16),
    seeds: Sequence[int] = tuple(range(8)),
) -> "xr.Dataset":
    """Plateau times over `omega`, `width` and `seed`, with `lower_bound` beside them."""
    sweep = PlateauSweep(
        memories=memories,  # pyright: ignore[reportArgumentType]
        widths=widths,  # pyright: ignore[reportArgumentType]
        seeds=seeds,  # pyright: ignore[reportArgumentType]
        curve_points=0,
    )
    return whole(sweep.run(progress=progress)).squeeze(("delta", "reparametrisation"))


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The bound beside the times of a dataset of `run`."""
    verdicts = []
    for run in (dataset.isel(omega=index) for index in range(dataset.sizes["omega"])):
        at = f"at 1/omega = {float(run['memory']):g}"
        time = run["time"].median("seed").values
        bound = run["lower_bound"].median("seed").values
        seen = np.isfinite(time)
        widths, time, bound = run["width"].values[seen], time[seen], bound[seen]
        if widths.size < 3:
            verdicts.append(Verdict(f"{at}: {_BOUND}", "too few widths left the plateau", None))
            continue
        slopes = [fit_line(np.log(widths), np.log(y)).slope for y in (time, bound)]
        lowest = (time / bound).min() / (time / bound)[0]
        low, high = widths[0], widths[-1]
        verdicts.append(
            Verdict(
                f"{at}: {_BOUND}",
                f"median time {time[0]:.3g} at m = {low} and {time[-1]:.3g} at m = {high}, as "
                f"m^{slopes[0]:.2f} beside the bound's m^{slopes[1]:.2f}; with the constant of "
                f"m = {low} the smallest time over bound is {lowest:.3g}",
                bool(lowest >= 1 - _SPREAD),
            )
        )
    longest, shortest = (
        dataset["time"].sel(omega=omega).median("seed")
        for omega in (dataset["omega"].min(), dataset["omega"].max())
    )
    growth = longest / shortest
    if dataset.sizes["omega"] > 1 and bool(np.isfinite(growth).all()):
        step = float(dataset["memory"].max() - dataset["memory"].min())
        rates = np.log(growth.values) / step
        rate, widths = float(dataset["decay_rate"].median()), dataset["width"].values
        verdicts.append(
            Verdict(
                f"at every width: exponent at least c0 = {rate:.2f}",
                f"between the memories {rates.min():.2f} (m = {widths[rates.argmin()]}) "
                f"to {rates.max():.2f} (m = {widths[rates.argmax()]})",
                bool((rates >= (1 - _SPREAD) * rate).all()),
            )
        )
    return verdicts


_BOUND = "time at least constant x min(delta / sqrt(m), ln(1 + delta))"

# Medians of few seeds, and rates with a jitter of 2 %.
_SPREAD = 0.1


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Plateau time against the width, both on log scales, with the published bound.

    Points are seeds, lines join their medians, a memory a line. The dotted lines are the
    published bound; its constant is free, and chosen so that it meets the median at the
    smallest width.
    """
    needed = dict.fromkeys(("time", "lower_bound"), ["omega", "width", "seed"])
    check_dataset("dataset", dataset, needed, "the reproduction plateau-width")
    dataset = dataset.sortby("omega")
    widths, times = dataset["width"].values, dataset["time"]
    median = times.median("seed")
    bound = dataset["lower_bound"].median("seed")
    bound = bound * (median / bound).isel(width=0)
    with drawing(5.2, 4.0) as figure:
        axes = figure.subplots()
        for index in range(dataset.sizes["omega"]):
            run = times.isel(omega=index)
            points = look(index, ls="", ms=3.5, mew=0.7, alpha=0.7)
            axes.loglog(widths, run.transpose("width", "seed").values, **points)
            own = look(
                index,
                lw=1.4,
                mew=1,
                label=rf"$1/\omega$ = {float(run['memory']):g}, median of seeds",
            )
            axes.loglog(widths, median.isel(omega=index), **own | {"mfc": own["color"]})
            axes.loglog(widths, bound.isel(omega=index), ":", color="0.35", lw=1.4)
        axes.set(xlabel="width $m$ (neurons)", ylabel=TIME)
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.minorticks_off()
        handles = [*axes.get_legend_handles_labels()[0]]
        handles.append(explain("single seeds", ls="", marker="o", mfc="none", ms=3.5, alpha=0.7))
        handles.append(explain("lower bound, constant free", ls=":", lw=1.4))
        axes.legend(handles=handles)
    return figure


REPRODUCTION = Reproduction(
    name="plateau-width",
    title="Plateau time against the width of the model",
    source="Li, Han, E, Li, ICLR 2021, Theorem 5.1",
    description="The target is exp(-t) plus a Gaussian bump of width 0.5 at 1/omega. The start "
    "represents the exponential exactly; its other modes are silent, of rates spread between "
    "0.6 and 3 with a jitter of 2 % by the seed, and the plateau ends when the loss has fallen "
    "by 2 %. The bound names no constant: it is taken from the smallest width, and the bound "
    "holds if no wider model leaves more than 10 % earlier than it then says.",
    run=run,
    check=check,
    plot=plot,
)
