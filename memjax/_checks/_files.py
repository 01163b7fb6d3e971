"""These checks are for paths, and for files that must be there."""

import os
from pathlib import Path
from typing import Any

from ._messages import shown


def as_path(name: str, value: Any) -> Path:
    """`value` as a path."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"`{name}` must be a path, got {shown(value)}; pass text or a Path.")
    if not os.fspath(value) or "\0" in os.fspath(value):
        raise ValueError(f"`{name}` must be a path, got {shown(value)}; name a file or folder.")
    return Path(value)


def as_existing_file(name: str, value: Any) -> Path:
    """`value` as the path of a file that is there."""
    path = as_path(name, value)
    try:
        if path.is_dir():
            raise IsADirectoryError(
                f"`{name}` must be a file, got the folder {str(path)!r}; name a file in it."
            )
        if not path.exists():
            raise FileNotFoundError(
                f"`{name}` must be a file that exists, got {str(path)!r}; check the name."
            )
    except OSError as error:
        if isinstance(error, (FileNotFoundError, IsADirectoryError)):
            raise
        # A name that is too long, a folder that may not be entered.
        raise type(error)(
            f"`{name}` must be a file that can be read, got {shown(str(path))}: {error.strerror}."
        ) from error
    return path
