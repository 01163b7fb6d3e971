"""One run of a flow through a Diffrax solver, from its start to its exit."""

from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.lax as lax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from ..flows import AbstractFlow, DisplacedFlow
from ..models import AbstractModel
from ..numerics import as_constant, choose
from ..solvers import StageNewton
from ._conclusion import conclude
from ._crossing import Crossing, first_crossing
from ._exits import AbstractExit, ExitCondition
from ._outcomes import (
    as_result,
    CONVERGED,
    CROSSED,
    EXITED,
    INVALID,
    LossCurve,
    MAX_TIME_REACHED,
    Plateau,
    RESTING,
    RUNNING,
    time_of,
    UNRESOLVED,
)
from ._recording import Recording
from ._rest import comes_to_rest, smallest_curvature
from ._rounding import (
    escape_growth,
    Ledger,
    smallest_displacement,
    step_noise,
    step_response,
    StepResponse,
)


class _State(eqx.Module):
    """One measurement under way. Everything in it has a fixed shape, so that it can be
    stopped after any number of steps and taken up again."""

    y: Float[Array, " n"]
    time: Float[Array, ""]
    dt: Float[Array, ""]
    solver_state: PyTree
    controller_state: PyTree[Array]
    dense: PyTree[Array]
    result: Int[Array, ""]
    # The margin of the exit here, and where in the last step it was met.
    margin: Float[Array, ""]
    crossing: Crossing
    # That of the margin's minima so far that came nearest to 0, and the state there.
    nearest: Float[Array, ""]
    nearest_y: Float[Array, " n"]
    hessian: Float[Array, "weights weights"]
    ledger: Ledger
    num_steps: Int[Array, ""]
    num_accepted_steps: Int[Array, ""]
    recording: Recording


def default_solver() -> diffrax.AbstractSolver:
    """The solver for a controller of the user's own: Kvaerno5 with a full Newton iteration."""
    return diffrax.Kvaerno5(root_finder=diffrax.with_stepsize_controller_tols(StageNewton)())


def default_stepsize_controller(
    flow: DisplacedFlow, rtol: Scalar, curvature: Float[Array, ""]
) -> diffrax.PIDController:
    """The step-size controller of [`memjax.measure_plateau`][].

    Errors are counted relative to the displacement of every weight from its start, down to a
    share of the first one: an exponentially small amplitude decides how long the plateau lasts.
    """
    flow = as_constant(flow)
    velocity = lambda y: flow.vf(jnp.zeros(()), y, None)
    start = flow.initial_state()
    # Flows with momentum start without a speed: what they move at first their acceleration tells.
    speed, acceleration = jax.jvp(velocity, (start,), (velocity(start),))
    floor = smallest_displacement(flow, speed, acceleration, curvature)
    return diffrax.PIDController(rtol=rtol, atol=lax.stop_gradient(rtol) * floor)


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
    run = _Run.build(
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
        run.step,
        run.start(),
        max_steps=max_steps,
        kind=kind,
        checkpoints=checkpoints,
    )
    return run.finish(state)


