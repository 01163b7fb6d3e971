import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Real
from threadpoolctl import threadpool_limits

from .._checks import (
    as_path,
    as_positive,
    as_tolerance,
    check_callable,
    check_choice,
    check_flag,
    check_integer,
)
from .._lazy import xr
from .._typing import ArrayLike, ScalarLike
from ..flows import AbstractTraining
from ..plateaus import (
    as_curve_times,
    as_max_time,
    check_integrator,
)
from ._build import Build, check_build
from ._calls import is_compiling
from ._cells import as_attributes, Cells, Described
from ._engine import Stream, stream
from ._grid import Grid
from ._jobs import climb, make_programs, Measurements, stream_measurements
from ._options import Options
from ._progress import Progress, saying
from ._setup import as_way, Setup, sweep_stored
from ._stored import is_stored
from ._variables import UNFINISHED


def sweep(
    build: Callable[..., tuple],
    axes: Mapping[str, Sequence[Any] | jax.Array | np.ndarray],
    *,
    static: Sequence[str] = (),
    solver: diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    rtol: Real[ScalarLike, ""] | None = None,
    max_time: Real[ScalarLike, ""] = 1e300,
    max_steps: int | None = None,
    curve_times: Real[ArrayLike, " times"] | None = None,
    resolution: Real[ScalarLike, ""] = 1e-3,
    precision: Literal["auto", "float64", "double-double"] = "auto",
    lanes: int | None = None,
    progress: bool = True,
    attrs: Mapping[str, Any] | None = None,
    store: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    block_size: int | None = None,
    executor: Executor | int | str | None = None,
    shard: tuple[int, int] | None = None,
    retries: int = 2,
    timeout: Real[ScalarLike, ""] | None = None,
) -> "xr.Dataset":
    """Measure a plateau at every point of a grid.

    The grid is a queue of runs over a fixed number of lanes: all lanes take a step at a time,
    and those that leave their plateau are replaced by the next runs. The method is that of
    [`memjax.RadauIIA5`][], in the displacement from the start, with closed-form
    gradients and Hessians where the loss has them (`WhiteNoiseLoss` without a horizon for a
    `DiagonalLinearRNN` or a `ComplexDiagonalRNN`) and with automatic ones elsewhere: as arrays up
    to 256 weights, on a space of 32 dimensions beyond. Memory is bounded by the lanes, and the same
    programs are compiled for every combination of the static axes, whatever the size of the grid.
    Runs that take more than 1,024 steps begin anew with Newton's iteration on the Jacobians of all
    stages. A discrete training, and what has a `solver` or `stepsize_controller` of your own, goes
    through [`memjax.measure_plateau`][] run by run instead, which is much slower.

    A measurement that fails is a cell with its `result`, not an exception. An interrupt
    (Ctrl-C) ends the sweep early: what has been finished is returned with a warning, and cells
    that were not have the `result` -1. (If there is nothing yet, the interrupt goes on.)

    With a `store` the sweep is cut into blocks, each of which is written as soon as it is there, so
    that whatever ends the process loses no more than the blocks under way; and the blocks may be
    computed by other processes and machines. A block that fails, since something raised or a worker
    died, is kept with its error, and the others go on.

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
        which the error of `time` was at most 2e-4 on the references (1e-6 for runs that go through
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
    - `store`: a folder to write to, a Zarr store that `xarray.open_zarr` and
        [`memjax.load_dataset`][] open at any time.
    - `resume`: whether a `store` that is there is taken up: only what it lacks is computed. One of
        another sweep (other axes, options, versions, another `build`) is refused. If there is none,
        it is made.
    - `overwrite`: whether a store of that name may be replaced, as in [`memjax.save_dataset`][].
    - `block_size`: the number of cells of a block, at most. Defaults to some twenty seconds of
        work, or less for small sweeps. It is chosen when the store is made, and kept in it.
    - `executor`: what computes the blocks: any `concurrent.futures.Executor`, or what has its
        methods; a number of processes to be started; or the address of a Dask scheduler. `build`
        must be one that can be pickled. Defaults to the cores, or devices, of this process.
    - `shard`: the blocks that are computed here: `(k, n)` takes those whose number is k modulo n,
        so that n processes, with k from 0 to n - 1, fill one store side by side without knowing of
        each other. It takes up a store that is there. Where `jax.distributed` has started several
        processes, each takes its own share.
    - `retries`: how many more times a block is handed out whose worker died.
    - `timeout`: the seconds after which a block counts as failed, compilation included.

    **Returns:**

    A dataset with one dimension for each axis and the variables `time`, `result`,
    `time_reached`, `initial_loss`, `loss`, `distance`, `rounding`, `curvature`, `precision`,
    `num_steps`, `num_rejected_steps` and those recorded. An axis `omega` is accompanied by the
    coordinate `memory`, its reciprocal. With a `store` the values are read from it when they are
    asked for.

    **Raises:**

    `ValueError` or `TypeError` for axes that are empty, repeat a value, hold NaN or do not
    match `build`; whatever `build` raises at the first and last value of any axis. With a `store`
    `FileExistsError` if it exists and is neither to be taken up nor replaced, or if another process
    writes to it, `ValueError` if it is of another sweep, another `OSError` if it cannot be written,
    and `RuntimeError` if the executor breaks down.
    """
    check_callable("build", build, "pass a function of one keyword argument an axis")
    grid = Grid.build(axes, static)
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
    attrs = as_attributes(attrs)

    described: Described = getattr(build, "described", {})
    way = as_way(
        store,
        resume,
        overwrite,
        block_size=block_size,
        executor=executor,
        shard=shard,
        retries=retries,
        timeout=timeout,
        progress=bool(progress),
    )
    path = None if store is None else Path(os.path.abspath(as_path("store", store)))
    taken_up = path is not None and not way.overwrite and is_stored(path)

    builds = [Build(build, grid.fixed(combination)) for combination in grid.combinations]
    own = solver is not None or stepsize_controller is not None
    # What a store holds was looked at when it was made.
    with saying("checking all cells", progress):
        looks = [check_build(each, grid, own, everywhere=not taken_up) for each in builds]
    flows, records = zip(*looks, strict=True)
    own = own or any(isinstance(flow, AbstractTraining) for flow in flows)
    if rtol is None:
        rtol = 1e-6 if own else 1e-5
    if max_steps is None:
        discrete = any(isinstance(flow, AbstractTraining) for flow in flows)
        max_steps = 1_000_000 if discrete else 4096
    if own and precision == "double-double":
        raise ValueError(
            "`precision` must not be 'double-double' with a `solver` or `stepsize_controller` "
            "of your own, nor for a discrete training, which work in float64; leave it out."
        )
    options = Options(
        solver,
        stepsize_controller,
        jnp.asarray(rtol, float),
        jnp.asarray(max_time),
        max_steps,
        jnp.asarray(resolution),
    )
    if path is not None:
        setup = Setup(
            build, builds, grid, options, curve_times, precision, own, list(records), attrs
        )
        sizes = block_size, lanes
        return sweep_stored(path, setup, way, sizes, executor, described, 3)
    columns = grid.columns
    if own:
        jobs = [Measurements(build, columns, options, curve_times) for build in builds]
        finished = climb(jobs, stream_measurements)
    else:
        times = jnp.zeros(0) if curve_times is None else curve_times
        jobs = make_programs(builds, columns, options, times, lanes, precision)
        finished = climb(jobs, stream)
    cells = Cells(grid)
    if not _fill(cells, grid.combinations, finished, progress, jobs):
        if cells.finished == 0:
            raise KeyboardInterrupt
        warnings.warn(
            f"interrupted after {cells.finished} of {cells.count} runs; the others have result "
            f"{UNFINISHED}.",
            stacklevel=2,
        )
    return cells.dataset(curve_times, options.attributes() | attrs, described)


def _fill(
    cells: Cells,
    combinations: list[tuple[int, ...]],
    finished: Stream,
    progress: bool,
    jobs: list[Any],
) -> bool:
    """Fill cells from a stream with a progress bar, until that ends or is interrupted: whether
    it ended."""
    # The runs share the cores among themselves: a BLAS that starts threads of its own for
    # every small matrix would only get in their way.
    done = 0
    with threadpool_limits(1, "blas"), Progress(cells.count, progress) as bar:
        try:
            for program, rows, found in finished:
                new = cells.write(combinations[program], rows, found)
                done += new
                bar.count(found["result"][:new])
                again = "again, finer" if new < len(rows) else "plateaus"
                bar.show(done, "compiling" if is_compiling() else again)
        except KeyboardInterrupt:
            return False
    return True
