import functools
import json
import math
import pathlib

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj

REFERENCES = pathlib.Path(__file__).parents[1] / "reference" / "plateau_references.json"
ON_PLATEAU = ([1.0, 0.0], [1.0, 0.6])
HEIGHT = math.sqrt(math.pi) / 2  # of the plateau, but for e^-256


@functools.cache
def reference_time(inverse_omega, leave, delta):
    name = f"on-plateau-direct-m2-T{inverse_omega:g}-{leave}-{delta:g}"
    cases = json.loads(REFERENCES.read_text())
    return next(float(case["time"]) for case in cases if case["name"] == name)


def problem(inverse_omega, start=ON_PLATEAU, height=1.0):
    target = mj.ExponentialSum(jnp.array([1.0]), jnp.array([1.0]))
    target = target + mj.GaussianBump(omega=1 / inverse_omega, amplitude=height, width=0.5)
    rnn = mj.DiagonalLinearRNN(*map(jnp.asarray, start))
    return mj.GradientFlow(mj.WhiteNoiseLoss(target)), rnn


def first_of(relative=1 - 1e-9, change=1e9, distance=1e9):
    """The first of all exits; one left out is out of reach. Its tests share one compilation."""
    return mj.FirstOf(
        mj.RelativeLossDrop(relative), mj.LossChange(change), mj.ParameterDistance(distance)
    )


class Climb(mj.AbstractExit):
    """The second amplitude has risen to a level. Counts how often it is traced."""

    level: jax.Array

    traces = 0

    def margin(self, state):
        Climb.traces += 1
        return self.level - state.model.amplitudes[1]


CURVE_TIMES = np.concatenate([[0.0], np.geomspace(1e-2, 1e3, 24)])


@pytest.mark.slow
def test_event_and_curve_agree_with_diffeqsolve():
    flow, rnn = problem(8.0)
    leave = mj.RelativeLossDrop(0.02)
    displaced = flow.displaced(rnn)
    solution = diffrax.diffeqsolve(
        displaced,
        diffrax.Kvaerno5(),
        t0=0.0,
        t1=1e3,
        dt0=1e-3,
        y0=displaced.initial_state(),
        saveat=diffrax.SaveAt(ts=CURVE_TIMES, t1=True),
        stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-11),
        event=leave.event(displaced),
    )
    assert solution.event_mask
    exact = reference_time(8, "RelativeLossDrop", 0.02)
    # After an event Diffrax leaves the times not reached infinite.
    np.testing.assert_allclose(np.max(solution.ts[np.isfinite(solution.ts)]), exact, rtol=1e-4)

    plateau = mj.measure_plateau(flow, rnn, leave, saveat=diffrax.SaveAt(ts=CURVE_TIMES))
    np.testing.assert_allclose(plateau.time, exact, rtol=1e-5)
    curve = plateau.curve
    np.testing.assert_array_equal(curve.times, CURVE_TIMES)
    before = CURVE_TIMES < exact
    assert np.all(np.isnan(curve.loss[~before])) and np.all(np.isnan(curve.distance[~before]))
    ys = np.asarray(solution.ys)[: before.sum()]
    losses = jax.vmap(lambda y: flow.loss(displaced.model_at(y)))(ys)
    # Between steps the curve is interpolated.
    np.testing.assert_allclose(curve.loss[before], losses, rtol=1e-5)
    distances = np.linalg.norm(ys, axis=1)
    np.testing.assert_allclose(curve.distance[before], distances, rtol=1e-3, atol=1e-12)
    assert np.all(np.diff(curve.loss[before]) < 0)
    assert curve.loss[0] == plateau.initial_loss and curve.distance[0] == 0
    assert curve.loss[before][-1] > plateau.loss


