import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax.losses import weights

KEY = jax.random.key(3)
TS = jnp.linspace(0.0, 6.0, 121)
TARGET = mj.ExponentialSum([1.0, -0.4], [1.0, 0.3]) + mj.GaussianBump(1 / 3, 0.7, 0.5)
RNN = mj.DiagonalLinearRNN([0.8, -0.5], [1.1, 0.4])


def hats(kernel, ts):
    """The response at every time to a hat of height 1 at every sample."""
    return np.asarray(jax.jit(jax.vmap(lambda x: kernel.response(ts, x)))(jnp.eye(ts.size))).T


ERROR = hats(RNN.kernel(), TS) - hats(TARGET, TS)  # (times, samples)


def within_confidence(samples, exact):
    """Whether independent samples have this mean, up to four standard errors."""
    error = np.std(samples, ddof=1) / np.sqrt(len(samples))
    return abs(np.mean(samples) - exact) < 4 * error and error < 0.1 * abs(exact)


@pytest.mark.slow
def test_expected_loss_under_white_noise():
    loss = mj.SampledPathLoss.white_noise(TARGET, TS, 400, key=KEY)
    squares = np.mean((np.asarray(loss.xs) @ ERROR.T) ** 2, axis=1)
    np.testing.assert_allclose(loss(RNN), np.mean(squares), rtol=1e-11)
    # The exact expectation of the sampled loss, from the variances of its samples.
    step = float(TS[1])
    variances = np.full(TS.size, 1 / step)
    variances[[0, -1]] *= 2
    exact = np.mean(ERROR**2 @ variances)
    assert within_confidence(squares, exact)
    # It tends to the population loss with the step; here most of its variance is resolved.
    horizons = [mj.WhiteNoiseLoss(TARGET, t)(RNN) for t in TS[20::20]]
    found = (ERROR**2 @ variances)[20::20]
    np.testing.assert_allclose(found, horizons, rtol=0.1)
    finer = jnp.linspace(0.0, 6.0, 481)
    (at_end,) = (hats(RNN.kernel(), finer) - hats(TARGET, finer))[-1:] ** 2
    population = float(horizons[-1])
    assert abs(np.sum(at_end) / finer[1] - population) < abs(found[-1] - population) + 1e-3


@pytest.mark.slow
def test_expected_loss_under_coloured_noise():
    rate, sigma = 0.8, 1.5
    loss = mj.SampledPathLoss.ornstein_uhlenbeck(TARGET, TS, 400, rate, sigma, key=KEY)
    squares = np.mean((np.asarray(loss.xs) @ ERROR.T) ** 2, axis=1)
    covariance = sigma**2 * np.exp(-rate * np.abs(np.subtract.outer(TS, TS)))
    exact = np.mean(np.einsum("ti,ij,tj->t", ERROR, covariance, ERROR))
    assert within_confidence(squares, exact)
    assert within_confidence(np.asarray(loss.xs)[:, 70] ** 2, sigma**2)
    # The population loss at the last time, up to the interpolation between samples.
    exponentials = mj.ExponentialSum([1.0, -0.4], [1.0, 0.3])
    last = (hats(RNN.kernel(), TS) - hats(exponentials, TS))[-1]
    population = mj.ColouredNoiseLoss(exponentials, rate, sigma, 6.0)(RNN)
    np.testing.assert_allclose(last @ covariance @ last, population, rtol=0.01)


@pytest.mark.slow
def test_methods_agree():
    xs = jnp.stack([jnp.sin(TS[:31]), jnp.cos(3 * TS[:31])])
    values = {
        method: mj.SampledPathLoss(TARGET, TS[:31], xs, method=method)(RNN)
        for method in (None, "scan", "diffrax", "residual")
    }
    assert values[None] == values["scan"]
    np.testing.assert_allclose(values["diffrax"], values["scan"], rtol=1e-6)
    np.testing.assert_allclose(values["residual"], values["scan"], rtol=0.2)
    assert abs(values["residual"] - values["scan"]) > 1e-6 * values["scan"]


