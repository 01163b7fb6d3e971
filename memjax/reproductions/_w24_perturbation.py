import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PRNGKeyArray

from .._checks import as_integers, check_choice, check_dataset
from .._deprecation import renamed_arguments
from .._lazy import matplotlib, xr
from ..losses import TemporalWeight
from ..memory import crossings, perturbation_error, stability_radius, StabilityRadius
from ..models import AbstractModel, DiagonalNonlinearRNN, NonlinearRNN, trainable, uniform_rates
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..reparam import AbstractReparametrisation, Direct, REPARAMETRISATIONS
from ..targets import AbstractKernel, ExponentialSum, PowerLaw
from ..viz import COLOURS, drawing, label_grid
from ._base import (
    check_integers,
    check_known,
    each_cell,
    Reproduction,
    Verdict,
)
from ._training import batched, train

# Made when asked for: importing memjax computes nothing.
KERNELS: Mapping[str, Callable[[], AbstractKernel]] = {
    "exponential": lambda: ExponentialSum(np.ones(1), np.ones(1)),  # pyright: ignore[reportArgumentType]
    "power law": lambda: PowerLaw(0.1, 10.0),
}
ACTIVATIONS = {"linear": "identity", "hardtanh": "hardtanh", "tanh": "tanh"}
# The vanilla model starts from the rates of the diagonal one, and turns them.
PARAMETRISATIONS: Mapping[str, Callable[[], AbstractReparametrisation]] = {
    "vanilla": Direct,
    **{("diagonal" if name == "direct" else name): map for name, map in REPARAMETRISATIONS.items()},
}
RADII = 1e-3 * 2 ** (np.arange(21) / 2)

_LENGTH = 100
_HELD_OUT = 32
_RATES = (0.3, 1.3)
_CLIP = 0.5
# A step of Adam moves every entry of a dense matrix, and its eigenvalues by the sum of many.
_LEARNING_RATE = {"vanilla": 2e-3}


def kernel_matrix(kernel: AbstractKernel) -> Float[Array, "times times"]:
    r"""The discrete target as a matrix, $y_k = \sum_{j \le k} \rho(j) x_{k-j}$, in float32."""
    lags = np.arange(_LENGTH)[:, None] - np.arange(_LENGTH)
    return jnp.where(lags < 0, 0, kernel(jnp.maximum(lags, 0.0))).astype(jnp.float32)


def squared_error(
    model: AbstractModel, xs: Float[Array, "batch times"], matrix: Float[Array, "times times"]
) -> Float[Array, ""]:
    """The mean squared error on inputs, weighted by time squared.

    An output is read after its input has acted, hence one more time than there are inputs.
    """
    ts = jnp.arange(_LENGTH + 1, dtype=xs.dtype)
    padded = jnp.pad(xs, ((0, 0), (0, 1)))
    outputs = jax.vmap(lambda x: model.residual(ts, x))(padded)[:, 1:]
    return jnp.mean(TemporalWeight(2.0)(ts)[1:].astype(xs.dtype) * (outputs - xs @ matrix.T) ** 2)


