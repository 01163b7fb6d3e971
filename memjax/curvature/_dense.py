from collections.abc import Callable
from typing import Any

import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, lu_factor, lu_solve
from jaxtyping import Array, Bool, Float

from ..numerics import fold, sum_over
from ._base import AbstractCurvature, AbstractShifted, AbstractShiftedComplex
from ._eliminate import invert_complex, invert_real

# Up to this size elimination across lanes beats LAPACK matrix by matrix (measured on a CPU).
_ACROSS = 16


class DenseCurvature(AbstractCurvature):
    """A Hessian as an array, for models with few weights.

    Every matrix is scaled to a unit diagonal before it is factorised, which keeps its entries near
    one: curvatures are spread over more decades than a float has digits.

    **Attributes:**

    - `hessian`: the Hessian, shape `(n, n, *lanes)`.
    """

    hessian: Float[Array, "n n *lanes"]

    def shifted(self, shift: Float[Array, "..."]) -> "_Shifted":
        diagonal = self.diagonal() + shift
        # Cholesky's factorisation and elimination without a search for pivots lose the same digits
        # with this scaling and without; it keeps entries near one. The pivots of `lu_factor` below
        # depend on it.
        scale = inverse_root(diagonal)
        matrix = self._scaled(_on_diagonal(self.hessian, shift), scale)
        if len(scale) <= _ACROSS:
            inverse, negative = invert_real(matrix)
            return _Shifted(negative == 0, scale, inverse, None)
        # The factor of a matrix that is not definite is NaN.
        factor = each_lane(lambda a: jnp.linalg.cholesky(a, symmetrize_input=False), matrix)
        definite = jnp.all(diagonal > 0, axis=0) & jnp.all(jnp.isfinite(factor), axis=(0, 1))
        return _Shifted(definite, scale, None, factor)

    def shifted_complex(
        self, real: Float[Array, "..."], imaginary: Float[Array, "..."]
    ) -> "_ShiftedComplex":
        scale = inverse_root(jnp.abs(self.diagonal() + real) + jnp.abs(imaginary))
        x = self._scaled(_on_diagonal(self.hessian, real), scale)
        y = self._scaled(_on_diagonal(jnp.zeros_like(self.hessian), imaginary), scale)
        if len(scale) <= _ACROSS:
            return _ShiftedComplex(scale, invert_complex(x, y), None)
        return _ShiftedComplex(scale, None, each_lane(lu_factor, lax.complex(x, y)))

    def product(self, x: Float[Array, "n sides *lanes"]) -> Float[Array, "n sides *lanes"]:
        return multiply(self.hessian, x)

    def bound(self) -> Float[Array, "*lanes"]:
        return jnp.max(jnp.sum(jnp.abs(self.hessian), axis=1), axis=0)

    def diagonal(self) -> Float[Array, "n *lanes"]:
        return jnp.moveaxis(jnp.diagonal(self.hessian, axis1=0, axis2=1), -1, 0)

    def inert(self) -> Bool[Array, "n *lanes"]:
        return fold(jnp.all, self.hessian == 0, 1)

    def dense(self) -> Float[Array, "n n *lanes"]:
        return self.hessian

    @staticmethod
    def _scaled(matrix: Float[Array, "n n *lanes"], scale: Float[Array, "n *lanes"]) -> Array:
        return scale[:, None] * matrix * scale[None]


class _Shifted(AbstractShifted):
    definite: Bool[Array, "*lanes"]
    scale: Float[Array, "n *lanes"]
    inverse: Array | None
    factor: Array | None

    def __call__(self, x: Float[Array, "n sides *lanes"]) -> Float[Array, "n sides *lanes"]:
        x = self.scale[:, None] * x
        if self.inverse is not None:
            x = multiply(self.inverse, x)
        else:
            x = each_lane(lambda factor, b: cho_solve((factor, True), b), self.factor, x)
        return self.scale[:, None] * x


class _ShiftedComplex(AbstractShiftedComplex):
    scale: Float[Array, "n *lanes"]
    inverse: tuple[Array, Array] | None
    factor: tuple[Array, Array] | None

    def __call__(
        self, x: Float[Array, "n *lanes"], y: Float[Array, "n *lanes"]
    ) -> tuple[Float[Array, "n *lanes"], Float[Array, "n *lanes"]]:
        x, y = self.scale * x, self.scale * y
        if self.inverse is not None:
            real, imaginary = self.inverse
            both = jnp.stack([x, y], axis=1)
            a, b = multiply(real, both), multiply(imaginary, both)
            x, y = a[:, 0] - b[:, 1], a[:, 1] + b[:, 0]
        else:
            z = each_lane(lu_solve, self.factor, lax.complex(x, y))
            x, y = z.real, z.imag
        return self.scale * x, self.scale * y


def inverse_root(diagonal: Float[Array, "..."]) -> Float[Array, "..."]:
    """What scales a matrix of this diagonal to a unit one."""
    return 1 / jnp.sqrt(jnp.where(diagonal == 0, 1, jnp.abs(diagonal)))


def multiply(matrix: Float[Array, "n m *lanes"], x: Float[Array, "m sides *lanes"]) -> Array:
    """The products of matrices and vectors."""
    shape = jnp.broadcast_shapes((len(matrix), 1, *matrix.shape[2:]), (1, *x.shape[1:]))
    start = jnp.zeros(shape, jnp.result_type(matrix, x))
    return sum_over(lambda k: matrix[:, k, None] * x[k], len(x), start)


def _on_diagonal(matrix: Float[Array, "n n *lanes"], shift: Float[Array, "..."]) -> Array:
    n, lanes = matrix.shape[0], matrix.shape[2:]
    eye = jnp.eye(n, dtype=matrix.dtype).reshape(n, n, *(1,) * len(lanes))
    return matrix + eye * jnp.broadcast_to(shift, (n, *lanes))[:, None]


def each_lane(function: Callable, *arrays: Any) -> Any:
    """`function` of the matrices of every lane.

    One after the other on a CPU: the batched LAPACK of XLA hands its batch to a pool of threads
    and waits, and two programs that do so at the same time wait for ever (jaxlib 0.10.2).
    """
    if jax.tree.leaves(arrays)[0].ndim == 2:
        return function(*arrays)
    first = jax.tree.map(lambda x: jnp.moveaxis(x, -1, 0), arrays)
    if jax.default_backend() == "cpu":
        out = lax.map(lambda each: function(*each), first)
    else:
        out = jax.vmap(function)(*first)
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), out)
