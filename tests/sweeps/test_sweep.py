import _thread
import dataclasses
import io
import os
import signal
import subprocess
import sys
import threading
import tomllib
import warnings

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.plateaus import OUTCOMES
from memjax.solvers import StageNewton
from memjax.sweeps._engine import Program
from memjax.sweeps._progress import Progress, saying

SHORT = mj.PlateauSweep(
    memories=(8.0, 10.0, 12.0), widths=(2, 3), seeds=(0, 1), curve_points=25, curve_stop=1e4
)
NARROW = dataclasses.replace(SHORT, widths=(2,), curve_points=0)


@pytest.fixture
def interruptible():
    """Python's own answers to signals: a shell takes that to an interrupt from what it runs in the
    background, and `nohup` that to the end of a terminal."""
    own = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    before = {number: signal.signal(number, answer) for number, answer in own.items()}
    yield
    for number, answer in before.items():
        signal.signal(number, answer)


@pytest.fixture(scope="module")
def traces():
    """One entry for every time that a cell was traced."""
    return []


@pytest.fixture(scope="module")
def dataset(traces):
    build = mj.PlateauSweep.build

    def counted(self, omega, *args):
        traces.extend([self] if isinstance(omega, jax.core.Tracer) else [])
        return build(self, omega, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mj.PlateauSweep, "build", counted)
        return SHORT.run(progress=False, lanes=8)


def test_dataset_has_named_dimensions_units_and_its_specification(dataset):
    assert dict(dataset["time"].sizes) == {
        "omega": 3, "width": 2, "seed": 2, "delta": 1, "reparametrisation": 1,
    }  # fmt: skip
    np.testing.assert_allclose(dataset["memory"], [8, 10, 12])
    assert dataset["time"].attrs["units"] == "training time"
    assert dataset["result"].attrs["flag_meanings"].split() == [*OUTCOMES, "unfinished"]
    assert np.all(dataset["result"] == 0)
    attrs = dataset.attrs
    for key in ("version_memjax", "version_jax", "device", "dtype", "rtol", "max_steps"):
        assert key in attrs
    assert mj.PlateauSweep.from_dataset(dataset) == SHORT


def test_attributes_stay_true_of_what_is_joined_and_cut(dataset):
    # As xarray joins by default: with the attributes of the first.
    whole = xr.concat([dataset.isel(omega=[0]), dataset.isel(omega=[1, 2])], "omega")
    xr.testing.assert_identical(whole, dataset)
    assert mj.PlateauSweep.from_dataset(whole) == SHORT
    cut = dataset.isel(omega=1, width=[1], seed=0)
    wanted = dataclasses.replace(SHORT, memories=(10.0,), widths=(3,), seeds=(0,))
    assert mj.PlateauSweep.from_dataset(cut) == wanted
    # No attribute says what the coordinates say.
    common = tomllib.loads(dataset.attrs["specification"])
    assert not {"memories", "widths", "seeds", "deltas", "reparametrisations"} & set(common)
    assert not {"axes", "complete"} & set(dataset.attrs)
    older = dataset.assign_attrs(specification=dataclasses.replace(SHORT, seeds=(7,)).to_toml())
    assert mj.PlateauSweep.from_dataset(older) == SHORT
    with pytest.raises(ValueError, match="attribute 'specification' .* KeyError: 'specification'"):
        mj.PlateauSweep.from_dataset(dataset.drop_attrs())
    with pytest.raises(ValueError, match="known keys, got 'widht' .* did you mean 'widths'"):
        mj.PlateauSweep.from_dataset(dataset.assign_attrs(specification="widht = 3"))
    with pytest.raises(TypeError, match="`dataset` must be"):
        mj.PlateauSweep.from_dataset({})


@pytest.mark.parametrize("memory", [49.0, 1e5 / 3, 7.1, 8, 1e-3])
def test_a_memory_is_found_again_from_its_reciprocal(memory):
    spec = mj.PlateauSweep(memories=(memory,))
    coordinates = {"omega": [1 / memory], "width": [2, 4, 8], "seed": [0, 1, 2, 3]}
    coordinates |= {"delta": [0.02], "reparametrisation": ["direct"]}
    dataset = xr.Dataset(coords=coordinates, attrs={"specification": ""})
    assert 1 / mj.PlateauSweep.from_dataset(dataset).memories[0] == 1 / memory
    if memory != 1e5 / 3:
        assert mj.PlateauSweep.from_dataset(dataset) == spec


