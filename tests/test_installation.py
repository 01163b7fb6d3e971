"""The doctor finds what is there, and names what is wrong; its answers are those of referees."""

import dataclasses
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

import memjax as mj
from memjax.cli import main
from memjax.installation import _doctor, _found, _self_test

REFERENCES = Path(__file__).parent / "reference" / "plateau_references.json"


def test_the_stored_plateau_is_that_of_the_references():
    (case,) = (
        case
        for case in json.loads(REFERENCES.read_text())
        if case["name"] == "on-plateau-direct-m2-T20-RelativeLossDrop-0.02"
    )
    assert _self_test._PLATEAU == float(case["time"]) and case["disagreement"] < 1e-12
    assert (case["a0"], case["w0"]) == ([1.0, 0.0], [1.0, 0.6])


@pytest.mark.thorough
def test_all_answers_are_right_here():
    found = mj.doctor()
    assert found.sound and found.problems == []
    assert [test.passed for test in found.tests] == [True, True, True]
    assert str(found).endswith("All is well.") and str(found).count("passed: ") == 3


@pytest.fixture
def quick(monkeypatch):
    """A test that passes in no time, in place of all."""
    monkeypatch.setattr(_self_test, "_time", lambda: _self_test._PLATEAU)
    monkeypatch.setattr(_self_test, "_inner", _self_test._norm)


def test_what_is_found_is_what_is_there(quick, monkeypatch, tmp_path):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    (tmp_path / "one-cache").write_bytes(bytes(300))
    (tmp_path / "one-atime").write_bytes(bytes(8))
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    try:
        found = mj.doctor()
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert found.sound and found.float64 and found.platform == jax.default_backend()
    assert found.versions["jax"] == jax.__version__
    assert found.versions["memjax"] == mj.__version__
    assert len(found.devices) == len(jax.devices()) and found.devices[0]["memory"] > 2**20
    kept = {"folder": str(tmp_path), "programs": 1, "bytes": 300}
    enabled = jax.config.jax_enable_compilation_cache
    assert found.cache == (
        {"used": True, **kept}
        if enabled
        else {"used": False, "folder": None, "programs": 0, "bytes": 0}
    )
    assert found.variables["OMP_NUM_THREADS"] == "2" and "HOME" not in found.variables
    assert found.threads["machine"] == os.cpu_count()
    assert "distributed" in found.extras
    text = str(found)
    for words in (f"jax {jax.__version__}", "OMP_NUM_THREADS=2", "sum in double-double"):
        assert words in text


def test_a_wrong_answer_is_a_problem(quick, monkeypatch, capsys):
    monkeypatch.setattr(_self_test, "_time", lambda: 74512.5)
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["sound"] and [test["passed"] for test in found["tests"]] == [True, True, False]
    (problem,) = found["problems"]
    assert "plateau at memory 20 is 74512.5 and must be 74511.9297" in problem
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert "FAILED: plateau" in text and text.endswith("Something is wrong.\n")


@pytest.mark.parametrize("found", [float("nan"), float("inf")])
def test_no_answer_is_a_wrong_one(found):
    assert not dataclasses.replace(_self_test.Test("a", "b", 1.0, 1.0, 0.1), found=found).passed


def test_tests_that_raise_are_a_problem(monkeypatch):
    def raising():
        raise RuntimeError("no\nluck")

    monkeypatch.setattr(_doctor, "run_tests", raising)
    (problem,) = mj.doctor().problems
    assert "RuntimeError: no luck" in problem


def test_without_float64_nothing_is_tested():
    jax.config.update("jax_enable_x64", False)
    try:
        found = mj.doctor()
    finally:
        jax.config.update("jax_enable_x64", True)
    assert not found.float64 and found.tests == []
    assert "float64 is off; call jax.config.update" in found.problems[0]


def test_a_device_that_rounds_is_a_problem(monkeypatch):
    monkeypatch.setattr(_doctor, "_has_float64", lambda: False)
    (problem,) = mj.doctor().problems
    assert "does not compute in float64; set `JAX_PLATFORMS` to cpu" in problem


REQUIRES = ["jax>=99.1", "none-such>=1.0", "numpy>=1.2", "nothing>=3; extra == 'plots'", "zarr"]


def test_packages_that_are_old_or_missing_are_named(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: REQUIRES)
    found = mj.doctor(self_test=False)
    assert found.problems == [
        f"jax is {jax.__version__}, and must be 99.1 or newer; run pip install 'jax>=99.1'.",
        "none-such is missing, and must be 1.0 or newer; run pip install 'none-such>=1.0'.",
    ]
    assert found.extras == {"plots": ["nothing"]} and "plots: without nothing" in str(found)


def test_versions_are_compared_as_numbers():
    assert not _found._is_older("0.10.2", "0.6.0") and _found._is_older("0.5.3", "0.6")
    assert not _found._is_older("2.0.2.post1", "2.0.2") and not _found._is_older("1.0rc1", "1.0")


def test_a_gpu_that_jax_does_not_use_is_a_hint(monkeypatch):
    monkeypatch.setattr(_found.Path, "exists", lambda path: str(path) == "/dev/nvidia0")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert _found.has_unused_gpu([{"platform": "cpu"}])
    assert not _found.has_unused_gpu([{"platform": "gpu"}])
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert not _found.has_unused_gpu([{"platform": "cpu"}])


@pytest.mark.thorough
@pytest.mark.parametrize("variable", ["JAX_PLATFORMS", "MPLBACKEND"])
def test_variables_that_name_nothing_are_problems(variable):
    command = [sys.executable, "-m", "memjax.cli", "doctor", "--json", "--no-self-test"]
    environment = os.environ | {variable: "nonsense"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    found = json.loads(done.stdout)
    assert done.returncode == 1 and found["variables"][variable] == "nonsense"
    assert found["problems"][0].startswith(f"`{variable}` must name")
    assert (found["platform"] is None) == (variable == "JAX_PLATFORMS")


@pytest.mark.thorough
def test_a_jax_that_cannot_be_imported_is_one_line(tmp_path):
    (tmp_path / "jax.py").write_text("raise RuntimeError('jaxlib is too old')")
    command = [sys.executable, "-m", "memjax.cli", "doctor"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert "got RuntimeError: jaxlib is too old; run pip install" in done.stderr
