from collections.abc import Callable
from typing import Any, ClassVar

import diffrax
import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import lineax as lx
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Float, PyTree, Scalar

from .._checks import check_integer
from ._interpolation import BubbleInterpolation
from ._shared import check_fields, Matrix, problem_of, product, Vector

# Hairer & Wanner II, Table IV.5.6 and Section IV.8.
_ROOT = np.sqrt(6)
TIMES = np.array([(4 - _ROOT) / 10, (4 + _ROOT) / 10, 1])
_WEIGHTS = np.array(
    [
        [(88 - 7 * _ROOT) / 360, (296 - 169 * _ROOT) / 1800, (-2 + 3 * _ROOT) / 225],
        [(296 + 169 * _ROOT) / 1800, (88 + 7 * _ROOT) / 360, (-2 - 3 * _ROOT) / 225],
        [(16 - _ROOT) / 36, (16 + _ROOT) / 36, 1 / 9],
    ]
)
INVERSE = np.linalg.inv(_WEIGHTS)
ERROR = np.array([-13 - 7 * _ROOT, -13 + 7 * _ROOT, -1]) / 3


def _diagonalised() -> tuple[Any, ...]:
    """The real and a complex eigenvalue of the inverse of the weights; their eigenvectors; and
    their rows of the inverse of the matrix of eigenvectors."""
    values, vectors = np.linalg.eig(INVERSE)
    rows = np.linalg.inv(vectors)
    real, pair = np.argmin(np.abs(np.imag(values))), np.argmax(np.imag(values))
    # The eigenvector of the real eigenvalue is real up to a factor, which cancels.
    phase = vectors[0, real] / abs(vectors[0, real])
    return (
        float(values[real].real),
        complex(values[pair]),
        (vectors[:, real] / phase).real,
        vectors[:, pair],
        (rows[real] * phase).real,
        rows[pair],
    )


REAL, PAIR, REAL_COLUMN, PAIR_COLUMN, REAL_ROW, PAIR_ROW = _diagonalised()


def _bubble() -> np.ndarray:
    """From the stages to the coefficients of their interpolation, less its chord."""
    s = TIMES[:2]
    slopes = np.array([[1 / s[0], 0, -1], [0, 1 / s[1], -1]]) / (1 - s)[:, None]
    return np.linalg.solve(np.stack([np.ones(2), s], axis=1), slopes)


