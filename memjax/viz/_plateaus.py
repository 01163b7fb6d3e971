import textwrap
from collections.abc import Collection, Hashable
from typing import Any

import numpy as np

from .._checks import (
    as_host_array,
    check_dataset,
    check_instance,
    check_integer,
    shown,
    unknown_name,
)
from .._lazy import matplotlib, xr
from ..plateaus import (
    add_places,
    choose_evenly,
    describe_axis,
    EXITED,
    find_axis,
    fit_scaling_law,
    OMEGA,
    OUTCOMES,
    Plateau,
    scale_lower_bound,
)
from ..plateaus import MEMORY as MEMORY_AXIS
from ._style import COLOURS, DASHES, figure_of, look, panels

# The labels of axes that figures of plateaus share.
MEMORY = r"memory $1/\omega$ (units of the model's clock)"
TIME = r"plateau time $\tau$ (units of training time)"

_FIT = "memjax.fit_scaling_law"
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
    dataset: "xr.Dataset",
    fit: "xr.Dataset | None" = None,
    *,
    axis: str | None = None,
    hue: str | None = None,
    ax: "matplotlib.axes.Axes | None" = None,
    **select: Any,
) -> "matplotlib.figure.Figure":
    """Plateau time on a log scale against the memory 1/omega or another axis of a sweep.

    Points are single runs, lines the fitted laws (drawn over the values they were fitted to) with
    their slopes and confidence intervals of these,
    the dotted line the growth of the published lower bound, whose constant is free. Runs that
    did not exit are marked at the time they reached. Where not all of the dataset is drawn, the
    title says what is.

    **Arguments:**

    - `dataset`: a sweep.
    - `fit`: the result of [`memjax.fit_scaling_law`][], which also says what is pooled; by default
        that of what is drawn, over `seed` together.
    - `axis`: the name of the axis, as in [`memjax.fit_scaling_law`][]; by default that of the fit.
    - `hue`: the dimension of which every value has a colour and a fit of its own, up to seven of
        them, evenly chosen; by default `width`, or the first other one of several values.
    - `ax`: the axes to draw in; by default those of a new figure.
    - `select`: the value of any other dimension; by default all seeds, and of each other dimension
        the first value.

    **Returns:**

    A matplotlib figure. Save it with `figure.savefig(path)`.

    **Raises:**

    `ValueError` for a dataset without that axis, a selection that is not there, or a fit against
    another axis or of another dataset.
    """
    if fit is not None:
        check_dataset("fit", fit, dict.fromkeys(_FITTED, ["correction"]), _FIT)
        axis = fit.attrs.get("axis") if axis is None else axis
    x = find_axis(dataset, axis)
    (dim,), dims = x.dims, dataset["time"].dims
    check_dataset("dataset", dataset, {"time_reached": dims}, "memjax.sweep")
    dataset = add_places(dataset)
    if fit is None:
        pooled = [name for name in dims if name == "seed" and name != dim]
    else:
        _check_fit(fit, x)
        pooled = [name for name in dims if name != dim and name not in fit["slope"].dims]
    others = [name for name in dims if name != dim and name not in pooled]
    hue = _choose_hue(dataset, hue, [name for name in others if name not in select], select)
    kept = {dim, hue, *pooled} - select.keys()
    dataset, words = _select(dataset, x, select, kept)
    count = 1 if hue is None else dataset.sizes[hue]
    places = choose_evenly(count, len(COLOURS))
    if len(places) < count:
        words.append(f"{len(places)} of {count} values of {hue}")
    if hue is not None:
        dataset = dataset.isel({hue: places})
    if fit is None:
        fit = fit_scaling_law(dataset, str(x.name), pool=[n for n in pooled if n in dataset.dims])
    with panels(ax, 1, 1, (5.2, 4.0)) as grid:
        axes = grid[0, 0]
        for index in range(len(places)):
            cells = dataset if hue is None else dataset.isel({hue: index})
            law = _law_at(fit, cells)
            marked = look(index, lw=1.4)
            line = {"color": marked["color"], "ls": marked["ls"], "lw": marked["lw"]}
            values, time, result, _ = _cells_of(cells, x)
            exited = result == EXITED
            axes.semilogy(values[exited], time[exited], **marked | {"ls": ""})
            slope, low, high = (float(law[f"slope{end}"]) for end in ("", "_low", "_high"))
            label = "" if hue is None else f"{_name_value(hue, cells[hue].item())}: "
            if np.isfinite(slope):
                label += f"slope {slope:.3f} [{low:.3f}, {high:.3f}]"
                ends = np.array([float(law[f"{x.name}_{end}"]) for end in ("low", "high")])
                axes.semilogy(ends, np.exp(slope * ends + float(law["intercept"])), **line)
            else:
                label += "no fit"
            axes.plot([], [], label=label, **marked)
        _mark_others(axes, dataset, x)
        _draw_bound(axes, dataset, x)
        axes.set(xlabel=_label(x), ylabel=TIME)
        rising = not np.any(fit["slope"] < 0)
        axes.legend(loc="upper left" if rising else "upper right")
        _entitle(axes, words)
    return figure_of(grid)


