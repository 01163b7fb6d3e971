from collections.abc import Sequence

import numpy as np

from .._checks import check_instance
from .._lazy import matplotlib
from ..memory import LengthExtension
from ._style import figure_of, look, panels

_LABELS = {"rest": "from rest", "carried": "from a carried state", "noisy": "from a noisy state"}


def plot_length_extension(
    found: LengthExtension, *, ax: "Sequence[matplotlib.axes.Axes] | np.ndarray | None" = None
) -> "matplotlib.figure.Figure":
    """Beyond the length of training: errors or outputs against time, and effective remembrance.

    On the left the mean squared error against time, from each hidden state that the model started
    from, or the root mean square of the outputs if there was no target; the vertical line is the
    length of training. On the right how much the last output depends on the samples before a
    window, with two standard errors, and what the memory function says of it.

    **Arguments:**

    - `found`: the result of [`memjax.length_extension`][].
    - `ax`: the two axes to draw in; by default those of a new figure.

    **Returns:**

    A matplotlib figure. Save it with `figure.savefig(path)`.

    **Raises:**

    `TypeError` for what is no such result, or no axes; `ValueError` for other than two of them.
    """
    hint = "pass that of memjax.length_extension"
    check_instance("found", found, LengthExtension, "a length extension", hint)
    ts = np.asarray(found.ts)
    values, label = found.loss, "mean squared error"
    if values is None:
        values, label = found.output_size, "root mean square of outputs"
    values = np.asarray(values)
    with panels(ax, 1, 2, (7.2, 3.2)) as grid:
        left, right = grid[0]
        for index, (start, row) in enumerate(zip(found.starts, values, strict=True)):
            marked = look(index, markevery=0.12)
            # What is 0 has no place on a log scale.
            row = np.where(row > 0, row, np.nan)
            left.plot(ts[1:], row[1:], label=_LABELS[start], **marked)
        left.axvline(float(found.length), color="0.5", lw=0.8, ls=":", label="length of training")
        left.set(xscale="log", yscale="log", xlabel="time (model's clock)", ylabel=label)
        left.legend()
        # Of the whole input nothing is cut away.
        kept = np.asarray(found.windows) < ts.size
        windows = ts[1] * np.asarray(found.windows)[kept]
        size, error, predicted = (
            np.asarray(each)[kept]
            for each in (found.remembrance, found.remembrance_error, found.predicted)
        )
        right.errorbar(windows, size, 2 * error, label="measured", **look(0, ls="", zorder=3))
        right.plot(windows, predicted, label="memory function", **look(1))
        right.axvline(float(found.length), color="0.5", lw=0.8, ls=":")
        right.set(
            xscale="log",
            yscale="log",
            xlabel="window of the input kept (model's clock)",
            ylabel="effective remembrance",
        )
        right.legend()
    return figure_of(grid)
