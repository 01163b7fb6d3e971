"""The distance of a sum of exponentials from a kernel, by quadrature of its own.

Nothing is shared with the optimisation but the kernel: other panels, other rules, and the sum as
a model evaluates it, rounding errors included.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ..targets import SampledKernel
from ..targets._inner import Kernel
from ._grid import geometric, Grid, nodes, sample

_EPS = float(np.finfo(float).eps)


class Terms(NamedTuple):
    r"""$\sum_j e^{-w_j t} (a_j \cos \nu_j t + b_j \sin \nu_j t)$."""

    cosine: np.ndarray
    sine: np.ndarray
    rates: np.ndarray
    frequencies: np.ndarray

    def __call__(self, times: np.ndarray) -> np.ndarray:
        t = times[..., None]
        decays = np.exp(-self.rates * t)
        if np.any(self.frequencies):
            phase = self.frequencies * t
            return np.sum(decays * (self.cosine * np.cos(phase) + self.sine * np.sin(phase)), -1)
        return decays @ self.cosine

    def size(self, times: np.ndarray) -> np.ndarray:
        """The sum of the sizes of all terms, on which rounding errors are relative."""
        return np.exp(-self.rates * times[..., None]) @ np.hypot(self.cosine, self.sine)


class Distance(NamedTuple):
    """A norm of the error, of the kernel, and how uncertain the first is."""

    error: float
    norm: float
    uncertainty: float


def distance(kernel: Kernel, terms: Terms, grid: Grid, norm: str) -> Distance:
    """The norm of the difference of a kernel and a sum of exponentials.

    **Arguments:**

    - `kernel`, `terms`: The two.
    - `grid`: The grid of the optimisation, for the breakpoints of the kernel alone.
    - `norm`: `"L1"`, `"L2"` or `"sup"`.
    """
    cuts = _edges(kernel, terms, grid)
    error = lambda t: sample(kernel, t) - terms(t)
    points = 6 if cuts.size > 400 else 32
    measure = {"L1": _l1, "L2": _l2, "sup": _sup}[norm]
    times, weights = nodes(cuts, points)
    value, coarser = measure(error, cuts, points), measure(error, cuts, max(points - 8, 4))
    exact = sample(kernel, times)
    sizes = np.abs(exact) + terms.size(times)
    if norm == "sup":
        whole, rounding = np.max(np.abs(exact)), np.max(sizes)
    elif norm == "L1":
        whole, rounding = weights @ np.abs(exact), weights @ sizes
    else:
        whole, rounding = np.sqrt(weights @ exact**2), np.sqrt(weights @ sizes**2)
    uncertainty = abs(value - coarser) + 4 * _EPS * float(rounding)
    return Distance(float(value), float(whole), float(uncertainty))


def _edges(kernel: Kernel, terms: Terms, grid: Grid) -> np.ndarray:
    """Panels for the kernel and for every term, with other ends than those of the grid."""
    end = grid.edges[-1]
    if isinstance(kernel, SampledKernel):
        own = np.asarray(kernel.times)
    else:
        own = grid.edges[grid.edges > 0.5 * grid.scale]
        own = np.append(own, (own[:-1] + own[1:]) / 2)
    points = np.concatenate([[0.0, end], own[own < end], 40 / terms.rates, 1 / terms.rates])
    points = np.unique(np.clip(points, 0, end))
    first = min(grid.scale, np.min(1 / terms.rates, initial=np.inf), points[1]) / 8
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
    signs = np.sign(error(times))
    change = np.flatnonzero(signs[:-1] * signs[1:] < 0)
    low, high, sign = times[change], times[change + 1], signs[change]
    for _ in range(26):
        middle = (low + high) / 2
        same = np.sign(error(middle)) == sign
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    # Between two of its zeros the error is smooth, and so is its size.
    times, weights = nodes(np.unique(np.concatenate([cuts, (low + high) / 2])), points)
    return float(weights @ np.abs(error(times)))


def _sup(error: Callable[[np.ndarray], np.ndarray], cuts: np.ndarray, points: int) -> float:
    times, _ = nodes(cuts, points)
    # Where a kernel jumps, both of its one-sided limits count.
    sides = [np.nextafter(cuts[1:], 0), np.nextafter(cuts[:-1], np.inf)]
    times = np.unique(np.concatenate([times, *sides]))
    sizes = np.abs(error(times))
    best = float(np.max(sizes))
    peaks = np.flatnonzero((sizes[1:-1] >= sizes[:-2]) & (sizes[1:-1] >= sizes[2:])) + 1
    peaks = peaks[sizes[peaks] > 0.5 * best][:256]
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


def signed_parts(kernel: Kernel, terms: Terms, grid: Grid, norm: str) -> np.ndarray:
    """The error between its sign changes, part by part: its integral (`"L1"`), that of its
    square (`"L2"`), or its maximum."""
    cuts = _edges(kernel, terms, grid)
    times, weights = nodes(cuts, 6 if cuts.size > 400 else 32)
    if norm == "sup":
        # The ends of the panels too: the first and the last maximum often lie there.
        times = np.unique(np.concatenate([times, cuts]))
        weights = np.ones_like(times)
    error = sample(kernel, times) - terms(times)
    rounding = 8 * _EPS * (np.abs(error) + terms.size(times))
    clear = np.abs(error) > rounding
    error, weights = error[clear], weights[clear]
    if error.size == 0:
        return np.zeros(0)
    starts = np.flatnonzero(np.append(True, error[1:] * error[:-1] < 0))
    size = np.abs(error)
    if norm == "sup":
        return np.maximum.reduceat(size, starts)
    return np.add.reduceat(weights * (size if norm == "L1" else size**2), starts)
