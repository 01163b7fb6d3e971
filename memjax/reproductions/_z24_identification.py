import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float

from .._checks import check_dataset
from .._lazy import matplotlib, tqdm, xr
from ..plateaus import DIVERGED, find_plateaus, MAX_TIME_REACHED
from ..viz import drawing, explain, look, published
from ._base import (
    as_moduli,
    check_integers,
    check_known,
    compare,
    describe,
    empty,
    in_threads,
    listed,
    near,
    padded,
    Reproduction,
    Verdict,
)

MODULI = (0.36, 0.68, 0.84, 0.92, 0.96, 0.98, 0.99)
# Final losses at the best learning rate, read off Figure 3 of the public notebook: against the
# smallest modulus, and at 0.99 for what lies between the two.
PUBLISHED = {
    "RNN": (8e-9, 1e-7, 2e-5, 9e-5, 6e-4, 5e-2, 0.4),
    "LRU": (5e-8, 1.3e-7, 9e-7, 2.5e-6, 5e-6, 5e-5, 2.5e-5),
}
BETWEEN = {
    "RNN": 0.4,
    "block-diagonal": 1.8e-5,
    "more neurons": 2e-5,
    "complex": 4.3e-5,
    "normalised": 2.3e-5,
    "LRU": 2.4e-5,
}
# The published learning rates.
_BLOCK_RATES = (3.2e-2, 1e-2, 3.2e-3, 1e-3, 1e-4)
_COMPLEX_RATES = (1e-1, 3.2e-2, 1e-2, 3.2e-3, 1e-3, 3.2e-4, 1e-4)
RATES: Mapping[str, tuple[float, ...]] = {
    "RNN": (3.2e-3, 1e-3, 3.2e-4, 1e-4, 3.2e-5),
    "block-diagonal": _BLOCK_RATES,
    "more neurons": _BLOCK_RATES,
    "complex": _COMPLEX_RATES,
    "normalised": _COMPLEX_RATES,
    "LRU": (0.32, 1e-1, 3.2e-2, 1e-2, 3.2e-3),
}

_TEACHER, _WIDTH, _HEADS = 10, 64, 32
_LENGTH, _BLOCK = 300, 18  # lags, as many blocks of as many lags or more
_LOWEST_RATE = 1e-7
_WITHIN = 10.0

Weights = dict[str, Array]


# --- Teachers and students ------------------------------------------------------------------------


def random_recurrence(
    rng: np.random.Generator, width: int, smallest: float, cone: float | None = None
) -> np.ndarray:
    """A real random matrix whose eigenvalues have moduli from the smallest one to 1, and phases of
    at most `cone`.

    As published, phases are scaled. That takes a negative eigenvalue off the real axis, where it
    has no conjugate, and its real part alone is kept: it is smaller by the cosine of `cone`.
    """
    values, vectors = np.linalg.eig(rng.normal(size=(width, width)) / np.sqrt(width))
    moduli = smallest + (1 - smallest) * np.tanh(np.abs(values))
    phases = np.angle(values) if cone is None else np.angle(values) * cone / np.pi
    moved = moduli * np.exp(1j * phases)
    return np.real(vectors @ np.diag(moved) @ np.linalg.inv(vectors))


def make_teacher(
    modulus: float, seed: int, cone: float | None = None, stream: int = 11
) -> np.ndarray:
    """The response of a random linear system to an impulse, of so many lags."""
    rng = np.random.default_rng([seed, stream])
    recurrent = random_recurrence(rng, _TEACHER, modulus, cone)
    drive, readout = rng.normal(size=_TEACHER), rng.normal(size=_TEACHER) / np.sqrt(_TEACHER)
    response = np.empty(_LENGTH)
    for k in range(_LENGTH):
        response[k] = readout @ drive
        drive = recurrent @ drive
    response[0] += rng.normal()
    return response


def make_blocks(
    rng: np.random.Generator, width: int, heads: int, smallest: float, cone: float | None = None
) -> dict[str, np.ndarray]:
    """A recurrent matrix of blocks, with its inputs and readouts."""
    size = width // heads
    blocks = [random_recurrence(rng, size, smallest, cone) for _ in range(heads)]
    return {
        "recurrent": np.stack(blocks),
        "drive": rng.normal(size=(heads, size)),
        "readout": rng.normal(size=(heads, size)) / np.sqrt(width),
    }


