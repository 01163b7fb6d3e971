import functools
import pathlib
import sys

import diffrax
import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

import memjax as mj
from memjax.losses import weights

sys.path.append(str(pathlib.Path(__file__).parents[1] / "reference"))
import multiprecision as mp  # pyright: ignore[reportMissingImports]

AMPLITUDES, RATES = np.array([0.8, -0.5, 0.3]), np.array([1.1, 0.25, 3.0])
TARGET_AMPLITUDES, TARGET_RATES = np.array([1.0, -0.4]), np.array([1.0, 0.3])
DELAY, SIGMA, HEIGHT = 6.0, 0.5, 0.7
KNOTS = np.array([0.2, 0.5, 1.5, 2.0, 4.0, 7.0])
VALUES = np.array([0.0, 1.0, 0.3, 0.4, -0.2, 0.1])


def exponentials(t):
    return np.exp(-np.multiply.outer(t, TARGET_RATES)) @ TARGET_AMPLITUDES


def bump(t):
    return HEIGHT * np.exp(-((t - DELAY) ** 2) / (2 * SIGMA**2))


def polygon(t):
    return np.interp(t, KNOTS, VALUES, left=0.0, right=0.0)


EXPONENTIALS = mj.ExponentialSum(TARGET_AMPLITUDES, TARGET_RATES)
BUMP = mj.GaussianBump(1 / DELAY, HEIGHT, SIGMA)
POLYGON = mj.SampledKernel(KNOTS, VALUES)
TARGETS = {
    "exponentials": (EXPONENTIALS, exponentials),
    "bump": (BUMP, bump),
    "exponentials and bump": (EXPONENTIALS + BUMP, lambda t: exponentials(t) + bump(t)),
    "samples": (POLYGON, polygon),
    "all": (
        EXPONENTIALS + BUMP + POLYGON,
        lambda t: exponentials(t) + bump(t) + polygon(t),
    ),
}


def model(amplitudes=AMPLITUDES, rates=RATES, reparametrisation=None):
    return mj.DiagonalLinearRNN(jnp.asarray(amplitudes), jnp.asarray(rates), reparametrisation)


def over_half_line(integrand, horizon, slowest=0.2):
    """Adaptive quadrature between the points where some target has a kink or its bulk."""
    end = min(horizon, 45 / slowest)
    inner = {*KNOTS, DELAY - 9 * SIGMA, DELAY, DELAY + 9 * SIGMA, 1.0, 15.0, 40.0, 100.0}
    points = sorted({0.0, end, *(x for x in inner if 0 < x < end)})
    return sum(
        integrate.quad(integrand, low, high, epsabs=1e-14, epsrel=1e-13, limit=200)[0]
        for low, high in zip(points[:-1], points[1:], strict=True)
    )


def residual(amplitudes, rates, rho):
    return lambda t: np.exp(-rates * t) @ amplitudes - rho(t)


def exact_loss(amplitudes, rates, rho, horizon):
    difference = residual(amplitudes, rates, rho)
    return over_half_line(lambda t: difference(t) ** 2, horizon, min(rates))


def exact_gradient(amplitudes, rates, rho, horizon):
    """The gradient in amplitudes and in rates, differentiated under the integral."""
    difference = residual(amplitudes, rates, rho)
    by_amplitude = [
        over_half_line(lambda t, w=w: 2 * difference(t) * np.exp(-w * t), horizon) for w in rates
    ]
    by_rate = [
        over_half_line(lambda t, a=a, w=w: -2 * a * t * difference(t) * np.exp(-w * t), horizon)
        for a, w in zip(amplitudes, rates, strict=True)
    ]
    return np.array(by_amplitude), np.array(by_rate)


@pytest.mark.thorough
@pytest.mark.parametrize("horizon", [0.3, 5.0, 30.0, np.inf])
@pytest.mark.parametrize("name", TARGETS)
def test_loss_is_the_integral(name, horizon):
    target, rho = TARGETS[name]
    found = mj.WhiteNoiseLoss(target, horizon)(model())
    np.testing.assert_allclose(found, exact_loss(AMPLITUDES, RATES, rho, horizon), rtol=1e-10)


