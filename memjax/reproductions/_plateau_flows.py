from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import check_dataset, shown
from .._lazy import matplotlib, xr
from ..flows import AbstractFlow, Adam, GradientFlow, HeavyBall, Nesterov
from ..losses import AbstractLoss, WhiteNoiseLoss
from ..models import DiagonalLinearRNN
from ..numerics import fit_line
from ..plateaus import on_plateau, OUTCOMES, plateau_asymptotics, RelativeLossDrop
from ..sweeps import sweep
from ..targets import AbstractKernel, ExponentialSum, GaussianBump
from ..viz import drawing, look, mark_stopped, MEMORY, TIME
from ._base import as_positives, check_known, Reproduction, Verdict, whole

GRADIENT = "gradient flow"
BALL = "heavy ball, friction 4"
FREE = "heavy ball, no friction"
NESTEROV = "Nesterov"
ADAM = "Adam, epsilon 1e-8"
COARSE = "Adam, epsilon 1e-3"

_FRICTION = 4.0
_EPSILON = {ADAM: 1e-8, COARSE: 1e-3}
SILENT_RATE = 0.6
DROP = 0.02

FLOWS: dict[str, Callable[[AbstractLoss], AbstractFlow]] = {
    GRADIENT: GradientFlow,
    BALL: lambda loss: HeavyBall(loss, _FRICTION),
    FREE: lambda loss: HeavyBall(loss, 0.0),
    NESTEROV: Nesterov,
    ADAM: lambda loss: Adam(loss, _EPSILON[ADAM]),
    COARSE: lambda loss: Adam(loss, _EPSILON[COARSE]),
}

# Fast modes that oscillate on a plateau have to be followed. Nothing damps those of the ball
# without friction, and Nesterov's less and less. Adam's are damped by the average of its gradients,
# in 2 t_1, but where its gradients are as small as epsilon they oscillate at
# sqrt(curvature / (epsilon t_1)), about 1e5 for an epsilon of 1e-8: 1e5 steps at 1/omega = 32.
_LONGEST = {FREE: 20.0, ADAM: 24.0, NESTEROV: 28.0}
_MOST_STEPS = 2**15

# How far an exponent may be from what is expected of it, and a time.
_EXPONENT, _TIME = 0.05, 0.1


def run(
    progress: bool = True,
    *,
    memories: Sequence[float] = tuple(float(memory) for memory in range(8, 34, 2)),
    flows: Sequence[str] = tuple(FLOWS),
) -> "xr.Dataset":
    """Plateau times over `flow` and `omega`; memories that a flow was not asked for have the
    result -1."""
    check_known("flows", flows, FLOWS)
    if GRADIENT not in flows:
        raise ValueError(
            f"`flows` must hold {GRADIENT!r}, got {shown(tuple(flows))}; the others are compared "
            "with it."
        )
    every = as_positives("memories", memories)
    parts = []
    for group in _groups(flows):
        reach = _LONGEST.get(group[0], np.inf)
        axes = {"flow": group, "omega": 1 / every[every <= reach]}
        parts.append(whole(sweep(_build, axes, max_steps=_MOST_STEPS, progress=progress)))
    dataset = xr.concat(
        [part.reindex(omega=1 / every, fill_value=_fill(part)) for part in parts],
        "flow",
        combine_attrs="drop_conflicts",
        coords="minimal",
        compat="override",
    )
    dataset["asymptotics"].attrs = {"long_name": "asymptotic time of gradient flow"}
    memory = {"long_name": "memory 1/omega", "units": "clock"}
    return dataset.assign_coords(memory=("omega", every, memory)).sel(flow=list(flows))


def _groups(flows: Sequence[str]) -> list[list[str]]:
    """Flows that share a sweep: gradient flow has an engine of its own."""
    apart = [GRADIENT, *_LONGEST]
    groups = [[flow] for flow in flows if flow in apart]
    rest = [flow for flow in flows if flow not in apart]
    return [*groups, rest] if rest else groups


def _fill(part: "xr.Dataset") -> dict[Any, float]:
    return {name: np.nan if part[name].dtype.kind == "f" else -1 for name in part}


