"""Kills a sweep at random moments, takes it up, and compares what comes of it bit by bit.

    python tests/sweeps/kill.py --moments 100
    python tests/sweeps/kill.py --moments 10 --engine

A moment is drawn between the start of a process and its end, so that the store is just being made
in some, and blocks are computed, written and marked in others. Without `--engine` blocks take no
time to compute. Prints what was found as JSON; the exit status is 1 if anything differs.
"""

import argparse
import collections
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import xarray as xr

import memjax as mj
import stored

# 8 * 2 * 4 blocks, one of them after the other where that many threads share them.
WHAT = {"a": 8, "b": 16, "cells": 4}
ENGINE = [
    *(sys.executable, "-m", "memjax.cli", "sweep", "--quiet", "--json", "--curve-points", "0"),
    *("--memories", *map(str, range(6, 32)), "--seeds", "0", "1", "--widths", "2"),
    *("--block-size", "1", "--resume"),
]


def cheap(path: Path, log: Path) -> int:
    """A process that fills a store."""
    child = os.fork()
    if child == 0:
        try:
            work = stored.Cheap(0.002, str(log))
            stored.run(path, work, stored.content(**WHAT), resume=True)
        finally:
            os._exit(0)
    return child


def engine(path: Path, log: Path) -> int:
    """The same with the command line."""
    output = log.with_suffix(".out").open("w")
    return subprocess.Popen([*ENGINE, "--out", str(path)], stdout=output, stderr=output).pid


def blocks_in(path: Path) -> int:
    """How many blocks a store holds, by their files."""
    return len([*path.glob("**/result/c.*")])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--engine", action="store_true", help="with real measurements")
    options = parser.parse_args()
    start = engine if options.engine else cheap
    draw = random.Random(options.seed)
    folder = Path(tempfile.mkdtemp(prefix="memjax-kill-"))
    log = folder / "blocks.log"

    os.waitpid(start(folder / "warm", log), 0)
    log.unlink(missing_ok=True)
    begin = time.monotonic()
    os.waitpid(start(folder / "undisturbed", log), 0)
    span = time.monotonic() - begin
    wanted = mj.load_dataset(folder / "undisturbed")
    number = blocks_in(folder / "undisturbed")
    assert number >= 50 and not (wanted["result"] == -1).any()

    found = collections.Counter()
    repeated, equal, kept = 0, 0, []
    for _ in range(options.moments):
        path = folder / "killed"
        shutil.rmtree(path, ignore_errors=True)
        log.unlink(missing_ok=True)
        child = start(path, log)
        time.sleep(draw.uniform(0, span))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        done = blocks_in(path)
        kept.append(done)
        found["no store yet" if not path.exists() else "done" if done == number else "within"] += 1
        os.waitpid(start(path, log), 0)
        equal += mj.load_dataset(path).identical(wanted)
        if log.exists():
            lines = collections.Counter(log.read_text().split())
            repeated = max(repeated, sum(lines.values()) - len(lines))
            assert len(lines) == number
    xr.set_options(display_style="text")
    result = {
        "moments": options.moments,
        "blocks": number,
        "equal": equal,
        "killed": dict(found),
        "blocks_kept": [min(kept), max(kept)],
        "most_blocks_repeated": repeated,
        "in_flight_at_most": 2 * len(os.sched_getaffinity(0)) + 1,
        "undisturbed_seconds": round(span, 3),
    }
    shutil.rmtree(folder)
    print(json.dumps(result))
    return int(equal != options.moments)


if __name__ == "__main__":
    sys.exit(main())
