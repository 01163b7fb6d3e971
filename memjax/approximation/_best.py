import math
from typing import Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int, Real

from .._checks import (
    as_float_array,
    as_horizon,
    check_float64,
    check_integer,
    check_nonnegative,
    check_scalar,
    is_traced,
)
from ..models import ComplexDiagonalRNN, DiagonalLinearRNN
from ..targets import AbstractKernel, SampledKernel, StateSpaceKernel
from ..targets._inner import Kernel
from ._distance import Distance, distance, signed_parts, Terms
from ._fit import amplitudes, least_squares, minimax, Problem, Rates, reweighted, terms
from ._grid import Grid, make_grid, sample
from ._hankel import (
    abel,
    alternation_bound,
    flat,
    lower_bounds,
    POINTS,
    shift_cuts,
    spectrum,
)
from ._start import (
    as_rates,
    eigenvalues,
    floor_starts,
    geometric_starts,
    own_rates,
    real,
    Realisation,
    realise,
)

Norm = Literal["L1", "L2", "sup"]
NORMS = ("L1", "L2", "sup")


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
    - `order`: the number of real neurons asked for.
    - `norm`: the norm.
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
    order: int = eqx.field(static=True)
    norm: Norm = eqx.field(static=True)


class Search:
    """All that searches for sums of different order have in common for one kernel."""

    def __init__(self, kernel: Kernel, norm: Norm, min_rate: float, complex: bool, horizon: float):
        self.kernel, self.complex, self.horizon = kernel, complex, horizon
        self.norm: Norm = norm
        self.grid = make_grid(kernel, horizon, norm, complex)
        self.problem = Problem(self.grid, min_rate)
        if not np.any(self.grid.values):
            raise ValueError(
                f"`kernel` must not be 0 everywhere, got {type(kernel).__name__}; nothing is left "
                "to approximate."
            )
        self._bounds: np.ndarray | None = None
        self._fine: Grid | None = None
        self._realisations: list[Realisation] = []

    def bounds(self) -> np.ndarray:
        if self._bounds is None:
            self._bounds = lower_bounds(self.kernel, self.grid, self.horizon, self.norm)
        return self._bounds

    def fine(self) -> Grid:
        """Nodes between which an extremum of the error rises no further."""
        if self._fine is None:
            times = self.grid.times
            between = [times[:-1] + share * np.diff(times) for share in (1 / 3, 2 / 3)]
            times = np.unique(np.concatenate([times, *between]))
            values = sample(self.kernel, times)
            self._fine = self.grid._replace(times=times, weights=times, values=values)
        return self._fine

    def whole(self) -> float:
        """The norm of the kernel."""
        nothing = Terms(*(np.zeros(0) for _ in range(4)))
        return distance(self.kernel, nothing, self.grid, self.norm).norm

    def bound(self, order: int) -> float:
        bounds = self.bounds()
        return float(bounds[order]) if order < bounds.size else 0.0

    def realisations(self) -> list[Realisation]:
        if not self._realisations:
            cuts = shift_cuts(self.grid, self.horizon)
            step = float(self.grid.kernel_end / 32)
            if np.isinf(float(_support(self.kernel))):
                step = self.grid.scale
            self._realisations = [
                realise(self.kernel, spectrum(self.kernel, cuts, density, POINTS), step)
                for density in (abel, flat)
            ]
        return self._realisations

    def starts(self, m: int) -> list[Rates]:
        found = own_rates(self.kernel, m) + geometric_starts(self.grid, m)
        found += floor_starts(self.grid, m, self.problem.min_rate)
        for realisation in self.realisations():
            for values in eigenvalues(realisation, m):
                found += as_rates(values, False, m)
                if self.complex:
                    found += as_rates(values, True, m)
        return [rates for rates in found if rates.order == m]

    def run(self, m: int, warm: list[Rates]) -> tuple[BestExponentialSum, Rates]:
        """The best sum of order m, from all starts and from `warm` ones."""
        grid, problem = self.grid, self.problem
        weights = grid.weights
        if self.norm == "sup":
            # Every time scale counts alike.
            weights = grid.weights / (grid.times + grid.scale)
        tried = [least_squares(problem, rates, weights, 20) for rates in warm + self.starts(m)]
        # Least squares may rank others before what is best in another norm.
        carried = sorted(tried[: len(warm)], key=lambda pair: pair[1])[:1]
        tried.sort(key=lambda pair: pair[1])
        kept: list[tuple[Rates, float]] = []
        for rates, cost in tried:
            if all(abs(cost - other) > 1e-3 * other for _, other in kept):
                kept.append((rates, cost))
        best: tuple[Distance, Terms, Rates] | None = None
        chosen = kept[:3]
        chosen += [pair for pair in carried if all(pair[1] != cost for _, cost in chosen)]
        for rates, _ in chosen:
            rates, _ = least_squares(problem, rates, weights, 400)
            for found in self._polished(rates, weights):
                rates, coefficients = found
                model = terms(rates, coefficients)
                measured = distance(self.kernel, model, grid, self.norm)
                if best is None or measured.error < best[0].error:
                    best = measured, model, rates
        assert best is not None
        return self._result(m, *best), best[2]

    def _polished(self, rates: Rates, weights: np.ndarray) -> list[tuple[Rates, np.ndarray]]:
        grid, problem = self.grid, self.problem
        found = [(rates, amplitudes(grid, rates, weights))]
        if self.norm == "L1":
            rates, weights = reweighted(problem, rates, 1, weights, 30)
            found.append((rates, amplitudes(grid, rates, weights)))
        elif self.norm == "sup":
            rates, weights = reweighted(problem, rates, np.inf, weights, 15)
            found.append((rates, amplitudes(grid, rates, weights)))
            found.append(minimax(Problem(self.fine(), problem.min_rate), *found[-1]))
        return found

    def _result(self, m: int, measured: Distance, model: Terms, rates: Rates) -> BestExponentialSum:
        bound = self.bound(m)
        if not self.complex:
            parts = signed_parts(self.kernel, model, self.grid, self.norm)
            bound = max(bound, alternation_bound(parts, m, self.norm) - measured.uncertainty)
        times, weights = self.grid.times, self.grid.weights
        whole = weights @ np.abs(self.grid.values)
        sizes = weights @ model.size(times)
        floor = self.problem.min_rate
        arrays = [jnp.asarray(part) for part in model]
        if self.complex:
            made = ComplexDiagonalRNN(arrays[0], arrays[1], arrays[2], arrays[3])
        else:
            made = DiagonalLinearRNN(arrays[0], arrays[2])
        return BestExponentialSum(
            model=made,
            error=jnp.asarray(measured.error),
            relative_error=jnp.asarray(measured.error / measured.norm),
            uncertainty=jnp.asarray(measured.uncertainty),
            lower_bound=jnp.asarray(min(bound, measured.error)),
            active=jnp.asarray(int(np.sum(model.rates <= floor * (1 + 1e-6))) if floor > 0 else 0),
            resolved=jnp.asarray(measured.uncertainty < 0.1 * measured.error),
            confluent=jnp.asarray(bool(sizes > 1e5 * whole)),
            noise_limited=jnp.asarray(_noise_limited(self.kernel, model)),
            order=m,
            norm=self.norm,
        )


