r"""Sums of exponentials fitted to a kernel on a grid, from given rates.

Amplitudes enter linearly and are eliminated (variable projection): what is optimised are the
logarithms of the rates, and the frequencies. All linear algebra is orthogonal and acts on the
square-root weighted basis itself, never on its Gram matrix, whose condition is the square.
"""

from typing import NamedTuple

import numpy as np

from .._lazy import scipy
from ._distance import EPS, Terms
from ._grid import Grid, triangular

_CHUNK = 2**15  # times at once
_REFINEMENTS = 6  # steps of Gauss and Newton's method
_EXCHANGES = 25  # rounds of an exchange of extrema
_FAR = 1e3  # how far amplitudes may move in units of the error, lest few rows leave them free
_SHARE = 0.05  # of a possible gain that may be left for the next step
_NOTHING = 1e-6  # a share of the error by which it need not be reduced any further
_FIRST_STEP = 1.0  # how far the first step may go, in logarithms of rates

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

    @property
    def free(self) -> np.ndarray:
        """The mixing of coordinates of `Problem.moved` in which all are free."""
        return np.eye(self.order)


class Problem(NamedTuple):
    """What sums of exponentials are fitted to.

    - `times`, `values`, `weights`: as in a grid; errors count `factors` times, one for all times
        or one for each.
    - `slowest`, `fastest`, `min_rate`: the bounds that rates keep.
    - `offset`: whether a constant is added to the sum; its amplitude comes last.
    """

    times: np.ndarray
    weights: np.ndarray
    values: np.ndarray
    factors: np.ndarray
    slowest: float
    fastest: float
    min_rate: float
    offset: bool

    def columns(self, rates: Rates) -> np.ndarray:
        columns = basis(self.times, rates)
        if self.offset:
            columns = np.concatenate([columns, np.ones((self.times.size, 1))], axis=1)
        return self._scaled(columns)

    def slopes(self, rates: Rates, amplitudes: np.ndarray, start: Rates) -> np.ndarray:
        """Derivatives of the sum in the coordinates of `moved`."""
        found = tangents(self.times, rates, amplitudes[: rates.order], self.min_rate)
        found[:, found.shape[1] - rates.pairs.size :] *= np.hypot(start.pairs, start.frequencies)
        return self._scaled(found)

    def error(self, rates: Rates, amplitudes: np.ndarray) -> np.ndarray:
        return self.values * self.factors - self.columns(rates) @ amplitudes

    def part(self, which: slice) -> "Problem":
        """With some of the times alone."""
        factors = self.factors[which] if self.factors.ndim else self.factors
        return self._replace(
            times=self.times[which],
            weights=self.weights[which],
            values=self.values[which],
            factors=factors,
        )

    def joined(self, other: "Problem", places: np.ndarray) -> "Problem":
        """With some of the times of another as well."""
        times, kept = np.unique(np.append(self.times, other.times[places]), return_index=True)
        join = lambda mine, more: np.append(mine, more[places])[kept]
        factors = join(self.factors, other.factors) if self.factors.ndim else self.factors
        return self._replace(
            times=times,
            weights=join(self.weights, other.weights),
            values=join(self.values, other.values),
            factors=factors,
        )

    def _scaled(self, columns: np.ndarray) -> np.ndarray:
        return self.factors[..., None] * columns

    def moved(self, start: Rates, free: np.ndarray) -> Rates:
        """Rates whose logarithms, above the margin, and whose frequencies, relative to the size of
        what they belong to, lie by `free` from those of others."""
        lowest, highest = self.slowest, self.fastest
        if self.min_rate > 0:
            lowest = 1e-9 * self.min_rate
        highest = max(highest, 10 * lowest)
        real, pairs = start.real.size, start.pairs.size
        free = np.nan_to_num(free)
        rates = np.concatenate([start.real, start.pairs]) - self.min_rate
        logs = np.log(np.clip(rates, lowest, highest)) + free[: real + pairs]
        rates = self.min_rate + np.exp(np.clip(logs, np.log(lowest), np.log(highest)))
        frequencies = (
            start.frequencies + np.hypot(start.pairs, start.frequencies) * free[real + pairs :]
        )
        return Rates(rates[:real], rates[real:], frequencies)


