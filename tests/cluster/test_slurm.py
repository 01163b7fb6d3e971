"""A job array of SLURM whose jobs fill one store."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import xarray as xr

import memjax as mj
import stored

pytestmark = pytest.mark.cluster
HERE = Path(__file__).parent


@pytest.fixture
def slurm(tmp_path):
    """Calls SLURM's commands."""
    if any(shutil.which(name) is None for name in ("slurmctld", "slurmd", "munged", "sbatch")):
        pytest.skip("needs slurmctld, slurmd, slurm-client and munge")
    script, folder = str(HERE / "slurm.sh"), tmp_path / "slurm"
    subprocess.run([script, "start", str(folder)], check=True, timeout=120)
    paths = [*sys.path, str(HERE.parent / "sweeps")]
    environment = os.environ | {
        "SLURM_CONF": str(folder / "slurm.conf"),
        "PYTHONPATH": os.pathsep.join(paths),
    }

    def call(*words):
        done = subprocess.run(
            list(map(str, words)), capture_output=True, text=True, env=environment, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    yield call
    subprocess.run([script, "stop", str(folder)], check=True)


def array(slurm, folder, command, wait):
    job = [f"--output={folder}/out-%a", "--array=1-4", *wait, f"--wrap={command}"]
    return slurm("sbatch", "--parsable", "--chdir", folder, *job)


def test_an_array_fills_a_store_also_if_it_is_cancelled(slurm, tmp_path):
    store, log = tmp_path / "x", tmp_path / "log"
    command = f"exec {sys.executable} {HERE}/slurm_sweep.py {store} {log}"
    job = array(slurm, tmp_path, f"{command} 2", [])
    while not log.exists() or len(log.read_text().split()) < 6:
        time.sleep(0.2)
    slurm("scancel", job)
    while slurm("squeue", "-h", "-j", job):
        time.sleep(0.5)
    before = mj.sweep_status(store)
    assert 0 < before.blocks_done < before.blocks
    array(slurm, tmp_path, f"{command} 0", ["--wait"])
    stored.run(tmp_path / "y")
    xr.testing.assert_identical(mj.load_dataset(store), mj.load_dataset(tmp_path / "y"))


def test_an_array_of_the_command_line(slurm, tmp_path):
    words = "sweep --memories 6 9 --widths 2 --seeds 0 1 --curve-points 0 --block-size 1 --quiet"
    shard = "--shard $SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT"
    command = f"{sys.executable} -m memjax.cli {words} {shard} --out {tmp_path}/run"
    array(slurm, tmp_path, command, ["--wait"])
    assert not (mj.load_dataset(tmp_path / "run")["result"] == -1).any()
    assert (tmp_path / "run" / "plateau_law.png").exists()
