import json
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np

from .._checks import as_path, check_flag, check_instance, shown
from .._lazy import xr
from ._listing import LIST, read_files
from ._output import left_behind, replacing

# What the arrays of a store may be encoded by. Other codecs are refused before anything is decoded:
# some of them run code that is in the data.
_CODECS = ("bytes", "vlen-utf8", "zstd", "crc32c")
# What a sweep's own store holds besides.
IDENTITY = "sweep.json"
_KEY = re.compile(r"([^/]+/)?zarr\.json|[^/]+/c([/.]\d+)*")
# The attribute in which the store keeps which variables are coordinates, as xarray reads it.
COORDINATES = "coordinates"


def save_dataset(dataset: "xr.Dataset", path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the dataset of a sweep to a Zarr store, all or nothing.

    The store has Zarr's format 3, with a checksum in every chunk, and xarray opens it
    (`xarray.open_zarr`). A list of its files with their digests, `memjax.json`, is written last.

    **Arguments:**

    - `dataset`: the dataset, of numbers, truth values and text.
    - `path`: the folder of the store.
    - `overwrite`: whether a store of that name may be replaced: one that memjax wrote, if nothing
        else was put into it since.

    **Returns:**

    The path.

    **Raises:**

    `FileExistsError` for a path that exists and may not be replaced, or at which something is being
    written; `PermissionError`, `NotADirectoryError` or another `OSError` if the output cannot be
    written; `TypeError` or `ValueError` for a dataset that a store cannot hold.
    """
    check_instance("dataset", dataset, xr.Dataset, "an xarray.Dataset", "pass that of a sweep")
    check_flag("overwrite", overwrite)
    attributes, arrays = _encoded(dataset)
    with replacing(path, overwrite) as partial:
        create_arrays(partial, attributes, arrays, {})
    return Path(path)


def load_dataset(path: str | Path) -> "xr.Dataset":
    """Read the dataset of a sweep into memory.

    Every file of the store is compared with what was written: one that was changed, cut short,
    removed, added, or is another's, is an error and never a wrong number.

    **Arguments:**

    - `path`: the folder of a Zarr store that [`memjax.save_dataset`][] wrote, or that of a run of
        `memjax sweep`.

    **Returns:**

    The dataset, equal to the one that was saved.

    **Raises:**

    `FileNotFoundError` if there is no such store, `PermissionError` if it may not be read, and
    `ValueError` that names the file if it is damaged; `ValueError`, too, for what is no store of
    memjax or was not finished, and for stores of version 0.1.0, which have no checksums: save
    `xarray.open_zarr(path).load()` anew if you trust it.
    """
    path = as_path("path", path)
    store = path
    try:
        if (path / "plateaus.zarr").is_dir():
            store = path / "plateaus.zarr"
        return _decoded(_read(store))
    except FileNotFoundError as error:
        old = left_behind(path)
        fix = "pass the folder that `memjax sweep` wrote"
        if old is not None:
            fix = f"it was about to be replaced and is now {str(old)!r}, which you may rename"
        raise FileNotFoundError(f"dataset {str(path)!r} does not exist; {fix}.") from error
    except OSError as error:
        raise type(error)(
            f"dataset {str(path)!r} cannot be read: {error.strerror or error}; check the name and "
            "its permissions."
        ) from error
    except Exception as error:
        # Anything at all may be wrong with a store that somebody made by hand.
        text = " ".join(str(error).split())
        raise ValueError(f"dataset {str(store)!r} cannot be read: {text}.") from error


def _read(store: Path) -> dict[str, bytes]:
    """The files of a store, all of one time: it may be replaced while they are read."""
    for _ in range(100):
        before = _identity(store)
        if before is None and left_behind(store) is None:
            break
        try:
            return read_files(store)
        except (OSError, ValueError) as error:
            if before is not None and before == _identity(store):
                gone = (FileNotFoundError, NotADirectoryError)
                if isinstance(error, OSError) and not isinstance(error, gone):
                    raise
                raise ValueError(_reason(store, error)) from error
        time.sleep(0.01)
    raise FileNotFoundError(str(store))


def _identity(store: Path) -> tuple[int, int] | None:
    try:
        status = os.stat(store)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino


def _reason(store: Path, error: Exception) -> str:
    if not store.is_dir():
        return "it is a file; pass the folder that `memjax sweep` wrote"
    if (store / LIST).exists() or not isinstance(error, FileNotFoundError):
        return str(error)
    if any((store / file).exists() for file in (".zgroup", ".zattrs", ".zmetadata")):
        return (
            "it has Zarr's format 2, as memjax 0.1.0 wrote it, and no checksums; if you trust it, "
            "save `xarray.open_zarr(path).load()` anew by `memjax.save_dataset`"
        )
    if (store / "zarr.json").exists():
        return f"it has no {LIST!r}, so that it was not finished or memjax did not write it"
    return "it is no Zarr store; pass the folder that `memjax sweep` wrote"


# --- From a dataset to arrays, and back -----------------------------------------------------------


def _encoded(dataset: "xr.Dataset") -> tuple[dict[str, Any], dict[str, tuple]]:
    """The attributes of the store, and of each array dimensions, values, fill and attributes."""
    arrays = {}
    for name, variable in dataset.variables.items():
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\\s.][^/\\\s]*", name):
            raise ValueError(
                f"`dataset` must have names that can be those of folders, got {shown(name)}; "
                "rename it to a word."
            )
        values = np.asarray(variable.values)
        if values.dtype.kind in "OT" and all(isinstance(text, str) for text in values.ravel()):
            values = as_text(values)
        if values.dtype.kind not in "biufcU" or values.dtype in (np.longdouble, np.clongdouble):
            raise TypeError(
                f"`dataset` must hold numbers, truth values and text, got {name!r} of dtype "
                f"{values.dtype}; convert it."
            )
        arrays[name] = (
            variable.dims,
            values,
            fill_of(values.dtype),
            plain_attributes(name, variable.attrs),
        )
    if COORDINATES in dataset.attrs:
        raise ValueError(
            f"`dataset` must not have the attribute {COORDINATES!r}, in which stores keep what "
            "variables are coordinates; rename it."
        )
    coordinates = {COORDINATES: " ".join(map(str, dataset.coords))}
    return plain_attributes("dataset", dataset.attrs) | coordinates, arrays


def encoded_array(values: np.ndarray, dims: tuple[str, ...], attributes: dict) -> tuple:
    """An array with its dimensions, as `create_arrays` takes it."""
    return dims, values, fill_of(values.dtype), attributes


def as_text(values: np.ndarray) -> np.ndarray:
    """Text of fixed length, as axes of a sweep are, from text of any kind."""
    return values.astype(object).astype(str)


def fill_of(dtype: np.dtype) -> Any:
    """What an array reads as where nothing was written: no outcome, and no measured number."""
    if dtype.kind in "fc":
        return dtype.type(np.nan if dtype.kind == "f" else complex(np.nan, np.nan))
    if dtype.kind == "u":
        return np.iinfo(dtype).max
    return {"i": -1, "b": False, "U": ""}[dtype.kind]


def plain_attributes(name: str, attributes: Any) -> dict[str, Any]:
    """Attributes as JSON has them."""

    def convert(value: Any) -> Any:
        if isinstance(value, (np.ndarray, np.generic)):
            return value.tolist()
        raise TypeError

    try:
        return json.loads(json.dumps(attributes, default=convert))
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`dataset` must have attributes that JSON knows, got {shown(attributes)} of {name!r}; "
            "convert them to text or numbers."
        ) from error


class _Quiet:
    """Without Zarr's warnings that text and consolidated metadata are extensions of its format.

    Threads may overlap: `warnings.catch_warnings` would restore for one what another still needs.
    """

    def __init__(self) -> None:
        self.lock, self.users, self.entry = threading.Lock(), 0, None

    def __enter__(self) -> None:
        with self.lock:
            self.users += 1
            # Filters that were set since, as tests do, come before ours.
            if self.entry is None or self.entry not in warnings.filters:
                message = ".* not part in the Zarr format 3 specification"
                warnings.filterwarnings("ignore", message=message)
                self.entry = warnings.filters[0]

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.users -= 1
            if self.users == 0 and self.entry in warnings.filters:
                # The list that `warnings.catch_warnings` and others share.
                cast(list, warnings.filters).remove(self.entry)


QUIET = _Quiet()


def create_arrays(
    folder: Path,
    attributes: dict[str, Any],
    arrays: dict[str, tuple],
    growing: Mapping[str, Any],
) -> None:
    """Write a group: arrays with their values, and others without, whose chunks come later."""
    import zarr  # slow to import
    from zarr.codecs import Crc32cCodec, ZstdCodec

    common: dict[str, Any] = {
        "compressors": (ZstdCodec(), Crc32cCodec()),
        # A chunk that is missing is then one that was never written.
        "config": {"write_empty_chunks": True},
    }
    with QUIET:
        group = zarr.create_group(folder, zarr_format=3, attributes=attributes)
        for name, (dims, values, fill, own) in arrays.items():
            array = group.create_array(
                name,
                shape=values.shape,
                dtype=str if values.dtype.kind == "U" else values.dtype,
                chunks=tuple(max(1, size) for size in values.shape),
                fill_value=fill,
                dimension_names=dims,
                attributes=own,
                **common,
            )
            array[...] = values
        for name, (dims, variable, own) in growing.items():
            group.create_array(
                name,
                shape=variable.shape,
                dtype=variable.dtype,
                chunks=variable.chunk,
                fill_value=fill_of(variable.dtype),
                dimension_names=dims,
                attributes=own,
                # All chunks of an array are in one folder, which is synced at once.
                chunk_key_encoding={"name": "default", "separator": "."},
                **common,
            )
        # So that nobody has to look for arrays among the files, and meets the list.
        zarr.consolidate_metadata(folder)


def _decoded(files: dict[str, bytes]) -> "xr.Dataset":
    import zarr  # slow to import
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    files = {key: data for key, data in files.items() if key != IDENTITY}
    for key, data in files.items():
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no part of a Zarr store of format 3")
        if key.endswith("zarr.json"):
            metadata = json.loads(data)
            for codec in _codecs(metadata):
                if codec not in _CODECS:
                    raise ValueError(
                        f"{key!r} asks for the codec {shown(codec)}, and only "
                        f"{', '.join(_CODECS)} are allowed"
                    )
    buffer = default_buffer_prototype().buffer.from_bytes
    # From what was checked, and not from the files, which may be others by now.
    store = MemoryStore({key: buffer(data) for key, data in files.items()}, read_only=True)
    with QUIET:
        group = zarr.open_group(store, mode="r", zarr_format=3)
        variables = {}
        for name, array in group.arrays():
            values = np.asarray(array[...])
            values = as_text(values) if values.dtype.kind in "OT" else values
            dims: Any = getattr(array.metadata, "dimension_names", None)
            variables[name] = (dims or (), values, array.attrs.asdict())
    attributes = group.attrs.asdict()
    coordinates = str(attributes.pop(COORDINATES)).split()
    return xr.Dataset(variables, attrs=attributes).set_coords(coordinates)


def _codecs(metadata: Any) -> Iterator[Any]:
    """The names of all codecs, filters and compressors anywhere in the metadata of a store."""
    if isinstance(metadata, list):
        for each in metadata:
            yield from _codecs(each)
    elif isinstance(metadata, dict):
        for key, value in metadata.items():
            if key in ("codecs", "filters", "compressor", "storage_transformers"):
                for codec in value if isinstance(value, list) else [value]:
                    yield codec.get("name", codec.get("id")) if isinstance(codec, dict) else codec
            if key != "attributes":
                yield from _codecs(value)
