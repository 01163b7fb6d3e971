"""One run of a flow through a Diffrax solver: its parts, its state, and one attempted step."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from ..flows import DisplacedFlow
from ..numerics import as_constant
from ..solvers import StageNewton
from ._crossing import Crossing
from ._exits import ExitCondition
from ._recording import Recording
from ._rounding import Ledger, smallest_displacement, step_response, StepResponse


class State(eqx.Module):
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


class Run(eqx.Module):
    """What one measurement follows, by which solver, and until when."""

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
    ) -> "Run":
        displaced = flow.displaced(model)
        event = exit.event(displaced)
        hessian = as_constant(displaced).hessian(displaced.initial_state())
        # A bound of the largest eigenvalue that takes no decomposition.
        fastest = jnp.max(jnp.sum(jnp.abs(hessian), axis=1))
        if controller is None:
            controller = default_stepsize_controller(displaced, rtol, fastest)
        return Run(
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

    def order(self) -> Any:
        """The order of the error estimate, as controllers take it."""
        return self.solver.error_order(self.flow)

    def try_step(self, state: State, dt: Scalar):
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

    def response(self, state: State, dt: Scalar) -> tuple[Array, StepResponse]:
        """How a step from `state` answers to a change of the gradient, see `step_response`."""
        y, hessian = lax.stop_gradient((state.y, state.hessian))
        resistance = as_constant(self.flow).resistance(y, dt)
        if resistance.ndim < 2:
            resistance = jnp.diag(jnp.broadcast_to(resistance, (self.flow.size,)))
        return step_response(hessian, resistance)

    def leaves(self, y: Float[Array, " n"]) -> Bool[Array, ""]:
        """Whether a state meets the exit."""
        return self.condition(jnp.zeros(()), y, None) <= 0
