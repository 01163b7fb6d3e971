import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

import memjax as mj
from memjax import viz

TS = np.linspace(0.0, 6.0, 13)
KERNELS = {
    "exponentials": mj.ExponentialSum([1.0, -2.0], [1.0, 3.0]),
    "power law": mj.PowerLaw(0.5),
    "airy": mj.Airy(1.0, 6.0),
    "box": mj.Box(1.2, 3.3),
    "sum": mj.PowerLaw(0.5) - 2 * mj.DampedOscillation([1.0], [0.5], [0.3], [2.0]),
}
LINEAR = mj.DiagonalLinearRNN(jnp.array([1.0, -0.4]), jnp.array([1.0, 3.0]))
# A tanh RNN of two neurons, with biases: far from linear, and not at rest without an input.
RECURRENT = np.array([[-1.0, 1.3], [-0.7, -0.4]])
BIAS = np.array([0.3, -0.2])
READOUT = np.array([1.0, -0.8])

CHEAP = mj.WorstCase(amplitudes=(1e-2, 10.0), num_amplitudes=5, refinements=0)


def tanh_rnn(columns):
    return mj.NonlinearRNN(RECURRENT, columns, BIAS, READOUT)


def reference_slope(columns, x, ts):
    """The output's derivative under constant input, less that under none, by SciPy."""
    field = lambda t, h, x: np.tanh(RECURRENT @ h + columns @ x + BIAS)
    slopes = []
    for u in (x, 0 * x):
        options = {"t_eval": ts, "args": (u,), "rtol": 1e-10, "atol": 1e-12}
        h = scipy.integrate.solve_ivp(field, (0, ts[-1]), np.zeros(2), **options).y
        slopes.append(READOUT @ np.tanh(RECURRENT @ h + (columns @ u + BIAS)[:, None]))
    return slopes[0] - slopes[1]


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_are_exact(name):
    kernel = KERNELS[name]
    for kind in ("heaviside", "reversed", "impulse"):
        memory = mj.memory_function(kernel, TS, kind=kind)
        np.testing.assert_allclose(memory.values, np.abs(kernel(TS)), rtol=1e-14)
        assert memory.exact and memory.bounded.all()


def test_matrices_take_the_largest_row():
    matrix = mj.VectorKernel(
        (
            (mj.ExponentialSum(1.0, 1.0), mj.ExponentialSum(-2.0, 0.5)),
            (mj.ExponentialSum(-3.0, 0.2), mj.PowerLaw(1.0)),
        )
    )
    rho = np.asarray(matrix(TS))
    expected = np.max(np.sum(np.abs(rho), axis=2), axis=1)
    memory = mj.memory_function(matrix, TS)
    np.testing.assert_allclose(memory.values, expected, rtol=1e-14)
    # The maximiser attains it.
    attained = np.abs(np.einsum("tpd,td->tp", rho, memory.maximiser)).max(axis=1)
    np.testing.assert_allclose(attained, expected, rtol=1e-14)
    assert np.all(np.abs(memory.maximiser) == 1)

    model = mj.LinearRNN.init(4, 2, 3, key=jax.random.key(0))
    rho = np.asarray(model.kernel()(TS))
    memory = mj.memory_function(model, TS)
    np.testing.assert_allclose(memory.values, np.abs(rho).sum(axis=2).max(axis=1), rtol=1e-13)


def test_integration_agrees_with_the_kernel():
    memory = mj.memory_function(LINEAR, TS, method="diffrax")
    np.testing.assert_allclose(memory.values, np.abs(LINEAR.kernel()(TS)), atol=3e-8)
    assert not memory.exact


def test_shifted_norm_of_a_kernel_is_approached_by_large_inputs():
    kernel = KERNELS["exponentials"]
    memory = mj.memory_function(kernel, TS, normalisation="shifted")
    np.testing.assert_array_equal(memory.values, mj.memory_function(kernel, TS).values)
    assert np.all(np.isinf(memory.maximiser))


def test_a_finite_warm_up_is_exact_for_kernels():
    kernel = KERNELS["exponentials"]
    memory = mj.memory_function(kernel, TS, kind="reversed", warm_up=0.7)
    np.testing.assert_allclose(memory.values, np.abs(kernel(TS) - kernel(TS + 0.7)), rtol=1e-14)


