import dataclasses
import pathlib
import sys

import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import memjax as mj
from memjax.flows import FlowLanes
from memjax.losses import SpectralLanes
from memjax.losses._mode_sums import spread_out

sys.path.append(str(pathlib.Path(__file__).parents[1] / "reference"))
import multiprecision as mp  # pyright: ignore[reportMissingImports]

WIDTH, LANES = 3, 8
SIGMA, HEIGHT = 0.45, 0.7
TARGET_AMPLITUDES, TARGET_RATES = np.array([1.0, -0.4]), np.array([1.0, 0.3])
REPARAMETRISATIONS = {"direct": mj.Direct(), "exp": mj.Exp(1.5)}


def lanes_of(amplitudes, rates, omega, reparametrisation, target=TARGET_AMPLITUDES):
    """The lanes, and the general ones for comparison."""
    return built(amplitudes, rates, omega, reparametrisation, jnp.asarray(target))


@eqx.filter_jit
def built(amplitudes, rates, omega, reparametrisation, target_amplitudes):
    def one(a, w, omega):
        target = mj.ExponentialSum(target_amplitudes, TARGET_RATES)
        loss = mj.WhiteNoiseLoss(target + mj.GaussianBump(omega, HEIGHT, SIGMA))
        model = mj.DiagonalLinearRNN(a, w, reparametrisation)
        flow = mj.GradientFlow(loss).displaced(model)
        return SpectralLanes.build(loss, model), FlowLanes(flow)

    return eqx.filter_vmap(one, in_axes=-1, out_axes=eqx.if_array(-1))(amplitudes, rates, omega)


@eqx.filter_jit
def descent(lanes, y, low=None):
    return lanes.descent(y, low)


@eqx.filter_jit
def linearise(lanes, y, low=None):
    return lanes.linearise(y, low)


def exactly(lanes, omega, y, low, lane):
    """Loss, gradient and Hessian in the weights at `y + low`, with 70 digits."""
    mp.set_digits(70)
    real = lambda values: [mp.real(float(x)) for x in values]
    gain = getattr(lanes.reparametrisation, "gain", None)
    a0, w0 = real(lanes.amplitudes[:, lane]), real(lanes.rates[:, lane])
    moves = [mp.real(p) + mp.real(q) for p, q in zip(real(y), real(low), strict=True)]
    width = len(a0)
    a = [x + dx for x, dx in zip(a0, moves[:width], strict=True)]
    if gain is None:
        w = [x + dx for x, dx in zip(w0, moves[width:], strict=True)]
        slopes, bends = [mp.real(1)] * width, [mp.real(0)] * width
    else:
        g = mp.real(float(gain[lane]))
        w = [x * mp._exp(g * dx) for x, dx in zip(w0, moves[width:], strict=True)]
        slopes, bends = [g * x for x in w], [g * g * x for x in w]
    problem = mp.Problem(
        amplitudes=real(lanes.target_amplitudes[:, lane]),
        rates=real(lanes.target_rates[:, lane]),
        inverse_omega=mp.real(float(1 / omega[lane])),
        sigma=mp.real(SIGMA),
        c0=mp.real(HEIGHT),
    )
    plain, curvatures = problem.derivatives(a + w)
    chain = [mp.real(1)] * width + slopes
    gradient = [x * c for x, c in zip(plain, chain, strict=True)]
    hessian = [
        [x * p * q for x, q in zip(row, chain, strict=True)]
        for row, p in zip(curvatures, chain, strict=True)
    ]
    for i in range(width):
        hessian[width + i][width + i] += bends[i] * plain[width + i]
    return problem.loss(a + w), gradient, np.array(hessian).astype(float)


def errors(found, exact):
    return np.array([abs(float(mp.real(float(x)) - e)) for x, e in zip(found, exact, strict=True)])


def states(kind, seed, lanes=LANES):
    """Starts, delays and displacements of one kind."""
    rng = np.random.default_rng(seed)
    a, w = rng.normal(size=(WIDTH, lanes)), rng.uniform(0.2, 3.0, (WIDTH, lanes))
    delay = rng.uniform(2.0, 30.0, lanes)
    y = rng.normal(size=(2 * WIDTH, lanes)) * 10.0 ** rng.uniform(-8, -1.5, lanes)
    if kind != "anywhere":
        # On the plateau, with a mode beside it that is silent.
        a[:2], w[:2], a[2] = TARGET_AMPLITUDES[:, None], TARGET_RATES[:, None], 0.0
        delay = rng.uniform(20.0, 60.0, lanes)
        y = rng.normal(size=(2 * WIDTH, lanes)) * 1e-30
    if kind == "coalescing":
        w[2] = w[0] + 10.0 ** rng.uniform(-12, -3, lanes) * rng.integers(0, 2, lanes)
    return (jnp.asarray(x) for x in (a, w, 1 / delay, y))


