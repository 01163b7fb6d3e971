"""Published results, measured again: what is said, what is found, and whether they agree."""

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import xarray as xr

from ._base import num_failed as num_failed
from ._base import Reproduction as Reproduction
from ._base import Verdict as Verdict
from ._digits import DIGITS_STABILITY
from ._l21_approximation import L21_APPROXIMATION
from ._l21_training import L21_TRAINING
from ._memory_architectures import MEMORY_ARCHITECTURES
from ._plateau_flows import PLATEAU_FLOWS
from ._plateau_width import PLATEAU_WIDTH
from ._s24_reparametrisation import S24_REPARAMETRISATIONS
from ._w24_perturbation import W24_PERTURBATION

REPRODUCTIONS: Mapping[str, Reproduction] = MappingProxyType(
    {
        item.name: item
        for item in (
            PLATEAU_FLOWS,
            PLATEAU_WIDTH,
            L21_TRAINING,
            L21_APPROXIMATION,
            W24_PERTURBATION,
            MEMORY_ARCHITECTURES,
            S24_REPARAMETRISATIONS,
            DIGITS_STABILITY,
        )
    }
)
"""The reproductions by their names."""


def find_reproduction(name: str) -> Reproduction:
    """The reproduction of that name.

    **Raises:**

    `ValueError` if there is none.
    """
    if name in REPRODUCTIONS:
        return REPRODUCTIONS[name]
    close = difflib.get_close_matches(name, REPRODUCTIONS, 1)
    hint = f"did you mean {close[0]!r}? They" if close else "they"
    raise ValueError(f"no reproduction is named {name!r}; {hint} are {', '.join(REPRODUCTIONS)}.")


def reproduce(
    name: str, *, progress: bool = True, **options: Any
) -> tuple[xr.Dataset, list[Verdict]]:
    """Measure a published result again.

    **Arguments:**

    - `name`: one of the names in `memjax.REPRODUCTIONS`.
    - `progress`: whether to show a progress bar.
    - `options`: passed on to the measurement, to make it smaller: `memories`, `flows`,
        `widths`, `seeds`, `updates`, ...

    **Returns:**

    The dataset, and a [`memjax.Verdict`][] for each published statement.

    **Raises:**

    `ValueError` if there is no reproduction of that name.
    """
    reproduction = find_reproduction(name)
    dataset = reproduction.run(progress, **options)
    return dataset, reproduction.check(dataset)
