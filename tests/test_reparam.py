import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import memjax as mj

REPARAMETRISATIONS = [
    mj.Direct(),
    mj.Exp(),
    mj.Exp(0.25),
    mj.Exp(3.0),
    mj.Softplus(),
    mj.Inverse(),
    mj.Best(),
    mj.Best(3.0, 0.5),
    mj.Tanh(),
    mj.Elementwise(lambda v: jnp.exp(v) + jnp.log1p(jnp.exp(v)), lambda w: jnp.log(w)),
]
NAMES = [
    "direct",
    "exp",
    "exp with gain 0.25",
    "exp with gain 3",
    "softplus",
    "inverse",
    "best",
    "best with a = 3 and b = 1/2",
    "tanh",
    "elementwise",
]
INVERTIBLE = REPARAMETRISATIONS[:-1]


def exact_rates(reparametrisation, free):
    """The rates in the working precision of mpmath."""
    match reparametrisation:
        case mj.Direct():
            return free
        case mj.Exp():
            return mpmath.exp(mpmath.mpf(float(reparametrisation.gain)) * free)
        case mj.Softplus():
            return mpmath.log1p(mpmath.exp(free))
        case mj.Inverse():
            return 1 / free**2
        case mj.Best():
            a, b = (mpmath.mpf(float(x)) for x in (reparametrisation.a, reparametrisation.b))
            return 1 / (a * free**2 + b)
        case mj.Tanh():
            return 1 - mpmath.tanh(free)
        case mj.Elementwise():
            return mpmath.exp(free) + mpmath.log1p(mpmath.exp(free))
    raise AssertionError(reparametrisation)


@pytest.mark.parametrize("reparametrisation", INVERTIBLE, ids=NAMES[:-1])
@settings(max_examples=50, deadline=None)
@given(exponent=st.floats(-300, 300))
def test_inverse_round_trip(reparametrisation, exponent):
    if isinstance(reparametrisation, mj.Best | mj.Tanh):
        exponent = -abs(exponent)  # their rates are bounded
    rates = jnp.asarray(10.0**exponent)
    again = reparametrisation(reparametrisation.inverse(rates))
    # The free weight of a rate w is log(w) / g: its rounding is magnified by |log w|.
    rtol = 4e-16 * (1 + abs(exponent) * np.log(10))
    np.testing.assert_allclose(again, rates, rtol=rtol)


