import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax.losses import weights

TARGET = mj.ExponentialSum([1.0, -0.4], [1.0, 0.3]) + mj.GaussianBump(1 / 6, 0.7, 0.5)


@pytest.fixture
def rnn():
    return mj.DiagonalLinearRNN([0.8, -0.5, 0.3], [1.1, 0.25, 3.0], mj.Exp(1.5))


@pytest.mark.slow
def test_wrapping_a_loss_changes_nothing(rnn):
    inner = mj.WhiteNoiseLoss(TARGET)
    outer = mj.FunctionLoss(inner)
    np.testing.assert_allclose(outer(rnn), inner(rnn), rtol=1e-15)
    change = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), weights(rnn))
    for displacement in (None, change):
        found, structure = jax.tree.flatten(outer.gradient(rnn, displacement))
        exact, expected = jax.tree.flatten(inner.gradient(rnn, displacement))
        assert structure == expected
        for x, y in zip(found, exact, strict=True):
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-14)


def test_gradient_of_a_plain_function():
    rnn = mj.DiagonalLinearRNN([0.5, 2.0], [1.0, 3.0], mj.Exp(2.0))
    loss = mj.FunctionLoss(lambda model: jnp.sum(model.amplitudes**2) + jnp.sum(model.rates))
    found = loss.gradient(rnn)
    np.testing.assert_allclose(found.amplitudes, [1.0, 4.0], rtol=1e-15)
    np.testing.assert_allclose(found.free_rates, [2.0, 6.0], rtol=1e-14)
    # The gain is not trained.
    assert found.reparametrisation.gain is None


def test_modules_as_functions_are_swept():
    class Fit(eqx.Module):
        values: jax.Array

        def __call__(self, model):
            return jnp.sum((model.amplitudes - self.values) ** 2)

    rnn = mj.DiagonalLinearRNN([0.5, 2.0], [1.0, 3.0])
    values = jnp.array([[0.0, 0.0], [0.5, 1.0]])
    found = jax.vmap(lambda v: mj.FunctionLoss(Fit(v))(rnn))(values)
    np.testing.assert_allclose(found, [4.25, 1.0], rtol=1e-15)


@pytest.mark.slow
def test_noise_is_rounding_of_the_weights_through_the_hessian(rnn):
    loss = mj.FunctionLoss(mj.WhiteNoiseLoss(TARGET))
    noise = jfu.ravel_pytree(loss.gradient_noise(rnn))[0]
    exact = jfu.ravel_pytree(mj.WhiteNoiseLoss(TARGET).gradient(rnn))[0]
    assert noise.shape == exact.shape
    assert np.all(noise > 0) and np.all(noise < 1e-13)
    # One rounding of every weight, in the worst combination of signs, stays below it.
    flat, unravel = jfu.ravel_pytree(weights(rnn))
    rng = np.random.default_rng(0)
    for _ in range(10):
        # Magnified, since a change by one rounding is itself lost in rounding.
        change = 1e-6 * rng.choice([-1.0, 1.0], size=flat.size) * np.abs(flat)
        moved = jfu.ravel_pytree(loss.gradient(rnn, unravel(jnp.asarray(change))))[0]
        assert np.all(np.abs(moved - exact) * 2.2e-10 <= 1.01 * noise)
