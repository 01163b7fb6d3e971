"""Derivatives of plateau times, through the exit."""

import pathlib
import sys

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj

sys.path.append(str(pathlib.Path(__file__).parents[1] / "reference"))
import multiprecision as mp  # pyright: ignore[reportMissingImports]

FORWARD = diffrax.ForwardMode()
TIGHT = diffrax.PIDController(rtol=1e-9, atol=1e-13)


def measure(everything, gained, controller=None, adjoint=None):
    """Logarithms of time, loss and distance at the exit, of all that they depend on.

    With a gain the start is `Exp` and the exit that of the loss, else `Direct` and the distance.
    """
    delta, amplitude, rate, height, sigma, omega, a1, a2, w1, w2 = everything[:10]
    target = mj.ExponentialSum(amplitude[None], rate[None])
    target = target + mj.GaussianBump(omega=omega, amplitude=height, width=sigma)
    flow = mj.GradientFlow(mj.WhiteNoiseLoss(target))
    if gained:
        reparametrisation, leave = mj.Exp(everything[10]), mj.RelativeLossDrop(delta)
    else:
        reparametrisation, leave = mj.Direct(), mj.ParameterDistance(delta)
    rnn = mj.DiagonalLinearRNN(jnp.stack([a1, a2]), jnp.stack([w1, w2]), reparametrisation)
    plateau = mj.measure_plateau(
        flow, rnn, leave, stepsize_controller=controller, adjoint=adjoint, throw=False
    )
    return jnp.log(jnp.stack([plateau.time, plateau.loss, plateau.distance]))


measure_tightly = eqx.filter_jit(lambda x, gained: measure(x, gained, TIGHT))
gradient_of_time = eqx.filter_jit(jax.grad(lambda x, gained: measure(x, gained)[0]))


@eqx.filter_jit
def forward(x, gained, direction):
    return jax.jvp(lambda x: measure(x, gained, None, FORWARD), (x,), (direction,))[1]


def values(inverse_omega, gained, start="near"):
    """The arguments of `measure`, `start` at the target's own mode or near it."""
    a1, a2, w1 = {"near": (0.98, 0.01, 1.05), "on": (1.0, 0.0, 1.0)}[start]
    point = [0.02 if gained else 0.1, 1.0, 1.0, 1.0, 0.5, 1 / inverse_omega, a1, a2, w1, 0.6]
    return np.array([*point, 1.2] if gained else point)


def differences(x, gained, inverse_omega):
    """The Jacobian by central differences, extrapolated from steps h and h/2 (Richardson)."""

    def central(step):
        ahead, behind = (measure_tightly(jnp.asarray(y), gained) for y in (x + step, x - step))
        return np.asarray(ahead - behind) / (2 * np.sum(step))

    steps = np.diag(np.maximum(np.abs(x), 0.05) * 8e-3 / inverse_omega)
    return np.stack([(4 * central(step / 2) - central(step)) / 3 for step in steps], axis=1)


CASES = pytest.mark.parametrize(
    "inverse_omega, start", [(8.0, "near"), (8.0, "on"), (16.0, "near"), (16.0, "on")]
)


# The README's example differentiates in reverse mode, too; compiling this one takes a minute.
@pytest.mark.slow
@CASES
def test_reverse_mode_at_a_loss_exit(inverse_omega, start):
    x = values(inverse_omega, True, start)
    found = gradient_of_time(jnp.asarray(x), True)
    np.testing.assert_allclose(found, differences(x, True, inverse_omega)[0], rtol=1e-4)


@pytest.mark.slow
@CASES
def test_forward_mode_at_a_distance_exit(inverse_omega, start):
    x = values(inverse_omega, False, start)
    found = np.stack([forward(jnp.asarray(x), False, e) for e in jnp.eye(10)], axis=1)
    exact = differences(x, False, inverse_omega)
    np.testing.assert_allclose(found[0], exact[0], rtol=1e-4)
    np.testing.assert_allclose(found[1:], exact[1:], rtol=1e-3, atol=1e-3)
    # What the exit fixes depends on the exit alone.
    np.testing.assert_allclose(found[2], [1 / x[0]] + 9 * [0.0], rtol=1e-4, atol=1e-3)


@pytest.mark.slow
# The README's example differentiates in reverse mode, too; compiling this one takes a minute.
@pytest.mark.slow
@CASES
def test_reverse_mode_at_a_distance_exit(inverse_omega, start):
    x = jnp.asarray(values(inverse_omega, False, start))
    found = gradient_of_time(x, False)
    exact = [forward(x, False, e)[0] for e in jnp.eye(10)]
    np.testing.assert_allclose(found, exact, rtol=1e-6)


@pytest.mark.filterwarnings("ignore:Descending")
@pytest.mark.slow
def test_derivative_along_a_line_agrees_with_multiprecision():
    """The plateau time and its derivative in one direction of all parameters at once."""
    inverse_omega = 8.0
    x = values(inverse_omega, False)
    direction = np.random.default_rng(3).normal(size=10) * np.maximum(np.abs(x), 0.05)

    mp.set_digits(40)

    def reference(h):
        delta, amplitude, rate, height, sigma, omega, a1, a2, w1, w2 = (
            mp.real(p) + mp.real(h) * mp.real(d) for p, d in zip(x, direction, strict=True)
        )
        problem = mp.Problem([amplitude], [rate], 1 / omega, sigma, height)
        leave = mp.Exit("ParameterDistance", delta)
        return mp.integrate(problem, [a1, a2, w1, w2], leave, stages=7, rtol=1e-6).time

    times = [reference(h) for h in ("-1e-6", "0", "1e-6")]
    exact = float((times[2] - times[0]) / times[1]) / 2e-6
    found = forward(jnp.asarray(x), False, jnp.asarray(direction))[0]
    np.testing.assert_allclose(found, exact, rtol=1e-4)
    time = np.exp(measure_tightly(jnp.asarray(x), False)[0])
    np.testing.assert_allclose(time, float(times[1]), rtol=1e-7)
