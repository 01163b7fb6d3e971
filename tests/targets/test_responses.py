"""Responses to sampled inputs, and what the targets say of themselves."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax

RNG = np.random.default_rng(8)
TIMES = np.cumsum(RNG.uniform(0.05, 0.5, size=40))
INPUTS = RNG.normal(size=TIMES.size)

KERNELS = {
    "exponential": memjax.ExponentialSum([1.0, -0.5], [0.3, 2.0]),
    "bump": memjax.GaussianBump(0.3),
    "power": memjax.PowerLaw(0.1, 10.0),
    "box": memjax.Box(1.0, 2.5),
    "sine": memjax.Sine(2.0),
    "samples": memjax.SampledKernel([0.0, 1.0, 1.5], [1.0, -1.0, 0.5]),
    "sum": memjax.Box(0.5, 1.0) + memjax.GaussianBump(0.5),
}


def direct(kernel, t):
    """The integral of the kernel times the input, on fine panels that end at every kink."""
    points, weights = np.polynomial.legendre.leggauss(8)
    past = TIMES[TIMES <= t]
    jumps = t - np.array([0.5, 1.0, 1.5, 2.0, 2.5])
    edges = np.concatenate([past, [t], jumps[(jumps > TIMES[0])], np.arange(TIMES[0], t, 0.05)])
    edges = np.unique(edges)
    widths = np.diff(edges)[:, None] / 2
    nodes = edges[:-1, None] + widths * (1 + points)
    return np.sum(widths * weights * np.interp(nodes, TIMES, INPUTS) * kernel(t - nodes))


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["power", "samples", "sum"])
def test_uneven_response(name):
    kernel = KERNELS[name]
    response = kernel.response(TIMES, INPUTS)
    assert response.shape == TIMES.shape and response[0] == 0
    chosen = [1, 7, 22, 39]
    exact = [direct(kernel, TIMES[k]) for k in chosen]
    np.testing.assert_allclose(response[np.array(chosen)], exact, rtol=1e-11, atol=1e-12)


@pytest.mark.slow
def test_even_response_is_the_same():
    ts = np.linspace(3.0, 11.0, 81)
    xs = RNG.normal(size=81)
    slow = eqx.filter_jit(lambda kernel, ts: kernel.response(ts, xs))
    for name in ("power", "sum", "sine"):
        kernel = KERNELS[name]
        fast = kernel.response(ts, xs)
        np.testing.assert_allclose(fast, slow(kernel, jnp.asarray(ts)), rtol=0, atol=2e-11)
    # over many samples rounding does not pile up
    ts = np.arange(2.0**14) / 8
    xs = np.ones(ts.size)
    kernel = KERNELS["exponential"]
    np.testing.assert_allclose(
        kernel.response(ts, xs), kernel.heaviside_response(ts), rtol=0, atol=1e-9
    )


def test_responses_are_linear_causal_and_homogeneous():
    kernel = KERNELS["power"]
    respond = eqx.filter_jit(kernel.response)
    base = respond(TIMES, INPUTS)
    np.testing.assert_allclose(respond(TIMES, 2 * INPUTS), 2 * base, rtol=1e-13)
    np.testing.assert_allclose(respond(TIMES + 5, INPUTS), base, rtol=1e-10, atol=1e-13)
    changed = np.where(np.arange(TIMES.size) > 20, 0.0, INPUTS)
    np.testing.assert_array_equal(respond(TIMES, changed)[:21], base[:21])
    slope = jax.grad(lambda xs: respond(TIMES, xs)[10])(jnp.asarray(INPUTS))
    np.testing.assert_allclose(jnp.dot(slope, INPUTS), base[10], rtol=1e-12)
    np.testing.assert_array_equal(slope[11:], 0)


@pytest.mark.parametrize(
    ("ts", "xs", "message"),
    [
        ([0.0, 1.0, 1.0], np.ones(3), "`ts` must increase, got 1.0 and then 1.0"),
        ([0.0], np.ones(1), "`ts` must be 1-D with at least 2 entries"),
        ([0.0, 1.0], np.ones(3), "`xs` must have one sample per time, got shape"),
        ([0.0, 1.0], np.ones((2, 1)), "pass an array of shape"),
        ([0.0, 1.0], [1.0, np.nan], "`xs` must be finite"),
        ([0.0, np.nan], [1.0, 1.0], "`ts` must be finite"),
    ],
)
def test_refusals(ts, xs, message):
    with pytest.raises(ValueError, match=message):
        memjax.Box(0.0, 1.0).response(np.asarray(ts), xs)


class Gamma(memjax.AbstractKernel):
    """A kernel of a user's own, with the five methods alone."""

    def __call__(self, t):
        return jnp.where(t < 0, 0, t * jnp.exp(-t))

    def laplace(self, s, horizon=jnp.inf):
        return 1 / (1 + s) ** 2

    def squared_norm(self, horizon=jnp.inf):
        return jnp.asarray(0.25)

    def heaviside_response(self, t):
        t = jnp.maximum(t, 0)
        return 1 - (1 + t) * jnp.exp(-t)

    def ramp_response(self, t):
        t = jnp.maximum(t, 0)
        return t - 2 + (t + 2) * jnp.exp(-t)


def test_kernels_of_ones_own():
    kernel = Gamma()
    assert kernel.linear and kernel.in_l1 and kernel.in_l2 and kernel.memory == "unknown"
    assert kernel.support() == np.inf and kernel.breakpoints().shape == (1,)
    np.testing.assert_allclose(
        kernel.response(TIMES, INPUTS)[30], direct(kernel, TIMES[30]), rtol=1e-10
    )
    assert (kernel + memjax.Box(0.0, 1.0)).memory == "unknown"
    np.testing.assert_allclose(
        memjax.DelayedKernel(kernel, 2.0)(3.0), kernel(jnp.asarray(1.0)), rtol=1e-15
    )


MEMORY = {
    "exponential": "exponential",
    "bump": "exponential",
    "power": "polynomial",
    "box": "finite",
    "sine": "none",
    "samples": "finite",
    "sum": "exponential",
}


@pytest.mark.parametrize("name", KERNELS)
def test_what_kernels_say(name):
    kernel = KERNELS[name]
    integrable = name != "sine"
    for composed in (kernel, 2.0 * kernel, memjax.DelayedKernel(kernel, 1.0), -kernel):
        assert composed.linear and composed.memory == MEMORY[name]
        assert composed.in_l1 is integrable and composed.in_l2 is integrable
    window = memjax.WindowedKernel(kernel, 0.0, 2.0)
    assert window.memory == "finite" and window.in_l1 and window.in_l2
    assert (kernel + memjax.Sine()).memory == "none"
    assert not (kernel + memjax.Sine()).in_l2
    assert (memjax.Box(0.0, 1.0) + kernel).memory == MEMORY[name]
    assert np.all(np.asarray(kernel.breakpoints()) >= 0)


def test_other_classes():
    assert memjax.Airy().memory == "exponential"
    assert memjax.DampedOscillation(1.0, 0.0, 1.0, 2.0).memory == "exponential"
