"""Lower bounds, against Gramians and against sums that are near them."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import memjax as mj


def test_hankel_singular_values_of_an_exponential_sum():
    amplitudes, rates = np.array([1.0, 0.5, -0.3]), np.array([1.0, 0.2, 0.05])
    # Both Gramians of the balanced form are the Cauchy matrix, one of them with the amplitudes.
    cauchy = 1 / (rates[:, None] + rates)
    products = cauchy @ np.diag(amplitudes) @ cauchy @ np.diag(amplitudes)
    exact = np.sort(np.sqrt(np.abs(scipy.linalg.eigvals(products))))[::-1]
    found = mj.approximation_lower_bounds(mj.ExponentialSum(amplitudes, rates), norm="L1")
    np.testing.assert_allclose(found[:3], exact, rtol=1e-6)
    assert np.all(found[:3] <= exact * (1 + 1e-12))
    assert np.all(found[3:] == 0)


@pytest.mark.parametrize(
    "kernel", [mj.ExponentialSum([1.0, 2.0], [1.0, 0.1]), mj.Box(1.0, 3.0)], ids=["sum", "box"]
)
def test_bounds_of_order_zero_are_near_the_norm_and_below(kernel):
    found = mj.approximation_lower_bounds(kernel)
    norm = float(kernel.squared_norm()) ** 0.5
    assert 0.75 * norm < found[0] <= norm
    assert np.all(np.diff(found) <= 0)


def test_no_bound_exceeds_what_random_models_reach():
    key = np.random.default_rng(0)
    kernel = mj.ExponentialSum(np.ones(4), np.array([2.0, 1.0, 0.4, 0.1]))
    bounds = {
        norm: mj.approximation_lower_bounds(kernel, norm=norm) for norm in ("L1", "L2", "sup")
    }
    times = np.linspace(0, 200, 200_001)
    exact = np.asarray(kernel(times))
    for _ in range(20):
        m = int(key.integers(1, 4))
        rates = np.exp(key.normal(-0.7, 1, m))
        columns = np.exp(-times[:, None] * rates)
        fitted = np.linalg.lstsq(columns[::50], exact[::50], rcond=None)[0]
        error = np.abs(exact - columns @ fitted)
        assert bounds["sup"][m] <= error.max()
        assert bounds["L1"][m] <= np.trapezoid(error, times) * (1 + 1e-6)
        assert bounds["L2"][m] <= np.sqrt(np.trapezoid(error**2, times)) * (1 + 1e-6)


@pytest.mark.slow
def test_bounds_on_a_finite_horizon_are_no_larger():
    kernel = mj.ExponentialSum([1.0, 2.0], [1.0, 0.1])
    for norm in ("L1", "L2"):
        short = mj.approximation_lower_bounds(kernel, norm=norm, horizon=5.0)
        whole = mj.approximation_lower_bounds(kernel, norm=norm)
        assert 0 < short[1] <= whole[1]


def test_the_abel_weight_keeps_the_norm():
    # sum over all singular values squared = squared L2 norm, for any kernel
    found = mj.approximation_lower_bounds(mj.GaussianBump(0.2))
    norm = jnp.sqrt(mj.GaussianBump(0.2).squared_norm())
    np.testing.assert_allclose(found[0], norm, rtol=1e-3)
