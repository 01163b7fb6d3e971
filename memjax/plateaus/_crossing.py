"""Where within a step an exit is met first: at its end, or in between and not at its end."""

from collections.abc import Callable

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..numerics import golden_section

# At how many shares of a step its margin is looked at; and below which margin, which is of order
# one on the plateau, a minimum between two of them is searched for.
_LOOKS, _NEAR = 8, 0.02
# Of two ninths of a step golden sections leave 2e-6 of the step, and the value at a minimum is off
# by the square of that.
_EVALUATIONS = 26


class Crossing(eqx.Module):
    """What the margin of an exit does within a step, for one run or many.

    **Attributes:**

    - `crossed`: whether it falls to 0 or below.
    - `low`, `high`: shares of the step with the first crossing between them.
    - `above`, `below`: the margins there.
    - `nearest`: the margin at its first minimum near 0 inside the step, infinite without one.
    - `share`: where in the step that is.
    """

    crossed: Bool[Array, "..."]
    low: Float[Array, "..."]
    high: Float[Array, "..."]
    above: Float[Array, "..."]
    below: Float[Array, "..."]
    nearest: Float[Array, "..."]
    share: Float[Array, "..."]


def first_crossing(
    margin_at: Callable[[Array], Array] | None, start: Float[Array, "..."], end: Float[Array, "..."]
) -> Crossing:
    """Look inside a step.

    **Arguments:**

    - `margin_at`: the margin at a share of the step, from its interpolation; `None` where the
        margin cannot rise again, so that its end tells all.
    - `start`, `end`: the margins at both ends.
    """
    zero, one = jnp.zeros_like(start), jnp.ones_like(start)
    none = jnp.full_like(start, jnp.inf)
    if margin_at is None:
        return Crossing(end <= 0, zero, one, start, end, none, zero)
    shares = np.linspace(0, 1, _LOOKS + 2)
    _, inside = lax.scan(
        lambda _, share: (None, margin_at(share * one)), None, jnp.asarray(shares[1:-1])
    )
    margins = jnp.concatenate([start[None], inside, end[None]])
    # Where the interpolation runs into rates that are not positive there is no margin, and no exit.
    margins = jnp.where(jnp.isnan(margins), jnp.inf, margins)

    # The first look at which the exit is met.
    met = margins <= 0
    first = jnp.argmax(met, axis=0)
    crossed = jnp.any(met, axis=0)
    high = jnp.where(crossed, first, len(shares))
    low = jnp.maximum(high - 1, 0)

    # Parabolas through three neighbours; those at the ends go up to there.
    left, middle, right = margins[:-2], margins[1:-1], margins[2:]
    bend = left - 2 * middle + right
    convex = jnp.isfinite(bend) & (bend > 0)
    bend = jnp.where(convex, bend, 1)
    # A parabola through three looks is lowest at `offset` looks from the middle one, by `bend *
    # offset**2 / 2` below it.
    offset = jnp.where(convex, (left - right) / (2 * bend), 0)
    depth = bend * (offset**2 / 2 + 0.25)  # with a margin for what is no parabola
    index = jnp.arange(_LOOKS).reshape(-1, *(1,) * start.ndim)
    near = convex & (jnp.abs(offset) <= 1) & (middle - depth <= _NEAR) & (index + 1 <= low)
    chosen = jnp.argmax(near, axis=0)
    found = jnp.any(near, axis=0)
    bottom, value = lax.cond(
        jnp.any(found),
        lambda: golden_section(
            margin_at, shares[1] * chosen, shares[1] * (chosen + 2), _EVALUATIONS
        ),
        lambda: (zero, none),
    )
    value = jnp.where(found, value, jnp.inf)
    # A minimum below 0 that no look met.
    dips = value <= 0
    before = jnp.floor(bottom / shares[1]).astype(first.dtype)
    low, ends = jnp.where(dips, before, low), jnp.where(dips, bottom, shares[1] * high)
    at = lambda which: jnp.take_along_axis(margins, which[None], axis=0)[0]
    return Crossing(
        crossed=crossed | dips,
        low=shares[1] * low,
        high=jnp.where(crossed | dips, ends, one),
        above=at(low),
        below=jnp.where(dips, value, at(jnp.minimum(high, len(shares) - 1))),
        nearest=value,
        share=bottom,
    )
