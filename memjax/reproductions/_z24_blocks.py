from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import as_integers, check_dataset
from .._lazy import matplotlib, tqdm, xr
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..viz import drawing, look, published
from ._base import (
    as_positives,
    check_integers,
    check_known,
    compare,
    describe,
    empty,
    in_threads,
    listed,
    padded,
    Reproduction,
    Verdict,
)
from ._z24_identification import train
from ._z24_systems import make_student, make_teacher, train_sampled

CONES = (0.01, 0.0316, 0.1, 0.316, 1.0)
HEADS = (1, 2, 4, 8, 16, 32)
# Final losses at the best learning rate, read off Figures 10 and 11 of the public notebooks:
# against the largest phase over pi, and against the number of blocks.
PUBLISHED = {
    "RNN": (0.06, 0.8, 1.1, 0.025, 0.5),
    "complex": (2.7e-5, 2.6e-5, 1.8e-5, 2.8e-5, 4.3e-5),
    "LRU": (4e-7, 1.6e-6, 1.1e-6, 2.8e-6, 2.5e-5),
}
BLOCKS = (0.6, 0.65, 0.2, 0.12, 7e-5, 1.8e-5)
# Geometric means of the effective learning rates of the recurrent weights half-way through the
# training, read off Figure 11.
STEPS = (4e-6, 3e-6, 8e-6, 3.5e-5, 1.6e-4, 1.1e-3)
# The published learning rates.
RATES: Mapping[str, tuple[float, ...]] = {
    "RNN": (1e-3, 3.2e-4, 1e-4, 3.2e-5),
    "complex": (1e-2, 3.2e-3, 1e-3, 3.2e-4),
    "LRU": (1.0, 0.32, 0.1, 3.2e-2, 1e-2, 3.2e-3, 1e-3, 3.2e-4),
}
_BLOCK_RATES = (3.2e-2, 1e-2, 3.2e-3, 1e-3, 1e-4)

_MODULUS, _WIDTH, _PARTS = 0.99, 64, 20
# The smallest moduli of blocks at the start: as in the public code, and as the teacher's.
STARTS = (0.0, _MODULUS)
_WITHIN, _SMALLEST = 10.0, 1e-8


def run(
    progress: bool = True,
    *,
    models: Sequence[str] = tuple(PUBLISHED),
    cones: Sequence[float] = CONES,
    heads: Sequence[int] = HEADS,
    seeds: int = 5,
    updates: int = 10_000,
    runs: int = 1,
) -> "xr.Dataset":
    """Final losses over `model`, `cone` of phases, `rank` of the learning rate and `seed`; those
    over the `start` of moduli and the number of `heads`; and effective learning rates over `heads`
    and `part` of the training at the best rate."""
    check_known("models", models, PUBLISHED)
    cones = as_positives("cones", cones).tolist()
    if max(cones) > 1:
        raise ValueError(f"`cones` must be at most 1, got {max(cones):g}; pass parts of pi.")
    heads = as_integers("heads", heads)
    for number in heads:
        if _WIDTH % number:
            raise ValueError(f"`heads` must divide {_WIDTH}, got {number}; pass 1, 2, 4, ...")
    check_integers(seeds=seeds, updates=updates, runs=runs)
    ranks = range(max(len(RATES[model]) for model in models))
    axes = {"model": list(models), "cone": cones, "rank": list(ranks), "seed": np.arange(seeds)}
    blocks = {"start": list(STARTS), "heads": heads, "block_rank": np.arange(len(_BLOCK_RATES))}
    blocks |= {"seed": np.arange(seeds)}
    losses, block_losses = empty(axes), empty(blocks)
    cells = [
        ((i, j, k, seed), losses, (models[i], 1, 0.0), cones[j], RATES[models[i]][k])
        for i in range(len(models))
        for j in range(len(cones))
        for k in range(len(RATES[models[i]]))
        for seed in range(seeds)
    ]
    cells += [
        ((h, i, k, seed), block_losses, ("RNN", heads[i], STARTS[h]), 1.0, _BLOCK_RATES[k])
        for h in range(len(STARTS))
        for i in range(len(heads))
        for k in range(len(_BLOCK_RATES))
        for seed in range(seeds)
    ]

    def measure(cell: Any) -> Any:
        place, table, (kind, number, start), cone, rate = cell
        student = make_student(kind, _MODULUS, place[-1], _WIDTH, number, cone * np.pi, start)
        weights = jax.tree.map(jnp.asarray, student)
        teacher = jnp.asarray(make_teacher(_MODULUS, place[-1], cone * np.pi), jnp.float32)
        curve = np.asarray(train(weights, teacher, jnp.asarray(rate, jnp.float32), updates)[1])
        return table, place, curve[-1] if np.all(np.isfinite(curve)) else np.inf

    with tqdm.tqdm(total=len(cells) + len(heads) * runs, unit="run", disable=not progress) as bar:
        for table, place, loss in in_threads(measure, cells):
            table[place] = loss
            bar.update()
        best = np.argmin(np.median(block_losses[0], axis=2), axis=1)
        steps = {"heads": heads, "run": np.arange(runs)}
        courses = empty(steps, _PARTS)
        for i, number in enumerate(heads):
            for k in range(runs):
                courses[i, k] = _course(number, _BLOCK_RATES[best[i]], k, updates)
                bar.update()
    lost = np.all(np.median(losses, axis=3) == np.inf, axis=2)
    words = {"loss": "half the mean squared error after training"}
    return xr.Dataset(
        describe({"loss": losses}, tuple(axes), words)
        | describe({"block_loss": block_losses}, tuple(blocks), {"block_loss": words["loss"]})
        | {
            "result": (("model", "cone"), np.where(lost, DIVERGED, MAX_TIME_REACHED)),
            "rate": (("model", "rank"), padded([RATES[model] for model in models])),
            "step": ((*steps, "part"), courses, {"long_name": "effective learning rate"}),
        },
        axes | blocks | steps | {"part": (0.5 + np.arange(_PARTS)) / _PARTS},
        {"updates": updates},
    )


