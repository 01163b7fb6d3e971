"""Every command is given every kind of wrong word for every one of its options, and every kind of
wrong value in a specification.

Each such command must end with status 2 at once, print nothing but a few lines on standard error,
and no traceback. A new option fails nothing here: its wrong words follow from its type.
"""

import dataclasses
import os
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import pytest

import memjax as mj
import stored
from memjax import cli
from test_wrong_input import curves_dataset

# Where the words of a command begin, and are right; the files are made by `folder`.
RIGHT = {
    "sweep": ["--out", "new", "--quiet"],
    "plateau": [],
    "fit": ["store"],
    "plot": ["store", "--out", "new.png"],
    "reproduce": ["plateau-width", "--out", "new", "--quiet"],
    "diagnose": ["own_model:model", "--lag", "3"],
    "approximate": ["response.csv", "--error", "0.1"],
    "status": ["swept"],
    "log": ["losses.csv"],
    "doctor": ["--no-self-test"],
    "report": ["swept", "--out", "new.html"],
}
SIGNED = {
    "amplitudes", "axis_range", "bump_amplitude", "floor", "target_amplitudes", "memory_range",
    "min_rate", "seed", "seeds",
}  # fmt: skip
ZERO = SIGNED | {"curve_points", "jitter", "retries"}
# Checked together with others, or of no effect here.
LATER = {"dataset", "name", "list", "model", "data", "out", "spec", "kernel", "run_folder", "path"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("commands")
    mj.save_dataset(curves_dataset(), folder / "store")
    stored.run(folder / "swept")
    (folder / "own_model.py").write_text(
        "import memjax as mj\nmodel = mj.DiagonalLinearRNN([1.0, 0.5], [1.0, 0.5])\n"
    )
    (folder / "response.csv").write_text("0,1\n1,0.5\n2,0.2\n")
    losses = "\n".join(f"{k},{1 + 1 / (k + 1)}" for k in range(40))
    (folder / "losses.csv").write_text(f"step,loss\n{losses}\n")
    (folder / "binary").write_bytes(bytes(range(256)))
    (folder / "large.toml").write_bytes(b"#" * (2**20 + 1))
    (folder / "nested.toml").write_text("memory = " + "[" * 5000 + "]" * 5000 + "\n")
    return folder


@pytest.fixture(autouse=True)
def here(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


def options_of(command: str) -> dict[str, Any]:
    """The types of all options of a command."""
    kind = cli.COMMANDS[command].load()
    hints = typing.get_type_hints(kind)
    if hints.pop("specification", None):
        hints |= typing.get_type_hints(mj.PlateauSweep)
    fields = {field.name for k in (kind, mj.PlateauSweep) for field in dataclasses.fields(k)}
    return {name: hint for name, hint in hints.items() if name in fields}


def base(hint: Any) -> Any:
    """The type of one entry of an option."""
    options = [option for option in typing.get_args(hint) if option is not type(None)]
    if typing.get_origin(hint) is Literal:
        return Literal
    if typing.get_origin(hint) is tuple or type(None) in typing.get_args(hint):
        return base(options[0])
    return hint


def wrong_words(name: str, hint: Any) -> list[list[str]]:
    kind = base(hint)
    words = {
        float: ["text", "", "nan", "inf", "1e999", "9" * 5000, "[1.0]", "1,5", "1j"],
        int: ["text", "", "1.5", "nan", "1" + "0" * 40, "9" * 5000, "1e3", "True"],
        Literal: ["text", "", "1", "x" * 5000],
        bool: ["text"],
        Path: ["\0".join("ab"), "x" * 5000],
        str: ["x" * 5000],
    }[kind]
    if kind in (float, int) and name not in SIGNED:
        words = [*words, "-1"]
    if kind in (float, int) and name not in ZERO:
        words = [*words, "0"]
    if name == "max_time":  # without a limit
        words = [word for word in words if word not in ("inf", "1e999")]
    count = 2 if typing.get_origin(hint) is tuple and Ellipsis not in typing.get_args(hint) else 1
    return [[word] * count for word in words]


def refused(arguments: list[str], capsys, mention: str = "") -> str | None:
    """What is wrong with the way in which a command is refused."""
    shown = [argument[:30] for argument in arguments]
    try:
        status = cli.main(arguments)
    except BaseException as error:
        return f"{shown}: raised {type(error).__name__}: {error}"
    out, err = capsys.readouterr()
    lines = err.strip().splitlines()
    if status != 2 or out:
        return f"{shown}: status {status} and {out[:80]!r}"
    # The parser shows a box with the help of the option; everything else takes one line.
    if len(lines) > (1 if err.startswith("memjax: error: ") else 24) or len(err) > 2500:
        return f"{shown}: {len(lines)} lines of {len(err)} characters, {err[:80]!r}"
    if "Traceback" in err or mention not in err:
        return f"{shown}: {err[:200]}"
    return None


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_wrong_words_are_refused(command, capsys):
    found = []
    for name, hint in options_of(command).items():
        if name in LATER:
            continue
        option = f"--{name.replace('_', '-')}"
        for words in wrong_words(name, hint):
            found.append(refused([command, *RIGHT[command], option, *words], capsys))
    found.append(refused([command, *RIGHT[command], "--no-such-option"], capsys, "no-such-option"))
    complaints = [line for line in found if line is not None]
    assert not complaints, f"{len(complaints)} of {len(found)}:\n" + "\n".join(complaints)


WRONG_VALUES = {
    float: ["true", "{a = 1}", "[[1.0]]", "'text'", "nan", "inf", "1e999", "2020-01-01", "[[]]"],
    int: ["true", "{a = 1}", "[[1]]", "'text'", "1.5", "nan", "1" + "0" * 40, "2020-01-01"],
    Literal: ["true", "{a = 1}", "[['direct']]", "'text'", "1", "2020-01-01"],
    bool: ["1", "'true'", "[true]", "{a = true}", "1.0"],
    Path: ["1", "true", "['x']", "{a = 'x'}", "''", "'a\\u0000b'"],
    str: ["1", "true", "['x']", "{a = 'x'}", "1.5"],
}


@pytest.mark.parametrize("command", [c for c in cli.COMMANDS if c not in ("reproduce", "status")])
def test_wrong_specifications_are_refused(command, capsys, tmp_path):
    found = []
    for name, hint in options_of(command).items():
        if command == "sweep" and name not in {f.name for f in dataclasses.fields(mj.PlateauSweep)}:
            continue
        values = [value.replace("'a\\u0000b'", '"a\\u0000b"') for value in WRONG_VALUES[base(hint)]]
        for value in values:
            path = tmp_path / "spec.toml"
            path.write_text(f"{name} = {value}\n")
            words = [command, *RIGHT[command], "--spec", str(path)]
            found.append(refused(words, capsys, f"`{name}`"))
    complaints = [line for line in found if line is not None]
    assert not complaints, f"{len(complaints)} of {len(found)}:\n" + "\n".join(complaints)


@pytest.mark.parametrize("command", [c for c in cli.COMMANDS if c not in ("reproduce", "status")])
@pytest.mark.parametrize(
    ("file", "content", "match"),
    [
        ("missing", None, "must be a file that exists"),
        (".", None, "got the folder"),
        ("binary", None, "must be a TOML file"),
        ("large.toml", None, "at most 1048576 bytes"),
        ("nested.toml", None, "must be a TOML file"),
        ("/dev/zero", None, "at most 1048576 bytes"),
        ("spec", "a = " + "9" * 5000, "must be a TOML file"),
        ("spec", "memory = ", "must be a TOML file"),
        ("spec", "memroy = 1", "must have known keys, got 'memroy'"),
        ("spec", "[table]\nmemory = 1", "must have known keys, got 'table'"),
    ],
)
def test_files_that_are_no_specifications_are_refused(
    command, file, content, match, capsys, tmp_path
):
    if content is not None:
        file = tmp_path / file
        file.write_text(content)
    for words in (["--spec", str(file)], [f"--spec={file}"]):
        assert refused([command, *RIGHT[command], *words], capsys, match) is None


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["sweep", "--out", "binary/new", "--quiet"], "binary"),
        (["sweep", "--out", "store", "--quiet"], "exists already"),
        (["plot", "store", "--out", "store"], "exists already"),
        (["plot", "store", "--out", "binary/new.png"], "binary"),
        (["plot", "store", "--out", "new"], "`out` must end in"),
        (["plot", "store", "--out", "new.txt"], "`out` must end in"),
        (["reproduce", "plateau-width", "--out", "binary/new"], "binary"),
        (["diagnose", "own_model:model"], "`lag` or `data` must be given"),
        (["diagnose", "own_model:model", "--lag", "3", "--data", "x"], "got both"),
        (["diagnose", "own_model:model", "--data", "missing"], "`data` must be a file"),
        (["diagnose", "own_model:model", "--data", "."], "`data` must be a file"),
        (["diagnose", "own_model:model", "--data", "binary"], "`data` must be an NPZ file"),
        (["diagnose", "own_model:model", "--data", "response.csv"], "`data` must be an NPZ"),
        (["diagnose", "own_model:model", "--lag", "1e12"], "take a larger `step`"),
        (["fit", "missing"], "missing"),
        (["status", "missing"], "`path` must exist"),
        (["status", "store"], "`path` must be a store of"),
        (["sweep", "--out", "new", "--shard", "0/3"], "`shard` must be a part such as 3/40"),
        (["sweep", "--out", "new", "--shard", "1/2", "--overwrite"], "`overwrite` must not be"),
        (["sweep", "--out", "new", "--shard", "1/2", "--workers", "2"], "`executor` must not be"),
        (["sweep", "--out", "new", "--resume", "--overwrite"], "must not both be True"),
        (["sweep", "--out", "new", "--workers", "many"], "`workers` must be a number of"),
        (["sweep", "--out", "new", "--workers", "http://x"], "`workers` must be the address"),
        (["fit", "binary"], "binary"),
        (["plateau", "--kernel", "missing"], "`kernel` must be a file that exists"),
        (["log", "missing"], "`path` must be a file that exists"),
        (["log", "binary"], "`path` must be a text file"),
        (["log", "response.csv"], "with at least 16 entries"),
        (["log", "losses.csv", "--loss", "lss"], "did you mean 'loss'?"),
        (["log", "losses.csv", "--steps", "x"], "`steps` must name a column"),
        (["log", "losses.csv", "--ratio", "1"], "`ratio` must be above 1"),
        (["log", "losses.csv", "--floor", "5"], "`losses` must be above the floor"),
        (["log", "losses.csv", "--out", "binary/new"], "binary"),
        (["nonsense"], "got 'nonsense'; known are sweep, plateau"),
        (["sweeep"], "did you mean 'sweep'?"),
        ([""], "must be followed by a command, got ''"),
        (["--tyro-print-completion"], "one of bash, zsh, fish"),
        (["--tyro-print-completion", "csh"], "got 'csh'"),
        (["--tyro-write-completion", "bash"], "got 'bash'"),
        (["--tyro-write-completion", "bash", "missing/file"], "missing/file"),
        (["--tyro-nonsense", "bash"], "must be followed by a command"),
        (["--nonsense"], "nonsense"),
        (["fit"], "Missing"),
    ],
)
def test_what_cannot_be_read_or_written_is_refused(arguments, match, capsys):
    assert refused(arguments, capsys, match) is None


