"""The figures of a report, by Bokeh: points that tell what they are, a click for the curve, and
filters. It draws 20,000 points on a canvas at once, is one Python package without a server, and its
script may be written into the page, so that the page works without a network."""

import importlib
import importlib.resources
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._checks import shown
from .._lazy import bokeh
from ..plateaus import choose_evenly
from ..viz import COLOURS
from ._contents import Axis, Contents

# So many values of an axis are chosen from a list; of more numbers, a range.
_LISTED = 40
# At most so many values of the dimension of colours have an entry in the legend.
_NAMED = 12
# Bokeh's markers for the values of the dimension of colours, and for what did not exit.
_MARKERS = ("circle", "square", "triangle", "diamond", "inverted_triangle", "plus", "hex")
_OTHERS = {
    "converged": "y",
    "max time reached": "cross",
    "max steps reached": "cross",
    "unresolved": "x",
    "diverged": "asterisk",
    "undecided": "star",
    "invalid": "dash",
}
_WIDTH = 760


def draw(contents: Contents) -> Any:
    """The figures and filters of a report, as a layout of Bokeh."""
    shade, mark = _choose_looks(contents)
    runs = bokeh.models.ColumnDataSource(_list_runs(contents, shade, mark))
    laws = bokeh.models.ColumnDataSource(_list_laws(contents, shade))
    some = {name: bokeh.models.BooleanFilter() for name in ("runs", "laws")}
    views = {name: bokeh.models.CDSView(filter=each) for name, each in some.items()}
    curve = bokeh.models.ColumnDataSource({"xs": [], "ys": [], "colour": [], "dash": []})
    ends = bokeh.models.ColumnDataSource({"x": [], "y": [], "colour": []})
    said = bokeh.models.Div(width=_WIDTH)

    law = _draw_law(contents, runs, laws, views, shade, mark)
    panels: list[Any] = [law]
    curves = None
    if contents.curves is not None:
        panels.append(curves := _draw_curves(contents, curve, ends))
    panels.append(said)
    names = {f"axis{k}": axis.name for k, axis in enumerate(contents.axes)}
    names |= {f"value{k}": words for k, words in enumerate(contents.measured)}
    names |= {"outcome": "outcome", "precision": "precision"}
    chosen = {
        "runs": runs,
        "curve": curve,
        "ends": ends,
        "said": said,
        "names": list(names.items()),
        "curves": curves,
    }
    runs.selected.js_on_change("indices", _make_callback("select", chosen))

    widgets, rules = _make_filters(contents)
    count = bokeh.models.Div(text=_count(contents))
    applied = {"runs": runs, "laws": laws, "some": some["runs"], "lines": some["laws"]}
    applied |= {"rules": rules, "count": count, "words": _count(contents)}
    apply = _make_callback("filter", applied)
    for widget, (event, _) in widgets:
        widget.js_on_change(event, apply)
    hint = bokeh.models.Div(text="Choose values to show; with Ctrl or Shift, several.")
    clear = bokeh.models.Button(label="Show all", width=120)
    fresh = [(widget, event, value) for widget, (event, value) in widgets]
    clear.js_on_event("button_click", _make_callback("clear", {"fresh": fresh}))
    choices = [widget for widget, _ in widgets]
    column = bokeh.layouts.column
    return bokeh.layouts.row(column(*panels), column(hint, *choices, clear, count, width=260))


def _make_callback(name: str, arguments: dict[str, Any]) -> Any:
    """What a browser runs: a script of this folder, whose arguments have these names."""
    file = importlib.resources.files("memjax.report") / f"{name}.js"
    return bokeh.models.CustomJS(args=arguments, code=file.read_text(encoding="utf-8"))


def _count(contents: Contents) -> str:
    return f"{contents.x.size} of {contents.x.size} runs are shown."


# --- How runs look ------------------------------------------------------------------------------


def _choose_looks(contents: Contents) -> tuple[list[str], list[str]]:
    """The colour and the marker of every value of the dimension of colours."""
    values = _hue(contents).values if contents.hue is not None else [None]
    if len(values) <= len(COLOURS):
        shades: list[str] = [*COLOURS]
    else:
        places = np.linspace(0, 225, len(values)).astype(int)
        shades = [bokeh.palettes.Viridis256[place] for place in places]
    marks = [_MARKERS[k % len(_MARKERS)] for k in range(len(values))]
    return shades[: len(values)], marks


def _hue(contents: Contents) -> Axis:
    return next(axis for axis in contents.axes if axis.name == contents.hue)


