from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import check_dataset
from .._lazy import matplotlib, tqdm, xr
from ..memory import generalisation_measure, scale_readout
from ..models import ComplexDiagonalRNN, DiagonalLinearRNN
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..reparam import Exp
from ..targets import PowerLaw
from ..viz import drawing, look
from ._base import (
    as_nonnegatives,
    as_positives,
    check_integers,
    check_known,
    describe,
    empty,
    listed,
    Reproduction,
    Verdict,
)
from ._training import batched, train

LENGTHS = (1.0, 10.0, 100.0)
PENALTIES = (0.0, 1e-3, 1e-2, 3e-2, 0.1)

_STEP, _MODES = 0.1, 32
# Of training: lags, sequences to train and to test on, noise of the outputs, learning rate.
_LAGS, _TRAINED, _TESTED, _NOISE, _RATE = 100, 24, 2000, 0.3, 3e-3


class Pattern(NamedTuple):
    """A Gaussian input at some times: its means, variances and correlations."""

    mean: Float[np.ndarray, " times"]
    variance: Float[np.ndarray, " times"]
    correlation: Float[np.ndarray, "times times"]


def _decaying(ts: np.ndarray, time: float) -> np.ndarray:
    return np.exp(-np.abs(ts[:, None] - ts) / time)


PATTERNS: Mapping[str, Callable[[np.ndarray], Pattern]] = {
    "white": lambda ts: Pattern(0 * ts, 1 + 0 * ts, np.eye(ts.size)),
    "correlated for 1": lambda ts: Pattern(0 * ts, 1 + 0 * ts, _decaying(ts, 1.0)),
    "correlated for 30": lambda ts: Pattern(0 * ts, 1 + 0 * ts, _decaying(ts, 30.0)),
    "ten times as large": lambda ts: Pattern(0 * ts, 100 + 0 * ts, _decaying(ts, 1.0)),
    "growing": lambda ts: Pattern(0 * ts, (ts / ts[-1]) ** 2, _decaying(ts, 1.0)),
    "mean of 3": lambda ts: Pattern(3 + 0 * ts, 1 + 0 * ts, _decaying(ts, 1.0)),
}


def random_model(seed: int) -> ComplexDiagonalRNN:
    """Modes with decay times between 1 and 100 and frequencies up to pi, in all directions."""
    rng = np.random.default_rng(seed)
    cosine, sine = rng.normal(size=(2, _MODES)) / np.sqrt(_MODES)
    rates = np.exp(rng.uniform(np.log(0.01), 0, _MODES))
    return ComplexDiagonalRNN(cosine, sine, rates, rng.uniform(0, np.pi, _MODES))


def output_size(model: Any, ts: np.ndarray, pattern: Pattern) -> float:
    """The root mean square of the last output."""
    rho = _STEP * np.asarray(model.kernel()(ts[-1] - ts))
    rho[[0, -1]] /= 2  # by the trapezoidal rule
    deviation = rho * np.sqrt(pattern.variance)
    return float(np.sqrt((rho @ pattern.mean) ** 2 + deviation @ pattern.correlation @ deviation))


# --- A penalty in training ------------------------------------------------------------------------


class _Penalised(eqx.Module):
    """The error of the last output on a few sequences, and the penalty."""

    def __call__(self, model: Any, key: PRNGKeyArray, data: Any) -> Float[Array, ""]:
        (xs, ys), penalty = data
        kernel = model.kernel()(jnp.arange(float(_LAGS)))
        return jnp.mean((xs @ kernel - ys) ** 2) + penalty * generalisation_measure(kernel)


_LOSS = _Penalised()


