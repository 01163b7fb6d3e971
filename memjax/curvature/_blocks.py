import functools
from collections.abc import Callable, Sequence

import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..numerics import fold, sum_over
from ._base import AbstractCurvature, AbstractShifted, AbstractShiftedComplex
from ._dense import multiply
from ._eliminate import invert_complex, invert_real

# With so few rows of the factor, none is worth leaving out.
_FEWEST = 4


class BlockCurvature(AbstractCurvature):
    r"""A Hessian that is small blocks plus a low rank, $H = B + L^\top L$.

    The weights are `modes` times as many as a block has rows: weight `i` of mode `j` is number
    `i * modes + j`, and blocks join the weights of one mode.

    A shifted system is then solved by Woodbury's identity at the cost of the rank, whatever the
    number of modes. How small the shift may be depends on the factor $L$: where every number of
    it has a small relative error, and its rows fall off, solves keep their digits far below the
    shift at which those with the array $H$ are rounding errors.

    **Attributes:**

    - `blocks`: $B$, shape `(block, block, modes, *lanes)`.
    - `factor`: $L$, shape `(rank, block, modes, *lanes)`.
    - `used`: after how many rows of the factor all lanes have zeros, `None` where that is not
        known.
    """

    blocks: Float[Array, "block block modes *lanes"]
    factor: Float[Array, "rank block modes *lanes"]
    used: Int[Array, ""] | None = None

    def without(self, size: Float[Array, " lanes"]) -> "BlockCurvature":
        block, modes = self.factor.shape[1:3]
        # The trace of what a row adds to the Hessian bounds it.
        along = lambda j: sum(self.factor[:, i, j] ** 2 for i in range(block))
        traces = sum_over(along, modes, jnp.zeros_like(self.factor[:, 0, 0]))

        def keep(left: Array, trace: Array) -> tuple[Array, Array]:
            left = left + trace
            return left, ~(left <= size)

        _, kept = lax.scan(keep, jnp.zeros_like(traces[0]), traces, reverse=True)
        factor = jnp.where(kept[:, None, None], self.factor, 0)
        used = jnp.sum(jnp.any(kept, axis=tuple(range(1, kept.ndim))))
        return BlockCurvature(self.blocks, factor, used)

    def shifted(self, shift: Float[Array, "..."]) -> "_Shifted":
        # Woodbury's identity, with V = (B + D)^{-1}:
        #   (B + D + L^T L)^{-1} = V - V L^T (1 + L V L^T)^{-1} L V.
        # `small` is the inverse in the middle.
        inverse, of_blocks = invert_real(self._on_diagonal(shift))

        def middle(factor: Array) -> tuple[Array, Array]:
            return invert_real(_identity(factor) + _pair(factor, _turn(inverse, factor)))

        small, of_small = self._of_rows(middle)
        # B + D + L^T L and -(1 + L V L^T) are Schur complements of [[B + D, L^T], [L, -1]]. By
        # Sylvester's law the whole has as many negative eigenvalues as the blocks less `small`.
        definite = fold(jnp.sum, of_blocks) == of_small
        # Where numbers are NaN no pivot counts as positive, on neither side.
        definite = definite & jnp.isfinite(small[0, 0])
        return _Shifted(definite, inverse, self, small)

    def shifted_complex(
        self, real: Float[Array, "..."], imaginary: Float[Array, "..."]
    ) -> "_ShiftedComplex":
        zero = jnp.zeros_like(self.blocks)
        inverse = invert_complex(
            self._on_diagonal(real), BlockCurvature(zero, self.factor)._on_diagonal(imaginary)
        )

        def middle(factor: Array) -> tuple[Array, Array]:
            x, y = (_pair(factor, _turn(part, factor)) for part in inverse)
            return invert_complex(_identity(factor) + x, y)

        return _ShiftedComplex(inverse, self, self._of_rows(middle))

    def product(self, x: Float[Array, "n sides *lanes"]) -> Float[Array, "n sides *lanes"]:
        x = self._split(x)
        out = _apply(self.blocks, x) + self.spread(self.project(x))
        return out.reshape(-1, *out.shape[2:])

    def bound(self) -> Float[Array, "*lanes"]:
        # Row sums bound the blocks, and the trace L^T L: at most by a factor of the rank too high.
        largest = jnp.max(jnp.sum(jnp.abs(self.blocks), axis=1), axis=(0, 1))
        return largest + jnp.sum(self.factor**2, axis=(0, 1, 2))

    def diagonal(self) -> Float[Array, "n *lanes"]:
        blocks = jnp.stack([self.blocks[i, i] for i in range(len(self.blocks))])
        out = blocks + fold(jnp.sum, self.factor**2)
        return out.reshape(-1, *out.shape[2:])

    def inert(self) -> Bool[Array, "n *lanes"]:
        out = fold(jnp.all, self.blocks == 0, 1) & fold(jnp.all, self.factor == 0)
        return out.reshape(-1, *out.shape[2:])

    def dense(self) -> Float[Array, "n n *lanes"]:
        block, modes, *lanes = self.factor.shape[1:]
        eye = jnp.eye(modes, dtype=self.blocks.dtype).reshape(modes, modes, *(1,) * len(lanes))
        full = jnp.einsum("bcm...,mn...->bmcn...", self.blocks, eye)
        low = jnp.einsum("rbm...,rcn...->bmcn...", self.factor, self.factor)
        return (full + low).reshape(block * modes, block * modes, *lanes)

    def with_shift(self, shift: Float[Array, "..."]) -> "BlockCurvature":
        """$H + D$ in the same form."""
        return BlockCurvature(self._on_diagonal(shift), self.factor)

    def project(self, x: Float[Array, "block modes sides *lanes"]) -> Array:
        """$L x$."""
        block, modes = self.factor.shape[1:3]
        along = lambda j: sum(self.factor[:, i, j, None] * x[None, i, j] for i in range(block))
        return sum_over(along, modes, jnp.zeros((len(self.factor), *x.shape[2:]), x.dtype))

    def spread(self, x: Float[Array, "rank sides *lanes"]) -> Array:
        r"""$L^\top x$."""
        along = lambda k: self.factor[k, :, :, None] * x[k, None, None]
        count = len(self.factor) if self.used is None else self.used
        return sum_over(along, count, jnp.zeros((*self.factor.shape[1:3], *x.shape[1:]), x.dtype))

    def _of_rows(self, function: Callable[[Array], tuple[Array, Array]]) -> tuple[Array, Array]:
        """A function of the factor, given some of its rows where there are only zeros below. What
        it returns of shape `(rows, rows, *lanes)` then gets zeros, too."""
        rank, lanes = len(self.factor), self.factor.ndim - 3
        if self.used is None or rank <= _FEWEST:
            return function(self.factor)

        def of(rows: int) -> tuple[Array, Array]:
            widths = [(0, rank - rows)] * 2 + [(0, 0)] * lanes
            widen = lambda x: jnp.pad(x, widths) if x.ndim > lanes else x
            first, second = function(self.factor[:rows])
            return widen(first), widen(second)

        # Few, since each is a program of its own.
        counts = [*range(_FEWEST, rank, max(2, rank // 4)), rank]
        way = sum(jnp.astype(self.used > rows, int) for rows in counts[:-1])
        return lax.switch(way, [functools.partial(of, rows) for rows in counts])

    def _split(self, x: Float[Array, "n ..."]) -> Float[Array, "block modes ..."]:
        return x.reshape(len(self.blocks), -1, *x.shape[1:])

    def _on_diagonal(self, shift: Float[Array, "..."]) -> Float[Array, "block block modes *lanes"]:
        block, modes, *lanes = self.factor.shape[1:]
        shift = jnp.broadcast_to(shift, (block * modes, *lanes)).reshape(block, modes, *lanes)
        rows = [
            [self.blocks[i, k] + shift[i] if i == k else self.blocks[i, k] for k in range(block)]
            for i in range(block)
        ]
        return jnp.stack([jnp.stack(row) for row in rows])


class _Shifted(AbstractShifted):
    definite: Bool[Array, "*lanes"]
    inverse: Array
    curvature: BlockCurvature
    small: Array

    def __call__(self, x: Float[Array, "n sides *lanes"]) -> Float[Array, "n sides *lanes"]:
        sides = x.reshape(len(self.inverse), -1, *x.shape[1:])
        # L V x, and not (V L^T)^T x: V is not symmetric where stages are coupled.
        inner = multiply(self.small, self.curvature.project(_apply(self.inverse, sides)))
        return _apply(self.inverse, sides - self.curvature.spread(inner)).reshape(x.shape)


class _ShiftedComplex(AbstractShiftedComplex):
    inverse: tuple[Array, Array]
    curvature: BlockCurvature
    small: tuple[Array, Array]

    def __call__(
        self, x: Float[Array, "n *lanes"], y: Float[Array, "n *lanes"]
    ) -> tuple[Float[Array, "n *lanes"], Float[Array, "n *lanes"]]:
        both = jnp.stack([x, y], axis=1)
        both = both.reshape(len(self.inverse[0]), -1, *both.shape[1:])

        def turn(sides: Array) -> Array:
            a, b = (_apply(matrix, sides) for matrix in self.inverse)
            return jnp.stack([a[:, :, 0] - b[:, :, 1], a[:, :, 1] + b[:, :, 0]], axis=2)

        inner = self.curvature.project(turn(both))
        a, b = (multiply(matrix, inner) for matrix in self.small)
        inner = jnp.stack([a[:, 0] - b[:, 1], a[:, 1] + b[:, 0]], axis=1)
        out = turn(both - self.curvature.spread(inner))
        out = out.reshape(-1, *out.shape[2:])
        return out[:, 0], out[:, 1]


def couple_blocks(
    curvatures: Sequence[BlockCurvature],
    weights: Float[np.ndarray, "stages stages"],
    rate: Float[Array, "*lanes"],
) -> AbstractShifted:
    """As `couple`, of Hessians of this form: blocks of all stages, and the sum of all ranks."""
    count, first = len(curvatures), curvatures[0]
    rank, block = first.factor.shape[:2]
    zero = jnp.zeros_like(first.blocks)
    # The formula couples a weight with itself at other stages. That falls into the blocks, which
    # become three times as large, and the low ranks stay apart.
    rows = []
    for i, curvature in enumerate(curvatures):
        own = [curvature.blocks if i == k else zero for k in range(count)]
        coupled = [
            BlockCurvature(part, first.factor)._on_diagonal(weights[i, k] * rate)
            for k, part in enumerate(own)
        ]
        rows.append(jnp.concatenate(coupled, axis=1))
    factor = jnp.zeros((count, rank, count, *first.factor.shape[1:]), first.factor.dtype)
    for k, curvature in enumerate(curvatures):
        factor = factor.at[k, :, k].set(curvature.factor)
    factor = factor.reshape(count * rank, count * block, *first.factor.shape[2:])
    whole = BlockCurvature(jnp.concatenate(rows), factor)
    # These blocks are not symmetric, and are eliminated without a search for pivots. The coupling
    # alone has the pivots 3.2, 2.1 and 9.0 times the rate, and none vanishes while the blocks of
    # the Hessians are smaller than the rate. `definite` means nothing here.
    return whole.shifted(jnp.zeros_like(rate))


# Sides come after the modes: a vector has shape `(block, modes, sides, *lanes)`.


def _apply(matrices: Array, x: Array) -> Array:
    """The products with one small matrix a mode."""
    # Written out: `einsum` took three times as long (2 rows, 64 modes, 64 lanes, on a CPU).
    block = len(x)
    rows = [sum(matrices[i, k][:, None] * x[k] for k in range(block)) for i in range(block)]
    return jnp.stack(rows)


def _turn(matrices: Array, factor: Array) -> Array:
    """The same for the rows of a factor, shape `(rank, block, modes, *lanes)`."""
    block = factor.shape[1]
    rows = [sum(matrices[i, k] * factor[:, k] for k in range(block)) for i in range(block)]
    return jnp.stack(rows, axis=1)


def _pair(factor: Array, turned: Array) -> Float[Array, "rank rank *lanes"]:
    rank, block, modes, *lanes = factor.shape
    along = lambda j: sum(factor[:, None, i, j] * turned[None, :, i, j] for i in range(block))
    return sum_over(along, modes, jnp.zeros((rank, rank, *lanes), factor.dtype))


def _identity(factor: Array) -> Array:
    rank, lanes = factor.shape[0], factor.ndim - 3
    return jnp.eye(rank, dtype=factor.dtype).reshape(rank, rank, *(1,) * lanes)
