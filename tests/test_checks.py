"""Values that cannot be looked at while tracing, and what the checks take and show."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax._checks import as_key, as_plain, as_positive, said, shown

NAN, INF = jnp.nan, jnp.inf
KERNEL = mj.ExponentialSum([1.0], [1.0])
LOSS = mj.WhiteNoiseLoss(KERNEL)
KEY = jax.random.key(0)

# What is made of a traced number, a value that it may have, and some that it may not.
TRACED = {
    "Airy.scale": (lambda x: mj.Airy(x).scale, 1.0, [0.0, -1.0, NAN, INF]),
    "Airy.delay": (lambda x: mj.Airy(1.0, x).delay, 0.0, [-1.0, NAN, INF]),
    "Box.start": (lambda x: mj.Box(x, 2.0).start, 0.0, [-1.0, NAN]),
    "Box.stop": (lambda x: mj.Box(1.0, x).stop, 2.0, [1.0, 0.5, NAN, INF]),
    "DampedOscillation.rates": (
        lambda x: mj.DampedOscillation(1.0, 1.0, x, 1.0).rates[0],
        1.0,
        [0.0, -1.0, NAN],
    ),
    "DelayedKernel.delay": (lambda x: mj.DelayedKernel(KERNEL, x).delay, 0.0, [-1.0, NAN, INF]),
    "ExponentialSum.amplitudes": (lambda x: mj.ExponentialSum(x, 1.0).amplitudes[0], 0.0, [INF]),
    "ExponentialSum.rates": (lambda x: mj.ExponentialSum(1.0, x).rates[0], 1.0, [0.0, -1.0, INF]),
    "GaussianBump.omega": (lambda x: 1 / mj.GaussianBump(x).omega, INF, [0.0, -1.0, NAN]),
    "GaussianBump.width": (lambda x: mj.GaussianBump(1.0, 1.0, x).width, 1.0, [0.0, -1.0, INF]),
    "PowerLaw.omega": (lambda x: mj.PowerLaw(x).omega, 1.0, [0.0, -1.0, INF]),
    "SampledKernel.times": (lambda x: mj.SampledKernel([0.0, x], [1.0, 0.0]).times[1], 1.0, [0.0]),
    "ScaledKernel.factor": (lambda x: mj.ScaledKernel(KERNEL, x).factor, -1.0, [NAN, INF]),
    "Sine.frequency": (lambda x: mj.Sine(x).frequency, 1.0, [0.0, -1.0]),
    "Best.b": (lambda x: mj.Best(1.0, x).b, 0.1, [0.0, -1.0]),
    "Best.inverse": (lambda x: mj.Best(1.0, 0.5).inverse(x), 2.0, [2.1, 8.0, 0.0, -1.0]),
    "Exp.gain": (lambda x: mj.Exp(x).gain, 1.0, [0.0, -1.0]),
    "Exp.inverse": (lambda x: mj.Exp().inverse(x), 1.0, [0.0, -1.0]),
    "Tanh.inverse": (lambda x: mj.Tanh().inverse(x), 1.0, [2.0, 3.0, 0.0]),
    "Direct.multipliers": (lambda x: mj.Direct().multipliers(jnp.array(1.0), x), 1.0, [0.0, -1.0]),
    "DiagonalLinearRNN.rates": (
        lambda x: mj.DiagonalLinearRNN([1.0], x[None]).free_rates[0],
        1.0,
        [0.0, -1.0, NAN, INF],
    ),
    "GatedRNN.rate": (
        lambda x: mj.GatedRNN.init("gru", 2, rate=x, key=KEY).rate.value,
        1.0,
        [0.0, -1.0],
    ),
    "ring.outer": (lambda x: mj.ring(1, 0.5, x, key=KEY)[0][0], 1.0, [1.1, 0.5, 0.4, NAN]),
    "uniform_rates.low": (lambda x: mj.uniform_rates(1, x, 2.0, key=KEY)[0], 1.0, [0.0, 2.0, 3.0]),
    "WhiteNoiseLoss.horizon": (lambda x: mj.WhiteNoiseLoss(KERNEL, x).horizon, 1.0, [0.0, -1.0]),
    "ColouredNoiseLoss.sigma": (lambda x: mj.ColouredNoiseLoss(KERNEL, 1.0, x).sigma, 1.0, [0.0]),
    "squared_norm.horizon": (lambda x: KERNEL.squared_norm(x), 0.0, [-1.0, NAN]),
    "HeavyBall.friction": (lambda x: mj.HeavyBall(LOSS, x).friction, 0.0, [-1.0, NAN]),
    "Adam.epsilon": (lambda x: mj.Adam(LOSS, x).epsilon, 1e-8, [0.0, -1.0]),
    "TemporalWeight.exponent": (lambda x: mj.TemporalWeight(x).exponent, 0.0, [-1.0]),
    "on_plateau.silent_rates": (lambda x: mj.on_plateau(KERNEL, x).rates[1], 0.5, [0.0, -1.0]),
    "random_start.slowest": (
        lambda x: mj.random_start(1, slowest=x, key=KEY).rates[0],
        0.3,
        [0.0, 3.0, 4.0],
    ),
    "plateau_lower_bound.delta": (
        lambda x: mj.plateau_lower_bound(0.1, delta=x, decay_rate=1.0, width=2),
        0.1,
        [0.0, -1.0],
    ),
    "plateau_asymptotics.silent_rate": (
        lambda x: mj.plateau_asymptotics(KERNEL + mj.GaussianBump(0.1), x),
        0.6,
        [0.0, 1.0, 2.0],
    ),
    "hidden_variance.rates": (lambda x: mj.hidden_variance(x), 1.0, [0.0, -1.0]),
    "multiplier_sensitivity": (lambda x: mj.multiplier_sensitivity(x), 0.5, [1.0, -2.0]),
}


@pytest.mark.parametrize("name", TRACED)
def test_traced_values_out_of_range_become_nan(name):
    function, good, bad = TRACED[name]
    values = np.asarray(jax.vmap(function)(jnp.array([good, *bad])))
    assert np.isfinite(values[0])
    assert np.all(np.isnan(values[1:]))


def test_a_rate_out_of_reach_is_not_that_of_another_cell():
    # Best(1, b) reaches rates up to 1 / b, and its free weight is 0 there.
    def loss(rate, b):
        model = mj.DiagonalLinearRNN([0.5], rate[None], mj.Best(1.0, b))
        return mj.WhiteNoiseLoss(KERNEL)(model)

    grid = jax.vmap(jax.vmap(loss, (None, 0)), (0, None))
    values = np.asarray(grid(jnp.array([2.0, 8.0]), jnp.array([0.1, 0.5])))
    # int (e^-t - a e^-wt)^2 dt = 1/2 - 2a / (1 + w) + a^2 / 2w, by hand.
    exact = lambda w: 1 / 2 - 1 / (1 + w) + 1 / (8 * w)
    np.testing.assert_allclose(values[:, 0], [exact(2.0), exact(8.0)], rtol=1e-12)
    np.testing.assert_allclose(values[0, 1], exact(2.0), rtol=1e-12)
    assert not np.isfinite(values[1, 1])


def test_training_may_carry_a_rate_below_0_over_a_finite_horizon():
    # Other than that of a target, the kernel of a model is no constructor's argument then.
    def value(rate):
        model = mj.DiagonalLinearRNN([0.5], [1.0])
        model = eqx.tree_at(lambda m: m.free_rates, model, rate[None])
        return mj.WhiteNoiseLoss(KERNEL, 1.0)(model)

    found = float(jax.jit(value)(jnp.array(-0.3)))
    t = np.linspace(0, 1, 200_001)
    exact = np.trapezoid((np.exp(-t) - 0.5 * np.exp(0.3 * t)) ** 2, t)
    assert found == pytest.approx(exact, rel=1e-9)


def test_the_infinite_horizon_is_none_as_it_is_printed():
    for horizon in (None, np.inf, jnp.inf):
        loss = mj.WhiteNoiseLoss(KERNEL, horizon)
        assert loss.horizon is None and "horizon=None" in repr(loss)
        assert mj.ColouredNoiseLoss(KERNEL, 1.0, horizon=horizon).horizon is None
        assert KERNEL.squared_norm(horizon) == pytest.approx(0.5)
        assert mj.inner_product(KERNEL, KERNEL, horizon) == pytest.approx(0.5)
        assert mj.functional_norm(KERNEL, horizon=horizon) == pytest.approx(1.0)
        assert KERNEL.laplace(1.0, horizon) == pytest.approx(0.5)


def test_keys_of_both_kinds_give_the_same_numbers():
    rates = mj.uniform_rates(3, 0.1, 1.0, key=jax.random.key(7))
    old = mj.uniform_rates(3, 0.1, 1.0, key=jax.random.PRNGKey(7))
    np.testing.assert_array_equal(rates, old)
    assert as_key("key", jax.random.PRNGKey(7)) == jax.random.key(7)
    # A batch of keys is one key each under vmap.
    batch = jax.vmap(lambda key: mj.uniform_rates(3, 0.1, 1.0, key=key))(
        jax.random.split(jax.random.key(0), 2)
    )
    assert batch.shape == (2, 3)


def test_plain_numbers_are_had_while_others_are_traced():
    def function(x):
        assert as_plain(as_positive, "step", 0.1) == 0.1
        with pytest.raises(ValueError, match="`step` must be positive"):
            as_plain(as_positive, "step", -0.1)
        with pytest.raises(TypeError, match="`step` must be concrete, got a traced"):
            as_plain(as_positive, "step", x)
        return x

    jax.jit(function)(1.0)
    # Hence a spectrum under `jit`, with its tolerance checked.
    model = mj.DiagonalLinearRNN([1.0], [0.5])
    spectrum = jax.jit(lambda scale: scale * mj.hessian_spectrum(LOSS, model).eigenvalues)
    assert np.all(np.isfinite(spectrum(1.0)))


def test_rates_that_a_map_of_ones_own_does_not_reach_are_refused():
    class AboveFloor(mj.AbstractReparametrisation):
        def __call__(self, free):
            return 0.1 + free**2

        def inverse(self, rates):
            return jnp.sqrt(rates - 0.1)

        def displacement(self, free, change):
            return change * (2 * free + change)

    assert mj.DiagonalLinearRNN([1.0], [0.2], AboveFloor()).rates == pytest.approx(0.2)
    with pytest.raises(ValueError, match="`rates` must be in the reach of AboveFloor, got 0.05"):
        mj.DiagonalLinearRNN([1.0, 1.0], [0.2, 0.05], AboveFloor())


def test_kernels_add_and_scale_with_each_other_and_numbers_only():
    bump = mj.GaussianBump(0.1)
    for factor in (2.0, 2, np.float64(2.0), np.array(2.0), jnp.array(2.0)):
        for scaled in (factor * bump, bump * factor):
            assert isinstance(scaled, mj.ScaledKernel) and scaled.factor == 2.0
    assert (-bump).factor == -1.0
    for wrong in ("a", None, [2.0], np.ones(2), jnp.ones(2), 1j, True, 10**400):
        for product in (lambda x: bump * x, lambda x: x * bump):
            with pytest.raises((TypeError, ValueError), match="`factor` must"):
                product(wrong)
    for combine in (
        lambda: bump + 1,
        lambda: 1 + bump,
        lambda: bump - 1,
        lambda: bump * bump,
        lambda: sum([bump, 1]),
        lambda: bump + "a",
        lambda: bump / 2,
    ):
        with pytest.raises(TypeError, match="unsupported operand type"):
            combine()


def test_cells_and_models_of_ones_own_that_mix_up_their_arguments_are_refused():
    class Swapped(mj.AbstractModel):
        weight: jax.Array

        def initial_hidden(self):
            return jnp.zeros(3)

        def vector_field(self, t, hidden, x):
            return self.weight * x  # without the shape of the hidden state

        def readout(self, hidden):
            return hidden[0]

    model = Swapped(jnp.ones(2))
    ts, xs = jnp.linspace(0, 1, 4), jnp.ones(4)
    for call in (model, model.residual):
        with pytest.raises(
            TypeError, match=r"`vector_field` must map .* got \(2,\) for \(3,\)"
        ) as e:
            call(ts, xs)
        assert "\n" not in str(e.value) and len(str(e.value)) < 300


TS, XS = np.linspace(0, 1, 4), np.ones(4)
MODEL = mj.DiagonalLinearRNN([1.0, 0.5], [1.0, 0.3])


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: MODEL(TS, lambda: 3), "`xs` must be samples or a function of time, got an error"),
        (lambda: MODEL(TS, lambda t: "a"), "`xs` must be samples or a function of time"),
        (lambda: MODEL(TS, lambda t: jnp.ones(3)), r"`xs` must hold inputs of shape \(\)"),
        (lambda: MODEL(TS, XS, max_steps=1), "`max_steps` must be enough .*, got 1; pass more"),
        pytest.param(
            lambda: mj.Lorenz96(key=KEY, max_steps=1),
            "`max_steps` must be enough",
            marks=pytest.mark.slow,
        ),
        (lambda: mj.FunctionLoss(lambda m: m.rates)(MODEL), r"`function` must .* shape \(2,\)"),
        (lambda: mj.FunctionLoss(lambda m: "a").gradient(MODEL), "`function` must be a number"),
        (lambda: mj.Teacher(lambda ts, xs: None).response(TS, XS), "`function` must be a number"),
        (lambda: mj.Elementwise(lambda v: "a")(jnp.ones(1)), "`function` must be a number"),
        (lambda: mj.as_functional(lambda xs: None)(TS, XS), "`functional` must be a number"),
        (lambda: mj.as_functional(lambda xs: xs[:1])(TS, XS), "`functional` must return one"),
        (
            lambda: mj.perturbation_error(MODEL, lambda m: "a", [0.1], key=KEY),
            "`target` must be a number",
        ),
        (
            lambda: mj.StationaryNoiseLoss(KERNEL, lambda: 1, 2.0),
            "`autocovariance` must map lags to covariances, got an error",
        ),
        (
            lambda: mj.SampledPathLoss(KERNEL, TS, XS[None], None, "diffrax", {"max_step": 1}),
            "`options` must be arguments .*, got 'max_step'; did you mean 'max_steps'",
        ),
        (
            lambda: mj.reproduce("plateau-width", memory=(8.0,)),
            "`memory` must be an option of 'plateau-width'.*did you mean 'memories'",
        ),
        (
            lambda: jax.jit(lambda b: mj.stability_criterion(mj.Best(1.0, b), 0.1).growth)(0.1),
            "`radii` must be concrete",
        ),
    ],
    ids=range(16),
)
def test_what_functions_of_ones_own_give_is_refused_in_a_line(call, match):
    with pytest.raises((TypeError, ValueError), match=match) as error:
        call()
    assert "\n" not in str(error.value) and len(str(error.value)) < 300


class Talkative:
    def __repr__(self):
        return "a\n" * 1000


class Silent:
    def __repr__(self):
        raise RuntimeError


@pytest.mark.parametrize(
    "value",
    [10**5000, -(10**50), Talkative(), Silent(), "x" * 1000, jnp.ones(100), KEY, np.ones((3, 3))],
    ids=range(8),
)
def test_values_are_shown_in_one_short_line(value):
    assert "\n" not in shown(value) and len(shown(value)) <= 80


def test_numbers_are_shown_as_such():
    assert shown(jnp.array(2.0)) == "2.0" and shown(np.array([1, 2])) == "[1, 2]"
    assert said(ValueError("a\nb")) == "ValueError: a b" and said(SystemExit()) == "SystemExit"
