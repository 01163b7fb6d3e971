"""Handing out blocks: to threads of this process, or to any executor."""

import functools
import importlib.metadata
import itertools
import pickle
import threading
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import BrokenExecutor, Future, ThreadPoolExecutor
from contextlib import nullcontext
from queue import Empty, SimpleQueue
from typing import Any

import jax

from .._checks import check_integer, said, shown
from ._blocks import Blocks
from ._engine import cores
from ._task import compute, compute_remotely, Failure, Found, one_blas_thread

# Blocks under way at once where it is not known how many workers an executor has.
_UNKNOWN = 32
# How often the number of workers is asked for, and a future that cannot report is looked at.
_ASKING, _LOOKING = 5.0, 0.2
# How often it is looked whether blocks have been written.
_WRITING = 0.002


def as_executor(value: Any, name: str = "executor") -> tuple[Any, bool]:
    """What computes blocks, and whether it is to be closed at the end.

    A number makes so many worker processes, and an address connects to a Dask scheduler.
    """
    if value is None:
        return None, False
    if isinstance(value, int) and not isinstance(value, bool):
        number = check_integer(name, value, most=10_000)
        from ._workers import WorkerProcesses

        return WorkerProcesses(number), True
    if isinstance(value, str):
        return _connect(name, value), True
    if isinstance(value, type) or not callable(getattr(value, "submit", None)):
        raise TypeError(
            f"`{name}` must be an executor, a number of processes or the address of a Dask "
            f"scheduler, got {shown(value)}; pass for example "
            "concurrent.futures.ProcessPoolExecutor(4)."
        )
    return value, False


def _connect(name: str, address: str) -> Any:
    """The executor of a Dask scheduler."""
    kinds = ("tcp://", "tls://", "ucx://", "ws://", "wss://", "inproc://")
    if not address.startswith(kinds):
        raise ValueError(
            f"`{name}` must be the address of a Dask scheduler, got {shown(address)}; pass for "
            "example 'tcp://host:8786'."
        )
    try:
        from dask.distributed import Client  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            f"`{name}` needs Dask for an address; pip install 'memjax[distributed]'."
        ) from error
    try:
        return Client(address, timeout="10s", set_as_default=False).get_executor()
    except (OSError, ValueError) as error:
        raise ConnectionError(
            f"`{name}` must be the address of a Dask scheduler that answers, got "
            f"{shown(address)}: {said(error)}"
        ) from error


def close(executor: Any) -> None:
    """End what `as_executor` has made."""
    client = getattr(executor, "_client", None)
    if client is None:
        executor.shutdown(wait=True, cancel_futures=True)
    else:
        client.close()


