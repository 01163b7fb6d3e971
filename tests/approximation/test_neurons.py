"""How many neurons are needed, and the constants of the direct theorem."""

import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj


def test_neurons_for_a_sum_of_three():
    kernel = mj.ExponentialSum([1.0, 1.0, 1.0], [1.0, 0.1, 0.01])
    found = mj.neurons_needed(kernel, 1e-9)
    assert found.reached
    assert found.neurons == found.lower_bound == 3
    assert found.best.error <= 1e-9
    loose = mj.neurons_needed(kernel, 0.5, relative=True)
    assert loose.neurons == loose.lower_bound == 1


def test_neurons_for_a_power_law():
    free = mj.neurons_needed(mj.PowerLaw(0.5), 1e-3, norm="sup")
    assert free.lower_bound <= free.neurons == 4
    assert free.best.order == 4
    below = np.asarray(free.errors)[np.asarray(free.orders) < 4]
    assert np.all(below > 1e-3)


@pytest.mark.slow
def test_neurons_for_a_power_law_with_a_margin():
    kept = mj.neurons_needed(mj.PowerLaw(0.5), 1e-3, norm="sup", min_rate=0.2, max_neurons=6)
    assert not kept.reached and kept.neurons == 0
    assert kept.best.error == np.min(kept.errors) > 1e-3


def test_an_error_of_zero_is_refused():
    with pytest.raises(ValueError, match="`error` must be positive"):
        mj.neurons_needed(mj.PowerLaw(0.5), 0.0)


def test_constants_of_one_exponential():
    # y^(k) = +-w^(k-1) exp(-w t), so beta = w and gamma = 1 / w for every alpha.
    rate = mj.approximation_rate(mj.ExponentialSum(1.0, 0.5), widths=(1, 2), alphas=(1, 3))
    np.testing.assert_allclose(rate.beta, 0.5, rtol=1e-6)
    np.testing.assert_allclose(rate.gamma, 2.0, rtol=1e-5)
    np.testing.assert_allclose(rate.bound, [4.0, 0.5], rtol=1e-5)
    np.testing.assert_allclose(rate.theorem(jnp.array([1.0, 2.0])), rate.bound)
    # Rounding is no rate.
    assert np.isnan(rate.exponent) and np.isnan(rate.exponential)


@pytest.mark.slow
def test_constants_of_a_bump_by_brute_force():
    rate = mj.approximation_rate(mj.GaussianBump(0.1), alphas=(1,), widths=(4, 8))
    times = np.linspace(0, 25, 100_001)
    kernel = np.exp(-((times - 10) ** 2) / 2)
    betas = np.linspace(0.05, 1, 400)
    sizes = [
        max(
            np.max(np.exp(b * times) * abs(d)) / b**k
            for k, d in ((1, kernel), (2, kernel * (times - 10)))
        )
        / b
        for b in betas
    ]
    np.testing.assert_allclose(rate.gamma / rate.beta, np.min(sizes), rtol=1e-3)
    assert rate.errors[1] < rate.errors[0] < rate.bound[0]


@pytest.mark.parametrize(
    "kernel, reason",
    [
        (mj.PowerLaw(0.5), "got PowerLaw with memory 'polynomial': no beta"),
        (mj.Box(1.0, 2.0), "got Box, which jumps"),
        (mj.SampledKernel([0.0, 1.0, 2.0, 3.0], [1.0, 0.5, 0.2, 0.0]), "order 1 that jumps"),
        (mj.Sine(), "got Sine"),
    ],
    ids=["power", "box", "samples", "sine"],
)
def test_kernels_that_do_not_qualify(kernel, reason):
    with pytest.raises(ValueError, match=reason):
        mj.approximation_rate(kernel)
