"""How cells are computed: by the lane engine or one by one, and again where that gave no answer."""

import dataclasses
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import as_completed, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..losses import DENSE_WIDTH
from ..plateaus import (
    cheap_steps,
    LaneMethod,
    MAX_STEPS_REACHED,
    measure_plateau,
    REFINEMENT,
    Runs,
    SMALLEST_RTOL,
    UNDECIDED,
    UNRESOLVED,
)
from ._build import Build, BuildRuns, shapes_of
from ._engine import cores, default_lanes, Program, Stream
from ._grid import ROW
from ._options import Options
from ._variables import CURVE, VARIABLES


@dataclasses.dataclass(frozen=True)
class Method:
    """How the runs of one combination of the static axes are made: the first method, and what may
    follow it."""

    first: LaneMethod
    compensable: bool
    can_harden: bool
    closed: bool
    most_steps: Array

    @staticmethod
    def of(
        run: Runs, options: Options, curve_times: Float[Array, " times"], precision: str
    ) -> "Method":
        """The method of runs such as `run`, of which shapes are enough."""
        hard = precision == "double-double"
        if hard and not run.compensable:
            raise ValueError(
                "`precision` must not be 'double-double' for a loss or model without closed "
                "forms; pass 'auto' or 'float64'."
            )
        can_harden = run.can_harden and not hard
        most = jnp.asarray(options.max_steps)
        cheap = jnp.asarray(min(options.max_steps, cheap_steps(run.flow.flow)))
        first = LaneMethod(
            rtol=options.rtol,
            max_time=options.max_time,
            max_steps=cheap if can_harden else most,
            resolution=options.resolution,
            curve_times=curve_times,
            compensated=hard,
            full=hard,
        )
        compensable = run.compensable and precision != "float64"
        return Method(first, compensable, can_harden, run.closed, most)


def make_program(
    build: BuildRuns,
    columns: dict[str, np.ndarray],
    method: Method,
    lanes: int,
    hard_lanes: int | None = None,
    quick: bool | None = None,
) -> Program:
    """The program of some cells."""
    return Program(
        build,
        columns,
        method.first,
        lanes,
        method.compensable,
        method.can_harden,
        method.closed,
        method.most_steps,
        hard_lanes,
        quick,
    )


def make_programs(
    builds: list[Build],
    columns: dict[str, np.ndarray],
    options: Options,
    curve_times: Float[Array, " times"],
    lanes: int | None,
    precision: str,
) -> list[Program]:
    """A program for every combination of the static axes."""
    programs = []
    count = len(columns[ROW])
    for build in pad([BuildRuns(build) for build in builds], columns, count):
        run = shapes_of(build, columns)
        method = Method.of(run, options, curve_times, precision)
        number = default_lanes(run, count) if lanes is None else lanes
        programs.append(make_program(build, columns, method, number))
    return programs


# What it takes to compile the programs of one more width, and a step of a lane for each mode, both
# in seconds; runs take some 250 steps (measured on a CPU).
_COMPILE, _STEP, _STEPS = 10.0, 2e-6, 250


def pad(builds: list[BuildRuns], columns: dict[str, np.ndarray], count: int) -> list[BuildRuns]:
    """The builds of programs for `count` runs each, with modes added up to a common width where
    steps of wider models are cheaper than another compilation; of `columns` a cell is enough."""
    found = [(build, shapes_of(build, columns).width) for build in builds]
    widths = {width for _, width in found if width is not None}

    def common(width: int) -> int:
        # Not across the width at which Hessians change their form.
        alike = {other for other in widths if (other <= DENSE_WIDTH) == (width <= DENSE_WIDTH)}
        cheap = {o for o in alike if 0 < (o - width) * _STEP * _STEPS * count < _COMPILE}
        return max({width, *cheap})

    to = {width: common(width) for width in widths}
    shared = {other for width, other in to.items() if other != width}
    return [
        dataclasses.replace(build, width=to[width])
        if width is not None and to[width] in shared
        else build
        for build, width in found
    ]


def climb(jobs: list[Any], run: Callable[[list[Any]], Stream]) -> Stream:
    """The stream of all jobs, and after it that of the cells that get another try: by a dearer
    method what ran out of steps or digits, and with a smaller tolerance what that leaves
    undecided."""
    tried = [(number, job, np.arange(job.count)) for number, job in enumerate(jobs)]
    while tried:
        left: dict[tuple[int, str], list[np.ndarray]] = {}
        for index, where, rows in run([job for _, job, _ in tried]):
            number, job, cells = tried[index]
            yield number, cells[where], rows
            again = rows["result"] == MAX_STEPS_REACHED
            if job.compensable:
                again = again | (rows["result"] == UNRESOLVED)
            if job.can_harden:
                left.setdefault((index, "hardened"), []).append(where[again])
            if job.rtol > SMALLEST_RTOL:
                undecided = rows["result"] == UNDECIDED
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
    build: Build, options: Options, curve_times: Array | None, varied: dict[str, Array]
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
        cell: dict[str, Any] = {name: getattr(plateau, name, None) for name in VARIABLES}
        cell |= {name: plateau.stats[name] for name in ("num_steps", "num_rejected_steps")}
        cell |= {"result": plateau.result_code, "precision": jnp.zeros((), int)}
        if plateau.curve is not None:
            cell[CURVE] = plateau.curve.loss
        return cell | record

    # In lock-step all would wait for the slowest, which only an accelerator makes up for.
    if jax.default_backend() == "cpu":
        return jax.lax.map(one, varied)
    return jax.vmap(one)(varied)


@dataclasses.dataclass(frozen=True)
class Measurements:
    """Runs that go through `measure_plateau`, as a job beside `Program`."""

    build: Build
    columns: dict[str, np.ndarray]
    options: Options
    curve_times: Array | None
    compensable: bool = False
    can_harden: bool = False

    @property
    def count(self) -> int:
        return len(self.columns[ROW])

    @property
    def rtol(self) -> float:
        # A controller of the user's own has tolerances of its own.
        own = self.options.stepsize_controller is not None
        return 0.0 if own else float(self.options.rtol)

    def refined(self, cells: np.ndarray) -> "Measurements":
        """Some of the cells, with a smaller tolerance."""
        columns = {name: column[cells] for name, column in self.columns.items()}
        options = dataclasses.replace(self.options, rtol=self.options.rtol * REFINEMENT)
        return dataclasses.replace(self, columns=columns, options=options)


def stream_one_by_one(
    job: Measurements, stopped: threading.Event, together: int
) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
    """Every run of a job through `measure_plateau`, by this thread and on an accelerator up to so
    many together: the numbers of cells and their rows."""
    length = 1 if jax.default_backend() == "cpu" else min(1024, together)
    for start in range(0, job.count, length):
        if stopped.is_set():
            return
        where = np.arange(start, min(start + length, job.count))
        yield where, _measured(job, where, length)


def _measured(job: Measurements, where: np.ndarray, length: int) -> dict[str, np.ndarray]:
    # Filled up with repeats, so that all chunks share one compilation.
    rows = np.minimum(where[0] + np.arange(length), job.count - 1)
    varied = {name: jnp.asarray(column[rows]) for name, column in job.columns.items()}
    out = _measure_cells(job.build, job.options, job.curve_times, varied)
    return {name: np.asarray(array)[: len(where)] for name, array in out.items()}


def stream_measurements(jobs: list[Measurements]) -> Stream:
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
        with nullcontext() if index in compiled else compiling[index]:
            out = _measured(job, where, length)
        compiled.add(index)
        return index, where, out

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
