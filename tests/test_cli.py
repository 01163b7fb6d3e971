import dataclasses
import inspect
import json
import shutil
import subprocess
import sys

import jax
import matplotlib.figure
import matplotlib.image
import numpy as np
import pytest
import scipy.stats
import xarray as xr

import memjax as mj
from memjax.cli import COMMANDS, main
from memjax.sweeps._output import replacing

SWEEP = ["sweep", "--memories", "8", "9", "10", "--widths", "2", "--seeds", "0", "--quiet"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "short"
    assert main([*SWEEP, "--curve-points", "20", "--out", str(out)]) == 0
    return out


@pytest.mark.thorough
def test_sweep_writes_dataset_figures_and_specification(run):
    names = {entry.name for entry in run.iterdir()}
    files = {"plateaus.zarr", "plateau_law.png", "loss_curves.png", "sweep.toml"}
    assert names == {*files, "memjax.json"}
    dataset = mj.load_dataset(run)
    assert dataset["time"].shape == (3, 1, 1, 1, 1)
    spec = mj.PlateauSweep.from_toml(run / "sweep.toml")
    assert spec == mj.PlateauSweep(
        memories=(8.0, 9.0, 10.0), widths=(2,), seeds=(0,), curve_points=20
    )
    assert matplotlib.image.imread(run / "plateau_law.png").std() > 0.01


def test_sweep_prints_times_fit_and_bound(run, capsys, tmp_path):
    arguments = [*SWEEP, "--curve-points", "20", "--out", str(tmp_path / "x")]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    time = float(mj.load_dataset(run)["time"][0].squeeze())
    assert f"{time:.4g}" in text
    for word in ("slope", "bound c0", "3 exited", "not attained"):
        assert word in text


def test_fit_as_json_and_as_table(run, capsys):
    assert main(["fit", str(run), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["correction"] for row in rows] == ["none", "omega^2"]
    dataset = mj.load_dataset(run)
    x, y = dataset["memory"].values, np.log(dataset["time"].values.squeeze())
    assert rows[0]["slope"] == pytest.approx(np.polyfit(x, y, 1)[0], rel=1e-9)
    assert main(["fit", str(run), "--axis-range", "8", "9"]) == 0
    assert "too few" in capsys.readouterr().out


def test_the_old_name_of_the_range_says_the_new_one(run, capsys):
    assert main(["fit", str(run), "--memory-range", "8", "9"]) == 0
    out, err = capsys.readouterr()
    assert "too few" in out and "--axis-range" in err
    assert main(["fit", str(run), "--memory-range", "8", "9", "--axis-range", "8", "9"]) == 2
    assert "`memory_range` must not be given with `axis_range`" in capsys.readouterr().err


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A sweep of one's own over delays and widths, with cells that are not finished."""
    delay, width = np.arange(2.0, 14.0, 2.0), np.array([2, 4])
    time = np.exp(0.1 * width * delay[:, None])
    result = np.zeros(time.shape, np.int8)
    result[-1, 1], time[-1, 1] = -1, np.nan
    dims = ("delay", "width")
    variables = {"time": time, "result": result, "time_reached": time}
    dataset = xr.Dataset(
        {name: (dims, values) for name, values in variables.items()},
        {"delay": delay, "width": width},
    )
    return mj.save_dataset(dataset, tmp_path_factory.mktemp("own") / "sweep")


def test_fit_and_plot_take_any_axis(store, tmp_path, capsys):
    assert main(["fit", str(store), "--axis", "delay", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    np.testing.assert_allclose([row["slope"] for row in rows], [0.2, 0.4])
    assert [row["delay_high"] for row in rows] == [12, 10]
    assert main(["fit", str(store), "--axis", "delay"]) == 0
    text = capsys.readouterr().out
    assert "log(time) = slope * delay + constant" in text and "m=4" in text and "5 exited" in text
    assert "omega" not in text
    out = tmp_path / "law.png"
    assert main(["plot", str(store), "--axis", "delay", "--out", str(out)]) == 0
    assert matplotlib.image.imread(out).std() > 0.01
    capsys.readouterr()
    for command in (["fit", str(store)], ["plot", str(store), "--out", "x.png"]):
        assert main(command) == 2
        assert "`axis` must be given" in capsys.readouterr().err
        assert main([*command, "--axis", "widht"]) == 2
        assert "did you mean 'width'?" in capsys.readouterr().err


@pytest.mark.parametrize("figure", ["law", "curves"])
def test_plot_writes_a_file_and_spares_an_old_one(run, tmp_path, capsys, figure):
    out = tmp_path / "figure.pdf"
    arguments = ["plot", str(run), "--figure", figure, "--out", str(out)]
    assert main(arguments) == 0
    assert out.read_bytes().startswith(b"%PDF")
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, "--overwrite"]) == 0
    assert main(["plot", str(run), "--out", str(tmp_path / "figure.txt")]) == 2
    assert "`out` must end in" in capsys.readouterr().err


@pytest.mark.thorough
def test_plateau_from_explicit_values_matches_the_library(capsys):
    assert main(["plateau", "--memory", "8", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    # The multiprecision reference of this start.
    assert got["time"] == pytest.approx(12.89371238036458615, rel=1e-5)
    assert got["result"] == "exited"
    assert main(["plateau", "--memory", "8"]) == 0
    assert "12.893" in capsys.readouterr().out


@pytest.mark.slow
def test_plateau_that_never_exits_has_no_time_in_json(capsys):
    assert main(["plateau", "--memory", "8", "--delta", "0.9", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["result"] == "converged" and got["time"] is None
    assert main(["plateau", "--memory", "8", "--max-steps", "3", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["result"] == "max_steps_reached"


@pytest.mark.slow
def test_plateau_on_a_measured_kernel(tmp_path, capsys):
    times = np.linspace(0, 20, 2001)
    bump = np.exp(-((times - 8) ** 2) / (2 * 0.5**2))
    path = tmp_path / "kernel.csv"
    np.savetxt(path, np.column_stack([times, bump]), delimiter=",", header="t,rho", comments="")
    arguments = ["plateau", "--kernel", str(path), "--json"]
    exponential = ["--target-amplitudes", "1", "--target-rates", "1"]
    assert main([*arguments, *exponential]) == 0
    got = json.loads(capsys.readouterr().out)
    # A fine sampling of the bump has nearly the bump's own plateau.
    assert got["time"] == pytest.approx(12.8937, rel=1e-3)


@pytest.mark.slow
def test_specifications_give_defaults_that_options_override(tmp_path, capsys):
    path = tmp_path / "spec.toml"
    path.write_text("memory = 8.0\ndelta = 0.9\n")
    assert main(["plateau", "--spec", str(path), "--delta", "0.02", "--json"]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["time"] == pytest.approx(12.8937, rel=1e-4)
    path.write_text("memories = [8.0, 9.0]\nwidths = [2]\nseeds = [0]\ncurve_points = 0\n")
    out = tmp_path / "out"
    assert main(["sweep", f"--spec={path}", "--seeds", "1", "--quiet", "--out", str(out)]) == 0
    assert mj.load_dataset(out)["seed"].values.tolist() == [1]
    assert not (out / "loss_curves.png").exists()


def test_fit_and_plot_take_specifications_too(run, tmp_path, capsys):
    path = tmp_path / "spec.toml"
    path.write_text("axis_range = [8, 10]\nconfidence = 0.5\n")
    assert main(["fit", str(run), "--spec", str(path), "--json"]) == 0
    narrow = json.loads(capsys.readouterr().out)[0]
    assert main(["fit", str(run), "--json"]) == 0
    wide = json.loads(capsys.readouterr().out)[0]
    assert narrow["slope"] == wide["slope"] and narrow["slope_high"] < wide["slope_high"]
    path.write_text(f"dataset = '{run}'\nout = '{tmp_path / 'x.png'}'\n")
    assert main(["plot", "--spec", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"out": str(tmp_path / "x.png")}
    for text, match in [
        ("confidence = 'high'", "`confidence` must be a number"),
        ("axis_range = [8]", "`axis_range` must have 2 values"),
        ("axis = 1", "`axis` must be text"),
        ("json = 1", "`json` must be True or False"),
        ("datset = 'x'", "did you mean 'dataset'"),
    ]:
        path.write_text(text)
        assert main(["fit", str(run), "--spec", str(path)]) == 2
        assert match in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, match",
    [
        (["plateau", "--rates", "1", "0"], "`rates` must be positive, got 0.0"),
        (["plateau", "--rates", "1"], "must have the same shape"),
        (["plateau", "--memory", "0"], "`memory` must be positive, got 0.0"),
        (["plateau", "--memory", "nan"], "`memory` must be finite, got nan"),
        (["plateau", "--delta", "2"], "`delta` must be below 1"),
        (["plateau", "--kernel", "none.csv"], "none.csv"),
        (["plateau", "--spec", "none.toml"], "must be a file that exists, got 'none.toml'"),
        (["sweep", "--memories", "--out", "x"], "`memories` must not be empty"),
        (["sweep", "--widths", "1", "--out", "x"], "`widths` must exceed"),
        (["sweep", "--spec", "none.toml"], "must be a file that exists, got 'none.toml'"),
        (["fit", "none"], "'none' does not exist"),
        (["plot", "none", "--out", "x.png"], "'none' does not exist"),
        (["reproduce"], "they are digits-stability"),
        (["reproduce", "plateau-flow"], "did you mean 'plateau-flows'?"),
        (["reproduce", "plateau-flows", "--full"], "`full` must be left out for plateau-flows"),
        (["reproduce", "plateau-flows", "--set", "flows"], "`set` must be NAME=VALUE, got 'flows'"),
        (["reproduce", "plateau-width", "--set", "width=2"], "did you mean 'widths'?"),
        (["reproduce", "plateau-width", "--set", "progress=False"], "`progress` must be an option"),
        (["reproduce", "plateau-width", "--set", "name=a"], "`name` must be an option"),
        (["reproduce", "plateau-width", "--set", "seeds=a"], "`seeds` must"),
    ],
)
def test_wrong_input_is_one_line_and_status_2(arguments, match, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", [SWEEP, ["reproduce", "plateau-flows"], ["plot", "run"]])
def test_what_memjax_did_not_write_is_not_overwritten(command, tmp_path, capsys):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    assert main([*command, "--out", str(tmp_path), "--overwrite"]) == 2
    error = capsys.readouterr().err
    assert str(tmp_path) in error and error.count("\n") == 1
    assert notes.read_text() == "mine" and list(tmp_path.iterdir()) == [notes]


def test_a_second_writer_is_refused_before_the_sweep(tmp_path, capsys):
    with replacing(tmp_path / "run") as partial:
        partial.mkdir()
        assert main([*SWEEP, "--out", str(tmp_path / "run")]) == 2
    assert "is being written by process" in capsys.readouterr().err


def test_an_existing_run_is_refused_before_the_sweep(run, capsys, tmp_path):
    same = [*SWEEP, "--curve-points", "20", "--out", str(run)]
    assert main(same) == 2
    assert "holds a finished run of this sweep" in capsys.readouterr().err
    assert main([*SWEEP, "--out", str(run)]) == 2
    assert "is of another sweep, which differs in `curve_times`" in capsys.readouterr().err
    (tmp_path / "notes").write_text("mine")
    assert main([*SWEEP, "--out", str(tmp_path)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_run_is_taken_up_without_saying_again_what_it_is(run, capsys):
    (run / "plateau_law.png").unlink()
    assert main(["sweep", "--resume", "--quiet", "--out", str(run)]) == 0
    assert "3 exited" in capsys.readouterr().out and (run / "plateau_law.png").exists()
    assert main(["sweep", "--resume", "--quiet", "--seeds", "7", "--out", str(run)]) == 2
    assert "differs in axis `seed`" in capsys.readouterr().err


def test_status_of_a_run(run, capsys):
    assert main(["status", str(run)]) == 0
    assert "3 of 3 done (100.0 %)" in capsys.readouterr().out
    assert main(["status", str(run), "--json", "--follow"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["complete"] and found["outcomes"]["exited"] == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_defaults_and_an_example(command, capsys):
    assert main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert "default" in text and f"Example: memjax {command}" in text


@pytest.fixture
def small(monkeypatch):
    """A reproduction in no time, with one measurement that has no answer."""
    dataset = xr.Dataset({"result": ("run", np.array([0, 3], np.int8))})
    verdicts = [mj.Verdict("said " * 12, "seen", False), mj.Verdict("c", "d", None)]
    one = mj.Reproduction(
        "small", "Title", "Source", "How", lambda progress: dataset, lambda dataset: verdicts,
        lambda dataset: matplotlib.figure.Figure(),
    )  # fmt: skip
    monkeypatch.setattr("memjax.reproductions.REPRODUCTIONS", {"small": one})
    return one


def test_reproduce_prints_and_writes_what_is_published_and_found(small, tmp_path, capsys):
    out = tmp_path / "small"
    arguments = ["reproduce", "small", "--quiet", "--out", str(out)]
    # One measurement has no answer.
    assert main(arguments) == 1
    text = capsys.readouterr()
    assert "1 measurements" in text.err
    for word in ("published", "found", "agrees", "said", "seen", "NO", "not decided"):
        assert word in text.out
    names = {entry.name for entry in out.iterdir()}
    assert names == {"dataset.zarr", "small.png", "verdicts.json", "memjax.json"}
    assert json.loads((out / "verdicts.json").read_text())[0]["agrees"] is False
    assert main(arguments) == 2
    assert "exists already" in capsys.readouterr().err


def test_reproduce_takes_the_published_sizes(small, tmp_path, monkeypatch):
    seen = []

    def run(progress, *, full=False, seeds=3, widths=(2, 4), plot="all"):
        seen.append((full, seeds, widths, plot))
        return small.run(progress)

    sized = dataclasses.replace(small, run=run)
    monkeypatch.setattr("memjax.reproductions.REPRODUCTIONS", {"small": sized})
    out = str(tmp_path / "small")
    assert main(["reproduce", "small", "--quiet", "--out", out]) == 1
    assert main(["reproduce", "small", "--quiet", "--full", "--overwrite", "--out", out]) == 1
    options = ["--set", "seeds=1", "widths=8,16", "plot=tanh vanilla, power law"]
    assert main(["reproduce", "small", "--quiet", *options, "--overwrite", "--out", out]) == 1
    assert seen == [
        (False, 3, (2, 4), "all"),
        (True, 3, (2, 4), "all"),
        (False, 1, (8, 16), "tanh vanilla, power law"),
    ]


def test_reproduce_that_disagrees_is_an_answer(small, tmp_path, capsys):
    good = xr.Dataset({"result": ("run", np.zeros(2, np.int8))})
    object.__setattr__(small, "run", lambda progress: good)
    out = str(tmp_path / "small")
    assert main(["reproduce", "small", "--json", "--out", out]) == 0
    got = json.loads(capsys.readouterr().out)
    assert got["failed"] == 0 and [v["agrees"] for v in got["verdicts"]] == [False, None]


def test_reproduce_lists_its_names(capsys):
    assert main(["reproduce", "--list"]) == 0
    text = capsys.readouterr().out
    for name, item in mj.REPRODUCTIONS.items():
        assert f"{name} " in text and item.title in text
    assert main(["reproduce", "--list", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == set(mj.REPRODUCTIONS)


def test_help_names_all_commands_with_what_their_docstrings_say(capsys):
    for command in COMMANDS.values():
        assert inspect.getdoc(command.load()).split("\n\n")[0].replace("\n", " ") == command.summary
    shown = []
    for words in ([], ["--help"], ["-h"]):
        assert main(words) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    assert max(map(len, shown[0].splitlines())) <= 80
    text = " ".join(shown[0].split())
    for name, command in COMMANDS.items():
        assert f" {name} {command.summary}" in text


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"]])
def test_what_every_terminal_is_asked_first_imports_nothing_slow(words):
    code = f"import sys; from memjax.cli import main; main({words}); print(sorted(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *said, modules = out.stdout.splitlines()
    assert said
    slow = ("jax", "numpy", "equinox", "diffrax", "tyro", "memjax.sweeps", "memjax.cli._sweep")
    assert [name for name in slow if f"'{name}'" in modules] == []


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"memjax {mj.__version__}\n"


def test_help_of_a_command_needs_no_device(monkeypatch, capsys):
    monkeypatch.setattr("jax.devices", lambda: 1 / 0)
    assert main(["sweep", "--help"]) == 0
    assert "--memories" in capsys.readouterr().out


# What a shell asks the function that completes, and what it is to answer.
COMPLETIONS = [
    (["memjax", "sw"], {"sweep"}),
    (["memjax", "sweep", "--mem"], {"--memories"}),
    (["memjax", "sweep", "--widths", "2", "--sta"], {"--start"}),
    (["memjax", "sweep", "--start", "near"], {"near-plateau"}),
    (["memjax", "status", "--fo"], {"--follow"}),
]


@pytest.fixture(scope="module")
def completions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("completions")
    for shell, name in (("bash", "bash"), ("zsh", "_memjax"), ("fish", "fish")):
        assert main(["--tyro-write-completion", shell, str(folder / name)]) == 0
    return folder


def ask(shell, script, *arguments):
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    command = [shell, "-c", script, shell, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize(("words", "answer"), COMPLETIONS)
def test_bash_completes_commands_and_options(words, answer, completions):
    script = """source "$1"; shift
declaration=($(complete -p memjax))
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
"${declaration[2]}"; printf '%s\\n' "${COMPREPLY[@]}" """
    assert set(ask("bash", script, str(completions / "bash"), *words)) == answer


@pytest.mark.parametrize(("words", "answer"), COMPLETIONS)
def test_fish_completes_commands_and_options(words, answer, completions):
    script = "source $argv[2]; complete -C $argv[3] | string split -f 1 \\t"
    assert answer <= set(ask("fish", script, str(completions / "fish"), " ".join(words)))


@pytest.mark.parametrize(("words", "answer"), COMPLETIONS)
def test_zsh_completes_commands_and_options(words, answer, completions):
    # `_describe` is what shows the choices, in an interactive shell only.
    script = """fpath=("$1" $fpath); shift; autoload -U compinit; compinit -u -D
_describe() { print -rl -- ${${(P)2}%%:*} }
words=("$@"); CURRENT=$#; $_comps[memjax]"""
    assert set(ask("zsh", script, str(completions), *words)) == answer


def test_completion_is_printed_too(completions, capsys):
    assert main(["--tyro-print-completion", "bash"]) == 0
    assert capsys.readouterr().out.strip() == (completions / "bash").read_text().strip()


def test_unknown_words_are_refused(capsys):
    assert main(["sweeep"]) == 2
    assert main(["sweep", "--widht", "3"]) == 2
    assert "--widths" in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(capsys, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["reproduce", "digits-stability", "--out", str(tmp_path / "out"), "--quiet"]) == 2
    error = capsys.readouterr().err
    assert "pip install 'memjax[notebooks]'" in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_module_runs_as_a_script_and_importing_changes_no_setting():
    # The number of devices can be set only as long as nothing has been computed.
    code = """import jax, memjax, memjax.cli; print(jax.config.jax_enable_x64)
jax.config.update("jax_num_cpu_devices", 3); print(jax.device_count("cpu"))"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "3"]


MODELS = """
import equinox as eqx, jax, jax.numpy as jnp
class Recursion(eqx.Module):
    multiplier: jax.Array
    def __call__(self, xs):
        move = lambda h, x: (self.multiplier * h + x,) * 2
        return jax.lax.scan(move, jnp.zeros(()), xs)[1]
def make(multiplier=0.5): return Recursion(jnp.array(multiplier))
def broken(): raise RuntimeError("no\\nluck")
model, number = make(), 3
"""


@pytest.fixture
def models(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "models_to_diagnose.py").write_text(MODELS)
    monkeypatch.delitem(sys.modules, "models_to_diagnose", raising=False)
    return "models_to_diagnose"


def test_diagnose_reports_on_a_model_of_the_current_directory(models, capsys):
    arguments = ["diagnose", f"{models}:make", "--lag", "20", "--samples", "2"]
    assert main([*arguments, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["model"] == "Recursion" and record["lag"] == 20
    assert record["verdict"] == "plateau" and record["remedies"] == []
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "Verdict: PLATEAU" in text and "Untested here" in text


@pytest.mark.parametrize(
    ("name", "options", "match"),
    [
        ("{}", "--lag 3", "`model` must be given as module:name"),
        ("none.such:make", "--lag 3", "No module named 'none'"),
        ("{}:none", "--lag 3", "has no attribute 'none'"),
        ("{}:broken", "--lag 3", "RuntimeError: no luck"),
        ("{}:number", "--lag 3", "got 3"),
        ("{}:model", "--lag -3", "`data_or_lag` must be positive, got -3.0"),
        ("{}:model", "", "`lag` or `data` must be given"),
        ("{}:model", "--data none.npz", "none.npz"),
        ("{}:model", "--data models_to_diagnose.py", "must be an NPZ file"),
    ],
)
def test_diagnose_refuses_in_one_line(models, name, options, match, capsys):
    assert main(["diagnose", name.format(models), *options.split()]) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def responses(tmp_path_factory):
    """Two exponentials, sampled unevenly, without and with noise."""
    folder = tmp_path_factory.mktemp("responses")
    times = np.append(0, np.geomspace(0.01, 30, 150))
    exact = np.exp(-times) + 0.3 * np.exp(-0.2 * times)
    noise = 1e-3 * np.random.default_rng(0).normal(size=times.size)
    clean = "# bench 3\ntime;response\n" + "".join(
        f"{t!r};{y!r}\n" for t, y in zip(times.tolist(), exact.tolist(), strict=True)
    )
    (folder / "clean.csv").write_text(clean)
    np.savetxt(folder / "noisy.txt", np.column_stack([times, exact + noise]))
    np.savetxt(folder / "late.txt", np.column_stack([times + 0.5, exact]))
    return folder


def test_approximate_prints_and_writes_neurons_and_weights(responses, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["approximate", str(responses / "clean.csv"), "--error", "1e-3", "--relative"]
    arguments += ["--samples", "linear"]
    assert main([*arguments, "--out", str(out)]) == 0
    text = capsys.readouterr()
    assert text.out.startswith("2 neurons reach the L2 error 0.00110")
    assert "taken for straight lines" in text.out
    for word in ("fewer than 2 certainly cannot", "no sum below", "amplitude", f"{out}/approx"):
        assert word in text.out
    # What is left is that of straight lines between samples.
    assert "sample more densely" in text.err and text.err.count("\n") == 1
    assert {entry.name for entry in out.iterdir()} == {
        "approximation.png", "weights.csv", "summary.json", "memjax.json",
    }  # fmt: skip
    assert matplotlib.image.imread(out / "approximation.png").std() > 0.01

    lines = (out / "weights.csv").read_text().splitlines()
    assert lines[0] == "rate,amplitude"
    weights = np.array([line.split(",") for line in lines[1:]], float)
    np.testing.assert_allclose(weights, [[0.2, 0.3], [1.0, 1.0]], rtol=1e-3)
    summary = json.loads((out / "summary.json").read_text())
    assert [row["neurons"] for row in summary["errors"]] == [1, 2]
    # The error again, by a rule of its own on the interpolant.
    data = np.genfromtxt(responses / "clean.csv", delimiter=";", skip_header=2)
    fine = np.unique(np.append(data[:, 0], np.linspace(0, 30, 300_001)))
    residual = np.interp(fine, *data.T) - np.exp(-np.outer(fine, weights[:, 0])) @ weights[:, 1]
    squares = residual**2
    error = np.sqrt(np.sum((squares[1:] + squares[:-1]) / 2 * np.diff(fine)))
    assert summary["best"]["error"] == pytest.approx(error, rel=1e-3)
    assert summary["best"]["lower_bound"] <= error

    assert main([*arguments, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err


def test_approximate_says_where_noise_begins(responses, capsys):
    arguments = ["approximate", str(responses / "noisy.txt"), "--error", "1e-5"]
    assert main([*arguments, "--max-neurons", "3", "--json"]) == 1
    text = capsys.readouterr()
    summary = json.loads(text.out)
    assert summary["samples"] == "points"
    assert not summary["reached"] and summary["neurons"] == 0
    assert [row["neurons"] for row in summary["errors"]] == [1, 2, 3]
    assert summary["noise_from"] == 2 and "from 2 neurons on the residual" in text.err
    # More neurons would be noise, so the sum of 2 is what is worth showing.
    np.testing.assert_allclose(summary["best"]["weights"]["rate"], [0.2, 1.0], rtol=1e-2)


def test_approximate_fits_points_with_standard_errors(tmp_path, capsys):
    # Lanczos's example in NIST's third version, with the certified values.
    times = 0.05 * np.arange(24)
    values = np.round(np.exp(-np.outer(times, [1, 3, 5])) @ [0.0951, 0.8607, 1.5576], 4)
    weights = np.ones(24)
    rows = np.column_stack([values, times + 2, weights])
    path, out = tmp_path / "lanczos.csv", tmp_path / "out"
    np.savetxt(path, rows, delimiter=";", header="y;x;w\nV;s;-", comments="", fmt="%.6f")
    arguments = ["approximate", str(path), "--neurons", "3", "--time-column", "1"]
    arguments += ["--value-column", "0", "--weight-column", "2", "--origin", "2"]
    assert main([*arguments, "--out", str(out), "--confidence", "0.9"]) == 0
    text = capsys.readouterr().out
    assert "taken as points, by least squares: residual standard deviation 2.99232e-05" in text
    assert "with 18 degrees of freedom" in text and "90 %" in text
    best = json.loads((out / "summary.json").read_text())["best"]
    exact = [9.5498101505e-01, 2.9515951832e00, 4.9863565084e00]
    np.testing.assert_allclose(best["weights"]["rate"], exact, rtol=1e-6)
    errors = [9.7041624475e-02, 1.0766312506e-01, 3.4436403035e-02]
    np.testing.assert_allclose(best["standard_errors"]["rate"], errors, rtol=1e-5)
    half = scipy.stats.t.ppf(0.95, 18) * np.array(errors)
    np.testing.assert_allclose(best["high"]["rate"], exact + half, rtol=1e-6)
    assert best["residual_deviation"] == pytest.approx(2.9923229172e-05)
    header, *lines = (out / "weights.csv").read_text().splitlines()
    assert header.split(",")[:4] == ["rate", "amplitude", "rate_error", "amplitude_error"]
    assert len(lines) == 3 and len(header.split(",")) == 8


def test_approximate_writes_an_offset_as_a_row_of_rate_zero(tmp_path, capsys):
    times = np.linspace(0, 5, 40)
    path, out = tmp_path / "response.csv", tmp_path / "out"
    np.savetxt(path, np.column_stack([times, 0.5 + 2 * np.exp(-times)]), delimiter=",")
    arguments = ["approximate", str(path), "--error", "1e-9", "--offset", "--out", str(out)]
    assert main(arguments) == 0
    assert "offset 0.5, std. error" in capsys.readouterr().out
    lines = (out / "weights.csv").read_text().splitlines()
    rows = np.array([line.split(",") for line in lines[1:]], float)
    np.testing.assert_allclose(rows[:, :2], [[1, 2], [0, 0.5]], atol=1e-9)


def test_approximate_reads_and_fits_long_data(tmp_path, capsys):
    times = np.arange(100_000) * 1e-3
    values = np.exp(-times / 30) + 0.5 * np.exp(-times)
    values += 1e-3 * np.random.default_rng(0).normal(size=times.size)
    path = tmp_path / "long.csv"
    np.savetxt(path, np.column_stack([times, values]), delimiter=",", header="t,y\ns,V")
    assert main(["approximate", str(path), "--error", "2e-3", "--json", "--quiet"]) == 0
    best = json.loads(capsys.readouterr().out)["best"]
    rates, amplitudes = (np.array(best["weights"][name]) for name in ("rate", "amplitude"))
    left = values - np.exp(-np.outer(times, rates)) @ amplitudes
    assert best["error"] == pytest.approx(np.sqrt(np.mean(left**2)), rel=1e-9)
    for exact, found, error in zip(
        [1 / 30, 1], rates, best["standard_errors"]["rate"], strict=True
    ):
        assert abs(found - exact) < 4 * error


def test_approximate_warns_of_a_late_first_sample(responses, capsys):
    arguments = ["approximate", str(responses / "late.txt"), "--error", "1"]
    assert main([*arguments, "--samples", "linear"]) == 0
    assert "first sample is at time 0.5, and before it the response" in capsys.readouterr().err
    # Points say nothing of the time before.
    assert main(arguments) == 0
    assert "first sample" not in capsys.readouterr().err


def test_approximate_takes_complex_rates_and_a_margin(tmp_path, capsys):
    times = np.linspace(0, 12, 121)
    response = np.exp(-0.4 * times) * np.cos(3 * times)
    response += 1e-3 * np.random.default_rng(1).normal(size=times.size)
    np.savetxt(tmp_path / "ring.csv", np.column_stack([times, response]), delimiter=",")
    arguments = ["approximate", str(tmp_path / "ring.csv"), "--error", "1e-4", "--complex"]
    assert main([*arguments, "--min-rate", "0.5", "--max-neurons", "2"]) == 1
    text = capsys.readouterr()
    assert text.out.startswith("no number of neurons up to 2 reached the L2 error 0.0001")
    assert "frequency" in text.out and "1 rates lie on the stability margin" in text.err


@pytest.mark.parametrize(
    ("content", "options", "match"),
    [
        ("0,1\n1,nan\n2,0.1\n3,0\n", "", "`values` must be finite, got nan"),
        ("0,1\n2,0.5\n1,0.7\n3,0\n", "", "`times` must increase, got 2.0 and then 1.0; sort"),
        ("0,1\n1,0.5\n1,0.4\n3,0\n", "", "`times` must increase, got 1.0 and then 1.0"),
        ("0,1\n1,0.5\n2,0.2\n", "", "must hold at least 4 samples, got 3"),
        ("t,y\n", "", "must hold at least 2 samples, got 0"),
        ("1\n0.5\n0.2\n0\n", "", "line 1 must hold numbers in columns 0 and 1, got '1'"),
        ("0,1\n1,half\n2,0.2\n3,0\n", "", "line 2 must hold numbers"),
        ("0,1\n1,1\n2,1\n3,1\n", "", "must vary, got samples that are all 1.0"),
        ("0,0\n1,0\n2,0\n3,0\n", "", "samples that are all 0.0"),
        (None, "", "`data` must be a file that exists"),
        ("0,1\n1,0.5\n2,0.2\n3,0\n", "--neurons 1", "`error` or `neurons` must be given, got both"),
        ("0,1\n1,0.5\n2,0.2\n3,0\n", "--weight-column 1", "`value_column` and `weight_column`"),
        ("0,1\n1,0.5\n2,0.2\n3,0\n", "--weight-column 7", "columns 0 and 1 and 7"),
        (
            "0,1\n1,0.5\n2,0.2\n3,0\n",
            "--origin 2.5",
            "`origin` must leave at least 2 samples",
        ),
        ("0,1\n1,0.5\n2,0.2\n3,0\n", "--confidence 2", "`confidence` must be below 1"),
        ("0,1\n1,0.5\n2,0.2\n3,0\n", "--error 0", "`error` must be positive"),
        ("0,1\n1,0.5\n2,0.2\n3,0\n", "--error nan", "`error` must be"),
        ("0,1\n1,0.5\n2,0.2\n3,0\n", "--min-rate -1", "`min_rate` must not be negative"),
        ("0,1\n1,0.5\n2,0.2\n3,0\n", "--max-neurons 0", "`max_neurons`"),
    ],
)
def test_approximate_refuses_in_one_line(content, options, match, tmp_path, capsys):
    path = tmp_path / "response.csv"
    if content is not None:
        path.write_text(content)
    options = ["--error", "0.1", "--out", str(tmp_path / "out"), *options.split()]
    assert main(["approximate", str(path), *options]) == 2
    error = capsys.readouterr().err
    assert match in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_compiled_programs_are_kept_where_the_user_keeps_caches(tmp_path, monkeypatch):
    code = "import jax; from memjax.cli import main; main(['sweep', '--help']); "
    code += "print(jax.config.jax_compilation_cache_dir)"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    recent = tuple(map(int, jax.__version__.split(".")[:2])) >= (0, 10)
    kept = str(tmp_path / "memjax") in out.stdout
    assert kept == recent
    # Whoever says where has the last word.
    assert str(tmp_path) not in told.stdout or not recent


def test_log_prints_plateaus_and_writes_figure_and_json(tmp_path, capsys):
    t = np.arange(3000)
    losses = np.where(t < 300, 2.0, 1.0) + 0.01 * np.random.default_rng(0).normal(size=t.size)
    lines = ["step,train_loss,lr", *(f"{a},{b},0.1" for a, b in zip(t, losses, strict=True))]
    path, out = tmp_path / "losses.csv", tmp_path / "out"
    path.write_text("\n".join(lines))
    assert main(["log", str(path), "--out", str(out)]) == 0
    text = capsys.readouterr().out
    found = mj.find_plateaus(*mj.read_log(path))
    assert text.startswith(str(found)) and "1 plateau that was left" in text
    assert f"written: {out}/log.png, plateaus.json" in text
    assert matplotlib.image.imread(out / "log.png").std() > 0.01
    kept = json.loads((out / "plateaus.json").read_text())
    assert kept["plateaus"][0]["stop"] == found.plateaus[0].stop
    assert kept["rest"]["drop"] is None and kept["verdict"] == found.verdict
    assert main(["log", str(path), "--json", "--delta", "0.7"]) == 0
    assert json.loads(capsys.readouterr().out)["plateaus"] == []
    assert main(["log", str(path), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["log", str(path), "--loss", "train_lss"]) == 2
    assert "did you mean 'train_loss'?" in capsys.readouterr().err
    path.write_text("\n".join([*lines[:40], "40,oops,0.1"]))
    assert main(["log", str(path)]) == 2
    error = capsys.readouterr().err
    assert "line 41 must hold a number" in error and error.count("\n") == 1
    path.write_text("\n".join([*lines[:40], "3,1.0,0.1"]))
    assert main(["log", str(path)]) == 2
    assert "`steps` must increase" in capsys.readouterr().err
