import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import memjax

TS = np.linspace(0.0, 4.0, 161)
XS = np.cos(2 * TS) + 0.3 * TS


@pytest.mark.thorough
def test_volterra():
    first, a, b = memjax.ExponentialSum(1.0, 1.0), memjax.Box(0.5, 1.5), memjax.PowerLaw(0.5)
    target = memjax.Volterra(first, [(a, b), (first, first)])
    assert not target.linear and target.memory == "polynomial"
    respond = eqx.filter_jit(target.response)
    once, twice = respond(TS, XS), respond(TS, 2 * XS)
    flipped = respond(TS, -XS)
    np.testing.assert_allclose((once - flipped) / 2, first.response(TS, XS), atol=1e-12)
    np.testing.assert_allclose(twice - 2 * once, once + flipped, atol=1e-11)
    # the quadratic part is a double integral
    x = lambda t: np.interp(t, TS, XS) * (t >= 0)
    points, weights = np.polynomial.legendre.leggauss(40)
    s, r = 0.5 + (1 + points) / 2, 2 * (1 + points)
    exact = np.sum(
        (weights / 2)[:, None] * (2 * weights) * x(4 - s)[:, None] * x(4 - r) * np.asarray(b(r))
    )
    quadratic = memjax.Volterra(None, [(a, b)]).response(TS, XS)[-1]
    np.testing.assert_allclose(quadratic, exact, rtol=1e-4)  # the referee sees the kinks
    with pytest.raises(ValueError, match="at least one pair of kernels"):
        memjax.Volterra(first, [])
    with pytest.raises(ValueError, match="at least one pair of kernels"):
        memjax.Volterra(first, [(a,)])
    with pytest.raises(TypeError, match="must be a scalar kernel"):
        memjax.Volterra(first, [(a, lambda t: t)])


def test_teacher():
    kernel = memjax.Box(0.5, 1.5)
    teacher = memjax.Teacher(kernel.response, linear=True, memory="finite")
    assert teacher.linear and teacher.memory == "finite"
    exact = kernel.response(TS, XS)
    np.testing.assert_allclose(teacher.response(TS, XS), exact, rtol=1e-9, atol=1e-12)
    plain = memjax.Teacher(lambda ts, xs: jnp.tanh(xs))
    assert not plain.linear and plain.memory == "unknown"
    assert plain.response(TS, np.ones((TS.size, 3))).shape == (TS.size, 3)
    with pytest.raises(TypeError, match="`function` must be a function, got 1.0"):
        memjax.Teacher(1.0)
    with pytest.raises(ValueError, match="`memory` must be one of"):
        memjax.Teacher(kernel.response, memory="long")
    with pytest.raises(ValueError, match="must return one output per time"):
        memjax.Teacher(lambda ts, xs: xs[1:]).response(TS, XS)


def test_attention_is_its_integral():
    rates = (0.4, 2.0)
    target = memjax.Attention.random(rates, key=jax.random.key(3))
    respond = eqx.filter_jit(target.response)

    def exact(t):
        total = 0.0
        for q, k, v, rate in zip(target.queries, target.keys, target.values, rates, strict=True):
            gain = float(jnp.vdot(q, k)) / 2
            x = lambda r: np.cos(2 * r) + 0.3 * r
            weight = lambda r: np.exp(gain * x(t) * x(r) - rate * (t - r))
            top = scipy.integrate.quad(lambda r: weight(r) * x(r), 0, t, epsabs=1e-12)[0]
            whole = scipy.integrate.quad(weight, 0, t, epsabs=1e-12)[0]
            total += float(v[0]) * top / (whole + np.exp(-rate * t) / rate)
        return total

    errors = []
    for n in (161, 321):
        ts = np.linspace(0.0, 4.0, n)
        errors.append(abs(respond(ts, np.cos(2 * ts) + 0.3 * ts)[-1] - exact(4.0)))
    assert errors[0] < 2e-3
    assert 3.5 < errors[0] / errors[1] < 4.5


def test_attention_is_causal_and_homogeneous():
    target = memjax.Attention.random([0.4, 2.0], key=jax.random.key(3))
    respond = eqx.filter_jit(target.response)
    base = respond(TS, XS)
    assert base[0] == 0 and not target.linear and target.memory == "exponential"
    np.testing.assert_allclose(respond(TS, np.where(TS > 2, 9.0, XS))[:81], base[:81], atol=1e-13)
    np.testing.assert_allclose(respond(TS + 7.0, XS), base, rtol=1e-10, atol=1e-14)
    assert np.all(np.isfinite(respond(TS, 1e3 * XS)))
    assert np.max(np.abs(respond(TS, 2 * XS) - 2 * base)) > 0.01


def test_attention_refusals():
    ones = np.ones((1, 2, 3))
    decay = memjax.ExponentialSum(1.0, 1.0)
    good = memjax.Attention(ones, ones, np.ones((1, 3)), [memjax.PowerLaw(0.5)])
    assert good.memory == "polynomial"
    assert good.response(TS, np.ones((TS.size, 3))).shape == TS.shape
    with pytest.raises(ValueError, match="`queries` and `keys` must have one shape"):
        memjax.Attention(ones, ones[:, :1], np.ones((1, 3)), [decay])
    with pytest.raises(ValueError, match="`values` must have shape"):
        memjax.Attention(ones, ones, np.ones((1, 2)), [decay])
    with pytest.raises(ValueError, match="`positions` must be integrable, got Sine"):
        memjax.Attention(ones, ones, np.ones((1, 3)), [memjax.Sine()])
    with pytest.raises(ValueError, match="`scalar` needs matrices with d = 1"):
        memjax.Attention(ones, ones, np.ones((1, 3)), [decay], scalar=True)


