from collections.abc import Hashable
from typing import Any

import numpy as np

from .._checks import check_dataset, check_integer, shown, unknown_name
from .._lazy import matplotlib, xr
from ..plateaus import fit_scaling_law, OUTCOMES
from ._style import DASHES, drawing, look

# The labels of axes that figures of plateaus share.
MEMORY = r"memory $1/\omega$ (units of the model's clock)"
TIME = r"plateau time $\tau$ (units of training time)"

_SWEEP = "memjax.sweep over 'omega'"
_DRAWN = ("time", "result", "time_reached", "memory")
_FITTED = ("slope", "slope_low", "slope_high", "intercept")

# How a cell that did not exit is drawn, at the time that its run reached.
_OTHERS = {
    "converged": ("2", "converged above the exit level"),
    "max_time_reached": ("+", "stopped at max_time"),
    "max_steps_reached": ("+", "stopped at max_steps"),
    "unresolved": ("x", "unresolved"),
    "diverged": ("1", "diverged"),
    "undecided": ("4", "undecided"),
    "invalid": ("3", "invalid"),
}


def plot_plateau_law(
    dataset: "xr.Dataset", fit: "xr.Dataset | None" = None, **select: Any
) -> "matplotlib.figure.Figure":
    """Plateau time on a log scale against the memory 1/omega, for every width.

    Points are single runs, lines the fitted laws (drawn over the memories they were fitted to),
    the dotted line the growth of the published lower bound, whose constant is free. Runs that
    did not exit are marked at the time they reached.

    **Arguments:**

    - `dataset`: a sweep over `omega`, and `width` if it was swept.
    - `fit`: the result of [`memjax.fit_scaling_law`][]; by default that of the dataset.
    - `select`: the value of any other dimension than `omega`, `width` and `seed`; by default
        the first.

    **Returns:**

    A matplotlib figure. Save it with `figure.savefig(path)`.

    **Raises:**

    `ValueError` for a dataset without `omega`, or a selection that is not there.
    """
    check_dataset("dataset", dataset, dict.fromkeys(_DRAWN, ["omega"]), _SWEEP)
    if fit is None:
        fit = fit_scaling_law(dataset)
    check_dataset("fit", fit, dict.fromkeys(_FITTED, ["correction"]), "memjax.fit_scaling_law")
    dataset, fit = _chosen(dataset, select), _chosen(fit, select)
    widths = list(dataset["width"].values) if "width" in dataset.dims else [None]
    with drawing(5.2, 4.0) as figure:
        axes = figure.subplots()
        for index, width in enumerate(widths):
            cells = dataset if width is None else dataset.sel(width=width)
            law = fit if width is None else fit.sel(width=width)
            marked = look(index, lw=1.4)
            line = {"color": marked["color"], "ls": marked["ls"], "lw": marked["lw"]}
            memory = cells["memory"].broadcast_like(cells["time"]).values
            exited = cells["result"].values == 0
            axes.semilogy(memory[exited], cells["time"].values[exited], **marked | {"ls": ""})
            law = law.sel(correction="none")
            slope, low, high = (float(law[f"slope{end}"]) for end in ("", "_low", "_high"))
            label = "" if width is None else f"m = {width}: "
            if np.isfinite(slope):
                label += f"slope {slope:.3f} [{low:.3f}, {high:.3f}]"
                ends = np.array([float(law["memory_low"]), float(law["memory_high"])])
                axes.semilogy(ends, np.exp(slope * ends + float(law["intercept"])), **line)
            else:
                label += "no fit"
            axes.plot([], [], label=label, **marked)
        _mark_others(axes, dataset)
        _draw_bound(axes, dataset)
        axes.set(xlabel=MEMORY, ylabel=TIME)
        axes.legend(loc="upper left")
    return figure


def _chosen(dataset: "xr.Dataset", select: dict[str, Any]) -> "xr.Dataset":
    for name, value in select.items():
        if name not in dataset.dims:
            known = [str(dim) for dim in dataset.dims]
            raise ValueError(
                f"`{name}` must be a dimension of the dataset, got {shown(value)} for it; "
                f"{unknown_name(name, known)}"
            )
        values = dataset[name].values.tolist()
        if not isinstance(value, Hashable) or value not in values:
            raise ValueError(
                f"`{name}` must be one of {shown(values)}, got {shown(value)}; choose one."
            )
    kept = ("omega", "width", "seed", "correction", "training_time")
    first = {name: dataset[name].values[0] for name in dataset.dims if name not in kept}
    return dataset.sel(first | select)


