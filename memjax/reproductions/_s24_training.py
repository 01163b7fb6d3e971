import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import as_integers, check_dataset
from .._lazy import matplotlib, tqdm, xr
from ..models import Fixed, hippo_legs, S4Layer
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..viz import drawing, explain, look, published
from ._base import check_integers, check_known, describe, empty, listed, near, Reproduction, Verdict
from ._staged import (
    lay_out,
    normal,
    orthogonal,
    perturbed_errors,
    radius_at,
    same,
    Staged,
    train_widths,
    uniform,
)
from ._w24_protocol import RADII, squared_weights

DIRECT, SOFTPLUS, S4 = "state-space", "softplus", "S4"
WIDTHS = (8, 16, 32, 64)
# From the result files of the public code of 4 September 2023: the error without perturbation,
# and the radii at which it is 10 % of the target's power and as large as it.
PUBLISHED: Mapping[str, tuple[tuple[float, ...], ...]] = {
    DIRECT: (
        (1.2e-2, 5.3e-3, 2.6e-3, 2.8e-6),
        (0.0094, 0.0108, 0.0120, 0.0037),
        (0.0193, 0.0206, 0.0185, 0.0046),
    ),
    SOFTPLUS: (
        (1.6e-2, 6.7e-3, 3.3e-3, 1.6e-3),
        (0.0364, 0.0485, 0.0477, 0.0482),
        (0.103, 0.0574, 0.141, 0.142),
    ),
    S4: (
        (0.30, 3.2e-2, 3.9e-3, 1.6e-3),
        (0.0250, 0.0493, 0.0693, 0.0836),
        (0.0951, 0.134, 0.237, 0.334),
    ),
}

# Published are epochs of 250 updates; those of S4 take long.
_LENGTH, _UPDATES, _S4_UPDATES, _MODES = 100, 250, 100, 32
_LEVEL, _FACTOR = 0.1, 2.0


def target_kernel() -> Float[Array, " times"]:
    """The power law (1 + 0.1 t)^-1.1 at the lags 0, 1, ..., 99."""
    return (1 + 0.1 * jnp.arange(float(_LENGTH))) ** -1.1


def target_power() -> Float[Array, ""]:
    """The error of no output at all."""
    return jnp.mean(squared_weights(_LENGTH) * jnp.cumsum(target_kernel() ** 2))


class Affine(eqx.Module):
    """An affine map that starts as PyTorch's linear layers do."""

    weight: Float[Array | np.ndarray, "outputs inputs"]
    bias: Float[Array | np.ndarray, " outputs"]

    @classmethod
    def init(cls, inputs: int, outputs: int, rng: np.random.Generator) -> "Affine":
        return cls(uniform(rng, inputs, outputs, inputs), uniform(rng, inputs, outputs))

    def __call__(self, x: Array | np.ndarray) -> Array | np.ndarray:
        return self.weight @ x + self.bias


class LinearSSM(eqx.Module):
    r"""The linear state-space model of the public code.

    $$h_{k+1} = (1 - P^\top \operatorname{diag}(\varphi(v)) P) h_k + g(e(x_k)), \qquad
      \hat y_k = d(f(h_{k+1}))$$

    with affine $e$ and $d$, and $f$ and $g$ two affine maps each.
    """

    free_rates: Float[Array | np.ndarray, "*runs width"]
    turn: Float[Array | np.ndarray, "*runs width width"]
    before: list[Affine]
    after: list[Affine]
    rate_map: Callable[[Any], Array] = eqx.field(static=True)

    @classmethod
    def init(cls, name: str, width: int, rng: np.random.Generator) -> "LinearSSM":
        maps = [Affine.init(width, width, rng) for _ in range(4)]
        model = cls(
            normal(rng, width),
            orthogonal(rng, width),
            [Affine.init(1, width, rng), *maps[:2]],
            [*maps[2:], Affine.init(width, 1, rng)],
            jax.nn.softplus if name == SOFTPLUS else jax.nn.relu,
        )
        double = lambda leaf: leaf.astype(float) if isinstance(leaf, np.ndarray) else leaf
        return jax.tree.map(double, model)

    def respond(self) -> tuple[Float[Array, " times"], Float[Array, " times"]]:
        """The kernel of the model, and its outputs without input."""
        through = lambda maps, x: functools.reduce(lambda x, each: each(x), maps, x)
        constant = through(self.before, jnp.zeros(1))
        driven = through(self.before, jnp.ones(1)) - constant
        offset = through(self.after, jnp.zeros_like(constant))
        matrix = (self.turn.T * self.rate_map(self.free_rates)) @ self.turn
        # Powers by doubling: seven products instead of a hundred steps.
        power = jnp.eye(matrix.shape[0]) - matrix
        states = jnp.stack([driven, constant], axis=1)[..., None]
        while states.shape[2] < _LENGTH:
            later = jnp.einsum("ij,jkt->ikt", power, states)
            states, power = jnp.concatenate([states, later], axis=2), power @ power
        read = jax.vmap(lambda state: through(self.after, state) - offset, 1, 1)
        kernel, steps = jax.vmap(read, 1, 1)(states[..., :_LENGTH])[0]
        return kernel, jnp.cumsum(steps) + offset

    def error(self) -> Float[Array, ""]:
        """The expected weighted square error under white noise, in closed form."""
        kernel, free = self.respond()
        squares = jnp.cumsum((kernel - target_kernel()) ** 2) + free**2
        return jnp.mean(squared_weights(_LENGTH) * squares)

    def settled(self) -> "LinearSSM":
        """As it is perturbed: rates of the direct model are no longer kept from being negative."""
        if self.rate_map is not jax.nn.relu:
            return self
        rates = self.rate_map(self.free_rates)
        return dataclasses.replace(self, free_rates=rates, rate_map=same)


