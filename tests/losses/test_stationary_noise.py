"""The loss under Gaussian input of any autocovariance, by quadrature in two dimensions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special

import memjax as mj

COMPLEX = mj.ComplexDiagonalRNN([1.0, -0.3], [0.2, 0.1], [0.5, 1.5], [2.0, 0.0], mj.Exp())
NOTHING = mj.DiagonalLinearRNN([0.0], [1.0])
EXPONENTIALS = mj.ExponentialSum([1.0, -0.4], [1.0, 0.3])
BUMP = mj.GaussianBump(1 / 2, 0.7, 0.5)


class Gaussian(eqx.Module):
    """C(tau) = exp(-(tau / length)^2 / 2)."""

    length: jax.Array

    def __call__(self, lags):
        return jnp.exp(-((lags / self.length) ** 2) / 2)


def exponential(rate):
    return lambda lags: 4 * jnp.exp(-rate * lags)


def oscillation(t):
    first = np.exp(-0.5 * t) * (np.cos(2 * t) + 0.2 * np.sin(2 * t))
    return first - 0.3 * np.exp(-1.5 * t)


def test_exponential_autocovariance_is_coloured_noise():
    @jax.jit
    def losses(rates, rate, horizon):
        model = mj.DiagonalLinearRNN(jnp.array([0.8, -0.5]), rates)
        stationary = mj.StationaryNoiseLoss(EXPONENTIALS, exponential(rate), horizon)
        coloured = mj.ColouredNoiseLoss(EXPONENTIALS, rate, 2.0, horizon)
        return stationary(model), coloured(model)

    mild, stiff = jnp.array([1.1, 0.4]), jnp.array([3000.0, 0.2])
    for case in ((mild, 0.1, 7.0), (mild, 20.0, 7.0), (mild, 3.0, 60.0), (stiff, 3.0, 7.0)):
        found, exact = losses(*case)
        np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_gaussian_autocovariance_is_the_double_integral():
    def error(t):
        bump = 0.7 * np.exp(-((t - 2) ** 2) / 0.5)
        return oscillation(t) - np.exp(-t) + 0.4 * np.exp(-0.3 * t) - bump

    found = mj.StationaryNoiseLoss(EXPONENTIALS + BUMP, Gaussian(0.6), 3.0)(COMPLEX)
    exact, _ = integrate.dblquad(  # pyright: ignore[reportAssignmentType]
        lambda u, s: error(u) * error(s) * np.exp(-(((s - u) / 0.6) ** 2) / 2),
        *(0, 3, 0, 3),
        epsabs=1e-11,
        epsrel=1e-11,
    )
    np.testing.assert_allclose(found, exact, rtol=1e-8)


def box_loss(width, length):
    """The integral of 2 (width - tau) C(tau) from 0 to the width."""
    end = width / length
    area = np.sqrt(np.pi / 2) * special.erf(end / np.sqrt(2))
    return 2 * length * (width * area - length * -np.expm1(-(end**2) / 2))


def test_jumps_their_derivatives_and_lanes():
    def loss(stop, length, horizon):
        target = mj.Box(0.7, stop)
        return mj.StationaryNoiseLoss(target, Gaussian(length), horizon, panels=8)(NOTHING)

    # In the last lane the horizon cuts the kernel off.
    stops, lengths = np.array([1.9, 3.3, 3.3]), np.array([0.5, 0.8, 0.6])
    horizons = np.array([4.0, 4.0, 2.0])
    mapped = jax.jit(jax.vmap(jax.value_and_grad(loss, argnums=(0, 1, 2))))
    values, slopes = mapped(stops, lengths, horizons)
    widths, step = np.array([1.2, 2.6, 1.3]), 1e-5
    np.testing.assert_allclose(values, box_loss(widths, lengths), rtol=1e-12)
    wider = (box_loss(widths + step, lengths) - box_loss(widths - step, lengths)) / (2 * step)
    np.testing.assert_allclose(slopes[0], wider * [1, 1, 0], rtol=1e-8)
    np.testing.assert_allclose(slopes[2], wider * [0, 0, 1], rtol=1e-8, atol=1e-14)
    longer = (box_loss(widths, lengths + step) - box_loss(widths, lengths - step)) / (2 * step)
    np.testing.assert_allclose(slopes[1], longer, rtol=1e-8)


def test_gradient_in_the_weights():
    model = mj.DiagonalLinearRNN([0.8, -0.5], [1.1, 0.4])
    loss = mj.StationaryNoiseLoss(EXPONENTIALS + BUMP, Gaussian(0.6), 5.0, panels=8)
    value = eqx.filter_jit(loss)
    gradient = eqx.filter_jit(loss.gradient)(model)
    direction = jax.tree.map(lambda g: jnp.cos(1 + jnp.arange(g.size)), gradient)
    ahead, behind = (
        value(eqx.apply_updates(model, jax.tree.map(lambda d: s * d, direction)))
        for s in (1e-5, -1e-5)
    )
    found = sum(map(jnp.vdot, jax.tree.leaves(gradient), jax.tree.leaves(direction)))
    np.testing.assert_allclose(found, (ahead - behind) / 2e-5, rtol=1e-7)


def test_several_inputs_and_outputs():
    recurrent = np.array([[-0.9, 1.5], [-1.0, -0.4]])
    inputs, readout = np.array([[1.0, 0.2], [0.3, -0.7]]), np.array([[0.4, 0.8]])
    entries = (EXPONENTIALS, mj.ExponentialSum([0.5, 0.2], [2.0, 0.4]))
    covariance = Gaussian(jnp.asarray(0.6))
    loss = lambda target: mj.StationaryNoiseLoss(target, covariance, 5.0, panels=4)
    parts = [
        loss(entry)(mj.LinearRNN(recurrent, column, readout[0]))
        for entry, column in zip(entries, inputs.T, strict=True)
    ]
    found = loss(mj.VectorKernel((entries,)))(mj.LinearRNN(recurrent, inputs, readout))
    np.testing.assert_allclose(found, sum(parts), rtol=1e-12)


def test_a_match_is_zero_but_for_rounding():
    recurrent = np.array([[-1.3, 0.2], [0.2, -0.9]])
    model = mj.LinearRNN(recurrent, np.ones(2), np.ones(2))
    rates, vectors = np.linalg.eigh(recurrent)
    loss = mj.StationaryNoiseLoss(
        mj.ExponentialSum(np.sum(vectors, axis=0) ** 2, -rates), Gaussian(0.6), 5.0, panels=4
    )
    assert abs(loss(model)) < loss.value_noise(model) < 1e-12


def test_what_is_not_resolved_is_refused():
    for autocovariance in (Gaussian(1e-3), lambda lags: jnp.maximum(0, 1 - lags / 0.9)):
        loss = mj.StationaryNoiseLoss(EXPONENTIALS, autocovariance, 7.0, panels=8)
        with pytest.raises(ValueError, match="`panels` must resolve .* 8 panels of 16 nodes"):
            loss(COMPLEX)
    value, slope = jax.jit(
        jax.value_and_grad(lambda a: loss(mj.DiagonalLinearRNN(a[None], jnp.ones(1))))
    )(1.0)
    assert np.isnan(value) and np.isnan(slope)


def test_what_makes_no_sense_says_why():
    build = mj.StationaryNoiseLoss
    gaussian = Gaussian(1.0)
    with pytest.raises(TypeError, match="`target` must be a memory kernel, got 3"):
        build(3, gaussian, 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`autocovariance` must be a function, got 1.0"):
        build(BUMP, 1.0, 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"elementwise on lags of any shape, got \(\) for"):
        build(BUMP, lambda lags: jnp.sum(lags), 1.0)
    with pytest.raises(TypeError, match="`autocovariance` must be real, got dtype complex128"):
        build(BUMP, lambda lags: jnp.exp(1j * lags), 1.0)
    with pytest.raises(ValueError, match="`horizon` must be finite, got inf"):
        build(BUMP, gaussian, jnp.inf)
    for horizon in (0.0, -1.0):
        with pytest.raises(ValueError, match="`horizon` must be positive"):
            build(BUMP, gaussian, horizon)
    with pytest.raises(ValueError, match="`horizon` must be a scalar"):
        build(BUMP, gaussian, jnp.ones(2))
    with pytest.raises(ValueError, match="`panels` must be an integer of at least 1, got 0"):
        build(BUMP, gaussian, 1.0, panels=0)
    with pytest.raises(ValueError, match="`nodes` must be an integer of at least 4, got 2"):
        build(BUMP, gaussian, 1.0, nodes=2)
    loss = build(BUMP, gaussian, 1.0)
    with pytest.raises(ValueError, match=r"input of shape \(2,\).*target has a scalar input"):
        loss(mj.LinearRNN(-np.eye(2), np.eye(2), np.ones(2)))
    with pytest.raises(TypeError, match="`model` must be linear.*SampledPathLoss"):
        loss(mj.NonlinearRNN.init(2, key=jax.random.key(0)))
