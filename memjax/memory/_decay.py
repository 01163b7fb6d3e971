import dataclasses
import math
from typing import Any, Literal, TypeAlias

import numpy as np
from jaxtyping import Real

from .._checks import (
    as_float_array,
    as_increasing,
    as_nonnegative,
    as_pair,
    as_plain,
    check_nonnegative,
    is_traced,
    shown,
)
from .._deprecation import renamed_attribute
from .._text import readable
from .._typing import ArrayLike
from ..numerics import fit_line, Line
from ._memory_function import MemoryFunction

DecayVerdict: TypeAlias = Literal["exponential", "polynomial", "finite", "undecided"]

_LEAST_POINTS = 12
_EXPONENTIAL_DROP = 3.0  # how far the log memory has to fall, in nats
_POLYNOMIAL_DROP = 1.0
_POLYNOMIAL_RANGE = 8.0  # over how long a range of times, last over first
# By how much rates, or exponents, of the thirds of the tail may differ. Over its second half a
# power law has rates that differ by 1.58, and over a decade an exponential has exponents that
# differ by 4.6.
_STEADY = 1.2
_LATE_STEADY = 1.05  # a second look has to be a sharper one
_GROWING = 1.02  # what rounding and noise may take off a growing rate
_SCORE = 2.5  # by how many nats the better law has to fit better


@readable()
@dataclasses.dataclass(frozen=True)
class MemoryDecay:
    r"""How a memory function decays, as far as its values tell.

    Made by [`memjax.memory_decay`][].

    **Attributes:**

    - `verdict`: `"exponential"` (or faster), `"polynomial"`, `"finite"` (0 from some time on) or
        `"undecided"`.
    - `reason`: why, in words.
    - `rate`, `rate_error`: $\beta$ of the fit $\log M = c - \beta t$, and its standard error.
    - `exponent`, `exponent_error`: $p$ of the fit $\log M = c - p \log t$, and its standard error.
    - `score`: the difference of the two log-likelihoods, in nats: positive if the exponential
        fits better. Both fits have two parameters, so that AIC and BIC differ by twice as much.
    - `rate_spread`, `exponent_spread`: by which factor the rates of the thirds of the tail, and the
        exponents of its thirds on a log scale, differ; 1 for a pure law.
    - `start`, `stop`: the range of times that was fitted, and for which the verdict holds.
    - `points`: how many values were fitted.
    """

    verdict: DecayVerdict
    reason: str
    rate: float
    rate_error: float
    exponent: float
    exponent_error: float
    score: float
    rate_spread: float
    exponent_spread: float
    start: float
    stop: float
    points: int

    power = renamed_attribute("power", "exponent")
    power_error = renamed_attribute("power_error", "exponent_error")
    power_spread = renamed_attribute("power_spread", "exponent_spread")