def as_problem(
    grid: Grid, min_rate: float, offset: bool, factors: np.ndarray | None = None
) -> Problem:
    times, weights, values, slowest, fastest, *_ = grid
    factor = np.array(1.0) if factors is None else factors
    return Problem(times, weights, values, factor, slowest, fastest, min_rate, offset)


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


def tangents(times: np.ndarray, rates: Rates, amplitudes: np.ndarray, margin: float) -> np.ndarray:
    """Derivatives of the sum in the logarithms of the rates above a margin, and in the
    frequencies."""
    t = times[:, None]
    real, pairs = rates.real.size, rates.pairs.size
    a, b, c = np.split(amplitudes, [real, real + pairs])
    free = -t * np.exp(-t * rates.real) * a * (rates.real - margin)
    if pairs == 0:
        return free
    decays, phase = np.exp(-t * rates.pairs), t * rates.frequencies
    cosines, sines = np.cos(phase), t * np.sinc(phase / np.pi)
    rate = -t * decays * (b * cosines + c * sines) * (rates.pairs - margin)
    # (t cos(nu t) - sin(nu t) / nu) / nu, by its series where it cancels
    nu = np.where(rates.frequencies == 0, 1.0, rates.frequencies)
    small = np.abs(phase) < 0.03
    series = -(t**3) * rates.frequencies * (1 / 3 - phase**2 / 30)
    slope = np.where(small, series, (t * cosines - sines) / nu)
    frequency = decays * (-b * t * rates.frequencies * sines + c * slope)
    return np.concatenate([free, rate, frequency], axis=1)


class Linear(NamedTuple):
    """Amplitudes, by how much they would spread for errors of 1, and what is left of the values
    beside the range of the columns."""

    amplitudes: np.ndarray
    spreads: np.ndarray
    range: np.ndarray
    residual: np.ndarray


def solve(columns: np.ndarray, values: np.ndarray) -> Linear:
    """Least squares with columns of any scale and condition."""
    norms = np.linalg.norm(columns, axis=0)
    norms = np.where(norms > 0, norms, 1)
    span, inverse = orthonormal(columns / norms)
    components, inverse = span.T @ values, inverse / norms[:, None]
    spreads = np.linalg.norm(inverse, axis=1)
    return Linear(inverse @ components, spreads, span, values - span @ components)


def least_squares(
    problem: Problem,
    start: Rates,
    weights: np.ndarray,
    evaluations: int,
    mixing: np.ndarray,
) -> tuple[Rates, float]:
    """Levenberg and Marquardt's method on the weighted squares, with the amplitudes eliminated.

    **Arguments:**

    - `mixing`: A matrix from what is free to the coordinates of `Problem.moved`.

    **Returns:** The rates, and the root of the sum of squares.
    """
    root = np.sqrt(weights)
    values = root * problem.factors * problem.values
    cache: dict[bytes, tuple[Rates, Linear]] = {}

    def evaluate(free: np.ndarray) -> tuple[Rates, Linear]:
        key = free.tobytes()
        if key not in cache:
            rates = problem.moved(start, mixing @ free)
            cache.clear()
            cache[key] = rates, solve(root[:, None] * problem.columns(rates), values)
        return cache[key]

    def residual(free: np.ndarray) -> np.ndarray:
        return evaluate(free)[1].residual

    def jacobian(free: np.ndarray) -> np.ndarray:
        rates, linear = evaluate(free)
        # Kaufman's approximation: its gradient is exact.
        slopes = -root[:, None] * (problem.slopes(rates, linear.amplitudes, start) @ mixing)
        return slopes - linear.range @ (linear.range.T @ slopes)

    count = mixing.shape[1]
    if count == 0:
        return start, float(np.linalg.norm(residual(np.zeros(0))))
    found = scipy.optimize.leastsq(
        residual,
        np.zeros(count),
        Dfun=jacobian,
        full_output=True,
        ftol=1e-14,
        xtol=1e-12,
        gtol=1e-15,
        maxfev=evaluations,
        factor=_FIRST_STEP,  # pyright: ignore[reportArgumentType]
        diag=np.ones(count),
    )
    rates, linear = evaluate(found[0])
    return rates, float(np.linalg.norm(linear.residual))


