import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate

from memjax.targets import GaussianBump

TINY = np.finfo(float).tiny


def transform(s, omega, width):
    return GaussianBump(omega=omega, width=width).laplace(s)


# R, R' and R'' as a user gets them.
transforms = [
    jax.jit(jax.vmap(function))
    for function in (transform, jax.grad(transform), jax.grad(jax.grad(transform)))
]


def exact_transforms(s, omega, width):
    with mp.workdps(80):
        s, center, width = mp.mpf(s), 1 / mp.mpf(omega), mp.mpf(width)
        scale = width * mp.sqrt(2)
        z = (s * width**2 - center) / scale
        zeroth = mp.sqrt(mp.pi) / 2 * mp.exp(z**2) * mp.erfc(z)
        first = mp.mpf(1) / 2 - z * zeroth
        second = zeroth / 2 - z * first
        height = mp.exp(-((center / width) ** 2) / 2)
        return (
            scale * height * zeroth,
            -(scale**2) * height * first,
            scale**3 * height * second,
        )


def check_transforms(s, omega, width):
    """Assert the bar on every point; return how many true values were normal numbers."""
    values = [np.asarray(function(s, omega, width)) for function in transforms]
    resolved = 0
    for i, point in enumerate(zip(s.tolist(), omega.tolist(), width.tolist(), strict=True)):
        for value, exact in zip(values, exact_transforms(*point), strict=True):
            if abs(exact) >= TINY:
                assert abs(mp.mpf(float(value[i])) / exact - 1) < 1e-12, point
                resolved += 1
            else:
                assert abs(value[i]) <= TINY, point
    return resolved


def test_transform_and_derivatives_keep_relative_accuracy_on_a_grid():
    delays = [0.5, 0.7, 1, 2, 3, 5, 8, 13, 20, 30, 45, 60, 90, 130, 200, 300]
    s, omega, width = (
        axis.ravel()
        for axis in np.meshgrid(
            np.logspace(-3, 3, 25),
            1 / np.array(delays),
            [0.01, 0.03, 0.1, 0.2, 0.5, 0.8, 1, 1.5, 2, 3],
            indexing="ij",
        )
    )
    assert check_transforms(s, omega, width) > 8000


def test_transform_and_derivatives_keep_relative_accuracy_near_underflow():
    # At each delay and width, the Laplace variables where R falls from 1e-270 through 1e-308.
    points = []
    for delay in (20.0, 37.0, 45.0, 90.0, 300.0):
        for width in (0.01, 0.1, 0.5, 1.0, 3.0):
            for s in np.linspace(1, 40, 400):
                exact = exact_transforms(s, 1 / delay, width)[0]
                if 1e-310 < exact < 1e-270:
                    points.append((s, 1 / delay, width))
    assert len(points) > 100
    assert check_transforms(*np.array(points).T) > 200


@settings(max_examples=60, deadline=None)
@given(
    st.floats(-3, 3).map(lambda e: 10**e),
    st.floats(0.5, 300).map(lambda delay: 1 / delay),
    st.floats(0.01, 3),
)
def test_transform_and_derivatives_keep_relative_accuracy_anywhere(s, omega, width):
    check_transforms(np.array([s]), np.array([omega]), np.array([width]))


parameter_gradient = jax.jit(jax.grad(transform, (1, 2)))
mixed_gradient = jax.jit(jax.grad(jax.grad(transform), (1, 2)))


@pytest.mark.parametrize(
    "point",
    [(0.5, 1 / 20, 0.5), (1.2, 1.0, 0.8), (0.01, 0.2, 3.0), (30.0, 2.0, 1.0), (5.0, 1 / 60, 0.1)],
)
def test_derivatives_in_omega_and_width(point):
    for order, gradient in ((0, parameter_gradient(*point)), (1, mixed_gradient(*point))):
        exact = lambda *a, order=order: exact_transforms(*a)[order]
        with mp.workdps(20):
            in_omega, in_width = mp.diff(exact, point, (0, 1, 0)), mp.diff(exact, point, (0, 0, 1))
        np.testing.assert_allclose(gradient, [float(in_omega), float(in_width)], rtol=1e-11)


