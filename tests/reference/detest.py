"""DETEST: 25 problems that are not stiff, for solvers to be compared on, all to t = 20.

Hull, Enright, Fellen, Sedgwick, *Comparing numerical methods for ordinary differential equations*,
SIAM Journal on Numerical Analysis 9:603, 1972. Where the solution has a closed form it is given;
the others are for an explicit solver at a tight tolerance.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import scipy.linalg as sl
from scipy import integrate, optimize

END = 20.0


class Problem(NamedTuple):
    vector_field: Callable[[Any, Any, Any], Any]
    start: np.ndarray
    solution: Callable[[float], np.ndarray] | None = None

    def at_end(self) -> np.ndarray:
        if self.solution is not None:
            return np.asarray(self.solution(END))
        return integrate.solve_ivp(
            lambda t, y: np.asarray(self.vector_field(t, jnp.asarray(y), None)),
            (0, END), self.start, method="DOP853", rtol=1e-12, atol=1e-13,
        ).y[:, -1]  # fmt: skip


def _linear(matrix: np.ndarray, start: np.ndarray) -> Problem:
    return Problem(
        lambda t, y, args: jnp.asarray(matrix, y.dtype) @ y,
        start,
        lambda t: sl.expm(t * matrix) @ start,
    )


def _first(n: int) -> np.ndarray:
    return np.eye(n)[0]


def _decay_chain(rates: np.ndarray) -> np.ndarray:
    """Each species decays into the next, and the last one is stable."""
    return np.diag(np.append(-rates, 0.0)) + np.diag(rates, -1)


def _diffusion(n: int) -> np.ndarray:
    return np.diag(np.full(n, -2.0)) + np.diag(np.ones(n - 1), 1) + np.diag(np.ones(n - 1), -1)


def _torus(t: Any, y: Any, args: Any) -> Any:
    radius = jnp.sqrt(y[0] ** 2 + y[1] ** 2)
    return jnp.stack([-y[1] - y[0] * y[2] / radius, y[0] - y[1] * y[2] / radius, y[0] / radius])


# The sun is at the origin; units are those of the paper.
_GRAVITY, _SUN = 2.95912208286, 1.00000597682
_PLANETS = np.array(
    [0.000954786104043, 0.000285583733151, 0.0000437273164546, 0.0000517759138449,
     0.00000277777777778]
)  # fmt: skip
_PLACES = np.array(
    [
        [3.42947415189, 6.64145542550, 11.2630437207, -30.1552268759, -21.1238353380],
        [3.35386959711, 5.97156957878, 14.6952576794, 1.65699966404, 28.4465098142],
        [1.35494901715, 2.18231499728, 6.27960525067, 1.43785752721, 15.3882659679],
    ]
)
_SPEEDS = np.array(
    [
        [-0.557160570446, -0.415570776342, -0.325325669158, -0.024047625417, -0.176860753121],
        [0.505696783289, 0.365682722812, 0.189706021964, -0.287659532608, -0.216393453025],
        [0.230578543901, 0.169143213293, 0.087726532278, -0.117219543175, -0.014864789309],
    ]
)


def _planets(t: Any, y: Any, args: Any) -> Any:
    places, speeds = y.reshape(2, 3, 5)
    masses = jnp.asarray(_PLANETS)
    cubed = jnp.sum(places**2, axis=0) ** 1.5
    between = places[:, None, :] - places[:, :, None]
    squared = jnp.sum(between**2, axis=0) + jnp.eye(5)
    pulled = between / squared[None] ** 1.5 - (places / cubed[None])[:, None, :]
    pulled = jnp.where(jnp.eye(5, dtype=bool)[None], 0, pulled)
    own = -(_SUN + masses)[None] * places / cubed[None]
    acceleration = _GRAVITY * (own + jnp.sum(masses[None, None] * pulled, axis=2))
    return jnp.stack([speeds, acceleration]).ravel()


def _orbit(eccentricity: float) -> Problem:
    def vector_field(t: Any, y: Any, args: Any) -> Any:
        cubed = (y[0] ** 2 + y[1] ** 2) ** 1.5
        return jnp.stack([y[2], y[3], -y[0] / cubed, -y[1] / cubed])

    def solution(t: float) -> np.ndarray:
        # Kepler's equation.
        u = optimize.brentq(lambda u: u - eccentricity * np.sin(u) - t, t - 1, t + 1, xtol=1e-15)
        minor, slope = np.sqrt(1 - eccentricity**2), 1 / (1 - eccentricity * np.cos(u))
        return np.array(
            [
                np.cos(u) - eccentricity,
                minor * np.sin(u),
                -slope * np.sin(u),
                slope * minor * np.cos(u),
            ]
        )

    return Problem(vector_field, solution(0.0), solution)


def _bessel(t: float) -> np.ndarray:
    """The Bessel function of order 1/2, and its derivative, at t + 1."""
    x = t + 1
    value, scale = np.sin(x), np.sqrt(2 / (np.pi * x))
    return scale * np.array([value, np.cos(x) - value / (2 * x)])


def _fall(t: float) -> np.ndarray:
    rate, speed = np.sqrt(0.032 * 0.4), np.sqrt(0.032 / 0.4)
    return np.array([30 + np.log(np.cosh(rate * t)) / 0.4, speed * np.tanh(rate * t)])


def _pursuit(t: float) -> np.ndarray:
    # The slope is sinh(log(25 / (25 - t))).
    left = 25 - t
    slope = (25 / left - left / 25) / 2
    return np.array([(-25 * np.log(left / 25) + (left**2 / 25 - 25) / 2) / 2, slope])


_two = lambda first, second: lambda t, y, args: jnp.stack([first(t, *y), second(t, *y)])

DETEST = {
    "A1": Problem(lambda t, y, args: -y, np.ones(1), lambda t: np.exp([-t])),
    "A2": Problem(
        lambda t, y, args: -(y**3) / 2, np.ones(1), lambda t: np.array([(1 + t) ** -0.5])
    ),
    "A3": Problem(lambda t, y, args: y * jnp.cos(t), np.ones(1), lambda t: np.exp([np.sin(t)])),
    "A4": Problem(
        lambda t, y, args: y / 4 * (1 - y / 20),
        np.ones(1),
        lambda t: np.array([20 / (1 + 19 * np.exp(-t / 4))]),
    ),
    "A5": Problem(lambda t, y, args: (y - t) / (y + t), np.full(1, 4.0)),
    "B1": Problem(
        _two(lambda t, a, b: 2 * (a - a * b), lambda t, a, b: -(b - a * b)), np.array([1.0, 3.0])
    ),
    "B2": _linear(np.array([[-1.0, 1, 0], [1, -2, 1], [0, 1, -1]]), np.array([2.0, 0, 1])),
    "B3": Problem(
        lambda t, y, args: jnp.stack([-y[0], y[0] - y[1] ** 2, y[1] ** 2]), np.array([1.0, 0, 0])
    ),
    "B4": Problem(_torus, np.array([3.0, 0, 0])),
    "B5": Problem(
        lambda t, y, args: jnp.stack([y[1] * y[2], -y[0] * y[2], -0.51 * y[0] * y[1]]),
        np.array([0.0, 1, 1]),
    ),
    "C1": _linear(_decay_chain(np.ones(9)), _first(10)),
    "C2": _linear(_decay_chain(np.arange(1.0, 10)), _first(10)),
    "C3": _linear(_diffusion(10), _first(10)),
    "C4": _linear(_diffusion(51), _first(51)),
    "C5": Problem(_planets, np.stack([_PLACES, _SPEEDS]).ravel()),
    "D1": _orbit(0.1),
    "D2": _orbit(0.3),
    "D3": _orbit(0.5),
    "D4": _orbit(0.7),
    "D5": _orbit(0.9),
    "E1": Problem(
        _two(
            lambda t, y, slope: slope,
            lambda t, y, slope: -(slope / (t + 1) + y * (1 - 0.25 / (t + 1) ** 2)),
        ),
        _bessel(0.0),
        _bessel,
    ),
    "E2": Problem(
        _two(lambda t, y, slope: slope, lambda t, y, slope: (1 - y**2) * slope - y),
        np.array([2.0, 0]),
    ),
    "E3": Problem(
        _two(
            lambda t, y, slope: slope,
            lambda t, y, slope: y**3 / 6 - y + 2 * jnp.sin(2.78535 * t),
        ),
        np.zeros(2),
    ),
    "E4": Problem(
        _two(lambda t, y, slope: slope, lambda t, y, slope: 0.032 - 0.4 * slope**2),
        np.array([30.0, 0]),
        _fall,
    ),
    "E5": Problem(
        _two(lambda t, y, slope: slope, lambda t, y, slope: jnp.sqrt(1 + slope**2) / (25 - t)),
        np.zeros(2),
        _pursuit,
    ),
}
