"""What a measurement says where there is no answer, and in other units."""

import jax
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest

import memjax as mj
import random_configurations
from memjax.plateaus import OUTCOMES


def case(memory=8.0, delta=0.02, unit=1.0):
    """One silent mode before a bump, with times counted in units of `1 / unit`."""
    target = mj.ExponentialSum([1.0], [1 / unit])
    target = target + mj.GaussianBump(1 / (memory * unit), width=0.5 * unit)
    model = mj.DiagonalLinearRNN(jnp.array([1.0, 0.0]), jnp.array([1.0, 0.6]) / unit)
    return mj.GradientFlow(mj.WhiteNoiseLoss(target)), model, mj.RelativeLossDrop(delta)


def test_the_outcomes_are_the_results_in_their_order():
    for code, name in enumerate(OUTCOMES):
        plateau = mj.plateaus._outcomes.as_result(jnp.asarray(code))
        assert bool(plateau == getattr(mj.RESULTS, name))


@pytest.fixture(scope="module")
def measured():
    @jax.jit
    def time(memory, delta, rtol):
        plateau = mj.measure_plateau(*case(memory, delta), rtol=rtol, throw=False)
        return plateau.time, plateau.result_code

    return time


@pytest.mark.thorough
@pytest.mark.parametrize(
    "arguments",
    [(-8.0, 0.02, 1e-6), (8.0, 0.0, 1e-6), (8.0, 2.0, 1e-6), (8.0, np.nan, 1e-6), (8.0, 0.02, 2.0)],
)
def test_traced_values_out_of_range_are_invalid(measured, arguments):
    time, code = measured(*arguments)
    assert np.isnan(time) and OUTCOMES[int(code)] == "invalid"
    assert OUTCOMES[int(measured(8.0, 0.02, 1e-6)[1])] == "exited"


@pytest.mark.thorough
def test_memories_whose_gradients_underflow_are_not_resolved(measured):
    for memory in (1250.0, 1500.0, 1e5):
        time, code = measured(memory, 0.02, 1e-6)
        assert np.isnan(time) and OUTCOMES[int(code)] == "unresolved"


@pytest.mark.slow
def test_nor_are_they_by_a_sweep():
    out = mj.sweep(lambda memory_: case(memory_), {"memory_": [1250.0, 1e5]}, progress=False)
    assert set(out["result"].values.tolist()) == {OUTCOMES.index("unresolved")}


@pytest.mark.parametrize("value", [1.0, 1e9, 0.0, -1e-3, np.nan, np.inf])
def test_a_tolerance_is_a_share(value):
    with pytest.raises(ValueError, match="`rtol` must be"):
        mj.measure_plateau(*case(), rtol=value)


@pytest.mark.slow
def test_the_derivatives_of_a_time_that_is_not_finite_are_nan():
    def log_time(memory):
        return jnp.log(mj.measure_plateau(*case(memory), throw=False).time)

    derivatives = jax.vmap(jax.grad(log_time))(jnp.array([8.0, 40.0]))
    assert np.isfinite(derivatives[0]) and np.isnan(derivatives[1])


@pytest.mark.thorough
def test_forward_mode_names_the_adjoint_that_it_needs():
    time = lambda memory: mj.measure_plateau(*case(memory)).time
    with pytest.raises(TypeError, match=r"`adjoint` must be diffrax.ForwardMode\(\)"):
        jax.jvp(time, (8.0,), (1.0,))


@pytest.mark.slow
def test_a_failure_says_how_to_keep_the_others_of_a_batch():
    time = lambda delta: mj.measure_plateau(*case(delta=delta)).time
    with pytest.raises(Exception, match="`throw=False` marks it in `result` instead"):
        jax.vmap(time)(jnp.array([0.02, -1.0]))


def by_lsoda(unit):
    """The time of `case(unit=unit)`, without memjax."""
    case = random_configurations.Case(
        family="bump",
        map="direct",
        unit=unit,
        parameters=np.array([8.0 * unit, 1.0, 0.5 * unit]),
        target=np.array([1.0, 1 / unit]),
        amplitudes=np.array([1.0, 0.0]),
        rates=np.array([1.0, 0.6]) / unit,
        exit="drop",
        delta=0.02,
        last=1e20,
    )
    return random_configurations.Referee(case).answer()


