"""Fractional integration against gamma functions and quadrature of fifty digits."""

import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

import memjax as mj

ORDERS = [0.01, 0.2, 0.4, 0.49]


def rho(t, d):
    t, d = mp.mpf(t), mp.mpf(d)
    return mp.exp(mp.loggamma(t + d) - mp.loggamma(t + 1) - mp.loggamma(d))


@pytest.mark.parametrize("d", ORDERS)
def test_values_are_ratios_of_gamma_functions(d):
    times = [0, 1e-4, 0.3, 1, 2, 17.5, 1e3, 1e8, 1e15]
    with mp.workdps(50):
        exact = [float(rho(t, d)) for t in times]
    found = mj.FractionalIntegration(d, 2.0)(2.0 * np.array(times))
    np.testing.assert_allclose(found, exact, rtol=4e-15)


@pytest.mark.parametrize("d", [0.2, 0.49])
def test_integrals(d):
    kernel = mj.FractionalIntegration(d, 3.0)
    with mp.workdps(30):
        panels = [0, 0.1, 1, 4, 16, 64, 256]
        over = lambda f, ends: float(mp.quad(f, ends))
        decay = lambda t: mp.exp(-t / 2) * rho(t, d)
        np.testing.assert_allclose(
            kernel.laplace(0.5 / 3), 3 * over(decay, [*panels, mp.inf]), rtol=1e-13
        )
        ends = [0, 0.1, 1, 5]
        np.testing.assert_allclose(kernel.laplace(0.5 / 3, 15.0), 3 * over(decay, ends), rtol=1e-13)
        step = 3 * over(lambda t: rho(t, d), ends)
        np.testing.assert_allclose(kernel.heaviside_response(15.0), step, rtol=1e-13)
        ramp = 9 * over(lambda t: (5 - t) * rho(t, d), ends)
        np.testing.assert_allclose(kernel.ramp_response(15.0), ramp, rtol=1e-13)
        square = lambda t: rho(t, d) ** 2
        np.testing.assert_allclose(kernel.squared_norm(15.0), 3 * over(square, ends), rtol=1e-13)
        # In log t the tail is an exponential, at last that of a power.
        tail = over(lambda v: square(mp.exp(v)) * mp.exp(v), [mp.log(5), 5, 10, 20, 30])
        tail += float(mp.exp(30 * (2 * mp.mpf(d) - 1)) / (1 - 2 * mp.mpf(d)) / mp.gamma(d) ** 2)
        whole = 3 * (over(square, ends) + tail)
        np.testing.assert_allclose(kernel.squared_norm(), whole, rtol=1e-12)


def test_inner_products_and_derivatives():
    kernel = mj.FractionalIntegration(0.3)
    product = mj.inner_product(kernel, mj.ExponentialSum([2.0], [0.7]))
    np.testing.assert_allclose(product, 2 * kernel.laplace(0.7), rtol=1e-13)
    slope = jax.grad(lambda s: kernel.laplace(s))(0.7)
    with mp.workdps(30):
        exact = -mp.quad(lambda t: t * mp.exp(-0.7 * t) * rho(t, 0.3), [0, 1, 4, 16, 64, mp.inf])
        change = mp.diff(lambda d: rho(7.5, d), 0.3)
    np.testing.assert_allclose(slope, float(exact), rtol=1e-12)
    value = lambda d: mj.FractionalIntegration(d)(7.5)
    np.testing.assert_allclose(jax.grad(value)(0.3), float(change), rtol=1e-12)
    transforms = mj.targets.complex_transforms(kernel, jnp.array([0.7 + 0j]), 1)
    assert transforms is not None
    first, second = transforms
    np.testing.assert_allclose(first[0], kernel.laplace(0.7), rtol=1e-13)
    np.testing.assert_allclose(second[0], slope, rtol=1e-13)


def test_what_it_says_of_itself():
    kernel = mj.FractionalIntegration(0.3)
    assert (kernel.memory, kernel.in_l1, kernel.in_l2) == ("polynomial", False, True)
    assert kernel.laplace(0.0) == jnp.inf and kernel.support() == jnp.inf
    decay = mj.memory_decay(mj.memory_function(kernel, np.geomspace(1, 1e4, 60)))
    assert decay.verdict == "polynomial"
    assert decay.exponent == pytest.approx(0.7, abs=0.02)


def test_a_model_is_trained_on_it():
    loss = mj.WhiteNoiseLoss(mj.FractionalIntegration(0.3), horizon=50.0)
    model = mj.DiagonalLinearRNN([0.5, 0.1], [1.0, 0.1])
    gradient = loss.gradient(model)
    step = 1e-6
    moved = lambda eps: float(loss(mj.DiagonalLinearRNN([0.5 + eps, 0.1], [1.0, 0.1])))
    slope = (moved(step) - moved(-step)) / (2 * step)
    np.testing.assert_allclose(gradient.amplitudes[0], slope, rtol=1e-7)


@pytest.mark.parametrize("d", [-0.4, 0.0, 0.3, 1.0, 2.0])
def test_weights_are_binomial_coefficients(d):
    found = mj.fractional_weights(d, 12)
    exact = [float((-1) ** j * mp.binomial(mp.mpf(d), j)) for j in range(12)]
    np.testing.assert_allclose(found, exact, rtol=1e-13, atol=1e-16)


def test_differencing_undoes_integration():
    product = np.convolve(mj.fractional_weights(0.4, 300), mj.fractional_weights(-0.4, 300))[:300]
    np.testing.assert_allclose(product, np.eye(1, 300)[0], atol=1e-14)
    whole = mj.FractionalIntegration(0.4)(np.arange(300.0))
    np.testing.assert_allclose(mj.fractional_weights(-0.4, 300), whole, rtol=1e-12)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mj.FractionalIntegration(0.5), "`order` must be from 0.01 to below 0.5, got 0.5"),
        (lambda: mj.FractionalIntegration(-0.2), "`order`"),
        (lambda: mj.FractionalIntegration(np.nan), "`order`"),
        (lambda: mj.FractionalIntegration([0.2, 0.3]), "`order`"),
        (lambda: mj.FractionalIntegration(0.3, 0.0), "`scale`"),
        (lambda: mj.fractional_weights(0.3, 0), "`count`"),
        (lambda: mj.fractional_weights(np.inf, 3), "`order`"),
    ],
)
def test_bad_arguments_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_traced_order_out_of_range_gives_nan():
    values = jax.vmap(lambda order: mj.FractionalIntegration(order)(2.0))(
        jnp.array([0.3, 0.7, 0.0])
    )
    np.testing.assert_array_equal(jnp.isnan(values), [False, True, True])
