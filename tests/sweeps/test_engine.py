import logging
import os
import subprocess
import sys
import tempfile

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import memjax as mj
from memjax.plateaus import OUTCOMES
from memjax.sweeps import _engine

SPEC = mj.PlateauSweep(memories=(8.0,), widths=(3,), curve_points=0)
MEMORIES = np.linspace(6, 16, 24)


def build(memory, seed):
    return SPEC.build(1 / memory, 3, seed, 0.02, "direct")


def build_(memory_, seed):
    return build(memory_, seed)


def swept(memories=MEMORIES, seeds=(0, 1), **options):
    return mj.sweep(build_, {"memory_": memories, "seed": seeds}, progress=False, **options)


@pytest.fixture(scope="module")
def dataset():
    return swept(lanes=16)


@pytest.mark.thorough
def test_three_programs_are_compiled_whatever_the_size(caplog):
    # A `build` of its own, so that nothing is compiled yet.
    own = lambda memory_, seed: build(memory_, seed)
    axes = {"memory_": MEMORIES, "seed": range(20)}
    jax.config.update("jax_log_compiles", True)  # the context manager knows one thread only
    try:
        with caplog.at_level(logging.WARNING):
            mj.sweep(own, axes, lanes=24, progress=False)
    finally:
        jax.config.update("jax_log_compiles", False)
    compiled = [r.message for r in caplog.records if "Finished XLA compilation" in r.message]
    programs = ("start_batch", "advance", "collect")
    counts = [sum(f"jit({name})" in line for line in compiled) for name in programs]
    assert max(counts) <= 1 and counts[0] == 1


@pytest.mark.thorough
def test_the_hessian_of_the_middle_takes_fewer_steps():
    dataset = swept(np.array([22.0, 25.0, 28.0]), range(4), rtol=0.1)
    assert np.all(dataset["result"] == OUTCOMES.index("exited"))
    # With the Hessian of the start of every step there are 63 of them, and 52 with this one.
    assert dataset["num_steps"].mean() < 57


@pytest.mark.thorough
def test_steps_follow_the_trend_where_a_plateau_ends():
    dataset = swept(seeds=range(4), rtol=0.1)
    assert np.all(dataset["result"] == OUTCOMES.index("exited"))
    # By the size of the last error alone 3.7 steps of a run are refused, and 2.5 with its trend.
    assert dataset["num_rejected_steps"].mean() < 3.1


@pytest.mark.parametrize(
    "lanes", [8, pytest.param(40, marks=pytest.mark.slow), pytest.param(64, marks=pytest.mark.slow)]
)
@pytest.mark.slow
def test_results_do_not_depend_on_the_number_of_lanes(dataset, lanes):
    other = swept(lanes=lanes)
    np.testing.assert_allclose(other["time"], dataset["time"], rtol=1e-9)
    np.testing.assert_array_equal(other["result"], dataset["result"])
    np.testing.assert_array_equal(other["num_steps"], dataset["num_steps"])


def test_results_do_not_depend_on_the_order_of_runs_to_the_last_bit(dataset):
    order = np.random.default_rng(0).permutation(len(MEMORIES))
    other = swept(memories=MEMORIES[order], lanes=16).sel(memory_=MEMORIES)
    for name in ("time", "loss", "distance", "rounding", "num_steps"):
        np.testing.assert_array_equal(other[name], dataset[name])


def test_large_sweeps_take_batches_of_several_times_the_lanes(monkeypatch):
    lanes = 8
    times = np.array([1.0, 1e2, 1e4])
    few = swept(lanes=lanes, curve_times=times)
    monkeypatch.setattr(_engine, "_FEW", 0)
    opened = []
    original = _engine.Program.batch

    def batch(self, *arguments):
        found = original(self, *arguments)
        opened.append((found[0].cell.shape[0], found[2]))
        return found

    monkeypatch.setattr(_engine.Program, "batch", batch)
    many = swept(lanes=lanes, curve_times=times)
    assert {width for width, _ in opened} == {4 * lanes}
    # Every run once, in batches that become smaller towards the end.
    sizes = [size for _, size in opened]
    assert sum(sizes) == few["time"].size
    assert max(sizes) > lanes
    np.testing.assert_array_equal(many["result"], few["result"])
    np.testing.assert_array_equal(many["num_steps"], few["num_steps"])
    for name in ("time", "loss", "distance", "curve_loss"):
        np.testing.assert_allclose(many[name], few[name], rtol=1e-9)


