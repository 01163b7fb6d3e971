from collections.abc import Mapping, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_dataset
from .._lazy import matplotlib, tqdm, xr
from ..memory import length_extension
from ..models import hidden_states, NonlinearRNN, trainable
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..targets import PowerLaw
from ..viz import drawing, look, spread_marks
from ._base import check_integers, check_known, describe, empty, listed, Reproduction, Verdict
from ._training import batched, select

LENGTH, EXTENDED = 32, 8  # of training, and how many times as long it is tested
# How hidden states start in training, and its length.
STARTS: Mapping[str, tuple[str, int]] = {
    "zero": ("zero", LENGTH),
    "zero, 4 times as long": ("zero", 4 * LENGTH),
    "noisy": ("noisy", LENGTH),
    "carried": ("carried", LENGTH),
}
MODELS = ("identity", "tanh")

_WIDTH, _BATCH, _STEP, _RATE = 16, 32, 0.2, 3e-3
_NOISE = 0.5  # standard deviation of noisy starts
_SAMPLES = 512


def target_kernel(count: int) -> Float[Array, " lags"]:
    """The response of the target to an impulse, $(1 + k)^{-3/2}$."""
    return PowerLaw(0.5)(jnp.arange(float(count)))


def respond(xs: Float[Array, " times"]) -> Float[Array, " times"]:
    """The outputs of the target from rest."""
    size = 2 * xs.size
    spectrum = jnp.fft.rfft(xs, size) * jnp.fft.rfft(target_kernel(xs.size), size)
    return jnp.fft.irfft(spectrum, size)[: xs.size]


class Shifted(eqx.Module):
    """A model whose outputs see the input of their own time already."""

    model: NonlinearRNN

    def __call__(self, xs: Float[Array, " times"]) -> Float[Array, " times"]:
        return self.follow(xs, self.model.initial_hidden())[0]

    def follow(
        self, xs: Float[Array, " times"], hidden: Float[Array, " width"]
    ) -> tuple[Float[Array, " times"], Float[Array, " width"]]:
        """The outputs from a hidden state on, and the hidden state that is left."""
        ts = _STEP * np.arange(xs.size + 1)
        states = hidden_states(self.model, ts, jnp.append(xs, 0.0), hidden)
        return jax.vmap(self.model.readout)(states[1:]), states[-1]


@eqx.filter_jit
def train_streams(
    model: Shifted, start: str, length: int, updates: int, key: PRNGKeyArray
) -> tuple[Shifted, Array]:
    """A model after so many updates, and whether its loss stayed finite.

    Carried starts are those of streams that are cut into sequences: gradients end at the cuts, and
    the target has the whole stream behind it.
    """
    behind = LENGTH * EXTENDED
    optimiser = optax.adam(_RATE)
    weights, rest = eqx.partition(model, trainable(model))

    def loss(weights: Any, hidden: Array, past: Array, xs: Array) -> tuple[Array, Array]:
        follow = eqx.combine(weights, rest).follow
        outputs, left = jax.vmap(follow)(xs, jax.lax.stop_gradient(hidden))
        wanted = jax.vmap(respond)(jnp.concatenate([past, xs], axis=1))[:, -length:]
        return jnp.mean((outputs - wanted) ** 2), left

    def update(carry: Any, key: PRNGKeyArray) -> tuple[Any, Array]:
        weights, memory, hidden, past = carry
        input_key, noise_key = jax.random.split(key)
        xs = jax.random.normal(input_key, (_BATCH, length))
        if start != "carried":
            past = jnp.zeros_like(past)
            hidden = jnp.zeros_like(hidden)
        if start == "noisy":
            hidden = _NOISE * jax.random.normal(noise_key, hidden.shape)
        (value, left), slopes = jax.value_and_grad(loss, has_aux=True)(weights, hidden, past, xs)
        changes, memory = optimiser.update(slopes, memory)
        past = jnp.concatenate([past, xs], axis=1)[:, -behind:]
        return (optax.apply_updates(weights, changes), memory, left, past), value

    begin = (
        weights,
        optimiser.init(weights),
        jnp.zeros((_BATCH, _WIDTH)),
        jnp.zeros((_BATCH, behind)),
    )
    (weights, *_), losses = jax.lax.scan(update, begin, jax.random.split(key, updates))
    return eqx.combine(weights, rest), jnp.all(jnp.isfinite(losses))


