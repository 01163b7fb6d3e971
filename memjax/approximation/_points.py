"""Samples that are points: norms over the samples themselves, and nothing in between."""

import math

import numpy as np

from ..targets import SampledKernel
from ._curve import mean_spacing
from ._distance import Distance, EPS, parts, Terms
from ._grid import compressed, Grid, MOST, thinned
from ._hankel import tails
from ._problem import as_problem, Problem
from ._start import LARGEST, Realisation

_FAST = 16.0  # the fastest rate that is tried, times the shortest spacing: one sample sees it
_GROWTH = 650.0  # the logarithm of the growth of amplitudes from the first sample back to time 0
_ROWS = 128  # of Hankel matrices, about


class Points:
    """Samples with weights, in units of time and of size of their own, timed from the first.

    **Attributes:**

    - `given`: times, values and weights of the samples that count, in the units of the user.
    - `time`, `size`, `start`: the units, and the time of the first sample in those of the user.
    - `times`, `values`: the samples.
    - `factors`: by how much errors at the samples count: the roots of the weights, with a mean
        square of 1.
    """

    def __init__(
        self,
        kernel: SampledKernel,
        horizon: float,
        weights: np.ndarray | None,
        norm: str,
        oscillating: bool,
    ) -> None:
        times, values = np.asarray(kernel.times), np.asarray(kernel.values)
        weights = np.ones(times.size) if weights is None else weights
        kept = (times <= horizon) & (weights > 0)
        self.given = times, values, weights = times[kept], values[kept], weights[kept]
        if times.size < 4:
            raise ValueError(
                "`kernel` must hold at least 4 samples of a weight above 0 up to the horizon, got "
                f"{times.size}; fewer say nothing of a decay."
            )
        self.norm, self.oscillating, self.start = norm, oscillating, float(times[0])
        self.time = mean_spacing(times)
        self.size = float(np.max(np.abs(values))) or 1.0
        self.times, self.values = (times - self.start) / self.time, values / self.size
        self.factors = np.sqrt(weights / np.mean(weights))

    def problem(self, min_rate: float, offset: bool) -> tuple[Problem, Problem]:
        """What sums are fitted to, of a size that can be searched with, and all of it."""
        end, count = float(self.times[-1]), self.times.size
        weights = self.factors ** {"L1": 1, "L2": 2, "sup": 0}[self.norm] / count
        fastest = min(_FAST, _GROWTH * self.time / self.start) if self.start > 0 else _FAST
        grid = Grid(self.times, weights, self.values, 1e-6 / end, fastest, 1.0, end)
        factors = self.factors if self.norm == "sup" else None
        whole = as_problem(grid, min_rate, offset, factors)
        if self.norm == "L2":
            return as_problem(compressed(grid, self.oscillating), min_rate, offset), whole
        grid, kept = thinned(grid, MOST)
        factors = None if factors is None else factors[kept]
        return as_problem(grid, min_rate, offset, factors), whole

    @property
    def end(self) -> float:
        """The longest time on which the samples change."""
        return float(self.times[-1])

    def first_weights(self, problem: Problem) -> np.ndarray:
        """Weights of squares to begin with."""
        if self.norm == "sup":
            # Every time scale counts alike.
            return np.gradient(problem.times) / (problem.times + 1)
        return problem.weights

    def measure(self, terms: Terms) -> Distance:
        """The norm of the errors at the samples."""
        sizes = self.factors * (np.abs(self.values) + terms.size(self.times))
        error, whole, rounding = (
            _norm(values, self.norm)
            for values in (self.factors * (self.values - terms(self.times)),
                           self.factors * self.values, sizes)
        )  # fmt: skip
        return Distance(error, whole, 4 * EPS * rounding)

    def parts(self, terms: Terms) -> np.ndarray:
        """The error between its sign changes, part by part."""
        factors, count = self.factors, self.times.size
        weights = np.full(count, 1 / count)
        fit, sizes = factors * terms(self.times), factors * terms.size(self.times)
        return parts(factors * self.values, fit, sizes, weights, self.norm)

    def residuals(self, terms: Terms) -> np.ndarray:
        """The errors at the samples that are not rounding."""
        return residuals(self.times, self.values, terms)

    def bounds(self) -> np.ndarray:
        """Bounds for the orders 0, 1, ... that no sum of as many exponentials falls below.

        Hankel matrices of even samples have the rank of the order; those of uneven ones say
        nothing. Means over neighbours are samples of another sum of the same order.
        """
        steps = np.diff(self.times)
        if np.any(np.abs(steps - steps[0]) > 1e-8 * steps[0]):
            return np.zeros(1)
        means, each = _means(self.values, 2 * _ROWS)
        found = _discrete_bounds(means, each / self.times.size, self.norm)
        return found * float(np.min(self.factors))

    def realisations(self) -> list[Realisation]:
        """Hankel matrices of even values over the whole of the samples and early parts of them."""
        found = []
        steps = np.diff(self.times)
        even = bool(np.all(np.abs(steps - steps[0]) <= 1e-8 * steps[0]))
        for share in (1.0, 1 / 8, 1 / 64):
            end = share * self.times[-1]
            if even:
                values, each = _means(self.values[self.times <= end], 2 * _ROWS)
                step = each * float(steps[0])
            else:
                times = np.linspace(0, end, 2 * _ROWS)
                values, step = np.interp(times, self.times, self.values), float(times[1])
            if values.size >= 8:
                found.append(_pencil(values, step))
        return found


