import dataclasses
import inspect
import json
import platform
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed, ThreadPoolExecutor
from contextlib import nullcontext
from importlib.metadata import version
from typing import Any, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tqdm
import xarray as xr
from jaxtyping import Array, Float
from threadpoolctl import threadpool_limits

from .._checks import check_float64, check_integer
from ..flows import AbstractTraining, GradientFlow
from ..plateaus import measure_plateau
from ..plateaus._lanes import LaneMethod, Runs
from ..plateaus._measure import checked_times, MAX_STEPS_REACHED, OUTCOMES, UNRESOLVED
from ._engine import cores, default_lanes, Program, Stream, stream

# What every cell of a sweep holds: type and attributes of the variables.
_VARIABLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "time": (float, {"long_name": "hitting time", "units": "training time"}),
    "result": (
        np.int8,
        {
            "long_name": "how the measurement ended",
            "flag_values": [*range(len(OUTCOMES)), -1],
            "flag_meanings": " ".join((*OUTCOMES, "unfinished")),
        },
    ),
    "time_reached": (
        float,
        {"long_name": "training time integrated to", "units": "training time"},
    ),
    "initial_loss": (float, {"long_name": "loss at the start", "units": "loss"}),
    "loss": (float, {"long_name": "loss at the end", "units": "loss"}),
    "distance": (float, {"long_name": "distance of the weights from their start"}),
    "rounding": (float, {"long_name": "estimated relative error of time due to rounding"}),
    "curvature": (float, {"long_name": "smallest scaled curvature of the loss at the end"}),
    "precision": (
        np.int8,
        {
            "long_name": "arithmetic of the integration",
            "flag_values": [0, 1],
            "flag_meanings": "float64 double-double",
        },
    ),
    "num_steps": (np.int32, {"long_name": "attempted steps"}),
    "num_rejected_steps": (np.int32, {"long_name": "rejected steps"}),
}


_ROW = "row of the grid"
_UNFINISHED = -1