def _list_runs(contents: Contents, shade: list[str], mark: list[str]) -> dict[str, Any]:
    """The columns of the runs: what is drawn, and what is told of a run."""
    places = np.zeros(contents.x.size, int)
    if contents.hue is not None:
        places = _hue(contents).places
    heights = np.where(
        contents.exited,
        contents.measured["time"],
        contents.measured["time reached"],
    )
    own = [mark[place] for place in places]
    marks = [
        own[k] if done else _OTHERS.get(outcome, "dot")
        for k, (done, outcome) in enumerate(
            zip(contents.exited, contents.outcomes.tolist(), strict=True)
        )
    ]
    columns: dict[str, Any] = {
        "x": contents.x,
        # On a logarithmic axis nothing else has a place.
        "y": np.where(np.isfinite(heights) & (heights > 0), heights, np.nan),
        "colour": [shade[place] for place in places],
        "marker": marks,
        "outcome": contents.outcomes.tolist(),
        "precision": contents.precisions.tolist(),
    }
    for k, axis in enumerate(contents.axes):
        columns[f"axis{k}"] = _take(axis.values, axis.places)
        columns[f"place{k}"] = axis.places.astype(np.int32)
    for k, values in enumerate(contents.measured.values()):
        wide = values.dtype.kind == "f"
        columns[f"value{k}"] = values.astype(float if wide else np.int32)
    return columns


def _take(values: list[Any], places: np.ndarray) -> Any:
    if all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in values):
        return np.asarray(values, float)[places]
    return [str(values[place]) for place in places]


def _list_laws(contents: Contents, shade: list[str]) -> dict[str, Any]:
    laws = contents.laws
    places = laws.places.get(contents.hue or "", np.zeros(len(laws.xs), int))
    dashes = ("solid", "dashed", "dotdash", "dotted", "dashdot")
    columns: dict[str, Any] = {
        "xs": laws.xs,
        "ys": laws.ys,
        "colour": [shade[place] for place in places],
        "dash": [dashes[place % len(dashes)] for place in places],
        "slope": [f"{s:.4g} [{a:.4g}, {b:.4g}]" for s, a, b in laws.slopes],
    }
    for k, axis in enumerate(contents.axes):
        if axis.name in laws.places:
            columns[f"axis{k}"] = _take(axis.values, laws.places[axis.name])
            columns[f"place{k}"] = laws.places[axis.name].astype(np.int32)
    return columns


# --- Figures --------------------------------------------------------------------------------------


def _draw_law(
    contents: Contents,
    runs: Any,
    laws: Any,
    views: Mapping[str, Any],
    shade: list[str],
    mark: list[str],
) -> Any:
    plot = bokeh.plotting.figure(
        width=_WIDTH,
        height=480,
        y_axis_type="log",
        x_axis_label=contents.title,
        y_axis_label="plateau time (units of training time)",
        tools="pan,wheel_zoom,box_zoom,box_select,reset,save",
        active_scroll=None,
        output_backend="canvas",
    )
    points = plot.scatter(
        "x",
        "y",
        source=runs,
        view=views["runs"],
        marker="marker",
        line_color="colour",
        fill_color=None,
        size=7,
        nonselection_line_alpha=0.25,
        selection_line_width=2.5,
    )
    lines = plot.multi_line(
        "xs", "ys", source=laws, view=views["laws"], line_color="colour", line_dash="dash",
        line_width=1.6,
    )  # fmt: skip
    entries = []
    if contents.hue is not None:
        values = _hue(contents).values
        for place in choose_evenly(len(values), _NAMED):
            sample = _draw_sample(plot, mark[place], shade[place])
            entries.append((f"{contents.hue} = {name_value(values[place])}", [sample]))
    for outcome in sorted(set(contents.outcomes[~contents.exited].tolist())):
        sample = _draw_sample(plot, _OTHERS.get(outcome, "dot"), "black")
        entries.append((f"{outcome} (at the time reached)", [sample]))
    if contents.bound is not None:
        bound = plot.line(*contents.bound, line_color="#555555", line_dash="dotted", line_width=2)
        entries.append(("lower bound, constant free", [bound]))
    if entries:
        style = {"location": "top_left", "border_line_alpha": 0.3, "ncols": 3}
        plot.add_layout(bokeh.models.Legend(items=entries, **style), "below")
    several = [k for k, axis in enumerate(contents.axes) if len(axis.values) > 1]
    axes = [(contents.axes[k].name, f"axis{k}") for k in several]
    values = [
        (words, f"value{k}")
        for k, words in enumerate(contents.measured)
        if words in ("time", "loss at the end", "steps")
    ]
    told = [*axes, ("outcome", "outcome"), ("precision", "precision"), *values]
    law = [("slope", "slope"), *((name, column) for name, column in axes if column in laws.data)]
    plot.add_tools(
        bokeh.models.HoverTool(renderers=[points], limit=1, **_tell(told, runs)),
        bokeh.models.HoverTool(renderers=[lines], limit=1, **_tell(law, laws)),
        tap := bokeh.models.TapTool(renderers=[points]),
    )
    plot.toolbar.active_tap = tap
    plot.toolbar.logo = None
    return plot