class S4Model(eqx.Module):
    r"""The S4 block of the public code between two affine maps.

    Every channel sees the encoded input, and reads out the last but one layer's gelu of its own
    signal, to which the input is fed through.
    """

    recurrence: S4Layer
    feedthrough: Float[Array | np.ndarray, " channels"]
    encoder: Affine
    mixer: Affine
    decoder: Affine

    @classmethod
    def init(cls, width: int, rng: np.random.Generator) -> "S4Model":
        system = hippo_legs(_MODES)
        rows: Any = lambda row: np.broadcast_to(np.asarray(row), (width, _MODES))
        # The first state of HiPPO is a left eigenvector: e A = -e.
        eigenvalues = -np.asarray(system.rates) + 1j * np.asarray(system.frequencies)
        readout = np.sqrt(0.5) * np.asarray(system.low_rank) / (1 + eigenvalues)
        recurrence = S4Layer(
            rows(system.rates),
            rows(system.frequencies),
            # The public code takes the exponential of its deterministic steps twice.
            np.exp(np.geomspace(1e-3, 0.1, width)),
            rows(system.low_rank),
            rows(system.input),
            rows(readout),
            np.ones(width),
            np.ones(width),
        )
        where = lambda layer: (layer.drive, layer.output)
        model = cls(
            eqx.tree_at(where, recurrence, replace_fn=Fixed),
            normal(rng, width),
            Affine.init(1, width, rng),
            Affine.init(width, width, rng),
            Affine.init(width, 1, rng),
        )
        single = lambda leaf: np.asarray(leaf, np.float32) if eqx.is_inexact_array(leaf) else leaf
        return jax.tree.map(single, model, is_leaf=lambda leaf: isinstance(leaf, np.ndarray))

    def outputs(self, shifted: Float[Array, "batch times lags"]) -> Float[Array, "batch times"]:
        """The outputs for inputs whose lags are laid out along the last axis."""
        kernel = self.recurrence.discrete_kernel(_LENGTH)
        kernel = kernel.at[:, 0].add(self.feedthrough).astype(shifted.dtype)
        signals = shifted @ (self.encoder.weight * kernel).T
        signals = signals + jnp.cumsum(self.encoder.bias[:, None] * kernel, axis=1).T
        # Both maps after the activation are affine.
        row = (self.decoder.weight @ self.mixer.weight)[0]
        constant = self.decoder(self.mixer.bias)[0]
        return jax.nn.gelu(signals, approximate=False) @ row + constant


def s4_error(model: S4Model, xs: Float[Array, "batch times"]) -> Float[Array, ""]:
    """The mean weighted square error on some inputs."""
    shifted = lay_out(xs)
    goal = shifted @ target_kernel().astype(xs.dtype)
    return jnp.mean(
        squared_weights(_LENGTH).astype(xs.dtype) * (model.outputs(shifted) - goal) ** 2
    )


def _exact(model: LinearSSM, key: PRNGKeyArray, data: Any) -> Float[Array, ""]:
    return model.error()


def _exact_error(model: LinearSSM, data: Any) -> Float[Array, ""]:
    return model.error()