def test_cells_equal_single_measurements(dataset):
    for memory, width, seed in [(8.0, 3, 0), (12.0, 3, 1)]:
        flow, model, exit, record = SHORT.build(1 / memory, width, seed, 0.02, "direct")
        plateau = mj.measure_plateau(flow, model, exit)
        cell = dataset.sel(width=width, seed=seed).squeeze().sel(omega=1 / memory)
        assert float(cell["time"]) == pytest.approx(float(plateau.time), rel=1e-6)
        assert float(cell["loss"]) == pytest.approx(0.98 * float(plateau.initial_loss), rel=1e-6)
        assert float(cell["decay_rate"]) == pytest.approx(float(record["decay_rate"]), rel=1e-14)
        assert int(cell["result"]) == 0


def test_curves_fall_from_the_initial_loss_to_the_exit(dataset):
    curve = dataset["curve_loss"].transpose("training_time", ...)
    np.testing.assert_allclose(curve[0], dataset["initial_loss"], rtol=1e-3)
    falls = curve.diff("training_time")
    assert float(falls.max()) <= 1e-12
    after = curve["training_time"] > dataset["time"]
    assert bool((curve.isnull() == after.transpose(*curve.dims)).all())


@pytest.mark.slow
def test_a_solver_of_ones_own_goes_through_diffrax(dataset):
    controller = diffrax.PIDController(rtol=1e-6, atol=1e-12)
    solver = diffrax.Kvaerno5(root_finder=diffrax.with_stepsize_controller_tols(StageNewton)())
    other = NARROW.run(progress=False, solver=solver, stepsize_controller=controller)
    same = dataset.sel(width=[2])
    np.testing.assert_allclose(other["time"], same["time"], rtol=1e-4)
    np.testing.assert_array_equal(other["result"], same["result"])
    assert "Kvaerno5" in other.attrs["solver"]


def test_an_equal_specification_finds_everything_compiled(dataset, traces):
    before = len(traces)
    again = dataclasses.replace(SHORT).run(progress=False, lanes=8)
    xr.testing.assert_identical(again, dataset)
    assert len(traces) == before


@pytest.mark.slow
def test_failures_are_cells_with_their_result():
    def build(omega, drop):
        flow, model, _, _ = SHORT.build(omega, 2, 0, 0.02, "direct")
        return flow, model, mj.RelativeLossDrop(drop), {"twice": 2 * drop}

    axes = {"omega": [1 / 10], "drop": [0.02, 0.9]}
    out = mj.sweep(build, axes, progress=False, max_time=1e9).squeeze()
    assert out["result"].values.tolist() == [0, OUTCOMES.index("converged")]
    assert np.isfinite(out["time"][0]) and np.isposinf(out["time"][1])
    np.testing.assert_allclose(out["twice"], [0.04, 1.8])
    out = mj.sweep(build, axes, progress=False, max_time=1.0).squeeze()
    assert set(out["result"].values.tolist()) == {OUTCOMES.index("max_time_reached")}
    assert np.isnan(out["time"]).all()
    np.testing.assert_allclose(out["time_reached"], 1.0)


@pytest.mark.slow
def test_an_axis_may_be_the_only_one_and_static():
    out = mj.sweep(
        lambda width: SHORT.build(1 / 10.0, width, 0, 0.02, "direct"),
        {"width": [2]},
        static=("width",),
        progress=False,
    )
    assert out["time"].dims == ("width",) and int(out["result"][0]) == 0


