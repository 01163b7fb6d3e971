import string
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from .._checks import check_instance
from .._lazy import matplotlib
from ._settings import chosen_settings

# Okabe and Ito's colours, safe for colour-blind readers, ordered so that neighbours differ in
# lightness as well; markers and dashes tell the series apart in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = (
    "-",
    (0, (6, 1.5)),
    (0, (3, 1)),
    (0, (1, 1)),
    (0, (5, 1, 1, 1)),
    (0, (5, 1, 1, 1, 1, 1)),
    (0, (10, 3)),
)

# The widths of lines and sizes of markers in the code are for these settings.
_WIDTH, _SIZE = 1.2, 4.5


def _own_settings() -> Any:
    """The look of every figure."""
    return {
        "font.size": 9,
        "axes.labelsize": "medium",
        "axes.titlesize": "medium",
        "axes.titlelocation": "left",
        "legend.fontsize": "small",
        "legend.title_fontsize": "small",
        "legend.frameon": False,
        "xtick.labelsize": "small",
        "ytick.labelsize": "small",
        "lines.linewidth": _WIDTH,
        "lines.markersize": _SIZE,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": _cycle(),
        "figure.dpi": 150,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 300,
        # Journals refuse Type 3. Text in an SVG stays text, in the reader's fonts.
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
        "svg.fonttype": "none",
    }


def _cycle() -> Any:
    return matplotlib.rcsetup.cycler(color=COLOURS)


@contextmanager
def drawing(
    width: float, height: float, settings: Mapping[str, Any] | None = None
) -> "Iterator[matplotlib.figure.Figure]":
    """A figure of a size in inches, in the look of every figure while it is drawn, with some
    settings of its own. Panels get their letters at the end, where there are several."""
    from ._figure import StyledFigure

    chosen = chosen_settings()
    everything = _own_settings() | dict(settings or {}) | chosen
    with matplotlib.rc_context(everything):
        size = chosen.get("figure.figsize", (width, height))
        figure = StyledFigure(figsize=size, settings=everything)
        yield figure
        _letter([axes for axes in figure.axes if axes.axison])


@contextmanager
def panels(
    ax: Any, rows: int, columns: int, size: tuple[float, float], **options: Any
) -> Iterator[np.ndarray]:
    """A grid of axes to draw in: of a figure of a size in inches, or those that were passed."""
    if ax is None:
        with drawing(*size) as figure:
            yield figure.subplots(rows, columns, squeeze=False, **options)
    else:
        grid = _as_axes(ax, rows * columns).reshape(rows, columns)
        # The axes are the user's, and so is the look of all but the series.
        settings: Any = {"axes.prop_cycle": _cycle()} | chosen_settings()
        with matplotlib.rc_context(settings):
            yield grid


def _as_axes(ax: Any, count: int) -> np.ndarray:
    """The axes that were passed, one for each panel."""
    kind = matplotlib.axes.Axes
    listed = isinstance(ax, (Sequence, np.ndarray)) and not isinstance(ax, str)
    given = list(np.ravel(np.asarray(ax, dtype=object))) if listed else [ax]
    hint = f"make them by matplotlib.pyplot.subplots({'' if count == 1 else f'1, {count}'})"
    wanted = "axes of matplotlib" if count == 1 else f"{count} axes of matplotlib"
    for value in given:
        check_instance("ax", value, kind, wanted, hint)
    if len(given) != count:
        raise ValueError(
            f"`ax` must have as many axes as the figure has panels, {count}, got {len(given)}; "
            f"{hint}."
        )
    axes = np.empty(count, dtype=object)
    axes[:] = given
    return axes


def figure_of(grid: np.ndarray) -> "matplotlib.figure.Figure":
    """The figure of a grid of axes, also where they are in a part of it."""
    part: Any = grid.flat[0].figure
    return part.figure or part


