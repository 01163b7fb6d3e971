"""Which lanes rest, told by their gradients and Hessians."""

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..curvature import GradedCurvature, LanczosCurvature
from ..losses import Linearisation
from ..numerics import over_lanes
from ..solvers import RADAU
from ._outcomes import CONVERGED, CROSSED, EXITED, UNRESOLVED
from ._rest import comes_to_rest, smallest_curvature, trusted_curvature
from ._runs import Lanes, Runs

# The share of a direction that a shift leaves of it, above which it has no curvature.
_FLAT = 0.01


def lanes_rest(
    runs: Runs, state: Lanes, here: Linearisation, rtol: Float[Array, ""]
) -> Bool[Array, " lanes"]:
    """Whether every lane is at a minimum, but for its tolerance, as curvatures tell that have
    small relative errors."""
    # Of a step so long that it is Newton's step to the minimum. Not none at all: what has no
    # curvature, as padding, would have no solution.
    shift = 1e-12 * RADAU.real / state.dt
    minimum = here.curvature.shifted(shift)
    anywhere = jnp.where(here.noise == 0, 0, runs.anywhere())
    solved = runs.alike(minimum(jnp.stack([here.gradient, anywhere], axis=1)))
    to_rest = solved[:, 0]
    # A gradient that underflowed says nothing of directions without curvature. Of a direction of
    # curvature c the shift s leaves s / (s + c).
    flat = jnp.sum(solved[:, 1] ** 2, axis=0) * shift**2 > _FLAT**2
    scale = rtol * (state.floor + jnp.abs(state.y))[: runs.size]
    away = (jnp.abs(to_rest) + jnp.abs(runs.coasting(state.y))) / scale
    return minimum.definite & ~flat & (runs.rms(away) <= 1)


def settle(
    runs: Runs, state: Lanes, here: Linearisation, rtol: Float[Array, ""]
) -> tuple[Int[Array, " lanes"], Array]:
    """What the gradient and the Hessian say of a lane that seems to rest, and the smallest
    curvature there; lanes that left their plateau are not looked at."""

    def look(args: tuple) -> tuple[Array, Array]:
        curvature, gradient, noise, scale, coasting, symmetry, found = args
        if isinstance(curvature, LanczosCurvature):
            # Of so many weights nothing is known but the ends of the spectrum.
            lowest = jnp.min(curvature.values) / jnp.max(jnp.abs(curvature.values))
            resting = lowest > trusted_curvature(len(gradient), gradient.dtype)
            return jnp.where(resting, CONVERGED, UNRESOLVED).astype(jnp.int32), lowest
        hessian = curvature.dense()
        resting, _ = comes_to_rest(
            hessian, gradient, noise, scale, coasting=coasting, symmetry=symmetry
        )
        result = jnp.where(resting | found, CONVERGED, UNRESOLVED).astype(jnp.int32)
        return result, smallest_curvature(hessian)

    def one(args: tuple) -> tuple[Array, Array]:
        nothing = lambda _: (jnp.asarray(UNRESOLVED, jnp.int32), jnp.nan)
        return lax.cond(args[0], look, nothing, args[1:])

    def each(sides: tuple) -> tuple[Array, Array]:
        lanes_first = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), sides)
        return lax.map(one, (ended, *lanes_first))

    def none(sides: tuple) -> tuple[Array, Array]:
        return jnp.full(ended.shape, UNRESOLVED, jnp.int32), jnp.full(ended.shape, jnp.nan)

    scale = rtol * (state.floor + jnp.abs(state.y))
    ended = (state.result != CROSSED) & (state.result != EXITED)
    symmetry = over_lanes(lambda flow: flow.symmetry())(runs.flow)
    scale, coasting = scale[: runs.size], runs.coasting(state.y)
    if runs.absent is not None:
        # So that a mean over all weights is one over those that are there.
        scale = scale / jnp.sqrt(runs.mean(jnp.ones_like(scale)))
    found = jnp.zeros_like(ended)
    if isinstance(here.curvature, GradedCurvature):
        found = lanes_rest(runs, state, here, rtol)
    sides = (here.curvature, here.gradient, here.noise, scale, coasting, symmetry, found)
    # In most batches of lanes all left, and turning the arrays around takes longer than the look.
    return lax.cond(jnp.any(ended), each, none, sides)
