import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions import _h20_long_memory as h20
from memjax.reproductions import _h20_networks as networks

LAGS = 7
SERIES = np.random.default_rng(3).normal(size=60).cumsum()
sigmoid = lambda z: 1 / (1 + np.exp(-z))


def by_hand(model, xs):
    """The equations of the paper, with sums over the past written out."""
    layer = jax.tree.map(lambda part: np.asarray(part, float), model.weights)
    m = model.width
    hidden, memory, cells = np.zeros(m), np.zeros(m), []
    orders = np.zeros(1 if model.kind == "MRNN" else m)
    act = lambda name, *parts: layer[name][0] @ np.concatenate(parts) + layer[name][1]
    outputs = []
    for t, x in enumerate(xs):
        x = np.array([x])
        if model.kind == "RNN":
            hidden = np.tanh(act("hidden", x, hidden))
            outputs.append(act("out", hidden))
        elif model.kind == "LSTM":
            i, f, g, o = np.split(act("gates", x, hidden), 4)
            memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
            hidden = sigmoid(o) * np.tanh(memory)
            outputs.append(act("out", hidden))
        elif model.kind in ("MRNN", "MRNNF"):
            logits = layer["order"][1]
            if model.kind == "MRNN":
                logits = act("order", orders, hidden, memory, x)
            orders = 0.5 * sigmoid(logits)
            weights = np.asarray(mj.fractional_weights(orders[0], LAGS + 1))
            past = sum(weights[j] * xs[t + 1 - j] for j in range(1, LAGS + 1) if t + 1 - j >= 0)
            memory = np.tanh(act("memory", memory, np.atleast_1d(past)))
            hidden = np.tanh(act("hidden", hidden, x))
            outputs.append(act("out", hidden, memory))
        else:
            logits = layer["order"][1]
            if model.kind == "MLSTM":
                logits = act("order", x, hidden, orders)
            orders = 0.5 * sigmoid(logits)
            cell = sigmoid(act("enter", x, hidden)) * np.tanh(act("new", x, hidden))
            for k in range(m):
                weights = np.asarray(mj.fractional_weights(orders[k], LAGS + 1))
                terms = [weights[j] * cells[t - j][k] for j in range(1, LAGS + 1) if t - j >= 0]
                cell[k] -= sum(terms)
            cells.append(cell)
            hidden = sigmoid(act("leave", x, hidden)) * np.tanh(cell)
            outputs.append(act("out", hidden))
    return np.concatenate(outputs)


@pytest.mark.parametrize("kind", h20.PUBLISHED)
def test_networks_are_those_of_the_paper(kind):
    parts = networks.split_series(SERIES, LAGS)
    model = networks.Forecaster.init(kind, 2, LAGS, np.random.default_rng(1))
    # Orders that are not all 1/4.
    if "order" in model.weights:
        matrix, bias = model.weights["order"]
        model.weights["order"] = (matrix, bias + 0.7)
    whole = np.concatenate([np.asarray(part.xs) for part in parts])
    state, found = model.start(), []
    for part in parts:
        state, ys = jax.jit(lambda state, part: networks.forecast(model, state, part))(state, part)
        found.append(ys)
    np.testing.assert_allclose(np.concatenate(found), by_hand(model, whole), atol=2e-5)


def test_parts_of_a_series():
    train, validate, test = networks.split_series(SERIES, LAGS)
    scaled = (SERIES - SERIES.min()) / np.ptp(SERIES)
    for column, exact in (("xs", scaled[:-1]), ("ys", scaled[1:])):
        found = np.concatenate([getattr(part, column) for part in (train, validate, test)])
        np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-7)
    assert (train.xs.size, validate.xs.size, test.xs.size) == (29, 14, 16)
    sizes = [part.xs.size for part in networks.split_series(h20.load_series("arfima"), LAGS)]
    assert sizes == [2000, 1200, 800]


