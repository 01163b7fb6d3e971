"""Linear systems with one symmetric matrix a lane and shifts of its diagonal.

Every matrix is scaled to a unit diagonal before it is factorised, as in everything that has to
keep curvatures spread over more decades than a float has digits.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve, lu_factor, lu_solve
from jaxtyping import Array, Bool, Float

# Up to this size elimination across lanes beats LAPACK matrix by matrix (measured on a CPU).
_ACROSS = 16


class ShiftedReal(eqx.Module):
    r"""$(H + r I)^{-1}$ for a symmetric $H$ and a real shift $r$ a lane.

    **Attributes:**

    - `definite`: whether the shifted matrix is positive definite, shape `(lanes,)`.
    """

    definite: Bool[Array, " lanes"]
    scale: Float[Array, "n lanes"]
    inverse: Array | None
    factor: Array | None

    @staticmethod
    def build(hessian: Float[Array, "lanes n n"], shift: Float[Array, " lanes"]) -> "ShiftedReal":
        diagonal = _diagonal(hessian) + shift
        scale = inverse_root(diagonal)
        matrix = _scaled(hessian, shift, scale)
        if hessian.shape[1] <= _ACROSS:
            inverse, pivot = _invert_real(jnp.moveaxis(matrix, 0, -1))
            return ShiftedReal(pivot > 0, scale, inverse, None)
        factor = _each(lambda a: jnp.linalg.cholesky(a, symmetrize_input=False), matrix)
        definite = jnp.all(diagonal > 0, axis=0) & jnp.all(jnp.isfinite(factor), axis=(1, 2))
        return ShiftedReal(definite, scale, None, factor)

    def __call__(self, x: Float[Array, "n sides lanes"]) -> Float[Array, "n sides lanes"]:
        x = self.scale[:, None] * x
        if self.inverse is not None:
            x = _product(self.inverse, x)
        else:
            solve = lambda factor, b: cho_solve((factor, True), b)
            x = jnp.moveaxis(_each(solve, self.factor, jnp.moveaxis(x, -1, 0)), 0, -1)
        return self.scale[:, None] * x


class ShiftedComplex(eqx.Module):
    r"""$(H + (r + \mathrm{i} s) I)^{-1}$ for a symmetric $H$ and a complex shift a lane; real
    and imaginary parts are kept apart."""

    scale: Float[Array, "n lanes"]
    inverse: tuple[Array, Array] | None
    factor: tuple[Array, Array] | None

    @staticmethod
    def build(
        hessian: Float[Array, "lanes n n"],
        real: Float[Array, " lanes"],
        imaginary: Float[Array, " lanes"],
    ) -> "ShiftedComplex":
        n = hessian.shape[1]
        scale = inverse_root(jnp.abs(_diagonal(hessian) + real) + imaginary)
        x = _scaled(hessian, real, scale)
        y = jnp.eye(n) * (imaginary * scale**2).T[:, :, None]
        if n <= _ACROSS:
            inverse = _invert_complex(jnp.moveaxis(x, 0, -1), jnp.moveaxis(y, 0, -1))
            return ShiftedComplex(scale, inverse, None)
        return ShiftedComplex(scale, None, _each(lu_factor, lax.complex(x, y)))

    def __call__(
        self, x: Float[Array, "n lanes"], y: Float[Array, "n lanes"]
    ) -> tuple[Float[Array, "n lanes"], Float[Array, "n lanes"]]:
        x, y = self.scale * x, self.scale * y
        if self.inverse is not None:
            real, imaginary = self.inverse
            both = jnp.stack([x, y], axis=1)
            a, b = _product(real, both), _product(imaginary, both)
            x, y = a[:, 0] - b[:, 1], a[:, 1] + b[:, 0]
        else:
            z = _each(lu_solve, self.factor, lax.complex(x, y).T)
            x, y = z.real.T, z.imag.T
        return self.scale * x, self.scale * y


def _each(function: Callable, *arrays: Any) -> Any:
    """`function` of the matrices of every lane.

    One after the other on a CPU: the batched LAPACK of XLA hands its batch to a pool of threads
    and waits, and two programs that do so at the same time wait for ever (jaxlib 0.10.2).
    """
    if jax.default_backend() == "cpu":
        return lax.map(lambda each: function(*each), arrays)
    return jax.vmap(function)(*arrays)


def _diagonal(matrix: Float[Array, "lanes n n"]) -> Float[Array, "n lanes"]:
    return jnp.diagonal(matrix, axis1=1, axis2=2).T


def inverse_root(diagonal: Array) -> Array:
    """What scales a matrix of this diagonal to a unit one."""
    return 1 / jnp.sqrt(jnp.where(diagonal == 0, 1, jnp.abs(diagonal)))


def _scaled(
    matrix: Float[Array, "lanes n n"], shift: Float[Array, " lanes"], scale: Float[Array, "n lanes"]
) -> Float[Array, "lanes n n"]:
    """The shifted matrix, scaled from both sides."""
    shifted = matrix + jnp.eye(matrix.shape[1]) * shift[:, None, None]
    return scale.T[:, :, None] * shifted * scale.T[:, None, :]


def _product(matrix: Float[Array, "n n lanes"], x: Float[Array, "n sides lanes"]) -> Array:
    return jnp.sum(matrix[:, :, None] * x[None], axis=1)


def _invert_real(a: Float[Array, "n n lanes"]) -> tuple[Array, Float[Array, " lanes"]]:
    """The inverse by Gauss--Jordan elimination in place, and the smallest pivot. Without a
    search for pivots: the matrices that matter are positive definite."""
    n = a.shape[0]
    index = jnp.arange(n)

    def sweep(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        a, smallest = carry
        pivot = a[k, k]
        one = 1 / pivot
        row, column = (a[k] * one)[None], a[:, k][:, None]
        here, there = (index == k)[:, None, None], (index == k)[None, :, None]
        others = jnp.where(there, -column * one, a - column * row)
        return jnp.where(here, jnp.where(there, one, row), others), jnp.minimum(smallest, pivot)

    return lax.fori_loop(0, n, sweep, (a, jnp.full(a.shape[-1], jnp.inf)))


def _invert_complex(x: Array, y: Array) -> tuple[Array, Array]:
    """The inverse of `x + iy`, as `_invert_real`. Stable without pivots for definite `x` and
    `y`: no element grows by more than a factor of 3."""
    n = x.shape[0]
    index = jnp.arange(n)

    def sweep(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        x, y = carry
        size = x[k, k] ** 2 + y[k, k] ** 2
        real, imaginary = x[k, k] / size, -y[k, k] / size
        row_x = (x[k] * real - y[k] * imaginary)[None]
        row_y = (x[k] * imaginary + y[k] * real)[None]
        column_x, column_y = x[:, k][:, None], y[:, k][:, None]
        here, there = (index == k)[:, None, None], (index == k)[None, :, None]
        others_x = jnp.where(
            there,
            column_y * imaginary - column_x * real,
            x - column_x * row_x + column_y * row_y,
        )
        others_y = jnp.where(
            there,
            -column_x * imaginary - column_y * real,
            y - column_x * row_y - column_y * row_x,
        )
        return (
            jnp.where(here, jnp.where(there, real, row_x), others_x),
            jnp.where(here, jnp.where(there, imaginary, row_y), others_y),
        )

    return lax.fori_loop(0, n, sweep, (x, y))
