import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memjax as mj

REPARAMETRISATIONS = [mj.Direct(), mj.Exp(), mj.Exp(0.25), mj.Exp(3.0)]
NAMES = ["direct", "exp", "exp with gain 0.25", "exp with gain 3"]


def exact_rates(reparametrisation, free):
    """The rates in the working precision of mpmath."""
    if isinstance(reparametrisation, mj.Direct):
        return free
    return mpmath.exp(mpmath.mpf(float(reparametrisation.gain)) * free)


@pytest.mark.parametrize("reparametrisation", REPARAMETRISATIONS, ids=NAMES)
@settings(max_examples=50, deadline=None)
@given(exponent=st.floats(-300, 300))
def test_inverse_round_trip(reparametrisation, exponent):
    rates = jnp.asarray(10.0**exponent)
    again = reparametrisation(reparametrisation.inverse(rates))
    # The free weight of a rate w is log(w) / g: its rounding is magnified by |log w|.
    rtol = 4e-16 * (1 + abs(exponent) * np.log(10))
    np.testing.assert_allclose(again, rates, rtol=rtol)


@pytest.mark.parametrize("reparametrisation", REPARAMETRISATIONS, ids=NAMES)
@settings(max_examples=100, deadline=None)
@given(
    free=st.floats(-5, 5),
    exponent=st.floats(-30, 0),
    sign=st.sampled_from([-1.0, 1.0]),
)
def test_displacement_keeps_relative_accuracy(reparametrisation, free, exponent, sign):
    change = sign * 10.0**exponent
    found = reparametrisation.displacement(jnp.asarray(free), jnp.asarray(change))
    with mpmath.workdps(80):
        v = mpmath.mpf(free)
        exact = exact_rates(reparametrisation, v + change) - exact_rates(reparametrisation, v)
        error = abs(mpmath.mpf(float(found)) / exact - 1)
    assert error < 1e-14


def test_displacement_of_nothing_is_zero():
    free = jnp.linspace(-3, 3, 7)
    for reparametrisation in REPARAMETRISATIONS:
        assert np.all(reparametrisation.displacement(free, jnp.zeros(7)) == 0)


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
