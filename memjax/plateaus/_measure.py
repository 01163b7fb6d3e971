"""How long training takes to meet an exit condition."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

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
from .._typing import ScalarLike
from ..flows import AbstractFlow, AbstractTraining, closed_form, DENSE
from ..losses import coordinates, SpectralLanes, weights
from ..models import AbstractModel
from ..numerics import compiled
from ._conclusion import cheap_steps, REFINEMENT, SMALLEST_RTOL
from ._exits import AbstractExit, check_exit
from ._integration import measure_flow
from ._lanes import LaneMethod
from ._memory import check_memory
from ._outcomes import (
    MAX_STEPS_REACHED,
    Model,
    Plateau,
    raise_failure,
    UNDECIDED,
    UNRESOLVED,
)
from ._runs import Runs
from ._single import measure_run
from ._training import measure_training


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


def measure_plateau(
    flow: AbstractFlow | AbstractTraining,
    model: Model,
    exit: AbstractExit,
    *,
    solver: diffrax.AbstractSolver | None = None,
    stepsize_controller: diffrax.AbstractStepSizeController | None = None,
    rtol: Real[ScalarLike, ""] = 1e-6,
    max_time: Real[ScalarLike, ""] = 1e300,
    max_steps: int | None = None,
    saveat: diffrax.SaveAt | None = None,
    throw: bool = True,
    adjoint: diffrax.AbstractAdjoint | None = None,
    resolution: Real[ScalarLike, ""] = 1e-3,
) -> Plateau[Model]:
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
    - `solver`: a Diffrax solver with error estimates. A root finder built with
        `diffrax.with_stepsize_controller_tols` is given the tolerances of every step. By default
        the method is that of [`memjax.sweep`][] on a single lane, with what float64 leaves
        unresolved repeated in double-double, where the loss has closed forms and `jax.jit` and the
        like do not stand in the way.
    - `stepsize_controller`: a Diffrax controller acting on the displacement, for `solver` or, by
        default, `diffrax.Kvaerno5` with a full Newton iteration. That of a `solver` alone is
        `diffrax.PIDController` with `rtol` and an `atol` that follows the gradient at the
        start. Time is local to a step, so that controllers bound to absolute times
        (`diffrax.ClipStepSizeController`) are refused.
    - `rtol`: tolerance, below 1, relative to the displacement of every weight. The error of `time`
        was at most a hundred times that on the references. Where the exit is met or missed by less
        than it tells, the run is repeated with a smaller one, or `undecided` where `jax.jit` and
        the like do not allow that.
    - `max_time`: training time after which to stop. Defaults to 1e300. A run that is at a minimum
        by then is `converged`.
    - `max_steps`: number of attempted steps after which to stop. Defaults to 4096, and to a
        million updates of a discrete training. For its derivatives the steps of a run are kept,
        which bounds their number for models of thousands of weights.
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
    own = solver is not None or stepsize_controller is not None
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
    # Under `jax.jit` an array made here is traced, whatever the arguments are.
    seen = stepsize_controller is None
    seen = seen and not is_traced((flow, model, exit, rtol, jnp.zeros(())))
    closed = closed_form(flow.loss, model) is not None
    if not own and _may_be_large(flow, model, closed):
        check_memory(eqx.filter_eval_shape(Runs.build, flow, model, exit, {}))
    compensable = SpectralLanes.compensates(flow.loss, model)
    # The dearer method couples the Jacobians of all stages, as arrays where there are no closed
    # forms.
    can_harden = seen and not own and (closed or coordinates(weights(model))[0].size <= DENSE)

    def measured(rtol: Array, hard: bool) -> Plateau:
        if own:
            return measure_flow(
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
        times = jnp.zeros(0) if curve_times is None else curve_times
        cheap = can_harden and not hard
        limit = jnp.asarray(min(max_steps, cheap_steps(flow)) if cheap else max_steps)
        # Where nothing can be repeated the dearer iteration is the first.
        full = hard or (closed and not seen)
        twice = hard and compensable
        method = LaneMethod(rtol, max_time, limit, resolution, times, compensated=twice, full=full)
        # A run takes milliseconds where there are closed forms, and seconds to compile.
        effort = "full" if not seen else "least" if closed else "less"
        measure = compiled(measure_run, effort)
        return measure(flow, model, exit, method, max_steps, adjoint)

    hard = False
    plateau = _directed(measured, rtol, hard)
    # What float64 cannot resolve, twice the digits do, and what the tolerance leaves undecided a
    # smaller one decides, where that can be seen.
    while seen and not is_traced(plateau):
        code = int(plateau.result_code)
        # Without twice the digits, what rounding left open would be left open again.
        stuck = code == MAX_STEPS_REACHED or (compensable and code == UNRESOLVED)
        if can_harden and not hard and stuck:
            hard = True
        elif code == UNDECIDED and rtol > SMALLEST_RTOL:
            rtol = rtol * REFINEMENT
        else:
            break
        plateau = _directed(measured, rtol, hard)
    return raise_failure(plateau) if throw else plateau


def _directed(measured: Callable[[Array, bool], Plateau], rtol: Array, hard: bool) -> Plateau:
    """A measurement, or an error that says which direction its derivatives have."""
    try:
        return measured(rtol, hard)
    except TypeError as error:
        if "custom_vjp" not in str(error):
            raise
        raise TypeError(
            "`adjoint` must be diffrax.ForwardMode() for derivatives in forward mode (jvp, "
            "jacfwd), got diffrax.RecursiveCheckpointAdjoint(), which is for reverse mode; pass "
            "adjoint=diffrax.ForwardMode()."
        ) from error


def _may_be_large(flow: AbstractFlow, model: AbstractModel, closed: bool) -> bool:
    """Whether it is worth a look how much memory a run takes."""
    size = coordinates(weights(model))[0].size
    arrays = jax.tree.leaves(eqx.filter((flow, model), eqx.is_array))
    return size > 4096 or (not closed and 16 * size * sum(x.nbytes for x in arrays) > 1e9)


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
