"""Sums over many decades of time, against fixed rates and fine evaluations in NumPy."""

import equinox as eqx
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
import scipy.optimize

import memjax as mj


class Hidden(mj.AbstractKernel):
    """A kernel that does not tell what it is made of."""

    inner: mj.ExponentialSum

    def __call__(self, t):
        return self.inner(t)

    def laplace(self, s, horizon=jnp.inf):
        return self.inner.laplace(s, horizon)

    def squared_norm(self, horizon=jnp.inf):
        return self.inner.squared_norm(horizon)

    def heaviside_response(self, t):
        return self.inner.heaviside_response(t)

    def ramp_response(self, t):
        return self.inner.ramp_response(t)

    def breakpoints(self):
        return self.inner.breakpoints()

    def support(self):
        return self.inner.support()


def spectrum(terms=31, first=-28.0, last=2.0, seed=0):
    """A relaxation spectrum of uneven lines over 30 decades."""
    rng = np.random.default_rng(seed)
    rates = 10 ** (np.linspace(first, last, terms) + rng.uniform(-0.3, 0.3, terms))
    return rng.uniform(0.01, 0.06, terms), rates


def measured():
    """A relaxation modulus as a master curve has it: from 3e-3 s to 1e28 s, a glassy and a rubbery
    plateau, and the noise of the pieces that were shifted together."""
    rng = np.random.default_rng(1)
    times = np.sort(10 ** np.concatenate([rng.uniform(-2.5, 1, 60), rng.uniform(1, 28, 420)]))
    logs = np.linspace(-30, 3, 400)
    heights = np.exp(-(((logs + 6) / 7) ** 2)) + 0.4 * np.exp(-(((logs + 17) / 4) ** 2))
    heights *= 1600 / heights.sum()
    clean = 85 + np.exp(-np.outer(times, 10**logs)) @ heights
    pieces = np.repeat(rng.normal(size=24), 20)
    return times, clean * (1 + 2e-3 * pieces + 5e-4 * rng.normal(size=times.size))


def fixed_rates(times, values, m, size):
    """The least error of least squares and of nonnegative ones with geometric rates."""
    best = np.inf
    for low in (0.1, 1.0, 10.0):
        for high in (0.1, 1.0, 10.0):
            rates = np.geomspace(low / times[-1], high / times[times > 0][0], m)
            columns = np.exp(-np.outer(times, rates))
            for a in (np.linalg.lstsq(columns, values)[0], scipy.optimize.nnls(columns, values)[0]):
                best = min(best, size(values - columns @ a))
    return best


SIZES = {
    "L1": lambda e: np.mean(np.abs(e)),
    "L2": lambda e: np.sqrt(np.mean(e**2)),
    "sup": lambda e: np.max(np.abs(e)),
}


@pytest.mark.parametrize("norm", ["L1", "L2", "sup"])
@pytest.mark.parametrize("hidden", [False, True])
def test_two_exponentials_twelve_decades_apart(norm, hidden):
    kernel = mj.ExponentialSum([1.0, 1.0], [1e-12, 1.0])
    found = mj.best_exponential_sum(Hidden(kernel) if hidden else kernel, 2, norm=norm)
    assert found.relative_error < 3e-15
    assert not found.resolved and not found.confluent
    if norm == "sup":
        np.testing.assert_allclose(np.sort(found.model.rates), [1e-12, 1.0], rtol=1e-10)


@pytest.mark.parametrize("norm", ["L1", "L2", "sup"])
def test_a_spectrum_over_thirty_decades_is_its_own_best_sum(norm):
    found = mj.best_exponential_sum(mj.ExponentialSum(*spectrum()), 31, norm=norm)
    assert found.relative_error < 1e-14
    assert not found.resolved and not found.confluent
    wider = mj.best_exponential_sum(mj.ExponentialSum(*spectrum(5)), 7, norm=norm)
    assert wider.relative_error < 1e-14 and not wider.confluent


@pytest.mark.slow
@pytest.mark.parametrize("terms", [12, 31])
def test_a_spectrum_that_does_not_tell_is_recovered(terms):
    a, w = spectrum(terms)
    found = mj.best_exponential_sum(Hidden(mj.ExponentialSum(a, w)), terms, norm="sup")
    assert found.relative_error < 1e-13
    np.testing.assert_allclose(np.sort(found.model.rates), w, rtol=1e-8)


@pytest.mark.parametrize("m", [8, pytest.param(20, marks=pytest.mark.slow)])
def test_a_part_of_a_spectrum(m):
    a, w = spectrum()
    found = mj.best_exponential_sum(mj.ExponentialSum(a, w), m, norm="sup")
    times = np.append(0, np.geomspace(1e-5, 1e31, 10_001))
    exact = np.exp(-np.outer(times, w)) @ a
    model = found.model
    sums = np.exp(-np.outer(times, np.asarray(model.rates))) @ np.asarray(model.amplitudes)
    np.testing.assert_allclose(found.error, np.max(np.abs(exact - sums)), rtol=1e-4)
    assert found.lower_bound <= found.error
    if m == 8:
        # Equal extrema of alternating sign: nothing better exists.
        assert found.lower_bound > 0.99 * found.error
    seen = times < 3e28
    assert found.error < 0.6 * fixed_rates(times[seen], exact[seen], m, SIZES["sup"])
    assert not found.confluent


