import codecs
import itertools
import math
import os
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import (
    as_existing_file,
    as_finite_array,
    as_increasing,
    as_number,
    check_integer,
    check_nonnegative,
    check_same_shape,
    shown,
    valid_or_nan,
)
from .._paths import check_resolved
from .._typing import ArrayLike, ScalarLike
from ..numerics import exponential_moment
from ._base import AbstractKernel
from ._exponential import exponential_product, ExponentialSum
from ._product import register_inner_product
from ._target import Memory

_LOOKED_AT = 50  # last lines of a file, which say how columns are separated
_CONTROL = dict.fromkeys([*range(9), *range(14, 32)])  # characters that no text has


class SampledKernel(AbstractKernel):
    r"""A measured impulse response: the piecewise linear interpolant of samples $(t_k, \rho_k)$.

    Between two samples the kernel is the straight line through them; before the first sample and
    after the last it is 0. The spacing may be uneven. Every integral is exact for this
    interpolant; with $\Delta_k = t_{k+1} - t_k$,

    $$R(s) = \sum_k e^{-s t_k} \int_0^{\Delta_k} e^{-su} \left(\rho_k
    + \frac{\rho_{k+1} - \rho_k}{\Delta_k} u\right) \mathrm{d}u, \qquad
    \|\rho\|^2 = \sum_k \frac{\Delta_k}{3} (\rho_k^2 + \rho_k \rho_{k+1} + \rho_{k+1}^2)$$

    The integrals over each interval keep full relative accuracy also for small $s\Delta_k$.

    Kernels of linear functionals: Li, Han, E, Li, ICLR 2021, section 3 (theory, sections 1
    and 3).

    **Arguments:**

    - `times`: the times $t_k \ge 0$ of at least two samples, strictly increasing.
    - `values`: the kernel $\rho_k$ at those times, of the same shape.

    **Raises:** `ValueError` for times that are negative, unsorted or repeated, for fewer than
    two samples, for NaN or infinity, and for shapes that do not fit.
    """

    memory: ClassVar[Memory] = "finite"

    times: Float[Array, " samples"]
    values: Float[Array, " samples"]

    def __init__(self, times: Real[ArrayLike, "..."], values: Real[ArrayLike, "..."]) -> None:
        times = as_increasing("times", times, 2)
        check_nonnegative("times", times, "a causal kernel starts at time 0 or later")
        check_resolved(times, "times")
        self.times = valid_or_nan(times, times >= 0)
        self.values = as_finite_array("values", values)
        check_same_shape("times", times, "values", self.values, "sample")

    @classmethod
    def from_csv(
        cls,
        path: str | os.PathLike[str],
        time_column: int = 0,
        value_column: int = 1,
        origin: Real[ScalarLike, ""] = 0.0,
    ) -> "SampledKernel":
        """Read the samples from a text file with one sample a line, as instruments write them.

        Columns are separated by semicolons, tabs, commas or white space; decimals have a point,
        or a comma where columns are not separated by it. Lines at the top whose time is no number
        are a header (names, units), and blank lines, quotes and what follows a `#` are skipped.

        **Arguments:**

        - `path`: The file, in UTF-8, UTF-16 with its mark, or Latin-1.
        - `time_column`: The column of the times, counted from 0.
        - `value_column`: The column of the kernel's values, counted from 0.
        - `origin`: The time at which the response begins, in the time of the file. It is
            subtracted, and samples before it are left out.

        **Returns:**

        A `SampledKernel`.

        **Raises:** `OSError` for what is no file that can be read; `ValueError`, naming the line,
        for rows that are not numbers, and for all that the arrays themselves are refused for.
        """
        columns = {"time_column": time_column, "value_column": value_column}
        start = float(as_number("origin", origin))
        times, values = read_columns("path", path, columns)
        return cls(*since(start, times, values))

    def breakpoints(self) -> Float[Array, " points"]:
        return self.times

    def support(self) -> Float[Array, ""]:
        return self.times[-1]

    def _value(self, t: Array) -> Array:
        return jnp.interp(t, self.times, self.values, left=0, right=0)

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        starts, steps, first, last = self._intervals(horizon)
        s = s[..., None]
        # Over an interval the line is first (1 - u) + last u, with u from 0 to 1.
        falling, rising = exponential_moment(0, s * steps), exponential_moment(1, s * steps)
        lines = first * (falling - rising) + last * rising
        return jnp.sum(jnp.exp(-s * starts) * steps * lines, axis=-1)

    def _squared_norm(self, horizon: Array | None) -> Array:
        _, steps, first, last = self._intervals(horizon)
        return jnp.sum(steps * (first**2 + first * last + last**2), axis=-1) / 3

    def _heaviside_response(self, t: Array) -> Array:
        return self._responses(t)[0]

    def _ramp_response(self, t: Array) -> Array:
        return self._responses(t)[1]

    def _intervals(self, horizon: Array | None) -> tuple[Array, Array, Array, Array]:
        """Start, length and both end values of every interval, cut off at the horizon."""
        starts, steps = self.times[:-1], jnp.diff(self.times)
        first, last = self.values[:-1], self.values[1:]
        if horizon is None:
            return starts, steps, first, last
        # An interval after the horizon has no length, and counts for nothing.
        kept = jnp.clip(horizon[..., None] - starts, 0, steps)
        share = kept / steps
        return starts, kept, first, (1 - share) * first + share * last

    def _responses(self, t: Array) -> tuple[Array, Array]:
        starts, steps, first, last = self._intervals(None)
        areas = steps * (first + last) / 2
        before = jnp.concatenate([jnp.zeros_like(areas[:1]), jnp.cumsum(areas)])
        ramps = before[:-1] * steps + steps**2 * (2 * first + last) / 6
        ramps_before = jnp.concatenate([jnp.zeros_like(ramps[:1]), jnp.cumsum(ramps)])

        k = jnp.clip(jnp.searchsorted(self.times, t, side="right") - 1, 0, steps.size - 1)
        step = jnp.clip(t - starts[k], 0, steps[k])
        share = step / steps[k]
        end = (1 - share) * first[k] + share * last[k]
        heaviside = before[k] + step * (first[k] + end) / 2
        ramp = ramps_before[k] + before[k] * step + step**2 * (2 * first[k] + end) / 6
        return heaviside, ramp + heaviside * jnp.maximum(t - self.times[-1], 0)


