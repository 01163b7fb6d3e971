"""Exits that are met within a step, against closed forms and an integration by SciPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp

import memjax as mj
from memjax.plateaus import OUTCOMES
from memjax.plateaus._crossing import first_crossing


@settings(deadline=None, max_examples=60)
@given(st.floats(0.02, 0.98), st.floats(0.3, 30.0), st.floats(-9.0, -1.0), st.booleans())
def test_a_dip_is_found_wherever_it_lies(place, bend, log_depth, below):
    depth = 10**log_depth
    margin = lambda x: bend * (x - place) ** 2 + (-depth if below else depth)
    start, end = jnp.asarray(margin(0.0)), jnp.asarray(margin(1.0))
    if start <= 0:
        return
    found = _first_crossing(jnp.asarray([place, bend, -depth if below else depth]), start, end)
    assert bool(found.crossed) == below
    if below:
        root = place - np.sqrt(depth / bend)
        assert float(found.low) <= root + 1e-9 and root - 1e-9 <= float(found.high)
        assert float(found.above) > 0 >= float(found.below)
    elif depth < 0.01 and 0.15 < place < 0.85:
        assert float(found.nearest) == pytest.approx(depth, rel=1e-3, abs=1e-9 * bend)
        assert float(found.share) == pytest.approx(place, abs=1e-3)


@jax.jit
def _first_crossing(parabola, start, end):
    place, bend, offset = parabola
    return first_crossing(lambda x: bend * (x - place) ** 2 + offset, start, end)


def test_the_first_of_several_crossings_is_taken_in_every_lane():
    frequencies = jnp.asarray([3.0, 7.0, 20.0])
    margin = lambda x: 0.1 + jnp.cos(frequencies * x)
    zero = jnp.zeros(3)
    found = first_crossing(margin, margin(zero), margin(zero + 1))
    exact = np.arccos(-0.1) / np.asarray(frequencies)
    assert bool(jnp.all(found.crossed))
    assert np.all((found.low <= exact) & (exact <= found.high))


# --- Oscillating flows: |theta - theta(0)| = A (1 - cos(t)) for J = (theta - theta(0) - A)^2 / 2 --


AMPLITUDE = 0.7


def _spring(model):
    return (model.amplitudes[0] - AMPLITUDE) ** 2 / 2


def oscillation(exit):
    start = mj.DiagonalLinearRNN(jnp.zeros(1), jnp.ones(1))
    return mj.HeavyBall(mj.FunctionLoss(_spring), 0.0), start, exit


@functools.cache
def _times(kind):
    @jax.jit
    def measured(delta):
        return mj.measure_plateau(*oscillation(kind(delta)), throw=False)

    return measured


# The largest share, of the distance reached and of the loss lost, is 1.
GAPS = [0.5, 1e-2, 1e-3, 1e-4]


@pytest.mark.thorough
@pytest.mark.parametrize("gap", GAPS)
def test_the_distance_of_an_oscillation(gap):
    delta = 2 * AMPLITUDE * (1 - gap)
    plateau = _times(mj.ParameterDistance)(delta)
    assert plateau.result == mj.RESULTS.exited
    exact = np.arccos(1 - delta / AMPLITUDE)
    np.testing.assert_allclose(plateau.time, exact, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("gap", GAPS)
def test_the_loss_of_an_oscillation(gap):
    plateau = _times(mj.RelativeLossDrop)(1 - gap)
    assert plateau.result == mj.RESULTS.exited
    np.testing.assert_allclose(plateau.time, np.arccos(np.sqrt(gap)), rtol=1e-4)


def test_an_exit_that_is_only_just_met_or_missed_is_undecided_under_jit():
    measured = _times(mj.ParameterDistance)
    for gap in (1e-9, -1e-9):
        plateau = measured(2 * AMPLITUDE * (1 - gap))
        assert plateau.result == mj.RESULTS.undecided and np.isnan(plateau.time)


@pytest.mark.slow
def test_what_a_tolerance_leaves_undecided_a_smaller_one_decides():
    for gap in (1e-5, 1e-7):
        delta = 2 * AMPLITUDE * (1 - gap)
        plateau = mj.measure_plateau(*oscillation(mj.ParameterDistance(delta)))
        np.testing.assert_allclose(plateau.time, np.arccos(1 - delta / AMPLITUDE), rtol=1e-4)
    axes = {"gap": [1e-2, 1e-5, 1e-7]}
    build = lambda gap: oscillation(mj.ParameterDistance(2 * AMPLITUDE * (1 - gap)))
    times = mj.sweep(build, axes, progress=False)["time"]
    np.testing.assert_allclose(times, np.arccos(2 * np.asarray(axes["gap"]) - 1), rtol=1e-4)


class _Level(mj.AbstractExit):
    """An exit of one's own: the first amplitude is above a level."""

    level: jax.Array

    def margin(self, state):
        return (self.level - state.model.amplitudes[0]) / AMPLITUDE


