"""The distance of a sum of exponentials from a kernel, by quadrature of its own.

Nothing is shared with the optimisation but the kernel: other panels, other rules, and the sum as
a model evaluates it, rounding errors included.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..targets import SampledKernel
from ._curve import Curve
from ._grid import crossings, geometric, nodes

EPS = float(np.finfo(float).eps)
_CHUNK = 2**21  # exponentials that are held at once
_REFINED = 256  # maxima that are looked at closely


class Terms(NamedTuple):
    r"""$\sum_j e^{-w_j t} (a_j \cos \nu_j t + b_j \sin \nu_j t)$; an offset has rate 0."""

    cosine: np.ndarray
    sine: np.ndarray
    rates: np.ndarray
    frequencies: np.ndarray

    def __call__(self, times: np.ndarray) -> np.ndarray:
        return self._summed(times, self._values)

    def size(self, times: np.ndarray) -> np.ndarray:
        """The sum of the sizes of all terms, on which rounding errors are relative."""
        sizes = np.hypot(self.cosine, self.sine)
        return self._summed(times, lambda t: np.exp(-self.rates * t) @ sizes)

    def _values(self, t: np.ndarray) -> np.ndarray:
        decays = np.exp(-self.rates * t)
        if np.any(self.frequencies):
            phase = self.frequencies * t
            return np.sum(decays * (self.cosine * np.cos(phase) + self.sine * np.sin(phase)), -1)
        return decays @ self.cosine

    def _summed(self, times: np.ndarray, function: Callable[[np.ndarray], np.ndarray]):
        flat, step = np.ravel(times)[:, None], _CHUNK // max(self.rates.size, 1)
        parts = [function(flat[k : k + step]) for k in range(0, max(flat.size, 1), step)]
        return np.reshape(np.concatenate(parts), np.shape(times))

    def in_units(self, time: float, size: float, start: float = 0.0) -> "Terms":
        """The same sum with time and size in other units, and times counted from before."""
        rates, frequencies = self.rates / time, self.frequencies / time
        with np.errstate(over="ignore", invalid="ignore"):
            growth, phase = size * np.exp(rates * start), frequencies * start
            cosine = growth * (self.cosine * np.cos(phase) - self.sine * np.sin(phase))
            sine = growth * (self.sine * np.cos(phase) + self.cosine * np.sin(phase))
        return Terms(cosine, sine, rates, frequencies)


class Distance(NamedTuple):
    """A norm of the error, of the kernel, and how uncertain the first is."""

    error: float
    norm: float
    uncertainty: float


def distance(curve: Curve, terms: Terms, norm: str) -> Distance:
    """The norm of the difference of a kernel and a sum of exponentials."""
    cuts = _edges(curve, terms)
    error = lambda t: curve(t) - terms(t)
    points = _points(cuts)
    measure = {"L1": _l1, "L2": _l2, "sup": _sup}[norm]
    times, weights = nodes(cuts, points)
    coarse = points - 8 if points > 12 else points - 1
    value, coarser = measure(error, cuts, points), measure(error, cuts, coarse)
    exact = curve(times)
    sizes = np.abs(exact) + terms.size(times)
    if norm == "sup":
        whole, rounding = np.max(np.abs(exact)), np.max(sizes)
    elif norm == "L1":
        whole, rounding = weights @ np.abs(exact), weights @ sizes
    else:
        whole, rounding = np.sqrt(weights @ exact**2), np.sqrt(weights @ sizes**2)
    uncertainty = abs(value - coarser) + 4 * EPS * float(rounding)
    return Distance(float(value), float(whole), float(uncertainty))


def _points(cuts: np.ndarray) -> int:
    return 32 if cuts.size <= 400 else 6 if cuts.size <= 20_000 else 3


def _edges(curve: Curve, terms: Terms) -> np.ndarray:
    """Panels for the kernel and for every term, with other ends than those of the grid."""
    end, rates = curve.cuts[-1], terms.rates[terms.rates > 0]
    own = curve.own if isinstance(curve.kernel, SampledKernel) else curve.cuts[curve.cuts > 0.5]
    if not isinstance(curve.kernel, SampledKernel):
        own = np.append(own, (own[:-1] + own[1:]) / 2)
    points = np.concatenate([[0.0, end], own[own < end], 40 / rates, 1 / rates])
    points = np.unique(np.clip(points, 0, end))
    first = min(1.0, np.min(1 / rates, initial=np.inf), points[1]) / 8
    cuts = geometric(points, first, ratio=2.5)
    fastest = np.max(np.abs(terms.frequencies), initial=0)
    if fastest > 0:
        # Two periods a panel, for as long as any oscillation lasts.
        slow = np.min(terms.rates[terms.frequencies != 0])
        count = int(min(2000, np.ceil(fastest * min(end, 40 / slow) / (4 * np.pi))))
        cuts = np.unique(np.append(cuts, np.linspace(0, min(end, 40 / slow), count + 1)))
    return cuts


def _l2(error: Callable[[np.ndarray], np.ndarray], cuts: np.ndarray, points: int) -> float:
    times, weights = nodes(cuts, points)
    return float(np.sqrt(weights @ error(times) ** 2))


def _l1(error: Callable[[np.ndarray], np.ndarray], cuts: np.ndarray, points: int) -> float:
    times, _ = nodes(cuts, points)
    values = error(times)
    zeros, _ = crossings(error, times, values)
    # Between two of its zeros the error is smooth, and so is its size.
    times, weights = nodes(np.unique(np.concatenate([cuts, zeros])), points)
    return float(weights @ np.abs(error(times)))


def _sup(error: Callable[[np.ndarray], np.ndarray], cuts: np.ndarray, points: int) -> float:
    times, _ = nodes(cuts, points)
    # Where a kernel jumps, both of its one-sided limits count.
    sides = [cuts[1:] * (1 - 1e-15), cuts[:-1] * (1 + 1e-15)]
    times = np.unique(np.concatenate([times, *sides]))
    sizes = np.abs(error(times))
    best = float(np.max(sizes))
    peaks = np.flatnonzero((sizes[1:-1] >= sizes[:-2]) & (sizes[1:-1] >= sizes[2:])) + 1
    peaks = peaks[np.argsort(-sizes[peaks], kind="stable")[:_REFINED]]
    peaks = peaks[sizes[peaks] > 0.5 * best]
    low, high = times[peaks - 1], times[peaks + 1]
    for _ in range(4):
        trial = low[:, None] + (high - low)[:, None] * np.linspace(0, 1, 17)
        found = np.abs(error(trial))
        if found.size == 0:
            break
        best = max(best, float(np.max(found)))
        k = np.clip(np.argmax(found, axis=1), 1, 15)
        rows = np.arange(k.size)
        low, high = trial[rows, k - 1], trial[rows, k + 1]
    return best


def signed_parts(curve: Curve, terms: Terms, norm: str) -> np.ndarray:
    """The error between its sign changes, part by part: its integral (`"L1"`), that of its
    square (`"L2"`), or its maximum."""
    cuts = _edges(curve, terms)
    times, weights = nodes(cuts, _points(cuts))
    if norm == "sup":
        # The ends of the panels too: the first and the last maximum often lie there.
        times = np.unique(np.concatenate([times, cuts]))
        weights = np.ones_like(times)
    return parts(curve(times), terms(times), terms.size(times), weights, norm)


def parts(
    values: np.ndarray, fit: np.ndarray, sizes: np.ndarray, weights: np.ndarray, norm: str
) -> np.ndarray:
    """The same from values at times in order, and from those of the sum."""
    error = values - fit
    rounding = 8 * EPS * (np.abs(error) + sizes)
    clear = np.abs(error) > rounding
    error, weights = error[clear], weights[clear]
    if error.size == 0:
        return np.zeros(0)
    starts = np.flatnonzero(np.append(True, error[1:] * error[:-1] < 0))
    size = np.abs(error)
    if norm == "sup":
        return np.maximum.reduceat(size, starts)
    return np.add.reduceat(weights * (size if norm == "L1" else size**2), starts)
