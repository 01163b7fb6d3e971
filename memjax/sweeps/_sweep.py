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
from jaxtyping import Array, Bool, Float, Real, Scalar
from threadpoolctl import threadpool_limits

from .._checks import (
    as_list,
    as_number_array,
    as_positive,
    as_tolerance,
    check_callable,
    check_choice,
    check_flag,
    check_float64,
    check_instance,
    check_integer,
    check_scalar,
    shown,
)
from .._typing import ArrayLike
from ..flows import AbstractFlow, AbstractTraining, GradientFlow
from ..models import AbstractModel
from ..plateaus import (
    AbstractExit,
    as_curve_times,
    as_max_time,
    check_integrator,
    LaneMethod,
    MAX_STEPS_REACHED,
    measure_plateau,
    OUTCOMES,
    REFINEMENT,
    Runs,
    SMALLEST_RTOL,
    UNDECIDED,
    UNRESOLVED,
)
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
_OPTIONS = ("solver", "stepsize_controller", "rtol", "max_time", "max_steps", "resolution")


def sweep(
    build: Callable[..., tuple],
    axes: Mapping[str, Sequence[Any]],
    *,
    static: Sequence[str] = (),
    solver: diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    rtol: float | Scalar | None = None,
    max_time: float | Scalar = 1e300,
    max_steps: int | None = None,
    curve_times: Real[ArrayLike, " times"] | None = None,
    resolution: float | Scalar = 1e-3,
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
    check_callable("build", build, "pass a function of one keyword argument an axis")
    values = _axes(axes)
    names = list(values)
    static = as_list("static", static, "names of axes")
    for name in static:
        check_choice("static", name, names, "name an axis")
    check_flag("progress", progress)
    check_integrator(solver, stepsize_controller)
    if rtol is not None:
        as_tolerance("rtol", rtol)
    max_time, resolution = as_max_time(max_time), as_positive("resolution", resolution)
    if max_steps is not None:
        check_integer("max_steps", max_steps)
    if curve_times is not None:
        curve_times = as_curve_times("curve_times", curve_times)
    if lanes is not None:
        check_integer("lanes", lanes)
    check_choice("precision", precision, ("auto", "float64", "double-double"))
    attrs = _attributes(attrs)

    static = [name for name in names if name in static or values[name].dtype.kind in "US"]
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
    flows = [_checked_build(build, columns) for build in builds]
    own = solver is not None or stepsize_controller is not None
    own = own or not all(isinstance(flow, GradientFlow) for flow in flows)
    if rtol is None:
        rtol = 1e-6 if own else 1e-5
    if max_steps is None:
        discrete = any(isinstance(flow, AbstractTraining) for flow in flows)
        max_steps = 1_000_000 if discrete else 4096
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
        jnp.asarray(max_time),
        max_steps,
        jnp.asarray(resolution),
    )

    if own:
        jobs = [_Measurements(build, columns, options, curve_times) for build in builds]
        finished = _climbing(jobs, _through_diffrax, precision == "auto")
    else:
        times = jnp.zeros(0) if curve_times is None else curve_times
        jobs = _programs(builds, columns, options, times, lanes, precision)
        finished = _climbing(jobs, stream, precision == "auto")

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
                bar.set_description("again, finer" if again else "plateaus", refresh=False)
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
        **attrs,
    )


class _Options(eqx.Module):
    """What all cells have in common, passed on to `measure_plateau`."""

    solver: diffrax.AbstractSolver | None
    stepsize_controller: diffrax.AbstractStepSizeController | None
    rtol: Float[Array, ""]
    max_time: Float[Array, ""]
    max_steps: int
    resolution: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class _Build:
    """A user's `build` with its static axes given, equal where both are, so that sweeps share
    what was compiled."""

    build: Callable
    fixed: tuple[tuple[str, Any], ...]

    def __call__(self, varied: dict[str, Array]) -> tuple[Any, Any, Any, dict[str, Array]]:
        varied = {name: value for name, value in varied.items() if name != _ROW}
        flow, model, exit, record = _built(self.build, dict(self.fixed) | varied)
        numbers = {n: as_number_array(f"record[{n!r}]", v) for n, v in record.items()}
        return flow, model, exit, numbers


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
        resolution=options.resolution,
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


