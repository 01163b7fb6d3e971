"""Plateaus of the logs of trainings whose exits are known, and of trainings without a plateau."""

import diffrax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj

DELTA = 0.02


def readme_flow():
    target = mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(omega=1 / 20, width=0.5)
    return mj.GradientFlow(mj.WhiteNoiseLoss(target))


@pytest.fixture(scope="module")
def readme_run():
    """The flow of the README until it rests, on uniform times, and its exit."""
    model = mj.DiagonalLinearRNN([1.0, 0.0], [1.0, 0.6])
    ts = np.arange(0.0, 2e5, 25.0)
    exit = mj.RelativeLossDrop(0.5)
    run = mj.measure_plateau(readme_flow(), model, exit, saveat=diffrax.SaveAt(ts=jnp.asarray(ts)))
    losses = np.asarray(run.curve.loss)
    # At rest.
    return ts, np.where(np.isnan(losses), float(run.loss), losses), 74511.92993


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.05])
def test_the_plateau_of_two_factors_ends_at_its_exit(noise):
    # (1 - w v)^2 / 2 from small w = v by gradient flow: w v follows a logistic curve.
    ts, start = np.arange(0.0, 100.0, 0.02), 1e-20
    grown = start * np.exp(2 * ts)
    share = grown / (1 + start * (np.exp(2 * ts) - 1))
    losses = (1 - share) ** 2 / 2 + 0.25
    left = 1 - np.sqrt(1 - 1.5 * DELTA)  # delta of 3/4 is 1.5 delta of 1/2
    exit = 0.5 * np.log(left * (1 - start) / (start * (1 - left)))
    losses = losses * (1 + noise * np.random.default_rng(0).normal(size=ts.size))
    found = mj.find_plateaus(ts, losses, delta=DELTA)
    (plateau,) = found.plateaus
    assert plateau.start == 0 and plateau.height == pytest.approx(0.75, rel=0.005)
    assert plateau.stop == pytest.approx(exit, rel=0.02)
    assert found.rest is not None and found.rest.height == pytest.approx(0.25, rel=0.005)
    above = mj.find_plateaus(ts, losses, delta=1.5 * DELTA, floor=0.25)
    assert above.plateaus[0].stop == pytest.approx(exit, rel=0.02)
    assert above.plateaus[0].drop == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_linear_regression_has_no_plateau(noise):
    # Gradient descent on a quadratic function: a sum of exponentials.
    rng = np.random.default_rng(1)
    for _ in range(10):
        rates, weights = 10 ** rng.uniform(-4, -0.5, 20), rng.exponential(size=20)
        t = np.arange(5000.0)
        losses = (weights[:, None] * (1 - rates[:, None]) ** (2 * t)).sum(0) + rng.exponential()
        losses = losses * (1 + noise * rng.normal(size=t.size))
        assert mj.find_plateaus(t, losses).plateaus == ()


@pytest.mark.thorough
@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.005])
def test_the_plateau_of_a_flow_ends_at_its_exit(readme_run, noise):
    ts, losses, exit = readme_run
    losses = losses * (1 + noise * np.random.default_rng(0).normal(size=losses.size))
    found = mj.find_plateaus(ts, losses, delta=DELTA)
    (plateau,) = found.plateaus
    assert plateau.start == 0
    assert plateau.height == pytest.approx(losses[0], rel=5 * noise + 1e-4)
    assert plateau.stop == pytest.approx(exit, rel=1e-3 if noise == 0 else 0.01)
    assert found.rest.start == pytest.approx(exit, rel=0.05)
    before = ts < 0.9 * exit
    early = mj.find_plateaus(ts[before], losses[before])
    assert early.plateaus == () and early.rest.start == 0


@pytest.mark.thorough
def test_the_exit_of_the_readme_is_that_of_its_flow():
    model = mj.DiagonalLinearRNN([1.0, 0.0], [1.0, 0.6])
    time = mj.measure_plateau(readme_flow(), model, mj.RelativeLossDrop(DELTA)).time
    assert float(time) == pytest.approx(74511.92993, rel=1e-6)


@pytest.mark.thorough
@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_training_without_a_plateau_has_none(noise):
    # The target is of the model's own kind, and no mode is silent.
    flow = mj.GradientFlow(mj.WhiteNoiseLoss(mj.ExponentialSum([1.0, 0.5], [1.0, 0.3])))
    model = mj.DiagonalLinearRNN([0.5, 0.3], [2.0, 0.5])
    for ts in (jnp.geomspace(1e-3, 300.0, 600), jnp.linspace(0.0, 300.0, 3001)):
        run = mj.measure_plateau(
            flow, model, mj.RelativeLossDrop(1 - 1e-9), saveat=diffrax.SaveAt(ts=ts),
            max_time=301.0, throw=False,
        )  # fmt: skip
        losses = np.asarray(run.curve.loss)
        losses = losses * (1 + noise * np.random.default_rng(1).normal(size=losses.size))
        assert mj.find_plateaus(ts, losses).plateaus == ()
