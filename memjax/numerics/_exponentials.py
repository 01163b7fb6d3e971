"""The Gram matrix of exponentials, as a factor whose every number has a small relative error."""

from typing import Any

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Complex, Float, Int

from ._trees import choose


def gram_factor(
    rates: Float[Array, "modes *lanes"], weights: Float[Array, "modes *lanes"], rank: int
) -> Float[Array, "rank 2 modes *lanes"]:
    r"""A factor $L$ of the Gram matrix $G \approx L^\top L$ in $L^2(0, \infty)$ of
    $e^{-w_j t}$ and $-c_j t e^{-w_j t}$.

    Its rows are the coefficients of these functions in an orthonormal system of exponentials
    (Takenaka and Malmquist), with the Laplace transforms

    $$\psi_k(s) = \frac{\sqrt{2 x_k}}{s + x_k} \prod_{l < k} \frac{s - x_l}{s + x_l}.$$

    No entry is a difference of larger ones, which those of a Cholesky factor are. What is missing
    of $G$ after $k$ rows is the product of what is left of two functions; the rates $x_k$ are
    those of the functions of which most is left, so that rank $2 m$ misses nothing.

    **Arguments:**

    - `rates`: $w_j > 0$.
    - `weights`: $c_j$.
    - `rank`: the number of rows.
    """

    def row(carry: tuple[Array, Array], _: Any) -> tuple[tuple[Array, Array], Array]:
        x = _where_most(_left(rates, weights, carry), rates)
        return _eliminate(rates, weights, carry, x)

    start = (jnp.ones_like(rates), jnp.zeros_like(rates))
    return lax.scan(row, start, None, length=rank)[1]


def complete_gram_factor(
    rates: Float[Array, "modes *lanes"],
    weights: Float[Array, "modes *lanes"],
    present: Bool[Array, "modes *lanes"] | None = None,
) -> tuple[Float[Array, "n 2 modes *lanes"], Int[Array, "n *lanes"]]:
    """The factor of rank $n = 2m$ of `gram_factor`, with an order of the $n$ functions, in which it
    is an upper triangle: every rate is eliminated twice, for the two functions of its mode.

    **Arguments:**

    - `rates`, `weights`: as there.
    - `present`: which modes come first, all others after them.
    """

    def row(carry: tuple[Array, Array, Array], _: Any) -> tuple[Any, tuple[Array, Array]]:
        phi, slope, count = carry
        # Rounding may leave nothing of a function that is not eliminated yet.
        most = _left(rates, weights, (phi, slope))
        if present is not None:
            most = jnp.where(present, most, -1.0)
        chosen = jnp.argmax(jnp.where(count < 2, most, -jnp.inf), axis=0)[None]
        x = jnp.take_along_axis(rates, chosen, axis=0)[0]
        (phi, slope), rows = _eliminate(rates, weights, (phi, slope), x)
        number = jnp.take_along_axis(count, chosen, axis=0) * len(rates) + chosen
        mode = jnp.arange(len(rates)).reshape(-1, *(1,) * (rates.ndim - 1))
        return (phi, slope, count + (mode == chosen)), (rows, number[0])

    start = (jnp.ones_like(rates), jnp.zeros_like(rates), jnp.zeros(rates.shape, int))
    return lax.scan(row, start, None, length=2 * len(rates))[1]