@pytest.mark.thorough
@pytest.mark.parametrize("reparametrisation", REPARAMETRISATIONS)
@pytest.mark.parametrize("kind", ["anywhere", "plateau", "coalescing"])
def test_float64_agrees_with_multiprecision(kind, reparametrisation):
    a, w, omega, y = states(kind, 1)
    lanes, _ = lanes_of(a, w, omega, REPARAMETRISATIONS[reparametrisation])
    here = linearise(lanes, y)
    velocity = descent(lanes, jnp.stack([y, 2 * y], axis=1))
    doubled = linearise(lanes, 2 * y).gradient
    np.testing.assert_allclose(velocity[:, 0], -here.gradient, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(velocity[:, 1], -doubled, rtol=1e-12, atol=1e-15)
    for lane in range(LANES):
        loss, gradient, hessian = exactly(lanes, omega, y[:, lane], 0 * y[:, lane], lane)
        assert float(here.loss[lane]) == pytest.approx(float(loss), rel=1e-12)
        size = np.abs(hessian).max()
        np.testing.assert_allclose(
            here.curvature.dense()[..., lane], hessian, rtol=1e-12, atol=1e-14 * size
        )
        error = errors(here.gradient[:, lane], gradient)
        assert np.all(error <= 10 * here.noise[:, lane])
        # On a plateau there is nothing to cancel, unless rates of the start are only close.
        if kind == "plateau":
            sizes = np.abs(np.array(gradient, float))
            assert np.all(error <= 1e-12 * sizes) and np.all(here.noise[:, lane] <= 1e-12 * sizes)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["anywhere", "plateau", "coalescing"])
def test_agrees_with_the_general_path(kind):
    a, w, omega, y = states(kind, 2)
    special, general = lanes_of(a, w, omega, REPARAMETRISATIONS["exp"])
    here, there = linearise(special, y), general_linearise(general, y)
    np.testing.assert_allclose(here.loss, there.loss, rtol=1e-12)
    np.testing.assert_allclose(
        here.curvature.dense(), there.curvature.dense(), rtol=1e-11, atol=1e-13
    )
    room = 10 * (here.noise + there.noise)
    assert np.all(np.abs(here.gradient - there.gradient) <= room)
    assert np.all(here.noise <= 100 * there.noise) and np.all(there.noise <= 100 * here.noise)
    compensated = descent(special, y[:, None], 0 * y[:, None])[:, 0]
    assert np.all(np.abs(compensated + there.gradient) <= room)


@eqx.filter_jit
def general_linearise(lanes, y):
    return lanes.linearise(y)


def back_to_the_plateau(delay, reparametrisation, off, silent):
    """Starts some way off, and pairs that lead to the plateau up to 1e-32, but for the last
    amplitude."""
    rng = np.random.default_rng(4)
    w_end = np.array([*TARGET_RATES, 0.6])
    a_end = np.array([*TARGET_AMPLITUDES, silent])
    a = a_end[:, None] + off * rng.normal(size=(WIDTH, LANES))
    w = w_end[:, None] * np.exp(off * rng.normal(size=(WIDTH, LANES)))
    omega = jnp.full(LANES, 1 / delay)
    lanes, _ = lanes_of(jnp.asarray(a), jnp.asarray(w), omega, reparametrisation)
    with mpmath.workdps(60):
        real = np.vectorize(lambda x: mpmath.mpf(float(x)), otypes=[object])
        moves = real(np.broadcast_to(w_end[:, None], w.shape)) - real(lanes.rates)
        if isinstance(reparametrisation, mj.Exp):
            ratio = real(np.broadcast_to(w_end[:, None], w.shape)) / real(lanes.rates)
            moves = np.vectorize(mpmath.log, otypes=[object])(ratio)
            moves = moves / float(reparametrisation.gain)
        y = np.concatenate([real(a_end)[:, None] - real(a), moves])
        high = y.astype(float)
        return lanes, omega, jnp.asarray(high), jnp.asarray((y - real(high)).astype(float))


