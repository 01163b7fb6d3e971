import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Real
from threadpoolctl import threadpool_limits

from .._checks import (
    as_positive,
    as_tolerance,
    check_callable,
    check_choice,
    check_flag,
    check_integer,
)
from .._lazy import tqdm, xr
from .._typing import ArrayLike, ScalarLike
from ..flows import AbstractTraining
from ..plateaus import (
    as_curve_times,
    as_max_time,
    check_integrator,
)
from ._build import Build, check_build
from ._cells import as_attributes, Cells
from ._engine import Stream, stream
from ._grid import Grid
from ._jobs import climb, make_programs, Measurements, stream_measurements
from ._options import Options
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
) -> "xr.Dataset":
    """Measure a plateau at every point of a grid.

    The grid is a queue of runs over a fixed number of lanes: all lanes take a step at a time,
    and those that leave their plateau are replaced by the next runs. The method is that of
    [`memjax.RadauIIA5`][], in the displacement from the start, with closed-form
    gradients and Hessians where the loss has them (`WhiteNoiseLoss` without a horizon for a
    `DiagonalLinearRNN`) and with automatic ones elsewhere: as arrays up to 256 weights, on a space
    of 32 dimensions beyond. Memory is bounded by the lanes, and three programs are compiled for
    every combination of the static axes, whatever the size of the grid. Runs that take more than
    1,024 steps begin anew with Newton's iteration on the Jacobians of all stages. A discrete
    training, and what has a `solver` or `stepsize_controller` of your own, goes through
    [`memjax.measure_plateau`][] run by run instead, which is much slower.

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

    columns, combinations = grid.columns, grid.combinations
    builds = [Build(build, grid.fixed(combination)) for combination in combinations]
    flows = [check_build(build, columns) for build in builds]
    own = solver is not None or stepsize_controller is not None
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
    if own:
        jobs = [Measurements(build, columns, options, curve_times) for build in builds]
        finished = climb(jobs, stream_measurements)
    else:
        times = jnp.zeros(0) if curve_times is None else curve_times
        jobs = make_programs(builds, columns, options, times, lanes, precision)
        finished = climb(jobs, stream)
    cells = Cells(grid)
    if not _fill(cells, combinations, finished, progress):
        if cells.finished == 0:
            raise KeyboardInterrupt
        warnings.warn(
            f"interrupted after {cells.finished} of {cells.count} runs; the others have result "
            f"{UNFINISHED}.",
            stacklevel=2,
        )
    complete = int(cells.finished == cells.count)
    return cells.dataset(curve_times, options.attributes() | {"complete": complete} | attrs)


def _fill(
    cells: Cells, combinations: list[tuple[int, ...]], finished: Stream, progress: bool
) -> bool:
    """Fill cells from a stream with a progress bar, until that ends or is interrupted: whether
    it ended."""
    bar = tqdm.tqdm(total=cells.count, desc="compiling", unit="run", disable=not progress)
    # The runs share the cores among themselves: a BLAS that starts threads of its own for
    # every small matrix would only get in their way.
    with threadpool_limits(1, "blas"), bar:
        try:
            for program, rows, found in finished:
                new = cells.write(combinations[program], rows, found)
                again = "again, finer" if new < len(rows) else "plateaus"
                bar.set_description(again, refresh=False)
                bar.update(new)
        except KeyboardInterrupt:
            return False
    return True