def test_training_keeps_the_best_model_and_stops():
    parts = networks.split_series(SERIES, LAGS)
    model, errors, epochs = networks.train_models("RNN", parts, 2, 1, LAGS, 120)
    assert errors.shape == epochs.shape == (2,) and np.all(epochs == 120)
    start = networks.Forecaster.init("RNN", 1, LAGS, np.random.default_rng(0))
    held_out = lambda model: float(networks._test(model, parts[:2]))
    assert held_out(jax.tree.map(lambda leaf: leaf[0], model)) < held_out(start)
    ones = jnp.ones((20, 13), jnp.float32)
    steady = [networks.Part(ones[:, 0], ones, 0 * ones[:, 0])] * 3
    run = networks._begin(start)
    for _ in range(40):
        run = networks._train(run, steady[0], steady[1], 2000)
    assert int(run.stalled) == 100 and int(run.epochs) < 2000


def test_the_best_linear_forecast_has_the_error_of_the_noise():
    errors = []
    for seed in range(4):
        key = jax.random.key(seed)
        values = np.asarray(mj.arfima(h20.ORDER, 4001, ar=h20.AR, ma=h20.MA, key=key))
        parts = networks.split_series(values, 3)
        errors.append(np.ptp(values) ** 2 * h20.linear_error(parts))
    # Four times 800 squares of standard normal numbers.
    assert np.mean(errors) == pytest.approx(1, abs=4 * np.sqrt(2 / 3200))


@pytest.mark.skipif(importlib.util.find_spec("statsmodels") is None, reason="no statsmodels")
@pytest.mark.parametrize(("name", "size"), [("nile", 100), ("sunspots", 309), ("co2", 514)])
def test_records_of_nature(name, size):
    values = h20.load_series(name)
    assert values.shape == (size,) and np.all(np.isfinite(values))


@pytest.mark.slow
def test_a_small_cell_measured():
    dataset, verdicts = mj.reproduce(
        "h20-long-memory",
        progress=False,
        series=("arfima",),
        models=("RNN", "MRNNF"),
        seeds=2,
        lags=20,
        epochs=60,
    )
    assert dataset["error"].shape == (1, 2, 2) and np.all(dataset["result"] == 2)
    # With the filter it is far better at once.
    assert float(dataset["error"].sel(model="MRNNF").mean()) < 1.4
    assert [verdict.agrees for verdict in verdicts][-1] is True
    h20.plot(dataset).draw_without_rendering()


def test_verdicts_say_what_is_published():
    names, seeds = list(h20.PUBLISHED), np.arange(5)
    errors = np.array([[h20.PUBLISHED[name][0] + 0.001 * (seeds - 2) for name in names]])
    dataset = xr.Dataset(
        {
            "error": (("series", "model", "seed"), errors),
            "output_order": (("model", "seed"), np.full((6, 5), 0.01)),
            "order": ("series", [0.41]),
            "order_error": ("series", [0.03]),
            "range": ("series", [2.5]),
            "range_p_value": ("series", [1e-4]),
        },
        {"series": ["arfima"], "model": names, "seed": seeds},
        {"linear_error": 1.0},
    )
    verdicts = h20.check(dataset)
    assert all(verdict.agrees for verdict in verdicts) and len(verdicts) == 17
    worse = dataset.copy(deep=True)
    worse["error"][0, 3] += 0.5
    agreed = {verdict.published: verdict.agrees for verdict in h20.check(worse)}
    assert not agreed["MRNN forecasts better than RNN"]
    assert not agreed["MRNN: RMSE 1.088 (0.114)"] and agreed["RNN: RMSE 1.162 (0.198)"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"series": ("nil",)}, "`series`"),
        ({"models": ()}, "`models`"),
        ({"seeds": 0}, "`seeds`"),
        ({"epochs": 2.5}, "`epochs`"),
    ],
)
def test_bad_options_are_refused(options, says):
    with pytest.raises((TypeError, ValueError), match=says):
        mj.reproduce("h20-long-memory", progress=False, **options)
