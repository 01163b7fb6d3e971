"""The recurrence of S4 is a diagonal minus a matrix of rank one in every channel. Products and
solutions with it take as many operations as there are modes."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Complex, Float


class DiagonalLowRank(eqx.Module):
    r"""The matrices $A_c = \Lambda_c - p_c p_c^*$, for one number of each pair of conjugates.

    Without $p$ they are diagonal. Calling it gives $A h$.
    """

    diagonal: Complex[Array, "channels modes"]
    low_rank: Complex[Array, "channels modes"] | None

    def __call__(self, state: Complex[Array, "channels modes"]) -> Complex[Array, "channels modes"]:
        slope = self.diagonal * state
        if self.low_rank is None:
            return slope
        return slope - self.low_rank * _pair(self.low_rank, state)

    def diagonal_inverse(
        self, half: Float[Array, "channels 1"]
    ) -> Complex[Array, "channels modes"]:
        r"""The inverse of $1 - \tfrac{\delta}{2} \Lambda$, given $\tfrac{\delta}{2}$."""
        # No mode of a positive rate makes it singular: the real part of 1 - half Lambda is above 1.
        return 1 / (1 - half * self.diagonal)

    def solve(
        self,
        half: Float[Array, "channels 1"],
        inverse: Complex[Array, "channels modes"],
        state: Complex[Array, "channels modes"],
    ) -> Complex[Array, "channels modes"]:
        r"""The solution $(1 - \tfrac{\delta}{2} A)^{-1} h$, given that of the diagonal."""
        state = inverse * state
        if self.low_rank is None:
            return state
        turned = inverse * self.low_rank
        # Sherman and Morrison for D + half p p^* with D = 1 - half Lambda. Products with p^* run
        # over both conjugate halves, and are real. The denominator is at least 1, as Re D is
        # positive.
        share = half * _pair(self.low_rank, state) / (1 + half * _pair(self.low_rank, turned))
        return state - share * turned


def _pair(
    low_rank: Complex[Array, "channels modes"], state: Complex[Array, "channels modes"]
) -> Float[Array, "channels 1"]:
    """The product p* h over both halves of the conjugate pairs."""
    return 2 * jnp.sum((low_rank.conj() * state).real, axis=1, keepdims=True)
