"""Old names that keep working for one release, each with a `DeprecationWarning`."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, TypeVar

_Function = TypeVar("_Function", bound=Callable[..., Any])


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

        return accept  # pyright: ignore[reportReturnType]

    return decorate


def renamed_attribute(old: str, new: str) -> Any:
    """A property that reads the attribute `new` under its old name."""

    def read(self: Any) -> Any:
        warn_deprecated(f"{type(self).__name__}.{old}", f"`.{new}`")
        return getattr(self, new)

    read.__doc__ = f"Deprecated: the old name of `{new}`."
    return property(read)
