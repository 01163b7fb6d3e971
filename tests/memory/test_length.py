import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj

KEY = jax.random.key(4)


class Recursion(eqx.Module):
    """A recursion of one unit, as a callable of which only the outputs are known."""

    multiplier: jax.Array
    amplitude: jax.Array

    def __call__(self, xs):
        move = lambda h, x: (self.multiplier * h + x,) * 2
        return self.amplitude * jax.lax.scan(move, jnp.zeros(()), xs)[1]


class Unit(mj.AbstractModel):
    """The same by Euler's method with steps of 1; h has the input of the step before."""

    multiplier: jax.Array
    amplitude: jax.Array

    def initial_hidden(self):
        return jnp.zeros(())

    def vector_field(self, t, hidden, x):
        return (self.multiplier - 1) * hidden + x

    def readout(self, hidden):
        return self.amplitude * hidden


def recursion(multiplier, amplitude=1.0, kind=Recursion):
    return kind(jnp.array(multiplier), jnp.array(amplitude))


def weights(multiplier, amplitude, count):
    """The weight of the input that is so many steps old."""
    return amplitude * multiplier ** np.arange(count)


@pytest.fixture(scope="module")
def followed():
    """A unit with memory of 20 steps, trained as it were to one of 10 steps up to 30 steps."""
    model, target = recursion(0.95, 0.3), recursion(0.9, 0.4)
    return mj.length_extension(model, 30, target=target, samples=4000, scale=1.5, key=KEY)


def test_errors_are_those_of_the_weights(followed):
    own, other = weights(0.95, 0.3, 120), weights(0.9, 0.4, 120)
    rest = 1.5**2 * np.cumsum((own - other) ** 2)
    # 30 steps before the input of the target begins, that of another goes on acting.
    carried = rest + 1.5**2 * np.array(
        [np.sum(weights(0.95, 0.3, 200)[k + 1 : k + 31] ** 2) for k in range(120)]
    )
    assert followed.starts == ("rest", "carried")
    for found, error, exact in zip(
        followed.loss, followed.loss_error, (rest, carried), strict=True
    ):
        assert np.all(np.abs(found - exact) < 5 * error)
        assert np.all(error < 0.1 * exact)
    size = 1.5 * np.sqrt(np.cumsum(own**2))
    np.testing.assert_allclose(followed.output_size[0], size, rtol=0.06)
    assert followed.state_size is None


def test_growth_is_that_of_the_errors(followed):
    squares = np.cumsum((weights(0.95, 0.3, 120) - weights(0.9, 0.4, 120)) ** 2)
    exact = squares[105:].mean() / squares[15:30].mean()
    assert abs(followed.growth[0] - exact) < 4 * followed.growth_error[0] < 0.2 * exact
    assert exact < 2 and followed.verdict == "holds"
    assert followed.growth[1] > followed.growth[0]
    assert "mean squared error" in followed.reason


def test_the_memory_function_predicts_the_remembrance_of_a_linear_model(followed):
    own = weights(0.95, 0.3, 120)
    exact = 1.5 * np.sqrt([np.sum(own[window:] ** 2) for window in followed.windows])
    np.testing.assert_allclose(followed.predicted, exact, rtol=1e-9, atol=1e-14)
    assert np.all(np.abs(followed.remembrance - exact) <= 4 * followed.remembrance_error)
    assert 30 in followed.windows and followed.windows[-1] == 120
    assert followed.remembrance[-1] == 0 and np.all(followed.remembrance_error[:-1] > 0)


def test_starts_of_a_model_with_hidden_states():
    model = recursion(0.95, 0.3, Unit)
    found = mj.length_extension(model, 30, samples=4000, key=KEY)
    assert found.starts == ("rest", "carried", "noisy") and found.loss is None
    # h_k has the inputs of the steps before; after 30 of them they are as many as a start has.
    grown = np.concatenate([[0.0], np.cumsum(weights(0.95, 1.0, 300) ** 2)])
    later = grown[np.arange(120) + 30]
    for row, exact in zip(found.state_size, (grown[:120], later, later), strict=True):
        np.testing.assert_allclose(row, np.sqrt(exact), rtol=0.06)
    np.testing.assert_allclose(found.output_size, 0.3 * found.state_size, rtol=1e-12)
    exact = later[105:].mean() / grown[15:30].mean()
    assert abs(found.growth[2] - exact) < 4 * found.growth_error[2]
    assert found.verdict == "holds"


@pytest.mark.slow
def test_exact_scans_and_discrete_models_agree():
    # Of small steps, where Euler's method and lines between samples are the same integral.
    model = mj.DiagonalLinearRNN([1.0, 0.5], [1.0, 0.05])
    found = mj.length_extension(model, 20, step=0.02, samples=400, num_windows=4, key=KEY)
    assert found.starts == ("rest", "carried", "noisy") and found.windows[-1] == 4000
    kept = slice(0, -1)
    ratio = found.remembrance[kept] / found.predicted[kept]
    error = found.remembrance_error[kept] / found.predicted[kept]
    assert np.all(np.abs(ratio - 1) < 4 * error + 0.02)
    tail = lambda t: 1.0 / 2 * np.exp(-2 * t) + 1.0 / 1.05 * np.exp(-1.05 * t)
    exact = np.sqrt(0.02 * (tail(20) + 0.25 / 0.1 * np.exp(-0.1 * 20)))
    at = int(np.searchsorted(found.windows, 1000))
    assert found.predicted[at] == pytest.approx(exact, rel=0.02)


