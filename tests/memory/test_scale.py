import equinox as eqx
import jax
import jax.numpy as jnp
import mpmath as mp
import numpy as np
import pytest
from scipy import integrate

import memjax as mj
from memjax.memory._faults import find_faults

KEY = jax.random.key(6)
TS = np.linspace(0.0, 12.0, 241)


def test_constant_statistics_are_norms():
    kernel = mj.ExponentialSum([1.0, -1.8], [0.4, 1.5])
    exact = mj.functional_norm(kernel, horizon=12.0)
    found = mj.generalisation_measure(kernel, TS, variance=4.0)
    # The kernel changes its sign between two times.
    np.testing.assert_allclose(found, 4 * exact**2, rtol=1e-4)
    found = mj.generalisation_measure(kernel, TS, variance=0.0, mean=3.0)
    np.testing.assert_allclose(found, 9 * kernel.heaviside_response(12.0) ** 2, rtol=1e-12)


def test_statistics_that_change():
    kernel, end = mj.PowerLaw(0.5), 12.0
    variance, mean = 1 + np.sin(TS), np.cos(2 * TS)
    spread = lambda s: np.interp(s, TS, np.sqrt(variance)) * (1 + end - s) ** -1.5
    drift = lambda s: np.interp(s, TS, mean) * (1 + end - s) ** -1.5
    over = lambda f: sum(
        integrate.quad(f, a, b, epsabs=1e-14)[0] for a, b in zip(TS[:-1], TS[1:], strict=True)
    )
    exact = (over(spread) + abs(over(drift))) ** 2
    found = mj.generalisation_measure(kernel, TS, variance=variance, mean=mean)
    np.testing.assert_allclose(found, exact, rtol=1e-9)


def test_several_inputs_and_outputs_by_hand():
    model = mj.LinearRNN.init(4, inputs=2, outputs=3, key=KEY)
    rng = np.random.default_rng(2)
    variance, mean = rng.uniform(0.5, 2, (TS.size, 2)), rng.normal(size=(TS.size, 2))
    found = mj.generalisation_measure(model, TS, variance=variance, mean=mean)
    fine = np.linspace(0, 12, 24_001)
    rho = np.asarray(model.kernel()(12.0 - fine))
    at = lambda values: np.stack([np.interp(fine, TS, column) for column in values.T], axis=1)
    whole = np.trapezoid(np.abs(rho) * at(np.sqrt(variance))[:, None], fine, axis=0).sum(axis=1)
    whole += np.abs(np.trapezoid(rho * at(mean)[:, None], fine, axis=0).sum(axis=1))
    np.testing.assert_allclose(found, whole**2, rtol=1e-5)


def test_samples_of_a_kernel():
    rng = np.random.default_rng(3)
    rho, variance, mean = rng.normal(size=20), rng.uniform(size=20), rng.normal(size=20)
    exact = (np.abs(rho) @ np.sqrt(variance)[::-1] + abs(rho @ mean[::-1])) ** 2
    found = mj.generalisation_measure(rho, variance=variance, mean=mean)
    np.testing.assert_allclose(found, exact, rtol=1e-12)
    channels = mj.S4Layer.init(3, 4, key=KEY).discrete_kernel(20).T
    found = mj.generalisation_measure(channels, variance=variance)
    np.testing.assert_allclose(found, (np.sqrt(variance)[::-1] @ np.abs(channels)) ** 2, rtol=1e-12)
    matrix = rng.normal(size=(20, 2, 3))
    assert mj.generalisation_measure(matrix).shape == (2,)


@pytest.mark.parametrize("length", [1e-3, 1.0, 1e3])
def test_the_root_bounds_outputs_for_every_correlation(length):
    model = mj.ComplexDiagonalRNN([1.0, -2.0], [0.5, 0.0], [0.3, 0.1], [2.0, 0.0])
    ts = np.linspace(0, 20, 401)
    rho = np.asarray(model.kernel()(20 - ts)) * 0.05
    covariance = np.exp(-np.abs(ts[:, None] - ts) / length)
    tau = mj.generalisation_measure(model, ts)
    assert rho @ covariance @ rho <= 1.02 * tau
    if length == 1e3:  # nearly constant inputs attain it as far as the kernel has one sign
        assert rho @ covariance @ rho == pytest.approx(np.sum(rho) ** 2, rel=0.05)


