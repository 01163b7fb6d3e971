import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ..numerics import sum_over
from ._base import AbstractCurvature, AbstractShifted, AbstractShiftedComplex
from ._blocks import BlockCurvature
from ._dense import DenseCurvature, multiply


class GradedCurvature(AbstractCurvature):
    r"""Blocks plus a complete factor, $H = B + L^\top L$, whose small curvatures count.

    Where modes merge, curvatures that are far below the rounding of the largest decide where a run
    goes, and a solve must not mix one into the other. $L$ has as many rows as there are weights, is
    a triangle $R$ in some order of these, and every row has small relative errors. Rows with pivots
    above $B + D$ are strong, and the others, which add little to it, weak:

    $$R = \begin{pmatrix} R_1 & S \\ 0 & R_2 \end{pmatrix}, \qquad
      T = \begin{pmatrix} R_1^{-1} & -R_1^{-1} S \\ 0 & 1 \end{pmatrix}, \qquad
      T^\top (H + D)\, T = \begin{pmatrix} 1 & 0 \\ 0 & R_2^\top R_2 \end{pmatrix}
      + T^\top (B + D)\, T.$$

    In the basis $T$ the large curvatures are ones and do not spoil the small ones.

    **Attributes:**

    - `blocks`, `factor`: as those of `BlockCurvature`.
    - `order`: the number of the weight that comes first, second, ... in the triangle.
    """

    blocks: Float[Array, "block block modes *lanes"]
    factor: Float[Array, "n block modes *lanes"]
    order: Int[Array, "n *lanes"]

    def shifted(self, shift: Float[Array, "..."]) -> "_Shifted":
        # T^T (H + D) T has as many negative eigenvalues as H + D (Sylvester's law).
        basis = self.basis(shift)
        inner = DenseCurvature(basis.hessian(self, shift))
        inner = inner.shifted(jnp.zeros(self.blocks.shape[3:]))
        return _Shifted(inner.definite, basis.vectors, inner)

    def shifted_complex(
        self, real: Float[Array, "..."], imaginary: Float[Array, "..."]
    ) -> AbstractShiftedComplex:
        # Used in simplified Newton iterations, where an error costs iterations and not accuracy.
        # The methods below are about the largest curvature, and need no digits of the small ones.
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

    def with_shift(self, shift: Float[Array, "..."]) -> BlockCurvature:
        """$B + D$."""
        return BlockCurvature(self.blocks, self.factor[:0]).with_shift(shift)

    def basis(self, shift: Float[Array, "..."]) -> "Basis":
        """The basis for a shift of about this size."""
        n = len(self.factor)
        rows = self.factor.reshape(n, n, *self.factor.shape[3:])
        triangle = jnp.take_along_axis(rows, self.order[None], axis=1)
        pivots = jnp.stack([triangle[k, k] for k in range(n)])
        # A strong vector of T has about the length 1 / p, p its pivot. So T^T (B + D) T is below
        # the one that it is added to, as (B + D) / p^2 < 1. Weak rows add R_2^T R_2, which is not
        # much larger than B + D, so that the sum loses few digits of either.
        level = jnp.max(jnp.abs(self.with_shift(shift).blocks), axis=(0, 1, 2))
        # In T all strong rows come first. Pivots fall by and large, since the function of which
        # most is left is taken first; after the first weak row all count as weak.
        strong = jnp.cumsum(~(pivots**2 > level), axis=0) == 0
        number = jnp.arange(n).reshape(n, *(1,) * (pivots.ndim - 1))
        one = 1 / jnp.where(strong, pivots, 1)

        def row(k: Array, inverse: Array) -> Array:
            # From the last row up: T_j = (e_j - sum_{i > j} R_ji T_i) / R_jj, and T_j = e_j if it
            # is weak.
            j = n - 1 - k
            after = jnp.where((number > j) & strong[j], triangle[j], 0)
            known = sum_over(lambda i: after[i] * inverse[i], n, jnp.zeros_like(triangle[0]))
            return inverse.at[j].set(((number == j) - known) * one[j])

        inverse = lax.fori_loop(0, n, row, jnp.zeros_like(triangle))
        place = jnp.argsort(self.order, axis=0)
        vectors = jnp.take_along_axis(inverse, place[:, None], axis=0)
        return Basis(vectors, strong, jnp.where(strong[:, None], 0, triangle))


class Basis(eqx.Module):
    """A basis in which large curvatures are ones.

    **Attributes:**

    - `vectors`: its vectors as columns, their rows in the order of the weights.
    - `strong`: which of them belong to large curvatures.
    - `weak`: the rows of the triangle that belong to the others.
    """

    vectors: Float[Array, "n n *lanes"]
    strong: Bool[Array, "n *lanes"]
    weak: Float[Array, "n n *lanes"]

    def hessian(self, curvature: GradedCurvature, shift: Float[Array, "..."]) -> Array:
        """$H + D$ in the basis."""
        n = len(self.strong)
        unit = jnp.eye(n).reshape(n, n, *(1,) * (self.strong.ndim - 1)) * self.strong
        own = curvature.with_shift(shift).product(self.vectors)
        return unit + transposed(self.weak, self.weak) + transposed(self.vectors, own)


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