class Distributor:
    """Hands out blocks to an executor, a bounded number at a time.

    **Arguments:**

    - `work`: what blocks are computed by, as `compute` of `_task.py` takes it.
    - `blocks`: the blocks.
    - `executor`: the executor, or `None` for the cores or devices of this process.
    - `retries`: how many more times a block is handed out whose worker died.
    - `timeout`: how many seconds a block may take, or `None`.

    **Attributes:**

    - `under_way`: the numbers of the blocks that are handed out, by their futures.
    - `reported`: how many cells were measured in this process.
    - `unwritten`: says how many blocks are computed and not yet stored.
    - `stopped`: set to have all of this process stopped.
    """

    def __init__(
        self, work: Any, blocks: Blocks, executor: Any, retries: int, timeout: float | None
    ) -> None:
        self.work, self.blocks, self.executor = work, blocks, executor
        self.retries, self.timeout = retries, timeout
        self.stopped = threading.Event()
        self.under_way: dict[Any, int] = {}
        self.reported = 0
        self.unwritten: Callable[[], int] = lambda: 0
        self._done: SimpleQueue[Any] = SimpleQueue()
        self._attempts: dict[int, int] = {}
        self._lock = threading.Lock()
        self._asked, self._workers = -_ASKING, 1
        own = executor is None
        if own:
            devices = jax.local_devices()
            several = len(devices) > 1 or devices[0].platform != "cpu"
            number = len(devices) if several else cores()
            self._devices: list[Any] = list(devices) if len(devices) > 1 else [None] * number
            self.executor = ThreadPoolExecutor(number, "sweep")
        if own or isinstance(executor, ThreadPoolExecutor):
            self._call = self._in_thread
        else:
            self._call = functools.partial(compute_remotely, _pickled(work, executor))
        self._own = own

    def _in_thread(self, block: Any, timeout: float | None) -> Found:
        with self._lock:
            device = self._devices.pop() if self._own else None
        try:
            return compute(self.work, block, timeout, self.stopped, self._report, device)
        finally:
            if self._own:
                self._devices.append(device)

    def _report(self, new: int) -> None:
        with self._lock:
            self.reported += new

    @property
    def workers(self) -> int:
        """How many blocks are computed at once, as far as is known."""
        if time.monotonic() - self._asked > _ASKING:
            self._asked = time.monotonic()
            self._workers = _count_workers(self.executor)
        return self._workers

    def run(self, order: Iterator[int]) -> Generator[tuple[int, Found] | None, None, None]:
        """The numbers of blocks with what was found as they come, and `None` from time to time."""
        order = iter(order)
        # Limited once for all blocks of this process, since that takes a while.
        with one_blas_thread() if self._own else nullcontext():
            yield from self._run(order)

    def _run(self, order: Iterator[int]) -> Iterator[tuple[int, Found] | None]:
        try:
            more = True
            while more or self.under_way:
                # What waits to be written would be lost, too.
                room = 2 * self.workers - self.unwritten() - len(self.under_way)
                if more and room > 0:
                    indices = list(itertools.islice(order, room))
                    more = len(indices) == room
                    for index in indices:
                        self._submit(index)
                if self.under_way:
                    yield self._next()
                elif more:
                    time.sleep(_WRITING)
                    yield None
        finally:
            self.stop()

    def stop(self) -> None:
        """Have all that is under way stopped, and in this process wait for it."""
        self.stopped.set()
        for future in list(self.under_way):
            future.cancel()
        self.under_way.clear()
        if self._own:
            self.executor.shutdown(wait=True, cancel_futures=True)

    def _submit(self, index: int) -> None:
        block = self.blocks.block(index)
        try:
            future = self.executor.submit(self._call, block, self.timeout)
        except (BrokenExecutor, RuntimeError) as error:
            raise ExecutorLost(
                f"`executor` takes no blocks any more ({said(error)}); what is finished is in the "
                "store: start a new one and pass resume=True."
            ) from error
        self.under_way[future] = index
        if isinstance(future, Future):
            future.add_done_callback(self._done.put)

    def _next(self) -> tuple[int, Found] | None:
        try:
            future = self._done.get(timeout=_LOOKING)
        except Empty:
            # What cannot report, such as a job of submitit, is looked at.
            ready = (f for f in self.under_way if not isinstance(f, Future) and f.done())
            future = next(ready, None)
        if future is None or future not in self.under_way:
            return None
        index = self.under_way.pop(future)
        try:
            found = future.result()
        except BaseException as error:
            if isinstance(error, (KeyboardInterrupt, SystemExit)):
                raise
            # What the block itself raises comes as a value: its worker is lost.
            tries = self._attempts[index] = self._attempts.get(index, 0) + 1
            if tries <= self.retries:
                self._submit(index)
                return None
            found = Failure(f"its worker was lost {tries} times: {said(error)}")
        return index, found


class ExecutorLost(RuntimeError):
    """An executor takes no blocks any more."""


def _count_workers(executor: Any) -> int:
    """How many blocks an executor computes at once, as far as it tells."""
    try:
        client = getattr(executor, "_client", None)
        if client is not None:
            return max(1, sum(client.ncores().values()))
        for name in ("num_workers", "_max_workers", "max_workers"):
            number = getattr(executor, name, None)
            if isinstance(number, int) and number > 0:
                return number
    except Exception:
        pass
    return _UNKNOWN // 2


def _pickled(work: Any, executor: Any) -> bytes:
    """The work for another process."""
    kind = type(executor).__name__
    try:
        return _pickler(executor)(work)
    except Exception as error:
        raise TypeError(
            f"`build` must be a function that can be pickled for a {kind}, got {said(error)}; "
            "define it at the top level of a module."
        ) from error


def _pickler(executor: Any) -> Callable[[Any], bytes]:
    """Pickle, or for executors that need it themselves cloudpickle, which knows functions of a
    notebook."""
    root = type(executor).__module__.partition(".")[0]
    try:
        needed = importlib.metadata.requires(root) or []
        if any(line.replace(" ", "").startswith("cloudpickle") for line in needed):
            import cloudpickle  # pyright: ignore[reportMissingImports]

            return cloudpickle.dumps
    except (importlib.metadata.PackageNotFoundError, ImportError):
        pass
    return pickle.dumps