def _mark_others(axes: Any, dataset: "xr.Dataset") -> None:
    memory = dataset["memory"].broadcast_like(dataset["time"]).values
    for code, name in enumerate(OUTCOMES):
        cells = dataset["result"].values == code
        if name in _OTHERS and cells.any():
            marker, label = _OTHERS[name]
            # Symbols of their own beside the points, black: they are no plateau times.
            axes.semilogy(
                memory[cells], dataset["time_reached"].values[cells], marker, color="k", ms=7,
                label=label,
            )  # fmt: skip


def _draw_bound(axes: Any, dataset: "xr.Dataset") -> None:
    if "lower_bound" not in dataset:
        return
    times = dataset["time"].where(np.isfinite(dataset["time"]))
    others = [dim for dim in times.dims if dim != "omega"]
    lowest, bound = times.min(others), dataset["lower_bound"].min(others)
    ratio = (lowest / bound).min()
    if np.isfinite(ratio):
        rate = float(dataset["decay_rate"].min())
        order = np.argsort(dataset["memory"].values)
        axes.semilogy(
            dataset["memory"].values[order], (bound * ratio).values[order], ":", color="0.35",
            lw=1.4, label=rf"lower bound $\omega^2 e^{{{rate:.2f}/\omega}}$, constant free",
        )  # fmt: skip


def plot_loss_curves(
    dataset: "xr.Dataset", *, memories: int = 6, seed: int | None = None, **select: Any
) -> "matplotlib.figure.Figure":
    """Loss against training time on a log scale, for several memories: the plateaus themselves.

    **Arguments:**

    - `dataset`: a sweep over `omega` with recorded curves (`curve_loss`).
    - `memories`: how many of the memories to draw, evenly chosen.
    - `seed`: the seed whose runs are drawn; by default the first.
    - `select`: the value of any other dimension than `omega`; by default the first.

    **Returns:**

    A matplotlib figure. Save it with `figure.savefig(path)`.

    **Raises:**

    `ValueError` for a dataset without curves, or a selection that is not there.
    """
    needed = {
        **dict.fromkeys(("loss", "result", "time_reached"), ["omega"]),
        "curve_loss": ["omega", "training_time"],
    }
    check_dataset("dataset", dataset, needed, "memjax.sweep with `curve_times`")
    check_integer("memories", memories)
    if seed is not None:
        select["seed"] = seed
    dataset = _chosen(dataset, select)
    dataset = dataset.isel({dim: 0 for dim in ("width", "seed") if dim in dataset.dims})
    dataset = dataset.sortby("memory")
    count = dataset.sizes["omega"]
    chosen = np.unique(np.linspace(0, count - 1, min(memories, count)).round().astype(int))
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.82, len(chosen)))
    with drawing(5.2, 3.4) as figure:
        axes = figure.subplots()
        handles = []
        for rank, (index, shade) in enumerate(zip(chosen, shades, strict=True)):
            run = dataset.isel(omega=index)
            times = run["training_time"].values
            seen = np.isfinite(run["curve_loss"].values)
            reached = float(run["time_reached"])
            x = np.append(times[seen], reached)
            y = np.append(run["curve_loss"].values[seen], float(run["loss"]))
            line = {"color": shade, "ls": DASHES[rank % 6], "lw": 1.4}
            axes.semilogx(x, y, **line)
            exited = int(run["result"]) == 0
            axes.semilogx(x[-1:], y[-1:], "o" if exited else "x", color=shade, ms=4.5)
            label = rf"$1/\omega$ = {float(run['memory']):g}"
            if not exited:
                label += f" ({OUTCOMES[int(run['result'])].replace('_', ' ')})"
            handles.append(matplotlib.lines.Line2D([], [], label=label, **line))
        axes.set(xlabel=r"training time $\tau$", ylabel=r"loss $J$")
        axes.legend(handles=handles)
        if "width" in dataset.coords:
            axes.set_title(f"m = {int(dataset['width'])}")
    return figure