def terms(rates: Rates, amplitudes: np.ndarray) -> Terms:
    """The sum of exponentials of a column's amplitudes."""
    real, pairs = rates.real.size, rates.pairs.size
    a, b, c, offset = np.split(amplitudes, [real, real + pairs, real + 2 * pairs])
    still = np.zeros(real)
    return Terms(
        np.concatenate([a, b, offset]),
        np.concatenate(
            [still, c / np.where(rates.frequencies == 0, 1, rates.frequencies), 0 * offset]
        ),
        np.concatenate([rates.real, rates.pairs, 0 * offset]),
        np.concatenate([still, rates.frequencies, 0 * offset]),
    )


def amplitudes(problem: Problem, rates: Rates, weights: np.ndarray) -> np.ndarray:
    root = np.sqrt(weights)
    values = root * problem.factors * problem.values
    return solve(root[:, None] * problem.columns(rates), values).amplitudes


def refined(
    problem: Problem, rates: Rates, coefficients: np.ndarray, mixing: np.ndarray
) -> tuple[Rates, np.ndarray]:
    """The least squares to the last digits, by a few steps of Gauss and Newton's method in rates
    and amplitudes together, with as many times as there may be."""

    def look(rates: Rates, coefficients: np.ndarray) -> tuple[np.ndarray, float]:
        triangle = np.zeros((0, coefficients.size + mixing.shape[1] + 1))
        for k in range(0, problem.times.size, _CHUNK):
            part = problem.part(slice(k, k + _CHUNK))
            slopes = part.slopes(rates, coefficients, rates) @ mixing
            error = part.error(rates, coefficients)
            rows = np.concatenate([part.columns(rates), slopes, error[:, None]], axis=1)
            rows = np.sqrt(part.weights)[:, None] * rows
            triangle = triangular(triangle, rows)
        return triangle, float(np.sum(triangle[:, -1] ** 2))

    triangle, squares = look(rates, coefficients)
    rounding = 8 * EPS * np.sqrt(problem.weights @ (problem.values * problem.factors) ** 2)
    for _ in range(_REFINEMENTS):
        move = solve(triangle[:, :-1], triangle[:, -1]).amplitudes
        moved = coefficients + move[: coefficients.size]
        turned = problem.moved(rates, mixing @ move[coefficients.size :])
        trial, least = look(turned, moved)
        # Near the end rounding decides which of them is less.
        if not least <= squares + rounding * np.sqrt(squares):
            break
        rates, coefficients, triangle, squares = turned, moved, trial, least
    return rates, coefficients


def reweighted(
    problem: Problem,
    start: Rates,
    power: float,
    first: np.ndarray,
    rounds: int,
    mixing: np.ndarray,
) -> tuple[Rates, np.ndarray]:
    """The mean of a power of the error, by squares weighted with its other powers.

    **Returns:** The best rates met, and the weights with which their amplitudes are solved for.
    """
    weights, rates = first, start
    best: tuple[float, Rates, np.ndarray] = (np.inf, start, first)
    for k in range(rounds):
        rates, _ = least_squares(problem, rates, weights, 4 if k else 60, mixing)
        error = np.abs(problem.error(rates, amplitudes(problem, rates, weights)))
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
    problem: Problem,
    rates: Rates,
    start: np.ndarray,
    mixing: np.ndarray,
    rounds: int = 40,
) -> tuple[Rates, np.ndarray]:
    """Least maximal error: the linearised problem is solved again and again, with rates that move
    no further than is found to pay."""
    coefficients, columns = start, problem.columns(rates)
    values = problem.values * problem.factors
    error = values - columns @ coefficients
    level, reach = float(np.max(np.abs(error))), 0.3
    for _ in range(rounds):
        if level == 0:
            break
        norms, span, inverse = _spanned(columns)
        # What the amplitudes cannot do themselves is left for the rates to do.
        slopes = problem.slopes(rates, coefficients, rates) @ mixing
        carried = span.T @ slopes / error.size
        side = np.concatenate([span * level, slopes - span @ carried], axis=1)
        found, least = _least_maximum(side, error, slopes.shape[1], reach)
        if least > 1 - _NOTHING:
            break
        move, turn = found[: span.shape[1]] * level, found[span.shape[1] :]
        trial = problem.moved(rates, mixing @ turn)
        trial_columns = problem.columns(trial)
        moved = coefficients + inverse @ (move - carried @ turn) / norms
        # Moved rates leave errors of second order, far above the level that is sought; most of
        # them the amplitudes take up.
        trial_error = values - trial_columns @ moved
        norms, span, inverse = _spanned(trial_columns)
        size = float(np.max(np.abs(trial_error)))
        again, _ = _least_maximum(span * size, trial_error)
        moved = moved + inverse @ (again * size) / norms
        trial_error = values - trial_columns @ moved
        trial_level = float(np.max(np.abs(trial_error)))
        if trial_level < level:
            rates, columns, coefficients = trial, trial_columns, moved
            error, level = trial_error, trial_level
            reach = min(2 * reach, 1.0)
        else:
            reach = reach / 5
            if reach < 1e-7:
                break
    return rates, coefficients


