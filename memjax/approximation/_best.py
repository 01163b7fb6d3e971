import contextlib
import functools
import itertools
import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import tqdm
from jaxtyping import Array, Bool, Float, Int, Real
from threadpoolctl import threadpool_limits

from .._checks import (
    as_finite_array,
    as_horizon,
    as_nonnegative,
    check_choice,
    check_flag,
    check_float64,
    check_instance,
    check_integer,
    check_nonnegative,
    check_scalar,
    is_traced,
    shown,
)
from .._typing import ArrayLike, ScalarLike
from ..models import ComplexDiagonalRNN, DiagonalLinearRNN
from ..targets import AbstractKernel, Kernel, SampledKernel, StateSpaceKernel
from ._absolute import least_absolute
from ._continuous import Continuous
from ._distance import Distance, Terms
from ._fit import amplitudes, least_squares, minimax, peaks, Rates, refined, reweighted, terms
from ._grid import MOST
from ._hankel import alternation_bound
from ._points import Points
from ._start import (
    as_rates,
    eigenvalues,
    exchanged,
    floor_starts,
    gathered,
    geometric_starts,
    lines,
    own_rates,
    real,
    Realisation,
    reduced,
)
from ._statistics import FitStatistics, statistics

Norm = Literal["L1", "L2", "sup"]
NORMS = ("L1", "L2", "sup")
Samples = Literal["points", "linear"]
SAMPLES = ("points", "linear")
_MOMENT = 2.0  # seconds before a progress bar is shown
_CONVERGED = 8  # starts that are followed to their minimum
_POLISHED = 3  # different minima that are polished in another norm
_CHANCE = 1e-3  # of an error: what rates that run together may owe to chance
_PROVEN = 0.998  # of an error: a bound this near says that nothing else need be tried
_EXCHANGES = 6  # rounds of an exchange of rates, or of times


