"""Searches along a line, for many lines at once."""

from collections.abc import Callable

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_GOLDEN = (np.sqrt(5) - 1) / 2


def golden_section(
    function: Callable[[Float[Array, "..."]], Float[Array, "..."]],
    low: Float[Array, "..."],
    high: Float[Array, "..."],
    evaluations: int,
    best: tuple[Float[Array, "..."], Float[Array, "..."]] | None = None,
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The minimum of a function between two points, by golden sections.

    Optimistix's `GoldenSearch` has the function in its program twice, at its start and in its
    step; here it may be an integration, which takes long to compile, and stands there once.

    **Arguments:**

    - `function`: acts elementwise.
    - `low`, `high`: the ends of the brackets.
    - `evaluations`: how often the function is called; each beyond two makes the brackets 0.618
        times as long.
    - `best`: a point and its value from before, which are returned where nothing is lower.

    **Returns:**

    The point of the lowest value that was seen, and that value.
    """
    length = _GOLDEN * (high - low)
    none = jnp.full_like(low, jnp.inf)
    best = (low, none) if best is None else best

    def section(i: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, left, at_left, right, at_right, point, lowest = carry
        # The first two evaluations only fill in the two inner points.
        started = i > 1
        kept = lambda new, old: jnp.where(started, new, old)
        drop_right = at_left < at_right
        low = kept(jnp.where(drop_right, low, left), low)
        high = kept(jnp.where(drop_right, right, high), high)
        length = _GOLDEN * (high - low)
        moved = jnp.where(drop_right, high - length, low + length)
        here = kept(moved, jnp.where(i == 0, left, right))
        value = function(here)
        lower = value < lowest
        return (
            low,
            high,
            kept(jnp.where(drop_right, here, right), left),
            kept(jnp.where(drop_right, value, at_right), jnp.where(i == 0, value, at_left)),
            kept(jnp.where(drop_right, left, here), right),
            kept(jnp.where(drop_right, at_left, value), jnp.where(i == 1, value, at_right)),
            jnp.where(lower, here, point),
            jnp.where(lower, value, lowest),
        )

    start = (low, high, high - length, none, low + length, none, *best)
    *_, point, lowest = lax.fori_loop(0, evaluations, section, start)
    return point, lowest