@pytest.mark.thorough
@pytest.mark.parametrize("name", REPARAMETRISATIONS)
@pytest.mark.parametrize("delay, silent", [(20.0, 0), (40.0, 0), (60.0, 0), (60.0, 1e-9)])
def test_twice_the_digits_where_terms_cancel(delay, silent, name):
    lanes, omega, y, low = back_to_the_plateau(delay, REPARAMETRISATIONS[name], 0.3, silent)
    plain, here = linearise(lanes, y), linearise(lanes, y, low)
    velocity = descent(lanes, y[:, None], low[:, None])[:, 0]
    np.testing.assert_allclose(velocity, -here.gradient, rtol=1e-14)
    np.testing.assert_allclose(
        here.curvature.dense(), plain.curvature.dense(), rtol=1e-12, atol=1e-14
    )
    np.testing.assert_allclose(here.loss, plain.loss, rtol=1e-12)
    for lane in range(LANES):
        _, gradient, _ = exactly(lanes, omega, y[:, lane], low[:, lane], lane)
        sizes = np.abs(np.array(gradient, float))
        error = errors(here.gradient[:, lane], gradient)
        assert np.all(error <= 10 * here.noise[:, lane])
        assert np.all(error <= 1e-13 * sizes + 1e-30)
        assert np.all(here.noise[:, lane] <= 1e-13 * sizes + 1e-29)
        if delay >= 40 and silent == 0:
            # Nothing but noise in float64.
            assert plain.noise[0, lane] > 10 * sizes[0]


@pytest.mark.parametrize("name", REPARAMETRISATIONS)
@pytest.mark.parametrize("size", [0.0, 1e-30, 1e-12])
def test_twice_the_digits_on_a_plateau(size, name):
    a, w, omega, y = states("plateau", 6)
    lanes, _ = lanes_of(a, w, omega, REPARAMETRISATIONS[name])
    y = size * 1e30 * y
    low = y[::-1] * 2.0**-54
    here = linearise(lanes, y, low)
    for lane in range(LANES):
        _, gradient, _ = exactly(lanes, omega, y[:, lane], low[:, lane], lane)
        sizes = np.abs(np.array(gradient, float))
        error = errors(here.gradient[:, lane], gradient)
        assert np.all(error <= 1e-13 * sizes + 1e-30 * size)
        assert np.all(error <= 10 * here.noise[:, lane])


def test_what_merging_rounds_off_is_not_lost():
    # 0.1 + 0.2 - 0.3 is neither 0 nor what float64 makes of it.
    a, w = np.array([0.1, 0.2, 0.0]), np.array([1.0, 1.0, 0.6])
    a, w = (jnp.asarray(np.tile(x[:, None], LANES)) for x in (a, w))
    omega = jnp.full(LANES, 1 / 60.0)
    lanes, _ = lanes_of(a, w, omega, mj.Direct(), [0.3, 0.0])
    y = jnp.zeros((2 * WIDTH, LANES))
    here = linearise(lanes, y, y)
    _, gradient, _ = exactly(lanes, omega, y[:, 0], y[:, 0], 0)
    sizes = np.abs(np.array(gradient, float))
    assert 1e-18 < sizes[0] < 1e-16
    assert np.all(errors(here.gradient[:, 0], gradient) <= 1e-13 * sizes)
    assert not np.allclose(linearise(lanes, y).gradient[:3, 0], here.gradient[:3, 0], atol=0)


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 2**20),
    kind=st.sampled_from(["anywhere", "plateau", "coalescing"]),
    size=st.floats(-6, 0.5),
    name=st.sampled_from(list(REPARAMETRISATIONS)),
)
def test_noise_bounds_the_error(seed, kind, size, name):
    a, w, omega, y = states(kind, seed)
    y = y / jnp.max(jnp.abs(y)) * 10.0**size
    # Rates stay positive.
    y = y.at[WIDTH:].set(jnp.abs(y[WIDTH:]))
    low = y * np.random.default_rng(seed).uniform(-(2.0**-54), 2.0**-54, y.shape)
    lanes, _ = lanes_of(a, w, omega, REPARAMETRISATIONS[name])
    for lower in (None, low):
        here = linearise(lanes, y, lower)
        rounding = 1e-12 if lower is None else 1e-28
        for lane in range(LANES):
            exact_low = 0 * low[:, lane] if lower is None else low[:, lane]
            _, gradient, _ = exactly(lanes, omega, y[:, lane], exact_low, lane)
            noise, sizes = np.asarray(here.noise[:, lane]), np.abs(np.array(gradient, float))
            assert np.all(errors(here.gradient[:, lane], gradient) <= 10 * noise)
            # Nor is it an excuse.
            scale = 1 + np.abs(a[:, lane]).max() + np.abs(y[:, lane]).max()
            assert np.all(noise <= rounding * scale**3 + 1e-13 * sizes.max())


