"""Starts whose modes approach each other, where the slow manifold is curved."""

import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj

# Amplitudes, rates, and the time by Radau IIA with 100 digits and a full Newton iteration.
STARTS = [
    ((0.36, 0.64), (1.47, 0.815), 6.65455073423e11),
    ((0.5, 0.5), (1.000001, 0.999999), 3.48482073691e11),
]


def build(omega, start):
    amplitudes, rates, _ = (jnp.asarray([s[k] for s in STARTS])[start] for k in range(3))
    bump = mj.GaussianBump(omega, 1.0, 0.5)
    loss = mj.WhiteNoiseLoss(mj.ExponentialSum([1.0], [1.0]) + bump)
    leave = mj.RelativeLossDrop(0.02, bump.squared_norm())
    return mj.GradientFlow(loss), mj.DiagonalLinearRNN(amplitudes, rates), leave


@pytest.mark.slow
def test_a_sweep_takes_hundreds_of_steps():
    cells = mj.sweep(build, {"omega": [1 / 20], "start": [0, 1]}, progress=False).squeeze()
    np.testing.assert_allclose(cells["time"], [s[2] for s in STARTS], rtol=1e-5)
    assert int(cells["num_steps"].max()) <= 1000


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 1])
def test_a_single_run_takes_hundreds_of_steps(start):
    plateau = mj.measure_plateau(*build(1 / 20, start))
    np.testing.assert_allclose(plateau.time, STARTS[start][2], rtol=1e-5)
    assert int(plateau.stats["num_steps"]) <= 1000
