"""The white-noise loss of models whose modes oscillate, for many displacements side by side."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float

from ..curvature import BlockCurvature
from ..models import AbstractModel, ComplexDiagonalRNN
from ..numerics import oscillating_gram_factor, reciprocal, sum_over
from ..reparam import AbstractReparametrisation
from ..targets import (
    AbstractKernel,
    complex_transforms,
    DampedOscillation,
    ExponentialSum,
    has_complex_transforms,
    terms,
)
from ._lane_base import AbstractLossLanes, Linearisation
from ._mode_sums import of_mode
from ._white_noise import merge_modes, underflow, WhiteNoiseLoss

# Hessians are blocks and a factor with so many rows, see `SpectralLanes`.
_RANK = 16


class _Moved(NamedTuple):
    """Weights at a displacement, for several stages of every lane: complex amplitudes and rates of
    modes, by how much both moved, and the first two derivatives of the decay rates in the free
    weights."""

    amplitudes: Array
    rates: Array
    moves: tuple[Array, Array]
    slopes: tuple[Array, Array]


class OscillatingLanes(AbstractLossLanes):
    r"""The white-noise loss of a [`memjax.ComplexDiagonalRNN`][] as a function of the displacement.

    With $c_j = a_j - \mathrm{i} b_j$ and $s_j = w_j - \mathrm{i} \nu_j$ the model's kernel is
    $\operatorname{Re} \sum_j c_j e^{-s_j t}$, and with $E$ the Laplace transform of model minus
    target

    $$\partial_{a_j} J + \mathrm{i}\, \partial_{b_j} J = 2 E(s_j), \qquad
    \partial_{w_j} J + \mathrm{i}\, \partial_{\nu_j} J = 2 c_j E'(s_j).$$

    The weights are cosines, sines, free rates and frequencies, in this order. A mode that starts
    with neither sine nor frequency stays so, since the loss does not change when both change their
    signs; rounding must not let it turn.
    """

    amplitudes: Complex[Array, "width *lanes"]
    free_rates: Float[Array, "width *lanes"]
    rates: Complex[Array, "width *lanes"]
    turning: Bool[Array, "width *lanes"]
    # Model minus target at the start: the modes, their conjugates, then those of the target.
    merged: Complex[Array, "modes *lanes"]
    target_amplitudes: Complex[Array, "terms *lanes"]
    target_rates: Complex[Array, "terms *lanes"]
    remainder_norm: Float[Array, "*lanes"]
    reparametrisation: AbstractReparametrisation
    remainder: tuple[tuple[Any, AbstractKernel], ...]

    @staticmethod
    def accepts(loss: Any, model: AbstractModel) -> bool:
        """Whether these closed forms are those of a loss and a model."""
        if type(loss) is not WhiteNoiseLoss or loss.horizon is not None:
            return False
        if type(model) is not ComplexDiagonalRNN or loss.target.shape != ():
            return False
        modal = (ExponentialSum, DampedOscillation)
        known = [isinstance(k, modal) or has_complex_transforms(k) for _, k in terms(loss.target)]
        return all(known)

    @staticmethod
    def build(loss: WhiteNoiseLoss, model: ComplexDiagonalRNN) -> "OscillatingLanes":
        """The closed forms of one run, with the displacement counted from `model`."""
        amplitudes, rates, remainder = [], [], []
        for factor, kernel in terms(loss.target):
            if isinstance(kernel, ExponentialSum):
                amplitudes.append(factor * kernel.amplitudes + 0j)
                rates.append(kernel.rates + 0j)
            elif isinstance(kernel, DampedOscillation):
                c, s = kernel.cosine - 1j * kernel.sine, kernel.rates - 1j * kernel.frequencies
                amplitudes += [factor * c / 2, factor * jnp.conj(c) / 2]
                rates += [s, jnp.conj(s)]
            else:
                # An array, since a number of Python has no axis of lanes.
                remainder.append((jnp.asarray(factor, float), kernel))
        none = jnp.zeros(0, complex)
        c, s = model.cosine - 1j * model.sine, model.rates - 1j * model.frequencies
        of_target = jnp.concatenate([none, *amplitudes]), jnp.concatenate([none, *rates])
        # A real part is half of a mode and half of its conjugate. A mode that does not turn equals
        # its conjugate, with which it is merged.
        merged, _, _ = merge_modes(
            jnp.concatenate([c / 2, jnp.conj(c) / 2, -of_target[0]]),
            jnp.concatenate([s, jnp.conj(s), of_target[1]]),
        )
        rest = [factor * kernel for factor, kernel in remainder]
        return OscillatingLanes(
            amplitudes=c,
            free_rates=model.free_rates,
            rates=s,
            turning=(model.sine != 0) | (model.frequencies != 0),
            merged=merged,
            target_amplitudes=of_target[0],
            target_rates=of_target[1],
            remainder_norm=sum(rest[1:], rest[0]).squared_norm() if rest else jnp.zeros(()),
            reparametrisation=model.reparametrisation,
            remainder=tuple(remainder),
        )

    @property
    def compensable(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        return True

    def descent(
        self, y: Float[Array, "n stages lanes"], low: Array | None = None
    ) -> Float[Array, "n stages lanes"]:
        at = self._move(y)
        e0, e1 = self._residual(at.rates, at.moves, 1)
        moving = self._moving[:, None]
        return jnp.where(moving, -2 * _by_weights(e0, at.amplitudes * e1, at.slopes[0]), 0)

    def linearise(self, y: Float[Array, "n lanes"], low: Array | None = None) -> Linearisation:
        at = self._move(y[:, None])
        e0, e1, e2, m0, m1 = (x[:, 0] for x in self._residual(at.rates, at.moves, 2, moduli=True))
        c, s = at.amplitudes[:, 0], at.rates[:, 0]
        first, second = at.slopes[0][:, 0], at.slopes[1][:, 0]
        moving = self._moving
        gradient = jnp.where(moving, 2 * _by_weights(e0, c * e1, first), 0)
        lost = underflow(self.remainder_norm, float(jnp.finfo(y.dtype).tiny))
        # Either part of a complex number may have all of its error.
        sizes = jnp.concatenate([m0, m0, first * abs(c) * m1, abs(c) * m1])
        noise = jnp.where(moving, 16 * jnp.finfo(y.dtype).eps * jnp.abs(sizes) + 2 * lost, 0)
        whole = _curvature(c, s, first, second, e1, e2)
        # A row of zeros says that the loss does not feel a weight, see `AbstractCurvature.inert`.
        moving = moving.reshape(4, *c.shape)
        blocks = jnp.where(moving[:, None] & moving[None], whole.blocks, 0)
        curvature = BlockCurvature(blocks, jnp.where(moving, whole.factor, 0))
        return Linearisation(self.loss(y), gradient, curvature, noise)

    def loss(self, y: Float[Array, "n lanes"]) -> Float[Array, " lanes"]:
        # As in `SpectralLanes.loss`: the inner product of Re c e^(-st) with a real function is the
        # real part of c times its transform at s.
        modes, own, tails, _ = self._loss_terms(y)
        return self.remainder_norm + jnp.sum((modes * (own - 2 * tails)).real, axis=0)

    def loss_noise(self, y: Float[Array, "n lanes"]) -> Float[Array, " lanes"]:
        modes, _, tails, moduli = self._loss_terms(y, moduli=True)
        sizes = jnp.abs(modes) * (moduli + 2 * jnp.abs(tails))
        return 16 * jnp.finfo(y.dtype).eps * (self.remainder_norm + jnp.sum(sizes, axis=0))

    def _loss_terms(self, y: Array, moduli: bool = False) -> tuple[Array, Array, Array, Array]:
        """The amplitudes of model minus target, and there the transforms of these modes and of the
        remainder, and the moduli that make up the first."""
        at = self._move(y[:, None])
        modes = jnp.concatenate([at.amplitudes[:, 0], -self.target_amplitudes])
        s = jnp.concatenate([at.rates, self.target_rates[:, None]])
        own = self._of_modes(s, at.moves, 0, moduli)
        return modes, own[0][:, 0], self._tails(s, 0)[0][:, 0], own[-1][:, 0]

    @property
    def _moving(self) -> Bool[Array, "n *lanes"]:
        """Which weights may move."""
        always = jnp.ones_like(self.turning)
        return jnp.concatenate([always, self.turning, always, self.turning])

    def _move(self, y: Float[Array, "n stages lanes"]) -> _Moved:
        """The weights at a displacement."""
        cosine, sine, change, frequency = jnp.split(y, 4)
        free = self.free_rates[:, None]
        move = lambda change: self.reparametrisation.displacement(free, change)
        slope = lambda change: jax.jvp(move, (change,), (jnp.ones_like(change),))[1]
        first, second = jax.jvp(slope, (change,), (jnp.ones_like(change),))
        # Of c = a - i b and s = w - i nu.
        moves = cosine - 1j * sine, move(change) - 1j * frequency
        rates = self.rates[:, None] + moves[1]
        # A mode that does not decay has no closed form, only meaningless numbers.
        rates = jnp.where(rates.real > 0, rates, jnp.nan)
        return _Moved(self.amplitudes[:, None] + moves[0], rates, moves, (first, second))

    def _residual(
        self, s: Array, moves: tuple[Array, Array], order: int, moduli: bool = False
    ) -> tuple[Array, ...]:
        r"""The Laplace transform of model minus target and its derivatives up to `order` at the
        moved rates, and with `moduli` the sums of the moduli of the terms of the first two."""
        totals = list(self._of_modes(s, moves, order, moduli))
        for k, tail in enumerate(self._tails(s, order)):
            totals[k] = totals[k] - tail
            if moduli and k < 2:
                totals[order + 1 + k] = totals[order + 1 + k] + jnp.abs(tail)
        return tuple(totals)

    def _tails(self, s: Array, order: int) -> list[Array]:
        """The transforms of what the target has besides modes."""
        totals = [jnp.zeros_like(s)] * (order + 1)
        for factor, kernel in self.remainder:
            values = complex_transforms(kernel, s, order)
            assert values is not None
            totals = [total + factor * v for total, v in zip(totals, values, strict=True)]
        return totals

    def _of_modes(
        self, s: Array, moves: tuple[Array, Array], order: int, moduli: bool
    ) -> tuple[Array, ...]:
        """`_residual` without the remainder, as sums over modes and their conjugates."""
        width, start = len(self.rates), self.rates[:, None]
        merged, change = self.merged[:, None], moves[0] / 2
        pull, after = self.amplitudes[:, None] * moves[1] / 2, start + moves[1]
        flip = jnp.conj

        def mode(j: Any) -> tuple[Any, ...]:
            # The merged amplitude of a conjugate is looked up: where the two were merged it is 0.
            x, y = change[j], pull[j]
            terms = [(x, y, merged[j], s + after[j], s + start[j])]
            terms += [(flip(x), flip(y), merged[width + j], s + flip(after[j]), s + flip(start[j]))]
            parts = []
            for alpha, own, standing, moved, still in terms:
                p, q = reciprocal(moved), reciprocal(still)
                parts.append(of_mode(alpha, own, standing, p, q, order, moduli))
            return tuple(a + b for a, b in zip(*parts, strict=True))

        zero = jnp.zeros_like(s)
        totals = [zero] * (order + 1) + [zero.real] * (min(order + 1, 2) * moduli)
        for k in range(len(self.target_rates)):
            b, r = merged[2 * width + k], reciprocal(s + self.target_rates[k])
            powers = [b * r, -b * r**2, 2 * b * r**3][: order + 1]
            powers += [jnp.abs(x) for x in powers[:2]] if moduli else []
            totals = [total + power for total, power in zip(totals, powers, strict=True)]
        return sum_over(mode, width, tuple(totals))


def _by_weights(of_amplitudes: Array, of_rates: Array, slope: Array) -> Float[Array, "n ..."]:
    """Complex derivatives by amplitudes and rates as those by the weights."""
    parts = [of_amplitudes.real, of_amplitudes.imag, slope * of_rates.real, of_rates.imag]
    return jnp.concatenate(parts)


def _curvature(
    c: Complex[Array, "width lanes"],
    s: Complex[Array, "width lanes"],
    first: Float[Array, "width lanes"],
    second: Float[Array, "width lanes"],
    e1: Complex[Array, "width lanes"],
    e2: Complex[Array, "width lanes"],
) -> BlockCurvature:
    """Twice the Gram matrix of the derivatives of the model's kernel, and twice the residual
    against its second derivatives, which couple only weights of one mode."""
    factor = oscillating_gram_factor(s, c, first, min(_RANK, 4 * len(c)))
    # A derivative in b brings a factor -i to one in a, in w a factor -t, in nu a factor i t; E' and
    # E'' are the integrals against -t and t^2. So the block of b and nu has the sign of
    # (-i)(i t) = t, against -t in E', that of nu twice the sign of (i t)^2.
    crossed = 2 * e1
    curved = 2 * c * e2
    zero = jnp.zeros_like(first)
    steep, bent = first * crossed, first**2 * curved.real + second * (c * crossed).real
    mixed = first * curved.imag
    blocks = [
        [zero, zero, steep.real, crossed.imag],
        [zero, zero, steep.imag, -crossed.real],
        [steep.real, steep.imag, bent, mixed],
        [crossed.imag, -crossed.real, mixed, -curved.real],
    ]
    return BlockCurvature(jnp.stack([jnp.stack(row) for row in blocks]), math.sqrt(2) * factor)
