from collections.abc import Callable
from typing import get_args, Literal, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Real

from .._checks import as_horizon, check_choice, check_instance, is_traced, shown
from .._deprecation import warn_deprecated
from .._typing import ArrayLike, ScalarLike
from ..models import AbstractModel
from ..numerics import find_all, gauss_rule, POINTS, sign_changes
from ..targets import AbstractKernel, describe_sizes, edges, HasKernel, total

# Of kernels; `"sup"` stands for the old name of the first.
Norm = Literal["L1", "sobolev", "sup"]
Terms: TypeAlias = tuple[tuple[float, AbstractKernel], ...]  # of scalar kernels with factors


def functional_norm(
    kernel: AbstractKernel, norm: Norm = "L1", horizon: Real[ScalarLike, ""] | None = jnp.inf
) -> Float[Array, ""]:
    r"""The norm of a linear functional under inputs bounded by 1.

    $$\sup_t \sup_{|x|_\infty \le 1} |H_t(x)| = \|\rho\|_{L^1}, \qquad
      \|H\|_{\mathrm{Sobolev}} = \|\rho\|_{L^1} + |\rho(0)| + \|\rho'\|_{L^1}.$$

    The second adds the norm of the functional's own time derivative,
    $\dot H_t(x) = \rho(0)\, x_t + \int \rho'(s)\, x_{t-s} \,\mathrm{d}s$; where $\rho$ jumps,
    $\|\rho'\|_{L^1}$ counts the jump by its size, so that $|\rho(0)| + \|\rho'\|_{L^1}$ is the
    total variation of the kernel. With several outputs the sums over the inputs are taken first,
    and then the largest over the outputs.

    The kernel's sign changes (its extremes) are bracketed on 32 points in every panel between
    its `breakpoints`, the vertices of parabolas through neighbouring points included, and found
    by bisection. Between them the integral is a difference of the Heaviside response, and the
    infinite tail is closed by the transform at 0; the variation is a difference of the kernel
    itself. So the result is accurate to rounding of the kernel's values, about 1e-12 relative,
    also for polynomial tails.

    **Arguments:**

    - `kernel`: the kernel $\rho$: scalar, or [`memjax.StateSpaceKernel`][] or
        [`memjax.VectorKernel`][]. Its arrays must be concrete, not traced.
    - `norm`: `"L1"`, which is the largest output under inputs bounded by 1, or `"sobolev"`. (The
        old name `"sup"` of the first, that of the norm of the inputs, is deprecated: elsewhere it
        is the largest value of a kernel.)
    - `horizon`: the end of the time during which inputs act, in units of the model's own clock.
        Defaults to infinity.

    **Returns:**

    The norm, a scalar.

    **Raises:**

    `TypeError` for anything but a kernel, and under `jax.jit` or `jax.vmap`; `ValueError` for an
    unknown norm, a bad horizon, and a kernel that is not in $L^1$ without a horizon.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 4; Wang, Li, Li, *Inverse Approximation Theory
        for Nonlinear Recurrent Neural Networks*, ICLR 2024, section 3 (theory, sections 1 and 5).
    """
    hint = "pass a target such as memjax.ExponentialSum, or the `kernel()` of a linear model"
    check_instance("kernel", kernel, AbstractKernel, "a kernel", hint)
    terms: list[Terms] = [((1.0, entry),) for entry in kernel.entries()]
    return _norm(terms, kernel.sizes[1] or 1, norm, horizon, {"kernel": kernel})