class _Samples(eqx.Module):
    """The loss on inputs that are new at every update, other ones for every run."""

    batch: int = eqx.field(static=True)

    def __call__(self, model: S4Model, key: PRNGKeyArray, data: Any) -> Float[Array, ""]:
        run, _ = data
        shape = (self.batch, _LENGTH)
        return s4_error(model, jax.random.normal(jax.random.fold_in(key, run), shape, jnp.float32))


def _sampled_error(model: S4Model, data: Any) -> Float[Array, ""]:
    return s4_error(model, data[1])


def run(
    progress: bool = True,
    *,
    models: Sequence[str] = (DIRECT, SOFTPLUS, S4),
    widths: Sequence[int] = WIDTHS,
    seeds: int = 2,
    batch: int = 16,
    most_epochs: int = 30,
    s4_epochs: int = 12,
    draws: int = 30,
) -> "xr.Dataset":
    """Errors of perturbed models over `model`, `seed`, `width` and `radius`."""
    check_known("models", models, PUBLISHED)
    widths = as_integers("widths", widths, 2)
    check_integers(
        seeds=seeds, batch=batch, most_epochs=most_epochs, s4_epochs=s4_epochs, draws=draws
    )
    axes = {"model": list(models), "seed": np.arange(seeds), "width": list(widths)}
    errors, epochs, result = empty(axes, RADII.size + 1), empty(axes), empty(axes)
    with tqdm.tqdm(total=len(models) * len(widths), unit="model", disable=not progress) as bar:
        for i, name in enumerate(models):
            most = s4_epochs if name == S4 else most_epochs
            for j, found in enumerate(_train(name, widths, seeds, batch, most)):
                errors[i, :, j] = _perturb(name, found, draws)
                epochs[i, :, j] = found.epochs
                result[i, :, j] = np.where(found.diverged, DIVERGED, MAX_TIME_REACHED)
                bar.update()
    words = {"error": f"largest error of {draws} draws, from no perturbation on"}
    return xr.Dataset(
        describe({"error": errors}, (*axes, "ball"), words)
        | describe({"epochs": epochs}, tuple(axes), {"epochs": "epochs of training"})
        | {"result": (tuple(axes), result.astype(np.int8))},
        axes | {"ball": np.concatenate([[0.0], RADII])},
        {"draws": draws, "batch": batch, "power": float(target_power())},
    )


def _train(
    name: str, widths: Sequence[int], seeds: int, batch: int, most_epochs: int
) -> Iterator[Staged]:
    options: Any = {"seeds": seeds, "most_epochs": most_epochs}
    options["updates"] = _S4_UPDATES if name == S4 else _UPDATES
    options["key"] = jax.random.key(1)
    runs = jnp.arange(seeds)
    if name == S4:
        held = _held_out(seeds, 64, 2)
        error = _sampled_error
        return train_widths(
            widths, S4Model.init, _Samples(batch), error, data=(runs, held), **options
        )
    make = functools.partial(LinearSSM.init, name)
    return train_widths(widths, make, _exact, _exact_error, data=runs, **options)


def _held_out(seeds: int, sequences: int, seed: int) -> Float[Array, "seeds sequences times"]:
    xs = np.random.default_rng(seed).normal(size=(sequences, _LENGTH))
    return jnp.asarray(np.broadcast_to(xs.astype(np.float32), (seeds, *xs.shape)))


def _perturb(name: str, found: Staged, draws: int) -> Float[np.ndarray, "runs radii"]:
    """The errors from no perturbation on, of a batch of models."""
    seeds = found.errors.size
    if name == S4:
        data = (jnp.arange(seeds), _held_out(seeds, 32, 3))
        return perturbed_errors(found.models, found.masks, _sampled_error, RADII, draws, data=data)
    return perturbed_errors(
        found.models.settled(),
        found.masks.settled(),
        _exact_error,
        RADII,
        draws,
        data=jnp.arange(seeds),
        lowered=lambda model: model.free_rates,
    )


