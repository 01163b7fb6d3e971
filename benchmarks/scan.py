"""The exact scan of a diagonal model beside a sequential loop and a Diffrax integration.

Run `python benchmarks/scan.py`: 64 modes, a batch of 64 sequences of 16,384 uneven times each, the
outputs and the gradient of their mean square in all weights, in float64. Every method runs in a
process of its own, since peak memory is the process's. It takes a few minutes, and writes
`benchmarks/results/scan.json`. Diffrax, which chooses its own steps, gets a smaller size, stated
with it; the scan is measured there too.
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import memjax as mj
from plateau_sweep import machine, versions

HERE = Path(__file__).resolve().parent
LARGE = {"length": 16_384, "batch": 64, "width": 64}
SMALL = {"length": 256, "batch": 2, "width": 64}
# All hidden states of all times at once make the gradient of the plain associative scan too large
# for a small machine.
RUNS = [
    ("outputs", "memjax-scan", "large"),
    ("outputs", "lax-scan", "large"),
    ("outputs", "associative-scan", "large"),
    ("gradient", "memjax-scan", "large"),
    ("gradient", "lax-scan", "large"),
    ("outputs", "memjax-scan", "small"),
    ("outputs", "lax-scan", "small"),
    ("outputs", "diffrax", "small"),
    ("gradient", "memjax-scan", "small"),
    ("gradient", "lax-scan", "small"),
    ("gradient", "diffrax", "small"),
]

jax.config.update("jax_enable_x64", True)


def memjax_scan(model: mj.DiagonalLinearRNN, ts: jax.Array, xs: jax.Array) -> jax.Array:
    return model.scan(ts, xs)


def steps(model: mj.DiagonalLinearRNN, ts: jax.Array, xs: jax.Array) -> tuple[Any, Any]:
    """Decays and inputs of all exact steps, for inputs linear between samples."""
    z = -model.rates * jnp.diff(ts)[:, None]
    first = jnp.expm1(z) / z
    second = (first - 1) / z
    forced = first * xs[:-1, None] + second * jnp.diff(xs)[:, None]
    return jnp.exp(z), jnp.diff(ts)[:, None] * forced


def lax_scan(model: mj.DiagonalLinearRNN, ts: jax.Array, xs: jax.Array) -> jax.Array:
    """One time after the other: all that is kept are the outputs."""

    def move(hidden: Any, now: Any) -> Any:
        t, later, x, following = now
        decay, forced = steps(model, jnp.stack([t, later]), jnp.stack([x, following]))
        hidden = decay[0] * hidden + forced[0]
        return hidden, jnp.dot(model.amplitudes, hidden)

    rest = jnp.zeros_like(model.amplitudes)
    outputs = jax.lax.scan(move, rest, (ts[:-1], ts[1:], xs[:-1], xs[1:]))[1]
    return jnp.concatenate([jnp.zeros(1), outputs])


def associative_scan(model: mj.DiagonalLinearRNN, ts: jax.Array, xs: jax.Array) -> jax.Array:
    """All times at once, as `jax.lax.associative_scan` is commonly used."""
    compose = lambda early, late: (early[0] * late[0], late[0] * early[1] + late[1])
    hidden = jax.lax.associative_scan(compose, steps(model, ts, xs))[1]
    return jnp.concatenate([jnp.zeros(1), hidden @ model.amplitudes])


def diffrax_solve(model: mj.DiagonalLinearRNN, ts: jax.Array, xs: jax.Array) -> jax.Array:
    return model(ts, xs)


METHODS: dict[str, Callable[..., jax.Array]] = {
    "memjax-scan": memjax_scan,
    "lax-scan": lax_scan,
    "associative-scan": associative_scan,
    "diffrax": diffrax_solve,
}


def problem(size: dict[str, int]) -> tuple[mj.DiagonalLinearRNN, jax.Array, jax.Array]:
    rng = np.random.default_rng(0)
    ts = np.cumsum(rng.uniform(0.5, 1.5, size["length"]))
    xs = rng.normal(size=(size["batch"], size["length"]))
    rates = np.geomspace(1e-4, 1.0, size["width"])
    amplitudes = rng.normal(size=size["width"]) / np.sqrt(size["width"])
    return mj.DiagonalLinearRNN(amplitudes, rates, mj.Exp()), jnp.asarray(ts), jnp.asarray(xs)


def measure(method: str, task: str, size: dict[str, int], repeats: int) -> dict[str, Any]:
    model, ts, xs = problem(size)
    batched = jax.vmap(METHODS[method], in_axes=(None, None, 0))
    function = batched
    if task == "gradient":
        function = jax.grad(lambda model, ts, xs: jnp.mean(batched(model, ts, xs) ** 2))
    peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    begin = time.perf_counter()
    program = jax.jit(function).lower(model, ts, xs).compile()
    compiling = time.perf_counter() - begin
    before = peak()
    seconds = []
    result = None
    for _ in range(repeats):
        begin = time.perf_counter()
        result = jax.block_until_ready(program(model, ts, xs))
        seconds.append(time.perf_counter() - begin)
    process = peak()
    reference = jax.jit(METHODS["lax-scan"])(model, ts, xs[0])
    own = jax.jit(METHODS[method])(model, ts, xs[0])
    del result
    return {
        "method": method,
        "task": task,
        **size,
        "seconds": min(seconds),
        "compile_seconds": compiling,
        "temporary_bytes": program.memory_analysis().temp_size_in_bytes,
        "peak_bytes_before": before,
        "peak_bytes": process,
        "deviation": float(jnp.max(jnp.abs(own - reference)) / jnp.max(jnp.abs(reference))),
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        "| length x batch x width | task | method | s | compile, s | temporaries, MB | process, MB "
        "| deviation |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        lines.append(
            f"| {row['length']} x {row['batch']} x {row['width']} | {row['task']} "
            f"| {row['method']} "
            + (
                f"| {row['status']} | | | | |"
                if row["status"] != "measured"
                else f"| {row['seconds']:.3g} | {row['compile_seconds']:.1f} "
                f"| {row['temporary_bytes'] / 1e6:.0f} | {row['peak_bytes'] / 1e6:.0f} "
                f"| {row['deviation']:.1e} |"
            )
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3, help="timings, of which the best counts")
    parser.add_argument("--limit", type=float, default=600.0, help="seconds for one row")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "scan.json")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "TASK", "SIZE"), help="a row, as JSON")
    parser.add_argument("--table", type=Path, help="only print a saved result")
    options = parser.parse_args(arguments)
    sizes = {"large": LARGE, "small": SMALL}
    if options.one is not None:
        method, task, size = options.one
        print(json.dumps(measure(method, task, sizes[size], options.repeats)))
        return
    if options.table is not None:
        print(table(json.loads(options.table.read_text())))
        return
    # Other work on the machine lengthens every row.
    load = os.getloadavg()[0]
    rows = []
    for task, method, size in RUNS:
        command = [sys.executable, __file__, "--repeats", str(options.repeats)]
        try:
            child = subprocess.run(
                [*command, "--one", method, task, size],
                stdout=subprocess.PIPE,
                text=True,
                timeout=options.limit,
            )
            status = "measured" if child.returncode == 0 else f"failed with {child.returncode}"
        except subprocess.TimeoutExpired:
            child, status = None, f"not within {options.limit:g} s"
        row = {"status": status, "method": method, "task": task, **sizes[size]}
        if child is not None and status == "measured":
            row |= json.loads(child.stdout)
        rows.append(row)
        print(f"{task}: {method}, {size}: {row['status']}", file=sys.stderr, flush=True)
    result = {
        "benchmark": "scan",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "settings": {
            "repeats": options.repeats,
            "dtype": "float64",
            "times": "uneven",
            "load_at_start": load,
        },
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
