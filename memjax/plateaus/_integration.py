"""A plateau measured through a Diffrax solver: the start of a run, its steps and its end."""

from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ..flows import AbstractFlow
from ..models import AbstractModel
from ..numerics import as_constant, choose
from ._conclusion import conclude
from ._crossing import first_crossing
from ._exits import AbstractExit
from ._outcomes import (
    as_result,
    CROSSED,
    EXITED,
    INVALID,
    LossCurve,
    MAX_TIME_REACHED,
    Plateau,
    RUNNING,
    time_of,
    UNRESOLVED,
)
from ._recording import Recording
from ._rest import smallest_curvature
from ._rounding import Ledger
from ._solver_exit import doubt, locate_exit
from ._solver_rest import diagnose, settle
from ._solver_run import default_solver, Run, State


@eqx.filter_jit
def measure_flow(
    flow: AbstractFlow,
    model: AbstractModel,
    exit: AbstractExit,
    solver: diffrax.AbstractSolver | None,
    stepsize_controller: diffrax.AbstractStepSizeController | None,
    rtol: Scalar,
    max_time: Scalar,
    max_steps: int,
    curve_times: Float[Array, " times"] | None,
    adjoint: diffrax.AbstractAdjoint,
    resolution: Float[Array, ""],
) -> Plateau:
    solver = default_solver() if solver is None else solver
    if isinstance(adjoint, diffrax.ForwardMode) and getattr(solver, "scan_kind", "lax") is None:
        # The default loop over the stages of a step knows reverse mode only.
        solver = eqx.tree_at(lambda s: s.scan_kind, solver, "lax", is_leaf=lambda x: x is None)
    run = Run.build(
        flow, model, exit, solver, stepsize_controller, rtol, max_time, curve_times, resolution
    )
    if isinstance(adjoint, diffrax.RecursiveCheckpointAdjoint):
        # Loops with checkpoints have derivatives in reverse mode only, those of `lax` in forward
        # mode only.
        kind, checkpoints = "checkpointed", adjoint.checkpoints
    else:
        kind, checkpoints = "lax", None
    state = eqxi.while_loop(
        lambda state: state.result == RUNNING,
        lambda state: _step(run, state),
        _start(run),
        max_steps=max_steps,
        kind=kind,
        checkpoints=checkpoints,
    )
    return _finish(run, state)


def _start(run: Run) -> State:
    y = run.flow.initial_state()
    # Short for any solver, also an explicit one; steps grow from there. A loss without curvature
    # has no time of its own.
    dt = 0.01 / jnp.where(run.fastest > 0, run.fastest, 1)
    dt = jnp.minimum(dt, run.max_time)
    zero, order = jnp.zeros(()), run.order()
    dt, controller_state = run.controller.init(
        run.flow, zero, run.max_time, y, dt, None, run.solver.func, order
    )
    dt = jnp.asarray(dt)
    solver_state = run.sized(y, dt).init(run.flow, zero, dt, y, None)
    count = jnp.zeros((), jnp.int32)
    margin = lax.stop_gradient(run.condition(zero, y, None))
    state = State(
        y=y,
        time=zero,
        dt=dt,
        solver_state=jax.tree.map(jnp.asarray, solver_state),
        controller_state=jax.tree.map(jnp.asarray, controller_state),
        dense=run.no_dense(y, dt, solver_state),
        result=jnp.asarray(RUNNING),
        margin=margin,
        crossing=first_crossing(None, margin, margin),
        nearest=jnp.full((), jnp.inf),
        nearest_y=lax.stop_gradient(y),
        hessian=run.hessian_at_start,
        ledger=Ledger.open(zero),
        num_steps=count,
        num_accepted_steps=count,
        recording=Recording.open(run.curve_times, zero, "loss", "distance"),
    )
    # A start that already meets the exit, and one already at rest.
    state = diagnose(run, state, state, dt, run.response(state, dt)[1])
    velocity = run.flow.vf(zero, y, None)
    sound = jnp.isfinite(run.condition.initial_loss) & jnp.all(jnp.isfinite(velocity))
    sound = sound & ~jnp.isnan(margin) & (run.rtol > 0) & (run.max_time > 0)
    result = jnp.where(margin <= 0, EXITED, state.result)
    result = jnp.where(sound, result, INVALID)
    return eqx.tree_at(lambda s: s.result, state, result)