def test_the_l2_error_over_many_decades_in_fifty_digits():
    a, w = spectrum(13, -12.0, 0.0)
    found = mj.best_exponential_sum(mj.ExponentialSum(a, w), 4)
    with mpmath.workdps(50):
        parts = [(mpmath.mpf(float(x)), mpmath.mpf(float(r))) for x, r in zip(a, w, strict=True)]
        model = zip(found.model.amplitudes, found.model.rates, strict=True)
        parts += [(-mpmath.mpf(float(x)), mpmath.mpf(float(r))) for x, r in model]
        square = sum(x * y / (u + v) for x, u in parts for y, v in parts)
        error = float(mpmath.sqrt(square))
    np.testing.assert_allclose(found.error, error, rtol=1e-8)


@pytest.mark.parametrize("norm", ["L1", "L2", "sup"])
def test_a_measured_master_curve(norm):
    times, values = measured()
    found = mj.best_exponential_sum(mj.SampledKernel(times, values), 16, norm=norm)
    a, w = np.asarray(found.model.amplitudes), np.asarray(found.model.rates)
    error = SIZES[norm](values - np.exp(-np.outer(times, w)) @ a)
    np.testing.assert_allclose(found.error, error, rtol=1e-9)
    assert error < 0.6 * fixed_rates(times, values, 16, SIZES[norm])
    assert not found.confluent and np.max(np.abs(a)) < np.max(values)
    if norm == "sup":
        assert found.lower_bound > 0.98 * found.error


@pytest.mark.slow
def test_a_measured_master_curve_joined_by_lines():
    times, values = measured()
    times = times - times[0]
    kernel = mj.SampledKernel(times, values)
    found = mj.best_exponential_sum(kernel, 16, norm="sup", samples="linear")
    a, w = np.asarray(found.model.amplitudes), np.asarray(found.model.rates)
    fine = np.unique(
        np.concatenate([times[:-1] + s * np.diff(times) for s in np.linspace(0, 1, 41)])
    )
    error = np.max(np.abs(np.interp(fine, times, values) - np.exp(-np.outer(fine, w)) @ a))
    np.testing.assert_allclose(found.error, error, rtol=1e-3)
    assert error < 0.6 * fixed_rates(times, values, 16, SIZES["sup"])
    assert not found.confluent and np.max(np.abs(a)) < np.max(values)


def test_a_dense_model_and_oscillations_over_many_decades_are_recovered():
    rates = np.array([1e-9, 1e-5, 2e-1, 3.0])
    mixed = np.triu(np.ones((4, 4)), 1) * 1e-10 - np.diag(rates)
    dense = mj.StateSpaceKernel(mixed, np.ones(4), np.array([1.0, -1.0, 2.0, 0.5]))
    assert mj.best_exponential_sum(dense, 4).relative_error < 1e-12
    slow = mj.ExponentialSum([0.5], [1e-6])
    mode = mj.DampedOscillation([1.0], [0.2], [0.3], [2.0])
    found = mj.best_exponential_sum(slow + 2.0 * mode, 3, norm="sup", complex=True)
    assert found.relative_error < 1e-12
    np.testing.assert_allclose(np.max(found.model.frequencies), 2.0, rtol=1e-8)


def test_the_l1_error_is_a_minimum():
    found = mj.best_exponential_sum(mj.PowerLaw(0.5), 2, norm="L1")
    u = np.linspace(np.log(1e-9), np.log(1e15), 100_001)
    times, step = np.exp(u), u[1] - u[0]

    def size(parameters):
        sums = np.exp(-np.outer(times, np.exp(parameters[2:]))) @ parameters[:2]
        return np.sum(np.abs((1 + times) ** -1.5 - sums) * times) * step

    best = np.concatenate([found.model.amplitudes, np.log(found.model.rates)])
    least = scipy.optimize.minimize(size, best, method="Nelder-Mead", options={"maxfev": 150}).fun
    left = 2 / np.sqrt(1 + times[-1])
    np.testing.assert_allclose(found.error, size(best) + left, rtol=1e-6)
    assert size(best) < least * (1 + 1e-7)


def test_a_kernel_that_says_nothing_of_itself_in_any_unit():
    class Stretched(mj.AbstractKernel):
        time: jnp.ndarray = eqx.field(converter=jnp.asarray)

        def __call__(self, t):
            return jnp.where(t < 0, 0, jnp.exp(-jnp.sqrt(jnp.maximum(t, 1e-300) / self.time)))

        def laplace(self, s, horizon=jnp.inf):
            raise NotImplementedError

        def squared_norm(self, horizon=jnp.inf):
            return self.time / 2

        def heaviside_response(self, t):
            raise NotImplementedError

        def ramp_response(self, t):
            raise NotImplementedError

    errors = []
    for unit in (1.0, 1e-12, 1e9):
        found = mj.best_exponential_sum(Stretched(unit), 3)
        errors.append(found.error / np.sqrt(unit))
        a, w = np.asarray(found.model.amplitudes), np.asarray(found.model.rates) * unit
        u = np.linspace(-60, 12, 60_001)
        t = np.exp(u)
        square = np.sum((np.exp(-np.sqrt(t)) - np.exp(-np.outer(t, w)) @ a) ** 2 * t) * (
            u[1] - u[0]
        )
        np.testing.assert_allclose(errors[-1], np.sqrt(square), rtol=1e-5)
    np.testing.assert_allclose(errors, errors[0], rtol=1e-6)
