from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import check_dataset
from .._lazy import matplotlib, tqdm, xr
from ..plateaus import DIVERGED, MAX_TIME_REACHED
from ..viz import drawing, look
from ._base import (
    as_positives,
    check_integers,
    check_known,
    empty,
    near,
    Reproduction,
    Verdict,
)

MEMORIES = (1.0, 10**0.5, 10.0, 10**1.5, 100.0)
# Which weights of which network are looked at, and by how much the mean square of the gradient
# grows from a memory of 1 to one of 100: from the table that the public notebook prints, means over
# its four layers.
GROWTH: Mapping[tuple[str, str], float] = {
    ("complex", "eigenvalues"): 7.8e15,
    ("complex", "others"): 1.2e12,
    ("LRU", "moduli"): 5.2,
    ("LRU", "phases"): 7.0e3,
    ("LRU", "others"): 0.7,
}
NETWORKS = ("complex", "LRU", "GRU")

_LAYERS, _WITHIN, _DECADES = 4, 10.0, 100.0
_FLAT = 10.0

Weights = dict[str, Any]


# --- Networks -------------------------------------------------------------------------------------


def _dense(rng: np.random.Generator, inputs: int, outputs: int, gain: float = 1.0) -> np.ndarray:
    return rng.normal(size=(inputs, outputs)) * np.sqrt(gain / inputs)


