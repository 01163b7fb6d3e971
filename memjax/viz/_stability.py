from collections.abc import Sequence

import numpy as np

from .._checks import check_dataset
from .._lazy import matplotlib, xr
from ._style import beside, explain, figure_of, label_grid, look, panels, place_legend

LINES = ("width", "radius", "seed")


def plot_perturbation_errors(
    dataset: "xr.Dataset",
    *,
    ax: "matplotlib.axes.Axes | Sequence[matplotlib.axes.Axes] | np.ndarray | None" = None,
) -> "matplotlib.figure.Figure":
    """Error against the radius of the perturbation on log scales, a line a width.

    Hollow markers are the largest error found, dotted lines that of random draws alone. All other
    dimensions make panels: the last of them (such as `parametrisation`) the columns, the others
    the rows. Infinite errors are cut off at the top of a panel, where a filled marker is at the
    first. With a dimension `seed` the lines are medians.

    **Arguments:**

    - `dataset`: `error` over `width`, `radius` and any others, and `drawn` alike if there are
        draws; the coordinates `width` and `radius`.
    - `ax`: the axes to draw in, as many as there are panels, row by row; by default those of a new
        figure.

    **Returns:**

    A matplotlib figure.

    **Raises:**

    `ValueError` without `error` over `width` and `radius`, or for another number of axes.
    """
    source = "memjax.perturbation_error over 'width' and 'radius'"
    check_dataset("dataset", dataset, {"error": ["width", "radius"]}, source)
    names = [name for name in ("error", "drawn") if name in dataset]
    dataset = dataset[names]
    if "seed" in dataset.dims:
        dataset = dataset.median("seed")
    *outer, inner = [None, *(dim for dim in dataset["error"].dims if dim not in LINES)]
    outer = [dim for dim in outer if dim is not None]
    rows = [
        dict(zip(outer, index, strict=True))
        for index in np.ndindex(*(dataset.sizes[d] for d in outer))
    ]
    columns = [{}] if inner is None else [{inner: k} for k in range(dataset.sizes[inner])]
    radii = dataset["radius"].values
    size = (1.4 + 2.3 * len(columns), 0.9 + 1.9 * len(rows))
    unbounded = False
    with panels(ax, len(rows), len(columns), size, sharex=True, sharey="row") as grid:
        for axes_row, row in zip(grid, rows, strict=True):
            finite = dataset.isel(row)["error"].values
            top = 3 * np.max(finite, where=np.isfinite(finite), initial=0) or 1
            for axes, column in zip(axes_row, columns, strict=True):
                panel = dataset.isel(row | column)
                for index, width in enumerate(dataset["width"].values):
                    curve = panel.sel(width=width)
                    own = look(index, ms=3.5, mew=0.8, label=f"$m$ = {width}")
                    error = curve["error"].transpose("radius").values
                    axes.loglog(radii, _mask_infinite(error), **own)
                    if np.any(np.isinf(error)):
                        first = radii[np.argmax(np.isinf(error))]
                        arrow = {"ls": "", "ms": 5, "clip_on": False}
                        axes.plot(first, top, **beside(own, **arrow))
                        unbounded = True
                    if "drawn" in curve:
                        drawn = curve["drawn"].transpose("radius").values
                        axes.loglog(radii, _mask_infinite(drawn), **beside(own, lw=1.2))
                if np.any(np.isinf(panel["error"].values)):
                    axes.set_ylim(top=top)
                title = [str(dataset[dim].values[k]) for dim, k in (row | column).items()]
                if title:
                    axes.set_title(", ".join(title))
        x, y = r"radius of the perturbation $\beta$", r"largest error $E_m(\beta)$"
        label_grid(grid, x, y, ax is not None)
        handles = [*grid[0, 0].get_legend_handles_labels()[0]]
        if "drawn" in dataset:
            handles.append(explain("random draws", ls=":", marker="o", ms=2.2))
        if unbounded:
            handles.append(explain("infinite from here", ls="", marker="o", ms=5))
        place_legend(ax, grid, handles, "right upper")
    return figure_of(grid)


def plot_stability_criterion(
    dataset: "xr.Dataset", *, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.figure.Figure":
    r"""The criterion $g(\beta)$ on log scales, a line a reparametrisation.

    The dotted line is $g = \beta$, up to which every mode changes by less than the radius. Maps
    whose $g$ is infinite at every radius have no line, and are named in the legend.

    **Arguments:**

    - `dataset`: `growth` over `reparametrisation` and `radius`, from
        [`memjax.stability_criterion`][], with both coordinates.
    - `ax`: the axes to draw in; by default those of a new figure.

    **Returns:**

    A matplotlib figure.

    **Raises:**

    `ValueError` without `growth` over these dimensions.
    """
    source = "memjax.stability_criterion over 'reparametrisation' and 'radius'"
    check_dataset("dataset", dataset, {"growth": ["reparametrisation", "radius"]}, source)
    radii = dataset["radius"].values
    with panels(ax, 1, 1, (5.2, 4.0)) as grid:
        axes = grid[0, 0]
        for index, name in enumerate(dataset["reparametrisation"].values):
            growth = dataset["growth"].sel(reparametrisation=name).values
            unstable = np.all(np.isinf(growth[radii > 0]))
            label = f"{name} (infinite)" if unstable else str(name)
            own = look(index, ms=3.5, mew=0.8, lw=1.4, markevery=max(1, radii.size // 10))
            axes.loglog(radii, _mask_infinite(growth), label=label, **own)
        axes.loglog(radii, radii, ":", color="0.35", lw=1.2, label=r"$g = \beta$")
        axes.set(
            xlabel=r"radius $\beta$ (units of the free weights)",
            ylabel=r"relative change of a mode $g(\beta)$",
        )
        axes.legend()
    return figure_of(grid)


def _mask_infinite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)