@renamed_arguments(norm="ball")
def run(
    progress: bool = True,
    *,
    kernels: Sequence[str] = tuple(KERNELS),
    activations: Sequence[str] = tuple(ACTIVATIONS),
    parametrisations: Sequence[str] = ("vanilla", "diagonal", "softplus"),
    widths: Sequence[int] = (8, 16, 32, 64),
    seeds: int = 3,
    updates: int = 2000,
    batch: int = 32,
    draws: int = 30,
    restarts: int = 2,
    steps: int = 12,
    ball: Literal["operator", "max"] = "operator",
) -> "xr.Dataset":
    """Perturbation errors over `kernel`, `activation`, `parametrisation`, `width`, `seed` and
    `radius`.

    The supremum is over the ball of the definition (`"operator"`), or over that from which the
    public code draws (`"max"`).
    """
    check_choice("ball", ball, _BALLS)
    widths = as_integers("widths", widths)
    check_known("kernels", kernels, KERNELS)
    check_known("activations", activations, ACTIVATIONS)
    check_known("parametrisations", parametrisations, PARAMETRISATIONS)
    check_integers(
        seeds=seeds, updates=updates, batch=batch, draws=draws, restarts=restarts, steps=steps
    )
    names = {
        "kernel": list(kernels),
        "activation": list(activations),
        "parametrisation": list(parametrisations),
        "width": list(widths),
        "seed": list(range(seeds)),
    }
    dims = tuple(names)
    shape = tuple(map(len, names.values()))
    matrices = jnp.stack([kernel_matrix(KERNELS[kernel]()) for kernel in kernels])
    runs = jnp.repeat(matrices, seeds, axis=0)
    inputs, training, noise = jax.random.split(jax.random.key(0), 3)
    held_out = jax.random.normal(inputs, (_HELD_OUT, _LENGTH), jnp.float32)
    optimisers = {name: _optimiser(name, updates) for name in parametrisations}
    sample = _Samples(batch)
    found: dict[str, np.ndarray] = {
        "error": np.full((*shape, RADII.size), np.nan, np.float32),
        "drawn": np.full((*shape, RADII.size), np.nan, np.float32),
        "trained": np.full(shape, np.nan, np.float32),
        "slowest_rate": np.full(shape, np.nan, np.float32),
        "result": np.full(shape, MAX_TIME_REACHED, np.int8),
    }
    inner = {axis: names[axis] for axis in ("activation", "parametrisation", "width")}
    for (i, j, k), (activation, name, width) in each_cell(inner, "cell", progress):
        keys = jnp.tile(jax.random.split(jax.random.key(1), seeds), len(kernels))
        models = batched(functools.partial(_start, width, activation, name), keys)
        trained = train(models, sample, optimisers[name], updates, key=training, data=runs)
        values = {
            "trained": eqx.filter_vmap(squared_error, in_axes=(eqx.if_array(0), None, 0))(
                trained.models, held_out, runs
            ),
            "slowest_rate": eqx.filter_vmap(_slowest)(trained.models),
            "result": np.where(trained.diverged, DIVERGED, MAX_TIME_REACHED),
        }
        values["error"], values["drawn"] = _perturb(
            trained.models, held_out, runs, jax.random.split(noise, runs.shape[0]),
            draws, restarts, steps, ball,
        )  # fmt: skip
        for key, value in values.items():
            value = np.asarray(value)
            found[key][:, i, j, k] = value.reshape(len(kernels), seeds, *value.shape[1:])
    labels = {
        "error": "largest error found in the ball",
        "drawn": "largest error of the random draws",
        "trained": "error of the trained model",
        "slowest_rate": "smallest decay rate of the trained model",
        "result": "how the training ended",
    }
    power = [float(jnp.mean(_weights() * jnp.sum(matrix**2, axis=1))) for matrix in matrices]
    return xr.Dataset(
        {
            name: (dims + (("radius",) if value.ndim > len(dims) else ()), value,
                   {"long_name": labels[name]})
            for name, value in found.items()
        }
        | {"power": ("kernel", power, {"long_name": "mean square of the target's output"})},
        names | {"radius": RADII},
        {"updates": updates, "batch": batch, "draws": draws, "restarts": restarts, "steps": steps,
         "norm": ball},
    )  # fmt: skip


class _Samples(eqx.Module):
    """The loss on inputs that are new at every update."""

    batch: int = eqx.field(static=True)

    def __call__(self, model: Any, key: PRNGKeyArray, matrix: Array) -> Float[Array, ""]:
        xs = jax.random.normal(key, (self.batch, _LENGTH), matrix.dtype)
        return squared_error(model, xs, matrix)


def _weights() -> Float[Array, " times"]:
    return TemporalWeight(2.0)(jnp.arange(_LENGTH + 1.0))[1:]


