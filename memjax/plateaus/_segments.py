"""Where a log is flat: stretches of bins, tested against noise and against what follows."""

from typing import NamedTuple

import numpy as np

from .._lazy import scipy
from ._bins import bin_log, Bins, log_times

# A mean over bins leaves the band around a height if it does so by this many standard errors, at
# any of these scales (in bins). There are hundreds of means, and one false alarm cuts a plateau.
_OUTSIDE, _SCALES = 4.5, (1, 2, 4, 8, 16)
# By how many standard errors the fall after a plateau is faster than on it, and how many times.
# A curve that only slows down has at most a ratio of 1. A fall as 1/(1 + (t/T)^k) has 2 for k = 2,
# 5 for k = 3 and 17 for k = 5.
_SURE, CONTRAST = 4.5, 5.0
# Fewer entries than this are no plateau: their noise is not known.
ENTRIES = 8
# By how many standard errors a rest may not fall, and a bin before it must have been higher.
_REST, _HIGHER = 2.0, 4.5
# Over how many bins, on both sides of an end of a plateau, noise is averaged in what can be seen.
_NEAR = 2


class Segment(NamedTuple):
    """A flat stretch: times, height above the floor, noise of an entry, and the bins."""

    start: float
    stop: float
    height: float
    noise: float
    first: int
    last: int


def find_segments(
    times: np.ndarray, losses: np.ndarray, delta: float, ratio: float
) -> tuple[list[Segment], Segment | None, float]:
    """The plateaus of a log that are left, the flat stretch at its end if there is one, and the
    level at the end.

    **Arguments:**

    - `times`, `losses`: increasing times and finite losses, above a floor of 0.
    - `delta`: the share of its height by which the loss leaves a plateau.
    - `ratio`: the least ratio of the end of a plateau to its start.
    """
    # Bins of a log without noise would have no error: a twentieth of the band counts as one.
    bins = bin_log(times, losses, delta / 20)
    stretches = _find_stretches(bins, delta)
    chosen: list[tuple[int, int]] = []
    first = np.exp(log_times(times[:2])[0])
    # The longest first: what overlaps a longer one is the same plateau once more.
    by_length = sorted(stretches, key=lambda s: bins.log_time[s[0]] - bins.log_time[s[1]])
    last = bins.mean.size - 1
    for i, j in by_length:
        if j < last and not _overlaps(bins, (i, j), chosen) and _is_left(bins, i, j, delta):
            chosen.append((i, j))
    found: list[Segment] = []
    for i, j in sorted(chosen):
        segment = _refine(times, bins, i, j, delta, found)
        if segment.stop >= ratio * max(segment.start, first):
            found.append(segment)
    rest = None
    ends = [i for i, j in stretches if j == last]
    if ends:
        rest = _find_rest(times, bins, min(ends), delta, found)
        if rest is not None and not rest.stop >= ratio * max(rest.start, first):
            rest = None
    return found, rest, bins.average(slice(max(0, last - 1), None))[1]


def _find_stretches(bins: Bins, delta: float) -> list[tuple[int, int]]:
    """The longest stretches of bins on which no mean, at any scale, lies outside of the band of
    `delta` around the height of the stretch by more than noise explains."""
    size = bins.mean.size
    means, slacks = _means_at_scales(bins)
    reached, found = -1, []
    for i in range(size):
        # All stretches from bin i on at once: running means, and running extremes of the means
        # inside, each less what noise may have added.
        weight = np.cumsum(bins.weight[i:])
        height = np.cumsum(bins.weight[i:] * bins.mean[i:]) / weight
        band = delta * np.abs(height)
        good = np.ones(size - i, bool)
        for scale, mean, slack in zip(_SCALES, means, slacks, strict=True):
            if i + scale > size:
                break
            highest = np.maximum.accumulate(mean[i:] - slack[i:])
            lowest = np.minimum.accumulate(mean[i:] + slack[i:])
            ends = slice(scale - 1, None)  # where the window that starts at i ends
            good[ends] &= highest <= (height + band)[ends]
            good[ends] &= lowest >= (height - band)[ends]
        j = size - 1 if good.all() else i + int(np.argmin(good)) - 1
        # What ends no later than a stretch from an earlier bin is a part of it.
        if j > max(reached, i):
            found.append((i, j))
            reached = j
    return found


