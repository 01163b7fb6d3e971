"""The closed forms of the white-noise loss of diagonal models for many displacements side by side.

Where a start lies off the plateau, or a flow comes back to one, terms of order one cancel to a
gradient that may be below their rounding. So gradients can also be had from displacements of
twice the digits.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from ..curvature import AbstractCurvature, BlockCurvature, DenseCurvature, GradedCurvature
from ..models import AbstractModel, DiagonalLinearRNN
from ..numerics import complete_gram_factor, exponential_coefficients, gram_factor
from ..numerics import double_double as dd
from ..reparam import AbstractReparametrisation
from ..targets import AbstractKernel
from ._lane_base import AbstractLossLanes, Linearisation
from ._mode_sums import (
    direct_sums,
    Nodes,
    pair_sums,
    rounding_of_merging,
    spread_out,
    Start,
    sums_through_nodes,
)
from ._remainder import remainder_pairs, remainder_transforms
from ._white_noise import residual_modes, split_target, underflow, WhiteNoiseLoss

# Up to this width the Hessian is an array; of wider models it is blocks of that rank besides. Twice
# this width is the size up to which arrays are eliminated across lanes. With rates in [0.6, 3],
# eight rows leave less than 1e-8 of the Gram matrix, at 8, 16 and 64 modes. Where they leave too
# much, Newton's iteration is slower, but what it solves stays the same.
DENSE_WIDTH, _RANK = 8, 8
# Up to this width small curvatures are kept where gradients have twice the digits: a factor with as
# many rows as weights, and a basis that costs their cube.
_GRADED_WIDTH = 64
# From this width on sums over modes go through few exponentials.
_WIDE = 96


class _Moved(NamedTuple):
    """Weights at a displacement, for several stages of every lane: amplitudes and rates, by how
    much both moved, and the first two derivatives of the rates in the free weights."""

    amplitudes: Array
    rates: Array
    moves: tuple[Array, Array]
    slopes: tuple[Array, Array]


class _LossTerms(NamedTuple):
    """The loss as a sum over modes: their amplitudes in model minus target, and there the
    transforms of these modes and of the remainder, and the moduli that make up the first."""

    modes: Array
    transforms: Array
    tails: Array
    moduli: Array


class _Compensated(NamedTuple):
    """What is rounded only once: the gradient, an estimate of its error, and the first two
    derivatives of the residual's transform."""

    gradient: Array
    noise: Array
    e1: Array
    e2: Array


