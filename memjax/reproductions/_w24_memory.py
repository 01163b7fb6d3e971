from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

from .._checks import as_integers, check_dataset, check_integer
from .._lazy import matplotlib, xr
from ..memory import memory_decay
from ..models import S4Layer
from ..viz import drawing, look
from ._base import (
    check_integers,
    check_known,
    describe,
    each_cell,
    empty,
    Reproduction,
    Verdict,
)
from ._staged import uniform

# The RNN of two neurons of Figure 11, and its input map, which is not published.
PERIODIC_RECURRENT = np.array([[1.0, 1.0], [-4.0, -3.0]])
PERIODIC_INPUT = np.array([0.0, 1.0])
DISCRETE, RESIDUAL = "h' = s(W h + U x)", "h' = h + s(W h + U x)"

_MODES = 16
# The slowest channels of S4 forget over a thousand samples, so it is followed for longer.
SPACINGS = {"S4": 24}
# Below this share of the largest memory there is only what rounding leaves.
_FLOOR = 1e-11

# A layer from inputs of shape (times, width) to outputs of the same shape.
Layer = Callable[[np.ndarray], np.ndarray]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def make_rnn(width: int, rng: np.random.Generator) -> Layer:
    """A tanh RNN as PyTorch starts it."""
    drive, recurrent = (uniform(rng, width, width, width).astype(float) for _ in range(2))
    bias = uniform(rng, width, 2, width).astype(float).sum(axis=0)

    def respond(xs: np.ndarray) -> np.ndarray:
        hidden, outputs = np.zeros(width), []
        for x in xs:
            hidden = np.tanh(drive @ x + recurrent @ hidden + bias)
            outputs.append(hidden)
        return np.stack(outputs)

    return respond


def make_gru(width: int, rng: np.random.Generator) -> Layer:
    """A GRU as PyTorch starts it."""
    drive, recurrent = (uniform(rng, width, 3 * width, width).astype(float) for _ in range(2))
    inner, outer = (uniform(rng, width, 3 * width).astype(float) for _ in range(2))

    def respond(xs: np.ndarray) -> np.ndarray:
        hidden, outputs = np.zeros(width), []
        for x in xs:
            (r, z, n), (hr, hz, hn) = (
                np.split(part, 3) for part in (drive @ x + inner, recurrent @ hidden + outer)
            )
            reset, update = _sigmoid(r + hr), _sigmoid(z + hz)
            hidden = (1 - update) * np.tanh(n + reset * hn) + update * hidden
            outputs.append(hidden)
        return np.stack(outputs)

    return respond


def make_lstm(width: int, rng: np.random.Generator) -> Layer:
    """An LSTM as PyTorch starts it."""
    drive, recurrent = (uniform(rng, width, 4 * width, width).astype(float) for _ in range(2))
    bias = uniform(rng, width, 2, 4 * width).astype(float).sum(axis=0)

    def respond(xs: np.ndarray) -> np.ndarray:
        hidden, cell, outputs = np.zeros(width), np.zeros(width), []
        for x in xs:
            enter, forget, new, leave = np.split(drive @ x + recurrent @ hidden + bias, 4)
            cell = _sigmoid(forget) * cell + _sigmoid(enter) * np.tanh(new)
            hidden = _sigmoid(leave) * np.tanh(cell)
            outputs.append(hidden)
        return np.stack(outputs)

    return respond


@jax.jit
def _convolve(layer: S4Layer, xs: jax.Array) -> jax.Array:
    return layer.convolve(xs)


def make_s4(width: int, rng: np.random.Generator) -> Layer:
    """An S4 layer from HiPPO-LegS, steps between 0.001 and 0.1."""
    key = jax.random.key(int(rng.integers(2**31)))
    layer = S4Layer.init(width, _MODES, width, width, activation=jax.nn.gelu, key=key)
    return lambda xs: np.asarray(_convolve(layer, xs))


ARCHITECTURES: Mapping[str, Callable[[int, np.random.Generator], Layer]] = {
    "RNN": make_rnn,
    "GRU": make_gru,
    "LSTM": make_lstm,
    "S4": make_s4,
}


def respond(layers: Sequence[Layer], xs: np.ndarray) -> np.ndarray:
    """The outputs of layers on top of each other."""
    for layer in layers:
        xs = layer(xs)
    return xs


