import diffrax
import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import lineax as lx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, linalg

import memjax as mj
from memjax.losses import displaced, weights

GAIN = 1.5
TARGET = mj.ExponentialSum([1.0, -0.4], [1.0, 0.3]) + mj.ExponentialSum([0.2], [4.0])
FLOW = mj.GradientFlow(mj.WhiteNoiseLoss(TARGET))
TIMES = np.array([0.0, 0.1, 0.5, 1.0, 2.0, 4.0])


def model(amplitudes=(0.8, -0.5, 0.3), rates=(1.1, 0.25, 3.0)):
    return mj.DiagonalLinearRNN(jnp.asarray(amplitudes), jnp.asarray(rates), mj.Exp(GAIN))


@eqx.filter_jit
def train(start):
    return diffrax.diffeqsolve(
        FLOW,
        diffrax.Kvaerno5(),
        t0=0.0,
        t1=TIMES[-1],
        dt0=1e-3,
        y0=start,
        saveat=diffrax.SaveAt(ts=TIMES),
        stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-10),
        max_steps=10_000,
    ).ys


def reference(start):
    """The weights at `TIMES` by SciPy, from a gradient written out for exponential sums."""
    width = start.width
    b = np.concatenate([-np.asarray(term.amplitudes) for term in TARGET.terms])
    v = np.concatenate([np.asarray(term.rates) for term in TARGET.terms])

    def descent(t, theta):
        a, w = theta[:width], np.exp(GAIN * theta[width:])
        amplitudes, sums = np.concatenate([a, b]), w[:, None] + np.concatenate([w, v])
        by_amplitude = 2 * (1 / sums) @ amplitudes
        by_rate = -2 * a * ((1 / sums**2) @ amplitudes)
        return -np.concatenate([by_amplitude, GAIN * w * by_rate])

    theta = np.concatenate([start.amplitudes, start.free_rates])
    solution = integrate.solve_ivp(
        descent, (0, TIMES[-1]), theta, "DOP853", t_eval=TIMES, rtol=1e-11, atol=1e-12
    )
    return solution.y.T


@pytest.mark.thorough
def test_flow_of_models_is_the_gradient_flow():
    path = train(model())
    found = np.concatenate([path.amplitudes, path.free_rates], axis=1)
    np.testing.assert_allclose(found, reference(model()), rtol=1e-6, atol=1e-8)
    # What is not trained stands still.
    np.testing.assert_array_equal(path.reparametrisation.gain, GAIN)


@pytest.mark.slow
def test_flow_of_displacements_is_the_flow_of_models():
    start = model()
    flow = FLOW.displaced(start)
    ys = diffrax.diffeqsolve(
        flow,
        diffrax.Kvaerno5(),
        t0=0.0,
        t1=TIMES[-1],
        dt0=1e-3,
        y0=flow.initial_state(),
        saveat=diffrax.SaveAt(ts=TIMES),
        stepsize_controller=diffrax.PIDController(rtol=1e-8, atol=1e-10),
    ).ys
    exact = reference(start)
    np.testing.assert_allclose(ys, exact - exact[0], rtol=1e-6, atol=1e-8)
    end = flow.model_at(ys[-1])
    np.testing.assert_allclose(end.amplitudes, exact[-1, :3], rtol=1e-6)
    np.testing.assert_allclose(end.rates, np.exp(GAIN * exact[-1, 3:]), rtol=1e-6)
    distances = jax.vmap(flow.distance)(ys)
    np.testing.assert_allclose(distances, np.linalg.norm(exact - exact[0], axis=1), rtol=1e-6)


@pytest.mark.thorough
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**20))
def test_loss_falls_from_any_start(seed):
    rng = np.random.default_rng(seed)
    path = train(model(rng.normal(size=3), np.exp(rng.uniform(-1.5, 1.5, size=3))))
    losses = jax.vmap(FLOW.loss)(path)
    assert np.all(np.diff(losses) <= 1e-9 * losses[0])
    assert losses[-1] < losses[0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), order=st.permutations(range(3)))
def test_modes_have_no_order(seed, order):
    rng = np.random.default_rng(seed)
    amplitudes, rates = rng.normal(size=3), np.exp(rng.uniform(-1.5, 1.5, size=3))
    order = np.array(order)
    velocity = FLOW.vf(jnp.zeros(()), model(amplitudes, rates), None)
    permuted = FLOW.vf(jnp.zeros(()), model(amplitudes[order], rates[order]), None)
    np.testing.assert_allclose(permuted.amplitudes, velocity.amplitudes[order], rtol=1e-11)
    np.testing.assert_allclose(
        permuted.free_rates, velocity.free_rates[order], rtol=1e-11, atol=1e-13
    )


