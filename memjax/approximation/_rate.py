import math
from collections.abc import Sequence

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Real

from .._checks import as_integers, as_positive_array, shown
from .._deprecation import renamed_attribute
from .._lazy import scipy
from .._text import readable
from .._typing import ArrayLike
from ..numerics import fit_line
from ..targets import AbstractKernel, split_exponential, state_space
from ._arguments import check_kernel, make_search
from ._curve import Curve, first_jump, sample
from ._search import extend_rates

_CLEAR = 1e-12  # below this share of its maximum a derivative may be rounding


@readable("plot_approximation_errors")
class ApproximationRate(eqx.Module):
    r"""The direct approximation theorem measured for a kernel, beside the best sums found.

    **Attributes:**

    - `alpha`: the orders of smoothness $\alpha$ that the theorem was used with, shape `(orders,)`.
    - `beta`: for each the decay rate $\beta$ that makes its bound smallest.
    - `gamma`: for each the constant $\gamma$ at that $\beta$.
    - `widths`: the numbers of neurons of the sums, shape `(widths,)`.
    - `bound`: the theorem's bound at these, the smallest over $\alpha$, with the constants
        $C(\alpha)$, which the theorem leaves open, set to 1.
    - `errors`: the $L^1$ errors of the best sums found.
    - `lower_bounds`: what no sum of that width falls below.
    - `exponent`: the exponent $p$ of the least-squares fit $m^{-p}$ to the errors that rounding
        does not limit; NaN if those are fewer than two.
    - `exponential`: the rate $c$ of the least-squares fit $e^{-cm}$ to the same.
    - `faster_than_powers`: whether the second fit is the better one: more neurons then help more
        than any power in the theorem says. False where two errors or fewer are left to fit.
    """

    alpha: Int[Array, " orders"]
    beta: Float[Array, " orders"]
    gamma: Float[Array, " orders"]
    widths: Int[Array, " widths"]
    bound: Float[Array, " widths"]
    errors: Float[Array, " widths"]
    lower_bounds: Float[Array, " widths"]
    exponent: Float[Array, ""]
    exponential: Float[Array, ""]
    faster_than_powers: Bool[Array, ""]

    power = renamed_attribute("power", "exponent")

    def theorem(self, widths: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        r"""The theorem's bound $\min_\alpha \gamma / (\beta m^\alpha)$, with $C(\alpha) = 1$.

        **Arguments:**

        - `widths`: Numbers of neurons $m$, any shape.

        **Returns:**

        An array of the shape of `widths`.
        """
        m = as_positive_array("widths", widths)[..., None]
        return jnp.min(self.gamma / (self.beta * m**self.alpha), axis=-1)


def approximation_rate(
    kernel: AbstractKernel,
    *,
    alphas: Sequence[int] = (1, 2, 3),
    widths: Sequence[int] = (2, 4, 6, 8),
    complex: bool = True,
) -> ApproximationRate:
    r"""The constants of the direct approximation theorem, and the rate that best sums have.

    With the step response $y(t) = \int_0^t \rho$: if $y \in C^{\alpha+1}$ and
    $e^{\beta t} y^{(k)}(t) \to 0$ for $k = 1, \dots, \alpha + 1$, then for every $m$ a linear RNN
    of width $m$ has

    $$\sup_t \|H_t - \hat H_t\| = \|\rho - \hat\rho\|_{L^1} \le
    \frac{C(\alpha)\, \gamma}{\beta\, m^\alpha}, \qquad
    \gamma = \max_{1 \le k \le \alpha+1} \sup_t \frac{|e^{\beta t} y^{(k)}(t)|}{\beta^k}.$$

    Any $\beta$ below the decay rate of the kernel will do; the one that makes
    $\gamma / \beta$ smallest is taken, which is a convex problem in $\log \beta$ and needs the
    kernel only where it is not yet negligible.

    **Arguments:**

    - `kernel`: The kernel, with exponential memory and at least one continuous derivative.
    - `alphas`: The orders of smoothness to use. Those that the kernel does not have are left out.
    - `widths`: The numbers of neurons for which best sums are looked for, at least two.
    - `complex`: Whether those may have complex rates, as the theorem's models may.

    **Returns:**

    An [`memjax.ApproximationRate`][].

    **Raises:** `ValueError` for a kernel that does not qualify: its memory is polynomial, so that
    there is no $\beta$, or it has jumps or kinks, so that there is no $\alpha$; and as
    [`memjax.best_exponential_sum`][].

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 4 (theory, section 2).
    """
    check_kernel(kernel, "sup", math.inf)
    alphas, widths = as_integers("alphas", alphas), as_integers("widths", widths)
    if len(set(widths)) < 2:
        raise ValueError(
            f"`widths` must hold two numbers of neurons, got {shown(widths)}; a rate needs more."
        )
    name = type(kernel).__name__
    if kernel.memory in ("polynomial", "none"):
        raise ValueError(
            f"`kernel` must decay exponentially for the theorem, got {name} with memory "
            f"{kernel.memory!r}: no beta bounds exp(beta t) rho; use `neurons_needed`, which needs "
            "none, or a window of it that ends smoothly."
        )
    jump = first_jump(kernel, max(alphas) + 1)
    smooth = sorted(alpha for alpha in set(alphas) if jump is None or alpha < jump)
    if not smooth:
        what = "jumps" if jump == 0 else f"has a derivative of order {jump} that jumps"
        raise ValueError(
            f"`kernel` must have {min(alphas)} continuous derivatives for the theorem, got {name}, "
            f"which {what}; use `neurons_needed`, or smooth it."
        )
    curve = Curve(kernel, math.inf, "sup", False)
    constants = [_find_constants(curve, alpha) for alpha in smooth]
    beta, gamma = (jnp.asarray(values) for values in zip(*constants, strict=True))

    search = make_search(kernel, "L1", 0.0, complex, math.inf)
    errors, bounds, clear, last = [], [], [], []
    orders = sorted(set(widths))
    for m in orders:
        found, rates = search.run(m, [start for r in last for start in extend_rates(r, m)])
        last = [rates]
        errors.append(float(found.error))
        bounds.append(float(found.lower_bound))
        clear.append(bool(found.resolved))
    exponent, misfit_power = _fit(np.log(orders), errors, clear)
    exponential, misfit_exponential = _fit(np.array(orders, float), errors, clear)
    alpha = jnp.asarray(smooth)
    return ApproximationRate(
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        widths=jnp.asarray(orders),
        bound=jnp.min(gamma / (beta * jnp.asarray(orders, float)[:, None] ** alpha), axis=-1),
        errors=jnp.asarray(errors),
        lower_bounds=jnp.asarray(bounds),
        exponent=jnp.asarray(exponent),
        exponential=jnp.asarray(exponential),
        faster_than_powers=jnp.asarray(misfit_exponential < misfit_power),
    )


def _find_constants(curve: Curve, alpha: int) -> tuple[float, float]:
    """The pair beta, gamma that makes gamma / beta smallest."""
    kernel, grid = curve.kernel, curve.grid.times * curve.time
    known = _find_slowest(kernel)
    times, logs, fastest = [], [], math.inf if known is None else known
    for order in range(alpha + 1):
        size = np.abs(sample(kernel, grid, order))
        clear = (size > _CLEAR * np.max(size)) & (grid <= curve.grid.end * curve.time)
        t, log = grid[clear], np.log(size[clear])
        times.append(t)
        logs.append(log)
        if state_space(kernel) is None:
            fastest = min(fastest, _measure_tail(kernel, t, log))

    def log_gamma(beta: float) -> float:
        return max(
            float(np.max(beta * t + log)) - (k + 1) * math.log(beta)
            for k, (t, log) in enumerate(zip(times, logs, strict=True))
        )

    found = scipy.optimize.minimize_scalar(
        lambda u: log_gamma(math.exp(u)) - u,
        bounds=(math.log(fastest) - 20, math.log(fastest)),
        method="bounded",
        options={"xatol": 1e-9},
    )
    beta = min(math.exp(float(found.x)), fastest)  # pyright: ignore
    return beta, math.exp(log_gamma(beta))


def _fit(x: np.ndarray, errors: list[float], clear: list[bool]) -> tuple[float, float]:
    """The slope at which the logarithms of errors that are not rounding fall, and the misfit."""
    if sum(clear) < 2:
        return math.nan, math.nan
    x, y = x[np.array(clear)], np.log(np.array(errors)[np.array(clear)])
    line = fit_line(x, y)
    # Through two points goes every line: what is left is rounding, and says nothing.
    return -line.slope, line.squares if len(x) > 2 else math.nan


def _find_slowest(kernel: AbstractKernel) -> float | None:
    """The slowest rate of the exponentials in a kernel."""
    system = state_space(kernel)
    if system is not None:
        return -float(np.max(np.linalg.eigvals(np.asarray(system.recurrent)).real))
    rates = np.asarray(split_exponential(kernel)[0].rates)
    return float(np.min(rates)) if rates.size else None


def _measure_tail(kernel: AbstractKernel, times: np.ndarray, logs: np.ndarray) -> float:
    """The rate at which the envelope decays at the end, a little below what is measured."""
    end = times[-1]
    early = (times > 0.6 * end) & (times < 0.8 * end)
    late = times >= 0.8 * end
    rate = 0.0
    if np.any(early):
        drop = np.max(logs[early]) - np.max(logs[late])
        gap = times[late][np.argmax(logs[late])] - times[early][np.argmax(logs[early])]
        rate = 0.98 * float(drop / gap)
    # An exponential falls to the last digit within 30 decay times, a power within a few.
    if rate * end < 8:
        raise ValueError(
            f"`kernel` must decay exponentially for the theorem, got {type(kernel).__name__}, "
            f"which falls like t^-{max(rate * end, 0):.2g} where it ends; use `neurons_needed`, "
            "which needs no beta."
        )
    return rate