@pytest.mark.thorough
@settings(max_examples=25, deadline=None)
@given(
    width=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 2**20),
    sigma=st.floats(0.05, 2.0),
    delay=st.floats(0.5, 20.0),
    horizon=st.one_of(st.just(np.inf), st.floats(0.1, 40.0)),
)
def test_loss_of_any_model_and_bump(width, seed, sigma, delay, horizon):
    rng = np.random.default_rng(seed)
    amplitudes, rates = rng.normal(size=width), np.exp(rng.uniform(-1.5, 1.5, size=width))
    target = EXPONENTIALS + mj.GaussianBump(1 / delay, HEIGHT, sigma)
    found = mj.WhiteNoiseLoss(target, horizon)(model(amplitudes, rates))

    def rho(t):
        return exponentials(t) + HEIGHT * np.exp(-((t - delay) ** 2) / (2 * sigma**2))

    difference = residual(amplitudes, rates, rho)
    end = min(horizon, 250.0)
    points = [0.0, *np.arange(0.5, delay + 9 * sigma, sigma), 60.0, 120.0, end]
    points = sorted({x for x in points if x <= end})
    exact = sum(
        integrate.fixed_quad(lambda t: np.vectorize(difference)(t) ** 2, low, high, n=60)[0]
        for low, high in zip(points[:-1], points[1:], strict=True)
    )
    scale = np.sum(amplitudes**2 / rates) + HEIGHT**2 * sigma + 1
    np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-13 * scale)