USERS_CODE = """
import sys

import equinox as eqx
import jax
import jax.numpy as jnp


class Odd(BaseException):
    pass


def leaves():
    sys.exit(3)


def leaves_quietly():
    sys.exit()


def odd():
    raise Odd("odd")


def long():
    raise ZeroDivisionError("a long story\\n" * 100)


class Model(eqx.Module):
    weight: jax.Array
    kind: str = eqx.field(static=True)

    def __call__(self, xs):
        if self.kind == "exit":
            sys.exit()
        if self.kind == "odd":
            raise Odd("odd")
        if self.kind == "divide":
            1 / 0
        if self.kind == "recursion":
            return self(xs)
        return {"none": None, "text": "text", "short": xs[:3], "scalar": xs[0]}[self.kind]


class Silent:
    def __getattr__(self, name):
        raise RuntimeError("no attribute")

    def __repr__(self):
        raise RuntimeError("no text")


silent = Silent()
kinds = "exit odd divide recursion none text short scalar missing".split()
models = {kind: Model(jnp.ones(()), kind) for kind in kinds}
globals().update({f"model_{kind}": model for kind, model in models.items()})


class Swapped(eqx.nn.GRUCell):
    def __call__(self, hidden, x):
        return super().__call__(x, hidden)


swapped = Swapped(1, 3, key=jax.random.key(0))


class Wider(eqx.nn.GRUCell):
    def __call__(self, x, hidden):
        return jnp.append(super().__call__(x, hidden), 0.0)


wider = Wider(1, 3, key=jax.random.key(0))
number, text = 3, "text"
"""


