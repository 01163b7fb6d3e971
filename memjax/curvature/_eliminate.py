"""Elimination in the first two axes of arrays, whatever the others are.

Without a search for pivots: most matrices that matter are positive definite, or complex with
definite real and imaginary parts, where no element grows by more than a factor of 3.
"""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Up to this size the loop is written out. Steps of lanes with 3 rows are no faster so, and those
# with 4 take twice the time (measured on a CPU).
_WRITTEN_OUT = 2


def invert_real(a: Float[Array, "n n *lanes"]) -> tuple[Array, Int[Array, "*lanes"]]:
    """The inverse by Gauss--Jordan elimination in place, and how many pivots are not positive: of a
    symmetric matrix that is the number of its negative eigenvalues."""
    n = a.shape[0]
    index = jnp.arange(n).reshape(n, *(1,) * (a.ndim - 2))

    def sweep(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        a, negative = carry
        # Gauss--Jordan, and not a factor: every round is one update of the whole array for all
        # lanes, and a solve one product. The pivots are D of A = L D L^T (Sylvester's law). Not
        # `pivot <= 0`, which NaN would pass.
        pivot = a[k, k]
        one = 1 / pivot
        row, column = (a[k] * one)[None], a[:, k][:, None]
        here, there = (index == k)[:, None], (index == k)[None]
        others = jnp.where(there, -column * one, a - column * row)
        return jnp.where(here, jnp.where(there, one, row), others), negative + ~(pivot > 0)

    start = (a, jnp.zeros(a.shape[2:], int))
    if n == 0:  # not even traced
        return start
    return lax.fori_loop(0, n, sweep, start, unroll=n <= _WRITTEN_OUT)


def invert_complex(x: Float[Array, "n n ..."], y: Float[Array, "n n ..."]) -> tuple[Array, Array]:
    """The inverse of `x + iy`, as `invert_real`."""
    x, y = jnp.broadcast_arrays(x, y)
    n = x.shape[0]
    index = jnp.arange(n).reshape(n, *(1,) * (x.ndim - 2))

    def sweep(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        # Pivots do not vanish where the imaginary part is definite, as the shift makes it: Schur
        # complements keep that. The real part need not be definite: for a heavy ball with little
        # friction the shift is about mu^2, whose real part is negative at the pair of Radau IIA. If
        # both parts are, growth is less than 3 (George, Ikramov, Kucherov 2002).
        x, y = carry
        # Smith's division: the square of a pivot may underflow or overflow.
        flat = jnp.abs(x[k, k]) >= jnp.abs(y[k, k])
        large, small = jnp.where(flat, x[k, k], y[k, k]), jnp.where(flat, y[k, k], x[k, k])
        ratio = small / large
        one = 1 / (large + small * ratio)
        real = jnp.where(flat, one, ratio * one)
        imaginary = -jnp.where(flat, ratio * one, one)
        row_x = (x[k] * real - y[k] * imaginary)[None]
        row_y = (x[k] * imaginary + y[k] * real)[None]
        column_x, column_y = x[:, k][:, None], y[:, k][:, None]
        here, there = (index == k)[:, None], (index == k)[None]
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

    if n == 0:
        return x, y
    return lax.fori_loop(0, n, sweep, (x, y), unroll=n <= _WRITTEN_OUT)