def functional_distance(
    target: AbstractKernel,
    model: AbstractModel | AbstractKernel,
    norm: Norm = "L1",
    horizon: Real[ScalarLike, ""] | None = jnp.inf,
) -> Float[Array, ""]:
    r"""The distance of a linear model from a linear target under inputs bounded by 1.

    $$\sup_t \|H_t - \hat H_t\| = \|\rho - \hat\rho\|_{L^1}$$

    or the Sobolev norm of the difference, both as in [`memjax.functional_norm`][]. Rounding is
    relative to the values of the two kernels, not to their difference.

    **Arguments:**

    - `target`: the kernel of the target.
    - `model`: a model that has a `kernel()`, or a kernel, of the same inputs and outputs.
    - `norm`, `horizon`: as in [`memjax.functional_norm`][].

    **Returns:**

    The distance, a scalar.

    **Raises:**

    As [`memjax.functional_norm`][], `TypeError` for a model without a kernel, and `ValueError`
    for different numbers of inputs or outputs, and for an unstable model.
    """
    hint = "pass a kernel, or a linear model with a method `kernel`"
    kernel = model
    if isinstance(model, AbstractModel) and isinstance(model, HasKernel):
        kernel = model.kernel()
    check_instance("target", target, AbstractKernel, "a kernel", hint)
    if not isinstance(kernel, AbstractKernel):
        raise TypeError(f"`model` must have a kernel, got {shown(model)}; {hint}.")
    if target.sizes != kernel.sizes:
        raise ValueError(
            f"`target` and `model` must have the same inputs and outputs, got "
            f"{describe_sizes(target)}, against {describe_sizes(kernel)}."
        )
    pairs = zip(target.entries(), kernel.entries(), strict=True)
    terms: list[Terms] = [((1.0, first), (-1.0, second)) for first, second in pairs]
    named = {"target": target, "model": kernel}
    return _norm(terms, target.sizes[1] or 1, norm, horizon, named)


def check_integrable(name: str, kernel: AbstractKernel) -> None:
    """Refuse a kernel without a finite norm over the half line."""
    if not kernel.in_l1:
        raise ValueError(
            f"`{name}` must be integrable for an infinite horizon, got {type(kernel).__name__}, "
            "whose integral of |rho| is infinite; pass a finite horizon."
        )


def _norm(
    terms: list[Terms],
    inputs: int,
    norm: Norm,
    horizon: ArrayLike | None,
    kernels: dict[str, AbstractKernel],
) -> Float[Array, ""]:
    check_choice("norm", norm, get_args(Norm))
    if norm == "sup":
        warn_deprecated('norm="sup"', 'norm="L1"', stacklevel=4)
        norm = "L1"
    if is_traced((terms, horizon)):
        raise TypeError(
            f"`{next(iter(kernels))}` must be concrete, got a traced value; the search for sign "
            "changes adapts to the kernel: call it outside `jax.jit` and `jax.vmap`."
        )
    end = as_horizon(horizon)
    if end is not None and end.ndim:
        raise ValueError(f"`horizon` must be a scalar, got shape {end.shape}; pass one time.")
    if end is None:
        for name, kernel in kernels.items():
            check_integrable(name, kernel)
    grids = [_grid(term, end) for term in terms]

    def largest_sum(measure: Callable[..., Array]) -> Array:
        parts = [measure(*part, end) for part in zip(terms, grids, strict=True)]
        return jnp.asarray(np.max(np.sum(np.reshape(parts, (-1, inputs)), axis=1)))

    value = largest_sum(_absolute_integral)
    return value if norm == "L1" else value + largest_sum(_variation)


def _grid(terms: Terms, end: Array | None) -> Float[np.ndarray, " points"]:
    """Times that resolve every term, with both sides of every point where one may jump."""
    cuts = np.concatenate([np.asarray(edges((kernel,), end)) for _, kernel in terms])
    last = np.max(cuts) if end is None else np.asarray(end)
    cuts = np.unique(np.append(cuts, last))
    nodes = (1 + gauss_rule(POINTS)[0]) / 2
    inner = cuts[:-1, None] + np.diff(cuts)[:, None] * nodes
    sides = np.minimum(np.concatenate([cuts * (1 - 1e-15), cuts * (1 + 1e-15)]), last)
    return np.unique(np.concatenate([inner.ravel(), cuts, sides]))


