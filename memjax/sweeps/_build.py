"""A user's `build`: from the values of the axes in one cell to what is measured there."""

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from .._checks import (
    as_number_array,
    check_float64,
    check_instance,
    check_scalar,
    shown,
)
from ..flows import AbstractFlow, AbstractTraining
from ..models import AbstractModel
from ..numerics import compiled
from ..plateaus import AbstractExit, check_memory, Runs
from ._engine import is_small
from ._grid import Grid, ROW
from ._variables import CURVE, MEMORY, TIMES, VARIABLES

# What is built at once to be looked at.
_BATCH_BYTES = 2**26


@dataclasses.dataclass(frozen=True)
class Build:
    """A user's `build` with its static axes given, equal where both are, so that sweeps share
    what was compiled."""

    build: Callable
    fixed: tuple[tuple[str, Any], ...]

    def __call__(self, varied: dict[str, Array]) -> tuple[Any, Any, Any, dict[str, Array]]:
        varied = {name: value for name, value in varied.items() if name != ROW}
        flow, model, exit, record = _unpack(self.build, dict(self.fixed) | varied)
        numbers = {n: as_number_array(f"record[{n!r}]", v) for n, v in record.items()}
        return flow, model, exit, numbers


@dataclasses.dataclass(frozen=True)
class BuildRuns:
    """The run of one cell, with modes added up to a width if there is one."""

    build: Build
    width: int | None = None

    def __call__(self, varied: dict[str, Array]) -> Runs:
        runs = Runs.build(*self.build(varied))
        return runs if self.width is None else runs.padded(self.width)


def shapes_of(build: Build | BuildRuns, columns: dict[str, np.ndarray]) -> Any:
    """What `build` makes of one cell, as shapes; traced once, as its programs are."""
    return _shapes_of(build, tuple((name, column.dtype) for name, column in columns.items()))


@functools.lru_cache(256)
def _shapes_of(build: Build | BuildRuns, dtypes: tuple[tuple[str, np.dtype], ...]) -> Any:
    cell = {name: jax.ShapeDtypeStruct((), dtype) for name, dtype in dtypes}
    return eqx.filter_eval_shape(build, cell)


def check_build(
    build: "Build", grid: Grid, own: bool, everywhere: bool = True
) -> tuple[Any, dict[str, Any]]:
    """The flow that `build` makes and what it records, as shapes; refused is what any cell of the
    grid gets wrong, or with `everywhere` false the first, and, unless a solver of one's `own`
    measures it, what does not fit into memory."""
    try:
        hash(build)
    except TypeError as error:
        raise TypeError(
            "`build` must be hashable, since what is compiled for it is kept, got "
            f"{shown(build.build)} ({error}); pass a function or a frozen dataclass, and static "
            "axes of numbers, strings or tuples."
        ) from error
    names = [*dict(build.fixed), *grid.dynamic]
    try:
        inspect.signature(build.build).bind(**dict.fromkeys(names))
    except TypeError as error:
        raise TypeError(
            f"`build` must take the axes {names} as keyword arguments: {error}."
        ) from error
    except ValueError:
        pass  # a function of C has no signature
    first = grid.rows(np.zeros(1, int))
    flow, model, exit, record = _build_in_the_open(build, first)
    check_instance(
        "build", flow, (AbstractFlow, AbstractTraining), "a function that returns first a flow",
        "return for example memjax.GradientFlow(loss)",
    )  # fmt: skip
    check_instance(
        "build", model, AbstractModel, "a function that returns second a model",
        "return for example memjax.DiagonalLinearRNN(amplitudes, rates)",
    )  # fmt: skip
    check_instance(
        "build", exit, AbstractExit, "a function that returns third an exit condition",
        "return for example memjax.RelativeLossDrop(0.02)",
    )  # fmt: skip
    taken = {*VARIABLES, CURVE, TIMES, *names} | ({MEMORY} if "omega" in names else set())
    for name, value in record.items():
        if name in taken:
            raise ValueError(
                f"`build` must not record {name!r}, which is a variable or an axis of the "
                "dataset already; give it another name."
            )
        check_scalar(f"record[{name!r}]", value)
    for what, value in (("flow", flow), ("model", model), ("exit", exit)):
        check_float64(what, eqx.filter(value, eqx.is_inexact_array))
    # Traced values cannot be checked, and are NaN where they are out of range: such a cell is
    # built once more in the open, where the check says what is wrong.
    try:
        shapes = shapes_of(build, first)
        if not own and isinstance(flow, AbstractFlow):
            check_memory(shapes_of(BuildRuns(build), first))
        for row in _suspicious_rows(build, grid) if everywhere else ():
            _build_in_the_open(build, grid.rows(np.array([row])))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            f"`build` must work on traced values, got {type(error).__name__}; use jnp.where in "
            "place of `if`, or name the axis in `static`."
        ) from error
    return shapes[0], shapes[3]


