import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj

TARGET = mj.ExponentialSum([1.0, -0.5], [1.0, 0.3]) + mj.GaussianBump(1 / 10, 1.0, 0.5)


@pytest.mark.parametrize("copies", [1, 3])
def test_on_plateau_has_the_targets_exponential_part_and_the_remainders_loss(copies):
    model = mj.on_plateau(TARGET, [0.6, 2.0], copies=copies)
    assert model.width == 2 * copies + 2
    t = np.linspace(0, 20, 50)
    np.testing.assert_allclose(
        model.kernel()(t), np.exp(-t) - 0.5 * np.exp(-0.3 * t), rtol=0, atol=1e-15
    )
    # The squared norm of the bump alone, far from t = 0.
    loss = mj.WhiteNoiseLoss(TARGET)(model)
    assert float(loss) == pytest.approx(0.5 * np.sqrt(np.pi), rel=1e-12)


def test_near_plateau_moves_by_the_scale_and_depends_on_the_key():
    model = mj.on_plateau(TARGET, jnp.full(2000, 0.6))
    near = mj.near_plateau(model, scale=1e-3, key=jax.random.key(0))
    change = np.asarray(near.amplitudes - model.amplitudes)
    assert np.std(change) == pytest.approx(1e-3, rel=0.1)
    change = np.log(np.asarray(near.rates / model.rates))
    assert np.std(change) == pytest.approx(1e-3, rel=0.1)
    other = mj.near_plateau(model, scale=1e-3, key=jax.random.key(1))
    assert not np.allclose(near.rates, other.rates, rtol=1e-6)


def test_random_start_is_log_uniform_in_its_interval():
    model = mj.random_start(4000, slowest=0.1, fastest=10.0, key=jax.random.key(0))
    rates = np.asarray(model.rates)
    assert rates.min() >= 0.1 and rates.max() <= 10
    assert np.mean(rates < 1) == pytest.approx(0.5, abs=0.03)
    assert np.std(model.amplitudes) == pytest.approx(0.5, rel=0.05)


def test_starts_pass_on_the_reparametrisation():
    model = mj.on_plateau(TARGET, [0.6], reparametrisation=mj.Exp())
    assert isinstance(model.reparametrisation, mj.Exp)
    np.testing.assert_allclose(model.rates, [1.0, 0.3, 0.6], rtol=1e-15)
    near = mj.near_plateau(model, key=jax.random.key(0))
    assert isinstance(near.reparametrisation, mj.Exp)


def test_starts_refuse_bad_arguments():
    with pytest.raises(ValueError, match="exponential part"):
        mj.on_plateau(mj.GaussianBump(0.1), [0.6])
    with pytest.raises(ValueError, match="silent_rates"):
        mj.on_plateau(TARGET, [0.6, -1.0])
    with pytest.raises(ValueError, match="copies"):
        mj.on_plateau(TARGET, [0.6], copies=0)
    with pytest.raises(ValueError, match="width"):
        mj.random_start(0, key=jax.random.key(0))
    with pytest.raises(ValueError, match="fastest"):
        mj.random_start(3, slowest=2.0, fastest=1.0, key=jax.random.key(0))
