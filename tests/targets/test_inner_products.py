import jax
import jax.numpy as jnp
import jax.scipy.linalg
import mpmath
import numpy as np
import pytest
from scipy import integrate, linalg

import memjax as mj
from memjax.numerics._lyapunov import decay_time, exponential_action, gramian
from memjax.targets._inner import squared_distance

RNG = np.random.default_rng(0)


def with_rates(size, slowest, fastest, symmetric=False):
    rates = np.diag(-np.geomspace(slowest, fastest, size))
    basis = RNG.normal(size=(size, size)) + 2 * np.eye(size)
    if symmetric:
        basis = np.linalg.qr(basis)[0]
    return basis @ rates @ np.linalg.inv(basis)


def jordan(size, rate, perturbation=0.0):
    block = np.diag(np.ones(size - 1), 1) - rate * np.eye(size)
    return block + perturbation * RNG.normal(size=(size, size))


PAIRS = {
    "random": (with_rates(4, 0.5, 3), with_rates(4, 0.3, 2), 1e-14),
    "defective": (jordan(4, 1.0), jordan(4, 0.8), 1e-14),
    "nearly defective": (jordan(4, 1.0, 1e-9), jordan(4, 0.8, 1e-9), 1e-13),
    # Conditioned by the spread of the rates.
    "stiff": (with_rates(4, 1e-3, 1e3, True), with_rates(4, 1e-3, 1e3, True), 1e-10),
    "stiff diagonal": (
        np.diag([-1e-6, -1.0, -1e3, -1e6]),
        np.diag([-1e-6, -2.0, -1e4, -3.0]),
        1e-14,
    ),
}


def exact_sylvester(a, b, c):
    size = len(a)
    with mpmath.workdps(50):
        matrix = mpmath.matrix(np.kron(a, np.eye(size)).tolist())
        matrix += mpmath.matrix(np.kron(np.eye(size), b.T).tolist())
        solution = mpmath.lu_solve(matrix, mpmath.matrix((-c).ravel().tolist()))
        return np.array([float(x) for x in solution]).reshape(size, size)


@pytest.mark.parametrize("name", PAIRS)
def test_gramian_over_the_half_line(name):
    a, b, rtol = PAIRS[name]
    c = RNG.normal(size=(4, 4))
    exact = exact_sylvester(a, b, c)
    found = gramian(a, b, c)
    scale = np.max(np.abs(exact))
    np.testing.assert_allclose(found, exact, rtol=0, atol=rtol * scale)
    scipy = np.max(np.abs(linalg.solve_sylvester(a, b, -c) - exact))
    # What LAPACK rounds differs from version to version.
    assert np.max(np.abs(found - exact)) <= 1.1 * scipy + 1e-15 * scale
    # Stiffness is no reason to lose digits of small entries, where the basis is that of modes.
    if name == "stiff diagonal":
        np.testing.assert_allclose(found, exact, rtol=1e-14)


@pytest.mark.thorough
@pytest.mark.parametrize("horizon", [1e-6, 0.3, 4.0, 1e3])
@pytest.mark.parametrize("name", PAIRS)
def test_gramian_up_to_a_horizon(name, horizon):
    a, b, rtol = PAIRS[name]
    c = RNG.normal(size=(4, 4))
    # By Van Loan's formula, backwards in time only as far as 40 digits carry.
    fastest = np.max(np.abs(np.linalg.eigvals(a)))
    if fastest * horizon > 1e4:
        pytest.skip("too fast for the reference")
    with mpmath.workdps(40 + int(fastest * horizon)):
        block = np.block([[-a, c], [np.zeros((4, 4)), b]])
        full = mpmath.expm(mpmath.matrix(block.tolist()) * horizon, method="taylor")
        exact = mpmath.inverse(full[:4, :4]) * full[:4, 4:]
        exact = np.array(exact.tolist(), dtype=float)
    scale = np.max(np.abs(exact))
    np.testing.assert_allclose(gramian(a, b, c, horizon), exact, rtol=0, atol=rtol * scale)