def _means_at_scales(bins: Bins) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Means over windows of bins, by their first bin, and how far noise moves them."""
    weight, total, count = bins.weight, bins.weight * bins.mean, bins.count
    means, slacks = [], []
    for scale in _SCALES:
        if scale > 1:
            # Windows from two halves: differences of running sums would lose the small ones.
            half = scale // 2
            weight, total, count = (x[:-half] + x[half:] for x in (weight, total, count))
        means.append(total / weight)
        slacks.append(_OUTSIDE * np.sqrt(np.minimum(bins.correlation, count) / weight))
    return means, slacks


def _overlaps(bins: Bins, stretch: tuple[int, int], chosen: list[tuple[int, int]]) -> bool:
    u = bins.log_time
    for other in chosen:
        first, last = max(stretch[0], other[0]), min(stretch[1], other[1])
        shorter = min(u[j] - u[i] for i, j in (stretch, other))
        if last > first and u[last] - u[first] > 0.5 * shorter:
            return True
    return False


def _inner(bins: Bins, i: int, j: int) -> slice:
    """The inner bins of a stretch: from a sixth to five sixths of its time, and at least two."""
    # The ends of a stretch are the ways in and out, still within the band: a sixth of its time at
    # each end is left out. A log has no way into its first bin.
    start, stop = bins.time[i], bins.time[j]
    low, high = start + (stop - start) / 6, start + 5 * (stop - start) / 6
    low = low if i else -1.0
    first, last = (int(np.searchsorted(bins.time, time, "right")) for time in (low, high))
    first = i if first <= i + 1 else first
    while last - first < 2 and (first > i or last < j):
        first, last = max(i, first - 1), min(j, last + (first == i))
    return slice(first, max(last, first + 2))


def _after(bins: Bins, j: int) -> slice:
    """The bins after a stretch until its end has doubled, and at least one."""
    last = int(np.searchsorted(bins.time, 2 * bins.time[j], "right"))
    return slice(j + 1, max(last, j + 2))


def _is_left(bins: Bins, i: int, j: int, delta: float) -> bool:
    """Whether the loss falls faster after a stretch than on it, in units of time. If it only slows
    down it never does so, at whatever scale of log time it looks flat."""
    if bins.edges[j + 1] - bins.edges[i] < ENTRIES:
        return False
    # In units of t, where a fall that slows down is convex, and slower after any stretch than on
    # it; in log t even an exponential has a flat start.
    inner = _inner(bins, i, j)
    slope, slope_error = bins.slope(inner, bins.time)
    before, height, height_error = bins.average(inner)
    after, level, level_error = bins.average(_after(bins, j))
    if height <= 0 or not height - level >= delta * height:
        return False
    speed = (height - level) / (after - before)
    speed_error = np.hypot(height_error, level_error) / (after - before)
    on_it = max(-slope, 0.0)
    sure = speed - on_it >= _SURE * np.hypot(speed_error, slope_error)
    # The slope on it counts as less by one standard error: where it is all noise it would hide a
    # fall.
    return bool(sure and speed >= CONTRAST * (on_it - slope_error))


def _refine(
    times: np.ndarray,
    bins: Bins,
    i: int,
    j: int,
    delta: float,
    before: list[Segment],
) -> Segment:
    """The start and the end of a plateau, to the entries of the log."""
    inner, after = _inner(bins, i, j), _after(bins, j)
    _, height, _ = bins.average(inner)
    level = bins.average(after)[1]
    share = _visible(bins, j, delta * height, height - level)
    a, b = bins.edges[inner.start], bins.edges[after.stop]
    stop = _crossing(times[a:b], bins.losses[a:b], height - share)
    start = _start(times, bins, i, inner, height, delta, before)
    return Segment(start, min(stop, times[-1]), height, _noise(bins, inner), i, j)


def _start(
    times: np.ndarray,
    bins: Bins,
    i: int,
    inner: slice,
    height: float,
    delta: float,
    before: list[Segment],
) -> float:
    """The first time at which the loss is down to a height."""
    if i == 0:
        return float(times[0])
    earlier = before[-1].stop if before else -1.0
    first = int(np.searchsorted(times, earlier, "right"))
    last = int(bins.edges[inner.stop])
    above = bins.average(slice(max(0, i - 4), i))[1] - height
    share = _visible(bins, i, delta * abs(height), above)
    if above <= 0 or last - first < 2:  # it rose to it
        return float(times[bins.edges[i]])
    return _crossing(times[first:last], bins.losses[first:last], height + share)


def _visible(bins: Bins, at: int, share: float, drop: float) -> float:
    """The fall that is looked for: a share of the height, or what noise lets be seen within a few
    bins, but not more than half of the drop."""
    near = slice(max(0, at - _NEAR), at + _NEAR)
    error = bins.error(bins.weight[near], bins.count[near])
    # Half of the drop is met for certain, a larger fall perhaps never.
    return max(share, min(0.5 * drop, 2 * error))


def _crossing(times: np.ndarray, losses: np.ndarray, level: float) -> float:
    """The time at which the falling curve that is closest to the losses meets a level."""
    # A level may be met many times by a noisy log, but only once by this curve.
    fit = scipy.optimize.isotonic_regression(losses, increasing=False).x
    place = int(np.searchsorted(-fit, -level))
    if place == 0:
        return float(times[0])
    if place == fit.size:
        return float(times[-1])
    u = log_times(times[place - 1 : place + 1])
    high, low = fit[place - 1], fit[place]
    share = (high - level) / (high - low)
    return float(np.exp(u[0] + share * (u[1] - u[0])))


def _noise(bins: Bins, part: slice) -> float:
    return float(np.sqrt(np.average(bins.noise[part] ** 2, weights=bins.count[part])))


def _find_rest(
    times: np.ndarray,
    bins: Bins,
    i: int,
    delta: float,
    before: list[Segment],
) -> Segment | None:
    """The flat stretch at the end, if it falls much less, per e-fold of time, than the loss did
    before: a power law falls by as much, however small its exponent."""
    last = bins.mean.size - 1
    u = bins.log_time
    # The first quarter of a rest may still be the way down to it.
    first = int(np.searchsorted(u, u[i] + (u[last] - u[i]) / 4)) if i else 0
    part = slice(min(first, last - 1), last + 1)
    _, height, height_error = bins.average(part)
    slope, slope_error = bins.slope(part, u)
    if i == 0:
        flat = abs(slope) <= 3 * slope_error or _is_slow_start(bins, height, delta)
    else:
        # The fall of the log of the loss per e-fold of time, from every bin before to the middle of
        # the rest; a bin counts as far as it was surely higher. Without a positive height there is
        # no logarithm, and the fall of the loss itself is taken.
        highest = bins.mean[:i] - _HIGHER * np.sqrt(bins.correlation / bins.weight[:i])
        lost = np.log(np.maximum(highest, height)) - np.log(height) if height > 0 else highest
        middle = np.average(u[part], weights=bins.weight[part])
        rates = lost / (middle - u[:i])
        if before and before[-1].height > height > 0:
            # The height of a plateau is known better than that of any bin.
            fall = np.log(before[-1].height / height) / (middle - np.log(before[-1].stop))
            rates = np.append(rates, fall)
        reference = np.max(rates) * (height if height > 0 else 1.0)
        flat = abs(slope) + _REST * slope_error <= reference / CONTRAST
    if not flat:
        return None
    start = _start(times, bins, i, part, height, delta, before)
    return Segment(start, float(times[-1]), height, _noise(bins, part), i, last)


def _is_slow_start(bins: Bins, height: float, delta: float) -> bool:
    """Whether a log without noise has not left its first plateau: it has fallen by less than
    `delta`, and in its second half by no less than in its first one, as no decay does."""
    half = (bins.time[0] + bins.time[-1]) / 2
    middle = float(np.interp(half, bins.time, bins.mean))
    falls = bins.mean[0] - middle, middle - bins.mean[-1]
    return 0 <= sum(falls) <= delta * abs(height) and falls[1] >= 0.8 * falls[0]