def make_student(kind: str, modulus: float, seed: int) -> dict[str, np.ndarray]:
    """The weights at the start, as the public code draws them, but for recurrent matrices and
    blocks: their eigenvalues have the teacher's moduli or more here, and any below 1 there."""
    rng = np.random.default_rng([seed, 23])
    width = 2 * _WIDTH if kind == "more neurons" else _WIDTH
    if kind in ("RNN", "block-diagonal", "more neurons"):
        heads = {"RNN": 1, "block-diagonal": _HEADS, "more neurons": 2 * _HEADS}[kind]
        weights = make_blocks(rng, width, heads, modulus)
    else:
        moduli = np.sqrt(rng.uniform(modulus**2, 1, width))
        phases = rng.uniform(0, 2 * np.pi, width)
        normal = np.sqrt(1 - moduli**2)
        weights = {
            "drive": rng.normal(size=(2, width)) / np.sqrt(width),
            "readout": rng.normal(size=(2, width)),
        }
        if kind == "LRU":
            weights["modes"] = np.stack([np.log(-np.log(moduli)), np.log(phases)])
            weights["log_scale"] = np.log(normal)
        else:
            weights["modes"] = moduli * np.stack([np.cos(phases), np.sin(phases)])
            if kind == "normalised":
                weights["scale"] = normal
    weights["skip"] = rng.normal(size=())
    return {name: value.astype(np.float32) for name, value in weights.items()}


def student_response(weights: Weights) -> Float[Array, " lags"]:
    """The response of a student to an impulse.

    At the lag k = b i + j it is the product of C A^(b i) and A^j B, so that a few products of
    matrices make all of them.
    """
    if "recurrent" in weights:
        matrix, drive, readout = (weights[name] for name in ("recurrent", "drive", "readout"))
        step = lambda columns, _: (jnp.einsum("hij,hj->hi", matrix, columns), columns)
        _, right = jax.lax.scan(step, drive, length=_BLOCK)
        power = _matrix_power(matrix)
        leap = lambda rows, _: (jnp.einsum("hi,hij->hj", rows, power), rows)
        _, left = jax.lax.scan(leap, readout, length=_BLOCK)
        found = jnp.einsum("ahi,bhi->ab", left, right)
    else:
        modes, parts = weights["modes"], lambda name: jax.lax.complex(*weights[name])
        if "log_scale" in weights:
            values = jnp.exp(jax.lax.complex(-jnp.exp(modes[0]), jnp.exp(modes[1])))
        else:
            values = jax.lax.complex(*modes)
        drive, readout = parts("drive"), parts("readout")
        if "log_scale" in weights:
            drive = jnp.exp(weights["log_scale"]) * drive
        elif "scale" in weights:
            drive = weights["scale"] * drive
        powers = jnp.cumprod(jnp.broadcast_to(values, (_BLOCK, values.size)), axis=0)
        leaps = jnp.cumprod(jnp.broadcast_to(powers[-1], powers.shape), axis=0)
        ones = jnp.ones((1, values.size), powers.dtype)
        right = jnp.concatenate([ones, powers[:-1]]) * drive
        left = jnp.concatenate([ones, leaps[:-1]]) * readout
        found = jnp.real(left @ right.T)
    return found.reshape(-1)[:_LENGTH].at[0].add(weights["skip"])


def _matrix_power(matrix: Float[Array, "heads n n"]) -> Float[Array, "heads n n"]:
    found, square, left = None, matrix, _BLOCK
    while left:
        if left % 2:
            found = square if found is None else found @ square
        square, left = square @ square, left // 2
    assert found is not None
    return found


def expected_loss(weights: Weights, teacher: Float[Array, " lags"]) -> Float[Array, ""]:
    """Half the mean squared error over sequences of standard normal inputs without end.

    At the time t it is the sum of squares of the difference of responses up to that lag.
    """
    shares = 1 - jnp.arange(_LENGTH, dtype=teacher.dtype) / _LENGTH
    return 0.5 * jnp.sum(shares * (student_response(weights) - teacher) ** 2)


@functools.partial(jax.jit, static_argnames="updates")
def train(weights: Weights, teacher: Array, rate: Array, updates: int) -> tuple[Weights, Array]:
    """The weights after so many updates of Adam with a cosine schedule, and all losses."""
    schedule = lambda count: (
        _LOWEST_RATE
        + (rate - _LOWEST_RATE) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(count / updates, 1)))
    )
    optimiser = optax.adam(schedule)

    def update(carry: Any, _: None) -> tuple[Any, Array]:
        weights, memory = carry
        loss, slopes = jax.value_and_grad(expected_loss)(weights, teacher)
        changes, memory = optimiser.update(slopes, memory)
        return (optax.apply_updates(weights, changes), memory), loss

    start = (weights, optimiser.init(weights))
    (weights, _), losses = jax.lax.scan(update, start, length=updates)
    return weights, jnp.append(losses, expected_loss(weights, teacher))


