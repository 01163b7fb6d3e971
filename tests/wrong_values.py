"""Wrong values of every kind, and which of them a parameter's annotation allows."""

import collections.abc
import inspect
import math
import os
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import xarray as xr

# One value of every kind that a caller may pass by mistake, made anew for every call.
VALUES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "text": lambda: "text",
    "empty text": lambda: "",
    "bytes": lambda: b"text",
    "object": lambda: object(),
    "dictionary": lambda: {"a": 1},
    "set": lambda: {1, 2},
    "class": lambda: int,
    "function": lambda: lambda *args: args,
    "module": lambda: math,
    "True": lambda: True,
    "0": lambda: 0,
    "0.0": lambda: 0.0,
    "3": lambda: 3,
    "1.5": lambda: 1.5,
    "-1": lambda: -1,
    "-1.5": lambda: -1.5,
    "10**30": lambda: 10**30,
    "10**400": lambda: 10**400,
    "NaN": lambda: math.nan,
    "infinity": lambda: math.inf,
    "complex": lambda: 1.5 + 1j,
    "empty list": lambda: [],
    "numbers": lambda: [1.0, 2.0],
    "ragged list": lambda: [[1.0], [1.0, 2.0]],
    "names": lambda: ["a", "b"],
    "Nones": lambda: [None, None],
    "lists of names": lambda: [["a"]],
    "many axes": lambda: np.ones((2,) * 7),
    "objects": lambda: np.array([object(), object()]),
    "dates": lambda: np.array(["2020-01-01"], "datetime64[D]"),
    "key": lambda: jax.random.key(0),
    "keys": lambda: jax.random.split(jax.random.key(0), 3),
    "dataset": lambda: xr.Dataset(),
}

ZERO = frozenset({"0", "0.0"})
SIGNED = ZERO | {"-1", "-1.5", "negated"}
NUMBERS = frozenset({"3", "1.5", "10**30"})
SCALARS = NUMBERS | SIGNED | {"True", "complex"}

# What each kind of parameter allows, or what depends on the others; all else must be refused.
KINDS: dict[str, frozenset[str]] = {
    "none": frozenset({"None"}),
    "number": NUMBERS,
    "array": NUMBERS | ZERO | {"-1", "-1.5", "numbers"},
    "any shape": frozenset({"many axes", "empty list"}),
    "count": frozenset({"3"}),
    "flag": frozenset({"True"}),
    "choice": frozenset(),
    "name": frozenset({"text"}),
    "key": frozenset({"key"}),
    "function": frozenset({"function"}),
    "instance": frozenset(),
    "list": frozenset(),
    "numbers": frozenset({"numbers"}),
    "mapping": frozenset({"dictionary"}),
    "dataset": frozenset(),
    "path": frozenset({"text"}),
    "anything": frozenset(VALUES) | {"with NaN", "with infinity", "with text", "negated"},
}


def kinds_of(annotation: Any) -> Iterator[str]:
    """The kinds that an annotation allows."""
    origin, options = typing.get_origin(annotation), typing.get_args(annotation)
    if origin in (typing.Union, types.UnionType):
        for option in options:
            yield from kinds_of(option)
    elif annotation in (None, type(None)):
        yield "none"
    elif origin is Literal:
        yield from ("none" for option in options if option is None)
        yield "choice"
    elif hasattr(annotation, "dim_str"):  # of jaxtyping
        if annotation.dtypes in (("prng_key",), ("uint32",)):
            yield "key"
        else:
            dims = annotation.dim_str.split()
            yield "array" if dims else "number"
            if len(dims) == 1 and dims[0][0] in ".*":
                yield "any shape"
    elif annotation in (float, int, bool, str):
        yield {float: "number", int: "count", bool: "flag", str: "name"}[annotation]
    elif origin is collections.abc.Callable or annotation is collections.abc.Callable:
        yield "function"
    elif origin in (tuple, list, collections.abc.Sequence):
        yield "list"
        if {float, int} & set(options):
            yield "numbers"
    elif origin in (dict, collections.abc.Mapping):
        yield "mapping"
    elif annotation is xr.Dataset:
        yield "dataset"
    elif annotation is Path or origin is os.PathLike:
        yield "path"
    elif annotation in (np.number, complex, np.bool_, np.bool):
        return
    elif annotation in (jax.Array, np.ndarray):
        yield "array"
    elif inspect.isclass(annotation) or isinstance(annotation, TypeVar):
        yield "instance"
    else:
        raise TypeError(f"no kind is known for {annotation!r}")


def wrong_values(kinds: set[str], valid: Any, allowed: frozenset[str]) -> Iterator[tuple[str, Any]]:
    """Labelled values that a parameter of these kinds must refuse."""
    allowed = allowed.union(*(KINDS[kind] for kind in kinds))
    for label, make in VALUES.items():
        if label not in allowed:
            yield label, make()
    if "array" not in kinds or callable(valid) or valid is None:
        return
    array = np.asarray(valid)
    if array.ndim == 0 or array.dtype.kind not in "fic":
        return
    for label, entry in (("with NaN", math.nan), ("with infinity", math.inf)):
        spoilt = np.array(array, complex if array.dtype.kind == "c" else float)
        spoilt.flat[-1] = entry
        if label not in allowed:
            yield label, jnp.asarray(spoilt)
    if "made complex" not in allowed:
        yield "made complex", array + 1j
    if "with text" not in allowed:
        yield "with text", array.astype(str).tolist()
    if "negated" not in allowed:
        yield "negated", -array
