import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed, ThreadPoolExecutor
from typing import Any

import numpy as np

from .._checks import (
    as_finite_array,
    as_increasing,
    as_list,
    as_positive_array,
    check_choice,
    check_integer,
    check_nonnegative,
)
from .._lazy import matplotlib, tqdm, xr
from .._text import readable
from ..plateaus import FAILED
from ..sweeps import cores


@readable()
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


@readable()
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
    run: "Callable[..., xr.Dataset]"
    check: "Callable[[xr.Dataset], list[Verdict]]"
    plot: "Callable[[xr.Dataset], matplotlib.figure.Figure]"


def whole(dataset: "xr.Dataset") -> "xr.Dataset":
    """The dataset of a sweep; an interrupt that ended the sweep early goes on."""
    if not np.all(dataset["result"] >= 0):
        raise KeyboardInterrupt
    return dataset


def check_known(name: str, given: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names that are not among those there are, and none at all."""
    for value in as_list(name, given, "names") or [""]:
        check_choice(name, value, known, "choose from these")


def check_integers(**given: Any) -> None:
    """Refuse what is no integer of at least 1, under the names given."""
    for name, value in given.items():
        check_integer(name, value)


def each_cell(
    axes: Mapping[str, Sequence[Any]], unit: str, progress: bool
) -> Iterator[tuple[tuple[int, ...], list[Any]]]:
    """The cells of a grid one after the other: where each is, and the values there. With a
    progress bar over so many units."""
    places = list(np.ndindex(*map(len, axes.values())))
    for place in tqdm.tqdm(places, unit=unit, disable=not progress):
        yield place, [values[k] for values, k in zip(axes.values(), place, strict=True)]


def in_threads(function: Callable[[Any], Any], items: Iterable[Any]) -> Iterator[Any]:
    """What a function returns for each item, in the order in which they finish, as many at a time
    as there are cores. On an error or an interrupt those that have not begun are given up."""
    with ThreadPoolExecutor(cores()) as pool:
        running = [pool.submit(function, item) for item in items]
        try:
            for future in as_completed(running):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def empty(axes: Mapping[str, Sequence[Any]], *others: int) -> np.ndarray:
    """NaN for every cell of a grid, and along the other axes."""
    return np.full((*map(len, axes.values()), *others), np.nan)


def describe(
    values: Mapping[str, np.ndarray], dims: Sequence[str], words: Mapping[str, str]
) -> dict[str, Any]:
    """Variables over the same dimensions, each with what it is in words."""
    return {name: (tuple(dims), values[name], {"long_name": text}) for name, text in words.items()}


def listed(values: Iterable[float]) -> str:
    """Numbers in words, to two digits."""
    return ", ".join(f"{value:.2g}" for value in values)


def near(found: Any, published: Any, factor: float) -> np.ndarray:
    """Which numbers are within a factor of those published."""
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.abs(np.log(np.divide(found, published)))
    return np.isfinite(apart) & (apart <= np.log(factor))


def compare(
    says: str, ours: np.ndarray, theirs: np.ndarray, factor: float, decided: bool = True
) -> Verdict:
    """Whether all numbers are within a factor of those published; undecided where none is."""
    close = near(ours, theirs, factor)
    return Verdict(
        says,
        f"{listed(ours)}; {int(close.sum())} of {close.size} within {factor:g}",
        bool(np.all(close)) if close.size and decided else None,
    )


def last_fine(values: np.ndarray, fine: np.ndarray) -> float:
    """The last of some values up to which all are fine, 0 if there is none."""
    so_far = values[np.cumprod(fine).astype(bool)]
    return float(so_far[-1]) if so_far.size else 0.0


def padded(rows: Sequence[Sequence[float] | np.ndarray]) -> np.ndarray:
    """Rows of several lengths as one array, with NaN after their ends."""
    longest = max(map(len, rows))
    return np.array([[*row, *[np.nan] * (longest - len(row))] for row in rows])


def as_positives(name: str, value: Any) -> np.ndarray:
    """A list of at least one positive number."""
    return _as_list(name, as_positive_array(name, value))


def as_nonnegatives(name: str, value: Any) -> np.ndarray:
    """A list of at least one number of 0 or more."""
    check_nonnegative(name, value)
    return _as_list(name, as_finite_array(name, value))


def _as_list(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, float)
    if array.ndim != 1 or array.size == 0:
        raise ValueError(
            f"`{name}` must be a list of at least one number, got shape {array.shape}; pass a list."
        )
    return array


def as_moduli(value: Any) -> list[float]:
    """Moduli of eigenvalues, above 0 and below 1."""
    moduli = as_positives("moduli", value).tolist()
    if max(moduli) >= 1:
        raise ValueError(f"`moduli` must be below 1, got {max(moduli):g}; pass smaller ones.")
    return moduli


def as_radii(value: Any) -> list[float]:
    """Ascending radii of 0 or more."""
    check_nonnegative("radii", value, "a ball has a radius of 0 or more")
    return np.asarray(as_increasing("radii", value)).tolist()


def num_failed(dataset: "xr.Dataset") -> int:
    """How many measurements of a dataset ended without an answer."""
    codes = dataset["result"].values
    return int(np.isin(codes, FAILED).sum())