@pytest.mark.slow
def test_nonlinear_model_and_teacher():
    teacher = mj.NonlinearRNN.init(3, 2, 2, key=jax.random.key(1))
    target = mj.Teacher(teacher.residual, linear=False)
    student = mj.NonlinearRNN.init(3, 2, 2, key=jax.random.key(2))
    loss = mj.SampledPathLoss.white_noise(target, TS[:41], 8, 2, key=KEY, method="residual")
    assert loss.xs.shape == (8, 41, 2) and loss.ys.shape == (8, 41, 2)
    assert loss(teacher) == 0.0
    outputs = np.asarray(jax.vmap(lambda x: student.residual(TS[:41], x))(loss.xs))
    exact = np.mean(np.sum((outputs - np.asarray(loss.ys)) ** 2, axis=-1))
    np.testing.assert_allclose(loss(student), exact, rtol=1e-13)
    flat, unravel = jfu.ravel_pytree(weights(student))
    value = jax.jit(lambda x: loss(eqx.apply_updates(student, unravel(x))))
    gradient = jfu.ravel_pytree(eqx.filter_jit(loss.gradient)(student))[0]
    direction = jnp.cos(jnp.arange(flat.size))
    slope = (value(1e-5 * direction) - value(-1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(gradient @ direction, slope, rtol=1e-7)


@pytest.mark.slow
def test_temporal_weights():
    ts = 2.0 + jnp.linspace(0.0, 3.0, 31)
    since = np.linspace(0.0, 3.0, 31)
    for power in (0.0, 1.0, 2.5):
        found = mj.TemporalWeight(power)(ts)
        np.testing.assert_allclose(found, since**power / np.mean(since**power), rtol=1e-12)
    xs = jnp.sin(ts)[None]
    weighted = mj.SampledPathLoss(TARGET, ts, xs, mj.TemporalWeight(2.0))
    same = mj.SampledPathLoss(TARGET, ts, xs, mj.TemporalWeight(2.0)(ts))
    errors = (RNN.scan(ts, xs[0]) - TARGET.response(ts, xs[0])) ** 2
    exact = np.mean(since**2 * errors) / np.mean(since**2)
    np.testing.assert_allclose([weighted(RNN), same(RNN)], exact, rtol=1e-12)
    slope = jax.grad(lambda p: mj.SampledPathLoss(TARGET, ts, xs, mj.TemporalWeight(p))(RNN))(2.0)
    assert np.isfinite(slope)
    with pytest.raises(ValueError, match="`exponent` must not be negative"):
        mj.TemporalWeight(-1.0)


@pytest.mark.slow
def test_mapped_over_targets():
    def build(omega):
        target = mj.GaussianBump(omega, 0.7, 0.5)
        return mj.SampledPathLoss.white_noise(target, TS[:31], 4, key=KEY)(RNN)

    omegas = jnp.array([0.5, 1.0])
    np.testing.assert_allclose(jax.vmap(build)(omegas), [build(w) for w in omegas], rtol=1e-10)


@pytest.mark.thorough
def test_a_match_has_its_second_derivative_and_noise():
    xs = jnp.sin(TS[None, :31])
    loss = mj.SampledPathLoss(RNN.kernel(), TS[:31], xs)
    of_amplitudes = lambda a: eqx.tree_at(lambda m: m.amplitudes, RNN, a)
    hessian = jax.jit(jax.hessian(lambda a: loss(of_amplitudes(a))))(RNN.amplitudes)
    modes = [mj.DiagonalLinearRNN(row, RNN.rates).scan(TS[:31], xs[0]) for row in np.eye(2)]
    np.testing.assert_allclose(hessian, 2 * np.stack(modes) @ np.stack(modes).T / 31, rtol=1e-11)
    assert abs(loss(RNN)) <= loss.value_noise(RNN) < 1e-28
    other = of_amplitudes(RNN.amplitudes + 1e-9)
    assert 1e-9 < loss.value_noise(other) / loss(other) < 1e-4


@pytest.mark.slow
def test_diffrax_has_hessians():
    model = mj.NonlinearRNN.init(2, key=KEY)
    loss = mj.SampledPathLoss.ornstein_uhlenbeck(TARGET, TS[:11], 2, 1.0, key=KEY)
    noise = jfu.ravel_pytree(eqx.filter_jit(loss.gradient_noise)(model))[0]
    assert np.all(np.isfinite(noise)) and np.all(noise >= 0) and np.any(noise > 0)


def test_what_makes_no_sense_says_why():
    xs = jnp.ones((2, 121))
    with pytest.raises(TypeError, match="`target` must be a target, got 3"):
        mj.SampledPathLoss(3, TS, xs)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`xs` must have shape .*axis of length 1"):
        mj.SampledPathLoss(TARGET, TS, xs[0])
    with pytest.raises(ValueError, match="`xs` must hold at least one path"):
        mj.SampledPathLoss(TARGET, TS, xs[:0])
    with pytest.raises(ValueError, match="`xs` must have the inputs of the target"):
        mj.SampledPathLoss(TARGET, TS, jnp.ones((2, 121, 2)))
    with pytest.raises(ValueError, match="`weight` must have one entry per time"):
        mj.SampledPathLoss(TARGET, TS, xs, jnp.ones(3))
    with pytest.raises(ValueError, match="`ts` must increase"):
        mj.SampledPathLoss.white_noise(TARGET, TS[::-1], 2, key=KEY)
    with pytest.raises(ValueError, match="`options` are for the method 'diffrax', got method None"):
        mj.SampledPathLoss(TARGET, TS, xs, options={"max_steps": 5})
    with pytest.raises(ValueError, match="`method` must be one of None, 'scan'"):
        mj.SampledPathLoss(TARGET, TS, xs, method="euler")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="one that the model offers, got 'scan' for NonlinearRNN"):
        mj.SampledPathLoss(TARGET, TS, xs, method="scan")(mj.NonlinearRNN.init(2, key=KEY))
    with pytest.raises(ValueError, match=r"outputs of the target, got shape \(2,\), but"):
        model = mj.NonlinearRNN.init(2, outputs=2, key=KEY)
        mj.SampledPathLoss(TARGET, TS, xs, method="residual")(model)
    with pytest.raises(ValueError, match="`batch` must be an integer"):
        mj.SampledPathLoss.white_noise(TARGET, TS, 0, key=KEY)
