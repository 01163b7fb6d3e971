"""Plateau times against a multiprecision integration, and against exact symmetries of the flow."""

import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memjax as mj

REFERENCE = pathlib.Path(__file__).parents[1] / "reference"
sys.path.append(str(REFERENCE))
import multiprecision as mp  # noqa: E402  # pyright: ignore[reportMissingImports]

CASES = json.loads((REFERENCE / "plateau_references.json").read_text())
ON_PLATEAU = ([1.0, 0.0], [1.0, 0.6])


def problem(
    a0,
    w0,
    inverse_omega,
    reparametrisation=None,
    *,
    amplitude=1.0,
    rate=1.0,
    sigma=0.5,
    height=1.0,
):
    """A flow towards one exponential and a bump, and the start of it."""
    target = mj.ExponentialSum(jnp.array([amplitude]), jnp.array([rate]))
    target = target + mj.GaussianBump(omega=1 / inverse_omega, amplitude=height, width=sigma)
    start = mj.DiagonalLinearRNN(jnp.asarray(a0), jnp.asarray(w0), reparametrisation)
    return mj.GradientFlow(mj.WhiteNoiseLoss(target)), start


def first_of(relative=1 - 1e-9, change=1e9, distance=1e9):
    """The first of all exits; one left out is out of reach. Its tests share one compilation."""
    return mj.FirstOf(
        mj.RelativeLossDrop(relative), mj.LossChange(change), mj.ParameterDistance(distance)
    )


def exit_of(case):
    kind = {"RelativeLossDrop": "relative", "ParameterDistance": "distance"}[case["exit"]]
    return first_of(**{kind: case["delta"]})


def problem_of(case):
    return problem(
        case["a0"],
        case["w0"],
        case["inverse_omega"],
        mj.Exp() if case["reparam"] == "exp" else mj.Direct(),
        amplitude=case["A"][0],
        rate=case["W"][0],
        sigma=case["sigma"],
        height=case["c0"],
    )


# Where terms of order one cancel beyond the digits of a float; sweeps have double-double there.
BEYOND = [case for case in CASES if case["start"] == "near-plateau" and case["inverse_omega"] >= 40]


@pytest.mark.parametrize("case", BEYOND, ids=lambda case: case["name"])
@pytest.mark.slow
def test_what_float64_cannot_resolve_is_said_to_be_unresolved(case):
    flow, start = problem_of(case)
    plateau = mj.measure_plateau(flow, start, exit_of(case), max_steps=1500, throw=False)
    if plateau.result == mj.RESULTS.exited:
        np.testing.assert_allclose(plateau.time, float(case["time"]), rtol=1e-3)
    else:
        stopped = (mj.RESULTS.unresolved, mj.RESULTS.max_steps_reached)
        assert any(plateau.result == result for result in stopped) and jnp.isnan(plateau.time)


# One compilation a width and a reparametrisation.
RESOLVED = [
    pytest.param(
        case,
        marks=[] if len(case["a0"]) == 2 and case["reparam"] == "direct" else [pytest.mark.slow],
        id=case["name"],
    )
    for case in CASES
    if case not in BEYOND
]


@pytest.mark.thorough
@pytest.mark.parametrize("case", RESOLVED)
def test_reference(case):
    flow, start = problem_of(case)
    plateau = mj.measure_plateau(flow, start, exit_of(case))
    np.testing.assert_allclose(plateau.initial_loss, float(case["loss_start"]), rtol=1e-12)
    if case["result"] == "exited":
        assert plateau.result == mj.RESULTS.exited
        np.testing.assert_allclose(plateau.time, float(case["time"]), rtol=1e-3)
        # The reference's exit, not only its time.
        np.testing.assert_allclose(plateau.loss, float(case["loss_exit"]), rtol=1e-7)
        np.testing.assert_allclose(plateau.model.amplitudes, case["a_exit"], atol=1e-3)
        np.testing.assert_allclose(plateau.model.rates, case["w_exit"], atol=1e-3)
        assert plateau.time_reached == plateau.time
    else:
        assert case["result"] == "converged"
        assert plateau.result == mj.RESULTS.converged
        assert plateau.time == np.inf and np.isfinite(plateau.time_reached)
        np.testing.assert_allclose(plateau.loss, float(case["loss_exit"]), rtol=1e-9)
        assert plateau.curvature > 0
    assert plateau.rounding < 1e-3
    assert plateau.curve is None


