import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest

from memjax.numerics import (
    complex_gaussian_moments,
    exponential_moment,
    gaussian_moment,
    gaussian_moments,
    gaussian_transform,
)

# Compiled once and used at many points.
moment_gradient = jax.jit(jax.grad(gaussian_moment, (1, 2, 3)), static_argnums=0)
moment_hessian = jax.jit(jax.hessian(lambda a: gaussian_moment(0, *a)))
transform_and_gradient = jax.jit(jax.value_and_grad(gaussian_transform, (0, 1, 2, 3)))


def relative_error(value, exact):
    return float(abs(mp.mpf(float(value)) / exact - 1))


def exact_exponential_moment(k, x):
    with mp.workdps(60):
        x = mp.mpf(x)
        if abs(x) < 50:
            return mp.hyp1f1(k + 1, k + 2, -x) / (k + 1)
        return mp.gammainc(k + 1, 0, x) / x ** (k + 1)


def exact_gaussian_moment(k, s, center, width):
    # The recursion loses up to 2 k log10(z) digits, hence the many that it starts from.
    with mp.workdps(100):
        s, center, width = mp.mpf(s), mp.mpf(center), mp.mpf(width)
        scale = width * mp.sqrt(2)
        z = (s * width**2 - center) / scale
        previous, current = mp.mpf(0), mp.sqrt(mp.pi) / 2 * mp.exp(z**2) * mp.erfc(z)
        for j in range(k):
            first = mp.mpf(1) if j == 0 else j * previous
            previous, current = current, first / 2 - z * current
        return scale ** (k + 1) * mp.exp(-((center / width) ** 2) / 2) * current


@pytest.mark.parametrize("k", range(5))
def test_exponential_moment_has_full_relative_accuracy(k):
    x = np.concatenate([[-1, -0.5, -1e-9, 0], np.logspace(-12, 6, 120), np.linspace(0, 12, 80)])
    values = exponential_moment(k, x)
    worst = max(
        relative_error(v, exact_exponential_moment(k, t)) for v, t in zip(values, x, strict=True)
    )
    assert worst < 2e-15


@pytest.mark.parametrize("k", range(3))
def test_exponential_moment_derivatives_of_any_order(k):
    derivative = jax.grad(lambda x: exponential_moment(k, x))
    third = jax.grad(jax.grad(derivative))
    for x in (0.0, 1e-8, 0.3, 2.5, 40.0, 1e5):
        assert relative_error(derivative(x), -exact_exponential_moment(k + 1, x)) < 2e-15
        assert relative_error(third(x), -exact_exponential_moment(k + 3, x)) < 2e-15


@pytest.mark.parametrize("x", [1e100, 1e300, np.inf])
def test_exponential_moment_far_out_is_zero_without_nan(x):
    # 3! / x^4 underflows
    value, derivative = jax.value_and_grad(lambda x: exponential_moment(3, x))(x)
    assert value == 0 or relative_error(value, 6 / mp.mpf(x) ** 4) < 1e-14
    assert derivative <= 0


def test_exponential_moment_accepts_integers_and_any_shape():
    values = exponential_moment(0, np.arange(6).reshape(2, 3))
    assert values.shape == (2, 3)
    assert jnp.issubdtype(values.dtype, jnp.floating)


@pytest.mark.parametrize("k", range(5))
def test_gaussian_moment_has_full_relative_accuracy(k):
    s, center, width = (
        axis.ravel()
        for axis in np.meshgrid(
            [0, 1e-3, 0.1, 0.7, 1.3, 4, 30, 1e3],
            [-8, -1, -0.1, 0, 0.2, 0.9, 3, 11, 60],
            [0.02, 0.4, 1, 2.5],
            indexing="ij",
        )
    )
    values = gaussian_moment(k, s, center, width)
    for value, *arguments in zip(values, s, center, width, strict=True):
        exact = exact_gaussian_moment(k, *arguments)
        if exact >= np.finfo(float).tiny:
            assert relative_error(value, exact) < 1e-12, arguments
        else:
            assert 0 <= value <= np.finfo(float).tiny


def test_gaussian_moment_on_both_sides_of_the_switch():
    # With LLVM's optimizations, as users have them: without fused operations more is rounded.
    options = {"xla_backend_optimization_level": 3, "xla_llvm_disable_expensive_passes": False}
    moment = jax.jit(gaussian_moment, static_argnums=0, compiler_options=options)
    z = np.concatenate([1.25 + np.linspace(-1e-3, 1e-3, 21), np.linspace(-3, 5, 81)])
    s = z * np.sqrt(2)
    for k in range(5):
        values = moment(k, s, 0.0, 1.0)
        errors = [
            relative_error(v, exact_gaussian_moment(k, t, 0, 1))
            for v, t in zip(values, s, strict=True)
        ]
        assert max(errors) < 3e-14


