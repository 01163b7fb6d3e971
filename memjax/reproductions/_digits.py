import functools
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_dataset
from .._lazy import matplotlib, xr
from ..memory import perturbation_error
from ..models import Fixed, trainable
from ..reparam import REPARAMETRISATIONS
from ..viz import drawing, look
from ._base import (
    as_positives,
    as_radii,
    check_integers,
    check_known,
    describe,
    each_cell,
    empty,
    last_fine,
    Reproduction,
    Verdict,
)
from ._digit_classifiers import (
    accuracy,
    CLASSES,
    Classifier,
    COMPLEX,
    cross_entropy,
    load_digits,
    make_classifier,
    REAL,
)
from ._training import batched, select, train, Training

DIRECT = "direct"
MODELS = (REAL, COMPLEX)
WEIGHTS = ("all", "rates")

_STABLE = ("exp", "softplus", "best")
_BATCH = 128
# Of the test accuracy: what counts as lost under a perturbation.
_LOST = 0.1


def _train(
    models: Classifier, learning_rates: Array, images: Array, classes: Array, updates: int
) -> Training:
    """Adam at one learning rate for each model; watched is the ratio of gradient to weight."""

    def loss(model: Classifier, key: PRNGKeyArray, data: None) -> Array:
        chosen = jax.random.randint(key, (_BATCH,), 0, classes.shape[0])
        return cross_entropy(model, images[chosen], classes[chosen])

    def ratio(weights: Classifier, slopes: Classifier) -> Array:
        norm = lambda model: jnp.linalg.norm(model.layer.free_rates)
        return norm(slopes) / norm(weights)

    return train(
        models,
        loss,
        optax.scale_by_adam(),
        updates,
        key=jax.random.key(0),
        scales=-learning_rates,
        watch=ratio,
    )


def run(
    progress: bool = True,
    *,
    models: Sequence[str] = MODELS,
    reparametrisations: Sequence[str] = tuple(REPARAMETRISATIONS),
    learning_rates: Sequence[float] = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0),
    radii: Sequence[float] = tuple(1e-3 * 2.0**k for k in range(12)),
    seeds: int = 4,
    updates: int = 600,
    width: int = 32,
    draws: int = 16,
    steps: int = 15,
) -> "xr.Dataset":
    """Accuracies over `model`, `reparametrisation`, `learning_rate` and `seed`, and those of
    perturbed models over `weights` and `radius`."""
    check_known("models", models, MODELS)
    check_known("reparametrisations", reparametrisations, REPARAMETRISATIONS)
    learning_rates = as_positives("learning_rates", learning_rates).tolist()
    radii = as_radii(radii)
    check_integers(seeds=seeds, updates=updates, width=width, draws=draws, steps=steps)
    (images, classes), (others, rest) = jax.tree.map(jnp.asarray, load_digits())
    names = {"model": list(models), "reparametrisation": list(reparametrisations)}
    runs = names | {"learning_rate": learning_rates, "seed": np.arange(seeds)}
    rates = jnp.repeat(jnp.asarray(learning_rates, float), seeds)
    again = jnp.tile(jnp.arange(seeds), len(learning_rates))
    grid, balls = (len(learning_rates), seeds), jnp.asarray(radii, float)
    words = {
        "accuracy": "share of test images that are classified correctly",
        "loss": "cross entropy on the training images",
        "gradient_over_weight": "largest ratio of gradient to free rates during training",
    }
    values = {name: empty(runs) for name in words}
    drawn = empty(names, len(WEIGHTS), len(radii), seeds)
    worst = empty(names, len(radii), seeds)
    diverged, chosen = empty(runs) == 0, np.zeros(tuple(map(len, names.values())), int)
    for cell, (model, name) in each_cell(names, "model", progress):
        make = functools.partial(make_classifier, model, width, REPARAMETRISATIONS[name]())
        starts = select(batched(make, jax.random.split(jax.random.key(1), seeds)), again)
        ended = _train(starts, rates, images, classes, updates)
        loss = np.reshape(_measure(ended.models, images, classes)[0], grid)
        values["loss"][cell] = loss
        values["accuracy"][cell] = np.reshape(_measure(ended.models, others, rest)[1], grid)
        values["gradient_over_weight"][cell] = np.reshape(ended.watched, grid)
        # Worse than to give every class the same probability.
        diverged[cell] = np.reshape(ended.diverged, grid) | ~(loss < np.log(CLASSES))
        chosen[cell] = _choose(loss, diverged[cell])
        best = select(ended.models, slice(chosen[cell] * seeds, (chosen[cell] + 1) * seeds))
        of_draws, at_worst = _perturb(best, balls, others, rest, draws, steps)
        drawn[cell], worst[cell] = np.swapaxes(of_draws, 1, 2), np.transpose(at_worst)
    more = {
        "drawn_accuracy": (
            (*names, "weights", "radius", "seed"),
            drawn,
            {"long_name": "smallest test accuracy over random perturbations"},
        ),
        "worst_accuracy": (
            (*names, "radius", "seed"),
            worst,
            {"long_name": "test accuracy under the worst perturbation of the rates found"},
        ),
        "diverged": (
            tuple(runs),
            diverged,
            {"long_name": "not finite, or worse than a blind guess"},
        ),
        "chosen": (tuple(names), np.asarray(learning_rates)[chosen]),
        # How a run ended, as in sweeps; a run that diverged is an answer here.
        "result": (tuple(runs), np.zeros(diverged.shape, np.int8)),
    }
    return xr.Dataset(
        describe(values, tuple(runs), words) | more,
        runs | {"weights": list(WEIGHTS), "radius": list(radii)},
        {"updates": updates, "width": width, "draws": draws},
    )


