"""The Gram matrix of exponentials, as a factor whose every number has a small relative error."""

from typing import Any

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float


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
        # The product over the rates so far, and its derivative.
        phi, slope = carry
        one = 1 / rates
        left = phi**2 * one
        left_of_slope = slope**2 * one - phi * (slope - phi * one / 2) * one**2
        most = jnp.maximum(left, weights**2 * left_of_slope)
        chosen = jnp.argmax(most, axis=0)[None]
        x = jnp.take_along_axis(rates, chosen, axis=0)
        p = 1 / (rates + x)
        value = jnp.sqrt(2 * x) * p
        rows = jnp.stack([value * phi, weights * value * (slope - phi * p)])
        factor, its_slope = (rates - x) * p, 2 * x * p**2
        return (phi * factor, slope * factor + phi * its_slope), rows

    start = (jnp.ones_like(rates), jnp.zeros_like(rates))
    return lax.scan(row, start, None, length=rank)[1]


def exponential_coefficients(
    amplitudes: Float[Array, " modes"], rates: Float[Array, " modes"], nodes: Float[Array, " nodes"]
) -> Float[Array, " nodes"]:
    """The coefficients of a sum of exponentials in the orthonormal system of these nodes, see
    `gram_factor`."""

    def row(phi: Array, x: Array) -> tuple[Array, Array]:
        p = 1 / (rates + x)
        return phi * (rates - x) * p, jnp.dot(amplitudes, phi * p) * jnp.sqrt(2 * x)

    return lax.scan(row, jnp.ones_like(rates), nodes)[1]