def best_exponential_sum(
    kernel: Kernel,
    m: int,
    *,
    norm: Norm = "L2",
    min_rate: Real[ArrayLike, ""] = 0.0,
    complex: bool = False,
    horizon: Real[ArrayLike, ""] | None = None,
    start: DiagonalLinearRNN | ComplexDiagonalRNN | None = None,
) -> BestExponentialSum:
    r"""The best approximation of a kernel by a sum of $m$ exponentials, as a model.

    $$\hat\rho(t) = \sum_{i=1}^m a_i e^{-w_i t}, \qquad w_i \ge w_\mathrm{min}, \qquad
      \|\rho - \hat\rho\| \to \min$$

    Amplitudes enter linearly and are eliminated (variable projection); the logarithms of the
    rates are found by Levenberg and Marquardt's method from many starts: balanced truncation of
    two weighted Hankel operators, by the derivative and by a shift of the kernel; geometric
    progressions, as the quadrature of Beylkin and Monzon for power laws; a kernel's own rates; and
    with `min_rate` clusters just above it, near Laguerre functions, and the sum of one rate less.
    The $L^1$ norm is then reached by reweighting, and the maximum by Lawson's reweighting and an
    exchange of extrema (Remez). The problem has local minima: the result is near the best, and
    `lower_bound` says how near it must be.

    With real rates only, a kernel that oscillates or lies at a delay is approximated poorly, and
    best by rates that run together (`confluent`); it is never made complex silently.

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

    **Returns:**

    A [`memjax.BestExponentialSum`][]. Not for `jax.jit`: the search adapts to the values.

    **Raises:** `TypeError` for what is no scalar kernel, for traced kernels, and where float64 is
    off; `ValueError` for `m` below 1, a negative `min_rate`, a kernel whose norm is infinite,
    which is identically 0, samples that are constant or fewer than four, and for a `start` of more
    rates than asked for, or of complex ones without `complex=True`.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 4 (theory, section 2); Beylkin, Monzon, *On
        approximation of functions by exponential sums*, Appl. Comput. Harmon. Anal. 19, 2005;
        Golub, Pereyra, *Separable nonlinear least squares*, Inverse Problems 19, 2003.
    """
    check_integer("m", m)
    search = make_search(kernel, norm, min_rate, complex, horizon)
    warm = []
    if start is not None:
        if not isinstance(start, (DiagonalLinearRNN, ComplexDiagonalRNN)):
            raise TypeError(
                f"`start` must be a DiagonalLinearRNN or ComplexDiagonalRNN, got "
                f"{type(start).__name__}; pass the `model` of another sum."
            )
        rates = _rates_of(start)
        if rates.order > m or (rates.pairs.size and not complex):
            raise ValueError(
                f"`start` must have at most {m} {'' if complex else 'real '}rates, got "
                f"{rates.order} of which {2 * rates.pairs.size} complex; raise `m` or pass "
                "complex=True."
            )
        warm = extended(rates, m)
    if search.problem.min_rate > 0 and m > 1:
        # Rates that run together at the margin have many local minima.
        warm += extended(search.run(m - 1, [])[1], m)
    return search.run(m, warm)[0]