class SpectralLanes(AbstractLossLanes):
    r"""The white-noise loss of diagonal models, as a function of the displacement.

    The weights are amplitudes and free rates, in this order; every difference is formed
    without cancellation, so that displacements may be as small as floats get.
    """

    amplitudes: Float[Array, "width *lanes"]
    free_rates: Float[Array, "width *lanes"]
    rates: Float[Array, "width *lanes"]
    # Model minus target at the start, modes of the model first: amplitudes, merged where rates are
    # equal, and what they are short of in float64.
    merged: Float[Array, "modes *lanes"]
    merged_low: Float[Array, "modes *lanes"]
    target_amplitudes: Float[Array, "terms *lanes"]
    target_rates: Float[Array, "terms *lanes"]
    remainder_norm: Float[Array, "*lanes"]
    # The exponentials of wide models.
    nodes: Nodes | None
    reparametrisation: AbstractReparametrisation
    remainder: AbstractKernel | None
    # Which modes are there, and no padding.
    present: Bool[Array, "width *lanes"] | None = None

    @staticmethod
    def accepts(loss: Any, model: AbstractModel) -> bool:
        """Whether these closed forms are those of a loss and a model."""
        # Of these classes and no others: a subclass may have a loss or a kernel of its own.
        return (
            type(loss) is WhiteNoiseLoss
            and loss.horizon is None
            and loss.target.shape == ()
            and type(model) is DiagonalLinearRNN
        )

    @staticmethod
    def build(loss: WhiteNoiseLoss, model: DiagonalLinearRNN) -> "SpectralLanes":
        """The closed forms of one run, with the displacement counted from `model`."""
        active, remainder = split_target(loss.target)
        merged, modes, rates = residual_modes(model.amplitudes, model.rates, active)
        nodes = None
        if model.width >= _WIDE:
            # They stay where they are, so that the coefficients of the start are computed once, and
            # later ones are these plus what the moves add.
            chosen = spread_out(rates)
            nodes = Nodes(chosen, *exponential_coefficients(merged, rates, chosen))
        return SpectralLanes(
            amplitudes=model.amplitudes,
            free_rates=model.free_rates,
            rates=model.rates,
            merged=merged,
            merged_low=rounding_of_merging(merged, modes, rates),
            target_amplitudes=active.amplitudes,
            target_rates=active.rates,
            remainder_norm=jnp.zeros(()) if remainder is None else remainder.squared_norm(),
            nodes=nodes,
            reparametrisation=model.reparametrisation,
            remainder=remainder,
        )

    def padded(self, width: int) -> "SpectralLanes":
        """The same with as many modes, those added without an amplitude and without a move."""
        size = len(self.rates)
        added = width - size
        none = jnp.zeros(added, self.rates.dtype)
        insert = lambda x: jnp.concatenate([x[:size], none, x[size:]])
        # Close to a rate of the model's own, and no two alike. Once that rate is eliminated from a
        # Gram matrix next to nothing is left of its neighbours, so that they take up no rank.
        near = lambda x: jnp.concatenate([x, _beside(x[0], added)])
        return dataclasses.replace(
            self,
            amplitudes=insert(self.amplitudes),
            free_rates=near(self.free_rates),
            rates=near(self.rates),
            merged=insert(self.merged),
            merged_low=insert(self.merged_low),
            present=jnp.arange(width) < size,
        )

    @property
    def width(self) -> int:
        """The number of modes."""
        return len(self.rates)

    @property
    def can_pad(self) -> bool:
        """Whether `padded` serves: the sums of wide models go through rates of their own."""
        return self.nodes is None

    @property
    def compensable(self) -> bool:
        return _has_pairs(self.reparametrisation)

    @staticmethod
    def compensates(loss: Any, model: AbstractModel) -> bool:
        """Whether gradients in double-double are there for a loss and a model."""
        return (
            SpectralLanes.accepts(loss, model)
            and isinstance(model, DiagonalLinearRNN)
            and _has_pairs(model.reparametrisation)
        )

    @property
    def closed(self) -> bool:
        return True

    def descent(
        self,
        y: Float[Array, "n stages lanes"],
        low: Float[Array, "n stages lanes"] | None = None,
    ) -> Float[Array, "n stages lanes"]:
        if low is not None:
            return self._of_present(-self._compensated(y, low).gradient)
        # With E the transform of model minus target, dJ/da = 2 E(w) and dJ/dw = 2 a E'(w), since
        # the derivative of e^(-wt) in w is -t e^(-wt).
        at = self._move(y)
        e0, e1 = self._residual(at.rates, at.moves, 1)
        return self._of_present(-2 * jnp.concatenate([e0, at.amplitudes * e1 * at.slopes[0]]))

    def linearise(
        self, y: Float[Array, "n lanes"], low: Float[Array, "n lanes"] | None = None
    ) -> Linearisation:
        at = self._move(y[:, None])
        a, w = at.amplitudes[:, 0], at.rates[:, 0]
        first, second = at.slopes[0][:, 0], at.slopes[1][:, 0]
        a_first = a * first
        if low is None:
            e0, e1, e2, m0, m1 = (x[:, 0] for x in self._residual(at.rates, at.moves, 2, True))
            unit = 8 * jnp.finfo(y.dtype).eps
            gradient = 2 * jnp.concatenate([e0, a_first * e1])
            lost = underflow(self.remainder_norm, float(jnp.finfo(y.dtype).tiny))
            noise = unit * jnp.concatenate([m0, jnp.abs(a_first) * m1]) + 2 * lost
        else:
            found = self._compensated(y[:, None], low[:, None])
            gradient, noise, e1, e2 = (x[:, 0] for x in found)
        # Twice the residual against second derivatives of the kernel: in an amplitude and its own
        # rate, and in a rate twice. All others are 0.
        crossed, curved = 2 * e1 * first, 2 * a * (e2 * first**2 + e1 * second)
        # Not with twice the digits: where modes merge the small curvatures decide, which in an
        # array are rounding errors of the large ones.
        if low is None and a.shape[0] <= DENSE_WIDTH:
            hessian = _dense_hessian(w, a_first, crossed, curved)
            if self.present is not None:
                both = jnp.concatenate([self.present, self.present])
                hessian = jnp.where(both[:, None] & both, hessian, 0)
            curvature: AbstractCurvature = DenseCurvature(hessian)
        else:
            blocks = jnp.stack([jnp.stack([0 * w, crossed]), jnp.stack([crossed, curved])])
            order = None
            if low is not None and a.shape[0] <= _GRADED_WIDTH:
                factor, order = complete_gram_factor(w, a_first, self.present)
            else:
                factor = gram_factor(w, a_first, min(_RANK, 2 * a.shape[0]))
            if self.present is not None:
                blocks, factor = (jnp.where(self.present, x, 0) for x in (blocks, factor))
            # J is a squared norm: the first part of its Hessian is twice the Gram matrix.
            parts = blocks, math.sqrt(2) * factor
            curvature = BlockCurvature(*parts) if order is None else GradedCurvature(*parts, order)
        gradient, noise = (self._of_present(x[:, None])[:, 0] for x in (gradient, noise))
        return Linearisation(self.loss(y), gradient, curvature, noise)

    def _of_present(self, x: Float[Array, "n stages lanes"]) -> Float[Array, "n stages lanes"]:
        """What belongs to weights that are there."""
        if self.present is None:
            return x
        return jnp.where(jnp.concatenate([self.present, self.present])[:, None], x, 0)

    def loss(self, y: Float[Array, "n lanes"]) -> Float[Array, " lanes"]:
        # With the modes g = sum_k c_k e^(-v_k t) of model minus target and the remainder r,
        # J = <g, g> - 2 <g, r> + |r|^2, and the inner product with e^(-vt) is the transform at v.
        terms = self._loss_terms(y)
        return self.remainder_norm + jnp.sum(
            terms.modes * (terms.transforms - 2 * terms.tails), axis=0
        )

    def loss_noise(self, y: Float[Array, "n lanes"]) -> Float[Array, " lanes"]:
        terms = self._loss_terms(y, moduli=True)
        sizes = jnp.abs(terms.modes) * (terms.moduli + 2 * jnp.abs(terms.tails))
        return 8 * jnp.finfo(y.dtype).eps * (self.remainder_norm + jnp.sum(sizes, axis=0))

    def _loss_terms(self, y: Float[Array, "n lanes"], moduli: bool = False) -> _LossTerms:
        """The terms of the loss, in the form that does not cancel."""
        at = self._move(y[:, None])
        modes = jnp.concatenate([at.amplitudes[:, 0], -self.target_amplitudes])
        s = jnp.concatenate([at.rates, self.target_rates[:, None]])
        # Without the remainder, which has another factor in the loss than in its gradient.
        own = dataclasses.replace(self, remainder=None)
        totals = own._residual(s, at.moves, 0, moduli=moduli)
        tails = jnp.zeros_like(s)
        if self.remainder is not None:
            tails = remainder_transforms(self.remainder, s, 0)[0]
        return _LossTerms(modes, totals[0][:, 0], tails[:, 0], totals[-1][:, 0])

    def _move(self, y: Float[Array, "n stages lanes"]) -> _Moved:
        """The weights at a displacement."""
        width = self.rates.shape[0]
        alpha, change = y[:width], y[width:]
        free = self.free_rates[:, None]
        move = lambda change: self.reparametrisation.displacement(free, change)
        # Every rate depends on its own weight alone, so that one direction of ones gives the
        # derivatives of all of them.
        slope = lambda change: jax.jvp(move, (change,), (jnp.ones_like(change),))[1]
        first, second = jax.jvp(slope, (change,), (jnp.ones_like(change),))
        nu = move(change)
        rates = self.rates[:, None] + nu
        # A mode that does not decay has no closed form, only meaningless numbers.
        rates = jnp.where(rates > 0, rates, jnp.nan)
        return _Moved(self.amplitudes[:, None] + alpha, rates, (alpha, nu), (first, second))

    def _compensated(self, y: Array, low: Array) -> _Compensated:
        """What a step needs at displacements `y + low`."""
        width = self.rates.shape[0]
        # Without overlap, so that the upper part alone is within a unit of the sum.
        high, low = dd.two_sum(y, low)
        alpha, change = (high[:width], low[:width]), (high[width:], low[width:])
        start = jnp.broadcast_to(self.rates[:, None], alpha[0].shape)
        displacement = self.reparametrisation.displaced_pair(start, change)
        if displacement is None:
            raise TypeError(
                "`reparametrisation` must have `displaced_pair` for double-double arithmetic, got "
                f'{type(self.reparametrisation).__name__}; pass precision="float64".'
            )
        nu, slope = displacement
        # What may have cancelled enters products, which drop the product of the lower parts.
        rates = dd.two_sum(*dd.add_float(nu, start))
        rates = (jnp.where(rates[0] > 0, rates[0], jnp.nan), rates[1])
        amplitudes = dd.two_sum(*dd.add_float(alpha, self.amplitudes[:, None]))

        e0, e1, e2, m0, m1 = pair_sums(self._start, rates, alpha, nu)
        unknown = jnp.zeros_like(start), jnp.zeros_like(start)
        if self.remainder is not None:
            t0, t1, t2, unknown = remainder_pairs(self.remainder, rates)
            e0, e1 = dd.add(e0, dd.negative(t0)), dd.add(e1, dd.negative(t1))
            # It goes into the Hessian only, which steers Newton's iteration and not its result.
            e2 = dd.add_float(e2, -t2)
        first = jnp.add(*e1)
        e1 = dd.multiply(dd.multiply(amplitudes, slope), dd.two_sum(*e1))
        gradient = 2 * jnp.concatenate([jnp.add(*e0), jnp.add(*e1)])

        eps = float(jnp.finfo(y.dtype).eps)
        factor = jnp.abs(amplitudes[0] * slope[0])
        # Operations on pairs are right to a few eps^2 / 4 of the moduli, and the result is rounded
        # to one number.
        noise = 2 * eps**2 * jnp.concatenate([m0, factor * m1])
        noise = noise + eps / 2 * jnp.abs(gradient)
        of_tails = jnp.concatenate([unknown[0], factor * unknown[1]])
        # Products of pairs are right down to this.
        lost = underflow(self.remainder_norm, 2.0**-916)
        noise = noise + of_tails + lost
        return _Compensated(gradient, noise, first, jnp.add(*e2))

    @property
    def _start(self) -> Start:
        """The modes before they moved."""
        return Start(self.amplitudes, self.rates, self.target_rates, self.merged, self.merged_low)

    def _residual(self, s: Array, moves: tuple[Array, Array], order: int, moduli: bool = False):
        r"""The Laplace transform of model minus target and its derivatives up to `order` at the
        moved rates, and with `moduli` the sums of the moduli of the terms of the first two."""
        start = self._start
        if self.nodes is None:
            totals = list(direct_sums(start, s, moves, order, moduli))
        else:
            totals = list(sums_through_nodes(start, self.nodes, s, moves, order, moduli))
        if self.remainder is not None:
            tails = remainder_transforms(self.remainder, s, order)
            for k, tail in enumerate(tails):
                totals[k] = totals[k] - tail
                if moduli and k < 2:
                    totals[order + 1 + k] = totals[order + 1 + k] + jnp.abs(tail)
        return tuple(totals)