def test_gramian_does_not_exist_for_unstable_matrices():
    one = np.ones((2, 1))
    assert np.all(np.isnan(gramian(np.diag([-1.0, 0.1]), -np.eye(1), one)))
    assert np.all(np.isnan(gramian(-np.eye(1), np.diag([-1.0, 0.1]), one.T)))
    for slowest in (0.1, 0.0):
        assert decay_time(np.diag([-1.0, slowest])) == np.inf
    assert 40 < decay_time(np.diag([-1.0, -30.0])) < 80
    # Finite horizons do not mind.
    growing = gramian(np.diag([0.0, 0.1]), -np.eye(1), one, 2.0)
    exact = [[1 - np.exp(-2)], [(1 - np.exp(-1.8)) / 0.9]]
    np.testing.assert_allclose(growing, exact, rtol=1e-14)


@pytest.mark.slow
def test_derivatives_of_matrix_functions():
    a, c = jnp.asarray(with_rates(2, 0.5, 3)), jnp.asarray(RNG.normal(size=(2, 2)))
    times, eye = jnp.asarray([0.0, 0.3, 2.0]), jnp.eye(2)

    def kronecker(a, c, h):
        full = jnp.kron(a, eye) + jnp.kron(eye, a)
        moved = jax.scipy.linalg.expm(a * h) @ c @ jax.scipy.linalg.expm(a * h).T
        solve = lambda c: jnp.linalg.solve(full, -c.ravel())
        return jnp.sum(solve(c) ** 2) + jnp.sum(solve(c - moved) ** 3)

    def doubling(a, c, h):
        return jnp.sum(gramian(a, a.T, c) ** 2) + jnp.sum(gramian(a, a.T, c, h) ** 3)

    # Forward over reverse mode, and reverse over reverse.
    for derivative in (jax.jacfwd, jax.jacrev):
        hessians = [
            jax.jit(derivative(jax.grad(f, argnums=(0, 1, 2)), argnums=(0, 1, 2)))(a, c, 1.3)
            for f in (doubling, kronecker)
        ]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, 1e-9, 1e-9), *hessians)

    def actions(a, t):
        return jnp.sum(jnp.sin(exponential_action(a, eye, t)))

    def exponentials(a, t):
        return jnp.sum(jnp.sin(jax.vmap(lambda t: jax.scipy.linalg.expm(a * t))(t)))

    for x, y in zip(
        jax.jit(jax.grad(actions, argnums=(0, 1)))(a, times),
        jax.jit(jax.grad(exponentials, argnums=(0, 1)))(a, times),
        strict=True,
    ):
        np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-12)
    # Mapped, each matrix takes the number of doublings that it needs.
    found = jax.vmap(lambda a: gramian(a, a.T, c))(jnp.stack([a, 20 * a]))
    np.testing.assert_allclose(found[1], gramian(20 * a, 20 * a.T, c), rtol=1e-13)


@pytest.mark.parametrize("name", ["random", "defective", "stiff"])
def test_exponential_action(name):
    a, _, _ = PAIRS[name]
    u = RNG.normal(size=(4, 2))
    times = np.array([7.0, 0.0, 1e-9, 0.3, 1e3, 2.0])
    found = exponential_action(a, u, times)
    for t, value in zip(times, found, strict=True):
        with mpmath.workdps(50):
            exact = mpmath.expm(mpmath.matrix(a) * mpmath.mpf(t)) * mpmath.matrix(u)
        exact = np.array(exact.tolist(), float)
        # As well as the problem is conditioned.
        atol = np.finfo(float).eps * (10 + np.linalg.norm(a * t))
        np.testing.assert_allclose(value, exact, rtol=0, atol=atol)


W, U, C = with_rates(3, 0.3, 4), RNG.normal(size=3), RNG.normal(size=3)
W = W + 0.8 * np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 0]])  # oscillates, too
KNOTS = np.array([0.2, 0.5, 1.5, 2.0, 4.0, 7.0])
VALUES = np.array([0.0, 1.0, 0.3, 0.4, -0.2, 0.1])


