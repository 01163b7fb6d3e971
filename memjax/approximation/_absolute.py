"""The least L1 norm of an error, by Newton's method on its exact integral."""

from typing import NamedTuple

import numpy as np

from ._curve import Curve
from ._grid import crossings, nodes
from ._problem import orthonormalise, Problem, Rates

_ROUNDS = 40
_NOTHING = 1e-10  # a share of the norm by which it need not be reduced any further


class State(NamedTuple):
    """A sum, the norm of its error, the slope and the curvature of that, and the map from the
    coordinates that these have to rates and amplitudes."""

    rates: Rates
    coefficients: np.ndarray
    value: float
    slope: np.ndarray
    curvature: np.ndarray
    inverse: np.ndarray


def least_absolute(
    curve: Curve,
    problem: Problem,
    rates: Rates,
    coefficients: np.ndarray,
    mixing: np.ndarray,
) -> tuple[Rates, np.ndarray]:
    r"""Rates and amplitudes near given ones of which $\int |e|$ is least.

    Its gradient is $-\int \operatorname{sign}(e)\, \partial f$. What it has of curvature sits
    mostly at the zeros $t_j$ of the error, $\sum_j 2\, \partial f \partial f^\top / |e'|$. Panels
    end at the zeros, so that it is not left to nodes where the error may vanish, as it is with
    weighted squares.
    """
    points = max(curve.grid.times.size // (curve.cuts.size - 1), 2)
    times, _ = nodes(curve.cuts, points)
    exact = curve(times)

    def look(rates: Rates, coefficients: np.ndarray) -> State:
        fit = lambda t: problem._replace(times=t).columns(rates) @ coefficients
        error = lambda t: curve(t) - fit(t)
        zeros, steepness = crossings(error, times, exact - fit(times))
        fine, weights = nodes(np.unique(np.append(curve.cuts, zeros)), points)
        left = error(fine)
        tangents = _tangents(problem, fine, rates, coefficients, mixing)
        norms = np.maximum(weights @ np.abs(tangents), 1e-300)
        _, inverse = orthonormalise(np.sqrt(weights)[:, None] * tangents / norms)
        inverse = inverse / norms[:, None]
        moving = _tangents(problem, zeros, rates, coefficients, mixing) @ inverse
        return State(
            rates,
            coefficients,
            value=float(weights @ np.abs(left)),
            slope=-((weights * np.sign(left)) @ tangents) @ inverse,
            curvature=2 * moving.T @ (moving / steepness[:, None]),
            inverse=inverse,
        )

    state, damping = look(rates, coefficients), 1e-3
    for _ in range(_ROUNDS):
        scale = float(np.max(np.diagonal(state.curvature), initial=0.0))
        if scale == 0 or state.value == 0 or damping > 1e8:
            break
        damped = state.curvature + damping * scale * np.eye(state.slope.size)
        step = -np.linalg.solve(damped, state.slope)
        if -state.slope @ step < _NOTHING * state.value:
            break
        move = state.inverse @ step
        count = state.coefficients.size
        turned = problem.moved(state.rates, mixing @ move[count:])
        trial = look(turned, state.coefficients + move[:count])
        if trial.value < state.value:
            state, damping = trial, max(damping / 10, 1e-12)
        else:
            damping *= 10
    return state.rates, state.coefficients


def _tangents(
    problem: Problem,
    times: np.ndarray,
    rates: Rates,
    coefficients: np.ndarray,
    mixing: np.ndarray,
) -> np.ndarray:
    here = problem._replace(times=times)
    slopes = here.slopes(rates, coefficients, rates) @ mixing
    return np.concatenate([here.columns(rates), slopes], axis=1)