# --- The measurement ------------------------------------------------------------------------------


def run(
    progress: bool = True,
    *,
    moduli: Sequence[float] = MODULI,
    models: Sequence[str] = tuple(BETWEEN),
    seeds: int = 10,
    updates: int = 10_000,
) -> "xr.Dataset":
    """Final losses over `model`, `modulus`, `rate` and `seed`; what lies between RNN and LRU is
    measured at the largest modulus only."""
    moduli = as_moduli(moduli)
    check_known("models", models, BETWEEN)
    check_integers(seeds=seeds, updates=updates)
    ranks = range(max(len(RATES[model]) for model in models))
    axes = {"model": list(models), "modulus": moduli, "rank": list(ranks), "seed": np.arange(seeds)}
    losses, stop = empty(axes), empty(axes)
    cells = [
        (i, j, k, seed)
        for i, model in enumerate(models)
        for j, modulus in enumerate(moduli)
        if model in PUBLISHED or modulus == max(moduli)
        for k in range(len(RATES[model]))
        for seed in range(seeds)
    ]

    def measure(cell: tuple[int, ...]) -> tuple[tuple[int, ...], np.ndarray]:
        i, j, k, seed = cell
        model, modulus = models[i], moduli[j]
        weights = jax.tree.map(jnp.asarray, make_student(model, modulus, seed))
        teacher = jnp.asarray(make_teacher(modulus, seed), jnp.float32)
        rate = jnp.asarray(RATES[model][k], jnp.float32)
        return cell, np.asarray(train(weights, teacher, rate, updates)[1], float)

    # One program a run: matrices of a batch are multiplied far more slowly than one after another.
    with tqdm.tqdm(total=len(cells), unit="run", disable=not progress) as bar:
        for cell, curve in in_threads(measure, cells):
            losses[cell] = curve[-1] if np.all(np.isfinite(curve)) else np.inf
            stop[cell] = _plateau_end(curve)
            bar.update()
    # Too large a learning rate is no answer about the model; that none will do is one.
    lost = np.all(np.median(losses, axis=3) == np.inf, axis=2)
    words = {
        "loss": "half the mean squared error after training",
        "plateau_end": "update at which the longest plateau ends",
    }
    return xr.Dataset(
        describe({"loss": losses, "plateau_end": stop}, tuple(axes), words)
        | {
            "result": (("model", "modulus"), np.where(lost, DIVERGED, MAX_TIME_REACHED)),
            "rate": (("model", "rank"), padded([RATES[model] for model in models])),
        },
        axes,
        {"updates": updates},
    )


def _plateau_end(curve: np.ndarray) -> float:
    """Where the longest plateau of a training ends; NaN without one."""
    finite = np.isfinite(curve) & (curve > 0)
    if finite.sum() < 100:
        return np.nan
    found = find_plateaus(np.arange(1.0, curve.size + 1)[finite], curve[finite])
    left = [plateau for plateau in found.segments if plateau.left]
    return max(left, key=lambda each: each.stop / each.start).stop if left else np.nan


def best_losses(dataset: "xr.Dataset") -> "xr.DataArray":
    """Medians over seeds at the best learning rate, of `model` and `modulus`."""
    return dataset["loss"].median("seed").min("rank")


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """Both panels of Figure 3."""
    best, verdicts = best_losses(dataset), []
    moduli = dataset["modulus"].values
    names = [str(name) for name in dataset["model"].values]
    for name in [name for name in PUBLISHED if name in names]:
        known = [k for k, modulus in enumerate(moduli) if modulus in MODULI]
        theirs = np.array([PUBLISHED[name][MODULI.index(moduli[k])] for k in known])
        ours = best.sel(model=name).values[known]
        says = f"{name}, moduli from {listed(moduli[known])}: losses {listed(theirs)}"
        verdicts.append(compare(says, ours, theirs, _WITHIN))
    last = float(moduli.max())
    at_last = {name: float(best.sel(model=name, modulus=last)) for name in names}
    if {"RNN", "LRU"} <= at_last.keys():
        ratio = at_last["RNN"] / at_last["LRU"]
        verdicts.append(
            Verdict(
                "the dense RNN ends far above the LRU at the longest memory (Z24)",
                f"{at_last['RNN']:.2g} against {at_last['LRU']:.2g}, {ratio:.2g} times",
                ratio > 100,
            )
        )
        first = best.isel(modulus=int(np.argmin(moduli)))
        short = float(first.sel(model="RNN") / first.sel(model="LRU"))
        verdicts.append(
            Verdict("at the shortest memory it does not (Z24)", f"{short:.2g} times", short < 10)
        )
    for name in ("block-diagonal", "more neurons", "complex", "normalised"):
        if name in names and last == MODULI[-1] and "RNN" in names:
            theirs, ours = BETWEEN[name], at_last[name]
            verdicts.append(
                Verdict(
                    f"{name}, at 0.99: {theirs:.2g}, as good as the LRU",
                    f"{ours:.2g}, {ours / at_last['RNN']:.2g} of the dense RNN",
                    bool(near(ours, theirs, _WITHIN)),
                )
            )
    if "RNN" in names:
        verdicts.append(_judge_plateaus(dataset))
    return verdicts


