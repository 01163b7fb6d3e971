"""Steps between times, above all of times in single precision."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from precision import double

import memjax as mj
from memjax._paths import as_steps, even_step

RNG = np.random.default_rng(0)
# Audio after five minutes: half a step is lost in the rounding of every time.
LATE, STEP = 300.0, 1 / 16000
COUNT = 4000
EXACT = LATE + STEP * np.arange(COUNT)
SHORT = EXACT.astype(np.float32)
XS = RNG.standard_normal(COUNT)


@pytest.fixture(params=[True, False], ids=["x64", "x32"])
def x64(request):
    with double(request.param):
        yield request.param


def uneven(start, count=200):
    return start + np.cumsum(STEP * RNG.uniform(0.5, 1.5, count))


@pytest.mark.parametrize("start", [0.0, 5.0, LATE])
@pytest.mark.parametrize("step", [1 / 16000, 1 / 44100 * 2, 0.1, 1.0])
@pytest.mark.parametrize(
    "make",
    [
        lambda a, d, n: (a + d * np.arange(n)).astype(np.float32),
        lambda a, d, n: np.float32(a) + np.float32(d) * np.arange(n, dtype=np.float32),
        lambda a, d, n: np.linspace(a, a + d * (n - 1), n, dtype=np.float32),
        lambda a, d, n: jnp.linspace(a, a + d * (n - 1), n, dtype=jnp.float32),
        lambda a, d, n: jnp.asarray(a + d * np.arange(n), jnp.float32),
    ],
)
def test_an_even_clock_has_one_step_however_it_was_rounded(make, start, step, x64):
    ts = make(start, step, 1000)
    # The ends, too, are rounded: that is what is left.
    left = 3e-7 * float(ts[-1]) / (999 * step) + 3e-7
    np.testing.assert_allclose(as_steps(ts), step, rtol=left)
    np.testing.assert_allclose(jax.jit(as_steps)(ts), step, rtol=2 * left)
    assert even_step(ts) == pytest.approx(step, rel=left)
    assert as_steps(ts).dtype == jnp.float32


def test_steps_are_those_of_times_as_they_were_given(x64):
    for start in (0.0, LATE):
        ts = uneven(start)
        np.testing.assert_allclose(as_steps(ts), np.diff(ts), rtol=1e-7)
        np.testing.assert_allclose(as_steps(ts.tolist()), np.diff(ts), rtol=1e-7)
    np.testing.assert_array_equal(as_steps([0, 1, 3, 4]), [1, 2, 1])
    assert even_step(uneven(0.0)) is None and even_step([0, 2, 4]) == 2


def test_steps_that_are_lost_in_rounding_are_refused_or_nan():
    ts = uneven(LATE).astype(np.float32)
    assert np.all(np.diff(ts) > 0)
    with pytest.raises(
        ValueError, match="`ts` must tell its steps.* % of a step.*float64"
    ) as caught:
        as_steps(ts)
    assert "\n" not in str(caught.value)
    assert np.all(np.isnan(jax.jit(as_steps)(ts)))
    # 0.2 % of a step at most is let pass.
    near = uneven(0.0).astype(np.float32)
    np.testing.assert_allclose(as_steps(near), np.diff(near.astype(float)), rtol=1e-6)
    np.testing.assert_array_equal(as_steps(near), jax.jit(as_steps)(near))
    with pytest.raises(ValueError, match="`times` must tell its steps"):
        mj.SampledKernel(ts, np.ones(ts.size))
    # Nanoseconds of the clock of a computer, in double precision.
    with pytest.raises(ValueError, match="`ts` must tell its steps"):
        as_steps(1.7e9 + np.cumsum(RNG.uniform(5e-5, 2e-4, 50)))


def test_an_even_clock_whose_step_is_lost_is_refused():
    """A few samples late in a recording: their first and last time are rounded, too."""
    with pytest.raises(ValueError, match="`ts` must tell its steps"):
        as_steps(SHORT[:100])
    assert np.all(np.isnan(jax.jit(as_steps)(SHORT[:100])))
    np.testing.assert_allclose(as_steps(SHORT[:500]), STEP, rtol=2e-3)


def test_derivatives_in_the_times_are_those_of_differences():
    weights = RNG.standard_normal(9)
    for ts in (np.linspace(0, 1, 10), np.sort(RNG.uniform(size=10))):
        slopes = jax.grad(lambda ts: jnp.sum(weights * as_steps(ts)))(jnp.asarray(ts))
        exact = jax.grad(lambda ts: jnp.sum(weights * jnp.diff(ts)))(jnp.asarray(ts))
        np.testing.assert_allclose(slopes, exact, rtol=1e-13)


# --- Everything that takes times ------------------------------------------------------------------


def recurrence(rates, amplitudes, steps, xs):
    """The outputs of diagonal models, step by step in double precision."""
    hidden, outputs = np.zeros(len(rates)), [0.0]
    for step, begin, end in zip(steps, xs[:-1], xs[1:], strict=True):
        z = -np.asarray(rates) * step
        first = np.expm1(z) / z
        second = (first - 1) / z
        hidden = np.exp(z) * hidden + step * (first * begin + second * (end - begin))
        outputs.append(hidden @ amplitudes)
    return np.array(outputs)


def euler(rates, amplitudes, steps, xs):
    hidden, outputs = np.zeros(len(rates)), [0.0]
    for step, x in zip(steps, xs[:-1], strict=True):
        hidden = hidden + step * (-np.asarray(rates) * hidden + x)
        outputs.append(hidden @ amplitudes)
    return np.array(outputs)


RATES, AMPLITUDES = [300.0, 40.0], [2.0, -1.0]


def functionals():
    model = mj.DiagonalLinearRNN(AMPLITUDES, RATES)
    return {
        "diagonal": model.scan,
        "residual": model.residual,
        "complex": mj.ComplexDiagonalRNN(AMPLITUDES, [0.0, 0.0], RATES, [0.0, 0.0]).scan,
        "dense": mj.LinearRNN(-np.diag(RATES), np.ones(2), AMPLITUDES).scan,
        "stack": mj.StateSpaceStack(
            [mj.StateSpaceLayer(RATES, np.ones(2), None, AMPLITUDES, activation=lambda h: h)]
        ).scan,
        "kernel": mj.ExponentialSum(AMPLITUDES, RATES).response,
        "state space": mj.ExponentialSum(AMPLITUDES, RATES).response,
        "functional": mj.as_functional(model),
        "functional residual": mj.as_functional(model, method="residual"),
    }


NAMES = list(functionals())


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_outputs_late_in_a_recording_are_exact_in_single_precision(name):
    exact = (euler if "residual" in name else recurrence)(
        RATES, AMPLITUDES, np.full(COUNT - 1, STEP), XS
    )
    scale = np.abs(exact).max()
    with double(False):
        run = functionals()[name]
        for ts in (SHORT, jnp.asarray(SHORT), EXACT, jnp.asarray(EXACT)):
            # What is left is the rounding of the first and the last time.
            np.testing.assert_allclose(run(ts, XS), exact, atol=3e-4 * scale)
        if "kernel" not in name:
            np.testing.assert_allclose(
                jax.jit(lambda ts, xs: run(ts, xs))(SHORT, XS), exact, atol=3e-4 * scale
            )


@pytest.mark.thorough
@pytest.mark.parametrize("name", [name for name in NAMES if name != "kernel"])
def test_uneven_times_are_exact_or_refused_in_single_precision(name):
    ts = uneven(LATE)
    exact = (euler if "residual" in name else recurrence)(
        RATES, AMPLITUDES, np.diff(ts), XS[: ts.size]
    )
    with double(False):
        run = functionals()[name]
        np.testing.assert_allclose(run(ts, XS[: ts.size]), exact, atol=1e-5 * np.abs(exact).max())
        with pytest.raises(ValueError, match="`ts` must tell its steps"):
            run(ts.astype(np.float32), XS[: ts.size])
        late = jax.jit(lambda ts, xs: run(ts, xs))(ts.astype(np.float32), XS[: ts.size])
        assert np.all(np.isnan(late[1:]))


def test_kernels_without_a_state_space_say_what_single_precision_costs():
    ts = 0.1 * np.arange(400)
    exact = np.asarray(mj.PowerLaw(0.5).response(ts, XS[:400]))
    with double(False):
        kernel = mj.PowerLaw(0.5)
        with pytest.raises(ValueError, match="at most 56 times for PowerLaw in float32, got 400"):
            kernel.response(ts, XS[:400])
        short = kernel.response(ts[:56], XS[:56])
    np.testing.assert_allclose(short, exact[:56], atol=1e-3 * np.std(exact))


@pytest.mark.thorough
def test_integration_with_error_control_needs_times_that_are_resolved():
    model = mj.NonlinearRNN(-np.eye(2), np.ones(2), None, np.ones(2))
    with double(False):
        model = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), model)
        with pytest.raises(ValueError, match="`ts` must tell its steps"):
            model(SHORT[:10], XS[:10])
        # Of a function of time no differences are taken.
        assert np.all(np.isfinite(model(SHORT[:10], jnp.sin)))
    with pytest.raises(ValueError, match="`ts` must tell its steps"):
        mj.Lorenz96(key=jax.random.key(0)).response(uneven(LATE).astype(np.float32)[:9], XS[:9])


@pytest.mark.slow
def test_losses_memories_and_attention_late_in_a_recording():
    target = mj.ExponentialSum(AMPLITUDES, RATES)
    model = mj.DiagonalLinearRNN([1.0, 0.5], [200.0, 30.0])
    xs = XS[None]
    exact = mj.SampledPathLoss(target, EXACT - LATE, xs)(model)
    heads = mj.Attention.random([100.0, 10.0], key=jax.random.key(0))
    attended = heads.response(STEP * np.arange(1000), XS[:1000])
    cell = eqx.nn.GRUCell(1, 3, key=jax.random.key(1))
    with double(False):
        short = lambda leaf: jnp.asarray(leaf, jnp.float32) if eqx.is_inexact_array(leaf) else leaf
        target, model, heads, cell = jax.tree.map(short, (target, model, heads, cell))
        loss = mj.SampledPathLoss(target, SHORT, xs)
        np.testing.assert_allclose(loss(model), exact, rtol=1e-3)
        np.testing.assert_allclose(jax.jit(lambda m: loss(m))(model), exact, rtol=1e-3)
        found = heads.response(SHORT[:1000], XS[:1000])
        np.testing.assert_allclose(found, attended, atol=1e-3 * np.abs(attended).max())
        with pytest.raises(ValueError, match="`ts` must tell its steps"):
            mj.SampledPathLoss(target, uneven(LATE), XS[None, :200])
        noise = mj.SampledPathLoss.white_noise(target, SHORT, 3, key=jax.random.key(0))
        np.testing.assert_allclose(np.std(noise.xs) * STEP**0.5, 1, rtol=0.05)
        assert mj.as_functional(cell)(SHORT, XS).shape == (COUNT, 3)


def test_memory_functions_of_clocks_in_single_precision():
    ts = np.asarray(STEP * np.arange(8000), np.float32)
    model = mj.DiagonalLinearRNN([1.0, 0.5], [200.0, 30.0])
    memory = mj.memory_function(model, ts, method="scan")
    np.testing.assert_allclose(memory.ts, STEP * np.arange(8000), rtol=1e-6)
    middle = STEP * (np.arange(8000) + 0.5)
    kernel = np.exp(-200 * middle) + 0.5 * np.exp(-30 * middle)
    np.testing.assert_allclose(memory.values, kernel, rtol=1e-4)