def _make_recurrence(
    kind: str, memory: float, width: int, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """A recurrent part whose time constants are between the memory and twice that."""
    if kind == "GRU":
        gates = {name: _dense(rng, width, width, 2.0) for name in ("reset", "update", "new")}
        turns = {}
        for name in gates:
            turns[f"{name}_back"] = np.linalg.qr(rng.normal(size=(width, width)))[0]
        biases = np.log(rng.uniform(memory, 2 * memory, width))
        return {"hold": biases, "hold_new": np.zeros(width)} | gates | turns
    low, high = 1 - 1 / memory, 1 - 1 / (2 * memory)
    moduli = np.sqrt(rng.uniform(low**2, high**2, width))
    phases = rng.uniform(0, 2 * np.pi, width)
    complex_normal = lambda fan: rng.normal(size=(2, width, width)) / np.sqrt(fan)
    weights = {"drive": complex_normal(width), "readout": complex_normal(width)}
    weights["skip"] = rng.normal(size=(width, width)) / np.sqrt(width)
    if kind == "complex":
        weights["eigenvalues"] = moduli * np.stack([np.cos(phases), np.sin(phases)])
    else:
        weights["moduli"], weights["phases"] = np.log(-np.log(moduli)), np.log(phases)
        weights["log_scale"] = 0.5 * np.log(1 - moduli**2)
    return weights


def make_network(kind: str, memory: float, width: int, seed: int) -> Weights:
    """The weights of four layers, an encoder and a decoder, as the public code draws them."""
    rng = np.random.default_rng([seed, 5])
    layers = []
    for _ in range(_LAYERS):
        recurrent = _make_recurrence(kind, memory, width, rng)
        layers.append({"recurrent": recurrent, "out": [_dense(rng, width, width) for _ in "ab"]})
    return {"ends": [_dense(rng, width, width) for _ in "ab"], "layers": layers}


def _recur(weights: Weights, xs: Float[Array, "times width"]) -> Float[Array, "times width"]:
    if "hold" in weights:

        def step(hidden: Array, x: Array) -> tuple[Array, Array]:
            (reset, back), (update, kept), (new, turned) = (
                (x @ weights[name], hidden @ weights[f"{name}_back"])
                for name in ("reset", "update", "new")
            )
            hold = jax.nn.sigmoid(update + kept + weights["hold"])
            turned = jax.nn.sigmoid(reset + back) * (turned + weights["hold_new"])
            hidden = (1 - hold) * jnp.tanh(new + turned) + hold * hidden
            return hidden, hidden

        return jax.lax.scan(step, jnp.zeros(xs.shape[1]), xs)[1]
    if "eigenvalues" in weights:
        values = jax.lax.complex(*weights["eigenvalues"])
        scale = jnp.ones(())
    else:
        values = jnp.exp(jax.lax.complex(-jnp.exp(weights["moduli"]), jnp.exp(weights["phases"])))
        scale = jnp.exp(weights["log_scale"])
    driven = scale * (xs @ jax.lax.complex(*weights["drive"]).T)
    compose = lambda early, late: (early[0] * late[0], late[0] * early[1] + late[1])
    powers = jnp.broadcast_to(values, driven.shape)
    _, states = jax.lax.associative_scan(compose, (powers, driven))
    return jnp.real(states @ jax.lax.complex(*weights["readout"]).T) + xs @ weights["skip"].T


def follow(weights: Weights, xs: Float[Array, "times width"]) -> tuple[Array, list[Array]]:
    """The outputs of a network, and those of its layers."""
    found = xs @ weights["ends"][0]
    kept = []
    for layer in weights["layers"]:
        inner = jax.nn.gelu(_recur(layer["recurrent"], found))
        first, second = layer["out"]
        found = found + (inner @ first) * jax.nn.sigmoid(inner @ second)
        kept.append(found)
    return found @ weights["ends"][1], kept


def _loss(weights: Weights, xs: Float[Array, "batch times width"]) -> tuple[Array, Array]:
    """Half the mean squared error of telling the input before, and the sizes of the layers."""
    outputs, kept = jax.vmap(lambda x: follow(weights, x))(xs)
    sizes = jnp.stack([jnp.mean(layer**2) for layer in kept])
    return 0.5 * jnp.mean((outputs[:, 1:] - xs[:, :-1]) ** 2), sizes


@jax.jit
def measure(weights: Weights, xs: Float[Array, "batch times width"]) -> tuple[Array, Weights]:
    """The sizes of the layers, and the mean square of the gradient in every array of weights."""
    (_, sizes), slopes = jax.value_and_grad(_loss, has_aux=True)(weights, xs)
    return sizes, jax.tree.map(lambda leaf: jnp.mean(leaf**2), slopes)


def parts_of(kind: str) -> tuple[str, ...]:
    """The recurrent weights that are told from the others."""
    names = tuple(part for network, part in GROWTH if network == kind and part != "others")
    return names or ("recurrent",)


def _share(kind: str, weights: Weights, slopes: Weights) -> list[float]:
    """The mean square of the gradient over all layers, in each of the parts and in the others."""
    named = parts_of(kind)
    sums = {name: [0.0, 0] for name in (*named, "others")}
    for layer, sizes in zip(slopes["layers"], weights["layers"], strict=True):
        for name, value in layer["recurrent"].items():
            count = sizes["recurrent"][name].size
            place = name if name in named else "others"
            if kind == "GRU":
                place = "recurrent" if name.endswith("_back") or name.startswith("hold") else place
            sums[place][0] += count * float(value)
            sums[place][1] += count
        for value, matrix in zip(layer["out"], sizes["out"], strict=True):
            sums["others"][0] += matrix.size * float(value)
            sums["others"][1] += matrix.size
    return [total / count for total, count in sums.values()]


# --- The measurement ------------------------------------------------------------------------------


def run(
    progress: bool = True,
    *,
    networks: Sequence[str] = NETWORKS,
    memories: Sequence[float] = MEMORIES,
    width: int = 64,
    times: int = 512,
    seeds: int = 4,
    batch: int = 16,
) -> "xr.Dataset":
    """Mean squares of layers and of gradients over `network`, `memory` and `seed`."""
    check_known("networks", networks, NETWORKS)
    memories = as_positives("memories", memories).tolist()
    if min(memories) < 1:
        raise ValueError(f"`memories` must be at least 1, got {min(memories):g}; pass larger ones.")
    check_integers(width=width, times=times, seeds=seeds, batch=batch)
    axes = {"network": list(networks), "memory": memories, "seed": np.arange(seeds)}
    sizes, slopes = empty(axes, _LAYERS), empty(axes, 3)
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(batch, times, width)))
    with tqdm.tqdm(total=len(networks) * len(memories), unit="cell", disable=not progress) as bar:
        for i, kind in enumerate(networks):
            for j, memory in enumerate(memories):
                for k in range(seeds):
                    weights = jax.tree.map(jnp.asarray, make_network(kind, memory, width, k))
                    sizes[i, j, k], found = measure(weights, xs)
                    shares = _share(kind, weights, found)
                    slopes[i, j, k, : len(shares)] = shares
                bar.update()
    names = [[*parts_of(kind), "others", ""][:3] for kind in networks]
    good = np.all(np.isfinite(sizes), axis=3)
    return xr.Dataset(
        {
            "size": ((*axes, "layer"), sizes, {"long_name": "mean square of the layer"}),
            "slope": ((*axes, "part"), slopes, {"long_name": "mean square of the gradient"}),
            "part_name": (("network", "part"), names),
        }
        | {"result": (tuple(axes), np.where(good, MAX_TIME_REACHED, DIVERGED))},
        axes | {"layer": np.arange(1, _LAYERS + 1)},
        {"width": width, "times": times},
    )