def _step(run: Run, state: State) -> State:
    zero, order = jnp.zeros(()), run.order()
    # Lengths of steps have no derivatives: what they change is the error of the method.
    dt = lax.stop_gradient(state.dt)
    y1, error, dense, solver_state, solver_result = run.try_step(state, dt)
    dense = as_constant(dense)
    sound = jnp.all(jnp.isfinite(y1)) & (solver_result == diffrax.RESULTS.successful)
    # Steps that pass over an instability are refused, whatever their error: an L-stable method
    # would damp what escapes, and its error estimate sees nothing of it.
    definite, response = run.response(state, dt)
    sound = sound & definite
    y1 = jnp.where(sound, y1, state.y)
    if error is not None:
        # Infinity makes a controller cut the step as far as it may, while NaN would stay in its
        # state.
        error = jnp.where(sound & jnp.isfinite(error), error, jnp.inf)
    keep, t0, t1, _, controller_state, controller_result = run.controller.adapt_step_size(
        zero, dt, state.y, y1, None, error, order, state.controller_state
    )
    keep = keep & sound
    interpolation = run.solver.interpolation_cls(t0=zero, t1=dt, **dense)
    condition = as_constant(run.condition)
    margin_at = lambda share: condition(zero, interpolation.evaluate(share * dt), None)
    # A margin that only falls is crossed within a step exactly if it is below 0 at its end.
    monotone = condition.exit.monotone and run.flow.flow.descends
    margin = condition(zero, lax.stop_gradient(y1), None)
    crossing = first_crossing(None if monotone else margin_at, state.margin, margin)
    crossed = keep & crossing.crossed
    nearer = keep & (jnp.abs(crossing.nearest) < jnp.abs(state.nearest))
    advance = keep & ~crossed

    time = state.time + jnp.where(advance, dt, 0.0)
    # Times of the controller are local too, so that the difference is the whole of the next step.
    next_dt = jnp.minimum(lax.stop_gradient(t1 - t0), run.max_time - time)
    adapted = controller_result == diffrax.RESULTS.successful
    result = jnp.where(adapted, state.result, UNRESOLVED)
    result = jnp.where(advance & (time >= run.max_time), MAX_TIME_REACHED, result)
    # No step is short enough: something else than the error of the method is in the way.
    result = jnp.where(~advance & (next_dt < jnp.finfo(dt.dtype).tiny), UNRESOLVED, result)
    result = jnp.where(crossed, CROSSED, result)
    y = choose(advance, y1, state.y)
    new = State(
        y=y,
        time=time,
        # The step that crosses the exit is made again to locate it.
        dt=jnp.where(crossed, dt, next_dt),
        solver_state=choose(advance, solver_state, state.solver_state),
        controller_state=jax.tree.map(jnp.asarray, controller_state),
        dense=dense,
        result=result,
        margin=jnp.where(advance, margin, state.margin),
        crossing=crossing,
        nearest=jnp.where(nearer, crossing.nearest, state.nearest),
        nearest_y=jnp.where(nearer, interpolation.evaluate(crossing.share * dt), state.nearest_y),
        # One Hessian a state: for the response of the steps from there, and the test for rest.
        hessian=jnp.where(advance, run.hessian(y), state.hessian),
        ledger=state.ledger,
        num_steps=state.num_steps + 1,
        num_accepted_steps=state.num_accepted_steps + jnp.where(keep, 1, 0),
        recording=_record(run, state, interpolation, jnp.where(advance, dt, 0.0)),
    )
    return choose(advance, diagnose(run, new, state, dt, response), new)


def _record(run: Run, state: State, interpolation: Any, span: Scalar) -> Recording:
    """Write the curve at the times within `span` after `state`."""
    condition, until = as_constant(run.condition), state.time + span

    def see(time: Scalar) -> dict[str, Array]:
        y = interpolation.evaluate(jnp.clip(time - state.time, 0.0, span))
        seen = condition.state(jnp.where(span > 0, y, lax.stop_gradient(state.y)))
        return {"loss": seen.loss, "distance": seen.distance}

    return state.recording.write(as_constant(run.curve_times), lambda t: t <= until, see)


def _finish(run: Run, state: State) -> Plateau:
    """Locate the exit if the last step crosses it, and collect the answer."""
    crossed = state.result == CROSSED
    # A run without a crossing goes through the same motions for nothing, on sound values.
    dt = lax.stop_gradient(jnp.where(jnp.isfinite(state.dt), state.dt, 1.0))
    interpolation = run.solver.interpolation_cls(t0=jnp.zeros(()), t1=dt, **state.dense)
    span, y, speed = locate_exit(run, state, dt, interpolation)
    span = jnp.where(crossed, span, 0.0)
    y = jnp.where(crossed, y, state.y)
    time = state.time + span

    curve = None
    if run.curve_times.shape[0] > 0:
        recorded = _record(run, as_constant(state), interpolation, lax.stop_gradient(span))
        curve = LossCurve(run.curve_times, **recorded.values)

    seen = run.condition.state(y)
    fixed, still = as_constant((run, seen))
    # One loop, so that the gradient of the margin is compiled once.
    ends = jnp.stack([lax.stop_gradient(y), state.nearest_y])
    here, there = lax.map(lambda y: doubt(fixed, y), ends)
    result, rounding = conclude(
        state.result,
        settle(fixed, state),
        time=lax.stop_gradient(time),
        distance=still.distance,
        ledger=state.ledger,
        margin=state.margin,
        margin_noise=fixed.condition.noise(still, fixed.flow.loss.value_noise(still.model)),
        slope=speed,
        doubt=here,
        nearest=state.nearest,
        doubt_there=there,
        rtol=fixed.rtol,
        resolution=run.resolution,
    )
    accepted = state.num_accepted_steps
    return Plateau(
        time=time_of(result, time, (run.flow, run.condition)),
        result=as_result(result),
        time_reached=time,
        loss=seen.loss,
        distance=seen.distance,
        model=seen.model,
        initial_loss=run.condition.initial_loss,
        curve=curve,
        curvature=smallest_curvature(run.hessian(y)),
        rounding=rounding,
        stats={
            "num_steps": state.num_steps,
            "num_accepted_steps": accepted,
            "num_rejected_steps": state.num_steps - accepted,
        },
    )