def _optimiser(parametrisation: str, updates: int) -> optax.GradientTransformation:
    rate = optax.cosine_decay_schedule(_LEARNING_RATE.get(parametrisation, 1e-2), updates)
    return optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(rate))


def _start(width: int, activation: str, parametrisation: str, key: PRNGKeyArray) -> Any:
    """The same rates and input and readout weights for every parametrisation."""
    first, second, third = jax.random.split(key, 3)
    rates = uniform_rates(width, *_RATES, key=first)
    model = DiagonalNonlinearRNN.init(
        rates,
        activation=ACTIVATIONS[activation],
        reparametrisation=PARAMETRISATIONS[parametrisation](),
        key=second,
    )
    if parametrisation == "vanilla":
        turn = jnp.linalg.qr(jax.random.normal(third, (width, width)))[0]
        model = NonlinearRNN(
            -(turn * rates) @ turn.T,
            turn @ model.input,
            None,
            turn @ model.readout_weights,
            model.activation,
        )
    return jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if eqx.is_inexact_array(leaf) else leaf, model
    )


def _slowest(model: DiagonalNonlinearRNN | NonlinearRNN) -> Float[Array, ""]:
    if isinstance(model, NonlinearRNN):
        return -jnp.max(jnp.real(jnp.linalg.eigvals(model.recurrent)))
    return jnp.min(model.rates)


@eqx.filter_jit
def _perturb(
    models: Any,
    xs: Float[Array, "batch times"],
    matrices: Float[Array, "runs times times"],
    keys: PRNGKeyArray,
    draws: int,
    restarts: int,
    steps: int,
    ball: Literal["operator", "max"],
) -> tuple[Float[Array, "runs radii"], Float[Array, "runs radii"]]:
    """The largest errors by ascent, and by random draws as the literature makes them."""
    radii = jnp.asarray(RADII, xs.dtype)

    def one(model: Any, matrix: Array, key: PRNGKeyArray) -> tuple[Array, Array]:
        ascent, noise = jax.random.split(key)
        error = lambda model: squared_error(model, xs, matrix)
        reached = perturbation_error(
            model, error, radii, ball=ball, restarts=restarts, steps=steps, draws=1, key=ascent
        )
        drawn = drawn_errors(model, error, radii, draws, noise)
        # The ball of the largest entries holds the draws, that of operator norms does not.
        return (jnp.maximum(reached.error, drawn) if ball == "max" else reached.error), drawn

    return eqx.filter_vmap(one, in_axes=(eqx.if_array(0), 0, 0))(models, matrices, keys)


def drawn_errors(
    model: Any,
    error: Callable[[Any], Float[Array, ""]],
    radii: Float[Array, " radii"],
    draws: int,
    key: PRNGKeyArray,
) -> Float[Array, " radii"]:
    """The largest error so far of random perturbations, as the published code draws them.

    Gaussian, each array of weights scaled so that its largest entry is the radius, and in the
    same directions at every radius.
    """
    weights, rest = eqx.partition(model, trainable(model))
    leaves, structure = jax.tree.flatten(weights)

    def draw(key: PRNGKeyArray) -> Float[Array, " radii"]:
        noise = [
            jax.random.normal(each, leaf.shape, leaf.dtype)
            for each, leaf in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
        ]
        noise = [leaf / jnp.max(jnp.abs(leaf)) for leaf in noise]

        def at(radius: Array) -> Float[Array, ""]:
            moved = [leaf + radius * step for leaf, step in zip(leaves, noise, strict=True)]
            value = error(eqx.combine(jax.tree.unflatten(structure, moved), rest))
            return jnp.where(jnp.isnan(value), jnp.inf, value)

        return jax.vmap(at)(radii)

    errors = jax.lax.map(draw, jax.random.split(key, draws))
    return jax.lax.cummax(jnp.max(errors, axis=0))


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """Verdicts on the curves of a dataset of `run`: two for each kernel, parametrisation and
    activation, and one on what a reparametrisation gains."""
    verdicts = []
    names = list(map(str, dataset["parametrisation"].values))
    activations = list(map(str, dataset["activation"].values))
    for kernel in map(str, dataset["kernel"].values):
        for name in names:
            stable = kernel == "exponential" or name in _REPARAMETRISED
            for activation in activations:
                cell = dataset.sel(kernel=kernel, parametrisation=name, activation=activation)
                for source, what in (("drawn", "draws"), ("error", "supremum")):
                    found, agrees = _judge_trend(cell, source, name, stable)
                    claim = "stable" if stable else "unstable, curves cross"
                    published = f"{kernel}, {name}, {activation}, {what}: {claim}"
                    verdicts.append(Verdict(published, found, agrees))
    if "diagonal" in names and {"power law", "exponential"} <= set(dataset["kernel"].values):
        for name in names:
            if name in _REPARAMETRISED:
                verdicts += [_judge_gain(dataset.sel(activation=a), name, a) for a in activations]
    return verdicts


