"""A loss of one method: gradient, products with the Hessian, and noise."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax.losses import coordinates, weights

MODEL = mj.DiagonalLinearRNN([0.8, -0.5], [1.1, 0.25], mj.Exp(1.5))
TARGET = mj.ExponentialSum([1.0], [0.3])
LOSS = mj.WhiteNoiseLoss(TARGET)


class Squares(mj.AbstractLoss):
    """The white-noise loss of two exponential sums, as it is written."""

    def __call__(self, model):
        b = jnp.concatenate([model.amplitudes, -TARGET.amplitudes])
        v = jnp.concatenate([model.rates, TARGET.rates])
        return b @ (1 / (v[:, None] + v[None, :])) @ b


class Flat(mj.AbstractLoss):
    def __call__(self, model):
        return model.amplitudes


def moved(model, size):
    return jax.tree.map(lambda x: size * jnp.cos(jnp.arange(x.size) + 1.0), weights(model))


@pytest.mark.parametrize("displacement", [None, moved(MODEL, 0.1)])
def test_against_closed_forms(displacement):
    flat = lambda tree: coordinates(tree)[0]
    np.testing.assert_allclose(Squares()(MODEL), LOSS(MODEL), rtol=1e-13)
    found, exact = (flat(loss.gradient(MODEL, displacement)) for loss in (Squares(), LOSS))
    np.testing.assert_allclose(found, exact, rtol=1e-11)
    vector = moved(MODEL, 1.0)
    found, exact = (
        flat(loss.hessian_vector_product(MODEL, vector, displacement)) for loss in (Squares(), LOSS)
    )
    np.testing.assert_allclose(found, exact, rtol=1e-10)
    # By differences of gradients.
    at = lambda h: flat(
        Squares().gradient(eqx.apply_updates(MODEL, displacement), moved(MODEL, h))
        if displacement is not None
        else Squares().gradient(MODEL, moved(MODEL, h))
    )
    np.testing.assert_allclose(found, (at(1e-5) - at(-1e-5)) / 2e-5, rtol=1e-7, atol=1e-8)


def test_noise_covers_rounding():
    noise = coordinates(Squares().gradient_noise(MODEL))[0]
    found, exact = (coordinates(loss.gradient(MODEL))[0] for loss in (Squares(), LOSS))
    assert np.all(noise > 0) and np.all(noise < 1e-13)
    assert np.all(np.abs(found - exact) < 8 * noise)


def test_losses_that_are_no_scalars_are_refused():
    with pytest.raises(ValueError, match="`loss` must map a model to a scalar"):
        Flat().gradient(MODEL)
    with pytest.raises(TypeError, match="`vector` must have the structure"):
        Squares().hessian_vector_product(MODEL, jnp.zeros(3))
