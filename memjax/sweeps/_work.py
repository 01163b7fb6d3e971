"""What a block holds: its cells through the engine, by one thread, the same wherever it runs."""

import dataclasses
import threading
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..flows import COLUMNS
from ..plateaus import automatic_bytes, state_size
from ._blocks import Block, Blocks
from ._build import Build, BuildRuns, shapes_of
from ._calls import is_compiling
from ._engine import is_small, most_lanes, Stream, whole_lanes
from ._grid import Grid
from ._jobs import climb, make_program, Measurements, Method, stream_one_by_one
from ._options import Options
from ._variables import CURVE, VARIABLES

# The work of a block, in seconds: long against what storing and handing out a block takes, short
# against what may be lost.
_SECONDS = 20.0
# The runs of a block for each of its lanes, since the lanes run dry at its end; but a small sweep
# has so many blocks all the same, to be shared, and a large one many more.
_RUNS_A_LANE, _FEW_BLOCKS, _MANY_BLOCKS = 32, 8, 64
# The lanes of the dearer method, which few cells of a block need.
_HARD_LANES = 16

Variables = dict[str, tuple[np.dtype, tuple[int, ...]]]


class PlateauWork:
    """The measurement of the cells of any block of a sweep.

    A block does not depend on who computes it, in which order or beside what: it has a queue and a
    number of lanes of its own, which depend on the sweep alone, and one thread.

    **Arguments:**

    - `build`: the user's.
    - `options`, `curve_times`, `precision`: those of the sweep.
    - `own`: whether every run goes through `measure_plateau`.
    - `lanes`: the number of lanes of every combination of the static axes.
    - `widths`: the width up to which modes are added to its models, `None` for their own.
    - `cells`: the number of cells of a block.
    - `quick`: whether what runs once a run is compiled quickly.
    """

    def __init__(
        self,
        build: Callable[..., tuple],
        options: Options,
        curve_times: np.ndarray | None,
        precision: str,
        own: bool,
        lanes: dict[tuple, int],
        widths: dict[tuple, int | None],
        cells: int,
        quick: bool,
    ) -> None:
        self.build, self.options, self.curve_times = build, options, curve_times
        self.precision, self.own, self.lanes, self.widths = precision, own, lanes, widths
        self.cells, self.quick = cells, quick
        self._prepare()

    def _prepare(self) -> None:
        self._lock = threading.Lock()
        self._methods: dict[tuple, Method] = {}

    def __getstate__(self) -> dict[str, Any]:
        # What was compiled stays in its process.
        return {name: value for name, value in vars(self).items() if name[0] != "_"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._prepare()

    @property
    def compiling(self) -> bool:
        """Whether something is being compiled in this process."""
        return is_compiling()

    def compute(
        self,
        block: Block,
        stopped: threading.Event,
        report: Callable[[int], None] = lambda new: None,
        device: Any = None,
    ) -> dict[str, np.ndarray] | None:
        """The variables of a block, cells first, or nothing if it was stopped.

        **Arguments:**

        - `block`: the block.
        - `stopped`: set to have it stopped.
        - `report`: called with the number of cells each time that some are measured.
        - `device`: the device to compute on.
        """

        def alone(jobs: list[Any]) -> Stream:
            for number, job in enumerate(jobs):
                if stopped.is_set():
                    return
                if self.own:
                    steps = stream_one_by_one(job, stopped, self.cells)
                else:
                    steps = job.run(device, stopped)
                yield from ((number, cells, rows) for cells, rows in steps)

        found: dict[str, np.ndarray] = {}
        filled = np.zeros(block.count, bool)
        for _, cells, rows in climb([self._job(block)], alone):
            for name, values in rows.items():
                if name not in found:
                    found[name] = np.zeros((block.count, *values.shape[1:]), values.dtype)
                found[name][cells] = values
            new = int(np.sum(~filled[cells]))
            filled[cells] = True
            report(new)
        if stopped.is_set():
            return None
        if not np.all(filled):
            raise RuntimeError(f"{np.sum(~filled)} cells of the block were not measured")
        return found

    def _job(self, block: Block) -> Any:
        build, columns = Build(self.build, block.fixed), block.columns
        if self.own:
            times = None if self.curve_times is None else jnp.asarray(self.curve_times)
            return Measurements(build, columns, self.options, times)
        runs = BuildRuns(build, self.widths[block.fixed])
        with self._lock:
            if block.fixed not in self._methods:
                times = jnp.zeros(0) if self.curve_times is None else jnp.asarray(self.curve_times)
                run = shapes_of(runs, columns)
                method = Method.of(run, self.options, times, self.precision)
                self._methods[block.fixed] = method
            method = self._methods[block.fixed]
        lanes = self.lanes[block.fixed]
        hard = min(lanes, _HARD_LANES)
        return make_program(runs, columns, method, lanes, hard, self.quick)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How a sweep is cut and computed, chosen once and kept in its store."""

    span: tuple[int, ...]
    lanes: tuple[int, ...]
    widths: tuple[int | None, ...]
    quick: bool


def make_plan(
    grid: Grid,
    runs: list[Any],
    widths: list[int | None],
    block_size: int | None,
    lanes: int | None,
    costly: bool,
) -> Plan:
    """Blocks and lanes from the size of the models.

    **Arguments:**

    - `grid`: the grid.
    - `runs`: a run of every combination of the static axes, as shapes; none for runs that go
        through `measure_plateau`.
    - `widths`: up to which widths modes are added to these.
    - `block_size`, `lanes`: those of the sweep.
    - `costly`: whether such runs are discrete trainings.
    """
    total = grid.count * len(grid.combinations)
    most = [most_lanes(run) if lanes is None else lanes for run in runs]
    if block_size is None:
        seconds = [_seconds(run) for run in runs] or [1.0 if costly else 0.05]
        lane = max(most, default=1)
        least = min(_RUNS_A_LANE * lane, max(lane, -(-total // _FEW_BLOCKS)))
        block_size = max(-(-total // _MANY_BLOCKS), least)
        block_size = max(1, min(block_size, int(_SECONDS / np.mean(seconds))))
    blocks = Blocks.of(grid, block_size)
    if lanes is None:
        most = [whole_lanes(min(number, -(-blocks.cells // 8) * 8)) for number in most]
    return Plan(blocks.shape, tuple(most), tuple(widths), is_small(total))


def _seconds(run: Any) -> float:
    """About how long a run takes on one core, from the measurements in the README, or on an
    accelerator, a fiftieth of it."""
    seconds = 5e-6 * state_size(run) ** 1.5
    if not run.closed:
        seconds = max(seconds, 150 * COLUMNS * automatic_bytes(run) / 2e9)
    return seconds if jax.default_backend() == "cpu" else seconds / 50


def variables_of(records: list[dict[str, Any]], curve_times: np.ndarray | None) -> Variables:
    """Types, and shapes beyond the cells, of all that a sweep measures and records."""
    found: Variables = {name: (np.dtype(kind), ()) for name, (kind, _) in VARIABLES.items()}
    if curve_times is not None:
        found[CURVE] = (np.dtype(float), (len(curve_times),))
    for record in records:
        for name, shape in record.items():
            kind = found[name][0] if name in found else shape.dtype
            found[name] = (np.result_type(kind, shape.dtype), ())
    return found
