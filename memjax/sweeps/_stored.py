"""A sweep through a durable store: made or taken up, filled by whoever computes, and marked."""

import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, ExitStack
from pathlib import Path
from queue import Empty, Queue
from typing import Any, NamedTuple

import numpy as np

from .._lazy import xr
from ._blocks import Blocks
from ._durable import BlockStore, Growing, MARK
from ._executors import Distributor
from ._identity import first_difference, read_identity
from ._output import BeingWritten, claimed, explained, lock_of
from ._progress import Progress
from ._store import IDENTITY
from ._task import Failure
from ._variables import UNFINISHED

# Blocks that are written together, and that may wait for it.
_TOGETHER, _WAITING = 64, 128
# How often a writer says what it is at, and how long others wait for one that makes the store.
_NOTING, _PATIENCE = 1.0, 60.0


class Content(NamedTuple):
    """What an empty store is made of; the arguments of `BlockStore.create`."""

    arrays: Mapping[str, tuple]
    growing: Mapping[str, Growing]
    attributes: Mapping[str, Any]
    identity: Mapping[str, Any]


class Way(NamedTuple):
    """How a store is filled.

    **Attributes:**

    - `executor`, `retries`, `timeout`: as in `Distributor`.
    - `resume`, `overwrite`: whether a store that is there is taken up or replaced.
    - `shard`: which of how many parts is computed here, counted from 0, or `None` for all.
    - `progress`: whether a bar is shown.
    """

    executor: Any = None
    retries: int = 2
    timeout: float | None = None
    resume: bool = False
    overwrite: bool = False
    shard: tuple[int, int] | None = None
    progress: bool = False


def is_stored(path: Path) -> bool:
    """Whether there is the store of a sweep."""
    return (path / IDENTITY).is_file()


def check_same(path: Path, identity: Mapping[str, Any], way: Way) -> None:
    """Refuse to fill a store of another sweep, or of this one without being asked to.

    **Arguments:**

    - `path`: the store.
    - `identity`: of the sweep here.
    - `way`: how it is to be filled.
    """
    store = f"`store` {str(path)!r}"
    try:
        difference = first_difference(read_identity(path), dict(identity))
    except ValueError as error:
        raise ValueError(
            f"{store} cannot be taken up: {error}; choose another name, or overwrite it "
            "(`overwrite=True`, `--overwrite`)."
        ) from error
    if difference is not None:
        raise ValueError(
            f"{store} is of another sweep, which differs in {difference}; choose another name, or "
            "overwrite it (`overwrite=True`, `--overwrite`)."
        )
    if not way.resume and way.shard is None:
        done = "a finished" if BlockStore(path).complete else "an unfinished"
        raise FileExistsError(
            f"{store} holds {done} run of this sweep; take it up (`resume=True`, `--resume`), "
            "choose another name, or overwrite it (`overwrite=True`, `--overwrite`)."
        )


def fill(
    path: Path, work: Any, blocks: Blocks, way: Way, content: Content, stacklevel: int
) -> "xr.Dataset":
    """Compute what a store lacks, and open its dataset.

    **Arguments:**

    - `path`: the store.
    - `work`: what blocks are computed by.
    - `blocks`: the blocks.
    - `way`: how.
    - `content`: what the store is made of where there is none.
    - `stacklevel`: of warnings.
    """
    # What cannot be handed out is refused before anything is written.
    handed = Distributor(work, blocks, way.executor, way.retries, way.timeout)
    with ExitStack() as held:
        held.enter_context(explained(path, lock_of(path), lock_of(path, name_of(way.shard))))
        make = lambda: BlockStore.create(path, way.overwrite, *content)
        made = held.enter_context(holding(path, make, is_stored, way.overwrite, way.shard))
        if not made:
            check_same(path, content.identity, way)
        store = BlockStore(path)
        present = _checked(store, way, stacklevel + 1)
        interrupted, failed = False, 0
        if next(_missing(blocks, present, way), None) is not None:
            if store.complete:
                store.unseal()
            missing = _missing(blocks, present, way)
            interrupted, failed = _compute(store, handed, way, present, missing)
        whole = sum(1 for _ in store.present()) == store.number
        if whole and not store.complete:
            store.seal()
    done = sum(store.cells_in(index) for index in store.present())
    if interrupted and not done:
        raise KeyboardInterrupt
    if interrupted:
        warnings.warn(
            f"interrupted after {done} of {store.cells} runs, which are in {str(path)!r}; the "
            f"others have result {UNFINISHED}. Go on with `resume=True` (`--resume`).",
            stacklevel=stacklevel,
        )
    elif failed:
        _, error = next(iter(store.errors().items()), (0, {"error": "unknown"}))
        warnings.warn(
            f"{failed} of {store.number} blocks failed, and their runs have result {UNFINISHED}; "
            f"the first: {error['error']} (`memjax status` lists all; `resume=True` tries again.)",
            stacklevel=stacklevel,
        )
    return store.open()


@contextmanager
def holding(
    path: Path,
    make: Callable[[], Any],
    is_made: Callable[[Path], bool],
    overwrite: bool,
    shard: tuple[int, int] | None,
) -> Iterator[bool]:
    """Hold an output that several runs fill, one after the other or by shards side by side.

    **Arguments:**

    - `path`: the output.
    - `make`: makes it.
    - `is_made`: whether it is there.
    - `overwrite`: whether it is made anew if it is.
    - `shard`: as in `Way`.

    **Returns:**

    Whether it was made here.
    """
    begin, made = time.monotonic(), False
    name = name_of(shard)
    while True:
        try:
            if overwrite and not made or not is_made(path):
                make()
                made = True
            with ExitStack() as held:
                held.enter_context(claimed(path, shared=shard is not None))
                if shard is not None:
                    held.enter_context(claimed(path, name))
                if is_made(path):
                    yield made
                    return
        except BeingWritten as error:
            # Other shards may just be making it; a second one like this is refused at once.
            again = shard is not None and error.part != name
            if not again or time.monotonic() - begin > _PATIENCE:
                raise
            time.sleep(0.1)


