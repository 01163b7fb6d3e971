"""The store of a sweep: what it holds, what it survives, and who may write to it."""

import _thread
import collections
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.sweeps import _durable, as_executor, close
from memjax.sweeps._blocks import Blocks
from memjax.sweeps._durable import BlockStore
from memjax.sweeps._fingerprint import fingerprint
from memjax.sweeps._grid import Grid
from memjax.sweeps._output import claimed
from stored import Cheap, content, run

# 4 * 2 * 2 blocks.
NUMBER = 16


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    path = tmp_path_factory.mktemp("undisturbed") / "x"
    run(path)
    return mj.load_dataset(path)


def blocks_in(path):
    return len(list(path.glob("result/c.*")))


def chunk_of(path, name, k=0):
    return sorted((path / name).glob("c.*"))[k]


# --- Blocks ---------------------------------------------------------------------------------------


@hypothesis.settings(deadline=None)
@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 7), st.booleans()), min_size=1, max_size=4),
    st.integers(1, 60),
)
def test_every_cell_is_in_one_block(axes, cells):
    values = {f"x{k}": np.arange(length) for k, (length, _) in enumerate(axes)}
    static = [f"x{k}" for k, (_, fixed) in enumerate(axes) if fixed]
    grid = Grid.build(values, static)
    blocks = Blocks.of(grid, cells)
    seen = collections.Counter()
    for index in blocks.order():
        block = blocks.block(index)
        assert 1 <= block.count <= max(1, cells)
        fixed = dict(block.fixed)
        columns = block.columns
        for row in range(block.count):
            seen[tuple(int(fixed.get(n, columns.get(n, [0] * 99)[row])) for n in values)] += 1
    assert set(seen.values()) == {1} and len(seen) == np.prod([n for n, _ in axes])
    assert sorted(blocks.order()) == list(range(blocks.number))


# --- What is in a store ---------------------------------------------------------------------------


def test_a_store_holds_what_was_computed(tmp_path, undisturbed):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lazy = run(tmp_path / "x")
    opened = xr.open_zarr(tmp_path / "x", chunks=None, mask_and_scale=False)
    a, s, b = np.meshgrid(range(8), [1, 2], range(6), indexing="ij")
    number = 1000.0 * a + b + s / 7
    for dataset in (lazy, opened, undisturbed):
        np.testing.assert_array_equal(dataset["time"], np.exp(-number))
        np.testing.assert_array_equal(dataset["num_steps"], number.astype(int))
        np.testing.assert_array_equal(dataset["result"], (number % 3).astype(int))
        assert dataset["time"].dims == ("a", "s", "b")
    xr.testing.assert_identical(lazy.load(), undisturbed)
    assert lazy["result"].dtype == np.int8 and blocks_in(tmp_path / "x") == NUMBER
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["x"]


def test_values_are_read_when_they_are_asked_for(tmp_path):
    lazy = run(tmp_path / "x")
    assert not lazy["time"].variable._in_memory


def test_an_unfinished_store_opens_and_says_so(tmp_path, undisturbed):
    with pytest.warns(UserWarning, match="1 of 16 blocks failed"):
        lazy = run(tmp_path / "x", Cheap(raises=[5]))
    loaded = mj.load_dataset(tmp_path / "x")
    xr.testing.assert_identical(lazy.load(), loaded)
    opened = xr.open_zarr(tmp_path / "x", chunks=None, mask_and_scale=False)
    for dataset in (loaded, opened):
        missing = dataset["result"] == -1
        assert int(missing.sum()) == 6
        assert bool(np.isnan(dataset["time"].where(missing, drop=True)).all())
        done = dataset["time"].where(~missing)
        xr.testing.assert_equal(done, undisturbed["time"].where(~missing))


def test_a_block_without_its_mark_counts_as_not_written(tmp_path):
    run(tmp_path / "x")
    with pytest.warns(UserWarning, match="failed"):
        run(tmp_path / "y", Cheap(raises=[0]))
    torn = chunk_of(tmp_path / "x", "time")
    (tmp_path / "y" / "time" / torn.name).write_bytes(torn.read_bytes())
    loaded = mj.load_dataset(tmp_path / "y")
    assert bool(np.isnan(loaded["time"].where(loaded["result"] == -1)).all())


