"""What functions of memjax were given, and what they returned, against their annotations.

With `MEMJAX_CHECK_SHAPES=1` in the environment, `conftest.py` has jaxtyping's import hook put this
around everything in memjax. Wrong input is to
be refused by memjax itself, so arguments are looked at when a call has returned: what it took must
be what it says that it takes.
"""

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, get_args, Self

import beartype
import jax.numpy as jnp
import numpy as np

_beartype = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))


def checked(function: Callable) -> Callable:
    signature = inspect.signature(function)
    annotations = [p.annotation for p in signature.parameters.values()]
    # jaxtyping's check of a call before it is made; and what only a whole class could be asked.
    passed = signature.return_annotation in (Any, Self)
    if passed or not any(map(_has_shape, [*annotations, signature.return_annotation])):
        return function
    check = _beartype(function)
    lists = [name for name, p in signature.parameters.items() if _takes_lists(p.annotation)]
    if not lists:
        return check

    @functools.wraps(function)
    def check_as_arrays(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name in lists:
            if isinstance(bound.arguments.get(name), (list, tuple)):
                bound.arguments[name] = jnp.asarray(bound.arguments[name])
        return check(*bound.args, **bound.kwargs)

    return check_as_arrays


def _options(annotation: Any) -> Iterator[Any]:
    yield annotation
    for option in get_args(annotation):
        yield from _options(option)


def _has_shape(annotation: Any) -> bool:
    return any(hasattr(option, "dim_str") for option in _options(annotation))


def _takes_lists(annotation: Any) -> bool:
    """Whether it is of `memjax._typing.ArrayLike`, which has NumPy's arrays in it."""
    options = get_args(annotation) or (annotation,)
    return any(getattr(option, "array_type", None) is np.ndarray for option in options)