def _course(heads: int, rate: float, seed: int, updates: int) -> np.ndarray:
    """Geometric means of the effective learning rates of the recurrent weights, along a training
    on sampled batches."""
    weights = jax.tree.map(jnp.asarray, make_student("RNN", _MODULUS, seed, _WIDTH, heads))
    teacher = jnp.asarray(make_teacher(_MODULUS, seed), jnp.float32)
    updates = max(_PARTS, updates - updates % _PARTS)
    *_, rates = train_sampled(
        weights,
        teacher,
        jnp.asarray(rate, jnp.float32),
        jax.random.key(seed),
        updates,
        _PARTS,
        True,
    )
    table = np.asarray(rates["recurrent"], float).reshape(_PARTS, -1)
    # As published: those that are not above 0 count as the smallest rate.
    return np.exp(np.mean(np.log(np.maximum(table, 0) + _SMALLEST), axis=1))


def best_losses(dataset: "xr.Dataset") -> "tuple[xr.DataArray, xr.DataArray]":
    """Medians over seeds at the best learning rate, of `model` and `cone`, and of `start` and
    `heads`."""
    blocks = dataset["block_loss"].median("seed").min("block_rank")
    return dataset["loss"].median("seed").min("rank"), blocks


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The last panel of Figure 10, and Figure 11."""
    best, blocks = best_losses(dataset)
    names = [str(name) for name in dataset["model"].values]
    verdicts = []
    for name in names:
        ours, theirs, places = _beside(best.sel(model=name), "cone", CONES, PUBLISHED[name])
        verdicts.append(
            _compare(
                f"Figure 10, {name}, phases within {listed(places)} of pi: losses", ours, theirs
            )
        )
    if {"RNN", "complex", "LRU"} <= set(names):
        table = {name: best.sel(model=name).sortby("cone").values for name in names}
        ratio = table["RNN"] / np.maximum(table["complex"], table["LRU"])
        verdicts += [
            Verdict(
                "Figure 10: a dense RNN is far worse for phases of all sizes",
                f"its loss is {listed(ratio)} times that of the worse of the other two",
                bool(np.all(ratio > 100)),
            ),
            Verdict(
                "Figure 10: small phases are no harder to learn for the complex diagonal student "
                "and easier for the LRU",
                f"losses from the smallest to the largest phases change "
                f"{table['complex'][-1] / table['complex'][0]:.2g} and "
                f"{table['LRU'][-1] / table['LRU'][0]:.2g} times",
                bool(
                    table["complex"][-1] > 0.2 * table["complex"][0]
                    and table["LRU"][-1] > 5 * table["LRU"][0]
                ),
            ),
        ]
    counts = ""
    for start, words in zip(STARTS, ("0", "those of the teacher"), strict=True):
        ours, theirs, places = _beside(blocks.sel(start=start), "heads", HEADS, BLOCKS)
        counts = ", ".join(f"{place:g}" for place in places)
        says = f"Figure 11, {counts} blocks, moduli at the start from {words}: losses"
        verdicts.append(_compare(says, ours, theirs))
    order = blocks.sel(start=STARTS[0]).sortby("heads").values
    verdicts.append(
        Verdict(
            "Figure 11: the smaller the blocks, the lower the loss",
            f"{order[0] / order[-1]:.2g} times from {order[0]:.2g} to {order[-1]:.2g}; it falls at "
            f"{int(np.sum(np.diff(order) < 0))} of {order.size - 1} steps",
            bool(order[-1] < 0.01 * order[0]),
        )
    )
    course = dataset["step"].median("run").sortby("heads")
    half = course.isel(part=course.sizes["part"] // 2)
    ours, theirs, _ = _beside(half, "heads", HEADS, STEPS)
    long = dataset.attrs["updates"] >= 10_000
    verdicts.append(
        _compare(
            f"Figure 11, {counts} blocks: effective learning rates of the recurrent weights "
            "half-way",
            ours,
            theirs,
            long,
        )
    )
    last = half.values
    verdicts.append(
        Verdict(
            "Figure 11: the smaller the blocks, the larger the steps that Adam takes",
            f"{last[-1] / last[0]:.2g} times from {half['heads'].values[0]} to "
            f"{half['heads'].values[-1]} blocks",
            bool(last[-1] > 10 * last[0]) if long else None,
        )
    )
    return verdicts


def _beside(
    found: "xr.DataArray", axis: str, known: Sequence[float], values: Sequence[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What was found where something is published, what that is, and where."""
    places = found[axis].values
    at = [k for k, place in enumerate(places) if place in known]
    return found.values[at], np.array([values[known.index(places[k])] for k in at]), places[at]


