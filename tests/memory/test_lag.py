import numpy as np
import pytest

import memjax as mj


def _delayed(lag, shape, seed=0, colour=0.0):
    rng = np.random.default_rng(seed)
    xs = rng.standard_normal(shape)
    for t in range(1, shape[1]):
        xs[:, t] += colour * xs[:, t - 1]
    ys = 0.5 * rng.standard_normal(xs.shape[:2])
    ys[:, lag:] += xs.sum(2)[:, :-lag]
    return xs, ys


@pytest.mark.parametrize(
    ("lag", "shape", "colour"),
    [(30, (1, 4000, 1), 0.0), (60, (8, 400, 2), 0.8), (100, (2, 1500, 3), 0.0)],
)
def test_delays_are_found(lag, shape, colour):
    xs, ys = _delayed(lag, shape, colour=colour)
    found = mj.estimate_lag(xs, ys, step=0.1)
    assert float(found.lag) == pytest.approx(0.1 * lag) and bool(found.reliable)
    assert 0.4 < found.explained < 1
    assert int(np.argmax(found.response)) == lag


def test_share_of_an_exponential_response():
    rng = np.random.default_rng(0)
    xs = rng.standard_normal(5000)
    ys = np.convolve(xs, np.exp(-np.arange(500) / 20))[:5000] + 0.5 * rng.standard_normal(5000)
    found = mj.estimate_lag(xs, ys, max_lag=300)
    # Of exp(-2 t / 20), 90 % lie below 10 log(10) = 23; the tail is lost in noise.
    assert 19 <= float(found.lag) <= 24 and bool(found.reliable)
    half = mj.estimate_lag(xs, ys, max_lag=300, level=0.5)
    assert 5 <= float(half.lag) <= 8


@pytest.mark.thorough
def test_data_that_do_not_tell_are_flagged():
    xs, _ = _delayed(5, (1, 2000, 1))
    noise = np.random.default_rng(3).standard_normal(2000)
    found = mj.estimate_lag(xs[0, :, 0], noise)
    assert not bool(found.reliable) and np.isnan(found.lag)
    with pytest.raises(ValueError, match="no past input explains"):
        mj.diagnose(mj.DiagonalLinearRNN([1.0], [1.0]), (xs[0, :, 0], noise))
    # A lag at the end of those that were looked at is a lower bound.
    xs, ys = _delayed(38, (4, 400, 1))
    assert not bool(mj.estimate_lag(xs, ys, max_lag=40).reliable)


@pytest.mark.parametrize(
    ("xs", "ys", "options", "match"),
    [
        (np.arange(9.0), np.arange(8.0), {}, "one output per input"),
        (np.ones(9), np.arange(9.0), {}, "`xs` must vary"),
        (np.arange(9.0), np.ones(9), {}, "`ys` must vary"),
        (np.arange(9.0), np.full(9, np.nan), {}, "`ys` must be finite"),
        (np.arange(9.0), np.arange(9.0), {"max_lag": 9}, "`max_lag` must be below 9"),
        (np.arange(9.0), np.arange(9.0), {"level": 1.0}, "`level` must be below 1"),
        (np.ones((1, 1, 1, 1)), np.arange(9.0), {}, "`xs` must have shape"),
    ],
)
def test_wrong_input_is_named(xs, ys, options, match):
    with pytest.raises(ValueError, match=match):
        mj.estimate_lag(xs, ys, **options)
