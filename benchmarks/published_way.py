"""One cell of a perturbation experiment, beside the published code's way of doing it.

Run `python benchmarks/published_way.py`: a diagonal softplus tanh RNN learns the power law, and its
weights are perturbed in random directions, for some seeds. memjax does all seeds in one process as
one program each for training and perturbation. The published way is one process a run, a Python
loop over time, and a Python loop over draws, in PyTorch. A second peer does the same in JAX as one
would write it by hand: a compiled update with the time in `jax.lax.scan`, one process a run.
PyTorch is optional and not part of the extra `bench`: `pip install torch`, here or in an
environment of its own that `--torch-python` names. Results go to
`benchmarks/results/published_way.json`.
"""

import argparse
import datetime
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
ACTIVATION, PARAMETRISATION, KERNEL = "tanh", "softplus", "power law"
RADII = 1e-3 * 2 ** (np.arange(21) / 2)
RATE, CLIP = 1e-2, 0.5
LENGTH, HELD_OUT = 100, 32
METHODS = ("memjax", "torch-loop", "jax-scan")

# PyTorch may live in an environment without JAX, so that each method imports its own.


def by_memjax(problem: dict[str, np.ndarray], updates: int, batch: int, draws: int) -> dict:
    import equinox as eqx
    import jax
    import jax.numpy as jnp
    import optax

    from memjax.models import trainable
    from memjax.reproductions import _training

    runs, times = problem["free"].shape[0], problem["matrix"].shape[0]
    models = eqx.tree_at(
        lambda m: (m.free_rates, m.input, m.bias, m.readout_weights),
        make_model(problem["free"].shape[1], jax.random.key(0)),
        tuple(jnp.asarray(problem[name]) for name in ("free", "input", "bias", "readout")),
    )
    matrices = jnp.repeat(jnp.asarray(problem["matrix"])[None], runs, axis=0)
    xs, weight = jnp.asarray(problem["held_out"]), jnp.asarray(problem["weight"])

    def squared_error(model: Any, xs: jax.Array, matrix: jax.Array) -> jax.Array:
        # An output is read after its input has acted, hence one more time than there are inputs.
        ts, padded = jnp.arange(times + 1, dtype=xs.dtype), jnp.pad(xs, ((0, 0), (0, 1)))
        outputs = jax.vmap(lambda x: model.residual(ts, x))(padded)[:, 1:]
        return jnp.mean(weight * (outputs - xs @ matrix.T) ** 2)

    def loss(model: Any, key: jax.Array, matrix: jax.Array) -> jax.Array:
        return squared_error(model, jax.random.normal(key, (batch, times), xs.dtype), matrix)

    error = eqx.filter_jit(eqx.filter_vmap(squared_error, in_axes=(eqx.if_array(0), None, 0)))
    start = error(models, xs, matrices)
    schedule = optax.cosine_decay_schedule(RATE, updates)
    optimiser = optax.chain(optax.clip_by_global_norm(CLIP), optax.adam(schedule))
    clock = time.perf_counter()
    training = _training.train(
        models, loss, optimiser, updates, key=jax.random.key(1), data=matrices
    )
    jax.block_until_ready(training.losses)
    trained = time.perf_counter() - clock

    def curve(model: Any, matrix: jax.Array, key: jax.Array) -> jax.Array:
        weights, rest = eqx.partition(model, trainable(model))
        leaves, structure = jax.tree.flatten(weights)

        def draw(key: jax.Array) -> jax.Array:
            keys = jax.random.split(key, len(leaves))
            noise = [
                jax.random.normal(each, leaf.shape, leaf.dtype)
                for each, leaf in zip(keys, leaves, strict=True)
            ]
            noise = [leaf / jnp.max(jnp.abs(leaf)) for leaf in noise]

            def at(radius: jax.Array) -> jax.Array:
                moved = [leaf + radius * step for leaf, step in zip(leaves, noise, strict=True)]
                value = squared_error(
                    eqx.combine(jax.tree.unflatten(structure, moved), rest), xs, matrix
                )
                return jnp.where(jnp.isnan(value), jnp.inf, value)

            return jax.vmap(at)(jnp.asarray(RADII, xs.dtype))

        errors = jax.lax.map(draw, jax.random.split(key, draws))
        return jax.lax.cummax(jnp.max(errors, axis=0))

    clock = time.perf_counter()
    keys = jax.random.split(jax.random.key(2), runs)
    curves = eqx.filter_jit(eqx.filter_vmap(curve, in_axes=(eqx.if_array(0), 0, 0)))
    errors = jax.block_until_ready(curves(training.models, matrices, keys))
    return {
        "start": np.asarray(start).tolist(),
        "trained": np.asarray(error(training.models, xs, matrices)).tolist(),
        "largest": np.asarray(errors)[:, -1].tolist(),
        "training_seconds": trained,
        "perturbation_seconds": time.perf_counter() - clock,
    }


