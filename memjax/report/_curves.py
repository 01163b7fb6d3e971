"""Loss curves in a page: few bytes a curve, and read by the browser when a run is clicked."""

import base64
import gzip
from typing import NamedTuple

import numpy as np

# Bytes that all curves of a page may take, as they stand in it.
_BUDGET = 5_000_000
# The code of a time at which nothing was recorded, and the largest of a loss.
_NOTHING, _LARGEST = 65535, 65534


class Curves(NamedTuple):
    """The loss curves of some runs.

    **Attributes:**

    - `times`: the training times, shape `(times,)`.
    - `low`, `high`: the range of losses of each run, shape `(runs,)`.
    - `data`: the losses as 16-bit numbers between the two, as differences from time to time,
        all low bytes before all high ones; compressed by gzip, as text in base 64.
    - `every`: which of the recorded times are kept: every one, every second, every fourth, ...
    """

    times: np.ndarray
    low: np.ndarray
    high: np.ndarray
    data: str
    every: int


def pack_curves(times: np.ndarray, losses: np.ndarray, budget: int = _BUDGET) -> Curves:
    """The curves in at most so many bytes, with fewer times if need be.

    A plateau compresses well, as differences of it are 0.

    **Arguments:**

    - `times`: shape `(times,)`.
    - `losses`: shape `(runs, times)`, NaN where nothing was recorded.
    - `budget`: how many bytes.
    """
    finite = np.isfinite(losses)
    low = np.min(losses, axis=1, where=finite, initial=np.inf)
    high = np.max(losses, axis=1, where=finite, initial=-np.inf)
    low, high = (np.where(finite.any(1), ends, 0.0) for ends in (low, high))
    width = np.where(high > low, high - low, 1.0)
    part = np.where(finite, (losses - low[:, None]) / width[:, None], 0.0)
    codes = np.where(finite, np.rint(part * _LARGEST), _NOTHING).astype(np.uint16)
    every = 1
    while True:
        data = _compress(codes[:, ::every])
        if len(data) <= budget or codes.shape[1] <= 2 * every:
            return Curves(times[::every], low, high, data, every)
        every *= 2


def _compress(codes: np.ndarray) -> str:
    steps = np.diff(codes, axis=1, prepend=np.uint16(0))  # modulo 65536, as the reader adds
    halves = np.concatenate([(steps & 255).astype(np.uint8), (steps >> 8).astype(np.uint8)])
    return base64.b64encode(gzip.compress(halves.tobytes(), 6, mtime=0)).decode()