def _build_in_the_open(build: "Build", columns: dict[str, np.ndarray]) -> tuple:
    """What `build` makes of concrete values, those of one row."""
    cell = {name: column.item() for name, column in columns.items()}
    try:
        return build({name: jnp.asarray(value) for name, value in cell.items()})
    except (TypeError, ValueError) as error:
        values = {name: value for name, value in cell.items() if name != ROW}
        where = ", ".join(f"{k}={v!r}" for k, v in (dict(build.fixed) | values).items())
        text = f"{error} (In the cell {where}.)"
        # An axis of integers reaches `build` as an array, which is no number of neurons.
        traced = [name for name, value in values.items() if isinstance(value, int)]
        if traced and "must be an integer" in str(error):
            names = ", ".join(f"`{name}`" for name in traced)
            text += f" An axis that decides shapes must be named in `static`; not named: {names}."
        raise type(error)(text) from error


def _find_nan(build: "Build", columns: dict[str, Array]) -> tuple[Array, Array]:
    """Where `build` makes NaN of what is measured, and of what is recorded."""

    def bad(tree: Any) -> Bool[Array, ""]:
        leaves = jax.tree.leaves(eqx.filter(tree, eqx.is_inexact_array))
        return jnp.any(jnp.stack([jnp.array(False), *(jnp.any(jnp.isnan(x)) for x in leaves)]))

    def one(cell: dict[str, Array]) -> tuple[Array, Array]:
        *measured, record = build(cell)
        return bad(measured), bad(record)

    # In batches, since a build may make large arrays.
    together = max(1, min(64, _BATCH_BYTES // _build_bytes(build, columns)))
    return jax.lax.map(one, columns, batch_size=together)


def _build_bytes(build: "Build", columns: dict[str, Any]) -> int:
    leaves = jax.tree.leaves(shapes_of(build, columns))
    arrays = [leaf for leaf in leaves if isinstance(leaf, jax.ShapeDtypeStruct)]
    return 1 + sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


def _suspicious_rows(build: "Build", grid: Grid) -> list[int]:
    """The first row in which `build` makes NaN of what is measured, and the first of what is
    recorded, which may be meant."""
    # Filled up with repeats, so that grids of different sizes share a compilation, unless that
    # costs more than one.
    least = 64 if 64 * _build_bytes(build, grid.rows(np.zeros(1, int))) <= _BATCH_BYTES else 1
    length = min(2**14, least * 2 ** int(np.ceil(np.log2(max(grid.count, least) / least))))
    find_nan = compiled(_find_nan, "least" if is_small(grid.count) else "full")
    firsts: dict[int, int] = {}
    for start in range(0, grid.count, length):
        rows = np.minimum(np.arange(start, start + length), grid.count - 1)
        columns = {name: jnp.asarray(column) for name, column in grid.rows(rows).items()}
        for kind, bad in enumerate(find_nan(build, columns)):
            found = np.flatnonzero(np.asarray(bad))
            if found.size:
                firsts.setdefault(kind, int(rows[found[0]]))
        if 0 in firsts:
            break
    return [firsts[kind] for kind in sorted(firsts)]


def _unpack(build: Callable, arguments: Mapping[str, Any]) -> tuple[Any, Any, Any, dict]:
    out = build(**arguments)
    if not isinstance(out, tuple) or len(out) not in (3, 4):
        raise TypeError(
            f"`build` must return (flow, model, exit) or (flow, model, exit, record), got "
            f"{shown(out)}; return a tuple of these."
        )
    flow, model, exit = out[:3]
    record = out[3] if len(out) == 4 else {}
    check_instance(
        "build", record, Mapping, "a function whose record is a mapping from names to numbers",
        "return a dictionary",
    )  # fmt: skip
    return flow, model, exit, dict(record)
