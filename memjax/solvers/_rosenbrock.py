from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from .._typing import ArrayLike
from ..numerics import as_constant
from ._interpolation import BubbleInterpolation, rows_at
from ._shared import (
    all_finite,
    attempt,
    check_fields,
    Factors,
    finish,
    Outcome,
    Problem,
    problem_of,
    product,
    Start,
    Vector,
)


def _lower(*rows: tuple[float, ...]) -> np.ndarray:
    return np.array([row + (0.0,) * (8 - len(row)) for row in rows])


# Table 1 of the paper, transformed as in Hairer & Wanner II, (IV.7.25), to digits of float64. In
# its variables, u = sum_j gamma_ij k_j, no stage needs products with J.
_GAMMA = 0.21193756319429014
_LAST = (-7.502846399306121, 2.561846144803919, -11.627539656261098, -0.18268767659942256,
         0.030198172008377946)  # fmt: skip
# What the stages before it add to the state of a stage, ...
_A = _lower(
    (),
    (3.0,),
    (2.849394379747939, 0.45842242204463923),
    (-6.954028509809101, 2.489845061869568, -10.358996098473584),
    (2.8029986275628964, 0.5072464736228206, -0.3988312541770524, -0.04721187230404641),
    _LAST,
    (*_LAST, 1.0),
    (*_LAST, 1.0, 1.0),
)
# ... and to its right-hand side.
_C = _lower(
    (),
    (-14.155112264123755,),
    (-17.97296035885952, -2.859693295451294),
    (147.12150275711716, -1.41221402718213, 71.68940251302358),
    (165.43517024871676, -0.4592823456491126, 42.90938336958603, -5.961986721573306),
    (24.854864614690072, -3.0009227002832186, 47.4931110020768, 5.5814197821558125,
     -0.6610691825249471),
    (30.91273214028599, -3.1208243349937974, 77.79954646070892, 34.28646028294783,
     -19.097331116725623, -28.087943162872662),
    (37.80277123390563, -3.2571969029072276, 112.26918849496327, 66.9347231244047,
     -40.06618937091002, -54.66780262877968, -9.48861652309627),
)  # fmt: skip
# The time of a stage, and its share of the derivative in time.
_TIMES = np.array(
    [0.0, 0.6358126895828704, 0.4095798393397535, 0.9769306725060716, 0.4288403609558664,
     1.0, 1.0, 1.0]
)  # fmt: skip
_DRIFTS = np.array(
    [_GAMMA, -0.42387512638858027, -0.3384627126235924, 1.8046452872882734, 2.325825639765069,
     0.0, 0.0, 0.0]
)  # fmt: skip
# The coefficients of the polynomial between the ends of a step.
_DENSE = np.array(
    [
        [25.948786856663858, -2.5579724845846235, 10.433815404888879, -2.3679251022685204,
         0.524948541321073, 1.1241088310450404, 0.4272876194431874, -0.17202221070155493],
        [-9.91568850695171, -0.9689944594115154, 3.0438037242978453, -24.495224566215796,
         20.176138334709044, 15.98066361424651, -6.789040303419874, -6.710236069923372],
        [11.419903575922262, 2.8879645146136994, 72.92137995996029, 80.12511834622643,
         -52.072871366152654, -59.78993625266729, -0.15582684282751913, 4.883087185713722],
    ]
)  # fmt: skip


# Where the polynomial is compared with the equation, and what it is there and its slope.
_BETWEEN = np.array([0.25, 0.75])
# The end is the state of the last stage plus that stage.
_VALUES, _SLOPES = rows_at(_BETWEEN, np.append(_A[-1, :7], 1.0), _DENSE)


Stages = Float[Array, "8 n"]