def _climbing(jobs: list[Any], run: Callable[[list[Any]], Stream], auto: bool) -> Stream:
    """The stream of all jobs, and after it that of the cells that get another try: in
    double-double what float64 leaves unresolved, if `auto`, and with a smaller tolerance what that
    leaves undecided."""
    tried = [(number, job, np.arange(job.count)) for number, job in enumerate(jobs)]
    while tried:
        left: dict[tuple[int, str], list[np.ndarray]] = {}
        for index, where, rows in run([job for _, job, _ in tried]):
            number, job, cells = tried[index]
            yield number, cells[where], rows
            # Steps run out where the error control chases rounding errors, too.
            unresolved = np.isin(rows["result"], (UNRESOLVED, MAX_STEPS_REACHED))
            undecided = rows["result"] == UNDECIDED
            if auto and job.compensable:
                left.setdefault((index, "compensated"), []).append(where[unresolved])
            if job.rtol > SMALLEST_RTOL:
                left.setdefault((index, "refined"), []).append(where[undecided])
        again = [
            (index, how, np.sort(np.concatenate(chosen))) for (index, how), chosen in left.items()
        ]
        tried = [
            (tried[index][0], getattr(tried[index][1], how)(where), tried[index][2][where])
            for index, how, where in again
            if len(where) > 0
        ]


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


@dataclasses.dataclass(frozen=True)
class _Measurements:
    """Runs that go through `measure_plateau`, as a job beside `Program`."""

    build: _Build
    columns: dict[str, np.ndarray]
    options: _Options
    curve_times: Array | None
    compensable: bool = False

    @property
    def count(self) -> int:
        return len(self.columns[_ROW])

    @property
    def rtol(self) -> float:
        # A controller of the user's own has tolerances of its own.
        own = self.options.stepsize_controller is not None
        return 0.0 if own else float(self.options.rtol)

    def refined(self, cells: np.ndarray) -> "_Measurements":
        """Some of the cells, with a smaller tolerance."""
        columns = {name: column[cells] for name, column in self.columns.items()}
        options = dataclasses.replace(self.options, rtol=self.options.rtol * REFINEMENT)
        return dataclasses.replace(self, columns=columns, options=options)


def _through_diffrax(jobs: list[_Measurements]) -> Stream:
    """Every run through `measure_plateau`, as `stream` yields them."""
    on_cpu = jax.default_backend() == "cpu"
    compiling = [threading.Lock() for _ in jobs]
    compiled: set[int] = set()
    stopped = threading.Event()

    def work(index: int, start: int) -> tuple[int, np.ndarray, dict[str, np.ndarray]]:
        job = jobs[index]
        where = np.arange(start, min(start + length, job.count))
        if stopped.is_set():
            return index, where[:0], {}
        # Filled up with repeats, so that all chunks share one compilation.
        rows = np.minimum(np.arange(start, start + length), job.count - 1)
        varied = {name: jnp.asarray(column[rows]) for name, column in job.columns.items()}
        with nullcontext() if index in compiled else compiling[index]:
            out = _measure_cells(job.build, job.options, job.curve_times, varied)
        compiled.add(index)
        return index, where, {n: np.asarray(array)[: len(where)] for n, array in out.items()}

    # The first chunks of all programs first, so that the compilations overlap.
    most = max(job.count for job in jobs)
    length = min(8 if on_cpu else 1024, most)
    tasks = [
        (index, start)
        for start in range(0, most, length)
        for index, job in enumerate(jobs)
        if start < job.count
    ]
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


