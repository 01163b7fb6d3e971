import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from memjax.targets import (
    AbstractKernel,
    AbstractTarget,
    ExponentialSum,
    GaussianBump,
    inner_product,
    KernelSum,
    SampledKernel,
    split_exponential,
)


class GammaKernel(AbstractKernel):
    """A user's own kernel, t exp(-rate t)."""

    rate: jax.Array

    def __call__(self, t):
        return jnp.where(t < 0, 0, t * jnp.exp(-self.rate * t))

    def laplace(self, s, horizon=jnp.inf):
        return self._moment(s + self.rate, horizon)

    def squared_norm(self, horizon=jnp.inf):
        r = 2 * self.rate
        if isinstance(horizon, float) and horizon == jnp.inf:
            return 2 / r**3
        x = r * horizon
        return (2 - jnp.exp(-x) * (x**2 + 2 * x + 2)) / r**3

    def heaviside_response(self, t):
        return self._moment(self.rate, jnp.maximum(t, 0))

    def ramp_response(self, t):
        t = jnp.maximum(t, 0)
        x = self.rate * t
        return (x - 2 + (x + 2) * jnp.exp(-x)) / self.rate**3

    def _moment(self, rate, horizon):
        if isinstance(horizon, float) and horizon == jnp.inf:
            return 1 / rate**2
        x = rate * horizon
        return (1 - (1 + x) * jnp.exp(-x)) / rate**2


KERNELS = {
    "exponential": ExponentialSum(np.array([1.0, -0.5]), np.array([1.0, 0.2])),
    "one exponential": ExponentialSum(0.7, 3.0),
    "bump": GaussianBump(omega=1 / 5, amplitude=1.3, width=0.8),
    "wide bump": GaussianBump(omega=1.0, amplitude=-0.4, width=2.0),
    "samples": SampledKernel(np.array([0.0, 0.3, 1.5, 4.0, 9.0]), np.array([1.0, 2, -1, 0.5, 0.2])),
    "late samples": SampledKernel(np.array([2.0, 3.5, 6.0]), np.array([0.4, 1.0, 1.0])),
    "user": GammaKernel(jnp.array(0.9)),
}
KERNELS["sum"] = KERNELS["one exponential"] + KERNELS["bump"] + KERNELS["late samples"]
PAIRS = list(itertools.combinations_with_replacement(KERNELS, 2))
BREAKS = [0.3, 1.5, 2, 3.5, 4, 5, 6, 9, 12, 20]


def integral(function, end):
    nodes = [0, *(t for t in BREAKS if t < end), min(end, 160.0)]
    # Gauss points stay inside each piece, clear of the jumps at the ends of the samples.
    points, weights = np.polynomial.legendre.leggauss(60)
    return sum(
        (b - a) / 2 * np.sum(weights * function(a + (b - a) * (points + 1) / 2))
        for a, b in itertools.pairwise(nodes)
    )


@pytest.mark.thorough
def test_a_sum_is_the_sum_of_its_terms():
    first, second, third = (KERNELS[name] for name in ("exponential", "bump", "samples"))
    kernel = first + second + third
    t = jnp.array([-1.0, 0.0, 0.4, 3.0, 7.0])
    for method, arguments in (
        ("__call__", (t,)),
        ("laplace", (jnp.array([0.1, 2.0]),)),
        ("laplace", (jnp.array([0.1, 2.0]), 3.3)),
        ("heaviside_response", (t,)),
        ("ramp_response", (t,)),
    ):
        total = sum(getattr(term, method)(*arguments) for term in (first, second, third))
        np.testing.assert_allclose(getattr(kernel, method)(*arguments), total, rtol=1e-14)


def test_sums_are_flat_and_built_in_any_way():
    first, second, third = (KERNELS[name] for name in ("exponential", "bump", "samples"))
    for kernel in (
        first + second + third,
        first + (second + third),
        sum([first, second, third]),
        KernelSum((first + second, third)),
    ):
        assert isinstance(kernel, KernelSum)
        assert isinstance(kernel, AbstractTarget)
        assert all(a is b for a, b in zip(kernel.terms, (first, second, third), strict=True))
    assert sum([first]) is first


@pytest.mark.thorough
@pytest.mark.parametrize("horizon", [1.1, 5.5, np.inf])
@pytest.mark.parametrize(
    ("first", "second"), list(itertools.combinations_with_replacement(KERNELS, 2))
)
def test_inner_product_against_quadrature(first, second, horizon):
    a, b = KERNELS[first], KERNELS[second]
    exact = integral(lambda t: np.asarray(a(t) * b(t)), horizon)
    # By parts, rounding is relative to the norms.
    scale = np.sqrt(a.squared_norm() * b.squared_norm())
    value = inner_product(a, b, horizon)
    np.testing.assert_allclose(value, exact, rtol=1e-12, atol=1e-14 * scale)
    np.testing.assert_allclose(inner_product(b, a, horizon), value, rtol=1e-13, atol=1e-15 * scale)