@pytest.mark.parametrize("reparametrisation", REPARAMETRISATIONS, ids=NAMES)
@settings(max_examples=100, deadline=None)
@given(
    free=st.floats(-5, 5).filter(lambda v: abs(v) > 1e-3),
    exponent=st.floats(-30, 0),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_displacement_keeps_relative_accuracy(reparametrisation, free, exponent, sign):
    change = sign * 10.0**exponent
    assume(abs(free + change) > 1e-3)
    found = reparametrisation.displacement(jnp.asarray(free), jnp.asarray(change))
    with mpmath.workdps(80):
        v, moved = mpmath.mpf(free), mpmath.mpf(free) + change
        before, after = (exact_rates(reparametrisation, x) for x in (v, moved))
        error = abs(mpmath.mpf(float(found)) - (after - before))
        assert error <= 1e-14 * abs(after - before)


# Free weights at the edge of what the rates' range and float64 allow, and changes of all sizes.
HUGE = [
    (mj.Softplus(), [-700.0, -40.0, 40.0, 700.0, 1e8, 1e200], [1e-250, 1e-9, 3.0, 600.0]),
    (mj.Inverse(), [1e-140, -1e-3, 1e5, -1e100, 1e140], [1e-20, 1e-9, 0.3, -0.9, 50.0]),
    (mj.Best(), [1e-140, -1e5, 1e100, 1e140], [1e-20, 1e-9, 0.3, -0.9, 50.0]),
    (mj.Tanh(), [-350.0, -20.0, 20.0, 350.0], [1e-250, 1e-9, 3.0, 300.0]),
]


@pytest.mark.parametrize("reparametrisation, frees, changes", HUGE, ids=lambda x: type(x).__name__)
def test_displacement_of_huge_weights(reparametrisation, frees, changes):
    relative = isinstance(reparametrisation, mj.Inverse | mj.Best)
    for free in frees:
        for size in changes:
            for change in (free * size,) if relative else (size, -size):
                found = reparametrisation.displacement(jnp.asarray(free), jnp.asarray(change))
                with mpmath.workdps(700):
                    v, moved = mpmath.mpf(free), mpmath.mpf(free) + change
                    exact = exact_rates(reparametrisation, moved)
                    exact -= exact_rates(reparametrisation, v)
                    error = abs(mpmath.mpf(float(found)) - exact)
                    # Exponentials of a weight magnify its rounding by its size.
                    rtol = 4e-16 * (10 + (0 if relative else min(abs(free) + abs(change), 1e3)))
                    assert error <= rtol * abs(exact) + 1e-300, (free, change)


@pytest.mark.slow
def test_displacement_derivatives_at_no_change():
    # The flows take first and second derivatives of the displacement where nothing has moved.
    free = jnp.array([-2.0, -0.3, 0.4, 3.0])
    for reparametrisation in REPARAMETRISATIONS:
        move = lambda d: reparametrisation.displacement(free, d)
        rates = lambda d: reparametrisation(free + d)
        slope = lambda f: lambda d: jax.jvp(f, (d,), (jnp.ones(4),))[1]
        zero = jnp.zeros(4)
        for order in range(2):
            move, rates = slope(move), slope(rates)
            np.testing.assert_allclose(
                move(zero), rates(zero), rtol=1e-13, err_msg=f"{reparametrisation}, {order}"
            )


def test_gradient_over_weight_scales():
    # The table of theory, section 5.
    v = np.array([-3.0, -0.2, 0.5, 4.0])
    sigma = 1 / (1 + np.exp(-v))
    closed_forms = [
        (mj.Direct(), 1 / v**2),
        (mj.Exp(), np.exp(-v)),
        (mj.Exp(2.0), 2 * np.exp(-2 * v)),
        (mj.Softplus(), sigma / np.log1p(np.exp(v)) ** 2),
        (mj.Inverse(), 2 * np.abs(v)),
        (mj.Best(2.0, 0.3), 4 * np.abs(v)),
        (mj.Tanh(), np.exp(2 * v)),
        (mj.Elementwise(lambda v: 3 / v**2), 2 / 3 * np.abs(v)),
    ]
    for reparametrisation, exact in closed_forms:
        found = reparametrisation.gradient_over_weight_scale(jnp.asarray(v))
        np.testing.assert_allclose(found, exact, rtol=1e-13, err_msg=str(reparametrisation))
    # No intermediate overflows before the result.
    far = mj.Best().gradient_over_weight_scale(jnp.asarray(1e90))
    np.testing.assert_allclose(far, 2e90, rtol=1e-14)


def test_discrete_counterparts():
    v = np.array([-1.0, 0.3, 2.0])
    free = jnp.asarray(v)
    np.testing.assert_allclose(mj.Exp().multipliers(free), np.exp(-np.exp(v)), rtol=1e-14)
    np.testing.assert_allclose(
        mj.Best(1.0, 0.5).multipliers(free, rule="euler"), 1 - 1 / (v**2 + 0.5), rtol=1e-14
    )
    np.testing.assert_allclose(mj.Tanh().multipliers(free, rule="euler"), np.tanh(v), rtol=1e-14)
    np.testing.assert_allclose(
        mj.Exp().multipliers(free, 0.1), np.exp(-0.1 * np.exp(v)), rtol=1e-14
    )
    with pytest.raises(ValueError, match=r"`rule` must be one of 'exact', 'euler', got 'tustin'"):
        mj.Exp().multipliers(free, rule="tustin")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"`step` must be positive"):
        mj.Exp().multipliers(free, 0.0)


