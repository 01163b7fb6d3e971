"""Whether a run through a Diffrax solver has come to rest, and what rounding did in its steps."""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, Scalar

from ..numerics import as_constant, choose
from ._outcomes import CONVERGED, RESTING, UNRESOLVED
from ._rest import comes_to_rest
from ._rounding import escape_growth, step_noise, StepResponse
from ._solver_run import Run, State


def diagnose(run: Run, new: State, old: State, dt: Scalar, response: StepResponse) -> State:
    """Whether the flow came to rest in `new`, and what rounding did on the way there."""
    run, old = as_constant((run, old))
    y, hessian = lax.stop_gradient((new.y, new.hessian))
    count = run.flow.size
    gradient, noise = run.flow.gradient(y), run.flow.noise(y)
    coasting = run.flow.coasting(y)
    scale = run.scale(y)[:count]

    # Without the symmetry of equal modes, which only `settle` looks at, once at the end.
    resting = _rests(run, y, hessian, gradient, noise, coasting)
    # A gradient that is all noise says nothing of where to go.
    silent = jnp.all(jnp.abs(gradient) <= noise) & ~jnp.any(jnp.abs(coasting) > scale)
    result = jnp.where(resting | silent, RESTING, new.result)

    moved = y[:count] - old.y[:count]
    shaken = step_noise(response, noise)
    norm = jnp.linalg.norm
    ledger = old.ledger.add(
        dt,
        moved=norm(moved),
        tolerances=optx.rms_norm(moved / scale),
        shaken=norm(shaken),
        lost=jnp.finfo(y.dtype).eps * norm(y[:count]),
        growth=escape_growth(response, run.flow.vf(jnp.zeros(()), y, None)[:count]),
        peak=optx.rms_norm(shaken / scale),
    )
    # The start is diagnosed too, to which no step led.
    any_move = jnp.any(moved != 0)
    ledger = choose(any_move, ledger, old.ledger)
    return eqx.tree_at(lambda s: (s.ledger, s.result), new, (ledger, result))


def settle(run: Run, state: State) -> Int[Array, ""]:
    """What the gradient and the Hessian say of a run that seems to rest."""
    run = as_constant(run)
    y, hessian = lax.stop_gradient((state.y, state.hessian))
    flow = run.flow
    gradient, noise, coasting = flow.gradient(y), flow.noise(y), flow.coasting(y)
    resting = _rests(run, y, hessian, gradient, noise, coasting, flow.symmetry())
    # Where the gradient is all noise the curvature may be as well, so that a saddle held by
    # symmetry cannot be told from a plateau.
    return jnp.where(resting, CONVERGED, UNRESOLVED)


def _rests(
    run: Run,
    y: Float[Array, " state"],
    hessian: Float[Array, "weights weights"],
    gradient: Float[Array, " weights"],
    noise: Float[Array, " weights"],
    coasting: Float[Array, " weights"],
    symmetry: Float[Array, "weights weights"] | None = None,
) -> Bool[Array, ""]:
    """Whether a state is at rest, and the minimum near it not beyond the exit."""
    count = run.flow.size
    scale = run.scale(y)[:count]
    resting, newton = comes_to_rest(
        hessian, gradient, noise, scale, coasting=coasting, symmetry=symmetry
    )
    # The exit may lie between here and the minimum.
    return resting & ~run.leaves(y.at[:count].add(-newton))
