import errno
import itertools
import json
import os
import pickle
import shutil
import signal
import threading
import warnings
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numcodecs
import numpy as np
import pytest
import xarray as xr

import memjax as mj
from memjax.sweeps import _output, _store
from memjax.sweeps._listing import LIST, read_files, write_list
from memjax.sweeps._output import check_output, replacing

SMALL = xr.Dataset(
    {
        "time": (("omega", "map"), [[1.5, np.nan], [np.inf, -0.0]], {"units": "training time"}),
        "result": (("omega", "map"), np.array([[0, 1], [2, -1]], np.int8)),
    },
    {"omega": [0.1, 0.25], "map": ["direct", "größer"], "memory": ("omega", [10.0, 4.0])},
    {"complete": 1, "specification": "a = 1\nb = 'x'", "weights": [0.5, 2.0]},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return mj.save_dataset(SMALL, tmp_path_factory.mktemp("store") / "x.zarr")


@pytest.fixture
def store(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "x.zarr"))


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def refused(store, *words):
    """The store is refused in one line that names it and what is wrong with it."""
    with pytest.raises(ValueError) as caught:
        mj.load_dataset(store)
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    assert all(word in text for word in (str(store), *words)), text


# --- Round trips --------------------------------------------------------------------------------


def test_what_a_dataset_may_hold_comes_back(tmp_path):
    dataset = SMALL.assign(
        flag=("omega", [True, False]),
        count=("omega", np.array([3, 2**40])),
        small=("omega", np.array([3, 200], np.uint8)),
        root=("omega", [1j, complex(np.nan, 2)]),
        half=("omega", np.array([0.1, 0.2], np.float32)),
        # Attributes and times that xarray's conventions would read as something else.
        since=("omega", [1.0, 2.0], {"units": "days since 2000-01-01", "scale_factor": 3.0}),
        none=("nothing", np.zeros(0)),
        scalar=((), 2.5, {"filters": ["pickle"], "nan": float("nan"), "deep": {"a": [1, "b"]}}),
        word=((), "text"),
    ).assign_coords(name=((), "a b"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = mj.load_dataset(mj.save_dataset(dataset, tmp_path / "x.zarr"))
    assert back.scalar.attrs.pop("nan") != dataset.scalar.attrs.pop("nan")
    xr.testing.assert_identical(back, dataset)
    assert {name: back[name].dtype for name in back.variables} == {
        name: dataset[name].dtype for name in dataset.variables
    }
    assert set(back.coords) == set(dataset.coords)


# What the oldest versions of Zarr say of text.
@pytest.mark.filterwarnings("ignore:.* not part in the Zarr format 3")
def test_xarray_opens_the_store_and_notices_damaged_chunks(store):
    with xr.open_zarr(store) as opened:
        xr.testing.assert_identical(opened.load().astype(SMALL.dtypes), SMALL)
    metadata = json.loads((store / "result" / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3 and metadata["fill_value"] == -1
    for chunk in store.glob("*/c/**/*"):
        if chunk.is_file():
            data = chunk.read_bytes()
            chunk.write_bytes(data[:-5] + bytes([data[-5] ^ 4]) + data[-4:])
            with pytest.raises(Exception, match="[Cc]hecksum|CRC|crc"):
                xr.open_zarr(store).load()
            chunk.write_bytes(data)


def test_a_missing_chunk_is_no_outcome_to_xarray(store):
    shutil.rmtree(store / "result" / "c")
    shutil.rmtree(store / "time" / "c")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        opened = xr.open_zarr(store).load()
    assert np.all(opened["result"] == -1) and np.all(np.isnan(opened["time"]))


@pytest.mark.parametrize(
    ("dataset", "error", "match"),
    [
        (SMALL.to_array(), TypeError, "`dataset` must be an xarray.Dataset"),
        (3, TypeError, "`dataset` must be an xarray.Dataset"),
        (xr.Dataset({"a": np.datetime64("2000-01-01", "ns")}), TypeError, "'a' of dtype datetime"),
        (xr.Dataset({"a": ("x", np.array([1, "b"], object))}), TypeError, "'a' of dtype object"),
        (xr.Dataset({"a": np.longdouble(1)}), TypeError, "'a' of dtype"),
        (xr.Dataset({"a/b": 1}), ValueError, "names"),
        (xr.Dataset({"..": 1}), ValueError, "names"),
        (xr.Dataset({3: 1}), ValueError, "names"),
        (xr.Dataset(attrs={"a": object()}), TypeError, "attributes that JSON knows"),
        (xr.Dataset(attrs={"coordinates": "x"}), ValueError, "attribute 'coordinates'"),
    ],
)
def test_what_a_store_cannot_hold_is_refused_before_anything_is_written(
    dataset, error, match, tmp_path
):
    with pytest.raises(error, match=match) as caught:
        mj.save_dataset(dataset, tmp_path / "x.zarr")
    assert "\n" not in str(caught.value) and names(tmp_path) == []


# --- Damage -------------------------------------------------------------------------------------


def test_every_flipped_bit_of_a_chunk_is_noticed(store):
    for chunk in (store / "result" / "c" / "0" / "0", store / "map" / "c" / "0"):
        data = chunk.read_bytes()
        for position, bit in itertools.product(range(len(data)), range(8)):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            chunk.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{chunk.relative_to(store).as_posix()}.*damaged"):
                read_files(store)
        chunk.write_bytes(data)
    xr.testing.assert_identical(mj.load_dataset(store), SMALL)


@hypothesis.settings(
    deadline=None,
    max_examples=100,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(st.data())
def test_any_damage_to_any_file_is_noticed(store, data):
    files = sorted(file for file in store.rglob("*") if file.is_file())
    file = data.draw(st.sampled_from(files), "file")
    content = file.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1), "position")
    kind = data.draw(st.sampled_from(["bit", "cut", "zeros", "longer", "gone", "swapped"]), "kind")
    other = data.draw(st.sampled_from([f for f in files if f.read_bytes() != content]), "other")
    others = other.read_bytes()
    if kind == "bit":
        bit = data.draw(st.integers(0, 7))
        changed = content[position] ^ (1 << bit)
        file.write_bytes(content[:position] + bytes([changed]) + content[position + 1 :])
    elif kind == "cut":
        file.write_bytes(content[:position])
    elif kind == "zeros":
        hypothesis.assume(any(content[position:]))
        file.write_bytes(content[:position] + bytes(len(content) - position))
    elif kind == "longer":
        file.write_bytes(content + b"\n")
    elif kind == "gone":
        file.unlink()
    else:
        file.write_bytes(others)
        other.write_bytes(content)
    touched = {file.relative_to(store).as_posix(), other.relative_to(store).as_posix()}
    try:
        with pytest.raises(ValueError) as caught:
            mj.load_dataset(store)
        text = str(caught.value)
        assert str(store) in text and "\n" not in text and any(name in text for name in touched)
    finally:
        file.write_bytes(content)
        other.write_bytes(others)


def test_added_and_linked_files_are_noticed(store, tmp_path):
    chunk = store / "time" / "c" / "0" / "0"
    extra = shutil.copy(chunk, chunk.with_name("1"))
    refused(store, "time/c/0/1", "not one of its files")
    extra.unlink()
    outside = shutil.move(chunk, tmp_path / "outside")
    chunk.symlink_to(outside)
    refused(store, "time/c/0/0", "not a file of its own")
    chunk.unlink()
    shutil.move(outside, chunk)
    time = shutil.move(store / "time", tmp_path / "time")
    (store / "time").symlink_to(time, target_is_directory=True)
    refused(store, "time")
    (store / "time").unlink()
    shutil.move(time, store / "time")
    xr.testing.assert_identical(mj.load_dataset(store), SMALL)


def test_files_of_another_store_are_noticed(store, tmp_path):
    other = mj.save_dataset(SMALL + 1, tmp_path / "other.zarr")
    for name in ("zarr.json", "time/zarr.json", "time/c/0/0", LIST):
        mine = (store / name).read_bytes()
        if (other / name).read_bytes() == mine:
            continue
        shutil.copy(other / name, store / name)
        refused(store)
        (store / name).write_bytes(mine)


def test_what_is_no_store_says_so(tmp_path, store):
    with pytest.raises(FileNotFoundError, match="does not exist; pass the folder"):
        mj.load_dataset(tmp_path / "none.zarr")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "cannot be read", "no Zarr store")
    (tmp_path / "file").write_text("")
    refused(tmp_path / "file", "it is a file")
    (store / LIST).unlink()
    refused(store, LIST, "not finished")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        SMALL.drop_vars("map").to_zarr(tmp_path / "old.zarr", zarr_format=2, consolidated=True)
    refused(tmp_path / "old.zarr", "format 2", "no checksums", "open_zarr")
    with pytest.raises(TypeError, match="`path` must be a path"):
        mj.load_dataset(3)
    with pytest.raises(OSError, match="cannot be read"):
        mj.load_dataset(tmp_path / ("x" * 300))


# --- Codecs that run code -------------------------------------------------------------------------


class _Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


def _pickled(path):
    return pickle.dumps([_Payload(path), [1], "|O"])


def test_a_pickle_in_a_store_of_format_2_is_not_run(tmp_path):
    folder, trap = tmp_path / "x.zarr", tmp_path / "trap"
    (folder / "time").mkdir(parents=True)
    array = {
        "zarr_format": 2, "shape": [1], "chunks": [1], "dtype": "|O", "order": "C",
        "fill_value": None, "compressor": None, "filters": [{"id": "pickle", "protocol": 5}],
    }  # fmt: skip
    (folder / ".zgroup").write_text('{"zarr_format": 2}')
    (folder / "time" / ".zarray").write_text(json.dumps(array))
    (folder / "time" / ".zattrs").write_text('{"_ARRAY_DIMENSIONS": ["omega"]}')
    (folder / "time" / "0").write_bytes(_pickled(trap))
    refused(folder, "format 2")
    write_list(folder)
    refused(folder, ".zgroup", "no part of a Zarr store of format 3")
    (folder / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    (folder / ".zgroup").unlink()
    write_list(folder)
    refused(folder, "no part of a Zarr store of format 3")
    assert not trap.exists()


@pytest.mark.parametrize(
    "codecs",
    [
        [{"name": "numcodecs.pickle", "configuration": {"protocol": 5}}],
        ["numcodecs.pickle"],
        [{"name": "bytes"}, {"name": "numcodecs.pickle"}],
        [{"name": "sharding_indexed", "configuration": {"codecs": [{"name": "pickle"}]}}],
        [{"id": "pickle"}],
        [None],
    ],
)
@pytest.mark.parametrize("where", ["array", "group"])
def test_codecs_that_are_not_known_are_refused_before_they_are_looked_up(
    codecs, where, store, tmp_path, monkeypatch
):
    monkeypatch.setattr(numcodecs, "get_codec", lambda config: pytest.fail("it was looked up"))
    file = store / "time" / "zarr.json" if where == "array" else store / "zarr.json"
    metadata = json.loads(file.read_text())
    if where == "array":
        metadata["codecs"] = codecs
    else:
        metadata["consolidated_metadata"]["metadata"]["time"]["codecs"] = codecs
    file.write_text(json.dumps(metadata))
    (store / "time" / "c" / "0" / "0").write_bytes(_pickled(tmp_path / "trap"))
    (store / LIST).unlink()
    write_list(store)
    refused(store, "zarr.json", "codec", "allowed")
    assert not (tmp_path / "trap").exists()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "3", '{"zarr_format": 3}', '{"node_type": "array"}', "[" * 10**5]
)
def test_metadata_that_is_none_is_refused_in_a_line(text, store):
    for name in ("zarr.json", "time/zarr.json"):
        before = (store / name).read_text()
        (store / name).write_text(text)
        (store / LIST).unlink()
        write_list(store)
        if name == "zarr.json" or text in ("", "{", "[" * 10**5):
            refused(store)
        (store / name).write_text(before)


# --- Outputs --------------------------------------------------------------------------------------


def test_saving_replaces_only_when_asked_and_whole(store):
    with pytest.raises(FileExistsError, match="x.zarr.* exists already"):
        mj.save_dataset(SMALL + 1, store)
    other = SMALL.isel(omega=[0])
    mj.save_dataset(other, store, overwrite=True)
    xr.testing.assert_identical(mj.load_dataset(store), other)
    assert names(store.parent) == ["x.zarr"]


@pytest.mark.parametrize("kind", ["notes", "nested", "beside", "hidden", "damaged list"])
def test_what_memjax_did_not_write_is_not_replaced(kind, store, tmp_path):
    place = {
        "notes": tmp_path / "home" / "notes.txt",
        "nested": tmp_path / "home" / "deep" / "er" / "x",
        "beside": store / "notes.txt",
        "hidden": store / "time" / ".notes",
        "damaged list": store / LIST,
    }[kind]
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("mine")
    folder = tmp_path / "home" if kind in ("notes", "nested") else store
    for call in (
        check_output,
        lambda path, overwrite: mj.save_dataset(SMALL, path, overwrite=True),
    ):
        with pytest.raises(FileExistsError, match="is not known to have written") as caught:
            call(folder, True)
        assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    assert place.read_text() == "mine" and not list(tmp_path.glob(".*"))


def test_files_folders_and_links_do_not_replace_each_other(store, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(store, target_is_directory=True)
    (tmp_path / "figure").symlink_to(tmp_path / "file")
    os.mkfifo(tmp_path / "pipe")
    for name, folder in [
        ("file", True), ("link", True), ("pipe", True), ("pipe", False), ("figure", False),
        ("x.zarr", False), ("link", False),
    ]:  # fmt: skip
        with pytest.raises(FileExistsError, match="is not a (file|folder)"):
            check_output(tmp_path / name, True, folder)
    with pytest.raises(FileExistsError):
        check_output("/", True)
    (tmp_path / "empty").mkdir()
    mj.save_dataset(SMALL, tmp_path / "empty", overwrite=True)
    with replacing(tmp_path / "file", True, folder=False) as partial:
        partial.write_text("new")
    assert (tmp_path / "file").read_text() == "new"
    xr.testing.assert_identical(mj.load_dataset(store), SMALL)


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, SystemExit])
def test_a_failed_write_leaves_what_was_there_and_nothing_else(error, store, monkeypatch):
    def fail(folder, *_):
        folder.mkdir()
        (folder / "half").write_text("half")
        raise error

    monkeypatch.setattr(_store, "create_arrays", fail)
    with pytest.raises(error):
        mj.save_dataset(SMALL, store, overwrite=True)
    with pytest.raises(error):
        mj.save_dataset(SMALL, store.parent / "deep" / "er" / "y.zarr")
    xr.testing.assert_identical(mj.load_dataset(store), SMALL)
    assert names(store.parent) == ["x.zarr"]


