"""One run: the method of lanes on a single one, and the derivatives of what it measures."""

from typing import Any

import diffrax
import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ..curvature import couple_arrays
from ..flows import AbstractFlow, DisplacedFlow, GradientFlow
from ..models import AbstractModel
from ..numerics import as_constant
from ..solvers import RADAU
from ._exits import AbstractExit, ExitCondition
from ._lane_stages import evaluate
from ._lanes import LaneMethod
from ._outcomes import as_result, CROSSED, LossCurve, Plateau, RUNNING, time_of
from ._runs import Lanes, Runs

# The steps of a run are kept for its derivatives, up to so many bytes: three stages of eight for
# every number of the state.
_LARGEST_TRACE = 2**28


class _Trace(eqx.Module):
    """The accepted steps of a run: their stages and lengths, and how many there are."""

    stages: Float[Array, "steps state 3"]
    dt: Float[Array, " steps"]
    count: Int[Array, ""]

    @staticmethod
    def open(steps: int, size: int) -> "_Trace":
        return _Trace(jnp.zeros((steps, size, 3)), jnp.ones(steps), jnp.zeros((), jnp.int32))

    def add(self, old: Lanes, new: Lanes) -> "_Trace":
        kept = new.num_accepted_steps[0] > old.num_accepted_steps[0]
        kept = kept & (new.result[0] != CROSSED)
        # A step that is refused is written over by the next. The polynomial goes through the
        # stages, which are not kept besides.
        stages = jnp.stack([evaluate(new.polynomial, c)[:, 0] for c in RADAU.times], axis=1)
        return _Trace(
            self.stages.at[self.count].set(stages, mode="drop"),
            self.dt.at[self.count].set(new.last_dt[0], mode="drop"),
            self.count + kept,
        )


class _Crossing(eqx.Module):
    """The step in which a run meets its exit, and whether it does."""

    stages: Float[Array, "state 3"]
    dt: Float[Array, ""]
    crossed: Bool[Array, ""]


def measure_run(
    flow: AbstractFlow,
    model: AbstractModel,
    exit: AbstractExit,
    method: LaneMethod,
    most_steps: int,
    adjoint: diffrax.AbstractAdjoint,
) -> Plateau:
    """Measure a plateau by a method of lanes.

    **Arguments:**

    - `flow`, `model`, `exit`: as in [`memjax.measure_plateau`][].
    - `method`: how a lane starts, steps and ends.
    - `most_steps`: an upper bound of its `max_steps`.
    - `adjoint`: the direction of derivatives.
    """
    displaced = flow.displaced(model)
    widen = lambda x: x[..., None] if eqx.is_array(x) else x
    # Only the steps have derivatives, not the way in which they were found.
    one = Runs.build(*as_constant((flow, model, exit)), {})
    runs, method = jax.tree.map(widen, one), as_constant(method)

    size = displaced.initial_state().shape[0]
    traced = 24 * size * most_steps <= _LARGEST_TRACE
    start = method.start(runs)

    def step(carry: tuple[Lanes, _Trace]) -> tuple[Lanes, _Trace]:
        state, trace = carry
        new = method.step(runs, state)
        return new, trace.add(state, new) if traced else trace

    trace = _Trace.open(most_steps if traced else 0, size)
    going = lambda carry: carry[0].result[0] == RUNNING
    state, trace = lax.while_loop(going, step, (start, trace))
    rows, found = method.finish(runs, state)
    rows = {name: row[0] for name, row in rows.items()}

    condition = ExitCondition(exit, displaced, flow.loss(model))
    y = found.y[:, 0]
    crossed = state.result[0] == CROSSED
    last = _Crossing(
        jnp.where(crossed, found.stages[:, :, 0], 0), jnp.where(crossed, found.dt[0], 1), crossed
    )
    moved, later = _replay(displaced, condition, y, trace, last, adjoint)
    if not traced:
        moved, later = _refuse((moved, later), size, most_steps)
    # Values are those of the lane, which may have had twice the digits; derivatives those of the
    # steps made again.
    y, time = _take_slope(y, moved), _take_slope(rows["time_reached"], later)
    seen = condition.state(y)

    curve = None
    if method.curve_times.shape[0] > 0:
        names = ("loss", "distance")
        curve = LossCurve(method.curve_times, *(rows[f"curve_{name}"] for name in names))
    rejected = rows["num_rejected_steps"]
    return Plateau(
        time=time_of(rows["result"], time, (displaced, condition)),
        result=as_result(rows["result"]),
        time_reached=time,
        loss=seen.loss,
        distance=seen.distance,
        model=seen.model,
        initial_loss=condition.initial_loss,
        curve=curve,
        curvature=rows["curvature"],
        rounding=rows["rounding"],
        stats={
            "num_steps": rows["num_steps"],
            "num_accepted_steps": rows["num_steps"] - rejected,
            "num_rejected_steps": rejected,
        },
    )


