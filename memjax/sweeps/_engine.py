"""The lane engine: a queue of runs over a fixed number of lanes.

A few programs do all the work of a sweep, whatever its size: one builds a batch of runs, one
starts it, one advances all lanes and, on the device, replaces those that ended from the batch, and
one collects what the replaced lanes measured. A finished batch is one item of a stream. Batches may
be larger than the number of lanes; they are then built, started and collected in pieces of as many
runs as there are lanes.
"""

import dataclasses
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from queue import Empty, SimpleQueue
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from ..numerics import choose
from ..plateaus import EXITED, lane_bytes, LaneMethod, Lanes, REFINEMENT, RUNNING, Runs, state_size
from ._calls import Call, first_call

# Finished batches: the number of their program, of their cells, and their variables.
Stream = Iterator[tuple[int, np.ndarray, dict[str, np.ndarray]]]

# The result of a lane that holds no run. Of one that left its plateau there is least to be found
# out when it is collected: to look whether a lane rests takes long for wide models.
_IDLE = EXITED
# Steps in one call: short enough for an interrupt to be noticed.
_STEPS = 256


class Pool(eqx.Module):
    """Runs with their lanes, and the number of the cell that each measures, -1 for none."""

    runs: Runs
    lanes: Lanes
    cell: Int[Array, " lanes"]


def build_batch(
    build: Callable[..., Runs], varied: dict[str, Array], lanes: int, size: Array
) -> Runs:
    """A batch of runs, of which the first `size` are asked for."""
    return _in_pieces(eqx.filter_vmap(build, out_axes=eqx.if_array(-1)), lanes, size, varied)


def start_batch(method: LaneMethod, runs: Runs, cell: Array, lanes: int, size: Array) -> Pool:
    """A batch of runs at their starts; `cell` is -1 where there is none."""

    def one(pieces: tuple[Runs, Array]) -> Pool:
        runs, cell = pieces
        lanes = method.start(runs)
        result = jnp.where(cell >= 0, lanes.result, _IDLE)
        return Pool(runs, eqx.tree_at(lambda s: s.result, lanes, result), cell)

    return _in_pieces(one, lanes, size, (runs, cell))


def open_pool(batch: Pool, lanes: int) -> tuple[Pool, Pool]:
    """Lanes without runs, and room for the runs of a batch that ended, and for lanes besides."""
    arrays, fixed = eqx.partition(batch, eqx.is_array)
    idle = jax.tree.map(lambda x: x[..., :lanes], arrays)
    free = lambda p: (p.lanes.result, p.cell)
    nothing = (jnp.full_like(x, y) for x, y in zip(free(idle), (_IDLE, -1), strict=True))
    idle = eqx.tree_at(free, idle, tuple(nothing))
    wider = lambda x: jnp.zeros((*x.shape[:-1], x.shape[-1] + lanes), x.dtype)
    return eqx.combine(idle, fixed), eqx.combine(jax.tree.map(wider, arrays), fixed)


def put_in(pool: Pool, ended: Pool, first: Array) -> Pool:
    """All lanes in the places from `first` on."""
    put = lambda x, y: lax.dynamic_update_slice_in_dim(y, x, first, -1) if eqx.is_array(x) else y
    return jax.tree.map(put, pool, ended)


