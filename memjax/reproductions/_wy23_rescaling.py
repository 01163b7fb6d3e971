from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_dataset
from .._lazy import matplotlib, tqdm, xr
from ..losses import TemporalWeight
from ..models import DiagonalLinearRNN, NonlinearRNN
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..reparam import Exp
from ..targets import PowerLaw
from ..viz import drawing, look, spread_marks
from ._base import (
    as_nonnegatives,
    check_integers,
    check_known,
    describe,
    empty,
    listed,
    Reproduction,
    Verdict,
)
from ._training import batched, train

MODELS = ("linear", "tanh")
EXPONENTS = (0.0, 1.0, 2.0, 4.0)

_LENGTH, _WIDTH, _BATCH = 100, 16, 32
_RATE, _STEP = 3e-3, 0.2  # of Adam, and of Euler's method in the tanh network
_SAMPLES = 256
_FACTOR = 1.5  # within which a kernel counts as learnt


def target_kernel() -> Float[Array, " lags"]:
    """The response of the target to an impulse, $(1 + k)^{-3/2}$."""
    return PowerLaw(0.5)(jnp.arange(float(_LENGTH)))


def lag_weights(weights: Float[Array, " times"]) -> Float[Array, " lags"]:
    r"""What an error in the kernel at a lag counts for: $\frac1T \sum_{t \ge k} w_t$.

    Outputs before that lag do not see it, so that it falls with the lag for all weights above 0.
    """
    return jnp.cumsum(weights[::-1])[::-1] / weights.size


class _Expected(eqx.Module):
    """The expected weighted error of a linear model under white noise."""

    def __call__(self, model: Any, key: PRNGKeyArray, weights: Array) -> Float[Array, ""]:
        apart = model.kernel()(jnp.arange(float(_LENGTH))) - target_kernel()
        return jnp.sum(lag_weights(weights) * apart**2)


class _Sampled(eqx.Module):
    """The weighted error of any model on new sequences."""

    def __call__(self, model: Any, key: PRNGKeyArray, weights: Array) -> Float[Array, ""]:
        xs = jax.random.normal(key, (_BATCH, _LENGTH))
        # Of zeros behind every sequence the convolution is not a circular one.
        size = 2 * _LENGTH
        spectrum = jnp.fft.rfft(xs, size) * jnp.fft.rfft(target_kernel(), size)
        ys = jnp.fft.irfft(spectrum, size)[:, :_LENGTH]
        return jnp.mean(weights * (jax.vmap(lambda x: outputs(model, x))(xs) - ys) ** 2)


# Made once: a training is compiled for each of them.
_LOSSES = {"linear": _Expected(), "tanh": _Sampled()}


def outputs(model: Any, xs: Float[Array, " times"]) -> Float[Array, " times"]:
    """Outputs that see the input of their own time already."""
    ts = _STEP * np.arange(xs.size + 1)
    return model.residual(ts, jnp.append(xs, 0.0))[1:]


def make_model(kind: str, key: PRNGKeyArray) -> Any:
    """A random model with rates of at least 0.1, as if nothing were known of the memory."""
    if kind == "tanh":
        return NonlinearRNN.init(_WIDTH, leak=True, key=key)
    first, second = jax.random.split(key)
    rates = jax.random.uniform(first, (_WIDTH,), minval=0.1, maxval=2.0)
    return DiagonalLinearRNN(jax.random.normal(second, (_WIDTH,)) / _WIDTH, rates, Exp())


@eqx.filter_jit
def learnt_kernel(model: Any) -> Float[Array, " lags"]:
    r"""The mean slope $E\, \partial y_T / \partial x_{T-k}$ of the last output, of a linear model
    its kernel."""
    if isinstance(model, DiagonalLinearRNN):
        return model.kernel()(jnp.arange(float(_LENGTH)))
    xs = jax.random.normal(jax.random.key(9), (_SAMPLES, _LENGTH))
    slopes = jax.vmap(jax.grad(lambda x: outputs(model, x)[-1]))(xs)
    return jnp.mean(slopes, axis=0)[::-1]