def test_modes_that_grow_have_no_gradient():
    a, w, omega, y = states("anywhere", 3)
    lanes, _ = lanes_of(a, w, omega, mj.Direct())
    y = y.at[WIDTH].set(-w[0] - 1e-3)
    for low in (None, 0 * y):
        gradient = linearise(lanes, y, low).gradient
        assert np.all(np.any(np.isnan(gradient), axis=0))


def test_other_reparametrisations_say_what_to_do():
    class Square(mj.AbstractReparametrisation):
        def __call__(self, free):
            return free**2

        def inverse(self, rates):
            return jnp.sqrt(rates)

        def displacement(self, free, change):
            return change * (2 * free + change)

    a, w, omega, y = states("anywhere", 3)
    lanes, _ = lanes_of(a, w, omega, Square())
    assert np.all(np.isfinite(linearise(lanes, y).gradient))
    with pytest.raises(TypeError, match='Square; pass precision="float64"'):
        linearise(lanes, y, 0 * y)


def test_derivatives_of_the_weights_are_those_of_the_kernel():
    # The closed forms against the automatic derivative of the loss itself.
    a, w, omega, y = states("anywhere", 7)
    lanes, _ = lanes_of(a, w, omega, mj.Exp(1.5))
    automatic = jax.jit(jax.grad(lambda y: jnp.sum(lanes.loss(y))))(y)
    compensated = linearise(lanes, y, 0 * y).gradient
    np.testing.assert_allclose(compensated, automatic, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("ratio", [1.0, 5.0, 100.0, 1e5])
def test_exponentials_of_wide_models_are_as_few_as_their_rates_need(ratio):
    found = np.asarray(spread_out(jnp.asarray([0.7, 0.7 * ratio])))
    x = found[found != 0]
    low, high = 0.7 / 2, 2 * 0.7 * ratio
    s = np.geomspace(low, high, 20_001)[:, None]
    left = np.abs(np.prod((s - x) / (s + x), axis=1)).max()
    enough = np.sqrt(np.finfo(float).eps) / 4
    assert left <= enough
    # The least that so many could leave, and one fewer (Zolotarev's problem).
    least = lambda n: 2 * np.exp(-n * np.pi**2 / (2 * np.log(4 * high / low)))
    assert left <= 1.15 * least(len(x)) and least(len(x) - 1) > enough


@pytest.mark.parametrize("slowest", [0.3, 0.1, 0.01])
def test_noise_of_wide_models_covers_what_their_exponentials_leave_out(slowest):
    # These are as many as the rates need, so that it is not much more than with direct sums.
    width, fastest = 128, max(3.0, 1 / slowest)
    rng = np.random.default_rng(int(1 / slowest))
    a, w = rng.normal(size=width), np.exp(rng.uniform(*np.log([slowest, fastest]), width))
    loss = mj.WhiteNoiseLoss(mj.ExponentialSum(TARGET_AMPLITUDES, TARGET_RATES))
    model = mj.DiagonalLinearRNN(a, w)
    lanes = jax.tree.map(lambda x: x[..., None], SpectralLanes.build(loss, model))
    assert lanes.nodes is not None
    y = jnp.asarray(rng.normal(size=(2 * width, 1)) * 1e-4)
    here = linearise(lanes, y)
    direct = linearise(dataclasses.replace(lanes, nodes=None), y)
    assert np.all(here.noise <= 50 * direct.noise)
    assert np.median(here.noise / direct.noise) <= 2

    with mpmath.workdps(40):
        exactly = lambda values: [mpmath.mpf(float(x)) for x in values]
        moves = exactly(y[:, 0])
        b = [x + dx for x, dx in zip(exactly(a), moves[:width], strict=True)]
        v = [x + dx for x, dx in zip(exactly(w), moves[width:], strict=True)]
        modes = b + [-x for x in exactly(TARGET_AMPLITUDES)]
        rates = v + exactly(TARGET_RATES)
        transform = lambda s, k: sum(c / (s + r) ** k for c, r in zip(modes, rates, strict=True))
        values = [transform(r, 1) for r in rates]
        whole = sum(c * e for c, e in zip(modes, values, strict=True))
        gradient = [2 * e for e in values[:width]]
        gradient += [-2 * c * transform(r, 2) for c, r in zip(b, v, strict=True)]
        errors = [abs(e - x) for e, x in zip(gradient, exactly(here.gradient[:, 0]), strict=True)]
        # Without the moduli of what the start's coefficients are sums of, up to 0.91 and 2.5 of it.
        assert all(2 * e <= float(n) for e, n in zip(errors, here.noise[:, 0], strict=True))
        assert abs(whole - mpmath.mpf(float(here.loss[0]))) <= float(lanes.loss_noise(y)[0])
