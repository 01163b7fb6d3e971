"""A sweep on three ranks of MPI: a coordinator and two workers."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xarray as xr

import memjax as mj
import stored

pytestmark = pytest.mark.cluster
HERE = Path(__file__).parent


@pytest.fixture
def mpi(tmp_path):
    """Runs a sweep, and returns what it prints."""
    pytest.importorskip("mpi4py")
    beside = Path(sys.executable).with_name("mpiexec")
    command = str(beside) if beside.exists() else shutil.which("mpiexec")
    if command is None:
        pytest.skip("needs mpiexec")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    root |= {"PRTE_ALLOW_RUN_AS_ROOT": "1", "PRTE_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    paths = [*sys.path, str(HERE.parent / "sweeps")]
    environment = os.environ | root | {"PYTHONPATH": os.pathsep.join(paths)}

    def run(*words):
        return subprocess.run(
            [command, "--oversubscribe", "-n", "3", sys.executable, "-m", "mpi4py.futures",
             str(HERE / "mpi_sweep.py"), *map(str, words)],
            capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=600,
        )  # fmt: skip

    return run


def test_two_ranks_compute_what_a_process_does(mpi, tmp_path):
    log = tmp_path / "log"
    done = mpi(tmp_path / "x", log)
    assert done.returncode == 0, done.stderr
    assert "workers 2" in done.stdout
    stored.run(tmp_path / "y")
    found = mj.load_dataset(tmp_path / "x")
    xr.testing.assert_identical(found, mj.load_dataset(tmp_path / "y"))
    assert len(log.read_text().split()) == 16


def test_two_ranks_measure_what_a_process_does(mpi, tmp_path):
    done = mpi(tmp_path / "x", "engine")
    assert done.returncode == 0, done.stderr
    spec = mj.PlateauSweep(memories=(6.0, 9.0), widths=(2,), seeds=(0, 1), curve_points=0)
    spec.run(store=tmp_path / "y", block_size=1, progress=False)
    found = mj.load_dataset(tmp_path / "x")
    xr.testing.assert_identical(found, mj.load_dataset(tmp_path / "y"))
