r"""Sums of exponentials fitted to a kernel on a grid, from given rates.

Amplitudes enter linearly and are eliminated (variable projection): what is optimised are the
logarithms of the rates, and the frequencies. All linear algebra is orthogonal and acts on the
square-root weighted basis itself, never on its Gram matrix, whose condition is the square.
"""

from typing import NamedTuple

import numpy as np
import scipy.optimize

from ._distance import Terms
from ._grid import Grid

# Below it, amplitudes would grow until their rounding errors outweigh what they gain.
CUTOFF = 1e-13


class Rates(NamedTuple):
    """Real rates, and pairs of complex ones."""

    real: np.ndarray
    pairs: np.ndarray
    frequencies: np.ndarray

    @property
    def order(self) -> int:
        return self.real.size + 2 * self.pairs.size


class Problem(NamedTuple):
    """A grid, and the bound that rates have to keep."""

    grid: Grid
    min_rate: float

    def pack(self, rates: Rates) -> np.ndarray:
        lowest, highest = self._range()
        logs = [np.log(np.clip(w - self.min_rate, lowest, highest)) for w in rates[:2]]
        return np.concatenate([*logs, rates.frequencies])

    def unpack(self, free: np.ndarray, pairs: int) -> Rates:
        lowest, highest = self._range()
        free, count = np.nan_to_num(free), free.size - pairs
        rates = self.min_rate + np.exp(np.clip(free[:count], np.log(lowest), np.log(highest)))
        return Rates(rates[: count - pairs], rates[count - pairs :], free[count:])

    def _range(self) -> tuple[float, float]:
        slowest, fastest = self.grid.slowest, self.grid.fastest
        if self.min_rate > 0:
            slowest = 1e-9 * self.min_rate
        return slowest, max(fastest, 10 * slowest)


def basis(times: np.ndarray, rates: Rates) -> np.ndarray:
    """One column per real rate, two per pair, the sine over its frequency."""
    t = times[:, None]
    real = np.exp(-t * rates.real)
    if rates.pairs.size == 0:
        return real
    decays = np.exp(-t * rates.pairs)
    phase = t * rates.frequencies
    sines = t * np.sinc(phase / np.pi)
    return np.concatenate([real, decays * np.cos(phase), decays * sines], axis=1)


def tangents(times: np.ndarray, rates: Rates, amplitudes: np.ndarray, offset: float) -> np.ndarray:
    """Derivatives of the sum in the free parameters, in the order of `Problem.pack`."""
    t = times[:, None]
    real, pairs = rates.real.size, rates.pairs.size
    a, b, c = np.split(amplitudes, [real, real + pairs])
    free = -t * np.exp(-t * rates.real) * a * (rates.real - offset)
    if pairs == 0:
        return free
    decays, phase = np.exp(-t * rates.pairs), t * rates.frequencies
    cosines, sines = np.cos(phase), t * np.sinc(phase / np.pi)
    rate = -t * decays * (b * cosines + c * sines) * (rates.pairs - offset)
    # (t cos(nu t) - sin(nu t) / nu) / nu, by its series where it cancels
    nu = np.where(rates.frequencies == 0, 1.0, rates.frequencies)
    small = np.abs(phase) < 0.03
    series = -(t**3) * rates.frequencies * (1 / 3 - phase**2 / 30)
    slope = np.where(small, series, (t * cosines - sines) / nu)
    frequency = decays * (-b * t * rates.frequencies * sines + c * slope)
    return np.concatenate([free, rate, frequency], axis=1)


class Linear(NamedTuple):
    amplitudes: np.ndarray
    range: np.ndarray
    residual: np.ndarray


def solve(columns: np.ndarray, values: np.ndarray) -> Linear:
    """Least squares with columns of any scale and condition."""
    norms = np.linalg.norm(columns, axis=0)
    norms = np.where(norms > 0, norms, 1)
    span, inverse = _orthonormal(columns / norms)
    components = span.T @ values
    return Linear(inverse @ components / norms, span, values - span @ components)


