from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import optax
from jaxtyping import Array

from .._checks import check_dataset, check_integer
from .._lazy import matplotlib, xr
from ..flows import AbstractFlow, GradientFlow, HeavyBall, OptaxTraining
from ..losses import AbstractLoss
from ..plateaus import EXITED
from ..sweeps import sweep
from ..viz import drawing, look, mark_stopped, MEMORY
from ._base import as_positives, check_known, Reproduction, Verdict, whole
from ._plateau_flows import DROP, judge_adam, judge_growth, plateau_at, SILENT_RATE

DESCENT, MOMENTUM, ADAM = "gradient descent", "momentum", "Adam"

_RATE, _BETA, _ADAM_RATE, _EPSILON = 0.1, 0.9, 1e-3, 1e-8


class Optimiser(NamedTuple):
    """An optimiser, and the flow that its updates follow for small learning rates.

    An update counts for `time_step` of the flow's training time. Memories beyond `longest` would
    take more than some 100,000 updates. Adam is compared with epsilon times gradient flow.
    """

    make: Callable[[], optax.GradientTransformation]
    time_step: float
    flow: Callable[[AbstractLoss], AbstractFlow] | None
    longest: float


OPTIMISERS: dict[str, Optimiser] = {
    DESCENT: Optimiser(lambda: optax.sgd(_RATE), _RATE, GradientFlow, 16.0),
    # The velocity is measured in units in which the weights move by it times the time step.
    MOMENTUM: Optimiser(
        lambda: optax.sgd(_RATE, momentum=_BETA),
        _RATE**0.5,
        lambda loss: HeavyBall(loss, (1 - _BETA) / _RATE**0.5),
        20.0,
    ),
    ADAM: Optimiser(
        lambda: optax.adam(_ADAM_RATE, eps=_EPSILON),
        _ADAM_RATE,
        None,
        30.0,
    ),
}

# How far the training time of the updates may be from that of the flow.
_NEAR = 0.1


def run(
    progress: bool = True,
    *,
    memories: Sequence[float] = tuple(float(memory) for memory in range(6, 32, 2)),
    optimisers: Sequence[str] = tuple(OPTIMISERS),
    max_updates: int = 2_000_000,
) -> "xr.Dataset":
    """Numbers of updates over `optimiser` and `omega`, with the training time of the `flow` beside
    them; memories that an optimiser was not asked for have the result -1."""
    check_known("optimisers", optimisers, OPTIMISERS)
    every = as_positives("memories", memories)
    check_integer("max_updates", max_updates)
    omegas = 1 / every
    gradient = _sweep(GradientFlow, omegas, progress)
    shape = len(optimisers), every.size
    updates, reached, flow_time = np.full((3, *shape), np.nan)
    results = np.full(shape, -1, np.int8)
    for i, name in enumerate(optimisers):
        one = OPTIMISERS[name]
        asked = every <= one.longest
        if not asked.any():
            continue
        if one.flow is None:
            flow_time[i] = _EPSILON * gradient["time"].values
        elif one.flow is GradientFlow:
            flow_time[i] = gradient["time"].values
        else:
            flow_time[i, asked] = _sweep(one.flow, omegas[asked], progress)["time"].values
        train = lambda loss, one=one: OptaxTraining(loss, one.make())
        found = _sweep(train, omegas[asked], progress, max_steps=max_updates)
        updates[i, asked], results[i, asked] = found["time"].values, found["result"].values
        reached[i, asked] = found["time_reached"].values
    dims = "optimiser", "omega"
    steps = [OPTIMISERS[name].time_step for name in optimisers]
    return xr.Dataset(
        {
            "updates": (dims, updates, {"long_name": "updates until the exit"}),
            "updates_reached": (dims, reached, {"long_name": "updates done"}),
            "flow_time": (
                dims,
                flow_time,
                {"long_name": "training time of the flow; Adam: epsilon x gradient flow"},
            ),
            "gradient_flow_time": ("omega", gradient["time"].values),
            "time_step": ("optimiser", steps, {"long_name": "training time of an update"}),
            "result": (dims, results, {"long_name": "how the measurement ended"}),
        },
        {
            "optimiser": list(optimisers),
            "omega": omegas,
            "memory": ("omega", every, {"long_name": "memory 1/omega", "units": "clock"}),
        },
    )


