"""What the benchmarks compare memjax with must solve the same problem."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj

# Needs the packages of the extra `bench`.
_peers = pytest.importorskip("_peers")
REFERENCES = json.loads(
    (Path(__file__).parents[1] / "reference" / "plateau_references.json").read_text()
)


@pytest.mark.parametrize("exponential", [False, True])
@pytest.mark.parametrize(
    "width", [5, pytest.param(1, marks=pytest.mark.slow), pytest.param(16, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("memory", [4.0, 18.0, 60.0])
@pytest.mark.slow
def test_closed_forms_are_those_of_the_loss(memory, width, exponential):
    rng = np.random.default_rng(width)
    amplitudes, rates = rng.normal(size=width), rng.uniform(0.3, 20.0, size=width)
    target = mj.ExponentialSum([1.0, -0.4], [1.0, 2.2]) + mj.GaussianBump(1 / memory, 1.3, 0.5)
    loss = mj.WhiteNoiseLoss(target)
    reparametrisation = mj.Exp() if exponential else mj.Direct()

    def value(y):
        w = jnp.exp(y[width:]) if exponential else y[width:]
        return loss(mj.DiagonalLinearRNN(y[:width], w, reparametrisation))

    y = np.concatenate([amplitudes, np.log(rates) if exponential else rates])
    run = _peers.make_run(
        memory,
        y,
        0.02,
        amplitudes=[1.0, -0.4],
        rates=[1.0, 2.2],
        height=1.3,
        free=_peers.EXPONENTIAL if exponential else _peers.DIRECT,
    )
    velocity, jacobian = np.empty(2 * width), np.empty((2 * width, 2 * width))
    _peers.velocity(y, run.parameters, velocity)
    _peers.jacobian(y, run.parameters, jacobian)
    np.testing.assert_allclose(_peers.loss(y, run.parameters), value(y), rtol=1e-12)
    np.testing.assert_allclose(velocity, -jax.grad(value)(jnp.asarray(y)), rtol=1e-10)
    np.testing.assert_allclose(jacobian, -jax.hessian(value)(jnp.asarray(y)), rtol=1e-10)


def test_scaled_error_function_has_full_relative_accuracy():
    special = pytest.importorskip("scipy.special")
    x = np.concatenate([np.linspace(0, 12, 500), np.geomspace(12, 1e8, 100)])
    values = [_peers.scaled_erfc(value) for value in x]
    np.testing.assert_allclose(values, special.erfcx(x), rtol=1e-14)


@pytest.mark.parametrize("name", _peers.PEERS)
@pytest.mark.parametrize("exit", ["RelativeLossDrop", "ParameterDistance"])
@pytest.mark.parametrize("reparam", ["direct", "exp"])
def test_peers_find_the_exit(name, exit, reparam):
    (case,) = (
        case
        for case in REFERENCES
        if (case["start"], case["inverse_omega"]) == ("on-plateau", 8.0)
        and (case["exit"], case["reparam"]) == (exit, reparam)
    )
    rates = np.log(case["w0"]) if reparam == "exp" else np.asarray(case["w0"])
    run = _peers.make_run(
        8.0,
        np.concatenate([case["a0"], rates]),
        case["delta"],
        exit=_peers.DROP if exit == "RelativeLossDrop" else _peers.DISTANCE,
        free=_peers.EXPONENTIAL if reparam == "exp" else _peers.DIRECT,
    )
    try:
        prepared = _peers.PEERS[name].prepare(run)
    except ImportError as error:
        pytest.skip(str(error))
    # Twice, since a solver is set up once for all runs.
    outcome = prepared([run, run], 1e-8, 1e-10)
    assert outcome.statuses == ["exited"] * 2
    np.testing.assert_allclose(outcome.times, float(case["time"]), rtol=1e-4)
