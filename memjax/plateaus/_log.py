"""Plateaus of a training that somebody else ran, from its log."""

from typing import Any

import equinox as eqx
import numpy as np
from jaxtyping import Float, Real

from .._checks import (
    as_host_array,
    as_increasing,
    as_number,
    as_plain,
    as_positive,
    as_share,
    check_nonnegative,
    check_same_shape,
)
from .._text import format_table, readable
from .._typing import ArrayLike, ScalarLike
from ._segments import find_segments, Segment

# Of shorter logs the noise is not known.
_LEAST = 16


@readable()
class FoundPlateau(eqx.Module):
    """A flat stretch of a loss log, from [`memjax.find_plateaus`][].

    **Attributes:**

    - `start`, `stop`: the steps at which the loss comes down to it and has left it.
    - `height`: the mean loss on it.
    - `noise`: the standard deviation of a single entry of the log there.
    - `drop`: the share of its height above the floor by which the loss falls after it, to the next
        flat stretch or to the end of the log; NaN if it is not left.
    - `left`: whether the loss has left it.
    """

    start: float
    stop: float
    height: float
    noise: float
    drop: float
    left: bool = eqx.field(static=True)

    @property
    def length(self) -> float:
        """How many steps it lasts."""
        return self.stop - self.start

    def to_dict(self) -> dict[str, Any]:
        """The stretch as plain numbers, for JSON or a table."""
        names = ("start", "stop", "length", "height", "noise", "drop", "left")
        return {name: getattr(self, name) for name in names}


@readable("plot_log")
class FoundPlateaus(eqx.Module):
    """What [`memjax.find_plateaus`][] finds in a loss log. `print` it for a table and a verdict.

    **Attributes:**

    - `plateaus`: the plateaus that the loss has left, in their order.
    - `rest`: the flat stretch at the end of the log, or `None` if the loss is not flat there.
    - `steps`, `losses`: the entries that were looked at, shape `(entries,)`.
    - `omitted`: how many entries had no finite loss and were left out.
    - `delta`: the share of its height by which the loss leaves a plateau.
    """

    plateaus: tuple[FoundPlateau, ...]
    rest: FoundPlateau | None
    steps: Float[np.ndarray, " entries"]
    losses: Float[np.ndarray, " entries"]
    omitted: int = eqx.field(static=True)
    delta: float = eqx.field(static=True)

    @property
    def segments(self) -> tuple[FoundPlateau, ...]:
        """All flat stretches, with that at the end."""
        return self.plateaus + (() if self.rest is None else (self.rest,))

    @property
    def verdict(self) -> str:
        """What was found, in a sentence or two."""
        count, last = len(self.plateaus), self.steps[-1]
        several = "1 plateau that was left" if count == 1 else f"{count} plateaus that were left"
        found = f"{several if count else 'No plateau that was left'}. "
        if self.rest is None:
            return f"{found}The loss is not flat at the end, step {last:g}."
        return (
            f"{found}The loss is flat at the end, from step {self.rest.start:.4g} to {last:g}: a "
            "floor, or a plateau that it has not left."
        )

    def to_records(self) -> list[dict[str, Any]]:
        """All flat stretches as plain numbers, one record each."""
        return [segment.to_dict() for segment in self.segments]

    def to_dict(self) -> dict[str, Any]:
        """What was found as plain numbers, lists and words, for JSON."""
        return {
            "plateaus": [plateau.to_dict() for plateau in self.plateaus],
            "rest": None if self.rest is None else self.rest.to_dict(),
            "verdict": self.verdict,
            "entries": self.steps.size,
            "omitted": self.omitted,
            "delta": self.delta,
        }

    def __str__(self) -> str:
        header = ["", "start", "stop", "length", "height", "noise", "drop"]
        rows = []
        for place, one in enumerate(self.segments, 1):
            numbers = (f"{v:.4g}" for v in (one.start, one.stop, one.length))
            losses = (f"{one.height:.4g}", f"{one.noise:.2g}")
            drop = f"{100 * one.drop:.3g} %" if one.left else "not left"
            rows.append([str(place), *numbers, *losses, drop])
        lines = [format_table(header, rows), ""] if rows else []
        if self.omitted:
            entries = "1 entry" if self.omitted == 1 else f"{self.omitted} entries"
            lines.append(f"{entries} without a finite loss left out.")
        return "\n".join([*lines, self.verdict])


