from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from .._checks import check_instance, check_integer
from .._typing import ArrayLike
from ..numerics import as_constant
from ._interpolation import BubbleInterpolation
from ._radau_formula import BUBBLE, PLACES, RADAU, SLOPES, VALUES, WEIGHT
from ._radau_newton import RadauNewton
from ._shared import (
    all_finite,
    attempt,
    check_fields,
    Coordinates,
    Factors,
    finish,
    Matrix,
    Outcome,
    Problem,
    problem_of,
    product,
    split_by_tangents,
    Start,
    Vector,
)

Stages = Float[Array, "3 n"]

# What `diffrax.with_stepsize_controller_tols` puts in the place of tolerances, for Diffrax to find.
_FROM_CONTROLLER = diffrax.with_stepsize_controller_tols(RadauNewton)()


class _Simplified(eqx.Module):
    """Solves for an update of the stages, with the Jacobian of the start for that of each."""

    real: Factors
    pair: Factors

    @staticmethod
    def of(linear_solver: lx.AbstractLinearSolver, jacobian: Matrix) -> "_Simplified":
        # In the eigenvectors of A^{-1} the system of size 3n falls into a real and a complex one of
        # size n. Elimination costs n^3 products, complex ones four real ones each: 5 n^3 in place
        # of 27 n^3.
        eye = jnp.eye(jacobian.shape[0], dtype=jacobian.dtype)
        imaginary = lax.complex(jnp.zeros_like(jacobian), RADAU.pair.imag * eye)
        pair = (RADAU.pair.real * eye - jacobian).astype(imaginary.dtype) + imaginary
        return _Simplified(
            Factors.of(linear_solver, RADAU.real * eye - jacobian), Factors.of(linear_solver, pair)
        )

    def __call__(self, stages: Stages, right: Stages) -> Stages:
        real = self.real(product(RADAU.real_row, right))
        rows = product(np.real(RADAU.pair_row), right), product(np.imag(RADAU.pair_row), right)
        pair = self.pair(lax.complex(*rows))
        # The conjugate eigenvalue adds the conjugate: twice the real part.
        twice = 2 * RADAU.pair_column
        return (
            jnp.outer(jnp.asarray(RADAU.real_column, real.dtype), real)
            + jnp.outer(jnp.asarray(np.real(twice), real.dtype), pair.real)
            - jnp.outer(jnp.asarray(np.imag(twice), real.dtype), pair.imag)
        )


class _Full(eqx.Module):
    """The same with the Jacobian of every stage."""

    linear_solver: lx.AbstractLinearSolver
    problem: Problem
    start: Start

    def __call__(self, stages: Stages, right: Stages) -> Stages:
        jacobians = _of_each(self.problem.jacobian_at, self.start, RADAU.times, stages)
        dtype, eye = right.dtype, np.eye(right.shape[1])
        matrix = jnp.asarray(np.einsum("ij,ab->iajb", RADAU.inverse, eye), dtype)
        matrix -= jnp.einsum("ij,iab->iajb", jnp.eye(3, dtype=dtype), jacobians)
        solve = Factors.of(self.linear_solver, matrix.reshape(right.size, right.size))
        return solve(right.ravel()).reshape(right.shape)


class _Past(eqx.Module):
    """The stages of the last step taken, and its length: infinite before the first."""

    stages: Stages
    length: Scalar


