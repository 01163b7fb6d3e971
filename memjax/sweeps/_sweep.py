import inspect
import json
import os
import platform
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import as_completed, ThreadPoolExecutor
from functools import partial
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
from ..plateaus import measure_plateau
from ..plateaus._measure import checked_times, OUTCOMES

# What every cell of a sweep holds: type and attributes of the variables.
_VARIABLES: dict[str, tuple[Any, dict[str, Any]]] = {
    "time": (float, {"long_name": "hitting time", "units": "training time"}),
    "result": (
        np.int8,
        {
            "long_name": "how the measurement ended",
            "flag_values": list(range(len(OUTCOMES))),
            "flag_meanings": " ".join(OUTCOMES),
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
    "num_steps": (np.int32, {"long_name": "attempted steps"}),
    "num_rejected_steps": (np.int32, {"long_name": "rejected steps"}),
}


_ROW = "cell of a chunk"


def sweep(
    build: Callable[..., tuple],
    axes: Mapping[str, Sequence[Any]],
    *,
    static: Sequence[str] = (),
    solver: diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    rtol: float = 1e-6,
    max_time: float = 1e300,
    max_steps: int = 4096,
    curve_times: Float[Array, " times"] | None = None,
    resolution: float = 1e-3,
    vectorise: Literal["auto", "map", "vmap"] = "auto",
    chunk_size: int | None = None,
    progress: bool = True,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    """Measure a plateau at every point of a grid.

    `build` is traced once for every combination of the static axes, and compiled into a
    program that measures a chunk of cells; the other axes reach it as arrays. A measurement
    that fails is a cell with its `result`, not an exception.

    **Arguments:**

    - `build`: called with one keyword argument for each axis, returns `(flow, model, exit)`,
        or `(flow, model, exit, record)` with a dictionary of scalars to be recorded in each
        cell.
    - `axes`: the values of each named axis, in the order of the dimensions of the dataset.
        An axis of numbers reaches `build` as traced scalars.
    - `static`: the axes that reach `build` as Python values since shapes or structures
        depend on them, such as a width. Axes of strings are always static.
    - `solver`, `stepsize_controller`, `rtol`, `max_time`, `max_steps`, `resolution`: as in
        [`memjax.measure_plateau`][].
    - `curve_times`: increasing training times at which every cell records its loss, as the
        variable `curve_loss` over the dimension `training_time`.
    - `vectorise`: `"map"` runs the cells of a chunk one after the other, several chunks at a
        time on the cores of a CPU; `"vmap"` runs them in lock-step, as an accelerator needs.
        `"auto"` chooses by the device.
    - `chunk_size`: cells in one call. Defaults to 8 for `"map"` and 1024 for `"vmap"`.
    - `progress`: whether to show a progress bar.
    - `attrs`: further attributes of the dataset, of types that JSON knows.

    **Returns:**

    A dataset with one dimension for each axis and the variables `time`, `result`,
    `time_reached`, `initial_loss`, `loss`, `distance`, `rounding`, `curvature`, `num_steps`,
    `num_rejected_steps` and those recorded. An axis `omega` is accompanied by the coordinate
    `memory`, its reciprocal.

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
    for name, value in (("rtol", rtol), ("max_time", max_time), ("resolution", resolution)):
        if not value > 0:
            raise ValueError(f"`{name}` must be positive, got {value}; pass a value above 0.")
    check_integer("max_steps", max_steps)
    if curve_times is not None:
        curve_times = checked_times("curve_times", curve_times)
    if vectorise == "auto":
        vectorise = "map" if jax.default_backend() == "cpu" else "vmap"
    if vectorise not in ("map", "vmap"):
        raise ValueError(
            f"`vectorise` must be 'auto', 'map' or 'vmap', got {vectorise!r}; choose one."
        )
    if chunk_size is None:
        chunk_size = 8 if vectorise == "map" else 1024
    if chunk_size < 1:
        raise ValueError(f"`chunk_size` must be at least 1, got {chunk_size}.")

    options = _Options(
        solver,
        stepsize_controller,
        jnp.asarray(rtol, float),
        jnp.asarray(max_time, float),
        max_steps,
        resolution,
    )

    sizes = {name: len(values[name]) for name in names}
    inner = [sizes[name] for name in dynamic]
    count = int(np.prod(inner, dtype=int))
    length = min(chunk_size, count)
    grid = np.meshgrid(*(values[name] for name in dynamic), indexing="ij")
    columns = {name: column.ravel() for name, column in zip(dynamic, grid, strict=True)}
    # The row of a cell: there is one also where no axis varies inside a program.
    columns[_ROW] = np.arange(count)
    tasks = []
    for index in np.ndindex(*(sizes[name] for name in static)):
        fixed = {n: values[n][i].item() for n, i in zip(static, index, strict=True)}
        program = _Program(
            partial(_measure_chunk, build, tuple(fixed.items()), options, vectorise, curve_times)
        )
        for start in range(0, count, length):
            # The last chunk is filled up with cells of the one before, so that all chunks
            # share one compilation.
            rows = np.minimum(np.arange(start, start + length), count - 1)
            tasks.append((index, start, program, {n: c[rows] for n, c in columns.items()}))

    # The first chunks of all programs first, so that the compilations overlap.
    tasks.sort(key=lambda task: task[1])

    shape = (*(sizes[name] for name in static), count)
    cells: dict[str, np.ndarray] = {}
    workers = (os.cpu_count() or 1) if jax.default_backend() == "cpu" else 1
    bar = tqdm.tqdm(total=int(np.prod(shape)), desc="compiling", unit="run", disable=not progress)
    # The chunks share the cores among themselves: a BLAS that starts threads of its own for
    # every small matrix would only get in their way.
    with threadpool_limits(1, "blas"), bar, ThreadPoolExecutor(workers) as executor:
        futures = {executor.submit(task[2], task[3]): task for task in tasks}
        try:
            for future in as_completed(futures):
                index, start, _, _ = futures[future]
                span = min(length, count - start)
                for name, array in future.result().items():
                    if name not in cells:
                        dtype = _VARIABLES[name][0] if name in _VARIABLES else array.dtype
                        cells[name] = np.zeros((*shape, *array.shape[1:]), dtype)
                    cells[name][(*index, slice(start, start + span))] = array[:span]
                bar.set_description("plateaus", refresh=False)
                bar.update(span)
        except BaseException:
            executor.shutdown(wait=False, cancel_futures=True)
            raise

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
        solver=repr(solver) if solver is not None else "default (Kvaerno5, full Newton)",
        stepsize_controller=repr(stepsize_controller)
        if stepsize_controller is not None
        else "default (PIDController on the displacement)",
        rtol=float(rtol),
        max_time=float(max_time),
        max_steps=int(max_steps),
        resolution=float(resolution),
        vectorise=vectorise,
        chunk_size=int(chunk_size),
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


def _measure_cell(
    build: Callable,
    fixed: tuple[tuple[str, Any], ...],
    options: _Options,
    curve_times: Array | None,
    varied: dict[str, Array],
) -> dict[str, Array]:
    varied = {name: value for name, value in varied.items() if name != _ROW}
    flow, model, exit, record = _built(build, dict(fixed) | varied)
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
    cell["result"] = plateau.result_code
    if plateau.curve is not None:
        cell["curve_loss"] = plateau.curve.loss
    return cell | record


@eqx.filter_jit
def _measure_chunk(
    build: Callable,
    fixed: tuple[tuple[str, Any], ...],
    options: _Options,
    vectorise: str,
    curve_times: Array | None,
    varied: dict[str, Array],
) -> dict[str, Array]:
    one = lambda varied: _measure_cell(build, fixed, options, curve_times, varied)
    return jax.lax.map(one, varied) if vectorise == "map" else jax.vmap(one)(varied)


class _Program:
    """A chunk with everything but its cells. The first call compiles (unless an earlier sweep
    of the same `build` did); the others wait for it instead of compiling too."""

    def __init__(self, function: Callable[[dict[str, Array]], dict[str, Array]]):
        self.function, self.lock, self.compiled = function, threading.Lock(), False

    def __call__(self, varied: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = {name: jnp.asarray(column) for name, column in varied.items()}
        if self.compiled:
            out = self.function(arrays)
        else:
            with self.lock:
                out = self.function(arrays)
                self.compiled = True
        return jax.tree.map(np.asarray, out)


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
    for point in ends:
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