# --- What is drawn of a dataset -----------------------------------------------------------------


def _choose_hue(
    dataset: "xr.Dataset", hue: str | None, dims: list[Any], select: dict[str, Any]
) -> Any:
    """The dimension whose values are told apart, of those that are neither the axis nor pooled."""
    if hue is not None:
        check_instance("hue", hue, str, "a name", "name a dimension")
        if hue not in dims:
            reason = "selected already" if hue in select else "choose one"
            raise ValueError(
                f"`hue` must be one of the dimensions {shown(dims)}, got {shown(hue)}; {reason}."
            )
        return hue
    several = [name for name in dims if dataset.sizes[name] > 1]
    candidates = several or [name for name in dims if name == "width"]
    return "width" if "width" in candidates else candidates[0] if candidates else None


def _select(
    dataset: "xr.Dataset", x: "xr.DataArray", select: dict[str, Any], kept: Collection[Any]
) -> "tuple[xr.Dataset, list[str]]":
    """What is selected, and the first value of each dimension that is neither selected nor kept;
    in words where there are others."""
    dims = dataset["time"].dims
    for name, value in select.items():
        if name not in dims or name in x.dims:
            known = [str(dim) for dim in dims if dim not in x.dims]
            hint = unknown_name(name, known) if known else "there is no other."
            raise ValueError(
                f"`{name}` must be a dimension of the dataset other than the axis, got "
                f"{shown(value)} for it; {hint}"
            )
        values = dataset[name].values.tolist()
        if not isinstance(value, Hashable) or value not in values:
            raise ValueError(
                f"`{name}` must be one of {shown(values)}, got {shown(value)}; choose one."
            )
    words, places = [], {}
    for name in (str(name) for name in dims if name not in kept):
        values = dataset[name].values.tolist()
        places[name] = values.index(select[name]) if name in select else 0
        if len(values) > 1:
            words.append(_name_value(name, values[places[name]]))
    return dataset.isel(places), words


def _cells_of(cells: "xr.Dataset", x: "xr.DataArray") -> tuple[np.ndarray, ...]:
    """The axis, time, result and time reached of all cells, as arrays of one shape."""
    dims = [*x.dims, *(name for name in cells["time"].dims if name not in x.dims)]
    time, result, reached = (
        cells[name].transpose(*dims).values for name in ("time", "result", "time_reached")
    )
    values = x.values.reshape(-1, *[1] * (time.ndim - 1))
    return np.broadcast_to(values, time.shape), time, result, reached


