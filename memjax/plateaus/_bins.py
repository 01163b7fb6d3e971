"""A loss log in bins of log time: means, and what noise does to them."""

from typing import NamedTuple

import numpy as np

from .._lazy import scipy

# Bins are a twentieth of an e-fold long, and more where the log spans more than a thousand of
# them: all tests look at pairs of bins.
WIDTH, MOST, LEAST = 0.05, 1000, 60
# Entries around a bin from which its noise is told, and how far, in standard deviations, a single
# entry may stand out from its neighbours.
_NEIGHBOURS, _SPIKE = 32, 3.0
# The median of the absolute value of a standard normal number.
_MEDIAN = 0.6744897501960817


class Bins(NamedTuple):
    """Means of a log over bins of log time, an entry a bin that is not empty.

    **Attributes:**

    - `edges`: the place of the first entry of each bin, and the number of all entries.
    - `time`, `log_time`: mean time, and its logarithm.
    - `mean`: mean loss.
    - `count`: number of entries.
    - `noise`: standard deviation of an entry.
    - `weight`: one over the variance of the mean, if entries were independent.
    - `correlation`: number of entries over which the noise of neighbours is the same.
    - `losses`: all losses, without spikes.
    """

    edges: np.ndarray
    time: np.ndarray
    log_time: np.ndarray
    mean: np.ndarray
    count: np.ndarray
    noise: np.ndarray
    weight: np.ndarray
    correlation: float
    losses: np.ndarray

    def average(self, part: slice | np.ndarray) -> tuple[float, float, float]:
        """Mean time and loss over some bins, and the standard error of the latter."""
        weight, count = self.weight[part], self.count[part]
        time = float(np.sum(count * self.time[part]) / np.sum(count))
        mean = float(np.sum(weight * self.mean[part]) / np.sum(weight))
        return time, mean, self.error(weight, count)

    def error(self, weight: np.ndarray, count: np.ndarray) -> float:
        """The standard error of the mean over some bins."""
        return float(np.sqrt(min(self.correlation, np.sum(count)) / np.sum(weight)))

    def slope(self, part: slice | np.ndarray, x: np.ndarray) -> tuple[float, float]:
        """The slope of the loss against `x` over some bins, and its standard error."""
        weight, x = self.weight[part], x[part]
        x = x - np.sum(weight * x) / np.sum(weight)
        spread = np.sum(weight * x**2)
        if not spread > 0:
            return 0.0, np.inf
        length = min(self.correlation, float(np.sum(self.count[part])))
        slope = np.sum(weight * x * self.mean[part]) / spread
        return float(slope), float(np.sqrt(length / spread))


def log_times(times: np.ndarray) -> np.ndarray:
    """The logarithms of times. A log begins at step 0 or at 1: a step 0 takes the place of half
    the step after it."""
    with np.errstate(divide="ignore"):
        found = np.log(times)
    if times[0] == 0:
        found[0] = found[1] - np.log(2)
    return found


def bin_log(times: np.ndarray, losses: np.ndarray, error: float) -> Bins:
    """Bins of a log.

    **Arguments:**

    - `times`, `losses`: increasing times and finite losses.
    - `error`: the share of a mean that counts as its error even without noise, so that bins of a
        smooth curve weigh the same.
    """
    u = log_times(times)
    span = float(u[-1] - u[0])
    # A short log has at least 60 bins, or its stretches would be of few bins each.
    width = min(max(WIDTH, span / MOST), span / LEAST)
    place = np.minimum(((u - u[0]) / width).astype(int), int(np.ceil(span / width)))
    edges = np.append(np.flatnonzero(np.diff(place, prepend=-1)), times.size)
    count = np.diff(edges)

    residuals = _residuals(u, losses)
    # What rounding leaves of a constant loss.
    least = max(1e-14 * float(np.median(np.abs(losses))), 1e-100)
    starts, stops = edges[:-1].copy(), edges[1:].copy()
    # A bin of few entries borrows those around it.
    missing = np.maximum(_NEIGHBOURS - count, 0)
    starts = np.clip(starts - (missing + 1) // 2, 0, max(0, times.size - _NEIGHBOURS))
    stops = np.maximum(stops, np.minimum(starts + _NEIGHBOURS, times.size))
    scale = [np.median(residuals[a:b]) for a, b in zip(starts, stops, strict=True)]
    growth, correlation = _correlation(losses)
    noise = np.maximum(growth * np.array(scale) / _MEDIAN, least)

    calm = _without_spikes(losses, np.repeat(noise, count))
    time, mean = (np.add.reduceat(values, edges[:-1]) / count for values in (times, calm))
    # As if entries were independent: how many of them count as one, `Bins.error` knows.
    variance = noise**2 / count + (error * mean) ** 2 + least**2
    log_time = np.add.reduceat(u, edges[:-1]) / count
    return Bins(edges, time, log_time, mean, count, noise, 1 / variance, correlation, calm)


def _residuals(u: np.ndarray, losses: np.ndarray) -> np.ndarray:
    """Distances of entries from the straight line between their neighbours, of the size of the
    noise (Gasser, Sroka and Jennen-Steinmetz): a slope leaves no trace in them."""
    share = (u[2:] - u[1:-1]) / (u[2:] - u[:-2])
    line = share * losses[:-2] + (1 - share) * losses[2:]
    # Of independent entries of variance 1, the difference from the line has this variance.
    found = np.abs(losses[1:-1] - line) / np.sqrt(1 + share**2 + (1 - share) ** 2)
    return np.concatenate([found[:1], found, found[-1:]])


def _correlation(losses: np.ndarray) -> tuple[float, float]:
    """How much larger the noise is than neighbours show, and over how many entries it is the same:
    logs are often smoothed. Second differences over longer and longer lags tell."""
    # Those of independent noise are as large at every lag, those of smoothed noise grow until the
    # lag is as long as the smoothing. The lags end at a hundredth of the log, over which the curve
    # itself is to be straight.
    lags = [1]
    while 4 * lags[-1] <= losses.size // 50:
        lags.append(2 * lags[-1])
    scales = np.array([
        np.median(np.abs(losses[: -2 * m] - 2 * losses[m:-m] + losses[2 * m :])) for m in lags
    ])  # fmt: skip
    # Medians of a finite log differ from lag to lag without any smoothing.
    if not scales[0] > 0 or scales.max() <= 1.5 * scales[0]:
        return 1.0, 1.0
    reached = int(np.argmax(scales >= 0.8 * scales.max()))
    return float(scales.max() / scales[0]), 2.0 * lags[reached]


def _without_spikes(losses: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Losses in which entries far outside of their neighbours are drawn in. Of a monotone curve
    every entry is the median of its neighbours, so that it stays as it is."""
    middle = scipy.ndimage.median_filter(losses, 5, mode="mirror")
    # At the ends half of the neighbours are mirrored: a curve that falls would be drawn in there.
    middle[:2], middle[-2:] = losses[:2], losses[-2:]
    return np.clip(losses, middle - _SPIKE * noise, middle + _SPIKE * noise)