def advance(
    method: LaneMethod, pool: Pool, batch: Pool, ended: Pool, taken: Array, size: Array
) -> tuple[Pool, Pool, Array]:
    """Advance all lanes. Those that end make room for the next runs of `batch`, whose first
    `taken` of `size` have been started before, and are kept in `ended` at the same places, after
    which there is anything.

    Returns once the batch is used up; with an empty one, once no lane runs any more.
    """
    count = pool.cell.shape[0]
    # What runs hold besides arrays, such as the function of a loss, is no value of a loop.
    (pool, batch, ended), fixed = eqx.partition((pool, batch, ended), eqx.is_array)

    def waiting(lanes: Lanes) -> Bool[Array, " lanes"]:
        return lanes.result != RUNNING

    def going(carry: tuple) -> Bool[Array, ""]:
        pool, _, taken, steps = carry
        more = jnp.where(size > 0, taken < size, jnp.any(~waiting(pool.lanes)))
        return more & (steps < _STEPS)

    def exchange(pool: Pool, ended: Pool, taken: Array) -> tuple[Pool, Pool, Array]:
        free = waiting(pool.lanes)
        number = jnp.cumsum(free) - 1
        free = free & (taken + number < size)
        # The lanes that are free, in their order.
        place = jnp.where(free, number, count)
        source = jnp.zeros(count, int).at[place].set(jnp.arange(count), mode="drop")
        ended = put_in(_take(pool, source), ended, taken)
        pool = choose(free, _take(batch, jnp.where(free, taken + number, 0)), pool)
        return pool, ended, taken + jnp.sum(free)

    def advance_and_exchange(carry: tuple) -> tuple:
        pool, ended, taken, steps = carry
        runs = eqx.combine(pool.runs, fixed[0].runs)
        # Not for each lane that ends: an exchange moves all that there is of every lane.
        enough = jnp.where(size > 0, jnp.minimum(max(1, count // 8), size - taken), count)

        def before(carry: tuple) -> Bool[Array, ""]:
            lanes, steps = carry
            return (jnp.sum(waiting(lanes)) < enough) & (steps < _STEPS)

        def step(carry: tuple) -> tuple:
            lanes, steps = carry
            return method.step(runs, lanes), steps + 1

        moved, steps = lax.while_loop(before, step, (pool.lanes, steps))
        pool = eqx.tree_at(lambda p: p.lanes, pool, moved)
        return *exchange(pool, ended, taken), steps

    start = (pool, ended, taken, jnp.zeros((), int))
    pool, ended, taken, _ = lax.while_loop(going, advance_and_exchange, start)
    return eqx.combine(pool, fixed[0]), eqx.combine(ended, fixed[2]), taken


def collect(
    method: LaneMethod, ended: Pool, lanes: int, size: Array
) -> tuple[Array, dict[str, Array]]:
    """The cells of the first `size` runs of the room for a batch, -1 where a run has not ended, and
    what all measured, runs first."""

    def one(pool: Pool) -> tuple[Array, dict[str, Array]]:
        rows, _ = method.finish(pool.runs, pool.lanes)
        # A sweep keeps the losses of its curves only.
        rows.pop("curve_distance", None)
        rows = {name: jnp.moveaxis(row, 0, -1) for name, row in rows.items()}
        return jnp.where(pool.lanes.result != RUNNING, pool.cell, -1), rows

    ended = jax.tree.map(lambda x: x[..., :-lanes] if eqx.is_array(x) else x, ended)
    cell, rows = _in_pieces(one, lanes, size, ended)
    rows = {name: jnp.moveaxis(row, -1, 0) for name, row in rows.items()}
    return jnp.where(jnp.arange(cell.shape[0]) < size, cell, -1), rows


def _in_pieces(function: Callable[[Any], Any], lanes: int, size: Array, batch: Any) -> Any:
    """`function` of so many lanes of a batch at a time, as far as there are `size`; lanes are last.

    The memory for one piece serves for the next, and what takes a while to begin is begun once.
    """
    arrays, fixed = eqx.partition(batch, eqx.is_array)
    count = jax.tree.leaves(arrays)[0].shape[-1] // lanes
    if count == 1:
        return function(batch)
    kept = None

    def piece(arrays: Any) -> Any:
        nonlocal kept
        out, kept = eqx.partition(function(eqx.combine(arrays, fixed)), eqx.is_array)
        return out

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-1], count, lanes), -2, 0)

    def joined(x: Array) -> Array:
        return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], count * lanes)

    pieces = jax.tree.map(split, arrays)
    shapes = jax.eval_shape(piece, jax.tree.map(lambda x: x[0], pieces))
    nothing = lambda _: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    one = lambda args: lax.cond(args[0] < size, piece, nothing, args[1])
    out = lax.map(one, (lanes * jnp.arange(count), pieces))
    return eqx.combine(jax.tree.map(joined, out), kept)


# So many runs take longer than what is saved by compiling quickly.
_FEW = 2048
# In so many pieces a batch is worked off, where runs are that many. With 2 sweeps of four modes
# take longer, with 8 those of sixteen (measured).
_PIECES = 4
# The largest tolerance of the dearer method.
_HARD_RTOL = 1e-6


def is_small(count: int) -> bool:
    """Whether a sweep of so many runs is rather compiled quickly."""
    return jax.default_backend() == "cpu" and count < _FEW


def _take(tree: Any, index: Array) -> Any:
    """The lanes at `index` of every array."""
    return jax.tree.map(lambda x: x[..., index] if eqx.is_array(x) else x, tree)