def test_a_rename_that_fails_is_undone(store, monkeypatch):
    rename = Path.rename

    def fail(self, target):
        if self.name.endswith(".partial"):
            raise PermissionError(errno.EACCES, "no", str(self))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(PermissionError, match="x.zarr.* cannot be written: permission denied"):
        mj.save_dataset(SMALL + 1, store, overwrite=True)
    monkeypatch.undo()
    xr.testing.assert_identical(mj.load_dataset(store), SMALL)
    assert names(store.parent) == ["x.zarr"]


@pytest.mark.parametrize("folder", [True, False])
@pytest.mark.parametrize("overwrite", [True, False])
def test_what_appears_meanwhile_stays_and_no_work_is_lost(folder, overwrite, tmp_path):
    path = tmp_path / "out"
    with pytest.raises(FileExistsError, match="appeared or changed") as caught:
        with replacing(path, overwrite, folder) as partial:
            if folder:
                partial.mkdir()
            (partial / "new" if folder else partial).write_text("new")
            path.mkdir()
            (path / "theirs").write_text("theirs")
    assert (path / "theirs").read_text() == "theirs"
    (kept,) = (entry for entry in tmp_path.iterdir() if entry != path)
    assert str(kept) in str(caught.value)
    assert (kept / "new" if folder else kept).read_text() == "new"