def target_at(omega: float | Array) -> AbstractKernel:
    """What is learnt: an exponential, and a bump at the memory 1/omega."""
    exponential = ExponentialSum(jnp.array([1.0]), jnp.array([1.0]))
    return exponential + GaussianBump(omega, 1.0, 0.5)


def plateau_at(omega: Array) -> tuple[AbstractLoss, DiagonalLinearRNN, RelativeLossDrop]:
    """The loss, the start on its plateau and the exit from it."""
    target = target_at(omega)
    start = on_plateau(target, jnp.array([SILENT_RATE]))
    return WhiteNoiseLoss(target), start, RelativeLossDrop(DROP)


def _build(flow: str, omega: Array) -> tuple:
    loss, start, exit = plateau_at(omega)
    record = {"asymptotics": plateau_asymptotics(target_at(omega), SILENT_RATE)}
    return FLOWS[flow](loss), start, exit, record


def check(dataset: "xr.Dataset") -> list[Verdict]:
    """The predictions beside the exponents and times of a dataset of `run`, gradient flow
    among them."""
    times = {str(flow): dataset["time"].sel(flow=flow).values for flow in dataset["flow"].values}
    memory = dataset["memory"].values
    base = times[GRADIENT]
    verdicts = [judge_growth(GRADIENT, memory, base, "L21, Theorem 5.1")]
    if BALL in times:
        ratio = _last(times[BALL] / base)
        verdicts.append(
            Verdict(
                f"heavy ball with friction {_FRICTION:g}: {_FRICTION:g} x gradient flow (expected)",
                f"{ratio:.3f} x at the longest memory",
                near(ratio, _FRICTION, _TIME),
            )
        )
    for flow in (FREE, NESTEROV):
        if flow in times:
            both = np.isfinite(times[flow]) & np.isfinite(base)
            slope, said = fit_exponent(memory, np.where(both, times[flow], np.nan))
            other, _ = fit_exponent(memory, np.where(both, base, np.nan))
            verdicts.append(
                Verdict(
                    f"{flow}: half the exponent of gradient flow (expected)",
                    f"{slope:.3f} beside {other:.3f} over {said}: {slope / other:.3f}",
                    near(slope / other, 0.5, _EXPONENT),
                )
            )
    for flow, epsilon in _EPSILON.items():
        if flow in times:
            verdicts += judge_adam(memory, base, times[flow], flow, epsilon)
    return verdicts


def judge_growth(name: str, memory: np.ndarray, time: np.ndarray, source: str) -> Verdict:
    """Whether the plateau grows as the theorem says, over the longest memories."""
    slope, said = fit_exponent(memory, time)
    return Verdict(
        f"{name}: plateaus grow at least as exp(c0/omega), c0 = {SILENT_RATE:g} ({source})",
        said if np.isnan(slope) else f"exponent {slope:.3f} over {said}",
        None if np.isnan(slope) else bool(slope >= SILENT_RATE),
    )


def judge_adam(
    memory: np.ndarray, base: np.ndarray, time: np.ndarray, flow: str, epsilon: float
) -> list[Verdict]:
    """Adam's plateau beside that of gradient flow: flat until the gradients are as small as
    epsilon, and then epsilon times as long."""
    seen = np.isfinite(time) & np.isfinite(base)
    memory, base, time = memory[seen], base[seen], time[seen]
    share = epsilon * base / time
    flat, cursed = share < 0.1, share > 0.5
    decided = flat.sum() > 1
    growth = time[flat].max() / time[flat].min() if decided else np.nan
    ratio = 1 / share[-1] if cursed.any() else np.nan
    turn = _crossing(memory, np.log(share) - np.log(0.5))
    expected, (slope, _) = -np.log(epsilon) / SILENT_RATE, fit_exponent(memory, base)
    return [
        Verdict(
            f"{flow}: flat while the gradients exceed epsilon (expected)",
            f"grows {growth:.2f}-fold from 1/omega = {memory[flat][0]:g} to {memory[flat][-1]:g}, "
            f"that of gradient flow {base[flat][-1] / base[flat][0]:.1e}-fold"
            if decided
            else "too few memories on the flat part",
            bool(growth < 2) if decided else None,
        ),
        Verdict(
            f"{flow}: then epsilon x gradient flow (expected)",
            f"{ratio:.3f} x at the longest memory" if cursed.any() else "not reached",
            near(ratio, 1.0, _TIME),
        ),
        Verdict(
            f"{flow}: the plateau returns at 1/omega = -ln(epsilon) / c0 = {expected:.1f} "
            "(expected)",
            f"half of it is there at {turn:.1f}; the exponent of gradient flow in place of c0 "
            f"would say {-np.log(epsilon) / slope:.1f}"
            if np.isfinite(turn)
            else "not reached",
            near(turn / expected, 1.0, _TIME),
        ),
    ]


