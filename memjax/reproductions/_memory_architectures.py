import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .._checks import check_dataset, check_integer
from .._lazy import matplotlib, xr
from ..memory import as_functional, memory_decay, memory_function, MemoryFunction, WorstCase
from ..models import (
    GatedRNN,
    LinearRNN,
    log_uniform_rates,
    LRULayer,
    NonlinearRNN,
    ring,
    StateSpaceLayer,
)
from ..targets import Attention, ExponentialSum, PowerLaw
from ..viz import drawing, label_grid, look
from ._base import (
    check_integers,
    check_known,
    describe,
    each_cell,
    empty,
    Reproduction,
    Verdict,
)
from ._training import batched, select, train

STAGES = ("at the start", "trained")
INPUTS = ("up to 1", "up to 1000")
EXPONENTIAL, POLYNOMIAL = "attention, exponential bias", "attention, power-law bias"
_HEADS, _SIZE = 4, 4
_TRAIN_TIMES = 0.5 * np.arange(81)
_PATHS, _BATCH = 128, 16
_OMEGA = 0.5


class AttentionModel(eqx.Module):
    """Causal softmax attention whose weights are trained, those of the positions too."""

    queries: Float[Array, "heads size 1"]
    keys: Float[Array, "heads size 1"]
    values: Float[Array, "heads 1"]
    log_decays: Float[Array, " heads"]
    power_law: bool = eqx.field(static=True)

    def __call__(self, ts: Float[Array, " times"], xs: Float[Array, " times"]) -> Array:
        decays = jnp.exp(self.log_decays)
        bias = PowerLaw if self.power_law else functools.partial(ExponentialSum, 1.0)
        positions = [bias(decay) for decay in decays]
        layer = Attention(self.queries, self.keys, self.values, positions, scalar=True)
        return layer.response(ts, xs)


def _attention(key: PRNGKeyArray, power_law: bool) -> AttentionModel:
    decays = jnp.geomspace(0.3, 3.0, _HEADS) if power_law else jnp.geomspace(0.05, 2.0, _HEADS)
    start = Attention.random(decays, _SIZE, key=key)
    return AttentionModel(start.queries, start.keys, start.values, jnp.log(decays), power_law)


def _state_space(width: int, key: PRNGKeyArray) -> StateSpaceLayer:
    first, second = jax.random.split(key)
    return StateSpaceLayer.init(log_uniform_rates(width, 0.05, 2.0, key=first), key=second)


def _lru(width: int, key: PRNGKeyArray) -> LRULayer:
    first, second = jax.random.split(key)
    rates, frequencies = ring(width, 0.4, 0.95, max_phase=np.pi / 4, key=first)
    return LRULayer.init(rates, frequencies, key=second)


ARCHITECTURES: Mapping[str, tuple[Callable[[int, PRNGKeyArray], Any], str | None]] = {
    "linear": (lambda m, key: LinearRNN.init(m, gain=0.5, key=key), "scan"),
    "tanh": (lambda m, key: NonlinearRNN.init(m, gain=0.5, key=key), "residual"),
    "hardtanh": (
        lambda m, key: NonlinearRNN.init(m, gain=0.5, activation="hardtanh", key=key),
        "residual",
    ),
    "GRU": (lambda m, key: GatedRNN.init("gru", m, key=key), "residual"),
    "LSTM": (lambda m, key: GatedRNN.init("lstm", m, key=key), "residual"),
    "SSM": (_state_space, "scan"),
    "LRU": (_lru, "scan"),
    EXPONENTIAL: (lambda m, key: _attention(key, False), None),
    POLYNOMIAL: (lambda m, key: _attention(key, True), None),
}
"""A random model of a width, and how it is run along samples."""

RECURRENT = tuple(name for name in ARCHITECTURES if name not in (EXPONENTIAL, POLYNOMIAL))


