import dataclasses
from collections.abc import Callable

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from ..plateaus._measure import DIVERGED, MAX_STEPS_REACHED, UNRESOLVED


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
    plot: Callable[[xr.Dataset], Figure]


def num_failed(dataset: xr.Dataset) -> int:
    """How many measurements of a dataset ended without an answer."""
    codes = dataset["result"].values
    return int(np.isin(codes, (MAX_STEPS_REACHED, UNRESOLVED, DIVERGED)).sum())
