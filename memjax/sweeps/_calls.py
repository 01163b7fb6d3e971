"""Programs that are compiled once and called many times, by several threads."""

import threading
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax

from ..numerics import compiled, Effort

# The first to call a program compiles it, the others wait for it.
_COMPILING: dict[Any, threading.Lock] = {}
_COMPILED: dict[Any, "Call"] = {}
_UNDER_WAY: set[Any] = set()


def is_compiling() -> bool:
    """Whether something is being compiled in this process."""
    return len(_UNDER_WAY) > 0


class Call:
    """A function for arguments of one structure, of which only arrays may change.

    Equinox's `filter_jit` takes apart all arguments and results in every call. A batch of lanes has
    some fifty modules, and that was a tenth of a sweep of narrow models (measured). Lists are taken
    apart by hand below: `eqx.partition` and `eqx.combine` of them cost half of what is saved.

    **Arguments:**

    - `function`, `effort`: as those of `compiled`.
    - `arguments`: some of its arguments.
    """

    def __init__(self, function: Callable, effort: Effort, arguments: tuple) -> None:
        leaves, structure = jax.tree.flatten(arguments)
        self._varies = [eqx.is_array(leaf) for leaf in leaves]
        fixed = [None if eqx.is_array(leaf) else leaf for leaf in leaves]
        # The structure of the result and what of it is no array, once it was traced.
        self._result: tuple[Any, list[Any]] = None, []

        def flat(arrays: list[jax.Array]) -> list[jax.Array]:
            given = iter(arrays)
            leaves = [next(given) if v else f for v, f in zip(self._varies, fixed, strict=True)]
            result = function(*jax.tree.unflatten(structure, leaves))
            out, result_structure = jax.tree.flatten(result)
            fixed_out = [None if eqx.is_array(leaf) else leaf for leaf in out]
            self._result = result_structure, fixed_out
            return [leaf for leaf in out if eqx.is_array(leaf)]

        # The name that logs of compilations and profiles show.
        flat.__name__ = flat.__qualname__ = function.__name__
        self._flat = compiled(flat, effort)

    def __call__(self, *arguments: Any) -> Any:
        leaves = jax.tree.leaves(arguments)
        arrays = [leaf for leaf, varies in zip(leaves, self._varies, strict=True) if varies]
        found = iter(self._flat(arrays))
        structure, fixed = self._result
        leaves = [next(found) if leaf is None else leaf for leaf in fixed]
        return jax.tree.unflatten(structure, leaves)


def first_call(
    function: Callable, effort: Effort, device: Any, arguments: tuple
) -> tuple[Call, Any]:
    """The call of a function by arguments of this structure on a device, and its first result.

    Those of the same structure share it.
    """
    leaves, structure = jax.tree.flatten(arguments)
    kinds = [(leaf.shape, leaf.dtype) if eqx.is_array(leaf) else leaf for leaf in leaves]
    key = function, effort, device, structure, tuple(kinds)
    with _COMPILING.setdefault(key, threading.Lock()):
        if key not in _COMPILED:
            call = Call(function, effort, arguments)
            _UNDER_WAY.add(key)
            try:
                out = call(*arguments)
            finally:
                _UNDER_WAY.discard(key)
            _COMPILED[key] = call
            return call, out
    return _COMPILED[key], _COMPILED[key](*arguments)
