import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from scipy import linalg

import memjax as mj

MODES = [(0.3, 0.0), (0.05, 1.1), (2.0, -0.4)]


def discrete(w, nu, step, kappa, normalised):
    """Mean squares of the state and of its slopes in rate and angle, by a Lyapunov equation."""
    multiplier = np.exp((-w + 1j * nu) * step)
    r, rho = abs(multiplier), np.exp(-kappa * step)
    gamma, slope = (np.sqrt(1 - r**2), -r / np.sqrt(1 - r**2)) if normalised else (1.0, 0.0)
    unit = multiplier / r
    # The input, the state, and its slopes in the modulus and in the angle.
    next_input = np.array([rho, 0, 0, 0], complex)
    a = np.array(
        [
            next_input,
            gamma * next_input + [0, multiplier, 0, 0],
            slope * next_input + [0, unit, multiplier, 0],
            [0, 1j * multiplier, 0, multiplier],
        ]
    )
    b = np.array([1, gamma, slope, 0], complex)[:, None] * np.sqrt(1 - rho**2)
    p = linalg.solve_discrete_lyapunov(a, b @ b.conj().T).real.diagonal()
    return p[1], p[2] * (step * r) ** 2, p[3]


def continuous(w, nu, kappa, normalised):
    s = w - 1j * nu
    gamma, slope = (np.sqrt(2 * w), 1 / np.sqrt(2 * w)) if normalised else (1.0, 0.0)
    if kappa is None:
        a = np.array([[-s, 0, 0], [-1, -s, 0], [1j, 0, -s]])
        b = np.array([gamma, slope, 0], complex)[:, None]
        p = linalg.solve_continuous_lyapunov(a, -b @ b.conj().T).real.diagonal()
        return tuple(p)
    a = np.array([[-kappa, 0, 0, 0], [gamma, -s, 0, 0], [slope, -1, -s, 0], [0, 1j, 0, -s]])
    b = np.array([np.sqrt(2 * kappa), 0, 0, 0], complex)[:, None]
    p = linalg.solve_continuous_lyapunov(a, -b @ b.conj().T).real.diagonal()
    return tuple(p[1:])


@pytest.mark.parametrize("kappa", [None, 0.7])
@pytest.mark.parametrize("step", [None, 0.5])
def test_closed_forms_solve_the_lyapunov_equations(kappa, step):
    rates, frequencies = np.array(MODES).T
    for normalised in (False, True):
        options = {"step": step, "correlation_rate": kappa, "normalised": normalised}
        found = [
            mj.hidden_variance(rates, frequencies, **options),
            mj.rate_sensitivity(rates, frequencies, **options),
            mj.angle_sensitivity(rates, frequencies, **options),
        ]
        for k, (w, nu) in enumerate(MODES):
            if step is None:
                exact = continuous(w, nu, kappa, normalised)
            else:
                exact = discrete(w, nu, step, np.inf if kappa is None else kappa, normalised)
            np.testing.assert_allclose([f[k] for f in found], exact, rtol=1e-10)


def test_published_closed_forms():
    multipliers = np.array([0.0, 0.5, -0.9, 0.3 + 0.6j])
    r2 = np.abs(multipliers) ** 2
    found = mj.multiplier_sensitivity(multipliers)
    np.testing.assert_allclose(found, (1 + r2) / (1 - r2) ** 3, rtol=1e-13)
    found = mj.multiplier_sensitivity(multipliers, normalised=True)
    np.testing.assert_allclose(found, 1 / (1 - r2) ** 2, rtol=1e-13)
    # A negative multiplier is of the angle pi: correlation shrinks its memory.
    power = np.arange(400)
    lags = np.abs(power[:, None] - power)
    slopes = power[1:] * (-0.9) ** power[:-1]
    exact = slopes @ (0.4 ** lags[:-1, :-1]) @ slopes
    np.testing.assert_allclose(mj.multiplier_sensitivity(-0.9, 0.4), exact, rtol=1e-12)


@pytest.mark.parametrize("w", [1e-12, 1e-60, 700.0])
def test_rates_of_any_size_keep_their_digits(w):
    kappa, step = 1e-3, 0.25
    nu = min(w, 1.0)
    with mpmath.workdps(200):
        m = mpmath.mp
        exact_w = m.mpf(w)
        multiplier = m.exp((-exact_w + 1j * m.mpf(nu)) * step)
        r2 = abs(multiplier) ** 2
        z = m.exp(-m.mpf(kappa) * step) * multiplier
        spread = m.re((1 + z) / (1 - z))
        modulus = (1 + r2) / (1 - r2) ** 3 * spread + 2 / (1 - r2) ** 2 * m.re(z / (1 - z) ** 2)
        exact = step**2 * r2 * modulus
        s = m.mpf(kappa) + exact_w - 1j * m.mpf(nu)
        flowing = 2 * m.re(1 / s) / (4 * exact_w**3) + m.re(1 / s**2) / (2 * exact_w**2)
    options = {"frequencies": nu, "correlation_rate": kappa}
    found = mj.rate_sensitivity(w, step=step, **options)
    np.testing.assert_allclose(found, float(exact), rtol=1e-12)
    np.testing.assert_allclose(mj.rate_sensitivity(w, **options), float(flowing), rtol=1e-12)


