"""Published results, measured again: what is said, what is found, and whether they agree."""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from .._checks import check_flag, check_instance, shown, unknown_name
from .._deprecation import old_arguments
from .._lazy import xr
from ._base import num_failed as num_failed
from ._base import Reproduction as Reproduction
from ._base import Verdict as Verdict


def _find_reproductions() -> Iterator[Reproduction]:
    """Those of the modules of this folder, each under the name `REPRODUCTION`."""
    for module in pkgutil.iter_modules(__path__):
        names = vars(importlib.import_module(f".{module.name}", __name__))
        if "REPRODUCTION" in names:
            yield names["REPRODUCTION"]


REPRODUCTIONS: Mapping[str, Reproduction] = MappingProxyType(
    {reproduction.name: reproduction for reproduction in _find_reproductions()}
)
"""The reproductions by their names."""


def find_reproduction(name: str) -> Reproduction:
    """The reproduction of that name.

    **Raises:**

    `ValueError` if there is none.
    """
    check_instance("name", name, str, "the name of a reproduction", "pass text")
    if name in REPRODUCTIONS:
        return REPRODUCTIONS[name]
    hint = unknown_name(name, list(REPRODUCTIONS))
    raise ValueError(f"`name` must be that of a reproduction, got {shown(name)}; {hint}")


def check_options(reproduction: Reproduction, options: Mapping[str, Any]) -> None:
    """Refuse options that the measurement of a reproduction does not have."""
    known = list(inspect.signature(reproduction.run).parameters)[1:]
    for option, value in options.items():
        if option not in (*known, *old_arguments(reproduction.run)):
            raise TypeError(
                f"`{option}` must be an option of {reproduction.name!r}, got {shown(value)} for "
                f"it; {unknown_name(option, known)}"
            )


def reproduce(
    name: str, *, progress: bool = True, **options: Any
) -> "tuple[xr.Dataset, list[Verdict]]":
    """Measure a published result again.

    **Arguments:**

    - `name`: one of the names in `memjax.REPRODUCTIONS`.
    - `progress`: whether to show a progress bar.
    - `options`: passed on to the measurement, to make it smaller: `memories`, `flows`,
        `widths`, `seeds`, `updates`, ...

    **Returns:**

    The dataset, and a [`memjax.Verdict`][] for each published statement.

    **Raises:**

    `ValueError` if there is no reproduction of that name, or for a wrong value of an option,
    `TypeError` for an option that it does not have.
    """
    check_flag("progress", progress)
    reproduction = find_reproduction(name)
    check_options(reproduction, options)
    dataset = reproduction.run(progress, **options)
    return dataset, reproduction.check(dataset)