@pytest.mark.thorough
@pytest.mark.parametrize("horizon", [5.0, np.inf])
@pytest.mark.parametrize("name", TARGETS)
def test_gradient_is_the_integral_and_the_derivative(name, horizon):
    target, rho = TARGETS[name]
    loss = mj.WhiteNoiseLoss(target, horizon)
    rnn = model()
    found = loss.gradient(rnn)
    by_amplitude, by_rate = exact_gradient(AMPLITUDES, RATES, rho, horizon)
    np.testing.assert_allclose(found.amplitudes, by_amplitude, rtol=1e-10, atol=1e-13)
    np.testing.assert_allclose(found.free_rates, by_rate, rtol=1e-10, atol=1e-13)
    automatic = eqx.filter_grad(loss)(rnn)
    np.testing.assert_allclose(found.amplitudes, automatic.amplitudes, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(found.free_rates, automatic.free_rates, rtol=1e-11, atol=1e-14)


def problem(delay, reparametrisation="direct"):
    """One exponential of amplitude and rate 1, and a bump of height 1."""
    return mp.Problem(
        amplitudes=[mp.real(1)],
        rates=[mp.real(1)],
        inverse_omega=mp.real(delay),
        sigma=mp.real(SIGMA),
        c0=mp.real(1),
        reparam=reparametrisation,
    )


def plateau_loss(delay):
    target = mj.ExponentialSum(np.ones(1), np.ones(1)) + mj.GaussianBump(1 / delay, 1.0, SIGMA)
    return mj.WhiteNoiseLoss(target)


# Modes that match the target, alone or together, with silent ones beside them.
PLATEAU_STARTS = {
    "one mode": ([1.0, 0.0], [1.0, 0.6]),
    "shared": ([0.5, 0.5, 0.0], [1.0, 1.0, 0.6]),
    "shared unevenly": ([0.75, 0.5, -0.25], [1.0, 1.0, 1.0]),
}


@functools.cache
def flat_gradient(reparametrisation, start):
    rnn = model(*PLATEAU_STARTS[start], {"direct": mj.Direct(), "exp": mj.Exp()}[reparametrisation])
    _, unravel = jfu.ravel_pytree(weights(rnn))

    @eqx.filter_jit
    def gradient(loss, y):
        return jfu.ravel_pytree(loss.gradient(rnn, unravel(y)))[0]

    return rnn, gradient


@pytest.mark.parametrize("reparametrisation", ["direct", "exp"])
@pytest.mark.parametrize("start", PLATEAU_STARTS)
@pytest.mark.parametrize("delay, size", [(20.0, 0.0), (45.0, 1e-20), (60.0, 1e-24), (12.0, 1e-3)])
def test_gradient_on_a_plateau_has_all_its_digits(start, reparametrisation, delay, size):
    rnn, gradient = flat_gradient(reparametrisation, start)
    width = rnn.width
    y = size * np.random.default_rng(5).normal(size=2 * width)
    found = np.asarray(gradient(plateau_loss(delay), jnp.asarray(y)))
    mp.set_digits(60)
    free = [*rnn.amplitudes.tolist(), *rnn.free_rates.tolist()]
    theta = [mp.real(x) + mp.real(dx) for x, dx in zip(free, y, strict=True)]
    exact = problem(delay, reparametrisation).gradient(theta)
    for value, reference in zip(found, exact, strict=True):
        if reference == 0:
            assert value == 0
        else:
            assert abs(float(mp.real(value) / reference) - 1) < 1e-12


@pytest.mark.thorough
@pytest.mark.parametrize("horizon", [5.0, np.inf])
@pytest.mark.parametrize("reparametrisation", [mj.Direct(), mj.Exp(1.5)], ids=["direct", "exp"])
def test_hessian_is_the_second_derivative(reparametrisation, horizon):
    loss = mj.WhiteNoiseLoss(EXPONENTIALS + BUMP, horizon)
    rnn = model(reparametrisation=reparametrisation)
    flow = mj.GradientFlow(loss).displaced(rnn)
    y = jnp.asarray(0.05 * np.random.default_rng(3).normal(size=6))
    closed = -jax.jit(jax.jacfwd(lambda y: flow.vf(jnp.zeros(()), y, None)))(y)
    automatic = jax.jit(jax.hessian(lambda y: loss(flow.model_at(y))))(y)
    np.testing.assert_allclose(closed, automatic, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(closed, closed.T, rtol=1e-12, atol=1e-14)
    # Reverse mode goes through the same rule, transposed.
    backwards = -jax.jit(jax.jacrev(lambda y: flow.vf(jnp.zeros(()), y, None)))(y)
    np.testing.assert_allclose(backwards, closed, rtol=1e-12, atol=1e-14)


@pytest.mark.thorough
@pytest.mark.parametrize("start", PLATEAU_STARTS)
@pytest.mark.parametrize("reparametrisation", ["direct", "exp"])
def test_hessian_on_a_plateau(start, reparametrisation):
    rnn, gradient = flat_gradient(reparametrisation, start)
    delay = 20.0
    found = jax.jacfwd(lambda y: gradient(plateau_loss(delay), y))(jnp.zeros(2 * rnn.width))
    mp.set_digits(60)
    theta = [mp.real(x) for x in [*rnn.amplitudes.tolist(), *rnn.free_rates.tolist()]]
    _, exact = problem(delay, reparametrisation).derivatives(theta)
    exact = np.array([[float(x) for x in row] for row in exact])
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=0)


@pytest.mark.parametrize("horizon", [5.0, np.inf])
def test_gradient_differentiates_with_respect_to_the_target(horizon):
    rnn = model()
    fields = ("omega", "amplitude", "width")

    def gradient(values):
        kernel = EXPONENTIALS + mj.GaussianBump(*values)
        found = mj.WhiteNoiseLoss(kernel, horizon).gradient(rnn)
        return jnp.concatenate([found.amplitudes, found.free_rates])

    values = jnp.array([1 / DELAY, HEIGHT, SIGMA])
    forward = jax.jit(jax.jacfwd(gradient))(values)
    backward = jax.jit(jax.jacrev(gradient))(values)

    changes = {
        "omega": lambda t: bump(t) * -(t - DELAY) / SIGMA**2 * DELAY**2,
        "amplitude": lambda t: bump(t) / HEIGHT,
        "width": lambda t: bump(t) * (t - DELAY) ** 2 / SIGMA**3,
    }
    for column, field in enumerate(fields):
        change = changes[field]
        exact = [
            over_half_line(lambda t, w=w: -2 * change(t) * np.exp(-w * t), horizon) for w in RATES
        ]
        exact += [
            over_half_line(lambda t, a=a, w=w: 2 * a * t * change(t) * np.exp(-w * t), horizon)
            for a, w in zip(AMPLITUDES, RATES, strict=True)
        ]
        np.testing.assert_allclose(forward[:, column], exact, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(backward[:, column], exact, rtol=1e-9, atol=1e-12)


def plateau_gradient(a0, w0, target_amplitudes, target_rates):
    """The flat gradient at a model, the modes of the target being arguments."""
    target = mj.ExponentialSum(target_amplitudes, target_rates)
    loss = mj.WhiteNoiseLoss(target + mj.GaussianBump(1 / DELAY, 1.0, SIGMA))
    found = loss.gradient(model(a0, w0))
    return jnp.concatenate([found.amplitudes, found.free_rates])


@pytest.mark.slow
def test_gradient_where_rates_coincide_differentiates_with_respect_to_rates():
    # On the plateau modes of model and target cancel exactly, their derivatives do not.
    a0, w0 = np.array([1.0, 0.0]), np.array([1.0, 0.6])
    ones = np.ones(1)
    by_start, by_target = jax.jacfwd(plateau_gradient, argnums=(1, 3))(a0, w0, ones, ones)

    # dE(s)/dW = A / (s + W)^2 for the residual's transform E, and its derivative in s.
    exact_by_target = [2 / (w + 1) ** 2 for w in w0]
    exact_by_target += [-4 * a / (w + 1) ** 3 for a, w in zip(a0, w0, strict=True)]
    np.testing.assert_allclose(by_target[:, 0], exact_by_target, rtol=1e-12, atol=1e-14)

    mp.set_digits(40)
    theta = [mp.real(x) for x in [*a0, *w0]]
    _, hessian = problem(DELAY).derivatives(theta)
    exact_by_start = np.array([[float(x) for x in row[2:]] for row in hessian])
    np.testing.assert_allclose(by_start, exact_by_start, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("start", PLATEAU_STARTS)
def test_automatic_derivative_where_rates_coincide(start):
    rnn = model(*PLATEAU_STARTS[start])
    automatic = eqx.filter_grad(plateau_loss(DELAY))(rnn)
    mp.set_digits(40)
    theta = [mp.real(x) for x in [*rnn.amplitudes.tolist(), *rnn.free_rates.tolist()]]
    exact = np.array([float(x) for x in problem(DELAY).gradient(theta)])
    found = np.concatenate([automatic.amplitudes, automatic.free_rates])
    np.testing.assert_allclose(found, exact, rtol=1e-11, atol=1e-15)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**20), delay=st.floats(2.0, 30.0))
def test_estimated_noise_is_about_the_rounding_error(seed, delay):
    rng = np.random.default_rng(seed)
    rnn, gradient = flat_gradient("direct", "one mode")
    y = rng.normal(size=4) * 10.0 ** rng.uniform(-8, -1)
    y[2:] = np.abs(y[2:])
    loss = plateau_loss(delay)
    found = np.asarray(gradient(loss, jnp.asarray(y)))
    noise = mj.GradientFlow(loss).displaced(rnn).noise(jnp.asarray(y))
    mp.set_digits(60)
    start = [*rnn.amplitudes.tolist(), *rnn.free_rates.tolist()]
    theta = [mp.real(x) + mp.real(dx) for x, dx in zip(start, y, strict=True)]
    exact = problem(delay).gradient(theta)
    for value, reference, bound in zip(found, exact, noise, strict=True):
        # The Gaussian's transform is good to a few dozen roundings, which the estimate leaves out.
        assert abs(float(mp.real(value) - reference)) <= 10 * bound
        assert bound <= 1e-14


@settings(max_examples=20, deadline=None)
@given(
    which=st.integers(0, 2),
    rate=st.one_of(st.just(0.0), st.floats(-5.0, -1e-12)),
    displaced=st.booleans(),
)
def test_growing_modes_have_no_loss_on_the_half_line(which, rate, displaced):
    rnn = model()
    change = eqx.tree_at(
        lambda m: m.free_rates, weights(rnn), jnp.zeros(3).at[which].set(rate - RATES[which])
    )
    change = eqx.tree_at(lambda m: m.amplitudes, change, jnp.zeros(3))
    if not displaced:
        rnn, change = eqx.apply_updates(rnn, change), None
    moved = rnn if change is None else eqx.apply_updates(rnn, change)
    gradient = infinite_gradient(rnn, change)
    assert not np.isfinite(infinite_loss(moved))
    assert not np.all(np.isfinite(jfu.ravel_pytree(gradient)[0]))


@eqx.filter_jit
def infinite_loss(rnn):
    return mj.WhiteNoiseLoss(EXPONENTIALS + BUMP)(rnn)


@eqx.filter_jit
def infinite_gradient(rnn, change):
    return mj.WhiteNoiseLoss(EXPONENTIALS + BUMP).gradient(rnn, change)


@pytest.mark.slow
def test_error_under_sampled_white_noise_converges_to_the_loss():
    horizon, steps, samples = 9.0, 900, 20_000
    dt = horizon / steps
    rnn = model()
    noise = np.random.default_rng(11).normal(size=(samples, steps)) / np.sqrt(dt)

    # Held between samples: the hidden state is an exact recursion, the target a convolution
    # with the kernel's integral over each step, by Gauss-Legendre quadrature.
    hidden = np.zeros((samples, 3))
    for k in range(steps):
        hidden = np.exp(-RATES * dt) * hidden + noise[:, k, None] * -np.expm1(-RATES * dt) / RATES
    nodes, quadrature = np.polynomial.legendre.leggauss(4)
    ago = horizon - dt * np.arange(steps)
    inside = ago[:, None] - dt * (nodes + 1) / 2
    rho = exponentials(inside) + bump(inside)
    error = hidden @ AMPLITUDES - noise @ (rho @ quadrature * dt / 2)

    squares = error**2
    standard_error = np.std(squares) / np.sqrt(samples)
    loss = mj.WhiteNoiseLoss(EXPONENTIALS + BUMP, horizon)(rnn)
    assert standard_error < 0.012 * loss
    assert abs(np.mean(squares) - loss) < 4 * standard_error

    # The hidden state is the one that the model itself integrates.
    ts = np.linspace(0.0, horizon, steps + 1)
    xs = np.append(noise[0], 0.0)
    controller = diffrax.ClipStepSizeController(
        diffrax.PIDController(rtol=1e-7, atol=1e-9), jump_ts=ts[1:-1]
    )
    outputs = rnn(ts, xs, interpolation="previous", stepsize_controller=controller)
    np.testing.assert_allclose(outputs[-1], hidden[0] @ AMPLITUDES, atol=1e-4)


@pytest.mark.slow
def test_horizon_is_a_leaf():
    horizons = np.array([0.5, 2.0, 8.0])
    found = jax.vmap(lambda h: mj.WhiteNoiseLoss(EXPONENTIALS + BUMP, h)(model()))(horizons)
    rho = TARGETS["exponentials and bump"][1]
    exact = [exact_loss(AMPLITUDES, RATES, rho, h) for h in horizons]
    np.testing.assert_allclose(found, exact, rtol=1e-10)
    # The derivative in the horizon is the integrand there.
    slope = jax.grad(lambda h: mj.WhiteNoiseLoss(EXPONENTIALS + BUMP, h)(model()))(2.0)
    np.testing.assert_allclose(slope, residual(AMPLITUDES, RATES, rho)(2.0) ** 2, rtol=1e-9)


@pytest.mark.parametrize("target", [1.0, np.exp, mj.GaussianBump, None])
def test_target_must_be_a_kernel(target):
    with pytest.raises(TypeError, match=r"`target` must be a memory kernel"):
        mj.WhiteNoiseLoss(target)


@pytest.mark.parametrize("horizon", [0.0, -1.0, np.nan, -np.inf])
def test_horizon_must_be_positive(horizon):
    with pytest.raises(ValueError, match=r"`horizon` must (be positive|be finite|not be negative)"):
        mj.WhiteNoiseLoss(BUMP, horizon)


def test_model_must_have_a_kernel():
    loss = mj.WhiteNoiseLoss(BUMP)
    with pytest.raises(TypeError, match=r"`model` must be linear"):
        loss(BUMP)  # pyright: ignore[reportArgumentType]


def test_exact_loss_of_one_mode():
    # By hand: int (e^-t - 2 e^-3t)^2 dt = 1/2 - 4/4 + 4/6.
    loss = mj.WhiteNoiseLoss(mj.ExponentialSum(2.0, 3.0))
    np.testing.assert_allclose(loss(model([1.0], [1.0])), 1 / 6, rtol=1e-14)
    with mpmath.workdps(30):
        exact = mpmath.quad(lambda t: (mpmath.exp(-t) - 2 * mpmath.exp(-3 * t)) ** 2, [0, 1, 2])
    found = mj.WhiteNoiseLoss(mj.ExponentialSum(2.0, 3.0), 2.0)(model([1.0], [1.0]))
    np.testing.assert_allclose(found, float(exact), rtol=1e-13)
