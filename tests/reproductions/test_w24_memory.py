import matplotlib.figure
import numpy as np
import pytest
import scipy.linalg

import memjax as mj
from memjax.reproductions import _w24_memory as memory

MEMORY = mj.REPRODUCTIONS["w24-memory"]


def test_linear_layers_have_the_memory_of_their_matrices():
    # A tanh RNN at a tiny input around a fixed point is linear: its memory is that of powers.
    rng = np.random.default_rng(0)
    layer = memory.make_rnn(3, rng)
    again = np.random.default_rng(0)
    drive, recurrent = (memory.uniform(again, 3, 3, 3).astype(float) for _ in range(2))
    bias = memory.uniform(again, 3, 2, 3).astype(float).sum(axis=0)
    rest = np.zeros(3)
    for _ in range(500):
        rest = np.tanh(recurrent @ rest + bias)
    x = 1e-6 * np.ones(3)
    outputs = layer(np.concatenate([np.zeros((500, 3)), np.tile(x, (10, 1))]))
    changes = np.diff(outputs[499:], axis=0)
    slope = np.diag(1 - rest**2)
    expected = [np.linalg.matrix_power(slope @ recurrent, k) @ slope @ drive @ x for k in range(10)]
    np.testing.assert_allclose(changes, expected, rtol=1e-4, atol=1e-15)


def test_gates_are_those_of_pytorch():
    # Without recurrent weights a GRU mixes what it was with what is new, by its update gate.
    rng = np.random.default_rng(1)
    outputs = memory.make_gru(2, rng)(np.zeros((3, 2)))
    again = np.random.default_rng(1)
    drive, recurrent = (memory.uniform(again, 2, 6, 2) for _ in range(2))
    inner, outer = (memory.uniform(again, 2, 6) for _ in range(2))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))
    hidden = np.zeros(2)
    for output in outputs:
        above = recurrent @ hidden + outer
        reset, update = sigmoid(inner[:2] + above[:2]), sigmoid(inner[2:4] + above[2:4])
        hidden = (1 - update) * np.tanh(inner[4:] + reset * above[4:]) + update * hidden
        np.testing.assert_allclose(output, hidden, rtol=1e-6)
    assert drive.shape == (6, 2)


def test_decays_and_periods_are_told():
    times = np.arange(300.0)
    assert memory.tell_decay(np.exp(-0.05 * times))[0] == "exponential"
    assert memory.tell_decay((1 + times) ** -1.5)[0] == "polynomial"
    verdict, rate = memory.tell_decay(np.exp(-0.05 * times), 4)
    assert verdict == "exponential" and rate == pytest.approx(0.05 / 4)
    wave = np.tile([[0.0, 1], [1, 0], [1, 1]], (20, 1))
    assert memory.find_period(wave) == 3
    assert memory.find_period(np.ones((40, 2))) == 1
    assert memory.find_period(np.arange(200.0).reshape(100, 2)) == 0


def test_the_rnn_of_two_neurons_is_periodic_though_its_matrix_is_stable():
    eigenvalues = scipy.linalg.eigvals(memory.PERIODIC_RECURRENT)
    np.testing.assert_allclose(eigenvalues, -1, atol=1e-6)
    states = memory.periodic_outputs(memory.DISCRETE, 1.0, 300)
    assert memory.find_period(states) == 3
    np.testing.assert_allclose(states[-3:].sum(axis=0), [1, 0], atol=1e-12)


@pytest.mark.thorough
def test_measured_and_judged():
    dataset, verdicts = mj.reproduce(
        "w24-memory", progress=False, architectures=("RNN", "S4"), layers=(1, 2), seeds=1, times=256
    )
    assert len(verdicts) == 2 * 2 + 2
    agrees = {verdict.published.split(":")[0]: verdict.agrees for verdict in verdicts}
    assert agrees["RNN, 1 layer"] is True
    assert verdicts[-2].agrees is True and "period 3" in verdicts[-2].found
    assert isinstance(MEMORY.plot(dataset), matplotlib.figure.Figure)
    # A power law is none of the published exponentials.
    changed = dataset.copy(deep=True)
    changed["decay"][:] = "polynomial"
    assert [verdict.agrees for verdict in MEMORY.check(changed)[:4]] == [False] * 4


def test_bad_options_are_refused():
    with pytest.raises(ValueError, match="`architectures` must be one of"):
        mj.reproduce("w24-memory", progress=False, architectures=("rnn",))
    with pytest.raises(ValueError, match="`times`"):
        mj.reproduce("w24-memory", progress=False, times=8)
