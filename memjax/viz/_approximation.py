from collections.abc import Mapping, Sequence
from typing import Any, cast

import numpy as np

from .._checks import check_dataset, check_flag, check_instance
from .._lazy import matplotlib, xr
from ..approximation import ApproximationRate
from ._style import (
    beside,
    COLOURS,
    DASHES,
    explain,
    figure_of,
    label_grid,
    look,
    panels,
    place_legend,
)


def plot_approximation(
    dataset: "xr.Dataset",
    *,
    log_time: bool = False,
    ax: "Sequence[matplotlib.axes.Axes] | np.ndarray | None" = None,
) -> "matplotlib.figure.Figure":
    """A kernel with the sum of exponentials that approximates it, and below what is left over.

    **Arguments:**

    - `dataset`: `kernel` and `fit` over `time`, from [`memjax.approximation_dataset`][].
    - `log_time`: whether the time axis is logarithmic, as long memories need it.
    - `ax`: the two axes to draw in, for the kernel and for what is left over; by default those of
        a new figure.

    **Returns:**

    A matplotlib figure. Save it with `figure.savefig(path)`.

    **Raises:**

    `ValueError` without `kernel` and `fit` over `time` alone, or for other than two axes.
    """
    needed = {"kernel": ["time"], "fit": ["time"]}
    check_dataset("dataset", dataset, needed, "memjax.approximation_dataset")
    if dataset["kernel"].ndim > 1 or dataset["fit"].ndim > 1:
        raise ValueError(
            "`dataset` must have 'kernel' and 'fit' over 'time' alone, got the dimensions "
            f"{dict(dataset.sizes)}; select one of the others."
        )
    check_flag("log_time", log_time)
    times = dataset["time"].values
    with panels(ax, 2, 1, (5.6, 4.2), sharex=True, height_ratios=[2, 1]) as grid:
        above, below = grid[:, 0]
        points = dataset.attrs.get("samples") == "points"
        marks = {"ls": "", "marker": "o", "ms": 4, "mew": 0} if points else {"lw": 4}
        above.plot(times, dataset["kernel"], color="0.75", label="kernel", **marks)
        label = f"{dataset.attrs['neurons']} neurons" if "neurons" in dataset.attrs else "fit"
        above.plot(times, dataset["fit"], color=COLOURS[0], lw=1.2, label=label)
        above.set_ylabel(r"kernel $\rho(t)$")
        above.legend()
        below.axhline(0, color="0.6", lw=0.7, zorder=0)
        marks = {"ls": "", "marker": "o", "ms": 3, "mew": 0} if points else {"lw": 0.9}
        below.plot(times, dataset["kernel"] - dataset["fit"], color=COLOURS[3], **marks)
        below.set(
            xlabel="time $t$ (units of the kernel's time)", ylabel=r"residual $\rho - \hat\rho$"
        )
        # Powers of ten of a residual stand beside its axis, in the way of nothing.
        below.ticklabel_format(axis="y", scilimits=(-2, 3))
        if log_time:
            for axes in grid.flat:
                axes.set_xscale("log")
    return figure_of(grid)


