"""The search for best sums of exponentials, of any order, for one kernel."""

import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from threadpoolctl import threadpool_limits

from .._lazy import tqdm
from ..models import ComplexDiagonalRNN, DiagonalLinearRNN
from ..targets import AbstractKernel, SampledKernel
from ._absolute import least_absolute
from ._continuous import Continuous
from ._distance import Distance, Terms
from ._fit import least_squares, refine, reweight, solve_amplitudes
from ._grid import MOST
from ._hankel import alternation_bound
from ._minimax import find_peaks, minimax
from ._points import Points
from ._problem import make_terms, Rates
from ._start import (
    as_rates,
    exchange_rates,
    find_eigenvalues,
    find_lines,
    gather_rates,
    list_own_rates,
    make_real,
    Realisation,
    reduce_rates,
    spread_starts,
    start_at_floor,
)
from ._statistics import FitStatistics, statistics
from ._sum import BestExponentialSum, Norm, Samples

_MOMENT = 2.0  # seconds before a progress bar is shown
_CONVERGED = 8  # starts that are followed to their minimum
_POLISHED = 3  # different minima that are polished in another norm
_CHANCE = 1e-3  # of an error: what rates that run together may owe to chance
_PROVEN = 0.998  # of an error: a bound this near says that nothing else need be tried
_EXCHANGES = 6  # rounds of an exchange of rates, or of times


class Options(NamedTuple):
    """What is asked of sums, in the units of the user."""

    norm: Norm
    min_rate: float
    complex: bool
    horizon: float
    samples: Samples | None
    weights: np.ndarray | None
    absolute_weights: bool
    offset: bool


class Candidate(NamedTuple):
    """A sum, how its rates may move, and the share of its error by which it must be better than
    others to be preferred."""

    rates: Rates
    coefficients: np.ndarray
    mixing: np.ndarray
    handicap: float


class Found(NamedTuple):
    """A sum, how its rates may move, its error, and a bound that no sum falls below, in units of
    the search."""

    rates: Rates
    mixing: np.ndarray
    sums: Terms
    distance: Distance
    bound: float

    @property
    def proven(self) -> bool:
        """Whether no better sum could be told from it."""
        error, _, uncertainty = self.distance
        return error <= uncertainty or self.bound > _PROVEN * error


