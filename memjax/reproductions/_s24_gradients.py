from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_dataset
from .._lazy import matplotlib, xr
from ..models import s4d_lin, S4Layer
from ..reparam import AbstractReparametrisation, Best, Direct, Exp, Softplus
from ..viz import drawing, explain, look, published
from ._base import (
    as_positives,
    check_integers,
    check_known,
    describe,
    each_cell,
    empty,
    last_fine,
    Reproduction,
    Verdict,
)
from ._staged import lay_out
from ._training import batched, train

PUBLISHED_START, FAIR_START = "direct from +0.5", "direct from -0.5"


class Parametrisation(NamedTuple):
    """A map of the rates, and the sign of the rates that it starts from."""

    map: Callable[[], AbstractReparametrisation]
    sign: float = 1.0


# Made when asked for: importing memjax computes nothing.
PARAMETRISATIONS: Mapping[str, Parametrisation] = {
    PUBLISHED_START: Parametrisation(Direct, -1.0),
    FAIR_START: Parametrisation(Direct),
    "exp": Parametrisation(Exp),
    "softplus": Parametrisation(Softplus),
    "best": Parametrisation(Best),
}
LEARNING_RATES = tuple(5 * 10.0**k for k in range(-5, 1))

_LENGTH, _DECAY = 100, 0.01
_STABLE = ("exp", "softplus", "best")
# A run is lost if it ends with a loss this many times the mean square of the target.
_LOST = 1.0


class StableSSM(eqx.Module):
    r"""The one-layer model of the public code, from a scalar input to a scalar output.

    $$z = e(x), \qquad s_c = K_c * z_c + d_c z_c, \qquad
      \hat y = r\big(\operatorname{norm}(z + \operatorname{GLU}(W \operatorname{gelu}(s)))\big)$$

    with diagonal systems of complex modes behind the kernels $K_c$, inputs held between samples.
    """

    recurrence: S4Layer
    feedthrough: Float[Array, " channels"]
    encoder: Float[Array, "2 channels"]
    mixer: Float[Array, "channels_1 doubled"]
    scale: Float[Array, "2 channels"]
    decoder: Float[Array, " channels_1"]

    @classmethod
    def init(cls, name: str, channels: int, modes: int, key: PRNGKeyArray) -> "StableSSM":
        keys = jax.random.split(key, 6)
        rates, frequencies = s4d_lin(modes)
        rows = lambda row: jnp.broadcast_to(row, (channels, modes))
        clocks = jnp.exp(
            jax.random.uniform(keys[0], (channels,), minval=np.log(1e-3), maxval=np.log(0.1))
        )
        readout = jax.lax.complex(*(jax.random.normal(keys[1], (2, channels, modes)) / np.sqrt(2)))
        chosen = PARAMETRISATIONS[name]
        recurrence = S4Layer(
            rows(rates), rows(frequencies), clocks, None, rows(jnp.ones(modes)), readout,
            jnp.ones(channels), jnp.ones(channels), reparametrisation=chosen.map(),
        )  # fmt: skip
        where = lambda layer: layer.decays.free_rates
        free = chosen.sign * recurrence.free_rates if chosen.sign < 0 else recurrence.free_rates
        uniform = lambda key, *shape, most: jax.random.uniform(
            key, shape, minval=-most, maxval=most
        )
        most = channels**-0.5
        return cls(
            eqx.tree_at(where, recurrence, free),
            jax.random.normal(keys[2], (channels,)),
            uniform(keys[3], 2, channels, most=1.0),
            uniform(keys[4], channels + 1, 2 * channels, most=most),
            jnp.stack([jnp.ones(channels), jnp.zeros(channels)]),
            uniform(keys[5], channels + 1, most=most),
        )

    def outputs(self, shifted: Float[Array, "batch times lags"]) -> Float[Array, "batch times"]:
        """The outputs for inputs whose lags are laid out along the last axis."""
        kernel = self.recurrence.discrete_kernel(_LENGTH, discretisation="zoh")
        kernel = kernel.at[:, 0].add(self.feedthrough)
        weight, bias = self.encoder
        signals = shifted @ (weight[:, None] * kernel).T
        signals = signals + jnp.cumsum(bias[:, None] * kernel, axis=1).T
        mixed = jax.nn.gelu(signals, approximate=False) @ self.mixer[:-1] + self.mixer[-1]
        value, gate = jnp.split(mixed, 2, axis=-1)
        encoded = shifted[:, :, :1] * weight + bias
        summed = encoded + value * jax.nn.sigmoid(gate)
        centred = summed - jnp.mean(summed, axis=-1, keepdims=True)
        variance = jnp.mean(centred**2, axis=-1, keepdims=True)
        normal = centred / jnp.sqrt(variance + 1e-5) * self.scale[0] + self.scale[1]
        return normal @ self.decoder[:-1] + self.decoder[-1]


