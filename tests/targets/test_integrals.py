"""Every kernel's integrals against an independent quadrature of an independent formula."""

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
import scipy.special

import memjax
from memjax.targets._airy import airy

S = np.array([1e-3, 0.7, 20.0])
HORIZONS = np.array([0.05, 5.5, 9.5, 30.0])

POINTS, WEIGHTS = np.polynomial.legendre.leggauss(12)


def quad(function, end, cuts):
    """Composite Gauss rule of 12 points on panels of at most 0.05, with ends at the cuts."""
    edges = np.unique(np.concatenate([np.linspace(0, end, int(end / 0.05) + 2), cuts]))
    edges = edges[edges <= end]
    widths = np.diff(edges)[:, None] / 2
    nodes = edges[:-1, None] + widths * (1 + POINTS)
    return np.sum(widths * WEIGHTS * function(nodes))


KERNELS = {
    "power": (memjax.PowerLaw(0.1, 10.0), lambda t: (1 + t / 10) ** -1.1, [], None),
    "airy": (memjax.Airy(), lambda t: scipy.special.airy(t - 6)[0], [], 40.0),
    "fast airy": (
        memjax.Airy(scale=3.0, delay=5.0),
        lambda t: scipy.special.airy(3 * (t - 5))[0],
        [],
        40.0,
    ),
    "box": (memjax.Box(4.5, 9.5), lambda t: 1.0 * ((t > 4.5) & (t < 9.5)), [4.5, 9.5], 40.0),
    "sine": (memjax.Sine(2.0), lambda t: np.sin(2 * t), [], None),
    "oscillation": (
        memjax.DampedOscillation([1.0, -0.4], [0.3, 2.0], [0.5, 1.0], [3.0, 0.0]),
        lambda t: np.exp(-t / 2) * (np.cos(3 * t) + 0.3 * np.sin(3 * t)) - 0.4 * np.exp(-t),
        [],
        90.0,
    ),
    "window": (
        memjax.WindowedKernel(memjax.GaussianBump(0.1, 1.0, 1.5), 8.0, 11.5),
        lambda t: np.exp(-((t - 10) ** 2) / 4.5) * ((t > 8) & (t < 11.5)),
        [8.0, 11.5],
        40.0,
    ),
    "sine in a window": (
        memjax.WindowedKernel(memjax.Sine(4.0), 1.0, 27.0),
        lambda t: np.sin(4 * t) * ((t > 1) & (t < 27)),
        [1.0, 27.0],
        40.0,
    ),
    "delay": (
        memjax.DelayedKernel(memjax.ExponentialSum([1.0, 2.0], [0.5, 3.0]), 4.0),
        lambda t: np.where(t > 4, np.exp(-0.5 * (t - 4)) + 2 * np.exp(-3 * (t - 4)), 0),
        [4.0],
        90.0,
    ),
    "scaled": (
        -2.5 * memjax.Box(1.0, 2.0),
        lambda t: -2.5 * ((t > 1) & (t < 2)),
        [1.0, 2.0],
        40.0,
    ),
}


@eqx.filter_jit
def integrals(kernel, s, horizon):
    return (
        kernel.laplace(s[:, None], horizon),
        kernel.squared_norm(horizon),
        kernel.heaviside_response(horizon),
        kernel.ramp_response(horizon),
        kernel(horizon),
    )


@pytest.mark.thorough
@pytest.mark.parametrize("name", KERNELS)
def test_integrals(name):
    kernel, rho, cuts, end = KERNELS[name]
    laplace, norm, heaviside, ramp, values = integrals(kernel, S, HORIZONS)
    with np.errstate(all="ignore"):
        for k, h in enumerate(HORIZONS):
            for i, s in enumerate(S):
                weighted = lambda t: np.exp(-s * t) * rho(t)
                size = quad(lambda t: np.abs(weighted(t)), h, cuts)
                np.testing.assert_allclose(
                    laplace[i, k], quad(weighted, h, cuts), rtol=0, atol=3e-13 * size
                )
            np.testing.assert_allclose(norm[k], quad(lambda t: rho(t) ** 2, h, cuts), rtol=1e-12)
            size = quad(lambda t: np.abs(rho(t)), h, cuts)
            np.testing.assert_allclose(heaviside[k], quad(rho, h, cuts), rtol=0, atol=1e-13 * size)
            exact = quad(lambda t: (h - t) * rho(t), h, cuts)
            np.testing.assert_allclose(ramp[k], exact, rtol=0, atol=1e-13 * h * size)
        if name != "box":  # whose end is one of the horizons
            np.testing.assert_allclose(values, rho(HORIZONS), rtol=1e-12, atol=1e-15)
        if end is not None:
            exact = quad(lambda t: rho(t) ** 2, end, cuts)
            np.testing.assert_allclose(kernel.squared_norm(), exact, rtol=1e-12)
            exact = quad(lambda t: np.exp(-0.7 * t) * rho(t), end, cuts)
            np.testing.assert_allclose(kernel.laplace(0.7), exact, rtol=1e-12)
    np.testing.assert_array_equal(kernel(np.array([-1.0])), 0)
    np.testing.assert_array_equal(kernel.heaviside_response(-1.0), 0)
    np.testing.assert_array_equal(kernel.ramp_response(-1.0), 0)


