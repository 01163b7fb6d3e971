"""The Newton system of implicit steps of a flow: what its forms have in common."""

import abc
from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, Float

# From right-hand sides of shape `(state, sides, lanes)` to solutions. Of a pointwise flow sides may
# be those of the weights alone, where all others are 0.
Solve = Callable[[Array], Array]
SolveComplex = Callable[[Array, Array], tuple[Array, Array]]


class AbstractLinearisedFlow(eqx.Module):
    r"""The Jacobian $J$ of a flow at one state of every lane."""

    @abc.abstractmethod
    def solver(self, mu: Float[Array, " lanes"]) -> Solve:
        r"""$(\mu - J)^{-1}$."""

    @abc.abstractmethod
    def solver_complex(self, real: Float[Array, " lanes"], imaginary: Array) -> SolveComplex:
        r"""The same for a complex $\mu$, for one side."""