def _compare(says: str, ours: np.ndarray, theirs: np.ndarray, long: bool = True) -> Verdict:
    return compare(f"{says} {listed(theirs)}", ours, theirs, _WITHIN, long)


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """From the left, final losses against the largest phase of the eigenvalues, of a dense RNN, a
    complex diagonal student and an LRU; the final loss against the number of blocks of a recurrent
    matrix of 64 units, one of 64 to 32 of 2, for two starts; and effective learning
    rates of the recurrent weights along the training, a line for each number of blocks. Losses are
    medians over seeds at the best learning rate; filled markers with a black edge are published."""
    needed = {"loss": ["model", "cone", "rank", "seed"], "step": ["heads", "run", "part"]}
    check_dataset("dataset", dataset, needed, "the reproduction z24-blocks")
    best, blocks = best_losses(dataset)
    with drawing(7.6, 3.0) as figure:
        left, middle, right = figure.subplots(1, 3)
        for k, name in enumerate(map(str, dataset["model"].values)):
            own = look(k)
            left.loglog(dataset["cone"], best.sel(model=name), label=name, **own)
            left.plot(CONES, PUBLISHED[name], **published(own))
        left.set(xlabel="largest phase (in units of pi)", ylabel="loss")
        left.legend()
        for k, start in enumerate(dataset["start"].values):
            label = f"start from {start:g}"
            middle.loglog(dataset["heads"], blocks.sel(start=start), label=label, **look(k))
        middle.plot(HEADS, BLOCKS, **published(look(0)))
        middle.legend()
        middle.set(xlabel="blocks", ylabel="loss")
        middle.set_xticks(dataset["heads"].values, [f"{n}" for n in dataset["heads"].values])
        middle.minorticks_off()
        course, updates = dataset["step"].median("run"), dataset.attrs["updates"]
        for k, number in enumerate(dataset["heads"].values):
            own = look(k, markevery=3)
            right.semilogy(updates * dataset["part"], course.sel(heads=number), label=number, **own)
            if number in HEADS:
                right.plot(updates / 2, STEPS[HEADS.index(number)], **published(own))
        right.set(xlabel="update", ylabel="effective learning rate", ylim=(1e-7, None))
        right.legend(title="blocks", ncols=2)
    return figure


REPRODUCTION = Reproduction(
    name="z24-blocks",
    title="Linear systems with small phases, and recurrent matrices of more and smaller blocks",
    source="Zucchet, Orvieto, Recurrent neural networks: vanishing and exploding gradients are not "
    "the end of the story, NeurIPS 2024, Figures 10 and 11 and their public code",
    description="As z24-identification, for teachers of moduli from 0.99 whose phases, and those "
    "of the students at the start, are within a part of pi; and for recurrent matrices of 64 units "
    "in 1 to 32 blocks, which begin with moduli from 0 as in the public code, or from 0.99 as in "
    "z24-identification. As published, Adam with a cosine schedule, 10,000 updates, and four to "
    "eight learning rates of which the best counts. Losses are expected over sequences of 300 "
    "white inputs and known exactly; medians over 5 seeds, where published are means over 10 and "
    "batches. Effective learning rates need the noise of batches: they are how far Adam would move "
    "a recurrent weight down a slope of 1 in a training on batches of 128, geometric means over "
    f"the weights of one student. Numbers agree within a factor of {_WITHIN:g}.",
    run=run,
    check=check,
    plot=plot,
)
