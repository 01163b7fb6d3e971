from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .._checks import as_integers, check_dataset
from .._lazy import matplotlib, tqdm, xr
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..viz import drawing, explain, look, published
from ._base import (
    check_integers,
    check_known,
    compare,
    empty,
    listed,
    near,
    padded,
    Reproduction,
    Verdict,
)
from ._z24_covariance import cone_slopes, MODES
from ._z24_curvature import (
    describe_hessian,
    hessian_of,
    leading_share,
    MODELS,
    slopes_of,
    solutions,
)
from ._z24_identification import Weights
from ._z24_systems import LENGTH, make_student, make_teacher, train_sampled

WIDTHS = (4, 8, 16, 32)
CONES = (0.01, 0.1, 1.0)
# Medians of the effective learning rates above 0 at the end of training, from the arrays in the
# public code that Figures 4 and 9 draw, one student each.
RATES: Mapping[str, Mapping[str, float]] = {
    "RNN": {"recurrent": 2.0e-7, "drive": 1.1e-5, "readout": 5.1e-6},
    "complex": {"eigenvalues": 2.0e-3, "drive": 3.0e-3, "readout": 3.2e-3},
    "LRU": {
        "moduli": 3.2e-3,
        "phases": 1.2e-4,
        "scales": 3.1e-3,
        "drive": 2.6e-3,
        "readout": 3.1e-3,
    },
    "S4": {
        "real parts": 4.0e-5,
        "imaginary parts": 8.5e-5,
        "steps": 6.8e-5,
        "drive": 1.6e-3,
        "readout": 1.4e-3,
    },
}
# The largest eigenvalues in Figure 10, read off.
LARGEST: Mapping[float, float] = {0.01: 4e8, 0.1: 5e6, 1.0: 4e4}

_CORRELATION = 0.99
_MODULUS, _RATE, _STUDENT = 0.99, 1e-3, 64
_WITHIN = 10.0
_GROUPS = 5


def group_rates(kind: str, rates: Weights) -> list[np.ndarray]:
    """The effective learning rates in every group of weights of a student."""
    modes = rates.get("modes")
    groups = {
        "recurrent": rates.get("recurrent"),
        "eigenvalues": modes,
        "moduli": None if modes is None else modes[0],
        "phases": None if modes is None else modes[1],
        "real parts": None if modes is None else modes[0],
        "imaginary parts": None if modes is None else modes[1],
        "scales": rates.get("log_scale"),
        "steps": rates.get("step"),
        "drive": rates["drive"],
        "readout": rates["readout"],
    }
    return [np.ravel(np.asarray(groups[name], float)) for name in RATES[kind]]