@pytest.mark.parametrize(
    "model",
    [
        mj.DiagonalLinearRNN([3.0, -1.0], [0.1, 2.0], mj.Exp()),
        mj.ComplexDiagonalRNN([1.0, -2.0], [0.5, 0.0], [0.3, 0.1], [2.0, 0.0]),
        mj.LinearRNN.init(4, inputs=2, outputs=3, key=KEY),
        mj.LinearRNN.init(4, key=KEY),
    ],
)
def test_a_scaled_readout_has_the_measure_one(model):
    statistics = {"variance": 1 + TS, "mean": 0.3}
    scaled = mj.scale_readout(model, TS, **statistics)
    assert type(scaled) is type(model)
    found = mj.generalisation_measure(scaled, TS, **statistics)
    np.testing.assert_allclose(found, np.ones_like(found), rtol=1e-12)
    before = mj.generalisation_measure(model, TS, **statistics)
    ratio = model.kernel()(1.7) / scaled.kernel()(1.7)
    expected = np.sqrt(before) if ratio.ndim < 2 else np.sqrt(before)[:, None] * np.ones(2)
    np.testing.assert_allclose(ratio, expected, rtol=1e-10)


def test_it_is_a_penalty():
    kernel = lambda rate: mj.generalisation_measure(mj.ExponentialSum([1.0], [rate]), TS)
    with mp.workdps(30):
        exact = mp.diff(lambda w: ((1 - mp.exp(-12 * w)) / w) ** 2, 0.4)
    np.testing.assert_allclose(jax.jit(jax.grad(kernel))(0.4), float(exact), rtol=1e-8)
    silent = mj.scale_readout(mj.DiagonalLinearRNN([0.0], [1.0]), TS)
    assert float(silent.amplitudes[0]) == 0


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda k: mj.generalisation_measure(k), ValueError, "`ts` must be given"),
        (lambda k: mj.generalisation_measure(k, TS, variance=-1.0), ValueError, "`variance`"),
        (lambda k: mj.generalisation_measure(k, TS, mean=np.ones(3)), ValueError, "`mean` must be"),
        (lambda k: mj.generalisation_measure(np.ones(3), TS), ValueError, "`ts` must be left out"),
        (
            lambda k: mj.generalisation_measure(mj.NonlinearRNN.init(2, key=KEY), TS),
            TypeError,
            "`kernel` must be a kernel, a linear model or samples",
        ),
        (
            lambda k: mj.scale_readout(mj.NonlinearRNN.init(2, key=KEY), TS),
            TypeError,
            "`model` must be a linear model",
        ),
    ],
)
def test_bad_arguments_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make(mj.PowerLaw(0.5))


def test_diagnose_names_rates_and_weights_that_training_cannot_mend():
    # Nothing reads the second mode, and nothing drives the third.
    model = mj.StateSpaceLayer([0.5, 0.8, 0.3], [1.0, 1.0, 0.0], None, [1.0, 0.0, 0.0], "relu")
    found = mj.diagnose(model, 4, samples=4, remedies=False, key=KEY)
    (fault,) = found.faults
    assert "free_rates (2 of 3)" in fault and fault.split(".")[0] in " ".join(str(found).split())
    assert found.to_dict()["faults"] == [fault]


def test_rates_that_are_not_above_zero():
    model = mj.DiagonalLinearRNN([1.0, 1.0], [0.5, 0.2])
    model = eqx.tree_at(lambda model: model.decays.free_rates, model, jnp.array([-0.1, 0.2]))
    (fault,) = find_faults(model, eqx.filter(model, mj.trainable(model)))
    assert "1 of 2 decay rates of DiagonalLinearRNN are not above 0" in fault


def test_a_readout_is_not_kept_where_the_statistics_are_wrong():
    model = mj.DiagonalLinearRNN([1.0, 1.0], [0.5, 0.2])
    ts = jnp.linspace(0.0, 5.0, 11)
    scaled = jax.jit(lambda variance: mj.scale_readout(model, ts, variance=variance))(-1.0)
    assert jnp.all(jnp.isnan(scaled.amplitudes))
    with pytest.raises(ValueError, match="one value or more"):
        mj.generalisation_measure(jnp.zeros(0))