@pytest.mark.slow
def test_curve_of_a_flow_that_converges():
    flow, rnn = problem(40.0)
    times = np.concatenate([[0.0], np.geomspace(1.0, 1e16, 24)])
    plateau = mj.measure_plateau(
        flow, rnn, mj.RelativeLossDrop(0.02), saveat=diffrax.SaveAt(ts=times)
    )
    assert plateau.result == mj.RESULTS.converged
    seen = times <= plateau.time_reached
    assert np.all(np.isnan(plateau.curve.loss) == ~seen)
    assert np.all(np.diff(plateau.curve.loss[seen]) <= 4e-16)
    # The plateau of the loss at its height, for most of its length.
    np.testing.assert_allclose(plateau.curve.loss[times < 1e13], HEIGHT, rtol=1e-3)


@pytest.mark.slow
def test_maximal_time():
    flow, rnn = problem(8.0)
    plateau = mj.measure_plateau(flow, rnn, first_of(relative=0.02), max_time=5.0)
    assert plateau.result == mj.RESULTS.max_time_reached
    assert np.isnan(plateau.time) and plateau.time_reached == 5.0
    assert 0.98 * plateau.initial_loss < plateau.loss < plateau.initial_loss
    # The distance there is the exit distance that is met at that time.
    again = mj.measure_plateau(flow, rnn, first_of(distance=plateau.distance))
    np.testing.assert_allclose(again.time, 5.0, rtol=1e-4)
    later = mj.measure_plateau(flow, rnn, first_of(relative=0.02), max_time=100.0)
    assert later.result == mj.RESULTS.exited
    exact = reference_time(8, "RelativeLossDrop", 0.02)
    np.testing.assert_allclose(later.time, exact, rtol=1e-5)


@pytest.mark.slow
def test_maximal_number_of_steps():
    flow, rnn = problem(8.0)
    plateau = mj.measure_plateau(flow, rnn, first_of(relative=0.02), max_steps=7, throw=False)
    assert plateau.result == mj.RESULTS.max_steps_reached
    assert np.isnan(plateau.time)
    assert 0 < plateau.time_reached < reference_time(8, "RelativeLossDrop", 0.02)
    assert plateau.stats["num_steps"] == 7
    with pytest.raises(eqx.EquinoxRuntimeError, match="maximum number of steps"):
        mj.measure_plateau(flow, rnn, first_of(relative=0.02), max_steps=7)


@pytest.mark.slow
def test_numbers_of_steps_add_up():
    flow, rnn = problem(16.0)
    stats = mj.measure_plateau(flow, rnn, first_of(relative=0.02)).stats
    accepted, rejected = stats["num_accepted_steps"], stats["num_rejected_steps"]
    assert stats["num_steps"] == accepted + rejected
    assert accepted > 10


@pytest.mark.slow
def test_unresolved_raises_unless_told_otherwise():
    # Two modes that come together, for longer than twice the digits and all steps resolve.
    flow, rnn = problem(60.0, ([0.36, 0.64], [1.47, 0.815]))
    plateau = mj.measure_plateau(flow, rnn, first_of(relative=0.02), throw=False)
    assert plateau.result == mj.RESULTS.unresolved
    assert np.isnan(plateau.time) and plateau.rounding > 1e-3
    with pytest.raises(eqx.EquinoxRuntimeError, match="Rounding errors"):
        mj.measure_plateau(flow, rnn, first_of(relative=0.02))


@pytest.mark.slow
def test_reference_level_of_a_relative_drop():
    flow, rnn = problem(8.0)
    same = mj.measure_plateau(flow, rnn, mj.RelativeLossDrop(0.02, reference=HEIGHT))
    exact = reference_time(8, "RelativeLossDrop", 0.02)
    np.testing.assert_allclose(same.time, exact, rtol=1e-5)
    # The start lies below 98 % of this level already.
    out = mj.measure_plateau(flow, rnn, mj.RelativeLossDrop(0.02, reference=1.1 * HEIGHT))
    assert out.result == mj.RESULTS.exited
    assert out.time == 0 and out.distance == 0 and out.loss == out.initial_loss