def _value(terms: Terms, t: Array) -> Array:
    return total(factor * kernel(t) for factor, kernel in terms)


def _integral(terms: Terms, t: Array) -> Array:
    """The integrals from 0 to finite times, or to the end of all times for infinity."""
    endless, finite = jnp.isinf(t), jnp.where(jnp.isinf(t), 0, t)

    def integral(kernel: AbstractKernel) -> Array:
        return jnp.where(endless, kernel.laplace(0.0), kernel.heaviside_response(finite))

    return total(factor * integral(kernel) for factor, kernel in terms)


@eqx.filter_jit
def _roots(
    terms: Terms, grid: Float[Array, " points"], count: int
) -> tuple[Float[Array, " count"], Int[Array, ""]]:
    # A pair of roots between two points shows at the vertex of the parabola.
    f = lambda t: _value(terms, t)
    y = f(grid)
    left, right = grid[1:-1] - grid[:-2], grid[2:] - grid[1:-1]
    rise, fall = (y[1:-1] - y[:-2]) / left, (y[2:] - y[1:-1]) / right
    bend = (fall - rise) / (left + right)
    vertex = grid[1:-1] - (rise + bend * left) / (2 * jnp.where(bend == 0, 1, bend))
    vertex = jnp.where(bend == 0, grid[1:-1], jnp.clip(vertex, grid[:-2], grid[2:]))
    return sign_changes(f, jnp.sort(jnp.concatenate([grid, vertex])), count, 60)


@eqx.filter_jit
def _between(terms: Terms, cuts: Float[ArrayLike, " cuts"]) -> Float[Array, ""]:
    return jnp.sum(jnp.abs(jnp.diff(_integral(terms, jnp.asarray(cuts)))))


def _absolute_integral(terms: Terms, grid: Array, end: Array | None) -> Array:
    roots = find_all(lambda count: _roots(terms, grid, count))
    stop = np.inf if end is None else float(end)
    return _between(terms, np.concatenate([[0.0], roots, [stop]]))


@eqx.filter_jit
def _turns(
    terms: Terms, grid: Float[Array, " points"], count: int
) -> tuple[Float[Array, " count"], Int[Array, ""]]:
    f = lambda t: _value(terms, t)
    y = f(grid)
    turned = (y[1:-1] - y[:-2]) * (y[2:] - y[1:-1]) < 0
    last = grid.shape[0] - 1
    (index,) = jnp.nonzero(turned, size=count, fill_value=last - 1)
    left, right = grid[index], grid[jnp.minimum(index + 2, last)]
    sign = jnp.sign(y[jnp.minimum(index + 1, last)] - y[index])

    def zoom(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = bracket
        t = left + (right - left) * jnp.linspace(0, 1, 17)[:, None]
        best = jnp.argmax(sign * jnp.reshape(f(t.ravel()), t.shape), axis=0)
        pick = lambda row: jnp.take_along_axis(t, jnp.clip(row, 0, 16)[None], axis=0)[0]
        return pick(best - 1), pick(best + 1)

    left, right = jax.lax.fori_loop(0, 10, zoom, (left, right))
    return left + (right - left) / 2, jnp.sum(turned)


@eqx.filter_jit
def _jumps(terms: Terms, times: Float[ArrayLike, " times"], falls: bool) -> Float[Array, ""]:
    y = _value(terms, jnp.asarray(times))
    return jnp.abs(y[0]) + jnp.sum(jnp.abs(jnp.diff(y))) + falls * jnp.abs(y[-1])


def _variation(terms: Terms, grid: Array, end: Array | None) -> Array:
    turns = find_all(lambda count: _turns(terms, grid, count))
    # What is left at the end of the grid falls to 0, unless that is the horizon.
    return _jumps(terms, np.sort(np.concatenate([grid, turns])), end is None)
