"""The search for zeros of a vector field from many starts, and which of its ends are one point."""

from typing import Any

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Float

from ._system import System

# Newton steps after the search. One or two bring it to rounding; at a double root each halves the
# distance.
_POLISH = 40
# How many times the rounding of the residual may be left, per root of the number of coordinates.
_ROUNDINGS = 64.0
# How many Newton steps away a multiple root may be: as many as its multiplicity, and some more.
_STEPS = 10.0


def residual(system: System, vector: Array, x: Array) -> Array:
    """What is 0 at a fixed point."""
    rate = system.rate(jnp.zeros(()), vector, x)
    return rate if system.continuous else rate - vector


def search(
    system: System, starts: Float[Array, "starts coordinates"], x: Array, solver: Any, steps: int
) -> tuple[Float[Array, "starts coordinates"], Bool[Array, " starts"], Float[Array, " starts"]]:
    """Where the solver comes to from every start, whether that is a zero to rounding, and how far
    Newton's method would go on."""
    values = jax.vmap(lambda start: jnp.linalg.norm(residual(system, start, x)))(starts)
    # In units of a typical residual the tolerances mean the same for slow and for fast models.
    typical = jnp.nanmedian(jnp.where(jnp.isfinite(values), values, jnp.nan))
    scale = jnp.where(typical > 0, typical, 1.0)
    scaled = lambda vector, args=None: residual(system, vector, x) / scale

    def of_start(start: Array) -> tuple[Array, Array, Array]:
        found = optx.root_find(scaled, solver, start, max_steps=steps, throw=False).value
        found = _polish(scaled, found)
        size = jnp.linalg.norm(jax.jacfwd(scaled)(found)) * jnp.linalg.norm(found)
        # The residual is a difference of terms of about these sizes.
        rounding = jnp.finfo(found.dtype).eps * (1 + size) * jnp.sqrt(found.size)
        left = jnp.linalg.norm(scaled(found))
        step = jnp.linalg.norm(_newton_step(scaled, found))
        reached = (left <= _ROUNDINGS * rounding) & jnp.all(jnp.isfinite(found))
        return found, reached, jnp.where(jnp.isfinite(step), step, 0)

    return jax.vmap(of_start)(starts)


def _newton_step(function: Any, vector: Array) -> Array:
    """The step of Newton's method, along a line of zeros the shortest one."""
    operator = lx.MatrixLinearOperator(jax.jacfwd(function)(vector))
    return lx.linear_solve(operator, -function(vector), lx.SVD(), throw=False).value


def _polish(function: Any, vector: Array) -> Array:
    """Newton's method for as long as it comes closer."""
    left = lambda vector: jnp.linalg.norm(function(vector))

    def move(now: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        vector, size, count, _ = now
        moved = vector + _newton_step(function, vector)
        new = left(moved)
        closer = new < size
        return jnp.where(closer, moved, vector), jnp.where(closer, new, size), count + 1, closer

    start = vector, left(vector), jnp.asarray(0), jnp.asarray(True)
    return jax.lax.while_loop(lambda now: now[3] & (now[2] < _POLISH), move, start)[0]


def distinct(
    points: np.ndarray, steps: np.ndarray, separation: float
) -> tuple[np.ndarray, np.ndarray]:
    """One of all points that are nearer to it than `separation`, and how many they are.

    On the host: how many there are is known only afterwards.
    """
    # Those that Newton's method is done with come first. At a multiple root it never is, and the
    # root is a few of its steps away.
    order = np.argsort(steps, kind="stable")
    points, steps = points[order], steps[order]
    kept, counts = [], []
    free = np.ones(len(points), bool)
    for k, point in enumerate(points):
        if free[k]:
            apart = np.linalg.norm(points - point, axis=1)
            near = np.maximum(separation * (1 + np.linalg.norm(point)), _STEPS * steps)
            same = free & (apart <= near)
            free &= ~same
            kept.append(point)
            counts.append(int(same.sum()))
    found = np.array(kept).reshape(-1, points.shape[1])
    # From the one nearest to 0 on, and of as far ones by their coordinates, so that the order does
    # not depend on the starts.
    keys = np.rint(np.column_stack([np.linalg.norm(found, axis=1), found]) / (10 * separation))
    order = np.lexsort(keys.T[::-1])
    return found[order], np.array(counts, int)[order]