def _measure_radius(cell: "xr.Dataset", source: str, share: float) -> StabilityRadius:
    """The radii at which errors pass a share of the mean square of the target."""
    curves = cell[source].transpose("seed", "width", "radius").values
    level = share * float(cell["power"])
    return stability_radius(cell["width"].values, cell["radius"].values, curves, level=level)


def _judge_trend(
    cell: "xr.Dataset", source: str, parametrisation: str, stable: bool
) -> tuple[str, bool | None]:
    """How the radius of a curve changes with the width, and where curves cross."""
    radius = _measure_radius(cell, source, _LEVEL)
    exponent, error = float(radius.exponent), float(radius.exponent_error)
    widths, sizes = cell["width"].values, np.median(radius.radius, axis=0)
    if np.isnan(exponent):
        return "too few widths pass the level within the radii", None
    # The longest vector of the ball of largest entries grows with the width.
    longest = 1.0 if parametrisation == "vanilla" else 0.5
    if source == "drawn" or cell.attrs["norm"] == "operator":
        longest = 0.0
    curves = cell[source].median("seed").transpose("width", "radius").values
    crossed = np.asarray(crossings(cell["radius"].values, curves))
    found = (
        f"radius {sizes[0]:.2g} at m = {widths[0]} and {sizes[-1]:.2g} at m = {widths[-1]}, as "
        f"m^({-exponent:.2f} +- {error:.2f})"
    )
    if longest:
        found += f", of which the ball makes m^{-longest:g}"
    places = [f"{place:.2g}" if np.isfinite(place) else "none" for place in crossed]
    found += f"; neighbouring curves cross at {', '.join(places)}"
    if source == "error":
        slowest = cell["slowest_rate"].median("seed").values
        found += f"; slowest rates {slowest[0]:.2g} and {slowest[-1]:.2g}"
    falls = exponent - longest
    shrinks, keeps = falls - 2 * error > 0 and falls > _SLOW, falls + 2 * error < _SLOW
    if not shrinks and not keeps:
        return found, None
    return found, bool(keeps if stable else shrinks)


def _judge_gain(dataset: "xr.Dataset", name: str, activation: str) -> Verdict:
    """Where the widest models have lost the target, with a reparametrisation and without."""
    widest = dataset.isel(width=[-1])
    lost = {
        (kernel, which): float(np.median(_measure_radius(cell, "error", 1.0).radius))
        for kernel in ("exponential", "power law")
        for which in ("diagonal", name)
        for cell in [widest.sel(kernel=kernel, parametrisation=which)]
    }
    gains = {
        kernel: lost[kernel, name] / lost[kernel, "diagonal"]
        for kernel in ("exponential", "power law")
    }
    words = [
        f"{kernel} {lost[kernel, 'diagonal']:.2g} and {lost[kernel, name]:.2g}" for kernel in gains
    ]
    gained = gains["power law"] > _GAIN and gains["power law"] > _GAIN * gains["exponential"]
    return Verdict(
        f"power law, {activation}: {name} survives perturbations that the direct rates do not",
        f"the supremum at m = {int(widest['width'][0])} is the mean square of the target at the "
        f"radii {'; '.join(words)}",
        bool(gained),
    )


