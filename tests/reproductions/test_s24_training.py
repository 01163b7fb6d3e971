import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.reproductions import _s24_gradients as gradients
from memjax.reproductions import _s24_training as training
from memjax.reproductions._staged import lay_out

TRAINING, GRADIENTS = mj.REPRODUCTIONS["s24-training"], mj.REPRODUCTIONS["s24-gradients"]
RHO = (1 + 0.1 * np.arange(100)) ** -1.1


def run_linear(model, xs):
    """The recursion of the public code, step by step."""
    turn, rates = np.asarray(model.turn), np.asarray(model.rate_map(model.free_rates))
    matrix = np.eye(rates.size) - turn.T @ np.diag(rates) @ turn
    hidden, outputs = np.zeros(rates.size), []
    for x in xs:
        z = np.array([x])
        for each in model.before:
            z = np.asarray(each.weight) @ z + np.asarray(each.bias)
        hidden = matrix @ hidden + z
        y = hidden
        for each in model.after:
            y = np.asarray(each.weight) @ y + np.asarray(each.bias)
        outputs.append(y[0])
    return np.array(outputs)


@pytest.mark.thorough
def test_the_expected_error_is_that_of_many_inputs():
    model = training.LinearSSM.init(training.SOFTPLUS, 4, np.random.default_rng(3))
    xs = np.random.default_rng(0).normal(size=(3, 100))
    kernel, free = model.respond()
    for x in xs:
        expected = run_linear(model, x)
        np.testing.assert_allclose(np.convolve(kernel, x)[:100] + free, expected, atol=1e-9)
    weights = np.arange(1.0, 101) ** 2 / np.mean(np.arange(1.0, 101) ** 2)
    squares = np.cumsum((np.asarray(kernel) - RHO) ** 2) + np.asarray(free) ** 2
    assert float(model.error()) == pytest.approx(np.mean(weights**2 * squares))
    assert float(training.target_power()) == pytest.approx(np.mean(weights**2 * np.cumsum(RHO**2)))


def test_direct_rates_may_become_negative_when_perturbed():
    model = training.LinearSSM.init(training.DIRECT, 6, np.random.default_rng(0))
    settled = model.settled()
    assert np.any(np.asarray(model.free_rates) < 0) and np.all(settled.free_rates >= 0)
    assert float(settled.error()) == pytest.approx(float(model.error()))
    np.testing.assert_array_equal(settled.rate_map(jnp.array([-1.0])), [-1.0])


@pytest.mark.thorough
def test_s4_block_is_that_of_its_recurrence():
    model = training.S4Model.init(3, np.random.default_rng(0))
    xs = np.random.default_rng(1).normal(size=(2, 100)).astype(np.float32)
    outputs = jax.jit(lambda shifted: model.outputs(shifted))(lay_out(jnp.asarray(xs)))
    kernel = np.asarray(model.recurrence.discrete_kernel(100))
    signals = []
    for channel in range(3):
        driven = xs * model.encoder.weight[channel, 0] + model.encoder.bias[channel]
        own = kernel[channel].copy()
        own[0] += model.feedthrough[channel]
        signals.append([np.convolve(own, row)[:100] for row in driven])
    activated = jax.nn.gelu(jnp.asarray(signals), approximate=False)
    mixed = np.einsum("oc,cbt->bto", model.mixer.weight, activated) + model.mixer.bias
    expected = mixed @ model.decoder.weight[0] + model.decoder.bias[0]
    np.testing.assert_allclose(outputs, expected, atol=2e-4)
    # Steps as the public code has them, and a readout of the first state of HiPPO.
    np.testing.assert_allclose(model.recurrence.clock_rates, np.exp([1e-3, 1e-2, 0.1]), rtol=1e-5)
    single = mj.S4Layer(
        np.full((1, 32), 0.5), np.asarray(mj.hippo_legs(32).frequencies)[None], [1.0],
        np.asarray(mj.hippo_legs(32).low_rank)[None], np.asarray(mj.hippo_legs(32).input)[None],
        np.asarray(jax.lax.complex(*model.recurrence.state_readout))[:1], [1.0], [1.0],
    )  # fmt: skip
    # The first state of HiPPO-LegS is h' = -h + x.
    kernel = single.discrete_kernel(8, step=0.1, discretisation="zoh")[0]
    np.testing.assert_allclose(kernel, -np.expm1(-0.1) * np.exp(-0.1 * np.arange(8)), rtol=1e-4)


