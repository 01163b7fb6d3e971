r"""Sums of exponentials fitted to a kernel on a grid, from given rates.

Amplitudes enter linearly and are eliminated (variable projection): what is optimised are the
logarithms of the rates, and the frequencies. All linear algebra is orthogonal and acts on the
square-root weighted basis itself, never on its Gram matrix, whose condition is the square.
"""

import numpy as np

from .._lazy import scipy
from ._distance import EPS
from ._grid import triangular
from ._problem import Linear, Problem, Rates, solve

_CHUNK = 2**15  # times at once
_REFINEMENTS = 6  # steps of Gauss and Newton's method
_FIRST_STEP = 1.0  # how far the first step may go, in logarithms of rates


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


def solve_amplitudes(problem: Problem, rates: Rates, weights: np.ndarray) -> np.ndarray:
    root = np.sqrt(weights)
    values = root * problem.factors * problem.values
    return solve(root[:, None] * problem.columns(rates), values).amplitudes


def refine(
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


def reweight(
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
        error = np.abs(problem.error(rates, solve_amplitudes(problem, rates, weights)))
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