def test_zarr_round_trip_is_the_identity(dataset, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        path = mj.save_dataset(dataset, tmp_path / "deep" / "x.zarr")
    xr.testing.assert_identical(mj.load_dataset(path), dataset)


@pytest.mark.slow
def test_an_interrupted_sweep_returns_what_is_finished_and_leaves_no_threads_at_work(
    monkeypatch, interruptible
):
    fetch, fetched = Program.fetch, []

    def fetch_and_interrupt(*batch):
        fetched.append(batch)
        if len(fetched) == 3:
            _thread.interrupt_main()
        return fetch(*batch)

    monkeypatch.setattr(Program, "fetch", staticmethod(fetch_and_interrupt))
    memories = tuple(np.linspace(20, 40, 5000))
    long = mj.PlateauSweep(memories=memories, widths=(4,), curve_points=0, rtol=1e-7)
    with pytest.warns(UserWarning, match="interrupted after"):
        out = long.run(progress=False, lanes=16)
    assert not any(thread.name.startswith("sweep") for thread in threading.enumerate())
    done = out["result"] != -1
    assert 0 < int(done.sum()) < done.size
    assert bool(np.isnan(out["time"].where(~done)).all())
    assert bool((out["time"].where(done & (out["result"] == 0)) > 0).any())


def build_any(omega):
    return SHORT.build(omega, 2, 0, 0.02, "direct")


@pytest.mark.parametrize(
    "axes, error, match",
    [
        ({}, ValueError, "`axes` must not be empty"),
        ({"omega": []}, ValueError, "axis `omega` must be .* at least one value"),
        ({"omega": [[0.1]]}, ValueError, "axis `omega` must be a 1-D"),
        ({"omega": [0.1, np.nan]}, ValueError, "axis `omega` must be finite, got nan"),
        ({"omega": [0.1, 0.1]}, ValueError, "axis `omega` must not repeat"),
        ({"omega": [0.1, 0.0]}, ValueError, "`omega` must be positive, got 0.0"),
        ({"omega": [0.1, -0.1]}, ValueError, "`omega` must be positive, got -0.1"),
        ({"omega": [object()]}, TypeError, "axis `omega` must hold numbers or strings"),
        ({"lag": [0.1]}, TypeError, "`build` must take the axes"),
        ({"memory": [0.1]}, ValueError, "must not use the name .memory."),
    ],
)
def test_bad_axes_are_refused_before_any_run(axes, error, match):
    with pytest.raises(error, match=match):
        mj.sweep(build_any, axes, progress=False)


def test_a_build_that_is_not_hashable_is_refused_in_a_line():
    @dataclasses.dataclass
    class Unhashable:
        width: int

        def __call__(self, omega):
            return SHORT.build(omega, self.width, 0, 0.02, "direct")

    with pytest.raises(TypeError, match="`build` must be hashable, .* frozen dataclass") as caught:
        mj.sweep(Unhashable(2), {"omega": [0.1]}, progress=False)
    assert "\n" not in str(caught.value)


def test_a_sweep_shows_that_it_steps_before_a_run_has_ended(dataset, monkeypatch):
    shown = []
    monkeypatch.setattr(Progress, "show", lambda self, done, doing: shown.append((done, doing)))
    SHORT.run(progress=False, lanes=8)
    assert shown[0][0] == 0 and shown[-1] == (dataset["time"].size, "plateaus")


def test_bad_options_are_refused():
    axes = {"omega": [0.1]}
    with pytest.raises(ValueError, match="`static` must be one of 'omega', got 'width'"):
        mj.sweep(build_any, axes, static=("width",), progress=False)
    with pytest.raises(ValueError, match="`precision` must be one of 'auto'"):
        mj.sweep(build_any, axes, precision="quad", progress=False)  # pyright: ignore
    with pytest.raises(ValueError, match="`lanes` must be"):
        mj.sweep(build_any, axes, lanes=0, progress=False)
    with pytest.raises(ValueError, match="`precision` must not be 'double-double' with a"):
        mj.sweep(
            build_any, axes, precision="double-double", solver=diffrax.Kvaerno5(), progress=False
        )
    with pytest.raises(ValueError, match="must not record 'time'"):
        mj.sweep(lambda omega: (*build_any(omega)[:3], {"time": 1.0}), axes, progress=False)
    with pytest.raises(TypeError, match="must return"):
        mj.sweep(lambda omega: 3, axes, progress=False)

    def single(omega):
        flow, model, exit, _ = build_any(omega)
        return flow, jax.tree.map(lambda x: x.astype(jnp.float32), model), exit

    with pytest.raises(TypeError, match="`model` needs float64, got float32.*jax_enable_x64"):
        mj.sweep(single, axes, progress=False)


def test_specification_survives_toml(tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text(SHORT.to_toml())
    assert mj.PlateauSweep.from_toml(path) == SHORT
    path.write_text("widths = [2, 5]\nslowest = 1\n")
    assert mj.PlateauSweep.from_toml(path) == mj.PlateauSweep(widths=(2, 5), slowest=1.0)


@pytest.mark.parametrize(
    "text, error, match",
    [
        ("widhts = [2]", ValueError, "known keys, got 'widhts'.*did you mean 'widths'"),
        ("zzz = 1", ValueError, "known keys, got 'zzz'.*known are"),
        ("widths = ", ValueError, "must be a TOML file"),
        ("widths = 2", TypeError, "`widths` must be a list"),
        ("widths = [2.5]", ValueError, "`widths` must be an integer, got 2.5"),
        ("widths = [1]", ValueError, "`widths` must exceed the 1 exponential"),
        ("widths = []", ValueError, "`widths` must not be empty"),
        ("seeds = [1, 1]", ValueError, "`seeds` must not repeat"),
        ("memories = [-8.0]", ValueError, "`memories` must be positive, got -8.0"),
        ("memories = [nan]", ValueError, "`memories` must be finite, got nan"),
        ("exit = 'drop'", ValueError, "`exit` must be one of"),
        ("target_rates = [0.0]", ValueError, "`target_rates` must be positive"),
        ("target_rates = [1.0, 2.0]", ValueError, "must have the same length, got 1 and 2"),
        ("slowest = 5.0", ValueError, "`slowest` must be less than `fastest`"),
        ("jitter = -1.0", ValueError, "`jitter`"),
        ("curve_points = 1", ValueError, "`curve_points`"),
        ("curve_start = 1e17", ValueError, "`curve_start` must be less than"),
        ("bump_width = '1'", TypeError, "`bump_width` must be a number"),
        ("max_steps = true", TypeError, "`max_steps` must be an integer"),
    ],
)
def test_bad_specifications_are_refused(tmp_path, text, error, match):
    path = tmp_path / "spec.toml"
    path.write_text(text)
    with pytest.raises(error, match=match) as caught:
        mj.PlateauSweep.from_toml(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("start", "reparametrisation"),
    [
        pytest.param("near-plateau", "direct", marks=pytest.mark.slow),
        pytest.param("random", "exp", marks=pytest.mark.slow),
    ],
)
def test_other_starts_and_reparametrisations_run(start, reparametrisation):
    spec = mj.PlateauSweep(
        memories=(8.0, 10.0), widths=(3,), seeds=(0, 1), start=start, curve_points=0,
        reparametrisations=(reparametrisation,), exit="parameter-distance", deltas=(0.05, 0.1),
    )  # fmt: skip
    out = spec.run(progress=False)
    assert (out["result"] == 0).all()
    # A larger distance takes longer, whatever the start.
    assert (out["time"].diff("delta") > 0).all()
    np.testing.assert_allclose(out["distance"], out["delta"].broadcast_like(out["distance"]))


@pytest.mark.parametrize(
    "name",
    ["SIGINT", *(pytest.param(n, marks=pytest.mark.thorough) for n in ("SIGTERM", "SIGHUP"))],
)
def test_a_signal_ends_the_command_within_seconds_also_while_it_compiles(
    name, tmp_path, interruptible
):
    # Without a cache, so that it compiles.
    process = subprocess.Popen(
        [sys.executable, "-m", "memjax.cli", "sweep", "--widths", "2", "--out", "out"],
        cwd=tmp_path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"JAX_ENABLE_COMPILATION_CACHE": "false"},
    )  # fmt: skip
    assert process.stderr is not None
    seen = ""
    while "compiling" not in seen:
        letter = process.stderr.read(1)
        assert letter, seen
        seen += letter
    number = getattr(signal, name)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 128 + number, errors
    assert "interrupted; 0 of 48 runs are in out; go on with --resume" in errors
    assert bool((mj.load_dataset(tmp_path / "out")["result"] == -1).all())


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_what_is_done_before_the_bar_is_said_on_a_line_that_goes_away(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with pytest.raises(ValueError), saying("checking", True):
        assert terminal.getvalue() == "checking ..."
        raise ValueError
    assert terminal.getvalue() == "checking ...\r\x1b[K"
    with saying("checking", False):
        assert terminal.getvalue() == "checking ...\r\x1b[K"
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with saying("checking", True):
        assert sys.stderr.getvalue() == ""