@pytest.mark.parametrize("name", KERNELS)
def test_squared_norm_against_quadrature(name):
    kernel = KERNELS[name]
    for horizon in (0.7, 5.5, np.inf):
        exact = integral(lambda t: np.asarray(kernel(t)) ** 2, horizon)
        np.testing.assert_allclose(kernel.squared_norm(horizon), exact, rtol=1e-12)


def test_a_copy_gives_the_product_that_the_object_itself_gives():
    for name in ("exponential", "bump", "samples", "sum"):
        kernel = KERNELS[name]
        copy = jax.tree.map(lambda leaf: leaf + 0, kernel)
        for horizon in (2.2, np.inf):
            np.testing.assert_allclose(
                inner_product(kernel, copy, horizon), kernel.squared_norm(horizon), rtol=1e-13
            )


def test_bumps_far_apart_keep_relative_accuracy():
    first, second = GaussianBump(omega=1 / 5, width=0.4), GaussianBump(omega=1 / 25, width=0.5)
    # exp(-20^2 / (2 (0.4^2 + 0.5^2))) times a whole Gaussian
    variance = 0.4**2 + 0.5**2
    exact = np.exp(-200 / variance) * np.sqrt(2 * np.pi) * 0.4 * 0.5 / np.sqrt(variance)
    assert 0 < exact < 1e-200
    np.testing.assert_allclose(inner_product(first, second), exact, rtol=1e-12)


@pytest.mark.thorough
@pytest.mark.parametrize("pair", [("samples", "bump"), ("samples", "late samples")])
def test_gradient_in_the_horizon_is_the_integrand_there(pair):
    first, second = (KERNELS[name] for name in pair)
    for horizon in (0.1, 2.6, 5.0):
        slope = jax.grad(inner_product, argnums=2)(first, second, horizon)
        np.testing.assert_allclose(slope, first(horizon) * second(horizon), rtol=1e-11)


@pytest.mark.slow
def test_arrays_of_horizons_and_transformations():
    horizons = jnp.array([[0.0, 1.1], [5.5, 30.0]])
    for first, second in (("bump", "bump"), ("samples", "late samples"), ("sum", "samples")):
        a, b = KERNELS[first], KERNELS[second]
        values = eqx.filter_jit(inner_product)(a, b, horizons)
        assert values.shape == (2, 2)
        assert abs(values[0, 0]) < 1e-30
        np.testing.assert_allclose(
            values[1], [inner_product(a, b, 5.5), inner_product(a, b, 30.0)], rtol=1e-11
        )
        gradient = jax.grad(lambda a, b=b: inner_product(a, b))(a)
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(gradient))


def test_sum_stays_apart_inside_jit():
    kernel = KERNELS["sum"]
    value = eqx.filter_jit(lambda kernel: kernel.squared_norm())(kernel)
    np.testing.assert_allclose(value, kernel.squared_norm(), rtol=1e-13)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["exponential", "samples", "late samples", "sum"]),
    st.floats(0.1, 10),
    st.floats(0.1, 3),
    st.floats(0.1, 30),
)
def test_cauchy_schwarz(name, center, width, horizon):
    first, second = KERNELS[name], GaussianBump(omega=1 / center, width=width)
    product = inner_product(first, second, horizon)
    bound = first.squared_norm(horizon) * second.squared_norm(horizon)
    assert product**2 <= bound * (1 + 1e-12) + 1e-28


def test_split_exponential():
    first, second, bump, samples = (
        KERNELS[name] for name in ("exponential", "one exponential", "bump", "samples")
    )
    exponential, rest = split_exponential(bump + first + samples + second)
    np.testing.assert_array_equal(exponential.amplitudes, [1.0, -0.5, 0.7])
    np.testing.assert_array_equal(exponential.rates, [1.0, 0.2, 3.0])
    assert len(rest) == 2 and rest[0] is bump and rest[1] is samples

    exponential, rest = split_exponential(bump)
    assert exponential.amplitudes.shape == (0,)
    assert rest[0] is bump
    assert split_exponential(first)[1] == ()


def test_user_kernel_with_an_exponential_and_with_samples():
    user, samples = KERNELS["user"], KERNELS["samples"]
    kernel = KERNELS["exponential"] + user + samples
    exact = integrate.quad(lambda t: float(kernel(t)) ** 2, 0, 40, points=BREAKS[:8], limit=200)[0]
    np.testing.assert_allclose(kernel.squared_norm(), exact, rtol=1e-7)


def test_bad_arguments_are_refused():
    bump = KERNELS["bump"]
    with pytest.raises(ValueError, match="`terms` must hold at least one kernel"):
        KernelSum(())
    with pytest.raises(TypeError, match="`terms` must be a scalar kernel, got 1.0"):
        KernelSum((bump, 1.0))
    with pytest.raises(TypeError, match="unsupported operand"):
        bump + 1.0
    with pytest.raises(TypeError, match="unsupported operand"):
        1.0 + bump
    with pytest.raises(TypeError, match="`second` must be a kernel, got 1.0"):
        inner_product(bump, 1.0)
    with pytest.raises(TypeError, match="abstract"):
        AbstractKernel()  # pyright: ignore[reportAbstractUsage]