@pytest.mark.parametrize("arguments", [(0.5, 3.0, 0.7), (2.0, -1.0, 1.5), (4.0, 1.0, 0.5)])
def test_gaussian_moment_against_quadrature(arguments):
    s, center, width = map(mp.mpf, arguments)
    for k in range(3):
        with mp.workdps(30):
            peak = max(center, 0)
            exact = mp.quad(
                lambda t, k=k: t**k * mp.exp(-s * t - (t - center) ** 2 / (2 * width**2)),
                [0, peak + width, peak + 4 * width, peak + 16 * width],
            )
        assert relative_error(gaussian_moment(k, *arguments), exact) < 1e-14


# From a peak far inside the half line to a tail pressed against 0, and everything between.
POINTS = [
    (0.5, 20.0, 0.5),
    (0.01, 300.0, 0.02),
    (0.3, 2.0, 1.0),
    (1.0, 0.8, 1.0),
    (2.0, -1.0, 0.6),
    (6.0, 1.0, 1.2),
    (1e3, 2.0, 2.0),
    (40.0, 0.0, 0.3),
]


@pytest.mark.parametrize("arguments", POINTS)
@pytest.mark.parametrize("k", range(3))
def test_gaussian_moment_derivatives(k, arguments):
    gradient = moment_gradient(k, *arguments)
    # The difference quotients of mpmath step by about the working precision.
    with mp.workdps(20):
        for axis in range(3):
            order = [0, 0, 0]
            order[axis] = 1
            exact = mp.diff(lambda *a: exact_gaussian_moment(k, *a), arguments, tuple(order))
            assert relative_error(gradient[axis], exact) < 1e-11


@pytest.mark.parametrize("arguments", POINTS)
def test_gaussian_moment_second_derivatives(arguments):
    hessian = moment_hessian(jnp.array(arguments))
    with mp.workdps(20):
        for i in range(3):
            for j in range(3):
                order = [0, 0, 0]
                order[i] += 1
                order[j] += 1
                exact = mp.diff(lambda *a: exact_gaussian_moment(0, *a), arguments, tuple(order))
                assert relative_error(hessian[i, j], exact) < 1e-8, (i, j)


def test_gaussian_moment_is_finite_in_value_and_gradient_everywhere():
    s, center, width = (
        axis.ravel()
        for axis in np.meshgrid(
            [0, 1e-3, 1, 1e3], [-1e3, -1, 0, 1, 1e3], [1e-3, 1, 10], indexing="ij"
        )
    )
    for k in range(3):
        assert np.all(np.isfinite(gaussian_moment(k, s, center, width)))
        gradients = jax.vmap(lambda *a, k=k: moment_gradient(k, *a))(s, center, width)
        assert np.all(np.isfinite(gradients))


def test_gaussian_moment_broadcasts_and_differentiates_forwards_and_backwards():
    s = jnp.linspace(0.1, 3, 5)[:, None]
    center = jnp.linspace(-1, 4, 3)
    assert gaussian_moment(0, s, center, 0.5).shape == (5, 3)
    total = lambda s: jnp.sum(gaussian_moment(1, s, center, 0.5))
    direction = jnp.ones_like(s)
    forward = jax.jvp(total, (s,), (direction,))[1]
    np.testing.assert_allclose(forward, jnp.sum(jax.grad(total)(s)), rtol=1e-14)


@pytest.mark.parametrize("horizon", [0.3, 4.0, 9.5, 12.0, 60.0])
@pytest.mark.parametrize("s", [0.0, 0.4, 3.0, 20.0])
def test_gaussian_transform_cut_before_inside_and_past_the_peak(s, horizon):
    center, width = 10.0, 0.8
    value, gradient = transform_and_gradient(s, center, width, horizon)

    # Quadrature in mpmath aims at an absolute error, so it is given an integral near 1.
    def integrand(t):
        return mp.exp(-s * t - (t - center) ** 2 / (2 * mp.mpf(width) ** 2)) / float(value)

    with mp.workdps(25):
        nodes = sorted({0, horizon} | {t for t in (0.5, 2, 5, 8, 10, 12, 20) if t < horizon})
        moments = [
            mp.quad(lambda t, j=j: (t - center) ** j * integrand(t), nodes) for j in range(3)
        ]
        in_horizon = float(integrand(mp.mpf(horizon)))
        variance = mp.mpf(width) ** 2
        in_center = float(moments[1] / variance)
        in_width = moments[2] / variance / width
    assert abs(moments[0] - 1) < 1e-12
    gradient = [g / value for g in gradient]
    assert relative_error(gradient[0], -(moments[1] + center * moments[0])) < 1e-11
    # Of a whole bump these two are rounding.
    assert abs(gradient[1] - in_center) < 1e-12 + 1e-11 * abs(in_center)
    assert relative_error(gradient[2], in_width) < 1e-10
    assert abs(gradient[3] - in_horizon) < 1e-12 + 1e-11 * in_horizon


