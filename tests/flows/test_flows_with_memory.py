"""Flows that remember more than the weights: heavy ball, Nesterov, Adam."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate, special

import memjax as mj
from memjax.plateaus import cheap_steps

STIFFNESS = np.array([1.0, 9.0])
START = mj.DiagonalLinearRNN([1.0, -0.5], [1.0, 2.0])
QUADRATIC = mj.FunctionLoss(lambda m: jnp.sum(STIFFNESS * m.amplitudes**2) / 2)
TIMES = np.array([0.0, 0.3, 1.0, 2.5])


@eqx.filter_jit
def integrate_displaced(flow):
    term = flow.displaced(START)
    ys = diffrax.diffeqsolve(
        term,
        diffrax.Tsit5(),
        t0=0.0,
        t1=TIMES[-1],
        dt0=1e-4,
        y0=term.initial_state(),
        saveat=diffrax.SaveAt(ts=TIMES),
        stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-11),
        max_steps=20_000,
    ).ys
    return jax.vmap(lambda y: term.model_at(y).amplitudes)(ys)


@pytest.mark.parametrize("friction", [0.0, 0.5])
def test_heavy_ball_on_a_quadratic_is_a_damped_oscillator(friction):
    found = integrate_displaced(mj.HeavyBall(QUADRATIC, friction))
    frequency = np.sqrt(STIFFNESS - friction**2 / 4)
    phase = np.outer(TIMES, frequency)
    decay = np.exp(-friction * TIMES / 2)[:, None]
    exact = START.amplitudes * decay * (np.cos(phase) + friction / 2 / frequency * np.sin(phase))
    np.testing.assert_allclose(found, exact, atol=1e-7)


def test_nesterov_on_a_quadratic_is_a_bessel_function():
    found = integrate_displaced(mj.Nesterov(QUADRATIC))
    z = np.outer(TIMES[1:], np.sqrt(STIFFNESS))
    exact = START.amplitudes * 2 * special.j1(z) / z
    np.testing.assert_allclose(found[1:], exact, atol=1e-6)


def test_adam_is_the_limit_of_small_learning_rates():
    t1, t2 = 0.1, 1.0
    found = integrate_displaced(mj.Adam(QUADRATIC, 1e-3, (t1, t2)))[1:]

    def discrete(rate):
        adam = optax.adam(rate, 1 - rate / t1, 1 - rate / t2, 1e-3)

        def update(carry, _):
            weights, state = carry
            change, state = adam.update(STIFFNESS * weights, state)
            return (weights + change, state), weights

        weights = jnp.asarray(START.amplitudes)
        _, path = jax.lax.scan(
            update, (weights, adam.init(weights)), None, int(TIMES[-1] / rate) + 2
        )
        return np.stack([path[round(t / rate)] for t in TIMES[1:]])

    coarse, fine = discrete(1e-3) - found, discrete(2.5e-4) - found
    assert np.all(np.abs(fine) < 1e-3)
    assert np.max(np.abs(fine)) < 0.4 * np.max(np.abs(coarse))


def test_states_are_pairs_as_diffrax_terms():
    flow = mj.HeavyBall(QUADRATIC, 0.5)
    solution = diffrax.diffeqsolve(
        flow,
        diffrax.Tsit5(),
        t0=0.0,
        t1=TIMES[-1],
        dt0=1e-3,
        y0=flow.start(START),
        stepsize_controller=diffrax.PIDController(rtol=1e-9, atol=1e-11),
    )
    model, velocity = solution.ys  # pyright: ignore[reportGeneralTypeIssues]
    np.testing.assert_allclose(model.amplitudes[0], integrate_displaced(flow)[-1], atol=1e-7)
    assert velocity.shape == (1, 4)
    np.testing.assert_array_equal(model.rates[0], START.rates)


def plateau_problem(memory):
    target = mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(omega=1 / memory, width=0.5)
    return mj.WhiteNoiseLoss(target), mj.on_plateau(target, 0.6)


@eqx.filter_jit
def plateau_time(kind, memory, *parameters):
    loss, model = plateau_problem(memory)
    flow = kind(loss, *(jnp.asarray(parameter) for parameter in parameters))
    # What nothing damps swings all the way along the plateau.
    return mj.measure_plateau(flow, model, mj.RelativeLossDrop(0.02), max_steps=20_000).time


def times(memories, kind, *parameters):
    return np.array([float(plateau_time(kind, jnp.asarray(m), *parameters)) for m in memories])


@pytest.mark.slow
def test_exit_of_the_heavy_ball_against_scipy():
    loss, model = plateau_problem(10.0)
    gradient = jax.jit(lambda a, w: loss.gradient(mj.DiagonalLinearRNN(a, w)))
    value = jax.jit(lambda a, w: loss(mj.DiagonalLinearRNN(a, w)))

    def field(t, y):
        g = gradient(y[:2], y[2:4])
        return np.concatenate([y[4:], -np.concatenate([g.amplitudes, g.free_rates])])

    def left(t, y):
        return value(y[:2], y[2:4]) - 0.98 * value(model.amplitudes, model.rates)

    left.terminal = True  # pyright: ignore
    start = np.concatenate([model.amplitudes, model.rates, np.zeros(4)])
    solution = integrate.solve_ivp(
        field, (0, 1e3), start, "DOP853", events=left, rtol=1e-10, atol=1e-13
    )
    found = times([10.0], mj.HeavyBall, jnp.asarray(0.0))
    np.testing.assert_allclose(found[0], solution.t_events[0][0], rtol=1e-5)


@pytest.mark.slow
def test_friction_is_a_unit_of_time_on_a_plateau():
    overdamped = times([16.0], mj.HeavyBall, jnp.asarray(1e3))
    np.testing.assert_allclose(overdamped, 1e3 * times([16.0], mj.GradientFlow), rtol=1e-4)


@pytest.mark.slow
def test_without_friction_the_exponent_is_halved():
    memories = [16.0, 20.0]
    growth = lambda *kind: np.diff(np.log(times(memories, *kind)))[0]
    flow = growth(mj.GradientFlow)
    # The plateau of gradient flow lasts 1 / (P c^2), that without friction about 1 / (sqrt(P) c):
    # powers of the memory keep the ratio off 1/2.
    assert 0.45 < growth(mj.HeavyBall, jnp.asarray(0.0)) / flow < 0.55
    assert 0.45 < growth(mj.Nesterov) / flow < 0.55


@pytest.mark.slow
def test_adam_has_a_plateau_once_gradients_are_below_its_epsilon():
    memories = [14.0, 18.0]
    # All gradients are below 1e-2 there: gradient flow, slowed down by epsilon.
    above, below = (times(memories, mj.Adam, jnp.asarray(epsilon)) for epsilon in (1e-2, 1e-14))
    np.testing.assert_allclose(above / times(memories, mj.GradientFlow) / 1e-2, 1, rtol=0.2)
    # None is below 1e-14: at unit speed whatever the memory.
    assert below[1] < 1.5 * below[0] < 1.0


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: mj.HeavyBall(1.0), TypeError, "`loss` must be a memjax loss"),  # pyright: ignore
        (lambda: mj.HeavyBall(QUADRATIC, -1.0), ValueError, "`friction` must not be negative"),
        (lambda: mj.Nesterov(QUADRATIC, 0.0), ValueError, "`damping` must be positive, got 0.0"),
        (lambda: mj.Adam(QUADRATIC, 0.0), ValueError, "`epsilon` must be positive, got 0.0"),
        (lambda: mj.Adam(QUADRATIC, 1e-8, 0.1), ValueError, "must be two times"),  # pyright: ignore
        (lambda: mj.Adam(QUADRATIC, 1e-8, (0.1, 0.0)), ValueError, "must be positive, got 0.0"),
    ],
)
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.slow
def test_a_flow_that_oscillates_is_not_repeated_for_its_turns():
    target = mj.ExponentialSum(1.0, 1.0) + mj.GaussianBump(0.05, 1.0, 0.5)
    flow = mj.Nesterov(mj.WhiteNoiseLoss(target))
    model, leave = mj.DiagonalLinearRNN([1.0, 0.0], [1.0, 0.6]), mj.RelativeLossDrop(0.02)
    found = mj.measure_plateau(flow, model, leave)
    steps = int(found.stats["num_steps"])
    assert cheap_steps(mj.GradientFlow(flow.loss)) < steps < cheap_steps(flow)
    finer = mj.measure_plateau(flow, model, leave, rtol=1e-9, max_steps=2**16)
    np.testing.assert_allclose(found.time, finer.time, rtol=1e-7)


@pytest.mark.parametrize("damping", [0.5, 1.0, 3.0])
def test_without_a_gradient_it_coasts_as_far_as_its_friction_lets_it(damping):
    # v falls as tau^-r, whose integral is infinite up to r = 1; y is v / tau.
    speed, time = np.array([0.3, 0.0]), 2.0
    found = mj.Nesterov(QUADRATIC, damping).coasting((jnp.asarray(speed / time), jnp.asarray(time)))
    far = speed * time / (damping - 1) if damping > 1 else np.array([np.inf, 0.0])
    np.testing.assert_allclose(found, far, rtol=1e-15)