class Gamma(mj.AbstractKernel):
    """A kernel of one's own, which says nothing of panels."""

    def __call__(self, t):
        t = jnp.asarray(t)
        return jnp.where(t < 0, 0, t * jnp.exp(-2 * t))

    def laplace(self, s, horizon=jnp.inf):
        raise NotImplementedError

    def squared_norm(self, horizon=jnp.inf):
        raise NotImplementedError

    def heaviside_response(self, t):
        raise NotImplementedError

    def ramp_response(self, t):
        raise NotImplementedError


def oscillations(t):
    return np.exp(-0.4 * t) * np.cos(5 * t) + np.exp(-1.2 * t) * np.sin(0.7 * t)


KERNELS = {
    "state space": (mj.StateSpaceKernel(W, U, C), lambda t: C @ linalg.expm(W * t) @ U),
    "oscillation": (
        mj.DampedOscillation([1.0, 0.0], [0.0, 1.0], [0.4, 1.2], [5.0, 0.7]),
        oscillations,
    ),
    "exponentials": (mj.ExponentialSum(1.5, 0.7), lambda t: 1.5 * np.exp(-0.7 * t)),
    "bump": (
        2.0 * mj.GaussianBump(1 / 6, 0.7, 0.5),
        lambda t: 1.4 * np.exp(-((t - 6) ** 2) / 0.5),
    ),
    "samples": (
        mj.SampledKernel(KNOTS, VALUES),
        lambda t: np.interp(t, KNOTS, VALUES, left=0, right=0),
    ),
    "box": (mj.Box(1.0, 3.0), lambda t: float(1 < t < 3)),
    "power law": (mj.PowerLaw(0.5), lambda t: (1 + t) ** -1.5),
    "own": (Gamma(), lambda t: t * np.exp(-2 * t)),
}
KERNELS["sum"] = (
    KERNELS["oscillation"][0] + KERNELS["bump"][0],
    lambda t: KERNELS["oscillation"][1](t) + KERNELS["bump"][1](t),
)
CASES = [
    *(("state space", other) for other in ("state space", "sum", "samples", "power law")),
    ("oscillation", "bump"),
    ("oscillation", "power law"),
    ("bump", "own"),
    ("power law", "own"),
    ("sum", "samples"),
]


def by_quadrature(integrand, horizon):
    points = np.array([0.2, 0.5, 1, 1.5, 2, 3, 4, 5, 6, 7, 9, 14, 22, 40, 90, 1e3, 1e4, 1e6])
    points = [0.0, *points[points < horizon], *([horizon] if horizon < 1e6 else [])]
    return sum(
        integrate.quad(integrand, low, high, epsabs=1e-13, epsrel=1e-12, limit=200)[0]
        for low, high in zip(points[:-1], points[1:], strict=True)
    )


@pytest.mark.thorough
@pytest.mark.parametrize(("first", "second"), CASES)
def test_inner_product_is_the_integral(first, second):
    (a, f), (b, g) = KERNELS[first], KERNELS[second]

    @jax.jit
    def products(horizons):
        half_line = mj.inner_product(a, b), mj.inner_product(b, a)
        return jnp.stack([*half_line, *mj.inner_product(a, b, horizons)])

    exact = [by_quadrature(lambda t: f(t) * g(t), horizon) for horizon in (np.inf, 2.5, 1.0)]
    found = products(jnp.array([2.5, 1.0]))
    np.testing.assert_allclose(found, [exact[0], *exact], rtol=1e-10)


def test_squared_norm_of_a_power_law_with_hardly_a_norm():
    # 1 / (1 + 2 omega), although half of the tail lies beyond 1e10.
    slow = mj.PowerLaw(0.1, 10.0)
    other = mj.PowerLaw(0.2, 10.0)
    np.testing.assert_allclose(mj.inner_product(slow, other), 10 / 1.3, rtol=1e-10)


