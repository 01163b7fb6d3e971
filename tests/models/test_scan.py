import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import linalg, signal

import memjax as mj

RNG = np.random.default_rng(11)
STEPS = np.array([1e-9, 0.3, 0.02, 1.4, 1e-4, 7.0, 0.3, 0.3, 0.11, 2.0, 0.5, 0.03])
TIMES = -0.7 + np.concatenate([[0.0], np.cumsum(STEPS)])
SCALARS, VECTORS = RNG.normal(size=13), RNG.normal(size=(13, 2))
RATES = np.array([1e-6, 0.2, 3.0, 40.0])
FREQUENCIES = np.array([0.0, 5.0, 0.3, -20.0])
AMPLITUDES, OTHERS = RNG.normal(size=4), RNG.normal(size=4)
DENSE = RNG.normal(size=(4, 4)) - 3 * np.eye(4)
INPUT, READOUT = RNG.normal(size=(4, 2)), RNG.normal(size=(3, 4))
TURNED = RNG.normal(size=(2, 4, 2)), RNG.normal(size=(2, 3, 4))
BIAS = RNG.normal(size=4)


def turning(rates, frequencies):
    """Real matrix of the real and imaginary parts."""
    w, nu = np.diag(rates), np.diag(frequencies)
    return np.block([[-w, -nu], [nu, -w]])


def lru():
    real, imaginary = TURNED[0]
    return mj.LRULayer(
        RATES, FREQUENCIES, real + 1j * imaginary, TURNED[1][0] + 1j * TURNED[1][1], "tanh"
    )


# Every model with a scan: itself, its samples, and its W, U, C, bias, and maps before and after C.
same = lambda z: z
MODELS = {
    "diagonal": (
        mj.DiagonalLinearRNN(AMPLITUDES, RATES, mj.Softplus()),
        SCALARS,
        (-np.diag(RATES), np.ones((4, 1)), AMPLITUDES, np.zeros(4), same, same),
    ),
    "complex": (
        mj.ComplexDiagonalRNN(AMPLITUDES, OTHERS, RATES, FREQUENCIES, mj.Exp()),
        SCALARS,
        (
            turning(RATES, FREQUENCIES),
            np.repeat([[1.0], [0.0]], 4, axis=0),
            np.concatenate([AMPLITUDES, OTHERS]),
            np.zeros(8),
            same,
            same,
        ),
    ),
    "dense": (
        mj.LinearRNN(DENSE, INPUT, READOUT),
        VECTORS,
        (DENSE, INPUT, READOUT, np.zeros(4), same, same),
    ),
    "dense scalar": (
        mj.LinearRNN(DENSE, INPUT[:, 0], READOUT[0]),
        SCALARS,
        (DENSE, INPUT[:, :1], READOUT[0], np.zeros(4), same, same),
    ),
    "state space": (
        mj.StateSpaceLayer(RATES, INPUT, BIAS, READOUT, "hardtanh", mj.Inverse()),
        VECTORS,
        (-np.diag(RATES), INPUT, READOUT, BIAS, lambda h: np.clip(h, -1, 1), same),
    ),
    "lru": (
        lru(),
        VECTORS,
        (
            turning(RATES, FREQUENCIES),
            np.sqrt(2 * np.tile(RATES, 2))[:, None] * np.concatenate(TURNED[0]),
            np.concatenate([TURNED[1][0], -TURNED[1][1]], axis=1),
            np.zeros(8),
            same,
            np.tanh,
        ),
    ),
}


def referee(linear, ts, xs, interpolation):
    """Step by step, by SciPy's exponential of the matrix that also moves input and slope."""
    recurrent, weights, readout, bias, before, after = linear
    width, inputs = weights.shape
    xs = np.reshape(xs, (len(ts), inputs))
    drive = np.column_stack([weights, bias])
    xs = np.column_stack([xs, np.ones(len(ts))])
    hidden, outputs = np.zeros(width), []
    for k in range(len(ts)):
        outputs.append(after(readout @ before(hidden)))
        if k == len(ts) - 1:
            break
        step = ts[k + 1] - ts[k]
        slope = (xs[k + 1] - xs[k]) / step if interpolation == "linear" else np.zeros(inputs + 1)
        n = inputs + 1
        unit, none = np.eye(n), np.zeros
        moving = np.block(
            [
                [recurrent, drive, none((width, n))],
                [none((n, width)), none((n, n)), unit],
                [none((n, width)), none((n, n)), none((n, n))],
            ]
        )
        hidden = (linalg.expm(moving * step) @ np.concatenate([hidden, xs[k], slope]))[:width]
    return np.array(outputs)


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODELS)
def test_scan_is_exact(name):
    model, xs, linear = MODELS[name]
    for interpolation in ("linear", "previous"):
        outputs = model.scan(TIMES, xs, interpolation=interpolation)
        exact = referee(linear, TIMES, xs, interpolation)
        assert outputs.shape == exact.shape
        np.testing.assert_allclose(outputs, exact, rtol=1e-11, atol=1e-12 * np.abs(exact).max())


