from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import lineax as lx
import numpy as np
from jaxtyping import Array, Float, PyTree, Scalar

Vector = Float[Array, " n"]
Matrix = Float[Array, "n n"]


def product(weights: np.ndarray | Array, vectors: Array) -> Array:
    """A product in full precision, which on accelerators is not the default."""
    return jnp.matmul(jnp.asarray(weights, vectors.dtype), vectors, precision="highest")


class Problem(eqx.Module):
    r"""A step of a differential equation, on the raveled state and in units of the step.

    The increment $h f(t, y)$ is what Diffrax calls the product of vector field and control.
    """

    terms: diffrax.AbstractTerm
    args: PyTree
    control: PyTree
    like: PyTree
    jacobian: Callable[..., Any] | None

    def ravel(self, y: PyTree) -> Vector:
        return jfu.ravel_pytree(y)[0]

    def unravel(self, y: Vector) -> PyTree:
        return jfu.ravel_pytree(self.like)[1](y)

    def increment(self, t: Scalar, y: Vector) -> Vector:
        value = self.terms.vf_prod(t, self.unravel(y), self.args, self.control)
        return self.ravel(value).astype(y.dtype)

    def linearise(self, t: Scalar, y: Vector, rate: Scalar) -> tuple[Vector, Vector, Matrix]:
        r"""The increment, its derivative in time times `rate`, and its Jacobian."""
        # Strong types: `linearise` tells them from those of Python's numbers.
        t, rate = (jnp.asarray(x, jnp.result_type(t)) for x in (t, rate))
        if self.jacobian is None:
            value, tangent = jax.linearize(self.increment, t, y)
            columns = jax.vmap(lambda e: tangent(jnp.zeros_like(t), e), out_axes=1)
            return value, tangent(rate, jnp.zeros_like(y)), columns(jnp.eye(y.size, dtype=y.dtype))
        value, drift = jax.jvp(lambda t: self.increment(t, y), (t,), (rate,))
        return value, drift, self._given(t, y)

    def jacobian_at(self, t: Scalar, y: Vector) -> Matrix:
        if self.jacobian is None:
            return jax.jacfwd(self.increment, argnums=1)(t, y)
        return self._given(t, y)

    def _given(self, t: Scalar, y: Vector) -> Matrix:
        assert self.jacobian is not None
        # Backwards in time Diffrax shows its solvers a reflected clock, of which the user's
        # functions know nothing.
        t = t * getattr(self.terms, "direction", 1)
        matrix = jnp.asarray(self.jacobian(t, self.unravel(y), self.args))
        if matrix.shape != (y.size, y.size):
            raise ValueError(
                f"`jacobian` must return a matrix of shape {(y.size, y.size)} for a state of "
                f"{y.size} numbers, got shape {matrix.shape}."
            )
        return (self.control * matrix).astype(y.dtype)


def problem_of(
    terms: diffrax.AbstractTerm,
    t0: Scalar,
    t1: Scalar,
    y0: PyTree,
    args: PyTree,
    jacobian: Callable[..., Any] | None,
) -> Problem:
    for leaf in jax.tree.leaves(y0):
        if jnp.iscomplexobj(leaf):
            raise TypeError(
                f"`y0` must be real, got dtype {leaf.dtype}; integrate real and imaginary parts."
            )
    control = terms.contr(t0, t1)
    if jacobian is not None and (not eqx.is_array_like(control) or jnp.shape(control) != ()):
        raise ValueError(
            "`jacobian` needs a term whose control is time, as that of `diffrax.ODETerm`; "
            "leave it out for other terms."
        )
    return Problem(terms, args, control, y0, jacobian)


def check_fields(jacobian: Any, linear_solver: Any) -> None:
    if jacobian is not None and not callable(jacobian):
        raise TypeError(
            f"`jacobian` must be a function of t, y and args, got {type(jacobian).__name__}."
        )
    if not isinstance(linear_solver, lx.AbstractLinearSolver):
        raise TypeError(
            f"`linear_solver` must be a Lineax solver, got {type(linear_solver).__name__}; "
            "pass for example lineax.LU()."
        )
