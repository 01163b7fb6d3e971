"""The time of a step on lanes for each flow in continuous time, and for complex modes, over that of
gradient flow of a real diagonal model of the same width, and the times of whole sweeps, in one
process.

Run `python benchmarks/flows.py`; README.md next to this file says what is measured and how to read
the result.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

import memjax as mj
from _cores import on_one_core
from memjax.plateaus import LaneMethod, RUNNING, Runs
from plateau_sweep import write_result

HERE = Path(__file__).resolve().parent
# Those of a sweep, and the steps that are timed.
LANES, STEPS = {4: 256, 16: 64}, 10
FLOWS: dict[str, Callable[[Any], Any]] = {
    "gradient-flow": mj.GradientFlow,
    "heavy-ball": lambda loss: mj.HeavyBall(loss, 1.0),
    "nesterov": mj.Nesterov,
    "adam": mj.Adam,
}


class Build:
    """The start of `memjax.PlateauSweep` under one flow, or as a complex model whose modes do not
    turn, which has the same times."""

    def __init__(self, width: int, method: str) -> None:
        self.width, self.method = width, method
        self.specification = mj.PlateauSweep(widths=(width,))

    def __call__(self, omega: Any, seed: Any) -> tuple[Any, Any, Any]:
        model = self.specification.model(omega, self.width, seed)
        if self.method == "complex":
            zero = jnp.zeros_like(model.amplitudes)
            model = mj.ComplexDiagonalRNN(model.amplitudes, zero, model.rates, zero)
        flow = FLOWS.get(self.method, mj.GradientFlow)
        loss = mj.WhiteNoiseLoss(self.specification.target(omega))
        level = mj.GaussianBump(omega, 1.0, 0.5).squared_norm()
        return flow(loss), model, mj.RelativeLossDrop(0.02, level)


def time_of_a_step(build: Build, lanes: int, repeats: int) -> float:
    """Seconds a step and lane, with all lanes under way."""
    runs = eqx.filter_vmap(
        lambda omega: Runs.build(*build(omega, 0), {}), out_axes=eqx.if_array(-1)
    )(1 / np.linspace(8, 14, lanes))
    arguments = (jnp.asarray(x) for x in (1e-5, 1e300, 4096, 1e-2))
    method = LaneMethod(*arguments, jnp.zeros(0))
    arrays, fixed = eqx.partition(runs, eqx.is_array)

    @jax.jit
    def advance(arrays: Any, state: Any) -> Any:
        step = lambda _, state: method.step(eqx.combine(arrays, fixed), state)
        return jax.lax.fori_loop(0, STEPS, step, state)

    start = advance(arrays, jax.jit(lambda a: method.start(eqx.combine(a, fixed)))(arrays))
    seconds = []
    for _ in range(repeats + 1):
        begin = time.process_time()
        end = jax.block_until_ready(advance(arrays, start))
        seconds.append(time.process_time() - begin)
    assert bool(jnp.all(end.result == RUNNING))
    return min(seconds) / STEPS / lanes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", type=int, nargs="+", default=(4,))
    parser.add_argument("--runs", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "flows.json")
    options = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    axes = {"omega": 1 / np.linspace(4, 14, max(1, options.runs // 4)), "seed": range(4)}
    rows = []
    for width in options.widths:
        builds = {method: Build(width, method) for method in (*FLOWS, "complex")}
        measure = lambda build: mj.sweep(build, axes, progress=False)
        cells = {method: measure(build) for method, build in builds.items()}
        seconds = {method: [] for method in builds}
        # In turns, so that what else the machine does is the same for all.
        for _ in range(options.repeats):
            for method, build in builds.items():
                begin = time.process_time()
                cells[method] = measure(build)
                seconds[method].append(time.process_time() - begin)
        lanes, base = LANES.get(width, 16), None
        for method, found in cells.items():
            step = time_of_a_step(builds[method], lanes, options.repeats)
            base = base or step
            row = {
                "width": width,
                "method": method,
                "runs": int(found["time"].size),
                "share_exited": float(np.mean(found["result"] == 0)),
                "steps_per_run": float(found["num_steps"].mean()),
                "milliseconds_per_run": 1e3 * min(seconds[method]) / found["time"].size,
                "lanes": lanes,
                "microseconds_per_step": 1e6 * step,
                "over_gradient_flow": step / base,
            }
            rows.append(row)
            print(json.dumps(row), flush=True)
    write_result(options.out, "flows", rows=rows)


if __name__ == "__main__":
    on_one_core()
    main()