def like(errors):
    """A dataset of one model whose error passes each share of the power at a radius, by width."""
    balls = np.concatenate([[0.0], training.RADII])
    start, tenth, lost = errors
    power = float(training.target_power())
    slope = np.log(10) / np.log(np.asarray(lost) / tenth)
    curves = power * 0.1 * (balls[None] / np.asarray(tenth)[:, None]) ** slope[:, None]
    curves[:, 0] = start
    return xr.Dataset(
        {"error": (("model", "seed", "width", "ball"), curves[None, None])},
        {
            "model": [training.DIRECT], "seed": [0], "width": list(training.WIDTHS), "ball": balls,
        },
        {"power": power},
    )  # fmt: skip


def test_published_curves_agree_with_themselves():
    published = training.PUBLISHED[training.DIRECT]
    verdicts = TRAINING.check(like(published))
    assert [verdict.agrees for verdict in verdicts] == [True] * 4
    other = (published[0], np.asarray(published[1]) * 3, np.asarray(published[2]) * 3)
    assert [verdict.agrees for verdict in TRAINING.check(like(other))] == [
        True, False, False, True,
    ]  # fmt: skip
    steady = (published[0], (0.01,) * 4, (0.02,) * 4)
    assert TRAINING.check(like(steady))[-1].agrees is False
    assert isinstance(TRAINING.plot(like(published)), matplotlib.figure.Figure)


@pytest.mark.slow
def test_small_models_measured():
    for name in (training.SOFTPLUS, training.S4):
        dataset = TRAINING.run(
            False, models=(name,), widths=(2, 4), seeds=1, batch=4, most_epochs=2, draws=2
        )
        assert np.all(np.diff(dataset["error"].values, axis=-1) >= 0)
        assert dataset["error"].isel(ball=0, width=0).item() < dataset.attrs["power"]
        assert len(TRAINING.check(dataset)) == 4


def cell(reach, ratios):
    """Losses below the bound up to a learning rate, by map."""
    names, rates = list(reach), np.asarray(gradients.LEARNING_RATES)
    dims = ("parametrisation", "learning_rate", "seed")
    loss = np.stack([np.where(rates <= reach[name] * 1.01, 0.1, 9.0) for name in names])[..., None]
    fill = lambda values: (dims, np.broadcast_to(np.asarray(values)[:, None, None], loss.shape))
    return xr.Dataset(
        {
            "loss": (dims, loss),
            "diverged": (dims, loss > 1e9),
            "ratio": fill([ratios[name] for name in names]),
            "first_ratio": fill([ratios[name] for name in names]),
            "slowest": fill([0.1] * len(names)),
        },
        {"parametrisation": names, "learning_rate": rates, "seed": [0]},
    )


def test_ratios_and_learning_rates_are_judged():
    published, fair = gradients.PUBLISHED_START, gradients.FAIR_START
    reach = {published: 5e-4, fair: 5e-2, "exp": 5e-2, "softplus": 5e-2, "best": 5e-2}
    ratios = {published: 9.0, fair: 1.0, "exp": 1.0, "softplus": 0.9, "best": 0.1}
    assert [v.agrees for v in GRADIENTS.check(cell(reach, ratios))] == [True, True, False, True]
    ratios |= {"best": 2.0, published: 1.0}
    reach |= {published: 5e-2}
    assert [v.agrees for v in GRADIENTS.check(cell(reach, ratios))] == [False] * 4
    assert isinstance(GRADIENTS.plot(cell(reach, ratios)), matplotlib.figure.Figure)


@pytest.mark.thorough
def test_the_published_start_grows_and_the_fair_one_decays():
    for name, sign in ((gradients.PUBLISHED_START, -1), (gradients.FAIR_START, 1)):
        model = gradients.StableSSM.init(name, 2, 3, jax.random.key(0))
        np.testing.assert_allclose(model.recurrence.rates, sign * 0.5, rtol=1e-6)
    rates = [gradients.StableSSM.init(n, 2, 3, jax.random.key(0)).recurrence.rates for n in
             ("exp", "softplus", "best")]  # fmt: skip
    np.testing.assert_allclose(rates, 0.5, rtol=1e-6)
    trained = gradients.trained_leaves(model)
    assert not trained.recurrence.state_input and trained.recurrence.state_readout


@pytest.mark.slow
def test_a_small_training():
    dataset = GRADIENTS.run(
        False, parametrisations=("best",), learning_rates=(5e-3,), seeds=1, updates=20,
        channels=2, modes=2, batch=4,
    )  # fmt: skip
    assert float(dataset["loss"].squeeze()) < 2 and float(dataset["ratio"].squeeze()) > 0


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="`models` must be one of"):
        TRAINING.run(False, models=("S5",))
    with pytest.raises(ValueError, match="`learning_rates`"):
        GRADIENTS.run(False, learning_rates=(-1.0,))
