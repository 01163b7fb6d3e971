"""Old names that keep working for one release, each with a `DeprecationWarning`."""

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Where a function keeps the old names of its arguments.
_RENAMED = "__memjax_renamed__"


def warn_deprecated(old: str, new: str, stacklevel: int = 3) -> None:
    """Say that `old` is deprecated, and what to write instead. `stacklevel` is that of
    `warnings.warn`: the caller's caller by default."""
    warnings.warn(
        f"{old} is deprecated and goes away in the next release; write {new}",
        DeprecationWarning,
        stacklevel=stacklevel,
    )


def renamed_arguments(**renamed: str) -> Callable[[_Function], _Function]:
    """A decorator: keyword arguments `old="new"` are taken under their old names too.

    Passing both names is a `TypeError`, as it is for an argument that is given twice.
    """

    def decorate(function: _Function) -> _Function:
        owner = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def accept(*args: Any, **kwargs: Any) -> Any:
            for old in renamed.keys() & kwargs.keys():
                new = renamed[old]
                if new in kwargs:
                    raise TypeError(f"{owner}() got `{new}` and its old name `{old}`; pass `{new}`")
                warn_deprecated(f"the argument `{old}` of {owner}", f"`{new}`")
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        setattr(accept, _RENAMED, renamed)
        return accept  # pyright: ignore[reportReturnType]

    return decorate


def old_arguments(function: Callable[..., Any]) -> list[str]:
    """The old names of arguments that a function still takes."""
    return list(getattr(function, _RENAMED, {}))


def renamed_attribute(old: str, new: str) -> Any:
    """A property that reads the attribute `new` under its old name."""

    def read(self: Any) -> Any:
        warn_deprecated(f"{type(self).__name__}.{old}", f"`.{new}`")
        return getattr(self, new)

    read.__doc__ = f"Deprecated: the old name of `{new}`."
    return property(read)


def moved_arguments(into: str, make: Callable[..., Any]) -> Callable[[_Function], _Function]:
    """A decorator: the arguments of `make` are taken as keywords too, and made into the argument
    `into`, which now holds them."""
    moved = inspect.signature(make).parameters.keys()

    def decorate(function: _Function) -> _Function:
        name = function.__qualname__

        @functools.wraps(function)
        def accept(*args: Any, **kwargs: Any) -> Any:
            old = {key: kwargs.pop(key) for key in moved & kwargs.keys()}
            if old and kwargs.get(into) is not None:
                raise TypeError(f"{name}() got `{into}` and `{next(iter(old))}`; pass `{into}`")
            if old:
                given = ", ".join(f"{key}=..." for key in sorted(old))
                owner = f"the arguments {given} of {name}" if len(old) > 1 else f"{given} of {name}"
                warn_deprecated(owner, f"`{into}={make.__name__}({given})`")
                kwargs[into] = make(**old)
            return function(*args, **kwargs)

        return accept  # pyright: ignore[reportReturnType]

    return decorate


def keyword_key(position: int) -> Callable[[_Function], _Function]:
    """A decorator: the PRNG key, which is a keyword now, is taken at its old `position` too."""

    def decorate(function: _Function) -> _Function:
        name = function.__qualname__.removesuffix(".__init__")

        @functools.wraps(function)
        def accept(*args: Any, **kwargs: Any) -> Any:
            value = args[position] if len(args) > position else None
            dtype = getattr(value, "dtype", None)
            keys = dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key)
            if "key" not in kwargs and (keys or dtype == jnp.uint32):
                warn_deprecated(f"a positional key of {name}", "`key=...`")
                kwargs["key"] = value
                args = (*args[:position], *args[position + 1 :])
            return function(*args, **kwargs)

        return accept  # pyright: ignore[reportReturnType]

    return decorate