def run(
    progress: bool = True,
    *,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    seeds: int = 3,
    updates: int = 500,
    width: int = 16,
    samples: int = 201,
) -> "xr.Dataset":
    """Memory functions over `architecture`, `stage` and `seed`, with what they decay like."""
    check_known("architectures", architectures, ARCHITECTURES)
    check_integers(seeds=seeds, updates=updates, width=width)
    check_integer("samples", samples, 16)
    ts, times = jnp.asarray(_TRAIN_TIMES), 0.5 * jnp.arange(samples)
    xs = jax.random.normal(jax.random.key(0), (_PATHS, ts.size))
    ys = jax.vmap(PowerLaw(_OMEGA).response, (None, 0))(ts, xs)
    axes = {
        "architecture": list(architectures),
        "stage": list(STAGES),
        "inputs": list(INPUTS),
        "seed": np.arange(seeds),
    }
    runs = {name: axes[name] for name in ("architecture", "stage", "seed")}
    memories = empty(axes, samples)
    words = {
        "rate": "rate of the exponential fit",
        "power": "exponent of the power-law fit",
        "score": "log-likelihood of the exponential over the power law",
        "half_time": "time to half of the memory",
        "horizon": "time to a hundredth of the memory",
    }
    numbers = {name: empty(axes) for name in words}
    losses, diverged = empty(runs), empty(runs) == 0
    decays = np.full(memories.shape[:-1], "undecided", dtype="<U11")
    keys = jax.random.split(jax.random.key(1), seeds)
    trained: Any = None
    for (i, j, k), (name, *_) in each_cell(runs, "model", progress):
        make, method = ARCHITECTURES[name]
        if (j, k) == (0, 0):
            trained = _train(make, method, width, keys, updates, ts, xs, ys)
            losses[i], diverged[i, 1] = trained.losses, trained.diverged
        for at, memory in enumerate(_memories(select(trained.stages[j], k), times, method)):
            index = (i, j, at, k)
            memories[index] = memory.values
            numbers["half_time"][index] = memory.half_time()
            numbers["horizon"][index] = memory.horizon(1e-2)
            if bool(jnp.all(jnp.isfinite(memory.values))):
                # The supremum over these inputs is meant, also where larger ones would leave
                # more.
                floor = None if memory.exact else 1e-7 * float(memory.values.max())
                decay = memory_decay((memory.ts, memory.values), floor=floor)
                decays[index] = decay.verdict
                numbers["rate"][index] = decay.rate
                numbers["power"][index] = decay.exponent
                numbers["score"][index] = decay.score
    return xr.Dataset(
        describe(numbers, tuple(axes), words)
        | {
            "memory": ((*axes, "time"), memories, {"long_name": "memory function"}),
            "decay": (tuple(axes), decays),
            "loss": (tuple(runs), losses, {"long_name": "loss over the mean square of the target"}),
            "diverged": (tuple(runs), diverged),
            "target_memory": ("time", np.asarray(PowerLaw(_OMEGA)(times))),
            "result": (tuple(runs), np.zeros(losses.shape, np.int8)),
        },
        axes | {"time": np.asarray(times)},
        {"updates": updates, "width": width},
    )


class _Trained(NamedTuple):
    """Models at the start and after training, their losses by stage, and which diverged."""

    stages: tuple[Any, Any]
    losses: np.ndarray
    diverged: Bool[Array, " runs"]


def _train(
    make: Callable[[int, PRNGKeyArray], Any],
    method: str | None,
    width: int,
    keys: PRNGKeyArray,
    updates: int,
    ts: Float[Array, " times"],
    xs: Float[Array, "paths times"],
    ys: Float[Array, "paths times"],
) -> _Trained:
    models = batched(lambda key: make(width, key), keys)
    error = functools.partial(_error, method=method, ts=ts)

    def loss(model: Any, key: PRNGKeyArray, data: None) -> Array:
        chosen = jax.random.randint(key, (_BATCH,), 0, _PATHS)
        return error(model, xs[chosen], ys[chosen])

    ended = train(models, loss, optax.adam(5e-3), updates, key=jax.random.key(2))
    whole = eqx.filter_jit(eqx.filter_vmap(error, in_axes=(0, None, None)))
    stages = models, ended.models
    losses = np.stack([whole(batch, xs, ys) / jnp.mean(ys**2) for batch in stages])
    return _Trained(stages, losses, ended.diverged)


def _memories(model: Any, times: Array, method: Any) -> tuple[MemoryFunction, MemoryFunction]:
    """The memory function for inputs of at most 1, and that for all inputs that are tried."""
    if isinstance(model, LinearRNN):
        memory = memory_function(model, times)
        return memory, memory
    # On a grid of amplitudes: how fast memory decays does not hang on a few per cent. It has to be
    # finer where each time has a best amplitude of its own.
    measure = lambda **search: memory_function(
        model, times, method=method, search=WorstCase(refinements=0, **search)
    )
    small = measure(amplitudes=(1e-3, 1.0), num_amplitudes=10)
    large = measure(amplitudes=(1.0, 1e3), num_amplitudes=31)
    values = jnp.maximum(small.values, large.values)
    return small, eqx.tree_at(lambda memory: memory.values, small, values)