def name_of(shard: tuple[int, int] | None) -> str:
    """What a writer of an output is called."""
    return "all" if shard is None else f"shard-{shard[0] + 1}-of-{shard[1]}"


def _checked(store: BlockStore, way: Way, stacklevel: int) -> bytearray:
    """Which blocks are there, whole; those that are damaged are forgotten."""
    present, damaged = bytearray(store.number), []
    for index in store.present():
        if way.shard is not None and index % way.shard[1] != way.shard[0]:
            present[index] = True  # somebody else's
            continue
        wrong = store.check(index)
        if wrong is None:
            present[index] = True
        else:
            damaged.append(wrong)
            store.discard(index)
    if way.shard is None:
        store.tidy()
    if damaged:
        more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
        warnings.warn(
            f"store {str(store.path)!r} is damaged: {damaged[0]}{more}; {len(damaged)} blocks are "
            "computed again.",
            stacklevel=stacklevel + 1,
        )
    return present


def _missing(blocks: Blocks, present: bytearray, way: Way) -> Iterator[int]:
    for index in blocks.order():
        mine = way.shard is None or index % way.shard[1] == way.shard[0]
        if mine and not present[index]:
            yield index


def _compute(
    store: BlockStore,
    handed: Distributor,
    way: Way,
    present: bytearray,
    missing: Iterator[int],
) -> tuple[bool, int]:
    """Compute blocks and store them: whether that was interrupted, and how many failed."""
    first, step = way.shard or (0, 1)
    wanted = range(first, store.number, step)
    total = sum(store.cells_in(index) for index in wanted)
    before = sum(store.cells_in(index) for index in wanted if present[index])
    interrupted, failed = False, 0
    with ExitStack() as held:
        progress = held.enter_context(Progress(total, way.progress, before))
        writer = held.enter_context(Writer(store))
        handed.unwritten = lambda: writer.pending
        note = _Note(store, way, handed)
        held.callback(note.end)
        try:
            with closing(handed.run(missing)) as results:
                for item in results:
                    index, found = item if item is not None else (-1, None)
                    if isinstance(found, Failure):
                        failed += 1
                        store.note_error(index, {"error": found.error, "trace": found.trace})
                    elif found is not None:
                        progress.count(np.asarray(found[MARK]))
                        writer.put(index, found)
                    writer.check()
                    note.renew()
                    done = before + max(handed.reported, writer.cells)
                    waits = done == before or getattr(handed.work, "compiling", False)
                    doing = "compiling" if waits else "plateaus"
                    progress.show(min(done, total), doing)
        except KeyboardInterrupt:
            interrupted = True
        writer.close()
        progress.show(before + writer.cells)
    return interrupted, failed


class _Note:
    """Says in the store what this writer is at."""

    def __init__(self, store: BlockStore, way: Way, handed: Distributor) -> None:
        self._store, self._name, self._handed = store, name_of(way.shard), handed
        self._last = -_NOTING

    def renew(self) -> None:
        if time.monotonic() - self._last < _NOTING:
            return
        self._last = time.monotonic()
        what = {
            "process": os.getpid(),
            "host": socket.gethostname(),
            "workers": self._handed.workers,
            "blocks": sorted(self._handed.under_way.values())[:1000],
        }
        try:
            self._store.note_running(self._name, what)
        except OSError:
            pass  # nothing depends on it

    def end(self) -> None:
        self._store.forget_running(self._name)


class Writer:
    """Writes blocks in the background, those that wait together.

    **Arguments:**

    - `store`: where to.
    """

    def __init__(self, store: BlockStore) -> None:
        self._store = store
        self._queue: Queue[tuple[int, Mapping[str, np.ndarray]] | None] = Queue(_WAITING)
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        self.cells = self.pending = 0
        # One encodes while the other waits for the disk.
        self._threads = [
            threading.Thread(target=self._run, name=f"store-{k}", daemon=True) for k in range(2)
        ]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: Any) -> None:
        self._end()

    def put(self, index: int, values: Mapping[str, np.ndarray]) -> None:
        """Have a block written."""
        with self._lock:
            self.pending += 1
        self._queue.put((index, values))

    def check(self) -> None:
        """Raise what went wrong with the writing."""
        if self._error is not None:
            raise self._error

    def close(self) -> None:
        """Wait until all is written."""
        self._end()
        self.check()

    def _end(self) -> None:
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads = []

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            found = dict([item])
            while len(found) < _TOGETHER:
                try:
                    item = self._queue.get_nowait()
                except Empty:
                    break
                if item is None:
                    self._queue.put(None)
                    break
                found[item[0]] = item[1]
            if self._error is not None:
                continue  # what comes after an error is given up, so that nobody waits
            try:
                chunks = {k: self._store.encoded(k, values) for k, values in found.items()}
                self._store.write(chunks)
            except BaseException as error:
                self._error = error
                continue
            with self._lock:
                self.cells += sum(map(self._store.cells_in, found))
                self.pending -= len(found)