def growth_of(dataset: "xr.Dataset", network: str, part: str) -> float:
    """How much the gradient in some weights grows from the shortest to the longest memory."""
    cell = dataset.sel(network=network)
    names = [str(name) for name in cell["part_name"].values]
    median = cell["slope"].isel(part=names.index(part)).median("seed").sortby("memory").values
    return float(median[-1] / median[0])


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """How signals and gradients depend on the memory at the start of training."""
    verdicts = []
    names = [str(name) for name in dataset["network"].values]
    memory = dataset["memory"].values
    span = f"from a memory of {memory.min():g} to {memory.max():g}"
    for name in names:
        last = dataset["size"].sel(network=name).isel(layer=-1)
        size = last.median("seed").sortby("memory").values
        ratio = float(size[-1] / size[0])
        explodes = name == "complex"
        says = "grows with the memory" if explodes else "does not depend on the memory"
        verdicts.append(
            Verdict(
                f"{name}: the signal in the last layer {says} (Z24)",
                f"{ratio:.2g} times {span}",
                bool(ratio > 100) if explodes else bool(1 / _FLAT < ratio < _FLAT),
            )
        )
    for (name, part), published in GROWTH.items():
        if name in names and memory.min() == 1 and memory.max() == 100:
            found = growth_of(dataset, name, part)
            within = _DECADES if published > 1e6 else _WITHIN
            verdicts.append(
                Verdict(
                    f"{name}, gradient in the {part}: grows {published:.2g} times",
                    f"{found:.2g} times",
                    bool(near(found, published, within)),
                )
            )
    if "GRU" in names:
        found = growth_of(dataset, "GRU", "recurrent")
        verdicts.append(
            Verdict(
                "GRU, gradient in the recurrent weights: does not grow (Z24)",
                f"{found:.2g} times {span}",
                found < _FLAT,
            )
        )
    return verdicts


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Left, the mean square of the first and of the last layer against the memory at the start;
    right, that of the gradient in the recurrent weights and in the others. Medians over seeds."""
    dims = ["network", "memory", "seed"]
    needed = {"size": [*dims, "layer"], "slope": [*dims, "part"]}
    check_dataset("dataset", dataset, needed, "the reproduction z24-signal")
    with drawing(7.6, 3.3) as figure:
        left, right = figure.subplots(1, 2)
        index = 0
        for place, name in enumerate(map(str, dataset["network"].values)):
            cell = dataset.sel(network=name).median("seed", keep_attrs=True)
            for layer, style in ((0, ":"), (-1, "-")):
                label = f"{name}, layer {int(dataset['layer'].values[layer])}"
                own = look(place, ls=style)
                left.loglog(dataset["memory"], cell["size"].isel(layer=layer), label=label, **own)
            for part, named in enumerate(map(str, dataset["part_name"].sel(network=name).values)):
                if named:
                    slope = cell["slope"].isel(part=part)
                    label = f"{name}, {named}"
                    right.loglog(dataset["memory"], slope, label=label, **look(index))
                    index += 1
        left.set(xlabel="memory at the start (steps)", ylabel="mean square of the signal")
        right.set(xlabel="memory at the start (steps)", ylabel="mean square of the gradient")
        left.legend()
        right.legend()
    return figure


REPRODUCTION = Reproduction(
    name="z24-signal",
    title="Signals and gradients in deep recurrent networks at the start, against the memory",
    source="Zucchet, Orvieto, Recurrent neural networks: vanishing and exploding gradients are not "
    "the end of the story, NeurIPS 2024, Figures 5 and 13 and the table in its public notebook",
    description="Networks of four layers (recurrent part, gelu, gated linear unit, skip "
    "connection; no normalisation), with complex eigenvalues as weights, as LRU, or as GRU with "
    "biases for a memory (chrono). Time constants are between the memory and twice that. Inputs "
    "are 16 sequences of 512 standard normal vectors; published are embeddings of a language model "
    "and a width of 256, here 64: sizes cannot be compared, growth with the memory can. Medians "
    f"over 4 seeds. Growth agrees within a factor of {_WITHIN:g}, and within {_DECADES:g} where it "
    "is over six decades.",
    run=run,
    check=check,
    plot=plot,
)