@pytest.mark.thorough
def test_an_exit_of_ones_own_compiles_once():
    flow, rnn = problem(8.0)
    plateau = mj.measure_plateau(flow, rnn, Climb(jnp.asarray(0.05)))
    np.testing.assert_allclose(plateau.model.amplitudes[1], 0.05, rtol=1e-8)
    assert 0 < plateau.time < reference_time(8, "RelativeLossDrop", 0.02)

    traces = Climb.traces
    assert traces > 0
    flow, rnn = problem(12.0, ([1.0, 0.01], [1.1, 0.5]), height=0.9)
    plateau = mj.measure_plateau(flow, rnn, Climb(jnp.asarray(0.1)), max_time=1e6)
    np.testing.assert_allclose(plateau.model.amplitudes[1], 0.1, rtol=1e-8)
    already = mj.measure_plateau(flow, rnn, Climb(jnp.asarray(0.0)))
    assert already.result == mj.RESULTS.exited and already.time == 0
    assert Climb.traces == traces


@pytest.mark.thorough
def test_start_at_rest():
    # The bump is there, of height zero: the target is the model's own kernel.
    flow, rnn = problem(8.0, height=0.0)
    plateau = mj.measure_plateau(flow, rnn, Climb(jnp.asarray(0.05)))
    assert plateau.result == mj.RESULTS.converged
    assert plateau.time == np.inf and plateau.time_reached == 0
    assert plateau.loss == 0 and plateau.distance == 0
    assert plateau.stats["num_steps"] == 0


@pytest.mark.slow
def test_no_time_of_a_relative_drop_from_nothing():
    flow, rnn = problem(8.0, height=0.0)
    plateau = mj.measure_plateau(flow, rnn, first_of(relative=0.02), throw=False)
    assert plateau.result != mj.RESULTS.exited
    assert not np.isfinite(plateau.time)
    assert plateau.distance == 0


@pytest.mark.slow
def test_explicit_solver_and_tolerances_of_ones_own():
    flow, rnn = problem(8.0)
    plateau = mj.measure_plateau(
        flow,
        rnn,
        mj.RelativeLossDrop(0.02),
        solver=diffrax.Tsit5(),
        stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-12),
    )
    np.testing.assert_allclose(plateau.time, reference_time(8, "RelativeLossDrop", 0.02), rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [diffrax.Kvaerno3(), diffrax.Kvaerno5(), diffrax.Dopri8()])
def test_solvers_agree(solver):
    flow, rnn = problem(12.0)
    plateau = mj.measure_plateau(flow, rnn, mj.RelativeLossDrop(0.02), solver=solver)
    exact = reference_time(12, "RelativeLossDrop", 0.02)
    np.testing.assert_allclose(plateau.time, exact, rtol=1e-4)


@pytest.mark.slow
def test_time_converges_with_the_tolerance():
    flow, rnn = problem(16.0)
    exact = reference_time(16, "RelativeLossDrop", 0.02)
    errors = []
    for rtol in (1e-4, 1e-6, 1e-8):
        controller = diffrax.PIDController(rtol=jnp.asarray(rtol), atol=jnp.asarray(rtol * 1e-8))
        plateau = mj.measure_plateau(
            flow, rnn, mj.RelativeLossDrop(0.02), stepsize_controller=controller
        )
        errors.append(abs(float(plateau.time) / exact - 1))
    assert errors[1] < 1e-5 and errors[2] < 1e-7
    assert errors[0] > errors[2]


