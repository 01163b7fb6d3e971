import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import memjax as mj
from memjax.memory._diagnose import _changed, _Runner

KEY = jax.random.key(0)


class Recursion(eqx.Module):
    """The simplest sequence model, by no means one of memjax's own."""

    multiplier: jax.Array
    amplitude: jax.Array
    squash: bool = eqx.field(static=True)

    def __call__(self, xs):
        def move(h, x):
            h = self.multiplier * h + x
            return h, jnp.tanh(self.amplitude * h) if self.squash else self.amplitude * h

        return jax.lax.scan(move, jnp.zeros(()), xs)[1]


LINEAR = Recursion(jnp.array(0.8), jnp.array(1.5), False)
SQUASHED = Recursion(jnp.array(0.6), jnp.array(0.4), True)


def test_signal_of_a_linear_model_is_exact_and_without_noise():
    steps = np.array([0, 1, 3, 40])
    found = mj.gradient_signal(LINEAR, steps, samples=2, key=KEY)
    slopes = 1.5 * steps * 0.8 ** np.maximum(steps - 1.0, 0)
    np.testing.assert_allclose(found.signal, np.hypot(slopes, 0.8**steps), rtol=1e-13)
    np.testing.assert_allclose(found.noise, 0, atol=1e-14)
    assert found.relative.max() == 1
    total = found.sensitivity.multiplier + found.sensitivity.amplitude
    np.testing.assert_allclose(found.effort, total / found.signal**2, rtol=1e-13)


def test_signal_is_the_correlation_of_input_and_gradient():
    # Stein's lemma, for inputs that are not of variance 1.
    scale, lag, length = 0.7, 2, 12
    found = mj.gradient_signal(SQUASHED, [lag], scale=scale, samples=400, key=KEY)
    xs = scale * jax.random.normal(jax.random.key(1), (100_000, length))
    last = lambda model, x: model(x)[-1]
    slopes = jax.jit(jax.vmap(jax.grad(last), (None, 0)))(SQUASHED, xs)
    products = [xs[:, -1 - lag] * leaf / scale**2 for leaf in jax.tree.leaves(slopes)]
    exact = np.linalg.norm([product.mean() for product in products])
    error = np.linalg.norm([product.std() for product in products]) / np.sqrt(100_000)
    assert abs(found.signal[0] - exact) < 3 * (error + found.noise[0])
    assert found.noise[0] < 0.1 * exact
    squares = jax.tree.map(lambda leaf: jnp.mean(leaf**2), slopes)
    np.testing.assert_allclose(found.sensitivity.amplitude, squares.amplitude, rtol=0.3)


@pytest.fixture(scope="module")
def gru():
    return mj.diagnose(eqx.nn.GRUCell(1, 6, key=KEY), 30, samples=4)


def test_cell_at_a_long_lag_is_on_a_plateau_and_chrono_helps(gru):
    assert gru.verdict == "plateau" and float(gru.lag) == 30
    assert gru.signal.steps[gru.index] == 30 and gru.signal.steps[-1] > 30
    low, high = gru.plateau
    assert low > 100 and high == pytest.approx(float(low) ** 2)
    (remedy,) = gru.remedies
    assert "chrono" in remedy.name and isinstance(remedy.model, eqx.nn.GRUCell)
    assert remedy.signal.effort[gru.index] < 1e-6 * gru.signal.effort[gru.index]
    assert np.all(np.diff(gru.memory[gru.signal.steps > 5]) < 0) and gru.horizon > 1


def test_report_is_short_and_json_is_plain(gru):
    text = str(gru)
    assert len(text.splitlines()) <= 25 and max(map(len, text.splitlines())) <= 100
    for words in ("Verdict: PLATEAU", "chrono", "Recommended", "at lag 30"):
        assert words in text
    record = json.loads(json.dumps(gru.to_dict()))
    assert record["verdict"] == "plateau" and record["weights"] == 156
    assert len(record["lags"]) == len(record["signal"]) == len(record["memory"])


def test_lag_from_data_and_a_model_without_remedies():
    xs = np.random.default_rng(0).standard_normal(3000)
    ys = np.append(np.zeros(4), xs[:-4]) + 0.5 * np.random.default_rng(1).standard_normal(3000)
    found = mj.diagnose(LINEAR, (xs, ys), step=0.5, samples=2)
    assert float(found.lag) == 2.0 and bool(found.data.reliable)
    assert found.verdict == "no plateau" and found.remedies == ()
    assert "from data" in str(found) and "Nothing to cure" in str(found)


