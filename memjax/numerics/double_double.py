"""Compensated arithmetic: numbers as unevaluated sums of two, with twice the digits.

A pair `(hi, lo)` stands for `hi + lo`, where `lo` is at most a few units in the last place of
what `hi` was made of. With `u = 2**-53`, every operation on pairs is right to a few `u**2`,
relative to the moduli of what it adds or multiplies; `two_sum`, `fast_two_sum` and
`two_product` are exact. Pairs are not brought back to `|lo| <= u |hi|` after each operation: `hi`
then takes only a few additions, which matters since compilers evaluate `hi` and `lo` apart, and
anew whatever they have in common. After a dozen operations in a row, `fast_two_sum(*pair)` does,
and `two_sum(*pair)` after a sum in which much cancels.

Compilers must not spoil this, and two things that they do are legitimate. They fuse
multiplications with additions into one rounding, here and there as they please: so all products
that must be exact are of factors short enough to be exact in one number, and rounding them or
not is the same. And they fold constants, `(x + c) - c` into `x`: so nothing that might be
constant is subtracted from a sum by itself.

**What remains to the caller:** the larger operand of a sum must not be a rounded product
`x * y` made in the same compiled function; make it by `two_product`. Smaller operands may be,
for their rounding is of the order of `u**2`.

All is for float64, in round-to-nearest. It is exact where nothing overflows (factors below
2**996, say) and nothing that counts is below 2**-1022: operands are 0 or above
2**-969, products 0 or above 2**-916, for JAX flushes subnormal numbers to zero.

??? cite "Reference"

    Dekker, *A Floating-Point Technique for Extending the Available Precision*, Numerische
    Mathematik 18, 1971. Lange, Rump, *Faithfully Rounded Floating-point Computations*, ACM
    TOMS 46, 2020.
"""

import math

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array

Pair = tuple[Array, Array]

# Half of the digits of a float64: what is cut off has 26 and a sign, and so has the rest.
_CUT = np.uint64(1 << 27)

# 1 / 1!, ..., 1 / 16! as pairs: enough for all digits of expm1 at arguments up to 1/16.
_DOUBLINGS, _TERMS = 10, 16
# exp takes the root of that many squarings, so that nothing cancels in it.
_SQUARINGS = 11
_INVERSE_FACTORIALS = np.array(
    [
        (1 / math.factorial(k), -(math.factorial(k) * _n - _d) / (math.factorial(k) * _d))
        for k in range(1, _TERMS + 1)
        for _n, _d in [(1 / math.factorial(k)).as_integer_ratio()]
    ]
).T


def two_sum(a: ArrayLike, b: ArrayLike) -> Pair:
    """`a + b`, exactly, whatever their order."""
    a, b = jnp.asarray(a), jnp.asarray(b)
    a_is_large = jnp.abs(a) >= jnp.abs(b)
    # Knuth's form without this comparison is folded away where `a` is constant.
    large, small = jnp.where(a_is_large, a, b), jnp.where(a_is_large, b, a)
    total = a + b
    return total, small - (total - large)


def fast_two_sum(a: Array, b: Array) -> Pair:
    """`a + b`, exactly, where `|a| >= |b|` or `a` is 0, and `a` is no constant."""
    total = a + b
    return total, b - (total - a)


def two_product(a: ArrayLike, b: ArrayLike) -> Pair:
    """`a * b`, exactly."""
    (a1, a0), (b1, b0) = _halves(jnp.asarray(a)), _halves(jnp.asarray(b))
    # Each of the four products is exact, and so are all sums but the first two.
    product = a1 * b1 + (a1 * b0 + a0 * b1 + a0 * b0)
    return product, a0 * b0 - (((product - a1 * b1) - a0 * b1) - a1 * b0)


def from_float(a: ArrayLike) -> Pair:
    """A pair of a number."""
    a = jnp.asarray(a)
    return a, jnp.zeros_like(a)


