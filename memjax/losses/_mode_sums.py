"""The Laplace transform of model minus target, as sums over modes that have moved.

What the moves add is formed by itself, and what stood before is in merged amplitudes, so that
nothing cancels however small the moves are.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..numerics import double_double as dd
from ..numerics import Pair, sum_over

# The most exponentials for the sums of wide models. They are enough for rates that differ by a
# factor of up to 4e5; beyond it they leave out more, which is counted as noise.
_MOST_NODES = 64


class Start(NamedTuple):
    """Amplitudes and rates of the model before it moved, and the rates of the target; and the
    amplitudes of model minus target at the rates of both, merged where rates are equal, with what
    these are short of."""

    amplitudes: Float[Array, "width lanes"]
    rates: Float[Array, "width lanes"]
    target_rates: Float[Array, "terms lanes"]
    merged: Float[Array, "modes lanes"]
    merged_low: Float[Array, "modes lanes"]


class Nodes(NamedTuple):
    """The rates of orthonormal exponentials (`gram_factor`), the coefficients of model minus target
    at the start in these, and the sums of the moduli of the terms of each coefficient. Those that
    are not needed come last and have the rate 0: they are functions that are 0."""

    rates: Float[Array, "nodes lanes"]
    residue: Float[Array, "nodes lanes"]
    moduli: Float[Array, "nodes lanes"]


class PairSums(NamedTuple):
    """The transform of model minus target and two derivatives as pairs, and the sums of the moduli
    of the terms of the first two."""

    e0: Pair
    e1: Pair
    e2: Pair
    m0: Array
    m1: Array


def direct_sums(
    start: Start, s: Array, moves: tuple[Array, Array], order: int, moduli: bool
) -> tuple[Array, ...]:
    """The Laplace transform of model minus target, without its remainder, as sums over modes.

    **Arguments:**

    - `start`: the modes before they moved.
    - `s`: where to transform.
    - `moves`: by how much amplitudes and rates moved.
    - `order`: the order of the highest derivative, at most 2.
    - `moduli`: whether to sum the moduli of the terms of the first two besides.

    **Returns:**

    The transform and its derivatives, and then the sums of moduli.
    """
    alpha, nu = moves
    width, terms = start.rates.shape[0], start.target_rates.shape[0]
    before, merged = start.rates[:, None], start.merged[:, None]
    pull = start.amplitudes[:, None] * nu
    after = before + nu

    def mode(j: Any) -> tuple[Any, ...]:
        # One division for both reciprocals, which are most of the cost.
        first, second = s + after[j], s + before[j]
        pq = 1 / (first * second)
        return of_mode(alpha[j], pull[j], merged[j], pq * second, pq * first, order, moduli)

    # The loop over modes comes last: what it returns stands in memory, while all else might
    # be evaluated anew wherever it is used.
    totals = [jnp.zeros_like(s)] * (order + 1 + min(order + 1, 2) * moduli)
    for k in range(terms):
        b, r = merged[width + k], 1 / (s + start.target_rates[k])
        powers = [b * r, -b * r**2, 2 * b * r**3][: order + 1]
        powers += [jnp.abs(x) for x in powers[:2]] if moduli else []
        totals = [total + power for total, power in zip(totals, powers, strict=True)]
    return sum_over(mode, width, tuple(totals))


def of_mode(
    alpha: Array, pull: Array, standing: Array, p: Array, q: Array, order: int, moduli: bool
) -> tuple[Array, ...]:
    """What a mode adds to the sums of `direct_sums`.

    **Arguments:**

    - `alpha`: by how much its amplitude moved.
    - `pull`: its amplitude at the start times by how much its rate moved.
    - `standing`: the merged amplitude at its rate.
    - `p`, `q`: the reciprocals of `s` plus its rate, after it moved and before.
    - `order`, `moduli`: as there.
    """
    # With p = 1 / (s + w + nu) and q = 1 / (s + w) a mode that moved has changed by
    # (a + alpha) p - a q = alpha p - a nu p q. This product carries the difference of two
    # reciprocals. Derivatives in s: p' = -p^2, (pq)' = -pq (p + q),
    # (pq)'' = 2 pq (p^2 + pq + q^2). By Horner's scheme.
    moved, pulled, standing = alpha * p, pull * (p * q), standing * q
    once, again = p * (moved - pulled), q * (standing - pulled)
    sums = [
        moved - pulled + standing,
        -(once + again),
        2 * (p * (once - q * pulled) + q * again),
    ]
    sums = sums[: order + 1]
    if moduli:
        a, b, c = jnp.abs(moved), jnp.abs(pulled), jnp.abs(standing)
        sums += [a + b + c, jnp.abs(p) * a + jnp.abs(p + q) * b + jnp.abs(q) * c][: order + 1]
    return tuple(sums)


def sums_through_nodes(
    start: Start,
    nodes: Nodes,
    s: Array,
    moves: tuple[Array, Array],
    order: int,
    moduli: bool,
) -> tuple[Array, ...]:
    """The same through the coefficients of model minus target in orthonormal exponentials
    (`gram_factor`), at a cost that grows with the width and not with its square.

    What these leave out of two modes is the product of what they leave out of each, which is
    counted with the rounding errors.

    **Arguments:**

    - `nodes`: the exponentials.
    - `start`, `s`, `moves`, `order`, `moduli`: as in `direct_sums`.
    """
    alpha, nu = moves
    before, a = start.rates[:, None], start.amplitudes[:, None]
    after, size = before + nu, len(start.rates)
    # The transforms are asked for at the moved rates first, and perhaps at others besides.
    zero, one = jnp.zeros_like(s), jnp.ones_like(s)

    def row(k: Any, carry: tuple) -> tuple:
        phis, at_start, change, totals = carry
        node = jax.tree.map(lambda x: x[k], nodes)
        x = node.rates
        p, q, root = 1 / (s + x), 1 / (before + x), jnp.sqrt(2 * x)
        # The function of a node is psi(s) = root phi(s) / (s + x), and phi is a product of factors
        # b(s) = (s - x) / (s + x). When w moves to w + nu, 1 / (w + x) changes by -nu own q and b
        # by `step`: no change is a difference of two values.
        own, phi = (p[:size], phis[0][:size])
        step = 2 * x * nu * own * q
        # The function at the moved rates, and by how much it changed on the way.
        value = root * own * phi
        moved = root * own * (change - at_start * nu * q)
        terms = [alpha * value, a * moved]
        coefficient = node.residue + _total(terms[0] + terms[1])
        # psi and its derivatives, by the rule for products.
        values = [
            root * p * phis[0],
            root * p * (phis[1] - phis[0] * p),
            root * p * (phis[2] - 2 * p * (phis[1] - phis[0] * p)) if order == 2 else None,
        ]
        sums = [total + coefficient * v for total, v in zip(totals, values, strict=False)]
        sums = sums[: order + 1]
        if moduli:
            modulus = node.moduli + _total(jnp.abs(terms[0]) + jnp.abs(terms[1]))
            both = zip(totals[order + 1 :], values, strict=False)
            sums += [total + modulus * jnp.abs(v) for total, v in both]
        b, b1, b2 = (s - x) * p, 2 * x * p**2, -4 * x * p**3
        new = [phis[0] * b, phis[1] * b + phis[0] * b1]
        if order == 2:
            new.append(phis[2] * b + 2 * phis[1] * b1 + phis[0] * b2)
        change = change * b[:size] + at_start * step
        return tuple(new), at_start * (before - x) * q, change, tuple(sums)

    phis = (one, zero, zero)[: max(2, order + 1)]
    count = order + 1 + min(order + 1, 2) * moduli
    begin = (phis, jnp.ones_like(before), jnp.zeros_like(after), (zero,) * count)
    needed = jnp.max(jnp.sum(nodes.rates != 0, axis=0))
    phis, at_start, change, totals = jax.lax.fori_loop(0, needed, row, begin)
    if not moduli:
        return totals
    # The product of what is left of a mode and of e^(-st), over s + w, and its derivative in s. Of
    # the modes of the start too, whose coefficients are missing as much. In units of eps, by which
    # moduli are multiplied in the end.
    x, rates = start.target_rates[:, None], nodes.rates
    standing = jnp.concatenate([at_start[:, 0], jnp.prod((x - rates) / (x + rates), axis=1)])
    left = _total(jnp.abs(alpha * phis[0][:size]) + jnp.abs(a * change))
    left = left + jnp.sum(jnp.abs(start.merged * standing), axis=0)
    left = left / (s * jnp.finfo(s.dtype).eps)
    bounds = [left * jnp.abs(phis[0]), left * (jnp.abs(phis[1]) + jnp.abs(phis[0]) / s)]
    found = totals[order + 1 :]
    return (*totals[: order + 1], *(m + b for m, b in zip(found, bounds, strict=False)))


def pair_sums(start: Start, s: Pair, alpha: Pair, nu: Pair) -> PairSums:
    """The sums of `direct_sums` up to order 2, with moduli, where moves and rates are pairs."""
    width, terms = start.rates.shape[0], start.target_rates.shape[0]
    before = start.rates[:, None]
    pull = dd.multiply_float(nu, start.amplitudes[:, None])
    merged = (start.merged[:, None], start.merged_low[:, None])

    def standing(q: Pair, k: Any) -> tuple[Pair, Pair, Pair]:
        """A mode of the start, minus its derivative, and half of the second."""
        value = dd.multiply(q, _at(merged, k))
        derivative = dd.multiply(q, value)
        return value, derivative, dd.multiply(q, derivative)

    def mode(j: Any, sums: PairSums) -> PairSums:
        # As in `direct_sums`, by Horner's scheme: every order has one more factor p, and one more
        # power of q in what is taken off.
        p = dd.reciprocal(dd.add(s, _at(s, j)))
        q = dd.reciprocal(dd.add_float(s, before[j]))
        pulled = dd.multiply(q, _at(pull, j))
        moved = dd.multiply(p, dd.add(_at(alpha, j), dd.negative(pulled)))
        pulled_twice = dd.multiply(q, pulled)
        curbed = dd.multiply(p, dd.add(moved, dd.negative(pulled_twice)))
        bent = dd.add(curbed, dd.negative(dd.multiply(q, pulled_twice)))
        value, derivative, half = standing(q, j)
        e0, e1, e2, m0, m1 = sums
        e0 = dd.add(e0, dd.add(moved, value))
        e1 = dd.add(e1, dd.negative(dd.add(curbed, derivative)))
        e2 = dd.add(e2, dd.scale(dd.add(dd.multiply(p, bent), half), 2.0))
        a, b = jnp.abs(p[0] * alpha[0][j]), jnp.abs(p[0] * pulled[0])
        m0 = m0 + a + b + jnp.abs(value[0])
        m1 = m1 + p[0] * a + (p[0] + q[0]) * b + jnp.abs(derivative[0])
        return PairSums(e0, e1, e2, m0, m1)

    zero = jnp.zeros_like(s[0])
    e0, e1, e2, m0, m1 = (zero, zero), (zero, zero), (zero, zero), zero, zero
    for k in range(terms):
        q = dd.reciprocal(dd.add_float(s, start.target_rates[k]))
        value, derivative, half = standing(q, width + k)
        e0, e1 = dd.add(e0, value), dd.add(e1, dd.negative(derivative))
        e2 = dd.add(e2, dd.scale(half, 2.0))
        m0, m1 = m0 + jnp.abs(value[0]), m1 + jnp.abs(derivative[0])
    # A loop: one product of pairs is tens of operations, which would take long to compile once for
    # each mode.
    return jax.lax.fori_loop(0, width, mode, PairSums(e0, e1, e2, m0, m1))


def spread_out(rates: Float[Array, " modes"]) -> Float[Array, " nodes"]:
    r"""The rates of orthonormal exponentials (`gram_factor`) for these modes, and zeros.

    With rates $x_k$, what is left of $e^{-wt}$ is $\prod_k |w - x_k| / (w + x_k)$. On an interval
    $[a, b]$ its maximum is least, close to $2 \exp(-n \pi^2 / (2 K))$ with $K = \log(4 b / a)$, for
    $n$ values of an elliptic function (Zolotarev; Wachspress 1962), which are given here to their
    leading terms in $a / b$.
    """
    # Beyond both ends by a factor of 2, since training moves the rates. The sums do not depend on
    # where the points lie, so that they have no derivative.
    low, high = jnp.min(rates) / 2, jnp.max(rates) * 2
    length = jnp.log(4 * high / low)
    # The least number that leaves out at most a sixteenth of eps of two modes.
    eps = float(jnp.finfo(rates.dtype).eps)
    count = jnp.minimum(jnp.ceil(length * (math.log(64 / eps) / math.pi**2)), _MOST_NODES)
    index = np.arange(_MOST_NODES)
    u = (index + 0.5) / count * length
    chosen = high * (1 / jnp.cosh(u) + 1 / jnp.cosh(2 * length - u))
    return jax.lax.stop_gradient(jnp.where(index >= count, 0, chosen))


def rounding_of_merging(merged: Array, modes: Array, rates: Array) -> Array:
    """What is missing from the merged amplitudes of `residual_modes`."""
    equal = rates[:, None] == rates[None, :]
    first = jnp.argmax(equal, axis=1)[:, None] == np.arange(rates.shape[0])

    def take(j: Any, total: Pair) -> Pair:
        return dd.add_float(total, jnp.where(first[j], modes[j], 0))

    # Against the sums as they were rounded, in whatever order they were taken.
    total = jax.lax.fori_loop(0, rates.shape[0], take, dd.from_float(jnp.zeros_like(merged)))
    return jnp.add(*dd.add_float(total, -merged))


def _total(x: Float[Array, "modes stages lanes"]) -> Float[Array, "stages lanes"]:
    return sum_over(lambda j: x[j], len(x), jnp.zeros_like(x[0]))


def _at(pair: Pair, index: Any) -> Pair:
    return pair[0][index], pair[1][index]
