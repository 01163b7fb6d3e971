"""Plateaus of tanh RNNs of several widths along sampled paths, on the lanes of `memjax.sweep` and
run by run through a general implicit solver.

Run `python benchmarks/nonlinear.py`; README.md next to this file says what is measured and how to
read the result.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np

import memjax as mj
from memjax.solvers import StageNewton
from plateau_sweep import write_result

HERE = Path(__file__).resolve().parent
DELTA = 0.3


class Build:
    """The measurement of a delay: an RNN that learns a delayed exponential from 16 paths of an
    Ornstein--Uhlenbeck process at 201 times, by Euler's method."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, delay: Any) -> tuple[Any, Any, Any]:
        target = mj.DelayedKernel(mj.ExponentialSum([1.0], [1.0]), delay)
        loss = mj.SampledPathLoss.ornstein_uhlenbeck(
            target, jnp.linspace(0, 20, 201), 16, 1.0, key=jax.random.key(0), method="residual"
        )
        model = mj.NonlinearRNN.init(self.width, key=jax.random.key(1))
        return mj.GradientFlow(loss), model, mj.RelativeLossDrop(DELTA)


def child(width: int, count: int, method: str) -> dict[str, Any]:
    """A sweep over delays, cold and then once more."""
    solver = None
    if method == "diffrax":
        newton = diffrax.with_stepsize_controller_tols(StageNewton)()
        solver = diffrax.Kvaerno5(root_finder=newton)
    build, delays = Build(width), np.linspace(1, 10, count)
    seconds, processor = [], []
    for _ in range(2):
        begin, busy = time.perf_counter(), time.process_time()
        cells = mj.sweep(build, {"delay": delays}, solver=solver, rtol=1e-5, progress=False)
        seconds.append(time.perf_counter() - begin)
        processor.append(time.process_time() - busy)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {
        "width": width,
        "weights": width * (width + 3) + 1,
        "delays": count,
        "method": method,
        "share_exited": float(np.mean(cells["result"] == 0)),
        "times": cells["time"].values.tolist(),
        "steps": float(cells["num_steps"].mean()),
        "cold_seconds": seconds[0],
        "warm_seconds": seconds[1],
        "cold_processor_seconds": processor[0],
        "warm_processor_seconds": processor[1],
        "peak_bytes": peak if sys.platform == "darwin" else 1024 * peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=(8, 32, 128))
    parser.add_argument("--delays", type=int, nargs="+", default=(20, 4, 1))
    parser.add_argument("--peer-widths", type=int, nargs="*", default=(8,))
    parser.add_argument("--out", type=Path, default=HERE / "results" / "nonlinear.json")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child is not None:
        print(json.dumps(child(**options.child)))
        return
    rows = []
    for width, count in zip(options.widths, options.delays, strict=True):
        methods = ["memjax", "diffrax"] if width in options.peer_widths else ["memjax"]
        for method in methods:
            arguments = json.dumps({"width": width, "count": count, "method": method})
            command = [sys.executable, __file__, "--child", arguments]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(f"width {width}: {method}", file=sys.stderr, flush=True)
    write_result(
        options.out,
        "nonlinear",
        settings={"delta": DELTA, "rtol": 1e-5, "paths": 16, "times": 201},
        rows=rows,
    )
    print("| width | method | exited | steps | cold, processor s | warm, processor s | GB |")
    print("|" + " --- |" * 7)
    for row in rows:
        print(
            f"| {row['width']} | {row['method']} | {100 * row['share_exited']:.0f} % | "
            f"{row['steps']:.0f} | {row['cold_processor_seconds']:.3g} | "
            f"{row['warm_processor_seconds']:.3g} | {row['peak_bytes'] / 1e9:.2f} |"
        )


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
