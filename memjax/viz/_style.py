from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from .._lazy import matplotlib

# Okabe and Ito's colours, safe for colour-blind readers, ordered so that neighbours differ in
# lightness as well; markers and dashes tell the series apart in grey.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DASHES = ("-", (0, (6, 1.5)), (0, (3, 1)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (8, 2)), "-")


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure, without touching the user's own settings."""
    settings: Any = {
        "font.size": 9,
        "axes.labelsize": 9,
        "axes.titlesize": 9,
        "axes.titlelocation": "left",
        "legend.fontsize": 7.5,
        "legend.frameon": False,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.prop_cycle": matplotlib.rcsetup.cycler(color=COLOURS),
        "figure.dpi": 150,
        "savefig.dpi": 200,
        "figure.constrained_layout.use": True,
    }
    with matplotlib.rc_context(settings):
        yield


@contextmanager
def drawing(width: float, height: float) -> "Iterator[matplotlib.figure.Figure]":
    """A figure of a size in inches, in the look of every figure while it is drawn."""
    with style():
        yield matplotlib.figure.Figure(figsize=(width, height))


def look(index: int, **others: Any) -> dict[str, Any]:
    """How the series of an index is drawn: its colour, marker and dashes, the marker hollow."""
    index = index % len(COLOURS)
    own = {"color": COLOURS[index], "marker": MARKERS[index], "ls": DASHES[index]}
    return own | {"mfc": "none", "ms": 4.5, "mew": 0.9, "lw": 1.2} | others


def label_grid(grid: Any, x: str, y: str) -> None:
    """Name the axes of a grid of panels that share them, at its bottom and at its left."""
    for axes in grid[-1]:
        axes.set_xlabel(x)
    for axes in grid[:, 0]:
        axes.set_ylabel(y)