@pytest.mark.thorough
@pytest.mark.parametrize("name", MODELS)
def test_scan_agrees_with_diffrax(name):
    model, xs, _ = MODELS[name]
    controller = diffrax.ClipStepSizeController(
        diffrax.PIDController(rtol=1e-11, atol=1e-12), step_ts=jnp.asarray(TIMES[1:-1])
    )
    integrated = model(TIMES, xs, solver=diffrax.Dopri8(), stepsize_controller=controller)
    np.testing.assert_allclose(model.scan(TIMES, xs), integrated, rtol=0, atol=1e-8)


def test_even_times_share_one_exponential():
    ts = np.linspace(0.3, 4.0, 40)
    model, _, linear = MODELS["dense"]
    xs = RNG.normal(size=(40, 2))
    exact = referee(linear, ts, xs, "linear")
    np.testing.assert_allclose(model.scan(ts, xs), exact, rtol=1e-12, atol=1e-13)
    # Traced times are not known to be even.
    traced = jax.jit(lambda ts: model.scan(ts, xs))(ts)
    np.testing.assert_allclose(traced, exact, rtol=1e-12, atol=1e-13)


def test_stiff_dense_models():
    turn = np.linalg.qr(RNG.normal(size=(3, 3)))[0]
    stiff = turn @ np.diag([-1e7, -1.0, -1e-3]) @ turn.T
    model = mj.LinearRNN(stiff, np.ones(3), np.ones(3))
    ts, xs = np.linspace(0.0, 50.0, 51), RNG.normal(size=51)
    modes = mj.DiagonalLinearRNN((turn.T @ np.ones(3)) ** 2, [1e7, 1.0, 1e-3])
    np.testing.assert_allclose(model.scan(ts, xs), modes.scan(ts, xs), rtol=1e-6, atol=1e-7)


def phis(z):
    with mpmath.workdps(60):
        z = mpmath.mpmathify(complex(z))
        first = (mpmath.exp(z) - 1) / z
        return complex(first), complex((first - 1) / z)


@pytest.mark.parametrize("angle", [0.0, 0.3, 1.57])
def test_steps_of_all_sizes(angle):
    # One step from rest under inputs 1 and t: step lengths over 21 decades, and across the
    # switch between series and exponentials.
    lengths = np.concatenate([10.0 ** np.arange(-18, 3), [0.97, 0.999999, 1.0, 1.03, 6.3]])
    rates, frequencies = np.cos(angle) * lengths, np.sin(angle) * lengths
    one, zero = np.ones(1), np.zeros(1)
    parts = lambda z: (mj.ComplexDiagonalRNN(one, zero, *z), mj.ComplexDiagonalRNN(zero, -one, *z))

    @jax.jit
    @jax.vmap
    def step(rate, frequency):
        models = parts((rate[None], frequency[None]))
        ts = jnp.array([0.0, 1.0])
        run = lambda xs: [model.scan(ts, jnp.asarray(xs))[1] for model in models]
        return run([1.0, 1.0]) + run([0.0, 1.0])

    found = np.array(step(jnp.asarray(rates), jnp.asarray(frequencies)))
    for k, z in enumerate(-rates + 1j * frequencies):
        first, second = phis(z)
        # h = Re h + i Im h, of which b = -1 reads out -Im.
        # Near multiples of 2 pi i the first is the difference of two numbers of size 1 / |z|.
        scale = max(abs(first), 1 / abs(z)) if abs(z) > 1 else abs(first)
        assert abs(found[0, k] - 1j * found[1, k] - first) <= 2e-15 * scale
        assert abs(found[2, k] - 1j * found[3, k] - second) <= 2e-15 * abs(second)


def test_many_blocks_of_uneven_steps():
    # More times than are scanned at once, against the recursion as it is written.
    ts = np.concatenate([[0.0], np.cumsum(RNG.uniform(0.01, 0.4, size=1299))])
    xs = RNG.normal(size=1300)
    eigenvalues = -RATES + 1j * FREQUENCIES
    hidden, exact = np.zeros(4, complex), [0.0]
    for k, step in enumerate(np.diff(ts)):
        z = eigenvalues * step
        first = np.expm1(z) / z
        hidden = np.exp(z) * hidden + step * first * xs[k]
        exact.append(((AMPLITUDES - 1j * OTHERS) @ hidden).real)
    model = MODELS["complex"][0]
    found = model.scan(ts, xs, interpolation="previous")
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-9)