@pytest.mark.thorough
@pytest.mark.parametrize("second", ["exponentials", "sum"])
def test_squared_distance(second):
    (a, f), (b, g) = KERNELS["state space"], KERNELS[second]
    exact = by_quadrature(lambda t: (f(t) - g(t)) ** 2, np.inf)
    np.testing.assert_allclose(squared_distance(a, b), exact, rtol=1e-10)


@pytest.mark.slow
def test_several_inputs_and_outputs():
    inputs, readout = RNG.normal(size=(3, 2)), RNG.normal(size=(2, 3))
    dense = mj.StateSpaceKernel(W, inputs, readout)
    names = [["exponentials", "oscillation"], ["sum", "exponentials"]]
    finite = [["exponentials", "oscillation"], ["oscillation", "exponentials"]]
    for rows in (names, finite):
        entries = mj.VectorKernel(tuple(tuple(KERNELS[name][0] for name in row) for row in rows))

        def values(t, rows=rows):
            return np.array([[KERNELS[name][1](t) for name in row] for row in rows])

        flow = lambda t: readout @ linalg.expm(W * t) @ inputs
        exact = by_quadrature(lambda t: np.sum(flow(t) * values(t)), np.inf)
        np.testing.assert_allclose(mj.inner_product(dense, entries), exact, rtol=1e-10)
        exact = by_quadrature(lambda t: np.sum((flow(t) - values(t)) ** 2), 2.5)
        np.testing.assert_allclose(squared_distance(dense, entries, 2.5), exact, rtol=1e-10)
        for kernel in (dense, entries):
            np.testing.assert_allclose(squared_distance(kernel, kernel), 0, atol=1e-13)


def test_derivatives_of_a_quadrature():
    @jax.jit
    def product(recurrent, stop, width):
        dense = mj.StateSpaceKernel(recurrent, U, C)
        return mj.inner_product(dense, mj.Box(1.0, stop) + mj.GaussianBump(1 / 6, 0.7, width))

    at = (jnp.asarray(W), jnp.asarray(3.0), jnp.asarray(0.5))
    slopes = jax.jit(jax.grad(product, argnums=(0, 1, 2)))(*at)
    # The end of the box moves an edge of the panels.
    np.testing.assert_allclose(slopes[1], C @ linalg.expm(W * 3.0) @ U, rtol=1e-10)
    step = 1e-5 * np.eye(3)[[1]].T * np.eye(3)[2]
    by_weight = (product(W + step, *at[1:]) - product(W - step, *at[1:])) / 2e-5
    np.testing.assert_allclose(slopes[0][1, 2], by_weight, rtol=1e-7)
    by_width = (product(W, 3.0, 0.5 + 1e-5) - product(W, 3.0, 0.5 - 1e-5)) / 2e-5
    np.testing.assert_allclose(slopes[2], by_width, rtol=1e-7)


def test_what_has_no_inner_product_says_why():
    bump = KERNELS["bump"][0]
    with pytest.raises(TypeError, match="`second` must be a kernel"):
        mj.inner_product(bump, 1.0)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="`second` must be square integrable.*got Sine"):
        mj.inner_product(bump, mj.Sine(2.0))
    exact = by_quadrature(lambda t: 1.5 * np.exp(-0.7 * t) * np.sin(2 * t), 2.5)
    found = mj.inner_product(KERNELS["exponentials"][0], mj.Sine(2.0), 2.5)
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    with pytest.raises(ValueError, match=r"same inputs and outputs.*input of shape \(2,\)"):
        mj.inner_product(bump, mj.VectorKernel((bump, bump)))

    class Comb(Gamma):
        def __call__(self, t):
            return jnp.exp(-jnp.asarray(t)) * jnp.sign(jnp.sin(100 * jnp.asarray(t)))

    with pytest.raises(ValueError, match="does not resolve, got Comb and GaussianBump"):
        mj.inner_product(Comb(), mj.GaussianBump(1 / 6))
