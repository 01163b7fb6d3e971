import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memjax.targets import ExponentialSum

AMPLITUDES, RATES = np.array([1.0, -0.4, 2.5]), np.array([1.0, 0.03, 7.0])


@pytest.fixture
def kernel():
    return ExponentialSum(amplitudes=AMPLITUDES, rates=RATES)


def quad(function, end):
    with mp.workdps(30):
        nodes = [t for t in (0, 0.5, 2, 10) if t < end] + [end]
        return float(mp.quad(function, nodes))


def rho(t):
    return mp.fsum(a * mp.exp(-w * t) for a, w in zip(AMPLITUDES, RATES, strict=True))


def test_kernel(kernel):
    t = np.array([[-1.0, 0.0], [0.3, 40.0]])
    exact = [[0.0, 3.1], [float(rho(0.3)), float(rho(40.0))]]
    np.testing.assert_allclose(kernel(t), exact, rtol=1e-14)


@pytest.mark.parametrize("horizon", [1e-9, 0.2, 3.0, 60.0])
def test_finite_horizon(kernel, horizon):
    for s in (1e-6, 0.5, 20.0):
        exact = quad(lambda t, s=s: mp.exp(-s * t) * rho(t), horizon)
        np.testing.assert_allclose(kernel.laplace(s, horizon), exact, rtol=1e-13)
        exact = quad(lambda t, s=s: t**2 * mp.exp(-s * t) * rho(t), horizon)
        second = jax.grad(jax.grad(kernel.laplace))(s, horizon)
        np.testing.assert_allclose(second, exact, rtol=1e-12)
    exact = quad(lambda t: rho(t) ** 2, horizon)
    np.testing.assert_allclose(kernel.squared_norm(horizon), exact, rtol=1e-13)


def test_infinite_horizon(kernel):
    s = np.array([0.01, 1.0, 30.0])
    terms = AMPLITUDES / (s[:, None] + RATES)
    np.testing.assert_allclose(kernel.laplace(s), terms.sum(-1), rtol=1e-14)
    np.testing.assert_allclose(
        kernel.squared_norm(),
        (np.outer(AMPLITUDES, AMPLITUDES) / np.add.outer(RATES, RATES)).sum(),
        rtol=1e-14,
    )


def test_responses(kernel):
    t = np.array([-1.0, 0.0, 1e-9, 0.3, 5.0, 80.0])
    steps = [quad(rho, u) if u > 0 else 0 for u in t]
    ramps = [quad(lambda v, u=u: (u - v) * rho(v), u) if u > 0 else 0 for u in t]
    np.testing.assert_allclose(kernel.heaviside_response(t), steps, rtol=1e-13)
    np.testing.assert_allclose(kernel.ramp_response(t), ramps, rtol=1e-13)
    for u in (0.3, 5.0):
        np.testing.assert_allclose(jax.grad(kernel.heaviside_response)(u), kernel(u), rtol=1e-13)
        np.testing.assert_allclose(
            jax.grad(kernel.ramp_response)(u), kernel.heaviside_response(u), rtol=1e-13
        )


def test_arrays_of_horizons_broadcast(kernel):
    s, horizon = jnp.array([0.1, 1.0, 4.0])[:, None], jnp.array([0.0, 2.0])
    values = kernel.laplace(s, horizon)
    assert values.shape == (3, 2)
    np.testing.assert_allclose(values[1, 1], kernel.laplace(1.0, 2.0), rtol=1e-15)
    np.testing.assert_array_equal(values[:, 0], 0)
    assert kernel.squared_norm(horizon).shape == (2,)
    np.testing.assert_allclose(jax.grad(kernel.squared_norm)(2.0), kernel(2.0) ** 2, rtol=1e-13)


def test_jit_and_vmap_over_the_leaves(kernel):
    rates = jnp.stack([RATES, 2 * RATES])
    batched = jax.vmap(lambda rates: ExponentialSum(AMPLITUDES, rates).laplace(0.3))(rates)
    np.testing.assert_allclose(batched[1], ExponentialSum(AMPLITUDES, rates[1]).laplace(0.3))
    np.testing.assert_allclose(
        jax.jit(lambda kernel: kernel.laplace(0.3))(kernel), kernel.laplace(0.3), rtol=1e-14
    )
    gradient = jax.grad(lambda kernel: kernel.laplace(0.3))(kernel)
    np.testing.assert_allclose(gradient.rates, -AMPLITUDES / (0.3 + RATES) ** 2, rtol=1e-14)


def test_a_scalar_is_one_term_and_no_term_is_zero():
    one = ExponentialSum(2.0, 3)
    assert one.amplitudes.shape == one.rates.shape == (1,)
    assert one.rates.dtype == jnp.float64
    empty = ExponentialSum(jnp.zeros(0), jnp.zeros(0))
    t = jnp.array([0.5, 2.0])
    for value in (empty(t), empty.laplace(t), empty.laplace(t, 1.0), empty.ramp_response(t)):
        np.testing.assert_array_equal(value, [0, 0])
    assert empty.squared_norm() == 0
    assert empty.squared_norm(3.0) == 0


@settings(max_examples=40, deadline=None)
@given(st.floats(-9, 9), st.floats(1e-3, 50), st.floats(1e-3, 50), st.floats(0, 100))
def test_transform_is_linear_in_the_amplitude_and_decreasing(amplitude, rate, s, horizon):
    unit, scaled = ExponentialSum(1.0, rate), ExponentialSum(amplitude, rate)
    np.testing.assert_allclose(
        scaled.laplace(s, horizon), amplitude * unit.laplace(s, horizon), rtol=1e-14
    )
    assert 0 < unit.laplace(1.01 * s) < unit.laplace(s)
    assert 0 <= unit.laplace(s, horizon) <= unit.laplace(s) * (1 + 1e-15)


@pytest.mark.parametrize(
    ("amplitudes", "rates", "error", "message"),
    [
        ([1.0], [0.0], ValueError, "`rates` must be positive, got 0.0"),
        ([1.0, 1.0], [1.0, -2.0], ValueError, "`rates` must be positive, got -2.0"),
        ([1.0], [np.inf], ValueError, "`rates` must be finite, got inf"),
        ([np.nan], [1.0], ValueError, "`amplitudes` must be finite, got nan"),
        ([1.0, 2.0], [1.0], ValueError, r"must have the same shape, got \(2,\) and \(1,\)"),
        ([[1.0]], [[1.0]], ValueError, r"`amplitudes` must have one dimension, got shape \(1, 1"),
        ([1j], [1.0], TypeError, "`amplitudes` must be real"),
    ],
)
def test_bad_arguments_are_refused(amplitudes, rates, error, message):
    with pytest.raises(error, match=message):
        ExponentialSum(np.array(amplitudes), np.array(rates))