@eqx.filter_jit
def _measure(models: Classifier, images: Array, classes: Array) -> tuple[Array, Array]:
    """Loss and accuracy of each of a batch of models."""
    both = lambda model: (
        cross_entropy(model, images, classes),
        accuracy(model, images, classes),
    )
    return eqx.filter_vmap(both)(models)


class _OnlyRates(eqx.Module):
    """A classifier of which nothing but the free rates is open to perturbations."""

    free_rates: Float[Array, " width"]
    rest: Fixed

    def restore(self) -> Classifier:
        where = lambda model: model.layer.free_rates
        return eqx.tree_at(where, self.rest.value, self.free_rates)


def _restore(subject: Classifier | _OnlyRates) -> Classifier:
    return subject.restore() if isinstance(subject, _OnlyRates) else subject


@eqx.filter_jit
def _perturb(
    models: Classifier, radii: Array, images: Array, classes: Array, draws: int, steps: int
) -> tuple[tuple[Array, Array], Array]:
    """By model and radius, the smallest accuracy among random perturbations, of all weights and
    of the rates, and the accuracy at the worst perturbation of the rates that was found."""

    def right(subject: Any, change: Any) -> Array:
        logits = _restore(eqx.apply_updates(subject, change))(images)
        # A model without a value is never right.
        finite = jnp.all(jnp.isfinite(logits), axis=1)
        return jnp.mean(finite & (jnp.argmax(logits, axis=1) == classes))

    def drawn(subject: Any, key: PRNGKeyArray) -> Array:
        free, shape = ravel_pytree(eqx.filter(subject, trainable(subject)))
        noise = jax.random.uniform(key, (draws, free.size), minval=-1, maxval=1)
        smallest = lambda beta: jnp.min(jax.vmap(lambda u: right(subject, shape(beta * u)))(noise))
        return jax.lax.map(smallest, radii)

    def curves(model: Classifier, key: PRNGKeyArray) -> tuple[tuple[Array, Array], Array]:
        only = _OnlyRates(model.layer.free_rates, Fixed(model))
        errors = perturbation_error(
            only,
            lambda subject: cross_entropy(_restore(subject), images, classes),
            radii,
            ball="max",
            restarts=1,
            steps=steps,
            draws=draws,
            key=key,
        )
        worst = jax.vmap(lambda change: right(only, change))(errors.perturbation)
        return (drawn(model, key), drawn(only, key)), worst

    keys = jax.random.split(jax.random.key(2), models.layer.free_rates.shape[0])
    return eqx.filter_vmap(curves)(models, keys)


