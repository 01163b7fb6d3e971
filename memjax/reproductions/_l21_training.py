from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from .._checks import check_dataset, check_integer
from .._lazy import matplotlib, xr
from ..flows import OptaxTraining
from ..losses import SampledPathLoss
from ..models import AbstractModel, LinearRNN, NonlinearRNN
from ..plateaus import measure_plateau, RelativeLossDrop
from ..targets import AbstractTarget, Airy, ExponentialSum, Lorenz96
from ..viz import COLOURS, DASHES, drawing, label_grid
from ._base import check_integers, check_known, each_cell, empty, Reproduction, Verdict

MODELS: dict[str, Callable[..., AbstractModel]] = {
    "linear RNN": LinearRNN.init,
    "tanh RNN": NonlinearRNN.init,
}
OPTIMISERS = {"gradient descent": optax.sgd(0.02), "Adam": optax.adam(1e-3)}
TARGETS = ("exponential sum", "Airy", "Lorenz-96")

# Which targets are published to be learnt with a plateau.
_PUBLISHED = {"exponential sum": False, "Airy": True, "Lorenz-96": True}

_HORIZON, _SAMPLES = 14.0, 101
_SIGMA = {"Lorenz-96": 2.0}

# The criterion: see the description.
_FLAT, _SEEN, _LEFT, _LONG = 0.9, 0.05, 0.5, 5.0


def run(
    progress: bool = True,
    *,
    targets: Sequence[str] = TARGETS,
    models: Sequence[str] = tuple(MODELS),
    optimisers: Sequence[str] = tuple(OPTIMISERS),
    updates: int = 10_000,
    width: int = 16,
    batch: int = 32,
) -> "xr.Dataset":
    """Loss curves over `target`, `model` and `optimiser`, with `training_time` in updates."""
    check_known("targets", targets, TARGETS)
    check_known("models", models, MODELS)
    check_known("optimisers", optimisers, OPTIMISERS)
    check_integer("updates", updates, 2)
    check_integers(width=width, batch=batch)
    names = {"target": targets, "model": models, "optimiser": optimisers}
    times = np.unique(np.round(np.geomspace(1, updates, 200)))
    losses = {target: _loss(target, batch) for target in targets}
    power = [float(jnp.mean(losses[target].ys ** 2)) for target in targets]
    curves, first = empty(names, times.size), empty(names)
    results = np.full(first.shape, -1, np.int8)
    for cell, (target, model, optimiser) in each_cell(names, "run", progress):
        plateau = measure_plateau(
            OptaxTraining(losses[target], OPTIMISERS[optimiser]),
            # Decays of at least 0.5: the memory of the start ends before the targets' delay.
            MODELS[model](width, gain=0.5, margin=0.5, key=jax.random.key(2)),
            RelativeLossDrop(1 - 1e-6),
            max_time=float(updates),
            max_steps=updates + 1,
            saveat=diffrax.SaveAt(ts=jnp.asarray(times)),
            throw=False,
            resolution=1.0,
        )
        assert plateau.curve is not None
        curves[cell], results[cell] = plateau.curve.loss, plateau.result_code
        first[cell] = plateau.initial_loss
    dims = tuple(names)
    return xr.Dataset(
        {
            "curve_loss": ((*dims, "training_time"), curves, {"long_name": "loss"}),
            "initial_loss": (dims, first, {"long_name": "loss at the start"}),
            "power": (dims[:1], power, {"long_name": "mean square of the target's output"}),
            "result": (dims, results, {"long_name": "how the measurement ended"}),
        },
        {name: list(values) for name, values in names.items()} | {"training_time": times},
        {"updates": updates, "width": width, "batch": batch},
    )


def _loss(name: str, batch: int) -> SampledPathLoss:
    ts = jnp.linspace(0.0, _HORIZON, _SAMPLES)
    target = _target(name)
    common: dict[str, Any] = {"method": "residual"}
    loss = SampledPathLoss.ornstein_uhlenbeck(
        target, ts, batch, 1.0, _SIGMA.get(name, 1.0), key=jax.random.key(0), **common
    )
    if isinstance(target, Lorenz96):
        # The mean is the work of the constant forcing, which no model is told of.
        mean, std = jnp.mean(loss.ys), jnp.std(loss.ys)
        loss = eqx.tree_at(lambda loss: loss.ys, loss, (loss.ys - mean) / std)
    return loss


def _target(name: str) -> AbstractTarget:
    if name == "exponential sum":
        return ExponentialSum(jnp.array([1.0, 1.0]), jnp.array([1.0, 0.4]))
    if name == "Airy":
        return Airy(scale=1.0, delay=10.0)
    return Lorenz96(slow=6, fast=4, forcing=2.0, key=jax.random.key(1), rtol=1e-6, atol=1e-6)


class Stretch(NamedTuple):
    """A stretch of a loss curve: its first and last time, its level, and whether it was left."""

    start: float
    end: float
    level: float
    left: bool


