"""Specifications: dataclasses whose fields a TOML file may give."""

import dataclasses
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .._checks import (
    as_existing_file,
    as_list,
    as_number,
    as_path,
    as_seed,
    check_choice,
    check_flag,
    check_instance,
    said,
    shown,
    unknown_name,
)

# No specification is longer, in bytes.
_LARGEST = 2**20


def read_toml(path: str | Path, kind: type, name: str = "path") -> dict[str, Any]:
    """The keys of a TOML file, all of which are fields of the dataclass `kind`."""
    path = as_existing_file(name, path)
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise type(error)(
            f"`{name}` must be a file that can be read, got {shown(str(path))}: {error.strerror}."
        ) from error
    if len(content) > _LARGEST:
        raise ValueError(
            f"`{name}` must be a TOML file of at most {_LARGEST} bytes, got {shown(str(path))}; "
            "shorten it."
        )
    try:
        given = tomllib.loads(content.decode())
    except (ValueError, RecursionError) as error:
        # Integers with too many digits and tables in tables without end are no `TOMLDecodeError`.
        raise ValueError(
            f"`{name}` must be a TOML file, got {shown(str(path))}: {said(error)}"
        ) from error
    check_keys(name, given, kind, shown(str(path)))
    return given


def check_keys(name: str, given: Mapping[str, Any], kind: type, where: str) -> None:
    """Refuse keys that are no fields of the dataclass `kind`."""
    known = [field.name for field in dataclasses.fields(kind)]
    for key in given:
        if key not in known:
            raise ValueError(
                f"`{name}` must have known keys, got {shown(key)} in {where}; "
                f"{unknown_name(key, known)}"
            )


def checked(kind: type, name: str, value: Any) -> Any:
    """The value in the type of the field `name` of the dataclass `kind`: what TOML and callers
    may pass is looser."""
    return _as(name, typing.get_type_hints(kind)[name], value)


def _as(name: str, kind: Any, value: Any) -> Any:
    options = typing.get_args(kind)
    if type(None) in options:
        if value is None:
            return None
        (kind,) = (option for option in options if option is not type(None))
        options = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        value = tuple(_as(name, options[0], entry) for entry in as_list(name, value, "values"))
        if options[-1] is not Ellipsis and len(value) != len(options):
            raise ValueError(
                f"`{name}` must have {len(options)} values, got {shown(value)}; pass so many."
            )
        return value
    if typing.get_origin(kind) is Literal:
        check_choice(name, value, options)
        return value
    if kind is Path:
        return as_path(name, value)
    if kind is bool:
        return check_flag(name, value)
    if kind is str:
        check_instance(name, value, str, "text", "put it in quotes")
        return value
    if kind is int:
        # Whole numbers with a decimal point are integers to those who write them.
        whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
        return as_seed(name, int(value) if whole else value)
    as_number(name, value)
    return float(value)
