"""One block as a task: what runs in a worker, wherever that is, and what comes back."""

import dataclasses
import functools
import pickle
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import jax
import numpy as np
from threadpoolctl import threadpool_limits

from .._checks import said
from ._blocks import Block

# How long a block that is out of time is given to notice it, in seconds.
_GRACE = 5.0


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a block has no values.

    **Attributes:**

    - `error`: what was raised, in a line.
    - `trace`: the traceback.
    - `stuck`: whether the block is still being computed, in vain.
    """

    error: str
    trace: str = ""
    stuck: bool = False


# The variables of a block, why there are none, or nothing if it was stopped.
Found = dict[str, np.ndarray] | Failure | None


def compute(
    work: Any,
    block: Block,
    timeout: float | None,
    stopped: threading.Event,
    report: Callable[[int], None] = lambda new: None,
    device: Any = None,
) -> Found:
    """A block, or why it failed: nothing is raised.

    **Arguments:**

    - `work`: has the method `compute` of `PlateauWork`.
    - `block`: the block.
    - `timeout`: the seconds that it may take, or `None`.
    - `stopped`: set to have it stopped.
    - `report`: called with the number of cells each time that some are measured.
    - `device`: the device to compute on.
    """
    if timeout is None:
        return _attempt(work, block, stopped, report, device)
    late, box = threading.Event(), []
    either = _Either(stopped, late)
    thread = threading.Thread(
        target=lambda: box.append(_attempt(work, block, either, report, device)),
        name=f"block-{block.index}",
        daemon=True,
    )
    thread.start()
    thread.join(timeout)
    if thread.is_alive() and not stopped.is_set():
        late.set()
        thread.join(_GRACE)
        word = f"TimeoutError: the block took more than {timeout:g} seconds"
        return Failure(word, stuck=thread.is_alive())
    thread.join()
    return box[0] if box else Failure("its thread came to an end")


class _Either(threading.Event):
    """Set once one of two events is."""

    def __init__(self, *events: threading.Event) -> None:
        super().__init__()
        self.events = events

    def is_set(self) -> bool:
        return any(event.is_set() for event in self.events)


def _attempt(work: Any, block: Block, stopped: threading.Event, report: Any, device: Any) -> Found:
    try:
        # JAX's settings are those of a thread.
        with double_precision(), on(device), one_blas_thread():
            return work.compute(block, stopped, report, device)
    except (Exception, SystemExit) as error:
        return Failure(said(error), traceback.format_exc())


def on(device: Any) -> Any:
    """A context in which JAX computes on a device, or where it would anyway."""
    return nullcontext() if device is None else jax.default_device(device)


# --- In another process ---------------------------------------------------------------------------


def compute_remotely(payload: bytes, block: Block, timeout: float | None) -> Found:
    """A block in a worker of an executor.

    **Arguments:**

    - `payload`: the work, pickled once for all blocks.
    - `block`, `timeout`: as in `compute`.
    """
    try:
        with double_precision(), _unpickling:
            work = _unpickled(payload)
    except Exception as error:
        word = f"`build` cannot be unpickled in the worker: {said(error)}"
        return Failure(word, traceback.format_exc())
    return compute(work, block, timeout, threading.Event())


_unpickling = threading.Lock()


@functools.lru_cache(maxsize=8)
def _unpickled(payload: bytes) -> Any:
    """The same object for the same work, so that its blocks share what was compiled."""
    return pickle.loads(payload)


def double_precision() -> Any:
    """A context in which JAX has float64."""
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(True)
    from jax.experimental import enable_x64  # pyright: ignore  (before JAX 0.8)

    return enable_x64(True)


# The runs share the cores among themselves: a BLAS that starts threads of its own for every small
# matrix would only get in their way, and add up in another order.
_limit_lock = threading.Lock()
_limit: list[Any] = []


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread for BLAS, until the last of the threads that asked for it is done."""
    with _limit_lock:
        _limit.append(threadpool_limits(1, "blas") if not _limit else None)
    try:
        yield
    finally:
        with _limit_lock:
            last = _limit.pop()
            if last is not None:
                last.restore_original_limits()
