import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ._curve import Curve, first_jump
from ._grid import nodes

_EPS = float(np.finfo(float).eps)
_PANELS = 40  # about as many are made
POINTS = 10  # Gauss points a panel
_CELLS = 192
_MANY = 8  # parts of an error for each that is needed


def shift_cuts(curve: Curve) -> np.ndarray:
    """Panels of s on which rho(s + t) is smooth for every t >= 0, unless a kernel has so fine a
    structure so far out that it would take more of them than there may be."""
    end = curve.horizon / 2 if np.isfinite(curve.horizon) else curve.grid.end
    own = curve.cuts[curve.cuts < end]
    own = np.append(own, end)
    # A later panel of the kernel is met by every earlier s.
    lengths = np.minimum.accumulate(np.diff(own)[::-1])[::-1]
    cuts = [0.0, float(own[1])]
    # Half of the panels may go to the scales, and half to the kernel's own structure.
    ratio = max(4.0, (end / cuts[1]) ** (2 / _PANELS))
    floor = 2 * end / _PANELS
    while cuts[-1] < end:
        start = cuts[-1]
        length = lengths[np.searchsorted(own, start, side="right") - 1]
        cuts.append(min(start + min(max(length, floor), (ratio - 1) * start), end))
    return np.array(cuts)


class Spectrum(NamedTuple):
    r"""A weighted Hankel operator $\sqrt{p(s)}\, \rho(s + t) \sqrt{p(t)}$ in an orthonormal basis:
    its eigenvalues by decreasing size, their vectors, and the nodes with square-root weights."""

    values: np.ndarray
    vectors: np.ndarray
    times: np.ndarray
    weights: np.ndarray


def spectrum(
    curve: Curve, cuts: np.ndarray, density: Callable[[np.ndarray], np.ndarray], points: int
) -> Spectrum:
    times, weights = nodes(cuts, points)
    root = np.sqrt(weights * density(times))
    matrix = root[:, None] * curve.at_sums(times) * root
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    order = np.argsort(-np.abs(values))
    return Spectrum(values[order], vectors[:, order], times, root)


def abel(times: np.ndarray) -> np.ndarray:
    r"""The density $1 / \sqrt{\pi s}$, whose convolution with itself is 1."""
    return 1 / np.sqrt(math.pi * times)


def flat(times: np.ndarray) -> np.ndarray:
    return np.ones_like(times)


def tails(singular: np.ndarray) -> np.ndarray:
    """The root of the sum of squares from each on."""
    return np.sqrt(np.cumsum((singular**2)[::-1])[::-1])


def lower_bounds(curve: Curve, norm: str) -> np.ndarray:
    """Bounds for the orders 0, 1, ... that no sum of as many exponentials falls below."""
    cuts = shift_cuts(curve)
    if norm == "sup":
        ends = np.geomspace(cuts[1], cuts[-1], 12)
        return np.max([_sup_bounds(curve, end) for end in ends], axis=0)
    density = abel if norm == "L2" else flat
    found = []
    for points in (POINTS, POINTS - 2):
        singular = np.abs(spectrum(curve, cuts, density, points).values)
        found.append(tails(singular) if norm == "L2" else singular)
    first, second = (values[: found[1].size] for values in found)
    rough = abs(first[0] - second[0]) > 2e-2 * first[0] or first_jump(curve.kernel, 2) is not None
    if rough:
        return _cell_bounds(curve, norm)
    rounding = 16 * _EPS * np.linalg.norm(first)
    return np.maximum(np.minimum(first, second) - np.abs(first - second) - rounding, 0)


def _cell_bounds(curve: Curve, norm: str) -> np.ndarray:
    """The same from functions that are constant on cells, whose integrals are exact for every
    kernel; they converge slowly, so they serve kernels with jumps and kinks."""
    end, finite = curve.grid.end, np.isfinite(curve.horizon)
    # Shifts are uniformly distributed for the L2 norm, and of no distribution for the L1 norm.
    if norm == "L1":
        spans = [(end / 2, end / 2) if finite else (end, end)]
    else:
        spans = [(share * end, (1 - share) * end) for share in (0.125, 0.25, 0.5, 0.75)]
        if not finite:
            spans = [(shift, end) for shift, _ in spans]
    found = []
    for shift, rest in spans:
        rows = np.linspace(0, shift, _CELLS + 1)
        columns = np.linspace(0, rest, _CELLS + 1)
        ramps = curve.ramps(rows[:, None] + columns)
        matrix = np.diff(np.diff(ramps, axis=0), axis=1)
        cell = shift * rest / _CELLS**2
        scale = np.sqrt(cell * (shift if norm == "L2" else 1))
        rounding = 8 * _EPS * np.max(np.abs(ramps)) * _CELLS / scale
        singular = np.linalg.svd(matrix / scale, compute_uv=False)
        values = tails(singular) if norm == "L2" else singular
        found.append(np.maximum(values - rounding, 0))
    return np.max(found, axis=0)


def _sup_bounds(curve: Curve, end: float) -> np.ndarray:
    # Any discrete probability will do, without any error of quadrature.
    times = np.concatenate([[0.0], np.geomspace(end * 1e-4, end, 63)])
    weights = np.gradient(np.sqrt(times))
    root = np.sqrt(weights / np.sum(weights))
    matrix = root[:, None] * curve.at_sums(times) * root
    singular = np.linalg.svd(matrix, compute_uv=False)
    return np.maximum(tails(singular) - 16 * _EPS * np.linalg.norm(singular), 0)


def alternation_bound(parts: np.ndarray, needed: int, norm: str) -> float:
    """De la Vallee-Poussin's bound from the sizes of the error between its sign changes.

    Two sums of m real exponentials differ by one of 2m, which has at most 2m - 1 zeros, and one
    more with a constant. So against 2m + 1 parts of alternating sign, or one more, no other sum
    can be better in each of them.
    """
    if norm == "sup":
        # The highest level that enough parts reach whose signs alternate.
        levels, low, high = np.sort(parts)[::-1], 0, parts.size
        while low < high:
            middle = (low + high) // 2
            signs = np.flatnonzero(parts >= levels[middle]) % 2
            if 1 + np.count_nonzero(np.diff(signs)) < needed:
                low = middle + 1
            else:
                high = middle
        return float(levels[low]) if low < parts.size else 0.0
    while parts.size > _MANY * needed:
        # Of noise there are many: all that are smaller than both neighbours join them at once.
        least = np.zeros(parts.size, bool)
        least[1:-1] = (parts[1:-1] <= parts[:-2]) & (parts[1:-1] < parts[2:])
        starts = np.append(True, ~(least[1:] | least[:-1]))
        if np.sum(starts) == parts.size or np.sum(starts) < needed:
            break
        parts = np.add.reduceat(np.where(least, 0, parts), np.flatnonzero(starts))
    sizes = list(parts)
    while len(sizes) > needed:
        k = int(np.argmin(sizes))
        if len(sizes) == needed + 1 or k in (0, len(sizes) - 1):
            sizes.pop(0 if sizes[0] < sizes[-1] else -1)
        else:
            sizes[k - 1 : k + 2] = [sizes[k - 1] + sizes[k + 1]]
    if len(sizes) < needed:
        return 0.0
    return float(np.sqrt(min(sizes)) if norm == "L2" else min(sizes))
