"""Times at which kernels and sums of exponentials are compared, and what they weigh.

Panels whose ends grow geometrically away from 0 resolve exponentials of every rate; a kernel's
breakpoints say what more it needs.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from ..numerics import gauss_rule

Edges = Float[np.ndarray, " edges"]
Nodes = Float[np.ndarray, " nodes"]

RATIO = 4.0  # of the ends of one panel
MOST = 6000  # times with which sums are searched for; of more, some are left out
_FEW = 2000  # times that are few enough for squares
_DEGREE = 20  # polynomials that stand for exponentials of any rate on a panel of ratio 2
_STEPS = 8  # steps of false position, whose order is above 1
_CHUNK = 2**16  # rows of a matrix that are held at once


class Grid(NamedTuple):
    """Times with weights, on which a sum of exponentials is compared with values.

    `slowest` and `fastest` are the rates between which exponentials are resolved, `scale` is the
    shortest time on which the values change, and `end` where they have become negligible.
    """

    times: Nodes
    weights: Nodes
    values: Nodes
    slowest: float
    fastest: float
    scale: float
    end: float


def nodes(cuts: Edges, points: int) -> tuple[Nodes, Nodes]:
    """Gauss nodes and weights of all panels, in order."""
    x, weights = gauss_rule(points)
    widths = np.diff(cuts)[:, None]
    return (cuts[:-1, None] + widths * (1 + x) / 2).ravel(), (widths * weights / 2).ravel()


def geometric(points: Edges, first: float, ratio: float = RATIO) -> Float[np.ndarray, " more"]:
    """Edges with further ones in between, so that no panel is longer than `ratio` times its
    start but for the first, of length `first`."""
    starts, stops = points[:-1], points[1:]
    lows = np.maximum(starts, first)
    spans = np.maximum(stops / lows, 1)
    # Rounding must not decide on one more where a panel is exactly as long as it may be.
    steps = np.ceil(np.log(spans) / np.log(ratio) - 1e-9).astype(int)
    panel = np.repeat(np.arange(starts.size), steps)
    within = np.arange(panel.size) - np.repeat(np.cumsum(steps) - steps, steps)
    inner = lows[panel] * spans[panel] ** (within / steps[panel])
    return np.unique(np.concatenate([points, inner]))


def compressed(grid: Grid, oscillating: bool, lag: int = 1) -> Grid:
    """A smaller grid with the same squared distance, but for a constant, from every sum.

    On a panel whose end is twice its start an exponential of any rate is a polynomial of low
    degree to rounding. So all that counts of many values there is their projection onto such
    polynomials, and that is a Gauss rule of as many nodes, for the measure that the times and
    weights are. Panels are halved further where sums may oscillate, until what the projection
    leaves out looks like noise: values that are `lag` apart know nothing of each other.
    """
    if grid.times.size <= _FEW:
        return grid
    first = grid.scale * _DEGREE
    cuts = geometric(np.array([0.0, max(grid.times[-1], first)]), first, 2.0)
    ends = np.searchsorted(grid.times, cuts[1:-1], side="right")
    waiting = list(zip([0, *ends], [*ends, grid.times.size], strict=True))[::-1]
    parts: list[np.ndarray] = []
    while waiting:
        start, stop = waiting.pop()
        part = np.array([grid.times[start:stop], grid.weights[start:stop], grid.values[start:stop]])
        if stop - start > 2 * _DEGREE:
            rule, rest = _gauss_of(part)
            if oscillating and not _noise(rest, part[2], lag):
                middle = (start + stop) // 2
                waiting += [(middle, stop), (start, middle)]
                continue
            part = rule
        parts.append(part)
    times, weights, values = np.concatenate(parts, axis=1)
    return grid._replace(times=times, weights=weights, values=values)


def _gauss_of(part: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The Gauss rule for a discrete measure with the projection of its values, and the rest."""
    times, weights, values = part
    x = 2 * (times - times[0]) / (times[-1] - times[0]) - 1
    triangle = np.zeros((0, _DEGREE))
    product, moments = np.zeros((_DEGREE, _DEGREE)), np.zeros(_DEGREE)
    chunks = [slice(k, k + _CHUNK) for k in range(0, x.size, _CHUNK)]
    for k in chunks:
        root = np.sqrt(weights[k])
        columns = np.polynomial.legendre.legvander(x[k], _DEGREE - 1) * root[:, None]
        triangle = triangular(triangle, columns)
        product += columns.T @ (x[k][:, None] * columns)
        moments += columns.T @ (root * values[k])
    inverse = np.linalg.inv(triangle)
    components = inverse.T @ moments
    # Multiplication by x in orthonormal polynomials: its eigenvalues are the nodes.
    points, vectors = np.linalg.eigh(inverse.T @ product @ inverse)
    roots = vectors[0] * triangle[0, 0]
    projected = vectors.T @ components / roots
    fit = inverse @ components
    rest = np.concatenate([values[k] - np.polynomial.legendre.legval(x[k], fit) for k in chunks])
    nodes = times[0] + (points + 1) / 2 * (times[-1] - times[0])
    return np.array([nodes, roots**2, projected]), rest


def triangular(triangle: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The triangular factor of a matrix that has more rows below those of a known factor."""
    return np.asarray(np.linalg.qr(np.concatenate([triangle, rows]), mode="r"))


def _noise(rest: np.ndarray, values: np.ndarray, lag: int) -> bool:
    """Whether there is no correlation over a lag, or nothing but rounding."""
    power = rest @ rest
    if power <= 1e-26 * (values @ values):
        return True
    return abs(rest[lag:] @ rest[:-lag]) < 4 * power / np.sqrt(rest.size / lag)


def thinned(grid: Grid, most: int) -> tuple[Grid, np.ndarray]:
    """Every few of the times of a grid, on all scales of time, with the weights of those left out
    as well; and their places."""
    places = np.arange(grid.times.size)
    if grid.times.size <= most:
        return grid, places
    # Half of them evenly in the logarithm of time, and half evenly among the times.
    spread = np.log1p(grid.times / grid.scale)
    spread = spread / spread[-1] + places / places[-1]
    kept = np.unique(np.searchsorted(spread, np.linspace(0, 2, most)))
    kept = np.unique(np.minimum(np.append(kept, places[-1]), places[-1]))
    starts = np.append(0, (kept[1:] + kept[:-1] + 1) // 2)
    weights = np.add.reduceat(grid.weights, starts)
    return grid._replace(times=grid.times[kept], weights=weights, values=grid.values[kept]), kept


def crossings(
    error: Callable[[np.ndarray], np.ndarray], times: np.ndarray, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Where an error changes its sign between times at which its values are known, and how
    steeply."""
    change = np.flatnonzero(np.sign(values[:-1]) * np.sign(values[1:]) < 0)
    low, high = times[change], times[change + 1]
    below, above = values[change], values[change + 1]
    steepness = np.abs(above - below) / (high - low)
    # False position, which halves the value at an end that stays (Illinois).
    for _ in range(_STEPS):
        middle = high - above * (high - low) / (above - below)
        value = error(middle)
        crossed = np.sign(value) != np.sign(above)
        low, below = np.where(crossed, high, low), np.where(crossed, above, below / 2)
        high, above = middle, value
    return high, steepness