def _sweep(
    train: Callable[[AbstractLoss], Any], omegas: np.ndarray, progress: bool, **options: Any
) -> "xr.Dataset":
    def build(omega: Array) -> tuple:
        loss, start, exit = plateau_at(omega)
        return train(loss), start, exit

    # A flow that float64 does not resolve is not compared; to repeat it takes longer than all else.
    axes = {"omega": omegas}
    return whole(sweep(build, axes, precision="float64", progress=progress, **options))


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The statements beside the numbers of updates of a dataset of `run`."""
    verdicts = []
    memory, base = dataset["memory"].values, dataset["gradient_flow_time"].values
    for name in map(str, dataset["optimiser"].values):
        cell = dataset.sel(optimiser=name)
        updates, flow = cell["updates"].values, cell["flow_time"].values
        time = updates * float(cell["time_step"])
        grown = updates
        if name == ADAM:
            # Before, its plateau is flat: see the verdicts below.
            grown = np.where(_EPSILON * base > 0.5 * time, updates, np.nan)
        source = "L21, Theorem 5.1" if name == DESCENT else "L21, experiments"
        verdicts.append(judge_growth(name, memory, grown, source))
        if name != ADAM:
            verdicts.append(_judge_time(name, memory, time, flow))
        else:
            verdicts += judge_adam(memory, base, time, f"{name}, epsilon {_EPSILON:g}", _EPSILON)
    return verdicts


_FLOW_NAMES = {
    DESCENT: "gradient flow",
    MOMENTUM: f"the heavy ball of friction {(1 - _BETA) / _RATE**0.5:.3g}",
    ADAM: "epsilon x gradient flow",
}


def _judge_time(name: str, memory: np.ndarray, time: np.ndarray, flow: np.ndarray) -> Verdict:
    ratio = time / flow
    seen = np.isfinite(ratio)
    said, agrees = "no memory was left by both", None
    if seen.any():
        ratio, memory, time = ratio[seen], memory[seen], time[seen]
        step = OPTIMISERS[name].time_step
        said = (
            f"{ratio.min():.3f} to {ratio.max():.3f} times it, {ratio[-1]:.3f} times at the "
            f"longest memory, {memory[-1]:g}; {time[0] / step:.3g} updates at {memory[0]:g} and "
            f"{time[-1] / step:.3g} at {memory[-1]:g}"
        )
        agrees = bool(np.all(np.abs(ratio - 1) <= _NEAR))
    return Verdict(f"{name}: the plateau of {_FLOW_NAMES[name]} (expected)", said, agrees)


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Updates until the plateau is left, on a log scale, against the memory 1/omega.

    Markers are the optimisers, lines of the same colour the flows that they follow, in updates of
    theirs; for Adam, epsilon times gradient flow. Markers with a cross are at the last update of
    what did not exit.
    """
    needed = {
        **dict.fromkeys(("updates", "updates_reached", "flow_time", "result"), _DIMS),
        "time_step": ["optimiser"],
    }
    check_dataset("dataset", dataset, needed, "the reproduction l21-optimisers")
    memory = dataset["memory"].values
    with drawing(5.2, 4.0) as figure:
        axes, stopped = figure.subplots(), []
        for index, name in enumerate(map(str, dataset["optimiser"].values)):
            cell, own = dataset.sel(optimiser=name), look(index)
            flow = cell["flow_time"].values / float(cell["time_step"])
            style = {"color": own["color"], "ls": own["ls"], "lw": 1.1}
            flow = np.where(flow >= 1, flow, np.nan)
            axes.semilogy(memory, flow, label=f"{name}: {_FLOW_NAMES[name]}", **style)
            marks = own | {"ls": ""}
            axes.semilogy(memory, cell["updates"].values, label=f"{name}: updates", **marks)
            others = ~np.isin(cell["result"].values, (EXITED, -1))
            reached = cell["updates_reached"].values[others]
            stopped = mark_stopped(axes, memory[others], reached, own) or stopped
        axes.set(xlabel=MEMORY, ylabel="updates until the loss has fallen by 2 %")
        handles = [*axes.get_legend_handles_labels()[0], *stopped]
        axes.legend(handles=handles, loc="upper left")
    return figure


_DIMS = ["optimiser", "omega"]

REPRODUCTION = Reproduction(
    name="l21-optimisers",
    title="Updates of gradient descent, momentum and Adam on a plateau against memory",
    source="Li, Han, E, Li, ICLR 2021, Section 5; JMLR 23, 2022",
    description="Published: the form of the target, what is learnt at the start plus a part at "
    "1/omega; a start on the plateau; the time until the loss has fallen. The numbers of the "
    "published experiments could not be found; these are chosen. The target is exp(-t) plus a "
    "Gaussian bump of width 0.5, the start represents the exponential exactly and has one silent "
    f"mode of rate {SILENT_RATE:g}, and the plateau ends when the loss, under white noise and over "
    f"all times, has fallen by {DROP:.0%}. Learning rates: {_RATE:g} for gradient descent and for "
    f"momentum ({_BETA:g}), {_ADAM_RATE:g} for Adam (0.9, 0.999, epsilon {_EPSILON:g}). Exponents "
    "are slopes of the log of updates over the longest third of the memories, for Adam of those on "
    "which its plateau has returned. Times agree within 10 %.",
    run=run,
    check=check,
    plot=plot,
)
