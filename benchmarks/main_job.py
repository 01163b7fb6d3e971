"""The README's main job, `memjax sweep`, from the start of the process to its end, with an empty
cache of compiled programs and with what the run before left there.

Run `python benchmarks/main_job.py` with nothing beside it.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from plateau_sweep import write_result

HERE = Path(__file__).resolve().parent


def run(cache: Path) -> dict[str, float]:
    """Seconds of one run in an empty folder."""
    told = {"XDG_CACHE_HOME": str(cache)}
    kept = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    with tempfile.TemporaryDirectory() as folder:
        before, begin = _processor(), time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "memjax.cli", "sweep"],
            cwd=folder,
            env=kept | told,
            check=True,
            capture_output=True,
        )
        return {"seconds": time.perf_counter() - begin, "cpu_seconds": _processor() - before}


def _processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "main_job.json")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    rows: list[dict[str, Any]] = []
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for kind in ("empty", "kept"):
                rows.append({"cache": kind, "cores_allowed": cores, **run(Path(cache))})
                print(json.dumps(rows[-1]), flush=True)
    write_result(options.out, "main_job", rows=rows)


if __name__ == "__main__":
    main()