def _draw_sample(plot: Any, marker: str, colour: str) -> Any:
    """What an entry of the legend shows: a point that has no place."""
    nowhere = [math.nan]
    return plot.scatter(nowhere, nowhere, marker=marker, line_color=colour, fill_color=None, size=7)


def _tell(columns: list[tuple[str, str]], source: Any) -> dict[str, Any]:
    """What is told at the pointer, numbers with six digits."""
    numbers = {name for _, name in columns if isinstance(source.data[name], np.ndarray)}
    tips = [(words, f"@{name}" + "{%.6g}" * (name in numbers)) for words, name in columns]
    return {"tooltips": tips, "formatters": {f"@{name}": "printf" for name in numbers}}


def name_value(value: Any) -> str:
    """A value of an axis in words."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _draw_curves(contents: Contents, curve: Any, ends: Any) -> Any:
    assert contents.curves is not None
    reached = contents.measured["time reached"]
    times = np.concatenate([contents.curves.times, reached[np.isfinite(reached)]])
    times = times[times > 0]
    plot = bokeh.plotting.figure(
        width=_WIDTH,
        height=300,
        x_axis_type="log",
        # Before a run is clicked there are no data that would say it.
        x_range=bokeh.models.Range1d(*(float(end) for end in (np.min(times), np.max(times)))),
        y_range=bokeh.models.Range1d(0, 1),
        x_axis_label="training time",
        y_axis_label="loss",
        visible=False,
        tools="pan,wheel_zoom,box_zoom,reset,save",
        active_scroll=None,
    )
    plot.multi_line("xs", "ys", source=curve, line_color="colour", line_dash="dash", line_width=1.6)
    plot.scatter("x", "y", source=ends, color="colour", size=7)
    plot.toolbar.logo = None
    return plot


# --- Filters --------------------------------------------------------------------------------------


def _make_filters(contents: Contents) -> tuple[list[Any], list[Any]]:
    """The widgets, each with the event that tells of a change and the value that shows all, and the
    rules that they stand for: a column, its kind, and a widget."""
    widgets, rules = [], []

    def offer(name: str, column: str, options: list[tuple[str, str]]) -> None:
        size = min(len(options), 6)
        widget = bokeh.models.MultiSelect(
            title=name, options=options, value=[], size=size, width=240
        )
        widgets.append((widget, ("value", [])))
        rules.append({"column": column, "widget": widget, "range": False})

    for k, axis in enumerate(contents.axes):
        if len(axis.values) < 2:
            continue
        ordered = all(isinstance(value, (int, float)) for value in axis.values)
        if len(axis.values) <= _LISTED or not ordered:
            offer(
                axis.name,
                f"place{k}",
                [(str(place), name_value(value)) for place, value in enumerate(axis.values)],
            )
            continue
        low, high = float(min(axis.values)), float(max(axis.values))
        widget = bokeh.models.RangeSlider(
            title=axis.name, start=low, end=high, value=(low, high), step=(high - low) / 1000,
            width=230, format="0.[0000]",
        )  # fmt: skip
        widgets.append((widget, ("value", [low, high])))
        rules.append({"column": f"axis{k}", "widget": widget, "range": True})
    for name, values in (("outcome", contents.outcomes), ("precision", contents.precisions)):
        found, counts = np.unique(values, return_counts=True)
        if found.size > 1:
            options = [
                (word, f"{word} ({count})")
                for word, count in zip(found.tolist(), counts.tolist(), strict=True)
            ]
            offer(name, name, options)
    return widgets, rules


def check_bokeh() -> None:
    """Refuse, before any work is done, where Bokeh is not there."""
    try:
        importlib.import_module("bokeh")
    except ImportError as error:
        raise ImportError(
            f"a report needs Bokeh, got {shown(str(error))}; run `pip install bokeh`."
        ) from error