class _Run(eqx.Module):
    """One measurement of a flow: how it starts, makes a step, and ends."""

    flow: DisplacedFlow
    condition: ExitCondition
    root_finder: optx.AbstractRootFinder
    solver: diffrax.AbstractSolver
    controller: diffrax.AbstractStepSizeController
    rtol: Float[Array, ""]
    max_time: Float[Array, ""]
    curve_times: Float[Array, " times"]
    resolution: Float[Array, ""]
    hessian_at_start: Float[Array, "weights weights"]
    # Its largest sum of a row.
    fastest: Float[Array, ""]

    @staticmethod
    def build(
        flow, model, exit, solver, controller, rtol, max_time, curve_times, resolution
    ) -> "_Run":
        displaced = flow.displaced(model)
        event = exit.event(displaced)
        hessian = as_constant(displaced).hessian(displaced.initial_state())
        # A bound of the largest eigenvalue that takes no decomposition.
        fastest = jnp.max(jnp.sum(jnp.abs(hessian), axis=1))
        if controller is None:
            controller = default_stepsize_controller(displaced, rtol, fastest)
        return _Run(
            flow=displaced,
            condition=event.cond_fn,
            root_finder=event.root_finder,
            solver=solver,
            controller=controller,
            rtol=rtol,
            max_time=max_time,
            curve_times=jnp.zeros(0) if curve_times is None else curve_times,
            resolution=resolution,
            hessian_at_start=hessian,
            fastest=fastest,
        )

    def start(self) -> _State:
        y = self.flow.initial_state()
        # Short for any solver, also an explicit one; steps grow from there. A loss without
        # curvature has no time of its own.
        dt = 0.01 / jnp.where(self.fastest > 0, self.fastest, 1)
        dt = jnp.minimum(dt, self.max_time)
        zero, order = jnp.zeros(()), self.order()
        dt, controller_state = self.controller.init(
            self.flow, zero, self.max_time, y, dt, None, self.solver.func, order
        )
        dt = jnp.asarray(dt)
        solver_state = self.sized(y, dt).init(self.flow, zero, dt, y, None)
        count = jnp.zeros((), jnp.int32)
        margin = lax.stop_gradient(self.condition(zero, y, None))
        state = _State(
            y=y,
            time=zero,
            dt=dt,
            solver_state=jax.tree.map(jnp.asarray, solver_state),
            controller_state=jax.tree.map(jnp.asarray, controller_state),
            dense=self.no_dense(y, dt, solver_state),
            result=jnp.asarray(RUNNING),
            margin=margin,
            crossing=first_crossing(None, margin, margin),
            nearest=jnp.full((), jnp.inf),
            nearest_y=lax.stop_gradient(y),
            hessian=self.hessian_at_start,
            ledger=Ledger.open(zero),
            num_steps=count,
            num_accepted_steps=count,
            recording=Recording.open(self.curve_times, zero, "loss", "distance"),
        )
        # A start that already meets the exit, and one already at rest.
        state = self.diagnose(state, state, dt, self.response(state, dt)[1])
        velocity = self.flow.vf(zero, y, None)
        sound = jnp.isfinite(self.condition.initial_loss) & jnp.all(jnp.isfinite(velocity))
        sound = sound & ~jnp.isnan(margin) & (self.rtol > 0) & (self.max_time > 0)
        result = jnp.where(margin <= 0, EXITED, state.result)
        result = jnp.where(sound, result, INVALID)
        return eqx.tree_at(lambda s: s.result, state, result)

    def step(self, state: _State) -> _State:
        zero, order = jnp.zeros(()), self.order()
        # Lengths of steps have no derivatives: what they change is the error of the method.
        dt = lax.stop_gradient(state.dt)
        y1, error, dense, solver_state, solver_result = self.try_step(state, dt)
        dense = as_constant(dense)
        sound = jnp.all(jnp.isfinite(y1)) & (solver_result == diffrax.RESULTS.successful)
        # Steps that pass over an instability are refused, whatever their error: an L-stable method
        # would damp what escapes, and its error estimate sees nothing of it.
        definite, response = self.response(state, dt)
        sound = sound & definite
        y1 = jnp.where(sound, y1, state.y)
        if error is not None:
            # Infinity makes a controller cut the step as far as it may, while NaN would stay in its
            # state.
            error = jnp.where(sound & jnp.isfinite(error), error, jnp.inf)
        keep, t0, t1, _, controller_state, controller_result = self.controller.adapt_step_size(
            zero, dt, state.y, y1, None, error, order, state.controller_state
        )
        keep = keep & sound
        interpolation = self.solver.interpolation_cls(t0=zero, t1=dt, **dense)
        condition = as_constant(self.condition)
        margin_at = lambda share: condition(zero, interpolation.evaluate(share * dt), None)
        # A margin that only falls is crossed within a step exactly if it is below 0 at its end.
        monotone = condition.exit.monotone and self.flow.flow.descends
        margin = condition(zero, lax.stop_gradient(y1), None)
        crossing = first_crossing(None if monotone else margin_at, state.margin, margin)
        crossed = keep & crossing.crossed
        nearer = keep & (jnp.abs(crossing.nearest) < jnp.abs(state.nearest))
        advance = keep & ~crossed

        time = state.time + jnp.where(advance, dt, 0.0)
        # Times of the controller are local too, so that the difference is the whole of the next
        # step.
        next_dt = jnp.minimum(lax.stop_gradient(t1 - t0), self.max_time - time)
        result = jnp.where(
            controller_result == diffrax.RESULTS.successful,
            state.result,
            UNRESOLVED,
        )
        result = jnp.where(advance & (time >= self.max_time), MAX_TIME_REACHED, result)
        # No step is short enough: something else than the error of the method is in the way.
        result = jnp.where(~advance & (next_dt < jnp.finfo(dt.dtype).tiny), UNRESOLVED, result)
        result = jnp.where(crossed, CROSSED, result)
        new = _State(
            y=choose(advance, y1, state.y),
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
            nearest_y=jnp.where(
                nearer, interpolation.evaluate(crossing.share * dt), state.nearest_y
            ),
            # One Hessian a state: for the response of the steps from there, and the test for rest.
            hessian=state.hessian,
            ledger=state.ledger,
            num_steps=state.num_steps + 1,
            num_accepted_steps=state.num_accepted_steps + jnp.where(keep, 1, 0),
            recording=self.record(state, interpolation, jnp.where(advance, dt, 0.0)),
        )
        new = eqx.tree_at(
            lambda s: s.hessian, new, jnp.where(advance, self.hessian(new.y), state.hessian)
        )
        diagnosed = self.diagnose(new, state, dt, response)
        return choose(advance, diagnosed, new)

    def order(self) -> Any:
        """The order of the error estimate, as controllers take it."""
        return self.solver.error_order(self.flow)

    def try_step(self, state: _State, dt: Scalar):
        """One attempted step from `state`. Training time enters no vector field here, so that
        every step starts at a local time of 0: in an absolute one, the short steps at the end
        of a plateau of 1e17 would vanish below its last digit."""
        return self.sized(state.y, dt).step(
            self.flow, jnp.zeros(()), dt, state.y, None, state.solver_state, False
        )

    def no_dense(self, y: Float[Array, " n"], dt: Scalar, solver_state: PyTree) -> PyTree[Array]:
        """The dense output of a step, not made yet."""
        like = eqx.filter_eval_shape(
            lambda: self.sized(y, dt).step(
                self.flow, jnp.zeros(()), dt, y, None, solver_state, False
            )[2]
        )
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)

    def sized(self, y: Float[Array, " n"], dt: Scalar) -> diffrax.AbstractSolver:
        """The solver, its root finder told of the error that a step from `y` may make.

        Only if the root finder leaves its tolerances open: Diffrax would set them relative to
        the unknown of a stage, whose size says nothing of the displacement.
        """
        root_finder = getattr(self.solver, "root_finder", None)
        if root_finder is None or isinstance(root_finder.rtol, (float, int, jax.Array)):
            return self.solver
        # Runge-Kutta methods whose last stage is the first of the next step solve for the
        # vector field of a stage, the others for the increment that it makes.
        tableau = getattr(self.solver, "tableau", None)
        unit = dt if getattr(tableau, "fsal", False) else 1.0
        return eqx.tree_at(
            lambda s: (s.root_finder.rtol, s.root_finder.atol, s.root_finder.norm),
            self.solver,
            (0.0, lax.stop_gradient(self.scale(y) / unit), optx.rms_norm),
        )

    def scale(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        """The error that a step from `y` may make in every weight."""
        if isinstance(self.controller, diffrax.PIDController):
            return jnp.asarray(self.controller.atol + self.controller.rtol * jnp.abs(y))
        # Other controllers do not say what they tolerate.
        return 1e-6 * jnp.abs(y) + jnp.finfo(y.dtype).tiny

    def hessian(self, y: Float[Array, " n"]) -> Float[Array, "weights weights"]:
        """The Hessian of the loss, as a constant."""
        return as_constant(self.flow).hessian(lax.stop_gradient(y))

    def response(self, state: _State, dt: Scalar) -> tuple[Array, StepResponse]:
        """How a step from `state` answers to a change of the gradient, see `step_response`."""
        y, hessian = lax.stop_gradient((state.y, state.hessian))
        resistance = as_constant(self.flow).resistance(y, dt)
        if resistance.ndim < 2:
            resistance = jnp.diag(jnp.broadcast_to(resistance, (self.flow.size,)))
        return step_response(hessian, resistance)

    def diagnose(self, new: _State, old: _State, dt: Scalar, response: StepResponse) -> _State:
        """Whether the flow came to rest in `new`, and what rounding did on the way there."""
        run, old = as_constant(self), as_constant(old)
        y, hessian = lax.stop_gradient((new.y, new.hessian))
        count = run.flow.size
        gradient, noise = run.flow.gradient(y), run.flow.noise(y)
        coasting = run.flow.coasting(y)
        scale = run.scale(y)[:count]

        # Without the symmetry of equal modes, which only `settle` looks at, once at the end.
        resting, newton = comes_to_rest(hessian, gradient, noise, scale, coasting=coasting)
        # The exit may lie between here and the minimum.
        resting = resting & ~run.leaves(y.at[:count].add(-newton))
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

    def leaves(self, y: Float[Array, " n"]) -> Bool[Array, ""]:
        """Whether a state meets the exit."""
        return self.condition(jnp.zeros(()), y, None) <= 0

    def settle(self, state: _State) -> Int[Array, ""]:
        """What the gradient and the Hessian say of a run that seems to rest."""
        run, count = as_constant(self), self.flow.size
        y, hessian = lax.stop_gradient((state.y, state.hessian))
        resting, newton = comes_to_rest(
            hessian,
            run.flow.gradient(y),
            run.flow.noise(y),
            run.scale(y)[:count],
            coasting=run.flow.coasting(y),
            symmetry=run.flow.symmetry(),
        )
        resting = resting & ~run.leaves(y.at[:count].add(-newton))
        # Where the gradient is all noise the curvature may be as well, so that a saddle held
        # by symmetry cannot be told from a plateau.
        return jnp.where(resting, CONVERGED, UNRESOLVED)

    def record(self, state: _State, interpolation: Any, span: Scalar) -> Recording:
        """Write the curve at the times within `span` after `state`."""
        condition, until = as_constant(self.condition), state.time + span

        def see(time: Scalar) -> dict[str, Array]:
            y = interpolation.evaluate(jnp.clip(time - state.time, 0.0, span))
            seen = condition.state(jnp.where(span > 0, y, lax.stop_gradient(state.y)))
            return {"loss": seen.loss, "distance": seen.distance}

        return state.recording.write(as_constant(self.curve_times), lambda t: t <= until, see)

    def finish(self, state: _State) -> Plateau:
        """Locate the exit if the last step crosses it, and collect the answer."""
        crossed = state.result == CROSSED
        # A run without a crossing goes through the same motions for nothing, on sound values.
        dt = lax.stop_gradient(jnp.where(jnp.isfinite(state.dt), state.dt, 1.0))
        interpolation = self.solver.interpolation_cls(t0=jnp.zeros(()), t1=dt, **state.dense)
        span, y, speed = self.locate(state, dt, interpolation)
        span = jnp.where(crossed, span, 0.0)
        y = jnp.where(crossed, y, state.y)
        time = state.time + span

        curve = None
        if self.curve_times.shape[0] > 0:
            recorded = self.record(as_constant(state), interpolation, lax.stop_gradient(span))
            curve = LossCurve(self.curve_times, **recorded.values)

        seen = self.condition.state(y)
        run, still = as_constant(self), as_constant(seen)
        # One loop, so that the gradient of the margin is compiled once.
        doubt = lax.map(run.doubt, jnp.stack([lax.stop_gradient(y), state.nearest_y]))
        result, rounding = conclude(
            state.result,
            run.settle(state),
            time=lax.stop_gradient(time),
            distance=still.distance,
            ledger=state.ledger,
            margin=state.margin,
            margin_noise=run.condition.noise(still, run.flow.loss.value_noise(still.model)),
            slope=speed,
            doubt=doubt[0],
            nearest=state.nearest,
            doubt_there=doubt[1],
            rtol=run.rtol,
            resolution=self.resolution,
        )
        accepted = state.num_accepted_steps
        return Plateau(
            time=time_of(result, time, (self.flow, self.condition)),
            result=as_result(result),
            time_reached=time,
            loss=seen.loss,
            distance=seen.distance,
            model=seen.model,
            initial_loss=self.condition.initial_loss,
            curve=curve,
            curvature=smallest_curvature(self.hessian(y)),
            rounding=rounding,
            stats={
                "num_steps": state.num_steps,
                "num_accepted_steps": accepted,
                "num_rejected_steps": state.num_steps - accepted,
            },
        )

    def doubt(self, y: Float[Array, " n"]) -> Float[Array, ""]:
        """By how much errors of the size of the tolerance move the margin."""
        # To first order, all errors in the worst direction.
        margin = lambda y: self.condition(jnp.zeros(()), y, None)
        return jnp.sum(jnp.abs(jax.grad(margin)(y)) * self.scale(y))

    def locate(self, state: _State, dt: Scalar, interpolation: Any):
        """The time in (0, dt] after `state` at which the exit is met, the state there, and
        how fast the margin falls there.

        The root finder works on the dense output of the step. Since that is of lower order
        than the solver, the step is then made again to the time found, and the rest removed by
        Newton's method along the flow, which also carries the derivatives (implicit function
        theorem).
        """
        condition, crossing = as_constant((self.condition, state.crossing))
        # In shares of the step, so that the tolerances of the root finder have no unit.
        root = optx.root_find(
            lambda share, _: condition(share, interpolation.evaluate(share * dt), None),
            self.root_finder,
            crossing.high,
            options={"lower": crossing.low, "upper": crossing.high},
            throw=False,
            max_steps=256,
        )
        span = lax.stop_gradient(jnp.where(root.value > 0, root.value, crossing.high) * dt)
        y, *_ = self.try_step(state, span)
        velocity = lax.stop_gradient(self.flow.vf(jnp.zeros(()), y, None))
        margin = self.condition(span, y, None)
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