def by_torch(problem: dict[str, np.ndarray], updates: int, batch: int, draws: int) -> dict:
    import torch  # pyright: ignore[reportMissingImports]

    weights = [torch.tensor(problem[name][0]) for name in NAMES]
    matrix, weight = torch.tensor(problem["matrix"]), torch.tensor(problem["weight"])
    held_out = torch.tensor(problem["held_out"])

    def error(weights: list, xs: Any) -> Any:
        free, inputs, bias, readout = weights
        rates = torch.nn.functional.softplus(free)
        hidden, states = torch.zeros(xs.shape[0], free.shape[0]), []
        for k in range(xs.shape[1]):
            hidden = hidden + torch.tanh(-rates * hidden + xs[:, k, None] * inputs + bias)
            states.append(hidden)
        outputs = torch.stack(states, dim=1) @ readout
        return torch.mean(weight * (outputs - xs @ matrix.T) ** 2)

    with torch.no_grad():
        start = float(error(weights, held_out))
    for leaf in weights:
        leaf.requires_grad_(True)
    torch.manual_seed(0)
    optimiser = torch.optim.Adam(weights, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, updates)
    clock = time.perf_counter()
    for _ in range(updates):
        optimiser.zero_grad()
        error(weights, torch.randn(batch, matrix.shape[0])).backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimiser.step()
        schedule.step()
    trained = time.perf_counter() - clock
    clock = time.perf_counter()
    with torch.no_grad():
        last = float(error(weights, held_out))
        largest = last
        for radius in RADII:
            for seed in range(draws):
                torch.manual_seed(seed)
                noise = [torch.randn_like(leaf) for leaf in weights]
                moved = [
                    leaf + float(radius) * step / step.abs().max()
                    for leaf, step in zip(weights, noise, strict=True)
                ]
                largest = max(largest, float(error(moved, held_out)))
    return {
        "start": [start],
        "trained": [last],
        "largest": [largest],
        "training_seconds": trained,
        "perturbation_seconds": time.perf_counter() - clock,
    }


