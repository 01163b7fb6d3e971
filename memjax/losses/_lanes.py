"""The closed forms of the white-noise loss for many displacements side by side.

Lanes, independent training runs, are the last axis of every array, which is how vector units
and accelerators want them. Arrays of stages have one axis more before it.
"""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..models import AbstractModel, DiagonalLinearRNN
from ..reparam import AbstractReparametrisation
from ..targets import AbstractKernel, GaussianBump
from ._white_noise import residual_modes, split_target, WhiteNoiseLoss

class Linearisation(eqx.Module):
    """Everything that a step needs to know of a loss at one state of every lane.

    **Attributes:**

    - `loss`: shape `(lanes,)`.
    - `gradient`: shape `(n, lanes)`.
    - `hessian`: shape `(lanes, n, n)`, as factorisations want it.
    - `noise`: an estimate of the rounding error of the gradient, shape `(n, lanes)`.
    """

    loss: Float[Array, " lanes"]
    gradient: Float[Array, "n lanes"]
    hessian: Float[Array, "lanes n n"]
    noise: Float[Array, "n lanes"]


class SpectralLanes(eqx.Module):
    r"""The white-noise loss of diagonal models, as a function of the displacement.

    The weights are amplitudes and free rates, in this order; every difference is formed
    without cancellation, so that displacements may be as small as floats get. An instance
    holds one run; mapped over runs with the new axis last it holds lanes, and only then do its
    methods apply.
    """

    amplitudes: Float[Array, " width"]
    free_rates: Float[Array, " width"]
    rates: Float[Array, " width"]
    merged: Float[Array, " modes"]
    target_amplitudes: Float[Array, " terms"]
    target_rates: Float[Array, " terms"]
    target_norm: Float[Array, ""]
    reparametrisation: AbstractReparametrisation
    remainder: AbstractKernel | None

    @staticmethod
    def accepts(loss: Any, model: AbstractModel) -> bool:
        """Whether these closed forms are those of a loss and a model."""
        return (
            type(loss) is WhiteNoiseLoss
            and loss.horizon is None
            and type(model) is DiagonalLinearRNN
        )

    @staticmethod
    def build(loss: WhiteNoiseLoss, model: DiagonalLinearRNN) -> "SpectralLanes":
        active, remainder = split_target(loss.target)
        return SpectralLanes(
            amplitudes=model.amplitudes,
            free_rates=model.free_rates,
            rates=model.rates,
            merged=residual_modes(model.amplitudes, model.rates, active)[0],
            target_amplitudes=active.amplitudes,
            target_rates=active.rates,
            target_norm=loss.target.squared_norm(),
            reparametrisation=model.reparametrisation,
            remainder=remainder,
        )

    def descent(self, y: Float[Array, "n stages lanes"]) -> Float[Array, "n stages lanes"]:
        """Minus the gradient at several displacements of every lane."""
        amplitudes, rates, moves, slopes = self._moved(y)
        e0, e1 = self._residual(rates, moves, 1)
        return -2 * jnp.concatenate([e0, amplitudes * e1 * slopes[0]])

    def linearise(self, y: Float[Array, "n lanes"]) -> Linearisation:
        """Loss, gradient and Hessian at one displacement of every lane."""
        amplitudes, rates, moves, slopes = self._moved(y[:, None])
        e0, e1, e2, m0, m1 = (x[:, 0] for x in self._residual(rates, moves, 2, moduli=True))
        a, w = amplitudes[:, 0], rates[:, 0]
        first, second = slopes[0][:, 0], slopes[1][:, 0]

        # Every entry is a power of p times what belongs to its row and column.
        a_first = a * first
        crossed, curved = 2 * e1 * first, 2 * a * (e2 * first**2 + e1 * second)
        turned = lambda x, y: jnp.concatenate([x, y]).T
        both, factors = turned(w, w), turned(jnp.ones_like(a), a_first)
        p = 1 / (both[:, :, None] + both[:, None, :])
        kind = (np.arange(y.shape[0]) >= a.shape[0]).astype(int)
        kind = kind[:, None] + kind[None, :]
        powers = jnp.where(kind == 0, 2 * p, jnp.where(kind == 1, -2 * p**2, 4 * p**3))
        hessian = powers * factors[:, :, None] * factors[:, None, :]
        extra = jnp.where(kind == 2, turned(curved, curved)[:, :, None], 0)
        extra = jnp.where(kind == 1, turned(crossed, crossed)[:, :, None], extra)
        place = np.arange(y.shape[0]) % a.shape[0]
        hessian = hessian + jnp.where(place[:, None] == place[None, :], extra, 0)
        unit = 8 * jnp.finfo(y.dtype).eps
        return Linearisation(
            loss=self.loss(y),
            gradient=2 * jnp.concatenate([e0, a_first * e1]),
            hessian=hessian,
            noise=unit * jnp.concatenate([m0, jnp.abs(a_first) * m1]),
        )

    def loss(self, y: Float[Array, "n lanes"]) -> Float[Array, " lanes"]:
        """The loss at one displacement of every lane."""
        amplitudes, rates, _, _ = self._moved(y[:, None])
        a, w = amplitudes[:, 0], rates[:, 0]
        inner = _sum(lambda j: a[j] / (w + w[j]), w.shape[0], jnp.zeros_like(w))
        target = jnp.zeros_like(w)
        for k in range(self.target_rates.shape[0]):
            target = target + self.target_amplitudes[k] / (w + self.target_rates[k])
        if self.remainder is not None:
            target = target + _transforms(self.remainder, rates, 0)[0][:, 0]
        return self.target_norm + jnp.sum(a * (inner - 2 * target), axis=0)

    def _moved(self, y: Float[Array, "n stages lanes"]) -> tuple[Any, ...]:
        """Amplitudes, rates, how they moved, and the reparametrisation's two derivatives."""
        width = self.rates.shape[0]
        alpha, change = y[:width], y[width:]
        free = self.free_rates[:, None]
        move = lambda change: self.reparametrisation.displacement(free, change)
        slope = lambda change: jax.jvp(move, (change,), (jnp.ones_like(change),))[1]
        first, second = jax.jvp(slope, (change,), (jnp.ones_like(change),))
        nu = move(change)
        rates = self.rates[:, None] + nu
        # A mode that does not decay has no closed form, only meaningless numbers.
        rates = jnp.where(rates > 0, rates, jnp.nan)
        return self.amplitudes[:, None] + alpha, rates, (alpha, nu), (first, second)

    def _residual(self, s: Array, moves: tuple[Array, Array], order: int, moduli: bool = False):
        r"""The Laplace transform of model minus target and its derivatives up to `order` at the
        moved rates, and with `moduli` the sums of the moduli of the terms of the first two."""
        alpha, nu = moves
        width, terms = self.rates.shape[0], self.target_rates.shape[0]
        start, merged = self.rates[:, None], self.merged[:, None]
        # The product that carries the difference of two reciprocals.
        pull = self.amplitudes[:, None] * nu
        after = start + nu

        def mode(j: Any) -> tuple[Array, ...]:
            p, q = 1 / (s + after[j]), 1 / (s + start[j])
            pq = p * q
            parts = [
                (alpha[j] * p, -pull[j] * pq, merged[j] * q),
                (-alpha[j] * p**2, pull[j] * pq * (p + q), -merged[j] * q**2),
            ]
            sums = [sum(part) for part in parts]
            if order == 2:
                curved = p**2 + pq + q**2
                sums.append(2 * (alpha[j] * p**3 - pull[j] * pq * curved + merged[j] * q**3))
            if moduli:
                sums += [sum(jnp.abs(x) for x in part) for part in parts]
            return tuple(sums)

        # The loop over modes comes last: what it returns stands in memory, while all else might
        # be evaluated anew wherever it is used.
        totals = [jnp.zeros_like(s)] * (order + 1 + 2 * moduli)
        for k in range(terms):
            b, r = merged[width + k], 1 / (s + self.target_rates[k])
            powers = [b * r, -b * r**2, 2 * b * r**3][: order + 1]
            powers += [jnp.abs(x) for x in powers[:2]] if moduli else []
            totals = [total + power for total, power in zip(totals, powers, strict=True)]
        if self.remainder is not None:
            tails = _transforms(self.remainder, s, order)
            for k, tail in enumerate(tails):
                totals[k] = totals[k] - tail
                if moduli and k < 2:
                    totals[order + 1 + k] = totals[order + 1 + k] + jnp.abs(tail)
        return _sum(mode, width, tuple(totals))


def _sum(term: Any, count: int, start: Any) -> Any:
    """`start` and the sum of `term(j)` over all `j < count`."""
    add = lambda j, total: jax.tree.map(jnp.add, total, term(j))
    return jax.lax.fori_loop(0, count, add, start, unroll=min(4, max(1, count // 2)))


def _transforms(kernel: AbstractKernel, s: Array, order: int) -> tuple[Array, ...]:
    """The Laplace transform of every lane's kernel, and its derivatives."""
    terms = getattr(kernel, "terms", None)
    if terms is not None:
        each = [_transforms(term, s, order) for term in terms]
        return tuple(sum(values) for values in zip(*each, strict=True))
    if type(kernel) is GaussianBump:
        # Its scalars broadcast against the lanes as they are.
        return kernel.laplace_derivatives(s, order)
    of_lane = lambda kernel, s: kernel.laplace_derivatives(s, order)
    return eqx.filter_vmap(of_lane, in_axes=(eqx.if_array(-1), -1), out_axes=-1)(kernel, s)
