import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .._checks import check_dataset
from .._lazy import matplotlib, tqdm, xr
from ..memory import crossings
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..viz import drawing, explain, look, published
from ._base import check_integers, check_known, listed, near, Reproduction, Verdict
from ._staged import (
    perturbed_errors,
    radius_at,
    ResidualRNN,
    train_widths,
)
from ._w24_protocol import RADII, squared_weights


class Case(NamedTuple):
    """An activation in residual RNNs, and what they learn and how it is judged.

    `published` holds by width the error without perturbation, the radius at a tenth of the power
    of the target, and that at which the error is as large as the power, read off the figure.
    """

    figure: int
    activation: Callable[[Array], Array]
    parametrisation: str
    times: int
    step: float
    power: float
    scale: float
    weighted: bool
    widths: tuple[int, ...]
    radii: np.ndarray
    stable: bool
    published: Mapping[int, tuple[float, float, float]] | None = None


def _slow_tanh(x: Array) -> Array:
    return 0.1 * jnp.tanh(x)


_LONG: Any = {
    "times": 100, "step": 1.0, "power": 1.1, "scale": 10.0, "weighted": True,
    "widths": (8, 16, 32), "radii": RADII,
}  # fmt: skip
TANH = "tanh, dt 0.1"
RELU, RELU_STABLE = "relu, vanilla", "relu, softplus rates"
SOFTPLUS, SOFTPLUS_STABLE = "softplus, vanilla", "softplus, softplus rates"
CASES: Mapping[str, Case] = {
    TANH: Case(
        2, _slow_tanh, "vanilla", 32, 0.1, 1.5, 1.0, False, (2, 4, 8, 16),
        1e-11 * 4.0 ** np.arange(20), False,
    ),
    RELU: Case(
        7, jax.nn.relu, "vanilla", **_LONG, stable=False,
        published={
            8: (0.4, 0.0028, 0.0115), 16: (0.16, 0.0040, 0.012), 32: (0.032, 0.0052, 0.015),
            64: (0.0033, 0.0075, 0.019),
        },
    ),
    RELU_STABLE: Case(
        7, jax.nn.relu, "softplus", **_LONG, stable=True,
        published={
            8: (0.48, 0.0058, 0.0235), 16: (0.058, 0.0088, 0.031), 32: (0.0050, 0.0115, 0.037),
            64: (0.0023, 0.0122, 0.037),
        },
    ),
    SOFTPLUS: Case(8, jax.nn.softplus, "vanilla", **_LONG, stable=False),
    SOFTPLUS_STABLE: Case(8, jax.nn.softplus, "softplus", **_LONG, stable=True),
}  # fmt: skip

_HELD_OUT, _TEST = 128, 32
_LEVEL, _FACTOR = 0.1, 2.0


def target_matrix(case: Case) -> Float[np.ndarray, "times times"]:
    r"""The discrete target, $y_k = \Delta t \sum_{j \le k} \rho(j \Delta t) x_{k-j}$."""
    lags = np.arange(case.times)[:, None] - np.arange(case.times)
    kernel = case.step * (1 + case.step * np.maximum(lags, 0) / case.scale) ** -case.power
    return np.where(lags < 0, 0, kernel).astype(np.float32)


class Task(eqx.Module):
    """What a run learns: a target as a matrix, the weights of times, and held-out inputs."""

    matrix: Float[Array, "*runs times times"]
    weights: Float[Array, "*runs times"]
    price: Float[Array, "*runs"]
    inputs: Float[Array, "*runs sequences times"]
    run: Int[Array, "*runs"]


def weighted_error(model: ResidualRNN, xs: Float[Array, "batch times"], task: Task) -> Array:
    """The mean weighted square error on some inputs."""
    return jnp.mean(task.weights * (model.outputs(xs) - xs @ task.matrix.T) ** 2)


def held_out_error(model: ResidualRNN, task: Task) -> Float[Array, ""]:
    return weighted_error(model, task.inputs, task)


class _Samples(eqx.Module):
    """The loss on inputs that are new at every update, other ones for every run."""

    batch: int = eqx.field(static=True)

    def __call__(self, model: ResidualRNN, key: PRNGKeyArray, task: Task) -> Float[Array, ""]:
        shape = (self.batch, task.weights.size)
        xs = jax.random.normal(jax.random.fold_in(key, task.run), shape, task.matrix.dtype)
        return weighted_error(model, xs, task) + task.price * model.penalty()


