"""Every model with every target and loss that it makes sense with, and why not with the others."""

import functools

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import memjax as mj
from memjax.losses import weights

KEY = jax.random.key(5)
TS = jnp.linspace(0.0, 4.0, 41)
AMPLITUDES, RATES = jnp.array([0.8, -0.3]), jnp.array([1.1, 0.4])
# Weights scaled by these, so that the slope along the weights has a difference quotient.
STEP = 1e-4
SCALES = jnp.array([1 - STEP, 1.0, 1 + STEP])

LINEAR = {
    "direct": lambda: mj.DiagonalLinearRNN(AMPLITUDES, RATES),
    "softplus": lambda: mj.DiagonalLinearRNN(AMPLITUDES, RATES, mj.Softplus()),
    "inverse": lambda: mj.DiagonalLinearRNN(AMPLITUDES, RATES, mj.Inverse()),
    "best": lambda: mj.DiagonalLinearRNN(AMPLITUDES, RATES, mj.Best(1.0, 0.5)),
    "complex": lambda: mj.ComplexDiagonalRNN(AMPLITUDES, AMPLITUDES / 2, RATES, 2 * RATES),
    "dense": lambda: mj.LinearRNN.init(2, key=KEY),
    "matrix": lambda: mj.LinearRNN.init(2, 2, 2, key=KEY),
}
NONLINEAR = {
    "tanh": lambda: mj.NonlinearRNN.init(2, key=KEY),
    "gru": lambda: mj.GatedRNN.init("gru", 2, key=KEY),
    "stack": lambda: mj.StateSpaceStack(
        [mj.StateSpaceLayer.init(RATES, key=KEY), mj.StateSpaceLayer.init(RATES, key=KEY)]
    ),
    "lru": lambda: mj.LRULayer.init(RATES, 2 * RATES, key=KEY),
}
MODELS = LINEAR | NONLINEAR
SCANNED = ("direct", "softplus", "inverse", "best", "complex", "stack", "lru")

EXPONENTIAL = mj.ExponentialSum([1.0, -0.4], [0.9, 0.3])
GRID = jnp.linspace(0.0, 5.0, 26)
KERNELS = {
    "bump": lambda: EXPONENTIAL + mj.GaussianBump(0.5, 0.3),
    "power": lambda: mj.PowerLaw(1.0),
    "airy": lambda: mj.Airy(1.0, 2.0),
    "box": lambda: mj.Box(0.5, 1.5),
    "sampled": lambda: mj.SampledKernel(GRID, jnp.exp(-GRID)),
}
VECTORS = {
    "vector": lambda: mj.VectorKernel(
        ((EXPONENTIAL, mj.Box(0.5, 1.5)), (mj.GaussianBump(0.5, 0.3), EXPONENTIAL))
    ),
}
FUNCTIONALS = {
    "lorenz": lambda: mj.Lorenz96(4, 4, key=KEY, spin_up=1.0, rtol=1e-5, atol=1e-5),
    "volterra": lambda: mj.Volterra(EXPONENTIAL, [(EXPONENTIAL, mj.Box(0.0, 1.0))]),
    "teacher": lambda: mj.Teacher(mj.NonlinearRNN.init(3, key=jax.random.key(6)).residual),
    "attention": lambda: mj.Attention(
        [[[1.0]]], [[[0.5]]], [[1.0]], [mj.ExponentialSum(1.0, 0.5)], scalar=True
    ),
}
TARGETS = KERNELS | VECTORS | FUNCTIONALS


@functools.cache
def model(name):
    return MODELS[name]()


@functools.cache
def target(name):
    return TARGETS[name]()


@functools.cache
def sampled(name, method):
    return mj.SampledPathLoss.ornstein_uhlenbeck(target(name), TS, 3, 1.0, key=KEY, method=method)


def scaled(model, scale):
    free, fixed = eqx.partition(model, mj.trainable(model))
    return eqx.combine(jax.tree.map(lambda w: scale * w, free), fixed)


@eqx.filter_jit
def batched(loss, model):
    """Losses, and slopes along the weights, of several models at once."""
    models = eqx.filter_vmap(scaled, in_axes=(None, 0))(model, SCALES)

    def both(model):
        gradient = jfu.ravel_pytree(loss.gradient(model))[0]
        return loss(model), gradient, gradient @ jfu.ravel_pytree(weights(model))[0]

    return eqx.filter_vmap(both)(models)