_BUBBLE = _bubble()


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

    ??? cite "Reference"

        Hairer, Wanner, *Solving Ordinary Differential Equations II*, Section IV.8.
    """

    rtol: Any
    atol: Any
    norm: Callable[[PyTree], Scalar] = optx.rms_norm
    kappa: float = 1e-2
    full: bool = eqx.field(default=False, static=True)

    def init(
        self, fn: Any, y: Any, args: Any, options: Any, f_struct: Any, aux_struct: Any, tags: Any
    ) -> _NewtonState:
        if "update" not in options:
            raise ValueError("`RadauNewton` solves the stages of `RadauIIA5` only.")
        dtype = jnp.result_type(*jax.tree.leaves(y))
        infinite = jnp.array(jnp.inf, dtype)
        return _NewtonState(infinite, infinite, jnp.array(0))

    def step(
        self, fn: Any, y: Any, args: Any, options: Any, state: _NewtonState, tags: Any
    ) -> tuple[Any, _NewtonState, Any]:
        residual, aux = fn(y, args)
        start = options["start"]
        stack = jax.vmap(lambda stage: jfu.ravel_pytree(stage)[0])
        unstack = jax.vmap(jfu.ravel_pytree(start)[1])
        update = unstack(options["update"](y, stack(residual)))
        new_y = jax.tree.map(jnp.subtract, y, update)

        def scaled(update: Array, start: Array, stage: Array) -> Array:
            size = jnp.maximum(jnp.abs(start), jnp.abs(start + stage))
            rounding = 10 * jnp.finfo(size.dtype).eps * size
            return update / jnp.maximum(self.atol + self.rtol * size, rounding / self.kappa)

        size = self.norm(jax.tree.map(scaled, update, start, new_y))
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
        # A refused step is differentiated as well, and must not raise an error then.
        okay = result == optx.RESULTS.successful
        return jax.tree.map(lambda x: jnp.where(okay, x, 0), y), aux, {}


class _Simplified(eqx.Module):
    """Solves for an update of the stages, with the Jacobian of the start for that of each."""

    linear_solver: lx.AbstractLinearSolver
    real: PyTree
    pair: PyTree

    def __init__(self, linear_solver: lx.AbstractLinearSolver, jacobian: Matrix):
        self.linear_solver = linear_solver
        eye = jnp.eye(jacobian.shape[0], dtype=jacobian.dtype)
        self.real = linear_solver.init(lx.MatrixLinearOperator(REAL * eye - jacobian), {})
        self.pair = linear_solver.init(lx.MatrixLinearOperator(PAIR * eye - jacobian), {})

    def __call__(self, stages: PyTree, right: Stages) -> Stages:
        real = self.solve_real(product(REAL_ROW, right))
        right = right.astype(jnp.result_type(right.dtype, jnp.complex64))
        pair, _, _ = self.linear_solver.compute(self.pair, product(PAIR_ROW, right), {})
        real = jnp.outer(jnp.asarray(REAL_COLUMN, real.dtype), real)
        return real + 2 * jnp.outer(jnp.asarray(PAIR_COLUMN, pair.dtype), pair).real

    def solve_real(self, right: Vector) -> Vector:
        return self.linear_solver.compute(self.real, right, {})[0]


class _Full(eqx.Module):
    """The same with the Jacobian of every stage."""

    linear_solver: lx.AbstractLinearSolver
    jacobians: Callable[[PyTree], Float[Array, "3 n n"]]

    def __call__(self, stages: PyTree, right: Stages) -> Stages:
        jacobians = self.jacobians(stages)
        eye = np.eye(right.shape[1])
        matrix = jnp.asarray(np.einsum("ij,ab->iajb", INVERSE, eye), right.dtype)
        matrix -= jnp.einsum("ij,iab->iajb", np.eye(3, dtype=right.dtype), jacobians)
        operator = lx.MatrixLinearOperator(matrix.reshape(right.size, right.size))
        state = self.linear_solver.init(operator, {})
        return self.linear_solver.compute(state, right.ravel(), {})[0].reshape(right.shape)


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
    collocation polynomial. The error is estimated against an embedded method of order 3, and
    filtered twice by $(\gamma_0 I - h J)^{-1}$ so that components that have decayed do not
    count. Newton's method starts from the polynomial of the step before; if it fails, the step
    is refused.

    **Arguments:**

    - `root_finder`: by default [`memjax.RadauNewton`][] with the tolerances of the step
        size controller, `diffrax.with_stepsize_controller_tols(RadauNewton)()`. Where Jacobians
        vary fast within a step, pass `...(full=True)`. Any Optimistix root finder will do; others
        differentiate the stages by themselves, and do not use `jacobian`.
    - `root_find_max_steps`: the number of iterations after which a step is refused.
    - `linear_solver`: the Lineax solver of the linear systems, one of them complex.
    - `jacobian`: a function `(t, y, args)` that returns $\partial f / \partial y$ as a matrix of
        shape `(n, n)`, for a state of `n` numbers in the order of
        `jax.flatten_util.ravel_pytree`. By default the vector field is differentiated forwards.
        An approximation costs iterations, not accuracy.

    **Raises:** `TypeError` for a complex state and for arguments of the wrong kind; `ValueError`
    for a Jacobian of the wrong shape, and for a given one with a term whose control is not time.

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

    root_finder: optx.AbstractRootFinder = diffrax.with_stepsize_controller_tols(RadauNewton)()
    root_find_max_steps: int = 10
    linear_solver: lx.AbstractLinearSolver = lx.LU()
    jacobian: Callable[..., Any] | None = None

    term_structure: ClassVar = diffrax.AbstractTerm
    interpolation_cls: ClassVar[Callable[..., BubbleInterpolation]] = BubbleInterpolation

    def __check_init__(self):
        check_fields(self.jacobian, self.linear_solver)
        check_integer("root_find_max_steps", self.root_find_max_steps)

    def order(self, terms: PyTree[diffrax.AbstractTerm]) -> int:
        return 5

    def error_order(self, terms: PyTree[diffrax.AbstractTerm]) -> int:
        return 4

    def init(
        self,
        terms: diffrax.AbstractTerm,
        t0: Scalar,
        t1: Scalar,
        y0: PyTree[Array],
        args: PyTree,
    ) -> _Past:
        flat, _ = jfu.ravel_pytree(y0)
        length = jnp.full_like(jnp.asarray(t1 - t0), jnp.inf)
        return _Past(jnp.zeros((3, flat.size), flat.dtype), length)

    def step(
        self,
        terms: diffrax.AbstractTerm,
        t0: Scalar,
        t1: Scalar,
        y0: PyTree[Array],
        args: PyTree,
        solver_state: _Past,
        made_jump: Bool[Array, ""],
    ) -> tuple[PyTree[Array], PyTree[Array], dict[str, PyTree], _Past, diffrax.RESULTS]:
        problem = problem_of(terms, t0, t1, y0, args, self.jacobian)
        start = problem.ravel(y0)
        length = jnp.asarray(t1 - t0)
        times = t0 + length * TIMES.astype(length.dtype)
        stack, unstack = jax.vmap(problem.ravel), jax.vmap(problem.unravel)

        def residual(stages: PyTree, _: None) -> PyTree:
            increments = stack(stages)
            slopes = jax.vmap(problem.increment)(times, start + increments)
            return unstack(product(INVERSE, increments) - slopes)

        # What follows from here to the stages steers the iteration, and not where it ends.
        value, _, jacobian = jax.lax.stop_gradient(problem.linearise(t0, start, length))
        simplified = _Simplified(self.linear_solver, jacobian)
        guess = unstack(jnp.where(made_jump, 0, _extrapolated(solver_state, length)))
        if isinstance(self.root_finder, RadauNewton) and self.root_finder.full:
            jacobians = lambda stages: jax.vmap(problem.jacobian_at)(times, start + stack(stages))
            update = _Full(self.linear_solver, eqx.filter_closure_convert(jacobians, guess))
        else:
            update = simplified
        found = optx.root_find(
            residual,
            self.root_finder,
            guess,
            options={"start": y0, "update": update},
            max_steps=self.root_find_max_steps,
            adjoint=optx.ImplicitAdjoint(self.linear_solver),
            throw=False,
        )
        stages = stack(found.value)

        # Hairer & Wanner evaluate the vector field at `start + error` for the second filter.
        # The Jacobian serves as well, at the price of another solve.
        error = value + product(ERROR, jax.lax.stop_gradient(stages))
        error = REAL * simplified.solve_real(simplified.solve_real(error))
        error = jnp.where(found.result == optx.RESULTS.successful, error, jnp.inf)

        dense = {
            "y0": y0,
            "increment": problem.unravel(stages[2]),
            "bubble": unstack(product(_BUBBLE, stages)),
        }
        y1 = problem.unravel(start + stages[2])
        past = jax.lax.stop_gradient(_Past(stages, length))
        return y1, problem.unravel(error), dense, past, diffrax.RESULTS.promote(found.result)

    def func(
        self, terms: diffrax.AbstractTerm, t0: Scalar, y0: PyTree[Array], args: PyTree
    ) -> PyTree[Array]:
        return terms.vf(t0, y0, args)


def _extrapolated(past: _Past, length: Scalar) -> Stages:
    """The stages on the polynomial of the last step."""
    ratio = (length / past.length).astype(past.stages.dtype)
    s = 1 + ratio * TIMES.astype(ratio.dtype)[:, None]
    first, second = product(_BUBBLE, past.stages)
    end = past.stages[2]
    return (s - 1) * end + s * (1 - s) * (first + s * second)