def least_squares(
    problem: Problem, start: Rates, weights: np.ndarray, evaluations: int
) -> tuple[Rates, float]:
    """Levenberg and Marquardt's method on the weighted squares, with the amplitudes eliminated.

    **Returns:** The rates, and the root of the sum of squares.
    """
    root = np.sqrt(weights)[:, None]
    grid, pairs = problem.grid, start.pairs.size
    values = root[:, 0] * grid.values
    cache: dict[bytes, tuple[Rates, Linear]] = {}

    def evaluate(free: np.ndarray) -> tuple[Rates, Linear]:
        key = free.tobytes()
        if key not in cache:
            rates = problem.unpack(free, pairs)
            cache.clear()
            cache[key] = rates, solve(root * basis(grid.times, rates), values)
        return cache[key]

    def residual(free: np.ndarray) -> np.ndarray:
        return evaluate(free)[1].residual

    def jacobian(free: np.ndarray) -> np.ndarray:
        rates, linear = evaluate(free)
        # Kaufman's approximation: its gradient is exact.
        slopes = -root * tangents(grid.times, rates, linear.amplitudes, problem.min_rate)
        return slopes - linear.range @ (linear.range.T @ slopes)

    found = scipy.optimize.least_squares(
        residual,
        problem.pack(start),
        jac=jacobian,  # pyright: ignore
        method="lm",
        x_scale=1.0,
        ftol=1e-14,
        xtol=1e-12,
        gtol=1e-15,
        max_nfev=evaluations,
    )
    return problem.unpack(found.x, pairs), float(np.sqrt(2 * found.cost))


def terms(rates: Rates, amplitudes: np.ndarray) -> Terms:
    """The sum of exponentials of a column's amplitudes."""
    real, pairs = rates.real.size, rates.pairs.size
    a, b, c = np.split(amplitudes, [real, real + pairs])
    still = np.zeros(real)
    return Terms(
        np.concatenate([a, b]),
        np.concatenate([still, c / np.where(rates.frequencies == 0, 1, rates.frequencies)]),
        np.concatenate([rates.real, rates.pairs]),
        np.concatenate([still, rates.frequencies]),
    )


def amplitudes(grid: Grid, rates: Rates, weights: np.ndarray) -> np.ndarray:
    root = np.sqrt(weights)
    return solve(root[:, None] * basis(grid.times, rates), root * grid.values).amplitudes


def reweighted(
    problem: Problem, start: Rates, power: float, first: np.ndarray, rounds: int
) -> tuple[Rates, np.ndarray]:
    """The mean of a power of the error, by squares weighted with its other powers.

    **Returns:** The best rates met, and the weights with which their amplitudes are solved for.
    """
    grid, weights, rates = problem.grid, first, start
    best: tuple[float, Rates, np.ndarray] = (np.inf, start, first)
    for k in range(rounds):
        rates, _ = least_squares(problem, rates, weights, 4 if k else 60)
        error = np.abs(grid.values - basis(grid.times, rates) @ amplitudes(grid, rates, weights))
        size = np.max(error)
        if size == 0:
            return rates, weights
        total = first @ error if power == 1 else size
        if total < best[0]:
            best = (float(total), rates, weights)
        if power == 1:
            # Errors near the zeros would weigh without bound; what is left of them shrinks.
            typical = (first @ error**2) / (first @ error)
            weights = first / np.maximum(error, 0.5**k * typical + 1e-6 * typical)
        else:
            # Lawson's rule, with a growing power.
            weights = weights * (error / size + 1e-6)
            weights = weights / np.sum(weights)
    return best[1], best[2]


