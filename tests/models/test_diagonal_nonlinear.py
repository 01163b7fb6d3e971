import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj

RNG = np.random.default_rng(5)
RATES, BIAS = np.array([0.1, 0.7, 1.5]), np.array([0.2, -0.1, 0.4])
INPUT, READOUT = RNG.normal(size=(3, 2)), RNG.normal(size=(2, 3))
TIMES = np.array([0.0, 0.5, 0.7, 1.6, 2.0])
SAMPLES = RNG.normal(size=(5, 2))
SCALARS = RNG.normal(size=5)


def diagonal(reparametrisation=None, activation="tanh"):
    return mj.DiagonalNonlinearRNN(RATES, INPUT, BIAS, READOUT, activation, reparametrisation)


def test_is_the_dense_model_with_a_diagonal_matrix():
    run = jax.jit(lambda model: model.residual(TIMES, SAMPLES))
    dense = mj.NonlinearRNN(-np.diag(RATES), INPUT, BIAS, READOUT)
    for map in (None, mj.Softplus(), mj.Exp(), mj.Best()):
        model = diagonal(map)
        np.testing.assert_allclose(model.rates, RATES, rtol=1e-13)
        np.testing.assert_allclose(run(model), run(dense), rtol=1e-12)
    slope = diagonal(activation="hardtanh").vector_field(
        jnp.zeros(()), jnp.asarray([30.0, 0.1, -5.0]), jnp.asarray([0.5, -0.2])
    )
    inside = -RATES * [30.0, 0.1, -5.0] + INPUT @ [0.5, -0.2] + BIAS
    assert inside.min() < -1 and np.any(np.abs(inside) < 1)
    np.testing.assert_allclose(slope, np.clip(inside, -1, 1), rtol=1e-13)


def test_residual_recursion_of_the_papers():
    model = mj.DiagonalNonlinearRNN.init(
        RATES, reparametrisation=mj.Softplus(), key=jax.random.key(0)
    )
    assert model.width == 3 and model.initial_hidden().shape == (3,)
    weights, readout = np.asarray(model.input), np.asarray(model.readout_weights)
    np.testing.assert_array_equal(model.bias, 0)
    hidden, outputs = np.zeros(3), []
    for k, x in enumerate(SCALARS):
        outputs.append(readout @ hidden)
        step = TIMES[k + 1] - TIMES[k] if k + 1 < 5 else 0
        hidden = hidden + step * np.tanh(-RATES * hidden + weights * x)
    np.testing.assert_allclose(model.residual(TIMES, SCALARS), outputs, rtol=1e-12, atol=1e-15)


@pytest.mark.thorough
def test_linear_activation_has_the_kernel_of_a_linear_model():
    # The bias drives the hidden state as a constant input of 1 does.
    weights, readout = INPUT[:, 0], READOUT[0]
    model = mj.DiagonalNonlinearRNN(RATES, weights, np.zeros(3), readout, "identity")
    linear = mj.DiagonalLinearRNN(weights * readout, RATES)
    found = model(TIMES, lambda t: jnp.sin(3 * t))
    np.testing.assert_allclose(found, linear(TIMES, lambda t: jnp.sin(3 * t)), atol=1e-7)


def test_what_is_trained():
    def trained(model):
        slopes = jax.grad(lambda model: jnp.sum(model.residual(TIMES, SAMPLES) ** 2))(model)
        names = ("free_rates", "input", "bias", "readout_weights")
        assert all(np.all(np.asarray(getattr(slopes, name)) != 0) for name in names)
        return sum(jax.tree.leaves(mj.trainable(model)))

    assert trained(diagonal()) == 4
    # The leaves of a reparametrisation are held.
    assert trained(diagonal(mj.Best())) == 4


@pytest.mark.parametrize(
    "arguments, match",
    [
        ((-RATES, INPUT, None, READOUT), r"`rates` must be positive, got -0.1"),
        ((RATES, INPUT[:2], None, READOUT), r"`input` must have shape \(3,\)"),
        ((RATES, INPUT, BIAS[:2], READOUT), r"`bias` must have shape \(3,\)"),
        ((RATES, INPUT, None, READOUT.T), r"`readout` must have shape \(3,\)"),
        ((RATES, INPUT, None, READOUT, "swish"), r"`activation` must be one of"),
        ((RATES * 20, INPUT, None, READOUT, "tanh", mj.Best()), r"`rates` must be at most 1/b"),
    ],
)
def test_bad_weights_are_refused(arguments, match):
    with pytest.raises(ValueError, match=match):
        mj.DiagonalNonlinearRNN(*arguments)