def by_jax(problem: dict[str, np.ndarray], updates: int, batch: int, draws: int) -> dict:
    import jax
    import jax.numpy as jnp
    import optax

    weights = [jnp.asarray(problem[name][0]) for name in NAMES]
    matrix, weight = jnp.asarray(problem["matrix"]), jnp.asarray(problem["weight"])
    held_out = jnp.asarray(problem["held_out"])

    def error(weights: list, xs: Any) -> Any:
        free, inputs, bias, readout = weights
        rates = jax.nn.softplus(free)

        def move(hidden: Any, x: Any) -> Any:
            hidden = hidden + jnp.tanh(-rates * hidden + x[:, None] * inputs + bias)
            return hidden, hidden @ readout

        rest = jnp.zeros((xs.shape[0], free.shape[0]), xs.dtype)
        outputs = jax.lax.scan(move, rest, xs.T)[1].T
        return jnp.mean(weight * (outputs - xs @ matrix.T) ** 2)

    value = jax.jit(error)
    optimiser = optax.chain(
        optax.clip_by_global_norm(CLIP), optax.adam(optax.cosine_decay_schedule(RATE, updates))
    )

    @jax.jit
    def update(weights: list, state: Any, key: jax.Array) -> tuple[list, Any]:
        slopes = jax.grad(error)(weights, jax.random.normal(key, (batch, matrix.shape[0])))
        changes, state = optimiser.update(slopes, state, weights)
        return optax.apply_updates(weights, changes), state  # pyright: ignore

    start = float(value(weights, held_out))
    clock = time.perf_counter()
    state = optimiser.init(weights)
    for key in jax.random.split(jax.random.key(0), updates):
        weights, state = update(weights, state, key)
    jax.block_until_ready(weights)
    trained = time.perf_counter() - clock
    clock = time.perf_counter()
    last = largest = float(value(weights, held_out))
    for radius in RADII:
        for seed in range(draws):
            keys = jax.random.split(jax.random.key(seed), len(weights))
            noise = [
                jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, weights, strict=True)
            ]
            moved = [
                leaf + radius.astype(np.float32) * step / jnp.max(jnp.abs(step))
                for leaf, step in zip(weights, noise, strict=True)
            ]
            largest = max(largest, float(value(moved, held_out)))
    return {
        "start": [start],
        "trained": [last],
        "largest": [largest],
        "training_seconds": trained,
        "perturbation_seconds": time.perf_counter() - clock,
    }


NAMES = ("free", "input", "bias", "readout")
BY: dict[str, Callable[..., dict]] = {
    "memjax": by_memjax,
    "torch-loop": by_torch,
    "jax-scan": by_jax,
}