class BestExponentialSum(eqx.Module):
    r"""The best sum of exponentials that was found for a kernel.

    **Attributes:**

    - `model`: the sum as a model, a [`memjax.DiagonalLinearRNN`][] or, if complex rates were
        allowed, a [`memjax.ComplexDiagonalRNN`][].
    - `error`: the norm of $\rho - \hat\rho$, by a quadrature that shares nothing with the search.
    - `relative_error`: the same over the norm of $\rho$.
    - `uncertainty`: by how much `error` may be wrong: what a coarser rule makes of it, and the
        rounding errors of the kernel and of the sum's terms.
    - `lower_bound`: a number that no sum of the same order falls below: that of
        [`memjax.approximation_lower_bounds`][] or, where only real rates are allowed, that of de
        la Vallee-Poussin if it is larger: the smallest of $2m + 1$ parts of the error between its
        sign changes, as two sums of $m$ real exponentials agree at no more than $2m - 1$ times.
        In the sup norm that proves an error of equal extrema to be the best.
    - `active`: the number of rates that lie on `min_rate`.
    - `resolved`: whether `error` stands clear of its uncertainty. If not, the sum is as good as
        float64 can tell, and `error` is an upper estimate.
    - `confluent`: whether terms cancel to a hundred-thousandth of their size or less: rates run
        together, the infimum need not be attained, and weights this large are of no use to a
        model that is to be trained.
    - `noise_limited`: for a [`memjax.SampledKernel`][], whether the residuals at the samples
        change sign as often as independent noise does, so that more neurons would fit noise.
    - `offset`: the constant that was added to the sum, and 0 without one.
    - `statistics`: for samples taken as points and the norm `"L2"`, the standard errors of all
        parameters, a [`memjax.FitStatistics`][]; otherwise `None`.
    - `order`: the number of real neurons asked for.
    - `norm`: the norm.
    - `samples`: how samples were taken, `"points"` or `"linear"`; `None` for other kernels.
    """

    model: DiagonalLinearRNN | ComplexDiagonalRNN
    error: Float[Array, ""]
    relative_error: Float[Array, ""]
    uncertainty: Float[Array, ""]
    lower_bound: Float[Array, ""]
    active: Int[Array, ""]
    resolved: Bool[Array, ""]
    confluent: Bool[Array, ""]
    noise_limited: Bool[Array, ""]
    offset: Float[Array, ""]
    statistics: FitStatistics | None
    order: int = eqx.field(static=True)
    norm: Norm = eqx.field(static=True)
    samples: Samples | None = eqx.field(static=True)


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

    def __init__(self, kernel: Kernel, options: Options) -> None:
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
                f"`m` must be at most {self.most} for {self.source.times.size} samples, got {m}; "
                "more parameters than samples are not determined."
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
        return lines(self.problem, self.weights, self.source.end)

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
        found = own_rates(self.kernel, self.source.time, self.options.complex, m)
        yield from found
        rates, sizes = self.lines
        if rates.size:
            yield real(reduced(rates, sizes, m))
        yield from geometric_starts(self.problem, self.source.end, m)
        yield from floor_starts(self.problem, m)
        for realisation in self.realisations:
            for values in eigenvalues(realisation, m):
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
        carried = sorted(tried[: len(warm)], key=_cost)[:1]
        tried.sort(key=_cost)
        chosen = [pair for k, pair in enumerate(tried) if not _near(pair, tried[:k], 1e-3)]
        chosen = [pair for pair in carried if not _near(pair, chosen[:1], 0)] + chosen
        done: list[tuple[Rates, float]] = []
        best: Found | None = None
        least = math.inf
        for rates, _ in chosen[:_CONVERGED]:
            pair = self._converged(rates)
            if _near(pair, done, 1e-4):
                continue
            done.append(pair)
            for rates, coefficients, mixing, share in self._polished(pair[0]):
                found = self._found(m, rates, coefficients, mixing)
                self._bar.update()
                if share * found.distance.error < least:
                    best, least = found, share * found.distance.error
                assert best is not None
                if best.proven:
                    return self._result(m, best), best.rates
            if len(done) == _POLISHED:
                break
        assert best is not None
        if self.options.norm == "L2" and self._many:
            coefficients = amplitudes(problem, best.rates, weights)
            exact = refined(self.whole, best.rates, coefficients, best.mixing)
            best = self._found(m, *exact, best.mixing)
        return self._result(m, best), best.rates

    @property
    def _many(self) -> bool:
        """Whether there are too many times to look at all of them for every sum."""
        return self.whole.times.size > 3 * MOST

    def _converged(self, rates: Rates) -> tuple[Rates, float]:
        """The least squares from a start, and from there with one rate after the other exchanged
        for as long as that pays."""
        problem, weights = self.problem, self.weights
        best = least_squares(problem, rates, weights, 400, rates.free)
        for _ in range(_EXCHANGES):
            others = exchanged(problem, best[0], weights)
            tried = [least_squares(problem, other, weights, 20, other.free) for other in others]
            better = min(tried, key=_cost, default=best)
            if better[1] > 0.99 * best[1]:
                break
            best = least_squares(problem, better[0], weights, 400, better[0].free)
        return best

    def _polished(self, rates: Rates) -> Iterator[tuple[Rates, np.ndarray, np.ndarray, float]]:
        """Sums near those of given rates that are better in the norm, each with how its rates may
        move, and the share of its error by which it must be better than others to be preferred."""
        yield from ((*found, rates.free, 1.0) for found in self._in_norm(rates, rates.free))
        for k, (apart, mixing) in enumerate(gathered(self.problem, rates)):
            moved, _ = least_squares(self.problem, apart, self.weights, 400, mixing)
            # The wider, the smaller are amplitudes.
            share = 1 - _CHANCE * 0.9**k
            yield from ((*found, mixing, share) for found in self._in_norm(moved, mixing))

    def _in_norm(self, rates: Rates, mixing: np.ndarray) -> Iterator[tuple[Rates, np.ndarray]]:
        problem, weights = self.problem, self.weights
        if self.options.norm == "L2":
            close = problem if self._many else self.whole
            yield refined(close, rates, amplitudes(problem, rates, weights), mixing)
            return
        yield rates, amplitudes(problem, rates, weights)
        power, sampled = 1 if self.options.norm == "L1" else np.inf, isinstance(self.source, Points)
        # Sums of absolute values at points have no other method that follows.
        rounds = 40 if power == 1 and sampled else 15
        rates, weights = reweighted(problem, rates, power, weights, rounds, mixing)
        found = rates, amplitudes(problem, rates, weights)
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
            error = (whole.values - terms(rates, coefficients)(whole.times)) * whole.factors
            more = peaks(error, 1.001 * level, MOST // 8)
            if more.size == 0:
                break
            problem = problem.joined(whole, more)
        return rates, coefficients

    def _found(self, m: int, rates: Rates, coefficients: np.ndarray, mixing: np.ndarray) -> Found:
        sums = terms(rates, coefficients)
        measured = self.source.measure(sums)
        bound = 0.0
        if not self.options.complex and measured.error > measured.uncertainty:
            needed = 2 * m + 1 + self.options.offset
            bound = alternation_bound(self.source.parts(sums), needed, self.options.norm)
            bound = max(bound - measured.uncertainty, 0.0)
        return Found(rates, mixing, sums, measured, bound)

    def _result(self, m: int, found: Found) -> BestExponentialSum:
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
            noise_limited=jnp.asarray(noise_limited(source.residuals(sums))),
            offset=jnp.asarray(own.cosine[-1] if options.offset else 0.0),
            statistics=self._statistics(own),
            order=m,
            norm=options.norm,
            samples=options.samples,
        )

    def _statistics(self, sums: Terms) -> FitStatistics | None:
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


