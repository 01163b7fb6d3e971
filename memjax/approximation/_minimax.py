"""Sums of exponentials whose largest error is least, by an exchange of extrema."""

import numpy as np

from .._lazy import scipy
from ._problem import orthonormalise, Problem, Rates

_EXCHANGES = 25  # rounds of an exchange of extrema
_FAR = 1e3  # how far amplitudes may move in units of the error, lest few rows leave them free
_SHARE = 0.05  # of a possible gain that may be left for the next step
_NOTHING = 1e-6  # a share of the error by which it need not be reduced any further


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
        norms, span, inverse = _span_columns(columns)
        # What the amplitudes cannot do themselves is left for the rates to do.
        slopes = problem.slopes(rates, coefficients, rates) @ mixing
        carried = span.T @ slopes / error.size
        side = np.concatenate([span * level, slopes - span @ carried], axis=1)
        found, least = _minimise_maximum(side, error, slopes.shape[1], reach)
        if least > 1 - _NOTHING:
            break
        move, turn = found[: span.shape[1]] * level, found[span.shape[1] :]
        trial = problem.moved(rates, mixing @ turn)
        trial_columns = problem.columns(trial)
        moved = coefficients + inverse @ (move - carried @ turn) / norms
        # Moved rates leave errors of second order, far above the level that is sought; most of
        # them the amplitudes take up.
        trial_error = values - trial_columns @ moved
        norms, span, inverse = _span_columns(trial_columns)
        size = float(np.max(np.abs(trial_error)))
        again, _ = _minimise_maximum(span * size, trial_error)
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


def _span_columns(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The largest entries of columns, an orthonormal basis of them all times the root of their
    length, so that entries are of order 1, and the map from its coordinates to theirs."""
    norms = np.max(np.abs(columns), axis=0)
    norms = np.where(norms > 0, norms, 1)
    span, inverse = orthonormalise(columns / norms)
    unit = np.sqrt(columns.shape[0])
    return norms, span * unit, inverse * unit


def _minimise_maximum(
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
        new = _find_extrema(left, enough)
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


def find_peaks(error: np.ndarray, level: float, most: int) -> np.ndarray:
    """Where an error is largest above a level, in one place each of as many parts as asked for."""
    size = np.abs(error)
    starts = np.unique(np.linspace(0, size.size, most, endpoint=False).astype(int))
    parts = zip(starts, np.split(size, starts[1:]), strict=True)
    found = [start + int(np.argmax(part)) for start, part in parts]
    return np.array([k for k in found if size[k] > level], dtype=int)


def _find_extrema(error: np.ndarray, level: float) -> np.ndarray:
    """Indices of the local extrema above a level."""
    size = np.concatenate([[-1.0], np.abs(error), [-1.0]])
    inner = size[1:-1]
    return np.flatnonzero((inner >= size[:-2]) & (inner > size[2:]) & (inner > level))