def check(loss, model):
    values, gradients, slopes = batched(loss, model)
    assert np.all(np.isfinite(values)) and np.all(values > 0)
    assert np.all(np.isfinite(gradients)) and np.all(np.any(gradients != 0, axis=1))
    quotient = (values[2] - values[0]) / (2 * STEP)
    scale = np.linalg.norm(gradients[1])
    np.testing.assert_allclose(slopes[1], quotient, rtol=1e-5, atol=1e-6 * scale)


def of_one_shape(model, target):
    return (model == "matrix") == (target in VECTORS)


def population(kind, target):
    if kind == "white":
        return mj.WhiteNoiseLoss(target)
    if kind == "white, finite":
        return mj.WhiteNoiseLoss(target, horizon=3.0)
    return mj.ColouredNoiseLoss(target, 1.0)


SAMPLED = [
    (name, other, method)
    for name in MODELS
    for method in ("scan", "residual")
    for other in TARGETS
    if of_one_shape(name, other) and (method == "residual" or name in SCANNED)
]
POPULATION = [
    (name, other, kind)
    for name in LINEAR
    for other in KERNELS | VECTORS
    for kind in ("white", "white, finite", "coloured")
    if of_one_shape(name, other)
]
# Sampled losses hold the outputs of their target, so that one program serves all targets.
SOME_SAMPLED = [
    case
    for case in SAMPLED
    if case[::2]
    in (("direct", "scan"), ("matrix", "residual"), ("tanh", "residual"), ("gru", "residual"))
    or case in (("stack", "volterra", "scan"), ("lru", "attention", "scan"))
]
SOME_POPULATION = [
    ("direct", "bump", "white"),
    ("softplus", "power", "white"),
    ("inverse", "airy", "white, finite"),
    ("best", "box", "white"),
    ("complex", "sampled", "white"),
    ("dense", "box", "white"),
    ("direct", "box", "coloured"),
]


@pytest.mark.slow
@pytest.mark.parametrize("name, other, method", SOME_SAMPLED)
def test_sampled_losses(name, other, method):
    check(sampled(other, method), model(name))


@pytest.mark.thorough
@pytest.mark.parametrize("name, other, kind", SOME_POPULATION)
def test_population_losses(name, other, kind):
    check(population(kind, target(other)), model(name))


@pytest.mark.slow
def test_all_sampled_losses():
    for name, other, method in SAMPLED:
        check(sampled(other, method), model(name))


@pytest.mark.slow
@pytest.mark.parametrize("name", LINEAR)
def test_all_population_losses(name):
    for _, other, kind in [case for case in POPULATION if case[0] == name]:
        check(population(kind, target(other)), model(name))


def plateaus(training, model, delta, **options):
    """Plateaus of two starts at once."""
    models = eqx.filter_vmap(scaled, in_axes=(None, 0))(model, jnp.array([1.0, 1.1]))
    measure = lambda model: mj.measure_plateau(
        training, model, mj.RelativeLossDrop(delta), throw=False, **options
    )
    return eqx.filter_jit(eqx.filter_vmap(measure))(models)


def check_left(found, delta):
    assert np.all(found.result_code == 0)
    assert np.all(np.isfinite(found.time)) and np.all(found.time > 0)
    assert np.all(found.loss <= (1 - delta) * found.initial_loss * (1 + 1e-9))
    assert np.all(found.distance > 0)


SLOWLY = [
    pytest.param(name, marks=pytest.mark.slow)
    for name in ("complex", "dense", "gru", "stack", "lru")
]