def test_only_what_is_missing_is_computed(tmp_path, undisturbed):
    with pytest.warns(UserWarning, match="failed"):
        run(tmp_path / "x", Cheap(raises=[3, 9]))
    log = tmp_path / "log"
    run(tmp_path / "x", Cheap(log=log), resume=True)
    assert sorted(map(int, log.read_text().split())) == [3, 9]
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)
    run(tmp_path / "x", Cheap(raises=range(16)), resume=True)  # there is nothing left


# --- Damage at rest -------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty", "gone", "mark flipped", "mark cut"])
@pytest.mark.parametrize("whole", [True, False])
def test_a_damaged_block_is_named_and_computed_again(damage, whole, tmp_path, undisturbed):
    path = tmp_path / "x"
    if whole:
        run(path)
    else:
        with pytest.warns(UserWarning, match="failed"):
            run(path, Cheap(raises=[15]))
    chunk = chunk_of(path, "result" if "mark" in damage else "loss", 2)
    data = chunk.read_bytes()
    if "flipped" in damage:
        chunk.write_bytes(data[:7] + bytes([data[7] ^ 16]) + data[8:])
    elif "cut" in damage or damage == "empty":
        chunk.write_bytes(data[: len(data) // 2 if "cut" in damage else 0])
    else:
        chunk.unlink()
    with pytest.raises(ValueError, match=chunk.relative_to(path).as_posix()) as caught:
        mj.load_dataset(path)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="is damaged: .*1 blocks are computed again") as told:
        run(path, resume=True)
    assert len(told) == 1 and chunk.relative_to(path).as_posix() in str(told[0].message)
    xr.testing.assert_identical(mj.load_dataset(path), undisturbed)


def test_a_store_that_is_gone_is_made_anew(tmp_path, undisturbed):
    run(tmp_path / "x", resume=True)
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)


@pytest.mark.parametrize(
    "name", ["sweep.json", "memjax.json", "zarr.json", "a/c/0", "time/zarr.json"]
)
def test_damage_to_what_does_not_grow_is_noticed(name, tmp_path):
    with pytest.warns(UserWarning, match="failed"):
        run(tmp_path / "x", Cheap(raises=[1]))
    file = tmp_path / "x" / name
    data = file.read_bytes()
    file.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    with pytest.raises(ValueError, match=name):
        mj.load_dataset(tmp_path / "x")


def test_what_is_not_of_a_store_is_noticed(tmp_path):
    with pytest.warns(UserWarning, match="failed"):
        run(tmp_path / "x", Cheap(raises=[1]))
    for name in ("notes.txt", "time/c.0", "time/c.0.0.0.txt", "other/c.0.0.0", "time/c.9.9.9"):
        file = tmp_path / "x" / name
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(b"mine")
        if name != "time/c.9.9.9" and name != "time/c.0":
            with pytest.raises(ValueError, match="not one of its files"):
                mj.load_dataset(tmp_path / "x")
        if name == "notes.txt":
            with pytest.raises(FileExistsError, match="is not known to have written"):
                run(tmp_path / "x", overwrite=True)
        file.unlink()


# --- Who may write --------------------------------------------------------------------------------


def test_what_is_there_is_taken_up_or_replaced_when_asked_only(tmp_path, undisturbed):
    path = tmp_path / "x"
    run(path)
    with pytest.raises(FileExistsError, match="holds a finished run.*`resume=True`, `--resume`"):
        run(path)
    for what, match in [
        (content(a=9), "axis `a`: 8 values .* there, 9 values"),
        (content(note="x"), "the attribute 'note': nothing there, 'x' here"),
        (content(build=run), "`build`, its name"),
        (content(cells=4), "the shape of blocks"),
    ]:
        with pytest.raises(ValueError, match=f"is of another sweep.*{match}") as caught:
            run(path, what=what, resume=True)
        assert "\n" not in str(caught.value)
    run(path, what=content(a=9), overwrite=True)
    assert mj.load_dataset(path).sizes["a"] == 9
    (tmp_path / "y").mkdir()
    (tmp_path / "y" / "notes").write_text("mine")
    for options in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(FileExistsError):
            run(tmp_path / "y", **options)
    assert (tmp_path / "y" / "notes").read_text() == "mine"


def test_an_unfinished_store_may_be_replaced(tmp_path, undisturbed):
    with pytest.warns(UserWarning, match="failed"):
        run(tmp_path / "x", Cheap(raises=[4]))
    with pytest.raises(FileExistsError, match="holds an unfinished run of this sweep"):
        run(tmp_path / "x")
    run(tmp_path / "x", overwrite=True)
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)


