"""Where within its last step a run through a Diffrax solver meets its exit."""

from typing import Any

import jax
import jax.lax as lax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, Scalar

from ..numerics import as_constant
from ._solver_run import Run, State


def locate_exit(run: Run, state: State, dt: Scalar, interpolation: Any):
    """The time in (0, dt] after `state` at which the exit is met, the state there, and
    how fast the margin falls there.

    The root finder works on the dense output of the step. Since that is of lower order
    than the solver, the step is then made again to the time found, and the rest removed by
    Newton's method along the flow, which also carries the derivatives (implicit function
    theorem).
    """
    condition, crossing = as_constant((run.condition, state.crossing))
    # In shares of the step, so that the tolerances of the root finder have no unit.
    root = optx.root_find(
        lambda share, _: condition(share, interpolation.evaluate(share * dt), None),
        run.root_finder,
        crossing.high,
        options={"lower": crossing.low, "upper": crossing.high},
        throw=False,
        max_steps=256,
    )
    span = lax.stop_gradient(jnp.where(root.value > 0, root.value, crossing.high) * dt)
    y, *_ = run.try_step(state, span)
    velocity = lax.stop_gradient(run.flow.vf(jnp.zeros(()), y, None))
    margin = run.condition(span, y, None)
    along = lambda y: condition(span, y, None)
    _, speed = jax.jvp(along, (lax.stop_gradient(y),), (velocity,))
    # The margin has derivatives, its slope along the flow has none: -d margin / slope is the
    # derivative of the time of the zero, by the theorem on implicit functions. Where the
    # correction's value is not used its derivative still is.
    correction = -margin / lax.stop_gradient(jnp.where(speed == 0, 1, speed))
    # Far from the root the bracket knows more than Newton's method does.
    close = jnp.abs(correction) <= 0.1 * dt
    correction = jnp.where(close, correction, correction - lax.stop_gradient(correction))
    return span + correction, y + correction * velocity, lax.stop_gradient(speed)


def doubt(run: Run, y: Float[Array, " n"]) -> Float[Array, ""]:
    """By how much errors of the size of the tolerance move the margin."""
    # To first order, all errors in the worst direction.
    margin = lambda y: run.condition(jnp.zeros(()), y, None)
    return jnp.sum(jnp.abs(jax.grad(margin)(y)) * run.scale(y))
