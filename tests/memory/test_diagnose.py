import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import memjax as mj
from memjax.memory._diagnose import _judge, GradientSignal
from memjax.memory._instability import find_instability
from memjax.memory._remedies import propose_changes
from memjax.memory._runner import Runner

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


@pytest.mark.thorough
def test_cell_at_a_long_lag_is_on_a_plateau_and_chrono_helps(gru):
    assert gru.verdict == "plateau" and float(gru.lag) == 30
    assert gru.signal.steps[gru.index] == 30 and gru.signal.steps[-1] > 30
    low, high = gru.plateau
    assert low > 100 and high == pytest.approx(float(low) ** 2)
    (remedy,) = gru.remedies
    assert "chrono" in remedy.name and isinstance(remedy.model, eqx.nn.GRUCell)
    assert remedy.signal.effort[gru.index] < 1e-6 * gru.signal.effort[gru.index]
    assert np.all(np.diff(gru.memory[gru.signal.steps > 5]) < 0) and gru.horizon > 1


@pytest.mark.thorough
def test_report_is_short_and_json_is_plain(gru):
    text = str(gru)
    assert len(text.splitlines()) <= 25 and max(map(len, text.splitlines())) <= 100
    for words in ("Verdict: PLATEAU", "chrono", "Recommended", "at lag 30"):
        assert words in text
    record = json.loads(json.dumps(gru.to_dict()))
    assert record["verdict"] == "plateau" and record["weights"] == 156
    assert len(record["lags"]) == len(record["signal"]) == len(record["memory"])


@pytest.mark.slow
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
    changed = dict(propose_changes(stack, 100.0, 1.0, KEY))
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
    ((_, changed),) = propose_changes(model, 200.0, 1.0, KEY)
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
    runner = Runner.make(cell, 0.5, None, KEY)
    xs = jax.random.normal(KEY, (6,))
    # The recursion of the cell, one step later.
    outputs = mj.as_functional(cell)(0.5 * jnp.arange(6.0), xs)
    expected = outputs @ runner.model.readout_weights
    np.testing.assert_allclose(runner(xs)[1:], expected[:-1], rtol=1e-12)


# --- Verdicts that numbers do not support ---------------------------------------------------------


class Spiral(mj.AbstractModel):
    """One complex mode without a `scan`, so that Euler's method discretises it."""

    rate: jax.Array
    frequency: jax.Array

    def initial_hidden(self):
        return jnp.zeros(2)

    def vector_field(self, t, hidden, x):
        a, b = hidden
        return jnp.stack(
            [x - self.rate * a - self.frequency * b, self.frequency * a - self.rate * b]
        )

    def readout(self, hidden):
        return hidden[0]


def spiral(rate, frequency):
    return Spiral(jnp.asarray(rate), jnp.asarray(frequency))


@pytest.mark.thorough
def test_an_unstable_discretisation_is_no_verdict_and_names_the_step():
    found = mj.diagnose(spiral(0.5, 9.0), 2.0, step=0.1, samples=2)
    assert found.verdict == "undecided" and np.all(np.isnan(found.plateau))
    for words in ("Euler's method with steps of 0.1 is unstable", "decay rate 0.5", "frequency 9"):
        assert words in found.reason
    # |1 + (-0.5 + 9i) / 10|, and the step at which it is 1.
    assert f"multiplied by {abs(0.95 + 0.9j):.3g}" in found.reason
    longest = 2 * 0.5 / abs(-0.5 + 9j) ** 2
    assert f"a `step` below {longest:.2g}" in found.reason
    assert "Verdict: UNDECIDED" in str(found) and "a `step` below" in str(found)
    assert max(map(len, str(found).splitlines())) <= 100
    assert json.loads(json.dumps(found.to_dict()))["reason"] == found.reason
    fine = mj.diagnose(spiral(0.5, 9.0), 0.1, step=0.01, samples=2)
    assert fine.verdict == "no plateau" and "The signal is" in fine.reason


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("model", "step", "unstable"),
    [
        (spiral(30.0, 0.0), 0.1, True),
        (spiral(15.0, 0.0), 0.1, False),
        (spiral(0.0, 1.0), 0.5, True),
        (spiral(0.0, 1.0), 0.001, False),
        (mj.NonlinearRNN(-30 * jnp.eye(2), jnp.ones(2), None, jnp.ones(2)), 0.1, True),
        (mj.NonlinearRNN(-3 * jnp.eye(2), jnp.ones(2), None, jnp.ones(2)), 0.1, False),
        # Exact in every step, however long.
        (mj.ComplexDiagonalRNN([1.0], [0.5], [0.5], [9.0]), 0.1, False),
        # A gated cell is a recursion of its own.
        (eqx.nn.GRUCell(1, 3, key=KEY), 1.0, False),
        (mj.GatedRNN(eqx.nn.GRUCell(1, 3, key=KEY), jnp.ones(3)), 1.0, False),
    ],
)
def test_discretisations_are_unstable_where_theory_says(model, step, unstable):
    found = find_instability(model, step, None, 15, 1.0, KEY)
    assert (found is not None) == unstable
    assert not unstable or "Euler's method" in found