class Program:
    """The cells of a sweep that share one set of compiled programs.

    **Arguments:**

    - `build`: from the values of the axes of one cell to its `Runs`.
    - `columns`: the values of every axis, one entry a cell.
    - `method`: how lanes start, step and end.
    - `lanes`: the number of lanes.
    - `compensable`: whether what float64 leaves unresolved may be run in double-double.
    - `can_harden`: whether there is a dearer method for what this one does not finish.
    - `closed`: whether Hessians are cheap.
    - `most_steps`: how many steps the dearer method may take.
    - `hard_lanes`: the number of lanes of the dearer method; by default as many as it has cells.
    - `quick`: whether programs are compiled quickly and run slower; by default where there are
        few cells.
    """

    def __init__(
        self,
        build: Callable[[dict[str, Array]], Runs],
        columns: dict[str, np.ndarray],
        method: LaneMethod,
        lanes: int,
        compensable: bool,
        can_harden: bool,
        closed: bool,
        most_steps: Array,
        hard_lanes: int | None = None,
        quick: bool | None = None,
    ) -> None:
        self.build, self.columns, self.method, self.lanes = build, columns, method, lanes
        self.compensable, self.can_harden, self.closed = compensable, can_harden, closed
        self.most_steps = most_steps
        self.count = len(next(iter(columns.values())))
        self.next = 0
        self.lock = threading.Lock()
        self.hard_lanes = hard_lanes
        self.quick = is_small(self.count) if quick is None else quick
        # What is compiled must not depend on the number of cells, which differs between the parts
        # of a stored sweep. On other devices lanes fill the memory.
        many = closed and not self.quick and jax.default_backend() == "cpu"
        self.most = lanes * (_PIECES if many else 1)
        self._calls: dict[tuple[Callable, Any], Call] = {}

    @property
    def rtol(self) -> float:
        """The tolerance."""
        return float(self.method.rtol)

    def hardened(self, cells: np.ndarray) -> "Program":
        """Some of the cells by the dearer method: Newton's iteration with all Jacobians, and twice
        the digits where there are any."""
        # A lane of these costs more, and has fewer fellows.
        lanes = self.hard_lanes or min(self.lanes, 8 * -(-len(cells) // 8))
        changes = {"full": True, "compensated": self.compensable, "max_steps": self.most_steps}
        # Curved manifolds ask for more than plateaus do.
        changes["rtol"] = jnp.minimum(self.method.rtol, _HARD_RTOL)
        return self._again(cells, lanes, False, **changes)

    def refined(self, cells: np.ndarray) -> "Program":
        """Some of the cells, with a smaller tolerance."""
        rtol = self.method.rtol * REFINEMENT
        return self._again(cells, self.lanes, self.can_harden, rtol=rtol)

    def _again(self, cells: np.ndarray, lanes: int, can_harden: bool, **changes: Any) -> "Program":
        columns = {name: column[cells] for name, column in self.columns.items()}
        method = dataclasses.replace(self.method, **changes)
        fixed = self.closed, self.most_steps, self.hard_lanes, self.quick
        return Program(self.build, columns, method, lanes, self.compensable, can_harden, *fixed)

    def call(self, function: Callable, device: Any, *arguments: Any) -> Any:
        if (function, device) in self._calls:
            return self._calls[function, device](*arguments)
        effort = "most"
        if self.quick:
            # Where there are closed forms all the work is in one of the programs.
            effort = "least" if self.closed and function is not advance else "less"
        self._calls[function, device], out = first_call(function, effort, device, arguments)
        return out

    def batch(self, device: Any, workers: int = 1) -> tuple[Pool, Array, int]:
        """The next cells of the queue at their starts, and how many they are."""
        with self.lock:
            # Smaller ones towards the end, so that all workers end at about the same time.
            share = -(-(self.count - self.next) // (2 * workers))
            size = min(self.count - self.next, self.most, max(self.lanes, share))
            first, self.next = self.next, self.next + size
        # Filled up with repeats, so that all batches share one compilation.
        rows = np.minimum(first + np.arange(self.most), self.count - 1)
        cell = np.where(np.arange(self.most) < size, rows, -1)
        varied = {name: column[rows] for name, column in self.columns.items()}
        varied, cell, count = jax.device_put((varied, cell, np.asarray(size)), device)
        runs = self.call(build_batch, device, self.build, varied, self.lanes, count)
        batch = self.call(start_batch, device, self.method, runs, cell, self.lanes, count)
        return batch, count, size

    def run(
        self, device: Any, stopped: threading.Event, workers: int = 1, helping: bool = False
    ) -> Iterator[tuple[np.ndarray, dict]]:
        """Work on the queue until it is empty: the numbers of cells and their rows, by the
        batch, in the order in which they finish. A worker that is `helping` compiles what comes
        last first, while another compiles what comes first."""
        with self.lock:
            if self.next == self.count:
                return

        def collected(ended: Pool, size: Array) -> tuple:
            return self.call(collect, device, self.method, ended, self.lanes, size)

        none, all_lanes = jax.device_put((np.asarray(0), np.asarray(self.lanes)), device)
        batch, count, size = self.batch(device, workers)
        pool, room = self.call(open_pool, device, batch, self.lanes)
        if helping:
            collected(room, none)
        late = None
        while not stopped.is_set():
            ended, taken = room, none
            while not stopped.is_set():
                pool, ended, taken = self.call(
                    advance, device, self.method, pool, batch, ended, taken, count
                )
                # The rows of the batch before are fetched while this one is under way.
                if late is not None:
                    yield self.fetch(*late)
                    late = None
                else:
                    # A sign of life.
                    yield np.zeros(0, int), {"result": np.zeros(0, int)}
                if size == 0 and not np.any(np.asarray(pool.lanes.result) == RUNNING):
                    ended = self.call(put_in, device, pool, room, none)
                    yield self.fetch(*collected(ended, all_lanes))
                    return
                if size > 0 and int(taken) == size:
                    break
            if size > 0 and int(taken) > 0:
                late = collected(ended, taken)
            if not stopped.is_set():
                batch, count, size = self.batch(device, workers)
        if late is not None:
            yield self.fetch(*late)
        # Stopped: what has ended is still an answer.
        ended = self.call(put_in, device, pool, room, none)
        yield self.fetch(*collected(ended, all_lanes))

    @staticmethod
    def fetch(cell: Array, rows: dict[str, Array]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        cells = np.asarray(cell)
        kept = cells >= 0
        return cells[kept], {name: np.asarray(row)[kept] for name, row in rows.items()}


def stream(programs: list[Program]) -> Stream:
    """Work off the queues of all programs on all local devices.

    A single CPU device is driven by as many threads as there are cores, each with lanes of its
    own. After an interrupt what is finished still comes, and then the interrupt.

    **Returns:**

    The stream of finished batches: the number of the program, the numbers of the cells in it,
    and their variables.
    """
    devices = jax.local_devices()
    workers = len(devices)
    if workers == 1 and devices[0].platform == "cpu":
        workers = cores()
    results: SimpleQueue = SimpleQueue()
    stopped = threading.Event()

    def work(worker: int) -> None:
        device = devices[worker % len(devices)]
        context = jax.default_device(device) if len(devices) > 1 else nullcontext()
        # Each begins with another program, so that they compile side by side.
        order = [(worker + k) % len(programs) for k in range(len(programs))]
        try:
            with context:
                for index in order:
                    # Another worker on the same device.
                    helping = worker >= len(devices) and worker % 2 == 1
                    for cell, rows in programs[index].run(device, stopped, workers, helping):
                        results.put((index, cell, rows))
        except BaseException as error:
            results.put(error)
        results.put(None)

    threads = [
        threading.Thread(target=work, args=(w,), name=f"sweep-{w}", daemon=True)
        for w in range(workers)
    ]
    for thread in threads:
        thread.start()
    left, interrupt = workers, None
    try:
        while left:
            try:
                item = results.get(timeout=0.2)  # so that an interrupt is noticed
            except Empty:
                continue
            except KeyboardInterrupt as error:
                stopped.set()
                interrupt = error
                continue
            if item is None:
                left -= 1
            elif isinstance(item, BaseException):
                raise item
            else:
                yield item
    finally:
        stopped.set()
        # However this ends: a process that exits while a thread compiles is aborted.
        for thread in threads:
            thread.join()
    if interrupt is not None:
        raise interrupt


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def default_lanes(run: Runs, count: int) -> int:
    """The number of lanes for runs of this size, `count` of them in all."""
    workers = len(jax.local_devices())
    if jax.default_backend() == "cpu" and workers == 1:
        workers = cores()
    # A small sweep is shared among all workers.
    return whole_lanes(min(most_lanes(run), -(-count // (8 * workers)) * 8))


def whole_lanes(number: int) -> int:
    """Of at most so many lanes whole vectors, which have eight."""
    return number // 8 * 8 if number >= 8 else max(1, number)


# How many lanes are best for a core by the largest state of a run, 32 of larger ones (measured).
# More do not stay in the cache. Of loops over 16 lanes XLA makes code for one number at a time,
# which takes three times as long as vectors.
_BEST = (8, 256), (32, 128), (64, 64)


def most_lanes(run: Runs) -> int:
    """The number of lanes on one core or device for a large sweep of runs of this size.

    As many as are best for a core (measured), or fit in 2 GB of an accelerator; fewer where
    automatic differentiation would take more than 50 MB a core, or 8 GB of an accelerator.
    """
    n = state_size(run)
    on_cpu = jax.default_backend() == "cpu"
    if on_cpu:
        number = next((lanes for size, lanes in _BEST if n <= size), 32)
    else:
        number = max(64, min(16384, int(2e9) // (64 * n**2)))
    if not run.closed:
        number = min(number, int((5e7 if on_cpu else 8e9) // lane_bytes(run)))
    return whole_lanes(number)