def run(
    progress: bool = True,
    *,
    models: Sequence[str] = MODELS,
    starts: Sequence[str] = tuple(STARTS),
    seeds: int = 5,
    updates: int = 4000,
) -> "xr.Dataset":
    """Errors at every time up to eight times the length of training, over `model`, `start` and
    `seed`."""
    check_known("models", models, MODELS)
    check_known("starts", starts, STARTS)
    check_integers(seeds=seeds, updates=updates)
    axes = {"model": list(models), "start": list(starts), "seed": np.arange(seeds)}
    errors, growth, result = empty(axes, LENGTH * EXTENDED), empty(axes), empty(axes)
    keys = jax.random.split(jax.random.key(0), seeds)
    steps = eqx.filter_vmap(train_streams, in_axes=(0, None, None, None, None))
    with tqdm.tqdm(total=len(models) * len(starts), unit="model", disable=not progress) as bar:
        for i, activation in enumerate(models):
            init = lambda key, activation=activation: Shifted(
                NonlinearRNN.init(_WIDTH, activation=activation, leak=True, gain=0.9, key=key)
            )
            begin = batched(init, keys)
            for j, name in enumerate(starts):
                start, length = STARTS[name]
                trained, finite = steps(begin, start, length, updates, jax.random.key(1))
                for k in range(seeds):
                    found = length_extension(
                        select(trained, k), LENGTH, target=respond, factor=EXTENDED,
                        samples=_SAMPLES, num_windows=2, key=jax.random.key(2),
                    )  # fmt: skip
                    assert found.loss is not None
                    errors[i, j, k] = found.loss[0]
                    growth[i, j, k] = found.growth[0]
                result[i, j] = np.where(finite, MAX_TIME_REACHED, DIVERGED)
                bar.update()
    words = {"growth": "growth of the error from the length of training to eight times that length"}
    return xr.Dataset(
        describe({"growth": growth}, tuple(axes), words)
        | {
            "error": ((*axes, "time"), errors, {"long_name": "mean squared error"}),
            "result": (tuple(axes), result.astype(np.int8)),
        },
        axes | {"time": np.arange(LENGTH * EXTENDED)},
        {"updates": updates},
    )


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """What is published of starts and lengths of training."""
    verdicts = []
    for name in map(str, dataset["model"].values):
        growth = dataset["growth"].sel(model=name).median("seed")
        known = {str(start): float(growth.sel(start=start)) for start in growth["start"].values}
        if "zero" in known:
            verdicts.append(
                Verdict(
                    f"{name}: trained from zero states it does not hold at longer lengths (G24)",
                    f"the error grows {known['zero']:.3g} times up to {EXTENDED} times the length",
                    known["zero"] > 2,
                )
            )
        for start, says in (
            ("carried", "with carried states it holds (G24)"),
            ("noisy", "with noisy states it holds (RG25)"),
            ("zero, 4 times as long", "longer training helps (G24)"),
        ):
            if {start, "zero"} <= known.keys():
                far = dataset["error"].sel(model=name).isel(time=slice(-LENGTH, None))
                far = far.mean("time").median("seed")
                late = [float(far.sel(start=each)) for each in (start, "zero")]
                verdicts.append(
                    Verdict(
                        f"{name}: {says}",
                        f"the error grows {known[start]:.3g} times; at the end it is "
                        f"{listed(late[:1])} against {listed(late[1:])} from zero states",
                        bool(known[start] <= 2) if "holds" in says else late[0] < late[1],
                    )
                )
    return verdicts


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """The mean squared error against the time for models that were trained from zero, noisy and
    carried hidden states, and from zero on sequences four times as long; medians over seeds. The
    vertical line is the length of training."""
    dims = ["model", "start", "seed", "time"]
    check_dataset("dataset", dataset, {"error": dims}, "the reproduction g24-length")
    names = [str(name) for name in dataset["model"].values]
    with drawing(0.6 + 3.3 * len(names), 3.0) as figure:
        panels = figure.subplots(1, len(names), squeeze=False, sharey=True)[0]
        times = dataset["time"].values + 1
        for axes, name in zip(panels, names, strict=True):
            for index, start in enumerate(map(str, dataset["start"].values)):
                error = dataset["error"].sel(model=name, start=start).median("seed")
                axes.loglog(
                    times, error, label=start, **look(index, markevery=spread_marks(times), ms=3.5)
                )
            axes.axvline(LENGTH, color="0.5", lw=0.8, ls=":", label="length of training")
            axes.set(xlabel="time (steps)", title="linear" if name == "identity" else name)
        panels[0].set_ylabel("mean squared error")
        panels[-1].legend(title="hidden state in training")
    return figure


REPRODUCTION = Reproduction(
    name="g24-length",
    title="Errors beyond the length of training, by the hidden state that training starts from",
    source="Wang, LongSSM: On the Length Extension of State-space Models in Language Modelling, "
    "2024; Buitrago Ruiz, Gu, Understanding and Improving Length Generalization in Recurrent "
    "Models, ICML 2025",
    description="Leaky recurrent networks of 16 units, linear or tanh, learn y_k = sum_j "
    "(1 + j)^-1.5 x_(k-j) from sequences of 32 standard normal inputs, 32 at an update, by Adam "
    "(0.003) for 4,000 updates from 5 seeds. Hidden states start from 0; from noise of standard "
    "deviation 0.5, with the same target; or from where the last sequence of the same stream ended "
    "(carried), with a target that has the whole stream behind it. A fourth training has sequences "
    "of 128. Then memjax.length_extension follows them from 0 to 256 "
    "steps on 512 new sequences. A model holds if its error does not grow more than twofold. The "
    "papers train language models; the task is ours, the statements are theirs.",
    run=run,
    check=check,
    plot=plot,
)