def longest_plateau(times: np.ndarray, losses: np.ndarray, initial: float) -> Stretch:
    """The longest stretch of a loss curve that the criterion admits; NaN and `False` if the loss
    never falls by a tenth."""
    seen = np.isfinite(losses)
    times, losses = times[seen], losses[seen]
    fallen = np.flatnonzero(losses <= _FLAT * initial)
    if fallen.size == 0:
        return Stretch(np.nan, np.nan, np.nan, False)
    first = fallen[0]
    best = Stretch(float(times[first]), float(times[first]), float(losses[first]), False)
    length = 1.0
    for start in range(first, times.size):
        level = losses[start]
        if level < _SEEN * initial:
            break
        below = np.flatnonzero(losses[start:] < _FLAT * level)
        end = start + below[0] - 1 if below.size else times.size - 1
        left = bool((losses[end:] < _LEFT * level).any())
        if times[end] / times[start] > length:
            length = times[end] / times[start]
            best = Stretch(float(times[start]), float(times[end]), float(level), left)
    return best


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """A verdict for each panel and optimiser of a dataset of `run`."""
    verdicts = []
    times = dataset["training_time"].values
    names = {name: dataset[name].values.tolist() for name in ("target", "model", "optimiser")}
    for place, cell in each_cell(names, "cell", False):
        run = dataset.isel(dict(zip(names, place, strict=True)))
        expected = _PUBLISHED[str(cell[0])]
        found, agrees = _judge(
            times, run["curve_loss"].values, float(run["initial_loss"]), expected
        )
        published = "a plateau" if expected else "no plateau"
        verdicts.append(Verdict(f"{', '.join(map(str, cell))}: {published}", found, agrees))
    return verdicts


def _judge(
    times: np.ndarray, losses: np.ndarray, initial: float, expected: bool
) -> tuple[str, bool | None]:
    start, end, level, left = longest_plateau(times, losses, initial)
    last = losses[np.isfinite(losses)]
    if last.size == 0 or np.isnan(start):
        return "the loss never falls by a tenth", None
    where = (
        f"from {start:.0f} to {end:.0f} updates ({end / start:.1f}-fold) at a loss of {level:.3g}"
    )
    if end / start < _LONG:
        fell = bool(last[-1] < _SEEN * initial)
        found = f"longest flat stretch {where}; the loss ends at {last[-1]:.2g}"
        # Flat stretches may still come in a training that is not done.
        return found, False if expected else (True if fell else None)
    if not left:
        return f"flat {where}, and never half of it: a level that is not left", None
    return f"flat {where}, then falls to {last.min():.2g}", expected


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Loss against training time on log scales, a panel a target and model, a line an optimiser.

    The loss is divided by the mean square of the target's output, which a model without any
    output has.
    """
    needed = {
        "curve_loss": ["target", "model", "optimiser", "training_time"],
        "power": ["target"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction l21-training")
    targets, models = dataset["target"].values, dataset["model"].values
    times = dataset["training_time"].values
    with drawing(0.6 + 2.1 * len(targets), 0.6 + 1.7 * len(models)) as figure:
        grid = figure.subplots(len(models), len(targets), sharex=True, sharey=True, squeeze=False)
        for (i, j), axes in np.ndenumerate(grid):
            panel = dataset.isel(target=j, model=i)
            for index, optimiser in enumerate(dataset["optimiser"].values):
                own = {"color": COLOURS[3 * index % 7], "ls": DASHES[index % 7], "lw": 1.4}
                curve = panel["curve_loss"].sel(optimiser=optimiser) / panel["power"]
                axes.loglog(times, curve, label=str(optimiser), **own)
            axes.set_title(f"{targets[j]}, {models[i]}")
        label_grid(grid, "training time (updates)", "loss / mean square output")
        grid[0, -1].legend(loc="lower left")
    return figure


REPRODUCTION = Reproduction(
    name="l21-training",
    title="Loss against training time: exponential sum, Airy and Lorenz-96 targets",
    source="Li, Han, E, Li, ICLR 2021, Section 5",
    description="Published: the three kinds of target, and that Airy and Lorenz-96 are learnt with "
    "a plateau and exponential sums without. The numbers of the published experiments could not be "
    "found; these are chosen, and every model has one start. A linear and a tanh RNN of width 16 "
    "learn each target from 32 sample paths of an Ornstein-Uhlenbeck input of rate 1 and standard "
    f"deviation 1 (2 for Lorenz-96), {_SAMPLES} samples up to time {_HORIZON:g}, with the residual "
    "discretisation, the same paths at every update, by gradient descent (rate 0.02) and Adam "
    "(rate 0.001). Their matrices start at gain 0.5, with decay rates of at least 0.5. Targets: "
    "exp(-t) + exp(-0.4 t); Ai(t - 10); a slow unit of Lorenz-96 (6 slow units with 4 fast ones "
    "each, mean forcing 2, at which nearby states stay together), normalised. A plateau is a "
    f"stretch in which training time grows at least {_LONG:g}-fold while the loss falls by less "
    "than a tenth, after a first fall by a tenth, at a level of at least 5 % of the first loss, "
    "and which is left: the loss falls to less than half of it later.",
    run=run,
    check=check,
    plot=plot,
)
