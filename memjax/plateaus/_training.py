"""Plateaus of discrete training: updates counted until an exit."""

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Scalar

from ..flows import AbstractTraining, GradientFlow
from ..losses import coordinates, weights
from ..models import AbstractModel
from ._exits import AbstractExit
from ._outcomes import (
    DIVERGED,
    EXITED,
    INVALID,
    item,
    LossCurve,
    MAX_STEPS_REACHED,
    MAX_TIME_REACHED,
    Plateau,
    RUNNING,
    UNRESOLVED,
)


class _Progress(eqx.Module):
    """A training under way."""

    y: Float[Array, " weights"]
    state: PyTree[Array]
    updates: Int[Array, ""]
    margin: Float[Array, ""]
    fall: Float[Array, ""]
    result: Int[Array, ""]
    curve_index: Int[Array, ""]
    curve_loss: Float[Array, " times"]
    curve_distance: Float[Array, " times"]


@eqx.filter_jit
def measure_training(
    training: AbstractTraining,
    model: AbstractModel,
    exit: AbstractExit,
    max_time: Scalar,
    max_steps: Int[Array, ""],
    curve_times: Float[Array, " times"] | None,
    resolution: Float[Array, ""],
) -> Plateau:
    """Update the weights until the exit is met; times are those of whole updates."""
    # A displaced flow of the same loss says what an exit sees of a displacement.
    condition = exit.event(GradientFlow(training.loss).displaced(model)).cond_fn
    start, back = coordinates(weights(model))
    times = jnp.zeros(0) if curve_times is None else curve_times
    last = times.shape[0]

    def look(progress: _Progress) -> _Progress:
        """Judge the weights as they are, and update them if they have not left yet."""
        seen = condition.state(progress.y)
        margin = exit.margin(seen)
        time = progress.updates * training.time_step
        result = jnp.where(time >= max_time, MAX_TIME_REACHED, RUNNING)
        result = jnp.where(progress.updates >= max_steps, MAX_STEPS_REACHED, result)
        result = jnp.where(margin <= 0, EXITED, result)
        wrong = jnp.where(progress.updates == 0, INVALID, DIVERGED)
        result = jnp.where(jnp.isfinite(seen.loss) & ~jnp.isnan(margin), result, wrong)

        def due(carry: tuple) -> Array:
            index = carry[0]
            return (index < last) & (
                times[jnp.minimum(index, last - 1)] < time + training.time_step
            )

        def write(carry: tuple) -> tuple:
            index, losses, distances = carry
            losses = losses.at[index].set(seen.loss)
            return index + 1, losses, distances.at[index].set(seen.distance)

        curve = (progress.curve_index, progress.curve_loss, progress.curve_distance)
        if last > 0:
            curve = lax.while_loop(due, write, curve)

        change, state = training.update(model, back(progress.y), progress.state)
        going = result == RUNNING
        choose = lambda new, old: jnp.where(going, new, old)
        return _Progress(
            y=choose(coordinates(change)[0], progress.y),
            state=_chosen(going, state, progress.state),
            updates=progress.updates + going,
            margin=margin,
            fall=progress.margin - margin,
            result=result,
            curve_index=curve[0],
            curve_loss=curve[1],
            curve_distance=curve[2],
        )

    nothing = jnp.full(last, jnp.nan)
    progress = _Progress(
        y=jnp.zeros_like(start),
        state=training.start(model),
        updates=jnp.zeros((), int),
        margin=jnp.ones(()),
        fall=jnp.zeros(()),
        result=jnp.asarray(RUNNING),
        curve_index=jnp.zeros((), int),
        curve_loss=nothing,
        curve_distance=nothing,
    )
    progress = lax.while_loop(lambda p: p.result == RUNNING, look, progress)

    seen, result = condition.state(progress.y), progress.result
    time = progress.updates * training.time_step
    # How many updates the rounding of the loss may shift the exit by.
    blur = condition.noise(seen, training.loss.value_noise(seen.model))
    blur = blur / jnp.where(progress.fall == 0, 1, jnp.abs(progress.fall))
    moved = (result == EXITED) & (progress.updates > 0)
    rounding = jnp.where(moved, blur / jnp.maximum(progress.updates, 1), 0.0)
    # An estimate that is not a number vouches for nothing.
    result = jnp.where(~(rounding <= resolution), UNRESOLVED, result)
    return Plateau(
        time=jnp.where(result == EXITED, time, jnp.nan),
        result=item(result),
        time_reached=time,
        loss=seen.loss,
        distance=seen.distance,
        model=seen.model,
        initial_loss=condition.initial_loss,
        curve=None
        if curve_times is None
        else LossCurve(curve_times, progress.curve_loss, progress.curve_distance),
        curvature=jnp.full((), jnp.nan),
        rounding=rounding,
        result_code=result,
        stats={
            "num_steps": progress.updates,
            "num_accepted_steps": progress.updates,
            "num_rejected_steps": jnp.zeros((), int),
        },
    )


def _chosen(mask: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(mask, a, b) if eqx.is_array(a) else a, new, old)