def residuals(times: np.ndarray, values: np.ndarray, terms: Terms) -> np.ndarray:
    """What is left of samples, where it is not rounding."""
    left = values - terms(times)
    return left * (np.abs(left) > 8 * EPS * (np.abs(values) + terms.size(times)))


def _norm(values: np.ndarray, norm: str) -> float:
    if norm == "sup":
        return float(np.max(np.abs(values)))
    return float(np.mean(np.abs(values)) if norm == "L1" else np.sqrt(np.mean(values**2)))


def _means(values: np.ndarray, most: int) -> tuple[np.ndarray, int]:
    """Means over as many neighbours as make at most so many of them, and how many these are."""
    each = -(-values.size // most)
    count = values.size // each
    return values[: count * each].reshape(count, each).mean(axis=1), each


def _hankel(values: np.ndarray, rows: int) -> np.ndarray:
    return np.lib.stride_tricks.sliding_window_view(values, values.size - rows + 1)


def _pencil(values: np.ndarray, step: float) -> Realisation:
    size = values.size // 2
    first, second = _hankel(values[:-1], size), _hankel(values[1:], size)
    left, singular, right = np.linalg.svd(first, full_matrices=False)
    count = min(LARGEST, int(np.sum(singular > 1e-14 * singular[0])))
    left, right = left[:, :count], right[:count].T
    return Realisation(singular[:count], None, left.T @ second @ right, step)


def _discrete_bounds(values: np.ndarray, share: float, norm: str) -> np.ndarray:
    size = (values.size + 1) // 2
    matrix = _hankel(values, size)[:, :size]
    if norm == "sup":
        found = np.zeros(size)
        for part in np.unique(np.geomspace(2, size, 8).astype(int)):
            # Any probability will do.
            roots = np.sqrt(np.gradient(np.sqrt(np.arange(part))))
            roots = roots / np.linalg.norm(roots)
            singular = _singular(roots[:, None] * matrix[:part, :part] * roots)
            found[:part] = np.maximum(found[:part], tails(singular))
        return found
    if norm == "L1":
        return share * _singular(matrix)
    # The coefficients of (1 - x)^(-1/2), whose convolution with themselves is 1.
    roots = np.sqrt(np.cumprod(np.append(1.0, 1 - 0.5 / np.arange(1, size))))
    return math.sqrt(share) * tails(_singular(roots[:, None] * matrix * roots))


def _singular(matrix: np.ndarray) -> np.ndarray:
    """Singular values less their rounding errors."""
    found = np.linalg.svd(matrix, compute_uv=False)
    return np.maximum(found - 16 * EPS * np.linalg.norm(found), 0)
