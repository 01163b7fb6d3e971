"""A diagnosis in plain words."""

import math
import textwrap
from typing import Any

import numpy as np

from ._signal import rank_effort


def write_report(diagnosis: Any) -> list[str]:
    signal, index, step = diagnosis.signal, diagnosis.index, float(diagnosis.step)
    lag, relative = float(diagnosis.lag), float(diagnosis.relative)
    lines = [
        f"{diagnosis.name}, {signal.weights} trained weights, at lag {lag:g} (steps of {step:g})"
    ]
    if diagnosis.data is not None:
        lines.append(
            f"The lag is from data, of which a linear response explains "
            f"{100 * float(diagnosis.data.explained):.0f} % on held-out parts."
        )
        if not bool(diagnosis.data.reliable):
            lines.append("The data do not tell it reliably: give the lag if you know it.")
    shown = sorted({0, (index + 1) // 3, 2 * (index + 1) // 3, index, signal.steps.size - 1})
    rows = [
        ("lag", signal.steps * diagnosis.step),
        ("memory function", diagnosis.memory),
        ("gradient signal", signal.signal),
        ("  over its largest", signal.relative),
        ("  effort (updates)", signal.effort),
    ]
    for name, values in rows:
        lines.append(f"  {name:20}" + "".join(f"{float(values[k]):>11.3g}" for k in shown))
    horizon = float(diagnosis.horizon)
    text = f"after {horizon:.3g}" if np.isfinite(horizon) else "beyond what was looked at"
    text = "at a time that is not known" if np.isnan(horizon) else text
    lines.append(f"  memory below 1 % of its largest {text}")
    worst = signal.most_sensitive()[:3]
    lines.append("  most sensitive weights: " + ", ".join(f"{n} ({v:.2g})" for n, v in worst))
    for fault in diagnosis.faults:
        lines += textwrap.wrap(fault, 96, initial_indent="  ", subsequent_indent="  ")
    lines.append("")
    lines.append(f"Verdict: {diagnosis.verdict.upper()}")
    lines += _explain_verdict(diagnosis, lag, relative)
    if diagnosis.remedies:
        lines.append(f"{'Tried at this lag:':46}{'relative':>10}{'effort':>11}  verdict")
        own = float(signal.effort[index])
        lines.append(f"  {'as it is':44}{relative:>10.2g}{own:>11.2g}  {diagnosis.verdict}")
        for remedy in diagnosis.remedies:
            share = float(remedy.signal.relative[index])
            effort = float(remedy.signal.effort[index])
            lines.append(f"  {remedy.name:44}{share:>10.2g}{effort:>11.2g}  {remedy.verdict}")
    lines.append(_advise(diagnosis))
    if diagnosis.extension is not None:
        found = diagnosis.extension
        text = f"At four times the length of {float(found.length):g}: {found.verdict.upper()}. "
        lines += ["", *textwrap.wrap(text + found.reason, 96, subsequent_indent="  ")]
    return lines


def _explain_verdict(diagnosis: Any, lag: float, relative: float) -> list[str]:
    wrapped = lambda text: textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="  ")
    if diagnosis.verdict == "undecided":
        return wrapped(diagnosis.reason)
    low, high = (float(value) for value in diagnosis.plateau)
    if diagnosis.verdict == "no plateau":
        return [f"  The gradient sees a dependency at lag {lag:g} about as well as shorter ones."]
    if not bool(diagnosis.signal.seen[diagnosis.index]):
        return wrapped(
            f"What a dependency at lag {lag:g} gives is lost in its noise, or in the smallest "
            f"numbers, below {1 / low:.2g} of the gradient of the easiest lag: gradient descent "
            f"stays on its plateau more than {low:.2g} times as long."
        )
    times = f"{low:.2g} to {high:.2g}" if np.isfinite(high) else f"more than {low:.2g}"
    lines = [
        f"  A dependency at lag {lag:g} gives {relative:.2g} of the gradient of the easiest lag:",
        f"  gradient descent stays on its plateau {times} times as long.",
    ]
    component = float(diagnosis.signal.signal[diagnosis.index]) / math.sqrt(
        diagnosis.signal.weights
    )
    if component < 1e-8:
        lines.append("  Adam too: the gradient is below its epsilon of 1e-8.")
    else:
        lines.append("  Adam rescales it, as far as it stands out of the noise of the batches.")
    return lines


def _advise(diagnosis: Any) -> str:
    decided = diagnosis.verdict != "undecided"
    if not diagnosis.remedies:
        if diagnosis.verdict == "no plateau":
            return "Nothing to cure."
        untried = "Nothing was tried on this kind of model."
        if not decided:
            return untried
        return (
            f"{untried} Untested here: slower initial time scales, gates, or a shorter way to the "
            "lag (dilation, skips)."
        )
    best = diagnosis.remedies[0]
    if best.verdict == "undecided":
        return "Of these nothing can be recommended, since none has a verdict."
    recommended = f"Recommended: {best.name}"
    own, other = (rank_effort(each.signal, diagnosis.index) for each in (diagnosis, best))
    if not decided:
        return f"{recommended}, which has a verdict: remedies[0].model"
    if not np.isfinite(own) and np.isfinite(other):
        return f"{recommended}, with which there is a signal at all: remedies[0].model"
    if not own > 2 * other:
        return "Of these nothing helps much; the model as it is will do as well."
    return f"{recommended}, {own / other:.2g} times less effort: remedies[0].model"
