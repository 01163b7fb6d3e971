"""The cells of a sweep: what they hold, and the dataset that they make."""

import functools
import json
import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import jax
import numpy as np

from .._checks import (
    check_instance,
    shown,
)
from .._lazy import xr
from ._grid import Grid, ROW
from ._options import Options
from ._variables import CURVE, MEMORY, TIMES, UNFINISHED, VARIABLES

# The packages that a number depends on.
PACKAGES = ("memjax", "jax", "jaxlib", "diffrax", "equinox", "optimistix", "lineax")

# Attributes of what was recorded, by name.
Described = Mapping[str, Mapping[str, Any]]


class Cells:
    """The cells of a grid as they are filled, in any order."""

    def __init__(self, grid: Grid) -> None:
        self._grid = grid
        self._shape = (*grid.shape(grid.static), len(grid.columns[ROW]))
        self._arrays = {"result": np.full(self._shape, UNFINISHED, np.int8)}

    @property
    def count(self) -> int:
        """How many cells there are."""
        return self._arrays["result"].size

    @property
    def finished(self) -> int:
        """How many of them are filled."""
        return int(np.sum(self._arrays["result"] != UNFINISHED))

    def write(
        self, combination: tuple[int, ...], rows: np.ndarray, found: dict[str, np.ndarray]
    ) -> int:
        """Fill some rows of a combination of the static axes, and say how many are new."""
        place = (*combination, rows)
        new = int(np.sum(self._arrays["result"][place] == UNFINISHED))
        for name, array in found.items():
            if name not in self._arrays:
                dtype = VARIABLES[name][0] if name in VARIABLES else array.dtype
                # Some cells may never be filled.
                nothing = np.nan if np.issubdtype(dtype, np.floating) else 0
                shape = (*self._shape, *array.shape[1:])
                self._arrays[name] = np.full(shape, nothing, dtype)
            self._arrays[name][place] = array
        return new

    def dataset(
        self, curve_times: Any, attrs: dict[str, Any], described: Described
    ) -> "xr.Dataset":
        """The dataset, its dimensions in the order of the axes."""
        grid = self._grid
        dims = (*grid.static, *grid.dynamic)
        # In the order of their table, then what was recorded.
        known = [name for name in VARIABLES if name in self._arrays]
        names = [*known, *(name for name in self._arrays if name not in VARIABLES)]
        variables = {}
        for name in names:
            extra = [TIMES] if name == CURVE else []
            array = self._arrays[name]
            array = array.reshape((*grid.shape(dims), *array.shape[len(self._shape) :]))
            variables[name] = ([*dims, *extra], array, attributes_of(name, described))
        dataset = xr.Dataset(variables, coordinates_of(grid, curve_times))
        return dataset.transpose(*grid.values, ...).assign_attrs(provenance(), **attrs)


def coordinates_of(grid: Grid, curve_times: Any) -> dict[str, tuple[str, np.ndarray, dict]]:
    """The coordinates of the dataset: dimension, values and attributes."""
    found: dict[str, tuple[str, np.ndarray, dict]] = {
        name: (name, values, {}) for name, values in grid.values.items()
    }
    if curve_times is not None:
        found[TIMES] = (TIMES, np.asarray(curve_times), {})
    if "omega" in grid.values:
        attributes = {"long_name": "memory 1/omega", "units": "clock"}
        found[MEMORY] = ("omega", 1 / grid.values["omega"], attributes)
    return found


def attributes_of(name: str, described: Described) -> dict[str, Any]:
    """The attributes of a variable."""
    if name == CURVE:
        return {"long_name": "loss", "units": "loss"}
    return VARIABLES[name][1] if name in VARIABLES else dict(described.get(name, {}))


def as_attributes(attrs: Any) -> dict[str, Any]:
    """Attributes that a store can hold."""
    if attrs is None:
        return {}
    check_instance("attrs", attrs, Mapping, "a mapping from names to values", "pass a dictionary")
    taken = (*Options.names(), *provenance())
    for name, value in attrs.items():
        check_instance("attrs", name, str, "a mapping from names", "name every attribute by text")
        if name in taken:
            raise ValueError(
                f"`attrs` must not use the name {name!r}, which sweep itself writes; choose "
                "another."
            )
        try:
            json.dumps(value)
        except (TypeError, ValueError) as error:
            raise TypeError(
                f"`attrs` must hold what JSON knows, got {shown(value)} for {name!r}; pass text, "
                "numbers and lists of them."
            ) from error
    return dict(attrs)


# Every look reads files.
_version = functools.cache(version)


def provenance() -> dict[str, str]:
    """What a result depends on beside its specification. It says nothing of the axes, so that it
    stays true of datasets that are joined or cut."""
    device = jax.devices()[0]
    return {
        **{f"version_{package}": _version(package) for package in PACKAGES},
        "version_python": platform.python_version(),
        "dtype": "float64",
        "device": f"{device.platform} ({device.device_kind})",
    }