def _cost(pair: tuple[Rates, float]) -> float:
    return pair[1]


def _near(pair: tuple[Rates, float], others: list[tuple[Rates, float]], share: float) -> bool:
    """Whether the cost is that of another, within a share of it."""
    return any(abs(pair[1] - other) <= share * other for _, other in others)


def _as_model(sums: Terms, options: Options) -> DiagonalLinearRNN | ComplexDiagonalRNN:
    cosine, sine, rates, frequencies = (
        jnp.asarray(part[: part.size - options.offset]) for part in sums
    )
    if options.complex:
        return ComplexDiagonalRNN(cosine, sine, rates, frequencies)
    return DiagonalLinearRNN(cosine, rates)


def best_exponential_sum(
    kernel: Kernel,
    m: int,
    *,
    norm: Norm = "L2",
    min_rate: Real[ScalarLike, ""] = 0.0,
    complex: bool = False,
    horizon: Real[ScalarLike, ""] | None = None,
    start: DiagonalLinearRNN | ComplexDiagonalRNN | None = None,
    samples: Samples = "points",
    weights: Real[ArrayLike, " samples"] | None = None,
    absolute_weights: bool = False,
    offset: bool = False,
    progress: bool = False,
) -> BestExponentialSum:
    r"""The best approximation of a kernel by a sum of $m$ exponentials, as a model.

    $$\hat\rho(t) = \sum_{i=1}^m a_i e^{-w_i t}, \qquad w_i \ge w_\mathrm{min}, \qquad
      \|\rho - \hat\rho\| \to \min$$

    Amplitudes enter linearly and are eliminated (variable projection); the logarithms of the
    rates are found by Levenberg and Marquardt's method from many starts: a kernel's own rates;
    nonnegative least squares with many fixed rates, whose lines are joined; geometric
    progressions over all times on which the kernel changes, as the quadrature of Beylkin and
    Monzon for power laws; balanced truncation of two weighted Hankel operators, by the derivative
    and by a shift of the kernel; and with `min_rate` clusters just above it, near Laguerre
    functions, and the sum of one rate less. The $L^1$ norm is then reached by reweighting, and
    the maximum by Lawson's reweighting and an exchange of extrema (Remez). The problem has local
    minima: the result is near the best, and `lower_bound` says how near it must be. All is done
    in units of the kernel's own, so that no unit of time or of size makes a difference.

    With real rates only, a kernel that oscillates or lies at a delay is approximated poorly, and
    best by rates that run together (`confluent`); it is never made complex silently.

    *Samples.* What a [`memjax.SampledKernel`][] is approximated for decides how it is taken.
    Measured samples are points: with `samples="points"` the norm is over the errors
    $e_k = \rho_k - \hat\rho(t_k)$ at the samples alone,

    $$L^2: \Big(\sum_k v_k e_k^2 / \sum_k v_k\Big)^{1/2}, \qquad
      L^1: \frac 1n \sum_k f_k |e_k|, \qquad \sup: \max_k f_k |e_k|, \qquad
      f_k^2 = n v_k / \sum_k v_k,$$

    with the `weights` $v$, all in units of the response; the first is least squares, with standard
    errors in `statistics`. The kernel of the white-noise loss is the straight line from sample to
    sample, and 0 before the first: `samples="linear"` approximates that in the norms of
    functions, and its error includes what the lines cut off.

    **Arguments:**

    - `kernel`: An [`memjax.AbstractKernel`][] or a scalar [`memjax.StateSpaceKernel`][], in
        float64; a model is passed as `model.kernel()`, measured data as a
        [`memjax.SampledKernel`][].
    - `m`: The number of real neurons. With `complex=True` a pair of complex rates counts as two,
        and a rate of frequency 0 as one, although the model holds both in one slot.
    - `norm`: `"L1"`: the largest error of an output under inputs between -1 and 1; `"L2"`: the
        root mean square under white noise; `"sup"`: the largest error of the kernel itself.
    - `min_rate`: The stability margin: no rate lies below it, in units of one over time.
    - `complex`: Whether rates may be complex.
    - `horizon`: The time up to which errors count. Defaults to infinity, and for a
        `SampledKernel` to its last sample, beyond which nothing has been measured.
    - `start`: A model of at most `m` neurons to start from as well.
    - `samples`: `"points"` or `"linear"`, as above; of no effect on other kernels.
    - `weights`: Weights of samples that are points, of 0 or more, shape `(samples,)`: one over the
        variance of each, up to a common factor. Defaults to equal ones.
    - `absolute_weights`: Whether weights are one over the variances themselves and not just in
        proportion, which matters for the standard errors alone; as `absolute_sigma` of SciPy's
        `curve_fit`.
    - `offset`: Whether a constant is added to the sum, as a response has that does not decay to
        0. It needs samples or a finite `horizon`, and is no part of `model`.
    - `progress`: Whether to show a progress bar on a terminal if it takes longer than a moment.

    **Returns:**

    A [`memjax.BestExponentialSum`][]. Not for `jax.jit`: the search adapts to the values.

    **Raises:** `TypeError` for what is no scalar kernel, for traced kernels, and where float64 is
    off; `ValueError` for `m` below 1 or so large that the samples are fewer than the parameters,
    a negative `min_rate`, a kernel whose norm is infinite, which is identically 0, samples that
    are constant or fewer than four, or of which the first is so late that amplitudes at time 0
    have no meaning, weights that do not fit, and for a `start` of more rates than asked for, or of
    complex ones without `complex=True`.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 4 (theory, section 2); Beylkin, Monzon, *On
        approximation of functions by exponential sums*, Appl. Comput. Harmon. Anal. 19, 2005;
        Golub, Pereyra, *Separable nonlinear least squares*, Inverse Problems 19, 2003.
    """
    m = check_integer("m", m)
    search = make_search(
        kernel, norm, min_rate, complex, horizon, samples, weights, absolute_weights, offset
    )
    search.check_order(m)
    warm = []
    if start is not None:
        check_instance(
            "start", start, (DiagonalLinearRNN, ComplexDiagonalRNN),
            "a DiagonalLinearRNN or ComplexDiagonalRNN", "pass the `model` of another sum",
        )  # fmt: skip
        rates = _rates_of(start, search.source.time)
        if rates.order > m or (rates.pairs.size and not complex):
            raise ValueError(
                f"`start` must have at most {m} {'' if complex else 'real '}rates, got "
                f"{rates.order} of which {2 * rates.pairs.size} complex; raise `m` or pass "
                "complex=True."
            )
        warm = extended(rates, m)
    with search.watched(check_flag("progress", progress)):
        if search.problem.min_rate > 0 and m > 1:
            # Rates that run together at the margin have many local minima.
            warm += extended(search.run(m - 1, [])[1], m)
        return search.run(m, warm)[0]


