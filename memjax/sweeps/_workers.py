"""Worker processes of memjax's own, each replaced if it dies."""

import multiprocessing
import os
import pickle
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Executor, Future
from contextlib import contextmanager
from multiprocessing import connection
from queue import SimpleQueue
from typing import Any

import jax

from ._engine import cores
from ._task import Failure

_SPAWN = multiprocessing.get_context("spawn")
# The environment is set while a process starts, by one thread at a time.
_starting = threading.Lock()


class WorkerProcesses(Executor):
    """A number of worker processes, each with its share of the cores and of the GPUs.

    Unlike `concurrent.futures.ProcessPoolExecutor` it goes on after a worker has died: that one is
    replaced, and only the task that it was at fails.

    **Arguments:**

    - `number`: how many processes.
    """

    def __init__(self, number: int) -> None:
        self.num_workers = number
        self._tasks: SimpleQueue[tuple[Future, Callable, tuple] | None] = SimpleQueue()
        self._processes: dict[int, Any] = {}
        self._closed = False
        self._threads = [
            threading.Thread(target=self._serve, args=(k,), name=f"worker-{k}", daemon=True)
            for k in range(number)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, function: Callable, /, *arguments: Any, **named: Any) -> Future:
        """Have a function called by the next worker that is free."""
        if self._closed:
            raise RuntimeError("the workers have been shut down")
        assert not named
        future: Future = Future()
        self._tasks.put((future, function, arguments))
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers, with `cancel_futures` at once."""
        self._closed = True
        if cancel_futures:
            for process in list(self._processes.values()):
                process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        if wait:
            for thread in self._threads:
                thread.join()

    def _serve(self, slot: int) -> None:
        """Hand tasks to the process of a slot, one after the other."""
        process = pipe = None  # both or none
        while (task := self._tasks.get()) is not None:
            future, function, arguments = task
            if self._closed or not future.set_running_or_notify_cancel():
                future.cancel()
                continue
            try:
                if process is None:
                    process, pipe = self._start(slot)
                assert pipe is not None
                pipe.send_bytes(pickle.dumps((function, arguments)))
                good, found = pickle.loads(pipe.recv_bytes())
            except (EOFError, OSError) as error:
                cause: Any = error
                if process is not None:
                    process.join()
                    cause = _cause(process.exitcode)
                    process = None
                future.set_exception(BrokenExecutor(f"a worker died ({cause})"))
                continue
            except BaseException as error:
                future.set_exception(error)
                continue
            (future.set_result if good else future.set_exception)(found)
            if isinstance(found, Failure) and found.stuck:
                # It computes on in vain.
                process.kill()
                process.join()
                process = None
        if process is not None:
            assert pipe is not None
            pipe.close()
            process.join()

    def _start(self, slot: int) -> tuple[Any, Any]:
        mine, its = _SPAWN.Pipe()
        cache = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
        process = _SPAWN.Process(
            target=_work, args=(its, cache), name=f"memjax-worker-{slot}", daemon=True
        )
        with _starting, _environment(_share(slot, self.num_workers)):
            process.start()
        # So that the end of the worker is the end of the pipe.
        its.close()
        self._processes[slot] = process
        return process, mine


def _cause(code: int | None) -> str:
    """Why a process ended."""
    if code is not None and code < 0:
        return f"by signal {-code}" + (", maybe out of memory" if code == -9 else "")
    return f"with exit status {code}"


def _share(slot: int, number: int) -> dict[str, str]:
    """The environment of a worker: its share of the cores, and one of the GPUs."""
    threads = str(max(1, cores() // number))
    names = ("NPROC", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    share: dict[str, str] = dict.fromkeys(names, threads)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible:
        devices = visible.split(",")
    else:
        devices = [str(d.local_hardware_id) for d in jax.local_devices() if d.platform == "gpu"]
    if devices:
        share["CUDA_VISIBLE_DEVICES"] = devices[slot % len(devices)]
    return share


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _work(pipe: Any, cache: str | None) -> None:
    """What a worker does: one task after the other, until there are no more or its parent dies."""
    import signal

    # Whoever started it ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
    jax.config.update("jax_enable_x64", True)
    if cache:
        jax.config.update("jax_compilation_cache_dir", cache)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    while True:
        try:
            function, arguments = pickle.loads(pipe.recv_bytes())
        except EOFError:
            return
        try:
            answer = pickle.dumps((True, function(*arguments)))
        except BaseException as error:
            try:
                answer = pickle.dumps((False, error))
            except Exception:
                answer = pickle.dumps((False, RuntimeError(str(error))))
        pipe.send_bytes(answer)