def fit_exponent(memory: np.ndarray, time: np.ndarray) -> tuple[float, str]:
    """The slope of log time against memory over the longest third that was measured, at least
    three, and which these are in words."""
    seen = np.isfinite(time)
    count = max(3, int(np.ceil(seen.sum() / 3)))
    if seen.sum() < count:
        return np.nan, f"less than {count} memories"
    memory, time = memory[seen][-count:], time[seen][-count:]
    said = f"the {count} longest memories, {memory[0]:g} to {memory[-1]:g}"
    return fit_line(memory, np.log(time)).slope, said


def _crossing(memory: np.ndarray, height: np.ndarray) -> float:
    """Where a growing function first passes zero."""
    above = np.flatnonzero(height > 0)
    if above.size == 0 or above[0] == 0:
        return np.nan
    ends = slice(above[0] - 1, above[0] + 1)
    return float(np.interp(0.0, height[ends], memory[ends]))


def _last(values: np.ndarray) -> float:
    seen = np.isfinite(values)
    return float(values[seen][-1]) if seen.any() else np.nan


def near(value: float, expected: float, tolerance: float) -> bool | None:
    return None if np.isnan(value) else bool(abs(value / expected - 1) <= tolerance)


def plot(dataset: "xr.Dataset") -> "matplotlib.figure.Figure":
    """Plateau time on a log scale against the memory 1/omega, a line a flow.

    The dotted line is the asymptotic time of gradient flow for one silent mode
    ([`memjax.plateau_asymptotics`][]). Measurements that did not exit are marked at the time
    that they reached, with a cross.
    """
    needed = dict.fromkeys(("time", "time_reached", "result", "asymptotics"), ["flow", "omega"])
    check_dataset("dataset", dataset, needed, "the reproduction plateau-flows")
    memory = dataset["memory"].values
    with drawing(5.2, 4.0) as figure:
        axes, stopped = figure.subplots(), []
        for index, flow in enumerate(dataset["flow"].values):
            run, own = dataset.sel(flow=flow), look(index)
            axes.semilogy(memory, run["time"].values, label=str(flow), **own)
            others = ~np.isin(run["result"].values, (OUTCOMES.index("exited"), -1))
            reached = run["time_reached"].values[others]
            stopped = mark_stopped(axes, memory[others], reached, own) or stopped
        asymptotics = dataset["asymptotics"].max("flow")
        axes.semilogy(memory, asymptotics, ":", color="0.35", lw=1.4, label="gradient flow, theory")
        axes.set(xlabel=MEMORY, ylabel=TIME)
        handles = [*axes.get_legend_handles_labels()[0], *stopped]
        axes.legend(handles=handles, loc="upper left")
    return figure


REPRODUCTION = Reproduction(
    name="plateau-flows",
    title="Plateau time against memory for gradient flow, momentum and Adam",
    source="Li, Han, E, Li, ICLR 2021, Section 5, and what follows from it for other flows "
    "(theory, section 4)",
    description="The target is exp(-t) plus a Gaussian bump of width 0.5 at 1/omega. The start "
    "represents the exponential exactly and has one silent mode of rate 0.6; the plateau ends "
    "when the loss has fallen by 2 %. Exponents are slopes of log time over the longest third "
    "of the memories. They agree within 5 % of what is expected, ratios of times within 10 %.",
    run=run,
    check=check,
    plot=plot,
)
