"""Least squares at samples, against NIST's certified problems and SciPy's `curve_fit`."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import memjax as mj

# Lanczos's example, which NIST rounds to three accuracies: 0.0951 e^-x + 0.8607 e^-3x +
# 1.5576 e^-5x. Certified amplitudes and rates with their standard deviations, slowest rate first,
# and the residual standard deviation (NIST StRD, Lanczos1, Lanczos2, Lanczos3).
LANCZOS_TIMES = 0.05 * np.arange(24)
LANCZOS = np.exp(-np.outer(LANCZOS_TIMES, [1, 3, 5])) @ [0.0951, 0.8607, 1.5576]
CERTIFIED = {
    "Lanczos1": (
        np.array([float(f"{y:.12e}") for y in LANCZOS]),
        [9.5100000027e-02, 8.6070000013e-01, 1.5575999998e00],
        [1.0000000001e00, 3.0000000002e00, 5.0000000001e00],
        [5.3347304234e-11, 1.3576062225e-10, 1.8815731448e-10],
        [2.7473038179e-10, 3.3308253069e-10, 1.1057500538e-10],
        8.9156129349e-14,
    ),
    "Lanczos2": (
        np.array([float(f"{y:.5e}") for y in LANCZOS]),
        [9.6251029939e-02, 8.6424689056e-01, 1.5529016879e00],
        [1.0057332849e00, 3.0078283915e00, 5.0028798100e00],
        [6.6770575477e-04, 1.7185846685e-03, 2.3744381417e-03],
        [3.3989646176e-03, 4.1707005856e-03, 1.3958787284e-03],
        1.1130395851e-06,
    ),
    "Lanczos3": (
        np.round(LANCZOS, 4),
        [8.6816414977e-02, 8.4400777463e-01, 1.5825685901e00],
        [9.5498101505e-01, 2.9515951832e00, 4.9863565084e00],
        [1.7197908859e-02, 4.1488663282e-02, 5.8371576281e-02],
        [9.7041624475e-02, 1.0766312506e-01, 3.4436403035e-02],
        2.9923229172e-05,
    ),
}


def fitted(model):
    """Amplitudes and rates from the slowest on, and the order in which the model has them."""
    order = np.argsort(np.asarray(model.rates))
    return np.asarray(model.amplitudes)[order], np.asarray(model.rates)[order], order


@pytest.mark.parametrize("late", [0.0, 3.0])
@pytest.mark.parametrize("name", CERTIFIED)
def test_lanczos_problems_of_nist(name, late):
    values, amplitudes, rates, amplitude_errors, rate_errors, deviation = CERTIFIED[name]
    # Rounding of times that start later is noise of its own for data that are exact.
    exact = name == "Lanczos1"
    found = mj.best_exponential_sum(mj.SampledKernel(LANCZOS_TIMES + late, values), 3)
    a, w, order = fitted(found.model)
    np.testing.assert_allclose(w, rates, rtol=1e-9)
    np.testing.assert_allclose(a * np.exp(-w * late), amplitudes, rtol=1e-9)
    statistics = found.statistics
    rtol = 1e-2 if exact else 1e-8
    np.testing.assert_allclose(statistics.residual_deviation, deviation, rtol=rtol)
    errors = statistics.standard_errors
    np.testing.assert_allclose(errors["rates"][order], rate_errors, rtol=rtol)
    if not late:
        np.testing.assert_allclose(errors["amplitudes"][order], amplitude_errors, rtol=rtol)
    assert int(statistics.degrees_of_freedom) == 18
    square = np.mean((values - np.exp(-np.outer(LANCZOS_TIMES, w)) @ (a * np.exp(-w * late))) ** 2)
    np.testing.assert_allclose(found.error, np.sqrt(square), rtol=1e-2 if exact else 1e-6)
    assert found.lower_bound <= found.error * (1 + 1e-9)
    assert found.samples == "points" and not found.confluent


def test_two_exponentials_and_an_offset_of_nist():
    # MGH17 (Osborne): y = b1 + b2 exp(-b4 x) + b3 exp(-b5 x).
    values = [
        0.844, 0.908, 0.932, 0.936, 0.925, 0.908, 0.881, 0.850, 0.818, 0.784, 0.751, 0.718, 0.685,
        0.658, 0.628, 0.603, 0.580, 0.558, 0.538, 0.522, 0.506, 0.490, 0.478, 0.467, 0.457, 0.448,
        0.438, 0.431, 0.424, 0.420, 0.414, 0.411, 0.406,
    ]  # fmt: skip
    kernel = mj.SampledKernel(10.0 * np.arange(33), values)
    found = mj.best_exponential_sum(kernel, 2, offset=True)
    a, w, order = fitted(found.model)
    np.testing.assert_allclose(a, [1.9358469127e00, -1.4646871366e00], rtol=1e-9)
    np.testing.assert_allclose(w, [1.2867534640e-02, 2.2122699662e-02], rtol=1e-9)
    np.testing.assert_allclose(found.offset, 3.7541005211e-01, rtol=1e-9)
    errors = found.statistics.standard_errors
    np.testing.assert_allclose(errors["offset"], 2.0723153551e-03, rtol=1e-6)
    np.testing.assert_allclose(
        errors["amplitudes"][order], [2.2031669222e-01, 2.2175707739e-01], rtol=1e-6
    )
    np.testing.assert_allclose(
        errors["rates"][order], [4.4861358114e-04, 8.9471996575e-04], rtol=1e-6
    )
    np.testing.assert_allclose(found.statistics.residual_deviation, 1.3970497866e-03, rtol=1e-8)


def curve(times, *parameters):
    m = len(parameters) // 2
    return np.exp(-np.outer(times, parameters[m : 2 * m])) @ parameters[:m] + sum(
        parameters[2 * m :]
    )


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("offset", [False, True])
# Of many samples not all are looked at for every sum.
@pytest.mark.parametrize("seed, count", [(0, 80), (1, 80), (2, 40_000)])
def test_weighted_fits_and_their_covariance_are_those_of_curve_fit(seed, count, offset, absolute):
    rng = np.random.default_rng(seed)
    times = np.sort(rng.uniform(0, 10, count))
    truth = [1.0, 0.7, 2.0 + rng.random(), 0.3] + [0.5] * offset
    sigma = 0.002 * (1 + rng.random(count))
    values = curve(times, *truth) + sigma * rng.normal(size=count)
    exact, covariance = scipy.optimize.curve_fit(
        curve, times, values, p0=truth, sigma=sigma, absolute_sigma=absolute, xtol=1e-14, ftol=1e-14
    )
    found = mj.best_exponential_sum(
        mj.SampledKernel(times, values), 2, weights=sigma**-2, absolute_weights=absolute,
        offset=offset,
    )  # fmt: skip
    statistics = found.statistics
    # The order of the neurons is that of the model.
    if found.model.rates[0] < found.model.rates[1]:
        swapped = [1, 0, 3, 2, 4][: exact.size]
        exact, covariance = exact[swapped], covariance[np.ix_(swapped, swapped)]
    np.testing.assert_allclose(statistics.estimates, exact, rtol=1e-5)
    np.testing.assert_allclose(statistics.covariance, covariance, rtol=1e-3, atol=1e-12)
    weights = sigma**-2
    squares = weights * (values - curve(times, *exact)) ** 2
    np.testing.assert_allclose(found.error, np.sqrt(squares.sum() / weights.sum()), rtol=1e-8)
    quantile = scipy.stats.norm.ppf(0.95)
    if not absolute:
        quantile = scipy.stats.t.ppf(0.95, count - exact.size)
    low, high = statistics.intervals(0.9)["rates"]
    half = quantile * np.sqrt(np.diag(covariance))[2:4]
    np.testing.assert_allclose((high - low) / 2, half, rtol=1e-3)
    np.testing.assert_allclose((high + low) / 2, found.model.rates, rtol=1e-12)


def test_oscillating_samples_and_their_standard_errors():
    rng = np.random.default_rng(3)
    times = np.arange(200) * 0.1

    def wave(t, a, b, w, nu, real, rate):
        oscillation = np.exp(-w * t) * (a * np.cos(nu * t) + b * np.sin(nu * t))
        return oscillation + real * np.exp(-rate * t)

    truth = [1.0, 0.5, 0.3, 4.0, 0.8, 0.1]
    values = wave(times, *truth) + 0.01 * rng.normal(size=200)
    exact, covariance = scipy.optimize.curve_fit(wave, times, values, p0=truth)
    found = mj.best_exponential_sum(mj.SampledKernel(times, values), 3, complex=True)
    model, errors = found.model, found.statistics.standard_errors
    pair, alone = int(np.argmax(model.frequencies)), int(np.argmin(model.frequencies))
    estimates = [
        model.cosine[pair], model.sine[pair], model.rates[pair], model.frequencies[pair],
        model.cosine[alone], model.rates[alone],
    ]  # fmt: skip
    np.testing.assert_allclose(estimates, exact, rtol=1e-6, atol=1e-8)
    spreads = [
        errors["cosine"][pair], errors["sine"][pair], errors["rates"][pair],
        errors["frequencies"][pair], errors["cosine"][alone], errors["rates"][alone],
    ]  # fmt: skip
    np.testing.assert_allclose(spreads, np.sqrt(np.diag(covariance)), rtol=1e-3)
    # What was not free has none.
    assert np.isnan(errors["frequencies"][alone]) and np.isnan(errors["sine"][alone])
    assert int(found.statistics.degrees_of_freedom) == 194


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(8))
def test_no_start_of_curve_fit_finds_less(seed):
    rng = np.random.default_rng(100 + seed)
    m = int(rng.integers(1, 4))
    times = np.sort(rng.uniform(0.2, 8, 60)) if seed % 2 else np.geomspace(1e-3, 1e3, 60)
    rates = np.exp(rng.uniform(np.log(1 / times[-1]), np.log(1 / np.diff(times).min()) - 2, m))
    clean = curve(times, *rng.normal(size=m), *rates)
    values = clean + 0.01 * rng.normal(size=60)
    found = mj.best_exponential_sum(mj.SampledKernel(times, values), m)
    best = np.inf
    for _ in range(40):
        w = np.exp(rng.uniform(np.log(0.1 / times[-1]), np.log(3 / times[1]), m))
        a = np.linalg.lstsq(np.exp(-np.outer(times, w)), values)[0]
        solved = scipy.optimize.least_squares(
            lambda x: curve(times, *x[:m], *np.exp(np.clip(x[m:], -40, 40))) - values,
            np.concatenate([a, np.log(w)]),
            max_nfev=500,
        )
        # Faster than any two samples tell, a rate is no rate.
        if np.all(np.exp(solved.x[m:]) < 10 / np.diff(times).min()):
            best = min(best, np.sqrt(2 * solved.cost / 60))
    assert found.error <= best * (1 + 1e-6)


@pytest.mark.parametrize("norm", ["L1", "sup"])
def test_other_norms_at_points_by_linear_programming(norm):
    rng = np.random.default_rng(5)
    times = np.sort(rng.uniform(0, 10, 60))
    values = np.exp(-times) + 0.5 * np.exp(-0.2 * times) + 0.05 * rng.normal(size=60)
    weights = 1 + rng.random(60)
    found = mj.best_exponential_sum(mj.SampledKernel(times, values), 2, norm=norm, weights=weights)
    factors = np.sqrt(weights / weights.mean())

    def least(rates):
        columns = factors[:, None] * np.exp(-np.outer(times, rates))
        goal = factors * values
        n, k = columns.shape
        slack = np.eye(n) if norm == "L1" else np.ones((n, 1))
        cost = np.append(np.zeros(k), np.full(slack.shape[1], 1 / slack.shape[1]))
        return scipy.optimize.linprog(
            cost,
            A_ub=np.block([[columns, -slack], [-columns, -slack]]),
            b_ub=np.append(goal, -goal),
            bounds=[(None, None)] * k + [(0, None)] * slack.shape[1],
        ).fun

    rates = np.asarray(found.model.rates)
    np.testing.assert_allclose(found.error, least(rates), rtol=1e-5)
    for factor in (0.9, 0.99, 1.01, 1.1):
        for k in range(2):
            assert least(rates * np.where(np.arange(2) == k, factor, 1)) > found.error * (1 - 1e-4)
    errors = factors * (values - np.asarray(found.model.kernel()(times)))
    size = np.mean(np.abs(errors)) if norm == "L1" else np.max(np.abs(errors))
    np.testing.assert_allclose(found.error, size, rtol=1e-9)
    assert found.statistics is None


def test_samples_of_weight_zero_and_beyond_the_horizon_do_not_count():
    times = np.linspace(0, 10, 41)
    values = 2 * np.exp(-0.7 * times)
    weights = np.ones(41)
    values[7], weights[7] = 50.0, 0.0
    values[30:] = -3.0
    kernel = mj.SampledKernel(times, values)
    found = mj.best_exponential_sum(kernel, 1, weights=weights, horizon=7.4)
    np.testing.assert_allclose([found.model.amplitudes[0], found.model.rates[0]], [2, 0.7])
    assert int(found.statistics.degrees_of_freedom) == 27


@pytest.mark.parametrize("norm", ["L1", "L2", "sup"])
def test_lower_bounds_at_even_samples_hold(norm):
    rng = np.random.default_rng(0)
    times = np.arange(40) * 0.25
    values = np.exp(-np.outer(times, [2.0, 0.7, 0.2, 0.05])) @ [1.0, -0.5, 1.0, 0.3]
    bounds = mj.approximation_lower_bounds(mj.SampledKernel(times, values), norm=norm)
    assert bounds[0] > 0.05 * np.max(np.abs(values)) and np.all(np.asarray(bounds)[4:] < 1e-12)
    size = {
        "L1": lambda e: np.mean(np.abs(e)),
        "L2": lambda e: np.sqrt(np.mean(e**2)),
        "sup": lambda e: np.max(np.abs(e)),
    }[norm]
    for _ in range(50):
        m = int(rng.integers(1, 4))
        poles = -np.exp(rng.normal(-1, 1, m)) + 1j * rng.normal(size=m) * rng.integers(0, 2)
        columns = np.exp(np.outer(times, poles))
        columns = np.concatenate([columns.real, columns.imag], axis=1)
        order = 2 * m if np.any(poles.imag) else m
        error = values - columns @ np.linalg.lstsq(columns, values)[0]
        if order < bounds.size:
            assert size(error) >= bounds[order]


def test_uneven_samples_have_the_bound_of_real_rates_alone():
    rng = np.random.default_rng(2)
    times = np.sort(rng.uniform(0, 10, 30))
    kernel = mj.SampledKernel(times, (1 + times) ** -1.5)
    assert np.all(mj.approximation_lower_bounds(kernel) == 0)
    found = mj.best_exponential_sum(kernel, 2, norm="sup")
    # Equal extrema of alternating sign prove the least maximum.
    assert 0.99 * found.error < found.lower_bound <= found.error


def test_parameters_that_samples_do_not_determine():
    times = np.linspace(0, 3, 8)
    kernel = mj.SampledKernel(times, np.exp(-times) + 0.01 * np.cos(20 * times))
    found = mj.best_exponential_sum(kernel, 4)
    assert int(found.statistics.degrees_of_freedom) == 0
    assert np.all(np.isinf(found.statistics.standard_errors["rates"]))
    kept = mj.best_exponential_sum(kernel, 1, min_rate=2.0)
    assert int(kept.active) == 1 and np.isnan(kept.statistics.standard_errors["rates"][0])
    assert np.isfinite(kept.statistics.standard_errors["amplitudes"][0])
    assert int(kept.statistics.degrees_of_freedom) == 7


def test_neurons_needed_at_points():
    found = mj.neurons_needed(
        mj.SampledKernel(LANCZOS_TIMES, np.round(LANCZOS, 4)), 5e-5, also=(1,), max_neurons=20
    )
    assert found.reached and found.neurons == 3
    assert found.best.statistics is not None
    assert [one.order for one in found.sums] == np.asarray(found.orders).tolist()
    assert 1 in found.orders
    few = mj.neurons_needed(mj.SampledKernel([0, 1, 2, 3.0], [1, 0.4, 0.3, 0.0]), 1e-9)
    assert not few.reached and np.max(few.orders) == 2


def test_what_is_refused():
    times = np.arange(10.0)
    kernel = mj.SampledKernel(times, np.exp(-times))
    fit = mj.best_exponential_sum
    with pytest.raises(ValueError, match="`width` must be at most 5 for 10 samples, got 6"):
        fit(kernel, 6)
    with pytest.raises(ValueError, match="`width` must be at most 4 for 10 samples, got 5"):
        fit(kernel, 5, offset=True)
    with pytest.raises(ValueError, match="`samples` must be one of 'points', 'linear', got 'dots'"):
        fit(kernel, 1, samples="dots")
    with pytest.raises(TypeError, match="`samples` must be one of"):
        fit(kernel, 1, samples=None)
    with pytest.raises(
        ValueError, match=r"`weights` must have one entry per sample, shape \(10,\)"
    ):
        fit(kernel, 1, weights=np.ones(9))
    with pytest.raises(ValueError, match="`weights` must not be negative, got -1.0"):
        fit(kernel, 1, weights=-np.ones(10))
    with pytest.raises(ValueError, match="at least 4 samples of a weight above 0 .* got 1"):
        fit(kernel, 1, weights=np.eye(10)[0])
    with pytest.raises(TypeError, match="`weights` must be a number or an array of numbers"):
        fit(kernel, 1, weights=[[1.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match="`weights` must be None"):
        fit(kernel, 1, weights=np.ones(10), samples="linear")
    with pytest.raises(ValueError, match="`weights` must be None"):
        fit(mj.PowerLaw(0.5), 1, weights=np.ones(10))
    with pytest.raises(ValueError, match="`offset` must be False for an infinite `horizon`"):
        fit(mj.PowerLaw(0.5), 1, offset=True)
    with pytest.raises(TypeError, match="`offset` must be True or False, got 0.5"):
        fit(kernel, 1, offset=0.5)
    with pytest.raises(ValueError, match="at least 4 samples .* up to the horizon, got 3"):
        fit(kernel, 1, horizon=2.0)
    with pytest.raises(ValueError, match="`kernel` must begin near time 0, got a first sample"):
        fit(mj.SampledKernel(times + 1e9, np.exp(-times)), 1)
    statistics = fit(kernel, 1, offset=True).statistics
    for level in (0.0, 1.0, 2, jnp.nan):
        with pytest.raises(ValueError, match="`confidence` must be"):
            statistics.intervals(level)


def test_an_offset_of_a_function_on_a_finite_horizon():
    kernel = mj.PowerLaw(0.5)
    plain = mj.best_exponential_sum(kernel, 1, horizon=50.0)
    found = mj.best_exponential_sum(kernel, 1, horizon=50.0, offset=True)
    times, step = np.linspace(0, 50, 400_001, retstep=True)
    sums = np.asarray(found.model.kernel()(times)) + float(found.offset)
    square = np.sum(((1 + times) ** -1.5 - sums) ** 2) * step
    np.testing.assert_allclose(found.error, np.sqrt(square), rtol=1e-3)
    assert found.error < plain.error
    assert plain.offset == 0 and plain.statistics is None and plain.samples is None