def plot_approximation_errors(
    errors: "xr.Dataset | Mapping[str, ApproximationRate] | ApproximationRate",
    *,
    log_neurons: bool = False,
    ax: "matplotlib.axes.Axes | Sequence[matplotlib.axes.Axes] | np.ndarray | None" = None,
) -> "matplotlib.figure.Figure":
    """Error against the number of neurons on a log scale, a panel a kernel.

    Points are the best sums found, the dashed line what no sum falls below, the dotted one the
    theorem's bound with its constant set to 1, and the thin one the fitted rate. Other dimensions
    than `kernel` and `neurons` (such as `norm`) make rows of panels.

    **Arguments:**

    - `errors`: a dataset with `error` over `neurons` and, if there are several, `kernel`, and
        alike, if known, `lower_bound`, `bound` (the theorem's) and `fitted`; a mapping from
        labels to [`memjax.ApproximationRate`][]; or one of these.
    - `log_neurons`: whether the axis of neurons is logarithmic too, on which powers are straight
        lines; else exponentials are.
    - `ax`: the axes to draw in, as many as there are panels, row by row; by default those of a new
        figure.

    **Returns:**

    A matplotlib figure.

    **Raises:**

    `ValueError` without `error` over `neurons`, or for another number of axes.
    """
    if isinstance(errors, ApproximationRate):
        errors = {"": errors}
    dataset = errors if isinstance(errors, xr.Dataset) else _rates_dataset(errors)
    check_dataset("errors", dataset, {"error": ["neurons"]}, "memjax.approximation_rate by label")
    check_flag("log_neurons", log_neurons)
    looks: dict[str, dict[str, Any]] = {
        "bound": {"label": "theorem's bound, $C = 1$", "color": "0.35", "ls": ":", "lw": 1.4},
        "fitted": {"label": "fitted rate", "color": COLOURS[0], "lw": 0.6},
        "error": look(0, label="best sum found", lw=0 if "fitted" in dataset else 1.3),
        "lower_bound": {
            "label": "no sum falls below", "color": COLOURS[3], "ls": DASHES[1], "lw": 1.2
        },
    }  # fmt: skip
    if "kernel" not in dataset["error"].dims:
        dataset = dataset[[name for name in looks if name in dataset]].expand_dims("kernel")
    kernels = dataset["kernel"].values if "kernel" in dataset.coords else [""]
    outer = [str(dim) for dim in dataset["error"].dims if dim not in ("kernel", "neurons")]
    rows = list(np.ndindex(*(dataset.sizes[dim] for dim in outer)))
    size = (1.6 + 2.3 * len(kernels), 0.9 + 2.2 * len(rows))
    with panels(ax, len(rows), len(kernels), size, sharex=True, sharey="row") as grid:
        for line, index in zip(grid, rows, strict=True):
            row = dataset.isel(dict(zip(outer, index, strict=True)))
            names = [str(row[dim].values) for dim in outer]
            for k, (axes, kernel) in enumerate(zip(line, kernels, strict=True)):
                panel = row.isel(kernel=k)
                for name in looks:
                    if name not in panel:
                        continue
                    values = panel[name].values
                    seen = values > 0
                    # A bound of 0 says nothing, and has no place on a log scale.
                    axes.semilogy(panel["neurons"].values[seen], values[seen], **looks[name])
                title = ", ".join([str(kernel), *names]).strip(", ")
                if title:
                    axes.set_title(title)
                axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
                if log_neurons:
                    axes.set_xscale("log", base=2)
                    axes.xaxis.set_major_formatter("{x:g}")
        label_grid(grid, "neurons $m$", "error", ax is not None)
        handles = grid[0, 0].get_legend_handles_labels()[0]
        place_legend(ax, grid, handles, "right upper")
    return figure_of(grid)


def _rates_dataset(rates: Mapping[str, ApproximationRate]) -> "xr.Dataset":
    wanted = "a dataset, or a mapping of rates"
    check_instance("errors", rates, Mapping, wanted, "name each by a label")
    parts = []
    for label, rate in rates.items():
        hint = "make them by memjax.approximation_rate"
        check_instance("errors", rate, ApproximationRate, "approximation rates", hint)
        widths, errors = np.asarray(rate.widths), np.asarray(rate.errors)
        fast = bool(rate.faster_than_powers)
        slope = float(rate.exponential if fast else rate.exponent)
        places = widths if fast else np.log(widths)
        # Rounding may hold the last errors up; the median does not follow them.
        fitted = np.exp(np.median(np.log(errors) + slope * places) - slope * places)
        variables = {
            "error": errors,
            "lower_bound": np.asarray(rate.lower_bounds),
            "bound": np.asarray(rate.bound),
            "fitted": fitted,
        }
        part = xr.Dataset(
            {name: ("neurons", values) for name, values in variables.items()}, {"neurons": widths}
        )
        parts.append(part.expand_dims(kernel=[label]))
    if not parts:
        raise ValueError(
            "`errors` must hold at least one rate, got none; make one by memjax.approximation_rate."
        )
    return cast("xr.Dataset", xr.concat(parts, "kernel", join="outer"))


