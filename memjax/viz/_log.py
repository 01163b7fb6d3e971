from typing import Any

import numpy as np

from .._checks import check_instance
from .._lazy import matplotlib
from ..plateaus import FoundPlateau, FoundPlateaus
from ._style import COLOURS, figure_of, panels

# Into how many parts of log time a log is cut; of each the lowest and the highest entry are drawn.
_PARTS = 1500


def plot_log(
    found: FoundPlateaus, *, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.figure.Figure":
    """Loss against step of a training on log-log axes, with the plateaus that were found.

    The log is grey; of a long one the lowest and the highest entry of each small part are drawn.
    A plateau is a bar from its start to its end at its height, with its place in the table as a
    number; the flat stretch at the end, which may be a floor, is a dashed bar with an arrow.
    Where losses are not all above 0 their axis is linear. A step 0 is drawn at half the step after
    it.

    **Arguments:**

    - `found`: the result of [`memjax.find_plateaus`][].
    - `ax`: the axes to draw in; by default those of a new figure.

    **Returns:**

    A matplotlib figure. Save it with `figure.savefig(path)`.

    **Raises:**

    `TypeError` for what is no such result, or no axes.
    """
    check_instance(
        "found",
        found,
        FoundPlateaus,
        "what was found in a log",
        "pass that of memjax.find_plateaus",
    )
    first = found.steps[1] / 2 if found.steps[0] == 0 else found.steps[0]
    with panels(ax, 1, 1, (5.2, 3.2)) as grid:
        axes = grid[0, 0]
        steps, losses = _thin(np.maximum(found.steps, first), found.losses)
        axes.plot(steps, losses, "-", color="0.65", lw=0.8, zorder=1, label="loss")
        for place, plateau in enumerate(found.segments, 1):
            _draw(axes, plateau, first, place)
        axes.set_xscale("log")
        if np.all(losses > 0):
            axes.set_yscale("log")
            _label_few_decades(axes, losses)
        axes.set(xlabel="step", ylabel="loss")
        # Room for the numbers above the highest plateau.
        axes.margins(y=0.12)
        axes.legend(loc="best")
    return figure_of(grid)


def _draw(axes: Any, plateau: FoundPlateau, first: float, place: int) -> None:
    """A bar with ticks at the ends that are known, and its number above its middle."""
    start, stop, height = max(plateau.start, first), plateau.stop, plateau.height
    colour = COLOURS[0] if plateau.left else "k"
    line = {"color": colour, "lw": 2.2, "solid_capstyle": "butt", "zorder": 3}
    line |= {} if plateau.left else {"ls": (0, (4, 1.2))}
    label = None
    if plateau.left and place == 1:
        label = "plateau, left"
    elif not plateau.left:
        label = "flat at the end"
    axes.plot([start, stop], [height, height], label=label, **line)
    ends = [start, stop] if plateau.left else [start]
    axes.plot(ends, [height] * len(ends), ls="", marker="|", ms=9, mew=1.6, color=colour, zorder=3)
    if not plateau.left:
        axes.plot([stop], [height], ls="", marker=">", ms=5, color=colour, zorder=3, clip_on=False)
    axes.annotate(
        str(place),
        (np.sqrt(start * stop), height),
        xytext=(0, 6),
        textcoords="offset points",
        ha="center",
        va="bottom",
        color=colour,
        fontweight="bold",
        bbox={"fc": "w", "ec": "none", "pad": 0.8, "alpha": 0.8},
        zorder=4,
    )


def _thin(steps: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A log of at most some thousand entries that looks the same: of each part of log time the
    lowest and the highest entry, in their order."""
    if steps.size <= 2 * _PARTS:
        return steps, losses
    u = np.log(steps)
    part = ((u - u[0]) / (u[-1] - u[0]) * _PARTS).astype(int)
    # Within each part by loss: the ends of the parts are then the lowest and highest entries.
    order = np.lexsort((losses, part))
    edges = np.flatnonzero(np.diff(part[order])) + 1
    ends = np.concatenate([[0], edges, edges - 1, [steps.size - 1]])
    kept = np.unique(order[ends])
    return steps[kept], losses[kept]


def _label_few_decades(axes: Any, losses: np.ndarray) -> None:
    """Numbers on an axis that spans too few decades for powers of ten to be on it."""
    span = losses.max() / losses.min()
    if span >= 30:
        return
    ticker = matplotlib.ticker
    places = [1.0, 2.0, 3.0, 5.0, 7.0] if span >= 2 else list(np.arange(1.0, 10.0, 0.1))
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=places, numticks=9))
    axes.yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    axes.yaxis.set_minor_formatter(ticker.NullFormatter())