@register_inner_product(SampledKernel, SampledKernel)
def _(first: SampledKernel, second: SampledKernel, horizon: Array | None) -> Array:
    # On the merged grid the product is quadratic between neighbours, and two Gauss points, which
    # never touch a jump at the ends of either kernel, integrate it exactly.
    grid = jnp.sort(jnp.concatenate([first.times, second.times]))
    if horizon is not None:
        grid = jnp.minimum(grid, horizon[..., None])
    steps = jnp.diff(grid, axis=-1)
    middle = grid[..., :-1] + steps / 2
    offset = steps / (2 * math.sqrt(3))
    total = sum(first(point) * second(point) for point in (middle - offset, middle + offset))
    return jnp.sum(steps * total, axis=-1) / 2


@register_inner_product(SampledKernel, AbstractKernel)
def _(first: SampledKernel, second: AbstractKernel, horizon: Array | None) -> Array:
    # By parts, through the responses of the other kernel: with its Heaviside response h,
    # int f rho = [f h] - int f' h, where f' is constant between samples and int h is a difference
    # of ramp responses.
    slopes = jnp.diff(first.values) / jnp.diff(first.times)
    # Samples after the horizon fall on it, where differences of responses are 0.
    times = first.times if horizon is None else jnp.minimum(first.times, horizon[..., None])
    steps = second._heaviside_response(times[..., [0, -1]])
    ramps = second._ramp_response(times)
    end = jnp.interp(times[..., -1], first.times, first.values)
    return (
        end * steps[..., 1]
        - first.values[0] * steps[..., 0]
        - jnp.sum(slopes * jnp.diff(ramps, axis=-1), axis=-1)
    )