def test_whatever_a_diagnosed_model_does_is_one_line(capsys, tmp_path, monkeypatch):
    (tmp_path / "users_code.py").write_text(USERS_CODE)
    (tmp_path / "users_exit.py").write_text("import sys; sys.exit(1)")
    (tmp_path / "users_error.py").write_text("raise OverflowError('no\\nway' * 200)")
    (tmp_path / "users_syntax.py").write_text("def (:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    kinds = "exit odd divide recursion none text short scalar missing".split()
    names = [*(f"model_{kind}" for kind in kinds), "leaves", "leaves_quietly", "odd", "long"]
    names += ["silent", "silent.part", "swapped", "wider", "number", "text", "nothing", "models.x"]
    found = [f"users_code:{name}" for name in names]
    found += ["users_exit:a", "users_error:a", "users_syntax:a", "users_missing:a", "os:path"]
    found += ["users_code", "users_code:", ":number", "..:a", "a b:c", "users code:a", "os:"]
    for model in found:
        assert refused(["diagnose", model, "--lag", "3"], capsys, "`model`") is None


def test_an_error_of_memjax_itself_says_so(capsys, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Broken:
        def run(self):
            raise KeyError("nothing\nhere")

    monkeypatch.setattr("memjax.cli._plateaus.Fit", Broken)
    assert cli.main(["fit"]) == 3
    out, err = capsys.readouterr()
    assert err.startswith("memjax: error: KeyError: ") and "bug in memjax" in err
    assert len(err.splitlines()) == 3 and "Traceback" not in err
    monkeypatch.setenv("MEMJAX_TRACEBACK", "1")
    with pytest.raises(KeyError):
        cli.main(["fit"])


def test_not_enough_memory_is_one_line(capsys, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Large:
        def run(self):
            raise MemoryError

    monkeypatch.setattr("memjax.cli._plateaus.Fit", Large)
    assert refused(["fit"], capsys, "not enough memory") is None


def test_a_process_that_looks_for_nans_is_told_not_to(capsys):
    # NaN stands where there is no answer, here in the empty part of a loss curve.
    jax.config.update("jax_debug_nans", True)
    try:
        assert cli.main(["fit", "store", "--memory-range", "1", "2"]) == 0
        assert not jax.config.jax_debug_nans
    finally:
        jax.config.update("jax_debug_nans", False)
    assert np.isnan(jax.numpy.log(-1.0))


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["JAX_PLATFORMS", "MPLBACKEND"])
def test_environment_variables_that_name_nothing_are_one_line(variable, tmp_path):
    command = [sys.executable, "-m", "memjax.cli", "plateau"]
    environment = os.environ | {variable: "nonsense"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(cli.__file__).parents[1]
    )
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.startswith(f"memjax: error: `{variable}` must name")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.slow
def test_debugging_of_nans_in_the_environment_stops_nothing():
    command = [sys.executable, "-m", "memjax.cli", "plateau", "--memory", "8", "--json"]
    environment = os.environ | {"JAX_DEBUG_NANS": "1", "JAX_DEBUG_INFS": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(cli.__file__).parents[1]
    )
    assert done.returncode == 0 and '"exited"' in done.stdout
