"""Kernels as an algebra: multiples, sums and delays of every kind, state spaces among others, and
closed forms of kernels of one's own."""

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.scipy.special import gammainc
from scipy import integrate, linalg

import memjax as mj
from memjax.targets import register_inner_product, state_space, StateSpace, terms

RNG = np.random.default_rng(3)
# Two decays and an oscillation.
W = linalg.block_diag([[-0.4, 2.5], [-2.5, -0.4]], [[-1.0, 0.7], [0.0, -3.0]])
U, C = RNG.normal(size=4), RNG.normal(size=4)
DENSE = mj.StateSpaceKernel(W, U, C)
T = np.array([-1.0, 0.0, 0.3, 1.7, 6.0])

KERNELS = {
    "exponentials": mj.ExponentialSum([1.0, -0.5], [1.0, 0.2]),
    "oscillation": mj.DampedOscillation([1.0, 0.0], [0.0, 1.0], [0.4, 1.2], [5.0, 0.7]),
    "state space": DENSE,
    "bump": mj.GaussianBump(1 / 4, 0.7, 0.5),
    "power law": mj.PowerLaw(0.5),
    "airy": mj.Airy(1.0, 3.0),
    "box": mj.Box(1.0, 3.0),
    "samples": mj.SampledKernel([0.2, 0.5, 1.5, 4.0], [0.0, 1.0, 0.3, -0.2]),
    "delay": mj.DelayedKernel(DENSE, 1.5),
    "window": mj.WindowedKernel(DENSE, 0.5, 4.0),
    "sum": DENSE + mj.GaussianBump(1 / 4, 0.7, 0.5) + mj.ExponentialSum(1.0, 0.3),
}


def rho(t):
    return C @ linalg.expm(W * t) @ U if t >= 0 else 0.0


