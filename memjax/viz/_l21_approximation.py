import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .._checks import check_dataset
from ._style import COLOURS, DASHES, MARKERS, style


def plot_l21_approximation(dataset: xr.Dataset) -> Figure:
    """Errors, the curse of memory, smallest rates, and training from best sums.

    Top left: the error of best sums against the number of neurons, a marker a kernel; full lines
    the error, dashed ones the certified lower bound, dotted ones the theorem's bound with C = 1.
    Top right: the relative error for power laws; full lines with free rates, dashed ones with
    rates kept above a margin, dotted ones the bound of the curse of memory, with the constant of
    the smallest width. Bottom left: the smallest rate of those with free rates. Bottom right: the
    loss in training over that of the best sum, a line a start.

    **Arguments:**

    - `dataset`: the dataset of the reproduction `l21-approximation`.

    **Returns:**

    A matplotlib figure.
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
    with style():
        figure = Figure(figsize=(8.6, 6.4))
        (direct, curse), (slowest, training) = figure.subplots(2, 2)
        neurons, widths = dataset["neurons"].values, dataset["width"].values
        for index, name in enumerate(dataset["kernel"].values):
            cell, colour = dataset.sel(kernel=name), COLOURS[index % 7]
            direct.semilogy(
                neurons, cell["error"], color=colour, marker=MARKERS[index % 7], mfc="none",
                ms=4.5, lw=1.3, label=str(name),
            )  # fmt: skip
            direct.semilogy(neurons, cell["lower_bound"], color=colour, ls="--", lw=0.9)
            direct.semilogy(
                neurons, cell["bound"], color=colour, marker=MARKERS[index % 7], mfc="none", ms=3,
                ls=":", lw=1.1,
            )  # fmt: skip
        _legend(direct, [("-", "best sum found"), ("--", "none below"), (":", "theorem, C = 1")])
        direct.set_ylabel(r"error $\|\rho - \hat\rho\|_{L^1}$")
        margin = float(dataset["min_rate"].values[1])
        for index, omega in enumerate(dataset["omega"].values):
            cell = dataset.sel(omega=omega)
            look = {
                "color": COLOURS[index % 7], "marker": MARKERS[index % 7], "mfc": "none", "ms": 4.5,
            }  # fmt: skip
            free, kept = (cell["curse_error"].isel(min_rate=k).values for k in (0, 1))
            curse.loglog(widths, free, lw=1.3, label=rf"$\omega$ = {omega:g}", **look)
            curse.loglog(widths, kept, ls="--", lw=1.1, **look)
            bound = free[0] * (widths / widths[0]) ** -float(omega)
            curse.loglog(widths, bound, ls=":", lw=1.1, color=COLOURS[index % 7])
            slowest.semilogy(
                widths, cell["slowest"].isel(min_rate=0), lw=1.3,
                label=rf"power law, $\omega$ = {omega:g}", **look,
            )  # fmt: skip
        _legend(
            curse,
            [
                ("-", "free rates"),
                ("--", rf"rates $\geq$ {margin:g}"),
                (":", r"$m \propto \epsilon^{-1/\omega}$"),
            ],
        )
        curse.set_xticks(widths, [str(width) for width in widths])
        curse.minorticks_off()
        curse.set_ylabel("relative $L^1$ error")
        slowest.semilogy(
            widths, dataset["sum_slowest"], color="0.0", marker="X", ms=4.5, mfc="none",
            ls=DASHES[1], lw=1.3, label="24 exponentials",
        )  # fmt: skip
        slowest.legend(frameon=False)
        slowest.set_ylabel("smallest rate (1 / time)")
        for axes in (direct, curse, slowest):
            axes.set_xlabel("neurons $m$")
        best = float(dataset["best_loss"])
        kinds = list(dict.fromkeys(dataset["kind"].values))
        for index, kind in enumerate(kinds):
            runs = dataset["curve_loss"].values[dataset["kind"].values == kind] / best
            for number, curve in enumerate(runs):
                training.loglog(
                    dataset["training_time"], curve, color=COLOURS[index % 7],
                    ls=DASHES[index % 7], lw=1.6 if len(runs) == 1 else 0.8,
                    marker=MARKERS[index % 7], mfc="none", ms=3, markevery=(4 * index, 20),
                    label=str(kind) if number == 0 else None,
                )  # fmt: skip
        training.axhline(1, color="0.6", lw=0.7, zorder=0)
        training.legend(frameon=False)
        training.set_xlabel("training time (updates of Adam)")
        training.set_ylabel("loss / loss of the best sum")
    return figure


def _legend(axes, lines: list[tuple[str, str]]) -> None:
    """What the dashes mean, beside what the colours do."""
    handles = [*axes.get_legend_handles_labels()[0]]
    handles += [Line2D([], [], color="0.35", ls=dash, lw=1.1, label=text) for dash, text in lines]
    axes.legend(handles=handles, frameon=False, fontsize=7)