def test_a_second_process_is_refused_and_told_who_writes(tmp_path):
    run(tmp_path / "x")
    with claimed(tmp_path / "x"):
        with pytest.raises(FileExistsError, match=f"process {os.getpid()} on") as caught:
            run(tmp_path / "x", resume=True)
        assert "\n" not in str(caught.value)
    with claimed(tmp_path / "x", "shard-1-of-2"):
        with pytest.raises(FileExistsError, match="shard 1 of 2 of output"):
            run(tmp_path / "x", shard=(0, 2))
        run(tmp_path / "x", shard=(1, 2))
    with claimed(tmp_path / "x", shared=True):
        with pytest.raises(FileExistsError, match="is being written by"):
            run(tmp_path / "x", resume=True)
        run(tmp_path / "x", shard=(1, 2))


def test_shards_fill_one_store_side_by_side(tmp_path, undisturbed):
    log, failures, start = tmp_path / "log", [], threading.Barrier(5)

    def fill(k):
        start.wait()
        try:
            run(tmp_path / "x", Cheap(0.01, log), shard=(k, 5))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=fill, args=(k,)) for k in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert sorted(map(int, log.read_text().split())) == list(range(NUMBER))
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["log", "x"]


def test_a_writer_that_ends_leaves_the_notes_of_others(tmp_path):
    """The last of several writers removes folders that are empty, while others fill them."""
    run(tmp_path / "x")
    store, ended = BlockStore(tmp_path / "x"), threading.Event()

    def repeat(what):
        while not ended.is_set():
            what()

    with ThreadPoolExecutor() as pool:
        others = [
            pool.submit(repeat, what)
            for what in (store.seal, store.seal, store.unseal, store.running, store.errors)
        ]
        try:
            _note_all(store)
        finally:
            ended.set()
    for other in others:
        other.result()
    store.path.rename(tmp_path / "y")
    with pytest.raises(FileNotFoundError):
        store.note_running("me", {})


def _note_all(store):
    for k in range(100):
        store.note_running("me", {"block": k})
        assert store.running()["me"][0] == {"block": k}
        store.forget_running("me")
        store.note_error(0, {"block": k})
        assert store.errors() == {0: {"block": k}}
        (store.path / "errors" / "0.json").unlink()


def test_stores_that_lie_apart_are_merged(tmp_path, undisturbed):
    for k in range(3):
        part = run(tmp_path / str(k), shard=(k, 3))
        assert int((part["result"] == -1).sum()) > 0
    some = mj.merge([tmp_path / "0", tmp_path / "1"], tmp_path / "some")
    assert not mj.sweep_status(some).complete
    run(some, resume=True)
    whole = mj.merge([tmp_path / str(k) for k in range(3)], tmp_path / "whole")
    for path in (some, whole):
        xr.testing.assert_identical(mj.load_dataset(path), undisturbed)
    again = mj.merge([whole, tmp_path / "0"], tmp_path / "whole", overwrite=True)
    xr.testing.assert_identical(mj.load_dataset(again), undisturbed)
    run(tmp_path / "other", what=content(b=7))
    with pytest.raises(ValueError, match="`stores` must be of one sweep.*axis `b`"):
        mj.merge([whole, tmp_path / "other"], tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="`stores` must exist"):
        mj.merge([tmp_path / "none"], tmp_path / "new")
    with pytest.raises(FileExistsError, match="exists already"):
        mj.merge([whole], whole)
    assert not (tmp_path / "none").exists() and not (tmp_path / "new").exists()


# --- What goes wrong ------------------------------------------------------------------------------


def test_a_block_that_raises_is_kept_with_its_error(tmp_path, undisturbed):
    with pytest.warns(UserWarning, match="the first: ZeroDivisionError: of no use") as told:
        run(tmp_path / "x", Cheap(raises=[2, 11]))
    assert len(told) == 1 and "\n" not in str(told[0].message)
    status = mj.sweep_status(tmp_path / "x")
    assert status.errors == dict.fromkeys([2, 11], "ZeroDivisionError: of no use")
    assert (status.blocks_done, status.blocks_failed) == (NUMBER - 2, 2) and not status.complete
    assert "failed    block 2: ZeroDivisionError" in str(status)
    run(tmp_path / "x", resume=True)
    assert mj.sweep_status(tmp_path / "x").errors == {}
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)