def discretised(method, kind, count):
    ts = np.linspace(0.0, 4.0, count + 1)
    options = {"warm_up": 20.0} if kind == "reversed" else {}
    return mj.memory_function(LINEAR, ts, method=method, kind=kind, **options)


@pytest.mark.parametrize("kind", ["heaviside", "reversed", "impulse"])
def test_euler_converges_at_first_order(kind):
    errors = []
    for count in (40, 80):
        memory = discretised("residual", kind, count)
        errors.append(np.max(np.abs(memory.values - np.abs(LINEAR.kernel()(memory.ts)))))
    assert np.log2(errors[0] / errors[1]) == pytest.approx(1.0, abs=0.15)


def test_exact_samples_converge_at_first_order_and_at_second_in_the_middle():
    errors = []
    for count in (40, 80):
        memory = discretised("scan", "heaviside", count)
        rho = lambda t: np.abs(LINEAR.kernel()(t))
        middles = memory.ts + 2.0 / count
        errors.append(
            [np.max(np.abs(memory.values - rho(t))) for t in (np.asarray(memory.ts), middles)]
        )
    orders = np.log2(np.array(errors[0]) / errors[1])
    np.testing.assert_allclose(orders, [1.0, 2.0], atol=0.15)


def test_three_inputs_agree_on_grids_of_a_linear_model():
    values = [
        discretised("residual", kind, 40).values for kind in ("heaviside", "reversed", "impulse")
    ]
    np.testing.assert_allclose(values[1], values[0], atol=1e-7)
    np.testing.assert_allclose(values[2], values[0], atol=1e-12)


@eqx.filter_jit
def brute_ratios(columns, xs):
    """Ratios for many inputs at once, straight from the definition."""

    def slopes(x):
        field = lambda t, h, args: jnp.tanh(RECURRENT @ h + columns @ x + BIAS)
        h = diffrax.diffeqsolve(
            diffrax.ODETerm(field), diffrax.Dopri5(), 0.0, TS[-1], 0.05, jnp.zeros(2),
            saveat=diffrax.SaveAt(ts=jnp.asarray(TS)),
        ).ys  # fmt: skip
        return jax.vmap(lambda h: READOUT @ field(0.0, h, None))(h)

    rise = jax.vmap(slopes)(xs) - slopes(0 * xs[0])
    return jnp.max(jnp.abs(rise) / jnp.max(jnp.abs(xs), axis=1)[:, None], axis=0)


