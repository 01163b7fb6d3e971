import diffrax
import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj

LOSS = mj.WhiteNoiseLoss(mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(1 / 5, 1.0, 0.5))
MODEL = mj.DiagonalLinearRNN([1.0, 0.1], [1.0, 0.6], mj.Exp())
START = eqx.filter(MODEL, mj.trainable(MODEL))


def test_spectra_along_a_gradient_flow_are_one_vmap():
    taus = jnp.array([0.0, 1.0, 10.0])
    flow = lambda tau, moved, args: jax.tree.map(jnp.negative, LOSS.gradient(MODEL, moved))
    spectrum = lambda moved: mj.hessian_spectrum(LOSS, MODEL, displacement=moved)

    @jax.jit
    def along():
        path = diffrax.diffeqsolve(
            diffrax.ODETerm(flow), diffrax.Tsit5(), 0.0, 10.0, 0.1,
            jax.tree.map(jnp.zeros_like, START), saveat=diffrax.SaveAt(ts=taus),
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
        ).ys  # fmt: skip
        return path, jax.vmap(spectrum)(path)

    path, spectra = along()
    assert spectra.eigenvalues.shape == (3, 4)
    assert spectra.eigenvectors.amplitudes.shape == (3, 4, 2)
    flat, unravel = jfu.ravel_pytree(START)
    loss = lambda weights: LOSS(eqx.combine(unravel(weights), MODEL))
    hessian = jax.jit(jax.hessian(loss))
    for k in range(3):
        moved = flat + jfu.ravel_pytree(jax.tree.map(lambda leaf, k=k: leaf[k], path))[0]
        exact = np.linalg.eigvalsh(hessian(moved))[::-1]
        np.testing.assert_allclose(spectra.eigenvalues[k], exact, rtol=1e-8, atol=1e-12)
    assert np.all(spectra.residuals < 1e-12)


class Quadratic(eqx.Module):
    weights: jax.Array
    bias: jax.Array


def _spread(size):
    """A quadratic form of known spectrum: two large eigenvalues, the rest in [-1, 1]."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((size, size)))[0]
    values = np.append(np.linspace(-1, 1, size - 2), [-9.0, 7.0])
    matrix = jnp.asarray(basis * values) @ basis.T
    form = lambda model: (
        0.5
        * jnp.append(model.weights, model.bias)
        @ (matrix @ jnp.append(model.weights, model.bias))
    )
    return form, Quadratic(jnp.zeros(size - 1), jnp.zeros(())), np.sort(values)[::-1], basis


def test_lanczos_finds_the_known_spectrum():
    form, model, values, basis = _spread(30)
    picks = {"smallest": values[-2:], "magnitude": [7.0, -9.0]}
    for which, exact in picks.items():
        found = mj.hessian_spectrum(form, model, 2, which=which, method="lanczos")
        np.testing.assert_allclose(found.eigenvalues, exact, rtol=1e-7)
        assert np.all(found.residuals < 1e-5)
    # The last one is the direction of -9, up to its sign.
    vectors = found.eigenvectors  # pyright: ignore[reportPossiblyUnboundVariable]
    direction = np.append(vectors.weights[1], vectors.bias[1])
    assert abs(direction @ basis[:, -2]) == pytest.approx(1, abs=1e-9)


def test_what_was_not_found_is_nan():
    form, model, _, _ = _spread(30)
    found = mj.hessian_spectrum(form, model, 3, which="smallest", method="lanczos", max_steps=1)
    assert np.all(np.isnan(found.eigenvalues) == np.isnan(found.residuals))
    assert np.any(np.isnan(found.eigenvalues))
    broken = lambda model: form(model) * jnp.where(jnp.sum(model.weights) == 0, jnp.nan, 1.0)
    for method in ("dense", "lanczos"):
        found = mj.hessian_spectrum(broken, model, 2, method=method)
        assert np.all(np.isnan(found.eigenvalues)), method


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda f, m: mj.hessian_spectrum(3.0, m), TypeError, "`loss` must be a function, got 3.0"),
        (lambda f, m: mj.hessian_spectrum(f, m, 0), ValueError, "`count` must be an integer"),
        (lambda f, m: mj.hessian_spectrum(f, m, 31), ValueError, "at most 30"),
        (lambda f, m: mj.hessian_spectrum(f, m, 30, method="lanczos"), ValueError, "at most 29"),
        (lambda f, m: mj.hessian_spectrum(f, m, which="low"), ValueError, "`which` must be"),
        (lambda f, m: mj.hessian_spectrum(f, m, method="qr"), ValueError, "`method` must be"),
        (lambda f, m: mj.hessian_spectrum(f, mj.Exp()), ValueError, "trained weights"),
        (
            lambda f, m: jax.jit(lambda m: mj.hessian_spectrum(f, m, 2, method="lanczos"))(m),
            ValueError,
            "under a transformation",
        ),
    ],
)
def test_wrong_input_is_named(call, error, match):
    form, model, _, _ = _spread(30)
    with pytest.raises(error, match=match):
        call(form, model)
