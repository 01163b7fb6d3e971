"""Plateaus of discrete training: updates counted until an exit."""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree, Scalar

from ..flows import AbstractTraining, GradientFlow
from ..losses import coordinates, weights
from ..models import AbstractModel
from ..numerics import choose
from ._conclusion import conclude
from ._exits import AbstractExit
from ._outcomes import (
    as_result,
    DIVERGED,
    EXITED,
    INVALID,
    LossCurve,
    MAX_STEPS_REACHED,
    MAX_TIME_REACHED,
    Plateau,
    RUNNING,
)
from ._recording import Recording
from ._rounding import Ledger


class _Progress(eqx.Module):
    """A training under way."""

    y: Float[Array, " weights"]
    state: PyTree[Array]
    updates: Int[Array, ""]
    margin: Float[Array, ""]
    fall: Float[Array, ""]
    result: Int[Array, ""]
    recording: Recording


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

        recording = progress.recording.write(
            times,
            # Between two updates the loss is that after the first of them.
            lambda t: t < time + training.time_step,
            lambda t: {"loss": seen.loss, "distance": seen.distance},
        )
        change, state = training.update(model, back(progress.y), progress.state)
        going = result == RUNNING
        return _Progress(
            y=choose(going, coordinates(change)[0], progress.y),
            state=choose(going, state, progress.state),
            updates=progress.updates + going,
            margin=margin,
            fall=progress.margin - margin,
            result=result,
            recording=recording,
        )

    progress = _Progress(
        y=jnp.zeros_like(start),
        state=training.start(model),
        updates=jnp.zeros((), int),
        # Before the first look there is no margin; an exit at once makes no use of how it fell.
        margin=jnp.ones(()),
        fall=jnp.zeros(()),
        result=jnp.asarray(RUNNING),
        recording=Recording.open(times, jnp.zeros(()), "loss", "distance"),
    )
    progress = lax.while_loop(lambda p: p.result == RUNNING, look, progress)

    seen, zero = condition.state(progress.y), jnp.zeros(())
    time = progress.updates * training.time_step
    # An update is the unit of time here, and makes no errors that would be known. So nothing is
    # grazed, and rounding is that of the loss alone, over what it fell by in the last update.
    result, rounding = conclude(
        progress.result,
        time=progress.updates.astype(float),
        distance=seen.distance,
        ledger=Ledger.open(zero),
        margin=progress.margin,
        margin_noise=condition.noise(seen, training.loss.value_noise(seen.model)),
        slope=progress.fall,
        doubt=zero,
        nearest=zero + jnp.inf,
        doubt_there=zero,
        rtol=zero,
        resolution=resolution,
    )
    return Plateau(
        time=jnp.where(result == EXITED, time, jnp.nan),
        result=as_result(result),
        time_reached=time,
        loss=seen.loss,
        distance=seen.distance,
        model=seen.model,
        initial_loss=condition.initial_loss,
        curve=None if curve_times is None else LossCurve(curve_times, **progress.recording.values),
        curvature=jnp.full((), jnp.nan),
        rounding=rounding,
        stats={
            "num_steps": progress.updates,
            "num_accepted_steps": progress.updates,
            "num_rejected_steps": jnp.zeros((), int),
        },
    )
