"""Blocks do not depend, to the last bit, on who computes them, in which order and beside what."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import diffrax
import numpy as np
import pytest
import xarray as xr

import memjax as mj
import stored
from memjax.plateaus import OUTCOMES
from memjax.sweeps import as_executor, close

SPEC = mj.PlateauSweep(
    memories=(6.0, 9.0, 12.0, 15.0), widths=(2,), seeds=(0, 1, 2), curve_points=20, curve_stop=1e4
)
SIZES = {"block_size": 4, "progress": False}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    return SPEC.run(store=tmp_path_factory.mktemp("engine") / "x", **SIZES).load()


def test_a_store_holds_what_a_sweep_in_memory_finds(undisturbed):
    there = SPEC.run(progress=False)
    assert dict(there.attrs) == undisturbed.attrs
    for name, values in there.variables.items():
        assert undisturbed[name].dtype == values.dtype and undisturbed[name].dims == values.dims
        assert undisturbed[name].attrs == values.attrs, name
    xr.testing.assert_allclose(undisturbed, there, rtol=1e-9)
    assert {OUTCOMES[r] for r in undisturbed["result"].values.ravel()} == {"exited"}


@pytest.mark.parametrize("how", ["threads", "shards"])
def test_blocks_are_the_same_in_another_order_and_alone(how, undisturbed, tmp_path):
    path = tmp_path / "x"
    if how == "threads":
        with ThreadPoolExecutor(1) as executor:
            SPEC.run(store=path, executor=executor, **SIZES)
    else:
        for k in (2, 0, 1):
            SPEC.run(store=path, shard=(k, 3), **SIZES)
    xr.testing.assert_identical(mj.load_dataset(path), undisturbed)


@pytest.mark.slow
def test_blocks_are_the_same_in_processes_with_fewer_threads(undisturbed, tmp_path):
    SPEC.run(store=tmp_path / "x", executor=2, **SIZES)
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)


@pytest.mark.slow
def test_runs_of_the_dearer_method_and_with_a_smaller_tolerance_are_the_same(tmp_path):
    # What is not resolved so finely in float64 is repeated with twice the digits.
    def build(memory_, delta):
        flow, model, _, _ = SPEC.build(1 / memory_, 2, 0, 0.02, "direct")
        return flow, model, mj.RelativeLossDrop(delta)

    axes = {"memory_": [9.0, 30.0, 60.0], "delta": [0.02, 0.5, 0.9]}
    options = {"progress": False, "resolution": 1e-9}
    found = mj.sweep(build, axes, store=tmp_path / "x", block_size=3, **options).load()
    for k in (1, 2, 0):
        mj.sweep(build, axes, store=tmp_path / "y", block_size=3, shard=(k, 3), **options)
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "y"), found)
    plain = mj.sweep(build, axes, **options)
    np.testing.assert_array_equal(found["result"], plain["result"])
    assert int(found["precision"].max()) == 1


@pytest.mark.slow
def test_measurements_by_a_solver_of_ones_own_go_through_a_store(tmp_path):
    def build(memory_):
        return SPEC.build(1 / memory_, 2, 0, 0.02, "direct")[:3]

    axes = {"memory_": [6.0, 7.0, 8.0]}
    options = {"solver": diffrax.Kvaerno5(), "progress": False}
    there = mj.sweep(build, axes, **options)
    found = mj.sweep(build, axes, store=tmp_path / "x", block_size=2, **options)
    xr.testing.assert_allclose(found, there)
    assert set(found.variables) == set(there.variables)


# --- Dask -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A scheduler and two worker processes, each with one thread: address and workers."""
    pytest.importorskip("distributed")
    folder = tmp_path_factory.mktemp("dask")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment["DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES"] = "3"
    file = folder / "scheduler.json"
    dask = [sys.executable, "-m", "distributed.cli.dask_{}"]
    start = lambda kind, *words: subprocess.Popen(
        [part.format(kind) for part in dask] + list(words),
        cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    scheduler = start(
        "scheduler", "--port", "0", "--no-dashboard", "--host", "127.0.0.1",
        "--scheduler-file", str(file),
    )  # fmt: skip
    words = ("--scheduler-file", str(file), "--nthreads", "1", "--no-dashboard", "--no-nanny")
    workers = [start("worker", *words) for _ in range(2)]
    while not file.exists():
        assert scheduler.poll() is None
        time.sleep(0.1)
    time.sleep(1)
    yield json.loads(file.read_text())["address"], workers
    for process in (*workers, scheduler):
        process.kill()
        process.wait()


# What Dask says of itself and of sockets that it leaves open.
quiet = pytest.mark.filterwarnings("ignore")


@quiet
@pytest.mark.slow
def test_dask_computes_the_same(cluster, undisturbed, tmp_path):
    address, _ = cluster
    SPEC.run(store=tmp_path / "x", executor=address, **SIZES)
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)


@quiet
@pytest.mark.thorough
def test_a_dask_worker_that_is_killed_while_it_computes_costs_nothing(cluster, tmp_path):
    address, workers = cluster
    stored.run(tmp_path / "undisturbed")
    killer = threading.Timer(2.0, workers[0].kill)
    killer.start()
    executor, _ = as_executor(address)
    try:
        stored.run(tmp_path / "x", stored.Cheap(0.5), executor=executor)
    finally:
        close(executor)
        killer.join()
    assert workers[0].wait(10) == -9
    found = mj.load_dataset(tmp_path / "x")
    xr.testing.assert_identical(found, mj.load_dataset(tmp_path / "undisturbed"))


@pytest.mark.thorough
def test_a_scheduler_that_does_not_answer_is_one_line(tmp_path):
    pytest.importorskip("distributed")
    with pytest.raises((OSError, ValueError), match="`executor` must be the address") as caught:
        SPEC.run(store=tmp_path / "x", executor="tcp://127.0.0.1:9", **SIZES)
    assert "\n" not in str(caught.value) and not (tmp_path / "x").exists()


@pytest.mark.slow
def test_processes_of_one_jax_program_share_a_store(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = str(probe.getsockname()[1])
    script = Path(__file__).with_name("two_processes.py")
    command = [sys.executable, str(script), port]
    both = [
        subprocess.Popen([*command, str(k), str(tmp_path / "x")], stdout=subprocess.PIPE, text=True)
        for k in range(2)
    ]
    for process in both:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0 and output == "2\n"
    found = mj.load_dataset(tmp_path / "x")
    assert mj.sweep_status(tmp_path / "x").complete and bool((found["result"] == 0).all())
    alone = mj.PlateauSweep.from_dataset(found).run(progress=False)
    np.testing.assert_allclose(found["time"], alone["time"], rtol=1e-10)
