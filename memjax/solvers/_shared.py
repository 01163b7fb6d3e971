"""What the stiff solvers share: coordinates, the problem of a step, and what becomes of it."""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, PyTree, Scalar

from .._checks import check_callable, check_instance
from ..numerics import as_constant

Vector = Float[Array, " n"]
Matrix = Float[Array, "n n"]


def product(weights: np.ndarray | Array, vectors: Array) -> Array:
    """A product in full precision, which on accelerators is not the default."""
    return jnp.matmul(jnp.asarray(weights, vectors.dtype), vectors, precision="highest")


def split_by_tangents(primals: PyTree, tangents: PyTree) -> tuple[PyTree, PyTree]:
    """What has no tangent, in the rule of a derivative, and what has."""
    still = jax.tree.map(lambda x: x is None, tangents, is_leaf=lambda x: x is None)
    return eqx.partition(primals, still)


# --- The problem of a step ----------------------------------------------------------------------


class Coordinates(eqx.Module):
    """Between a state and one vector of real numbers, in which the solvers work.

    A complex leaf counts as its real and its imaginary part, one after the other: of a vector
    field that is not holomorphic these have derivatives, while the leaf has none.
    """

    is_complex: PyTree[bool]
    parts: Callable[[Vector], PyTree[Array]]

    @staticmethod
    def of(y: PyTree[Array]) -> "Coordinates":
        is_complex = jax.tree.map(jnp.iscomplexobj, y)
        # Between vectors and the state with every complex leaf as a pair of real ones.
        return Coordinates(is_complex, _ravel(_split(is_complex, y))[1])

    def vector(self, y: PyTree) -> Vector:
        return self.pack(_split(self.is_complex, y))

    def state(self, vector: Vector) -> PyTree[Array]:
        return self.join(self.parts(vector))

    def pack(self, parts: PyTree[Array]) -> Vector:
        return _ravel(parts)[0]

    def join(self, parts: PyTree[Array]) -> PyTree[Array]:
        """A state, or a stack of states, from its parts."""
        one = lambda is_complex, part: jax.lax.complex(*part) if is_complex else part
        return jax.tree.map(one, self.is_complex, parts)


def _split(is_complex: PyTree[bool], y: PyTree) -> PyTree:
    one = lambda is_complex, x: (jnp.real(x), jnp.imag(x)) if is_complex else x
    return jax.tree.map(one, is_complex, y)


def _ravel(tree: PyTree) -> tuple[Vector, Callable]:
    # The leaves of a state may differ in precision.
    with jax.numpy_dtype_promotion("standard"):
        return jfu.ravel_pytree(tree)


class Problem(eqx.Module):
    r"""A step of a differential equation, on vectors and in units of the step.

    The increment $h f(t, y)$ is what Diffrax calls the product of vector field and control.
    Everything that it depends on is a leaf.
    """

    increment: Callable[[Scalar, Vector], Vector]
    jacobian: Callable[[Scalar, Vector], Matrix] | None

    def linearise(self, t: Scalar, y: Vector, rate: Scalar) -> tuple[Vector, Vector, Matrix]:
        r"""The increment, its derivative in time times `rate`, and its Jacobian."""
        if self.jacobian is None:
            # One linearisation for the columns and for the derivative in time.
            value, tangent = jax.linearize(self.increment, t, y)
            columns = jax.vmap(lambda e: tangent(jnp.zeros_like(t), e), out_axes=1)
            return value, tangent(rate, jnp.zeros_like(y)), columns(jnp.eye(y.size, dtype=y.dtype))
        value, drift = jax.jvp(lambda t: self.increment(t, y), (t,), (rate,))
        return value, drift, self.jacobian(t, y)

    def jacobian_at(self, t: Scalar, y: Vector) -> Matrix:
        return self.exact_jacobian_at(t, y) if self.jacobian is None else self.jacobian(t, y)

    def exact_jacobian_at(self, t: Scalar, y: Vector) -> Matrix:
        return jax.jacfwd(self.increment, argnums=1)(t, y)


class Start(eqx.Module):
    """Where a step starts, and how long it is to be."""

    y: Vector
    time: Scalar
    length: Scalar