def test_changed_models():
    rates = jnp.array([0.5, 1.0, 0.25])
    layer = mj.StateSpaceLayer(rates, jnp.ones(3), None, jnp.ones(3))
    lru = mj.LRULayer(rates, jnp.zeros(3), jnp.ones(3), jnp.ones(3))
    stack = mj.StateSpaceStack([layer, lru])
    changed = dict(_changed(stack, 100.0, 1.0, KEY))
    assert len(changed) == 3
    for model in changed.values():
        for part in model.layers:
            np.testing.assert_allclose(part.rates, [0.1, 1.0, 0.01], rtol=1e-12)
        # Hidden states under white noise keep their sizes.
        sizes = model.layers[0].input ** 2 * mj.hidden_variance(model.layers[0].rates)
        np.testing.assert_allclose(sizes, mj.hidden_variance(rates), rtol=1e-12)
        np.testing.assert_array_equal(model.layers[1].input, lru.input)
    kinds = [type(model.layers[0].reparametrisation) for model in changed.values()]
    assert kinds == [mj.Direct, mj.Exp, mj.Best]


@pytest.mark.parametrize("kind", [eqx.nn.GRUCell, eqx.nn.LSTMCell])
def test_chrono_biases_keep_memory_up_to_the_lag(kind):
    model = mj.GatedRNN(kind(2, 50, key=KEY), jnp.ones(50), rate=0.5)
    ((_, changed),) = _changed(model, 200.0, 1.0, KEY)
    keep = jax.nn.sigmoid(changed.cell.bias[50:100])
    times = 1 / (1 - keep) - 1
    # In steps of the cell, of which there are half as many.
    assert 1 <= times.min() < 20 and 80 < times.max() <= 99
    if kind is eqx.nn.LSTMCell:
        np.testing.assert_allclose(changed.cell.bias[:50], -changed.cell.bias[50:100])
    else:
        np.testing.assert_array_equal(changed.cell.bias[:50], model.cell.bias[:50])


def test_models_are_run_as_they_are_used():
    cell = eqx.nn.LSTMCell(1, 4, key=KEY)
    runner = _Runner.make(cell, 0.5, None, KEY)
    xs = jax.random.normal(KEY, (6,))
    # The recursion of the cell, one step later.
    outputs = mj.as_functional(cell)(0.5 * jnp.arange(6.0), xs)
    expected = outputs @ runner.model.readout_weights
    np.testing.assert_allclose(runner(xs)[1:], expected[:-1], rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: mj.diagnose(LINEAR, -1.0), ValueError, "`data_or_lag` must be positive"),
        (lambda: mj.diagnose(LINEAR, 0.2), ValueError, "at least one step"),
        (lambda: mj.diagnose(LINEAR, np.ones(5)), ValueError, "pair"),
        (lambda: mj.diagnose(LINEAR, (np.ones(5),)), ValueError, "pair"),
        (lambda: mj.diagnose(LINEAR, 3, step=0), ValueError, "`step` must be positive"),
        (lambda: mj.diagnose(3, 3), TypeError, "`model` must be"),
        (lambda: mj.diagnose(jnp.tanh, 3), ValueError, "trained weights"),
        (lambda: mj.diagnose(LINEAR, 3, inputs=2), (TypeError, ValueError), "`model` must run"),
        (lambda: mj.gradient_signal(LINEAR, [-1], key=KEY), ValueError, "`steps` must be"),
        (lambda: mj.gradient_signal(LINEAR, [1.5], key=KEY), ValueError, "`steps` must be"),
        (lambda: mj.gradient_signal(LINEAR, [1], samples=1, key=KEY), ValueError, "`samples`"),
    ],
)
def test_wrong_input_is_named(call, error, match):
    with pytest.raises(error, match=match):
        call()


@pytest.mark.slow
def test_training_does_what_the_diagnosis_says():
    """A GRU copies its input at a short lag, sits on a plateau at a long one, and with the
    remedy leaves it."""
    updates, batch = 3000, 16

    def losses(model, lag):
        runner = _Runner.make(model, 1.0, None, jax.random.key(5))
        free, fixed = eqx.partition(runner.model, mj.trainable(runner.model))
        optimiser = optax.adam(3e-3)

        def loss(free, key):
            xs = jax.random.normal(key, (batch, 2 * lag + 20))
            moved = eqx.tree_at(lambda r: r.model, runner, eqx.combine(free, fixed))
            ys = jax.vmap(moved)(xs)
            return jnp.mean((ys[:, lag:] - xs[:, :-lag]) ** 2)

        def update(state, key):
            free, inner = state
            value, gradient = jax.value_and_grad(loss)(free, key)
            change, inner = optimiser.update(gradient, inner)
            return (optax.apply_updates(free, change), inner), value

        keys = jax.random.split(jax.random.key(1), updates)
        run = jax.jit(lambda free: jax.lax.scan(update, (free, optimiser.init(free)), keys)[1])
        return np.convolve(run(free), np.ones(50) / 50, "valid")

    cell = eqx.nn.GRUCell(1, 16, key=KEY)
    short, long = mj.diagnose(cell, 3, remedies=False), mj.diagnose(cell, 60)
    assert (short.verdict, long.verdict) == ("no plateau", "plateau")
    assert losses(cell, 3)[200] < 0.5
    assert np.all(losses(cell, 60) > 0.95)
    assert losses(long.remedies[0].model, 60)[-1] < 0.92
