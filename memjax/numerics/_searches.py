"""Searches along a line, for many lines at once."""

import math
from collections.abc import Callable

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

_GOLDEN = (math.sqrt(5) - 1) / 2


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


def sign_changes(
    function: Callable[[Array], Array], grid: Float[Array, " points"], count: int, steps: int
) -> tuple[Float[Array, " count"], Int[Array, ""]]:
    """Where a function changes its sign, ascending, filled up with the end of the grid.

    A change between two points of the grid is found by bisection, at a jump as well. Zeros count
    as positive, so that a stretch of them ends in at most two changes.

    **Arguments:**

    - `function`: acts elementwise.
    - `grid`: ascending times, which may repeat.
    - `count`: how many changes to look for, the first ones.
    - `steps`: the number of bisections.

    **Returns:**

    The times, and how many changes there are between points of the grid.
    """
    positive = function(grid) >= 0
    changed = positive[1:] != positive[:-1]
    last = grid.shape[0] - 1
    (index,) = jnp.nonzero(changed, size=count, fill_value=last)
    left, right = grid[index], grid[jnp.minimum(index + 1, last)]
    before = positive[index]

    def halve(_: int, bracket: tuple[Array, Array]) -> tuple[Array, Array]:
        left, right = bracket
        middle = left + (right - left) / 2
        same = (function(middle) >= 0) == before
        return jnp.where(same, middle, left), jnp.where(same, right, middle)

    left, right = jax.lax.fori_loop(0, steps, halve, (left, right))
    return left + (right - left) / 2, jnp.sum(changed)


def find_all(search: Callable[[int], tuple[Array, Array]]) -> Array:
    """The result of a search that says how many there are, with room for all of them."""
    count = 64
    while True:
        found, total = search(count)
        if int(total) <= count:
            return found
        count = 2 ** int(np.ceil(np.log2(int(total))))