def _replay(
    flow: DisplacedFlow,
    condition: ExitCondition,
    end: Float[Array, " state"],
    trace: _Trace,
    last: _Crossing,
    adjoint: diffrax.AbstractAdjoint,
) -> tuple[Float[Array, " state"], Float[Array, ""]]:
    """The end of a run and its time as functions of the flow and the exit, from the steps that
    were taken: each is an implicit function of where it starts, and so is the exit."""

    # Lengths of steps are held: what they change is the error of the method.
    def step(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        index, y = carry
        stages, dt = trace.stages[index], trace.dt[index]
        return index + 1, y + _stages(stages, (flow, y), dt)[:, 2]

    forward = isinstance(adjoint, diffrax.ForwardMode)
    _, y = eqxi.while_loop(
        lambda carry: carry[0] < trace.count,
        step,
        (jnp.zeros((), jnp.int32), flow.initial_state()),
        max_steps=max(1, len(trace.dt)),
        kind="lax" if forward else "checkpointed",
        checkpoints=None if forward else adjoint.checkpoints,  # pyright: ignore
    )
    y = y + _stages(last.stages, (flow, y), last.dt)[:, 2]
    # To first order the exit is met later by what the margin is above 0 there.
    zero, (still, fixed) = jnp.zeros(()), as_constant((flow, condition))
    velocity = still.vf(zero, end, None)
    slope = jax.jvp(lambda y: fixed(zero, y, None), (end,), (velocity,))[1]
    margin = condition(zero, _take_slope(end, y), None)
    later = -margin / jnp.where(slope == 0, 1, slope)
    later = jnp.where(last.crossed, later, 0)
    return y + velocity * later, later


@eqx.filter_custom_jvp
def _stages(
    stages: Float[Array, "state 3"], equation: tuple[DisplacedFlow, Array], dt: Float[Array, ""]
) -> Float[Array, "state 3"]:
    """The stages of a step, as a function of the equation that they solve."""
    return stages


@_stages.def_jvp
def _stages_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    # The stages z solve A^(-1) z / h = f(y + z), so that (A^(-1) / h - J) dz = df, with df the
    # change of f at fixed stages. Whatever guess they were found from has no part in it.
    stages, equation, dt = primals
    _, moving, _ = tangents
    zero = jnp.zeros(())
    still = jax.tree.map(lambda x: x is None, moving, is_leaf=lambda x: x is None)
    constant, variable = eqx.partition(equation, still)

    def velocities(variable: PyTree) -> Float[Array, "state 3"]:
        flow, y = eqx.combine(variable, constant)
        return jnp.stack([flow.vf(zero, y + stages[:, k], None) for k in range(3)], axis=1)

    _, change = jax.jvp(velocities, (variable,), (moving,))
    flow, y = as_constant(equation)

    def resistance(y: Float[Array, " state"]) -> Float[Array, "state state"]:
        # The flow is minus the gradient, whose Hessian may have a closed form.
        if isinstance(flow.flow, GradientFlow):
            return flow.hessian(y)
        return -jax.jacfwd(lambda y: flow.vf(zero, y, None))(y)

    matrices = [resistance(y + stages[:, k]) for k in range(3)]
    solve = couple_arrays(matrices, RADAU.inverse, 1 / dt)
    return stages, solve(change)


@eqx.filter_custom_jvp
def _take_slope(value: Array, of: Array) -> Array:
    """The value with the derivatives of another."""
    return value


@_take_slope.def_jvp
def _take_slope_jvp(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    value, of = primals
    return value, jnp.zeros_like(value) if tangents[1] is None else tangents[1]


@eqx.filter_custom_jvp
def _refuse(tree: PyTree[Array], size: int, steps: int) -> PyTree[Array]:
    return tree


@_refuse.def_jvp
def _refuse_jvp(primals: tuple, tangents: tuple) -> Any:
    _, size, steps = primals
    # Only when derivatives are asked for: without them a run may take any number of steps.
    raise ValueError(
        f"`max_steps` must be at most {_LARGEST_TRACE // (24 * size)} for derivatives of a run of "
        f"{size} numbers, whose steps are kept, got {steps}; pass fewer."
    )
