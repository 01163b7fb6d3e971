"""Looking at a sweep from outside, while it runs or afterwards."""

import dataclasses
import os
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from .._checks import as_path, shown
from .._lazy import xr
from .._text import readable
from ..plateaus import OUTCOMES
from ._durable import BlockStore, MARK
from ._output import left_behind
from ._progress import duration, WINDOW
from ._store import IDENTITY, load_dataset

# A writer that has said nothing for so long, in seconds, is taken for dead.
_SILENCE = 30.0


@readable()
@dataclasses.dataclass(frozen=True)
class SweepStatus:
    """How far a stored sweep is.

    **Attributes:**

    - `path`: the store.
    - `complete`: whether the store is marked as complete.
    - `runs`, `runs_done`: how many runs there are, and how many are done.
    - `blocks`, `blocks_done`, `blocks_running`, `blocks_failed`: the same of blocks; those that are
        computed or wait for a worker; and those that failed.
    - `rate`: runs a second over the last minute.
    - `seconds_left`: what is left at this rate, or `None`.
    - `outcomes`: how the runs that are done have ended.
    - `errors`: why blocks failed, by their numbers.
    - `writers`: who writes, each with its process, host, number of workers and the seconds since it
        last said so.
    """

    path: str
    complete: bool
    runs: int
    runs_done: int
    blocks: int
    blocks_done: int
    blocks_running: int
    blocks_failed: int
    rate: float
    seconds_left: float | None
    outcomes: dict[str, int]
    errors: dict[int, str]
    writers: list[dict[str, Any]]

    @property
    def running(self) -> bool:
        """Whether anybody seems to be writing."""
        return any(map(_is_alive, self.writers))

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values."""
        return dataclasses.asdict(self) | {"running": self.running}

    def __str__(self) -> str:
        share = 100 * self.runs_done / max(1, self.runs)
        state = "complete" if self.complete else "running" if self.running else "not running"
        left = "" if self.seconds_left is None else f", {duration(self.seconds_left)} left"
        lines = [
            f"{self.path}: {state}",
            f"runs      {self.runs_done} of {self.runs} done ({share:.1f} %)",
            f"blocks    {self.blocks_done} of {self.blocks} done, {self.blocks_running} under way, "
            f"{self.blocks_failed} failed",
        ]
        if not self.complete:
            lines.append(f"rate      {self.rate:.3g} runs/s over the last minute{left}")
        ended = [f"{number} {name}" for name, number in self.outcomes.items() if number]
        lines.append(f"outcomes  {', '.join(ended) or 'none yet'}")
        for writer in self.writers:
            lines.append(
                f"writer    {writer['name']}: process {writer['process']} on {writer['host']}, "
                f"{writer['workers']} workers, {writer['seconds_ago']:.0f} s ago"
            )
        for index, error in list(self.errors.items())[:10]:
            lines.append(f"failed    block {index}: {error}")
        if len(self.errors) > 10:
            lines.append(f"          and {len(self.errors) - 10} more")
        return "\n".join(lines)


def _is_alive(writer: dict[str, Any]) -> bool:
    """Whether a writer seems to be at work; of the own machine that is known."""
    if writer["host"] == socket.gethostname() and isinstance(writer["process"], int):
        try:
            os.kill(writer["process"], 0)
        except ProcessLookupError:
            return False
        except OSError:
            pass
    return writer["seconds_ago"] < _SILENCE


def sweep_status(path: str | Path) -> SweepStatus:
    """Say how far a stored sweep is, from any process or machine that sees its folder.

    The store is only read, and the sweep is not disturbed. Clocks are used for the rate and for the
    signs of life of writers, and for nothing else.

    **Arguments:**

    - `path`: the `store` of [`memjax.sweep`][], or the folder of `memjax sweep`.

    **Returns:**

    A `SweepStatus`; `print` shows it.

    **Raises:**

    `FileNotFoundError` if there is no such folder, `ValueError` if it is not the store of a sweep.
    """
    return Watch(path).look()


class Watch:
    """Looks at a store again and again, and reads every block once.

    **Arguments:**

    - `path`: as in `sweep_status`.
    """

    def __init__(self, path: str | Path) -> None:
        self._store = open_store("path", path)
        self._outcomes = np.zeros(len(OUTCOMES), int)
        self._seen: set[int] = set()
        self._recent: deque[tuple[float, int]] = deque()

    def look(self) -> SweepStatus:
        """The status now."""
        store, now = self._store, time.time()
        for index in store.present():
            if index in self._seen:
                continue
            try:
                written = store.chunk(MARK, index).stat().st_mtime
                results = store.read(MARK, index)
            except (OSError, ValueError):
                continue  # damaged, or discarded just now
            self._seen.add(index)
            known = results[(results >= 0) & (results < len(OUTCOMES))]
            self._outcomes += np.bincount(known, minlength=len(OUTCOMES))
            if now - written < WINDOW:
                self._recent.append((written, store.cells_in(index)))
        while self._recent and now - self._recent[0][0] > WINDOW:
            self._recent.popleft()
        done = int(np.sum(self._outcomes))
        age = now - (store.path / IDENTITY).stat().st_mtime
        rate = sum(cells for _, cells in self._recent) / min(WINDOW, max(age, 1.0))
        errors = {index: str(error.get("error")) for index, error in store.errors().items()}
        notes = store.running()
        return SweepStatus(
            path=str(store.path),
            complete=store.complete,
            runs=store.cells,
            runs_done=done,
            blocks=store.number,
            blocks_done=len(self._seen),
            blocks_running=len({k for note, _ in notes.values() for k in note.get("blocks", [])}),
            blocks_failed=len(errors),
            rate=rate,
            seconds_left=(store.cells - done) / rate if rate > 0 else None,
            outcomes=dict(zip(OUTCOMES, self._outcomes.tolist(), strict=True)),
            errors=errors,
            writers=[
                {
                    "name": name,
                    "process": note.get("process"),
                    "host": note.get("host"),
                    "workers": note.get("workers"),
                    "seconds_ago": max(0.0, now - when),
                }
                for name, (note, when) in notes.items()
            ],
        )


def open_store(name: str, path: Any) -> BlockStore:
    """The store of a sweep in a folder, or in the folder of a run of the command line."""
    path = as_path(name, path)
    for folder in (path / "plateaus.zarr", path):
        if (folder / IDENTITY).is_file():
            try:
                return BlockStore(folder)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"`{name}` must be a store of `memjax.sweep`, got {shown(str(path))}: {error}; "
                    "choose another."
                ) from error
    if not path.exists():
        old = left_behind(path)
        more = f"it was about to be replaced and is now {str(old)!r}" if old else "check the name"
        raise FileNotFoundError(f"`{name}` must exist, got {shown(str(path))}; {more}.")
    raise ValueError(
        f"`{name}` must be a store of `memjax.sweep`, got {shown(str(path))}, which holds no "
        f"{IDENTITY!r}; pass the `store` of a sweep, or the folder of `memjax sweep`."
    )


def load_as_far(path: str | Path) -> tuple["xr.Dataset", SweepStatus | None]:
    """The dataset of a sweep as far as it is, while it is written or afterwards, and how far.

    Cells that are not there have the `result` -1. A store that is complete is compared with its
    list of files, as by `load_dataset`; of one that grows, every chunk with its own checksum.

    **Arguments:**

    - `path`: as in `load_dataset`.

    **Returns:**

    The dataset, and the status where the store is that of a sweep.

    **Raises:**

    As `load_dataset`, but for a sweep that is not finished.
    """
    try:
        store = open_store("path", path)
    except (FileNotFoundError, ValueError):
        return load_dataset(path), None  # saved whole, or an error that says more
    status = sweep_status(path)
    if store.complete:
        return load_dataset(path), status
    try:
        dataset = store.open()
        # A block's results are written last: what they mark as there is there.
        dataset[MARK].load()
        return dataset.load(), status
    except (OSError, ValueError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise ValueError(f"dataset {str(store.path)!r} cannot be read: {text}.") from error