def test_a_hundred_thousand_times():
    width, times = 64, 100_001
    ts, xs = np.arange(times) * 0.1, RNG.normal(size=times)
    rates = np.geomspace(1e-4, 10.0, width)
    model = mj.DiagonalLinearRNN(RNG.normal(size=width), rates)
    run = lambda model, xs: model.scan(jnp.asarray(ts), xs, interpolation="previous")
    program = jax.jit(run).lower(model, jnp.asarray(xs)).compile()
    exact = np.zeros(times)
    for a, w in zip(np.asarray(model.amplitudes), rates, strict=True):
        held = -np.expm1(-w * 0.1) / w
        exact[1:] += a * signal.lfilter([held], [1.0, -np.exp(-w * 0.1)], xs[:-1])
    np.testing.assert_allclose(program(model, jnp.asarray(xs)), exact, rtol=1e-8, atol=1e-8)
    # The hidden states at all times alone would need `times * width` numbers.
    needed = program.memory_analysis().temp_size_in_bytes
    assert needed < times * width * 8 / 4
    slope = jax.jit(jax.grad(lambda model, xs: jnp.sum(run(model, xs))))
    needed = slope.lower(model, jnp.asarray(xs)).compile().memory_analysis().temp_size_in_bytes
    assert needed < times * width * 8 / 2


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["diagonal", "complex", "lru"])
def test_derivatives(name):
    model, xs, _ = MODELS[name]
    # The derivative in a rate of 1e-6 has no meaning in finite differences of free weights.
    leaves, rest = eqx.partition(model, mj.trainable(model))
    leaves = eqx.tree_at(lambda m: m.free_rates, leaves, jnp.array([-1.0, -0.3, 0.6, 1.5]))

    @jax.jit
    def run(leaves, xs):
        return eqx.combine(leaves, rest).scan(TIMES, xs)

    check_grads(run, (leaves, jnp.asarray(xs)), order=1, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_dense_derivatives():
    model, xs, _ = MODELS["dense scalar"]
    run = jax.jit(lambda model: jnp.sum(model.scan(TIMES, xs) ** 2))
    check_grads(run, (model,), order=1, modes=["rev"], rtol=1e-5, atol=1e-5)


@pytest.mark.thorough
def test_kernels_are_what_the_models_do():
    ts = np.linspace(0.0, 3.0, 9)
    ones = np.ones(9)
    for name in ("diagonal", "complex"):
        model = MODELS[name][0]
        np.testing.assert_allclose(
            model.scan(ts, ones), model.kernel().heaviside_response(ts), rtol=1e-12, atol=1e-14
        )
        np.testing.assert_allclose(model.kernel()(0.0), AMPLITUDES.sum(), rtol=1e-13)
    kernel = MODELS["dense"][0].kernel()(ts)
    exact = np.array([READOUT @ linalg.expm(DENSE * t) @ INPUT for t in ts])
    np.testing.assert_allclose(kernel, exact, rtol=1e-12, atol=1e-14)


@pytest.mark.slow
def test_batches_and_single_precision():
    model = mj.ComplexDiagonalRNN([1.0, 0.3], [0.0, 0.5], [0.3, 2.0], [1.0, 0.0])
    batch = RNG.normal(size=(3, 13))
    outputs = jax.vmap(lambda xs: model.scan(TIMES, xs))(batch)
    for xs, found in zip(batch, outputs, strict=True):
        np.testing.assert_allclose(found, model.scan(TIMES, xs), rtol=1e-13)
    short = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), model)
    ts, xs = (np.asarray(x[1:], np.float32) for x in (TIMES, batch[0]))
    found = short.scan(ts, xs)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, model.scan(TIMES[1:], batch[0][1:]), atol=2e-5)
    # Times and samples may have another precision than the model.
    np.testing.assert_allclose(short.scan(TIMES, batch[0]), outputs[0], atol=1e-5)
    assert short.residual(TIMES, batch[0]).shape == (13,)


def test_bad_inputs_are_refused():
    ts = [0.0, 1.0, 2.0]
    for name in ("diagonal", "complex", "dense scalar"):
        model = MODELS[name][0]
        with pytest.raises(ValueError, match=r"`xs` must hold inputs of shape \(\), got \(4,\)"):
            model.scan(ts, np.ones((3, 4)))
        with pytest.raises(ValueError, match=r"`xs` must hold inputs of shape \(\), got \(4,\)"):
            model.residual(ts, np.ones((3, 4)))
    for name in ("dense", "state space", "lru"):
        with pytest.raises(ValueError, match=r"`xs` must hold inputs of shape \(2,\), got \(\)"):
            MODELS[name][0].scan(ts, np.ones(3))
    model = MODELS["diagonal"][0]
    with pytest.raises(ValueError, match=r"`interpolation` must be one of .* got 'cubic'"):
        model.scan(ts, np.ones(3), interpolation="cubic")
    with pytest.raises(TypeError, match=r"`xs` must be samples in `scan`"):
        model.scan(ts, jnp.sin)
    with pytest.raises(ValueError, match=r"`ts` must increase, got 2.0 and then 2.0"):
        model.scan([0.0, 2.0, 2.0], np.ones(3))
    with pytest.raises(ValueError, match=r"`xs` must have one sample per time"):
        model.scan(ts, np.ones(4))