@pytest.mark.parametrize("omega", [1 / 6, 2.0, np.inf])
class TestAgainstQuadrature:
    amplitude, width = -1.5, 0.7

    def bump(self, omega):
        return GaussianBump(omega=omega, amplitude=self.amplitude, width=self.width)

    def kernel(self, omega):
        center = 1 / omega if np.isfinite(omega) else 0.0
        return lambda t: self.amplitude * np.exp(-((t - center) ** 2) / (2 * self.width**2))

    def quad(self, function, end):
        end = min(end, 20.0)
        return integrate.quad(
            function, 0, end, points=[min(2, end), min(6, end)], epsabs=0, epsrel=1e-12, limit=200
        )[0]

    def test_kernel(self, omega):
        t = np.linspace(-2, 12, 57)
        exact = np.where(t < 0, 0, self.kernel(omega)(t))
        np.testing.assert_allclose(self.bump(omega)(t), exact, rtol=1e-12)

    @pytest.mark.parametrize("horizon", [0.5, 5.0, 9.0, np.inf])
    def test_laplace_and_squared_norm(self, omega, horizon):
        rho, bump = self.kernel(omega), self.bump(omega)
        for s in (0.05, 1.0, 7.0):
            exact = self.quad(lambda t, s=s: np.exp(-s * t) * rho(t), horizon)
            np.testing.assert_allclose(bump.laplace(s, horizon), exact, rtol=1e-11)
        exact = self.quad(lambda t: rho(t) ** 2, horizon)
        np.testing.assert_allclose(bump.squared_norm(horizon), exact, rtol=1e-11)

    def test_responses(self, omega):
        rho, bump = self.kernel(omega), self.bump(omega)
        t = np.array([-1, 0, 0.7, 2.5, 6, 8, 15])
        steps = [self.quad(rho, end) if end > 0 else 0 for end in t]
        ramps = [self.quad(lambda u, e=e: (e - u) * rho(u), e) if e > 0 else 0 for e in t]
        np.testing.assert_allclose(bump.heaviside_response(t), steps, rtol=1e-11)
        np.testing.assert_allclose(bump.ramp_response(t), ramps, rtol=1e-11)

    def test_derivatives_of_the_responses(self, omega):
        bump = self.bump(omega)
        for t in (0.4, 3.0, 6.5, 11.0):
            np.testing.assert_allclose(
                jax.grad(bump.heaviside_response)(t), bump(t), rtol=1e-11, atol=1e-15
            )
            np.testing.assert_allclose(
                jax.grad(bump.ramp_response)(t), bump.heaviside_response(t), rtol=1e-11
            )


def test_responses_far_below_the_centre_keep_relative_accuracy():
    bump = GaussianBump(omega=1 / 40, width=1.5)
    for t in (5.0, 15.0, 30.0):
        with mp.workdps(25):
            height = mp.exp(-((t - 40) ** 2) / mp.mpf(2 * 1.5**2))
            rho = lambda u, h=height: mp.exp(-((u - 40) ** 2) / mp.mpf(2 * 1.5**2)) / h
            nodes = [0, t - 2, t - 0.5, t]
            step = height * mp.quad(rho, nodes)
            ramp = height * mp.quad(lambda u, t=t, rho=rho: (t - u) * rho(u), nodes)
        np.testing.assert_allclose(bump.heaviside_response(t), float(step), rtol=1e-12)
        np.testing.assert_allclose(bump.ramp_response(t), float(ramp), rtol=1e-12)


def test_gradient_in_the_horizon_is_the_integrand_there():
    bump = GaussianBump(omega=0.25, amplitude=2.0, width=1.2)
    for horizon in (1.0, 4.0, 7.0):
        in_laplace = jax.grad(bump.laplace, argnums=1)(0.6, horizon)
        np.testing.assert_allclose(in_laplace, jnp.exp(-0.6 * horizon) * bump(horizon), rtol=1e-12)
        in_norm = jax.grad(bump.squared_norm)(horizon)
        np.testing.assert_allclose(in_norm, bump(horizon) ** 2, rtol=1e-12)


