import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax.reproductions import _z24_gates as z24


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def by_steps(weights, xs, hidden=None):
    """The last hidden state of a GRU, one step after another, in NumPy."""
    hidden = np.zeros(xs.shape[1]) if hidden is None else hidden
    for x in xs:
        hold = sigmoid(x @ weights["update"] + hidden @ weights["update_back"] + weights["hold"])
        new = x @ weights["new"]
        if "reset" in weights:
            reset = sigmoid(x @ weights["reset"] + hidden @ weights["reset_back"])
            new = np.tanh(new + reset * (hidden @ weights["new_back"]))
        hidden = (1 - hold) * new + hold * hidden
    return hidden


@pytest.mark.parametrize("kind", z24.KINDS)
def test_slopes_are_those_of_the_recurrence(kind):
    rng = np.random.default_rng(0)
    weights, xs = z24.make_gru(z24.KINDS[kind], 5, rng), z24.make_inputs(rng, 12, 5)
    hidden, slopes = z24.follow(jax.tree.map(jnp.asarray, weights), jnp.asarray(xs))
    np.testing.assert_allclose(hidden, by_steps(weights, xs), atol=1e-12)
    for unit in range(5):
        ends = []
        for sign in (1, -1):
            hold = weights["hold"].copy()
            hold[unit] += sign * 1e-6
            ends.append(by_steps(weights | {"hold": hold}, xs)[unit])
        assert float(slopes[unit]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("gates", ["constant, to 16", "both, to 16"])
def test_jacobians_are_slopes_in_the_start(gates):
    rng = np.random.default_rng(1)
    weights, xs = z24.make_gru(z24.JACOBIANS[gates], 5, rng), z24.make_inputs(rng, 7, 5)
    found = np.asarray(z24.jacobians(jax.tree.map(jnp.asarray, weights), jnp.asarray(xs)))
    table = np.array(
        [
            (by_steps(weights, xs, 1e-6 * unit) - by_steps(weights, xs, -1e-6 * unit)) / 2e-6
            for unit in np.eye(5)
        ]
    )
    others = table - np.diag(np.diag(table))
    exact = [
        np.sqrt(np.mean(np.diag(table) ** 2)),
        np.sqrt(np.sum(others**2) / 20),
        np.abs(others).max(),
        np.sum(np.diag(table) ** 2) / np.sum(table**2),
    ]
    np.testing.assert_allclose(found[-1], exact, atol=1e-8)
    if gates.startswith("constant"):
        left = sigmoid(weights["hold"])
        times = np.arange(1, 8)[:, None]
        np.testing.assert_allclose(
            found[:, 0], np.sqrt(np.mean(left ** (2 * times), axis=1)), rtol=1e-9
        )


def test_inputs_have_the_autocovariance():
    xs = z24.make_inputs(np.random.default_rng(0), 200, 5000)
    for lag in (0, 1, 50):
        products = xs[lag:] * xs[: 200 - lag]
        exact = z24.SLOW * z24.CORRELATION**lag + (z24.WHITE if lag == 0 else 0)
        # Features are independent, times are not.
        spread = products.mean(axis=0).std() / np.sqrt(5000)
        assert abs(products.mean() - exact) < 4 * spread


def test_the_theory_is_a_sum_over_lags():
    memory = np.array([2.0, 7.0, 30.0])
    lags = np.arange(1500)
    sizes = z24.SLOW * z24.CORRELATION ** np.abs(lags[:, None] - lags)
    sizes[lags, lags] += z24.WHITE
    variances, slopes = map(np.asarray, z24.predict(jnp.asarray(memory)))
    printed = np.asarray(z24.predict_as_printed(jnp.asarray(memory)))
    for k, value in enumerate(1 - 1 / memory):
        kernel = (1 - value) * value**lags
        turned = lags * value ** np.maximum(lags - 1, 0) * (1 - value) - value**lags
        scale = (value * (1 - value)) ** 2
        assert variances[k] == pytest.approx(kernel @ sizes @ kernel, rel=1e-6)
        assert slopes[k] == pytest.approx(scale * (turned @ sizes @ turned), rel=1e-6)
        both = kernel + turned
        assert printed[k] == pytest.approx(scale * (both @ sizes @ both), rel=1e-6)


@pytest.mark.slow
def test_a_small_reproduction_of_gates():
    dataset, verdicts = mj.reproduce(
        "z24-gates", progress=False, kinds=("constant gates", "gates of both"), width=64,
        times=128, seeds=3,
    )  # fmt: skip
    assert len(verdicts) == 7
    assert verdicts[2].agrees is False and verdicts[3].agrees
    ratio = z24.ratios(dataset).values
    # Memories are up to 256, longer than the sequences.
    assert np.nanmin(ratio) > 0.2 and np.nanmax(ratio) < 3
    z24.plot(dataset).draw_without_rendering()


@pytest.mark.parametrize(
    ("options", "says"), [({"kinds": ("LSTM",)}, "`kinds`"), ({"seeds": 0}, "`seeds`")]
)
def test_bad_options_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        mj.reproduce("z24-gates", progress=False, **options)