def minimax(
    problem: Problem, rates: Rates, start: np.ndarray, rounds: int = 40
) -> tuple[Rates, np.ndarray]:
    """Least maximal error by exchange: the linearised problem is solved on the extrema of the
    error, with free parameters that move no further than is found to pay."""
    grid, pairs, count = problem.grid, rates.pairs.size, start.size
    values, coefficients, free = basis(grid.times, rates), start, problem.pack(rates)
    error = grid.values - values @ coefficients
    level, reach = float(np.max(np.abs(error))), 0.3
    for _ in range(rounds):
        slopes = tangents(grid.times, rates, coefficients, problem.min_rate)
        columns = np.concatenate([values, slopes], axis=1)
        norms = np.max(np.abs(columns), axis=0)
        moving = norms > 1e-6 * np.max(np.abs(values * coefficients)) * (
            np.arange(norms.size) >= count
        )
        span, inverse = _orthonormal(columns[:, moving] / norms[moving])
        inverse = inverse / norms[moving, None]
        rates_moved = inverse[np.flatnonzero(moving) >= count]
        rows = _extrema(error)
        # In units in which both the errors and the coordinates are of order 1.
        unit = np.sqrt(rows.size)
        side, moved = unit * span[rows], unit * level * rates_moved
        found = _least_maximum(side, error[rows] / level, moved, reach)
        if found is None:
            break
        move = np.zeros(norms.size)
        move[moving] = inverse @ (found * unit * level)
        trial = problem.unpack(free + move[count:], pairs)
        trial_values = basis(grid.times, trial)
        # Moved rates leave errors of second order, far above the level that is sought; most of
        # them the amplitudes take up.
        moved = _refit(trial_values, grid.values, coefficients + move[:count], rows)
        trial_error = grid.values - trial_values @ moved
        trial_level = float(np.max(np.abs(trial_error)))
        if trial_level < level:
            gain = 1 - trial_level / level
            rates, values, coefficients = trial, trial_values, moved
            free, error, level = problem.pack(rates), trial_error, trial_level
            reach = min(2 * reach, 1.0)
            if gain < 1e-6:
                break
        else:
            reach = reach / 5
            if reach < 1e-7:
                break
    return rates, coefficients


def _refit(
    values: np.ndarray, target: np.ndarray, start: np.ndarray, rows: np.ndarray
) -> np.ndarray:
    """Amplitudes of least maximal error for given rates."""
    norms = np.max(np.abs(values), axis=0)
    span, inverse = _orthonormal(values / norms)
    coefficients = start
    error = target - values @ coefficients
    best, level = start, float(np.max(np.abs(error)))
    for _ in range(4):
        rows = np.union1d(rows, _extrema(error))
        unit = np.sqrt(rows.size)
        size = float(np.max(np.abs(error)))
        found = _least_maximum(unit * span[rows], error[rows] / size)
        if found is None:
            break
        coefficients = coefficients + inverse @ (found * unit * size) / norms
        error = target - values @ coefficients
        if np.max(np.abs(error)) >= level:
            break
        best, level = coefficients, float(np.max(np.abs(error)))
    return best


def _least_maximum(
    side: np.ndarray, error: np.ndarray, moved: np.ndarray | None = None, reach: float = 0.0
) -> np.ndarray | None:
    """Coordinates z that minimise the maximum of |error - side z|, where |moved z| <= reach."""
    ones = np.ones((side.shape[0], 1))
    rows = [np.block([[-side, -ones], [side, -ones]])]
    limits = [np.concatenate([-error, error])]
    if moved is not None:
        still = np.zeros((moved.shape[0], 1))
        rows.append(np.block([[moved, still], [-moved, still]]))
        limits.append(np.full(2 * moved.shape[0], reach))
    found = scipy.optimize.linprog(
        np.append(np.zeros(side.shape[1]), 1.0),
        A_ub=np.concatenate(rows),
        b_ub=np.concatenate(limits),
        bounds=[(None, None)] * side.shape[1] + [(0, None)],
        method="highs",
    )
    return None if found.x is None else found.x[:-1]


def _orthonormal(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis of the columns' span, and the map from its coordinates to theirs."""
    q, r = np.linalg.qr(columns)
    u, s, vt = np.linalg.svd(r)
    kept = s > CUTOFF * s[0]
    return q @ u[:, kept], vt[kept].T / s[kept]


def _extrema(error: np.ndarray) -> np.ndarray:
    """Indices of the local extrema, the ends, and their neighbours."""
    size = np.abs(error)
    inner = np.flatnonzero((size[1:-1] >= size[:-2]) & (size[1:-1] >= size[2:])) + 1
    inner = inner[size[inner] > 1e-3 * np.max(size)]
    centres = np.concatenate([[0], inner, [size.size - 1]])
    around = centres[:, None] + np.arange(-2, 3)
    return np.unique(np.clip(around, 0, size.size - 1))
