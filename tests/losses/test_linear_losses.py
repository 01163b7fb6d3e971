"""White and coloured noise losses of linear models whose kernel is no exponential sum."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, linalg

import memjax as mj
from memjax.losses import weights

W = np.array([[-0.9, 1.5, 0.0], [-1.0, -0.4, 0.3], [0.0, 0.2, -2.0]])
U, C = np.array([1.0, 0.3, -0.5]), np.array([0.4, 0.8, 1.0])
DENSE = mj.LinearRNN(W, U, C)
COMPLEX = mj.ComplexDiagonalRNN([1.0, -0.3], [0.2, 0.1], [0.5, 1.5], [2.0, 0.0], mj.Exp())
EXPONENTIALS = mj.ExponentialSum([1.0, -0.4], [1.0, 0.3])
BUMP = mj.GaussianBump(1 / 6, 0.7, 0.5)
TARGET = EXPONENTIALS + 2.0 * BUMP
POINTS = np.array([0.3, 1.0, 2.0, 4.0, 5.0, 6.0, 7.0, 8.0, 12.0, 20.0, 40.0])
END = 110.0


def dense(t):
    return C @ linalg.expm(W * t) @ U


def oscillation(t):
    first = np.exp(-0.5 * t) * (np.cos(2 * t) + 0.2 * np.sin(2 * t))
    return first - 0.3 * np.exp(-1.5 * t)


def exponentials(t):
    return np.exp(-t) - 0.4 * np.exp(-0.3 * t)


def rho(t):
    return exponentials(t) + 1.4 * np.exp(-((t - 6) ** 2) / 0.5)


def integral(f, end=END):
    points = [0.0, *POINTS[end > POINTS], end]
    return sum(
        integrate.quad(f, low, high, epsabs=1e-14, epsrel=1e-12, limit=200)[0]
        for low, high in zip(points[:-1], points[1:], strict=True)
    )


@pytest.mark.parametrize(("model", "kernel"), [(DENSE, dense), (COMPLEX, oscillation)])
def test_white_noise_loss_is_the_integral(model, kernel):
    values = jax.jit(
        lambda h: (mj.WhiteNoiseLoss(TARGET)(model), mj.WhiteNoiseLoss(TARGET, h)(model))
    )(5.5)
    for found, end in zip(values, (END, 5.5), strict=True):
        exact = integral(lambda t: (kernel(t) - rho(t)) ** 2, end)
        np.testing.assert_allclose(found, exact, rtol=1e-10)


@pytest.mark.slow
def test_loss_of_the_same_kernel_in_another_form():
    diagonal = mj.DiagonalLinearRNN([0.8, -0.5], [1.1, 0.25])
    basis = np.array([[1.0, 0.4], [-0.3, 1.2]])
    recurrent = basis @ np.diag([-1.1, -0.25]) @ np.linalg.inv(basis)
    same = mj.LinearRNN(recurrent, basis @ [0.8, -0.5], np.linalg.inv(basis).sum(0))
    loss = mj.WhiteNoiseLoss(TARGET)
    np.testing.assert_allclose(loss(same), loss(diagonal), rtol=1e-13)
    # A match is exact but for rounding, which the loss knows of.
    match = mj.WhiteNoiseLoss(diagonal.kernel())
    assert abs(match(same)) < match.value_noise(same) < 1e-13


@pytest.mark.thorough
@pytest.mark.parametrize("model", [DENSE, COMPLEX])
@pytest.mark.parametrize(
    "loss", [mj.WhiteNoiseLoss(TARGET), mj.ColouredNoiseLoss(TARGET, 0.7)], ids=["white", "ou"]
)
def test_gradient_and_displacement(loss, model):
    flat, unravel = jfu.ravel_pytree(weights(model))
    value = jax.jit(lambda x: loss(eqx.apply_updates(model, unravel(x))))
    gradient = eqx.filter_jit(lambda x: jfu.ravel_pytree(loss.gradient(model, unravel(x)))[0])
    move = 0.01 * jnp.cos(jnp.arange(flat.size))
    found = gradient(move)
    direction = jnp.sin(1 + jnp.arange(flat.size))
    step = 1e-5 * direction
    slope = (value(move + step) - value(move - step)) / 2e-5
    np.testing.assert_allclose(found @ direction, slope, rtol=1e-7)
    assert np.all(np.isfinite(gradient(jnp.zeros_like(flat))))


@pytest.mark.slow
def test_several_inputs_and_outputs():
    inputs = np.stack([U, C], axis=1)
    model = mj.LinearRNN(W, inputs, C[None])
    target = mj.VectorKernel(((EXPONENTIALS, TARGET),))

    def error(t):
        flow = linalg.expm(W * t) @ inputs
        return np.sum((C @ flow - [exponentials(t), rho(t)]) ** 2)

    np.testing.assert_allclose(mj.WhiteNoiseLoss(target)(model), integral(error), rtol=1e-10)
    # Independent inputs: the losses of the columns add up.
    columns = [mj.LinearRNN(W, column, C) for column in (U, C)]
    for horizon, entries in (
        (jnp.inf, (EXPONENTIALS, TARGET)),
        (4.0, (EXPONENTIALS, EXPONENTIALS)),
    ):
        loss = lambda target: mj.ColouredNoiseLoss(target, 0.7, 1.5, horizon)
        parts = [loss(entry)(column) for entry, column in zip(entries, columns, strict=True)]
        np.testing.assert_allclose(loss(mj.VectorKernel((entries,)))(model), sum(parts), rtol=1e-12)


def filtered(e, rate, t):
    """The error filtered by the autocovariance of the input, up to the time t."""
    near = [t - x / rate for x in (1.0, 4.0, 12.0, 40.0) if x < rate * t]
    points = sorted({max(0.0, t - 40 / rate), t, *near})
    points += [x for x in POINTS if points[0] < x < t]
    points.sort()
    return sum(
        integrate.quad(lambda u: e(u) * np.exp(-rate * (t - u)), a, b, epsrel=1e-11)[0]
        for a, b in zip(points[:-1], points[1:], strict=True)
    )


def exact_coloured(e, rate, end):
    nodes, factors = np.polynomial.legendre.leggauss(24)
    points = [0.0, *POINTS[end > POINTS], end]
    total = 0.0
    for low, high in zip(points[:-1], points[1:], strict=True):
        for node, factor in zip(nodes, factors, strict=True):
            t = low + (high - low) * (1 + node) / 2
            total += factor * (high - low) * e(t) * filtered(e, rate, t)
    return total


@pytest.mark.thorough
@pytest.mark.parametrize("rate", [0.4, 20.0])
def test_coloured_noise_loss_is_the_double_integral(rate):
    model = COMPLEX

    @jax.jit
    def losses(h):
        return (
            mj.ColouredNoiseLoss(TARGET, rate, 2.0)(model),
            mj.ColouredNoiseLoss(EXPONENTIALS, rate, 2.0, h)(model),
        )

    found = losses(7.0)
    exact = 4 * exact_coloured(lambda t: oscillation(t) - rho(t), rate, 60.0)
    np.testing.assert_allclose(found[0], exact, rtol=1e-9)
    exact = 4 * exact_coloured(lambda t: oscillation(t) - exponentials(t), rate, 7.0)
    np.testing.assert_allclose(found[1], exact, rtol=1e-10)


@pytest.mark.thorough
def test_short_correlations_are_white_noise():
    rate = 1e6
    coloured = mj.ColouredNoiseLoss(TARGET, rate, np.sqrt(rate / 2))(DENSE)
    np.testing.assert_allclose(coloured, mj.WhiteNoiseLoss(TARGET)(DENSE), rtol=1e-5)


@pytest.mark.thorough
def test_what_makes_no_sense_says_why():
    sine = mj.Sine(2.0)
    for loss in (mj.WhiteNoiseLoss, lambda target: mj.ColouredNoiseLoss(target, 1.0)):
        with pytest.raises(ValueError, match="square integrable for an infinite horizon, got Sine"):
            loss(sine)
        with pytest.raises(ValueError, match=r"input of shape \(2,\).*target has a scalar input"):
            loss(BUMP)(mj.LinearRNN(W, np.stack([U, C], axis=1), C))
        with pytest.raises(TypeError, match="`model` must be linear.*SampledPathLoss"):
            loss(BUMP)(mj.NonlinearRNN(W, U, None, C))
        with pytest.raises(TypeError, match="`target` must be a memory kernel, got Lorenz96"):
            loss(object.__new__(mj.Lorenz96))
        # An unstable spectrum: refused if it is known, infinite under transformations.
        unstable = eqx.tree_at(lambda m: m.recurrent, DENSE, jnp.asarray(W) + 2 * jnp.eye(3))
        with pytest.raises(ValueError, match="`recurrent` must have all eigenvalues"):
            loss(EXPONENTIALS)(unstable)
        assert eqx.filter_jit(loss(EXPONENTIALS))(unstable) == np.inf
    exact = integrate.quad(lambda t: (dense(t) - np.sin(2 * t)) ** 2, 0, 3, epsabs=1e-13)[0]
    np.testing.assert_allclose(mj.WhiteNoiseLoss(sine, 3.0)(DENSE), exact, rtol=1e-10)
    with pytest.raises(ValueError, match="`horizon` must be infinite.*got GaussianBump"):
        mj.ColouredNoiseLoss(BUMP, 1.0, horizon=3.0)
    bump_model = SimpleNamespace(kernel=lambda: BUMP)
    with pytest.raises(TypeError, match="kernel of finite dimension, got GaussianBump; use"):
        mj.ColouredNoiseLoss(EXPONENTIALS, 1.0)(bump_model)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`correlation_rate` must be positive"):
        mj.ColouredNoiseLoss(BUMP, 0.0)
