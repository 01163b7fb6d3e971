"""Gauss-Legendre quadrature over panels, for integrals that have no closed form.

Every panel takes 32 points. All that is integrated here is smooth between a kernel's
`breakpoints`, so the error is rounding; where the integrand is of one sign, so that nothing
cancels, that is relative to the integral however small it is.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax.lax import stop_gradient
from jaxtyping import Array, Float

_POINTS, _WEIGHTS = np.polynomial.legendre.leggauss(32)
_POINTS, _WEIGHTS = (_POINTS + 1) / 2, _WEIGHTS / 2


def integrate(
    function: Callable[[Array], Array], edges: Float[Array, "... edges"]
) -> Float[Array, "..."]:
    """The integral of an elementwise `function` from the first edge to the last.

    **Arguments:**

    - `function`: Called once, with an array of shape `(..., panels, points)`.
    - `edges`: Ascending ends of the panels along the last axis; panels may be empty.
    """
    widths = jnp.diff(edges, axis=-1)[..., None]
    nodes = edges[..., :-1, None] + widths * _POINTS.astype(edges.dtype)
    return jnp.sum(widths * _WEIGHTS.astype(edges.dtype) * function(nodes), axis=(-2, -1))


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
    lengths = jnp.array([0.0, 1.0, 4.0, 12.0, 40.0]) / jnp.maximum(s, 1e-300)[..., None]
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