def trained_leaves(model: StableSSM) -> Any:
    """All arrays but the input of the modes, which the public code keeps at 1, and the maps of
    the layer that are not used."""
    every = jax.tree.map(eqx.is_inexact_array, model)
    unused = lambda model: (
        model.recurrence.state_input,
        model.recurrence.drive.input,
        model.recurrence.output.readout_weights,
        model.recurrence.decays.reparametrisation,
    )
    return eqx.tree_at(unused, every, replace_fn=lambda leaf: jax.tree.map(lambda _: False, leaf))


def squared_error(model: StableSSM, xs: Float[Array, "batch times"]) -> Float[Array, ""]:
    """The mean square error of the exponential memory, in units of the target's mean square."""
    shifted = lay_out(xs)
    goal = jnp.exp(-jnp.arange(float(_LENGTH))).astype(xs.dtype)
    power = jnp.mean(jnp.cumsum(goal**2))
    return jnp.mean((model.outputs(shifted) - shifted @ goal) ** 2) / power


class _Samples(eqx.Module):
    """The loss on inputs that are new at every update."""

    batch: int = eqx.field(static=True)

    def __call__(self, model: StableSSM, key: PRNGKeyArray, data: Any) -> Float[Array, ""]:
        return squared_error(model, jax.random.normal(key, (self.batch, _LENGTH), jnp.float32))


def gradient_over_weight(weights: Any, slopes: Any) -> Float[Array, ""]:
    """The largest ratio of gradient to weight among the free rates."""
    free, slope = (tree.recurrence.decays.free_rates for tree in (weights, slopes))
    return jnp.max(jnp.abs(slope) / jnp.abs(free))