def find_plateaus(
    steps: Real[ArrayLike, "..."],
    losses: Real[ArrayLike, "..."],
    *,
    delta: Real[ScalarLike, ""] = 0.02,
    floor: Real[ScalarLike, ""] = 0.0,
    ratio: Real[ScalarLike, ""] = 2.0,
) -> FoundPlateaus:
    r"""Find the plateaus of a training from its loss log: where the loss is flat against its
    noise, and whether it has left.

    A plateau of height $h$ begins where the loss has come down to $(1 + \delta) h$, or with the
    log, and ends where it has fallen to $(1 - \delta) h$, which is the exit
    [`memjax.RelativeLossDrop`][] with that height as its reference. It lasts at least until
    its start has doubled (`ratio`), since a plateau is long in units of the time before it. With
    losses $\ell_k$ at steps $t_k$, three things are tested:

    - *It is flat.* Over bins of $\log t$, a twentieth of an e-fold long, and over 2, 4, 8 and 16 of
      them together, no mean lies outside of $(1 \pm \delta) h$ by more than 4.5 standard errors.
    - *It is left.* In units of $t$, the loss falls after it, until the step has doubled, at least
      5 times as fast as on it, and faster by 4.5 standard errors:

        $$\frac{\bar\ell_\text{on} - \bar\ell_\text{after}}{\bar t_\text{after} - \bar t_\text{on}}
        \ge 5\, \Bigl(-\frac{\mathrm{d}\ell}{\mathrm{d}t}\Bigr)_\text{on}.$$

        A loss that only slows down, such as an exponential, a power law or a logarithm, has a
        ratio of at most 1: it has no plateau, though it looks flat at early or late $\log t$.
    - *It rests* at the end of the log if its slope against $\log t$ is at most a fifth of that
      with which it came down. A power law falls by as much in every e-fold, so that it
      does not rest. Whether a loss at rest is at its floor, or on a plateau that it
      has not left yet, no log can tell. A log that never fell by more than $\delta$, and does not
      slow down, is at rest from its first step on.

    The noise is told by how far entries lie from the straight line between their two neighbours
    (the median of 32 or more, so that it may change along the log and have spikes). If second
    differences over longer lags, up to a hundredth of the log, are larger, as in a smoothed log,
    the noise of neighbours counts as one. A plateau has at least 8 entries; one of $n$ entries
    stands out if its drop is about $50 / \sqrt n$ times the noise of an entry. Its ends lie between
    entries, where the falling curve closest to the log (isotonic regression) meets the level; where
    noise hides a fall of $\delta$, the level is two standard errors of the mean over a fifth of an
    e-fold away, but at most half of the drop. Levels closer than $2 \delta$ count as one, and a
    fall in the last twentieth of an e-fold of the log is not seen yet.

    !!! Example

        ```python
        found = mj.find_plateaus(*mj.read_log("losses.csv"))
        print(found)  # a table and a verdict
        found.plateaus[0].stop, found.rest is None
        ```

    **Arguments:**

    - `steps`: increasing steps or times of at least 0, shape `(entries,)`. A step 0 counts as half
        the step after it where logarithms are taken.
    - `losses`: the loss at each, of the same shape. Entries that are NaN or infinite are left out.
    - `delta`: the share $\delta$ of its height by which the loss leaves a plateau.
    - `floor`: the level from which losses are counted, in units of the loss: heights and drops are
        relative to it. For a loss that may be negative pass one that it does not reach.
    - `ratio`: the least ratio of the end of a plateau to its start, above 1.

    **Returns:**

    A [`memjax.FoundPlateaus`][].

    **Raises:**

    `ValueError` for steps that do not increase, repeat, are negative or not finite; for fewer than
    16 finite losses; and if nine tenths of them are below the floor.

    ??? cite "Reference"

        Gasser, Sroka, Jennen-Steinmetz, *Residual variance and residual pattern in nonlinear
        regression*, Biometrika 73 (1986), 625-633, for the noise; Li, Han, E, Li, ICLR 2021,
        Section 5, for plateaus as hitting times.
    """
    delta = as_plain(as_share, "delta", delta, "0.02 is usual")
    floor = as_plain(as_number, "floor", floor)
    ratio = as_plain(as_positive, "ratio", ratio, "pass a number above 1")
    if ratio <= 1:
        raise ValueError(f"`ratio` must be above 1, got {ratio}; 2 is usual.")
    times, values = as_host_array("steps", steps), as_host_array("losses", losses)
    as_increasing("steps", times, _LEAST)
    check_nonnegative("steps", times, "count them from the start of training")
    check_same_shape("steps", times, "losses", values, "entry of the log")
    finite = np.isfinite(values)
    times, values = times[finite], values[finite]
    if times.size < _LEAST:
        raise ValueError(
            f"`losses` must hold at least {_LEAST} finite entries, got {times.size}; log more "
            "often."
        )
    # With noise, half of those of a loss that has fallen to the floor are below it.
    high = float(np.quantile(values, 0.9))
    if not high >= floor:
        raise ValueError(
            f"`losses` must be above the floor {floor:g}, got {high:.6g} or less for nine "
            "tenths of them; pass a `floor` below them."
        )
    # In a unit in which no square overflows, whatever a run did that diverged.
    sizes = np.abs(values - floor)
    unit = max(float(np.median(sizes)), 1e-100 * float(np.max(sizes))) or 1.0
    above = (values - floor) / unit
    found, rest, level = find_segments(times, above, delta, ratio)
    levels = [s.height for s in found[1:]] + [level if rest is None else rest.height]
    plateaus = (
        _describe(s, unit, floor, 1 - after / s.height)
        for s, after in zip(found, levels, strict=False)
    )
    return FoundPlateaus(
        plateaus=tuple(plateaus),
        rest=None if rest is None else _describe(rest, unit, floor, None),
        steps=times,
        losses=values,
        omitted=int(np.sum(~finite)),
        delta=delta,
    )


def _describe(segment: Segment, unit: float, floor: float, drop: float | None) -> FoundPlateau:
    return FoundPlateau(
        start=float(segment.start),
        stop=float(segment.stop),
        height=unit * segment.height + floor,
        noise=unit * segment.noise,
        drop=float("nan") if drop is None else float(drop),
        left=drop is not None,
    )