@pytest.mark.thorough
@pytest.mark.parametrize("name", [pytest.param("direct", marks=pytest.mark.slow), "tanh", *SLOWLY])
def test_trainings_leave_their_plateau(name):
    loss = sampled("volterra", "scan" if name in SCANNED else "residual")
    found = plateaus(mj.OptaxTraining(loss, optax.adam(1e-2)), model(name), 0.02, max_steps=200)
    check_left(found, 0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_flows_leave_their_plateau(name):
    if name in LINEAR:
        loss = mj.WhiteNoiseLoss(target("vector" if name == "matrix" else "bump"))
    else:
        loss = sampled("lorenz", "residual")
    check_left(plateaus(mj.GradientFlow(loss), model(name), 0.02, max_steps=200), 0.02)


NOT_STABLE = jnp.array([[0.1, 1.0], [0.0, -1.0]])
COMPLEX = jnp.array([1.0 + 2.0j, 1.0 - 1.0j])
REFUSED = {
    "a sine, for ever": (
        lambda: mj.WhiteNoiseLoss(mj.Sine(1.0)),
        "square integrable for an infinite horizon, got Sine",
    ),
    "a sine under coloured noise": (
        lambda: mj.ColouredNoiseLoss(mj.Sine(1.0), 1.0),
        "square integrable for an infinite horizon, got Sine",
    ),
    "a sum with a sine": (
        lambda: mj.WhiteNoiseLoss(EXPONENTIAL + mj.Sine(1.0)),
        "square integrable for an infinite horizon",
    ),
    "a power law that is not integrable": (
        lambda: mj.PowerLaw(-0.6),
        "`omega` must be positive, got -0.6; without it the kernel is not integrable",
    ),
    "no kernel of a nonlinear model": (
        lambda: mj.WhiteNoiseLoss(EXPONENTIAL)(model("tanh")),
        "`model` must be linear, with a method `kernel`, got NonlinearRNN",
    ),
    "coloured noise, nonlinear model": (
        lambda: mj.ColouredNoiseLoss(EXPONENTIAL, 1.0)(model("gru")),
        "`model` must be linear, with a method `kernel`, got GatedRNN",
    ),
    "no kernel of a nonlinear target": (
        lambda: mj.WhiteNoiseLoss(target("volterra")),
        "`target` must be a memory kernel, got Volterra",
    ),
    "an unstable matrix": (
        lambda: mj.LinearRNN(NOT_STABLE, jnp.ones(2), jnp.ones(2)),
        "eigenvalues in the open left half-plane, got one of real part 0.1",
    ),
    "an unstable rate": (
        lambda: mj.DiagonalLinearRNN(AMPLITUDES, -RATES),
        "`rates` must be positive, got -1.1; a mode of rate w decays",
    ),
    "complex rates": (
        lambda: mj.DiagonalLinearRNN(AMPLITUDES, COMPLEX),
        "`rates` must be real, got dtype complex128; a complex eigenvalue needs its conjugate",
    ),
    "complex rates of pairs": (
        lambda: mj.ComplexDiagonalRNN(AMPLITUDES, AMPLITUDES, COMPLEX, RATES),
        "`rates` must be real, got dtype complex128; a complex eigenvalue needs its conjugate",
    ),
    "complex rates of a layer": (
        lambda: mj.LRULayer.init(COMPLEX, RATES, key=KEY),
        "`rates` must be real, got dtype complex128; a complex eigenvalue needs its conjugate",
    ),
    "a scalar model, a matrix target": (
        lambda: mj.WhiteNoiseLoss(target("vector"))(model("direct")),
        "`model` must have the inputs and outputs of the target",
    ),
    "a scalar model, samples of a matrix target": (
        lambda: sampled("vector", "residual")(model("tanh")),
        "`xs` must hold inputs of shape (), got (2,) at each time",
    ),
    "more outputs than the target": (
        lambda: sampled("bump", "residual")(mj.NonlinearRNN.init(2, None, 2, key=KEY)),
        "`model` must have the outputs of the target",
    ),
    "amplitudes for other rates": (
        lambda: mj.DiagonalLinearRNN(AMPLITUDES, RATES[:1]),
        "`amplitudes` and `rates` must have the same shape",
    ),
    "a scan of a model without one": (
        lambda: sampled("bump", "scan")(model("tanh")),
        "`method` must be one that the model offers, got 'scan' for NonlinearRNN",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_makes_no_sense_says_why(case):
    build, message = REFUSED[case]
    with pytest.raises((TypeError, ValueError)) as error:
        build()
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_that_became_unstable():
    unstable = eqx.tree_at(lambda m: m.free_rates, model("direct"), -RATES)
    forever, finite = mj.WhiteNoiseLoss(EXPONENTIAL), mj.WhiteNoiseLoss(EXPONENTIAL, 2.0)
    with pytest.raises(ValueError, match="rates above 0"):
        forever(unstable)
    # Under way there is no error to raise.
    values = eqx.filter_jit(lambda model: (forever(model), finite(model)))(unstable)
    assert values[0] == jnp.inf and np.isfinite(values[1])


def test_a_sine_has_a_loss_up_to_a_horizon():
    check(mj.WhiteNoiseLoss(mj.Sine(1.0), horizon=3.0), model("direct"))
