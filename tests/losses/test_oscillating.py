"""The closed forms of oscillating modes, against quadrature with many digits and other paths."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest

import memjax as mj
from memjax.flows import FlowLanes
from memjax.losses import OscillatingLanes
from memjax.targets import complex_transforms

RNG = np.random.default_rng(3)
MODEL = ([1.0, 0.2, 0.3], [0.0, 0.1, -0.4], [1.0, 0.6, 0.7], [0.0, 0.3, 1.5])


def target(omega=0.25):
    return (
        mj.ExponentialSum([1.0], [1.0])
        + mj.GaussianBump(omega, 0.8, 0.5)
        + 2.0 * mj.DampedOscillation([0.3], [0.1], [0.7], [1.5])
        + 0.5 * mj.Box(2.0, 3.0)
    )


def lanes_of(flow, form):
    widen = lambda x: x[..., None] if eqx.is_array(x) else x
    return jax.tree.map(widen, form)


def exact_gradient(y, reparametrisation):
    """By quadrature of the residual against the derivatives of the model's kernel."""
    with mpmath.workdps(30):
        start = [[mpmath.mpf(float(x)) for x in part] for part in MODEL]
        moves = [[mpmath.mpf(float(x)) for x in part] for part in np.split(np.asarray(y), 4)]
        a, b, nu = ([x + d for x, d in zip(start[k], moves[k], strict=True)] for k in (0, 1, 3))
        if reparametrisation == "direct":
            w = [x + d for x, d in zip(start[2], moves[2], strict=True)]
            slope = [mpmath.mpf(1)] * 3
        else:
            w = [x * mpmath.exp(d) for x, d in zip(start[2], moves[2], strict=True)]
            slope = w

        def residual(t):
            model = sum(
                mpmath.exp(-w[j] * t)
                * (a[j] * mpmath.cos(nu[j] * t) + b[j] * mpmath.sin(nu[j] * t))
                for j in range(3)
            )
            wave = mpmath.mpf("0.3") * mpmath.cos(1.5 * t) + mpmath.mpf("0.1") * mpmath.sin(1.5 * t)
            known = mpmath.exp(-t) + 2 * mpmath.exp(-mpmath.mpf("0.7") * t) * wave
            known += mpmath.mpf("0.8") * mpmath.exp(-((t - 4) ** 2) / (2 * mpmath.mpf("0.25")))
            return model - known - (mpmath.mpf("0.5") if 2 < t < 3 else 0)

        nodes = [0, 1, 2, 3, 3.5, 4.5, 6, 8, 12, 20, 40, 80]
        out = []
        for k in range(4):
            for j in range(3):

                def integrand(t, j=j, k=k):
                    decay = mpmath.exp(-w[j] * t)
                    cos, sin = mpmath.cos(nu[j] * t), mpmath.sin(nu[j] * t)
                    parts = [
                        cos,
                        sin,
                        -slope[j] * t * (a[j] * cos + b[j] * sin),
                        t * (b[j] * cos - a[j] * sin),
                    ]
                    return 2 * residual(t) * decay * parts[k]

                out.append(float(mpmath.quad(integrand, nodes, maxdegree=5)))
        # A mode that does not turn keeps its sine and its frequency.
        out[3] = out[9] = 0.0
        return np.array(out)