def _sample(rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Inputs, latest first, and noisy last outputs of the target."""
    xs = rng.normal(size=(count, _LAGS))
    target = np.asarray(PowerLaw(0.5)(jnp.arange(float(_LAGS))))
    return xs, xs @ target + _NOISE * rng.normal(size=count)


def _student(key: PRNGKeyArray) -> DiagonalLinearRNN:
    first, second = jax.random.split(key)
    rates = jnp.exp(jax.random.uniform(first, (_MODES,), minval=np.log(0.01), maxval=0.7))
    return DiagonalLinearRNN(jax.random.normal(second, (_MODES,)) / _MODES, rates, Exp())


def run(
    progress: bool = True,
    *,
    lengths: Sequence[float] = LENGTHS,
    patterns: Sequence[str] = tuple(PATTERNS),
    penalties: Sequence[float] = PENALTIES,
    seeds: int = 10,
    updates: int = 4000,
) -> "xr.Dataset":
    """Sizes of outputs at the start over `pattern`, `length` and `seed`, before and after scaling;
    errors of trained models over `penalty` and `seed`."""
    lengths = as_positives("lengths", lengths).tolist()
    check_known("patterns", patterns, PATTERNS)
    penalties = as_nonnegatives("penalties", penalties).tolist()
    check_integers(seeds=seeds, updates=updates)
    axes = {"pattern": list(patterns), "length": lengths, "seed": np.arange(seeds)}
    before, after, measure = empty(axes), empty(axes), empty(axes)
    with tqdm.tqdm(total=seeds + len(penalties), unit="model", disable=not progress) as bar:
        for k in range(seeds):
            model = random_model(k)
            for j, length in enumerate(lengths):
                ts = _STEP * np.arange(round(length / _STEP) + 1)
                for i, name in enumerate(patterns):
                    pattern = PATTERNS[name](ts)
                    statistics = {"variance": pattern.variance, "mean": pattern.mean}
                    scaled = scale_readout(model, ts, **statistics)
                    before[i, j, k] = output_size(model, ts, pattern)
                    after[i, j, k] = output_size(scaled, ts, pattern)
                    measure[i, j, k] = generalisation_measure(model, ts, **statistics)
            bar.update()
        rng = np.random.default_rng(0)
        parts = [_sample(rng, _TRAINED) for _ in range(seeds)]
        few = tuple(jnp.asarray(np.stack(part)) for part in zip(*parts, strict=True))
        many = _sample(rng, _TESTED)
        start = batched(_student, jax.random.split(jax.random.key(0), seeds))
        names = {"penalty": penalties, "seed": np.arange(seeds)}
        learnt, tested, result = empty(names), empty(names), empty(names)
        for i, penalty in enumerate(penalties):
            found = train(
                start, _LOSS, optax.adam(_RATE), updates, key=jax.random.key(1),
                data=(few, jnp.full(seeds, penalty)),
            )  # fmt: skip
            kernels = eqx.filter_vmap(lambda model: model.kernel()(jnp.arange(float(_LAGS))))
            kernel = np.asarray(kernels(found.models))
            predicted = np.einsum("snk,sk->sn", np.asarray(few[0]), kernel)
            learnt[i] = np.mean((predicted - np.asarray(few[1])) ** 2, axis=1)
            tested[i] = np.mean((many[0] @ kernel.T - many[1][:, None]) ** 2, axis=0)
            result[i] = np.where(found.diverged, DIVERGED, MAX_TIME_REACHED)
            bar.update()
    sizes = {
        "size": "root mean square of the last output",
        "scaled_size": "the same with the readout scaled",
        "measure": "generalisation measure",
    }
    values = {"size": before, "scaled_size": after, "measure": measure}
    words = {"train_error": "mean squared error on what it was trained on", "test_error": "on more"}
    return xr.Dataset(
        describe(values, tuple(axes), sizes)
        | describe({"train_error": learnt, "test_error": tested}, tuple(names), words)
        | {"result": (tuple(names), result.astype(np.int8))},
        axes | names,
        {"updates": updates, "noise": _NOISE},
    )


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The bound behind the measure, the scaling rule, and the penalty."""
    ratio = float((dataset["size"] / np.sqrt(dataset["measure"])).max())
    spread = lambda sizes: float(sizes.median("seed").max() / sizes.median("seed").min())
    largest = float(dataset["scaled_size"].max())
    before, after = spread(dataset["size"]), spread(dataset["scaled_size"])
    verdicts = [
        Verdict(
            "the root of the measure bounds the size of outputs, whatever the correlations (F24)",
            f"largest size over it {ratio:.2g}",
            ratio < 1.02,
        ),
        Verdict(
            "scaled by it, sizes of outputs at the start are robust to the input (F24)",
            f"largest over smallest {before:.3g} before and {after:.3g} after; largest after "
            f"{largest:.2g}",
            after < 0.5 * before,
        ),
    ]
    penalties = dataset["penalty"].values
    if penalties.size > 1 and penalties.min() == 0:
        test = dataset["test_error"].median("seed")
        gap = (dataset["test_error"] - dataset["train_error"]).median("seed")
        place = int(np.argmin(test.values))
        lower = dataset["test_error"].sel(penalty=0) - dataset["test_error"].isel(penalty=place)
        error = float(lower.std("seed") / np.sqrt(lower.sizes["seed"]))
        clear = float(lower.mean("seed")) > 2 * error
        verdicts.append(
            Verdict(
                "a penalty by the measure makes trained models generalise better (F24)",
                f"test errors {listed(test.values)} for penalties {listed(penalties)}, gaps to the "
                f"training error {listed(gap.values)}; lower by {float(lower.mean('seed')):.2g} +- "
                f"{error:.1g} with {float(penalties[place]):.2g}",
                True if clear else None,
            )
        )
    return verdicts


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Left and middle, the root mean square of outputs at the start against the length of the
    input, for six kinds of inputs, as the model is and with its readout scaled (the dotted line is
    the size of 1 that it is scaled for); right, errors of trained models against the penalty.
    Medians over seeds."""
    dims = ["pattern", "length", "seed"]
    needed = {"size": dims, "scaled_size": dims, "test_error": ["penalty", "seed"]}
    check_dataset("dataset", dataset, needed, "the reproduction f24-scale")
    with drawing(9.2, 3.4) as figure:
        left, middle, right = figure.subplots(1, 3)
        lengths = dataset["length"].values
        for index, name in enumerate(map(str, dataset["pattern"].values)):
            for axes, sizes in ((left, dataset["size"]), (middle, dataset["scaled_size"])):
                size = sizes.sel(pattern=name).median("seed")
                axes.loglog(lengths, size, label=name, **look(index))
        middle.axhline(1, color="0.5", lw=0.8, ls=":", label="what it is scaled for")
        both = np.concatenate([np.ravel(dataset[name]) for name in ("size", "scaled_size")])
        for axes in (left, middle):
            axes.set_ylim(0.5 * both.min(), 2 * both.max())
            axes.set(xlabel="length of the input (steps)", ylabel="root mean square of outputs")
        left.set_title("as it is")
        middle.set_title("readout scaled")
        middle.legend()
        penalties = dataset["penalty"].values
        places = np.arange(penalties.size)
        for index, (name, label) in enumerate(
            (("train_error", "training"), ("test_error", "test"))
        ):
            error = dataset[name].median("seed")
            right.semilogy(places, error, label=label, **look(index))
        right.axhline(dataset.attrs["noise"] ** 2, color="0.5", lw=0.8, ls=":", label="noise")
        right.set_xticks(places, [f"{penalty:g}" for penalty in penalties])
        right.set(title="trained", xlabel=r"penalty $\lambda$", ylabel="mean squared error")
        right.legend()
    return figure


REPRODUCTION = Reproduction(
    name="f24-scale",
    title="Initial scale and regularisation of linear state-space models by what the input is like",
    source="Liu, Li, From Generalization Analysis to Optimization Designs for State Space Models, "
    "ICML 2024, Theorem 1 and equations 4 to 6",
    description="Random models of 32 complex modes, with decay times from 1 to 100, see Gaussian "
    "inputs of six kinds and three lengths. The root mean square of the last output follows "
    "from their covariance, as the model is and with its readout divided by the root of "
    "memjax.generalisation_measure. Then real models of 32 modes learn (1 + j)^-1.5 from the last "
    "outputs of 24 sequences of 100 standard normal inputs, with noise of 0.3, by Adam (0.003, "
    "4,000 updates), with the measure as a penalty; they are tested on 2,000 sequences. 10 seeds. "
    "The numbers of the paper's synthetic experiment were not found in the parts of it that could "
    "be read: the setting is ours, the statements are those of the paper.",
    run=run,
    check=check,
    plot=plot,
)
