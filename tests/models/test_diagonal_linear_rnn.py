import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, interpolate

import memjax as mj

AMPLITUDES, RATES = np.array([1.0, -0.7, 0.4]), np.array([1.0, 0.2, 6.0])
STIFF_AMPLITUDES, STIFF_RATES = np.array([0.3, 1.0, -2.0, 50.0]), np.array([1e-2, 1.0, 40.0, 1e4])
RNG = np.random.default_rng(7)
TIMES = np.concatenate([[0.5], 0.5 + np.cumsum(RNG.uniform(0.05, 0.6, size=19))])
SAMPLES = RNG.normal(size=20)


def model(amplitudes=AMPLITUDES, rates=RATES, reparametrisation=None):
    return mj.DiagonalLinearRNN(jnp.asarray(amplitudes), jnp.asarray(rates), reparametrisation)


def held_or_linear_output(amplitudes, rates, ts, xs, interpolation):
    """The convolution of the kernel, exactly, interval by interval and mode by mode.

    Complex arguments pass through, for derivatives by a complex step.
    """
    hidden = np.zeros(len(rates), np.result_type(rates, xs))
    outputs = [amplitudes @ hidden]
    for k, step in enumerate(np.diff(ts)):
        held = -np.expm1(-rates * step) / rates
        hidden = np.exp(-rates * step) * hidden + xs[k] * held
        if interpolation == "linear":
            hidden = hidden + (xs[k + 1] - xs[k]) / step * (step - held) / rates
        outputs.append(amplitudes @ hidden)
    return np.array(outputs)


def convolution(amplitudes, rates, ts, path):
    """The convolution of the kernel by adaptive quadrature between the times."""
    outputs, hidden = [0.0], np.zeros(len(rates))
    for start, end in zip(ts[:-1], ts[1:], strict=True):
        for i, w in enumerate(rates):
            # Beyond forty decay times nothing of the past is left.
            lower = max(start, end - 40 / w)
            piece, _ = integrate.quad(
                lambda s, w=w, end=end: np.exp(-w * (end - s)) * path(s),
                lower,
                end,
                epsabs=1e-13,
                epsrel=1e-12,
                limit=200,
            )
            hidden[i] = np.exp(-w * (end - start)) * hidden[i] + piece
        outputs.append(amplitudes @ hidden)
    return np.array(outputs)


def hermite(ts, xs):
    """The cubic through the samples whose slopes are the differences backwards."""
    slopes = np.diff(xs) / np.diff(ts)
    return interpolate.CubicHermiteSpline(ts, xs, np.concatenate([slopes[:1], slopes]))


@pytest.mark.thorough
@pytest.mark.parametrize(
    "amplitudes, rates, interpolation",
    [
        pytest.param(AMPLITUDES, RATES, "linear", marks=pytest.mark.slow),
        (STIFF_AMPLITUDES, STIFF_RATES, "linear"),
        (STIFF_AMPLITUDES, STIFF_RATES, "previous"),
        (STIFF_AMPLITUDES, STIFF_RATES, "cubic"),
    ],
    ids=["mild linear", "stiff linear", "stiff previous", "stiff cubic"],
)
def test_sampled_input_gives_the_convolution_of_the_kernel(amplitudes, rates, interpolation):
    outputs = model(amplitudes, rates)(TIMES, SAMPLES, interpolation=interpolation)
    if interpolation == "cubic":
        exact = convolution(amplitudes, rates, TIMES, hermite(TIMES, SAMPLES))
    else:
        exact = held_or_linear_output(amplitudes, rates, TIMES, SAMPLES, interpolation)
    assert outputs.shape == TIMES.shape
    np.testing.assert_allclose(outputs, exact, atol=1e-7 * np.max(np.abs(exact)))


