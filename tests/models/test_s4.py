"""S4 and S4D beside dense NumPy and SciPy implementations that know nothing of low ranks."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

import memjax as mj

RNG = np.random.default_rng(5)
STEP, TIMES, CHANNELS, MODES = 0.7, 12, 2, 3
CLOCKS = np.array([0.3, 1.1])
INPUT, READOUT = RNG.normal(size=(CHANNELS, 2)), RNG.normal(size=(3, CHANNELS))
RATES, FREQUENCIES = RNG.uniform(0.1, 2.0, (CHANNELS, MODES)), RNG.normal(size=(CHANNELS, MODES))
LOW_RANK, COLUMN, ROW = RNG.normal(size=(3, CHANNELS, MODES)) + 1j * RNG.normal(
    size=(3, CHANNELS, MODES)
)
XS = RNG.normal(size=(TIMES, 2))


def make(diagonal=False, activation="tanh"):
    low_rank = None if diagonal else LOW_RANK
    return mj.S4Layer(RATES, FREQUENCIES, CLOCKS, low_rank, COLUMN, ROW, INPUT, READOUT, activation)


def dense(channel, diagonal=False):
    """Matrix, column and row of a channel with both halves of its conjugate pairs."""
    both = lambda half: np.concatenate([half[channel], half[channel].conj()])
    matrix = np.diag(both(-RATES + 1j * FREQUENCIES))
    if not diagonal:
        matrix = matrix - np.outer(both(LOW_RANK), both(LOW_RANK).conj())
    return CLOCKS[channel] * matrix, CLOCKS[channel] * both(COLUMN), both(ROW)


def hippo(states):
    degree = np.arange(states)
    roots = np.sqrt(2.0 * degree + 1)
    return -(np.tril(np.outer(roots, roots), -1) + np.diag(degree + 1.0)), roots


def powers(matrix, column, row, times):
    kernel = []
    for _ in range(times):
        kernel.append(row @ column)
        column = matrix @ column
    return np.array(kernel)


def bilinear(matrix, column, row, step, times):
    unit = np.eye(len(matrix))
    inverse = np.linalg.inv(unit - step / 2 * matrix)
    forward = inverse @ (unit + step / 2 * matrix)
    return powers(forward, step * inverse @ column, row, times)


def held(matrix, column, row, step, times):
    forward = linalg.expm(step * matrix)
    column = np.linalg.solve(matrix, (forward - np.eye(len(matrix))) @ column)
    return powers(forward, column, row, times)


def test_the_low_rank_form_is_the_hippo_matrix():
    for modes in (1, 2, 8):
        system = mj.hippo_legs(modes)
        matrix, column = hippo(2 * modes)
        both = lambda half: np.concatenate([half, np.conj(half)])
        diagonal = both(-np.asarray(system.rates) + 1j * np.asarray(system.frequencies))
        low_rank = both(np.asarray(system.low_rank))
        moved = np.diag(diagonal) - np.outer(low_rank, low_rank)
        # What does not change with the basis: the moments B^T A^k B, and the eigenvalues -1, -2...
        moments = [column @ np.linalg.matrix_power(matrix, k) @ column for k in range(6)]
        ours = both(np.asarray(system.input))
        found = [ours @ np.linalg.matrix_power(moved, k) @ ours for k in range(6)]
        np.testing.assert_allclose(found, moments, rtol=1e-10)
        eigenvalues = np.sort(np.linalg.eigvals(moved).real)[::-1][:2]
        np.testing.assert_allclose(eigenvalues, [-1, -2], rtol=1e-6)
        assert np.all(system.low_rank > 0) and np.all(np.diff(system.frequencies) > 0)


REFEREES = [
    ("bilinear", bilinear),
    # Matrix exponentials take seconds to compile.
    pytest.param("zoh", held, marks=pytest.mark.thorough),
]


@pytest.mark.parametrize("name, referee", REFEREES)
def test_discrete_kernels_of_hippo(name, referee):
    modes, step = 4, 0.05
    system = mj.hippo_legs(modes)
    row = lambda values: np.asarray(values)[None]
    layer = mj.S4Layer(
        row(system.rates), row(system.frequencies), [1.0], row(system.low_rank),
        row(system.input), row(system.input), [1.0], [1.0],
    )  # fmt: skip
    matrix, column = hippo(2 * modes)
    expected = referee(matrix, column, column, step, 40)
    found = layer.discrete_kernel(40, step=step, discretisation=name)
    np.testing.assert_allclose(found[0], expected, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("diagonal", [False, True])
@pytest.mark.parametrize("name, referee", REFEREES)
def test_discrete_kernels_and_convolutions(name, referee, diagonal):
    layer = make(diagonal)
    kernel = layer.discrete_kernel(TIMES, step=STEP, discretisation=name)
    expected = [referee(*dense(c, diagonal), STEP, TIMES) for c in range(CHANNELS)]
    np.testing.assert_allclose(kernel, np.real(expected), rtol=1e-10, atol=1e-12)
    driven = XS @ INPUT.T
    signals = [np.convolve(driven[:, c], expected[c].real)[:TIMES] for c in range(CHANNELS)]
    outputs = np.tanh(np.array(signals).T) @ READOUT.T
    found = layer.convolve(XS, step=STEP, discretisation=name)
    np.testing.assert_allclose(found, outputs, rtol=1e-10, atol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("diagonal", [False, True])
def test_scans_are_exact_and_agree_with_diffrax(diagonal):
    layer, ts = make(diagonal), STEP * np.arange(TIMES)
    driven = XS @ INPUT.T
    kernels = [held(*dense(c, diagonal), STEP, TIMES).real for c in range(CHANNELS)]
    signals = [np.convolve(driven[:, c], kernels[c])[: TIMES - 1] for c in range(CHANNELS)]
    outputs = np.tanh(np.pad(np.array(signals).T, ((1, 0), (0, 0)))) @ READOUT.T
    found = layer.scan(ts, XS, interpolation="previous")
    np.testing.assert_allclose(found, outputs, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(layer.scan(ts, XS), layer(ts, XS), atol=1e-7)
    # Uneven times too.
    uneven = np.cumsum(RNG.uniform(0.1, 1.0, TIMES))
    np.testing.assert_allclose(layer.scan(uneven, XS), layer(uneven, XS), atol=1e-7)


def test_it_is_stable_whatever_the_low_rank_is():
    for scale in (0.1, 1.0, 30.0):
        layer = mj.S4Layer(
            RATES, FREQUENCIES, CLOCKS, scale * LOW_RANK, COLUMN, ROW, INPUT, READOUT
        )
        # No eigenvalue of a channel is to the right of minus its smallest rate.
        rest = layer.initial_hidden()
        slope = jax.jacobian(lambda h: layer.vector_field(jnp.zeros(()), h, jnp.zeros(2)))(rest)
        for k, clock in enumerate(CLOCKS):
            dense = np.asarray(slope[:, k, :, :, k]).reshape(2 * MODES, 2 * MODES)
            assert np.max(np.linalg.eigvals(dense).real) < -clock * np.min(RATES[k]) * (1 - 1e-9)
        kernel = layer.discrete_kernel(4000, step=1.0, discretisation="zoh")
        assert np.max(np.abs(kernel[:, -1])) < 1e-8 * np.max(np.abs(kernel))
        # The bilinear rule takes a mode that is fast beside the step near to -1.
        if scale <= 1:
            kernel = layer.discrete_kernel(4000, step=1.0)
            assert np.max(np.abs(kernel[:, -1])) < 1e-8 * np.max(np.abs(kernel))


@pytest.mark.slow
def test_random_layers():
    key = jax.random.key(0)
    layer = mj.S4Layer.init(4, 8, key=key)
    assert layer.channels == 4 and layer.width == 32 and layer.input_shape == ()
    assert np.all((layer.clock_rates >= 1e-3) & (layer.clock_rates <= 0.1))
    assert mj.S4Layer.init(4, 8, diagonal=True, key=key).low_rank is None
    outputs = mj.S4Layer.init(4, 8, 2, 3, key=key).convolve(np.ones((5, 2)))
    assert outputs.shape == (5, 3) and np.all(np.isfinite(outputs))
    trained = eqx.filter(layer, mj.trainable(layer))
    assert sum(leaf.size for leaf in jax.tree.leaves(trained)) == 4 * (8 * 8 + 3)
    gradient = eqx.filter_grad(lambda layer: jnp.sum(layer.convolve(np.ones(6)) ** 2))(layer)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`rates` must have shape \(channels, modes\)"):
        mj.S4Layer([1.0], [1.0], [1.0], None, [1.0], [1.0], [1.0], [1.0])
    with pytest.raises(ValueError, match=r"`low_rank` must have shape \(2, 3\)"):
        mj.S4Layer(RATES, FREQUENCIES, CLOCKS, LOW_RANK[:1], COLUMN, ROW, INPUT, READOUT)
    with pytest.raises(ValueError, match="`discretisation` must be one of 'bilinear', 'zoh'"):
        make().discrete_kernel(4, discretisation="euler")
    with pytest.raises(ValueError, match="`xs` must hold inputs of shape"):
        make().convolve(np.ones(4))