def run(
    progress: bool = True,
    *,
    parametrisations: Sequence[str] = tuple(PARAMETRISATIONS),
    learning_rates: Sequence[float] = LEARNING_RATES,
    seeds: int = 2,
    updates: int = 200,
    channels: int = 16,
    modes: int = 8,
    batch: int = 16,
) -> "xr.Dataset":
    """Ratios of gradient to weight and losses over `parametrisation`, `learning_rate`, `seed`."""
    check_known("parametrisations", parametrisations, PARAMETRISATIONS)
    check_integers(seeds=seeds, updates=updates, channels=channels, modes=modes, batch=batch)
    rates = as_positives("learning_rates", learning_rates)
    axes = {
        "parametrisation": list(parametrisations),
        "learning_rate": rates,
        "seed": np.arange(seeds),
    }
    words = {
        "ratio": "largest gradient over weight of the free rates during training",
        "first_ratio": "gradient over weight at the start",
        "loss": "loss on held-out inputs over the target's mean square",
        "slowest": "smallest rate after training",
    }
    values = {name: empty(axes) for name in words}
    diverged = empty(axes) == 0
    optimiser = optax.chain(
        optax.scale_by_adam(),
        optax.add_decayed_weights(_DECAY),
        optax.scale_by_schedule(optax.cosine_decay_schedule(1.0, updates)),
        optax.scale(-1.0),
    )
    held_out = jax.random.normal(jax.random.key(2), (64, _LENGTH), jnp.float32)
    keys = jnp.tile(jax.random.split(jax.random.key(1), seeds), rates.size)
    scales = jnp.repeat(jnp.asarray(rates, jnp.float32), seeds)
    grid = (rates.size, seeds)
    for (i,), (name,) in each_cell({"parametrisation": axes["parametrisation"]}, "map", progress):
        make = lambda key: jax.tree.map(_single, StableSSM.init(name, channels, modes, key))  # noqa: B023
        models, loss = batched(make, keys), _Samples(batch)
        options: Any = {
            "key": jax.random.key(0), "trained": trained_leaves, "watch": gradient_over_weight,
            "scales": scales,
        }  # fmt: skip
        ended = train(models, loss, optimiser, updates, **options)
        values["ratio"][i] = np.reshape(ended.watched, grid)
        values["first_ratio"][i] = np.reshape(_first_ratio(models, loss), grid)
        losses = eqx.filter_jit(eqx.filter_vmap(squared_error, in_axes=(eqx.if_array(0), None)))(
            ended.models, held_out
        )
        values["loss"][i] = np.reshape(losses, grid)
        slowest = eqx.filter_vmap(lambda model: jnp.min(model.recurrence.rates))(ended.models)
        values["slowest"][i] = np.reshape(slowest, grid)
        diverged[i] = np.reshape(ended.diverged, grid)
    return xr.Dataset(
        describe(values, tuple(axes), words)
        | {
            "diverged": (tuple(axes), diverged, {"long_name": "met a number that is not finite"}),
            "result": (tuple(axes), np.zeros(diverged.shape, np.int8)),
        },
        axes,
        {"updates": updates, "channels": channels, "modes": modes, "batch": batch},
    )


@eqx.filter_jit
def _first_ratio(models: Any, loss: Any) -> Float[Array, " runs"]:
    def ratio(model: StableSSM) -> Float[Array, ""]:
        slopes = eqx.filter_grad(loss)(model, jax.random.key(0), None)
        return gradient_over_weight(model, slopes)

    return eqx.filter_vmap(ratio, in_axes=eqx.if_array(0))(models)


def _single(leaf: Any) -> Any:
    return leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """What is claimed of the ratios, and what the start has to do with it."""
    names = list(map(str, dataset["parametrisation"].values))
    stable = [name for name in names if name in _STABLE]
    first = dataset["learning_rate"].values[0]
    cell = dataset.sel(learning_rate=first)
    ratio = {n: float(cell["ratio"].sel(parametrisation=n).median()) for n in names}
    reach = {n: _find_reach(dataset.sel(parametrisation=n)) for n in names}
    tried = dataset["learning_rate"].values[-1]
    listed = lambda values, form: ", ".join(f"{n} {values[n]:{form}}" for n in names)
    verdicts = [
        Verdict(
            "the best map has the smallest gradient over weight (S24)",
            f"largest ratio during training at a learning rate of {first:g}: "
            f"{listed(ratio, '.2g')}",
            min(ratio, key=ratio.__getitem__) == "best" if "best" in names and stable else None,
        )
    ]
    for name in (PUBLISHED_START, FAIR_START):
        if name not in names or not stable:
            continue
        verdicts.append(
            Verdict(
                f"{name}: lost at learning rates at which stable maps train (S24)",
                f"largest rate with a loss below that of no output, in every seed: "
                f"{reach[name]:g}; {', '.join(f'{n} {reach[n]:g}' for n in stable)} (tried up to "
                f"{tried:g})",
                bool(reach[name] < min(reach[n] for n in stable)),
            )
        )
    if {PUBLISHED_START, FAIR_START} <= set(names):
        start = {n: float(cell["first_ratio"].sel(parametrisation=n).median()) for n in names}
        losses = {
            n: float(dataset["loss"].sel(parametrisation=n).median("seed").min()) for n in names
        }
        slowest = float(cell["slowest"].sel(parametrisation=PUBLISHED_START).median())
        verdicts.append(
            Verdict(
                "the start of the direct map at Re lambda = +0.5 makes a difference (expected)",
                f"ratio at the start {start[PUBLISHED_START]:.2g} from +0.5 and "
                f"{start[FAIR_START]:.2g} from -0.5; smallest loss {losses[PUBLISHED_START]:.2g} "
                f"and {losses[FAIR_START]:.2g}; at the learning rate {first:g} the smallest rate "
                f"after training from +0.5 is {slowest:.2g}",
                bool(
                    ratio[PUBLISHED_START] > 2 * ratio[FAIR_START]
                    or reach[PUBLISHED_START] < reach[FAIR_START]
                ),
            )
        )
    return verdicts


