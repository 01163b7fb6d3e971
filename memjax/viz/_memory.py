from collections.abc import Mapping, Sequence

import numpy as np

from .._checks import check_dataset
from .._lazy import matplotlib, xr
from ..memory import memory_dataset, MemoryFunction
from ._style import explain, figure_of, label_grid, look, panels

_CLOCK = "time $t$ since the input changed (model's clock)"


def plot_memory_functions(
    memories: "xr.Dataset | Mapping[str, MemoryFunction] | MemoryFunction",
    *,
    ax: "Sequence[matplotlib.axes.Axes] | np.ndarray | None" = None,
) -> "matplotlib.figure.Figure":
    """Memory functions twice: exponentials are straight on the left, power laws on the right.

    The marker on each line is its half-time. Where the supremum was not found, the line is thin:
    it is a lower bound there.

    **Arguments:**

    - `memories`: the dataset of [`memjax.memory_dataset`][], a mapping from labels to
        [`memjax.MemoryFunction`][], or one of these.
    - `ax`: the two axes to draw in; by default those of a new figure.

    **Returns:**

    A matplotlib figure. Save it with `figure.savefig(path)`.

    **Raises:**

    `ValueError` for a dataset without memory functions, or other than two axes.
    """
    if isinstance(memories, MemoryFunction):
        memories = {"memory": memories}
    dataset = memories if isinstance(memories, xr.Dataset) else memory_dataset(memories)
    needed = {"memory": ["functional", "time"], "bounded": ["functional", "time"]}
    needed["half_time"] = ["functional"]
    check_dataset("memories", dataset, needed, "memjax.memory_dataset")
    with panels(ax, 1, 2, (7.2, 3.4), sharey=True) as grid:
        for index, label in enumerate(dataset["functional"].values):
            run = dataset.sel(functional=label).dropna("time", subset=["memory"])
            ts, memory = run["time"].values, run["memory"].values
            # What is 0 has no place on a log scale; the line ends there.
            memory = np.where(memory > 0, memory, np.nan)
            found = np.where(run["bounded"].values > 0, memory, np.nan)
            half = float(run["half_time"])
            marked = look(index, mfc="w", ms=5, mew=1, lw=1.5)
            line = {"color": marked["color"], "ls": marked["ls"]}
            for axes in grid[0]:
                axes.plot(ts, memory, lw=0.5, **line)
                axes.plot(ts, found, lw=1.5, **line)
                if 0 < half < ts[-1]:
                    axes.plot(half, np.nanmax(memory) / 2, **marked)
            grid[0, 1].plot([], [], label=str(label), **marked)
        left, right = grid[0]
        left.set_yscale("log")
        right.set_xscale("log")
        times, memory = dataset["time"].values, dataset["memory"].values
        later, seen = times[times > 0], memory[memory > 0]
        left.set_xlim(0, times.max())
        right.set_xlim(later.min(), later.max())
        # Rounding and underflow would squeeze what there is to see.
        if seen.size:
            left.set_ylim(max(seen.min(), seen.max() * 1e-10) / 2, seen.max() * 2)
        label_grid(grid, _CLOCK, r"memory $M(t)$", ax is not None)
        handles = right.get_legend_handles_labels()[0]
        handles.append(explain("half-time", ls="", marker="o", mfc="w"))
        if not np.all(dataset["bounded"].values[dataset["memory"].notnull().values]):
            handles.append(explain("thin: a lower bound", lw=0.5))
        right.legend(handles=handles)
    return figure_of(grid)