def _make_task(case: Case, seeds: int, sequences: int, seed: int) -> Task:
    weights = squared_weights(case.times) if case.weighted else np.ones(case.times)
    xs = np.random.default_rng(seed).normal(size=(sequences, case.times))
    repeat = lambda part: jnp.asarray(np.stack([np.asarray(part, np.float32)] * seeds))
    return Task(
        repeat(target_matrix(case)),
        repeat(weights),
        repeat(float(case.weighted)),
        repeat(xs),
        jnp.arange(seeds),
    )


def run(
    progress: bool = True,
    *,
    cases: Sequence[str] = tuple(CASES),
    seeds: int = 2,
    batch: int = 32,
    updates: int = 100,
    most_epochs: int = 80,
    draws: int = 30,
) -> "xr.Dataset":
    """Errors of perturbed models over `case`, `seed`, `place` (of the width) and `ball`."""
    check_known("cases", cases, CASES)
    check_integers(seeds=seeds, batch=batch, updates=updates, most_epochs=most_epochs, draws=draws)
    chosen = [CASES[name] for name in cases]
    most = max(len(case.widths) for case in chosen)
    balls = max(case.radii.size for case in chosen) + 1
    errors = np.full((len(chosen), seeds, most, balls), np.nan)
    epochs = np.full(errors.shape[:3], np.nan)
    result = np.full(epochs.shape, MAX_TIME_REACHED, np.int8)
    widths, radii = np.zeros((len(chosen), most), int), np.full((len(chosen), balls), np.nan)
    power, loss = np.zeros(len(chosen)), _Samples(batch)
    total = sum(len(case.widths) for case in chosen)
    with tqdm.tqdm(total=total, unit="model", disable=not progress) as bar:
        for i, case in enumerate(chosen):
            task = _make_task(case, seeds, _HELD_OUT, 5)
            weights = np.asarray(task.weights[0])
            power[i] = np.mean(weights * np.sum(target_matrix(case) ** 2, axis=1))
            radii[i, : case.radii.size + 1] = [0.0, *case.radii]
            # The first width gets the 500 updates of two published epochs.
            first = max(1, min(most_epochs, -(-500 // updates)))
            found = train_widths(
                case.widths,
                functools.partial(ResidualRNN.init, case.parametrisation, case.activation),
                loss,
                held_out_error,
                seeds=seeds,
                data=task,
                updates=updates,
                most_epochs=most_epochs,
                key=jax.random.key(1),
                fewest=[first] + [1] * (len(case.widths) - 1),
            )
            test = _make_task(case, seeds, _TEST, 6)
            for j, each in enumerate(found):
                widths[i, j], epochs[i, :, j] = case.widths[j], each.epochs
                result[i, :, j] = np.where(each.diverged, DIVERGED, MAX_TIME_REACHED)
                errors[i, :, j, : case.radii.size + 1] = perturbed_errors(
                    each.models.settled(),
                    each.masks.settled(),
                    held_out_error,
                    case.radii,
                    draws,
                    data=test,
                    # As for the published figures of July and August 2023.
                    lowered=(lambda model: model.free_rates) if case.weighted else None,
                )
                bar.update()
    dims = ("case", "seed", "place")
    return xr.Dataset(
        {
            "error": ((*dims, "ball"), errors, {"long_name": f"largest error of {draws} draws"}),
            "epochs": (dims, epochs, {"long_name": "epochs of training"}),
            "result": (dims, result),
            "width": (("case", "place"), widths, {"long_name": "number of neurons, 0 for none"}),
            "radius": (("case", "ball"), radii, {"long_name": "radius of the perturbation"}),
            "power": ("case", power, {"long_name": "weighted mean square of the target"}),
        },
        {"case": list(cases), "seed": np.arange(seeds)},
        {"draws": draws, "batch": batch, "updates": updates},
    )


def _curves(dataset: "xr.Dataset", name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Widths, radii from 0 on, and errors over the power, shape `(seeds, widths, radii)`."""
    cell = dataset.sel(case=name)
    kept = cell["width"].values > 0
    radii = cell["radius"].values
    errors = cell["error"].transpose("seed", "place", "ball").values[:, kept]
    seen = np.isfinite(radii)
    return cell["width"].values[kept], radii[seen], errors[..., seen] / float(cell["power"])


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The published radii and claims beside those of a dataset of `run`."""
    verdicts = []
    for name in map(str, dataset["case"].values):
        case = CASES[name]
        widths, radii, curves = _curves(dataset, name)
        measured = [
            np.median(curves[..., 0], axis=0) * float(dataset["power"].sel(case=name)),
            radius_at(radii[1:], curves[..., 1:], widths, _LEVEL),
            radius_at(radii[1:], curves[..., 1:], widths, 1.0),
        ]
        words = ("error without perturbation", f"radius at {_LEVEL:.0%} of the power", "lost at")
        if case.published is not None and all(int(m) in case.published for m in widths):
            for k, (what, ours) in enumerate(zip(words, measured, strict=True)):
                theirs = np.asarray([case.published[int(m)][k] for m in widths])
                close = near(ours, theirs, _FACTOR)
                verdicts.append(
                    Verdict(
                        f"Figure {case.figure}, {name}: {listed(theirs)}",
                        f"{what}, m = {listed(widths)}: {listed(ours)}, {int(close.sum())} of "
                        f"{close.size} within {_FACTOR:g}",
                        bool(close.all()),
                    )
                )
        if len(widths) > 1:
            verdicts.append(_judge_claim(name, case, widths, radii, curves, measured))
    return verdicts


def _judge_claim(
    name: str, case: Case, widths: Any, radii: Any, curves: np.ndarray, measured: Any
) -> Verdict:
    """Whether the curve of the widest model rises above that of the narrowest one."""
    median = np.nan_to_num(np.median(curves, axis=0), nan=np.inf)
    crossed = float(crossings(radii[1:], median[[0, -1], 1:])[0])
    place = f"{crossed:.2g}" if np.isfinite(crossed) else "none of the radii"
    claim = "wider curves do not cross" if case.stable else "wider curves cross"
    # A wide model that was not trained to be better tells nothing.
    better = bool(median[-1, 0] < median[0, 0])
    return Verdict(
        f"Figure {case.figure}, {name}: {claim} (W24)",
        f"errors over power {listed(median[:, 0])} for m = {listed(widths)}; the widest curve "
        f"crosses that of m = {widths[0]} at {place}; lost at {listed(measured[2])}",
        bool(np.isfinite(crossed) != case.stable) if better else None,
    )


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Error over the target's power against the radius, a panel a case and a line a width.

    Medians over seeds. Filled markers with a black edge are the published radii at a tenth of the
    power, and at the power, which is the horizontal line.
    """
    dims = ["case", "seed", "place", "ball"]
    needed = {"error": dims, "width": ["case", "place"], "radius": ["case", "ball"]}
    check_dataset("dataset", dataset, needed, "the reproduction w24-activations")
    names = list(map(str, dataset["case"].values))
    with drawing(0.6 + 2.4 * len(names), 3.0) as figure:
        grid = figure.subplots(1, len(names), squeeze=False)[0]
        for axes, name in zip(grid, names, strict=True):
            widths, radii, curves = _curves(dataset, name)
            known = CASES[name].published or {}
            for index, width in enumerate(widths):
                own = look(index, ms=3.5, markevery=3)
                median = np.minimum(np.median(curves[:, index, 1:], axis=0), 1e20)
                axes.loglog(radii[1:], median, label=f"$m$ = {width}", **own)
                if int(width) in known:
                    _, tenth, lost = known[int(width)]
                    axes.loglog([tenth, lost], [_LEVEL, 1.0], **published(own))
            axes.axhline(1, color="0.6", lw=0.7, zorder=0)
            title, x = f"Figure {CASES[name].figure}:\n{name}", r"radius $\beta$ (weights)"
            axes.set(title=title, xlabel=x)
            axes.set_ylim(1e-4, 1e4)
            handles = [*axes.get_legend_handles_labels()[0]]
            if known:
                generic = published({"color": "0.5", "marker": "o"})
                handles.append(explain("published", **generic))
            axes.legend(handles=handles, loc="upper left", handlelength=2.4)
        grid[0].set_ylabel("error / power of the target")
    return figure


REPRODUCTION = Reproduction(
    name="w24-activations",
    title="Perturbed RNNs with tanh in fine steps, with relu and with softplus activation",
    source="Wang, Li, Li, ICLR 2024, Figures 2, 7 and 8, and the figures of its public code of "
    "8 August 2023",
    description="Figure 2: vanilla tanh RNNs of m = 2 to 16 with steps of 0.1 learn (1 + t)^-1.5 "
    "up to t = 3.2, and all weights are drawn, with radii from 1e-11. Widths and training are not "
    "published. Figures 7 and 8: RNNs of m = 8 to 32 (published 64) with relu and softplus "
    "activations learn (1 + 0.1 t)^-1.1 on sequences of 100 with errors weighted by t^2, with the "
    "published start, penalty and optimiser; rates are lowered by the radius, and all else is "
    "drawn. Batches are of 32 (published 512) new sequences; 500 updates for the first width, and "
    "up to 8,000 for a larger one, until its error is half of that of the width before. The figure "
    "of relu was read off to about a fifth; of softplus no data is published. Radii agree if they "
    f"are within a factor of {_FACTOR:g}, medians over seeds.",
    run=run,
    check=check,
    plot=plot,
)
