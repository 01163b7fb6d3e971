"""Sums do not depend on the units of time and of size."""

import hypothesis
import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj

RNG = np.random.default_rng(0)
TIMES = np.append(0, np.geomspace(0.01, 30, 40))
CLEAN = np.exp(-TIMES) + 0.3 * np.exp(-0.2 * TIMES)
NOISY = CLEAN + 1e-3 * RNG.normal(size=TIMES.size)
EVEN = np.arange(60) * 0.25
RING = np.exp(-0.3 * EVEN) * np.cos(2 * EVEN) + 0.01 * RNG.normal(size=60)


def sums(time, size):
    return mj.ExponentialSum(
        size * jnp.array([1, 0.5, 0.2, 0.1]), jnp.array([1, 0.1, 0.02, 0.003]) / time
    )


def dense(time, size):
    recurrent = np.array([[-1.0, 0.3, 0.0], [0.0, -0.4, 0.0], [0.2, 0.0, -2.0]])
    return mj.StateSpaceKernel(recurrent / time, size * np.ones(3), [1.0, 0.5, -1.0])


# A kernel in units of time and size, what is asked of it in the same, and to what share of it the
# error is the same: rates that run together leave more to rounding.
CASES = {
    "power": (lambda t, s: s * mj.PowerLaw(0.5, t), 3, lambda t: {}, 1e-8),
    "margin": (lambda t, s: s * mj.PowerLaw(0.5, t), 4, lambda t: {"min_rate": 0.1 / t}, 1e-5),
    "horizon": (lambda t, s: s * mj.PowerLaw(0.5, t), 3, lambda t: {"horizon": 100 * t}, 1e-8),
    "sum": (sums, 2, lambda t: {}, 1e-8),
    "own": (sums, 4, lambda t: {}, 1e-8),
    "dense": (dense, 2, lambda t: {}, 1e-8),
    "bump": (lambda t, s: mj.GaussianBump(0.1 / t, s, t), 4, lambda t: {"complex": True}, 1e-8),
    "delayed": (lambda t, s: mj.GaussianBump(0.1 / t, s, t), 4, lambda t: {}, 1e-5),
    "mixed": (
        lambda t, s: mj.ExponentialSum(s, 1 / t) + mj.GaussianBump(0.2 / t, 0.3 * s, 0.5 * t),
        3,
        lambda t: {},
        1e-5,
    ),
    "points": (lambda t, s: mj.SampledKernel(t * TIMES, s * NOISY), 3, lambda t: {}, 1e-8),
    "exact": (lambda t, s: mj.SampledKernel(t * TIMES, s * CLEAN), 2, lambda t: {}, 1e-8),
    "offset": (
        lambda t, s: mj.SampledKernel(t * (1 + TIMES), s * (1 + NOISY)),
        2,
        lambda t: {"offset": True},
        1e-8,
    ),
    "lines": (
        lambda t, s: mj.SampledKernel(t * TIMES, s * NOISY),
        2,
        lambda t: {"samples": "linear"},
        1e-8,
    ),
    "ring": (
        lambda t, s: mj.SampledKernel(t * EVEN, s * RING),
        2,
        lambda t: {"complex": True},
        1e-8,
    ),
}
POWERS = {"L1": 1.0, "L2": 0.5, "sup": 0.0}
FLAGS = ("resolved", "confluent", "noise_limited", "active", "order")


def fitted(name, norm, time, size):
    make, m, options, _ = CASES[name]
    kernel = make(time, size)
    return kernel, mj.best_exponential_sum(kernel, m, norm=norm, **options(time))


def check(name, norm, k, j):
    time, size = 10.0**k, 10.0**j
    kernel, plain = fitted(name, norm, 1.0, 1.0)
    _, found = fitted(name, norm, time, size)
    at_points = isinstance(kernel, mj.SampledKernel) and plain.samples == "points"
    unit = size * time ** (0 if at_points else POWERS[norm])
    for flag in FLAGS:
        assert getattr(found, flag) == getattr(plain, flag), flag
    if not plain.resolved:
        assert found.relative_error < 1e-12
        return
    rtol = CASES[name][3]
    np.testing.assert_allclose(found.error / unit, plain.error, rtol=rtol)
    np.testing.assert_allclose(found.relative_error, plain.relative_error, rtol=rtol)
    if not plain.confluent:
        # Errors are least, so rates are known to the root of what these are.
        rates = np.sort(found.model.rates) * time
        np.testing.assert_allclose(rates, np.sort(plain.model.rates), rtol=10 * rtol**0.5)
    if plain.statistics is not None:
        deviation = plain.statistics.residual_deviation
        np.testing.assert_allclose(found.statistics.residual_deviation / size, deviation, rtol=rtol)


UNITS = {"k": st.integers(-9, 9), "j": st.integers(-9, 9)}


@pytest.mark.parametrize("name", ["sum", "points", "offset"])
def test_units_make_no_difference(name):
    check(name, "L2", -9, 6)


@pytest.mark.slow
@pytest.mark.parametrize("norm", POWERS)
@pytest.mark.parametrize("name", CASES)
@hypothesis.settings(max_examples=3, deadline=None, derandomize=True, database=None)
@hypothesis.given(**UNITS)
def test_no_unit_makes_a_difference(name, norm, k, j):
    check(name, norm, k, j)