def reference_time(start, inverse_omega, leave):
    return next(
        float(case["time"])
        for case in CASES
        if (case["start"], case["reparam"], case["exit"], case["delta"])
        == (start, "direct", *leave)
        and case["inverse_omega"] == inverse_omega
    )


@pytest.mark.thorough
@pytest.mark.parametrize("inverse_omega", [8.0, 16.0, 28.0])
def test_first_of_is_the_earliest(inverse_omega):
    flow, start = problem(*ON_PLATEAU, inverse_omega)
    drop = reference_time("on-plateau", inverse_omega, ("RelativeLossDrop", 0.02))
    distance = reference_time("on-plateau", inverse_omega, ("ParameterDistance", 0.1))
    both = mj.measure_plateau(flow, start, first_of(relative=0.02, distance=0.1))
    np.testing.assert_allclose(both.time, min(drop, distance), rtol=1e-5)
    # The distance exit moved out of the way.
    both = mj.measure_plateau(flow, start, first_of(relative=0.02, distance=10.0))
    np.testing.assert_allclose(both.time, drop, rtol=1e-5)


@pytest.mark.thorough
@pytest.mark.parametrize("inverse_omega", [8.0, 20.0])
def test_loss_change_is_a_relative_drop_of_that_many_units(inverse_omega):
    flow, start = problem(*ON_PLATEAU, inverse_omega)
    height = 0.88622692545275801365  # sqrt(pi)/2, but for e^-256
    plateau = mj.measure_plateau(flow, start, first_of(change=0.02 * height))
    exact = reference_time("on-plateau", inverse_omega, ("RelativeLossDrop", 0.02))
    np.testing.assert_allclose(plateau.time, exact, rtol=1e-5)


@pytest.mark.slow
def test_vmap_over_memories():
    memories = np.array([8.0, 10.0, 16.0, 24.0, 45.0])

    def measure(omega):
        flow, start = problem(*ON_PLATEAU, 1 / omega)
        plateau = mj.measure_plateau(flow, start, first_of(relative=0.02), throw=False)
        return plateau.time, plateau.loss

    times, losses = jax.jit(jax.vmap(measure))(1 / memories)
    alone = [measure(1 / memory) for memory in memories]
    np.testing.assert_allclose(times, [time for time, _ in alone], rtol=1e-6)
    np.testing.assert_allclose(losses, [loss for _, loss in alone], rtol=1e-9)
    assert times[-1] == np.inf


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(order=st.permutations(range(4)), inverse_omega=st.floats(4.0, 14.0))
def test_modes_have_no_order(order, inverse_omega):
    a0 = np.array([1.0009765625, 0.00048828125, -0.000244140625, 0.00048828125])
    w0 = np.array([1.0009765625, 0.6005859375, 0.8505859375, 1.5])
    order = np.array(order)
    flow, start = problem(a0, w0, inverse_omega)
    plateau = mj.measure_plateau(flow, start, first_of(distance=0.1))
    flow, start = problem(a0[order], w0[order], inverse_omega)
    permuted = mj.measure_plateau(flow, start, first_of(distance=0.1))
    np.testing.assert_allclose(permuted.time, plateau.time, rtol=1e-6)
    np.testing.assert_allclose(
        permuted.model.amplitudes, plateau.model.amplitudes[order], atol=1e-6
    )