class Rodas5P(diffrax.AbstractAdaptiveSolver):
    r"""Steinebach's Rosenbrock method of order 5, for stiff differential equations.

    A step solves eight linear systems with one matrix, $I - \gamma h J$, and no nonlinear
    one: nothing iterates, so nothing fails to converge.

    $$(I - \gamma h J)\, u_i = \gamma \Big( h f\big(t_0 + c_i h,\, y_0 + \sum_{j<i} a_{ij} u_j
    \big) + \sum_{j<i} C_{ij} u_j + d_i h^2\, \partial_t f(t_0, y_0) \Big)$$

    with $J = \partial f / \partial y$ at $(t_0, y_0)$. The method is stiffly accurate and
    L-stable, has an embedded method of order 4 and dense output of order 4, and keeps its
    order on stiff parabolic problems where other Rosenbrock methods lose it. The error is
    estimated by the embedded method and by the defect of the dense output,
    $(I - \gamma h J)^{-1} \gamma (h f(t, p(t)) - h p'(t))$, at a quarter and three quarters of
    the step: the larger of them counts.

    A complex state is taken apart into real and imaginary parts, in which the vector field need
    not be holomorphic; its matrices are then twice as large.

    **Arguments:**

    - `linear_solver`: the Lineax solver of the linear systems, a direct one that takes any
        matrix; it factorises once a step.
    - `jacobian`: a function `(t, y, args)` that returns $\partial f / \partial y$ as a matrix of
        shape `(n, n)`, for a state of `n` real numbers in the order of
        `jax.flatten_util.ravel_pytree`, where a complex leaf counts as its real parts followed by
        its imaginary parts. By default the vector field is differentiated forwards. It must be
        exact: an approximation costs the method its order.

    **Raises:** `TypeError` and `ValueError` for arguments of the wrong kind; `ValueError` for a
    Jacobian of the wrong shape, and for a given one with a term whose control is not time.

    !!! Example

        ```python
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(vector_field), mj.Rodas5P(), t0=0, t1=100, dt0=None, y0=y0,
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
        )
        ```

    ??? cite "Reference"

        Steinebach, *Construction of Rosenbrock--Wanner method Rodas5P and numerical benchmarks
        within the Julia Differential Equations package*, BIT Numerical Mathematics 63:27, 2023.
        An unfiltered defect at the middle of the step is the error test of Rodas5Pr in
        Steinebach, *Rosenbrock methods within OrdinaryDiffEq.jl*, preprint, 2024.
    """

    linear_solver: lx.AbstractLinearSolver = lx.LU()
    jacobian: Callable[..., Any] | None = None

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., BubbleInterpolation]] = BubbleInterpolation

    def __check_init__(self) -> None:
        check_fields(self.jacobian, self.linear_solver)

    def order(self, terms: PyTree[diffrax.AbstractTerm]) -> int:
        return 5

    def error_order(self, terms: PyTree[diffrax.AbstractTerm]) -> int:
        # The embedded method and the dense output are of order 4: both are off by the fifth power.
        return 5

    def init(
        self,
        terms: diffrax.AbstractTerm,
        t0: Scalar | float,
        t1: Scalar | float,
        y0: PyTree[ArrayLike],
        args: PyTree,
    ) -> None:
        return None

    def step(
        self,
        terms: diffrax.AbstractTerm,
        t0: Scalar | float,
        t1: Scalar | float,
        y0: PyTree[ArrayLike],
        args: PyTree,
        solver_state: None,
        made_jump: bool | Bool[Array, ""],
    ) -> tuple[PyTree[Array], PyTree[Array], dict[str, PyTree], None, diffrax.RESULTS]:
        problem, coordinates, start = problem_of(terms, t0, t1, y0, args, self.jacobian)
        (increment, bubble), outcome = attempt(_attempt, (self, problem, start))
        return finish(coordinates, start, increment, bubble, outcome)

    def func(
        self, terms: diffrax.AbstractTerm, t0: Scalar | float, y0: PyTree[ArrayLike], args: PyTree
    ) -> PyTree[Array]:
        return terms.vf(t0, y0, args)


def _attempt(
    solver: Rodas5P, problem: Problem, start: Start
) -> tuple[tuple[Vector, Float[Array, "3 n"]], Outcome]:
    y, length = start.y, start.length
    value, drift, jacobian = problem.linearise(start.time, y, length)
    # Hairer & Wanner's form times gamma h, so that a step of length 0 divides by nothing.
    solve = Factors.of(solver.linear_solver, jnp.eye(y.size, dtype=y.dtype) - _GAMMA * jacobian)

    def stage(before: Stages, row: tuple[Array, ...]) -> tuple[Stages, None]:
        index, state_row, right_row, time, share = row
        right = problem.increment(start.time + time * length, y + product(state_row, before))
        right = right + product(right_row, before) + share * drift
        return before.at[index].set(solve(_GAMMA * right)), None

    # A loop, so that the vector field is compiled once.
    rows = (
        jnp.arange(8),
        jnp.asarray(_A, y.dtype),
        jnp.asarray(_C, y.dtype),
        jnp.asarray(_TIMES, length.dtype),
        jnp.asarray(_DRIFTS, y.dtype),
    )
    stages, _ = jax.lax.scan(stage, jnp.zeros((8, y.size), y.dtype), rows)
    # The last stage is the difference to the embedded method.
    increment = product(_A[-1], stages) + stages[-1]
    error = _error(*as_constant((problem, start, solve, stages)))

    possible = all_finite(value, drift, jacobian)
    okay = all_finite(increment, error)
    result = lx.RESULTS.where(okay, lx.RESULTS.successful, lx.RESULTS.singular)
    outcome = Outcome(error, possible, okay, diffrax.RESULTS.promote(result), None)
    return (increment, product(_DENSE, stages)), outcome


def _error(problem: Problem, start: Start, solve: Factors, stages: Stages) -> Vector:
    """The embedded estimate, or what the polynomial is off by between the ends if that is more.

    The ends alone say too little. Where a stiff component only follows its input, their error
    is divided by the stiffness and that of the polynomial is not; and after a step that was much
    too long for a linearisation, the matrix divides the embedded estimate by a stiffness that
    was left behind.
    """

    @jax.vmap
    def between(time: Scalar, value_row: Array, slope_row: Array) -> Vector:
        state = start.y + product(value_row, stages)
        increment = problem.increment(start.time + time * start.length, state)
        return solve(_GAMMA * (increment - product(slope_row, stages)))

    rows = jnp.asarray(_VALUES, start.y.dtype), jnp.asarray(_SLOPES, start.y.dtype)
    defects = between(jnp.asarray(_BETWEEN, start.length.dtype), *rows)
    return jnp.max(jnp.abs(jnp.concatenate([stages[-1:], defects])), axis=0)