def _find_reach(cell: "xr.Dataset") -> float:
    """The largest learning rate below which no run is lost, 0 if there is none."""
    lost = cell["diverged"] | ~(cell["loss"] < _LOST)
    return last_fine(cell["learning_rate"].values, ~lost.any("seed").values)


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """The largest gradient over weight and the loss after training, against the learning rate.

    A line a parametrisation, medians over seeds; filled markers at the left edge of the left panel
    are the ratios at the start. Runs that diverged have no ratio and no loss. The horizontal line
    is the loss of a model without output.
    """
    dims = ["parametrisation", "learning_rate", "seed"]
    needed = dict.fromkeys(("ratio", "first_ratio", "loss", "diverged"), dims)
    check_dataset("dataset", dataset, needed, "the reproduction s24-gradients")
    rates, fine = dataset["learning_rate"].values, ~dataset["diverged"]
    with drawing(7.2, 3.2) as figure:
        left, right = figure.subplots(1, 2, sharex=True)
        for index, name in enumerate(dataset["parametrisation"].values):
            own = look(index, ms=4)
            cell = dataset.sel(parametrisation=name)
            shown = lambda what: cell[what].where(fine.sel(parametrisation=name)).median("seed")  # noqa: B023
            left.loglog(rates, shown("ratio"), label=str(name), **own)
            first = float(cell["first_ratio"].median())
            left.plot([rates[0] * 0.5], [first], **published(own))
            right.loglog(rates, shown("loss"), **own)
        left.set(xlabel="learning rate", ylabel="largest gradient / weight")
        right.set(xlabel="learning rate", ylabel="loss / mean square of the target")
        right.axhline(_LOST, color="0.6", lw=0.7, zorder=0)
        handles = [*left.get_legend_handles_labels()[0]]
        handles.append(explain("at the start", **published({"color": "0.5", "marker": "o"})))
        handles.append(explain("no output", color="0.6", lw=0.7))
        figure.legend(handles=handles, loc="outside upper center", ncols=3)
    return figure


REPRODUCTION = Reproduction(
    name="s24-gradients",
    title="Gradient over weight of state-space models by parametrisation and learning rate",
    source="Wang, Li, ICML 2024, Section 3.3 and 4, and the public code StableSSM",
    description="The one-layer model of the public code, diagonal complex modes with a gelu, a "
    "gated linear unit, a skip connection and a normalisation, learns the exponential memory e^-t "
    "on sequences of 100 standard normal inputs by AdamW (decay 0.01, cosine schedule). Published "
    "are 64 channels of 32 modes and about 4,300 updates of 128 sequences; here 16 channels of 8 "
    "modes and 200 updates of 16 new sequences, at six learning rates from 2 seeds. The ratio is "
    "the largest of gradient over free weight among all modes. The public code starts its direct "
    "map at eigenvalues of real part +0.5, and all others at -0.5; the direct map is trained from "
    "both. A run is lost if it diverges or ends above the loss of no output.",
    run=run,
    check=check,
    plot=plot,
)
