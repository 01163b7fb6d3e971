"""How a measurement ends, and what it gives: the same for flows, lanes and discrete training."""

from typing import Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._checks import is_traced
from .._text import readable
from ..models import AbstractModel

Model = TypeVar("Model", bound=AbstractModel)


class RESULTS(eqx.Enumeration):
    """How a plateau measurement ended."""

    exited = "The exit condition was met."
    converged = "The flow came to rest at a stationary point that does not meet the exit condition."
    max_time_reached = "The exit condition was not met up to `max_time`."
    max_steps_reached = (
        "The maximum number of steps was reached. Raise `max_steps` or loosen `rtol`. If the loss "
        "has stopped falling above the level of the exit, that is out of reach: lower `delta`."
    )
    unresolved = (
        "Rounding errors stand in the way of a trustworthy answer. `memjax.sweep` repeats such "
        "runs in double-double arithmetic, which resolves most of them. Otherwise start closer to "
        "the target's own rates, or shorten the memory."
    )
    diverged = "The loss of a discrete training is not finite any more. Use a smaller step."
    undecided = (
        "The exit condition is met, or missed, by less than the tolerance tells. Lower `rtol`, or "
        "move the exit."
    )
    invalid = (
        "At the start the loss, its gradient or the margin of the exit is not a finite number. An "
        "argument is out of its range; values that JAX traces cannot be checked before."
    )


# The places of the results above, as arrays hold them.
OUTCOMES = (
    "exited",
    "converged",
    "max_time_reached",
    "max_steps_reached",
    "unresolved",
    "diverged",
    "undecided",
    "invalid",
)
(
    EXITED,
    CONVERGED,
    MAX_TIME_REACHED,
    MAX_STEPS_REACHED,
    UNRESOLVED,
    DIVERGED,
    UNDECIDED,
    INVALID,
) = range(8)
# While a run goes on; when its last step crosses the exit; and when it seems to have come to rest,
# at a minimum or where its gradient is all noise.
RUNNING, CROSSED, RESTING = -1, -2, -3
# These are no answers: their time is NaN because something stood in the way.
FAILED = (MAX_STEPS_REACHED, UNRESOLVED, DIVERGED, UNDECIDED, INVALID)


def _name_result(result: Any) -> Any:
    """How a measurement ended, in words; of a batch, how many ended how."""
    (code,) = jax.tree.leaves(result)
    if is_traced(code):
        return code
    codes = np.asarray(code)
    if codes.ndim == 0:
        name = OUTCOMES[int(codes)]
        return f"{name}: {RESULTS[getattr(RESULTS, name)]}"
    counts = {name: int(np.sum(codes == place)) for place, name in enumerate(OUTCOMES)}
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count)


@readable()
class LossCurve(eqx.Module):
    r"""A training curve at given times; NaN after the end of the measurement.

    **Attributes:**

    - `times`: training times $\tau$, shape `(times,)`.
    - `loss`: $J(\theta(\tau))$, shape `(times,)`.
    - `distance`: $\|\theta(\tau) - \theta(0)\|_2$, shape `(times,)`.
    """

    times: Float[Array, " times"]
    loss: Float[Array, " times"]
    distance: Float[Array, " times"]


@readable("plot_plateau", result=lambda plateau: _name_result(plateau.result))
class Plateau(eqx.Module, Generic[Model]):
    r"""A measured plateau.

    **Attributes:**

    - `time`: the hitting time $\tau$ of the exit, in units of training time; infinite if the
        flow converged without meeting it, NaN if the measurement was stopped before or could
        not be resolved. Its derivatives are NaN unless it is finite.
    - `result`: how the measurement ended, a member of [`memjax.RESULTS`][].
    - `time_reached`: the training time up to which the flow was integrated.
    - `loss`, `distance`, `model`: loss, distance from the start and model at that time.
    - `initial_loss`: the loss at the start.
    - `curve`: the training curve if asked for, else `None`.
    - `curvature`: the smallest curvature of the loss at that time, with the diagonal of the
        Hessian scaled to one: its sign tells a minimum (positive) from a saddle (negative).
    - `rounding`: an estimate of the relative error of `time` due to rounding.
    - `result_code`: the place of `result` among the outcomes in the order of
        [`memjax.RESULTS`][], as an integer that arrays can hold.
    - `stats`: `num_steps`, `num_accepted_steps` and `num_rejected_steps`.
    """

    time: Float[Array, ""]
    result: RESULTS
    time_reached: Float[Array, ""]
    loss: Float[Array, ""]
    distance: Float[Array, ""]
    model: Model
    initial_loss: Float[Array, ""]
    curve: LossCurve | None
    curvature: Float[Array, ""]
    rounding: Float[Array, ""]
    stats: dict[str, Int[Array, ""]]

    @property
    def result_code(self) -> Int[Array, ""]:
        """The place of `result` among the outcomes, as an integer."""
        return jax.tree.leaves(self.result)[0]


def as_result(code: Int[Array, ""]) -> RESULTS:
    """The result of a code."""
    # An item of an enumeration is a PyTree whose one leaf is its place.
    return jax.tree.unflatten(jax.tree.structure(RESULTS.exited), [code])


def time_of(
    result: Int[Array, "..."],
    time: Float[Array, "..."],
    given: PyTree = None,
) -> Float[Array, "..."]:
    """The time that a measurement gives. Where it gives none, its derivatives in all that was
    given are NaN: those of a constant, which are 0, would pass for an answer."""
    exited = result == EXITED
    without = jnp.where(result == CONVERGED, jnp.inf, jnp.nan)
    leaves = jax.tree.leaves(eqx.filter(given, eqx.is_inexact_array))
    total = sum((jnp.sum(jnp.real(leaf)) for leaf in leaves), jnp.zeros(()))
    without = _with_slope(without, total, jnp.where(exited, 0.0, jnp.nan))
    return jnp.where(exited, time, without)


@jax.custom_jvp
def _with_slope(value: Array, of: Array, slope: Array) -> Array:
    return value


@_with_slope.defjvp
def _(primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    value, _, slope = primals
    return value, slope * tangents[1]


def raise_failure(plateau: Plateau) -> Plateau:
    """The answer, or a runtime error if it is none."""
    failed = jnp.isin(plateau.result_code, jnp.asarray(FAILED))
    hint = " (`throw=False` marks it in `result` instead, and keeps the other runs of a batch.)"
    messages = [RESULTS[getattr(RESULTS, name)] + hint for name in OUTCOMES]
    return eqx.branched_error_if(plateau, failed, plateau.result_code, messages)
