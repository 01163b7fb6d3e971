"""Sweeps of 1e5 to 1e6 plateaus on an accelerator, and the share of its peak that they reach.

Run `python benchmarks/gpu.py`; README.md next to this file says what is measured and how to read
the result. Without an accelerator it runs on the CPU, with small sweeps, to be tried out.
"""

import argparse
import datetime
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import memjax as mj
import plateau_sweep
from plateau_sweep import machine, versions

jax.config.update("jax_enable_x64", True)

HERE = Path(__file__).resolve().parent
WIDTHS = (4, 16, 64)
DELTA = 0.02
MEMORIES = (4.0, 18.0)
SEEDS = 64


# --- What a step costs ---------------------------------------------------------------------

# Newton iterations in a step of the engine, at most; most steps take both.
ITERATIONS = 2


def operations(m: int, terms: int = 1, iterations: int = ITERATIONS) -> dict[str, float]:
    """Floating-point operations in one attempted step of one lane, by what they are for.

    The work that the method asks for, whatever the program does beside it: a matrix counts as
    its factorisation, also where the engine inverts it, and rejected steps and the rest of a
    lane's life (start, exit) count as nothing more. Additions, multiplications, divisions,
    roots, exponentials and error functions are one operation each.

    **Arguments:**

    - `m`: modes of the model.
    - `terms`: exponentials of the target.
    - `iterations`: updates of Newton's method.
    """
    n = 2 * m
    # Of one pair of modes: p = 1 / (s + w after), q = 1 / (s + w before): 5 with their product;
    # each of the derivatives of alpha p - a nu p q + b q then takes three products and sums.
    value, slope, curve, moduli = 11, 9, 8, 6
    # Of a rate and an exponential of the target: 1 / (s + W), its powers, times amplitude, added.
    exponential = lambda order: 2 + 3 * (order + 1)
    # Of a rate: the argument, exponential and error function of the bump's transform, then the
    # recursion, the scaling and the difference for each derivative.
    bump = lambda order: 14 + 8 * (order + 1)
    residual = lambda order: m * (terms * exponential(order) + bump(order))
    return {
        "cauchy_sums_of_newton": iterations * 3 * m**2 * (value + slope),
        "cauchy_sums_of_hessian": m**2 * (value + slope + curve + moduli),
        "transforms": iterations * 3 * residual(1) + residual(2),
        # Ten for the four entries of a pair of modes, ten for the diagonal of a mode.
        "hessian": 10 * m**2 + 10 * m,
        "loss": 3 * m**2 + residual(0),
        # Shift and scaling; n^3 / 3 for Cholesky, four times twice that for complex LU.
        "real_factor": 2 * n**2 + n**3 / 3,
        "complex_factor": 4 * n**2 + 8 * n**3 / 3,
        # The real system with the right-hand sides of the iterations, the error, the step to
        # rest, three patterns of noise and the slowest direction; the complex one.
        "solves": (iterations + 6) * 2 * n**2 + iterations * 8 * n**2,
        # Stages to defects, into the eigenbasis and back, norms: 18 + 18 + 18 + 12.
        "newton": iterations * 66 * n,
        # Prediction of the stages, error, noise, growth, interpolation, norms.
        "rest": 130 * n,
    }


def traffic(m: int, iterations: int = ITERATIONS) -> float:
    """Bytes that one attempted step of one lane has to move if every matrix is written once,
    read once for every use, and everything between is fused."""
    n = 2 * m
    hessian = n**2 * (1 + 2)
    real = n**2 * (1 + iterations + 1)
    pair = 2 * n**2 * (1 + iterations)
    # A lane's state is read and written, its run and its stages read.
    vectors = 2 * 5 * n + 2 * n + 3 * n * (2 + 2 * iterations)
    return 8 * (hessian + real + pair + vectors + 40)


# --- What the device can do ----------------------------------------------------------------


def peaks() -> dict[str, Any]:
    """What a float64 matrix product and a triad reach on all local devices together."""
    devices = jax.local_devices()
    # All virtual devices of a CPU share its cores.
    many = 1 if devices[0].platform == "cpu" else len(devices)
    return {"source": "measured", "flops": many * _matmul(), "bytes": many * _triad()}


