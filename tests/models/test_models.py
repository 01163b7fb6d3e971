import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import memjax as mj

RNG = np.random.default_rng(3)
KEYS = jax.random.split(jax.random.key(2), 12)
TIMES = np.concatenate([[0.2], 0.2 + np.cumsum(RNG.uniform(0.05, 0.4, size=12))])
SCALARS, VECTORS = RNG.normal(size=13), RNG.normal(size=(13, 2))
RECURRENT, INPUT, READOUT, BIAS = (
    RNG.normal(size=shape) for shape in ((4, 4), (4, 2), (3, 4), (4,))
)


def every_model():
    """One model of each kind with its samples, the shape of an output, and its trained leaves."""
    rates = mj.log_uniform_rates(4, 0.1, 5.0, key=KEYS[0])
    layer = mj.StateSpaceLayer.init(
        rates, 2, 2, reparametrisation=mj.Best(), activation="relu", key=KEYS[1]
    )
    above = mj.LRULayer.init(*mj.ring(4, 0.3, 0.9, key=KEYS[2]), 2, 2, key=KEYS[3])
    last = mj.StateSpaceLayer.init(rates, 2, key=KEYS[4])
    return {
        "diagonal": (mj.DiagonalLinearRNN.init(rates, key=KEYS[5]), SCALARS, (), 2),
        "complex": (
            mj.ComplexDiagonalRNN.init(*mj.s4d_lin(4), reparametrisation=mj.Exp(), key=KEYS[6]),
            SCALARS,
            (),
            4,
        ),
        "dense": (mj.LinearRNN.init(4, 2, 3, key=KEYS[7]), VECTORS, (3,), 3),
        "nonlinear": (mj.NonlinearRNN.init(4, key=KEYS[8]), SCALARS, (), 4),
        "leaky": (mj.NonlinearRNN.init(4, 2, 3, leak=True, key=KEYS[8]), VECTORS, (3,), 4),
        "layer": (layer, VECTORS, (2,), 4),
        "lru": (above, VECTORS, (2,), 4),
        "stack": (mj.StateSpaceStack([layer, above, last]), VECTORS, (), 12),
        "gru": (mj.GatedRNN.init("gru", 4, key=KEYS[9]), SCALARS, (), 5),
        "lstm": (mj.GatedRNN.init("lstm", 4, 2, 3, rate=2.0, key=KEYS[10]), VECTORS, (3,), 4),
    }


@pytest.mark.parametrize("name", every_model())
def test_every_model(name):
    model, xs, shape, trained = every_model()[name]
    assert sum(jax.tree.leaves(mj.trainable(model))) == trained
    # All leaves are real arrays: models pass through `jax.jit` and `jax.grad` as they are.
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(model))

    @jax.jit
    def run(model, xs):
        return jax.value_and_grad(
            lambda model, xs: (lambda ys: (jnp.sum(ys**2), ys))(model.residual(TIMES, xs)),
            has_aux=True,
        )(model, xs)

    (_, outputs), slopes = run(model, jnp.asarray(xs))
    # Euler's method, as it is written.
    hidden, exact = model.initial_hidden(), []
    field = jax.jit(lambda model, *args: model.vector_field(*args))
    for k, x in enumerate(xs):
        exact.append(np.asarray(model.readout(hidden)))
        if k < len(TIMES) - 1:
            step = TIMES[k + 1] - TIMES[k]
            slope = field(model, TIMES[k], hidden, x)
            hidden = jax.tree.map(lambda h, f: h + step * f, hidden, slope)
    assert outputs.shape == (13, *shape)
    np.testing.assert_allclose(outputs, exact, rtol=1e-12, atol=1e-14)
    assert np.max(np.abs(outputs)) > 1e-3
    trained_slopes = jax.tree.leaves(eqx.filter(slopes, mj.trainable(model)))
    assert all(np.all(np.isfinite(s)) and np.any(s != 0) for s in trained_slopes)