FLOW, MODEL = problem(8.0)
EXIT = mj.RelativeLossDrop(0.02)
BAD_ARGUMENTS = [
    ((FLOW.loss, MODEL, EXIT), {}, TypeError, r"`flow` must be a memjax flow"),
    ((FLOW.displaced(MODEL), MODEL, EXIT), {}, TypeError, r"`flow` must be a memjax flow"),
    ((FLOW, MODEL.kernel(), EXIT), {}, TypeError, r"`model` must be a memjax model"),
    ((FLOW, MODEL, 0.02), {}, TypeError, r"`exit` must be an exit condition, got 0.02"),
    ((FLOW, MODEL, mj.LossChange), {}, TypeError, r"`exit` must be an exit condition"),
    (
        (FLOW, MODEL, EXIT),
        {"solver": diffrax.Euler()},
        TypeError,
        "`solver` .* that estimates",
    ),
    ((FLOW, MODEL, EXIT), {"solver": "stiff"}, TypeError, r"`solver` must be .*'stiff'"),
    (
        (FLOW, MODEL, EXIT),
        {"stepsize_controller": diffrax.StepTo(jnp.arange(3.0))},
        TypeError,
        r"`stepsize_controller` must adapt to errors and not depend on absolute time, got StepTo",
    ),
    (
        (FLOW, MODEL, EXIT),
        {
            "stepsize_controller": diffrax.ClipStepSizeController(
                diffrax.PIDController(1e-3, 1e-6), step_ts=[1.0]
            )
        },
        TypeError,
        r"`stepsize_controller` must adapt to errors and not depend on absolute time",
    ),
    ((FLOW, MODEL, EXIT), {"max_time": -1.0}, ValueError, r"`max_time` must be positive, got -1"),
    ((FLOW, MODEL, EXIT), {"max_time": 0.0}, ValueError, r"`max_time` must be positive"),
    ((FLOW, MODEL, EXIT), {"max_time": np.nan}, ValueError, r"`max_time` must be positive"),
    ((FLOW, MODEL, EXIT), {"max_time": "long"}, TypeError, r"`max_time` must be a number"),
    (
        (FLOW, MODEL, EXIT),
        {"max_steps": 0},
        ValueError,
        r"`max_steps` must be an integer of at least 1",
    ),
    ((FLOW, MODEL, EXIT), {"max_steps": 1.5}, ValueError, r"`max_steps` must be an integer"),
    (
        (FLOW, MODEL, EXIT),
        {"saveat": diffrax.SaveAt(steps=True)},
        ValueError,
        r"`saveat` must be diffrax.SaveAt\(ts=times\)",
    ),
    ((FLOW, MODEL, EXIT), {"saveat": [1.0, 2.0]}, ValueError, r"`saveat` must be diffrax.SaveAt"),
    (
        (FLOW, MODEL, EXIT),
        {"saveat": diffrax.SaveAt(ts=[2.0, 1.0])},
        ValueError,
        r"`saveat.ts` must increase, got 2.0 and then 1.0",
    ),
    (
        (FLOW, MODEL, EXIT),
        {"saveat": diffrax.SaveAt(ts=[-1.0, 1.0])},
        ValueError,
        r"`saveat.ts` must not be negative, got -1.0",
    ),
    (
        (FLOW, MODEL, EXIT),
        {"adjoint": diffrax.BacksolveAdjoint()},
        TypeError,
        r"`adjoint` must be diffrax.RecursiveCheckpointAdjoint",
    ),
]


@pytest.mark.parametrize("arguments, options, error, match", BAD_ARGUMENTS)
def test_bad_arguments_are_refused(arguments, options, error, match):
    with pytest.raises(error, match=match):
        mj.measure_plateau(*arguments, **options)


@pytest.mark.parametrize("name", ["flow", "model", "exit"])
def test_single_precision_is_refused(name):
    arguments = {"flow": FLOW, "model": MODEL, "exit": EXIT}
    arguments[name] = jax.tree.map(lambda x: x.astype(jnp.float32), arguments[name])
    with pytest.raises(TypeError, match=rf"`{name}` needs float64, got float32; .*x64"):
        mj.measure_plateau(**arguments)