def test_the_last_rename_does_not_replace_what_has_just_appeared(tmp_path, monkeypatch):
    monkeypatch.setattr(_output, "_check_still", lambda path, *_: path.write_text("theirs"))
    with pytest.raises(OSError), replacing(tmp_path / "folder") as partial:
        partial.mkdir()
        monkeypatch.setattr(os.path, "lexists", lambda path: False)
    monkeypatch.setattr(os.path, "lexists", lambda path: False)
    with pytest.raises(FileExistsError), replacing(tmp_path / "file", folder=False) as partial:
        partial.write_text("mine")
    assert names(tmp_path) == ["file", "folder"]
    assert (tmp_path / "folder").read_text() == (tmp_path / "file").read_text() == "theirs"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_a_full_disk_is_one_line(code, tmp_path, monkeypatch):
    def full(folder, *_):
        folder.mkdir()
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(_store, "create_arrays", full)
    with pytest.raises(OSError, match="x.zarr' cannot be written: .*free some space"):
        mj.save_dataset(SMALL, tmp_path / "x.zarr")
    assert names(tmp_path) == []


def test_folders_that_cannot_be_written_to(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        mj.save_dataset(SMALL, tmp_path / "file" / "x.zarr")
    with pytest.raises(OSError, match="cannot be written: file name too long"):
        mj.save_dataset(SMALL, tmp_path / ("x" * 300))
    with pytest.raises(TypeError, match="`path` must be a path"):
        mj.save_dataset(SMALL, None)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PermissionError, match="no permission for"):
        mj.save_dataset(SMALL, tmp_path / "x.zarr")
    assert names(tmp_path) == ["file"]