def memory_decay(
    memory: MemoryFunction | tuple[Real[ArrayLike, " times"], Real[ArrayLike, " times"]],
    *,
    tail: float | tuple[float, float] = 0.1,
    floor: float | None = None,
) -> MemoryDecay:
    r"""Does a memory function decay exponentially or polynomially?

    On the tail of its non-increasing envelope $\sup_{s \ge t} M(s)$, two lines are fitted by least
    squares,

    $$\log M(t) = c - \beta t, \qquad \log M(t) = c - p \log t.$$

    Where the memory oscillates, they are fitted to the peaks of the envelope. They end where the
    envelope is no longer known: where the memory, or its noise, stays below its envelope for some
    time, the times left to the end have to be as long. Standard errors allow for correlated
    residuals, as of an autoregressive process of first order.

    A verdict is given only if the data tell. *Exponential*: the rates of the three thirds of the
    tail differ by a factor of at most 1.2, or grow, and those of its second half as well (a faster
    decay); the memory falls by a factor of at least 20, and the exponential fits better. If the
    whole tail does not, its second half is tried, with 1.05 in place of 1.2. *Polynomial*: the
    exponents of the three thirds on a log scale differ by a factor of at most 1.2, the range spans
    a factor of at least 8 in time, and the power law fits better. *Finite*: the memory jumps to 0.
    Everything else is *undecided*: too short a range, a noise floor, a crossover, a memory function
    that is not `bounded`.

    A verdict is one on the range of times given. A sum of many exponentials of well chosen rates
    is a power law over as long a range as its rates span, and nothing measured there tells.

    **Arguments:**

    - `memory`: a [`memjax.MemoryFunction`][], or a pair of times and values, shape `(times,)`
        each, at least 12 of them.
    - `tail`: the first time to fit as a share of the last one, or the range of times
        `(start, stop)`. With a share the tail starts no earlier than the memory has fallen to
        half of its largest value.
    - `floor`: the value under which the memory is not resolved and is left out. Defaults to 1e-12
        times the largest value, and to 1e-7 times if the memory was not computed in closed form.

    **Returns:**

    A [`memjax.MemoryDecay`][].

    **Raises:**

    `ValueError` for too few times, times that do not increase or are negative, values that are
    negative, NaN or infinite, and a tail that is no share or range.

    ??? cite "Reference"

        Wang, Li, Li, *Inverse Approximation Theory for Nonlinear Recurrent Neural Networks*,
        ICLR 2024, Section 2 (theory, section 1).
    """
    exact = not isinstance(memory, MemoryFunction) or memory.exact
    pair = (memory.ts, memory.values) if isinstance(memory, MemoryFunction) else memory
    if not isinstance(pair, (tuple, list)) or len(pair) != 2:
        raise TypeError(
            f"`memory` must be a MemoryFunction or a pair (times, values), got {shown(memory)}; "
            "pass one of these."
        )
    ts, values = _as_curve(*pair)
    top = float(np.max(values))
    if floor is None:
        floor = (1e-12 if exact else 1e-7) * top
    floor = as_plain(as_nonnegative, "floor", floor)
    tail = _as_tail(tail, ts)

    if top == 0:
        return _conclude_without_fit("finite", "there is no memory at all", ts[0], ts[-1])
    # What discretisations leave of 0 is rounding.
    gone = values <= (0 if exact else 1e-12 * top)
    last = int(np.flatnonzero(~gone)[-1])
    if ts.size - 1 - last >= 3 and values[last] > 1e-4 * top:
        reason = f"the memory is 0 after t = {ts[last]:.6g}"
        return _conclude_without_fit("finite", reason, ts[0], float(ts[last]))

    envelope = np.maximum.accumulate(values[::-1])[::-1]
    resolved = (envelope > floor) & (ts > 0)
    stop = float(ts[resolved][-1]) if resolved.any() else 0.0
    if isinstance(tail, tuple):
        start, stop = tail[0], min(tail[1], stop)
    else:
        start = max(tail * stop, float(ts[envelope > top / 2][-1]))
    tail_times = (ts >= start) & (ts <= stop)
    if isinstance(memory, MemoryFunction) and not np.all(np.asarray(memory.bounded)[tail_times]):
        reason = (
            "the memory still rises with the amplitude; for that of the amplitudes tried, pass "
            "the pair (memory.ts, memory.values)"
        )
        return _conclude_without_fit("undecided", reason, start, stop)
    if start >= stop:
        reason = "the memory never falls below half of its largest value for good"
        return _conclude_without_fit("undecided", reason, start, stop)
    chosen = resolved & tail_times
    stop = min(stop, _last_known(ts, np.flatnonzero(chosen & (values >= envelope))))
    chosen = _choose_peaks(values, envelope, chosen & (ts <= stop))
    t, logs = ts[chosen], np.log(envelope[chosen])
    if t.size < _LEAST_POINTS:
        reason = (
            f"only {t.size} values are left between t = {start:.4g} and {stop:.4g}, and "
            f"{_LEAST_POINTS} are needed"
        )
        return _conclude_without_fit("undecided", reason, start, stop, t.size)

    whole = _judge(t, logs)
    if whole.verdict != "undecided":
        return whole
    # Past a crossover, an exponential may be pure where the whole tail is not.
    late = _second_half(t)
    if np.sum(late) >= _LEAST_POINTS:
        half = _judge(t[late], logs[late])
        if half.verdict == "exponential" and half.rate_spread <= _LATE_STEADY:
            return half
    return whole


def _as_curve(ts: Any, values: Any) -> tuple[np.ndarray, np.ndarray]:
    if is_traced((ts, values)):
        raise ValueError("`memory` must be concrete, got traced arrays; fit outside of jit.")
    times = np.asarray(as_increasing("memory", ts, _LEAST_POINTS), float)
    check_nonnegative("memory", times, "times are counted from the change of the input")
    check_nonnegative("memory", values)
    numbers = np.asarray(as_float_array("memory", values), float)
    if numbers.shape != times.shape:
        raise ValueError(
            f"`memory` must have one value a time, got shape {numbers.shape} for {times.size} "
            "times; pass a pair of arrays of one shape."
        )
    return times, numbers


def _as_tail(tail: Any, ts: np.ndarray) -> float | tuple[float, float]:
    """The share of the last time at which the tail starts, or the range of times."""
    if isinstance(tail, (tuple, list)):
        start, stop = as_pair("tail", tail, "pass (start, stop)")
        if not 0 <= start < ts[-1]:
            raise ValueError(
                f"`tail` must start from 0 on and before {ts[-1]}, got {shown(tail)}; pass a "
                "range of the times that there are."
            )
        return start, stop
    share = as_plain(as_nonnegative, "tail", tail, "pass a share or a pair (start, stop)")
    if not share < 1:
        raise ValueError(
            f"`tail` must be below 1 as a share, got {share}; pass a share or a pair (start, stop)."
        )
    return share


