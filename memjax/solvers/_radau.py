from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Complex, Float, PyTree, Real, Scalar

from .._checks import (
    as_float_array,
    as_nonnegative,
    check_callable,
    check_flag,
    check_instance,
    check_integer,
    check_nonnegative,
    check_positive,
    check_scalar,
)
from .._typing import ScalarLike
from ..numerics import as_constant
from ._interpolation import BubbleInterpolation, rows_at
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


class RadauFormula(NamedTuple):
    """The three-stage Radau IIA formula, in the form in which its stages are solved for.

    With the increments $z$ of the stages, a step solves $A^{-1} z = h f(y_0 + z)$. The inverse of
    the weights $A$ has one real eigenvalue and a complex pair, so that in the basis of its
    eigenvectors Newton's system of size $3n$ becomes a real and a complex one of size $n$.

    **Attributes:**

    - `times`: where the stages are, as shares of the step.
    - `inverse`: $A^{-1}$.
    - `error`: the weights of the stages in the estimate of the error.
    - `real`, `pair`: the real eigenvalue of $A^{-1}$, and the one of the pair whose imaginary part
        is positive.
    - `real_column`, `pair_column`: their eigenvectors.
    - `real_row`, `pair_row`: their rows of the inverse of the matrix of eigenvectors.
    """

    times: Float[np.ndarray, "3"]
    inverse: Float[np.ndarray, "3 3"]
    error: Float[np.ndarray, "3"]
    real: float
    pair: complex
    real_column: Float[np.ndarray, "3"]
    pair_column: Complex[np.ndarray, "3"]
    real_row: Float[np.ndarray, "3"]
    pair_row: Complex[np.ndarray, "3"]


def _formula() -> RadauFormula:
    # Hairer & Wanner II, Table IV.5.6 and Section IV.8.
    root = np.sqrt(6)
    weights = np.array(
        [
            [(88 - 7 * root) / 360, (296 - 169 * root) / 1800, (-2 + 3 * root) / 225],
            [(296 + 169 * root) / 1800, (88 + 7 * root) / 360, (-2 - 3 * root) / 225],
            [(16 - root) / 36, (16 + root) / 36, 1 / 9],
        ]
    )
    inverse = np.linalg.inv(weights)
    values, vectors = np.linalg.eig(inverse)
    rows = np.linalg.inv(vectors)
    real, pair = np.argmin(np.abs(np.imag(values))), np.argmax(np.imag(values))
    # The eigenvector of the real eigenvalue is real up to a factor, which cancels.
    phase = vectors[0, real] / abs(vectors[0, real])
    return RadauFormula(
        times=np.array([(4 - root) / 10, (4 + root) / 10, 1]),
        inverse=inverse,
        error=np.array([-13 - 7 * root, -13 + 7 * root, -1]) / 3,
        real=float(values[real].real),
        pair=complex(values[pair]),
        real_column=(vectors[:, real] / phase).real,
        pair_column=vectors[:, pair],
        real_row=(rows[real] * phase).real,
        pair_row=rows[pair],
    )


RADAU = _formula()


def _bubble() -> np.ndarray:
    """From the stages to the coefficients of their interpolation, less its chord."""
    s = RADAU.times[:2]
    slopes = np.array([[1 / s[0], 0, -1], [0, 1 / s[1], -1]]) / (1 - s)[:, None]
    return np.linalg.solve(np.stack([np.ones(2), s], axis=1), slopes)


_BUBBLE = _bubble()

# Where the polynomial is compared with the equation: at the start, and between the stages where
# the interpolation of a smooth function is furthest from it.
_PLACES = np.append(
    0, np.sort(np.polynomial.Polynomial.fromroots([0, *RADAU.times]).deriv().roots())[1:]
)
_VALUES, _SLOPES = rows_at(_PLACES, np.array([0.0, 0.0, 1.0]), _BUBBLE)
# At the start its value is right and only its slope is off, and by more than elsewhere. This
# weight makes up for it where nothing is stiff.
_SIZES = np.abs(np.polynomial.Polynomial.fromroots(RADAU.times)(_PLACES))
_WEIGHT = np.array([_SIZES[1] / _SIZES[0], 1, 1])


Stages = Float[Array, "3 n"]


class _NewtonState(eqx.Module):
    size: Scalar
    previous_size: Scalar
    step: Scalar


