"""The axis of a sweep along which its times are looked at."""

from collections.abc import Collection, Hashable

import numpy as np

from .._checks import check_dataset, check_instance, shown, unknown_name
from .._lazy import xr

# The coordinate along which the published law is a straight line, and the axis it is one over.
MEMORY, OMEGA = "memory", "omega"


def find_axis(
    dataset: "xr.Dataset", name: str | None, pool: Collection[Hashable] = ("seed",)
) -> "xr.DataArray":
    """The values of an axis of a sweep, by its name.

    **Arguments:**

    - `dataset`: a sweep, with `time` and `result` over the same dimensions.
    - `name`: a dimension with numbers as its coordinate, or a coordinate of numbers along one
        dimension. `"memory"` is one over `omega` where it is not a coordinate itself. By default
        it is the memory where there is one, and else the only axis of several numbers.
    - `pool`: dimensions that are not the axis by default.

    **Returns:**

    A coordinate of finite real numbers along one dimension of `time`.

    **Raises:**

    `ValueError` for another dataset, a name that is none of these, and where no name is given and
    none or several would do.
    """
    check_dataset("dataset", dataset, {"time": (), "result": ()}, "memjax.sweep")
    # Over the same dimensions, each of the other's.
    check_dataset("dataset", dataset, {"result": dataset["time"].dims}, "memjax.sweep")
    check_dataset("dataset", dataset, {"time": dataset["result"].dims}, "memjax.sweep")
    if dataset["time"].size == 0:
        raise ValueError(
            f"`dataset` must hold at least one cell, got {shown(dict(dataset['time'].sizes))}; "
            "select less strictly."
        )
    known = _find_numbers(dataset)
    if name is None:
        name = _choose(dataset, known, pool)
    check_instance("axis", name, str, "a name", "name a numeric axis of the dataset")
    if name not in known:
        raise ValueError(
            f"`axis` must be an axis or a coordinate along one that holds numbers, got "
            f"{shown(name)}; {unknown_name(name, [*known]) if known else 'there is none.'}"
        )
    values = known[name].values
    if not np.all(np.isfinite(values)):
        bad = values[~np.isfinite(values)][0]
        raise ValueError(
            f"`dataset` must have finite values of {name!r}, got {bad}; leave it out by "
            "`dataset.sel` or `dropna`."
        )
    return known[name]


def _find_numbers(dataset: "xr.Dataset") -> dict[str, "xr.DataArray"]:
    """The coordinates of numbers along one dimension, by name."""
    dims = dataset["time"].dims
    found = {
        str(name): values
        for name, values in dataset.coords.items()
        if values.ndim == 1 and values.dims[0] in dims and values.dtype.kind in "iuf"
    }
    # Where sweeps of different memories were joined, the coordinate has holes, or two dimensions.
    whole = MEMORY in found and (found[MEMORY].dims != (OMEGA,) or found[MEMORY].notnull().all())
    if OMEGA in found and not whole:
        with np.errstate(divide="ignore"):
            memory = (1 / found[OMEGA]).rename(MEMORY)
        found[MEMORY] = memory.assign_attrs(long_name="memory 1/omega", units="clock")
    return found


def _choose(
    dataset: "xr.Dataset", known: dict[str, "xr.DataArray"], pool: Collection[Hashable]
) -> str:
    """The name of the axis that is meant where none is given."""
    if MEMORY in known:
        return MEMORY
    axes = [name for name in known if name in dataset.dims and name not in pool]
    several = [name for name in axes if known[name].size > 1]
    candidates = several or axes
    if len(candidates) == 1:
        return candidates[0]
    if not candidates:
        raise ValueError(
            f"`dataset` must have an axis of numbers, got the dimensions "
            f"{shown(tuple(dataset['time'].dims))}; pass that of memjax.sweep, or assign one by "
            "`dataset.assign_coords`."
        )
    raise ValueError(
        f"`axis` must be given where there are several, got None; name one of "
        f"{', '.join(map(repr, candidates))}."
    )


def describe_axis(x: "xr.DataArray") -> str:
    """The name of an axis with its unit."""
    unit = x.attrs.get("units")
    return str(x.attrs.get("long_name", x.name)) + (f" ({unit})" if unit else "")


def add_places(dataset: "xr.Dataset") -> "xr.Dataset":
    """The dataset with places as the values of dimensions that have none."""
    bare = [name for name in dataset["time"].dims if name not in dataset.coords]
    return dataset.assign_coords({name: np.arange(dataset.sizes[name]) for name in bare})


def choose_evenly(count: int, most: int) -> np.ndarray:
    """Places of at most so many of `count` things, evenly chosen."""
    return np.unique(np.linspace(0, count - 1, min(most, count)).round().astype(int))
