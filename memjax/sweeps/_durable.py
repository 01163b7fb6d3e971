"""The store of a sweep while it runs: a Zarr group that grows by whole blocks.

Every block is one chunk of every variable. The chunk of `result` comes last, once the others are on
the disk, and is the mark of the block: a block is there if and only if its `result` is.
"""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .._lazy import xr
from ._blocks import unravelled
from ._chunks import decode, encode
from ._listing import (
    FileList,
    read_list,
    remove,
    sync_folder,
    temporary,
    write_list,
    write_synced,
    write_through,
)
from ._output import replacing
from ._store import as_text, COORDINATES, create_arrays, fill_of, IDENTITY, QUIET
from ._variables import UNFINISHED

MARK = "result"
ERRORS, RUNNING = "errors", "running"
# Files are synced side by side, which a disk does in one go.
_SYNCING = 16


class Variable(NamedTuple):
    """An array of a store that grows.

    **Attributes:**

    - `dtype`, `shape`, `chunk`: its type, and the shapes of the whole and of a chunk.
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    chunk: tuple[int, ...]


class Growing(NamedTuple):
    """An array of a store that is to grow: dimensions, type, shapes and attributes."""

    dims: tuple[str, ...]
    variable: Variable
    attributes: Mapping[str, Any]


class BlockStore:
    """A store of blocks at a path, as its metadata describes it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._files = ThreadPoolExecutor(_SYNCING, "store")
        listed = read_list(path)
        if listed.growing is None or not (path / IDENTITY).exists():
            raise ValueError(f"{str(path)!r} is no store of a sweep")
        self.variables: dict[str, Variable] = {}
        for name, metadata in _arrays(path).items():
            encoding = metadata.get("chunk_key_encoding", {}).get("configuration", {})
            if encoding.get("separator") == ".":
                shape = tuple(metadata["shape"])
                chunk = tuple(metadata["chunk_grid"]["configuration"]["chunk_shape"])
                self.variables[name] = Variable(np.dtype(metadata["data_type"]), shape, chunk)
        # The mark is the last.
        self.variables[MARK] = self.variables.pop(MARK)
        mark = self.variables[MARK]
        self._dims = len(mark.shape)
        self.counts = tuple(
            -(-size // part) for size, part in zip(mark.shape, mark.chunk, strict=True)
        )
        self.number = math.prod(self.counts)
        self.cells = math.prod(mark.shape)

    @staticmethod
    def create(
        path: Path,
        overwrite: bool,
        arrays: Mapping[str, tuple],
        growing: Mapping[str, Growing],
        attributes: Mapping[str, Any],
        identity: Mapping[str, Any],
    ) -> "BlockStore":
        """Make an empty store, which is there whole or not at all.

        **Arguments:**

        - `path`, `overwrite`: as in `replacing`.
        - `arrays`: of each coordinate dimensions, values, fill and attributes.
        - `growing`: the variables, with the mark among them.
        - `attributes`: those of the dataset.
        - `identity`: what the store is a sweep of.
        """
        with replacing(path, overwrite) as partial:
            make_store(partial, arrays, growing, attributes, identity)
        return BlockStore(path)

    # --- Blocks -----------------------------------------------------------------------------------

    def place(self, index: int) -> tuple[int, ...]:
        """Where a block is, along each axis."""
        return unravelled(index, self.counts)

    def extent(self, index: int) -> tuple[int, ...]:
        """How many values of each axis a block spans."""
        mark = self.variables[MARK]
        sizes = zip(self.place(index), mark.chunk, mark.shape, strict=True)
        return tuple(min(part, size - at * part) for at, part, size in sizes)

    def cells_in(self, index: int) -> int:
        """How many cells a block has."""
        return math.prod(self.extent(index))

    def chunk(self, name: str, index: int) -> Path:
        """The file of a block's part of a variable."""
        place = self.place(index)
        # What a variable has beyond the axes, such as times, is in one chunk.
        more = len(self.variables[name].shape) - len(place)
        return self.path / name / ".".join(["c", *map(str, place), *["0"] * more])

    def present(self) -> Iterator[int]:
        """The blocks that are there, in no order."""
        for entry in os.scandir(self.path / MARK):
            parts = entry.name.split(".")
            if parts[0] == "c" and all(part.isdigit() for part in parts[1:]):
                place = tuple(map(int, parts[1:]))
                if len(place) == self._dims and all(map(int.__lt__, place, self.counts)):
                    yield int(np.ravel_multi_index(place, self.counts))

    def read(self, name: str, index: int) -> np.ndarray:
        """A block's part of a variable.

        **Raises:**

        `ValueError` that names the file if it is damaged or missing.
        """
        variable, file = self.variables[name], self.chunk(name, index)
        try:
            chunk = decode(file.read_bytes(), variable.dtype, variable.chunk)
        except FileNotFoundError as error:
            raise ValueError(f"{self._named(file)} is missing") from error
        except ValueError as error:
            raise ValueError(f"{self._named(file)} is damaged") from error
        return chunk[tuple(map(slice, self.extent(index)))]

    def check(self, index: int) -> str | None:
        """What is wrong with a block that is there."""
        try:
            found = {name: self.read(name, index) for name in self.variables}
            if np.any(found[MARK] == UNFINISHED):
                return f"{self._named(self.chunk(MARK, index))} has unfinished cells"
        except ValueError as error:
            return str(error)
        return None

    def _named(self, file: Path) -> str:
        return repr(file.relative_to(self.path).as_posix())

    def encoded(self, index: int, values: Mapping[str, np.ndarray]) -> dict[str, bytes]:
        """The chunks of a block, from its variables with cells first."""
        extent = self.extent(index)
        inner = tuple(map(slice, extent))
        chunks = {}
        for name, variable in self.variables.items():
            chunk = np.full(variable.chunk, fill_of(variable.dtype), variable.dtype)
            if name in values:
                chunk[inner] = values[name].reshape(*extent, *variable.chunk[len(extent) :])
            chunks[name] = encode(chunk)
        return chunks

    def write(self, blocks: Mapping[int, Mapping[str, bytes]]) -> None:
        """Write blocks onto the disk, each as a whole."""
        others = [name for name in self.variables if name != MARK]
        self._write({self.chunk(n, k): blocks[k][n] for k in blocks for n in others})
        self._write({self.chunk(MARK, k): blocks[k][MARK] for k in blocks})
        for index in blocks:
            remove(self._error(index))

    def _write(self, contents: dict[Path, bytes]) -> None:
        partial = {file: temporary(file) for file in contents}
        try:
            pairs = [(partial[file], data) for file, data in contents.items()]
            written = [self._files.submit(write_through, *pair) for pair in pairs]
            # All have ended before any is removed.
            wait(written)
            for one in written:
                one.result()
            for file, new in partial.items():
                os.replace(new, file)
        except BaseException:
            for new in partial.values():
                remove(new)
            raise
        list(self._files.map(sync_folder, {file.parent for file in contents}))

    def chunks(self, index: int) -> dict[str, bytes]:
        """The files of a block that is there."""
        return {name: self.chunk(name, index).read_bytes() for name in self.variables}

    def has(self, index: int) -> bool:
        """Whether a block is there."""
        return self.chunk(MARK, index).exists()

    def discard(self, index: int) -> None:
        """Forget a block, so that it is computed again."""
        self.chunk(MARK, index).unlink(missing_ok=True)

    # --- The whole --------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        """Whether the store says that all blocks are there."""
        return not read_list(self.path).growing

    def seal(self) -> None:
        """Mark the store as complete."""
        for folder in (ERRORS, RUNNING):
            with suppress(OSError):  # somebody's notes are there, or nobody's were
                (self.path / folder).rmdir()
        write_list(self.path, growing=())

    def unseal(self) -> None:
        """Mark the store as one that grows."""
        write_list(self.path, tuple(self.variables))

    def copy_empty(self, folder: Path) -> "BlockStore":
        """Make a store of the same sweep, without blocks, in a folder that is not there yet."""
        names = tuple(self.variables)
        static = FileList({}, names)
        for name in read_list(self.path).files:
            if not static.grows(name):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes((self.path / name).read_bytes())
        write_list(folder, names)
        return BlockStore(folder)

    def tidy(self) -> None:
        """Remove what a writer left that was killed; nobody else may be writing."""
        for folder in (self.path, *(self.path / name for name in self.variables)):
            for entry in folder.iterdir():
                if entry.name.startswith(".") and entry.name.endswith(".tmp"):
                    remove(entry)
        remove(self.path / RUNNING)

    def open(self) -> "xr.Dataset":
        """The dataset, whose values are read when they are asked for."""
        with QUIET:
            # As it was written: no values are masked, and no numbers taken for dates.
            dataset = xr.open_zarr(
                self.path,
                chunks=None,
                consolidated=True,
                zarr_format=3,
                mask_and_scale=False,
                decode_times=False,
            )
        texts = {
            name: (values.dims, as_text(values.values), values.attrs)
            for name, values in dataset.coords.items()
            if values.dtype.kind in "OT"
        }
        return dataset.assign_coords(texts)

    # --- Notes ------------------------------------------------------------------------------------

    def _error(self, index: int) -> Path:
        return self.path / ERRORS / f"{index}.json"

    def _note(self, file: Path, write: Callable[[Path], None]) -> None:
        while True:
            with suppress(FileExistsError):
                file.parent.mkdir()
            with suppress(FileNotFoundError):
                return write(file)
            # Another writer came to its end, and has removed the empty folder.

    def _notes(self, folder: str) -> list[Path]:
        with suppress(FileNotFoundError):
            files = [self.path / folder / name for name in os.listdir(self.path / folder)]
            return sorted(file for file in files if file.suffix == ".json")
        return []

    def note_error(self, index: int, error: Mapping[str, Any]) -> None:
        """Keep why a block could not be computed."""
        data = json.dumps(error, indent=1).encode()
        self._note(self._error(index), lambda file: write_synced(file, data))

    def errors(self) -> dict[int, dict[str, Any]]:
        """Why blocks could not be computed, by their numbers."""
        found = {}
        for file in self._notes(ERRORS):
            with suppress(OSError, ValueError):  # it has just been removed
                found[int(file.stem)] = json.loads(file.read_bytes())
        return found

    def note_running(self, who: str, what: Mapping[str, Any]) -> None:
        """Keep what a writer is doing, for those who watch it."""

        def write(file: Path) -> None:
            new = temporary(file)
            new.write_text(json.dumps(what))
            os.replace(new, file)

        self._note(self.path / RUNNING / f"{who}.json", write)

    def forget_running(self, who: str) -> None:
        """Remove what was kept of a writer."""
        remove(self.path / RUNNING / f"{who}.json")

    def running(self) -> dict[str, tuple[dict[str, Any], float]]:
        """What writers are doing, and when they last said so."""
        found = {}
        for file in self._notes(RUNNING):
            with suppress(OSError, ValueError):
                found[file.stem] = json.loads(file.read_bytes()), file.stat().st_mtime
        return found


def make_store(
    folder: Path,
    arrays: Mapping[str, tuple],
    growing: Mapping[str, Growing],
    attributes: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> None:
    """Write an empty store; arguments as in `BlockStore.create`."""
    names = [*(name for name in growing if name != MARK), MARK]
    coordinates = {COORDINATES: " ".join(arrays)}
    create_arrays(
        folder,
        {**attributes, **coordinates},
        dict(arrays),
        {name: growing[name] for name in names},
    )
    (folder / IDENTITY).write_text(json.dumps(identity, indent=1) + "\n")
    write_list(folder, tuple(names))
    for name in [*names, *arrays, "."]:
        sync_folder(folder / name)


def _arrays(path: Path) -> dict[str, Any]:
    """The metadata of all arrays of a store."""
    content = json.loads((path / "zarr.json").read_bytes())
    try:
        return content["consolidated_metadata"]["metadata"]
    except (KeyError, TypeError) as error:
        raise ValueError("'zarr.json' is damaged") from error