def run(
    progress: bool = True,
    *,
    widths: Sequence[int] = WIDTHS,
    students: Sequence[str] = tuple(RATES),
    seeds: int = 10,
    updates: int = 10_000,
    runs: int = 3,
) -> "xr.Dataset":
    """Hessians at the solution over `model`, `width` and `seed`, those in the eigenvalues over the
    `cone` of phases, and effective learning rates over `student`, `group` and `run`."""
    widths = as_integers("widths", widths)
    for width in widths:
        if width % 2 or not 4 <= width <= 128:
            raise ValueError(
                f"`widths` must be even, from 4 to 128, got {width}; pass numbers such as 4 and 8."
            )
    check_known("students", students, RATES)
    check_integers(seeds=seeds, updates=updates, runs=runs)
    axes = {"model": list(MODELS), "width": widths, "seed": np.arange(seeds)}
    names = ("largest", "condition", "spread", "scaled_largest", "scaled_condition")
    found = {name: empty(axes) for name in names}
    leading_part = empty(axes)
    with tqdm.tqdm(
        total=len(widths) * seeds + len(students) * runs, unit="cell", disable=not progress
    ) as bar:
        for j, width in enumerate(widths):
            for k in range(seeds):
                for i, (model, weights) in enumerate(solutions(width, k).items()):
                    slopes, columns = slopes_of(weights)
                    rank = min(2 * width + 1, LENGTH)
                    for name, value in describe_hessian(slopes, rank, width // 2).items():
                        found[name][i, j, k] = value
                    leading_part[i, j, k] = leading_share(model, slopes, columns, width // 2)
                bar.update()
        cones = {"cone": list(CONES), "correlation": [0.0, _CORRELATION], "seed": np.arange(seeds)}
        in_cones = {name: empty(cones) for name in names}
        for place in np.ndindex(len(CONES), 2, seeds):
            slopes = cone_slopes(CONES[place[0]], cones["correlation"][place[1]], place[2])
            for name, value in describe_hessian(slopes, 2 * MODES, MODES // 2).items():
                in_cones[name][place] = value
        table = {"student": list(students), "group": np.arange(_GROUPS), "run": np.arange(runs)}
        rates, falls = empty(table, 3), empty(table)
        losses = empty({"student": students, "run": range(runs)})
        for i, kind in enumerate(students):
            for k in range(runs):
                losses[i, k], effective = _train(kind, k, updates)
                for group, values in enumerate(group_rates(kind, effective)):
                    above = values[values > 0]
                    if above.size:
                        rates[i, group, k] = np.quantile(above, (0.05, 0.5, 0.95))
                    falls[i, group, k] = np.mean(values <= 0)
                bar.update()
    labels = [[*RATES[kind], *[""] * (_GROUPS - len(RATES[kind]))] for kind in students]
    example = solutions(widths[0], 0)
    hessians, spectra = zip(*(hessian_of(example[model]) for model in MODELS[:3]), strict=True)
    return xr.Dataset(
        {name: (tuple(axes), values) for name, values in found.items()}
        | {f"cone_{name}": (tuple(cones), values) for name, values in in_cones.items()}
        | {
            "leading_part": (tuple(axes), leading_part),
            "rate": ((*table, "quantile"), rates),
            "not_positive": (tuple(table), falls),
            "loss": (("student", "run"), losses),
            "group_name": (("student", "group"), labels),
            "spectrum": (("example", "index"), padded(spectra)),
            "result": (
                ("student", "run"),
                np.where(np.isfinite(losses), MAX_TIME_REACHED, DIVERGED),
            ),
        }
        | {
            f"hessian_{model}": ((f"row_{model}", f"column_{model}"), table)
            for model, table in zip(MODELS, hessians, strict=False)
        },
        axes | cones | table | {"quantile": [0.05, 0.5, 0.95], "example": list(MODELS[:3])},
        {"updates": updates},
    )


def _train(kind: str, seed: int, updates: int) -> tuple[float, Weights]:
    weights = jax.tree.map(jnp.asarray, make_student(kind, _MODULUS, seed, _STUDENT))
    teacher = jnp.asarray(make_teacher(_MODULUS, seed), jnp.float32)
    rate, parts = jnp.asarray(_RATE, jnp.float32), max(1, updates // 1000)
    _, losses, rates = train_sampled(weights, teacher, rate, jax.random.key(seed), updates, parts)
    return float(losses[-1]), jax.tree.map(lambda leaf: leaf[-1], rates)


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """Figures 4, 9 and the first part of 10."""
    middle = dataset.median("seed")
    widths = dataset["width"].values
    row = lambda name, model: middle[name].sel(model=model).values
    span = ", ".join(str(width) for width in widths)
    dense, diagonal = row("spread", "dense"), row("spread", "complex")
    largest = row("largest", "dense") / row("largest", "complex")
    scaled = {model: row("scaled_largest", model) for model in MODELS}
    condition = {model: row("scaled_condition", model) for model in ("dense", "complex")}
    before = {model: row("condition", model) for model in ("dense", "complex")}
    verdicts = [
        Verdict(
            "Figure 4: the Hessians of the dense and of the complex diagonal model have similar "
            "spectra",
            f"the largest eigenvalue of the dense one is {listed(largest)} times as large, "
            f"condition numbers {listed(before['dense'])} and {listed(before['complex'])}, for "
            f"widths {span}",
            bool(np.all(near(largest, 1, 10))),
        ),
        Verdict(
            "Figure 4: leading eigenvectors of the complex diagonal model are in few weights, "
            "those of the dense one in many",
            f"in {listed(diagonal)} weights each, and in {listed(dense)}, for widths {span}",
            bool(np.all(diagonal < 3) and dense[-1] > 3 * diagonal[-1]),
        ),
        Verdict(
            "Figure 4: a learning rate for each weight can make up for the curvature of the "
            "complex diagonal model, not for that of the dense one",
            f"scaled to curvatures of 1, largest eigenvalue {listed(scaled['complex'])} and "
            f"{listed(scaled['dense'])}, condition number {listed(condition['complex'])} and "
            f"{listed(condition['dense'])}",
            bool(
                np.all(scaled["dense"] > scaled["complex"])
                and scaled["dense"][-1] > 5 * scaled["complex"][-1]
                and np.all(condition["dense"] > condition["complex"])
            ),
        ),
    ]
    for model, part in (("LRU", "phases"), ("S4", "steps")):
        share = row("leading_part", model)
        verdicts.append(
            Verdict(
                f"Figure 9, {model}: the leading eigenvectors are in the {part}",
                f"{listed(share)} of them, for widths {span}; scaled to curvatures of 1, largest "
                f"eigenvalue {listed(scaled[model])}",
                bool(np.all(share > 0.5)),
            )
        )
    verdicts += _judge_rates(dataset)
    return verdicts + _judge_cones(dataset)


def _judge_rates(dataset: "xr.Dataset") -> list[Verdict]:
    """Effective learning rates beside the published ones."""
    long = dataset.attrs["updates"] >= 10_000
    middle, verdicts = dataset["rate"].sel(quantile=0.5).median("run"), []
    students = [str(name) for name in dataset["student"].values]
    for name in students:
        groups = list(RATES[name])
        theirs = np.array(list(RATES[name].values()))
        ours = middle.sel(student=name).values[: len(groups)]
        says = f"Figures 4 and 9, {name}: median effective learning rates {listed(theirs)} of "
        verdicts.append(compare(says + ", ".join(groups), ours, theirs, _WITHIN, long))
    if {"RNN", "complex"} <= set(students):
        dense, diagonal = (float(middle.sel(student=name)[0]) for name in ("RNN", "complex"))
        verdicts.append(
            Verdict(
                "Figure 4: Adam takes far smaller steps in the recurrent weights of the dense RNN",
                f"{dense:.2g} against {diagonal:.2g} in complex eigenvalues",
                dense < 0.1 * diagonal if long else None,
            )
        )
    return verdicts


def _judge_cones(dataset: "xr.Dataset") -> list[Verdict]:
    """Hessians for phases that are kept small."""
    middle = dataset.median("seed")
    table = middle.sel(correlation=_CORRELATION)
    theirs = np.array(list(LARGEST.values()))
    seeds = dataset["cone_largest"].sel(correlation=_CORRELATION)
    low, high = seeds.min("seed").values, seeds.max("seed").values
    inside = (low <= theirs) & (theirs <= high)
    said = " and ".join(
        f"{listed(table[f'cone_{name}'].values)} ({words})"
        for name, words in (("scaled_largest", "largest eigenvalue"), ("spread", "weights each"))
    )
    white = middle.sel(correlation=0.0)["cone_scaled_largest"].values
    scaled, spread = table["cone_scaled_largest"].values, table["cone_spread"].values
    return [
        Verdict(
            f"Figure 10: largest eigenvalues {listed(theirs)} for phases within 0.01, 0.1 and 1 of "
            "pi and a correlation of 0.99",
            f"medians {listed(table['cone_largest'].values)}, seeds from {listed(low)} to "
            f"{listed(high)}; {int(inside.sum())} of {inside.size} among them",
            bool(np.all(inside)),
        ),
        Verdict(
            "Figure 10: the smaller the phases, the less diagonal the Hessian in the eigenvalues",
            f"scaled to curvatures of 1, {said}; white inputs {listed(white)} (largest eigenvalue)",
            bool(np.all(np.diff(scaled) < 0) and spread[0] > spread[-1]),
        ),
    ]


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Above, sizes of the entries of the Hessian at the solution for one random system as a dense
    and as a complex diagonal model, recurrent weights first, and its eigenvalues. In the middle,
    for random systems against the width, in how many weights a leading eigenvector is, the largest
    eigenvalue with all curvatures scaled to 1, and both (hollow and filled) for modes with phases
    in a cone. Below, effective learning rates of Adam after training, medians and from 5 to
    95 %; filled markers with a black edge are published, the line is the learning rate. Medians
    over seeds."""
    needed = {"spread": ["model", "width", "seed"], "rate": ["student", "group", "run", "quantile"]}
    check_dataset("dataset", dataset, needed, "the reproduction z24-hessian")
    middle = dataset.median("seed")
    with drawing(7.6, 7.6) as figure:
        grid = figure.add_gridspec(3, 3)
        panels = [[figure.add_subplot(grid[i, j]) for j in range(3)] for i in range(2)]
        (first, second, spectra), (spread, scaled, cones) = panels
        _draw_hessians((first, second), dataset)
        for k, model in enumerate(map(str, dataset["example"].values)):
            values = dataset["spectrum"].sel(example=model).values
            seen = values > 1e-12 * values[0]
            spectra.semilogy(1 + np.flatnonzero(seen), values[seen], label=model, **look(k))
        spectra.set(xlabel="index", ylabel="eigenvalue")
        spectra.legend()
        for k, model in enumerate(map(str, dataset["model"].values)):
            own = look(k, label=model)
            spread.loglog(dataset["width"], middle["spread"].sel(model=model), **own)
            scaled.loglog(dataset["width"], middle["scaled_largest"].sel(model=model), **own)
        for axes, words in ((spread, "weights each"), (scaled, "scaled largest eigenvalue")):
            axes.set(xlabel="width", ylabel=words)
            axes.set_xticks(dataset["width"].values, [f"{w}" for w in dataset["width"].values])
            axes.minorticks_off()
        spread.legend()
        for k, correlation in enumerate(dataset["correlation"].values):
            own, table = look(k), middle.sel(correlation=correlation)
            label = f"correlation {correlation:g}"
            cones.loglog(dataset["cone"], table["cone_spread"], label=label, **own)
            filled = published(own, ls=own["ls"])
            cones.loglog(dataset["cone"], table["cone_scaled_largest"], **filled)
        cones.set(xlabel="largest phase (in units of pi)", ylabel="weights or eigenvalue")
        cones.set_yticks([1, 2, 5, 10], ["1", "2", "5", "10"])
        cones.minorticks_off()
        kinds = [
            explain("weights each", marker="o", mfc="white", ls=""),
            explain("scaled eigenvalue", marker="o", ls=""),
        ]
        cones.legend(handles=[*cones.get_legend_handles_labels()[0], *kinds])
        _draw_rates(figure.add_subplot(grid[2, :]), dataset)
    return figure


_SHADES = ("1", "0.85", "0.65", "0.4", "0")


def _draw_hessians(panels: Sequence[Any], dataset: "xr.Dataset") -> None:
    """Sizes of entries in five shades."""
    tables = [np.abs(dataset[f"hessian_{model}"].values) for model in MODELS[:2]]
    top = np.floor(np.log10(max(table.max() for table in tables)))
    bounds = top - 2 * np.arange(len(_SHADES) - 1)[::-1]
    # Which shade each entry has: as many as there are bounds below it.
    for axes, table, model in zip(panels, tables, MODELS, strict=False):
        shade = np.searchsorted(bounds, np.log10(np.maximum(table, 1e-300)))
        greys = np.array(_SHADES, float)[shade]
        axes.imshow(greys, cmap="gray", vmin=0, vmax=1)
        axes.set(xlabel=f"weight, {model}", ylabel="weight")
    patches = [
        explain(f"> 1e{bound:.0f}", marker="s", ls="", ms=7, mfc=shade, mec="0.5")
        for shade, bound in zip(_SHADES[1:], bounds, strict=True)
    ]
    panels[0].legend(
        handles=patches, loc="lower left", bbox_to_anchor=(0, 1.1), ncols=2, borderaxespad=0
    )


def _draw_rates(axes: Any, dataset: "xr.Dataset") -> None:
    """Effective learning rates, a place for each group of each student."""
    at, ticks = 0.0, []
    table = dataset["rate"].median("run")
    for k, student in enumerate(map(str, dataset["student"].values)):
        own = look(k, ls="")
        for group, name in enumerate(RATES[student]):
            low, middle, high = table.sel(student=student).values[group]
            axes.plot([at, at], [low, high], color=own["color"])
            axes.plot(at, middle, **own, label=student if group == 0 else None)
            axes.plot(at + 0.3, RATES[student][name], **published(own))
            ticks.append((at, name))
            at += 1
        at += 0.6
    axes.axhline(_RATE, color="0.5", lw=0.8)
    axes.set_yscale("log")
    places, names = zip(*ticks, strict=True)
    axes.set_xticks(places, names, rotation=35, ha="right")
    axes.set_ylabel("effective learning rate")
    axes.legend(loc="lower right", ncols=2)


REPRODUCTION = Reproduction(
    name="z24-hessian",
    title="Hessians of linear recurrent models at the solution, and the steps that Adam takes",
    source="Zucchet, Orvieto, Recurrent neural networks: vanishing and exploding gradients are not "
    "the end of the story, NeurIPS 2024, Figures 4, 9 and 10 and their public notebooks",
    description="A random real system, with moduli from 0.99 to 0.993, is written as a dense, a "
    "complex diagonal, an LRU and an S4 model. The Hessian of the expected error over sequences of "
    "300 white inputs is exact there; published is one system of 4 units and a batch of 64. "
    "Leading are half as many eigenvectors as the width. Condition numbers are over the "
    "eigenvalues above 0, twice the width and 1. Figure 10 is 10 modes for inputs without end. "
    "Effective learning rates are how far Adam would move a weight down a slope of 1 after 10,000 "
    "updates at the rate 0.001 on batches of 128 sequences of 300 steps, by students of 64 units, "
    "teachers of 10 units and moduli from 0.99; those not above 0 do not count, as published. S4 "
    "begins with steps of 1, the one of its two starts in the public code from which it learns "
    "these systems. Medians over 10 seeds and over 3 students, where published is one; the figure "
    f"also has 5 and 95 % of weights. Rates agree within a factor of {_WITHIN:g}.",
    run=run,
    check=check,
    plot=plot,
)
