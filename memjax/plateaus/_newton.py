"""Newton's iteration for the stages of a step, for all lanes at once."""

from collections.abc import Callable
from typing import NamedTuple

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..numerics import combine, fast_two_sum, two_sum
from ..solvers import RADAU
from ._runs import Lanes, Runs

# The share of the tolerance at which it may stop, and the same after one update, which says nothing
# of the rate of convergence. The last update is still made: what is left is smaller by that rate.
_KAPPA, _AT_ONCE = 0.5, 0.1
# The rate of convergence where only one update was made.
_USUAL_RATE = 0.1
# With twice the digits it goes on down to this, or as long as it converges: where modes merge, what
# moves slowly is the difference of large increments. Where one update suffices, it ends there, too.
_SHARP, _STALLED = 1e-12, 0.3


class Stages(NamedTuple):
    """The increments of the stages of a step and what they are short of in float64, whether
    Newton's iteration converged, the largest ratio of two updates, and the size of the last that
    would be permitted, over that at which the iteration may stop: at most 1 if it converged."""

    increments: Float[Array, "state 3 lanes"]
    rest: Float[Array, "state 3 lanes"] | None
    converged: Bool[Array, " lanes"]
    rate: Float[Array, " lanes"]
    excess: Float[Array, " lanes"]


def displace(
    y: Array, low: Array | None, increment: Array, rest: Array | float | None = 0.0
) -> tuple[Array, Array | None]:
    """`y + low + increment + rest`, and what that is short of in float64 if it is kept."""
    if low is None or rest is None:
        return y + increment, None
    # Exact but for the last sum, of lower parts: an increment below the last digit of `y` is kept.
    total, error = two_sum(y, increment)
    return fast_two_sum(total, error + (low + rest))


def defects(
    runs: Runs,
    state: Lanes,
    recall: Callable[[Array, Array], Array],
    exact: bool,
    stages: Float[Array, "state 3 lanes"],
    rest: Array | None,
) -> tuple[Float[Array, "state 3 lanes"], Float[Array, "rows 3 lanes"]]:
    """The stages of a step of every lane, with memories that fit the weights, and by how much they
    miss the equations of the formula: only the weights if `recall` is `exact`. What the stages are
    short of in float64 is `rest`."""
    n = runs.size
    low = None if state.low is None else state.low[:n, None]
    y, low = displace(state.y[:n, None], low, stages[:n], None if rest is None else rest[:n])
    gradients = -runs.dynamics.descent(y, low)
    # What a flow remembers follows from the gradients, weight by weight, and is solved for here:
    # the iteration is left with the weights.
    stages = recall(gradients, stages)
    velocities = runs.velocity(gradients, state.y[:, None] + stages)
    missing = slice(n if exact else None)
    defect = combine(RADAU.inverse, stages[missing]) / state.dt - velocities[missing]
    return stages, defect


def solve_stages(
    runs: Runs,
    update: Callable[..., tuple[Array, Array]],
    stages: Float[Array, "state 3 lanes"],
    going: Bool[Array, " lanes"],
    done: Bool[Array, " lanes"],
    scale: Float[Array, "state lanes"],
    most: int,
    compensated: bool,
) -> Stages:
    """The stages by Newton's iteration from a guess.

    **Arguments:**

    - `update`: from stages to stages with memories that fit, and the change of these.
    - `going`, `done`: which lanes iterate, and which need not.
    - `scale`: the error that the step may make.
    - `most`: how many updates at most.
    - `compensated`: whether the stages have twice the digits.
    """

    def iterate(carry: tuple) -> tuple:
        k, stages, rest, last, converged, done, slowest, excess = carry
        recalled, change = update(stages, rest)
        change = runs.alike(change)
        going = ~done
        size = runs.rms(change / scale[:, None])
        # Of a series of updates that fall by `rate` each, what follows this one adds up to `left`
        # (Hairer & Wanner, IV.8). The first has none before it, and both are 0.
        rate = size / last
        left = size * rate / (1 - jnp.minimum(rate, 1 - 1e-6))
        counts = jnp.where((k > 0) & (rate < 1), jnp.minimum(left, size), size)
        small = counts <= jnp.where(k > 0, _KAPPA, _AT_ONCE)
        # Beyond the tolerance convergence ends in rounding errors, which is no failure.
        stuck = converged & (rate > _STALLED)
        bad = ~jnp.isfinite(size) | ((k > 0) & (rate > 2) & ~small)
        moved, short = displace(recalled, rest, change)
        moving = going & ~bad & ~stuck
        stages = jnp.where(moving, moved, stages)
        if rest is not None and short is not None:
            rest = jnp.where(moving, short, rest)
        # Up to the tolerance only: updates beyond it say nothing of how long the next step may be.
        unsettled = going & ~converged
        slowest = jnp.where(unsettled & (k > 0), jnp.maximum(slowest, rate), slowest)
        pace = jnp.where(k > 0, jnp.minimum(rate, 1), _USUAL_RATE)
        excess = jnp.where(unsettled, counts / _KAPPA * pace ** (most - 1 - k), excess)
        converged = converged | (moving & small)
        end = converged if rest is None else converged & (left <= _SHARP)
        done = done | (going & (end | bad | stuck))
        return k + 1, stages, rest, size, converged, done, slowest, excess

    zero = jnp.zeros_like(scale[0])
    rest = jnp.zeros_like(stages) if compensated else None
    start = (0, stages, rest, zero + jnp.inf, done, done | ~going, zero, zero)
    more = lambda carry: (carry[0] < most) & jnp.any(~carry[5])
    _, stages, rest, _, converged, _, slowest, excess = lax.while_loop(more, iterate, start)
    return Stages(stages, rest, converged, slowest, excess)
