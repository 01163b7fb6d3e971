import os
import pathlib

import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from .._checks import (
    as_finite_array,
    as_float_array,
    as_horizon,
    as_increasing,
    check_nonnegative,
    check_same_shape,
    valid_or_nan,
)
from ._base import AbstractKernel, Memory
from ._paths import check_resolved
from ._special import exponential_moment


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
    """

    times: Float[Array, " samples"]
    values: Float[Array, " samples"]

    def __init__(self, times: Real[ArrayLike, "..."], values: Real[ArrayLike, "..."]):
        r"""**Arguments:**

        - `times`: The times $t_k \ge 0$ of at least two samples, strictly increasing.
        - `values`: The kernel $\rho_k$ at those times, of the same shape.

        **Raises:** `ValueError` for times that are negative, unsorted or repeated, for fewer than
        two samples, for NaN or infinity, and for shapes that do not fit.
        """
        times = as_increasing("times", times, 2)
        check_nonnegative("times", times, "a causal kernel starts at time 0 or later")
        check_resolved(times, "times")
        self.times = valid_or_nan(times, times >= 0)
        self.values = as_finite_array("values", values)
        check_same_shape("times", times, "values", self.values, "sample")

    @classmethod
    def from_csv(
        cls, path: str | os.PathLike[str], time_column: int = 0, value_column: int = 1
    ) -> "SampledKernel":
        """Read the samples from a text file with one sample a line.

        Columns are separated by semicolons, commas or white space. One header line is allowed,
        and blank lines and lines that start with `#` are skipped.

        **Arguments:**

        - `path`: The file, in UTF-8.
        - `time_column`: The column of the times, counted from 0.
        - `value_column`: The column of the kernel's values, counted from 0.

        **Returns:**

        A `SampledKernel`.

        **Raises:** `FileNotFoundError` if there is no such file; `ValueError`, naming the line,
        for rows that are not numbers, and for all that the arrays themselves are refused for.
        """
        for name, column in (("time_column", time_column), ("value_column", value_column)):
            if isinstance(column, bool) or not isinstance(column, int) or column < 0:
                raise ValueError(
                    f"`{name}` must be an integer of 0 or more, got {column!r}; "
                    "columns are counted from 0."
                )
        if time_column == value_column:
            raise ValueError(
                f"`time_column` and `value_column` must differ, got {time_column} for both; "
                "name the column of the times and that of the values."
            )
        file = pathlib.Path(path)
        if not file.is_file():
            raise FileNotFoundError(
                f"`path` must name a CSV file, got '{file}'; no such file, check the spelling."
            )
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"`path` must name a text file, got '{file}'; save the samples as UTF-8 text."
            ) from error

        samples: list[tuple[float, float]] = []
        header_allowed = True
        for number, line in enumerate(lines, start=1):
            if not line.strip() or line.lstrip().startswith("#"):
                continue
            # A line with semicolons may use the comma for decimals, so they come first.
            separator = next((mark for mark in ";," if mark in line), None)
            cells = [cell.strip() for cell in line.split(separator)]
            time, value = _parse(cells, time_column), _parse(cells, value_column)
            if time is not None and value is not None:
                samples.append((time, value))
            elif not header_allowed or not (time is None and value is None):
                raise ValueError(
                    f"`path` line {number} must hold numbers in columns {time_column} and "
                    f"{value_column}, got {line.strip()!r}; write them with a decimal point."
                )
            header_allowed = False
        if len(samples) < 2:
            raise ValueError(
                f"`path` must hold at least 2 samples, got {len(samples)} in '{file}'; "
                "write one time and value a line."
            )
        times, values = np.asarray(samples).T
        return cls(times, values)

    @property
    def memory(self) -> Memory:
        return "finite"

    def breakpoints(self) -> Float[Array, " points"]:
        return self.times

    def support(self) -> Float[Array, ""]:
        return self.times[-1]

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return jnp.interp(as_float_array("t", t), self.times, self.values, left=0, right=0)

    def laplace(
        self, s: Real[ArrayLike, "..."], horizon: Real[ArrayLike, "..."] = jnp.inf
    ) -> Float[Array, "..."]:
        s = as_float_array("s", s)
        check_nonnegative("s", s)
        starts, steps, first, last = self._intervals(as_horizon(horizon))
        s = s[..., None]
        falling, rising = exponential_moment(0, s * steps), exponential_moment(1, s * steps)
        lines = first * (falling - rising) + last * rising
        return jnp.sum(jnp.exp(-s * starts) * steps * lines, axis=-1)

    def squared_norm(self, horizon: Real[ArrayLike, "..."] = jnp.inf) -> Float[Array, "..."]:
        _, steps, first, last = self._intervals(as_horizon(horizon))
        return jnp.sum(steps * (first**2 + first * last + last**2), axis=-1) / 3

    def heaviside_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self._responses(as_float_array("t", t))[0]

    def ramp_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return self._responses(as_float_array("t", t))[1]

    def _intervals(self, horizon: Array | None) -> tuple[Array, Array, Array, Array]:
        """Start, length and both end values of every interval, cut off at the horizon."""
        starts, steps = self.times[:-1], jnp.diff(self.times)
        first, last = self.values[:-1], self.values[1:]
        if horizon is None:
            return starts, steps, first, last
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


def _parse(cells: list[str], column: int) -> float | None:
    try:
        return float(cells[column])
    except (ValueError, IndexError):
        return None
