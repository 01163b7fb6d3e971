import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import check_flag, check_instance, check_integer
from .._deprecation import renamed_arguments
from .._typing import ArrayLike, ScalarLike
from ..models import ComplexDiagonalRNN, DiagonalLinearRNN
from ..targets import AbstractKernel
from ._arguments import make_search
from ._problem import Rates
from ._search import extend_rates
from ._start import make_real
from ._sum import BestExponentialSum, Norm, Samples


@renamed_arguments(m="width")
def best_exponential_sum(
    kernel: AbstractKernel,
    width: int,
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
    - `width`: The number of real neurons. With `complex=True` a pair of complex rates counts as
        two, and a rate of frequency 0 as one, although the model holds both in one slot.
    - `norm`: `"L1"`: the largest error of an output under inputs between -1 and 1; `"L2"`: the
        root mean square under white noise; `"sup"`: the largest error of the kernel itself.
    - `min_rate`: The stability margin: no rate lies below it, in units of one over time.
    - `complex`: Whether rates may be complex.
    - `horizon`: The time up to which errors count. Defaults to infinity, and for a
        `SampledKernel` to its last sample, beyond which nothing has been measured.
    - `start`: A model of at most `width` neurons to start from as well.
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
    off; `ValueError` for `width` below 1 or so large that the samples are fewer than the
    parameters, a negative `min_rate`, a kernel whose norm is infinite, which is identically 0,
    samples that are constant or fewer than four, or of which the first is so late that amplitudes
    at time 0 have no meaning, weights that do not fit, and for a `start` of more rates than asked
    for, or of complex ones without `complex=True`.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 4 (theory, section 2); Beylkin, Monzon, *On
        approximation of functions by exponential sums*, Appl. Comput. Harmon. Anal. 19, 2005;
        Golub, Pereyra, *Separable nonlinear least squares*, Inverse Problems 19, 2003.
    """
    m = check_integer("width", width)
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
        rates = _read_rates(start, search.source.time)
        if rates.order > m or (rates.pairs.size and not complex):
            raise ValueError(
                f"`start` must have at most {m} {'' if complex else 'real '}rates, got "
                f"{rates.order} of which {2 * rates.pairs.size} complex; raise `width` or pass "
                "complex=True."
            )
        warm = extend_rates(rates, m)
    with search.watched(check_flag("progress", progress)):
        if search.problem.min_rate > 0 and m > 1:
            # Rates that run together at the margin have many local minima.
            warm += extend_rates(search.run(m - 1, [])[1], m)
        return search.run(m, warm)[0]


def approximation_lower_bounds(
    kernel: AbstractKernel,
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


def _read_rates(model: DiagonalLinearRNN | ComplexDiagonalRNN, time: float) -> Rates:
    rates = np.asarray(model.rates) * time
    if isinstance(model, DiagonalLinearRNN):
        return make_real(rates)
    frequencies = np.abs(np.asarray(model.frequencies)) * time
    alone = frequencies == 0
    return Rates(rates[alone], rates[~alone], frequencies[~alone])