def test_exponential_rates_and_scaled_angles_bound_the_sensitivity():
    rates = jnp.logspace(-30, 0, 61)
    rate = mj.rate_sensitivity(rates, step=1.0, normalised=True, reparametrisation=mj.Exp())
    # |lambda| log|lambda| / (1 - |lambda|^2) is at most a half.
    assert np.all(rate <= 0.25 * (1 + 1e-12)) and rate[0] == pytest.approx(0.25, rel=1e-12)
    angle = mj.angle_sensitivity(rates, 0.3, step=1.0, normalised=True, scaled=True)
    assert np.all(angle <= 0.5 * (1 + 1e-12)) and angle[0] == pytest.approx(0.5, rel=1e-12)
    best = mj.rate_sensitivity(rates, reparametrisation=mj.Best(2.0, 0.1))
    # w' = -2 a v w^2, and the sensitivity to w is 1 / (4 w^3).
    np.testing.assert_allclose(best, 2.0 * (1 / rates - 0.1) * rates, rtol=1e-12)


def test_tracing_and_derivatives():
    white = lambda w: mj.rate_sensitivity(w, step=1.0)
    slope = jax.jit(jax.vmap(jax.grad(white)))(jnp.array([0.1, 1.0]))
    near = lambda w: (white(w + 1e-6) - white(w - 1e-6)) / 2e-6
    np.testing.assert_allclose(slope, [near(0.1), near(1.0)], rtol=1e-6)


@pytest.mark.thorough
def test_measured_sensitivity_is_the_closed_form_within_its_confidence():
    rates, step, batch = jnp.array([0.1, 0.4]), 0.5, 64
    model = mj.LRULayer(rates, jnp.zeros(2), jnp.ones(2), jnp.ones(2), activation="identity")
    ts = step * jnp.arange(129)
    # Inputs of this variance are white noise of unit intensity, but for the step.
    xs = jax.random.normal(jax.random.key(0), (batch, 1, 129)) / jnp.sqrt(step)
    measure = lambda x: mj.output_sensitivity(model, ts, x, burn_in=128)
    found = jax.jit(jax.vmap(measure))(xs).free_rates
    exact = mj.rate_sensitivity(rates, normalised=True, reparametrisation=mj.Exp())
    error = jnp.std(found, 0, ddof=1) / np.sqrt(batch)
    # The rest is for the input, linear within a step.
    assert np.all(np.abs(jnp.mean(found, 0) - exact) < 3 * error + 0.02 * exact)


@pytest.mark.slow
def test_measured_sensitivity_of_a_model_without_a_scan():
    model = mj.NonlinearRNN(-jnp.eye(1), jnp.ones(1), None, jnp.ones(1), "identity")
    ts = jnp.linspace(0.0, 2.0, 5)
    found = mj.output_sensitivity(model, ts, jnp.ones((2, 5)))
    # Of h' = -w h + b + x with x = 1, in b: 1 - exp(-t).
    np.testing.assert_allclose(found.bias[0], jnp.mean((1 - jnp.exp(-ts)) ** 2), rtol=1e-6)
    assert found.activation is not None and jax.tree.leaves(found.activation) == []


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: mj.rate_sensitivity(0.0), "`rates` must be positive"),
        (lambda: mj.rate_sensitivity(1.0, step=-1.0), "`step` must be positive"),
        (lambda: mj.angle_sensitivity(1.0, correlation_rate=0.0), "`correlation_rate`"),
        (lambda: mj.multiplier_sensitivity(1.0), "`multipliers` must be of modulus"),
        (lambda: mj.multiplier_sensitivity(0.5, 1.0), "`correlation` must be of modulus"),
        (lambda: mj.output_sensitivity(mj.Direct(), [0, 1], [[1, 2]]), "trained weights"),
        (lambda: mj.output_sensitivity(None, [0, 1], [1, 2]), "add an axis"),
        (lambda: mj.output_sensitivity(None, [0, 1], [[1, 2]], burn_in=2), "`burn_in`"),
    ],
)
def test_wrong_input_is_named(call, match):
    with pytest.raises(ValueError, match=match):
        call()