def by_quadrature(integrand, end, cuts=()):
    points = sorted({0.0, *np.arange(1.0, 80.0, 2.0), *cuts, end})
    points = [point for point in points if point <= end]
    return sum(
        integrate.quad(integrand, a, b, epsabs=1e-14, epsrel=1e-13)[0]
        for a, b in zip(points[:-1], points[1:], strict=True)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
def test_twice_a_kernel_less_itself_is_the_kernel(name):
    kernel = KERNELS[name]
    difference = 2 * kernel - kernel
    for found, expected in (
        (difference(T), kernel(T)),
        (difference.laplace(0.7), kernel.laplace(0.7)),
        (difference.laplace(0.7, 2.2), kernel.laplace(0.7, 2.2)),
        (difference.heaviside_response(T), kernel.heaviside_response(T)),
        (difference.ramp_response(T), kernel.ramp_response(T)),
        (difference.squared_norm(), kernel.squared_norm()),
        (difference.squared_norm(2.2), kernel.squared_norm(2.2)),
        (mj.inner_product(difference, kernel), kernel.squared_norm()),
        (sum(factor * term(1.2) for factor, term in terms(difference)), kernel(1.2)),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-13)
    scale = float(kernel.squared_norm())
    np.testing.assert_allclose((kernel - kernel).squared_norm(), 0, atol=1e-13 * scale)


@pytest.mark.slow
def test_integrals_of_a_state_space():
    with mpmath.workdps(40):
        w, u, c = mpmath.matrix(W.tolist()), mpmath.matrix(list(U)), mpmath.matrix(list(C)).T
        unit = mpmath.eye(4)

        def integral(matrix, t):
            """Of `expm(matrix s)` up to t."""
            return mpmath.inverse(matrix) * (mpmath.expm(matrix * t) - unit)

        for t in (1e-3, 0.7, 9.0):
            heaviside = integral(w, t)
            ramp = mpmath.inverse(w) * (heaviside - t * unit)
            transform = integral(w - mpmath.mpf("0.7") * unit, t)
            for matrix, found in (
                (heaviside, DENSE.heaviside_response(t)),
                (ramp, DENSE.ramp_response(t)),
                (transform, DENSE.laplace(0.7, t)),
            ):
                np.testing.assert_allclose(found, float((c * matrix * u)[0]), rtol=1e-12)
    for horizon in (1.3, np.inf):
        exact = by_quadrature(lambda t: rho(t) ** 2, min(horizon, 60.0))
        np.testing.assert_allclose(DENSE.squared_norm(horizon), exact, rtol=1e-12)
    # Far beyond what exponentials are formed for.
    whole = DENSE.laplace(0.0)
    late = np.array([1e3, 1e20, 1e30])
    np.testing.assert_allclose(DENSE.heaviside_response(late), 3 * [whole], rtol=1e-11)
    np.testing.assert_allclose(DENSE.ramp_response(late)[1:] / late[1:], 2 * [whole], rtol=1e-11)
    np.testing.assert_array_equal(DENSE(late), 0)
    assert DENSE.laplace(np.ones((2, 1)), np.ones(3)).shape == (2, 3)
    table = mj.StateSpaceKernel(W, RNG.normal(size=(4, 2)), RNG.normal(size=(3, 4)))
    entry = table.entries()[3]
    for method, arguments in (("laplace", (0.7, 1.2)), ("ramp_response", (1.2,))):
        found = getattr(table, method)(*arguments)
        assert found.shape == (3, 2)
        np.testing.assert_allclose(found[1, 1], getattr(entry, method)(*arguments), rtol=1e-12)
    norms = [entry.squared_norm(1.2) for entry in table.entries()]
    np.testing.assert_allclose(table.squared_norm(1.2), np.sum(norms), rtol=1e-12)


@pytest.mark.slow
def test_delays_and_windows_of_a_state_space():
    delay, window = KERNELS["delay"], KERNELS["window"]
    for kernel, function, cuts in (
        (delay, lambda t: rho(t - 1.5), (1.5,)),
        (window, lambda t: rho(t) * (0.5 < t < 4), (0.5, 4.0)),
    ):
        found = [kernel.squared_norm(), kernel.laplace(0.7), kernel.laplace(0.7, 2.2)]
        found += [kernel.heaviside_response(2.2), kernel.ramp_response(2.2)]
        exact = [
            by_quadrature(lambda t: function(t) ** 2, 60.0, cuts),
            by_quadrature(lambda t: np.exp(-0.7 * t) * function(t), 60.0, cuts),
            by_quadrature(lambda t: np.exp(-0.7 * t) * function(t), 2.2, cuts),
            by_quadrature(function, 2.2, cuts),
            by_quadrature(lambda t: (2.2 - t) * function(t), 2.2, cuts),
        ]
        np.testing.assert_allclose(found, exact, rtol=1e-11)
        ts = np.linspace(0, 5, 26)
        xs = np.interp(ts, [0.0, 2.0, 5.0], [1.0, -0.5, 2.0])
        path = lambda s: np.interp(s, [0.0, 2.0, 5.0], [1.0, -0.5, 2.0])
        exact = by_quadrature(lambda s: function(s) * path(5 - s), 5.0, (3.0, *cuts))
        np.testing.assert_allclose(kernel.response(ts, xs)[-1], exact, rtol=1e-10)


@pytest.mark.thorough
def test_sums_of_a_state_space_with_others():
    bump = KERNELS["bump"]
    kernel = DENSE + bump
    assert isinstance(kernel, mj.KernelSum) and isinstance(bump + DENSE, mj.KernelSum)
    function = lambda t: rho(t) + 0.7 * np.exp(-((t - 4) ** 2) / 0.5)
    exact = by_quadrature(lambda t: function(t) ** 2, 60.0)
    np.testing.assert_allclose(kernel.squared_norm(), exact, rtol=1e-11)
    np.testing.assert_allclose((bump - -DENSE).squared_norm(), exact, rtol=1e-11)
    # As a target, and in the norm of functionals.
    model = mj.DiagonalLinearRNN([0.8, 0.1], [1.2, 0.8])
    own = lambda t: 0.8 * np.exp(-1.2 * t) + 0.1 * np.exp(-0.8 * t)
    exact = by_quadrature(lambda t: (function(t) - own(t)) ** 2, 60.0)
    np.testing.assert_allclose(mj.WhiteNoiseLoss(kernel)(model), exact, rtol=1e-11)
    dense = mj.LinearRNN(W, U, C)
    np.testing.assert_allclose(
        mj.functional_distance(kernel, dense), bump.heaviside_response(1e3), rtol=1e-10
    )


def test_state_spaces_are_values():
    first = state_space(KERNELS["oscillation"])
    second = state_space(KERNELS["exponentials"])
    assert first is not None and second is not None
    t = jnp.array([0.0, 0.4, 3.0])
    scalar = lambda system: system(t)[:, 0, 0]
    np.testing.assert_allclose(scalar(first + 2.0 * second), scalar(first) + 2 * scalar(second))
    np.testing.assert_allclose(scalar(first.transposed), scalar(first), rtol=1e-13)
    # The transform of a series is the product.
    series = first.after(second).laplace(jnp.array(0.9), None)
    exact = KERNELS["oscillation"].laplace(0.9) * KERNELS["exponentials"].laplace(0.9)
    np.testing.assert_allclose(series[0, 0], exact, rtol=1e-13)
    steps = KERNELS["oscillation"].heaviside_response(t)
    np.testing.assert_allclose(scalar(first.integral), steps, rtol=1e-13, atol=1e-16)


# --- Kernels of one's own ---


class Doubled(mj.AbstractKernel):
    """Written for the last release: public methods, some of which ask `super()`."""

    rate: jax.Array

    def __call__(self, t):
        return jnp.where(t < 0, 0, 2 * jnp.exp(-self.rate * jnp.maximum(t, 0)))

    def laplace(self, s, horizon=jnp.inf):
        return 2 * (1 - jnp.exp(-(self.rate + s) * horizon)) / (self.rate + s)

    def squared_norm(self, horizon=jnp.inf):
        return super().squared_norm(horizon)

    def heaviside_response(self, t):
        return super().heaviside_response(t)


class Wider(mj.GaussianBump):
    def laplace(self, s, horizon=jnp.inf):
        return 3 * super().laplace(s, horizon)


def test_overrides_of_public_methods_may_ask_the_class_above():
    kernel, exact = Doubled(jnp.array(0.7)), mj.ExponentialSum([2.0], [0.7])
    for found, expected in (
        (kernel.squared_norm(), exact.squared_norm()),
        (kernel.squared_norm(1.3), exact.squared_norm(1.3)),
        (kernel.heaviside_response(T), exact.heaviside_response(T)),
        ((kernel + exact).squared_norm(), 4 * exact.squared_norm()),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-12)
    bump = mj.GaussianBump(1 / 4)
    np.testing.assert_allclose(Wider(1 / 4).laplace(0.3), 3 * bump.laplace(0.3), rtol=1e-14)
    total = Wider(1 / 4) + bump
    np.testing.assert_allclose(total.laplace(0.3), 4 * bump.laplace(0.3), rtol=1e-14)


class Erlang(mj.AbstractKernel):
    """`t exp(-rate t)`: all that a kernel has to say, and its state space."""

    rate: jax.Array

    def _value(self, t):
        return t * jnp.exp(-self.rate * t)

    def _laplace(self, s, horizon):
        decay = self.rate + s
        return (1 if horizon is None else gammainc(2.0, decay * horizon)) / decay**2


@state_space.register(Erlang)
def _(kernel):
    chain = jnp.eye(2, k=-1) - kernel.rate * jnp.eye(2)
    return StateSpace(chain, jnp.eye(2)[:, :1], jnp.eye(2)[1:])


class Lone(mj.AbstractKernel):
    """The same without a state space, and a count of how often its closed form is used."""

    rate: jax.Array
    used: list

    _value = Erlang._value
    _laplace = Erlang._laplace


@register_inner_product(Lone, mj.Box)
def _(kernel, box, horizon):
    kernel.used.append(horizon)
    stop = box.stop if horizon is None else jnp.clip(horizon, box.start, box.stop)
    return kernel.heaviside_response(stop) - kernel.heaviside_response(box.start)


def test_what_follows_from_value_and_transform():
    function = lambda t: t * np.exp(-0.7 * t)
    for kernel in (Erlang(jnp.array(0.7)), Lone(jnp.array(0.7), [])):
        assert float(kernel(-1.0)) == 0
        for horizon in (2.5, np.inf):
            exact = by_quadrature(lambda t: function(t) ** 2, min(horizon, 60.0))
            np.testing.assert_allclose(kernel.squared_norm(horizon), exact, rtol=1e-10)
        for t in (1e-3, 2.5):
            exact = by_quadrature(function, t)
            np.testing.assert_allclose(kernel.heaviside_response(t), exact, rtol=1e-9)
            exact = by_quadrature(lambda s, t=t: (t - s) * function(s), t)
            np.testing.assert_allclose(kernel.ramp_response(t), exact, rtol=1e-9)
        assert kernel.ramp_response(-1.0) == 0
        with pytest.raises(ValueError, match="`s` must not be negative"):
            kernel.laplace(-1.0)


def test_a_registered_state_space_gives_closed_forms():
    kernel, rate = Erlang(jnp.array(0.7)), 0.7
    # tr C1 X C2 in closed form: int t exp(-(0.7 + 0.3) t) = 1
    slow = mj.StateSpaceKernel([[-0.3]], [1.0], [1.0])
    np.testing.assert_allclose(mj.inner_product(kernel, slow), 1.0, rtol=1e-13)
    assert isinstance(kernel + slow, mj.StateSpaceKernel)
    assert isinstance(kernel + mj.ExponentialSum(1.0, 0.3), mj.KernelSum)
    total = 2.0 * kernel - mj.Box(1.0, 2.0) + slow
    exact = 2 / (0.5 + rate) ** 2 - (np.exp(-0.5) - np.exp(-1)) / 0.5 + 1 / 0.8
    np.testing.assert_allclose(total.laplace(0.5), exact, rtol=1e-13)
    # Coloured noise over a finite horizon needs finite dimension.
    chain = mj.LinearRNN([[-rate, 0.0], [1.0, -rate]], [1.0, 0.0], [0.0, 1.0])
    loss = mj.ColouredNoiseLoss(kernel, 0.8, horizon=3.0)
    np.testing.assert_allclose(loss(chain), 0, atol=1e-15)
    with pytest.raises(ValueError, match="target without a state space"):
        mj.ColouredNoiseLoss(Lone(jnp.array(0.7), []), 0.8, horizon=3.0)


def test_a_registered_product_is_used_in_sums_and_either_order():
    kernel, box = Lone(jnp.array(0.7), []), mj.Box(1.0, 3.0)
    integral = lambda t: (1 - np.exp(-0.7 * t) * (1 + 0.7 * t)) / 0.49
    exact = integral(3.0) - integral(1.0)
    np.testing.assert_allclose(mj.inner_product(kernel, box), exact, rtol=1e-12)
    np.testing.assert_allclose(mj.inner_product(box, kernel), exact, rtol=1e-12)
    total = mj.ExponentialSum(1.0, 1.0) + 2.0 * box
    own = by_quadrature(lambda t: t * np.exp(-1.7 * t), 60.0)
    found = mj.inner_product(3.0 * kernel, total)
    np.testing.assert_allclose(found, 3 * own + 6 * exact, rtol=1e-12)
    finite = mj.inner_product(box, kernel, np.array([0.5, 2.0]))
    np.testing.assert_allclose(finite, [0, integral(2.0) - integral(1.0)], rtol=1e-12)
    assert [horizon is None for horizon in kernel.used] == [True, True, True, False]


def test_public_methods_may_be_overridden_instead():
    class Plain(mj.AbstractKernel):
        def __call__(self, t):
            return jnp.where(jnp.asarray(t) < 0, 0, jnp.exp(-jnp.asarray(t)))

        def laplace(self, s, horizon=jnp.inf):
            return (1 - jnp.exp(-(1 + s) * jnp.asarray(horizon))) / (1 + s)

    kernel, same = Plain(), mj.ExponentialSum(1.0, 1.0)
    for first, second in ((2.0 * kernel, 2.0 * same), (mj.DelayedKernel(kernel, 1.0),) * 2):
        np.testing.assert_allclose(first.laplace(0.5, 2.0), second.laplace(0.5, 2.0), rtol=1e-13)
    np.testing.assert_allclose((kernel + same).squared_norm(), 2.0, rtol=1e-12)
    np.testing.assert_allclose(mj.DelayedKernel(kernel, 1.0).laplace(0.5), np.exp(-0.5) / 1.5)
    with pytest.raises(TypeError, match="abstract"):

        class Half(mj.AbstractKernel):
            def _value(self, t):
                return t

        Half()