@pytest.mark.parametrize("name", KERNELS)
def test_support_holds_the_norm(name):
    kernel, rho, cuts, end = KERNELS[name]
    support = float(kernel.support())
    if end is None:
        assert support == np.inf
        return
    assert support < end
    far = np.linspace(support, end, 4000)
    with np.errstate(all="ignore"):
        tail = np.trapezoid(rho(far) ** 2, far)
    assert tail <= 1e-30 * float(kernel.squared_norm())


@pytest.mark.parametrize("name", ["power", "airy", "window", "delay", "oscillation"])
def test_derivatives(name):
    kernel = KERNELS[name][0]
    inexact, static = eqx.partition(kernel, eqx.is_inexact_array)

    @jax.jit
    def both(leaves, tangent):
        def transform(leaves, s, h):
            return eqx.combine(leaves, static).laplace(s, h)

        arguments = (leaves, 0.7, 9.1)
        derivative = jax.jvp(transform, arguments, (tangent, 0.3, -0.2))[1]
        direction, step = (tangent, 0.3, -0.2), 1e-5
        ends = [
            transform(*jax.tree.map(lambda x, dx: x + sign * step * dx, arguments, direction))
            for sign in (1, -1)
        ]
        gradient = jax.grad(transform)(leaves, 0.7, 9.1)
        return derivative, (ends[0] - ends[1]) / (2 * step), gradient

    tangent = jax.tree.map(lambda x: 0.1 + 0.2 * x, inexact)
    derivative, difference, gradient = both(inexact, tangent)
    np.testing.assert_allclose(derivative, difference, rtol=1e-7, atol=1e-11)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


@pytest.mark.parametrize("omega", [0.01, 1.0, 5.0])
def test_power_law_is_an_exponential_integral(omega):
    s = np.logspace(-12, 6, 19)
    kernel = memjax.PowerLaw(omega)
    with mp.workdps(60):
        values = [mp.exp(x) * mp.expint(1 + mp.mpf(omega), x) for x in map(mp.mpf, s)]
        lower = [mp.exp(x) * mp.expint(mp.mpf(omega), x) for x in map(mp.mpf, s)]
        slopes = [float(a - b) for a, b in zip(values, lower, strict=True)]
        h = mp.mpf("1e-15")
        powers = [
            float(mp.exp(x) * (mp.expint(1 + omega + h, x) - mp.expint(1 + omega - h, x)) / (2 * h))
            for x in map(mp.mpf, s[::6])
        ]
        values = [float(value) for value in values]
    transform, slope = jax.jvp(kernel.laplace, (s,), (np.ones_like(s),))
    np.testing.assert_allclose(transform, values, rtol=1e-12)
    np.testing.assert_allclose(slope, slopes, rtol=1e-12)
    in_omega = jax.jacfwd(lambda w: memjax.PowerLaw(w).laplace(s[::6]))(omega)
    np.testing.assert_allclose(in_omega, powers, rtol=1e-11)
    np.testing.assert_allclose(kernel.laplace(0.0), 1 / omega, rtol=1e-12)


def test_power_law_norm_and_scale():
    kernel = memjax.PowerLaw(0.1, 10.0)
    np.testing.assert_allclose(kernel.squared_norm(), 10 / 1.2, rtol=1e-15)
    t = np.array([0.0, 3.0, 1e6])
    np.testing.assert_allclose(kernel(t), (1 + 0.1 * t) ** -1.1, rtol=1e-14)
    np.testing.assert_allclose(kernel.squared_norm(1e-9), 1e-9, rtol=1e-9)
    np.testing.assert_allclose(kernel.ramp_response(1e-9), 5e-19, rtol=1e-9)


def test_airy_function():
    x = np.concatenate([np.linspace(-60, 25, 300), [-12.5, -12.0, 12.0, 12.5, 0.0]])
    with mp.workdps(30):
        exact = np.array([[float(mp.airyai(v, derivative=k)) for v in x] for k in (0, 1)])
    value, slope = jax.jvp(airy, (jnp.asarray(x),), (jnp.ones_like(x),))
    # In the oscillation a rounding of x turns the phase, so errors are of the amplitude.
    left = x < 0
    phase, root = 1 + np.abs(x) ** 1.5, np.maximum(np.abs(x), 1) ** 0.25
    sizes = [
        np.where(left, phase * amplitude, 20 * np.abs(value))
        for amplitude, value in zip((1 / root, root), exact, strict=True)
    ]
    for got, expected, size in zip((value, slope), exact, sizes, strict=True):
        assert np.max(np.abs(got - expected) / np.maximum(size, 1e-300)) < 2e-15
    second = jax.grad(jax.grad(airy))(-3.3)
    np.testing.assert_allclose(second, -3.3 * float(mp.airyai(-3.3)), rtol=1e-13)


