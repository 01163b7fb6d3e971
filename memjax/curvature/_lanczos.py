from collections.abc import Callable
from typing import Any

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ._base import AbstractCurvature, AbstractShifted, AbstractShiftedComplex
from ._dense import each_lane
from ._eliminate import invert_complex, invert_real


class LanczosCurvature(AbstractCurvature):
    r"""A Hessian of low rank, $H \approx U^\top \Lambda U$ with orthonormal rows of $U$, for
    models with many weights.

    The largest curvatures decide how long steps may be. What the rank leaves out makes Newton's
    iteration slower, and cuts a step where it is much larger than its shift: it costs steps, not
    accuracy.

    **Attributes:**

    - `values`: $\Lambda$, shape `(rank, *lanes)`.
    - `vectors`: $U$, shape `(rank, n, *lanes)`.

    ??? cite "Reference"

        Golub, Van Loan, *Matrix Computations*, Section 10.1.
    """

    values: Float[Array, "rank *lanes"]
    vectors: Float[Array, "rank n *lanes"]

    def shifted(self, shift: Float[Array, "..."]) -> "_Shifted":
        if shift.ndim == self.values.ndim:
            return self._unequal(shift)
        # 1 / (s + lambda) on the space of U, whose rows are orthonormal, and 1 / s elsewhere. They
        # differ by lambda / (s (s + lambda)).
        turned = self.values / (shift * (shift + self.values))
        definite = (shift > 0) & jnp.all(shift + self.values > 0, axis=0)
        return _Shifted(definite, 1 / shift, turned, None, self.vectors)

    def _unequal(self, shift: Float[Array, "n *lanes"]) -> "_Shifted":
        """The same for a shift that differs from weight to weight, by Woodbury's identity."""
        # With U^T Lambda U = R^T S R, S the signs, the matrix in the middle is S + R D^{-1} R^T.
        # Nothing is divided by a value, which may be 0.
        roots = jnp.sqrt(jnp.abs(self.values))[:, None] * self.vectors
        small, _ = invert_real(self._signs() + _pair(roots / shift[None], roots))
        # Sufficient by Weyl's inequality. The matrix inverted above is then quasidefinite, and no
        # pivot vanishes in any order (Vanderbei 1995).
        lowest = jnp.min(shift, axis=0) + jnp.minimum(jnp.min(self.values, axis=0), 0)
        return _Shifted(lowest > 0, 1 / shift, None, small, roots)

    def shifted_complex(
        self, real: Float[Array, "..."], imaginary: Float[Array, "..."]
    ) -> "_ShiftedComplex":
        inverse = 1 / lax.complex(*jnp.broadcast_arrays(real, imaginary))
        if inverse.ndim < self.values.ndim:
            turned = self.values * inverse / (1 / inverse + self.values)
            return _ShiftedComplex(inverse, turned, None, self.vectors)
        roots = jnp.sqrt(jnp.abs(self.values))[:, None] * self.vectors
        pairs = (_pair(roots * part[None], roots) for part in (inverse.real, inverse.imag))
        real, imaginary = pairs
        small = lax.complex(*invert_complex(self._signs() + real, imaginary))
        return _ShiftedComplex(inverse, None, small, roots)

    def _signs(self) -> Float[Array, "rank rank *lanes"]:
        signs = jnp.where(self.values < 0, -1.0, 1.0)
        rank, lanes = len(signs), signs.ndim - 1
        return jnp.eye(rank).reshape(rank, rank, *(1,) * lanes) * signs

    def product(self, x: Float[Array, "n sides *lanes"]) -> Float[Array, "n sides *lanes"]:
        return _spread(self.vectors, self.values[:, None] * _project(self.vectors, x))

    def bound(self) -> Float[Array, "*lanes"]:
        # A bound for this form. Ritz values lie inside the spectrum of the Hessian itself.
        return jnp.max(jnp.abs(self.values), axis=0)

    def diagonal(self) -> Float[Array, "n *lanes"]:
        return jnp.sum(self.values[:, None] * self.vectors**2, axis=0)

    def inert(self) -> Bool[Array, "n *lanes"]:
        # Unknown from a few products. A weight that counts as felt only delays rest.
        return jnp.zeros(self.vectors.shape[1:], bool)

    def dense(self) -> Float[Array, "n n *lanes"]:
        return jnp.einsum("r...,ra...,rb...->ab...", self.values, self.vectors, self.vectors)