def _choose_peaks(values: np.ndarray, envelope: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """The peaks of an oscillating memory that the envelope touches, or all points of another."""
    inner = np.zeros_like(chosen)
    inner[1:-1] = (values[1:-1] > values[:-2]) & (values[1:-1] >= values[2:])
    peaks = inner & chosen & (values >= envelope)
    return peaks if np.sum(peaks) >= _LEAST_POINTS else chosen


def _last_known(ts: np.ndarray, touched: np.ndarray) -> float:
    """Until when the envelope, the maximum over all later times, is known.

    Where the memory stays below its envelope for some time, a maximum over a shorter time than
    that tells of the end of the data and not of the memory: the envelope of noise always falls to
    0 there.

    **Arguments:**

    - `touched`: the indices at which the memory touches its envelope.
    """
    if touched.size < 2:
        return float(ts[-1])
    times = ts[touched]
    gaps = np.where(np.diff(touched) > 1, np.diff(times), 0.0)
    unknown = ts[-1] - times[1:] < np.maximum.accumulate(gaps)
    return float(times[np.argmax(unknown)]) if unknown.any() else float(ts[-1])


def _judge(t: np.ndarray, logs: np.ndarray) -> MemoryDecay:
    exponential, power_law = fit_line(t, logs), fit_line(np.log(t), logs)
    rate_spread, growing = _compare_thirds(t, logs)
    exponent_spread, _ = _compare_thirds(np.log(t), logs)
    # A hump makes the first third flat, and what follows is no faster for it.
    late = _second_half(t)
    if growing and np.sum(late) >= _LEAST_POINTS:
        _, growing = _compare_thirds(t[late], logs[late])
    better = exponential if exponential.squares <= power_law.squares else power_law
    # A fit cannot be better than rounding.
    least = t.size * (1e-12 * max(1.0, float(np.max(np.abs(logs))))) ** 2
    ratio = max(power_law.squares, least) / max(exponential.squares, least)
    score = _count_independent(better.residuals) / 2 * math.log(ratio)
    drop = float(logs[0] - logs[-1])

    is_exponential = (
        (rate_spread <= _STEADY or growing) and drop >= _EXPONENTIAL_DROP and score >= _SCORE
    )
    is_polynomial = (
        exponent_spread <= _STEADY
        and drop >= _POLYNOMIAL_DROP
        and t[-1] >= _POLYNOMIAL_RANGE * t[0]
        and score <= -_SCORE
    )
    spreads = f"a factor of {rate_spread:.3g}, its exponents of {exponent_spread:.3g}"
    if is_exponential:
        verdict = "exponential"
        reason = "the rate is steady over the tail"
        if rate_spread > _STEADY:
            reason = "the rate grows over the tail, the decay is faster than exponential"
    elif is_polynomial:
        verdict, reason = "polynomial", "the exponent is steady over the tail on a log scale"
    elif drop < _POLYNOMIAL_DROP:
        verdict, reason = "undecided", f"the memory falls by a factor of {math.exp(drop):.3g} only"
    elif abs(score) < _SCORE:
        verdict, reason = "undecided", f"both laws fit alike, with a score of {score:.3g}"
    elif score > 0 and rate_spread <= _STEADY:
        verdict = "undecided"
        reason = f"the memory falls by a factor of {math.exp(drop):.3g} only"
    elif score < 0 and exponent_spread <= _STEADY:
        verdict = "undecided"
        reason = f"the times span a factor of {t[-1] / t[0]:.3g} only"
    else:
        verdict, reason = "undecided", f"neither law holds: rates in the tail differ by {spreads}"
    return MemoryDecay(
        verdict, reason, -exponential.slope, _measure_error(exponential), -power_law.slope,
        _measure_error(power_law), score, rate_spread, exponent_spread, float(t[0]), float(t[-1]),
        t.size,
    )  # fmt: skip


def _second_half(t: np.ndarray) -> np.ndarray:
    return t >= (t[0] + t[-1]) / 2


def _measure_error(line: Line) -> float:
    """The standard error of a slope: the variance of the mean of correlated residuals is that of
    fewer independent ones."""
    return line.errors(_count_independent(line.residuals)).slope


def _count_independent(residuals: np.ndarray) -> float:
    """How many independent residuals are worth as much as these, at least 4."""
    power = np.sum(residuals**2)
    if power == 0:
        return float(residuals.size)
    correlation = float(np.sum(residuals[1:] * residuals[:-1]) / power)
    correlation = min(max(correlation, 0.0), 1.0)
    return max(residuals.size * (1 - correlation) / (1 + correlation), 4.0)


def _compare_thirds(x: np.ndarray, y: np.ndarray) -> tuple[float, bool]:
    """By which factor the slopes of the thirds differ, and whether the decay gets steeper."""
    edges = np.linspace(x[0], x[-1], 4)
    slopes = []
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        third = (x >= low) & (x <= high)
        slopes.append(-fit_line(x[third], y[third]).slope if np.sum(third) > 2 else math.nan)
    if not all(slope > 0 for slope in slopes):
        return math.inf, False
    growing = slopes[0] <= _GROWING * slopes[1] and slopes[1] <= _GROWING * slopes[2]
    return max(slopes) / min(slopes), growing


def _conclude_without_fit(
    verdict: DecayVerdict, reason: str, start: Any, stop: float, points: int = 0
) -> MemoryDecay:
    nan = math.nan
    return MemoryDecay(
        verdict, reason, nan, nan, nan, nan, nan, nan, nan, float(start), float(stop), points
    )