def problem_of(
    terms: diffrax.AbstractTerm,
    t0: Any,
    t1: Any,
    y0: PyTree,
    args: PyTree,
    jacobian: Callable[..., Any] | None,
) -> tuple[Problem, Coordinates, Start]:
    y0 = jax.tree.map(_inexact, y0)
    coordinates = Coordinates.of(y0)
    y = coordinates.vector(y0)
    t0, t1 = as_time(t0, y), as_time(t1, y)
    control = terms.contr(t0, t1)

    def increment(t: Scalar, y: Vector) -> Vector:
        value = terms.vf_prod(t, coordinates.state(y), args, control)
        return coordinates.vector(value).astype(y.dtype)

    def given(t: Scalar, y: Vector) -> Matrix:
        assert jacobian is not None
        # Backwards in time Diffrax shows its solvers a reflected clock, of which the user's
        # functions know nothing.
        t = t * getattr(terms, "direction", 1)
        matrix = jnp.asarray(jacobian(t, coordinates.state(y), args))
        if matrix.shape != (y.size, y.size):
            raise ValueError(
                f"`jacobian` must return a matrix of shape {(y.size, y.size)} for a state of "
                f"{y.size} numbers, got shape {matrix.shape}; return a row and a column for each "
                "number, complex ones being two."
            )
        if jnp.iscomplexobj(matrix):
            raise TypeError(
                f"`jacobian` must return a real matrix, got dtype {matrix.dtype}; return the "
                "derivatives of real and imaginary parts."
            )
        return (jnp.asarray(control, y.dtype) * matrix.astype(y.dtype)).astype(y.dtype)

    if jacobian is not None and (not eqx.is_array_like(control) or jnp.shape(control) != ()):
        raise ValueError(
            "`jacobian` needs a term whose control is time, as that of `diffrax.ODETerm`; "
            "leave it out for other terms."
        )
    # `attempt` and the implicit stages have rules of their own for derivatives, which do not see
    # what a function closes over.
    close = lambda function: eqx.filter_closure_convert(function, t0, y)
    problem = Problem(close(increment), None if jacobian is None else close(given))
    return problem, coordinates, Start(y, t0, t1 - t0)


def as_time(t: Any, y: Vector) -> Scalar:
    """A time that may be a Python number or an integer where steps are taken by hand."""
    exact = isinstance(t, (int, float)) or not jnp.issubdtype(jnp.result_type(t), jnp.floating)
    return jnp.asarray(t, y.dtype if exact else jnp.result_type(t))


def _inexact(x: Any) -> Array:
    x = jnp.asarray(x)
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.result_type(float)
    return jnp.asarray(x, dtype)


# --- Linear systems -----------------------------------------------------------------------------