ACTIVATIONS = {
    "tanh": np.tanh,
    "hardtanh": lambda z: np.clip(z, -1, 1),
    "relu": lambda z: np.maximum(z, 0),
    "identity": lambda z: z,
}


@pytest.mark.parametrize("leak", [False, True])
def test_nonlinear_vector_field(leak):
    for name, sigma in (*ACTIVATIONS.items(), (jnp.sin, np.sin)):
        model = mj.NonlinearRNN(RECURRENT, INPUT, BIAS, READOUT, name, leak)
        hidden, x = RNG.normal(size=4), RNG.normal(size=2)
        exact = sigma(RECURRENT @ hidden + INPUT @ x + BIAS) - leak * hidden
        found = model.vector_field(jnp.zeros(()), jnp.asarray(hidden), jnp.asarray(x))
        np.testing.assert_allclose(found, exact, rtol=1e-13)
        np.testing.assert_allclose(model.readout(jnp.asarray(hidden)), READOUT @ hidden)


def test_nonlinear_model_against_scipy():
    model = mj.NonlinearRNN(RECURRENT, INPUT, BIAS, READOUT, leak=True)
    path = lambda t: np.array([np.sin(3 * t), t])
    field = lambda t, h: -h + np.tanh(RECURRENT @ h + INPUT @ path(t) + BIAS)
    ts = np.linspace(0.0, 4.0, 9)
    exact = integrate.solve_ivp(
        field, (0, 4), np.zeros(4), t_eval=ts, rtol=1e-12, atol=1e-13, method="DOP853"
    )
    xs = lambda t: jnp.stack([jnp.sin(3 * t), t])
    # With few steps, as Diffrax 0.7.1 takes, times between them are interpolated to 1.3e-6.
    np.testing.assert_allclose(model(ts, xs), (READOUT @ exact.y).T, atol=3e-6)
    tight = diffrax.PIDController(rtol=1e-10, atol=1e-12)
    found = model(ts, xs, stepsize_controller=tight)
    np.testing.assert_allclose(found, (READOUT @ exact.y).T, atol=1e-7)


def test_activations_that_are_modules_are_trained():
    model = mj.NonlinearRNN.init(3, activation=eqx.nn.PReLU(0.3), key=KEYS[0])
    spec = mj.trainable(model)
    assert spec.activation.negative_slope is True
    assert sum(jax.tree.leaves(spec)) == 5


def test_gated_cells_in_discrete_time():
    # With a step of 1 over the rate the residual recursion is the cell's own.
    ts = np.arange(13) / 2.0
    for kind, cell in (("gru", eqx.nn.GRUCell), ("lstm", eqx.nn.LSTMCell)):
        cell = cell(2, 3, key=KEYS[1])
        model = mj.GatedRNN(cell, np.eye(3), rate=2.0)
        zero = jnp.zeros(3)
        hidden, exact = (zero, zero) if kind == "lstm" else zero, []
        for x in VECTORS:
            exact.append(hidden[0] if kind == "lstm" else hidden)
            hidden = cell(jnp.asarray(x), hidden)
        np.testing.assert_allclose(model.residual(ts, VECTORS), exact, rtol=1e-12, atol=1e-15)
        assert model.width == 3


def test_stack_feeds_every_layer_into_the_next():
    models = every_model()
    layer, lru = models["layer"][0], models["lru"][0]
    first, second = RNG.normal(size=4), RNG.normal(size=(2, 4))
    hidden, x = (jnp.asarray(first), jnp.asarray(second)), jnp.asarray([0.3, -1.0])
    for skip in (True, False):
        stack = mj.StateSpaceStack([layer, lru], skip)
        between = layer.readout(hidden[0])
        found = stack.vector_field(jnp.zeros(()), hidden, x)
        np.testing.assert_allclose(found[0], layer.vector_field(jnp.zeros(()), hidden[0], x))
        np.testing.assert_allclose(found[1], lru.vector_field(jnp.zeros(()), hidden[1], between))
        np.testing.assert_allclose(stack.readout(hidden), lru.readout(hidden[1]) + skip * between)
    np.testing.assert_array_equal(
        mj.StateSpaceStack([layer]).scan(TIMES, VECTORS), layer.scan(TIMES, VECTORS)
    )


