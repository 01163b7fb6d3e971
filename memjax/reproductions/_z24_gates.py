from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_dataset
from .._lazy import matplotlib, tqdm, xr
from ..memory import hidden_variance, multiplier_sensitivity
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..viz import drawing, explain, look
from ._base import check_integers, check_known, empty, listed, near, Reproduction, Verdict
from ._z24_identification import Weights

# The autocovariance of the embeddings of words in Figure 12, as the public notebook fits it: a
# white part, and one that is correlated.
WHITE, SLOW, CORRELATION = 0.332, 0.043, 0.997


class Gates(NamedTuple):
    """How a GRU is drawn: how much its gates see of the inputs and of the hidden state, the longest
    memory, and whether its candidates are linear in the inputs."""

    inputs: float
    hidden: float
    longest: float = 256.0
    simple: bool = True


# The three of Figure 15, and a whole GRU, which is not published.
KINDS: Mapping[str, Gates] = {
    "constant gates": Gates(0.0, 0.0),
    "gates of inputs": Gates(1.0, 0.0),
    "gates of both": Gates(1.0, 1.0),
    "whole GRU": Gates(1.0, 1.0, simple=False),
}
# Those of Figure 14.
JACOBIANS: Mapping[str, Gates] = {
    "constant, to 1": Gates(0.0, 0.0, 1.0, False),
    "constant, to 16": Gates(0.0, 0.0, 16.0, False),
    "constant, to 256": Gates(0.0, 0.0, 256.0, False),
    "both, to 1": Gates(1.0, 1.0, 1.0, False),
    "both, to 16": Gates(1.0, 1.0, 16.0, False),
    "both, to 256": Gates(1.0, 1.0, 256.0, False),
    "inputs, to 16": Gates(1.0, 0.0, 16.0, False),
    "hidden x 3, to 16": Gates(1.0, 3.0, 16.0, False),
}

_EDGES = (2, 4, 8, 16, 32, 64, 128, 257)
_WITHIN, _FEWEST, _SMALL = 2.0, 20, 0.05


# --- Networks -------------------------------------------------------------------------------------


def make_inputs(
    rng: np.random.Generator, times: int, features: int
) -> Float[np.ndarray, "times features"]:
    """Gaussian inputs with that autocovariance."""
    slow = np.empty((times, features))
    slow[0] = rng.normal(size=features)
    for k in range(1, times):
        step = np.sqrt(1 - CORRELATION**2) * rng.normal(size=features)
        slow[k] = CORRELATION * slow[k - 1] + step
    return np.sqrt(WHITE) * rng.normal(size=slow.shape) + np.sqrt(SLOW) * slow