@pytest.mark.thorough
@pytest.mark.parametrize("name", [pytest.param("direct", marks=pytest.mark.slow), "exp"])
def test_gradient_and_hessian(name):
    model = mj.ComplexDiagonalRNN(*MODEL, {"direct": mj.Direct(), "exp": mj.Exp()}[name])
    flow = mj.GradientFlow(mj.WhiteNoiseLoss(target())).displaced(model)
    assert OscillatingLanes.accepts(flow.loss, model)
    lanes = lanes_of(flow, OscillatingLanes.build(flow.loss, model))
    y = 0.05 * RNG.normal(size=(12, 1))
    y[[3, 9]] = 0.0
    here = jax.jit(lambda y: lanes.linearise(y))(y)
    descent = jax.jit(lambda y: lanes.descent(y[:, None])[:, 0, 0])
    exact = exact_gradient(y[:, 0], name)
    np.testing.assert_allclose(here.gradient[:, 0], exact, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(descent(y), -exact, atol=1e-12)
    general = lanes_of(flow, FlowLanes(flow))
    np.testing.assert_allclose(here.loss, jax.jit(lambda y: general.loss(y))(y), rtol=1e-9)
    # The Hessian by differences of the gradient, which was compared above.
    still = np.isin(np.arange(12), [3, 9])
    hessian, step = np.asarray(here.curvature.dense()[..., 0]), 1e-5
    for k in np.flatnonzero(~still):
        moved = [y + sign * step * np.eye(12)[:, k, None] for sign in (1, -1)]
        up, down = (np.asarray(descent(x)) for x in moved)
        np.testing.assert_allclose(hessian[:, k], (down - up) / (2 * step), rtol=1e-7, atol=1e-8)
    assert not hessian[still].any() and not hessian[:, still].any()


def test_hessian_of_more_modes_than_its_factor_has_rows():
    rng = np.random.default_rng(4)
    rates, frequencies = rng.uniform(0.6, 3, 6), rng.uniform(0, 1, 6)
    model = mj.ComplexDiagonalRNN(*rng.normal(size=(2, 6)), rates, frequencies, mj.Exp())
    flow = mj.GradientFlow(mj.WhiteNoiseLoss(target())).displaced(model)
    lanes = lanes_of(flow, OscillatingLanes.build(flow.loss, model))
    y = jnp.asarray(0.05 * rng.normal(size=24))
    found = jax.jit(lambda y: lanes.linearise(y[:, None]).curvature.dense()[..., 0])(y)
    descent = lambda y: lanes.descent(y[:, None, None])[:, 0, 0]
    left = -jax.jit(jax.jacfwd(descent))(y) - found
    # What is missing is a part of the Gram matrix: positive semidefinite, and small.
    np.testing.assert_allclose(left, left.T, atol=1e-11)
    values = np.linalg.eigvalsh(left)
    assert values[0] > -1e-11 and values[-1] < 1e-3 * np.linalg.eigvalsh(found)[-1]


@pytest.mark.parametrize("kernel", [mj.Box(2.0, 3.5), mj.GaussianBump(0.25, 0.7, 0.5)])
def test_transforms_at_complex_arguments(kernel):
    s = jnp.asarray([0.3 + 0.2j, 1.0 - 2.0j, 2.5 + 0j])
    values = complex_transforms(kernel, s, 2)
    if isinstance(kernel, mj.Box):
        rho, nodes = (lambda t: mpmath.mpf(1)), [2, 3.5]
    else:
        rho = lambda t: mpmath.mpf("0.7") * mpmath.exp(-2 * (t - 4) ** 2)
        nodes = [0, 2, 3, 4, 5, 6, 9]
    for k, value in enumerate(values):
        for at, found in zip(s, value, strict=True):
            exact = mpmath.quad(lambda t: (-t) ** k * rho(t) * mpmath.exp(-complex(at) * t), nodes)
            np.testing.assert_allclose(complex(found), complex(exact), rtol=1e-11)


@pytest.mark.slow
def test_a_run_is_that_of_another_solver():
    """Which integrates the loss by quadrature and its gradient by automatic differentiation."""
    model = mj.ComplexDiagonalRNN([1.0, 0.0], [0.0, 0.0], [1.0, 0.6], [0.2, 0.3])
    loss = mj.WhiteNoiseLoss(mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(1 / 6, 1.0, 0.5))
    flow, leave = mj.GradientFlow(loss), mj.RelativeLossDrop(0.1)
    own = mj.measure_plateau(flow, model, leave)
    other = mj.measure_plateau(flow, model, leave, solver=diffrax.Kvaerno5(), rtol=1e-7)
    np.testing.assert_allclose(own.time, other.time, rtol=1e-5)


@pytest.mark.slow
def test_modes_that_do_not_turn_are_real_ones():
    flow = mj.GradientFlow(
        mj.WhiteNoiseLoss(mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(1 / 20, 1.0, 0.5))
    )
    model = mj.ComplexDiagonalRNN([1.0, 0.0], [0.0, 0.0], [1.0, 0.6], [0.0, 0.0])
    plateau = mj.measure_plateau(flow, model, mj.RelativeLossDrop(0.02))
    # Of the real model, by integration with 50 digits.
    np.testing.assert_allclose(plateau.time, 74511.93, rtol=1e-6)
    assert not jnp.any(plateau.model.sine) and not jnp.any(plateau.model.frequencies)