@pytest.mark.slow
def test_exits_of_ones_own_are_looked_for_within_steps():
    level = 2 * AMPLITUDE * (1 - 1e-4)
    plateau = _times(lambda level: _Level(level))(level)
    np.testing.assert_allclose(plateau.time, np.arccos(1 - level / AMPLITUDE), rtol=1e-4)


# --- A maximum of the distance along a gradient flow ----------------------------------------------

START = np.array([-1.6538397452, 1.3338128819, -1.2334263262, 0.1211690277, 1.3038462807,
                  0.1395942073])  # fmt: skip
A, W, OMEGA, HEIGHT, WIDTH = 0.0936459564, 0.7542083894, 0.3371408103, 0.6281516452, 0.4149759983


def velocity(_, theta):
    """Minus the gradient, from the definition of the loss, without JAX."""
    a, w = theta[:3], theta[3:]
    # The transform of the bump by its moments under a normal distribution of time.
    shifted = 1 / OMEGA - w * WIDTH**2
    size = HEIGHT * WIDTH * np.sqrt(2 * np.pi) * np.exp(w**2 * WIDTH**2 / 2 - w / OMEGA)
    r = size * scipy.stats.norm.cdf(shifted / WIDTH)
    edge = HEIGHT * WIDTH**2 * np.exp(-1 / (2 * (OMEGA * WIDTH) ** 2))
    slope = -(shifted * r + edge)
    sums = w[:, None] + w
    e0 = (1 / sums) @ a - A / (w + W) - r
    e1 = -(1 / sums**2) @ a + A / (w + W) ** 2 - slope
    return -2 * np.concatenate([e0, a * e1])


@functools.cache
def path():
    """The flow up to the maximum of the distance, and when and how far that is."""
    turning = lambda t, y: (y - START) @ velocity(t, y)
    turning.direction = -1
    solution = solve_ivp(velocity, (0, 5), START, "LSODA", rtol=1e-12, atol=1e-14,
                         events=turning, dense_output=True)  # fmt: skip
    top = solution.t_events[0][0]
    distance = lambda t: np.linalg.norm(solution.sol(t) - START)
    return distance, top, distance(top)


def near_its_maximum(delta):
    target = mj.ExponentialSum([A], [W]) + mj.GaussianBump(OMEGA, HEIGHT, WIDTH)
    model = mj.DiagonalLinearRNN(START[:3], START[3:])
    return mj.GradientFlow(mj.WhiteNoiseLoss(target)), model, mj.ParameterDistance(delta)


@pytest.mark.slow
def test_a_first_crossing_near_a_maximum_of_the_distance():
    distance, top, largest = path()
    deltas = largest * (1 - np.array([1e-2, 1e-3, 1e-4, 1e-5, 1e-6]))
    cells = mj.sweep(near_its_maximum, {"delta": deltas}, progress=False)
    for delta in deltas:
        exact = scipy.optimize.brentq(lambda t: distance(t) - delta, 0, top)
        assert float(cells["time"].sel(delta=delta)) == pytest.approx(exact, rel=1e-5)
    assert set(cells["result"].values.tolist()) == {OUTCOMES.index("exited")}


@pytest.mark.slow
def test_the_same_by_single_measurements():
    distance, top, largest = path()
    for delta in largest * (1 - np.array([1e-3, 1e-4, 1e-6])):
        exact = scipy.optimize.brentq(lambda t: distance(t) - delta, 0, top)
        plateau = mj.measure_plateau(*near_its_maximum(delta))
        np.testing.assert_allclose(plateau.time, exact, rtol=1e-4)
    # Beyond the maximum it takes thousands of times as long.
    plateau = mj.measure_plateau(*near_its_maximum(largest * (1 + 1e-4)))
    assert plateau.time > 2000