def make_gru(gates: Gates, width: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """The weights at the start, as the public code draws them."""
    turn = lambda: np.linalg.qr(rng.normal(size=(width, width)))[0]
    normal = lambda gain: rng.normal(size=(width, width)) * np.sqrt(gain / width)
    weights = {"hold": np.log(rng.uniform(1, gates.longest, width))}
    weights["update"], weights["update_back"] = normal(2 * gates.inputs), gates.hidden * turn()
    if gates.simple:
        weights["new"] = normal(1.0)
    else:
        weights["new"], weights["new_back"] = normal(2 * gates.inputs), gates.hidden * turn()
        weights["reset"], weights["reset_back"] = normal(2 * gates.inputs), gates.hidden * turn()
    return weights


def step(weights: Weights, hidden: Float[Array, " n"], x: Float[Array, " n"]) -> Float[Array, " n"]:
    """One update of a GRU, or of one whose candidates are linear in the inputs."""
    hold = jax.nn.sigmoid(x @ weights["update"] + hidden @ weights["update_back"] + weights["hold"])
    new = x @ weights["new"]
    if "reset" in weights:
        reset = jax.nn.sigmoid(x @ weights["reset"] + hidden @ weights["reset_back"])
        new = jnp.tanh(new + reset * (hidden @ weights["new_back"]))
    return (1 - hold) * new + hold * hidden


@jax.jit
def jacobians(weights: Weights, xs: Float[Array, "times n"]) -> Float[Array, "times 4"]:
    """What the slopes of the hidden state in the one at the start, which is 0, are like after every
    step: root mean squares of entries on the diagonal and off it, the largest off it, and the share
    of the diagonal in the sum of squares."""
    width = weights["hold"].size

    def move(carry: Any, x: Array) -> tuple[Any, Array]:
        hidden, table = carry
        # Rows of the table are directions at the start.
        push = lambda along: jax.jvp(lambda h: step(weights, h, x), (hidden,), (along,))[1]
        table = jax.vmap(push)(table)
        diagonal = jnp.diagonal(table)
        others = table - jnp.diag(diagonal)
        squares = jnp.sum(diagonal**2), jnp.sum(others**2)
        row = [
            jnp.sqrt(squares[0] / width),
            jnp.sqrt(squares[1] / (width * (width - 1))),
            jnp.max(jnp.abs(others)),
            squares[0] / (squares[0] + squares[1]),
        ]
        return (step(weights, hidden, x), table), jnp.stack(row)

    start = (jnp.zeros(width, xs.dtype), jnp.eye(width, dtype=xs.dtype))
    return jax.lax.scan(move, start, xs)[1]


@jax.jit
def follow(
    weights: Weights, xs: Float[Array, "times n"]
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The last hidden state, and the slope of each unit in the bias of its own update gate."""
    width = weights["hold"].size

    def move(carry: Any, x: Array) -> tuple[Any, None]:
        hidden, table = carry

        def push(along: Array, unit: Array) -> Array:
            turned = lambda h, bias: step(weights | {"hold": bias}, h, x)
            return jax.jvp(turned, (hidden, weights["hold"]), (along, unit))[1]

        table = jax.vmap(push)(table, jnp.eye(width, dtype=xs.dtype))
        return (step(weights, hidden, x), table), None

    start = (jnp.zeros(width, xs.dtype), jnp.zeros((width, width), xs.dtype))
    (hidden, table), _ = jax.lax.scan(move, start, xs)
    return hidden, jnp.diagonal(table)


# --- The linear theory ----------------------------------------------------------------------------


def _moments(memory: Float[Array, " n"]) -> tuple[Array, Array, Array, Array]:
    """E h^2 of a unit h = l h + (1 - l) x with l = 1 - 1/memory, E h dh/dl and E (dh/dl)^2, and the
    square of the slope of l in its bias."""
    value, left = 1 - 1 / memory, 1 / memory
    # First of the sum s of inputs with the powers of l, since h = (1 - l) s.
    state = lambda v: (
        WHITE * hidden_variance(-jnp.log(v), step=1.0)
        + SLOW * hidden_variance(-jnp.log(v), step=1.0, correlation_rate=-np.log(CORRELATION))
    )
    slope = WHITE * multiplier_sensitivity(value) + SLOW * multiplier_sensitivity(
        value, CORRELATION
    )
    square, both = state(value), 0.5 * jax.vmap(jax.grad(state))(value)
    turned = square - 2 * left * both + left**2 * slope
    return left**2 * square, left**2 * both - left * square, turned, (value * left) ** 2


def predict(memory: Float[Array, " n"]) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """The mean square of a unit h = l h + (1 - l) x with l = 1 - 1/memory, and that of its slope in
    the bias of l = sigmoid(bias), both without a beginning."""
    state, _, slope, scale = _moments(memory)
    return state, scale * slope


def predict_as_printed(memory: Float[Array, " n"]) -> Float[Array, " n"]:
    """The second of these in the public notebook, which is that of h + dh/dl in place of dh/dl."""
    state, both, slope, scale = _moments(memory)
    return scale * (state + 2 * both + slope)


# --- The measurement ------------------------------------------------------------------------------


def run(
    progress: bool = True,
    *,
    kinds: Sequence[str] = tuple(KINDS),
    width: int = 256,
    times: int = 512,
    seeds: int = 20,
) -> "xr.Dataset":
    """Mean squares of hidden states and slopes over `kind`, `seed` and `bin` of memories, beside
    the linear theory, and what Jacobians are like over `gates` and `time`."""
    check_known("kinds", kinds, KINDS)
    check_integers(width=width, times=times, seeds=seeds)
    bins = np.arange(len(_EDGES) - 1)
    axes = {"kind": list(kinds), "seed": np.arange(seeds), "bin": bins}
    found, theory, counts = empty(axes, 2), empty(axes, 2), empty(axes)
    tables = []
    with tqdm.tqdm(
        total=len(kinds) * seeds + len(JACOBIANS), unit="network", disable=not progress
    ) as bar:
        for i, kind in enumerate(kinds):
            for k in range(seeds):
                weights, xs = _draw(KINDS[kind], width, times, [k, 51])
                hidden, slopes = map(np.asarray, follow(weights, xs))
                memory = 1 + np.exp(np.asarray(weights["hold"], float))
                place = np.searchsorted(_EDGES, memory, side="right") - 1
                # A whole GRU draws its candidates twice as large.
                scale = 1.0 if KINDS[kind].simple else 2.0
                predicted = [scale * np.asarray(v) for v in predict(jnp.asarray(memory))]
                for b in bins:
                    inside = place == b
                    counts[i, k, b] = inside.sum()
                    for c, values in enumerate((hidden, slopes)):
                        found[i, k, b, c] = np.sum(values[inside].astype(float) ** 2)
                        theory[i, k, b, c] = np.sum(predicted[c][inside])
                bar.update()
        for gates in JACOBIANS.values():
            tables.append(np.asarray(jacobians(*_draw(gates, width, times, [0, 53])), float))
            bar.update()
    jacobian = {"gates": list(JACOBIANS), "time": np.arange(1, times + 1)}
    good = np.all(np.isfinite(found), axis=(2, 3))
    grid = np.geomspace(2, 256, 40)
    return xr.Dataset(
        {
            "square": ((*axes, "of"), found, {"long_name": "sum of squares"}),
            "theory": ((*axes, "of"), theory, {"long_name": "sum of squares of the theory"}),
            "units": (tuple(axes), counts),
            "jacobian": ((*jacobian, "what"), np.stack(tables)),
            "predicted": (("of", "memory"), np.stack(predict(jnp.asarray(grid)))),
            "printed": ("memory", np.asarray(predict_as_printed(jnp.asarray(grid)))),
            "result": (("kind", "seed"), np.where(good, MAX_TIME_REACHED, DIVERGED)),
        },
        axes
        | jacobian
        | {
            "of": ["hidden", "slope"],
            "what": ["diagonal", "others", "largest", "share"],
            "memory": grid,
            "centre": ("bin", np.sqrt(np.array(_EDGES[:-1]) * np.array(_EDGES[1:]))),
        },
        {"width": width, "times": times},
    )


def _draw(gates: Gates, width: int, times: int, seed: list[int]) -> tuple[Weights, Array]:
    rng = np.random.default_rng(seed)
    weights = {
        name: jnp.asarray(value, jnp.float32) for name, value in make_gru(gates, width, rng).items()
    }
    return weights, jnp.asarray(make_inputs(rng, times, width), jnp.float32)


def ratios(dataset: "xr.Dataset") -> "xr.DataArray":
    """Measured over predicted mean squares, of `kind`, `bin` and `of`; NaN for few units."""
    enough = dataset["units"].sum("seed") >= _FEWEST
    return (dataset["square"].sum("seed") / dataset["theory"].sum("seed")).where(enough)


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """Figures 14 and 15."""
    table, verdicts = ratios(dataset), []
    span = f"memories from {_EDGES[0]} to {_EDGES[-1] - 1}"
    for kind in map(str, dataset["kind"].values):
        parts = [table.sel(kind=kind, of=of).values for of in ("hidden", "slope")]
        seen = np.isfinite(parts[0])
        source = "(expected)" if kind == "whole GRU" else "(Figure 15)"
        why = "" if KINDS[kind].simple else f"; a tanh alone leaves {_tanh_leaves():.2g} of them"
        verdicts.append(
            Verdict(
                f"{kind}: hidden states and their slopes in the bias of the gate have the sizes of "
                f"the linear theory {source}",
                f"mean squares {_range(parts[0][seen])} and {_range(parts[1][seen])} times the "
                f"predicted ones, {span}{why}",
                bool(all(np.all(near(part[seen], 1, _WITHIN)) for part in parts))
                if seen.any()
                else None,
            )
        )
    apart = dataset["printed"].values / dataset["predicted"].sel(of="slope").values
    memory = dataset["memory"].values
    verdicts.append(
        Verdict(
            "the formula for slopes in the public notebook of Figure 15",
            f"{apart[0]:.2f} times the mean square at a memory of {memory[0]:.0f}, "
            f"{apart[-1]:.2f} times at {memory[-1]:.0f}",
            bool(np.allclose(apart, 1, atol=0.05)),
        )
    )
    return verdicts + _judge_jacobians(dataset)


def _tanh_leaves() -> float:
    """Which share of the mean square of candidates of a whole GRU a tanh leaves."""
    places, weights = np.polynomial.hermite_e.hermegauss(60)
    variance = 2 * (WHITE + SLOW)
    squares = np.tanh(np.sqrt(variance) * places) ** 2
    return float(weights @ squares / np.sum(weights) / variance)


def _range(values: np.ndarray) -> str:
    return f"{np.min(values):.2g} to {np.max(values):.2g}" if values.size else "not seen"


def _judge_jacobians(dataset: "xr.Dataset") -> list[Verdict]:
    """Whether Jacobians of GRUs are diagonal."""
    cell = lambda gates, what: dataset["jacobian"].sel(gates=gates, what=what)
    constant = [name for name in JACOBIANS if name.startswith("constant")]
    both = [name for name in JACOBIANS if name.startswith("both")]
    wild = "hidden x 3, to 16"
    worst = max(float(cell(name, "largest").max()) for name in constant)
    # How large entries become, beside those on the diagonal after one step.
    entries = {
        name: float(cell(name, "others").max() / cell(name, "diagonal")[0])
        for name in (*both, wild)
    }
    share = [
        float(cell(name, "share").sel(time=slice(1, JACOBIANS[name].longest)).min())
        for name in both
    ]
    usual = [entries[name] for name in both]
    return [
        Verdict(
            "Figure 14: with constant gates the Jacobian is diagonal",
            f"largest entry off the diagonal {worst:.2g}",
            worst == 0,
        ),
        Verdict(
            "Figure 14: with gates that see inputs and hidden state, entries off the diagonal stay "
            "small",
            f"root mean square at most {listed(usual)} of that on the diagonal after one step, for "
            "memories to 1, 16 and 256",
            max(usual) < _SMALL,
        ),
        Verdict(
            "Figure 14: such a GRU is nearly a diagonal network",
            f"the diagonal has {listed(share)} or more of the sum of squares of all entries, up to "
            f"that many steps; the others are {dataset.attrs['width'] - 1} times as many",
            bool(min(share) > 0.5),
        ),
        Verdict(
            "Figure 14: with threefold weights from the hidden state to the gates they grow",
            f"to {entries[wild]:.2g} of the diagonal after one step, from {usual[1]:.2g}",
            entries[wild] > 2 * usual[1],
        ),
    ]


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Mean squares of hidden states at the start, and of their slopes in the bias of the update
    gate, against the memory that this bias sets, beside the linear theory (grey; dotted as the
    public notebook prints it); a whole GRU is divided by 2, by which its candidates are larger. On
    the right, entries of the Jacobian from the start to a later step, root mean squares on the
    diagonal (lines with markers) and off it (dotted)."""
    needed = {"square": ["kind", "seed", "bin", "of"], "jacobian": ["gates", "time", "what"]}
    check_dataset("dataset", dataset, needed, "the reproduction z24-gates")
    units = dataset["units"].sum("seed")
    with drawing(7.6, 3.0) as figure:
        hidden, slopes, entries = figure.subplots(1, 3)
        for axes, of, words in (
            (hidden, "hidden", "mean square of the state"),
            (slopes, "slope", "mean square of the slope"),
        ):
            values = dataset["square"].sum("seed").sel(of=of) / units
            for k, kind in enumerate(map(str, dataset["kind"].values)):
                own = values.sel(kind=kind) / (1 if KINDS[kind].simple else 2)
                axes.loglog(dataset["centre"], own, label=kind, **look(k))
            axes.loglog(dataset["memory"], dataset["predicted"].sel(of=of), color="0.5")
            axes.set(xlabel="memory of the gate (steps)", ylabel=words)
        slopes.loglog(dataset["memory"], dataset["printed"], color="0.5", ls=":")
        hidden.set_ylim(bottom=hidden.get_ylim()[0] / 12)
        hidden.legend(
            handles=[*hidden.get_legend_handles_labels()[0], explain("theory")], loc="lower left"
        )
        for k, gates in enumerate(("constant, to 16", "both, to 16", "hidden x 3, to 16")):
            own = look(k, markevery=[0, 1, 3, 7, 15, 31, 63])
            table = dataset["jacobian"].sel(gates=gates)
            times = dataset["time"].values[:100]
            entries.semilogx(times, table.sel(what="diagonal")[:100], label=gates, **own)
            entries.semilogx(times, table.sel(what="others")[:100], color=own["color"], ls=":")
        entries.set(xlabel="steps", ylabel="entry of the Jacobian")
        entries.legend()
    return figure


REPRODUCTION = Reproduction(
    name="z24-gates",
    title="GRUs at the start of training, against the theory of linear recurrent units",
    source="Zucchet, Orvieto, Recurrent neural networks: vanishing and exploding gradients are not "
    "the end of the story, NeurIPS 2024, Figures 12, 14 and 15 and their public notebook",
    description="GRUs of 256 units whose update gates have biases for memories up to 256 (chrono), "
    "512 steps from a hidden state of 0. Published inputs are embeddings of words, whose "
    "autocovariance Figure 12 fits by a white part of 0.332 and one of 0.043 times 0.997 to the "
    "lag; here they are Gaussian with exactly that. Candidates are linear in the inputs, as "
    "published, and those of a whole GRU are not. The theory is that of h = l h + (1 - l) x with "
    "l the sigmoid of the bias, without a beginning. Mean squares over 20 networks, in bins of the "
    f"memory, agree within a factor of {_WITHIN:g}.",
    run=run,
    check=check,
    plot=plot,
)