def noise_limited(residuals: np.ndarray) -> bool:
    """Whether residuals at samples change sign as often as independent noise does."""
    changes = int(np.sum(residuals[1:] * residuals[:-1] < 0))
    steps = residuals.size - 1
    # A fair coin changes sides half of the time, give or take half the root.
    return residuals.size >= 8 and changes > steps / 2 - 1.5 * math.sqrt(steps)


def approximation_lower_bounds(
    kernel: Kernel,
    *,
    norm: Norm = "L2",
    horizon: Real[ScalarLike, ""] | None = None,
    samples: Samples = "points",
    weights: Real[ArrayLike, " samples"] | None = None,
    offset: bool = False,
) -> Float[Array, " orders"]:
    r"""Errors that no linear RNN of a given width falls below, dense and complex ones included.

    The kernel of a model of width $m$ makes $K(s, t) = \sqrt{p(s)}\, \hat\rho(s + t)
    \sqrt{q(t)}$ an operator of rank $m$, whatever the weights $p, q \ge 0$. So by Eckart, Young
    and Mirsky the same operator of the error $e = \rho - \hat\rho$ is at least as large as what
    the singular values $\sigma_1 \ge \sigma_2 \ge \dots$ of that of $\rho$ leave beyond the
    $m$-th:

    - `"L1"`: $\|e\|_{L^1} \ge \sigma_{m+1}$ with $p = q = 1$, the Hankel singular values;
    - `"L2"`: $\|e\|_{L^2}^2 \ge \sum_{k>m} \sigma_k^2$ for every $p * q \le 1$, since the squared
        Hilbert-Schmidt norm is $\int e(u)^2 (p * q)(u) \,\mathrm{d}u$. Here
        $p = q = (\pi s)^{-1/2}$, for which $p * q = 1$ exactly;
    - `"sup"`: $\|e\|_\infty^2 \ge \sum_{k>m} \sigma_k^2$ for all probabilities $p, q$; the best of
        a family is taken.

    What is certain and what is not: the inequalities are theorems, and any compression of the
    operator keeps them. Singular values come from Gauss quadrature by two rules, of which the
    smaller less their difference and less the rounding errors is returned, not from interval
    arithmetic. For kernels with jumps or kinks, or that the rules do not resolve, constants on
    cells are used, all of whose integrals are exact.
    The bound of an operator of finite rank is not the best sum: expect best errors above the
    bound by about $\sqrt{2m+1}$ in the $L^2$ norm, since the error of a best sum is
    spread evenly over that many singular values.

    **Arguments:**

    - `kernel`, `norm`, `horizon`, `samples`, `weights`, `offset`: as for
        [`memjax.best_exponential_sum`][]. For samples that are points the operators are Hankel
        matrices of means of neighbouring samples, which even spacing alone makes.

    **Returns:**

    The bounds for the widths $0, 1, 2, \dots$; 0 where rounding leaves none.

    **Raises:** as [`memjax.best_exponential_sum`][].

    ??? cite "Reference"

        Adamjan, Arov, Krein, *Analytic properties of Schmidt pairs for a Hankel operator and the
        generalized Schur-Takagi problem*, Math. USSR Sbornik 15, 1971; Glover, *All optimal
        Hankel-norm approximations of linear multivariable systems*, Int. J. Control 39, 1984.
    """
    search = make_search(kernel, norm, 0.0, False, horizon, samples, weights, False, offset)
    return jnp.asarray(search.bounds * search.norm_unit())