_BALLS = ("operator", "max")
_REPARAMETRISED = ("softplus", "exp", "inverse", "best")

# The criteria: see the description.
_LEVEL, _SLOW, _GAIN = 0.1, 0.25, 1.5


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Error against the radius of the perturbation on log scales, a line a width.

    A row is a kernel and activation, a column a parametrisation. Full lines are the supremum by
    ascent in the ball of the dataset's `norm`, dotted ones the largest of the random draws, whose
    largest entries are the radius; both are medians over seeds. Errors are divided by the mean
    square of the target, so that at 1 a model is no better than none.
    """
    needed = dict.fromkeys(
        ("error", "drawn"), ["kernel", "activation", "parametrisation", "width", "radius", "seed"]
    )
    check_dataset("dataset", dataset, needed, "the reproduction w24-perturbation")
    median = dataset.median("seed")
    rows = [(k, a) for k in dataset["kernel"].values for a in dataset["activation"].values]
    columns = dataset["parametrisation"].values
    with drawing(0.7 + 2.1 * len(columns), 0.7 + 1.5 * len(rows)) as figure:
        grid = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
        for (i, j), axes in np.ndenumerate(grid):
            (kernel, activation), column = rows[i], columns[j]
            cell = median.sel(kernel=kernel, activation=activation, parametrisation=column)
            for index, width in enumerate(dataset["width"].values):
                run, colour = cell.sel(width=width), COLOURS[index % 7]
                error, drawn = (run[source] / run["power"] for source in ("error", "drawn"))
                axes.loglog(run["radius"], error, color=colour, lw=1.3, label=f"$m$ = {width}")
                axes.loglog(run["radius"], drawn, ":", color=colour, lw=1.1)
            axes.axhline(1, color="0.6", lw=0.7, zorder=0)
            axes.set_title(f"{kernel}, {activation}, {column}", fontsize=7.5)
        grid[0, 0].set_ylim(1e-6, 1e3)
        label_grid(grid, r"radius $\beta$ (units of the weights)", "relative error")
        draws = matplotlib.lines.Line2D([], [], color="0.3", ls=":", lw=1.1, label="random draws")
        handles = [*grid[0, 0].get_legend_handles_labels()[0], draws]
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    return figure


REPRODUCTION = Reproduction(
    name="w24-perturbation",
    title="Error under perturbed weights against the radius, for growing width",
    source="Wang, Li, Li, ICLR 2024, Section 4 and Appendix, and its public code",
    description=f"RNNs learn y_k = sum_j rho(j) x_(k-j) for rho = exp(-t) and (1 + 0.1 t)^(-1.1) "
    f"on sequences of {_LENGTH} standard normal inputs with the residual recursion of step 1, by "
    f"Adam in float32 on new inputs at every update, errors squared and weighted by t^2. All "
    f"parametrisations start from the same rates between {_RATES[0]} and {_RATES[1]}. Then all "
    "weights are perturbed: by random draws as in the public code (Gaussian, the largest entry of "
    "each array the radius), and by gradient ascent (supremum) in the ball of the definition, in "
    "which the radius bounds the operator norm of each array, on held-out inputs. The radius of a "
    f"curve is where its error passes {_LEVEL:.0%} of the mean square of the target. A cell is "
    f"unstable if the radius falls with the width m faster than m^(-{_SLOW:g}), and by more than "
    "two standard errors, and stable if it falls slower by two. A reparametrisation gains if the "
    f"widest model loses the target at a radius {_GAIN:g} times as large, and that much more than "
    "for the exponential kernel.",
    run=run,
    check=check,
    plot=plot,
)