@pytest.mark.slow
def test_a_sweep_in_other_units_of_time():
    units = [1e5, 1e4, 1e2, 1e-3, 1e-5]
    out = mj.sweep(lambda unit: case(unit=unit), {"unit": units}, progress=False)
    np.testing.assert_allclose(out["time"], [by_lsoda(unit) for unit in units], rtol=1e-4)
    assert int(out["num_steps"].max()) < 300


@pytest.mark.slow
def test_single_measurements_in_other_units_of_time():
    for unit in (1e4, 1e-5):
        plateau = mj.measure_plateau(*case(unit=unit))
        np.testing.assert_allclose(plateau.time, by_lsoda(unit), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("unit", [1e-5, 1e5])
def test_with_logarithmic_rates_the_unit_of_time_is_one_of_training_time(unit):
    """Loss and gradient are then in units of time, whatever the weight."""

    def scaled(unit):
        flow, model, exit = case(unit=unit)
        return flow, mj.DiagonalLinearRNN(model.amplitudes, model.rates, mj.Exp()), exit

    out = mj.sweep(scaled, {"unit": [1.0, unit]}, progress=False)["time"]
    assert float(out[1] * unit / out[0]) == pytest.approx(1, rel=1e-6)


@pytest.mark.thorough
def test_a_run_held_by_symmetry_has_one_outcome_however_it_is_measured():
    def equal_modes(delta):
        target = mj.ExponentialSum([1.0, 0.7], [1.0, 0.3])
        model = mj.DiagonalLinearRNN(jnp.array([0.5, 0.5]), jnp.array([1.0, 1.0]))
        return mj.GradientFlow(mj.WhiteNoiseLoss(target)), model, mj.RelativeLossDrop(delta)

    single = mj.measure_plateau(*equal_modes(0.9999))
    cell = mj.sweep(equal_modes, {"delta": [0.9999]}, progress=False).squeeze()
    assert bool(single.result == mj.RESULTS.converged)
    assert OUTCOMES[int(cell["result"])] == "converged"
    # It is no minimum, which the curvature tells.
    assert single.curvature < -0.2
    assert single.curvature == pytest.approx(float(cell["curvature"]), rel=1e-6)


def test_what_a_user_alone_knows_to_be_equal_is_not_taken_for_it():
    """A loss may tell modes apart that started as equals."""
    loss = mj.FunctionLoss(lambda model: jnp.sum((model.amplitudes - jnp.array([1.0, 2.0])) ** 2))
    model = mj.DiagonalLinearRNN(jnp.array([0.5, 0.5]), jnp.array([1.0, 1.0]))
    assert mj.GradientFlow(loss).displaced(model).symmetry() is None


def test_nor_is_what_a_flow_moves_apart():
    """A metric that is no multiple of the unit matrix parts modes that started as equals."""
    loss = mj.WhiteNoiseLoss(mj.ExponentialSum([1.0, 0.7], [1.0, 0.3]))
    model = mj.DiagonalLinearRNN(jnp.array([0.5, 0.5]), jnp.array([1.0, 1.0]))
    metric = lx.DiagonalLinearOperator(jnp.array([1.0, 2.0, 1.0, 1.0]))
    apart = mj.PreconditionedFlow(loss, metric).displaced(model)
    moved = apart.vf(jnp.zeros(()), apart.initial_state(), None)
    assert moved[0] != moved[1] and apart.symmetry() is None
    for flow in (mj.GradientFlow(loss), mj.HeavyBall(loss), mj.Nesterov(loss), mj.Adam(loss)):
        together = flow.displaced(model)
        state = together.initial_state()
        state = state + 0.1 * together.vf(jnp.zeros(()), state, None)
        weights = together.vf(jnp.zeros(()), state, None)[:4]
        assert weights[0] == weights[1] and weights[2] == weights[3]
        projection = together.symmetry()
        assert projection is not None
        np.testing.assert_allclose(projection @ weights, weights, rtol=1e-15)