def make_search(
    kernel: Kernel,
    norm: str,
    min_rate: ArrayLike,
    complex: bool,
    horizon: ArrayLike | None,
    samples: str = "points",
    weights: ArrayLike | None = None,
    absolute_weights: bool = False,
    offset: bool = False,
) -> Search:
    """The checked arguments of a search."""
    end = check_kernel(kernel, norm, horizon)
    check_choice("samples", samples, SAMPLES, "measured samples are points")
    check_flag("complex", complex)
    check_flag("offset", offset)
    check_flag("absolute_weights", absolute_weights)
    rate = float(as_nonnegative("min_rate", min_rate))
    taken = samples if isinstance(kernel, SampledKernel) else None
    if weights is not None and taken != "points":
        raise ValueError(
            "`weights` must be None for what is no samples taken as points, got an array; a norm "
            "of functions weighs all times alike."
        )
    if offset and math.isinf(end):
        raise ValueError(
            "`offset` must be False for an infinite `horizon`, got True; a constant has no finite "
            "norm, so pass the time up to which errors count."
        )
    shares = None if weights is None else _as_weights(weights, kernel.times.size)  # pyright: ignore
    return Search(
        kernel,
        Options(norm, rate, complex, end, taken, shares, absolute_weights, offset),  # pyright: ignore
    )


