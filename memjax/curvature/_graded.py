import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..numerics import sum_over
from ._base import AbstractCurvature, AbstractShifted, AbstractShiftedComplex
from ._blocks import BlockCurvature
from ._dense import DenseCurvature, multiply

# What is left of a function is nothing below this.
_NOTHING = 1e-75


class GradedCurvature(AbstractCurvature):
    r"""Blocks plus a complete factor, $H = B + L^\top L$, whose small curvatures count.

    Where modes merge, curvatures that are far below the rounding of the largest decide where a run
    goes, and a solve must not mix one into the other. $L$ has as many rows as there are weights, is
    a triangle $R$ in some order of these, and every row has small relative errors. In the basis
    $R^{-1}$ the shifted Hessian is

    $$1 + R^{-\top} (B + D) R^{-1},$$

    in which the large curvatures are ones, and which scaling to a unit diagonal makes harmless.

    **Attributes:**

    - `blocks`, `factor`: as those of `BlockCurvature`.
    - `order`: the number of the weight that comes first, second, ... in the triangle.
    """

    blocks: Float[Array, "block block modes *lanes"]
    factor: Float[Array, "n block modes *lanes"]
    order: Int[Array, "n *lanes"]

    def shifted(self, shift: Float[Array, "..."]) -> "_Shifted":
        basis = self.basis()
        inner = DenseCurvature(self.in_basis(basis, shift)).shifted(
            jnp.zeros(self.blocks.shape[3:])
        )
        return _Shifted(inner.definite, basis, inner)

    def shifted_complex(
        self, real: Float[Array, "..."], imaginary: Float[Array, "..."]
    ) -> AbstractShiftedComplex:
        return self._rounded.shifted_complex(real, imaginary)

    def product(self, x: Float[Array, "n sides *lanes"]) -> Float[Array, "n sides *lanes"]:
        return self._rounded.product(x)

    def bound(self) -> Float[Array, "*lanes"]:
        return self._rounded.bound()

    def diagonal(self) -> Float[Array, "n *lanes"]:
        return self._rounded.diagonal()

    def inert(self) -> Bool[Array, "n *lanes"]:
        return self._rounded.inert()

    def dense(self) -> Float[Array, "n n *lanes"]:
        return self._rounded.dense()

    @property
    def _rounded(self) -> BlockCurvature:
        return BlockCurvature(self.blocks, self.factor)

    def _triangle(self) -> Float[Array, "n n *lanes"]:
        n = len(self.factor)
        rows = self.factor.reshape(n, n, *self.factor.shape[3:])
        return jnp.take_along_axis(rows, self.order[None], axis=1)

    def _pivots(self) -> Float[Array, "n *lanes"]:
        """The diagonal of the triangle, 0 where nothing is left of a function."""
        triangle = self._triangle()
        pivots = jnp.stack([triangle[k, k] for k in range(len(triangle))])
        return jnp.where(jnp.abs(pivots) < _NOTHING, 0, pivots)

    def basis(self) -> Float[Array, "n n *lanes"]:
        """$R^{-1}$, its rows in the order of the weights; a row without a pivot counts as one."""
        triangle, pivots = self._triangle(), self._pivots()
        n, lanes = len(triangle), triangle.shape[2:]
        number = jnp.arange(n).reshape(n, *(1,) * len(lanes))
        one = 1 / jnp.where(pivots == 0, 1, pivots)

        def row(k: Array, basis: Array) -> Array:
            j = n - 1 - k
            after = jnp.where(number > j, triangle[j], 0)
            known = sum_over(lambda i: after[i] * basis[i], n, jnp.zeros((n, *lanes)))
            return basis.at[j].set(((number == j) - known) * one[j])

        inverse = lax.fori_loop(0, n, row, jnp.zeros_like(triangle))
        place = jnp.argsort(self.order, axis=0)
        return jnp.take_along_axis(inverse, place[:, None], axis=0)

    def in_basis(
        self, basis: Float[Array, "n n *lanes"], shift: Float[Array, "..."]
    ) -> Float[Array, "n n *lanes"]:
        """$H + D$ in the basis."""
        shifted = BlockCurvature(self.blocks, 0 * self.factor[:1]).with_shift(shift)
        pivots = self._pivots()
        unit = jnp.eye(len(pivots)).reshape(len(pivots), -1, *(1,) * (pivots.ndim - 1))
        return unit * (pivots != 0) + transposed(basis, shifted.product(basis))


class _Shifted(AbstractShifted):
    definite: Bool[Array, "*lanes"]
    basis: Float[Array, "n n *lanes"]
    inner: AbstractShifted

    def __call__(self, x: Float[Array, "n sides *lanes"]) -> Float[Array, "n sides *lanes"]:
        return multiply(self.basis, self.inner(transposed(self.basis, x)))


def transposed(matrix: Float[Array, "n m *lanes"], x: Float[Array, "n sides *lanes"]) -> Array:
    """The products of transposed matrices and vectors."""
    start = jnp.zeros((matrix.shape[1], *x.shape[1:]), x.dtype)
    return sum_over(lambda i: matrix[i][:, None] * x[i][None], len(matrix), start)
