"""Measurements on one core."""

import os
import sys

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def on_one_core() -> None:
    """Pins the process to one core, and starts it again without thread pools.

    The libraries read their number of threads when they are loaded. Where the system cannot pin
    (macOS, Windows), only the threads are limited.
    """
    pinned = not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) == 1
    if pinned and all(os.environ.get(name) == "1" for name in THREADS):
        return
    if not pinned:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    os.environ.update(dict.fromkeys(THREADS, "1"))
    os.execv(sys.executable, [sys.executable, *sys.argv])
