import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, signal, special

import memjax as mj
from memjax.memory._long_memory import _range_distribution

KEY = jax.random.key(2)


def many(order, times, count=400, **options):
    keys = jax.random.split(KEY, count)
    return np.asarray(jax.vmap(lambda key: mj.arfima(order, times, key=key, **options))(keys))


@pytest.mark.parametrize("order", [-0.3, 0.0, 0.25, 0.45])
def test_covariances_of_the_fractional_part(order):
    series = many(order, 40, 20_000)
    k = np.arange(40)
    logs = special.gammaln(1 - 2 * order) - 2 * special.gammaln(1 - order)
    steps = np.arange(1, 40)
    exact = np.exp(logs) * np.concatenate([[1], np.cumprod((steps - 1 + order) / (steps - order))])
    found = series.T @ series / len(series)
    error = 5 * exact[0] / np.sqrt(len(series)) * np.sqrt(2)
    np.testing.assert_allclose(found, exact[np.abs(k[:, None] - k)], atol=error)


def test_the_arma_part_is_a_filter():
    ar, ma = [0.7, -0.4], [-0.2]
    plain = many(0.3, 300, 2)
    found = many(0.3, 300, 2, ar=ar, ma=ma, warm_up=0)
    exact = signal.lfilter([1, *ma], [1, *(-np.array(ar))], plain, axis=1)
    np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-12)


def test_the_estimate_minimises_whittles_likelihood():
    for order in (-0.2, 0.1, 0.4):
        series = np.asarray(mj.arfima(order, 1000, key=KEY))
        found = mj.local_whittle(series, bandwidth=80)
        places = 2 * np.pi * np.arange(1, 81) / 1000
        power = np.abs(np.fft.fft(series - series.mean())[1:81]) ** 2

        def objective(d, places=places, power=power):
            return np.log(np.mean(places ** (2 * d) * power)) - 2 * d * np.mean(np.log(places))

        exact = optimize.minimize_scalar(objective, bounds=(-0.5, 1), method="bounded")
        assert float(found.order) == pytest.approx(exact.x, abs=1e-5)
        assert float(found.error) == pytest.approx(1 / (2 * np.sqrt(80)))
        assert found.bandwidth == 80


def test_orders_are_estimated_within_their_errors():
    for order in (0.0, 0.3):
        found = jax.vmap(mj.local_whittle)(many(order, 2000))
        error = float(found.error[0])
        assert np.mean(found.order) == pytest.approx(order, abs=0.01)
        # The standard error is that of long series; at this length the spread is a little wider.
        assert error < np.std(found.order) < 1.2 * error
    assert np.mean(found.p_value < 1e-3) > 0.99
    assert 0.02 < np.mean(jax.vmap(mj.local_whittle)(many(0.0, 2000)).p_value < 0.05) < 0.09


def test_walks_are_found_too_and_short_memory_is_none():
    walks = np.cumsum(many(-0.3, 2000, 50), axis=1)
    assert np.mean(jax.vmap(mj.local_whittle)(walks).order) == pytest.approx(0.7, abs=0.03)
    short = many(0.0, 8000, 50, ar=[0.5])
    few = jax.vmap(lambda series: mj.local_whittle(series, bandwidth=60))(short)
    assert np.mean(few.order) == pytest.approx(0, abs=0.05)


def test_the_range_by_hand():
    series = np.random.default_rng(3).normal(size=200).cumsum()[::3]
    n = series.size
    for lags in (0, 4):
        centred = series - series.mean()
        covariance = lambda j, c=centred: np.sum(c[j:] * c[: n - j]) / n
        shares = [1 - j / (lags + 1) for j in range(1, lags + 1)]
        variance = covariance(0) + 2 * sum(
            share * covariance(j) for j, share in enumerate(shares, 1)
        )
        sums = np.cumsum(centred)
        exact = (sums.max() - sums.min()) / np.sqrt(n * variance)
        found = mj.rescaled_range(series, lags=lags)
        assert float(found.statistic) == pytest.approx(exact, rel=1e-10)
        assert float(found.lags) == lags


