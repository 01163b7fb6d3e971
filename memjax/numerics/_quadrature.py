"""Gauss-Legendre quadrature over panels, for integrals that have no closed form.

Every panel takes 32 points, unless said otherwise. All that is integrated here is smooth between
a kernel's `breakpoints`, so the error is rounding; where the integrand is of one sign, so that
nothing cancels, that is relative to the integral however small it is.
"""

import functools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float

POINTS = 32

# Lengths of panels, in decay times, on which the rule resolves an exponential until it is over.
DECAYS = np.array([0.0, 1.0, 4.0, 12.0, 40.0])

UNRESOLVED = 1e-5  # the rule is exact to twice the degree, hence about the square of this


@functools.cache
def gauss_rule(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Nodes and weights of Gauss's rule on [-1, 1]."""
    return np.polynomial.legendre.leggauss(points)


@functools.cache
def last_coefficients(points: int) -> Float[np.ndarray, "points 2"]:
    """Maps values at the nodes to their last two Legendre coefficients, which tell whether a
    panel resolves a function, without the rule of another order."""
    nodes, weights = gauss_rule(points)
    polynomials = np.polynomial.legendre.legvander(nodes, points - 1)[:, -2:]
    return polynomials * weights[:, None] * (2 * np.arange(points)[-2:] + 1) / 2


def panels(
    edges: Float[Array, "... edges"], points: int = POINTS
) -> tuple[Float[Array, "... panels nodes"], Float[Array, "... panels nodes"]]:
    """Nodes and weights on the panels between neighbouring edges along the last axis."""
    nodes, weights = gauss_rule(points)
    nodes, weights = ((1 + nodes) / 2).astype(edges.dtype), (weights / 2).astype(edges.dtype)
    starts, widths = edges[..., :-1, None], jnp.diff(edges, axis=-1)[..., None]
    return starts + widths * nodes, widths * weights


def resolved(integrand: Array, weights: Array) -> Array:
    """The integral over all panels, or NaN if they do not resolve it."""
    size = jnp.sum(weights * jnp.abs(integrand))
    widths = jnp.sum(weights, axis=-1, keepdims=True)
    unresolved = jnp.sum(widths * jnp.abs(integrand @ last_coefficients(integrand.shape[-1])))
    # A factor, since NaN has to reach the derivatives too.
    return jnp.sum(weights * integrand) * jnp.where(unresolved <= UNRESOLVED * size, 1, jnp.nan)


def integrate(
    function: Callable[[Array], Array], edges: Float[Array, "... edges"]
) -> Float[Array, "..."]:
    """The integral of an elementwise `function` from the first edge to the last.

    **Arguments:**

    - `function`: Called once, with an array of shape `(..., panels, points)`.
    - `edges`: Ascending ends of the panels along the last axis; panels may be empty.
    """
    nodes, weights = panels(edges)
    return jnp.sum(weights * function(nodes), axis=(-2, -1))


def panel_edges(
    points: Float[Array, "... points"], start: Float[Array, "..."], stop: Float[Array, "..."]
) -> Float[Array, "... edges"]:
    """The edges from `start` to `stop` by way of all the `points` between, in any order.

    Derivatives go through `start` and `stop` alone: inner edges only cut the integral up.
    """
    points = stop_gradient(points)
    shape = jnp.broadcast_shapes(points.shape[:-1], start.shape, stop.shape)
    start, stop = (
        jnp.broadcast_to(start, shape)[..., None],
        jnp.broadcast_to(stop, shape)[..., None],
    )
    inner = jnp.clip(jnp.sort(points, axis=-1), start, stop)
    inner = jnp.broadcast_to(inner, (*shape, points.shape[-1]))
    return jnp.concatenate([start, stop_gradient(inner), stop], axis=-1)


def transform(
    function: Callable[[Array], Array],
    points: Float[Array, " points"],
    s: Float[Array, "..."],
    start: Float[Array, "..."],
    stop: Float[Array, "..."],
) -> Float[Array, "..."]:
    """The Laplace transform of `function` over `[start, stop]`, given its breakpoints."""
    s, start, stop = jnp.broadcast_arrays(s, start, stop)
    # The decay exp(-st) needs panels of its own behind every point.
    lengths = DECAYS / jnp.maximum(s, 1e-300)[..., None]
    first = jnp.clip(points, start[..., None], stop[..., None])
    cuts = first[..., :, None] + lengths[..., None, :]
    edges = panel_edges(cuts.reshape(*s.shape, -1), start, stop)
    return integrate(lambda t: jnp.exp(-s[..., None, None] * t) * function(t), edges)


def response_integral(
    function: Callable[[Array], Array],
    points: Float[Array, " points"],
    t: Float[Array, "..."],
    start: Float[Array, ""],
    stop: Float[Array, ""],
    order: int,
) -> Float[Array, "..."]:
    r"""$\int (t - u)^k \rho(u) \,\mathrm{d}u$ over the part of `[start, stop]` before `t`, for
    the orders 0 (response to a jump) and 1 (to a ramp)."""
    edges = panel_edges(points, start, jnp.clip(t, start, stop))
    return integrate(lambda u: (t[..., None, None] - u) ** order * function(u), edges)
