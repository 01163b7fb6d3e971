import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .._checks import check_dataset
from ..plateaus import OUTCOMES
from ._style import COLOURS, DASHES, MARKERS, style


def plot_plateau_flows(dataset: xr.Dataset) -> Figure:
    """Plateau time on a log scale against the memory 1/omega, a line a flow.

    The dotted line is the asymptotic time of gradient flow for one silent mode
    ([`memjax.plateau_asymptotics`][]). Measurements that did not exit are marked at the time
    that they reached.

    **Arguments:**

    - `dataset`: the dataset of the reproduction `plateau-flows`.

    **Returns:**

    A matplotlib figure.
    """
    needed = dict.fromkeys(("time", "time_reached", "result", "asymptotics"), ["flow", "omega"])
    check_dataset("dataset", dataset, needed, "the reproduction plateau-flows")
    memory = dataset["memory"].values
    with style():
        figure = Figure(figsize=(5.2, 4.0))
        axes = figure.subplots()
        for index, flow in enumerate(dataset["flow"].values):
            run = dataset.sel(flow=flow)
            look = {"color": COLOURS[index % 7], "mfc": "none", "ms": 4.5, "mew": 0.9}
            axes.semilogy(
                memory, run["time"].values, marker=MARKERS[index % 7], ls=DASHES[index % 7],
                lw=1.2, label=str(flow), **look,
            )  # fmt: skip
            others = ~np.isin(run["result"].values, (OUTCOMES.index("exited"), -1))
            axes.semilogy(memory[others], run["time_reached"].values[others], "x", **look)
        asymptotics = dataset["asymptotics"].max("flow")
        axes.semilogy(memory, asymptotics, ":", color="0.35", lw=1.4, label="gradient flow, theory")
        axes.set_xlabel(r"memory $1/\omega$ (units of the model's clock)")
        axes.set_ylabel(r"plateau time $\tau$ (units of training time)")
        axes.legend(frameon=False, loc="upper left")
    return figure


def plot_plateau_width(dataset: xr.Dataset) -> Figure:
    """Plateau time against the width, both on log scales, with the published bound.

    Points are seeds, lines join their medians, a memory a line. The dotted lines are the
    published bound; its constant is free, and chosen so that it meets the median at the
    smallest width.

    **Arguments:**

    - `dataset`: the dataset of the reproduction `plateau-width`.

    **Returns:**

    A matplotlib figure.
    """
    needed = dict.fromkeys(("time", "lower_bound"), ["omega", "width", "seed"])
    check_dataset("dataset", dataset, needed, "the reproduction plateau-width")
    dataset = dataset.sortby("omega")
    widths = dataset["width"].values
    times = dataset["time"]
    median = times.median("seed")
    bound = dataset["lower_bound"].median("seed")
    bound = bound * (median / bound).isel(width=0)
    with style():
        figure = Figure(figsize=(5.2, 4.0))
        axes = figure.subplots()
        for index in range(dataset.sizes["omega"]):
            run, colour, marker = times.isel(omega=index), COLOURS[index % 7], MARKERS[index % 7]
            axes.loglog(
                widths, run.transpose("width", "seed").values, marker, color=colour, mfc="none",
                ms=3.5, mew=0.7, alpha=0.7,
            )  # fmt: skip
            axes.loglog(
                widths, median.isel(omega=index), color=colour, marker=marker, ms=4.5,
                ls=DASHES[index % 7], lw=1.4,
                label=rf"$1/\omega$ = {float(run['memory']):g}, median of seeds",
            )  # fmt: skip
            axes.loglog(
                widths, bound.isel(omega=index), ":", color="0.35", lw=1.4,
                label="lower bound, constant free" if index == 0 else None,
            )  # fmt: skip
        axes.set_xlabel("width $m$ (neurons)")
        axes.set_ylabel(r"plateau time $\tau$ (units of training time)")
        axes.set_xticks(widths, [str(width) for width in widths])
        axes.minorticks_off()
        axes.legend(frameon=False, loc="best")
    return figure