@pytest.mark.parametrize("reparametrisation", INVERTIBLE[1:], ids=NAMES[1:-1])
def test_rates_outside_the_domain_are_refused(reparametrisation):
    for rate in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ValueError, match=r"`rates` must be (positive|finite), got"):
            reparametrisation.inverse(jnp.asarray(rate))


def test_rates_above_the_range_are_refused():
    best = mj.Best(1.0, 0.1)
    assert best.inverse(1 / best.b) == 0
    with pytest.raises(ValueError, match=r"`rates` must be at most 1/b = 10, got 10.5"):
        best.inverse(jnp.array([1.0, 10.5]))
    with pytest.raises(ValueError, match=r"`rates` must be less than 2, got 2.0"):
        mj.Tanh().inverse(jnp.asarray(2.0))
    for name in ("a", "b"):
        with pytest.raises(ValueError, match=rf"`{name}` must be positive, got -1.0"):
            mj.Best(**{name: -1.0})


def test_any_function_is_a_reparametrisation():
    cube = mj.Elementwise(lambda v: v**3, jnp.cbrt)
    rnn = mj.DiagonalLinearRNN([1.0, 2.0], [0.1, 8.0], cube)
    np.testing.assert_allclose(rnn.rates, [0.1, 8.0], rtol=1e-14)
    np.testing.assert_allclose(rnn.free_rates, np.cbrt([0.1, 8.0]), rtol=1e-14)
    # Functions are no leaves, so that models pass through `jax.jit` as they are.
    np.testing.assert_allclose(jax.jit(lambda rnn: rnn.rates)(rnn), [0.1, 8.0], rtol=1e-14)
    with pytest.raises(ValueError, match=r"`inverse` must be given"):
        mj.DiagonalLinearRNN([1.0], [1.0], mj.Elementwise(jnp.exp))
    with pytest.raises(ValueError, match=r"`inverse` must undo `function`"):
        mj.DiagonalLinearRNN([1.0], [3.0], mj.Elementwise(jnp.exp, jnp.sqrt))
    with pytest.raises(TypeError, match=r"`function` must be a function"):
        mj.Elementwise(1.0)  # pyright: ignore[reportArgumentType]


def test_leaves_of_a_module_are_held_fixed():
    scaled = mj.Elementwise(mj.Exp(2.0), lambda w: jnp.log(w) / 2)
    rnn = mj.DiagonalLinearRNN([1.0], [0.5], scaled)
    assert len(jax.tree.leaves(rnn)) == 3
    assert sum(jax.tree.leaves(mj.trainable(rnn))) == 2
    np.testing.assert_allclose(
        jax.grad(lambda model: model.rates[0])(rnn).reparametrisation.function.gain,
        np.log(0.5) / 2 * 0.5,
        rtol=1e-14,
    )


def test_displacement_of_nothing_is_zero():
    free = jnp.linspace(-3, 3, 7)
    free = free[free != 0]
    for reparametrisation in REPARAMETRISATIONS:
        assert np.all(reparametrisation.displacement(free, jnp.zeros(6)) == 0)


def test_gain_is_a_leaf():
    gains = jnp.array([0.5, 1.0, 2.0])
    rates = jax.vmap(lambda gain: mj.Exp(gain)(jnp.asarray(0.3)))(gains)
    np.testing.assert_allclose(rates, np.exp(0.3 * np.asarray(gains)), rtol=1e-15)
    slope = jax.grad(lambda gain: mj.Exp(gain)(jnp.asarray(0.3)))(2.0)
    np.testing.assert_allclose(slope, 0.3 * np.exp(0.6), rtol=1e-14)


@pytest.mark.parametrize("gain", [0.0, -1.0, np.nan, np.inf])
def test_gain_must_be_positive(gain):
    with pytest.raises(ValueError, match=r"`gain` must be (positive|finite)"):
        mj.Exp(gain)


@pytest.mark.parametrize("gain", ["fast", None, 1j])
def test_gain_must_be_a_number(gain):
    with pytest.raises(TypeError, match=r"`gain` must be"):
        mj.Exp(gain)