def oscillating_gram_factor(
    rates: Complex[Array, "modes *lanes"],
    amplitudes: Complex[Array, "modes *lanes"],
    slopes: Float[Array, "modes *lanes"],
    rank: int,
) -> Float[Array, "rank 4 modes *lanes"]:
    r"""As `gram_factor`, of the derivatives of $\operatorname{Re} c_j e^{-s_j t}$ by the real part
    of $c_j$, minus its imaginary part, a weight of which the real part of $s_j$ has the derivative
    `slopes`, and minus the imaginary part of $s_j$.

    The rows come in pairs, from a pole $x$ and its conjugate. With
    $D(s) = (s + x)(s + \bar x)$ and $\varphi$ the product of
    $(s - x)(s - \bar x) / D(s)$ over those before, the transforms of two orthonormal real
    functions (Kautz 1954) are

    $$2 \sqrt{\operatorname{Re} x}\, \frac{s\, \varphi(s)}{D(s)}, \qquad
    2 \sqrt{\operatorname{Re} x}\, \frac{|x|\, \varphi(s)}{D(s)}.$$

    **Arguments:**

    - `rates`: $s_j$, with positive real parts.
    - `amplitudes`: $c_j$.
    - `slopes`: of the real parts of $s_j$.
    - `rank`: the number of rows, an even one.

    **Returns:**

    The factor. The four derivatives are its second axis, in the order above.
    """
    s, one = rates, 1 / (2 * rates.real)
    weights = _squared_modulus(amplitudes) * jnp.maximum(slopes, 1.0) ** 2

    def pair(carry: tuple[Array, Array], _: Any) -> tuple[tuple[Array, Array], Array]:
        phi, slope = carry
        # The squared norms of what is left of e^(-st), and of c t e^(-st).
        left = _squared_modulus(phi) * one
        of_slope = (_squared_modulus(slope - phi * one) + _squared_modulus(phi * one)) * one
        x = _where_most(jnp.maximum(left, weights * of_slope), rates)
        bend, size = x.real, jnp.sqrt(_squared_modulus(x))
        p = reciprocal((s + x) * (s + jnp.conj(x)))
        value = 2 * jnp.sqrt(bend) * p
        derivative = value * (slope - 2 * phi * (s + bend) * p)
        value = value * phi
        first = jnp.stack([s * value, size * value])
        then = amplitudes * jnp.stack([value + s * derivative, size * derivative])
        rows = [first.real, first.imag, slopes * then.real, then.imag]
        factor = (s - x) * (s - jnp.conj(x)) * p
        its_slope = 4 * bend * (s - size) * (s + size) * p**2
        return (phi * factor, slope * factor + phi * its_slope), jnp.stack(rows, axis=1)

    start = (jnp.ones_like(rates), jnp.zeros_like(rates))
    rows = lax.scan(pair, start, None, length=rank // 2)[1]
    return rows.reshape(-1, *rows.shape[2:])


def _where_most(left: Array, rates: Array) -> Array:
    """The rate of which most is left."""

    def larger(j: Any, most: tuple[Array, Array]) -> tuple[Array, Array]:
        return choose(left[j] > most[0], (left[j], rates[j]), most)

    # Not `argmax`, which XLA runs over one number after the other on a CPU.
    return lax.fori_loop(1, len(rates), larger, (left[0], rates[0]))[1]


def _left(rates: Array, weights: Array, carry: tuple[Array, Array]) -> Array:
    """How much is left of the two functions of every mode, from the product over the rates so far
    and its derivative."""
    phi, slope = carry
    one = 1 / rates
    left = phi**2 * one
    left_of_slope = slope**2 * one - phi * (slope - phi * one / 2) * one**2
    return jnp.maximum(left, weights**2 * left_of_slope)


def _eliminate(
    rates: Array, weights: Array, carry: tuple[Array, Array], x: Array
) -> tuple[tuple[Array, Array], Array]:
    """The row of a factor that belongs to a rate, and what is left after it."""
    phi, slope = carry
    p = 1 / (rates + x)
    value = jnp.sqrt(2 * x) * p
    rows = jnp.stack([value * phi, weights * value * (slope - phi * p)])
    factor, its_slope = (rates - x) * p, 2 * x * p**2
    return (phi * factor, slope * factor + phi * its_slope), rows


def exponential_coefficients(
    amplitudes: Float[Array, " modes"], rates: Float[Array, " modes"], nodes: Float[Array, " nodes"]
) -> tuple[Float[Array, " nodes"], Float[Array, " nodes"]]:
    """The coefficients of a sum of exponentials in the orthonormal system of these nodes, see
    `gram_factor`, and the sums of the moduli of their terms, which tell their rounding."""

    def row(phi: Array, x: Array) -> tuple[Array, tuple[Array, Array]]:
        p = 1 / (rates + x)
        terms = amplitudes * (phi * p) * jnp.sqrt(2 * x)
        return phi * (rates - x) * p, (jnp.sum(terms), jnp.sum(jnp.abs(terms)))

    return lax.scan(row, jnp.ones_like(rates), nodes)[1]


def _squared_modulus(z: Complex[Array, "..."]) -> Float[Array, "..."]:
    """$|z|^2$, without a square root."""
    return z.real**2 + z.imag**2


def reciprocal(z: Complex[Array, "..."]) -> Complex[Array, "..."]:
    """$1 / z$ where $|z|^2$ neither overflows nor underflows. The care that a division of complex
    numbers takes of that would be most of its cost."""
    return jnp.conj(z) / _squared_modulus(z)