def _has_pairs(reparametrisation: AbstractReparametrisation) -> bool:
    kind = type(reparametrisation)
    return kind.displaced_pair is not AbstractReparametrisation.displaced_pair


def _beside(x: Float[Array, ""], count: int) -> Float[Array, " count"]:
    """Numbers close to one."""
    return x + 1e-9 * (1 + jnp.abs(x)) * (1 + jnp.arange(count))


def _dense_hessian(w: Array, a_first: Array, crossed: Array, curved: Array) -> Array:
    # Every entry is a power of p times what belongs to its row and column: the product of e^(-vt)
    # and e^(-wt) has the integral p = 1 / (v + w), with one factor -t it is -p^2, with two 2 p^3.
    # Twice each, as J is a squared norm.
    width, both = w.shape[0], jnp.concatenate([w, w])
    factors = jnp.concatenate([jnp.ones_like(w), a_first])
    p = 1 / (both[:, None] + both[None])
    kind = (np.arange(2 * width) >= width).astype(int)
    kind = (kind[:, None] + kind[None])[..., None]
    powers = jnp.where(kind == 0, 2 * p, jnp.where(kind == 1, -2 * p**2, 4 * p**3))
    extra = jnp.where(kind == 2, jnp.concatenate([curved, curved])[:, None], 0)
    extra = jnp.where(kind == 1, jnp.concatenate([crossed, crossed])[:, None], extra)
    place = np.arange(2 * width) % width
    same = (place[:, None] == place[None])[..., None]
    return powers * factors[:, None] * factors[None] + jnp.where(same, extra, 0)
