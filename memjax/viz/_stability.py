import numpy as np

from .._checks import check_dataset
from .._lazy import matplotlib, xr
from ._style import drawing, label_grid, look

LINES = ("width", "radius", "seed")


def plot_perturbation_errors(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Error against the radius of the perturbation on log scales, a line a width.

    Solid lines are the largest error found, dotted ones that of random draws alone. All other
    dimensions make panels: the last of them (such as `parametrisation`) the columns, the others
    the rows. Infinite errors are cut off at the top of a panel, where an arrow marks the first.
    With a dimension `seed` the lines are medians.

    **Arguments:**

    - `dataset`: `error` over `width`, `radius` and any others, and `drawn` alike if there are
        draws; the coordinates `width` and `radius`.

    **Returns:**

    A matplotlib figure.

    **Raises:**

    `ValueError` without `error` over `width` and `radius`.
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
    with drawing(1.4 + 2.3 * len(columns), 0.9 + 1.9 * len(rows)) as figure:
        grid = figure.subplots(len(rows), len(columns), sharex=True, sharey="row", squeeze=False)
        for axes_row, row in zip(grid, rows, strict=True):
            finite = dataset.isel(row)["error"].values
            top = 3 * np.max(finite, where=np.isfinite(finite), initial=0) or 1
            for axes, column in zip(axes_row, columns, strict=True):
                panel = dataset.isel(row | column)
                for index, width in enumerate(dataset["width"].values):
                    curve = panel.sel(width=width)
                    own = look(index, ls="-", ms=2.5, mew=0.7, lw=1.3, label=f"$m$ = {width}")
                    colour = {"color": own["color"]}
                    error = curve["error"].transpose("radius").values
                    axes.loglog(radii, _mask_infinite(error), **own)
                    if np.any(np.isinf(error)):
                        first = radii[np.argmax(np.isinf(error))]
                        axes.plot(first, top, "^", ms=5, clip_on=False, **colour)
                    if "drawn" in curve:
                        drawn = curve["drawn"].transpose("radius").values
                        axes.loglog(radii, _mask_infinite(drawn), ":", lw=1.3, **colour)
                if np.any(np.isinf(panel["error"].values)):
                    axes.set_ylim(top=top)
                title = [str(dataset[dim].values[k]) for dim, k in (row | column).items()]
                axes.set_title(", ".join(title))
        label_grid(grid, r"radius of the perturbation $\beta$", r"largest error $E_m(\beta)$")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        if "drawn" in dataset:
            (line,) = grid[0, 0].plot([], [], ":", color="0.35", lw=1.3)
            handles, labels = [*handles, line], [*labels, "random draws"]
        figure.legend(handles, labels, loc="outside right upper")
    return figure


def plot_stability_criterion(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    r"""The criterion $g(\beta)$ on log scales, a line a reparametrisation.

    The dotted line is $g = \beta$, up to which every mode changes by less than the radius. Maps
    whose $g$ is infinite at every radius have no line, and are named in the legend.

    **Arguments:**

    - `dataset`: `growth` over `reparametrisation` and `radius`, from
        [`memjax.stability_criterion`][], with both coordinates.

    **Returns:**

    A matplotlib figure.

    **Raises:**

    `ValueError` without `growth` over these dimensions.
    """
    source = "memjax.stability_criterion over 'reparametrisation' and 'radius'"
    check_dataset("dataset", dataset, {"growth": ["reparametrisation", "radius"]}, source)
    radii = dataset["radius"].values
    with drawing(5.2, 4.0) as figure:
        axes = figure.subplots()
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
    return figure


def _mask_infinite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)