def _letter(panels: Sequence[Any]) -> None:
    """Letters before the titles of panels, in the order in which they were made."""
    if len(panels) < 2:
        return
    where = matplotlib.rcParams["axes.titlelocation"]
    names = [a + b for a in ("", *string.ascii_lowercase) for b in string.ascii_lowercase]
    for axes, name in zip(panels, names, strict=False):
        axes.set_title(f"({name}) {axes.get_title(loc=where)}".rstrip(), loc=where)


def look(index: int, **others: Any) -> dict[str, Any]:
    """How the series of an index is drawn: its colour, marker and dashes, the marker hollow. Where
    all colours were used before, the marker is filled and the dashes are others."""
    cycle = matplotlib.rcParams["axes.prop_cycle"].by_key()
    colours = cycle.get("color", COLOURS)
    markers = cycle.get("marker", MARKERS)
    dashes = cycle.get("linestyle", DASHES)
    again = index // min(len(colours), len(markers), len(dashes))
    colour = colours[index % len(colours)]
    own = {
        "color": colour,
        "marker": markers[index % len(markers)],
        "ls": dashes[(index + again) % len(dashes)],
        "mfc": colour if again % 2 else "none",
        "ms": _SIZE,
        "mew": 0.9,
        "lw": _WIDTH,
    }
    own |= others
    own["lw"] *= matplotlib.rcParams["lines.linewidth"] / _WIDTH
    own["ms"] *= matplotlib.rcParams["lines.markersize"] / _SIZE
    return own


def beside(own: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """How what belongs to a series is drawn, such as a bound: in its colour, dotted, its marker
    small and filled."""
    kept = {name: own[name] for name in ("color", "marker")}
    return {**kept, "mfc": own["color"], "ms": 2.2, "mew": 0, "ls": ":", "lw": 0.9} | others


def published(own: Mapping[str, Any], **others: Any) -> dict[str, Any]:
    """How published numbers of a series are drawn: its marker, filled, with a black edge."""
    kept = {name: own[name] for name in ("color", "marker")}
    edge = {"mfc": own["color"], "mec": "black", "mew": 0.6, "ms": 5, "ls": "", "zorder": 3}
    return kept | edge | others


def mark_stopped(axes: Any, x: np.ndarray, y: np.ndarray, own: Mapping[str, Any]) -> list[Any]:
    """Draw what did not exit, at the time that it reached: the marker of its series with a cross. A
    line for the legend, if there is any."""
    if not np.size(x):
        return []
    axes.plot(x, y, **{**own, "ls": ""})
    axes.plot(x, y, ls="", marker="x", color=own["color"], ms=own["ms"])
    return [explain("did not exit", ls="", marker="x", ms=own["ms"])]


def explain(label: str, **look: Any) -> "matplotlib.lines.Line2D":
    """A line of a legend for what is drawn alike in all series, in grey."""
    style: Any = {"color": "0.35", "label": label, **look}
    return matplotlib.lines.Line2D([], [], **style)


def spread_marks(values: Any, count: int = 8) -> list[int]:
    """The places of some values that are evenly spaced on a logarithmic axis, for `markevery`:
    matplotlib's own spacing is along the line, and crowds where a line is noisy."""
    places = np.log(np.maximum(np.asarray(values, float), np.finfo(float).tiny))
    wanted = np.linspace(places[0], places[-1], count)
    return np.unique(np.abs(places[:, None] - wanted).argmin(0)).tolist()


def label_grid(grid: np.ndarray, x: str, y: str, every: bool = False) -> None:
    """Name the axes of a grid of panels that share them, at its bottom and at its left, or those of
    every panel."""
    for axes in grid.flat if every else grid[-1]:
        axes.set_xlabel(x)
    for axes in grid.flat if every else grid[:, 0]:
        axes.set_ylabel(y)


def place_legend(ax: Any, grid: np.ndarray, handles: Iterable[Any], loc: str) -> None:
    """A legend outside the panels of a figure of ours; inside the last panel of one's own."""
    if ax is None:
        outside: Any = f"outside {loc}"
        figure_of(grid).legend(handles=list(handles), loc=outside)
    else:
        grid.flat[-1].legend(handles=list(handles))
