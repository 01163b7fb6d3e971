"""What a run that has ended may claim: its outcome, and how far rounding makes it wrong."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..flows import AbstractFlow
from ._outcomes import (
    CONVERGED,
    CROSSED,
    EXITED,
    MAX_STEPS_REACHED,
    MAX_TIME_REACHED,
    RESTING,
    RUNNING,
    UNDECIDED,
    UNRESOLVED,
)
from ._rounding import Ledger

# The errors of a run may be that many times its tolerance, and move its time by that share of it.
_GRAZING, _FLAT = 30.0, 1e-4
# What it leaves undecided is repeated with a smaller tolerance, down to a smallest.
REFINEMENT, SMALLEST_RTOL = 1 / 32, 1e-11
# What takes more steps than these is repeated by the dearer method. A flow that descends takes so
# many only where modes merge; one that oscillates takes some for every turn.
_CHEAP_STEPS, _CHEAP_TURNS = 2**10, 2**14


def cheap_steps(flow: AbstractFlow) -> int:
    """How many steps the cheaper method may take."""
    return _CHEAP_STEPS if flow.descends else _CHEAP_TURNS


def conclude(
    result: Int[Array, "..."],
    settled: Int[Array, "..."] | None = None,
    *,
    time: Float[Array, "..."],
    distance: Float[Array, "..."],
    ledger: Ledger,
    margin: Float[Array, "..."],
    margin_noise: Float[Array, "..."],
    slope: Float[Array, "..."],
    doubt: Float[Array, "..."],
    nearest: Float[Array, "..."],
    doubt_there: Float[Array, "..."],
    rtol: Float[Array, ""],
    resolution: Float[Array, ""],
) -> tuple[Int[Array, "..."], Float[Array, "..."]]:
    """The outcome of runs that have ended, and the relative error of their times due to rounding.

    **Arguments:**

    - `result`: how they ended; `RUNNING` where they ran out of steps.
    - `settled`: what the gradient and the Hessian say there of a run that seems to rest.
    - `time`, `distance`: where they ended, and how far from the start.
    - `ledger`: what rounding did on the way there.
    - `margin`, `margin_noise`, `slope`: the margin of the exit at the end, its rounding error, and
        how fast it changes.
    - `doubt`: by how much errors of the size of the tolerance move it.
    - `nearest`, `doubt_there`: the margin and the same where it came nearest to 0 before.
    - `rtol`: the tolerance.
    - `resolution`: the largest error due to rounding that an answer may have.
    """
    if settled is not None:
        # A run is at a minimum also where its gradient, which is all rounding there, did not stop
        # it: when that happens is chance.
        stopped = (result == RUNNING) | (result == MAX_STEPS_REACHED) | (result == MAX_TIME_REACHED)
        rests = (result == RESTING) | (stopped & (settled == CONVERGED))
        result = jnp.where(rests, settled, result)
    crossed = (result == CROSSED) | (result == EXITED)
    # A crossing that rounding puts before the start is none.
    lost = (result == CROSSED) & ~(time > 0)
    moving = (time > 0) | lost
    rounding = ledger.relative(time, distance)
    # How far the rounding of the loss itself moves the exit.
    blur = margin_noise / jnp.where(slope == 0, 1, jnp.abs(slope) * time)
    rounding = jnp.where(crossed & moving, jnp.maximum(rounding, blur), rounding)
    rounding = jnp.where(lost, jnp.inf, rounding)

    result = jnp.where(crossed, EXITED, result)
    result = jnp.where(result == RUNNING, MAX_STEPS_REACHED, result)
    # Steps run out where the error control chases rounding noise.
    noisy = (result == MAX_STEPS_REACHED) & (ledger.peak > 1)
    result = jnp.where(noisy, UNRESOLVED, result)
    end = jnp.where(crossed, slope * time, margin)
    grazing = _grazes(result, rtol, end, doubt, nearest, doubt_there)
    result = jnp.where(grazing & moving, UNDECIDED, result)
    # An estimate that is not a number vouches for nothing. A run that ended at its start, however,
    # made no error.
    trusted = (rounding <= resolution) | ~moving
    return jnp.where(trusted, result, UNRESOLVED), rounding


def _grazes(
    result: Int[Array, "..."],
    rtol: Float[Array, ""],
    end: Float[Array, "..."],
    doubt: Float[Array, "..."],
    nearest: Float[Array, "..."],
    doubt_there: Float[Array, "..."],
) -> Bool[Array, "..."]:
    """Whether errors of the size of the tolerance could make or undo the exit.

    **Arguments:**

    - `result`: how the run ended.
    - `rtol`: its tolerance.
    - `end`: the margin where it came to rest, or how fast the margin falls in logarithmic time
        where it exited.
    - `doubt`: by how much errors of the size of the tolerance move the margin there.
    - `nearest`, `doubt_there`: the same for that of the margin's minima which came nearest to 0.
    """
    touched = jnp.abs(nearest) < _GRAZING * doubt_there
    almost = (result == CONVERGED) & (end < _GRAZING * doubt)
    # The margin falls so slowly that these errors move the time by more than they should.
    flat = doubt > jnp.abs(end) * jnp.maximum(_FLAT, 5 * rtol)
    return touched | almost | ((result == EXITED) & flat)
