"""What functions of memjax were given, and what they returned, against their annotations.

With `MEMJAX_CHECK_SHAPES=1` in the environment, `conftest.py` has jaxtyping's import hook put this
around everything in memjax. Wrong input is to be refused by memjax itself, so arguments are looked
at when a call has returned: what it took must be what it says that it takes.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_args, get_origin, Self

import beartype
import jax.numpy as jnp
import numpy as np
from equinox._tree import _LeafWrapper

_beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    signature = inspect.signature(function)
    annotations = [p.annotation for p in signature.parameters.values()]
    # jaxtyping's check of a call before it is made; and what only a whole class could be asked.
    passed = signature.return_annotation in (Any, Self)
    if passed or not any(map(_has_shape, [*annotations, signature.return_annotation])):
        return function
    check = _beartype(function)
    lists = {
        name: p.annotation
        for name, p in signature.parameters.items()
        if any(map(_takes_lists, _options(p.annotation)))
    }

    @functools.wraps(function)
    def check_as_arrays(*args: Any, **kwargs: Any) -> Any:
        # The call itself has been made: this hands on what it returned. Where
        # `equinox.tree_at` looks for a leaf, it has put a placeholder there.
        returned = function(*args, **kwargs)
        if isinstance(returned, _LeafWrapper):
            return returned
        bound = signature.bind(*args, **kwargs)
        for name in lists.keys() & bound.arguments.keys():
            bound.arguments[name] = _as_arrays(bound.arguments[name], lists[name])
        return check(*bound.args, **bound.kwargs)

    return check_as_arrays


def _options(annotation: Any) -> Iterator[Any]:
    yield annotation
    # What a function takes and returns, it shows when it is called.
    if get_origin(annotation) is not Callable:
        for option in get_args(annotation):
            yield from _options(option)


def _has_shape(annotation: Any) -> bool:
    return any(hasattr(option, "dim_str") for option in _options(annotation))


def _takes_lists(annotation: Any) -> bool:
    """Whether it is of `memjax._typing.ArrayLike`, which has NumPy's arrays in it."""
    options = get_args(annotation) or (annotation,)
    return any(getattr(option, "array_type", None) is np.ndarray for option in options)


def _as_arrays(value: Any, annotation: Any) -> Any:
    """`value` with arrays for lists of numbers, also for those in a tuple."""
    if isinstance(value, (list, tuple)) and _takes_lists(annotation):
        return jnp.asarray(value)
    for option in (annotation, *get_args(annotation)):
        parts = get_args(option)
        if isinstance(value, tuple) and get_origin(option) is tuple and len(parts) == len(value):
            return tuple(map(_as_arrays, value, parts))
    return value
