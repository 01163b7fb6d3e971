"""What a sweep shows while it runs."""

import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from .._lazy import tqdm
from ..plateaus import OUTCOMES

# Rates are those of the last so many seconds.
WINDOW = 60.0


class Progress:
    """A bar with the runs that are done, their outcomes, and the rate over the last minute.

    **Arguments:**

    - `total`: how many runs there are.
    - `shown`: whether it is shown at all.
    - `done`: how many runs are done at the start.
    """

    def __init__(self, total: int, shown: bool, done: int = 0) -> None:
        self._seen: deque[tuple[float, int]] = deque([(time.monotonic(), done)])
        self.outcomes = np.zeros(len(OUTCOMES), int)
        self._bar: Any = tqdm.tqdm(
            total=total,
            initial=done,
            desc="compiling",
            # Into a file, a line a second would be too many.
            mininterval=0.1 if sys.stderr.isatty() else 10.0,
            unit="run",
            disable=not shown,
            bar_format="{desc}{percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} "
            "[{elapsed}{postfix}]",
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.close()

    def count(self, results: np.ndarray) -> None:
        """Add outcomes."""
        known = results[(results >= 0) & (results < len(OUTCOMES))]
        self.outcomes += np.bincount(known.ravel(), minlength=len(OUTCOMES))

    def show(self, done: int, doing: str = "plateaus") -> None:
        """Show how many runs are done, and what is being done."""
        if self._bar.disable:
            return
        now = time.monotonic()
        if now - self._seen[-1][0] > 0.5:
            self._seen.append((now, done))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW:
            self._seen.popleft()
        then, before = self._seen[0]
        rate = (done - before) / max(now - then, 1e-9)
        words = [f"<{duration((self._bar.total - done) / rate)}"] if rate > 0 else []
        words += [f"{rate:.3g} run/s"] if rate > 0 else []
        words += [f"{n} {name}" for name, n in zip(OUTCOMES, self.outcomes, strict=True) if n]
        self._bar.set_description(doing, refresh=False)
        self._bar.set_postfix_str(", ".join(words), refresh=False)
        self._bar.update(done - self._bar.n)


@contextmanager
def saying(words: str, shown: bool) -> Iterator[None]:
    """Say in a terminal what is done before there is a bar, on a line that goes away."""
    if not shown or not sys.stderr.isatty():
        yield
        return
    print(f"{words} ...", end="", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """A number of seconds, as one reads it."""
    whole = int(min(seconds, 1e9))
    days, hours, minutes = whole // 86400, whole // 3600 % 24, whole // 60 % 60
    if days:
        return f"{days} d {hours} h"
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes:02}:{whole % 60:02}"
