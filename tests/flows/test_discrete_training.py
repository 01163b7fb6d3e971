import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import memjax as mj

RATE = 0.01
TARGET = mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(omega=1 / 8, width=0.5)
LOSS = mj.WhiteNoiseLoss(TARGET)
START = mj.on_plateau(TARGET, 0.6)
EXIT = mj.RelativeLossDrop(0.02)
QUADRATIC = mj.FunctionLoss(lambda m: jnp.sum(m.amplitudes**2) / 2)


def descend(updates):
    """Weights and losses of plain gradient descent, update by update."""
    gradient, value = eqx.filter_jit(LOSS.gradient), eqx.filter_jit(LOSS)
    model, losses, moved = START, [], []
    for _ in range(updates + 1):
        losses.append(float(value(model)))
        moved.append(
            np.concatenate([model.amplitudes - START.amplitudes, model.rates - START.rates])
        )
        model = eqx.apply_updates(model, jax.tree.map(lambda g: -RATE * g, gradient(model)))
    return np.array(losses), np.linalg.norm(moved, axis=1)


@pytest.mark.slow
def test_updates_are_counted_until_the_exit():
    times = np.array([0.0, 0.5, 3.0, 1e3])
    training = mj.OptaxTraining(LOSS, optax.sgd(RATE), RATE)
    plateau = mj.measure_plateau(training, START, EXIT, saveat=diffrax.SaveAt(ts=times))
    updates = int(plateau.stats["num_steps"])
    losses, distances = descend(updates)
    assert plateau.result == mj.RESULTS.exited
    np.testing.assert_allclose(plateau.time, updates * RATE, rtol=1e-12)
    assert losses[updates] <= 0.98 * losses[0] < losses[updates - 1]
    np.testing.assert_allclose(plateau.loss, losses[-1], rtol=1e-10)
    np.testing.assert_allclose(plateau.distance, distances[-1], rtol=1e-8)
    at = np.array([0, 50, 300])
    np.testing.assert_allclose(plateau.curve.loss[:3], losses[at], rtol=1e-10)
    np.testing.assert_allclose(plateau.curve.distance[:3], distances[at], rtol=1e-8)
    assert np.isnan(plateau.curve.loss[3])
    assert np.isnan(plateau.curvature) and plateau.rounding < 1e-8
    # Gradient descent of small steps is the gradient flow.
    flow = mj.measure_plateau(mj.GradientFlow(LOSS), START, EXIT)
    np.testing.assert_allclose(plateau.time, flow.time, rtol=5e-3)


@pytest.mark.slow
def test_optimisers_that_search_along_a_line_see_the_loss():
    plateau = mj.measure_plateau(mj.OptaxTraining(LOSS, optax.lbfgs()), START, EXIT)
    assert plateau.result == mj.RESULTS.exited
    assert plateau.time < 50


def test_weight_decay_acts_on_the_weights_and_not_on_their_displacement():
    flat = mj.FunctionLoss(lambda m: 1.0 + 0 * jnp.sum(m.amplitudes))
    training = mj.OptaxTraining(flat, optax.adamw(0.1, weight_decay=0.5))
    plateau = mj.measure_plateau(training, START, mj.LossChange(1.0), max_time=10, throw=False)
    assert plateau.result == mj.RESULTS.max_time_reached
    np.testing.assert_allclose(plateau.model.rates, START.rates * 0.95**10, rtol=1e-12)


def test_limits_and_divergence_are_results():
    def train(rate, **options):
        training = mj.OptaxTraining(QUADRATIC, optax.sgd(rate), 0.5)
        return mj.measure_plateau(training, START, mj.LossChange(2.0), throw=False, **options)

    stopped = train(0.1, max_steps=7)
    assert stopped.result == mj.RESULTS.max_steps_reached and stopped.stats["num_steps"] == 7
    assert np.isnan(stopped.time) and stopped.time_reached == 3.5
    late = train(0.1, max_time=3.2)
    assert late.result == mj.RESULTS.max_time_reached and late.time_reached == 3.5
    cliff = mj.FunctionLoss(lambda m: jnp.log(m.amplitudes[0] - 0.5))
    training = mj.OptaxTraining(cliff, optax.sgd(1.0))
    lost = mj.measure_plateau(training, START, mj.LossChange(1e9), throw=False)
    assert lost.result == mj.RESULTS.diverged and np.isnan(lost.time)
    with pytest.raises(eqx.EquinoxRuntimeError, match="not finite any more"):
        mj.measure_plateau(training, START, mj.LossChange(1e9))
    at_once = mj.measure_plateau(training, START, mj.RelativeLossDrop(0.5, reference=1e3))
    assert at_once.time == 0


