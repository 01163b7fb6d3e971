"""The stages of a step of every lane, and the polynomial through them."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..curvature import AbstractCurvature, couple, couple_arrays, GradedCurvature
from ..flows import AbstractLinearisedFlow, flow_jacobian, GradientFlow, memory_solver, Solve
from ..losses import Linearisation
from ..numerics import combine
from ..solvers import RADAU
from ._newton import defects, displace, solve_stages, Stages
from ._outcomes import RUNNING
from ._runs import Lanes, Runs

# Newton iterations in a step. More of them cost all lanes and save few steps.
_ITERATIONS = 2
# Without closed forms they cost less than a Hessian, which serves as long as they converge faster.
_ITERATIONS_WITHOUT, SLOW = 5, 0.1

# Where within a step its Hessian is taken. The stages are at 0.16, 0.64 and 1. Later than in the
# middle, predictions lead astray near saddles.
_MIDDLE = np.array([0.5])
# What may be missing of a Hessian, as a share of the shift. It adds as much to the rate at which
# Newton's iteration converges; with 0.1 steps are 2 % more (sixteen modes).
_NEGLIGIBLE = 0.02

# From stages to the coefficients of theta, theta^2, theta^3 in their interpolation.
_COEFFICIENTS = np.linalg.inv(RADAU.times[:, None] ** np.arange(1, 4))


def look_ahead(runs: Runs, state: Lanes) -> Linearisation:
    """The gradient at the start of a step, and all else within it, where the last step's
    polynomial says that the step leads: Newton's iteration takes one Hessian for all stages, and
    that of the start is twice as far from the others'."""
    n, low = runs.size, state.low
    ahead = runs.linearise(state.y + _predict(state, _MIDDLE)[:, 0], low)
    descent = runs.dynamics.descent(state.y[:n, None], None if low is None else low[:n, None])
    curvature = ahead.curvature
    if runs.flow.flow.pointwise:
        shift = runs.resistance(state.y, state.dt / RADAU.real)
        curvature = curvature.without(_NEGLIGIBLE * shift)
    parts = lambda here: (here.gradient, here.curvature)
    return eqx.tree_at(parts, ahead, (-descent[:, 0], curvature))


def _predict(
    state: Lanes, theta: Float[np.ndarray, " points"]
) -> Float[Array, "state points lanes"]:
    """The displacements at shares of the next step, as the last step's polynomial goes on."""
    theta = 1 + theta[:, None] * (state.dt / state.last_dt)
    c1, c2, c3 = (state.polynomial[:, k, None] for k in range(3))
    return c1 * (theta - 1) + c2 * (theta**2 - 1) + c3 * (theta**3 - 1)


def step_stages(
    runs: Runs,
    state: Lanes,
    here: Linearisation,
    jacobian: AbstractLinearisedFlow,
    solve: Solve,
    definite: Bool[Array, " lanes"],
    scale: Float[Array, "n lanes"],
    *,
    full: bool,
    compensated: bool,
) -> Stages:
    """The increments of the stages.

    **Arguments:**

    - `here`, `jacobian`: the loss and the Jacobian of the flow at the start of the step.
    - `solve`: the solver of the Jacobian shifted by the real eigenvalue of the formula.
    - `definite`: the lanes to iterate.
    - `scale`: the error that the step may make.
    - `full`, `compensated`: as in `LaneMethod`.
    """
    dt = state.dt
    # The last step's interpolation goes on, as long as there is one: Newton's iteration starts
    # with an error that is already small, and may be short.
    predicted = _predict(state, RADAU.times)
    memories = memory_solver(runs.flow, state.y, here.gradient, dt, RADAU.times, RADAU.inverse)
    solve_pair = jacobian.solver_complex(RADAU.pair.real / dt, RADAU.pair.imag / dt)

    def frozen(stages: Array, rest: Array | None) -> tuple[Array, Array]:
        stages, defect = defects(runs, state, *memories, stages, rest)
        first = solve(combine(RADAU.real_row, defect)[:, None])[:, 0]
        second = solve_pair(
            combine(np.real(RADAU.pair_row), defect), combine(np.imag(RADAU.pair_row), defect)
        )
        # Back from the basis of eigenvectors; the conjugate of the pair adds the same real part
        # again.
        change = -RADAU.real_column[:, None] * first[:, None]
        change = change - 2 * np.real(RADAU.pair_column)[:, None] * second[0][:, None]
        change = change + 2 * np.imag(RADAU.pair_column)[:, None] * second[1][:, None]
        return stages, jnp.asarray(change)

    idle = state.result != RUNNING
    open_ = definite & ~idle
    if full:
        update, most = _full_update(runs, state, memories, here.curvature), 10
    else:
        update, most = frozen, _ITERATIONS if runs.closed else _ITERATIONS_WITHOUT
    return solve_stages(runs, update, predicted, open_, idle, scale, most, compensated)


def _full_update(
    runs: Runs,
    state: Lanes,
    memories: tuple[Callable[[Array, Array], Array], bool],
    start: AbstractCurvature,
) -> Callable[..., tuple[Array, Array]]:
    """Newton's update with the Jacobian of every stage: where modes approach each other, the
    Hessians at the stages of one step differ too much for that of its `start`."""

    def update(stages: Array, rest: Array | None) -> tuple[Array, Array]:
        stages, defect = defects(runs, state, *memories, stages, rest)
        after, rate = state.y[:, None] + stages, 1 / state.dt
        each_stage = []
        for k in range(3):
            short = None if rest is None else rest[:, k]
            moved = displace(state.y, state.low, stages[:, k], short)
            each = runs.linearise(*moved)
            if isinstance(start, GradedCurvature):
                # The blocks hold the residual, which is anything where an iterate is off the
                # manifold on which the run moves; the start of the step is on it.
                graded = eqx.tree_at(lambda c: c.blocks, each.curvature, start.blocks)
                each = eqx.tree_at(lambda e: e.curvature, each, graded)
            each_stage.append(each)
        if isinstance(runs.flow.flow, GradientFlow):
            # Hessians as blocks and factors keep that form also when the stages are coupled; all
            # other flows take arrays.
            solve = couple([each.curvature for each in each_stage], RADAU.inverse, rate)
        else:
            whole = [
                -flow_jacobian(runs.flow, after[:, k], each.gradient, each.curvature)
                for k, each in enumerate(each_stage)
            ]
            solve = couple_arrays(whole, RADAU.inverse, rate)
            defect = jnp.pad(defect, ((0, len(stages) - len(defect)), (0, 0), (0, 0)))
        return stages, -solve(defect)

    return update


def interpolate(stages: Float[Array, "n 3 lanes"]) -> Float[Array, "n 3 lanes"]:
    """The polynomial through the stages of a step, as its coefficients but that of order 0."""
    return combine(_COEFFICIENTS, stages)


def evaluate(polynomial: Float[Array, "n 3 lanes"], theta: Float[Array, " lanes"] | float) -> Array:
    """A polynomial of `interpolate` at a share of its step."""
    c1, c2, c3 = (polynomial[:, k] for k in range(3))
    return theta * (c1 + theta * (c2 + theta * c3))
