"""What a function of a user's computes, as digests that two processes can compare.

A function is known by its code, without names of files and line numbers, its defaults, what it
closes over and the values of the global names in it; functions and classes of its own package are
followed. Values are known by their contents; what has none that can be seen, by its type.
"""

import dataclasses
import functools
import hashlib
import json
import types
from collections.abc import Iterator, Mapping, Set
from enum import Enum
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# What was met, by its address: in which place, and itself, so that nothing else gets its address.
Seen = dict[int, tuple[int, Any]]
# Beyond this depth of values in values nothing is looked at.
_DEEPEST = 12


def fingerprint(function: Any) -> dict[str, str]:
    """Digests of the parts of a function, by words that say which part it is."""
    seen: Seen = {}
    inner = _unwrapped(function)
    # What memjax computes is known by its version.
    root = _root(inner) if _root(inner) != "memjax" else ""
    if not isinstance(inner, types.FunctionType):
        parts = {"its value": _value(inner, root, seen, 0)}
    else:
        seen[id(inner)] = 0, inner
        parts = {"its code": _code(inner.__code__)}
        for name, value in _reach(inner):
            parts[f"the value of {name!r}"] = _value(value, root, seen, 1)
    return {word: _digest(part) for word, part in parts.items()}


def _digest(part: Any) -> str:
    return hashlib.sha256(json.dumps(part, sort_keys=True).encode()).hexdigest()[:16]


def _root(value: Any) -> str:
    """The package that a function or the type of a value is from."""
    kind = value if hasattr(value, "__qualname__") else type(value)
    return str(getattr(kind, "__module__", "")).partition(".")[0]


def _unwrapped(value: Any) -> Any:
    """A function without `jit` and the like around it."""
    for _ in range(_DEEPEST):
        if isinstance(value, types.FunctionType) or not hasattr(value, "__wrapped__"):
            return value
        value = value.__wrapped__
    return value


def _reach(function: types.FunctionType) -> Iterator[tuple[str, Any]]:
    """The names that a function may read besides its arguments, with their values."""
    yield "its defaults", (function.__defaults__, function.__kwdefaults__)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            yield name, cell.cell_contents
        except ValueError:  # not set yet
            yield name, None
    for name in sorted(_names(function.__code__)):
        if name in function.__globals__:
            yield name, function.__globals__[name]


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _code(code: types.CodeType) -> list[Any]:
    """The code of a function, wherever it stands."""
    constants = []
    for k, constant in enumerate(code.co_consts):
        if isinstance(constant, types.CodeType):
            constants.append(_code(constant))
        elif isinstance(constant, frozenset):
            constants.append(sorted(map(repr, constant)))
        elif k == 0 and isinstance(constant, str) and code.co_name[0] != "<":
            constants.append("its documentation")
        else:
            constants.append(repr(constant))
    return [code.co_code.hex(), constants, list(code.co_names), list(code.co_varnames)]


def _value(value: Any, root: str, seen: Seen, depth: int) -> Any:
    """The contents of a value as JSON has them."""
    if value is None or isinstance(value, (bool, int, str)):
        return [type(value).__name__, str(value)]
    if isinstance(value, (float, complex, bytes)):
        return [type(value).__name__, repr(value)]
    if isinstance(value, (np.ndarray, np.generic, jax.Array)):
        return _array(value)
    if isinstance(value, Enum):
        return [type(value).__qualname__, value.name]
    if isinstance(value, types.ModuleType):
        return ["module", value.__name__]
    if depth > _DEEPEST:
        return type(value).__qualname__
    if id(value) in seen:
        return ["seen", seen[id(value)][0]]
    seen[id(value)] = len(seen), value
    inside = functools.partial(_value, root=root, seen=seen, depth=depth + 1)
    if isinstance(value, Mapping):
        return ["mapping", [[inside(key), inside(item)] for key, item in value.items()]]
    if isinstance(value, Set):
        return ["set", sorted(json.dumps(inside(item)) for item in value)]
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, [inside(item) for item in value]]
    return _thing(_unwrapped(value), root, seen, depth)


def _thing(value: Any, root: str, seen: Seen, depth: int) -> Any:
    """A function, class or object."""
    inside = functools.partial(_value, root=root, seen=seen, depth=depth + 1)
    kind = value if isinstance(value, (type, types.FunctionType)) else type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    own = _root(kind) == root
    if isinstance(value, types.FunctionType):
        if not own:
            return ["function", name]
        return ["function", _code(value.__code__), [[n, inside(v)] for n, v in _reach(value)]]
    if isinstance(value, type):
        if not own:
            return ["class", name]
        members = {n: _bare(member) for n, member in vars(value).items()}
        return ["class", name, [[n, inside(m)] for n, m in sorted(members.items()) if callable(m)]]
    if isinstance(value, functools.partial):
        return ["partial", inside(value.func), inside(value.args), inside(value.keywords)]
    if isinstance(value, types.MethodType):
        return ["method", inside(value.__func__), inside(value.__self__)]
    parts: list[Any] = [name, inside(kind)] if own else [name]
    if dataclasses.is_dataclass(value):
        fields = [field.name for field in dataclasses.fields(value)]
        parts.append([[n, inside(getattr(value, n, None))] for n in fields])
    elif isinstance(getattr(value, "__dict__", None), dict):
        parts.append([[n, inside(item)] for n, item in sorted(vars(value).items())])
    return parts


def _bare(member: Any) -> Any:
    """The function of a member of a class."""
    if isinstance(member, property):
        return member.fget
    return member.__func__ if isinstance(member, (staticmethod, classmethod)) else member


def _array(value: Any) -> list[Any]:
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        value = jax.random.key_data(value)
    array = np.asarray(value)
    if array.dtype.hasobject:
        return ["array", str(array.dtype), list(array.shape), repr(array.tolist())]
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
    return ["array", str(array.dtype), list(array.shape), digest]