def _matmul() -> float:
    size = 1024 if jax.default_backend() == "cpu" else 8192
    a = jnp.full((size, size), 1e-3)
    return 2 * size**3 / _seconds(jax.jit(lambda a: a @ a), a)


def _triad() -> float:
    size = 2**23 if jax.default_backend() == "cpu" else 2**27
    a, b = jnp.ones(size), jnp.ones(size)
    return 3 * 8 * size / _seconds(jax.jit(lambda a, b: a + 3.0 * b), a, b)


def _seconds(function: Callable, *arguments: Any) -> float:
    """The best of ten calls after the first."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(10):
        begin = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - begin)
    return min(times)


# --- Measuring and reporting ---------------------------------------------------------------


class _Build:
    """The measurement of a cell; equal ones share what was compiled."""

    def __init__(self, width: int):
        self.width = width

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, _Build) and self.width == other.width

    def __hash__(self) -> int:
        return hash(self.width)

    def __call__(self, omega: Any, seed: Any) -> tuple[Any, Any, Any]:
        spec = plateau_sweep.SPEC
        model = spec.model(omega, self.width, seed)
        exit = mj.RelativeLossDrop(DELTA, plateau_sweep.plateau_height(1 / omega))
        return mj.GradientFlow(mj.WhiteNoiseLoss(spec.target(omega))), model, exit


def sweep(width: int, memories: np.ndarray, seeds: int, rtol: float, lanes: int | None) -> Any:
    axes = {"omega": 1 / memories, "seed": range(seeds)}
    return mj.sweep(_Build(width), axes, rtol=rtol, lanes=lanes, progress=False)


def measure(
    width: int, size: int, lanes: int | None, rtol: float, checks: int, peak: dict[str, Any]
) -> dict[str, Any]:
    """A cold and a warm sweep of `size` runs or a few more, and what they say of the device."""
    seeds = min(SEEDS, size)
    memories = np.linspace(*MEMORIES, -(-size // seeds))
    begin = time.perf_counter()
    sweep(width, memories, seeds, rtol, lanes)
    cold = time.perf_counter() - begin
    begin = time.perf_counter()
    dataset = sweep(width, memories, seeds, rtol, lanes)
    warm = time.perf_counter() - begin

    names = dataset["result"].attrs["flag_meanings"].split()
    flags = dataset["result"].attrs["flag_values"]
    outcome = dict(zip(flags, names, strict=True))
    values, counts = np.unique(dataset["result"].values, return_counts=True)
    runs = int(dataset["result"].size)
    steps = int(dataset["num_steps"].sum())
    flops = sum(operations(width, len(plateau_sweep.SPEC.target_rates)).values())
    moved = traffic(width)
    row = {
        "width": width,
        "runs": runs,
        "lanes": lanes,
        "rtol": rtol,
        "outcomes": {outcome[int(v)]: int(c) for v, c in zip(values, counts, strict=True)},
        "cold_seconds": cold,
        "warm_seconds": warm,
        "compile_seconds": cold - warm,
        "us_per_run": 1e6 * warm / runs,
        "steps": steps,
        "us_per_step": 1e6 * warm / steps,
        "operations_per_step": flops,
        "bytes_per_step": moved,
        "flops": flops * steps / warm,
        "share_of_flops": flops * steps / warm / peak["flops"],
        "share_of_bytes": moved * steps / warm / peak["bytes"],
        "peak_bytes": _peak_bytes(),
    }
    return row | _deviation(dataset, width, memories, seeds, lanes, checks)


def _deviation(
    dataset: Any, width: int, memories: np.ndarray, seeds: int, lanes: int | None, checks: int
) -> dict[str, Any]:
    """How far exit times are from the same engine's at rtol 1e-9, on a part of the grid."""
    few = min(seeds, 4)
    chosen = np.linspace(0, len(memories) - 1, min(len(memories), max(1, checks // few)))
    chosen = np.unique(chosen.round().astype(int))
    exact = sweep(width, memories[chosen], few, 1e-9, lanes)["time"].values
    deviation = np.abs(dataset["time"].values[chosen, :few] / exact - 1)
    deviation = deviation[np.isfinite(deviation)]
    return {
        "runs_compared": int(deviation.size),
        "median_deviation": float(np.median(deviation)) if deviation.size else None,
        "max_deviation": float(np.max(deviation)) if deviation.size else None,
    }


def _peak_bytes() -> int | None:
    """The most memory the devices held since the process began, where they say so."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    held = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    return sum(held) if held else None


def table(result: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    head = (
        "m", "runs", "lanes", "finished", "compile s", "warm s", "us/run", "us/lane-step",
        "kflop/step", "Gflop/s", "of float64 peak", "of bandwidth", "median deviation",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in result["rows"]:
        start = [str(row["width"]), str(row["runs"]), str(row["lanes"] or "default")]
        if "error" in row:
            cells = [*start, row["error"], *[""] * (len(head) - 4)]
        else:
            finished = Counter(row["outcomes"])["exited"] / row["runs"]
            deviation = row["median_deviation"]
            cells = [
                *start,
                f"{100 * finished:.4g} %",
                *(f"{row[key]:.3g}" for key in (
                    "compile_seconds", "warm_seconds", "us_per_run", "us_per_step",
                )),
                f"{row['operations_per_step'] / 1e3:.3g}",
                f"{row['flops'] / 1e9:.3g}",
                f"{100 * row['share_of_flops']:.2g} %",
                f"{100 * row['share_of_bytes']:.2g} %",
                "-" if deviation is None else f"{deviation:.1e}",
            ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    peak = result["peak"]
    lines += [
        "",
        f"{result['machine']['devices']}: {peak['flops'] / 1e12:.3g} Tflop/s and "
        f"{peak['bytes'] / 1e12:.3g} TB/s ({peak['source']}).",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    accelerated = jax.default_backend() != "cpu"
    sizes = [100_000, 1_000_000] if accelerated else [1024]
    # A JSON made on a CPU is no benchmark of an accelerator, and must not look like one.
    name = "gpu.json" if accelerated else "gpu_tried_on_cpu.json"
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--widths", nargs="+", type=int, default=list(WIDTHS))
    parser.add_argument("--sizes", nargs="+", type=int, default=sizes, help="runs in a sweep")
    parser.add_argument(
        "--lanes", nargs="+", type=int, default=[0], help="numbers of lanes; 0 for the default"
    )
    parser.add_argument("--rtol", type=float, default=1e-4)
    parser.add_argument("--checks", type=int, default=256, help="runs compared with rtol 1e-9")
    parser.add_argument("--out", type=Path, default=HERE / "results" / name)
    parser.add_argument("--table", type=Path, help="only print the table of this result")
    options = parser.parse_args(arguments)
    if options.table is not None:
        print(table(json.loads(options.table.read_text())))
        return

    devices = jax.local_devices()
    peak = peaks()
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine() | {"devices": f"{len(devices)} x {devices[0].device_kind}"},
        "versions": versions(),
        "settings": {k: v for k, v in vars(options).items() if k not in ("out", "table")}
        | {"grid": f"1/omega in {list(MEMORIES)}, up to {SEEDS} seeds", "delta": DELTA},
        "peak": peak,
        "operations": {str(width): operations(width) for width in options.widths},
        "rows": [],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for width in options.widths:
        for size in options.sizes:
            for lanes in options.lanes:
                what = {"width": width, "runs": size, "lanes": lanes or None}
                try:
                    row = measure(width, size, lanes or None, options.rtol, options.checks, peak)
                except jax.errors.JaxRuntimeError as error:
                    # Too many lanes for the device's memory: a result, and no reason to stop.
                    row = what | {"error": str(error).splitlines()[0][:100]}
                result["rows"].append(row)
                options.out.write_text(json.dumps(result, indent=1) + "\n")
                print(table(result | {"rows": [row]}).splitlines()[2], flush=True)
    print(table(result))


if __name__ == "__main__":
    main()