def test_a_block_that_never_ends_counts_as_failed(tmp_path):
    begin = time.monotonic()
    with pytest.warns(UserWarning, match="took more than 0.3 seconds"):
        run(tmp_path / "x", Cheap(hangs=[7]), timeout=0.3)
    assert time.monotonic() - begin < 60
    status = mj.sweep_status(tmp_path / "x")
    assert status.blocks_done == NUMBER - 1 and list(status.errors) == [7]


def test_threads_of_ones_own_compute_the_same(tmp_path, undisturbed):
    with ThreadPoolExecutor(3) as executor:
        run(tmp_path / "x", executor=executor)
        xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)
        assert executor.submit(int).result() == 0  # it is left running


class Unpicklable(Cheap):
    def __reduce__(self):
        raise TypeError("cannot be\npickled")


def test_what_cannot_be_pickled_is_refused_before_anything_is_written(tmp_path):
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        with pytest.raises(
            TypeError, match="`build` .* pickled for a ProcessPoolExecutor"
        ) as caught:
            run(tmp_path / "x", Unpicklable(), executor=executor)
    assert "\n" not in str(caught.value) and list(tmp_path.iterdir()) == []


@pytest.mark.thorough
def test_workers_that_die_are_replaced_and_the_rest_goes_on(tmp_path, undisturbed):
    executor, mine = as_executor(2)
    assert mine
    try:
        with pytest.warns(UserWarning, match="lost 2 times: .*by signal 9, maybe out of memory"):
            run(tmp_path / "x", Cheap(dies=[6]), executor=executor, retries=1)
        assert list(mj.sweep_status(tmp_path / "x").errors) == [6]
        with pytest.warns(UserWarning, match="took more than 0.2 seconds"):
            run(tmp_path / "x", Cheap(hangs=[6]), executor=executor, resume=True, timeout=0.2)
        run(tmp_path / "x", executor=executor, resume=True)
    finally:
        close(executor)
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)


@pytest.mark.thorough
def test_a_pool_that_breaks_is_said_and_what_is_finished_is_stored(tmp_path, undisturbed):
    with ProcessPoolExecutor(1, get_context("spawn")) as executor:
        with pytest.raises(RuntimeError, match="takes no blocks any more.*resume=True") as caught:
            run(tmp_path / "x", Cheap(dies=[9]), executor=executor)
    assert "\n" not in str(caught.value)
    assert 0 < mj.sweep_status(tmp_path / "x").blocks_done < NUMBER
    run(tmp_path / "x", resume=True)
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)


def test_an_interrupt_keeps_what_is_finished(tmp_path, undisturbed, monkeypatch):
    write = BlockStore.write

    def interrupted(self, blocks):
        write(self, blocks)
        if blocks_in(self.path) > 4:
            monkeypatch.setattr(BlockStore, "write", write)
            _thread.interrupt_main()

    monkeypatch.setattr(BlockStore, "write", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.warns(UserWarning, match="interrupted after .*resume=True"):
            part = run(tmp_path / "x", Cheap(0.05))
    finally:
        signal.signal(signal.SIGINT, before)
    done = part["result"] != -1
    assert 24 < int(done.sum()) < done.size
    run(tmp_path / "x", resume=True)
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_full_disk_is_one_line_and_loses_nothing(code, tmp_path, undisturbed, monkeypatch):
    write, count = _durable.write_through, []

    def full(file, data):
        count.append(file)
        if len(count) > 60:
            file.write_bytes(data[:3])
            raise OSError(code, os.strerror(code))
        write(file, data)

    monkeypatch.setattr(_durable, "write_through", full)
    with pytest.raises(OSError, match="x' cannot be written: .*free some space") as caught:
        run(tmp_path / "x", Cheap(0.01))
    assert "\n" not in str(caught.value)
    monkeypatch.undo()
    done = mj.sweep_status(tmp_path / "x").blocks_done
    assert 0 < done < NUMBER and not list((tmp_path / "x").glob("*/.*.tmp"))
    log = tmp_path / "log"
    run(tmp_path / "x", Cheap(log=log), resume=True)
    assert len(log.read_text().split()) == NUMBER - done
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1.5 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1500k", "memjax-test", str(folder)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_disk_that_is_full_and_one_that_cannot_be_written(small_disk, undisturbed):
    path = small_disk / "x"
    filler = small_disk / "filler"
    with pytest.warns(UserWarning, match="failed"):
        run(path, Cheap(raises=range(8, 16)))
    done = blocks_in(path)
    with pytest.raises(OSError), filler.open("wb") as file:
        while True:
            file.write(bytes(4096))
            file.flush()
    with pytest.raises(OSError, match="cannot be written: no space left on device; free"):
        run(path, resume=True)
    assert blocks_in(path) >= done
    remount = ["mount", "-o", "remount,{}", str(small_disk)]
    subprocess.run([word.format("ro") for word in remount], check=True)
    with pytest.raises(OSError, match="cannot be written: read-only file system"):
        run(path, resume=True)
    assert not mj.sweep_status(path).complete
    subprocess.run([word.format("rw") for word in remount], check=True)
    filler.unlink()
    run(path, resume=True)
    xr.testing.assert_identical(mj.load_dataset(path), undisturbed)


def test_a_clock_that_goes_back_changes_nothing(tmp_path, undisturbed, monkeypatch):
    with pytest.warns(UserWarning, match="failed"):
        run(tmp_path / "x", Cheap(raises=[3]))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 10 * 365 * 86400)
    assert mj.sweep_status(tmp_path / "x").blocks_done == NUMBER - 1
    run(tmp_path / "x", resume=True)
    xr.testing.assert_identical(mj.load_dataset(tmp_path / "x"), undisturbed)