def test_loss_of_ones_own():
    # |a - c|^2: every amplitude relaxes to its own c at the rate 2, and rates feel nothing.
    goal = jnp.array([0.0, 1.0, -1.0])
    flow = mj.GradientFlow(mj.FunctionLoss(lambda m: jnp.sum((m.amplitudes - goal) ** 2)))
    end = diffrax.diffeqsolve(
        flow,
        diffrax.Tsit5(),
        t0=0.0,
        t1=0.7,
        dt0=0.01,
        y0=model(),
        stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-12),
    ).ys
    exact = goal + (model().amplitudes - goal) * np.exp(-1.4)
    np.testing.assert_allclose(end.amplitudes[0], exact, rtol=1e-8)
    np.testing.assert_array_equal(end.free_rates[0], model().free_rates)


def test_displacements_are_flat_and_of_any_size():
    flow = FLOW.displaced(model())
    start = flow.initial_state()
    assert start.shape == (6,) and np.all(start == 0)
    y = jnp.arange(6.0) * 1e-3
    change = jfu.ravel_pytree(weights(model()))[1](y)
    np.testing.assert_array_equal(flow.model_at(y).rates, displaced(model(), change).rates)
    velocity = FLOW.vf(jnp.zeros(()), flow.model_at(y), None)
    found = flow.vf(jnp.zeros(()), y, None)
    np.testing.assert_allclose(found[:3], velocity.amplitudes, rtol=1e-11)
    np.testing.assert_allclose(found[3:], velocity.free_rates, rtol=1e-11)
    noise = flow.noise(y)
    assert noise.shape == (6,) and np.all(noise > 0) and np.all(noise < 1e-13)


def test_distance_has_a_derivative_at_the_start():
    flow = FLOW.displaced(model())
    np.testing.assert_array_equal(jax.grad(flow.distance)(jnp.zeros(6)), np.zeros(6))
    y = jnp.array([3.0, 0.0, 0.0, 4.0, 0.0, 0.0]) * 1e-100
    np.testing.assert_allclose(flow.distance(y), 5e-100, rtol=1e-14)
    np.testing.assert_allclose(jax.grad(flow.distance)(y), y / 5e-100, rtol=1e-14)


@pytest.mark.parametrize("loss", [TARGET, 1.0, mj.WhiteNoiseLoss, lambda m: 0.0])
def test_loss_must_be_a_loss(loss):
    with pytest.raises(TypeError, match=r"`loss` must be a memjax loss"):
        mj.GradientFlow(loss)


def test_preconditioning_changes_the_metric():
    # |a - c|^2 with the metric A: the matrix exponential of -2 A^{-1}, and rates feel nothing.
    goal = jnp.array([0.0, 1.0, -1.0])
    metric = np.diag([2.0, 1.0, 0.5, 1.0, 1.0, 1.0]) + 0.1
    flow = mj.PreconditionedFlow(
        mj.FunctionLoss(lambda m: jnp.sum((m.amplitudes - goal) ** 2)),
        lx.MatrixLinearOperator(jnp.asarray(metric), lx.positive_semidefinite_tag),
    )
    end = diffrax.diffeqsolve(
        flow,
        diffrax.Tsit5(),
        t0=0.0,
        t1=0.7,
        dt0=0.01,
        y0=flow.start(model()),
        stepsize_controller=diffrax.PIDController(rtol=1e-10, atol=1e-12),
    ).ys
    projection = np.diag([1.0, 1, 1, 0, 0, 0])
    away = np.concatenate([model().amplitudes - goal, np.zeros(3)])
    moved = (linalg.expm(-1.4 * np.linalg.inv(metric) @ projection) - np.eye(6)) @ away
    np.testing.assert_allclose(end.amplitudes[0], model().amplitudes + moved[:3], rtol=1e-8)
    np.testing.assert_allclose(end.free_rates[0], model().free_rates + moved[3:], rtol=1e-8)
    with pytest.raises(ValueError, match="`operator` must act on the 6 trained weights, got one"):
        mj.PreconditionedFlow(flow.loss, lx.DiagonalLinearOperator(jnp.ones(3))).start(model())
    with pytest.raises(TypeError, match="`operator` must be a Lineax operator, got an array"):
        mj.PreconditionedFlow(flow.loss, metric)  # pyright: ignore