class RadauIIA5(diffrax.AbstractImplicitSolver, diffrax.AbstractAdaptiveSolver):
    r"""The Radau IIA method of order 5, for the stiffest of differential equations.

    Three stages are solved for together, by Newton's method:

    $$Y_i = y_0 + h \sum_{j=1}^3 a_{ij}\, f(t_0 + c_j h, Y_j), \qquad y_1 = Y_3.$$

    The method is collocation at the Radau points, stiffly accurate and L-stable, and of order 3
    in every stage, so that its order suffers little from stiffness. Its dense output is the
    collocation polynomial $p$. The error is estimated by its defect, filtered once,
    $(\gamma_0 I - h J)^{-1} (h f(t, p(t)) - h p'(t))$: at the start, where it is the estimate of
    Hairer & Wanner, and between the stages, where the polynomial is furthest from a smooth
    solution. Newton's method starts from the polynomial of the step before; if it fails, the step
    is refused.

    A complex state is taken apart into real and imaginary parts, in which the vector field need
    not be holomorphic; its matrices are then twice as large.

    **Arguments:**

    - `root_finder`: by default [`memjax.RadauNewton`][] with the tolerances of the step
        size controller, `diffrax.with_stepsize_controller_tols(RadauNewton)()`. Where Jacobians
        vary fast within a step, pass `...(full=True)`. Any Optimistix root finder will do; others
        differentiate the stages by themselves, and do not use `jacobian`. Where there is no
        step size controller to take tolerances from, pass `RadauNewton(rtol=1e-8, atol=1e-10)`.
    - `root_find_max_steps`: the number of iterations after which a step is refused.
    - `linear_solver`: the Lineax solver of the linear systems, one of them complex: a direct one
        that takes any matrix.
    - `jacobian`: a function `(t, y, args)` that returns $\partial f / \partial y$ as a matrix of
        shape `(n, n)`, for a state of `n` real numbers in the order of
        `jax.flatten_util.ravel_pytree`, where a complex leaf counts as its real parts followed by
        its imaginary parts. By default the vector field is differentiated forwards. An
        approximation costs iterations, not accuracy.

    **Raises:** `TypeError` and `ValueError` for arguments of the wrong kind; `ValueError` for a
    Jacobian of the wrong shape, for a given one with a term whose control is not time, and where
    `root_finder` has no tolerances.

    !!! Example

        ```python
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(vector_field), mj.RadauIIA5(), t0=0, t1=100, dt0=None, y0=y0,
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
        )
        ```

    ??? cite "Reference"

        Hairer, Wanner, *Solving Ordinary Differential Equations II*, Sections IV.5 and IV.8.
    """

    # Diffrax declares these two as class variables, though its own solvers make fields of them.
    root_finder: optx.AbstractRootFinder = _FROM_CONTROLLER  # pyright: ignore[reportIncompatibleVariableOverride]
    root_find_max_steps: int = 10  # pyright: ignore[reportIncompatibleVariableOverride]
    linear_solver: lx.AbstractLinearSolver = lx.LU()
    jacobian: Callable[..., Any] | None = None

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., BubbleInterpolation]] = BubbleInterpolation

    def __check_init__(self) -> None:
        check_fields(self.jacobian, self.linear_solver)
        check_instance(
            "root_finder",
            self.root_finder,
            optx.AbstractRootFinder,
            "an Optimistix root finder",
            "pass for example memjax.RadauNewton(rtol=1e-8, atol=1e-10)",
        )
        check_integer("root_find_max_steps", self.root_find_max_steps)

    def order(self, terms: PyTree[diffrax.AbstractTerm]) -> int:
        return 5

    def error_order(self, terms: PyTree[diffrax.AbstractTerm]) -> int:
        # That of the cubic polynomial, which is off by the fourth power of the step.
        return 4

    def init(
        self,
        terms: diffrax.AbstractTerm,
        t0: Scalar | float,
        t1: Scalar | float,
        y0: PyTree[ArrayLike],
        args: PyTree,
    ) -> _Past:
        _, _, start = problem_of(terms, t0, t1, y0, args, None)
        # An infinite length makes the extrapolation 0.
        stages = jnp.zeros((3, start.y.size), start.y.dtype)
        return _Past(stages, jnp.full_like(start.length, jnp.inf))

    def step(
        self,
        terms: diffrax.AbstractTerm,
        t0: Scalar | float,
        t1: Scalar | float,
        y0: PyTree[ArrayLike],
        args: PyTree,
        solver_state: _Past,
        made_jump: bool | Bool[Array, ""],
    ) -> tuple[PyTree[Array], PyTree[Array], dict[str, PyTree], _Past, diffrax.RESULTS]:
        if self.root_finder.rtol is _FROM_CONTROLLER.rtol:
            raise ValueError(
                "`root_finder` must have tolerances where there is no step size controller to take "
                "them from; pass RadauIIA5(root_finder=RadauNewton(rtol=1e-8, atol=1e-10))."
            )
        problem, coordinates, start = problem_of(terms, t0, t1, y0, args, self.jacobian)
        guess = jnp.where(made_jump, 0, _extrapolated(solver_state, start.length))
        stages, outcome = attempt(_attempt, (self, coordinates, problem, start, guess))
        return finish(coordinates, start, stages[2], product(BUBBLE, stages), outcome)

    def func(
        self, terms: diffrax.AbstractTerm, t0: Scalar | float, y0: PyTree[ArrayLike], args: PyTree
    ) -> PyTree[Array]:
        return terms.vf(t0, y0, args)