BAD_EXITS = [
    (lambda: mj.RelativeLossDrop(0.0), ValueError, r"`delta` must be positive, got 0.0"),
    (lambda: mj.RelativeLossDrop(1.0), ValueError, r"`delta` must be below 1, got 1.0"),
    (lambda: mj.RelativeLossDrop(np.nan), ValueError, r"`delta` must be finite"),
    (lambda: mj.RelativeLossDrop(0.1, -1.0), ValueError, r"`reference` must be positive"),
    (lambda: mj.LossChange(-1e-3), ValueError, r"`delta` must be positive"),
    (lambda: mj.ParameterDistance(0.0), ValueError, r"`delta` must be positive"),
    (lambda: mj.ParameterDistance("far"), TypeError, r"`delta` must be a number"),
    (lambda: mj.FirstOf(), ValueError, r"`exits` must not be empty"),
    (lambda: mj.FirstOf(EXIT, 0.1), TypeError, r"`exits` must be an exit condition, got 0.1"),
]


@pytest.mark.parametrize("make, error, match", BAD_EXITS)
def test_bad_exits_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("delta", "result"),
    [(1e-9, mj.RESULTS.exited), pytest.param(1e-14, mj.RESULTS.unresolved, marks=pytest.mark.slow)],
)
def test_a_drop_below_the_rounding_of_the_loss_is_not_timed(delta, result):
    flow, rnn = problem(12.0)
    plateau = mj.measure_plateau(flow, rnn, first_of(relative=delta), throw=False)
    assert plateau.result == result
    # The loss falls as |gradient|^2 at first; the silent amplitude and the active mode feel it.
    bump = lambda w: 0.5 * math.sqrt(2 * math.pi) * math.exp(-12 * w + w**2 / 8)
    slope = 4 * (bump(1.0) ** 2 + bump(0.6) ** 2 + ((12 - 1 / 4) * bump(1.0)) ** 2)
    if result == mj.RESULTS.exited:
        np.testing.assert_allclose(plateau.time, delta * HEIGHT / slope, rtol=2e-3)
    else:
        assert np.isnan(plateau.time)


@pytest.mark.thorough
def test_a_loss_that_is_not_a_number_is_invalid_at_once():
    _, rnn = problem(8.0)
    flow = mj.GradientFlow(mj.FunctionLoss(lambda model: jnp.nan * model.amplitudes[0]))
    plateau = mj.measure_plateau(flow, rnn, mj.ParameterDistance(0.1), throw=False)
    assert plateau.result == mj.RESULTS.invalid and plateau.stats["num_steps"] == 0


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: mj.RelativeLossDrop(jnp.array([0.1, 0.2])), "`delta` must be a scalar"),
        (lambda: mj.RelativeLossDrop(0.1, jnp.ones(2)), "`reference` must be a scalar"),
        (lambda: mj.Exp(jnp.ones(2)), "`gain` must be a scalar"),
        (lambda: run(rtol=jnp.ones(2)), "`rtol` must be a scalar"),
        (lambda: run(max_time=jnp.ones(2)), "`max_time` must be a scalar"),
        (lambda: run(max_steps=True), "`max_steps` must be an integer"),
        (lambda: run(resolution=0.0), "`resolution` must be positive"),
        (lambda: run(saveat=diffrax.SaveAt(t1=True)), r"`saveat` must be diffrax.SaveAt\(ts="),
        (lambda: run(stepsize_controller="pid"), "`stepsize_controller` must adapt"),
        (lambda: run(stepsize_controller=diffrax.ConstantStepSize()), "must adapt to errors"),
        (lambda: mj.FunctionLoss(3), "`function` must be a function, got 3"),
    ],
)
def test_what_has_the_wrong_shape_or_kind_is_refused_in_one_line(make, match):
    with pytest.raises((TypeError, ValueError), match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


def run(**options):
    flow, rnn = problem(8.0)
    return mj.measure_plateau(flow, rnn, mj.ParameterDistance(0.1), **options)