@pytest.mark.slow
def test_scan_of_a_stack_converges_at_second_order():
    stack = every_model()["stack"][0]
    path = lambda t: jnp.stack([jnp.sin(4 * t), jnp.cos(t)], axis=-1)
    controller = diffrax.PIDController(rtol=1e-10, atol=1e-11)
    ends = np.array([0.0, 2.0])
    exact = stack(ends, path, solver=diffrax.Tsit5(), stepsize_controller=controller)[-1]
    errors = []
    for count in (129, 257):
        ts = np.linspace(*ends, count)
        errors.append(abs(float(stack.scan(ts, path(ts))[-1] - exact)))
    assert 1.9 < np.log2(errors[0] / errors[1]) < 2.1
    assert errors[1] < 1e-4


def test_input_of_the_lru_is_normalised():
    # Under white noise every hidden number has the variance |U|^2: the integral of |kernel|^2.
    model = mj.LRULayer([0.01, 30.0], [2.0, 0.0], [1.0 + 1j, 3.0], [1.0, 1.0])
    hidden = lambda t: (
        np.sqrt(2 * np.asarray(model.rates)) * np.array([1 + 1j, 3.0]) * np.exp(-model.rates * t)
    )
    variance = [integrate.quad(lambda t: abs(hidden(t)[j]) ** 2, 0, np.inf)[0] for j in range(2)]
    np.testing.assert_allclose(variance, [2.0, 9.0], rtol=1e-6)
    slope = model.vector_field(jnp.zeros(()), model.initial_hidden(), jnp.ones(()))
    np.testing.assert_allclose(slope[0] + 1j * slope[1], hidden(0.0), rtol=1e-13)


@pytest.mark.thorough
def test_spectra():
    rates = np.asarray(mj.uniform_rates(2000, 0.5, 2.0, key=KEYS[0]))
    assert stats.kstest(rates, stats.uniform(0.5, 1.5).cdf).pvalue > 1e-3
    rates = np.asarray(mj.log_uniform_rates(2000, 1e-4, 1e2, key=KEYS[1]))
    assert stats.kstest(np.log10(rates), stats.uniform(-4, 6).cdf).pvalue > 1e-3
    assert rates.min() >= 1e-4 and rates.max() <= 1e2
    rates, frequencies = mj.ring(2000, 0.4, 0.99, max_phase=1.0, step=0.1, key=KEYS[2])
    squares, phases = np.exp(-0.2 * np.asarray(rates)), 0.1 * np.asarray(frequencies)
    assert stats.kstest(squares, stats.uniform(0.16, 0.99**2 - 0.16).cdf).pvalue > 1e-3
    assert stats.kstest(phases, stats.uniform(0, 1).cdf).pvalue > 1e-3
    assert np.all(mj.ring(2000, 0.9999, 1.0, key=KEYS[2])[0] > 0)
    np.testing.assert_allclose(mj.s4d_real(3, scale=2.0), [0.5, 1.0, 1.5])
    rates, frequencies = mj.s4d_lin(3, scale=2.0)
    np.testing.assert_allclose(rates, [0.25, 0.25, 0.25])
    np.testing.assert_allclose(frequencies, np.pi * np.arange(3) / 2)
    matrix = np.asarray(mj.stable_gaussian(200, gain=2.0, margin=0.3, key=KEYS[3]))
    np.testing.assert_allclose(np.linalg.eigvalsh((matrix + matrix.T) / 2).max(), -0.3, rtol=1e-9)
    assert np.linalg.eigvals(matrix).real.max() < -0.3
    off = matrix - np.diag(np.diag(matrix))
    np.testing.assert_allclose(np.std(off[off != 0]) * np.sqrt(200), 2.0, rtol=0.02)