@pytest.mark.parametrize(("multiplier", "words"), [(1.5, "grow"), (-1.3, "grow"), (1e30, "finite")])
def test_a_model_that_grows_without_end_is_no_verdict(multiplier, words):
    model = Recursion(jnp.array(multiplier), jnp.array(1.0), False)
    found = mj.diagnose(model, 30, samples=2)
    assert found.verdict == "undecided" and words in found.reason and "stable" in found.reason


@pytest.mark.parametrize("delay", [0, 20, 40, 60])
def test_delays_and_integrators_are_stable(delay):
    taps = Taps(jnp.zeros(delay + 1).at[delay].set(1.0).at[0].add(1e-4))
    assert find_instability(taps, 1.0, None, 30, 1.0, KEY) is None
    recursion = Recursion(jnp.ones(()), jnp.ones(()), False)
    assert find_instability(recursion, 1.0, None, 30, 1.0, KEY) is None


class Taps(eqx.Module):
    """A filter of finite memory."""

    taps: jax.Array

    def __call__(self, xs):
        return jnp.convolve(xs, self.taps)[: xs.size]


def test_a_signal_that_is_lost_is_a_bound_and_not_infinite():
    found = mj.diagnose(Taps(jnp.array([1.0, 0.5])), 10, samples=2)
    assert found.verdict == "plateau" and float(found.relative) == 0
    low, high = map(float, found.plateau)
    assert 1e300 < low < np.inf and high == np.inf
    assert "inf" not in str(found).split("Verdict")[1] and "more than" in str(found)
    json.dumps(found.to_dict())


def test_a_signal_below_its_noise_is_bounded_by_it():
    signal = lambda size, noise: GradientSignal(
        jnp.array([1, 2]), jnp.array([1.0, size]), jnp.array([0.0, noise]), jnp.ones(1), 1
    )
    for size, noise, verdict in [
        (0.0, 1e-3, "plateau"), (0.0, 0.05, "undecided"), (0.0, 0.0, "plateau"),
        (0.004, 0.005, "plateau"), (0.04, 0.05, "undecided"), (0.05, 0.04, "slow"),
        (0.004, 0.02, "undecided"), (0.5, 0.01, "no plateau"), (np.nan, 0.1, "undecided"),
        (np.inf, 0.1, "undecided"), (0.5, np.nan, "undecided"),
    ]:  # fmt: skip
        found, reason = _judge(signal(size, noise), 1, None)
        assert (found, reason.endswith(".")) == (verdict, True), (size, noise)
    bound = signal(0.0, 1e-3)
    assert not bound.seen[1] and float(bound.relative_bound[1]) == pytest.approx(1e-3)
    nothing = GradientSignal(jnp.array([1]), jnp.zeros(1), jnp.ones(1), jnp.ones(1), 1)
    assert _judge(nothing, 0, None)[0] == "undecided"


def test_squares_of_small_signals_are_not_lost():
    # 1e-170 of the largest, the square of which is no number any more.
    model = Recursion(jnp.array(0.02), jnp.array(1.0), False)
    found = mj.gradient_signal(model, [1, 100], samples=2, key=KEY)
    exact = np.hypot(100 * 0.02**99, 0.02**100)
    np.testing.assert_allclose(found.signal[1], exact, rtol=1e-12)
    assert np.isfinite(found.relative[1]) and found.relative[1] > 0


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
        runner = Runner.make(model, 1.0, None, jax.random.key(5))
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