class Factors(eqx.Module):
    """Solves systems with one matrix, real or complex, and has derivatives to all orders."""

    linear_solver: lx.AbstractLinearSolver
    operator: lx.AbstractLinearOperator
    state: PyTree

    @staticmethod
    def of(linear_solver: lx.AbstractLinearSolver, matrix: Inexact[Array, "n n"]) -> "Factors":
        operator = lx.MatrixLinearOperator(matrix)
        # Not every factorisation can be differentiated, and none needs to be.
        return Factors(
            linear_solver, operator, linear_solver.init(as_constant(operator), options={})
        )

    def __call__(self, right: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
        # Not `lineax.linear_solve`: its derivatives raise an error for systems that are not
        # finite, and such are those of a step that is about to be refused.
        def solve(_: Any, right: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
            return self.linear_solver.compute(self.state, right, options={})[0]

        def transposed(_: Any, right: Inexact[Array, " n"]) -> Inexact[Array, " n"]:
            state, options = self.linear_solver.transpose(self.state, {})
            return self.linear_solver.compute(state, right, options)[0]

        return jax.lax.custom_linear_solve(self.operator.mv, right, solve, transposed)


# --- What becomes of a step ---------------------------------------------------------------------


class Outcome(eqx.Module):
    """What a step came to, beside where it ends.

    **Attributes:**

    - `error`: the estimate of its error.
    - `possible`: whether the equation could be evaluated at its start. If not, no step is short
        enough.
    - `okay`: whether the step may be taken. One that may not has no derivative: what it is
        made of need not be finite.
    - `result`: what to say where steps are fixed and it may not.
    - `memory`: what the solver hands on to the next step.
    """

    error: Vector
    possible: Bool[Array, ""]
    okay: Bool[Array, ""]
    result: diffrax.RESULTS
    memory: PyTree


@eqx.filter_custom_jvp
def attempt(step: Callable, arguments: PyTree) -> tuple[PyTree[Array], Outcome]:
    """`step(*arguments)`, which returns the numbers that make up the step and its outcome.

    In reverse mode Diffrax passes zeros back to the steps that were refused, and zero times NaN
    is NaN: a logarithm or a root that such a step took outside its domain would spoil the
    gradient. Here no derivative enters or leaves a step that is not okay.
    """
    return step(*arguments)


@attempt.def_jvp
def _attempt_jvp(primals: tuple, tangents: tuple) -> tuple:
    step, arguments = primals
    _, moving = tangents
    constant, variable = split_by_tangents(arguments, moving)
    numbers, linear, outcome = jax.linearize(
        lambda variable: step(*eqx.combine(variable, constant)), variable, has_aux=True
    )
    keep = lambda tree: jax.tree.map(lambda x: jnp.where(outcome.okay, x, 0), tree)
    no_tangents = jax.tree.map(lambda _: None, outcome)
    return (numbers, outcome), (keep(linear(keep(moving))), no_tangents)


def finish(
    coordinates: Coordinates,
    start: Start,
    increment: Vector,
    bubble: Float[Array, "degree n"],
    outcome: Outcome,
) -> tuple[PyTree[Array], PyTree[Array], dict[str, PyTree], PyTree, diffrax.RESULTS]:
    """What Diffrax's solvers return from a step.

    A step that is refused stands still with an error that no tolerance accepts. Where no shorter
    one can do better it is taken instead, without an error but with a result that ends the solve,
    since Diffrax does not listen to the results of steps that are refused.
    """
    # So short that the time does not move: Diffrax would go on like that.
    stuck = start.length == 0
    hopeless = stuck | ~outcome.possible
    increment = jnp.where(outcome.okay, increment, 0)
    error = jnp.where(outcome.okay, outcome.error, jnp.where(hopeless, 0, jnp.inf))
    result = diffrax.RESULTS.where(
        outcome.possible, outcome.result, diffrax.RESULTS.promote(lx.RESULTS.nonfinite_input)
    )
    result = diffrax.RESULTS.where(stuck, diffrax.RESULTS.dt_min_reached, result)
    dense = {
        "y0": coordinates.state(start.y),
        "increment": coordinates.state(increment),
        "bubble": jax.vmap(coordinates.state)(jnp.where(outcome.okay, bubble, 0)),
    }
    y1 = coordinates.state(start.y + increment)
    return y1, coordinates.state(error), dense, outcome.memory, result


def all_finite(*arrays: Array) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in arrays]))


# --- Arguments ----------------------------------------------------------------------------------


def check_fields(jacobian: Any, linear_solver: Any) -> None:
    if jacobian is not None:
        check_callable("jacobian", jacobian, "pass a function of t, y and args")
    fix = "pass for example lineax.LU()"
    check_instance("linear_solver", linear_solver, lx.AbstractLinearSolver, "a Lineax solver", fix)
    name = type(linear_solver).__name__
    inner = getattr(linear_solver, "inner_solver", linear_solver)
    if hasattr(inner, "max_steps"):
        raise ValueError(
            f"`linear_solver` must be a direct solver, got {name}, which iterates: what is left "
            "of its error would pass for that of the step; pass for example lineax.LU()."
        )
    try:
        matrix = jax.ShapeDtypeStruct((2, 2), jnp.result_type(float))
        eqx.filter_eval_shape(
            lambda a: linear_solver.init(lx.MatrixLinearOperator(a), options={}), matrix
        )
    except ValueError as error:
        raise ValueError(
            f"`linear_solver` must solve systems with any matrix, got {name}, which is for special "
            "ones; pass for example lineax.LU()."
        ) from error
