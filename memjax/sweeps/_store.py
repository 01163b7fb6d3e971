import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xarray as xr


def check_output(path: str | Path, overwrite: bool = False) -> Path:
    """Refuse, before any work is done, an output that could not be written.

    **Arguments:**

    - `path`: the file or folder to be written.
    - `overwrite`: whether it may replace what is there.

    **Returns:**

    The path.

    **Raises:**

    `FileExistsError` if it exists and may not be replaced, `PermissionError` or
    `NotADirectoryError` if it cannot be created.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise FileExistsError(
            f"output {str(path)!r} exists already; choose another name, or overwrite it "
            "(`overwrite=True`, `--overwrite`)."
        )
    folder = path.parent
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(
            f"output {str(path)!r} cannot be written since {str(folder)!r} is a file; choose "
            "another name."
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(
            f"output {str(path)!r} cannot be written: no permission for {str(folder)!r}; choose "
            "another folder."
        )
    return path


@contextmanager
def replacing(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """A path to write to, which takes the name `path` only once it is whole.

    If the body raises, what it wrote is removed and what was at `path` stays.
    """
    path = check_output(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield partial
        if path.exists():
            old = partial.with_suffix(".old")
            path.rename(old)
            partial.rename(path)
            _remove(old)
        else:
            partial.rename(path)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def save_dataset(dataset: xr.Dataset, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write the dataset of a sweep to a Zarr store, all or nothing.

    **Arguments:**

    - `dataset`: the dataset.
    - `path`: the folder of the store.
    - `overwrite`: whether a store of that name may be replaced.

    **Returns:**

    The path.

    **Raises:**

    `FileExistsError`, `PermissionError` or `NotADirectoryError` if the output cannot be
    written.
    """
    with replacing(path, overwrite) as partial:
        # Format 2: it has a specification for fixed-length text, which axes of names are.
        dataset.to_zarr(partial, mode="w-", zarr_format=2, consolidated=True)
    return Path(path)


def load_dataset(path: str | Path) -> xr.Dataset:
    """Read the dataset of a sweep into memory.

    **Arguments:**

    - `path`: the folder of a Zarr store, or that of a run of `memjax sweep`.

    **Returns:**

    The dataset, equal to the one that was saved.

    **Raises:**

    `FileNotFoundError` if there is no such store, `ValueError` if it is not a dataset.
    """
    path = Path(path)
    if (path / "plateaus.zarr").is_dir():
        path = path / "plateaus.zarr"
    if not path.is_dir():
        raise FileNotFoundError(
            f"dataset {str(path)!r} does not exist; pass the folder that `memjax sweep` wrote."
        )
    try:
        with xr.open_zarr(path, consolidated=None) as dataset:
            return dataset.load()
    except Exception as error:
        raise ValueError(
            f"dataset {str(path)!r} cannot be read as Zarr ({error}); pass the folder that "
            "`memjax sweep` wrote."
        ) from error