def negative(a: Pair) -> Pair:
    """`-a`."""
    return -a[0], -a[1]


def add(a: Pair, b: Pair) -> Pair:
    """`a + b`, to a few `u**2` of `|a| + |b|`."""
    total, error = two_sum(a[0], b[0])
    return total, error + (a[1] + b[1])


def add_float(a: Pair, b: ArrayLike) -> Pair:
    """`a + b` for a number `b`, to a few `u**2` of `|a| + |b|`."""
    total, error = two_sum(a[0], b)
    return total, error + a[1]


def multiply(a: Pair, b: Pair) -> Pair:
    """`a * b`."""
    product, error = two_product(a[0], b[0])
    return product, error + (a[0] * b[1] + a[1] * b[0])


def multiply_float(a: Pair, b: ArrayLike) -> Pair:
    """`a * b` for a number `b`."""
    product, error = two_product(a[0], b)
    return product, error + a[1] * b


def scale(a: Pair, power_of_two: ArrayLike) -> Pair:
    """`a` times a power of two, exactly."""
    return a[0] * power_of_two, a[1] * power_of_two


def reciprocal(a: Pair) -> Pair:
    """`1 / a`: one step of Newton's iteration from the rounded reciprocal."""
    first = 1 / a[0]
    product, error = two_product(first, a[0])
    return first, first * (((1 - product) - error) - first * a[1])


def expm1(a: Pair) -> Pair:
    """`exp(a) - 1`, to all digits of a pair however small `a` is, for `|a|` up to 64."""
    small = scale(a, 2.0**-_DOUBLINGS)
    coefficients = jnp.asarray(_INVERSE_FACTORIALS)

    def horner(k, total: Pair) -> Pair:
        high, low = coefficients[:, _TERMS - 1 - k]
        like = jnp.zeros_like(total[0])
        return add((high + like, low + like), multiply(small, total))

    total = lax.fori_loop(0, _TERMS, horner, from_float(jnp.zeros_like(a[0])))
    # exp(2 x) - 1 = (exp(x) - 1) (2 + exp(x) - 1).
    double = lambda _, e: fast_two_sum(*add(scale(e, 2.0), multiply(e, e)))
    return lax.fori_loop(0, _DOUBLINGS, double, fast_two_sum(*multiply(small, total)))


def exp(a: Pair) -> Pair:
    """`exp(a)`, relatively to some 1e-28, for `a` from -620 to 0."""
    power = expm1(scale(a, 2.0**-_SQUARINGS))
    root = fast_two_sum(*two_sum(*add_float(power, 1.0)))
    square = lambda _, x: fast_two_sum(*multiply(x, x))
    return lax.fori_loop(0, _SQUARINGS, square, root)


def log1p(a: Pair) -> Pair:
    """`log(1 + a)`, to all digits of a pair however small `a` is, for `a` above -1 and a result up
    to 64 in modulus: one step of Newton's iteration from the rounded logarithm."""
    first = jnp.log1p(a[0])
    power = expm1(from_float(first))
    left = jnp.add(*two_sum(*add(a, negative(power)))) / (1 + a[0])
    # XLA's own loses two digits below -0.29.
    return first, left + left**2 / 2


def sqrt(a: Pair) -> Pair:
    """The square root of a pair that is not negative: one step of Newton's iteration."""
    first = jnp.sqrt(a[0])
    left = jnp.add(*two_sum(*add(a, negative(two_product(first, first)))))
    return first, left / jnp.where(first > 0, 2 * first, 1)


def _halves(a: Array) -> Pair:
    """A number as the sum of its upper half, rounded to nearest, and the rest."""
    # On integers, since the usual multiplication with 2**27 + 1 does not survive fusing.
    bits = lax.bitcast_convert_type(a, jnp.uint64)
    upper = lax.bitcast_convert_type((bits + _CUT // 2) & ~(_CUT - np.uint64(1)), a.dtype)
    return upper, a - upper