def step_memory(layers: Sequence[Layer], x: np.ndarray, times: int) -> np.ndarray:
    """How much the outputs still change, k samples after an input x was switched on, by Euclidean
    norm and relative to that of the input."""
    outputs = respond(layers, np.broadcast_to(x, (times + 1, x.size)))
    return np.linalg.norm(np.diff(outputs, axis=0), axis=1) / np.linalg.norm(x)


def tell_decay(memory: np.ndarray, spacing: int = 1) -> tuple[str, float]:
    """How a memory decays as far as it is above rounding, and the rate of its exponential fit."""
    times = spacing * np.arange(float(memory.size))
    decay = memory_decay((times, memory), floor=_FLOOR * float(memory.max()))
    return decay.verdict, float(decay.rate)


def periodic_outputs(kind: str, x: float, times: int) -> np.ndarray:
    """The hidden states of the RNN of Figure 11 with hardtanh after a constant input."""
    hidden, states = np.zeros(2), []
    for _ in range(times):
        moved = np.clip(PERIODIC_RECURRENT @ hidden + PERIODIC_INPUT * x, -1, 1)
        hidden = moved if kind == DISCRETE else hidden + moved
        states.append(hidden)
    return np.stack(states)


def find_period(states: np.ndarray, longest: int = 24) -> int:
    """The smallest period of the last half of a sequence of states, 0 if it has none."""
    late = states[len(states) // 2 :]
    for period in range(1, longest + 1):
        if np.max(np.abs(late[period:] - late[:-period])) < 1e-9:
            return period
    return 0


def run(
    progress: bool = True,
    *,
    architectures: Sequence[str] = tuple(ARCHITECTURES),
    layers: Sequence[int] = (1, 2, 3, 4),
    seeds: int = 5,
    width: int = 16,
    times: int = 1023,
) -> "xr.Dataset":
    """Memory functions over `architecture`, `layers` and `seed`, and of the periodic RNN."""
    check_known("architectures", architectures, ARCHITECTURES)
    layers = as_integers("layers", layers)
    check_integers(seeds=seeds, width=width)
    check_integer("times", times, 64)
    axes = {"architecture": list(architectures), "layers": list(layers), "seed": np.arange(seeds)}
    memory, rate = empty(axes, times), empty(axes)
    decay = np.full(rate.shape, "undecided", dtype="<U11")
    for cell, (name, count, seed) in each_cell(axes, "memory", progress):
        rng = np.random.default_rng((seed, count))
        model = [ARCHITECTURES[name](width, rng) for _ in range(count)]
        spacing = SPACINGS.get(name, 1)
        memory[cell] = step_memory(model, rng.normal(size=width), spacing * times)[::spacing]
        decay[cell], rate[cell] = tell_decay(memory[cell], spacing)
    kinds, inputs = [DISCRETE, RESIDUAL], [0.1, 1.0, 3.0]
    states = np.stack([[periodic_outputs(kind, x, times + 1) for x in inputs] for kind in kinds])
    periods = [[find_period(each) for each in row] for row in states]
    change = np.linalg.norm(np.diff(states, axis=2), axis=3) / np.asarray(inputs)[:, None]
    return xr.Dataset(
        describe({"memory": memory}, (*axes, "time"), {"memory": "memory for one step input"})
        | describe({"rate": rate}, tuple(axes), {"rate": "rate of the exponential fit"})
        | {
            "decay": (tuple(axes), decay),
            "spacing": (
                "architecture",
                [SPACINGS.get(name, 1) for name in architectures],
                {"long_name": "samples between two times"},
            ),
            "periodic": (("form", "input", "time"), change, {"long_name": "memory of Figure 11"}),
            "period": (("form", "input"), np.asarray(periods)),
            "result": (tuple(axes), np.zeros(rate.shape, np.int8)),
        },
        axes | {"time": np.arange(times), "form": kinds, "input": inputs},
        {"width": width},
    )


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The claims beside the memories of a dataset of `run`."""
    verdicts = []
    for name in map(str, dataset["architecture"].values):
        for count in map(int, dataset["layers"].values):
            cell = dataset.sel(architecture=name, layers=count)
            decays = list(map(str, cell["decay"].values))
            counts = ", ".join(f"{decays.count(d)} {d}" for d in dict.fromkeys(decays))
            told = [decay in ("exponential", "finite") for decay in decays if decay != "undecided"]
            agrees = None if 2 * len(told) <= len(decays) else bool(np.mean(told) > 0.5)
            verdicts.append(
                Verdict(
                    f"{name}, {count} layer{'s' * (count > 1)}: exponential memory (W24)",
                    f"{counts}; median rate {float(cell['rate'].median()):.2g}",
                    agrees,
                )
            )
    period = dataset["period"]
    late = dataset["periodic"].isel(time=slice(-48, None)).max("time")
    for form, expected in ((DISCRETE, True), (RESIDUAL, None)):
        found = period.sel(form=form)
        described = "; ".join(
            f"x = {float(x):g}: "
            + (f"period {int(found.sel(input=x))}" if int(found.sel(input=x)) else "no period")
            + f", memory {float(late.sel(form=form, input=x)):.2g}"
            for x in dataset["input"].values
        )
        periodic = bool((found > 1).any()) and bool((late.sel(form=form) > 1e-3).any())
        grows = bool((late.sel(form=form) > 1e-3).any())
        verdicts.append(
            Verdict(
                f"W = [[1, 1], [-4, -3]], {form}: "
                + ("periodic, its memory does not decay (W24)" if expected else
                   "its memory does not decay either (expected)"),
                f"at the last of {dataset['time'].size} samples: {described}",
                periodic if expected else grows,
            )
        )  # fmt: skip
    return verdicts


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Memory against time on log-log axes: a panel an architecture, a line a number of layers; and
    the RNN of two neurons that is periodic.

    Lines are medians over seeds of the memory over its largest value. In the last panel a line is
    a form of the recursion at the input 1.
    """
    needed = {
        "memory": ["architecture", "layers", "seed", "time"],
        "spacing": ["architecture"],
        "periodic": ["form", "input", "time"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction w24-memory")
    names, times = dataset["architecture"].values, dataset["time"].values + 1
    marked = list(np.unique(np.geomspace(1, times.size, 9).astype(int)) - 1)
    with drawing(0.8 + 2.1 * (len(names) + 1), 2.9) as figure:
        grid = figure.subplots(1, len(names) + 1, squeeze=False)[0]
        for axes, name in zip(grid, names, strict=False):
            spacing = int(dataset["spacing"].sel(architecture=name))
            for index, count in enumerate(dataset["layers"].values):
                memory = dataset["memory"].sel(architecture=name, layers=count)
                share = (memory / memory.max("time")).median("seed").values
                own = look(index, ms=4, lw=1.0, markevery=marked)
                label = f"{count} layer{'s' if count > 1 else ''}"
                axes.loglog(
                    spacing * times, np.where(share > _FLOOR, share, np.nan), label=label, **own
                )
            axes.set(title=str(name), xlabel="time (samples)")
            axes.set_ylim(1e-10, 2)
        for index, form in enumerate(dataset["form"].values):
            own = look(index, ms=3, lw=1.0)
            line = dataset["periodic"].sel(form=form, input=1.0).values[:24]
            grid[-1].plot(times[:24], line, label=str(form), **own)
        grid[-1].set(title="W = [[1, 1], [-4, -3]]", xlabel="time (samples)")
        grid[-1].set_ylim(0, 3.6)
        grid[-1].legend(loc="upper right", fontsize="x-small")
        grid[0].set_ylabel("memory / largest value")
        grid[-1].set_ylabel("memory")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper center", ncols=len(handles))
    return figure


REPRODUCTION = Reproduction(
    name="w24-memory",
    title="Memory of RNN, GRU, LSTM and S4 with one to four layers, and of a periodic RNN",
    source="Wang, Li, Li, ICLR 2024, Figures 10 and 11, and its public code",
    description="Random models of 16 neurons a layer, as PyTorch starts them, and S4 layers from "
    "HiPPO-LegS with 32 states and steps between 0.001 and 0.1. As in the public code the memory "
    "is how much the outputs change from one sample to the next after a constant random input was "
    "switched on, here for 5 models and inputs each over 1,023 samples, of S4 over 24,552. It is "
    "judged on its tail above rounding. The RNN of two neurons with W = [[1, 1], [-4, -3]] and "
    "hardtanh is run from rest with U = (0, 1), which is not published, in discrete form and in "
    "the residual form of the paper's theory.",
    run=run,
    check=check,
    plot=plot,
)