def test_gaussian_transform_over_nothing_is_zero():
    for center in (-1.0, 0.0, 5.0):
        assert gaussian_transform(0.7, center, 0.5, 0.0) == 0


@pytest.mark.parametrize(
    "center, width", [(0.0, 0.5), (1.0, 0.5), (5.0, 0.3), (20.0, 0.5), (60.0, 2.0)]
)
def test_moments_at_complex_arguments(center, width):
    rng = np.random.default_rng(0)
    size = np.repeat([0.01, 1.0, 8.0], 8)
    s = rng.uniform(0.05, 3, 24) + 1j * size * rng.normal(size=24)
    values = complex_gaussian_moments(2, jnp.asarray(s), jnp.asarray(center), jnp.asarray(width))
    for k, value in enumerate(values):
        for at, found in zip(s, np.asarray(value), strict=True):
            with mp.workdps(60):
                at, T, sigma = mp.mpc(complex(at)), mp.mpf(center), mp.mpf(width)
                z = (at * sigma**2 - T) / (sigma * mp.sqrt(2))
                own = [mp.sqrt(mp.pi) / 2 * mp.exp(z**2) * mp.erfc(z)]
                own += [mp.mpf(1) / 2 - z * own[0]]
                own += [own[0] / 2 - z * own[1]]
                exact = (sigma * mp.sqrt(2)) ** (k + 1) * mp.exp(-((T / sigma) ** 2) / 2) * own[k]
                assert abs(mp.mpc(complex(found)) - exact) < 1e-11 * abs(exact)


def alone(center, width, z):
    """A Laplace variable whose argument of the continued fraction is `z`."""
    return (z * width * np.sqrt(2) + center) / width**2


# How many terms are evaluated depends on the least of all arguments, hence one by one.
@pytest.mark.parametrize(
    "z",
    [-40.0, -8.0, -6.21, -6.19, -4.0, -1.0, 1.2, 1.3, 2.0, 3.9, 4.0, 4.1, 8.0, 11.9, 12.0]
    + [30.0, 1e4],
)
def test_moments_of_one_argument_have_as_many_terms_as_they_need(z):
    center, width = 3.0, 0.45
    s = alone(center, width, z)
    if z <= -4:
        s = 0.3
        center = s * width**2 - z * width * np.sqrt(2)
    values = gaussian_moments(2, jnp.asarray([s]), jnp.asarray(center), jnp.asarray(width))
    for k, value in enumerate(values):
        assert relative_error(value[0], exact_gaussian_moment(k, s, center, width)) < 5e-15
    # What is no number stays none, and leaves the others as they are.
    both = gaussian_moments(2, jnp.asarray([s, jnp.nan]), jnp.asarray(center), jnp.asarray(width))
    for value, beside in zip(values, both, strict=True):
        assert beside[0] == pytest.approx(float(value[0]), rel=2e-15) and jnp.isnan(beside[1])


@pytest.mark.parametrize("s", [0.5, 0.5 + 3j, 40.0 + 5j, 90j, 1e155, 1e250 + 1e100j])
def test_complex_moments_of_one_argument(s):
    center, width = jnp.asarray(3.0), jnp.asarray(0.45)
    (value,) = complex_gaussian_moments(0, jnp.asarray([s + 0j]), center, width)
    beside = complex_gaussian_moments(0, jnp.asarray([s, 8.0, 50j, jnp.nan]), center, width)[0]
    assert complex(beside[0]) == pytest.approx(complex(value[0]), rel=1e-14, abs=0)
    assert jnp.isnan(beside[3])
    with mp.workdps(60):
        at, T, sigma = mp.mpc(complex(s)), mp.mpf(3.0), mp.mpf(0.45)
        z = (at * sigma**2 - T) / (sigma * mp.sqrt(2))
        if abs(z) < 1e3:
            scaled = mp.sqrt(mp.pi) / 2 * mp.exp(z**2) * mp.erfc(z)
        else:
            scaled = (1 - 1 / (2 * z**2)) / (2 * z)
        exact = sigma * mp.sqrt(2) * mp.exp(-((T / sigma) ** 2) / 2) * scaled
        assert abs(mp.mpc(complex(value[0])) - exact) < 1e-11 * abs(exact)