def _support(kernel: Kernel) -> float:
    return float(kernel.support()) if isinstance(kernel, AbstractKernel) else math.inf


def _noise_limited(kernel: Kernel, model: Terms) -> bool:
    if not isinstance(kernel, SampledKernel):
        return False
    times = np.asarray(kernel.times)
    residuals = np.asarray(kernel.values) - model(times)
    changes = int(np.sum(residuals[1:] * residuals[:-1] < 0))
    steps = times.size - 1
    # A fair coin changes sides half of the time, give or take half the root.
    return times.size >= 8 and changes > steps / 2 - 1.5 * math.sqrt(steps)


def approximation_lower_bounds(
    kernel: Kernel, *, norm: Norm = "L2", horizon: Real[ArrayLike, ""] | None = None
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

    - `kernel`, `norm`, `horizon`: as for [`memjax.best_exponential_sum`][].

    **Returns:**

    The bounds for the widths $0, 1, 2, \dots$; 0 where rounding leaves none.

    **Raises:** as [`memjax.best_exponential_sum`][].

    ??? cite "Reference"

        Adamjan, Arov, Krein, *Analytic properties of Schmidt pairs for a Hankel operator and the
        generalized Schur-Takagi problem*, Math. USSR Sbornik 15, 1971; Glover, *All optimal
        Hankel-norm approximations of linear multivariable systems*, Int. J. Control 39, 1984.
    """
    return jnp.asarray(make_search(kernel, norm, 0.0, False, horizon).bounds())


def make_search(
    kernel: Kernel, norm: str, min_rate: ArrayLike, complex: bool, horizon: ArrayLike | None
) -> Search:
    """The checked arguments of a search."""
    end = check_kernel(kernel, norm, horizon)
    rate = as_float_array("min_rate", min_rate)
    check_scalar("min_rate", rate)
    check_nonnegative("min_rate", rate)
    return Search(kernel, norm, float(rate), bool(complex), end)  # pyright: ignore


def check_kernel(kernel: Kernel, norm: str, horizon: ArrayLike | None) -> float:
    """Refuse what cannot be approximated, and give the horizon."""
    if norm not in NORMS:
        raise ValueError(f"`norm` must be one of {', '.join(map(repr, NORMS))}, got {norm!r}.")
    single = isinstance(kernel, StateSpaceKernel) and kernel.shape == ()
    if not single and not isinstance(kernel, AbstractKernel):
        shape = f" of shape {kernel.shape}" if isinstance(kernel, StateSpaceKernel) else ""
        raise TypeError(
            f"`kernel` must be a scalar kernel, got {type(kernel).__name__}{shape}; pass the "
            "entries of a matrix of kernels one by one, and a model's `kernel()`."
        )
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


def _rates_of(model: DiagonalLinearRNN | ComplexDiagonalRNN) -> Rates:
    rates = np.asarray(model.rates)
    if isinstance(model, DiagonalLinearRNN):
        return real(rates)
    frequencies = np.abs(np.asarray(model.frequencies))
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
