"""What takes more memory than there is is refused before it is begun."""

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import memjax as mj
from memjax.plateaus import _memory, LaneMethod, Runs

TARGET = mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(1 / 12)


def diagonal(width):
    model = mj.on_plateau(TARGET, jnp.geomspace(0.6, 3.0, width - 1))
    return mj.GradientFlow(mj.WhiteNoiseLoss(TARGET)), model, mj.RelativeLossDrop(0.02)


def along_paths(width, delay=3.0):
    target = mj.DelayedKernel(mj.ExponentialSum([1.0], [1.0]), delay)
    loss = mj.SampledPathLoss.ornstein_uhlenbeck(
        target, jnp.linspace(0, 20, 201), 16, 1.0, key=jax.random.key(0), method="residual"
    )
    model = mj.NonlinearRNN.init(width, key=jax.random.key(1))
    return mj.GradientFlow(loss), model, mj.RelativeLossDrop(0.3)


@pytest.mark.parametrize("make", [mj.GradientFlow, mj.HeavyBall, mj.Nesterov, mj.Adam])
def test_the_size_of_a_state_is_that_of_its_start(make):
    _, model, exit = diagonal(4)
    run = Runs.build(make(mj.WhiteNoiseLoss(TARGET)), model, exit, {})
    shapes = eqx.filter_eval_shape(lambda: run)
    assert _memory.state_size(shapes) == run.flow.initial_state().size


@pytest.mark.slow
@pytest.mark.parametrize(
    "run", [lambda: diagonal(128), lambda: along_paths(8), lambda: along_paths(32)]
)
def test_the_estimate_is_that_of_the_compiled_program(run):
    one = Runs.build(*run(), {})
    runs = jax.tree.map(lambda x: x[..., None] if eqx.is_array(x) else x, one)
    args = (jnp.asarray(x) for x in (1e-5, 1e300, 4096, 1e-2))
    method = LaneMethod(*args, jnp.zeros(0))
    state = eqx.filter_jit(lambda runs: method.start(runs))(runs)
    needed = 0
    for program in (method.step, method.finish):
        lowered = eqx.filter_jit(lambda *args, p=program: p(*args)).lower(runs, state)
        needed = max(needed, lowered.lowered.compile().memory_analysis().temp_size_in_bytes)
    assert 0.5 <= _memory.lane_bytes(one) / needed <= 2


@pytest.mark.parametrize("interface", ["measure_plateau", "sweep"])
def test_a_run_that_does_not_fit_is_refused_with_what_it_would_take(interface, monkeypatch):
    monkeypatch.setattr(_memory, "device_bytes", lambda: 2e9)
    wanted = r"`model` must be small enough for the memory, got 10,000 numbers .* about 6 GB of"
    with pytest.raises(ValueError, match=wanted):
        if interface == "measure_plateau":
            mj.measure_plateau(*diagonal(5000))
        else:
            mj.sweep(lambda x: diagonal(5000), {"x": [0.0]}, progress=False)


def test_paths_count_too(monkeypatch):
    monkeypatch.setattr(_memory, "device_bytes", lambda: 1e7)
    with pytest.raises(ValueError, match="`model` must be small enough .* fewer or shorter paths"):
        mj.sweep(lambda delay: along_paths(8, delay), {"delay": [3.0]}, progress=False)


def test_the_memory_of_this_machine_is_known():
    assert _memory.device_bytes() > 1e8