def _axes(axes: Any) -> dict[str, np.ndarray]:
    """The values of every axis."""
    check_instance("axes", axes, Mapping, "a mapping from names to values", "pass a dictionary")
    if not axes:
        raise ValueError("`axes` must not be empty, got {}; pass at least one named axis.")
    taken = (*_VARIABLES, "curve_loss", "training_time", "memory")
    for name in axes:
        check_instance("axes", name, str, "a mapping from names", "name every axis by text")
        if name in taken or not name.isidentifier():
            raise ValueError(
                f"`axes` must not use the name {name!r}, which is no name of an argument or one "
                "that the dataset gives to a variable or coordinate of its own; choose another."
            )
    return {name: _axis(name, given) for name, given in axes.items()}


def _axis(name: str, given: Any) -> np.ndarray:
    try:
        array = np.asarray(as_list(f"axes[{name!r}]", given, "values"))
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


def _attributes(attrs: Any) -> dict[str, Any]:
    """Attributes that a store can hold."""
    if attrs is None:
        return {}
    check_instance("attrs", attrs, Mapping, "a mapping from names to values", "pass a dictionary")
    for name, value in attrs.items():
        check_instance("attrs", name, str, "a mapping from names", "name every attribute by text")
        if name in ("axes", "complete", *_OPTIONS, *_provenance()):
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


def _checked_build(build: "_Build", columns: dict[str, np.ndarray]) -> Any:
    """The flow that `build` makes, as shapes; refused is what any cell of the grid gets wrong."""
    names = [*dict(build.fixed), *(name for name in columns if name != _ROW)]
    try:
        inspect.signature(build.build).bind(**dict.fromkeys(names))
    except TypeError as error:
        raise TypeError(
            f"`build` must take the axes {names} as keyword arguments: {error}."
        ) from error
    except ValueError:
        pass  # a function of C has no signature
    cell = lambda row: {name: column[row].item() for name, column in columns.items()}
    flow, model, exit, record = _in_cell(build, cell(0))
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
    for name, value in record.items():
        if name in _VARIABLES or name in names or name in ("curve_loss", "training_time"):
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
        shapes = eqx.filter_eval_shape(build, _one(columns))
        for row in np.flatnonzero(_suspicious(build, columns))[:1]:
            _in_cell(build, cell(row))
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise TypeError(
            f"`build` must work on traced values, got {type(error).__name__}; use jnp.where in "
            "place of `if`, or name the axis in `static`."
        ) from error
    return shapes[0]


def _in_cell(build: "_Build", cell: dict[str, Any]) -> tuple:
    """What `build` makes of concrete values."""
    try:
        return build({name: jnp.asarray(value) for name, value in cell.items()})
    except (TypeError, ValueError) as error:
        values = {name: value for name, value in cell.items() if name != _ROW}
        where = ", ".join(f"{k}={v!r}" for k, v in (dict(build.fixed) | values).items())
        raise type(error)(f"{error} (In the cell {where}.)") from error


@eqx.filter_jit
def _bad_cells(build: "_Build", columns: dict[str, Array]) -> Bool[Array, " cells"]:
    def bad(cell: dict[str, Array]) -> Bool[Array, ""]:
        leaves = jax.tree.leaves(eqx.filter(build(cell)[:3], eqx.is_inexact_array))
        return jnp.any(jnp.stack([jnp.any(jnp.isnan(leaf)) for leaf in leaves]))

    # In batches, since a build may make large arrays.
    return jax.lax.map(bad, columns, batch_size=64)


def _suspicious(build: "_Build", columns: dict[str, np.ndarray]) -> np.ndarray:
    """The cells in which `build` makes NaN of something."""
    count = len(columns[_ROW])
    # Filled up with repeats, so that grids of different sizes share a compilation.
    length = min(2**14, 64 * 2 ** int(np.ceil(np.log2(max(count, 64) / 64))))
    found = np.zeros(count, bool)
    for start in range(0, count, length):
        rows = np.minimum(np.arange(start, start + length), count - 1)
        out = _bad_cells(build, {name: jnp.asarray(c[rows]) for name, c in columns.items()})
        found[start : start + length] = np.asarray(out)[: count - start]
    return found


def _built(build: Callable, arguments: Mapping[str, Any]) -> tuple[Any, Any, Any, dict]:
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
