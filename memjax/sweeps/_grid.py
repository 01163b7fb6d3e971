"""The grid of a sweep: the values of its axes, and the cells that they span."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from .._checks import (
    as_list,
    check_choice,
    check_instance,
    shown,
)
from ._variables import RESERVED

ROW = "row of the grid"


@dataclasses.dataclass(frozen=True)
class Grid:
    """The points of a sweep. Those that differ in no static axis share their programs: a cell is
    the combination of the static axes, and the row among the others.

    **Attributes:**

    - `values`: the values of every axis, in the order of the dimensions of the dataset.
    - `static`, `dynamic`: the names of the axes that reach `build` as Python values, and of the
        others.
    """

    values: dict[str, np.ndarray]
    static: tuple[str, ...]
    dynamic: tuple[str, ...]

    @staticmethod
    def build(axes: Any, static: Any) -> "Grid":
        """The grid of checked arguments of [`memjax.sweep`][]."""
        values = _as_axes(axes)
        static = as_list("static", static, "names of axes")
        for name in static:
            check_choice("static", name, list(values), "name an axis")
        fixed = tuple(n for n in values if n in static or values[n].dtype.kind in "US")
        return Grid(values, fixed, tuple(name for name in values if name not in fixed))

    def shape(self, names: tuple[str, ...]) -> tuple[int, ...]:
        """How many values some of the axes have."""
        return tuple(len(self.values[name]) for name in names)

    @property
    def combinations(self) -> list[tuple[int, ...]]:
        """The combinations of the static axes, as places of their values."""
        return list(np.ndindex(*self.shape(self.static)))

    def fixed(self, combination: tuple[int, ...]) -> tuple[tuple[str, Any], ...]:
        """The static axes of a combination, with their values."""
        pairs = zip(self.static, combination, strict=True)
        return tuple((name, self.values[name][index].item()) for name, index in pairs)

    @property
    def count(self) -> int:
        """How many rows the dynamic axes span: one also where there are none."""
        return int(np.prod(self.shape(self.dynamic), dtype=int))

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The values of the dynamic axes, one entry a row."""
        return self.rows(np.arange(self.count))

    def rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The values of the dynamic axes in some rows."""
        if not self.dynamic:
            return {ROW: rows}
        places = np.unravel_index(rows, self.shape(self.dynamic))
        columns = zip(self.dynamic, places, strict=True)
        return {name: self.values[name][place] for name, place in columns} | {ROW: rows}


def _as_axes(axes: Any) -> dict[str, np.ndarray]:
    """The values of every axis."""
    check_instance("axes", axes, Mapping, "a mapping from names to values", "pass a dictionary")
    if not axes:
        raise ValueError("`axes` must not be empty, got {}; pass at least one named axis.")
    for name in axes:
        check_instance("axes", name, str, "a mapping from names", "name every axis by text")
        if name in RESERVED or not name.isidentifier():
            raise ValueError(
                f"`axes` must not use the name {name!r}, which is no name of an argument or one "
                "that the dataset gives to a variable or coordinate of its own; choose another."
            )
    return {name: _as_axis(name, given) for name, given in axes.items()}


def _as_axis(name: str, given: Any) -> np.ndarray:
    try:
        # A long axis need not become a list first.
        plain = isinstance(given, range) or isinstance(given, np.ndarray) and given.ndim == 1
        array = np.array(given if plain else as_list(f"axes[{name!r}]", given, "values"))
    except ValueError:
        array = np.empty(0, object)  # of lists of different lengths
    if array.dtype.kind not in "fiubUS" and array.size > 0:
        raise TypeError(
            f"axis `{name}` must hold numbers or strings, got {shown(given)}; pass names and look "
            "objects up in `build`."
        )
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"axis `{name}` must be a 1-D sequence of at least one value, got {shown(given)}; pass "
            "the values to sweep."
        )
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        bad = array[~np.isfinite(array)][0]
        raise ValueError(f"axis `{name}` must be finite, got {bad}; remove that value.")
    if len(np.unique(array)) != array.size:
        raise ValueError(
            f"axis `{name}` must not repeat a value, got {shown(given)}; remove the repeats."
        )
    return array