class RadauNewton(optx.AbstractRootFinder):
    r"""Newton's method for the three stages of [`memjax.RadauIIA5`][] together.

    By default every iteration uses the Jacobian of the start of the step, for which the
    stages decouple into a real and a complex system of the size of the state. With `full=True`
    each iteration evaluates the Jacobian of every stage, and solves one real system of three
    times the size.

    It stops when the last update, or the estimate of the error that is left, is below `kappa`
    times the tolerance of the step, or below the rounding of the state; and gives up as soon as
    updates grow.

    **Arguments:**

    - `rtol`, `atol`, `norm`: the tolerances and the norm of updates, as of the step size
        controller. `diffrax.with_stepsize_controller_tols(RadauNewton)(...)` takes them from it.
    - `kappa`: the share of the tolerance at which to stop.
    - `full`: whether to evaluate the Jacobian at every stage of every iteration.

    **Raises:** `ValueError` and `TypeError` for negative tolerances and arguments of the wrong
    kind, and where anything but the stages of [`memjax.RadauIIA5`][] is to be solved.

    ??? cite "Reference"

        Hairer, Wanner, *Solving Ordinary Differential Equations II*, Section IV.8.
    """

    rtol: Any
    atol: Any
    norm: Callable[[PyTree], Scalar]
    kappa: Any
    full: bool = eqx.field(static=True)

    def __init__(
        self,
        rtol: Any,
        atol: Any,
        norm: Callable[[PyTree], Scalar] = optx.rms_norm,
        kappa: Real[ScalarLike, ""] = 1e-2,
        full: bool = False,
    ) -> None:
        # `diffrax.with_stepsize_controller_tols` stands in for what is to come by infinity.
        if rtol is not np.inf:
            as_nonnegative("rtol", rtol, "pass a tolerance such as 1e-8")
        if atol is not np.inf:
            as_float_array("atol", atol)
            check_nonnegative("atol", atol, "pass a tolerance such as 1e-8")
        check_callable("norm", norm, "pass a norm of PyTrees such as optimistix.rms_norm")
        # Not converted: there must be no JAX operation when memjax is imported.
        check_positive("kappa", kappa, "pass a share of the tolerance such as 0.01")
        check_scalar("kappa", kappa)
        check_flag("full", full)
        self.rtol, self.atol, self.norm, self.kappa, self.full = rtol, atol, norm, kappa, full

    def init(
        self, fn: Any, y: Any, args: Any, options: Any, f_struct: Any, aux_struct: Any, tags: Any
    ) -> _NewtonState:
        if "correct" not in options:
            raise ValueError(
                "`RadauNewton` solves the stages of `RadauIIA5` only; pass "
                "optimistix.Newton(rtol=..., atol=...) elsewhere."
            )
        infinite = jnp.array(jnp.inf, jnp.result_type(*jax.tree.leaves(y)))
        return _NewtonState(infinite, infinite, jnp.array(0))

    def step(
        self, fn: Any, y: Any, args: Any, options: Any, state: _NewtonState, tags: Any
    ) -> tuple[Any, _NewtonState, Any]:
        residual, aux = fn(y, args)
        coordinates, start = options["coordinates"], options["start"]
        pack, unpack = jax.vmap(coordinates.pack), jax.vmap(coordinates.parts)
        update = unpack(options["correct"](pack(y), pack(residual)))
        new_y = jax.tree.map(jnp.subtract, y, update)
        join = coordinates.join

        def scaled(update: Array, start: Array, stage: Array) -> Array:
            size = jnp.maximum(jnp.abs(start), jnp.abs(start + stage))
            rounding = 10 * jnp.finfo(size.dtype).eps * size
            return update / jnp.maximum(self.atol + self.rtol * size, rounding / self.kappa)

        # The tolerances may be of any precision, and `atol` of the shape of the state.
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            size = self.norm(jax.tree.map(scaled, join(update), start, join(new_y)))
        size = size.astype(state.size.dtype)
        return new_y, _NewtonState(size, state.size, state.step + 1), aux

    def terminate(
        self, fn: Any, y: Any, args: Any, options: Any, state: _NewtonState, tags: Any
    ) -> tuple[Array, optx.RESULTS]:
        rate = state.size / state.previous_size
        left = state.size * rate / (1 - rate)
        second = state.step >= 2
        converged = (state.size <= self.kappa) | (second & (rate < 1) & (left <= self.kappa))
        stuck = (second & (rate >= 1)) | ~jnp.isfinite(state.size)
        diverged = (state.step >= 1) & ~converged & stuck
        result = optx.RESULTS.where(
            diverged, optx.RESULTS.nonlinear_divergence, optx.RESULTS.successful
        )
        return converged | diverged, result

    def postprocess(
        self, fn: Any, y: Any, aux: Any, args: Any, options: Any, state: Any, tags: Any, result: Any
    ) -> tuple[Any, Any, dict[str, Any]]:
        return y, aux, {}


# What `diffrax.with_stepsize_controller_tols` puts in the place of tolerances, for Diffrax to find.
_FROM_CONTROLLER = diffrax.with_stepsize_controller_tols(RadauNewton)()


class _Simplified(eqx.Module):
    """Solves for an update of the stages, with the Jacobian of the start for that of each."""

    real: Factors
    pair: Factors

    @staticmethod
    def of(linear_solver: lx.AbstractLinearSolver, jacobian: Matrix) -> "_Simplified":
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
        return 4

    def init(
        self,
        terms: diffrax.AbstractTerm,
        t0: Scalar | float,
        t1: Scalar | float,
        y0: PyTree[Array],
        args: PyTree,
    ) -> _Past:
        _, _, start = problem_of(terms, t0, t1, y0, args, None)
        stages = jnp.zeros((3, start.y.size), start.y.dtype)
        return _Past(stages, jnp.full_like(start.length, jnp.inf))

    def step(
        self,
        terms: diffrax.AbstractTerm,
        t0: Scalar | float,
        t1: Scalar | float,
        y0: PyTree[Array],
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
        return finish(coordinates, start, stages[2], product(_BUBBLE, stages), outcome)

    def func(
        self, terms: diffrax.AbstractTerm, t0: Scalar | float, y0: PyTree[Array], args: PyTree
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
    increments = product(_VALUES, stages)
    defects = _of_each(problem.increment, start, _PLACES, increments) - product(_SLOPES, stages)
    weight = jnp.asarray(_WEIGHT, defects.dtype)[:, None]
    return jnp.max(weight * jnp.abs(jax.vmap(solve)(defects)), axis=0)


def _extrapolated(past: _Past, length: Scalar) -> Stages:
    """The stages on the polynomial of the last step."""
    ratio = (length / past.length).astype(past.stages.dtype)
    s = 1 + ratio * jnp.asarray(RADAU.times, ratio.dtype)[:, None]
    bubble = product(_BUBBLE, past.stages)
    return (s - 1) * past.stages[2:] + s * (1 - s) * (bubble[:1] + s * bubble[1:])