def measure_radii(dataset: "xr.Dataset", model: str, share: float) -> np.ndarray:
    """By width the radius at which the error is a share of the target's power, median of seeds."""
    cell = dataset["error"].sel(model=model).transpose("seed", "width", "ball").values
    level = share * dataset.attrs["power"]
    return radius_at(RADII, cell[..., 1:], dataset["width"].values, level)


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The published curves beside those of a dataset of `run`, and what is claimed of them."""
    verdicts, names = [], list(map(str, dataset["model"].values))
    widths = dataset["width"].values
    known = np.isin(WIDTHS, widths)
    every = int(known.sum()) == len(widths)
    for name in names:
        start = dataset["error"].sel(model=name).isel(ball=0).median("seed").values
        found = [start, measure_radii(dataset, name, _LEVEL), measure_radii(dataset, name, 1.0)]
        words = ("error without perturbation", f"radius at {_LEVEL:.0%} of the power", "lost at")
        for what, ours, table in zip(words, found, PUBLISHED[name], strict=True):
            theirs = np.asarray(table)[known]
            agrees = None
            if every:
                close = near(ours, theirs, _FACTOR)
                agrees = bool(close.all())
                what = f"{what}, {int(close.sum())} of {len(close)} within {_FACTOR:g}"
            found_text = f"{what}: {listed(ours)}"
            verdicts.append(Verdict(f"{name}: {listed(theirs)}", found_text, agrees))
    if len(widths) > 1:
        verdicts += [_judge_claim(dataset, name) for name in names]
    return verdicts


def _judge_claim(dataset: "xr.Dataset", name: str) -> Verdict:
    """Whether the widest model is lost at a smaller radius than the narrowest one."""
    lost = measure_radii(dataset, name, 1.0)
    stable = name != DIRECT
    claim = "no curve of a wider model is lost earlier" if stable else "the widest is lost first"
    fell = lost[0] / lost[-1]
    return Verdict(
        f"{name}: {claim} (S24)",
        f"lost at {lost[0]:.2g} for m = {int(dataset['width'][0])} and {lost[-1]:.2g} for m = "
        f"{int(dataset['width'][-1])}",
        bool((fell <= 1.2) == stable),
    )


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Error over the target's power against the radius, a panel a model and a line a width.

    Medians over seeds; the first marker, at the left edge, is the error without perturbation.
    Filled markers with a black edge are the published radii at which the error is a tenth of the
    power, and the power, which is the horizontal line.
    """
    needed = {"error": ["model", "seed", "width", "ball"]}
    check_dataset("dataset", dataset, needed, "the reproduction s24-training")
    names, power = dataset["model"].values, dataset.attrs["power"]
    median = dataset["error"].median("seed") / power
    shown = np.concatenate([[5e-4], RADII])
    with drawing(0.8 + 2.6 * len(names), 3.1) as figure:
        grid = figure.subplots(1, len(names), sharex=True, sharey=True, squeeze=False)
        for axes, name in zip(grid[0], names, strict=True):
            for index, width in enumerate(dataset["width"].values):
                own = look(index, ms=3.5, markevery=3)
                curve = np.minimum(median.sel(model=name, width=width).values, 1e30)
                axes.loglog(shown, curve, label=f"$m$ = {width}", **own)
                if int(width) in WIDTHS:
                    place = WIDTHS.index(int(width))
                    _, tenth, lost = PUBLISHED[str(name)]
                    axes.loglog([tenth[place], lost[place]], [_LEVEL, 1.0], **published(own))
            axes.axhline(1, color="0.6", lw=0.7, zorder=0)
            axes.set(title=str(name), xlabel=r"radius $\beta$ (units of the weights)")
            axes.set_ylim(1e-6, 1e4)
        grid[0, 0].set_ylabel("error / power of the target")
        filled = explain("published", **published({"color": "0.5", "marker": "o"}))
        handles = [*grid[0, 0].get_legend_handles_labels()[0], filled]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


REPRODUCTION = Reproduction(
    name="s24-training",
    title="Trained state-space models of growing width under perturbed weights",
    source="Wang, Li, ICML 2024, Figure 1, and its public code and result files of September 2023",
    description="Linear state-space models with direct and with softplus rates, and an S4 block "
    "with a gelu, learn y_k = sum_j rho(j) x_(k-j) for rho = (1 + 0.1 t)^-1.1 on sequences of 100 "
    "standard normal inputs, errors weighted by t^2. Adam (0.01, gradients clipped at 0.5, the "
    "rate cut tenfold after 10 epochs of 250 updates without progress) for two epochs at m = 8, "
    "and at larger widths until the error is half of that of the width before. The linear models "
    "are trained and tested on the expected error, which has a closed form and is that of batches "
    "without end; published are batches of 512. S4 is trained in single precision on 16 new "
    "sequences an update, with epochs of 100 updates, and tested on 32. Training ends after 30 "
    "epochs, of S4 after 12, published 1,000. As in the public code of that month the rates of the "
    "linear models are lowered by exactly the radius, and all else is drawn 30 times. S4 starts "
    "from HiPPO-LegS with 64 states and steps of 1.001 to 1.105: the public code takes their "
    f"exponential twice. Values agree if they are within a factor of {_FACTOR:g}, medians over "
    "seeds.",
    run=run,
    check=check,
    plot=plot,
)
