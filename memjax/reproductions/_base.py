import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, TYPE_CHECKING

import numpy as np
import xarray as xr

from .._checks import (
    as_increasing,
    as_list,
    as_positive_array,
    check_choice,
    check_nonnegative,
)
from ..plateaus import FAILED

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A published statement beside what was measured.

    **Attributes:**

    - `published`: what the source says.
    - `found`: what was measured.
    - `agrees`: whether they agree, or `None` if the measurement does not decide it.
    """

    published: str
    found: str
    agrees: bool | None


@dataclasses.dataclass(frozen=True)
class Reproduction:
    """A published result, measured again.

    **Attributes:**

    - `name`: its name on the command line.
    - `title`: what it shows, in a line.
    - `source`: where it was published.
    - `description`: how it is measured, and by which criterion it is judged.
    - `run`: measures it, `run(progress=True, **options)`; the options make it smaller.
    - `check`: the verdicts on a dataset of `run`.
    - `plot`: the figure of a dataset of `run`.
    """

    name: str
    title: str
    source: str
    description: str
    run: Callable[..., xr.Dataset]
    check: Callable[[xr.Dataset], list[Verdict]]
    plot: "Callable[[xr.Dataset], Figure]"


def whole(dataset: xr.Dataset) -> xr.Dataset:
    """The dataset of a sweep; an interrupt that ended the sweep early goes on."""
    if not dataset.attrs["complete"]:
        raise KeyboardInterrupt
    return dataset


def check_known(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not among those there are, and none at all."""
    for value in as_list(name, given, "names") or [""]:
        check_choice(name, value, known, "choose from these")


def as_positives(name: str, value: Any) -> np.ndarray:
    """A list of at least one positive number."""
    array = np.asarray(as_positive_array(name, value))
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"`{name}` must be a list of at least one number, got shape {array.shape}; pass a list."
        )
    return array


def as_radii(value: Any) -> list[float]:
    """Ascending radii of 0 or more."""
    check_nonnegative("radii", value, "a ball has a radius of 0 or more")
    return np.asarray(as_increasing("radii", value)).tolist()


def num_failed(dataset: xr.Dataset) -> int:
    """How many measurements of a dataset ended without an answer."""
    codes = dataset["result"].values
    return int(np.isin(codes, FAILED).sum())