SLOW, FAST, F, H, C, B = 6, 4, 10.0, 1.0, 10.0, 10.0


def lorenz(ts=None, xs=None):
    """The equations of theory, section 3, index by index in NumPy."""
    k, n = np.arange(SLOW), np.arange(SLOW * FAST)
    down, down2, up = (k - 1) % SLOW, (k - 2) % SLOW, (k + 1) % SLOW
    last, next, next2 = (n - 1) % n.size, (n + 1) % n.size, (n + 2) % n.size

    def field(t, z):
        x, y = z[:SLOW], z[SLOW:]
        forcing = F if ts is None else F + np.interp(t, ts, xs)
        sums = y.reshape(SLOW, FAST).sum(1)
        dx = -x[down] * (x[down2] - x[up]) - x + forcing - H * C / B * sums
        dy = -C * B * y[next] * (y[next2] - y[last]) - C * y + H * C / B * x[n // FAST]
        return np.concatenate([dx, dy])

    return field


@pytest.mark.thorough
def test_lorenz_against_scipy():
    make = lambda seed, **more: memjax.Lorenz96(
        SLOW, FAST, key=jax.random.key(seed), spin_up=2.0, rtol=1e-11, atol=1e-11, **more
    )
    target = make(0)
    ts = np.linspace(0, 1, 21)
    xs = 3 * np.sin(5 * ts)
    start = np.concatenate([np.ravel(leaf) for leaf in target.initial])
    state, exact = start, [start]
    for begin, end in zip(ts[:-1], ts[1:], strict=True):
        piece = scipy.integrate.solve_ivp(
            lorenz(ts, xs), (begin, end), state, method="DOP853", rtol=1e-12, atol=1e-12
        )
        state = piece.y[:, -1]
        exact.append(state)
    exact = np.array(exact)
    response = target.response(ts, xs)
    np.testing.assert_allclose(response, exact[:, 0], rtol=0, atol=1e-6)
    subgrid = make(0, output="subgrid", unit=2)
    ys = exact[:, SLOW:].reshape(-1, SLOW, FAST)
    np.testing.assert_allclose(
        subgrid.response(ts, xs), -H * C / B * ys[:, 2].sum(-1), rtol=0, atol=1e-6
    )
    scaled = target.normalised(ts, xs).response(ts, xs)
    np.testing.assert_allclose(scaled, (response - response.mean()) / response.std(), atol=1e-12)
    np.testing.assert_array_equal(make(0).response(ts, xs), response)
    assert np.max(np.abs(make(1).initial[0] - target.initial[0])) > 0.1
    # the forcing reaches the output: this is a target of its input
    assert np.max(np.abs(target.response(ts, 0 * xs) - response)) > 0.1
    assert not target.linear and target.memory == "unknown"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"slow": 3}, "`slow` must be an integer of at least 4, got 3"),
        ({"fast": 0}, "`fast` must be an integer of at least 1, got 0"),
        ({"unit": 8}, "`unit` must be below the number of slow units, got 8"),
        ({"output": "fast"}, "`output` must be one of 'slow', 'subgrid', got 'fast'"),
        ({"std": 0.0}, "`std` must be positive"),
        ({"time_ratio": -1.0}, "`time_ratio` must be positive"),
    ],
)
def test_lorenz_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        memjax.Lorenz96(key=jax.random.key(0), **arguments)


@pytest.mark.slow
def test_lorenz_climate():
    ts = np.arange(0, 300, 0.1)
    target = memjax.Lorenz96(SLOW, FAST, key=jax.random.key(2), rtol=1e-7, atol=1e-7)
    ours = np.asarray(target.states(ts, 0 * ts)[0])
    start = 0.1 * np.random.default_rng(0).normal(size=SLOW * (1 + FAST)) + 1
    run = scipy.integrate.solve_ivp(
        lorenz(), (0, 310), start, method="DOP853", rtol=1e-7, atol=1e-7, t_eval=10 + ts
    )
    theirs = run.y[:SLOW].T

    def statistics(states):
        """Mean, variance and two autocovariances of each block of time, over all units."""
        blocks = states[: len(states) // 20 * 20].reshape(20, -1, SLOW)
        centred = blocks - states.mean()
        rows = [blocks.mean((1, 2)), (centred**2).mean((1, 2))]
        for lag in (3, 10):
            rows.append((centred[:, lag:] * centred[:, :-lag]).mean((1, 2)))
        return np.array(rows)

    a, b = statistics(ours), statistics(theirs)
    errors = np.sqrt((a.var(1, ddof=1) + b.var(1, ddof=1)) / 20)
    assert np.all(np.abs(a.mean(1) - b.mean(1)) < 4 * errors), (a.mean(1), b.mean(1), errors)
    # and the intervals are narrow enough to mean something
    assert np.all(errors[:2] < 0.1 * b.mean(1)[:2])