def test_unstable_recurrence_is_refused():
    with pytest.raises(ValueError, match=r"`recurrent` must have all eigenvalues in .* part 0;"):
        mj.LinearRNN([[0.0, 1.0], [-1.0, 0.0]], np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match=r"real part 0.5;"):
        mj.LinearRNN([[0.5]], [1.0], [1.0])


PAIR = np.ones(2)
BAD_MODELS = [
    (lambda: mj.LinearRNN(np.ones((2, 3)), PAIR, PAIR), ValueError, r"`recurrent` must be a sq"),
    (lambda: mj.LinearRNN(-np.eye(2), np.ones(3), PAIR), ValueError, r"`input` must have shape"),
    (lambda: mj.LinearRNN(-np.eye(2), PAIR, np.ones((2, 3))), ValueError, r"`readout` must have"),
    (lambda: mj.LinearRNN([[np.nan]], [1.0], [1.0]), ValueError, r"`recurrent` must be finite"),
    (lambda: mj.LinearRNN.init(0, key=KEYS[0]), ValueError, r"`width` must be an integer"),
    (
        lambda: mj.NonlinearRNN(np.eye(2), PAIR, np.ones(3), PAIR),
        ValueError,
        r"`bias` must have shape \(2,\)",
    ),
    (
        lambda: mj.NonlinearRNN(np.eye(2), PAIR, None, PAIR, "swish"),
        ValueError,
        r"`activation` must be one of .*, got 'swish'",
    ),
    (
        lambda: mj.NonlinearRNN(np.eye(2), PAIR, None, PAIR, 3.0),  # pyright: ignore
        TypeError,
        r"`activation` must be a function",
    ),
    (
        lambda: mj.ComplexDiagonalRNN(PAIR, PAIR, [1.0, -1.0], PAIR),
        ValueError,
        r"`rates` must be positive, got -1.0",
    ),
    (
        lambda: mj.ComplexDiagonalRNN(PAIR, PAIR, PAIR, np.ones(3)),
        ValueError,
        r"`cosine` and `frequencies` must have the same shape",
    ),
    (
        lambda: mj.StateSpaceLayer([11.0], [1.0], None, [1.0], reparametrisation=mj.Best()),
        ValueError,
        r"`rates` must be at most 1/b = 10",
    ),
    (lambda: mj.LRULayer(PAIR, PAIR, PAIR, [None, None]), TypeError, r"`readout` must be a number"),
    (lambda: mj.StateSpaceStack([]), ValueError, r"`layers` must have at least one layer"),
    (lambda: mj.StateSpaceStack([jnp.tanh]), TypeError, r"`layers` must be models"),  # pyright: ignore
    (lambda: mj.GatedRNN(jnp.tanh, PAIR), TypeError, r"`cell` must be an equinox"),  # pyright: ignore
    (lambda: mj.GatedRNN.init("rnn", 2, key=KEYS[0]), ValueError, r"`cell` must be one of 'gru'"),  # pyright: ignore
    (
        lambda: mj.GatedRNN.init("gru", 2, rate=0.0, key=KEYS[0]),
        ValueError,
        r"`rate` must be positive, got 0.0",
    ),
    (lambda: mj.uniform_rates(2, 2.0, 1.0, key=KEYS[0]), ValueError, r"`low` must be less than"),
    (lambda: mj.ring(2, 0.5, 1.1, key=KEYS[0]), ValueError, r"`outer` must be at most 1, got 1.1"),
    (lambda: mj.s4d_lin(2, scale=0.0), ValueError, r"`scale` must be positive"),
]


@pytest.mark.parametrize("make, error, match", BAD_MODELS)
def test_bad_models_are_refused(make, error, match):
    with pytest.raises(error, match=match):
        make()


def test_layers_without_a_scan():
    stack = mj.StateSpaceStack([mj.GatedRNN.init("gru", 2, key=KEYS[0])])
    with pytest.raises(TypeError, match=r"`layers` must all have a `scan`, got GatedRNN"):
        stack.scan(TIMES, SCALARS)
    assert stack.residual(TIMES, SCALARS).shape == (13,)