def _as_weights(weights: ArrayLike, count: int) -> np.ndarray:
    values = as_finite_array("weights", weights)
    if values.shape != (count,):
        raise ValueError(
            f"`weights` must have one entry per sample, shape ({count},), got shape "
            f"{values.shape}; pass one over the variance of each."
        )
    check_nonnegative("weights", values, "pass one over the variance of each sample")
    return np.asarray(values)


def check_scalar_kernel(kernel: Any) -> None:
    """Refuse what is no kernel, and matrices of kernels."""
    single = isinstance(kernel, StateSpaceKernel) and kernel.shape == ()
    if not single and not isinstance(kernel, AbstractKernel):
        got = f"one of shape {kernel.shape}" if isinstance(kernel, StateSpaceKernel) else None
        raise TypeError(
            f"`kernel` must be a scalar kernel, got {got or shown(kernel)}; pass the "
            "entries of a matrix of kernels one by one, and a model's `kernel()`."
        )


def check_kernel(kernel: Kernel, norm: str, horizon: ArrayLike | None) -> float:
    """Refuse what cannot be approximated, and give the horizon."""
    check_choice("norm", norm, NORMS)
    check_scalar_kernel(kernel)
    if is_traced((kernel, horizon)):
        raise TypeError(
            "`kernel` must be concrete, got a traced one; the search adapts to the values and "
            "cannot run under `jax.jit` or `jax.vmap`."
        )
    check_float64("kernel", (kernel, jnp.zeros(())))
    name = type(kernel).__name__
    if horizon is None:
        end = float(kernel.times[-1]) if isinstance(kernel, SampledKernel) else math.inf
    else:
        finite = as_horizon(horizon)
        check_scalar("horizon", jnp.zeros(()) if finite is None else finite)
        end = math.inf if finite is None else float(finite)
        if not end > 0:
            raise ValueError(f"`horizon` must be positive, got {end}; pass a time above 0.")
    if isinstance(kernel, SampledKernel):
        values = np.asarray(kernel.values)
        if values.size < 4:
            raise ValueError(
                f"`kernel` must hold at least 4 samples, got {values.size}; fewer say nothing "
                "of a decay."
            )
        if np.all(values == values[0]):
            raise ValueError(
                f"`kernel` must vary, got samples that are all {values[0]}; a response that is "
                "constant as long as it was measured has no decay to fit."
            )
    if math.isinf(end):
        inside = {"L1": kernel.in_l1, "L2": kernel.in_l2, "sup": kernel.memory != "none"}
        if not inside[norm]:
            raise ValueError(
                f"`kernel` must have a finite {norm} norm and decay, got {name}; pass a finite "
                "`horizon`."
            )
    return end


def _rates_of(model: DiagonalLinearRNN | ComplexDiagonalRNN, time: float) -> Rates:
    rates = np.asarray(model.rates) * time
    if isinstance(model, DiagonalLinearRNN):
        return real(rates)
    frequencies = np.abs(np.asarray(model.frequencies)) * time
    alone = frequencies == 0
    return Rates(rates[alone], rates[~alone], frequencies[~alone])


def extended(rates: Rates, m: int) -> list[Rates]:
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