class Search:
    """All that searches for sums of different order have in common for one kernel."""

    def __init__(self, kernel: AbstractKernel, options: Options) -> None:
        self.kernel, self.options = kernel, options
        norm, complex, horizon = options.norm, options.complex, options.horizon
        self.source: Points | Continuous
        if options.samples == "points":
            assert isinstance(kernel, SampledKernel)
            self.source = Points(kernel, horizon, options.weights, norm, complex)
        else:
            self.source = Continuous(kernel, horizon, norm, complex)
        floor = options.min_rate * self.source.time
        self.problem, self.whole = self.source.problem(floor, options.offset)
        self.weights = self.source.first_weights(self.problem)
        self._bar = tqdm.tqdm(disable=True)
        if not np.any(self.problem.values):
            raise ValueError(
                f"`kernel` must not be 0 everywhere, got {type(kernel).__name__}; nothing is left "
                "to approximate."
            )

    @contextlib.contextmanager
    def watched(self, progress: bool) -> Iterator[None]:
        """Show what is done on a terminal if it takes longer than a moment."""
        with tqdm.tqdm(
            unit=" fits", delay=_MOMENT, disable=None if progress else True
        ) as self._bar:
            yield

    def check_order(self, m: int) -> None:
        """Refuse more parameters than there are samples."""
        if isinstance(self.source, Points) and m > self.most:
            raise ValueError(
                f"`width` must be at most {self.most} for {self.source.times.size} samples, got "
                f"{m}; more parameters than samples are not determined."
            )

    @property
    def most(self) -> int:
        """The largest order that samples determine."""
        if not isinstance(self.source, Points):
            return 2**31
        return (self.source.times.size - self.options.offset) // 2

    @functools.cached_property
    def bounds(self) -> np.ndarray:
        """Lower bounds of the error for the orders 0, 1, ..., in units of the search."""
        found = self.source.bounds()
        # A constant is one exponential more.
        return found[1:] if self.options.offset else found

    @functools.cached_property
    def realisations(self) -> list[Realisation]:
        return self.source.realisations()

    @functools.cached_property
    def lines(self) -> tuple[np.ndarray, np.ndarray]:
        return find_lines(self.problem, self.weights, self.source.end)

    def bound(self, order: int) -> float:
        return float(self.bounds[order]) if order < self.bounds.size else 0.0

    def norm_unit(self) -> float:
        """The norm of what the user has, of that in the units of the search."""
        source, power = self.source, {"L1": 1.0, "L2": 0.5, "sup": 0.0}[self.options.norm]
        return source.size * source.time ** (0 if isinstance(source, Points) else power)

    def norm_of_kernel(self) -> float:
        nothing = Terms(*(np.zeros(0) for _ in range(4)))
        return self.source.measure(nothing).norm * self.norm_unit()

    def starts(self, m: int) -> Iterator[Rates]:
        """Rates to start from; those that may be the answer come first."""
        found = list_own_rates(self.kernel, self.source.time, self.options.complex, m)
        yield from found
        rates, sizes = self.lines
        if rates.size:
            yield make_real(reduce_rates(rates, sizes, m))
        yield from spread_starts(self.problem, self.source.end, m)
        yield from start_at_floor(self.problem, m)
        for realisation in self.realisations:
            for values in find_eigenvalues(realisation, m):
                found = as_rates(values, False, m)
                if self.options.complex:
                    found += as_rates(values, True, m)
                yield from (rates for rates in found if rates.order == m)

    # Many small matrices are slower on many threads.
    @threadpool_limits.wrap(limits=1, user_api="blas")
    def run(self, m: int, warm: list[Rates]) -> tuple[BestExponentialSum, Rates]:
        """The best sum of order m, from all starts and from `warm` ones."""
        problem, weights = self.problem, self.weights
        rounding = 1e-13 * float(np.sqrt(weights @ (problem.values * problem.factors) ** 2))
        tried: list[tuple[Rates, float]] = []
        self._bar.set_description(f"m = {m}", refresh=False)
        for rates in itertools.chain(warm, self.starts(m)):
            tried.append(least_squares(problem, rates, weights, 20, rates.free))
            self._bar.update()
            if tried[-1][1] < rounding:
                break
        # Least squares may rank others before what is best in another norm.
        carried = sorted(tried[: len(warm)], key=_get_cost)[:1]
        tried.sort(key=_get_cost)
        chosen = [pair for k, pair in enumerate(tried) if not _is_near(pair, tried[:k], 1e-3)]
        chosen = [pair for pair in carried if not _is_near(pair, chosen[:1], 0)] + chosen
        done: list[tuple[Rates, float]] = []
        best: Found | None = None
        least = math.inf
        for rates, _ in chosen[:_CONVERGED]:
            pair = self._converge(rates)
            if _is_near(pair, done, 1e-4):
                continue
            done.append(pair)
            for candidate in self._polish(pair[0]):
                found = self._measure(m, candidate.rates, candidate.coefficients, candidate.mixing)
                self._bar.update()
                if candidate.handicap * found.distance.error < least:
                    best, least = found, candidate.handicap * found.distance.error
                assert best is not None
                if best.proven:
                    return self._conclude(m, best), best.rates
            if len(done) == _POLISHED:
                break
        assert best is not None
        if self.options.norm == "L2" and self._many:
            coefficients = solve_amplitudes(problem, best.rates, weights)
            exact = refine(self.whole, best.rates, coefficients, best.mixing)
            best = self._measure(m, *exact, best.mixing)
        return self._conclude(m, best), best.rates

    @property
    def _many(self) -> bool:
        """Whether there are too many times to look at all of them for every sum."""
        return self.whole.times.size > 3 * MOST

    def _converge(self, rates: Rates) -> tuple[Rates, float]:
        """The least squares from a start, and from there with one rate after the other exchanged
        for as long as that pays."""
        problem, weights = self.problem, self.weights
        best = least_squares(problem, rates, weights, 400, rates.free)
        for _ in range(_EXCHANGES):
            others = exchange_rates(problem, best[0], weights)
            tried = [least_squares(problem, other, weights, 20, other.free) for other in others]
            better = min(tried, key=_get_cost, default=best)
            if better[1] > 0.99 * best[1]:
                break
            best = least_squares(problem, better[0], weights, 400, better[0].free)
        return best

    def _polish(self, rates: Rates) -> Iterator[Candidate]:
        """Sums near those of given rates that are better in the norm."""
        yield from (
            Candidate(*found, rates.free, 1.0) for found in self._reach_norm(rates, rates.free)
        )
        for k, (apart, mixing) in enumerate(gather_rates(self.problem, rates)):
            moved, _ = least_squares(self.problem, apart, self.weights, 400, mixing)
            # The wider, the smaller are amplitudes.
            share = 1 - _CHANCE * 0.9**k
            yield from (
                Candidate(*found, mixing, share) for found in self._reach_norm(moved, mixing)
            )

    def _reach_norm(self, rates: Rates, mixing: np.ndarray) -> Iterator[tuple[Rates, np.ndarray]]:
        problem, weights = self.problem, self.weights
        if self.options.norm == "L2":
            close = problem if self._many else self.whole
            yield refine(close, rates, solve_amplitudes(problem, rates, weights), mixing)
            return
        yield rates, solve_amplitudes(problem, rates, weights)
        power, sampled = 1 if self.options.norm == "L1" else np.inf, isinstance(self.source, Points)
        # Sums of absolute values at points have no other method that follows.
        rounds = 40 if power == 1 and sampled else 15
        rates, weights = reweight(problem, rates, power, weights, rounds, mixing)
        found = rates, solve_amplitudes(problem, rates, weights)
        yield found
        if self.options.norm == "sup":
            yield self._minimax(*found, mixing)
        elif isinstance(self.source, Continuous):
            yield least_absolute(self.source.curve, self.whole, *found, mixing)

    def _minimax(
        self, rates: Rates, coefficients: np.ndarray, mixing: np.ndarray
    ) -> tuple[Rates, np.ndarray]:
        whole = self.whole
        if not self._many:
            return minimax(whole, rates, coefficients, mixing)
        # Of many times those join the search at which the error is largest.
        problem = self.problem
        for _ in range(_EXCHANGES):
            rates, coefficients = minimax(problem, rates, coefficients, mixing)
            level = np.max(np.abs(problem.error(rates, coefficients)))
            error = (whole.values - make_terms(rates, coefficients)(whole.times)) * whole.factors
            more = find_peaks(error, 1.001 * level, MOST // 8)
            if more.size == 0:
                break
            problem = problem.joined(whole, more)
        return rates, coefficients

    def _measure(self, m: int, rates: Rates, coefficients: np.ndarray, mixing: np.ndarray) -> Found:
        sums = make_terms(rates, coefficients)
        measured = self.source.measure(sums)
        bound = 0.0
        if not self.options.complex and measured.error > measured.uncertainty:
            needed = 2 * m + 1 + self.options.offset
            bound = alternation_bound(self.source.parts(sums), needed, self.options.norm)
            bound = max(bound - measured.uncertainty, 0.0)
        return Found(rates, mixing, sums, measured, bound)

    def _conclude(self, m: int, found: Found) -> BestExponentialSum:
        source, options, problem = self.source, self.options, self.problem
        rates, _, sums, measured, bound = found
        if not found.proven:
            bound = max(bound, self.bound(m))
        whole = self.weights @ np.abs(problem.values * problem.factors)
        sizes = self.weights @ (sums.size(problem.times) * problem.factors)
        unit, floor = self.norm_unit(), problem.min_rate * (1 + 1e-6)
        active = np.sum(np.append(rates.real, rates.pairs) <= floor) if floor > 0 else 0
        own = sums.in_units(source.time, source.size, source.start)
        if not np.all(np.isfinite(own.cosine)):
            raise ValueError(
                f"`kernel` must begin near time 0, got a first sample at {source.start:g}, so late "
                "that amplitudes at time 0 overflow; subtract the time at which it begins."
            )
        return BestExponentialSum(
            model=_as_model(own, options),
            error=jnp.asarray(measured.error * unit),
            relative_error=jnp.asarray(measured.error / measured.norm),
            uncertainty=jnp.asarray(measured.uncertainty * unit),
            lower_bound=jnp.asarray(min(bound, measured.error) * unit),
            active=jnp.asarray(int(active)),
            resolved=jnp.asarray(measured.uncertainty < 0.1 * measured.error),
            confluent=jnp.asarray(bool(sizes > 1e5 * whole)),
            noise_limited=jnp.asarray(is_noise_limited(source.residuals(sums))),
            offset=jnp.asarray(own.cosine[-1] if options.offset else 0.0),
            statistics=self._find_statistics(own),
            order=m,
            norm=options.norm,
            samples=options.samples,
        )

    def _find_statistics(self, sums: Terms) -> FitStatistics | None:
        options, source = self.options, self.source
        if not isinstance(source, Points) or options.norm != "L2":
            return None
        return statistics(
            *source.given,
            sums,
            options.min_rate,
            options.complex,
            options.offset,
            options.absolute_weights,
        )


def _get_cost(pair: tuple[Rates, float]) -> float:
    return pair[1]


def _is_near(pair: tuple[Rates, float], others: list[tuple[Rates, float]], share: float) -> bool:
    """Whether the cost is that of another, within a share of it."""
    return any(abs(pair[1] - other) <= share * other for _, other in others)


def _as_model(sums: Terms, options: Options) -> DiagonalLinearRNN | ComplexDiagonalRNN:
    cosine, sine, rates, frequencies = (
        jnp.asarray(part[: part.size - options.offset]) for part in sums
    )
    if options.complex:
        return ComplexDiagonalRNN(cosine, sine, rates, frequencies)
    return DiagonalLinearRNN(cosine, rates)


def is_noise_limited(residuals: np.ndarray) -> bool:
    """Whether residuals at samples change sign as often as independent noise does."""
    changes = int(np.sum(residuals[1:] * residuals[:-1] < 0))
    steps = residuals.size - 1
    # A fair coin changes sides half of the time, give or take half the root.
    return residuals.size >= 8 and changes > steps / 2 - 1.5 * math.sqrt(steps)


def extend_rates(rates: Rates, m: int) -> list[Rates]:
    """Starts of order m from the rates of a smaller sum: one more rate in every gap, or beyond
    the ends."""
    if rates.order == m:
        return [rates]
    if rates.order > m:
        return []
    found = []
    own = np.sort(rates.real) if rates.real.size else np.sort(rates.pairs)
    ends = np.concatenate([own[:1] / 6, own, own[-1:] * 6])
    gaps = np.sqrt(ends[1:] * ends[:-1])
    missing = m - rates.order
    if missing == 1:
        for gap in gaps:
            found.append(Rates(np.append(rates.real, gap), rates.pairs, rates.frequencies))
    else:
        more = np.geomspace(ends[0], ends[-1], missing)
        found.append(Rates(np.append(rates.real, more), rates.pairs, rates.frequencies))
    return found