def _spanned(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest entries of columns, an orthonormal basis of them all times the root of their
    length, so that entries are of order 1, and the map from its coordinates to theirs."""
    norms = np.max(np.abs(columns), axis=0)
    norms = np.where(norms > 0, norms, 1)
    span, inverse = orthonormal(columns / norms)
    unit = np.sqrt(columns.shape[0])
    return norms, span * unit, inverse * unit


def _least_maximum(
    side: np.ndarray, error: np.ndarray, bounded: int = 0, reach: float = 0.0
) -> tuple[np.ndarray, float]:
    """Coordinates z that minimise the maximum of |error - side z|, the last of them bounded, and
    that maximum as a share of the one of |error|.

    Of all rows few decide. They are found by exchange: those at which the error is largest once
    the problem is solved for the others join them.
    """
    size = float(np.max(np.abs(error)))
    side, error = side / size, error / size
    free = side.shape[1] - bounded
    bounds = [(-_FAR, _FAR)] * free + [(-reach, reach)] * bounded + [(0, None)]
    goal = np.append(np.zeros(side.shape[1]), 1.0)
    rows, signs, left, level = np.zeros(0, int), np.zeros(0), error, 0.0
    best, least = np.zeros(side.shape[1]), 1.0
    for _ in range(_EXCHANGES):
        # Most of what can be gained will do, as the problem is solved again and again.
        enough = level + _SHARE * min(1 - level, 0.1 * level)
        new = _extrema(left, enough)
        if new.size == 0:
            break
        rows, signs = np.append(rows, new), np.append(signs, np.sign(left[new]))
        found = scipy.optimize.linprog(
            goal,
            A_ub=np.concatenate([-signs[:, None] * side[rows], -np.ones((rows.size, 1))], axis=1),
            b_ub=-signs * error[rows],
            bounds=bounds,
            method="highs",
        )
        if found.x is None:
            break
        left, level = error - side @ found.x[:-1], float(found.x[-1])
        size = float(np.max(np.abs(left)))
        if size < least:
            best, least = found.x[:-1], size
        if least <= level + _SHARE * min(1 - level, 0.1 * level):
            break
    return best, least


def orthonormal(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis of the columns' span, and the map from its coordinates to theirs."""
    q, r = np.linalg.qr(columns)
    u, s, vt = np.linalg.svd(r)
    kept = s > CUTOFF * s[0]
    return q @ u[:, kept], vt[kept].T / s[kept]


def peaks(error: np.ndarray, level: float, most: int) -> np.ndarray:
    """Where an error is largest above a level, in one place each of as many parts as asked for."""
    size = np.abs(error)
    starts = np.unique(np.linspace(0, size.size, most, endpoint=False).astype(int))
    parts = zip(starts, np.split(size, starts[1:]), strict=True)
    found = [start + int(np.argmax(part)) for start, part in parts]
    return np.array([k for k in found if size[k] > level], dtype=int)


def _extrema(error: np.ndarray, level: float) -> np.ndarray:
    """Indices of the local extrema above a level."""
    size = np.concatenate([[-1.0], np.abs(error), [-1.0]])
    inner = size[1:-1]
    return np.flatnonzero((inner >= size[:-2]) & (inner > size[2:]) & (inner > level))