@pytest.mark.parametrize("size", [0, 1, 3, 4, 9, 12])
def test_pieces_of_a_batch_are_worked_off_as_far_as_asked_for(size):
    class Item(eqx.Module):
        array: jax.Array
        name: str

    def double(item):
        assert item.array.shape == (2, 3)
        return Item(2 * item.array, item.name + "!"), item.array[0]

    @eqx.filter_jit
    def run(item, size):
        return _engine._in_pieces(double, 3, size, item)

    array = 1.0 + jnp.arange(24.0).reshape(2, 12)
    out, first = run(Item(array, "x"), jnp.asarray(size))
    done = np.arange(12) < 3 * -(-size // 3)
    assert out.name == "x!"
    np.testing.assert_array_equal(out.array, np.where(done, 2 * array, 0))
    np.testing.assert_array_equal(first, np.where(done, array[0], 0))


@pytest.mark.slow
def test_times_equal_those_of_single_measurements(dataset):
    for memory, seed in ((MEMORIES[0], 0), (MEMORIES[-1], 1)):
        plateau = mj.measure_plateau(*build(memory, seed)[:3])
        cell = dataset.sel(memory_=memory, seed=seed)
        assert float(cell["time"]) == pytest.approx(float(plateau.time), rel=1e-4)
        start = float(plateau.initial_loss)
        assert float(cell["loss"]) == pytest.approx(0.98 * start, rel=1e-12)
        assert float(cell["distance"]) == pytest.approx(float(plateau.distance), rel=1e-3)


@pytest.mark.slow
def test_any_loss_goes_through_the_lanes():
    target = mj.ExponentialSum(jnp.array([1.0]), jnp.array([1.0])) + mj.GaussianBump(1 / 6.0)
    model = mj.on_plateau(target, jnp.array([0.7]))

    def general(horizon):
        flow = mj.GradientFlow(mj.WhiteNoiseLoss(target, horizon))
        return flow, model, mj.RelativeLossDrop(0.05)

    out = mj.sweep(general, {"horizon": [8.0, 12.0]}, progress=False)
    for horizon in (8.0, 12.0):
        plateau = mj.measure_plateau(*general(horizon))
        time = float(out["time"].sel(horizon=horizon))
        assert time == pytest.approx(float(plateau.time), rel=1e-4)
    with pytest.raises(ValueError, match="'double-double' for a loss or model without closed"):
        mj.sweep(general, {"horizon": [8.0]}, precision="double-double", progress=False)


def pair(asymmetry):
    """Two silent modes of almost the same rate."""
    target = mj.ExponentialSum(jnp.array([1.0]), jnp.array([1.0])) + mj.GaussianBump(1 / 8.0)
    rates = jnp.array([1.0, 0.6, 0.6]) + jnp.array([0, 0, 1.0]) * asymmetry
    model = mj.DiagonalLinearRNN(jnp.array([1.0, 0.0, 0.0]), rates)
    return mj.GradientFlow(mj.WhiteNoiseLoss(target)), model


def outcome(value):
    return OUTCOMES[int(value)]


@pytest.mark.slow
def test_a_flow_trapped_by_symmetry_is_converged_and_not_at_a_minimum():
    def trapped(asymmetry):
        # One mode, or two that are equal, cannot reach it.
        return *pair(asymmetry), mj.RelativeLossDrop(0.6)

    out = mj.sweep(trapped, {"asymmetry": [0.0, 0.01]}, progress=False).squeeze()
    assert outcome(out["result"][0]) == "converged"
    assert np.isposinf(out["time"][0]) and float(out["curvature"][0]) < 1e-12
    assert outcome(out["result"][1]) != "converged"


@pytest.mark.slow
def test_a_minimum_is_converged_with_positive_curvature():
    out = mj.sweep(
        lambda drop: (*SPEC.build(1 / 10, 2, 0, 0.02, "direct")[:2], mj.RelativeLossDrop(drop)),
        {"drop": [0.9]},
        progress=False,
    )
    assert outcome(out["result"][0]) == "converged"
    assert np.isposinf(out["time"][0]) and float(out["curvature"][0]) > 0


def test_a_single_weight_under_a_loss_of_ones_own():
    class One(mj.AbstractModel):
        weight: jax.Array

        def initial_hidden(self):
            return jnp.zeros(1)

        def vector_field(self, t, h, x):
            return -h

        def readout(self, h):
            return h

    # A scalar of a weak type, and a plain function: neither may end in single precision, nor in
    # the loops of the engine.
    start = 1e-9
    flow = mj.GradientFlow(mj.FunctionLoss(lambda model: (model.weight**2 - 1) ** 2 / 4))
    model = One(jnp.array(start))
    assert model.weight.weak_type
    assert flow.displaced(model).initial_state().dtype == jnp.float64
    far = np.array([0.5, 0.9])
    out = mj.sweep(
        lambda far: (flow, model, mj.ParameterDistance(far)), {"far": far}, progress=False
    )
    # w' = w - w^3 keeps log(w / sqrt(1 - w^2)) - tau.
    exact = np.log((start + far) / np.sqrt(1 - (start + far) ** 2)) - np.log(start)
    np.testing.assert_allclose(out["time"], exact, rtol=1e-4)


@pytest.mark.slow
def test_ends_at_once_where_there_is_nothing_to_do():
    still = mj.ExponentialSum(jnp.array([1.0]), jnp.array([1.0]))
    flow = mj.GradientFlow(mj.WhiteNoiseLoss(still))
    model = mj.DiagonalLinearRNN(jnp.array([1.0]), jnp.array([1.0]))
    out = mj.sweep(
        lambda delta: (flow, model, mj.ParameterDistance(delta)), {"delta": [0.1]}, progress=False
    )
    assert outcome(out["result"][0]) == "converged" and int(out["num_steps"][0]) == 0

    target = still + mj.GaussianBump(1 / 8.0)
    past = mj.RelativeLossDrop(0.5, reference=1e3)
    out = mj.sweep(
        lambda rate: (
            mj.GradientFlow(mj.WhiteNoiseLoss(target)), mj.on_plateau(target, rate[None]), past,
        ),
        {"rate": [0.6]},
        progress=False,
    )  # fmt: skip
    assert outcome(out["result"][0]) == "exited" and float(out["time"][0]) == 0


@pytest.mark.slow
def test_limits_end_runs():
    out = swept(memories=[16.0], seeds=[0], max_time=3.0).squeeze()
    assert outcome(out["result"]) == "max_time_reached" and np.isnan(out["time"])
    assert float(out["time_reached"]) == 3.0
    out = swept(memories=[16.0], seeds=[0], max_steps=7).squeeze()
    assert outcome(out["result"]) == "max_steps_reached" and int(out["num_steps"]) == 7


@pytest.mark.slow
def test_two_devices_share_the_queue_and_agree_with_one(dataset):
    script = (
        "import jax; jax.config.update('jax_enable_x64', True); import numpy as np;"
        "import sys; sys.path.insert(0, 'tests/sweeps'); import test_engine as t;"
        "assert len(jax.devices()) == 2;"
        "np.save(sys.argv[1], t.swept(lanes=16)['time'].values)"
    )
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=2"
        subprocess.run(
            [sys.executable, "-c", script, file.name],
            check=True,
            env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        )
        np.testing.assert_allclose(np.load(file.name), dataset["time"], rtol=1e-9)


def test_errors_of_a_build_surface():
    def broken(omega):
        if isinstance(omega, jax.core.Tracer):
            raise RuntimeError("only when traced")
        return SPEC.build(omega, 3, 0, 0.02, "direct")

    with pytest.raises(RuntimeError, match="only when traced"):
        mj.sweep(broken, {"omega": [0.1]}, progress=False)


@pytest.mark.slow
def test_closed_forms_and_the_general_path_find_the_same_times():
    class Plain(mj.DiagonalLinearRNN):
        """The same model, but of a type that has no closed forms on lanes."""

    def plain(memory_, seed):
        flow, model, exit, record = build(memory_, seed)
        return flow, eqx.tree_at(lambda m: m.amplitudes, Plain(model.amplitudes, model.rates),
                                 model.amplitudes), exit, record  # fmt: skip

    axes = {"memory_": MEMORIES[:3], "seed": [0]}
    # Not the same steps: without closed forms Newton's iteration goes on with Hessians from before.
    # With a small tolerance the times are the same all the same.
    out = mj.sweep(plain, axes, rtol=1e-9, progress=False)
    same = swept(memories=MEMORIES[:3], seeds=[0], rtol=1e-9)
    np.testing.assert_allclose(out["time"], same["time"], rtol=1e-9)


@pytest.mark.thorough
def test_a_small_remainder_is_not_lost_in_the_loss():
    # The time hardly depends on the height, but the loss goes with its square. Times from an
    # integration in 50 digits with the height 1e-7.
    def small(height, delta):
        target = mj.ExponentialSum([1.0], [1.0]) + mj.GaussianBump(1 / 8.0, height, 0.5)
        flow = mj.GradientFlow(mj.WhiteNoiseLoss(target))
        return flow, mj.on_plateau(target, jnp.array([0.6, 0.3])), mj.RelativeLossDrop(delta)

    axes = {"height": [1e-7, 1e-12], "delta": [0.02, 0.2]}
    out = mj.sweep(small, axes, precision="float64", progress=False)
    np.testing.assert_allclose(out["time"].sel(height=1e-7), [0.858341, 1090.76], rtol=1e-5)
    assert {outcome(r) for r in out["result"].sel(height=1e-12).values} == {"unresolved"}
    plateau = mj.measure_plateau(*small(1e-12, 0.02), throw=False)
    assert outcome(plateau.result_code) == "unresolved"


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"rtol": "small"}, TypeError, "`rtol` must be a number"),
        ({"rtol": 2.0}, ValueError, "`rtol` must be below 1"),
        ({"rtol": -1.0}, ValueError, "`rtol` must be positive"),
        ({"max_steps": 2**31}, ValueError, "`max_steps` must be an integer of at most"),
        ({"curve_times": []}, ValueError, "`curve_times` must be 1-D with at least 1"),
        ({"lanes": 2.5}, ValueError, "`lanes` must be an integer"),
    ],
)
def test_wrong_options_are_refused_at_once(options, error, match):
    with pytest.raises(error, match=match):
        swept(**options)