def test_leaves_vary_under_vmap_jit_and_grad():
    omegas = jnp.array([0.1, 0.5, jnp.inf])
    batched = jax.jit(
        jax.vmap(lambda omega: GaussianBump(omega=omega, amplitude=2.0, width=0.5).laplace(0.7))
    )(omegas)
    single = [GaussianBump(omega=w, amplitude=2.0, width=0.5).laplace(0.7) for w in omegas]
    np.testing.assert_allclose(batched, single, rtol=1e-13)

    bump = GaussianBump(omega=0.5, amplitude=2.0, width=0.5)
    gradient = jax.grad(lambda bump: bump.laplace(0.7) + bump.squared_norm(3.0))(bump)
    assert all(np.isfinite(leaf) for leaf in jax.tree.leaves(gradient))
    assert jax.grad(lambda omega: GaussianBump(omega=omega).laplace(1.0))(np.inf) == 0


@settings(max_examples=40, deadline=None)
@given(st.floats(-5, 5), st.floats(0.05, 4), st.floats(0.1, 3), st.floats(0.02, 10))
def test_transform_is_linear_in_the_amplitude_and_decreasing(amplitude, omega, width, s):
    unit = GaussianBump(omega=omega, width=width)
    scaled = GaussianBump(omega=omega, amplitude=amplitude, width=width)
    np.testing.assert_allclose(scaled.laplace(s), amplitude * unit.laplace(s), rtol=1e-13)
    assert 0 < unit.laplace(1.1 * s) < unit.laplace(s)
    assert unit.laplace(s, 1 / omega) <= unit.laplace(s)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"omega": 0.0}, "`omega` must be positive, got 0.0"),
        ({"omega": -0.5}, "`omega` must be positive, got -0.5"),
        ({"omega": np.nan}, "`omega` must be finite, got nan"),
        ({"omega": np.array([0.1, 0.2])}, r"`omega` must be a scalar, got shape \(2,\)"),
        ({"omega": 1.0, "width": 0.0}, "`width` must be positive, got 0.0"),
        ({"omega": 1.0, "width": np.inf}, "`width` must be finite, got inf"),
        ({"omega": 1.0, "amplitude": np.nan}, "`amplitude` must be finite, got nan"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        GaussianBump(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("horizon", [-1.0, np.nan, -np.inf, np.array([1.0, np.inf])])
def test_bad_horizons_are_refused(horizon):
    with pytest.raises(ValueError, match="`horizon` must"):
        GaussianBump(omega=1.0).squared_norm(horizon)


def test_bad_laplace_variables_are_refused():
    with pytest.raises(ValueError, match="`s` must not be negative, got -1.0"):
        GaussianBump(omega=1.0).laplace(-1.0)
    with pytest.raises(TypeError, match="`s` must be real"):
        GaussianBump(omega=1.0).laplace(1j)


def test_transforms_with_twice_the_digits():
    # No factor is one whose products are exact.
    bump = GaussianBump(1 / 20, 0.7, 0.45)
    high = np.random.default_rng(1).uniform(0.2, 3, 40)
    low = high * 2.0**-54 * 0.2
    value, slope, known = bump.transform_pairs((jnp.asarray(high), jnp.asarray(low)))
    assert np.all(known)
    # Close to time 0 a part is cut off, of which these digits are not known.
    near = GaussianBump(1 / 2, 0.7, 0.5)
    assert not np.any(near.transform_pairs((jnp.asarray(high), jnp.asarray(low)))[2])
    with mp.workdps(60):
        height, width = mp.mpf(float(bump.amplitude)), mp.mpf(float(bump.width))
        scale, half = height * width * mp.sqrt(2 * mp.pi), width**2 / 2
        delay = mp.mpf(float(1 / bump.omega))
        for k, (a, b) in enumerate(zip(high, low, strict=True)):
            s = mp.mpf(float(a)) + mp.mpf(float(b))
            exact = scale * mp.exp(half * s**2 - delay * s)
            for pair, wanted in ((value, exact), (slope, exact * (2 * half * s - delay))):
                found = mp.mpf(float(pair[0][k])) + mp.mpf(float(pair[1][k]))
                assert abs(found - wanted) <= 1e-28 * abs(wanted)