@pytest.mark.slow
def test_a_sweep_takes_any_training_and_flow():
    def build(rate, omega, kind):
        target = mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(omega=omega, width=0.5)
        loss = mj.WhiteNoiseLoss(target)
        training = {
            "adam": lambda: mj.OptaxTraining(loss, optax.adam(rate), rate),
            "ball": lambda: mj.HeavyBall(loss, 1 / rate),
        }[kind]()
        return training, mj.on_plateau(target, 0.6), EXIT

    axes = {"rate": [0.01, 0.02], "omega": [0.125, 0.2], "kind": ["adam", "ball"]}
    out = mj.sweep(build, axes, progress=False)
    assert np.all(out["result"] == 0)
    for rate, omega, kind in [(0.02, 0.125, "adam"), (0.01, 0.2, "ball")]:
        single = mj.measure_plateau(*build(rate, omega, kind))
        cell = out.sel(rate=rate, omega=omega, kind=kind)
        np.testing.assert_allclose(cell["time"], single.time, rtol=1e-6)
        assert cell["num_steps"] == single.stats["num_steps"]
    with pytest.raises(ValueError, match="`precision` must"):
        mj.sweep(build, axes, precision="double-double", progress=False)


@pytest.mark.parametrize("solver", [diffrax.Euler(), diffrax.ShARK()])
def test_stochastic_gradient_flow_has_its_stationary_variance(solver):
    # x' = -x + noise in steps of h: Euler-Maruyama settles at T / (1 - h/2), the flow at T.
    temperature, h, chains, steps = 0.3, 0.2, 4000, 60

    @jax.jit
    @jax.vmap
    def run(key):
        training = mj.StochasticGradientFlow(QUADRATIC, temperature, h, solver, key=key)
        exit = mj.ParameterDistance(1e9)
        end = mj.measure_plateau(training, START, exit, max_steps=steps, throw=False)
        return end.model.amplitudes, end.model.rates

    amplitudes, rates = run(jax.random.split(jax.random.key(1), chains))
    exact = temperature / (1 - h / 2) if isinstance(solver, diffrax.Euler) else temperature
    error = exact * np.sqrt(2 / chains)
    assert np.all(np.abs(np.var(amplitudes, axis=0) - exact) < 4 * error)
    assert np.all(np.abs(np.mean(amplitudes, axis=0)) < 4 * np.sqrt(exact / chains))
    # Weights that feel no force diffuse.
    free = 2 * temperature * h * steps
    assert np.all(np.abs(np.var(rates, axis=0) - free) < 4 * free * np.sqrt(2 / chains))


def test_without_temperature_it_is_gradient_descent():
    key = jax.random.key(0)
    noiseless = mj.measure_plateau(mj.StochasticGradientFlow(LOSS, 0.0, RATE, key=key), START, EXIT)
    descent = mj.measure_plateau(mj.OptaxTraining(LOSS, optax.sgd(RATE), RATE), START, EXIT)
    np.testing.assert_allclose(noiseless.time, descent.time, rtol=1e-12)


@pytest.mark.parametrize(
    "make, error, match",
    [
        (lambda: mj.OptaxTraining(LOSS, 1e-3), TypeError, "`optimiser` must be an Optax"),
        (lambda: mj.OptaxTraining(LOSS, optax.sgd(1), -1.0), ValueError, "`time_step` must be p"),
        (
            lambda: mj.StochasticGradientFlow(LOSS, -1.0, 0.1, key=jax.random.key(0)),
            ValueError,
            "`temperature` must not be negative, got -1.0",
        ),
        (
            lambda: mj.StochasticGradientFlow(LOSS, 1.0, 0.1, key=0),  # pyright: ignore
            TypeError,
            "`key` must be a single PRNG key, got 0",
        ),
        (
            lambda: mj.measure_plateau(
                mj.OptaxTraining(LOSS, optax.sgd(0.1)), START, EXIT, solver=diffrax.Kvaerno5()
            ),
            ValueError,
            "`solver` must not be given for a discrete training",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()