# Of an exponential sum, the transform of the samples is all that it takes.
register_inner_product(ExponentialSum, SampledKernel)(exponential_product)


def since(origin: float, times: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Times from an origin on, counted from it, with what belongs to them."""
    if origin == 0:
        return times, *others
    kept = times >= origin
    if np.sum(kept) < 2:
        raise ValueError(
            f"`origin` must leave at least 2 samples, got {origin}, which leaves {np.sum(kept)}; "
            "pass the time at which the response begins."
        )
    return times[kept] - origin, *(values[kept] for values in others)


def read_columns(
    name: str, path: str | os.PathLike[str], columns: dict[str, int]
) -> list[np.ndarray]:
    """Columns of numbers of a text file with one sample a line, by the names of the arguments
    that say which."""
    for column, place in columns.items():
        check_integer(column, place, 0)
    for first, second in itertools.combinations(columns, 2):
        if columns[first] == columns[second]:
            raise ValueError(
                f"`{first}` and `{second}` must differ, got {columns[first]} for both; name two "
                "columns."
            )
    places = list(columns.values())
    lines = _text(name, as_existing_file(name, path)).replace('"', "").splitlines()
    numbered = [(k, line) for k, line in enumerate(lines, 1) if line.partition("#")[0].strip()]
    separator = _separator([line for _, line in numbered[-_LOOKED_AT:]], places)
    header = 0
    while header < len(numbered) and _number(numbered[header][1], separator, places[0]) is None:
        header += 1
    rows = [line for _, line in numbered[header:]]
    if separator != ",":
        rows = [line.replace(",", ".") for line in rows]
    if len(rows) < 2:
        raise ValueError(
            f"`{name}` must hold at least 2 samples, got {len(rows)} in {str(path)!r}; write one "
            "time and value a line."
        )
    try:
        found = np.loadtxt(rows, delimiter=separator, usecols=places, ndmin=2)
    except ValueError:
        where = " and ".join(map(str, places))
        for k, line in numbered[header:]:
            if any(_number(line, separator, place) is None for place in places):
                raise ValueError(
                    f"`{name}` line {k} must hold numbers in columns {where}, got "
                    f"{shown(lines[k - 1].strip())}; write them with a decimal point."
                ) from None
        raise
    return list(found.T)


def _text(name: str, path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise type(error)(
            f"`{name}` must be a file that can be read, got {str(path)!r}: {error.strerror}."
        ) from error
    wide = data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
    for encoding in ("utf-16",) if wide else ("utf-8-sig", "latin-1"):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        # Latin-1 reads anything; control characters give away what is no text.
        if len(text.translate(_CONTROL)) == len(text):
            return text
        break
    raise ValueError(
        f"`{name}` must be a text file, got {str(path)!r}; save the samples as UTF-8 text."
    )


def _separator(lines: list[str], places: list[int]) -> str | None:
    """What separates columns so that most lines hold numbers in their places; `None` is white
    space."""

    def fits(separator: str | None) -> int:
        numbers = ([_number(line, separator, place) for place in places] for line in lines)
        return sum(None not in row for row in numbers)

    # With semicolons or tabs a comma may be that of decimals, so they come first.
    best = max((";", "\t", ",", None), key=fits)
    if fits(best) == 0:
        best = next((mark for mark in ";\t," if any(mark in line for line in lines)), None)
    return best


def _number(line: str, separator: str | None, place: int) -> float | None:
    cells = line.partition("#")[0].split(separator)
    try:
        # Python takes 1_000 for a number, NumPy does not.
        cell = cells[place].replace("_", "x")
        return float(cell if separator == "," else cell.replace(",", "."))
    except (ValueError, IndexError):
        return None