def _check_fit(fit: "xr.Dataset", x: "xr.DataArray") -> None:
    """Refuse a fit against another axis."""
    against = fit.attrs.get("axis", x.name)
    if against != x.name:
        raise ValueError(
            f"`fit` must be against the axis {x.name!r}, got one against {shown(against)}; pass "
            f"`axis={against!r}`, or leave `fit` out."
        )
    check_dataset("fit", fit, {f"{x.name}_low": (), f"{x.name}_high": ()}, _FIT)


def _law_at(fit: "xr.Dataset", cells: "xr.Dataset") -> "xr.Dataset":
    """The fit, without a correction, that is of some cells."""
    law = fit.sel(correction="none")
    for name in map(str, law["slope"].dims):
        values = law[name].values.tolist()
        value = cells[name].item() if name in cells.coords and cells[name].ndim == 0 else None
        if value not in values:
            raise ValueError(
                f"`fit` must be that of the dataset, got {shown(values)} for {name!r} and not "
                f"{shown(value)}; leave it out."
            )
        law = law.isel({name: values.index(value)})
    return law


# --- What is written in a figure ----------------------------------------------------------------


def _label(x: "xr.DataArray") -> str:
    """The name of an axis with its unit."""
    if x.name == MEMORY_AXIS and x.dims == (OMEGA,):
        return MEMORY
    return describe_axis(x)


def _name_value(name: Any, value: Any) -> str:
    """A value of a dimension in a legend or a title."""
    number = isinstance(value, float)
    return f"{'m' if name == 'width' else name} = {f'{value:g}' if number else value}"


def _entitle(axes: Any, words: list[str]) -> None:
    """Say in the title what was selected."""
    if words:
        axes.set_title(textwrap.fill(", ".join(words), 80))


def _mark_others(axes: Any, dataset: "xr.Dataset", x: "xr.DataArray") -> None:
    values, _, result, reached = _cells_of(dataset, x)
    for code, name in enumerate(OUTCOMES):
        cells = result == code
        if name in _OTHERS and cells.any():
            marker, label = _OTHERS[name]
            # Symbols of their own beside the points, black: they are no plateau times.
            axes.semilogy(values[cells], reached[cells], marker, color="k", ms=7, label=label)


def _draw_bound(axes: Any, dataset: "xr.Dataset", x: "xr.DataArray") -> None:
    bound = scale_lower_bound(dataset, x)
    if bound is not None:
        label = "lower bound, constant free"
        if x.name == MEMORY_AXIS and "decay_rate" in dataset:
            rate = float(dataset["decay_rate"].min())
            label = rf"lower bound $\omega^2 e^{{{rate:.2f}/\omega}}$, constant free"
        axes.semilogy(*bound, ":", color="0.35", lw=1.4, label=label)