def _attempt(
    solver: RadauIIA5, coordinates: Coordinates, problem: Problem, start: Start, guess: Stages
) -> tuple[Stages, Outcome]:
    moving = problem, start
    # What follows finds the stages; their derivatives are those of an implicit function.
    solver, problem, start, guess = as_constant((solver, problem, start, guess))
    value, _, jacobian = problem.linearise(start.time, start.y, start.length)
    simplified = _Simplified.of(solver.linear_solver, jacobian)
    if isinstance(solver.root_finder, RadauNewton) and solver.root_finder.full:
        correct = _Full(solver.linear_solver, problem, start)
    else:
        correct = simplified

    # In the structure of the state, for root finders with a norm of their own.
    pack, unpack = jax.vmap(coordinates.pack), jax.vmap(coordinates.parts)
    found = optx.root_find(
        lambda stages, _: unpack(_residual(problem, start, pack(stages))),
        solver.root_finder,
        unpack(guess),
        options={
            "coordinates": coordinates,
            "start": jax.vmap(coordinates.state)(start.y[None]),
            "correct": correct,
        },
        max_steps=solver.root_find_max_steps,
        throw=False,
    )
    stages = pack(found.value)
    # The filter has the matrix of the real system, which is factorised already.
    error = _error(problem, start, simplified.real, stages)

    possible = all_finite(value, jacobian)
    okay = (found.result == optx.RESULTS.successful) & all_finite(stages, error)
    result = lx.RESULTS.where(all_finite(stages, error), lx.RESULTS.successful, lx.RESULTS.singular)
    result = optx.RESULTS.where(
        found.result == optx.RESULTS.successful, optx.RESULTS.promote(result), found.result
    )
    past = _Past(stages, start.length)
    outcome = Outcome(error, possible, okay, diffrax.RESULTS.promote(result), past)
    return _implicit(stages, moving, solver.linear_solver), outcome


def _of_each(function: Callable, start: Start, times: np.ndarray, increments: Array) -> Array:
    """The function at several times of the step, and where increments lead to by then."""
    shares = jnp.asarray(times, start.length.dtype)
    return jax.vmap(function)(start.time + start.length * shares, start.y[None] + increments)


def _residual(problem: Problem, start: Start, stages: Stages) -> Stages:
    return product(RADAU.inverse, stages) - _of_each(problem.increment, start, RADAU.times, stages)


@eqx.filter_custom_jvp
def _implicit(
    stages: Stages, equation: tuple[Problem, Start], linear_solver: lx.AbstractLinearSolver
) -> Stages:
    """The stages, as a function of the equation that they solve."""
    return stages


@_implicit.def_jvp
def _implicit_jvp(primals: tuple, tangents: tuple) -> tuple[Stages, Stages]:
    stages, equation, linear_solver = primals
    _, moving, _ = tangents
    stages = _implicit(*primals)
    constant, variable = split_by_tangents(equation, moving)

    # F(Z, p) = 0 gives dZ = -F_Z^{-1} F_p dp. It needs no derivatives of the iteration.
    def residual(variable: PyTree) -> Stages:
        problem, start = eqx.combine(variable, constant)
        return _residual(problem, start, stages)

    _, change = jax.jvp(residual, (variable,), (moving,))
    problem, start = equation
    # A given Jacobian need not be exact.
    correct = _Full(linear_solver, Problem(problem.increment, None), start)
    return stages, -correct(stages, change)


def _error(problem: Problem, start: Start, solve: Factors, stages: Stages) -> Vector:
    r"""How far the polynomial of the step is from the equation, filtered.

    The defect at the start is the estimate of Hairer & Wanner. Alone it says too little, or too
    much: where a stiff component only follows its input, it is divided by the stiffness and the
    error between the ends is not; it also holds all of what the start itself is off by, which
    the step is about to damp. Filtered twice it would be divided by the stiffness once more, and
    with it the error at the end.
    """
    # In units of the step: h f(p(s)) - dp/ds.
    increments = product(VALUES, stages)
    defects = _of_each(problem.increment, start, PLACES, increments) - product(SLOPES, stages)
    weight = jnp.asarray(WEIGHT, defects.dtype)[:, None]
    return jnp.max(weight * jnp.abs(jax.vmap(solve)(defects)), axis=0)


def _extrapolated(past: _Past, length: Scalar) -> Stages:
    """The stages on the polynomial of the last step."""
    ratio = (length / past.length).astype(past.stages.dtype)
    s = 1 + ratio * jnp.asarray(RADAU.times, ratio.dtype)[:, None]
    bubble = product(BUBBLE, past.stages)
    # p(s) - p(1), since the step starts from p(1).
    return (s - 1) * past.stages[2:] + s * (1 - s) * (bubble[:1] + s * bubble[1:])