def effective_memory(kernel: np.ndarray) -> int:
    """The lag up to which a kernel is that of the target within a factor."""
    target = np.asarray(target_kernel())
    right = (kernel > target / _FACTOR) & (kernel < target * _FACTOR)
    return int(np.argmin(right)) if not right.all() else right.size


@eqx.filter_jit
def tail_share(model: Any, weights: Float[Array, " times"]) -> Float[Array, ""]:
    """Which share of the gradient of a linear model comes from the later half of the lags."""

    def part(model: Any, first: int) -> Array:
        apart = model.kernel()(jnp.arange(float(_LENGTH))) - target_kernel()
        return jnp.sum((lag_weights(weights) * apart**2)[first:])

    def length(first: int) -> Array:
        slopes = jax.tree.leaves(eqx.filter_grad(part)(model, first))
        return jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in slopes))

    return length(_LENGTH // 2) / length(0)


def run(
    progress: bool = True,
    *,
    models: Sequence[str] = MODELS,
    exponents: Sequence[float] = EXPONENTS,
    seeds: int = 8,
    updates: int = 5000,
) -> "xr.Dataset":
    """Learnt kernels and effective memories over `model`, `exponent` and `seed`."""
    check_known("models", models, MODELS)
    check_integers(seeds=seeds, updates=updates)
    exponents = as_nonnegatives("exponents", exponents).tolist()
    axes = {"model": list(models), "exponent": exponents, "seed": np.arange(seeds)}
    kernels, memory, result = empty(axes, _LENGTH), empty(axes), empty(axes)
    share = np.full((len(exponents), seeds), np.nan)
    keys = jax.random.split(jax.random.key(0), seeds)
    with tqdm.tqdm(total=len(models) * len(exponents), unit="model", disable=not progress) as bar:
        for i, kind in enumerate(models):
            start = batched(lambda key, kind=kind: make_model(kind, key), keys)
            for j, exponent in enumerate(exponents):
                weights = TemporalWeight(exponent)(jnp.arange(float(_LENGTH)))
                data = jnp.tile(weights, (seeds, 1))
                found = train(
                    start, _LOSSES[kind], optax.adam(_RATE), updates, key=jax.random.key(1),
                    data=data,
                )  # fmt: skip
                kernels[i, j] = eqx.filter_vmap(learnt_kernel)(found.models)
                memory[i, j] = [effective_memory(kernel) for kernel in kernels[i, j]]
                result[i, j] = np.where(found.diverged, DIVERGED, MAX_TIME_REACHED)
                if kind == "linear":
                    share[j] = eqx.filter_vmap(tail_share, in_axes=(0, None))(start, weights)
                bar.update()
    words = {"effective_memory": f"lag up to which the kernel is learnt within {_FACTOR:g}"}
    counted = [
        lag_weights(TemporalWeight(exponent)(jnp.arange(float(_LENGTH)))) for exponent in exponents
    ]
    return xr.Dataset(
        describe({"effective_memory": memory}, tuple(axes), words)
        | {
            "kernel": ((*axes, "lag"), kernels, {"long_name": "mean slope of the last output"}),
            "lag_weight": (("exponent", "lag"), np.stack(counted)),
            "tail_share": (("exponent", "seed"), share),
            "result": (tuple(axes), result.astype(np.int8)),
        },
        axes | {"lag": np.arange(_LENGTH)},
        {"updates": updates},
    )


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The three statements of the abstract."""
    exponents = dataset["exponent"].values
    weights = dataset["lag_weight"].transpose("exponent", "lag").values
    half = weights[:, _LENGTH // 2]
    verdicts = [
        Verdict(
            "all weights above 0 count short memory for more (WY23)",
            "weight of an error at half the length, over that at lag 0, for exponents "
            f"{listed(exponents)}: {listed(half / weights[:, 0])}",
            bool(np.all(np.diff(weights, axis=1) <= 1e-12)),
        )
    ]
    if exponents.size < 2:
        return verdicts
    first, best = int(np.argmin(exponents)), int(np.argmax(exponents))
    for name in map(str, dataset["model"].values):
        memory = dataset["effective_memory"].sel(model=name)
        median = memory.median("seed").values
        verdicts.append(
            Verdict(
                f"{name}: rescaled errors teach a longer memory (WY23)",
                f"learnt up to the lag {listed(median)}, medians over seeds",
                bool(median[best] > median[first]),
            )
        )
    share = dataset["tail_share"].median("seed").values
    if np.all(np.isfinite(share)):
        verdicts.append(
            Verdict(
                "they make the gradient of late lags vanish less (WY23)",
                f"share of the later half of the lags at the start {listed(share)}",
                bool(share[best] > share[first]),
            )
        )
    return verdicts


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """From the left: what an error in the kernel counts for, against the lag; kernels that a model
    has learnt beside that of the target (grey), one for each exponent of the weights, medians over
    seeds; and the lag up to which the kernel is learnt, one dot a seed, against the exponent.
    Hollow markers there are medians."""
    dims = ["model", "exponent", "seed"]
    needed = {"effective_memory": dims, "kernel": [*dims, "lag"]}
    check_dataset("dataset", dataset, needed, "the reproduction wy23-rescaling")
    names = [str(name) for name in dataset["model"].values]
    exponents, lags = dataset["exponent"].values, dataset["lag"].values
    with drawing(9.4, 3.0) as figure:
        panels = figure.subplots(1, 2 + len(names))
        for index, exponent in enumerate(exponents):
            weight = dataset["lag_weight"].sel(exponent=exponent)
            own = look(index, markevery=0.15, ms=3.5)
            panels[0].plot(lags, weight, label=f"$p$ = {exponent:g}", **own)
        panels[0].set(xlabel="lag (steps)", ylabel="weight of an error")
        panels[0].legend()
        for axes, name in zip(panels[1:], names, strict=False):
            axes.loglog(lags + 1, target_kernel(), color="0.8", lw=4, label="target")
            for index, exponent in enumerate(exponents):
                kernel = dataset["kernel"].sel(model=name, exponent=exponent).median("seed")
                own = look(index, markevery=spread_marks(lags + 1), ms=3.5)
                axes.plot(lags + 1, np.where(kernel > 0, kernel, np.nan), **own)
            axes.set(xlabel="1 + lag (steps)", title=name)
            axes.set_ylim(1e-4, 2)
        panels[1].set_ylabel("kernel")
        panels[1].legend()
        for index, name in enumerate(names):
            memory = dataset["effective_memory"].sel(model=name).transpose("exponent", "seed")
            places, own = exponents + 0.1 * (2 * index - 1), look(4 + index)
            single = {"color": "0.7", "ms": 2.5, "mew": 0, "zorder": 0}
            for place, dots in zip(places, memory.values, strict=True):
                panels[-1].plot(np.full(dots.size, place), dots, own["marker"], **single)
            panels[-1].plot(places, memory.median("seed"), label=name, **own)
        panels[-1].set(
            xlabel="exponent $p$ of the weights", ylabel="lag up to which it is learnt (steps)"
        )
        panels[-1].legend()
    return figure


REPRODUCTION = Reproduction(
    name="wy23-rescaling",
    title="The memory that is learnt when late errors count for more",
    source="Wang, Yan, Improve Long-term Memory Learning Through Rescaling the Error Temporally, "
    "arXiv 2307.11462, 2023",
    description="Models of 16 units learn y_k = sum_j (1 + j)^-1.5 x_(k-j) from sequences of 100 "
    "standard normal inputs, with squared errors weighted by t^p (memjax.TemporalWeight): a "
    "diagonal linear model with exponential rates from 0.1 to 2, on the expected error, and a "
    "leaky tanh network on 32 new sequences an update. Adam (0.003), 5,000 updates, 8 seeds. A "
    "kernel, of the tanh network the mean slope of the last output, counts as learnt up to the "
    f"last lag before which it is within a factor of {_FACTOR:g} of the target's. The numbers of "
    "the paper's experiments were not found in the parts of it that could be read: the setting is "
    "ours, the statements are those of its abstract.",
    run=run,
    check=check,
    plot=plot,
)
