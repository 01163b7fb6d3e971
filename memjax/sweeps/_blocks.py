"""Blocks: the parts into which a durable sweep is cut, each computed and stored as a whole."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ._grid import Grid, ROW


@dataclasses.dataclass(frozen=True)
class Block:
    """A block as it travels to whoever computes it, wherever that is.

    **Attributes:**

    - `index`: its number among the blocks of the sweep.
    - `fixed`: the static axes, with their values.
    - `axes`: the values of the dynamic axes that it spans.
    """

    index: int
    fixed: tuple[tuple[str, Any], ...]
    axes: dict[str, np.ndarray]

    @property
    def count(self) -> int:
        """How many cells it has."""
        return int(np.prod([len(values) for values in self.axes.values()], dtype=int))

    @property
    def columns(self) -> dict[str, np.ndarray]:
        """The values of the dynamic axes, one entry a cell."""
        grid = np.meshgrid(*self.axes.values(), indexing="ij")
        columns = {name: array.ravel() for name, array in zip(self.axes, grid, strict=True)}
        return columns | {ROW: np.arange(self.count)}


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How a grid is cut: into hyper-rectangles, each with one value of every static axis.

    **Attributes:**

    - `grid`: the grid.
    - `shape`: how many values of each axis a block spans, in the order of the axes; those at the
        end of an axis may span fewer.
    """

    grid: Grid
    shape: tuple[int, ...]

    @staticmethod
    def of(grid: Grid, cells: int) -> "Blocks":
        """Blocks of at most so many cells, and nearly equal ones."""
        spans = dict.fromkeys(grid.values, 1)
        for name in reversed(grid.dynamic):
            length = len(grid.values[name])
            parts = -(-length // max(1, cells))
            spans[name] = -(-length // parts)
            cells //= spans[name]
            if parts > 1:
                break
        return Blocks(grid, tuple(spans.values()))

    @property
    def cells(self) -> int:
        """How many cells a block has that is cut short nowhere."""
        return int(np.prod(self.shape, dtype=int))

    @property
    def counts(self) -> tuple[int, ...]:
        """How many blocks there are along each axis."""
        lengths = self.grid.shape(tuple(self.grid.values))
        return tuple(-(-length // span) for length, span in zip(lengths, self.shape, strict=True))

    @property
    def number(self) -> int:
        """How many blocks there are."""
        return int(np.prod(self.counts, dtype=int))

    def block(self, index: int) -> Block:
        """A block by its number."""
        place = unravelled(index, self.counts)
        parts = {
            name: values[at * span : (at + 1) * span]
            for (name, values), at, span in zip(
                self.grid.values.items(), place, self.shape, strict=True
            )
        }
        fixed = tuple((name, parts[name][0].item()) for name in self.grid.static)
        return Block(index, fixed, {name: parts[name] for name in self.grid.dynamic})

    def order(self) -> Iterator[int]:
        """The numbers of all blocks: neighbours differ in their static axes where they can, so
        that those who compute side by side compile different programs."""
        names = tuple(self.grid.values)
        outer = [k for k, name in enumerate(names) if name in self.grid.dynamic]
        inner = [k for k, name in enumerate(names) if name in self.grid.static]
        counts = [self.counts[k] for k in (*outer, *inner)]
        steps = [math.prod(self.counts[k + 1 :]) for k in (*outer, *inner)]
        for number in range(self.number):
            place = unravelled(number, counts)
            yield sum(at * step for at, step in zip(place, steps, strict=True))


def unravelled(index: int, counts: Sequence[int]) -> tuple[int, ...]:
    """`numpy.unravel_index` of a single number, which takes longer."""
    place = []
    for count in reversed(counts):
        index, at = divmod(index, count)
        place.append(at)
    return tuple(reversed(place))
