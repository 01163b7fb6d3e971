"""Where within its last step a lane meets its exit."""

from typing import Any, NamedTuple

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..flows import linearise_flow
from ..losses import Linearisation
from ..solvers import RADAU
from ._lane_stages import evaluate, step_stages
from ._outcomes import RUNNING
from ._runs import Lanes, Runs


class Exit(NamedTuple):
    """The time after the start of the last step at which an exit is met, the state and the loss
    there, how fast the margin changes, and the length and the stages of a step to about there."""

    span: Float[Array, " lanes"]
    y: Float[Array, "state lanes"]
    loss: Float[Array, " lanes"]
    slope: Float[Array, " lanes"]
    dt: Float[Array, " lanes"]
    stages: Float[Array, "state 3 lanes"]


def locate_exit(
    runs: Runs,
    state: Lanes,
    here: Linearisation,
    rtol: Float[Array, ""],
    *,
    full: bool,
    compensated: bool,
) -> Exit:
    """Where within the last step every lane meets its exit.

    The false position on the interpolation of the step that crosses; since that is of lower
    order than the method, the step is made again to the time found, and the rest removed
    along the flow.
    """
    dt = state.last_dt
    margin_of = lambda loss, y: runs.margin(state.initial_loss, loss, y)

    def narrow(_: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        low, high, above, below, last, seen, slope = carry
        # Away from the ends lest it creep (Illinois).
        share = jnp.clip(above / jnp.where(above > below, above - below, 1), 0.01, 0.99)
        middle = low + share * (high - low)
        y = state.y + evaluate(state.polynomial, middle)
        margin = margin_of(runs.loss(y), y)
        before = margin > 0
        # Points that lie too close tell the slope no better than those before.
        apart = jnp.abs(middle - last) > 1e-6
        slope = jnp.where(apart, (margin - seen) / jnp.where(apart, middle - last, 1), slope)
        return (
            jnp.where(before, middle, low),
            jnp.where(before, high, middle),
            jnp.where(before, margin, above / 2),
            jnp.where(before, below / 2, margin),
            middle,
            margin,
            slope,
        )

    zero, step = jnp.zeros_like(dt), state.crossing
    slope = (step.below - step.above) / (step.high - step.low)
    ends = (step.low, step.high, step.above, step.below, step.low, step.above, slope)
    # As many rounds for all lanes; what they leave is removed below.
    low, high, above, below, *_, slope = lax.fori_loop(0, 6, narrow, ends)
    theta = low + (high - low) * above / jnp.where(above > below, above - below, 1)
    span, slope = theta * dt, slope / dt

    # The stages of a shorter step of the same solution lie on its interpolation. A lane that has
    # crossed its exit would not iterate: it runs once more.
    again = eqx.tree_at(
        lambda s: (s.dt, s.result, s.polynomial, s.last_dt),
        state,
        (
            span,
            jnp.full_like(state.result, RUNNING),
            *_restarted(state.polynomial, theta, span),
        ),
    )
    scale = rtol * (state.floor + jnp.abs(state.y)) + jnp.finfo(dt.dtype).tiny
    jacobian = linearise_flow(runs.flow, state.y, here.gradient, here.curvature, span / 2)
    solve = jacobian.solver(RADAU.real / span)
    # The whole step was accepted as definite, and a part of it has a larger shift.
    definite = jnp.ones_like(state.result, bool)
    stages, _, converged, *_ = step_stages(
        runs,
        again,
        here,
        jacobian,
        solve,
        definite,
        scale,
        full=full,
        compensated=compensated,
    )
    # Where Newton fails there is still the interpolation.
    sought = jnp.stack([evaluate(state.polynomial, theta * c) for c in RADAU.times], axis=1)
    stages = jnp.where(converged, stages, sought)
    y = state.y + stages[:, 2]
    # Not the gradient there: its fast directions hold rounding errors, which the length of a
    # correction would blow up.
    c1, c2, c3 = (state.polynomial[:, k] for k in range(3))
    velocity = (c1 + theta * (2 * c2 + 3 * theta * c3)) / dt

    def correct(_: Any, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        span, y, _, last, seen, slope = carry
        loss = runs.loss(y)
        margin = margin_of(loss, y)
        apart = jnp.abs(span - last) > 1e-9 * span
        slope = jnp.where(apart, (margin - seen) / jnp.where(apart, span - last, 1), slope)
        correction = -margin / jnp.where(slope == 0, 1, slope)
        # Far from the root the bracket knows more.
        correction = jnp.where(jnp.abs(correction) <= 0.1 * dt, correction, 0)
        return span + correction, y + correction * velocity, loss, span, margin, slope

    # The loss comes from before the last correction, which is of the order of rounding.
    start = (span, y, zero, span, zero, slope)
    length = span
    span, y, loss, _, _, slope = lax.fori_loop(0, 5, correct, start)
    return Exit(span, y, loss, slope, length, stages)


def _restarted(
    polynomial: Float[Array, "n 3 lanes"], theta: Array, span: Array
) -> tuple[Array, Array]:
    """An interpolation whose continuation by `span` is the part of `polynomial` up to `theta`,
    to predict the stages of a step over that part."""
    # In u = 1 + t / span, where t runs over the part: t / dt = theta (u - 1).
    c1, c2, c3 = (polynomial[:, k] * theta ** (k + 1) for k in range(3))
    return jnp.stack([c1 - 2 * c2 + 3 * c3, c2 - 3 * c3, c3], axis=1), span