def test_what_grows_without_end_fails():
    found = mj.length_extension(recursion(1.0), 40, samples=256, key=KEY)
    # Of a random walk the mean square is the number of steps.
    assert abs(found.growth[0] - 150.5 / 30.5) < 4 * found.growth_error[0]
    assert found.verdict == "fails" and "hidden states" in found.reason
    explodes = mj.length_extension(recursion(1e9), 40, samples=4, key=KEY)
    assert explodes.verdict == "fails" and "finite" in explodes.reason


def test_few_samples_leave_it_open():
    found = mj.length_extension(recursion(0.985), 30, samples=24, num_windows=2, key=KEY)
    assert found.verdict == "undecided" and "Take more `samples`" in found.reason


def test_outputs_that_are_zero_hold():
    found = mj.length_extension(recursion(0.5, 0.0), 8, samples=2, num_windows=2, key=KEY)
    assert found.verdict == "holds" and np.all(found.growth == 1)
    assert np.all(found.remembrance == 0) and np.all(found.remembrance_error == 0)


@pytest.mark.slow
def test_cells_vectors_and_single_precision():
    cell = eqx.nn.LSTMCell(2, 5, key=KEY, dtype=jnp.float32)
    found = mj.length_extension(cell, 10, samples=8, num_windows=3, key=KEY)
    assert found.output_size.dtype == jnp.float32 and found.state_size.shape == (3, 40)
    assert np.all(np.isfinite(found.remembrance))
    rnn = mj.NonlinearRNN.init(4, inputs=2, outputs=3, key=KEY)
    target = mj.NonlinearRNN.init(3, inputs=2, outputs=3, key=jax.random.key(8))
    found = mj.length_extension(rnn, 2.0, target=target, step=0.25, samples=8, key=KEY)
    assert found.loss.shape == (3, 32) and found.ts[1] == 0.25


def test_report():
    found = mj.length_extension(
        recursion(0.5), 8, target=recursion(0.4), samples=64, num_windows=3, key=KEY
    )
    lines = str(found).splitlines()
    assert lines[0] == "Trained up to 8, followed up to 32: mean squared errors"
    assert lines[1].split() == ["start", "at", "the", "length", "at", "the", "end", "growth"]
    assert lines[2].split()[0] == "rest" and lines[3].split()[0] == "carried"
    assert f"{float(found.loss[0, -1]):.3g}" in lines[2]
    kept = int(np.searchsorted(found.windows, 8))
    assert f"memory function {float(found.predicted[kept]):.3g}" in lines[4]
    assert lines[5] == "Verdict: HOLDS"


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"length": 3}, ValueError, "`length` must be at least four steps, got 3"),
        ({"length": -1.0}, ValueError, "`length`"),
        ({"factor": 1.0}, ValueError, "`factor` must extend the length by two steps or more"),
        ({"samples": 1}, ValueError, "`samples`"),
        ({"num_windows": 1}, ValueError, "`num_windows`"),
        ({"scale": 0.0}, ValueError, "`scale`"),
        ({"step": np.nan}, ValueError, "`step`"),
        ({"model": 3}, TypeError, "`model` must be"),
        ({"target": 3}, TypeError, "`target` must be"),
        (
            {"target": lambda xs: jnp.stack([xs, xs], axis=1)},
            ValueError,
            r"`target` must have outputs like those of the model, of shape \(40,\), got \(40, 2\)",
        ),
    ],
)
def test_bad_arguments_are_refused(change, error, says):
    arguments = {"model": recursion(0.5), "length": 10, "key": KEY} | change
    with pytest.raises(error, match=says):
        mj.length_extension(arguments.pop("model"), arguments.pop("length"), **arguments)


@pytest.mark.thorough
def test_diagnose_says_whether_a_model_will_hold():
    found = mj.diagnose(recursion(1.0), 5, length=40, samples=64, remedies=False, key=KEY)
    assert found.extension.verdict == "fails"
    assert "At four times the length of 40: FAILS." in str(found)
    record = found.to_dict()["extension"]
    assert record == {"length": 40.0, "verdict": "fails", "reason": found.extension.reason}
    with pytest.raises(ValueError, match="`length`"):
        mj.diagnose(recursion(1.0), 5, length=0, key=KEY)
    assert mj.diagnose(recursion(0.5), 5, remedies=False, key=KEY).extension is None


def test_figure():
    found = mj.length_extension(recursion(0.5), 8, samples=4, num_windows=3, key=KEY)
    figure = mj.viz.plot_length_extension(found)
    left, right = figure.axes
    assert left.get_ylabel() == "root mean square of outputs"
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["from rest", "from a carried state", "length of training"]
    np.testing.assert_allclose(left.lines[0].get_ydata(), found.output_size[0, 1:])
    np.testing.assert_allclose(right.lines[-2].get_ydata(), found.predicted[:-1])
    figure.draw_without_rendering()
    with pytest.raises(TypeError, match="pass that of memjax.length_extension"):
        mj.viz.plot_length_extension(3)
