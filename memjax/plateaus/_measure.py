from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.lax as lax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._checks import (
    as_float_array,
    as_increasing,
    as_positive,
    as_tolerance,
    check_flag,
    check_float64,
    check_instance,
    check_integer,
    check_nonnegative,
    check_scalar,
    is_traced,
    shown,
    valid_or_nan,
)
from ..flows import AbstractFlow, AbstractTraining, DisplacedFlow
from ..models import AbstractModel
from ..solvers import StageNewton
from ._conclusion import conclude, REFINEMENT, SMALLEST_RTOL
from ._crossing import Crossing, first_crossing
from ._exits import AbstractExit, check_exit, ExitCondition
from ._outcomes import (
    as_result,
    CONVERGED,
    CROSSED,
    EXITED,
    INVALID,
    LossCurve,
    MAX_TIME_REACHED,
    Plateau,
    raise_failure,
    RESTING,
    RUNNING,
    time_of,
    UNDECIDED,
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
from ._training import measure_training


class _State(eqx.Module):
    """One measurement under way. Everything in it has a fixed shape, so that it can be
    stopped after any number of steps and taken up again."""

    y: Float[Array, " n"]
    time: Float[Array, ""]
    dt: Float[Array, ""]
    solver_state: PyTree[Array]
    controller_state: PyTree[Array]
    dense: PyTree[Array]
    result: Int[Array, ""]
    # The margin of the exit here, and where in the last step it was met.
    margin: Float[Array, ""]
    crossing: Crossing
    # That of the margin's minima so far that came nearest to 0, and the state there.
    nearest: Float[Array, ""]
    nearest_y: Float[Array, " n"]
    hessian: Float[Array, "n n"]
    ledger: Ledger
    num_steps: Int[Array, ""]
    num_accepted_steps: Int[Array, ""]
    recording: Recording


def check_integrator(solver: Any, stepsize_controller: Any) -> None:
    """Refuse what cannot integrate a flow; `None` stands for the default."""
    if solver is not None:
        check_instance(
            "solver",
            solver,
            diffrax.AbstractAdaptiveSolver,
            "a Diffrax solver that estimates its errors",
            "pass for example diffrax.Kvaerno5()",
        )
    adaptive = isinstance(stepsize_controller, diffrax.AbstractAdaptiveStepSizeController)
    clipped = isinstance(stepsize_controller, diffrax.ClipStepSizeController)
    if stepsize_controller is not None and (clipped or not adaptive):
        raise TypeError(
            "`stepsize_controller` must adapt to errors and not depend on absolute time, got "
            f"{shown(stepsize_controller)}; pass a diffrax.PIDController."
        )


def default_solver() -> diffrax.AbstractSolver:
    """The solver of [`memjax.measure_plateau`][]: Kvaerno5 with a full Newton iteration."""
    return diffrax.Kvaerno5(root_finder=diffrax.with_stepsize_controller_tols(StageNewton)())


def default_stepsize_controller(
    flow: DisplacedFlow, rtol: Scalar, curvature: Float[Array, ""]
) -> diffrax.PIDController:
    """The step-size controller of [`memjax.measure_plateau`][].

    Errors are counted relative to the displacement of every weight from its start, down to a
    share of the first one: an exponentially small amplitude decides how long the plateau lasts.
    """
    flow = _constant(flow)
    velocity = lambda y: flow.vf(jnp.zeros(()), y, None)
    start = flow.initial_state()
    speed, acceleration = jax.jvp(velocity, (start,), (velocity(start),))
    floor = smallest_displacement(flow, speed, acceleration, curvature)
    return diffrax.PIDController(rtol=rtol, atol=lax.stop_gradient(rtol) * floor)


@eqx.filter_jit
def _measure(
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
    hessian_at_start: Float[Array, "n n"]
    # Its largest sum of a row.
    fastest: Float[Array, ""]

    @staticmethod
    def build(
        flow, model, exit, solver, controller, rtol, max_time, curve_times, resolution
    ) -> "_Run":
        displaced = flow.displaced(model)
        event = exit.event(displaced)
        hessian = _constant(displaced).hessian(displaced.initial_state())
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
        dt = lax.stop_gradient(state.dt)
        y1, error, dense, solver_state, solver_result = self.try_step(state, dt)
        dense = _constant(dense)
        sound = jnp.all(jnp.isfinite(y1)) & (solver_result == diffrax.RESULTS.successful)
        definite, response = self.response(state, dt)
        sound = sound & definite
        y1 = jnp.where(sound, y1, state.y)
        if error is not None:
            error = jnp.where(sound & jnp.isfinite(error), error, jnp.inf)
        keep, t0, t1, _, controller_state, controller_result = self.controller.adapt_step_size(
            zero, dt, state.y, y1, None, error, order, state.controller_state
        )
        keep = keep & sound
        interpolation = self.solver.interpolation_cls(t0=zero, t1=dt, **dense)
        condition = _constant(self.condition)
        margin_at = lambda share: condition(zero, interpolation.evaluate(share * dt), None)
        monotone = condition.exit.monotone and self.flow.flow.descends
        margin = condition(zero, lax.stop_gradient(y1), None)
        crossing = first_crossing(None if monotone else margin_at, state.margin, margin)
        crossed = keep & crossing.crossed
        nearer = keep & (jnp.abs(crossing.nearest) < jnp.abs(state.nearest))
        advance = keep & ~crossed
        choose = lambda new, old: jax.tree.map(lambda a, b: jnp.where(advance, a, b), new, old)

        time = state.time + jnp.where(advance, dt, 0.0)
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
            y=choose(y1, state.y),
            time=time,
            # The step that crosses the exit is made again to locate it.
            dt=jnp.where(crossed, dt, next_dt),
            solver_state=choose(solver_state, state.solver_state),
            controller_state=jax.tree.map(jnp.asarray, controller_state),
            dense=dense,
            result=result,
            margin=jnp.where(advance, margin, state.margin),
            crossing=crossing,
            nearest=jnp.where(nearer, crossing.nearest, state.nearest),
            nearest_y=jnp.where(
                nearer, interpolation.evaluate(crossing.share * dt), state.nearest_y
            ),
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
        return jax.tree.map(lambda a, b: jnp.where(advance, a, b), diagnosed, new)

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
        return 1e-6 * jnp.abs(y) + jnp.finfo(y.dtype).tiny

    def hessian(self, y: Float[Array, " n"]) -> Float[Array, "weights weights"]:
        """The Hessian of the loss, as a constant."""
        return _constant(self.flow).hessian(lax.stop_gradient(y))

    def response(self, state: _State, dt: Scalar) -> tuple[Array, StepResponse]:
        """How a step from `state` answers to a change of the gradient, see `step_response`."""
        y, hessian = lax.stop_gradient((state.y, state.hessian))
        return step_response(hessian, _constant(self.flow).resistance(y, dt))

    def diagnose(self, new: _State, old: _State, dt: Scalar, response: StepResponse) -> _State:
        """Whether the flow came to rest in `new`, and what rounding did on the way there."""
        run, old = _constant(self), _constant(old)
        y, hessian = lax.stop_gradient((new.y, new.hessian))
        count = run.flow.size
        gradient, noise = run.flow.gradient(y), run.flow.noise(y)
        coasting = run.flow.coasting(y)
        scale = run.scale(y)[:count]

        resting, newton = comes_to_rest(hessian, gradient, noise, scale, coasting=coasting)
        # The exit may lie between here and the minimum.
        resting = resting & ~run.leaves(y.at[:count].add(-newton))
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
        any_move = jnp.any(moved != 0)
        ledger = jax.tree.map(lambda a, b: jnp.where(any_move, a, b), ledger, old.ledger)
        return eqx.tree_at(lambda s: (s.ledger, s.result), new, (ledger, result))

    def leaves(self, y: Float[Array, " n"]) -> Bool[Array, ""]:
        """Whether a state meets the exit."""
        return self.condition(jnp.zeros(()), y, None) <= 0

    def settle(self, y: Float[Array, " n"]) -> Int[Array, ""]:
        """What the gradient and the Hessian say of a run that seems to rest at `y`."""
        run, count = _constant(self), self.flow.size
        resting, newton = comes_to_rest(
            run.hessian(y),
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
        condition, until = _constant(self.condition), state.time + span

        def see(time: Scalar) -> dict[str, Array]:
            y = interpolation.evaluate(jnp.clip(time - state.time, 0.0, span))
            seen = condition.state(jnp.where(span > 0, y, lax.stop_gradient(state.y)))
            return {"loss": seen.loss, "distance": seen.distance}

        return state.recording.write(_constant(self.curve_times), lambda t: t <= until, see)

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
            recorded = self.record(_constant(state), interpolation, lax.stop_gradient(span))
            curve = LossCurve(self.curve_times, **recorded.values)

        seen = self.condition.state(y)
        run, still = _constant(self), _constant(seen)
        # One loop, so that the gradient of the margin is compiled once.
        doubt = lax.map(run.doubt, jnp.stack([lax.stop_gradient(y), state.nearest_y]))
        result = jnp.where(
            state.result == RESTING, run.settle(lax.stop_gradient(state.y)), state.result
        )
        result, rounding = conclude(
            result,
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
        condition, crossing = _constant((self.condition, state.crossing))
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
        correction = -margin / lax.stop_gradient(jnp.where(speed == 0, 1, speed))
        # Far from the root the bracket knows more than Newton's method does.
        close = jnp.abs(correction) <= 0.1 * dt
        correction = jnp.where(close, correction, correction - lax.stop_gradient(correction))
        return span + correction, y + correction * velocity, lax.stop_gradient(speed)


def _constant(tree: PyTree) -> PyTree:
    """The same values, cut off from differentiation."""
    return jax.tree.map(
        lambda leaf: lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, tree
    )


def measure_plateau(
    flow: AbstractFlow | AbstractTraining,
    model: AbstractModel,
    exit: AbstractExit,
    *,
    solver: diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    rtol: float | Scalar = 1e-6,
    max_time: float | Scalar = 1e300,
    max_steps: int | None = None,
    saveat: diffrax.SaveAt | None = None,
    throw: bool = True,
    adjoint: diffrax.AbstractAdjoint | None = None,
    resolution: float | Scalar = 1e-3,
) -> Plateau:
    r"""Follow the training of a model until an exit condition, and time it.

    The flow is integrated in the displacement $y = \theta - \theta(0)$, with errors
    controlled relative to $y$, and every step starts at a local time of zero. Steps are not
    bounded: on a plateau they grow with the time that is left, so that $\tau = 10^{24}$ takes
    a few hundred of them. (Integrating in $\log\tau$ was the alternative; it would lose the
    short steps at the end of a long plateau below the last digit of time, as absolute time
    does.) A step is refused where it would jump over an instability of the flow.

    A discrete training ([`memjax.AbstractTraining`][]) is followed update by update instead.
    Its times are whole numbers of updates, the curve holds the last update before each time,
    `rounding` counts that of the loss alone, and `curvature` is NaN.

    Works under `jax.jit` and `jax.vmap`; `time`, `loss`, `distance` and `model` of a
    flow are differentiable, once, through the exit, with respect to everything in `flow`,
    `model` and `exit`. (Second derivatives would miss what the location of the exit holds
    fixed.) Where there is no finite time its derivatives are NaN.

    **Arguments:**

    - `flow`: the training dynamics, for example `memjax.GradientFlow(loss)`, or a discrete
        training such as `memjax.OptaxTraining(loss, optax.adam(1e-3))`.
    - `model`: the start, in float64.
    - `exit`: when the plateau ends.
    - `solver`: a Diffrax solver with error estimates. Defaults to `diffrax.Kvaerno5` with a
        full Newton iteration. A root finder built with
        `diffrax.with_stepsize_controller_tols` is given the tolerances of every step.
    - `stepsize_controller`: a Diffrax controller acting on the displacement. Defaults to
        `diffrax.PIDController` with `rtol` and an `atol` that follows the gradient at the
        start. Time is local to a step, so that controllers bound to absolute times
        (`diffrax.ClipStepSizeController`) are refused.
    - `rtol`: tolerance of the default controller, below 1, relative to the displacement of every
        weight. The error of `time` was at most a hundred times that on the references. Where the
        exit is met or missed by less than it tells, the run is repeated with a smaller one, or
        `undecided` where `jax.jit` and the like do not allow that.
    - `max_time`: training time after which to stop. Defaults to 1e300.
    - `max_steps`: number of attempted steps after which to stop. Defaults to 4096, and to a
        million updates of a discrete training.
    - `saveat`: `diffrax.SaveAt(ts=times)` to record the training curve at increasing times
        (log-spaced ones, say `jnp.geomspace(1e-1, 1e9, 100)`).
    - `throw`: whether to raise if there is no answer: `unresolved`, `undecided`, `invalid`,
        `diverged`, or `max_steps` reached. Otherwise such an answer is only marked in `result`, its
        `time` being NaN. Under `jax.vmap` one of them raises for the whole batch: pass `False`.
    - `adjoint`: `diffrax.RecursiveCheckpointAdjoint()` (the default) for reverse-mode and
        `diffrax.ForwardMode()` for forward-mode differentiation.
    - `resolution`: the relative error of `time` due to rounding, as estimated along the way,
        above which an answer is `unresolved`.

    **Returns:**

    A [`memjax.Plateau`][].

    **Raises:**

    `TypeError` or `ValueError` for arguments that do not fit, among them float32 models;
    an Equinox runtime error as described under `throw`.

    ??? cite "Reference"

        The hitting times are those of Li, Han, E, Li, *On the Curse of Memory in Recurrent
        Neural Networks: Approximation and Optimization Analysis*, ICLR 2021, Section 5.
    """
    check_instance(
        "flow",
        flow,
        (AbstractFlow, AbstractTraining),
        "a memjax flow",
        "pass for example memjax.GradientFlow(memjax.WhiteNoiseLoss(target))",
    )
    check_instance(
        "model",
        model,
        AbstractModel,
        "a memjax model",
        "pass for example memjax.DiagonalLinearRNN(amplitudes, rates)",
    )
    check_exit("exit", exit)
    for name, value in (("model", model), ("flow", flow), ("exit", exit)):
        check_float64(name, eqx.filter(value, eqx.is_inexact_array))
    check_integrator(solver, stepsize_controller)
    rtol = as_tolerance("rtol", rtol)
    max_time = as_max_time(max_time)
    if max_steps is None:
        max_steps = 1_000_000 if isinstance(flow, AbstractTraining) else 4096
    check_integer("max_steps", max_steps)
    resolution = as_positive("resolution", resolution)
    check_flag("throw", throw)
    curve_times = _curve_times(saveat)
    if isinstance(flow, AbstractTraining):
        given = {"solver": solver, "stepsize_controller": stepsize_controller, "adjoint": adjoint}
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"`{name}` must not be given for a discrete training, got {shown(value)}; "
                    "its updates are steps of their own, so leave it out."
                )
        plateau = measure_training(
            flow, model, exit, max_time, jnp.asarray(max_steps), curve_times, resolution
        )
        return raise_failure(plateau) if throw else plateau
    if adjoint is None:
        adjoint = diffrax.RecursiveCheckpointAdjoint()
    elif not isinstance(adjoint, (diffrax.RecursiveCheckpointAdjoint, diffrax.ForwardMode)):
        raise TypeError(
            f"`adjoint` must be diffrax.RecursiveCheckpointAdjoint() or diffrax.ForwardMode(), "
            f"got {shown(adjoint)}; choose one of them."
        )
    measured = lambda rtol: _measure(
        flow,
        model,
        exit,
        solver,
        stepsize_controller,
        rtol,
        max_time,
        max_steps,
        curve_times,
        adjoint,
        resolution,
    )
    try:
        plateau = measured(rtol)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            "`adjoint` must be diffrax.ForwardMode() for derivatives in forward mode (jvp, "
            "jacfwd), got diffrax.RecursiveCheckpointAdjoint(), which is for reverse mode; pass "
            "adjoint=diffrax.ForwardMode()."
        ) from error
    # What the tolerance leaves undecided a smaller one decides, where that can be seen.
    seen = stepsize_controller is None and not is_traced((plateau, rtol))
    while seen and plateau.result_code == UNDECIDED and rtol > SMALLEST_RTOL:
        rtol = rtol * REFINEMENT
        plateau = measured(rtol)
    return raise_failure(plateau) if throw else plateau


def _curve_times(saveat: diffrax.SaveAt | None) -> Float[Array, " times"] | None:
    if saveat is None:
        return None
    subs = saveat.subs if isinstance(saveat, diffrax.SaveAt) else None
    times = getattr(subs, "ts", None)
    if times is None:
        raise ValueError(
            "`saveat` must be diffrax.SaveAt(ts=times), got "
            f"{shown(saveat)}; pass the training times of the curve."
        )
    return as_curve_times("saveat.ts", times)


def as_curve_times(name: str, value: Any) -> Float[Array, " times"]:
    """Increasing training times that are not negative."""
    times = as_increasing(name, value)
    check_nonnegative(name, times, "training starts at time 0")
    return times


def as_max_time(value: Any) -> Float[Array, ""]:
    """A training time above 0, perhaps infinite."""
    time = as_float_array("max_time", value)
    check_scalar("max_time", time)
    if not is_traced(time) and not time > 0:
        raise ValueError(f"`max_time` must be positive, got {shown(value)}; pass a time above 0.")
    return valid_or_nan(time, time > 0)