def test_critical_values_are_those_of_lo():
    # Table II of Lo (1991): quantiles of the range of a Brownian bridge.
    quantiles = {0.809: 0.025, 0.861: 0.05, 1.223: 0.5, 1.747: 0.95, 1.862: 0.975}
    for value, share in quantiles.items():
        assert float(_range_distribution(jnp.asarray(value))) == pytest.approx(share, abs=1.5e-3)
    assert float(_range_distribution(jnp.asarray(0.01))) == 0
    assert float(_range_distribution(jnp.asarray(9.0))) == 1


def test_the_range_tells_long_memory_from_short():
    level = lambda series: np.mean(jax.vmap(mj.rescaled_range)(series).p_value < 0.05)
    assert level(many(0.0, 2000)) < 0.08
    assert level(many(0.0, 2000, ar=[0.6])) < 0.08
    assert level(many(0.4, 2000)) > 0.8
    naive = jax.vmap(lambda series: mj.rescaled_range(series, lags=0))
    assert np.mean(naive(many(0.0, 2000, ar=[0.6])).p_value < 0.05) > 0.5


def test_outputs_of_a_model_are_a_series():
    model = mj.NonlinearRNN.init(8, key=KEY)
    xs = jax.random.normal(KEY, (4000,))
    ys = mj.as_functional(model, method="residual")(np.arange(4000.0) * 0.5, xs)
    assert abs(float(mj.local_whittle(ys, bandwidth=40).order)) < 0.2


def test_single_precision_and_constants():
    series = mj.arfima(0.3, 500, key=KEY)
    single = mj.local_whittle(series.astype(jnp.float32))
    assert single.order.dtype == jnp.float32
    assert float(single.order) == pytest.approx(float(mj.local_whittle(series).order), abs=1e-3)
    assert np.isnan(mj.local_whittle(np.ones(50)).order)
    assert np.isnan(mj.rescaled_range(np.ones(50)).statistic)
    assert np.isnan(mj.rescaled_range(np.ones(50)).p_value)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: mj.local_whittle(np.ones(5)), "`series` must have 16 values or more"),
        (lambda: mj.local_whittle(np.ones((20, 2))), "use jax.vmap for several"),
        (lambda: mj.local_whittle(np.full(20, np.nan)), "`series`"),
        (lambda: mj.local_whittle(np.arange(20.0), bandwidth=10), "`bandwidth` must be at most 9"),
        (lambda: mj.rescaled_range(np.arange(20.0), lags=20), "`lags` must be fewer than the 20"),
        (lambda: mj.rescaled_range(np.arange(20.0), lags=-1), "`lags`"),
        (lambda: mj.arfima(0.5, 10, key=KEY), "`order` must be between -0.5 and 0.5, got 0.5"),
        (lambda: mj.arfima(0.3, 1, key=KEY), "`times`"),
        (lambda: mj.arfima(0.3, 10, ar=[1.0], key=KEY), "`ar` must be stationary"),
        (lambda: mj.arfima(0.3, 10, ma=[[1.0]], key=KEY), "`ma` must be a list"),
    ],
)
def test_bad_arguments_are_refused(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_a_traced_value_out_of_range_gives_nan():
    simulate = jax.jit(lambda order, ar: mj.arfima(order, 50, ar=ar, key=jax.random.key(0)))
    rng = np.random.default_rng(0)
    for ar in rng.uniform(-1.2, 1.2, (40, 3)):
        stationary = np.max(np.abs(np.roots(np.r_[1.0, -ar]))) < 1
        assert bool(jnp.all(jnp.isfinite(simulate(0.2, ar)))) == stationary
    assert jnp.all(jnp.isnan(simulate(0.6, jnp.zeros(3))))


@pytest.mark.parametrize("level", [0.1, 1 / 3, 1e8 / 3])
@pytest.mark.parametrize("count", [777, 1000])
def test_a_constant_series_gives_nan_at_every_level(level, count):
    series = jnp.full(count, level)
    whittle, ranged = mj.local_whittle(series), mj.rescaled_range(series)
    found = jnp.stack([whittle.order, whittle.p_value, ranged.statistic, ranged.p_value])
    assert jnp.all(jnp.isnan(found)), found
