"""What storing and handing out the blocks of a sweep costs.

    python benchmarks/sweep_overhead.py

Four figures: the time of a sweep with a store over that without, on one core; the speed-up of two
worker processes over one; blocks a second that a coordinator handles, if blocks take no time;
and the memory of a coordinator for grids of 1e5 to 1e7 cells. Each has a process of its own.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "sweeps"))


def spec_of(runs: int) -> Any:
    """So many runs at m = 4, over memories from 4 to 18."""
    import memjax as mj

    memories = tuple(np.linspace(4, 18, runs // 64))
    return mj.PlateauSweep(memories=memories, widths=(4,), seeds=tuple(range(64)), curve_points=0)


def timed(call: Any) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def storing(runs: int, repeats: int) -> dict[str, Any]:
    """On one core, warm: seconds without and with a store, alternately."""
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[0]})
    spec, folder = spec_of(runs), Path(tempfile.mkdtemp())
    stored = lambda: spec.run(progress=False, store=folder / "x", overwrite=True)
    plain = lambda: spec.run(progress=False)
    # To compile.
    stored()
    plain()
    pairs = [(timed(plain), timed(stored)) for _ in range(repeats)]
    import memjax as mj

    blocks = mj.sweep_status(folder / "x").blocks
    shutil.rmtree(folder)
    without, with_store = (float(np.min(times)) for times in zip(*pairs, strict=True))
    return {
        "runs": runs,
        "blocks": blocks,
        "seconds_without_store": [a for a, _ in pairs],
        "seconds_with_store": [b for _, b in pairs],
        "overhead": with_store / without - 1,
    }


def workers(runs: int, repeats: int) -> dict[str, Any]:
    """Seconds with one and two worker processes that are there and have compiled."""
    from memjax.sweeps import as_executor, close

    spec, folder = spec_of(runs), Path(tempfile.mkdtemp())
    seconds: dict[int, list[float]] = {1: [], 2: []}
    pools = {number: as_executor(number)[0] for number in seconds}
    for repeat in range(repeats + 1):
        for number, pool in pools.items():
            run = lambda pool=pool: spec.run(
                progress=False, store=folder / "x", overwrite=True, executor=pool
            )
            # The first is to compile.
            spent = timed(run)
            if repeat:
                seconds[number].append(spent)
    for pool in pools.values():
        close(pool)
    shutil.rmtree(folder)
    best = {number: float(np.min(times)) for number, times in seconds.items()}
    return {
        "runs": runs,
        "seconds_one_worker": seconds[1],
        "seconds_two_workers": seconds[2],
        "speed_up": best[1] / best[2],
    }


def coordinator(blocks: int, cells: int, threads: int) -> dict[str, Any]:
    """Blocks a second, of blocks that take no time, and the memory that this takes."""
    import stored

    folder = Path(tempfile.mkdtemp())
    rows = 1000
    what = stored.content(a=blocks * cells // (2 * rows), b=rows, cells=cells)
    with ThreadPoolExecutor(threads) as executor:
        seconds = timed(lambda: stored.run(folder / "x", what=what, executor=executor))
    shutil.rmtree(folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    number = what[0].number
    return {
        "threads": threads,
        "cells": what[0].grid.count * 2,
        "blocks": number,
        "blocks_per_second": number / seconds,
        "peak_megabytes": peak,
    }


def apart(name: str, *arguments: Any) -> Any:
    """A measurement in a process of its own."""
    command = [sys.executable, __file__, "--only", name, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--runs", type=int, default=65_536, help="of the sweep on one core")
    parser.add_argument("--shared", type=int, default=16_384, help="runs that workers share")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "sweep_overhead.json")
    options = parser.parse_args()
    if options.only:
        function = {"storing": storing, "workers": workers, "coordinator": coordinator}
        name, *arguments = options.only
        print(json.dumps(function[name](*map(int, arguments))))
        return
    packages = ("memjax", "jax", "jaxlib", "zarr", "xarray", "numpy")
    result = {
        "benchmark": "sweep_overhead",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": {
            "cores": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "load_at_start": os.getloadavg(),
        },
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "coordinator": [
            # Threads enough to keep it busy.
            apart("coordinator", 1000, 100, 64),
            # Blocks of one size, and as many under way.
            *(apart("coordinator", cells // 10_000, 10_000, 2) for cells in (10**5, 10**6, 10**7)),
        ],
        "storing": apart("storing", options.runs, options.repeats),
        "workers": apart("workers", options.shared, options.repeats),
    }
    result["machine"]["load_at_end"] = os.getloadavg()
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