def test_input_as_a_function_of_time():
    amplitudes, rates = STIFF_AMPLITUDES, STIFF_RATES
    ts = np.linspace(-1.0, 6.0, 30)
    outputs = model(amplitudes, rates, mj.Exp())(ts, lambda t: jnp.sin(3 * t) + t**2)
    exact = convolution(amplitudes, rates, ts, lambda s: np.sin(3 * s) + s**2)
    np.testing.assert_allclose(outputs, exact, atol=1e-7 * np.max(np.abs(exact)))


@pytest.mark.thorough
def test_kernel_is_the_response_to_an_impulse():
    # A held input of height 1/dt over one dt, as dt goes to 0.
    width = 1e-7
    ts = np.array([0.0, width, 0.3, 1.0, 4.0])
    xs = np.array([1 / width, 0.0, 0.0, 0.0, 0.0])
    outputs = model()(ts, xs, interpolation="previous")
    exact = np.exp(-np.outer(ts[2:], RATES)) @ AMPLITUDES
    np.testing.assert_allclose(outputs[2:], exact, rtol=1e-5)
    np.testing.assert_allclose(model().kernel()(ts[2:]), exact, rtol=1e-14)


@pytest.mark.slow
def test_batches_of_inputs_under_vmap():
    batch = RNG.normal(size=(3, 20))
    outputs = jax.vmap(lambda xs: model()(TIMES, xs))(batch)
    exact = [held_or_linear_output(AMPLITUDES, RATES, TIMES, xs, "linear") for xs in batch]
    np.testing.assert_allclose(outputs, exact, atol=1e-7)


@pytest.mark.slow
def test_gradient_with_respect_to_weights_and_samples():
    gain = 2.0
    weighting = RNG.normal(size=20)

    @eqx.filter_jit
    @eqx.filter_grad
    def gradient(everything):
        rnn, xs = everything
        return jnp.dot(weighting, rnn(TIMES, xs))

    rnn = model(reparametrisation=mj.Exp(gain))
    found, by_sample = gradient((rnn, jnp.asarray(SAMPLES)))

    def complex_step(function, x):
        steps = 1e-30j * np.eye(len(x))
        return np.array([function(x + h).imag for h in steps]) / 1e-30

    def total(amplitudes, rates, xs):
        return weighting @ held_or_linear_output(amplitudes, rates, TIMES, xs, "linear")

    exact = complex_step(lambda a: total(a, RATES, SAMPLES), AMPLITUDES)
    np.testing.assert_allclose(found.amplitudes, exact, rtol=1e-6)
    exact = gain * RATES * complex_step(lambda w: total(AMPLITUDES, w, SAMPLES), RATES)
    np.testing.assert_allclose(found.free_rates, exact, rtol=1e-6)
    exact = complex_step(lambda xs: total(AMPLITUDES, RATES, xs), SAMPLES)
    np.testing.assert_allclose(by_sample, exact, rtol=1e-6, atol=1e-7)


def test_solver_and_controller_are_the_users():
    # Euler's method with the samples' own step, by hand.
    ts = np.linspace(0.0, 1.0, 11)
    xs = np.sin(ts)
    outputs = model()(
        ts,
        xs,
        solver=diffrax.Euler(),
        stepsize_controller=diffrax.ConstantStepSize(),
    )
    hidden, exact = np.zeros(3), [0.0]
    for k in range(10):
        hidden = hidden + 0.1 * (-RATES * hidden + xs[k])
        exact.append(AMPLITUDES @ hidden)
    np.testing.assert_allclose(outputs, exact, rtol=1e-12, atol=1e-15)


@pytest.mark.thorough
def test_single_precision():
    amplitudes, rates = (jnp.asarray(x, jnp.float32) for x in (AMPLITUDES, RATES))
    rnn = mj.DiagonalLinearRNN(amplitudes, rates)
    ts, xs = (jnp.asarray(x, jnp.float32) for x in (TIMES, SAMPLES))
    controller = diffrax.ClipStepSizeController(
        diffrax.PIDController(rtol=1e-4, atol=1e-5), step_ts=ts[1:-1]
    )
    outputs = rnn(ts, xs, stepsize_controller=controller)
    exact = held_or_linear_output(AMPLITUDES, RATES, TIMES, SAMPLES, "linear")
    assert outputs.dtype == jnp.float32
    np.testing.assert_allclose(outputs, exact, atol=1e-3)