def plot_loss_curves(
    dataset: "xr.Dataset",
    *,
    axis: str | None = None,
    memories: int = 6,
    seed: int | None = None,
    ax: "matplotlib.axes.Axes | None" = None,
    **select: Any,
) -> "matplotlib.figure.Figure":
    """Loss against training time on a log scale, for several memories: the plateaus themselves.

    A dot is the exit, a cross the end of a run that did not exit, of which the legend says why.

    **Arguments:**

    - `dataset`: a sweep with recorded curves (`curve_loss`).
    - `axis`: the name of the axis along which runs are drawn, as in [`memjax.fit_scaling_law`][].
    - `memories`: how many of its values to draw, evenly chosen.
    - `seed`: the seed whose runs are drawn; by default the first.
    - `ax`: the axes to draw in; by default those of a new figure.
    - `select`: the value of any other dimension; by default the first. The title says which it is,
        where there are several.

    **Returns:**

    A matplotlib figure. Save it with `figure.savefig(path)`.

    **Raises:**

    `ValueError` for a dataset without curves or that axis, or a selection that is not there.
    """
    check_integer("memories", memories)
    x = find_axis(dataset, axis)
    dims = dataset["time"].dims
    needed = {"loss": dims, "time_reached": dims, "curve_loss": (*dims, "training_time")}
    check_dataset("dataset", dataset, needed, "memjax.sweep with `curve_times`")
    if seed is not None:
        select["seed"] = seed
    dataset, words = _select(dataset, x, select, x.dims)
    ascending = np.argsort(x.values, kind="stable")
    chosen = ascending[choose_evenly(x.size, memories)]
    shades = matplotlib.colormaps["viridis"](np.linspace(0.0, 0.82, len(chosen)))
    with panels(ax, 1, 1, (5.2, 3.4)) as grid:
        axes = grid[0, 0]
        handles = []
        for rank, (index, shade) in enumerate(zip(chosen, shades, strict=True)):
            run = dataset.isel({x.dims[0]: index})
            times = run["training_time"].values
            seen = np.isfinite(run["curve_loss"].values)
            reached = float(run["time_reached"])
            ends = np.append(times[seen], reached)
            losses = np.append(run["curve_loss"].values[seen], float(run["loss"]))
            line = {"color": shade, "ls": DASHES[rank % len(DASHES)], "lw": 1.4}
            axes.semilogx(ends, losses, **line)
            code = run["result"].item()
            exited = code == EXITED
            axes.semilogx(ends[-1:], losses[-1:], "o" if exited else "x", color=shade, ms=4.5)
            name = r"$1/\omega$" if _label(x) == MEMORY else x.name
            label = f"{name} = {float(x.values[index]):g}"
            if not exited:
                label += f" ({_name_outcome(code)})"
            handles.append(matplotlib.lines.Line2D([], [], label=label, **line))
        axes.set(xlabel=r"training time $\tau$", ylabel=r"loss $J$")
        axes.legend(handles=handles)
        _entitle(axes, words)
    return figure_of(grid)


def plot_plateau(
    plateau: Plateau, *, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.figure.Figure":
    """Loss against training time of one measurement, on a logarithmic axis of time.

    A dot is the exit, a cross the end of a run that did not exit, of which the legend says why.

    **Arguments:**

    - `plateau`: the result of [`memjax.measure_plateau`][] with a `saveat`.
    - `ax`: the axes to draw in; by default those of a new figure.

    **Returns:**

    A matplotlib figure. Save it with `figure.savefig(path)`.

    **Raises:**

    `TypeError` for what is no such result, or no axes, `ValueError` without a curve, or for a batch
    of several.
    """
    hint = "pass that of memjax.measure_plateau"
    check_instance("plateau", plateau, Plateau, "a measured plateau", hint)
    if plateau.curve is None:
        raise ValueError(
            "`plateau` must have a curve, got none; measure it with "
            "memjax.measure_plateau(..., saveat=diffrax.SaveAt(ts=...))."
        )
    times = as_host_array("plateau", plateau.curve.times)
    losses = as_host_array("plateau", plateau.curve.loss)
    if losses.ndim != 1:
        raise ValueError(
            f"`plateau` must be a single one, got curves of shape {losses.shape}; take one of them."
        )
    seen = np.isfinite(losses) & (times > 0)
    code, reached = int(plateau.result_code), float(plateau.time_reached)
    with panels(ax, 1, 1, (5.2, 3.2)) as grid:
        axes = grid[0, 0]
        own = look(0, marker="")
        ends = np.append(times[seen], reached)
        axes.semilogx(ends, np.append(losses[seen], float(plateau.loss)), label="loss", **own)
        marker = "o" if code == EXITED else "x"
        end = {"color": own["color"], "ls": "", "marker": marker, "ms": 5}
        label = rf"exit, $\tau$ = {reached:.4g}" if code == EXITED else _name_outcome(code)
        axes.plot(reached, float(plateau.loss), label=label, **end)
        axes.set(xlabel=r"training time $\tau$", ylabel=r"loss $J$")
        axes.legend()
    return figure_of(grid)


def _name_outcome(code: float) -> str:
    """An outcome in words; cells that were not finished, or are missing, have none."""
    known = code in range(len(OUTCOMES))
    return OUTCOMES[int(code)].replace("_", " ") if known else "not finished"