@pytest.mark.slow
def test_killed_at_ten_moments_and_taken_up_it_is_the_same(tmp_path):
    script = Path(__file__).with_name("kill.py")
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script), "--moments", "10"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["equal"] == 10 and found["killed"]["within"] > 0
    assert found["most_blocks_repeated"] <= found["in_flight_at_most"]


# --- Status ---------------------------------------------------------------------------------------


def test_the_status_of_a_sweep_under_way(tmp_path):
    thread = threading.Thread(target=run, args=(tmp_path / "x", Cheap(0.2)))
    thread.start()
    seen = []
    while thread.is_alive():
        try:
            seen.append(mj.sweep_status(tmp_path / "x"))
        except FileNotFoundError:
            pass
        time.sleep(0.05)
    thread.join()
    assert any(s.running and 0 < s.blocks_running and 0 < s.runs_done < s.runs for s in seen)
    last = mj.sweep_status(tmp_path / "x")
    assert last.complete and not last.running and last.runs_done == last.runs == 96
    dataset = mj.load_dataset(tmp_path / "x")
    counts = np.bincount(dataset["result"].values.ravel(), minlength=8)
    assert list(last.outcomes.values()) == counts.tolist()
    assert last.to_dict()["blocks"] == NUMBER and "96 of 96 done (100.0 %)" in str(last)


def test_what_is_no_store_has_no_status(tmp_path):
    with pytest.raises(FileNotFoundError, match="`path` must exist"):
        mj.sweep_status(tmp_path / "x")
    with pytest.raises(ValueError, match="`path` must be a store of"):
        mj.sweep_status(tmp_path)


# --- Fingerprints of a function -------------------------------------------------------------------

SCALE = 2.0


def of_source(source, **names):
    space = {"SCALE": SCALE, "np": np, **names}
    exec(source, space)
    return fingerprint(space["f"])


def test_fingerprints_follow_what_a_function_computes():
    base = of_source("def f(x):\n    'said'\n    return x * SCALE")
    same = of_source("# said\n\ndef f(x):\n    'told'\n    # more\n    return x * SCALE", other=3)
    assert base == same
    assert of_source("def f(x):\n    'said'\n    return x * SCALE + 1") != base
    assert of_source("def f(x):\n    'said'\n    return x * SCALE", SCALE=3.0) != base
    assert fingerprint(lambda: "a") != fingerprint(lambda: "b")
    closed = lambda k: lambda x: x + k
    assert fingerprint(closed(1)) == fingerprint(closed(1)) != fingerprint(closed(2))
    array = lambda k: closed(np.full(3, k))
    assert fingerprint(array(1)) == fingerprint(array(1)) != fingerprint(array(2))
    default = "def f(x, y={}): return x"
    assert of_source(default.format(1)) != of_source(default.format(2))
    inner = "def g(x): return x + {}\ndef f(x): return g(x)"
    assert of_source(inner.format(1)) != of_source(inner.format(2))


@pytest.mark.thorough
def test_fingerprints_are_the_same_in_another_process():
    code = "import test_durable as t; print(sorted(t.fingerprint(t.run).items()))"
    out = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            cwd=Path(__file__).parent, env=os.environ | {"PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert out[0] == out[1]