@pytest.mark.parametrize("gain", [0.5, 3.0])
def test_rates_are_those_asked_for(gain):
    rnn = model(reparametrisation=mj.Exp(gain))
    np.testing.assert_allclose(rnn.rates, RATES, rtol=1e-14)
    np.testing.assert_allclose(rnn.free_rates, np.log(RATES) / gain, rtol=1e-14, atol=1e-15)
    assert rnn.width == 3


def test_weights_are_trained_and_gains_are_not():
    spec = mj.trainable(model(reparametrisation=mj.Exp()))
    assert spec.amplitudes and spec.decays.free_rates and not spec.reparametrisation.gain


BAD_MODELS = [
    ([1.0], [0.0], ValueError, r"`rates` must be positive, got 0.0"),
    ([1.0, 1.0], [1.0, -2.0], ValueError, r"`rates` must be positive, got -2.0"),
    ([1.0], [np.nan], ValueError, r"`rates` must be finite, got nan"),
    ([1.0], [np.inf], ValueError, r"`rates` must be finite, got inf"),
    ([np.nan], [1.0], ValueError, r"`amplitudes` must be finite, got nan"),
    ([1.0, 2.0], [1.0], ValueError, r"`amplitudes` and `rates` must have the same shape"),
    (1.0, 1.0, ValueError, r"`amplitudes` must be a 1-D array"),
    ([], [], ValueError, r"`amplitudes` must be a 1-D array of at least one mode"),
    ([[1.0]], [[1.0]], ValueError, r"`amplitudes` must be a 1-D array"),
    ([1j], [1.0], TypeError, r"`amplitudes` must be real"),
    ([None], [1.0], TypeError, r"`amplitudes` must be a number"),
]


@pytest.mark.parametrize("amplitudes, rates, error, match", BAD_MODELS)
def test_bad_weights_are_refused(amplitudes, rates, error, match):
    with pytest.raises(error, match=match):
        mj.DiagonalLinearRNN(amplitudes, rates)


def test_a_class_is_no_reparametrisation():
    with pytest.raises(TypeError, match=r"`reparametrisation` must be a map .*, got the class"):
        mj.DiagonalLinearRNN(AMPLITUDES, RATES, mj.Exp)  # pyright: ignore[reportArgumentType]


BAD_INPUTS = [
    ([0.0, 1.0, 0.5], np.ones(3), {}, r"`ts` must increase, got 1.0 and then 0.5"),
    ([0.0, 1.0, 1.0], np.ones(3), {}, r"`ts` must increase, got 1.0 and then 1.0"),
    ([0.0, np.nan, 1.0], np.ones(3), {}, r"`ts` must be finite"),
    ([0.0], np.ones(1), {}, r"`ts` must be 1-D with at least 2 entries"),
    ([[0.0, 1.0]], np.ones(2), {}, r"`ts` must be 1-D"),
    ([0.0, 1.0], np.ones(3), {}, r"`xs` must have one sample per time, got shape \(3,\)"),
    ([0.0, 1.0], 1.0, {}, r"`xs` must have one sample per time"),
    ([0.0, 1.0], [0.0, np.inf], {}, r"`xs` must be finite"),
    ([0.0, 1.0], np.ones(2), {"interpolation": "spline"}, r"`interpolation` must be .*'spline'"),
]


@pytest.mark.parametrize("ts, xs, options, match", BAD_INPUTS)
def test_bad_inputs_are_refused(ts, xs, options, match):
    with pytest.raises(ValueError, match=match):
        model()(jnp.asarray(ts), xs, **options)
