from collections.abc import Callable, Sequence
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
import xarray as xr

from .. import viz
from .._checks import check_integer
from ..flows import OptaxTraining
from ..losses import SampledPathLoss
from ..models import AbstractModel, LinearRNN, NonlinearRNN
from ..plateaus import measure_plateau, RelativeLossDrop
from ..targets import AbstractTarget, Airy, ExponentialSum, Lorenz96
from ._base import check_known, Reproduction, Verdict

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
) -> xr.Dataset:
    """Loss curves over `target`, `model` and `optimiser`, with `training_time` in updates."""
    check_known("targets", targets, TARGETS)
    check_known("models", models, MODELS)
    check_known("optimisers", optimisers, OPTIMISERS)
    check_integer("updates", updates, 2)
    check_integer("width", width)
    check_integer("batch", batch)
    names = {"target": targets, "model": models, "optimiser": optimisers}
    times = np.unique(np.round(np.geomspace(1, updates, 200)))
    shape = tuple(map(len, names.values()))
    curves, results = np.full((*shape, times.size), np.nan), np.full(shape, -1, np.int8)
    first, power = np.full(shape, np.nan), np.full(len(targets), np.nan)
    with tqdm.tqdm(total=int(np.prod(shape)), unit="run", disable=not progress) as bar:
        for i, target in enumerate(targets):
            loss = _loss(target, batch)
            power[i] = jnp.mean(loss.ys**2)
            for j, model in enumerate(models):
                # Decays of at least 0.5: the memory of the start ends before the targets' delay.
                start = MODELS[model](width, gain=0.5, margin=0.5, key=jax.random.key(2))
                for k, optimiser in enumerate(optimisers):
                    plateau = measure_plateau(
                        OptaxTraining(loss, OPTIMISERS[optimiser]),
                        start,
                        RelativeLossDrop(1 - 1e-6),
                        max_time=float(updates),
                        max_steps=updates + 1,
                        saveat=diffrax.SaveAt(ts=jnp.asarray(times)),
                        throw=False,
                        resolution=1.0,
                    )
                    assert plateau.curve is not None
                    curves[i, j, k] = plateau.curve.loss
                    results[i, j, k] = plateau.result_code
                    first[i, j, k] = plateau.initial_loss
                    bar.update()
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
        target, ts, jax.random.key(0), batch, 1.0, _SIGMA.get(name, 1.0), **common
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


def longest_plateau(
    times: np.ndarray, losses: np.ndarray, initial: float
) -> tuple[float, float, float, bool]:
    """The longest stretch of a loss curve that the criterion admits: its first and last time,
    its level, and whether it was left; NaN and `False` if the loss never falls by a tenth."""
    seen = np.isfinite(losses)
    times, losses = times[seen], losses[seen]
    fallen = np.flatnonzero(losses <= _FLAT * initial)
    if fallen.size == 0:
        return np.nan, np.nan, np.nan, False
    best = (float(times[fallen[0]]), float(times[fallen[0]]), float(losses[fallen[0]]), False)
    length = 1.0
    for start in range(fallen[0], times.size):
        level = losses[start]
        if level < _SEEN * initial:
            break
        below = np.flatnonzero(losses[start:] < _FLAT * level)
        end = start + below[0] - 1 if below.size else times.size - 1
        left = bool((losses[end:] < _LEFT * level).any())
        if times[end] / times[start] > length:
            length = times[end] / times[start]
            best = (float(times[start]), float(times[end]), float(level), left)
    return best


def check(dataset: xr.Dataset) -> list[Verdict]:
    """A verdict for each panel and optimiser of a dataset of `run`."""
    verdicts = []
    times = dataset["training_time"].values
    for target in dataset["target"].values:
        for model in dataset["model"].values:
            for optimiser in dataset["optimiser"].values:
                cell = dataset.sel(target=target, model=model, optimiser=optimiser)
                losses, initial = cell["curve_loss"].values, float(cell["initial_loss"])
                expected = _PUBLISHED[str(target)]
                found, agrees = _judged(times, losses, initial, expected)
                published = "a plateau" if expected else "no plateau"
                verdicts.append(
                    Verdict(f"{target}, {model}, {optimiser}: {published}", found, agrees)
                )
    return verdicts


def _judged(
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


L21_TRAINING = Reproduction(
    name="l21-training",
    title="Loss against training time: exponential sum, Airy and Lorenz-96 targets",
    source="Li, Han, E, Li, ICLR 2021, Section 5",
    description=f"A linear and a tanh RNN of width 16 learn each target from 32 sample paths of an "
    f"Ornstein-Uhlenbeck input of rate 1 and standard deviation 1 (2 for Lorenz-96), {_SAMPLES} "
    f"samples up to time {_HORIZON:g}, with the residual discretisation, the same paths at every "
    "update, by gradient descent (rate 0.02) and Adam (rate 0.001). Targets: exp(-t) + "
    "exp(-0.4 t); Ai(t - 10); a slow unit of Lorenz-96 (6 slow units with 4 fast ones each, mean "
    "forcing 2, at which nearby states stay together), normalised. A plateau is a stretch in which "
    f"training time grows at least {_LONG:g}-fold while the loss falls by less than a tenth, after "
    "a first fall by a tenth, at a level of at least 5 % of the first loss, and which is left: the "
    "loss falls to less than half of it later.",
    run=run,
    check=check,
    plot=lambda dataset: viz.plot_training_comparison(dataset),
)