# --- Several writers and readers ------------------------------------------------------------------


def test_a_second_writer_is_refused_at_its_start(tmp_path):
    path = tmp_path / "x.zarr"
    with replacing(path) as partial:
        partial.mkdir()
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match="is being written by process") as caught:
                mj.save_dataset(SMALL, path, overwrite=overwrite)
            assert str(os.getpid()) in str(caught.value) and "\n" not in str(caught.value)
        mj.save_dataset(SMALL, tmp_path / "y.zarr")
    mj.save_dataset(SMALL, path, overwrite=True)
    assert names(tmp_path) == ["x.zarr", "y.zarr"]


def test_of_many_writers_one_succeeds(tmp_path):
    path, outcomes, start = tmp_path / "x.zarr", [], threading.Barrier(8)

    def write(k):
        start.wait()
        try:
            mj.save_dataset(SMALL + k, path)
            outcomes.append(k)
        except FileExistsError:
            pass

    threads = [threading.Thread(target=write, args=(k,)) for k in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = outcomes
    xr.testing.assert_identical(mj.load_dataset(path), SMALL + winner)
    assert names(tmp_path) == ["x.zarr"]


def _killed(path, overwrite, after):
    """A process that is killed while it writes."""
    with warnings.catch_warnings():
        # The child only touches files.
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        with replacing(path, overwrite) as partial:
            partial.mkdir()
            (partial / "half").write_text("half")
            if after == "rename":
                _output.remove = lambda path: os.kill(os.getpid(), signal.SIGKILL)
            elif after == "first rename":
                rename = Path.rename
                Path.rename = lambda self, new: (
                    os.kill(os.getpid(), signal.SIGKILL)
                    if self.name.endswith(".partial")
                    else rename(self, new)
                )
            else:
                os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_writer_that_was_killed_keeps_nobody_from_writing(tmp_path):
    path = tmp_path / "x.zarr"
    _killed(path, False, "body")
    assert len(names(tmp_path)) == 2
    mj.save_dataset(SMALL, path)
    assert names(tmp_path) == ["x.zarr"]
    _killed(path, True, "body")
    xr.testing.assert_identical(mj.load_dataset(path), SMALL)
    _killed(path, True, "first rename")
    with pytest.raises(FileNotFoundError, match="about to be replaced") as caught:
        mj.load_dataset(path)
    (old,) = tmp_path.glob(".x.zarr.*.old")
    assert str(old) in str(caught.value)
    # The next writer puts it back, and then finds it.
    with pytest.raises(FileExistsError, match="exists already"):
        mj.save_dataset(SMALL + 1, path)
    xr.testing.assert_identical(mj.load_dataset(path), SMALL)
    _killed(path, True, "rename")
    assert (path / "half").exists()
    mj.save_dataset(SMALL + 1, path, overwrite=True)
    assert names(tmp_path) == ["x.zarr"]


def test_readers_see_the_old_or_the_new_while_a_store_is_replaced(store):
    other, seen, done = SMALL + 1, [], threading.Event()

    def read():
        while not done.is_set():
            try:
                found = mj.load_dataset(store)
                seen.append(found.identical(SMALL) or found.identical(other))
            except Exception as error:
                seen.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for k in range(8):
        mj.save_dataset(other if k % 2 == 0 else SMALL, store, overwrite=True)
    done.set()
    for reader in readers:
        reader.join()
    assert seen and all(item is True for item in seen), seen
