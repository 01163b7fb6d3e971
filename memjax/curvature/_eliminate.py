"""Elimination in the first two axes of arrays, whatever the others are.

Without a search for pivots: most matrices that matter are positive definite, or complex with
definite real and imaginary parts, where no element grows by more than a factor of 3.

Gauss--Jordan, and not a factor: every round is one update of the whole array for all lanes, and a
solve one product. With pivot p in row and column k it is A - u v^T, where A has zeros in that row
and column, u is the column with -1 at k, and v the row over p with 1 / p at k. Both are made in the
round before: what a loop hands on stands in memory, and all else XLA may evaluate anew for every
element (with 8 rows and more an inverse took 1.5 to 2.1 times as long on a CPU).
"""

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

# Up to this size the loop is written out. Steps of lanes with 3 rows are no faster so, and those
# with 4 take twice the time (measured on a CPU).
_WRITTEN_OUT = 2


def invert_real(a: Float[Array, "n n *lanes"]) -> tuple[Array, Int[Array, "*lanes"]]:
    """The inverse in place, and how many pivots are not positive: of a symmetric matrix that is
    the number of its negative eigenvalues."""
    n = len(a)
    if n == 0:  # not even traced
        return a, jnp.zeros(a.shape[2:], int)
    index = _index(a)

    def edges(a: Array, k: Array | int) -> tuple[Array, Array]:
        one = 1 / a[k, k]
        return jnp.where(index == k, -1, a[:, k]), jnp.where(index == k, one, a[k] * one)

    def sweep(k: Array, carry: tuple) -> tuple:
        a, column, row, negative = carry
        # The pivots are D of A = L D L^T (Sylvester's law). Not `pivot <= 0`, which NaN would pass.
        negative = negative + ~(a[k, k] > 0)
        a = _cleared(a, k) - column[:, None] * row[None]
        return a, *edges(a, _next(k, n)), negative

    start = (a, *edges(a, 0), jnp.zeros(a.shape[2:], int))
    a, _, _, negative = lax.fori_loop(0, n, sweep, start, unroll=n <= _WRITTEN_OUT)
    return a, negative


def invert_complex(x: Float[Array, "n n ..."], y: Float[Array, "n n ..."]) -> tuple[Array, Array]:
    """The inverse of `x + iy`, as `invert_real`."""
    x, y = jnp.broadcast_arrays(x, y)
    n = len(x)
    if n == 0:
        return x, y
    index = _index(x)

    def edges(x: Array, y: Array, k: Array | int) -> tuple[Array, Array, Array, Array]:
        # Pivots do not vanish where the imaginary part is definite, as the shift makes it: Schur
        # complements keep that. The real part need not be definite: for a heavy ball with little
        # friction the shift is about mu^2, whose real part is negative at the pair of Radau IIA. If
        # both parts are, growth is less than 3 (George, Ikramov, Kucherov 2002).
        # Smith's division: the square of a pivot may underflow or overflow.
        flat = jnp.abs(x[k, k]) >= jnp.abs(y[k, k])
        large, small = jnp.where(flat, x[k, k], y[k, k]), jnp.where(flat, y[k, k], x[k, k])
        ratio = small / large
        one = 1 / (large + small * ratio)
        real = jnp.where(flat, one, ratio * one)
        imaginary = -jnp.where(flat, ratio * one, one)
        return (
            jnp.where(index == k, -1, x[:, k]),
            jnp.where(index == k, 0, y[:, k]),
            jnp.where(index == k, real, x[k] * real - y[k] * imaginary),
            jnp.where(index == k, imaginary, x[k] * imaginary + y[k] * real),
        )

    def sweep(k: Array, carry: tuple) -> tuple:
        x, y, *parts = carry
        column_x, column_y = parts[0][:, None], parts[1][:, None]
        row_x, row_y = parts[2][None], parts[3][None]
        x = _cleared(x, k) - column_x * row_x + column_y * row_y
        y = _cleared(y, k) - column_x * row_y - column_y * row_x
        return x, y, *edges(x, y, _next(k, n))

    start = (x, y, *edges(x, y, 0))
    x, y, *_ = lax.fori_loop(0, n, sweep, start, unroll=n <= _WRITTEN_OUT)
    return x, y


def _index(a: Array) -> Int[Array, "n ..."]:
    return jnp.arange(len(a)).reshape(-1, *(1,) * (a.ndim - 2))


def _cleared(a: Array, k: Array) -> Array:
    """Zeros in a row and the column of the same number."""
    here = _index(a) == k
    return jnp.where(here[:, None] | here[None], 0, a)


def _next(k: Array, n: int) -> Array:
    # After the last round there is none, and any will do.
    return jnp.minimum(k + 1, n - 1)
