import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions import _g24_length as g24
from memjax.reproductions import _wy23_rescaling as wy23

KEY = jax.random.key(1)


def test_targets_are_convolutions():
    xs = np.random.default_rng(0).normal(size=50)
    exact = np.convolve(xs, (1 + np.arange(50.0)) ** -1.5)[:50]
    np.testing.assert_allclose(g24.respond(jnp.asarray(xs)), exact, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(wy23.target_kernel(), (1 + np.arange(100.0)) ** -1.5, rtol=1e-12)


def test_weights_of_lags_are_those_of_the_expected_error():
    weights = mj.TemporalWeight(2.0)(jnp.arange(100.0))
    apart = np.random.default_rng(1).normal(size=100) * 0.9 ** np.arange(100)
    xs = np.random.default_rng(2).normal(size=(20_000, 100))
    spectrum = np.fft.rfft(xs, 200) * np.fft.rfft(apart, 200)
    squares = (np.asarray(weights) * np.fft.irfft(spectrum, 200)[:, :100] ** 2).mean(axis=1)
    exact = float(jnp.sum(wy23.lag_weights(weights) * apart**2))
    assert abs(squares.mean() - exact) < 4 * squares.std() / np.sqrt(20_000)


def test_the_loss_of_the_linear_model_is_that_of_its_kernel():
    model = wy23.make_model("linear", KEY)
    weights = mj.TemporalWeight(1.0)(jnp.arange(100.0))
    kernel = np.asarray(model.kernel()(np.arange(100.0)))
    apart = kernel - np.asarray(wy23.target_kernel())
    exact = float(wy23._Expected()(model, KEY, weights))
    assert exact == pytest.approx(float(np.sum(wy23.lag_weights(weights) * apart**2)), rel=1e-12)
    np.testing.assert_allclose(wy23.learnt_kernel(model), kernel, rtol=1e-12)


def test_the_learnt_kernel_is_the_linear_response():
    model = wy23.make_model("tanh", KEY)
    xs = np.random.default_rng(3).normal(size=(20_000, 100))
    last = np.asarray(jax.vmap(lambda x: wy23.outputs(model, x)[-1])(jnp.asarray(xs)))
    for lag in (0, 3, 10):
        products = xs[:, -1 - lag] * last
        found = float(wy23.learnt_kernel(model)[lag])
        assert abs(products.mean() - found) < 5 * products.std() / np.sqrt(20_000) + 2e-3


def test_memories_end_where_the_kernel_leaves_the_target():
    target = np.asarray(wy23.target_kernel())
    assert wy23.effective_memory(target) == 100
    kernel = np.where(np.arange(100) < 37, 1.2, 0.5) * target
    assert wy23.effective_memory(kernel) == 37
    assert wy23.effective_memory(-target) == 0


@pytest.mark.parametrize("start", ["zero", "noisy", "carried"])
def test_streams_go_on_where_they_ended(start, monkeypatch):
    monkeypatch.setattr(g24, "_BATCH", 3)
    model = g24.Shifted(mj.NonlinearRNN.init(16, leak=True, key=KEY))
    trained, finite = g24.train_streams(model, start, 8, 2, KEY)
    assert finite and trained.model.recurrent.shape == (16, 16)
    xs = jax.random.normal(KEY, (20,))
    whole, last = model.follow(xs, model.model.initial_hidden())
    first, middle = model.follow(xs[:8], model.model.initial_hidden())
    second, end = model.follow(xs[8:], middle)
    np.testing.assert_allclose(whole, np.concatenate([first, second]), rtol=1e-12)
    np.testing.assert_allclose(end, last, rtol=1e-12)
    np.testing.assert_allclose(model(xs), whole, rtol=1e-12)


@pytest.mark.slow
def test_small_runs():
    dataset, verdicts = mj.reproduce(
        "g24-length", progress=False, models=("identity",), seeds=2, updates=1500
    )
    assert dataset["error"].shape == (1, 4, 2, 256) and np.all(dataset["result"] == 2)
    growth = dataset["growth"].median("seed").sel(model="identity")
    assert float(growth.sel(start="zero")) > 2 > float(growth.sel(start="carried"))
    assert verdicts[0].agrees and verdicts[1].agrees
    g24.plot(dataset).draw_without_rendering()
    dataset, verdicts = mj.reproduce(
        "wy23-rescaling", progress=False, models=("linear",), exponents=(0, 4), seeds=2, updates=800
    )
    assert dataset["kernel"].shape == (1, 2, 2, 100) and verdicts[0].agrees
    wy23.plot(dataset).draw_without_rendering()


def test_verdicts_of_lengths():
    axes = {"model": ["tanh"], "start": list(g24.STARTS), "seed": [0], "time": np.arange(256)}
    growth = np.array([10.0, 1.5, 1.8, 1.1]).reshape(1, 4, 1)
    error = np.ones((1, 4, 1, 256)) * np.array([1.0, 0.5, 0.9, 0.2]).reshape(1, 4, 1, 1)
    dataset = xr.Dataset(
        {"growth": (("model", "start", "seed"), growth), "error": (tuple(axes), error)}, axes
    )
    assert [verdict.agrees for verdict in g24.check(dataset)] == [True] * 4
    dataset["growth"][0, 3, 0] = 5.0
    assert [verdict.agrees for verdict in g24.check(dataset)] == [True, False, True, True]


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("g24-length", {"starts": ("warm",)}, "`starts`"),
        ("g24-length", {"seeds": 0}, "`seeds`"),
        ("wy23-rescaling", {"models": ("GRU",)}, "`models`"),
        ("wy23-rescaling", {"exponents": (-2.0,)}, "`exponents`"),
    ],
)
def test_bad_options_are_refused(name, options, says):
    with pytest.raises(ValueError, match=says):
        mj.reproduce(name, progress=False, **options)