def _judge_plateaus(dataset: "xr.Dataset") -> Verdict:
    """Whether the dense RNN has trouble because of plateaus."""
    cell = dataset.sel(model="RNN")
    rank = cell["loss"].median("seed").argmin("rank")
    ends = cell["plateau_end"].isel(rank=rank).max("seed").values
    return Verdict(
        "the trouble of the dense RNN is its sensitivity, not that nothing happens (Z24)",
        "plateaus of all seeds end at update "
        + ", ".join(f"{end:.0f}" if np.isfinite(end) else "none" for end in ends)
        + f" at the latest, for moduli from {listed(dataset['modulus'].values)}",
        bool(np.all(~np.isfinite(ends) | (ends < 0.1 * dataset.attrs["updates"]))),
    )


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Left, the final loss of a dense RNN and of an LRU against the smallest modulus of the
    teacher; right, what lies between the two, at the largest. Medians over seeds at the best
    learning rate; filled markers with a black edge are published."""
    dims = ["model", "modulus", "rank", "seed"]
    check_dataset("dataset", dataset, {"loss": dims}, "the reproduction z24-identification")
    best = best_losses(dataset)
    names = [str(name) for name in dataset["model"].values]
    moduli = dataset["modulus"].values
    with drawing(7.2, 3.2) as figure:
        left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
        for index, name in enumerate(name for name in PUBLISHED if name in names):
            own = look(2 * index)
            left.loglog(1 / (1 - moduli), best.sel(model=name), label=name, **own)
            places = 1 / (1 - np.array(MODULI))
            left.plot(places, PUBLISHED[name], **published(own))
        left.set(xlabel=r"memory of the teacher, $1 / (1 - \nu_0)$ (steps)", ylabel="loss")
        filled = explain("published", **published({"color": "0.5", "marker": "o"}))
        left.legend(handles=[*left.get_legend_handles_labels()[0], filled])
        at_last = best.sel(modulus=moduli.max())
        places = range(len(names))
        own = look(0, ls="-")
        right.semilogy(places, at_last.values, label="measured", **own)
        known = [BETWEEN[name] for name in names]
        right.plot(places, known, label="published", **published(own))
        right.set_xticks(places, names, rotation=40, ha="right")
        right.set(title=rf"$\nu_0$ = {moduli.max():g}", ylabel="loss")
        right.legend()
    return figure


REPRODUCTION = Reproduction(
    name="z24-identification",
    title="Random linear systems learnt by a dense RNN, an LRU, and what lies between",
    source="Zucchet, Orvieto, Recurrent neural networks: vanishing and exploding gradients are not "
    "the end of the story, NeurIPS 2024, Figure 3 and its public code",
    description="Teachers are random linear systems of 10 units with eigenvalues of moduli from a "
    "smallest one to 1. Students have 64 units (128 for more neurons): they are dense, of blocks "
    "of 2 units, or complex and diagonal, without and with a learnt scale of the inputs, and with "
    "exponential maps (LRU). As published, Adam with a cosine schedule, 10,000 updates, five to "
    "seven learning rates of which the best counts, and 10 seeds: medians over all of them, where "
    "published are means over those that stay finite. The loss is the "
    "expected error over sequences of 300 standard normal inputs, which is known exactly for "
    "linear systems; published are batches of 128. Losses agree if they are within a factor of "
    f"{_WITHIN:g}: they are read off a figure over eight decades. The end of the longest plateau "
    "is that of memjax.find_plateaus.",
    run=run,
    check=check,
    plot=plot,
)