def sweep(
    build: Callable[..., tuple],
    axes: Mapping[str, Sequence[Any]],
    *,
    static: Sequence[str] = (),
    solver: diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    rtol: float | None = None,
    max_time: float = 1e300,
    max_steps: int | None = None,
    curve_times: Float[Array, " times"] | None = None,
    resolution: float = 1e-3,
    precision: Literal["auto", "float64", "double-double"] = "auto",
    lanes: int | None = None,
    progress: bool = True,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Measure a plateau at every point of a grid.

    The grid is a queue of runs over a fixed number of lanes: all lanes take a step at a time,
    and those that leave their plateau are replaced by the next runs. The method is that of
    [`memjax.RadauIIA5`][], in the displacement from the start, with closed-form
    gradients and Hessians where the loss has them (`WhiteNoiseLoss` without a horizon for a
    `DiagonalLinearRNN`) and with automatic ones elsewhere. Memory is bounded by the lanes, and
    three programs are compiled for every combination of the static axes, whatever the size of
    the grid. What is not a [`memjax.GradientFlow`][] (other flows, discrete training), or has
    a `solver` or `stepsize_controller` of your own, goes through [`memjax.measure_plateau`][]
    run by run instead, which is much slower.

    A measurement that fails is a cell with its `result`, not an exception. An interrupt
    (Ctrl-C) ends the sweep early: what has been finished is returned, with a warning and the
    attribute `complete` set to 0, and cells that were not have the `result` -1. (If there is
    nothing yet, the interrupt goes on.)

    **Arguments:**

    - `build`: called with one keyword argument for each axis, returns `(flow, model, exit)`,
        or `(flow, model, exit, record)` with a dictionary of scalars to be recorded in each
        cell.
    - `axes`: the values of each named axis, in the order of the dimensions of the dataset.
        An axis of numbers reaches `build` as traced scalars.
    - `static`: the axes that reach `build` as Python values since shapes or structures
        depend on them, such as a width. Axes of strings are always static.
    - `solver`, `stepsize_controller`, `max_time`, `max_steps`, `resolution`: as in
        [`memjax.measure_plateau`][].
    - `rtol`: tolerance, relative to the displacement of every weight. Defaults to 1e-5, with
        which the error of `time` was at most 2e-4 on the references (1e-6 for runs through
        [`memjax.measure_plateau`][]).
    - `curve_times`: increasing training times at which every cell records its loss, as the
        variable `curve_loss` over the dimension `training_time`.
    - `precision`: `"float64"`, or `"double-double"` for displacements and gradients of twice
        as many digits where the loss has closed forms; `"auto"` repeats in double-double what
        ends `unresolved` or out of steps in float64.
    - `lanes`: the number of runs under way side by side on every device or core. Results do
        not depend on it but for rounding. Defaults to what was fastest for the size of the
        model on a CPU, and to as many as fit in 2 GB on an accelerator.
    - `progress`: whether to show a progress bar.
    - `attrs`: further attributes of the dataset, of types that JSON knows.

    **Returns:**

    A dataset with one dimension for each axis and the variables `time`, `result`,
    `time_reached`, `initial_loss`, `loss`, `distance`, `rounding`, `curvature`, `precision`,
    `num_steps`, `num_rejected_steps` and those recorded. An axis `omega` is accompanied by the
    coordinate `memory`, its reciprocal.

    **Raises:**

    `ValueError` or `TypeError` for axes that are empty, repeat a value, hold NaN or do not
    match `build`; whatever `build` raises at the first and last value of any axis.
    """
    names = list(axes)
    values = {name: _axis(name, axes[name]) for name in names}
    for name in names:
        if name in (*_VARIABLES, "curve_loss", "training_time", "memory"):
            raise ValueError(
                f"`axes` must not use the name {name!r}, which the dataset gives to a variable or "
                "coordinate of its own; choose another."
            )
    for name in static:
        if name not in names:
            raise ValueError(f"`static` names no axis: {name!r}; the axes are {names}.")
    static = [name for name in names if name in static or values[name].dtype.kind in "US"]
    _check_build(build, names, static, values)
    dynamic = [name for name in names if name not in static]
    grid = np.meshgrid(*(values[name] for name in dynamic), indexing="ij")
    columns = {name: column.ravel() for name, column in zip(dynamic, grid, strict=True)}
    sizes = {name: len(values[name]) for name in names}
    count = int(np.prod([sizes[name] for name in dynamic], dtype=int))
    # The row of a cell: there is one also where no axis varies inside a program.
    columns[_ROW] = np.arange(count)
    combinations = list(np.ndindex(*(sizes[name] for name in static)))
    builds = [
        _Build(build, tuple((n, values[n][i].item()) for n, i in zip(static, index, strict=True)))
        for index in combinations
    ]
    flows = [eqx.filter_eval_shape(build, _one(columns))[0] for build in builds]
    own = solver is not None or stepsize_controller is not None
    own = own or not all(isinstance(flow, GradientFlow) for flow in flows)
    if rtol is None:
        rtol = 1e-6 if own else 1e-5
    for name, value in (("rtol", rtol), ("max_time", max_time), ("resolution", resolution)):
        if not isinstance(value, (int, float, np.number, jax.Array)) or np.ndim(value) > 0:
            raise TypeError(f"`{name}` must be a number, got {value!r}; pass a value above 0.")
        if name == "rtol" and not value < 1:
            raise ValueError(f"`rtol` must be below 1, got {value}; pass a relative tolerance.")
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}; pass a value above 0.")
    if max_steps is None:
        discrete = any(isinstance(flow, AbstractTraining) for flow in flows)
        max_steps = 1_000_000 if discrete else 4096
    check_integer("max_steps", max_steps)
    if max_steps >= 2**31:
        raise ValueError(f"`max_steps` must be below 2**31, got {max_steps}.")
    if curve_times is not None:
        curve_times = checked_times("curve_times", curve_times)
        if len(curve_times) == 0:
            raise ValueError("`curve_times` must not be empty, got []; leave it out instead.")
    if lanes is not None:
        check_integer("lanes", lanes)
    if precision not in ("auto", "float64", "double-double"):
        raise ValueError(
            f"`precision` must be 'auto', 'float64' or 'double-double', got {precision!r}; "
            "choose one."
        )
    if own and precision == "double-double":
        raise ValueError(
            "`precision` must not be 'double-double' with a `solver` or `stepsize_controller` "
            "of your own, nor for other flows than gradient flow, which work in float64; leave "
            "it out."
        )

    options = _Options(
        solver,
        stepsize_controller,
        jnp.asarray(rtol, float),
        jnp.asarray(max_time, float),
        max_steps,
        resolution,
    )

    if own:
        finished = _through_diffrax(builds, columns, options, curve_times)
    else:
        times = jnp.zeros(0) if curve_times is None else curve_times
        programs = _programs(builds, columns, options, times, lanes, precision)
        finished = _climbing(programs) if precision == "auto" else stream(programs)

    shape = (*(sizes[name] for name in static), count)
    cells: dict[str, np.ndarray] = {"result": np.full(shape, _UNFINISHED, np.int8)}
    complete = True
    bar = tqdm.tqdm(total=int(np.prod(shape)), desc="compiling", unit="run", disable=not progress)
    # The runs share the cores among themselves: a BLAS that starts threads of its own for
    # every small matrix would only get in their way.
    with threadpool_limits(1, "blas"), bar:
        while True:
            try:
                item = next(finished, None)
                if item is None:
                    break
                program, where, rows = item
                again = int(np.sum(cells["result"][(*combinations[program], where)] != _UNFINISHED))
                bar.set_description("in double-double" if again else "plateaus", refresh=False)
                bar.update(len(where) - again)
                for name, array in rows.items():
                    if name not in cells:
                        dtype = _VARIABLES[name][0] if name in _VARIABLES else array.dtype
                        cells[name] = _empty((*shape, *array.shape[1:]), dtype)
                    cells[name][(*combinations[program], where)] = array
            except KeyboardInterrupt:
                complete = False
                break
    if not complete:
        done = int(np.sum(cells["result"] != _UNFINISHED))
        if done == 0:
            raise KeyboardInterrupt
        warnings.warn(
            f"interrupted after {done} of {int(np.prod(shape))} runs; the others have result "
            f"{_UNFINISHED}.",
            stacklevel=2,
        )
    cells = {name: cells[name] for name in sorted(cells, key=_order)}

    dims = [*static, *dynamic]
    variables = {}
    for name, array in cells.items():
        extra = ["training_time"] if name == "curve_loss" else []
        array = array.reshape((*(sizes[dim] for dim in dims), *array.shape[len(static) + 1 :]))
        attributes = _VARIABLES[name][1] if name in _VARIABLES else {}
        variables[name] = ([*dims, *extra], array, attributes)
    dataset = xr.Dataset(variables, {name: (name, values[name]) for name in names})
    dataset = dataset.transpose(*names, ...)
    if curve_times is not None:
        times = np.asarray(curve_times)
        dataset = dataset.assign_coords(training_time=("training_time", times))
        dataset["curve_loss"].attrs = {"long_name": "loss", "units": "loss"}
    if "omega" in names:
        memory = {"long_name": "memory 1/omega", "units": "clock"}
        dataset = dataset.assign_coords(memory=("omega", 1 / values["omega"], memory))
    return dataset.assign_attrs(
        _provenance(),
        axes=json.dumps({name: values[name].tolist() for name in names}),
        solver=repr(solver) if solver is not None else "default",
        stepsize_controller=repr(stepsize_controller)
        if stepsize_controller is not None
        else "default",
        rtol=float(rtol),
        max_time=float(max_time),
        max_steps=int(max_steps),
        resolution=float(resolution),
        complete=int(complete),
        **(attrs or {}),
    )


class _Options(eqx.Module):
    """What all cells have in common, passed on to `measure_plateau`."""

    solver: diffrax.AbstractSolver | None
    stepsize_controller: diffrax.AbstractStepSizeController | None
    rtol: Float[Array, ""]
    max_time: Float[Array, ""]
    max_steps: int
    resolution: float


@dataclasses.dataclass(frozen=True)
class _Build:
    """A user's `build` with its static axes given, equal where both are, so that sweeps share
    what was compiled."""

    build: Callable
    fixed: tuple[tuple[str, Any], ...]

    def __call__(self, varied: dict[str, Array]) -> tuple[Any, Any, Any, dict[str, Array]]:
        varied = {name: value for name, value in varied.items() if name != _ROW}
        flow, model, exit, record = _built(self.build, dict(self.fixed) | varied)
        return flow, model, exit, {name: jnp.asarray(value) for name, value in record.items()}


@dataclasses.dataclass(frozen=True)
class _BuildRuns:
    build: _Build

    def __call__(self, varied: dict[str, Array]) -> Runs:
        return Runs.build(*self.build(varied))


def _one(columns: dict[str, np.ndarray]) -> dict[str, jax.ShapeDtypeStruct]:
    """The axes of one cell, as shapes."""
    return {name: jax.ShapeDtypeStruct((), column.dtype) for name, column in columns.items()}


def _programs(
    builds: list[_Build],
    columns: dict[str, np.ndarray],
    options: _Options,
    curve_times: Float[Array, " times"],
    lanes: int | None,
    precision: str,
) -> list[Program]:
    method = LaneMethod(
        rtol=options.rtol,
        max_time=options.max_time,
        max_steps=jnp.asarray(options.max_steps),
        resolution=jnp.asarray(options.resolution),
        curve_times=curve_times,
        compensated=precision == "double-double",
    )
    count = len(columns[_ROW])
    programs = []
    for build in builds:
        run = eqx.filter_eval_shape(_BuildRuns(build), _one(columns))
        if method.compensated and not run.compensable:
            raise ValueError(
                "`precision` must not be 'double-double' for a loss or model without closed "
                "forms; pass 'auto' or 'float64'."
            )
        number = default_lanes(run, count) if lanes is None else lanes
        programs.append(Program(_BuildRuns(build), columns, method, number, run.compensable))
    return programs


def _climbing(programs: list[Program]) -> Stream:
    """The stream of all programs, and after it, in double-double, that of the cells which
    float64 left unresolved."""
    left: dict[int, list[np.ndarray]] = {}
    for index, where, rows in stream(programs):
        yield index, where, rows
        # Steps run out where the error control chases rounding errors, too.
        unresolved = where[np.isin(rows["result"], (UNRESOLVED, MAX_STEPS_REACHED))]
        if programs[index].compensable and len(unresolved) > 0:
            left.setdefault(index, []).append(unresolved)
    numbers = list(left)
    where = [np.concatenate(left[index]) for index in numbers]
    again = [programs[i].compensated(w) for i, w in zip(numbers, where, strict=True)]
    for index, cell, rows in stream(again) if again else ():
        yield numbers[index], where[index][cell], rows


@eqx.filter_jit
def _measure_cells(
    build: _Build, options: _Options, curve_times: Array | None, varied: dict[str, Array]
) -> dict[str, Array]:
    def one(varied: dict[str, Array]) -> dict[str, Array]:
        flow, model, exit, record = build(varied)
        plateau = measure_plateau(
            flow,
            model,
            exit,
            solver=options.solver,
            stepsize_controller=options.stepsize_controller,
            rtol=options.rtol,
            max_time=options.max_time,
            max_steps=options.max_steps,
            saveat=None if curve_times is None else diffrax.SaveAt(ts=curve_times),
            throw=False,
            resolution=options.resolution,
        )
        cell: dict[str, Any] = {name: getattr(plateau, name, None) for name in _VARIABLES}
        cell |= {name: plateau.stats[name] for name in ("num_steps", "num_rejected_steps")}
        cell |= {"result": plateau.result_code, "precision": jnp.zeros((), int)}
        if plateau.curve is not None:
            cell["curve_loss"] = plateau.curve.loss
        return cell | record

    # In lock-step all would wait for the slowest, which only an accelerator makes up for.
    if jax.default_backend() == "cpu":
        return jax.lax.map(one, varied)
    return jax.vmap(one)(varied)


def _through_diffrax(
    builds: list[_Build],
    columns: dict[str, np.ndarray],
    options: _Options,
    curve_times: Array | None,
) -> Stream:
    """Every run through `measure_plateau`, as `stream` yields them."""
    on_cpu = jax.default_backend() == "cpu"
    count = len(columns[_ROW])
    length = min(8 if on_cpu else 1024, count)
    compiling = [threading.Lock() for _ in builds]
    compiled: set[int] = set()
    stopped = threading.Event()

    def work(program: int, start: int) -> tuple[int, np.ndarray, dict[str, np.ndarray]]:
        where = np.arange(start, min(start + length, count))
        if stopped.is_set():
            return program, where[:0], {}
        # Filled up with repeats, so that all chunks share one compilation.
        rows = np.minimum(np.arange(start, start + length), count - 1)
        varied = {name: jnp.asarray(column[rows]) for name, column in columns.items()}
        with nullcontext() if program in compiled else compiling[program]:
            out = _measure_cells(builds[program], options, curve_times, varied)
        compiled.add(program)
        return program, where, {n: np.asarray(array)[: len(where)] for n, array in out.items()}

    # The first chunks of all programs first, so that the compilations overlap.
    starts = range(0, count, length)
    tasks = [(program, start) for start in starts for program in range(len(builds))]
    with ThreadPoolExecutor(cores() if on_cpu else 1) as executor:
        try:
            for future in as_completed([executor.submit(work, *task) for task in tasks]):
                yield future.result()
        finally:
            stopped.set()
            executor.shutdown(wait=False, cancel_futures=True)


def _empty(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """An array for cells of which some may never be filled."""
    return np.full(shape, np.nan if np.issubdtype(dtype, np.floating) else 0, dtype)


def _order(name: str) -> int:
    """Variables in the order of their table, then what was recorded."""
    return list(_VARIABLES).index(name) if name in _VARIABLES else len(_VARIABLES)


def _axis(name: str, given: Sequence[Any]) -> np.ndarray:
    array = np.asarray(given)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"axis `{name}` must be a 1-D sequence of at least one value, got shape "
            f"{array.shape}; pass the values to sweep."
        )
    if array.dtype.kind not in "fiubUS":
        raise TypeError(
            f"axis `{name}` must hold numbers or strings, got {given!r}; pass names and look "
            "objects up in `build`."
        )
    if array.dtype.kind == "f" and not np.all(np.isfinite(array)):
        bad = array[~np.isfinite(array)][0]
        raise ValueError(f"axis `{name}` must be finite, got {bad}; remove that value.")
    if len(np.unique(array)) != array.size:
        raise ValueError(
            f"axis `{name}` must not repeat a value, got {array.tolist()}; remove the repeats."
        )
    return array


def _check_build(build: Callable, names: list[str], static: list[str], values: Mapping) -> None:
    if not names:
        raise ValueError("`axes` must not be empty, got {}; pass at least one named axis.")
    try:
        inspect.signature(build).bind(**dict.fromkeys(names))
    except TypeError as error:
        raise TypeError(
            f"`build` must take the axes {names} as keyword arguments: {error}."
        ) from error
    # Traced values cannot be checked: build once at both ends of every axis in the open.
    first = {name: values[name][0].item() for name in names}
    ends = [first]
    for name in names:
        order = np.argsort(values[name])
        ends += [first | {name: values[name][i].item()} for i in (order[0], order[-1])]
    for point in [point for i, point in enumerate(ends) if point not in ends[:i]]:
        arguments = {n: v if n in static else jnp.asarray(v) for n, v in point.items()}
        flow, model, exit, record = _built(build, arguments)
        for name in record:
            if name in _VARIABLES or name in names or name == "curve_loss":
                raise ValueError(
                    f"`build` must not record {name!r}, which is a variable or an axis of the "
                    "dataset already; give it another name."
                )
        for what, value in (("flow", flow), ("model", model), ("exit", exit)):
            check_float64(what, eqx.filter(value, eqx.is_inexact_array))


def _built(build: Callable, arguments: Mapping[str, Any]) -> tuple[Any, Any, Any, dict]:
    out = build(**arguments)
    if not isinstance(out, tuple) or len(out) not in (3, 4):
        raise TypeError(
            f"`build` must return (flow, model, exit) or (flow, model, exit, record), got "
            f"{type(out).__name__}."
        )
    flow, model, exit = out[:3]
    return flow, model, exit, dict(out[3]) if len(out) == 4 else {}


def _provenance() -> dict[str, str]:
    """What a result depends on beside its specification."""
    packages = ("memjax", "jax", "jaxlib", "diffrax", "equinox", "optimistix", "lineax")
    device = jax.devices()[0]
    return {
        **{f"version_{package}": version(package) for package in packages},
        "version_python": platform.python_version(),
        "dtype": "float64",
        "device": f"{device.platform} ({device.device_kind})",
    }