def _error(
    model: Any, xs: Float[Array, "paths times"], ys: Array, *, method: Any, ts: Array
) -> Float[Array, ""]:
    respond = as_functional(model, method=method)
    return jnp.mean((jax.vmap(respond, (None, 0))(ts, xs) - ys) ** 2)


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The claims beside the decays in a dataset of `run`: one for every model and stage."""
    verdicts = []
    names = [str(name) for name in dataset["architecture"].values]
    for inputs in map(str, dataset["inputs"].values):
        for name in names:
            # A linear model has the same memory for all inputs.
            if name == "linear" and inputs != INPUTS[0]:
                continue
            for stage in map(str, dataset["stage"].values):
                cell = dataset.sel(architecture=name, stage=stage, inputs=inputs)
                decays = [str(decay) for decay in cell["decay"].values]
                expected = "polynomial" if name == POLYNOMIAL else "exponential"
                source = "W24, X23" if name in RECURRENT else "expected"
                verdicts.append(
                    Verdict(
                        f"{name}, {stage}, inputs {inputs}: {expected} ({source})",
                        _say(cell, decays),
                        _agree(decays, expected),
                    )
                )
    if {"GRU", "LSTM"} & set(names):
        verdicts.append(_judge_gates(dataset.sel(inputs=INPUTS[0])))
    return verdicts


def _agree(decays: Sequence[str], expected: str) -> bool | None:
    """Whether no seed speaks against what is expected, and most of them for it."""
    # What ends, or nowhere differs from zero, decays faster than any exponential.
    for_it = (expected, "finite") if expected == "exponential" else (expected,)
    told = [decay in for_it for decay in decays if decay != "undecided"]
    if not all(told):
        return False
    return True if 2 * len(told) > len(decays) else None


def _say(cell: "xr.Dataset", decays: Sequence[str]) -> str:
    counts = ", ".join(f"{decays.count(d)} {d}" for d in dict.fromkeys(decays))
    middle = {
        name: float(cell[name].median()) for name in ("rate", "power", "half_time", "horizon")
    }
    return (
        f"{counts}; rate {middle['rate']:.3g}, power {middle['power']:.3g}; half after "
        f"{middle['half_time']:.3g}, a hundredth after {middle['horizon']:.3g}; loss "
        f"{float(cell['loss'].median()):.2g}"
    )


def _judge_gates(dataset: "xr.Dataset") -> Verdict:
    gated = [name for name in ("GRU", "LSTM") if name in dataset["architecture"].values]
    decays = dataset["decay"].sel(architecture=gated).values
    horizons = dataset["horizon"].sel(architecture=gated, stage=STAGES[1]).median("seed").values
    long = bool(np.any(decays == "polynomial"))
    told = bool(np.any(decays != "undecided"))
    return Verdict(
        "GRU and LSTM have no long memory, inputs up to 1 (H20)",
        f"{int(np.sum(decays == 'polynomial'))} of {decays.size} memories decay polynomially; "
        "trained, a hundredth is left after "
        + ", ".join(f"{h:.3g} ({n})" for n, h in zip(gated, horizons, strict=True)),
        not long if told else None,
    )


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Memory functions against time: a column a stage of training, a row the size of the inputs.

    Both axes are logarithmic: a power law is a straight line, an exponential bends down. A line a
    model, the median over seeds of memory over its largest value; thick and grey is the target.
    """
    needed = {
        "memory": ["architecture", "stage", "inputs", "seed", "time"],
        "target_memory": ["time"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction memory-architectures")
    times, goal = dataset["time"].values[1:], dataset["target_memory"].values
    rows, columns = dataset["inputs"].values, dataset["stage"].values
    marked = np.unique(np.geomspace(1, times.size, 9).astype(int)) - 1
    with drawing(8.6, 0.6 + 2.6 * len(rows)) as figure:
        grid = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
        for (i, j), axes in np.ndenumerate(grid):
            axes.loglog(times, goal[1:] / goal.max(), color="0.8", lw=4, label="target")
            for index, name in enumerate(dataset["architecture"].values):
                cell = dataset.sel(architecture=name, stage=columns[j], inputs=rows[i])
                memory = cell["memory"] / cell["memory"].max("time")
                memory = memory.median("seed").values[1:]
                own = look(index, ms=4, lw=1.0)
                # Below, there is only what rounding leaves.
                shown = np.where(memory > 1e-7, memory, np.nan)
                axes.loglog(times, shown, label=str(name), markevery=list(marked), **own)
            axes.set_title(f"{columns[j]}, inputs {rows[i]}")
            axes.set_ylim(1e-7, 2)
        label_grid(grid, "time (units of the models' clock)", "memory / largest value")
        figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside right center")
    return figure


REPRODUCTION = Reproduction(
    name="memory-architectures",
    title="Memory functions of recurrent models and of attention, before and after training",
    source="Wang, Li, Li, ICLR 2024, Section 3; Wang, Xue, NeurIPS 2023; Zhao et al., ICML 2020",
    description="Models of width 16 with random weights of 3 seeds, and the same after 500 updates "
    "of Adam (rate 0.005) towards the power law (1 + t)^-1.5, on 128 white-noise paths of 81 "
    "samples at a distance of 0.5. Memory functions up to time 100, the supremum over 10 "
    "amplitudes from 0.001 to 1 with their limit at 0, and over 30 more up to 1000, are judged "
    "exponential or polynomial on their tails. Attention has positional weights that are "
    "exponentials, as in ALiBi, or power laws, as in KERPLE, of trained decay.",
    run=run,
    check=check,
    plot=plot,
)