def plot_training_comparison(dataset: xr.Dataset) -> Figure:
    """Loss against training time on log scales, a panel a target and model, a line an optimiser.

    The loss is divided by the mean square of the target's output, which a model without any
    output has.

    **Arguments:**

    - `dataset`: the dataset of the reproduction `l21-training`.

    **Returns:**

    A matplotlib figure.
    """
    needed = {
        "curve_loss": ["target", "model", "optimiser", "training_time"],
        "power": ["target"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction l21-training")
    targets, models = dataset["target"].values, dataset["model"].values
    times = dataset["training_time"].values
    with style():
        figure = Figure(figsize=(0.6 + 2.1 * len(targets), 0.6 + 1.7 * len(models)))
        grid = figure.subplots(len(models), len(targets), sharex=True, sharey=True, squeeze=False)
        for row, model in zip(grid, models, strict=True):
            for axes, target in zip(row, targets, strict=True):
                panel = dataset.sel(target=target, model=model)
                for index, optimiser in enumerate(dataset["optimiser"].values):
                    run = panel.sel(optimiser=optimiser)
                    axes.loglog(
                        times, run["curve_loss"] / run["power"], color=COLOURS[3 * index % 7],
                        ls=DASHES[index % 7], lw=1.4, label=str(optimiser),
                    )  # fmt: skip
                axes.set_title(f"{target}, {model}", loc="left")
        for axes in grid[-1]:
            axes.set_xlabel("training time (updates)")
        for axes in grid[:, 0]:
            axes.set_ylabel("loss / mean square output")
        grid[0, -1].legend(frameon=False, loc="lower left")
    return figure


def plot_perturbation_grid(dataset: xr.Dataset) -> Figure:
    """Error against the radius of the perturbation on log scales, a line a width.

    A row is a kernel and activation, a column a parametrisation. Full lines are the supremum by
    ascent in the ball of the dataset's `norm`, dotted ones the largest of the random draws, whose
    largest entries are the radius; both are medians over seeds. Errors are divided by the mean
    square of the target, so that at 1 a model is no better than none.

    **Arguments:**

    - `dataset`: the dataset of the reproduction `w24-perturbation`.

    **Returns:**

    A matplotlib figure.
    """
    needed = dict.fromkeys(
        ("error", "drawn"), ["kernel", "activation", "parametrisation", "width", "radius", "seed"]
    )
    check_dataset("dataset", dataset, needed, "the reproduction w24-perturbation")
    median = dataset.median("seed")
    rows = [(k, a) for k in dataset["kernel"].values for a in dataset["activation"].values]
    columns, widths = dataset["parametrisation"].values, dataset["width"].values
    with style():
        figure = Figure(figsize=(0.7 + 2.1 * len(columns), 0.7 + 1.5 * len(rows)))
        grid = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
        for line, (kernel, activation) in zip(grid, rows, strict=True):
            for axes, column in zip(line, columns, strict=True):
                cell = median.sel(kernel=kernel, activation=activation, parametrisation=column)
                for index, width in enumerate(widths):
                    run, colour = cell.sel(width=width), COLOURS[index % 7]
                    for source, dash, weight in (("error", "-", 1.3), ("drawn", ":", 1.1)):
                        axes.loglog(
                            run["radius"], run[source] / run["power"], color=colour, ls=dash,
                            lw=weight, label=f"$m$ = {width}" if source == "error" else None,
                        )  # fmt: skip
                axes.axhline(1, color="0.6", lw=0.7, zorder=0)
                axes.set_title(f"{kernel}, {activation}, {column}", loc="left", fontsize=7.5)
        grid[0, 0].set_ylim(1e-6, 1e3)
        for axes in grid[-1]:
            axes.set_xlabel(r"radius $\beta$ (units of the weights)")
        for axes in grid[:, 0]:
            axes.set_ylabel("relative error")
        draws = Line2D([], [], color="0.3", ls=":", lw=1.1, label="random draws")
        handles = [*grid[0, 0].get_legend_handles_labels()[0], draws]
        figure.legend(
            handles=handles, frameon=False, loc="outside upper center", ncols=len(handles)
        )
    return figure