def plot_neurons_needed(
    dataset: "xr.Dataset",
    *,
    ax: "matplotlib.axes.Axes | Sequence[matplotlib.axes.Axes] | np.ndarray | None" = None,
) -> "matplotlib.figure.Figure":
    r"""Neurons needed against the error on log scales, a line a memory: the curse of memory.

    Hollow markers are the smallest orders found, dashed lines the orders below which none can
    succeed.
    The dotted lines are the published growth $\omega\, \varepsilon^{-1/\omega}$, with its free
    constant chosen to meet the markers at the largest error. A filled marker at the top is at the
    first error that no order tried has reached. With a dimension `rates` (such as free ones and
    bounded ones) each has a panel.

    **Arguments:**

    - `dataset`: `neurons` over `omega` and `error`, 0 where no order has reached the error, and
        possibly `rates`; `lower_bound` alike, if known.
    - `ax`: the axes to draw in, as many as there are panels, row by row; by default those of a new
        figure.

    **Returns:**

    A matplotlib figure.

    **Raises:**

    `ValueError` without `neurons` over `omega` and `error`, or for another number of axes.
    """
    source = "memjax.neurons_needed over 'omega' and 'error'"
    check_dataset("dataset", dataset, {"neurons": ["omega", "error"]}, source)
    if not set(dataset["neurons"].dims) <= {"omega", "error", "rates"}:
        raise ValueError(
            "`dataset` must have 'neurons' over 'omega', 'error' and possibly 'rates', got "
            f"{dataset['neurons'].dims}; select one of the others."
        )
    dataset = dataset.sortby("error", ascending=False)
    names = dataset["rates"].values if "rates" in dataset.dims else [""]
    unreached = False
    errors, top = dataset["error"].values, 2.5 * float(dataset["neurons"].max())
    size = (1.4 + 2.9 * len(names), 3.4)
    with panels(ax, 1, len(names), size, sharex=True, sharey=True) as grid:
        for axes, name in zip(grid[0], names, strict=True):
            panel = dataset.sel(rates=name) if "rates" in dataset.dims else dataset
            for index, omega in enumerate(dataset["omega"].values):
                run = panel.sel(omega=omega)
                neurons = run["neurons"].values
                reached = neurons > 0
                found = look(index, label=rf"$\omega$ = {omega:g}")
                axes.loglog(errors[reached], neurons[reached], **found)
                if not np.all(reached):
                    arrow = {"ls": "", "ms": 5, "clip_on": False}
                    axes.plot(errors[np.argmin(reached)], top, **beside(found, **arrow))
                    unreached = True
                if "lower_bound" in run:
                    axes.loglog(errors, run["lower_bound"], **beside(found, ls=DASHES[1]))
                if reached[0]:
                    growth = neurons[0] * (errors[0] / errors) ** (1 / omega)
                    axes.loglog(errors, growth, **beside(found, lw=1.2))
            if str(name):
                axes.set_title(str(name))
        # Axes of a new figure share these.
        for axes in grid.flat if ax is not None else grid[0, :1]:
            axes.set_ylim(0.8, top)
            axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(2))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            if not axes.xaxis_inverted():
                axes.invert_xaxis()
        label_grid(grid, r"error $\varepsilon$", "neurons $m$", ax is not None)
        handles = [*grid[0, -1].get_legend_handles_labels()[0]]
        if "lower_bound" in dataset:
            handles.append(explain("none can do with fewer", ls=DASHES[1], marker="o", ms=2.2))
        growth = r"growth $\varepsilon^{-1/\omega}$"
        handles.append(explain(growth, ls=":", marker="o", ms=2.2))
        if unreached:
            handles.append(explain("not reached from here", ls="", marker="o", ms=5))
        place_legend(ax, grid, handles, "right upper")
    return figure_of(grid)