def make_model(width: int, key: Any) -> Any:
    """A softplus tanh RNN in float32 to start from."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    import memjax as mj

    first, second, _ = jax.random.split(key, 3)
    model = mj.DiagonalNonlinearRNN.init(
        mj.uniform_rates(width, 0.3, 1.3, key=first),
        activation=ACTIVATION,
        reparametrisation=mj.Softplus(),
        key=second,
    )
    single = lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf
    return jax.tree.map(single, model)


def make_problem(width: int, seeds: int) -> dict[str, np.ndarray]:
    """Weights to start from, one row a seed, and what the runs are measured on: errors weighted by
    time squared on sequences of 100, for the kernel (1 + 0.1 t)^(-1.1)."""
    import jax

    import memjax as mj

    lags = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    kernel = mj.PowerLaw(0.1, 10.0)
    keys = jax.random.split(jax.random.key(1), seeds)
    models = [make_model(width, key) for key in keys]
    stack = lambda name: np.stack([np.asarray(getattr(model, name)) for model in models])
    return {
        "free": stack("free_rates"),
        "input": stack("input"),
        "bias": stack("bias"),
        "readout": stack("readout_weights"),
        "matrix": np.where(lags < 0, 0, kernel(np.maximum(lags, 0.0))).astype(np.float32),
        "weight": np.asarray(mj.TemporalWeight(2.0)(np.arange(LENGTH + 1.0))[1:], np.float32),
        "held_out": np.asarray(
            jax.random.normal(jax.random.key(2), (HELD_OUT, LENGTH)), np.float32
        ),
    }


def in_process(
    method: str, problem: dict[str, np.ndarray], options: argparse.Namespace
) -> dict[str, Any]:
    """A run in a process of its own: its times, from its start to its end."""
    python = options.torch_python if method == "torch-loop" else sys.executable
    with tempfile.TemporaryDirectory() as folder:
        np.savez(Path(folder) / "problem.npz", **problem)
        sizes = [str(value) for value in (options.updates, options.batch, options.draws)]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        clock = time.perf_counter()
        child = subprocess.run(
            [python, __file__, "--one", method, folder, *sizes], stdout=subprocess.PIPE, text=True
        )
        seconds = time.perf_counter() - clock
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if child.returncode == 3:
        return {"status": "not installed"}
    if child.returncode:
        return {"status": f"failed with {child.returncode}"}
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"status": "measured", "seconds": seconds, "cpu_seconds": cpu} | json.loads(child.stdout)


def row_of(
    method: str, problem: dict[str, np.ndarray], options: argparse.Namespace
) -> dict[str, Any]:
    """All seeds: in one process by memjax, one after the other by the others."""
    seeds = problem["free"].shape[0]
    parts = [problem]
    if method != "memjax":
        own = lambda seed: {
            name: value[seed : seed + 1] if name in NAMES else value
            for name, value in problem.items()
        }
        parts = [own(seed) for seed in range(seeds)]
    found = []
    for part in parts:
        found.append(in_process(method, part, options))
        if found[-1]["status"] != "measured":
            return {"method": method, "status": found[-1]["status"]}
    row: dict[str, Any] = {"method": method, "status": "measured", "processes": len(parts)}
    for name in ("seconds", "cpu_seconds", "training_seconds", "perturbation_seconds"):
        row[name] = sum(run[name] for run in found)
    for name in ("start", "trained", "largest"):
        row[name] = [value for run in found for value in run[name]]
    row["version"] = found[0]["version"]
    return row


def table(result: dict[str, Any]) -> str:
    lines = [
        "| method | processes | s | over memjax | CPU, s | over memjax | training, s "
        "| perturbation, s | error after training |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        if row["status"] != "measured":
            lines.append(f"| {row['method']} | {row['status']} | | | | | | | |")
            continue
        lines.append(
            f"| {row['method']} | {row['processes']} | {row['seconds']:.1f} "
            f"| {row['seconds_over_memjax']:.1f} | {row['cpu_seconds']:.1f} "
            f"| {row['cpu_over_memjax']:.1f} | {row['training_seconds']:.1f} "
            f"| {row['perturbation_seconds']:.1f} | {np.median(row['trained']):.1e} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--updates", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--draws", type=int, default=30, help="at each of the 21 radii")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with torch")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "published_way.json")
    parser.add_argument("--table", type=Path, help="only print a saved result")
    parser.add_argument("--one", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.table is not None:
        print(table(json.loads(options.table.read_text())))
        return
    if options.one is not None:
        method, folder, *sizes = options.one
        try:
            library = __import__("torch" if method == "torch-loop" else "jax")
        except ImportError:
            sys.exit(3)
        problem = dict(np.load(Path(folder) / "problem.npz"))
        found = BY[method](problem, *map(int, sizes))
        print(json.dumps(found | {"version": library.__version__}))
        return
    from plateau_sweep import machine, versions

    # Other work on the machine lengthens every row.
    load = os.getloadavg()[0]
    problem = make_problem(options.width, options.seeds)
    rows = []
    for method in options.methods:
        rows.append(row_of(method, problem, options))
        print(f"{method}: {rows[-1]['status']}", file=sys.stderr, flush=True)
    ours = rows[0]
    for row in rows:
        if row["status"] == "measured" and ours["method"] == "memjax":
            row["seconds_over_memjax"] = row["seconds"] / ours["seconds"]
            row["cpu_over_memjax"] = row["cpu_seconds"] / ours["cpu_seconds"]
            starts = np.asarray(row["start"]) / np.asarray(ours["start"])
            row["start_deviation"] = float(np.max(np.abs(starts - 1)))
    result = {
        "benchmark": "published_way",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions() | {"torch": next(
            (row["version"] for row in rows if row["method"] == "torch-loop" and "version" in row),
            None,
        )},
        "settings": {
            "cell": f"{KERNEL}, {ACTIVATION}, {PARAMETRISATION}, width {options.width}",
            "seeds": options.seeds,
            "updates": options.updates,
            "batch": options.batch,
            "radii": len(RADII),
            "draws": options.draws,
            "held_out": len(problem["held_out"]),
            "dtype": "float32",
            "load_at_start": load,
        },
        "rows": rows,
    }  # fmt: skip
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