@pytest.mark.slow
def test_continuous_tanh_rnn_against_scipy():
    column = np.array([[1.5], [0.9]])
    memory = mj.memory_function(tanh_rnn(column[:, 0]), TS)
    assert memory.bounded.all() and not memory.exact
    for k in (3, 12):
        x = float(memory.maximiser[k])
        attained = np.abs(reference_slope(column, np.array([x]), TS))[k] / abs(x)
        assert attained == pytest.approx(float(memory.values[k]), rel=1e-6)
    for x in (-20.0, -3.0, -0.4, 1e-3, 0.1, 1.0, 7.0):
        ratios = np.abs(reference_slope(column, np.array([x]), TS)) / abs(x)
        assert np.all(memory.values >= ratios * (1 - 1e-6))
    small = np.abs(reference_slope(column, np.array([1e-4]), TS)) / 1e-4
    np.testing.assert_allclose(memory.small_inputs, small, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_continuous_tanh_rnn_of_one_input_equals_brute_force():
    column = np.array([[1.5], [0.9]])
    memory = mj.memory_function(tanh_rnn(column[:, 0]), TS)
    amplitudes = np.concatenate([[1e-3], np.geomspace(0.05, 100, 6000)])
    brute = brute_ratios(column, np.concatenate([amplitudes, -amplitudes])[:, None])
    np.testing.assert_allclose(memory.values, brute, rtol=5e-4)
    assert np.all(memory.values >= brute * (1 - 1e-6))


@pytest.mark.slow
def test_grid_of_two_inputs_equals_brute_force_and_random_draws():
    model = tanh_rnn(np.array([[1.5, 0.4], [-0.9, 1.1]]))
    ts = np.linspace(0.0, 6.0, 16)
    memory = mj.memory_function(model, ts, method="residual")
    grid = np.append(ts, 6.4)

    @jax.jit
    def largest(xs):
        answer = lambda x: jnp.diff(model.residual(grid, jnp.broadcast_to(x, (17, 2)))) / 0.4
        slopes = jax.vmap(answer)(xs) - answer(jnp.zeros(2))
        return jnp.max(jnp.abs(slopes) / jnp.max(jnp.abs(xs), axis=1)[:, None], axis=0)

    side = np.linspace(-1, 1, 41)
    box = [(s, e) for s in side for e in (1, -1)] + [(e, s) for s in side for e in (1, -1)]
    amplitudes = np.geomspace(0.05, 100, 300)
    brute = largest((amplitudes[:, None, None] * np.array(box)).reshape(-1, 2))
    assert np.all(memory.values >= brute * (1 - 1e-6))
    np.testing.assert_allclose(memory.values, np.maximum(brute, memory.small_inputs), rtol=5e-3)
    sizes, directions = jax.random.uniform(jax.random.key(2), (2, 49200, 2))
    draws = np.exp(14 * sizes[:, :1] - 7) * (2 * directions - 1)
    assert np.all(memory.values >= largest(draws) * (1 - 1e-6))
    assert memory.maximiser.shape == (16, 2)
    # The maximisers attain the values.
    attained = [
        largest(memory.maximiser[k][None])[k] for k in range(16) if memory.maximiser[k].any()
    ]
    inner = np.any(np.asarray(memory.maximiser) != 0, axis=1)
    np.testing.assert_allclose(attained, memory.values[inner], rtol=1e-9)
    np.testing.assert_array_equal(memory.values[~inner], memory.small_inputs[~inner])


@pytest.mark.slow
def test_continuous_tanh_rnn_of_two_inputs_equals_brute_force():
    columns = np.array([[1.5, 0.4], [-0.9, 1.1]])
    memory = mj.memory_function(tanh_rnn(columns), TS)
    side = np.linspace(-1, 1, 31)
    box = [(s, e) for s in side for e in (1, -1)] + [(e, s) for s in side for e in (1, -1)]
    amplitudes = np.geomspace(0.05, 100, 150)
    brute = brute_ratios(columns, (amplitudes[:, None, None] * np.array(box)).reshape(-1, 2))
    assert np.all(memory.values >= brute * (1 - 1e-5))
    np.testing.assert_allclose(memory.values, brute, rtol=1e-2)


@pytest.mark.slow
def test_gates_make_a_power_law_of_exponentials():
    cell = eqx.nn.GRUCell(1, 16, key=jax.random.key(0))
    ts = np.arange(300.0)
    memory = mj.memory_function(cell, ts)
    assert memory.bounded.all()
    decay = mj.memory_decay(memory)
    assert decay.verdict == "polynomial" and 1.0 < decay.exponent < 1.2
    # By inputs that grow like log t; small ones are forgotten exponentially.
    sizes = np.abs(memory.maximiser)
    assert sizes[280] - sizes[140] == pytest.approx(sizes[140] - sizes[70], rel=0.3)
    assert mj.memory_decay((memory.ts, memory.small_inputs)).verdict == "exponential"


@pytest.mark.slow
def test_models_are_batched_by_vmap():
    keys = jax.random.split(jax.random.key(0), 3)
    make = lambda key: mj.NonlinearRNN.init(4, key=key)
    values = lambda model: mj.memory_function(model, np.arange(10.0), method="residual").values
    batch = jax.vmap(values)(jax.vmap(make)(keys))
    np.testing.assert_allclose(batch[1], values(make(keys[1])), rtol=1e-9)


@pytest.mark.slow
def test_functions_without_forward_mode():
    target = mj.Lorenz96(4, 2, key=jax.random.key(0))
    memory = mj.memory_function(target, np.linspace(0, 0.5, 6), search=CHEAP)
    assert np.all(memory.values >= memory.small_inputs) and np.all(memory.small_inputs > 0)


@pytest.mark.slow
def test_volterra_series_are_flagged():
    target = mj.Volterra(None, [(mj.ExponentialSum(1.0, 1.0), mj.ExponentialSum(1.0, 2.0))])
    assert not mj.memory_function(target, TS).bounded.any()


def test_quadratic_memory_is_flagged():
    memory = mj.memory_function(lambda ts, xs: jnp.cumsum(xs**2) * (ts[1] - ts[0]), TS)
    assert not memory.bounded.any()
    np.testing.assert_allclose(np.abs(memory.maximiser), 1e3)
    np.testing.assert_allclose(memory.values, 1e3, rtol=1e-9)
    np.testing.assert_array_equal(memory.small_inputs, 0)
    assert mj.memory_decay(memory, tail=(1.0, 6.0)).verdict == "undecided"


def test_sequence_models():
    decay = 0.7

    def single(xs):
        return jax.lax.scan(lambda h, x: (decay * h + x, decay * h + x), 0.0, xs)[1]

    ts = np.arange(8) * 0.5
    memory = mj.memory_function(single, ts)
    # The recursion has moved on by one step when its output first changes.
    np.testing.assert_allclose(memory.values, decay ** (np.arange(8) + 1) / 0.5, rtol=1e-12)
    np.testing.assert_array_equal(memory.maximiser, 0)
    batched = mj.as_functional(lambda ts, xs: jax.vmap(single)(xs), batched=True)
    np.testing.assert_array_equal(batched(ts, ts), single(jnp.asarray(ts)))


def test_half_time_and_horizon():
    ts = np.linspace(0, 20, 201)
    memory = mj.memory_function(mj.ExponentialSum(3.0, 0.5), ts)
    assert float(memory.half_time()) == pytest.approx(np.log(2) / 0.5, rel=1e-12)
    assert float(memory.horizon(0.01)) == pytest.approx(np.log(100) / 0.5, rel=1e-12)
    assert float(memory.horizon(1e-6)) == np.inf
    # What comes back later counts.
    delayed = mj.ExponentialSum(1.0, 1.0) + mj.DelayedKernel(mj.ExponentialSum(0.6, 1.0), 10.0)
    back = mj.memory_function(delayed, ts).half_time()
    assert float(back) == pytest.approx(10 + np.log(1.2), abs=1e-3)
    assert float(mj.memory_function(mj.ExponentialSum(0.0, 1.0), ts).half_time()) == 0
    with pytest.raises(ValueError, match="`level` must be"):
        memory.horizon(1.0)


def test_datasets_and_figure():
    ts = np.linspace(0, 20, 41)
    memories = {
        "slow": mj.memory_function(mj.PowerLaw(0.5), ts),
        "fast": mj.memory_function(mj.ExponentialSum(1.0, 1.0), ts[:21]),
    }
    dataset = mj.memory_dataset(memories)
    assert dict(dataset.sizes) == {"functional": 2, "time": 41}
    np.testing.assert_array_equal(dataset["memory"].sel(functional="slow"), memories["slow"].values)
    assert np.isnan(dataset["memory"].sel(functional="fast", time=20.0))
    assert float(dataset["half_time"].sel(functional="fast")) == pytest.approx(np.log(2))
    figure = viz.plot_memory_functions(dataset)
    left, right = figure.axes
    assert (left.get_xscale(), right.get_xscale()) == ("linear", "log")
    said = [text.get_text() for text in right.get_legend().get_texts()]
    assert said == ["slow", "fast", "half-time"]
    marks = [line for line in left.lines if len(line.get_xdata()) == 1]
    assert marks[1].get_xydata()[0] == pytest.approx([np.log(2), 0.5])
    with pytest.raises(ValueError, match="`memories` must have a variable 'memory'"):
        viz.plot_memory_functions(dataset.drop_vars("memory"))
    with pytest.raises(TypeError, match="`memories` must be memory functions, got 1.0"):
        mj.memory_dataset({"a": 1.0})


def test_differentiable_in_the_weights_of_a_linear_model():
    def half(rate):
        memory = mj.memory_function(mj.ExponentialSum(1.0, rate), TS)
        return memory.half_time()

    assert float(jax.grad(half)(0.5)) == pytest.approx(-np.log(2) / 0.25, rel=1e-10)


def test_as_functional_runs_everything():
    ts = np.arange(3.0)
    xs = np.sin(ts)
    model = mj.NonlinearRNN.init(3, key=jax.random.key(0))
    assert mj.as_functional(model).method == "diffrax"
    assert mj.as_functional(model, method="residual").method == "residual"
    assert mj.as_functional(LINEAR).method == "scan"
    assert mj.as_functional(mj.PowerLaw(1.0)).method == "response"
    assert mj.as_functional(lambda xs: xs).method == "sequence"
    assert mj.as_functional(lambda ts, xs: xs).method == "path"
    stack = mj.StateSpaceStack([mj.StateSpaceLayer.init(jnp.ones(2), key=jax.random.key(0))] * 2)
    assert mj.as_functional(stack).method == "diffrax" and mj.as_functional(stack).inputs is None
    assert mj.as_functional(mj.NonlinearRNN.init(3, 4, key=jax.random.key(0))).inputs == 4
    cell = eqx.nn.GRUCell(1, 3, key=jax.random.key(0))
    hidden = jnp.zeros(3)
    for x in xs:
        hidden = cell(jnp.array([x]), hidden)
    np.testing.assert_allclose(mj.as_functional(cell)(ts, xs)[-1], hidden, rtol=1e-14)
    same = mj.as_functional(cell)
    assert mj.as_functional(same) is same


BAD = [
    (lambda: mj.as_functional(3), TypeError, "`functional` must be a target"),
    (lambda: mj.as_functional(lambda a, b, c: a), TypeError, "one required argument"),
    (lambda: mj.as_functional(LINEAR, method="sequence"), ValueError, "`method` must be one of"),
    (lambda: mj.as_functional(LINEAR, batched=True), ValueError, "`batched` is for plain"),
    (lambda: mj.as_functional(mj.PowerLaw(1.0), inputs=2), ValueError, "`inputs` must be None"),
    (lambda: mj.as_functional(lambda xs: xs[1:])(TS, TS), ValueError, "one output a time"),
    (
        lambda: mj.as_functional(lambda xs: xs[0], batched=True)(TS, TS),
        ValueError,
        "keep the batch axis",
    ),
    (lambda: mj.memory_function(lambda xs: xs, [0, 1, 3]), ValueError, "evenly spaced"),
    (lambda: mj.memory_function(lambda xs: xs, [1, 2, 3]), ValueError, "`ts` must start at 0"),
    (lambda: mj.memory_function(LINEAR, [-1, 0, 1]), ValueError, "`ts` must not be negative"),
    (lambda: mj.memory_function(LINEAR, TS, kind="step"), ValueError, "`kind` must be one of"),
    (lambda: mj.WorstCase(amplitudes=(2, 1)), ValueError, "`amplitudes` must"),
    (lambda: mj.memory_function(LINEAR, TS, amplitudes=3.0), ValueError, "`amplitudes` must"),
    (
        lambda: jax.jit(lambda ts: mj.memory_function(LINEAR, ts).values)(TS),
        ValueError,
        "`ts` must be concrete",
    ),
]


@pytest.mark.parametrize("call, error, message", BAD)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_arguments_of_the_search_are_taken_under_their_old_names_for_a_release():
    tanh = mj.NonlinearRNN.init(2, key=jax.random.key(0))
    ts = np.linspace(0, 1, 3)
    cheap = {"num_amplitudes": 3, "refinements": 0}
    with pytest.warns(DeprecationWarning, match=r"write `search=WorstCase\(num_amplitudes=..., "):
        old = mj.memory_function(tanh, ts, **cheap)  # pyright: ignore[reportCallIssue]
    new = mj.memory_function(tanh, ts, search=mj.WorstCase(**cheap))
    np.testing.assert_array_equal(old.values, new.values)
    with pytest.raises(TypeError, match="got `search` and `refinements`"):
        mj.memory_function(tanh, ts, search=mj.WorstCase(), refinements=0)  # pyright: ignore
