"""What sums of exponentials are fitted to, and the linear part of that."""

from typing import NamedTuple

import numpy as np

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
        columns = evaluate_modes(self.times, rates)
        if self.offset:
            columns = np.concatenate([columns, np.ones((self.times.size, 1))], axis=1)
        return self._scaled(columns)

    def slopes(self, rates: Rates, amplitudes: np.ndarray, start: Rates) -> np.ndarray:
        """Derivatives of the sum in the coordinates of `moved`."""
        found = evaluate_slopes(self.times, rates, amplitudes[: rates.order], self.min_rate)
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


def evaluate_modes(times: np.ndarray, rates: Rates) -> np.ndarray:
    """One column per real rate, two per pair, the sine over its frequency."""
    t = times[:, None]
    real = np.exp(-t * rates.real)
    if rates.pairs.size == 0:
        return real
    decays = np.exp(-t * rates.pairs)
    phase = t * rates.frequencies
    sines = t * np.sinc(phase / np.pi)
    return np.concatenate([real, decays * np.cos(phase), decays * sines], axis=1)


def evaluate_slopes(
    times: np.ndarray, rates: Rates, amplitudes: np.ndarray, margin: float
) -> np.ndarray:
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


def make_terms(rates: Rates, amplitudes: np.ndarray) -> Terms:
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
    span, inverse = orthonormalise(columns / norms)
    components, inverse = span.T @ values, inverse / norms[:, None]
    spreads = np.linalg.norm(inverse, axis=1)
    return Linear(inverse @ components, spreads, span, values - span @ components)


def orthonormalise(columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An orthonormal basis of the columns' span, and the map from its coordinates to theirs."""
    q, r = np.linalg.qr(columns)
    u, s, vt = np.linalg.svd(r)
    kept = s > CUTOFF * s[0]
    return q @ u[:, kept], vt[kept].T / s[kept]
