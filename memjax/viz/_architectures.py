from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from .._checks import check_dataset
from ._style import COLOURS, DASHES, MARKERS, style


def _look(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % 7], "marker": MARKERS[index % 7], "ls": DASHES[index % 7],
        "mfc": "none", "ms": 4, "mew": 0.9, "lw": 1.2,
    }  # fmt: skip


def plot_digits_stability(dataset: xr.Dataset) -> Figure:
    """Accuracy on the handwritten digits: against the learning rate, and under perturbations.

    A row a model and a line a reparametrisation. From the left: the mean test accuracy over seeds,
    where a run that diverged counts as a blind guess; the largest ratio of gradient to free rates
    during training, median over the seeds that did not diverge; the test accuracy under the worst
    perturbation of the free rates that was found; and the smallest one among random perturbations
    of all weights, medians over seeds.

    **Arguments:**

    - `dataset`: the dataset of the reproduction `digits-stability`.

    **Returns:**

    A matplotlib figure.
    """
    needed = {
        "accuracy": ["model", "reparametrisation", "learning_rate", "seed"],
        "gradient_over_weight": ["model", "reparametrisation", "learning_rate", "seed"],
        "diverged": ["model", "reparametrisation", "learning_rate", "seed"],
        "worst_accuracy": ["model", "reparametrisation", "radius", "seed"],
        "drawn_accuracy": ["model", "reparametrisation", "radius", "seed", "weights"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction digits-stability")
    models = dataset["model"].values
    blind = 0.1
    fine = ~dataset["diverged"]
    panels = [
        (dataset["accuracy"].where(fine, blind).mean("seed"), "test accuracy"),
        (
            dataset["gradient_over_weight"].where(fine).median("seed"),
            "largest gradient / weight",
        ),
        (dataset["worst_accuracy"].median("seed"), "accuracy, rates at worst"),
        (
            dataset["drawn_accuracy"].sel(weights="all").median("seed"),
            "accuracy, all weights drawn",
        ),
    ]
    with style():
        figure = Figure(figsize=(10.0, 0.5 + 2.4 * len(models)))
        grid = figure.subplots(len(models), len(panels), squeeze=False, sharex="col")
        for row, model in zip(grid, models, strict=True):
            for axes, (values, label) in zip(row, panels, strict=True):
                abscissa = "learning_rate" if "learning_rate" in values.dims else "radius"
                for index, name in enumerate(dataset["reparametrisation"].values):
                    line = values.sel(model=model, reparametrisation=name)
                    axes.plot(dataset[abscissa], line, label=str(name), **_look(index))
                axes.set_xscale("log")
                axes.set_ylabel(label)
                if "gradient" in label:
                    axes.set_yscale("log")
                else:
                    axes.set_ylim(0, 1)
                    axes.axhline(blind, color="0.6", lw=0.8, ls=":")
            row[0].set_title(str(model), loc="left")
        for axes in grid[-1][:2]:
            axes.set_xlabel("learning rate (Adam)")
        for axes in grid[-1][2:]:
            axes.set_xlabel(r"radius $\beta$ of the perturbation")
        grid[0, -1].legend(frameon=False, loc="upper right")
    return figure


def plot_s24_reparametrisations(dataset: xr.Dataset) -> Figure:
    """The largest distance under perturbations of the rates against the radius, and two criteria.

    A row a kernel and a panel a reparametrisation, a line a width; distances are divided by the
    norm of the kernel, and infinite ones end the line at a cross at the upper edge. Thin dotted
    lines are the largest distances of random draws. The last row has the criterion g over the
    radius, and the ratio of the gradient scale to the weight over the rate.

    **Arguments:**

    - `dataset`: the dataset of the reproduction `s24-reparametrisations`.

    **Returns:**

    A matplotlib figure.
    """
    needed = {
        "error": ["kernel", "reparametrisation", "width", "radius"],
        "drawn": ["kernel", "reparametrisation", "width", "radius"],
        "norm": ["kernel"],
        "criterion": ["reparametrisation", "radius"],
        "gradient_over_weight": ["reparametrisation", "rate"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction s24-reparametrisations")
    kernels, names = dataset["kernel"].values, dataset["reparametrisation"].values
    radii, top = dataset["radius"].values, 10.0
    with style():
        figure = Figure(figsize=(0.8 + 1.85 * max(len(names), 3), 0.8 + 1.8 * (len(kernels) + 1)))
        parts: Any = figure.subfigures(2, 1, height_ratios=[len(kernels), 1.15])
        above, below = parts
        grid = above.subplots(len(kernels), len(names), squeeze=False, sharex=True, sharey=True)
        for row, kernel in zip(grid, kernels, strict=True):
            for axes, name in zip(row, names, strict=True):
                cell = dataset.sel(kernel=kernel, reparametrisation=name)
                for index, width in enumerate(dataset["width"].values):
                    look = _look(index) | {"ms": 3}
                    error = (cell["error"] / cell["norm"]).sel(width=width).values
                    shown = np.minimum(error, top)
                    first = np.flatnonzero(error > top)
                    last = first[0] + 1 if first.size else error.size
                    axes.loglog(radii[:last], shown[:last], label=f"m = {width}", **look)
                    if first.size:
                        at = radii[first[0]]
                        axes.loglog(at, top, "x", color=look["color"], ms=5, clip_on=False)
                    drawn = (cell["drawn"] / cell["norm"]).sel(width=width).values
                    drawn = np.where(drawn > top, np.nan, drawn)
                    axes.loglog(radii, drawn, ":", color=look["color"], lw=0.8)
                axes.set_ylim(1e-4, top)
                axes.set_title(str(name) if kernel == kernels[0] else "")
            row[0].set_ylabel(f"{kernel}\ndistance / norm")
        for axes in grid[-1]:
            axes.set_xlabel(r"radius $\beta$")
        grid[0, -1].legend(frameon=False, loc="lower right")
        left, right = below.subplots(1, 2)
        for index, name in enumerate(names):
            criterion = dataset["criterion"].sel(reparametrisation=name).values
            label = str(name) if np.isfinite(criterion).any() else f"{name} (infinite)"
            left.loglog(radii, np.where(np.isinf(criterion), np.nan, criterion), label=label,
                        **_look(index))  # fmt: skip
            ratio = dataset["gradient_over_weight"].sel(reparametrisation=name)
            right.loglog(dataset["rate"], ratio, markevery=4, **_look(index))
        left.set(xlabel=r"radius $\beta$", ylabel=r"criterion $g(\beta)$")
        left.legend(frameon=False, loc="lower right")
        right.set(xlabel="rate $w$", ylabel="gradient scale / weight")
    return figure


def plot_memory_architectures(dataset: xr.Dataset) -> Figure:
    """Memory functions against time: a column a stage of training, a row the size of the inputs.

    Both axes are logarithmic: a power law is a straight line, an exponential bends down. A line a
    model, the median over seeds of memory over its largest value; thick and grey is the target.

    **Arguments:**

    - `dataset`: the dataset of the reproduction `memory-architectures`.

    **Returns:**

    A matplotlib figure.
    """
    needed = {
        "memory": ["architecture", "stage", "inputs", "seed", "time"],
        "target_memory": ["time"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction memory-architectures")
    times = dataset["time"].values[1:]
    with style():
        figure = Figure(figsize=(8.6, 0.6 + 2.6 * dataset.sizes["inputs"]))
        grid = figure.subplots(
            dataset.sizes["inputs"], dataset.sizes["stage"], sharex=True, sharey=True, squeeze=False
        )
        for row, inputs in zip(grid, dataset["inputs"].values, strict=True):
            for axes, stage in zip(row, dataset["stage"].values, strict=True):
                goal = dataset["target_memory"].values
                axes.loglog(times, goal[1:] / goal.max(), color="0.8", lw=4, label="target")
                for index, name in enumerate(dataset["architecture"].values):
                    memory = dataset["memory"].sel(architecture=name, stage=stage, inputs=inputs)
                    memory = (memory / memory.max("time")).median("seed").values[1:]
                    look = _look(index) | {"lw": 1.0}
                    if index >= 7:
                        look["mfc"] = look["color"]
                    marked = np.unique(np.geomspace(1, times.size, 9).astype(int)) - 1
                    # Below, there is only what rounding leaves.
                    shown = np.where(memory > 1e-7, memory, np.nan)
                    axes.loglog(times, shown, label=str(name), markevery=list(marked), **look)
                axes.set_title(f"{stage}, inputs {inputs}", loc="left")
                axes.set_ylim(1e-7, 2)
            row[0].set_ylabel("memory / largest value")
        for axes in grid[-1]:
            axes.set_xlabel("time (units of the models' clock)")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), frameon=False,
                      loc="outside right center")  # fmt: skip
    return figure