@pytest.mark.slow
@settings(max_examples=10, deadline=None)
@given(scale=st.floats(0.05, 20.0), inverse_omega=st.floats(4.0, 14.0))
def test_rescaling_of_the_clock(scale, inverse_omega):
    # rho(t) -> rho(scale t) divides the loss by the scale. Free weights with w = exp(v) are
    # only shifted, so that the flow is the same but slower.
    flow, start = problem(*ON_PLATEAU, inverse_omega, mj.Exp())
    plateau = mj.measure_plateau(flow, start, first_of(distance=0.1))
    a0, w0 = ON_PLATEAU
    flow, start = problem(
        a0,
        scale * np.array(w0),
        inverse_omega / scale,
        mj.Exp(),
        rate=scale,
        sigma=0.5 / scale,
    )
    faster = mj.measure_plateau(flow, start, first_of(distance=0.1))
    np.testing.assert_allclose(faster.time, scale * plateau.time, rtol=1e-4)
    np.testing.assert_allclose(faster.loss, plateau.loss / scale, rtol=1e-5)


@settings(max_examples=10, deadline=None)
@given(scale=st.floats(0.1, 10.0), inverse_omega=st.floats(4.0, 14.0), negate=st.booleans())
@pytest.mark.slow
def test_rescaling_of_the_output(scale, inverse_omega, negate):
    # All amplitudes times c multiply the loss by c^2: amplitudes move c times faster, free
    # weights c^2 times, which a gain divided by c takes back.
    sign = -1.0 if negate else 1.0
    flow, start = problem(*ON_PLATEAU, inverse_omega, mj.Exp())
    plateau = mj.measure_plateau(flow, start, first_of(relative=0.01))
    a0, w0 = ON_PLATEAU
    flow, start = problem(
        sign * scale * np.array(a0),
        w0,
        inverse_omega,
        mj.Exp(1 / scale),
        amplitude=sign * scale,
        height=sign * scale,
    )
    scaled = mj.measure_plateau(flow, start, first_of(relative=0.01))
    np.testing.assert_allclose(scaled.time, plateau.time, rtol=1e-4)
    np.testing.assert_allclose(scaled.loss, scale**2 * plateau.loss, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Descending")
@pytest.mark.parametrize("inverse_omega", [8.0, 12.0])
def test_exactly_equal_modes_stay_equal_or_are_given_up(inverse_omega):
    """Rounding must not turn a start that is symmetric into a wrong time."""
    a0, w0 = [1.0, 0.0, 0.0], [1.0, 0.6, 0.6]
    flow, start = problem(a0, w0, inverse_omega)
    plateau = mj.measure_plateau(flow, start, first_of(relative=0.02), throw=False)
    mp.set_digits(40)
    reference = mp.integrate(
        mp.Problem(
            amplitudes=[mp.real(1)],
            rates=[mp.real(1)],
            inverse_omega=mp.real(inverse_omega),
            sigma=mp.real(0.5),
            c0=mp.real(1),
        ),
        [mp.real(x) for x in a0 + w0],
        mp.Exit("RelativeLossDrop", mp.real(0.02)),
        rtol=1e-6,
    )
    if plateau.result == mj.RESULTS.exited:
        assert reference.result == "exited"
        np.testing.assert_allclose(plateau.time, float(reference.time), rtol=1e-3)
        equal = plateau.model
        np.testing.assert_allclose(equal.amplitudes[1], equal.amplitudes[2], rtol=1e-3)
    elif plateau.result == mj.RESULTS.converged:
        assert plateau.time == np.inf and plateau.curvature < 0
        np.testing.assert_allclose(plateau.loss, float(reference.loss), rtol=1e-9)
    else:
        assert plateau.result == mj.RESULTS.unresolved
        assert np.isnan(plateau.time)


@pytest.mark.thorough
def test_equal_modes_report_no_time_where_the_exit_is_out_of_reach():
    flow, start = problem([1.0, 0.0, 0.0], [1.0, 0.6, 0.6], 8.0)
    plateau = mj.measure_plateau(flow, start, first_of(relative=0.9), throw=False)
    # Converged among what stays equal, and at no minimum: what parts the modes costs nothing.
    assert plateau.result == mj.RESULTS.converged
    assert plateau.time == np.inf
    assert abs(plateau.curvature) < 1e-12