def test_delayed_mass_keeps_relative_accuracy():
    kernel = memjax.WindowedKernel(memjax.ExponentialSum(1.0, 0.5), 100.0, 101.0)
    s = np.array([1e-6, 1.0, 6.0])
    exact = np.exp(-100 * (s + 0.5)) * -np.expm1(-(s + 0.5)) / (s + 0.5)
    np.testing.assert_allclose(kernel.laplace(s), exact, rtol=1e-12)
    box = memjax.Box(100.0, 101.0)
    np.testing.assert_allclose(box.laplace(6.0), -np.exp(-600.0) * np.expm1(-6.0) / 6, rtol=1e-12)


def test_box_moves_with_its_ends():
    slope = jax.grad(lambda start, stop: memjax.Box(start, stop).laplace(0.3), (0, 1))(2.0, 5.0)
    np.testing.assert_allclose(slope, [-np.exp(-0.6), np.exp(-1.5)], rtol=1e-13)
    bump = memjax.GaussianBump(0.2)
    window = lambda start, stop: memjax.WindowedKernel(bump, start, stop).squared_norm()
    slope = jax.grad(window, (0, 1))(5.0, 6.0)
    np.testing.assert_allclose(slope, [-(bump(5.0) ** 2), bump(6.0) ** 2], rtol=1e-13)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: memjax.PowerLaw(0.0), "`omega` must be positive, got 0.0"),
        (lambda: memjax.PowerLaw(1.0, -1.0), "`scale` must be positive, got -1.0"),
        (lambda: memjax.PowerLaw(np.ones(2)), "`omega` must be a scalar"),
        (lambda: memjax.Airy(scale=0.0), "`scale` must be positive"),
        (lambda: memjax.Airy(delay=-1.0), "`delay` must not be negative"),
        (lambda: memjax.Box(3.0, 2.0), "`stop` must be above `start`, got 2.0 and 3.0"),
        (lambda: memjax.Box(-1.0, 2.0), "`start` must not be negative"),
        (lambda: memjax.Box(0.0, np.inf), "`stop` must be finite"),
        (lambda: memjax.Sine(0.0), "`frequency` must be positive"),
        (lambda: memjax.Sine(1.0).squared_norm(), "never decays"),
        (lambda: memjax.Sine(1.0).laplace(0.0), "needs a decay"),
        (lambda: memjax.DampedOscillation(1.0, 0.0, 0.0, 1.0), "`rates` must be positive"),
        (lambda: memjax.DampedOscillation([1.0], [0.0, 1.0], 1.0, 1.0), "the same shape"),
        (lambda: memjax.DelayedKernel(memjax.Sine(), -1.0), "`delay` must not be negative"),
        (lambda: np.nan * memjax.Sine(), "`factor` must be finite"),
    ],
)
def test_refusals(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_no_kernel():
    for make in (
        lambda: memjax.ScaledKernel(1.0, 2.0),
        lambda: memjax.DelayedKernel(lambda t: t, 2.0),
        lambda: memjax.WindowedKernel(None, 1.0, 2.0),
    ):
        with pytest.raises(TypeError, match="`kernel` must be a scalar kernel"):
            make()
    with pytest.raises(TypeError):
        memjax.Sine() * memjax.Sine()
    with pytest.raises(TypeError):
        memjax.Sine() * "2"


def test_arithmetic():
    box, bump = memjax.Box(1.0, 2.0), memjax.GaussianBump(0.5)
    for factor in (2, 2.0, np.float64(2.0), jnp.asarray(2.0)):
        for product in (factor * box, box * factor):
            assert isinstance(product, memjax.ScaledKernel)
            np.testing.assert_array_equal(product(1.5), 2.0)
    difference = bump - box
    np.testing.assert_allclose(difference(1.5), bump(1.5) - 1, rtol=1e-15)
    np.testing.assert_array_equal((-box)(1.5), -1.0)


def test_exponential_part_of_scaled_sums():
    from memjax.targets import split_exponential

    bump = memjax.GaussianBump(0.5)
    kernel = 3.0 * (memjax.ExponentialSum([1.0, 2.0], [1.0, 4.0]) + bump)
    exponential, rest = split_exponential(kernel + 2.0 * memjax.ExponentialSum(1.0, 9.0))
    np.testing.assert_array_equal(exponential.amplitudes, [3.0, 6.0, 2.0])
    np.testing.assert_array_equal(exponential.rates, [1.0, 4.0, 9.0])
    np.testing.assert_allclose(sum(rest)(1.0), 3 * bump(1.0), rtol=1e-15)