class _Shifted(AbstractShifted):
    definite: Bool[Array, "*lanes"]
    inverse: Array
    turned: Array | None
    small: Array | None
    vectors: Array

    def __call__(self, x: Float[Array, "n sides *lanes"]) -> Float[Array, "n sides *lanes"]:
        if self.turned is not None:
            return self.inverse * x - _spread(
                self.vectors, self.turned[:, None] * _project(self.vectors, x)
            )
        out = self.inverse[:, None] * x
        inner = jnp.einsum("rk...,ks...->rs...", self.small, _project(self.vectors, out))
        return out - self.inverse[:, None] * _spread(self.vectors, inner)


class _ShiftedComplex(AbstractShiftedComplex):
    inverse: Array
    turned: Array | None
    small: Array | None
    vectors: Array

    def __call__(
        self, x: Float[Array, "n *lanes"], y: Float[Array, "n *lanes"]
    ) -> tuple[Float[Array, "n *lanes"], Float[Array, "n *lanes"]]:
        z = lax.complex(x, y)[:, None]
        if self.turned is not None:
            inner = self.turned[:, None] * _project(self.vectors, z)
            out = self.inverse * z - _spread(self.vectors, inner)
        else:
            out = self.inverse[:, None] * z
            inner = jnp.einsum("rk...,ks...->rs...", self.small, _project(self.vectors, out))
            out = out - self.inverse[:, None] * _spread(self.vectors, inner)
        return out[:, 0].real, out[:, 0].imag


def lanczos(
    product: Callable[[Float[Array, "n *lanes"]], Float[Array, "n *lanes"]],
    start: Float[Array, "n *lanes"],
    rank: int,
) -> LanczosCurvature:
    """The curvature on the space that products with the Hessian span, by Lanczos' method.

    **Arguments:**

    - `product`: the product of the Hessian with one vector, of every lane.
    - `start`: where the space starts: what is not at right angles to the directions sought.
    - `rank`: its dimension, as many products.
    """
    n = len(start)
    size = jnp.sqrt(jnp.sum(start**2, axis=0))
    # In which direction a Hessian of nothing is looked at does not matter.
    first = jnp.where(size > 0, start / jnp.where(size > 0, size, 1), 1 / jnp.sqrt(n))
    space = jnp.zeros((rank, *start.shape), start.dtype).at[0].set(first)

    def step(space: Array, k: Any) -> tuple[Array, tuple[Array, Array]]:
        new = product(space[k])
        alpha = jnp.sum(space[k] * new, axis=0)
        # Twice, against everything so far: with rounding the recurrence alone loses its way.
        for _ in range(2):
            # Rows that are not made yet are 0.
            inner = jnp.sum(space * new[None], axis=1)
            new = new - jnp.sum(space * inner[:, None], axis=0)
        beta = jnp.sqrt(jnp.sum(new**2, axis=0))
        # Otherwise the space is invariant, and what follows has no part in it. The limit is some
        # hundred roundings of the product. Noise above it is at right angles to the space, and any
        # such direction will do to go on.
        alive = beta > 1e-13 * jnp.abs(alpha)
        new = jnp.where(alive, new / jnp.where(alive, beta, 1), 0)
        space = space.at[k + 1].set(new, mode="drop")
        return space, (alpha, jnp.where(alive, beta, 0))

    space, (alpha, beta) = lax.scan(step, space, jnp.arange(rank))
    index = jnp.arange(rank)
    matrix = jnp.zeros((rank, rank, *start.shape[1:]), start.dtype)
    # After an invariant space all is 0: eigenvalues of 0 with vectors of 0, which add nothing.
    matrix = matrix.at[index, index].set(alpha)
    matrix = matrix.at[index[:-1], index[1:]].set(beta[:-1])
    matrix = matrix.at[index[1:], index[:-1]].set(beta[:-1])
    values, rotation = each_lane(lambda a: tuple(jnp.linalg.eigh(a)), matrix)
    return LanczosCurvature(values, jnp.einsum("kr...,kn...->rn...", rotation, space))


def _project(vectors: Array, x: Array) -> Array:
    return jnp.einsum("rn...,ns...->rs...", vectors, x)


def _spread(vectors: Array, x: Array) -> Array:
    return jnp.einsum("rn...,rs...->ns...", vectors, x)


def _pair(a: Array, b: Array) -> Array:
    return jnp.einsum("rn...,kn...->rk...", a, b)