def _choose(losses: np.ndarray, diverged: np.ndarray) -> int:
    """The learning rate that ends with the smallest median loss on the training images."""
    ended = np.where(diverged, np.inf, losses)
    return int(np.argmin(np.median(ended, axis=1)))


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The claims beside a dataset of `run`, model by model."""
    return [
        verdict
        for model in dataset["model"].values
        for verdict in _judge(str(model), dataset.sel(model=model))
    ]


def _judge(model: str, dataset: "xr.Dataset") -> list[Verdict]:
    names = [str(name) for name in dataset["reparametrisation"].values]
    cell = {name: dataset.sel(reparametrisation=name) for name in names}
    stable = [name for name in names if name in _STABLE]
    listed = lambda values, form: ", ".join(f"{n} {values[n]:{form}}" for n in names)
    compared = DIRECT in names and bool(stable)
    smallest = lambda values: min(values[name] for name in stable)

    reach = {name: _find_reach(cell[name]) for name in names}
    right = {
        n: float(cell[n]["accuracy"].sel(learning_rate=cell[n]["chosen"]).median()) for n in names
    }
    first = dataset["learning_rate"].values[0]
    ratio = {
        n: float(cell[n]["gradient_over_weight"].sel(learning_rate=first).median()) for n in names
    }
    kept = {name: _find_kept(cell[name], right[name]) for name in names}
    last = dataset["learning_rate"].values[-1]
    largest = dataset["radius"].values[-1]
    return [
        Verdict(
            f"{model}: stable maps train at larger learning rates than the direct one (S24)",
            f"largest rate up to which at most a third of the runs diverge: {listed(reach, 'g')} "
            f"(tried up to {last:g})",
            (smallest(reach) > reach[DIRECT] if reach[DIRECT] < last else None)
            if compared
            else None,
        ),
        Verdict(
            f"{model}: the best map has the smallest gradient over weight (S24)",
            f"largest ratio during training at a learning rate of {first:g}: "
            f"{listed(ratio, '.2g')}",
            min(ratio, key=ratio.__getitem__) == "best"
            if "best" in names and len(names) > 1
            else None,
        ),
        Verdict(
            f"{model}: with stable maps more of the rates' perturbations are survived (W24, S24)",
            f"worst perturbation that leaves all but {_LOST:.0%} of the accuracy: "
            f"{listed(kept, '.2g')} (tried up to {largest:.2g})",
            smallest(kept) > kept[DIRECT] if compared else None,
        ),
        Verdict(
            f"{model}: stable maps end as accurate as the direct one (expected)",
            f"median test accuracy, each at its own learning rate: {listed(right, '.3f')}",
            smallest(right) >= right[DIRECT] - _EVEN if compared else None,
        ),
    ]


# By how much test accuracies on 450 images differ by chance.
_EVEN = 0.02


def _find_reach(cell: "xr.Dataset") -> float:
    """The learning rate up to which at most a third of the runs diverge, 0 if there is none."""
    share = cell["diverged"].mean("seed").values
    return last_fine(cell["learning_rate"].values, share <= 1 / 3)


def _find_kept(cell: "xr.Dataset", right: float) -> float:
    """The radius up to which the worst perturbation of the rates costs less than it may."""
    worst = cell["worst_accuracy"].median("seed").values
    return last_fine(cell["radius"].values, worst >= right - _LOST)


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Accuracy on the handwritten digits: against the learning rate, and under perturbations.

    A row a model and a line a reparametrisation. From the left: the mean test accuracy over seeds,
    where a run that diverged counts as a blind guess; the largest ratio of gradient to free rates
    during training, median over the seeds that did not diverge; the test accuracy under the worst
    perturbation of the free rates that was found; and the smallest one among random perturbations
    of all weights, medians over seeds.
    """
    trained = ["model", "reparametrisation", "learning_rate", "seed"]
    perturbed = ["model", "reparametrisation", "radius", "seed"]
    needed = {
        **dict.fromkeys(("accuracy", "gradient_over_weight", "diverged"), trained),
        "worst_accuracy": perturbed,
        "drawn_accuracy": [*perturbed, "weights"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction digits-stability")
    models, blind, fine = dataset["model"].values, 1 / CLASSES, ~dataset["diverged"]
    ratio, drawn = dataset["gradient_over_weight"], dataset["drawn_accuracy"].sel(weights="all")
    panels = {
        "test accuracy": dataset["accuracy"].where(fine, blind).mean("seed"),
        "largest gradient / weight": ratio.where(fine).median("seed"),
        "accuracy, rates at worst": dataset["worst_accuracy"].median("seed"),
        "accuracy, all weights drawn": drawn.median("seed"),
    }
    labels = {
        "learning_rate": "learning rate (Adam)",
        "radius": r"radius $\beta$ of the perturbation",
    }
    with drawing(10.0, 0.5 + 2.4 * len(models)) as figure:
        grid = figure.subplots(len(models), len(panels), squeeze=False, sharex="col")
        for row, model in zip(grid, models, strict=True):
            for axes, (label, values) in zip(row, panels.items(), strict=True):
                (abscissa,) = labels.keys() & set(values.dims)
                for index, name in enumerate(dataset["reparametrisation"].values):
                    line = values.sel(model=model, reparametrisation=name)
                    axes.plot(dataset[abscissa], line, label=str(name), **look(index, ms=4))
                axes.set(xscale="log", ylabel=label)
                axes.set_xlabel(labels[abscissa] if model == models[-1] else "")
                if "gradient" in label:
                    axes.set_yscale("log")
                else:
                    axes.set_ylim(0, 1)
                    axes.axhline(blind, color="0.6", lw=0.8, ls=":", label="blind guess")
            row[0].set_title(str(model))
        grid[0, -1].legend(loc="upper right")
    return figure


REPRODUCTION = Reproduction(
    name="digits-stability",
    title="Handwritten digits as sequences of 64 pixels: learning rates and perturbations",
    source="Wang, Li, ICML 2024, Section 4; Wang, Li, Li, ICLR 2024, Section 3; the data: "
    "scikit-learn, from Alpaydin, Kaynak, UCI 1998",
    description="The 1,797 images of 8x8 pixels, 450 of them for the test, are read pixel by "
    "pixel and classified at the last one: by a state-space layer of 32 real modes with tanh, and "
    "by an LRU layer of 32 complex modes with 32 gelu features and a linear map. Each is trained "
    "by Adam, 600 updates of 128 images, from 4 seeds at every learning rate. A run diverges if "
    "it meets a number that is not finite, or ends with a training loss above that of a blind "
    "guess. Models at the learning rate of the smallest median training loss are then perturbed, "
    "each weight by at most the radius: all weights or the free rates alone by random draws, and "
    "the free rates by projected gradient ascent on the loss of the test images.",
    run=run,
    check=check,
    plot=plot,
)
