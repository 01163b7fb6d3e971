"""What a report shows of the dataset of a sweep, as plain arrays: runs, laws and curves."""

from typing import Any, NamedTuple

import numpy as np

from .._checks import check_dataset
from .._lazy import xr
from ..plateaus import (
    add_places,
    choose_evenly,
    describe_axis,
    EXITED,
    find_axis,
    fit_scaling_law,
    OUTCOMES,
    scale_lower_bound,
)
from ._curves import Curves, pack_curves
from ._tables import Table, tabulate_fit

# How many runs a page draws, at most.
_MOST_RUNS = 30_000
# How many lines of fits.
_MOST_LAWS = 2_000
_SOURCE = "memjax.sweep"
# What is shown of a run besides its axes, where the dataset has it.
_MEASURED = {
    "time": "time",
    "time_reached": "time reached",
    "initial_loss": "loss at the start",
    "loss": "loss at the end",
    "distance": "distance of the weights",
    "rounding": "error of time by rounding",
    "num_steps": "steps",
    "num_rejected_steps": "rejected steps",
}


class Axis(NamedTuple):
    """A dimension of a sweep: its name, its values, and of each run that is shown which of them."""

    name: str
    values: list[Any]
    places: np.ndarray


class Laws(NamedTuple):
    """Fitted lines: of each group its values' places along the axes, the ends of the line, and the
    slope with its interval."""

    places: dict[str, np.ndarray]
    xs: list[list[float]]
    ys: list[list[float]]
    slopes: np.ndarray


class Contents(NamedTuple):
    """What a report shows.

    **Attributes:**

    - `title`: what the horizontal axis is.
    - `x`: the value of the axis of each run that is shown.
    - `axes`: the dimensions.
    - `hue`: the name of the dimension by which runs are coloured, or `None`.
    - `outcomes`, `precisions`: of each run, in words.
    - `measured`: of each run, by what it is called.
    - `exited`: whether a run exited.
    - `laws`, `bound`: the fitted lines, and the published bound as two arrays, or `None`.
    - `table`: the fits in words.
    - `curves`: the loss curves of the runs, or `None`.
    - `finished`, `total`: how many runs are finished, and how many there are.
    """

    title: str
    x: np.ndarray
    axes: list[Axis]
    hue: str | None
    outcomes: np.ndarray
    precisions: np.ndarray
    measured: dict[str, np.ndarray]
    exited: np.ndarray
    laws: Laws
    bound: tuple[np.ndarray, np.ndarray] | None
    table: Table
    curves: Curves | None
    finished: int
    total: int


def collect(dataset: "xr.Dataset", axis: str | None = None) -> Contents:
    """What a report shows of a dataset.

    Of more runs than a page holds, some are left out, evenly; fits and tables are of all.

    **Raises:**

    `ValueError` for another dataset, and for an axis that is not there or not clear.
    """
    x = find_axis(dataset, axis)
    dims = tuple(map(str, dataset["time"].dims))
    check_dataset("dataset", dataset, dict.fromkeys(["time", "time_reached"], dims), _SOURCE)
    dataset = add_places(dataset)
    fit = fit_scaling_law(dataset, str(x.name))

    results = dataset["result"].transpose(*dims).values
    # Cells that were not finished, or are missing after a join, have no outcome.
    known = np.isin(results, range(len(OUTCOMES)))
    cells = np.flatnonzero(known)
    shown = cells[choose_evenly(cells.size, _MOST_RUNS)]
    places = np.unravel_index(shown, results.shape)

    # The dimension of the axis has the values that are drawn, such as the memory of an omega.
    axes = [
        Axis(str(values.name), values.values.tolist(), place)
        for values, place in zip(
            [x if x.dims == (name,) else dataset[name] for name in dims], places, strict=True
        )
    ]
    codes = results.ravel()[shown].astype(int)
    measured = {
        words: dataset[name].transpose(*dims).values.ravel()[shown]
        for name, words in _MEASURED.items()
        if name in dataset and set(dataset[name].dims) == set(dims)
    }
    several = [name for name in dims if dataset.sizes[name] > 1 and name not in (*x.dims, "seed")]
    hue = "width" if "width" in several else several[0] if several else None
    return Contents(
        title=describe_axis(x),
        x=np.asarray(x.values, float)[places[dims.index(x.dims[0])]],
        axes=axes,
        hue=hue,
        outcomes=np.array([name.replace("_", " ") for name in OUTCOMES])[codes],
        precisions=_name_precisions(dataset, dims, shown),
        measured=measured,
        exited=codes == EXITED,
        laws=_collect_laws(fit, dataset, x),
        bound=scale_lower_bound(dataset, x),
        table=tabulate_fit(fit, dataset),
        curves=_collect_curves(dataset, dims, shown),
        finished=int(cells.size),
        total=int(results.size),
    )


def _name_precisions(dataset: "xr.Dataset", dims: tuple[str, ...], shown: np.ndarray) -> np.ndarray:
    if "precision" not in dataset:
        return np.full(shown.size, str(dataset.attrs.get("dtype", "")))
    codes = dataset["precision"].transpose(*dims).values.ravel()[shown]
    words = str(dataset["precision"].attrs.get("flag_meanings", "float64 double-double")).split()
    return np.array([words[code] if 0 <= code < len(words) else "" for code in codes], str)


def _collect_laws(fit: "xr.Dataset", dataset: "xr.Dataset", x: "xr.DataArray") -> Laws:
    law = fit.sel(correction="none")
    groups = tuple(map(str, law["slope"].dims))
    slope, low, high, intercept, start, stop = (
        law[name].transpose(*groups).values.ravel()
        for name in (
            "slope", "slope_low", "slope_high", "intercept", f"{x.name}_low", f"{x.name}_high",
        )
    )  # fmt: skip
    chosen = np.flatnonzero(np.isfinite(slope))
    chosen = chosen[choose_evenly(chosen.size, _MOST_LAWS)]
    shape = tuple(law.sizes[name] for name in groups)
    places = np.unravel_index(chosen, shape) if shape else ()
    ends = [[float(start[k]), float(stop[k])] for k in chosen]
    # Of times up to 1e300 a line may leave what floats hold.
    with np.errstate(over="ignore"):
        ys = [
            [float(np.exp(slope[k] * end + intercept[k])) for end in pair]
            for k, pair in zip(chosen, ends, strict=True)
        ]
    return Laws(
        dict(zip(groups, places, strict=True)),
        ends,
        ys,
        np.stack([slope, low, high], axis=1)[chosen],
    )


def _collect_curves(
    dataset: "xr.Dataset", dims: tuple[str, ...], shown: np.ndarray
) -> Curves | None:
    if "curve_loss" not in dataset or shown.size == 0:
        return None
    (times,) = (name for name in dataset["curve_loss"].dims if name not in dims)
    losses = dataset["curve_loss"].transpose(*dims, times).values
    return pack_curves(dataset[times].values, losses.reshape(-1, losses.shape[-1])[shown])
