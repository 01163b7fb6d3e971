"""Every claim of exactness is checked with rational numbers, in every way to be compiled."""

import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from memjax.numerics import double_double as dd

UNIT = Fraction(1, 2**53)


def hard_numbers():
    """Pairs of numbers near all that can go wrong: ties, cancellation, halves full of ones."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=120) * 2.0 ** rng.integers(-300, 300, 120)
    b = rng.normal(size=120) * 2.0 ** rng.integers(-300, 300, 120)
    near = a * 2.0 ** rng.integers(-60, 60, 120)
    cancelling = -a * (1 + rng.integers(-4, 5, 120) * 2.0**-52)
    partly = -a * (1 + 2.0 ** -rng.integers(1, 52, 120))
    one = np.ones(60)
    ties = rng.choice([-1, 1], 60) * 2.0**-53 * (1 + rng.integers(-1, 2, 60) * 2.0**-52)
    integers = np.array(
        [2**53 - 1, 2**53 - 2**26 - 1, 2**52 + 1, 2**52 + 2**26, 2**52 + 2**26 + 1]
        + [2**53 - 2**26, 2**53 - 2**27 - 1, 2**52 + 2**27 - 1, 3 * 2**51 + 2**26 - 1, 1, 0, 3],
        float,
    )
    first, second = (x.ravel() for x in np.meshgrid(integers, integers))
    random = rng.integers(2**52, 2**53, (2, 120)) | rng.integers(0, 2**27, (2, 120))
    pairs = [(a, b), (a, near), (near, a), (a, cancelling), (a, partly), (one, ties), (ties, one)]
    pairs += [(first, second), (first, -second), tuple(random.astype(float))]
    return tuple(np.concatenate(x) for x in zip(*pairs, strict=True))


A, B = hard_numbers()


def in_fori_loop(f):
    def run(a, b):
        def body(i, out):
            return tuple(x.at[i].set(y) for x, y in zip(out, f(a[i], b[i]), strict=True))

        return lax.fori_loop(0, a.shape[0], body, (jnp.zeros_like(a),) * 2)

    return run


def in_while_loop(f):
    # What is carried is what was computed, not what came in.
    def run(a, b):
        body = lambda carry: (carry[0] + 1, *f(a + 0 * carry[1], b + 0 * carry[2]))
        return lax.while_loop(lambda c: c[0] < 3, body, (0, jnp.zeros_like(a), jnp.zeros_like(a)))[
            1:
        ]

    return run


def amid_others(f):
    # The same values enter products and sums with which a compiler might fuse them.
    def run(a, b):
        a, b = jnp.where(a > b, a, a), b - 0 * a
        hi, lo = f(a, b)
        again = f(b, a) if f is not dd.fast_two_sum else f(a, b)
        other = (a * b - hi) * lo + (a + b - hi) * again[0] + jnp.sin(lo) * a
        return hi + 0 * jnp.where(jnp.isfinite(other), other, 0), lo

    return run


WAYS = {
    "eager": lambda f: f,
    "jit": jax.jit,
    "vmap": lambda f: jax.jit(jax.vmap(f)),
    "scalar": lambda f: jax.jit(lambda a, b: lax.map(lambda x: f(*x), (a, b))),
    "fori_loop": lambda f: jax.jit(in_fori_loop(f)),
    "while_loop": lambda f: jax.jit(in_while_loop(f)),
    "amid others": lambda f: jax.jit(amid_others(f)),
    "first constant": lambda f: lambda a, b: jax.jit(lambda b: f(a, b))(b),
    "second constant": lambda f: lambda a, b: jax.jit(lambda a: f(a, b))(a),
}


def assert_exact(found, operation, a, b):
    hi, lo = (np.asarray(x).tolist() for x in found)
    for values in zip(hi, lo, a.tolist(), b.tolist(), strict=True):
        hi, lo, a, b = map(Fraction, values)
        assert hi + lo == operation(a, b), values
        assert abs(lo) <= UNIT * (1 + Fraction(1, 2**20)) * abs(hi), values


@pytest.mark.parametrize("way", WAYS)
def test_two_sum_is_exact(way):
    assert_exact(WAYS[way](dd.two_sum)(A, B), lambda a, b: a + b, A, B)


@pytest.mark.parametrize("way", [way for way in WAYS if way != "first constant"])
def test_fast_two_sum_is_exact(way):
    larger = np.abs(A) >= np.abs(B)
    a, b = np.where(larger, A, B), np.where(larger, B, A)
    assert_exact(WAYS[way](dd.fast_two_sum)(a, b), lambda a, b: a + b, a, b)


@pytest.mark.parametrize("way", WAYS)
def test_two_product_is_exact(way):
    assert_exact(WAYS[way](dd.two_product)(A, B), lambda a, b: a * b, A, B)


@pytest.mark.parametrize("constant", [1.0, 0.1, -3.0, 2.0**-30])
def test_with_constants(constant):
    whole = np.full_like(A, constant)
    assert_exact(jax.jit(lambda a: dd.two_sum(a, constant))(A), lambda a, b: a + b, A, whole)
    assert_exact(jax.jit(lambda a: dd.two_sum(constant, a))(A), lambda a, b: a + b, A, whole)
    assert_exact(jax.jit(lambda a: dd.two_product(constant, a))(A), lambda a, b: a * b, A, whole)


@settings(max_examples=150, deadline=None)
@example(1.1 * 2.0**53, 1.3 * 2.0**-969)
@given(
    *[st.floats(allow_nan=False, allow_infinity=False, allow_subnormal=False)] * 2,
)
def test_exact_wherever_documented(a, b):
    is_summable = lambda x: x == 0 or 2.0**-969 <= abs(x) <= 2.0**1022
    if is_summable(a) and is_summable(b):
        assert sum(map(Fraction, floats(two_sum(a, b)))) == Fraction(a) + Fraction(b)
    product = abs(Fraction(a) * Fraction(b))
    is_split = lambda x: x == 0 or 2.0**-969 <= abs(x) <= 2.0**996
    if is_split(a) and is_split(b) and (product == 0 or 2.0**-916 <= product <= 2.0**1022):
        assert sum(map(Fraction, floats(two_product(a, b)))) == Fraction(a) * Fraction(b)


two_sum, two_product = jax.jit(dd.two_sum), jax.jit(dd.two_product)


def floats(pair):
    return [float(x) for x in pair]


def pairs(count, seed, spread=30):
    """Pairs with a lower part of up to two units in the last place."""
    rng = np.random.default_rng(seed)
    high = rng.normal(size=count) * 2.0 ** rng.integers(-spread, spread + 1, count)
    return high, high * rng.uniform(-4, 4, count) * 2.0**-53


def whole(pair):
    return [
        sum(map(Fraction, x)) for x in zip(*(np.asarray(p).tolist() for p in pair), strict=True)
    ]


X, Y = pairs(300, 1), pairs(300, 2)
# Most digits of the upper parts cancel, all of the lower parts stay.
Z = (-X[0] * (1 + 2.0 ** -np.random.default_rng(3).integers(10, 54, 300)), Y[1] * X[0] / Y[0])


@pytest.mark.parametrize("way", ["jit", "vmap", "first constant"])
def test_operations_on_pairs(way):
    def check(function, exact, *operands, moduli=lambda *x: 0):
        compiled = WAYS[way](function) if len(operands) == 2 else jax.jit(function)
        results = whole(compiled(*operands))
        numbers = [
            whole(x) if isinstance(x, tuple) else map(Fraction, x.tolist()) for x in operands
        ]
        for result, *values in zip(results, *numbers, strict=True):
            scale = moduli(*values) or abs(exact(*values))
            assert abs(result - exact(*values)) <= 32 * UNIT**2 * scale

    plus, times = lambda a, b: a + b, lambda a, b: a * b
    moduli = lambda a, b: abs(a) + abs(b)
    check(dd.add, plus, X, Y, moduli=moduli)
    check(dd.add, plus, X, Z, moduli=moduli)
    check(dd.add_float, plus, X, Y[0], moduli=moduli)
    check(dd.add_float, plus, X, Z[0], moduli=moduli)
    check(dd.multiply, times, X, Y)
    check(dd.multiply_float, times, X, Y[0])
    check(dd.reciprocal, lambda a: 1 / a, X)
    check(dd.negative, lambda a: -a, X)
    check(lambda a: dd.scale(a, 0.25), lambda a: a / 4, X)


def test_operations_in_a_loop_carry():
    # Partial fractions of a sum that telescopes: 1/(k (k + 1)) from 1 to n is n/(n + 1).
    @jax.jit
    def telescope(n):
        def body(k, total):
            k = k.astype(float)
            one = dd.reciprocal(dd.multiply(dd.from_float(k), dd.add_float(dd.from_float(k), 1.0)))
            return dd.add(total, one)

        return lax.fori_loop(1, n + 1, body, dd.from_float(jnp.zeros(())))

    found = sum(map(Fraction, floats(telescope(3000))))
    assert abs(found - Fraction(3000, 3001)) < 1e-29


def test_sum_that_cancels_to_its_last_digits():
    rng = np.random.default_rng(5)
    terms = rng.normal(size=500)
    terms = np.concatenate([terms, -terms[::-1] * (1 + 2.0**-52), [1e-20, 3e-25]])
    add = lambda k, total: dd.add_float(total, jnp.asarray(terms)[k])
    found = jax.jit(lambda: lax.fori_loop(0, terms.size, add, dd.from_float(jnp.zeros(()))))()
    exact = sum(map(Fraction, terms.tolist()))
    assert abs(sum(map(Fraction, floats(found))) - exact) < terms.size * 500 * UNIT**2


@settings(max_examples=100, deadline=None)
@given(
    size=st.floats(-60, math.log10(64)),
    sign=st.sampled_from([-1, 1]),
    low=st.floats(-1, 1),
)
def test_expm1(size, sign, low):
    high = sign * 10.0**size
    low = low * abs(high) * 2.0**-53
    found = sum(map(mpmath.mpf, floats(expm1((high, low)))))
    with mpmath.workdps(80):
        exact = mpmath.expm1(mpmath.mpf(high) + mpmath.mpf(low))
        found = sum(map(mpmath.mpf, floats(expm1((high, low)))))
        # Beyond 1 the argument's own last digit counts in proportion to it.
        assert abs(found / exact - 1) <= 32 * (1 + abs(high)) * mpmath.mpf(2) ** -106


expm1 = jax.jit(dd.expm1)


def test_expm1_of_zero_and_in_a_batch():
    assert floats(expm1((0.0, 0.0))) == [0.0, 0.0]
    high = np.array([1e-20, -0.5, 3.0])
    found = jax.jit(jax.vmap(lambda x: dd.expm1(dd.from_float(x))))(high)
    np.testing.assert_allclose(found[0], np.expm1(high), rtol=4e-16)


def test_not_a_number_stays_one():
    for operation in (dd.two_sum, dd.two_product):
        assert np.isnan(jax.jit(operation)(np.nan, 1.0)[0])
    assert np.isnan(jax.jit(dd.reciprocal)((np.nan, 0.0))[0])


def test_exponentials_and_logarithms():
    rng = np.random.default_rng(5)
    high = np.concatenate([-np.exp(rng.uniform(-5, np.log(600), 60)), [0.0]])
    low = high * 2.0**-54 * rng.uniform(-1, 1, 61)
    found = jax.jit(dd.exp)((jnp.asarray(high), jnp.asarray(low)))
    growth = np.concatenate(
        [10.0 ** rng.uniform(-30, 3, 40), -(10.0 ** rng.uniform(-30, -0.1, 20))]
    )
    rest = growth * 2.0**-54 * rng.uniform(-1, 1, 60)
    logarithms = jax.jit(dd.log1p)((jnp.asarray(growth), jnp.asarray(rest)))
    roots = jax.jit(dd.sqrt)((jnp.asarray(abs(growth)), jnp.asarray(abs(rest))))
    with mpmath.workdps(60):
        real = lambda a, b: mpmath.mpf(float(a)) + mpmath.mpf(float(b))
        for pair, arguments, exact in (
            (found, (high, low), mpmath.exp),
            (logarithms, (growth, rest), mpmath.log1p),
            (roots, (abs(growth), abs(rest)), mpmath.sqrt),
        ):
            for a, b, c, d in zip(*pair, *arguments, strict=True):
                value = exact(real(c, d))
                assert abs(real(a, b) - value) <= 1e-28 * abs(value)
