"""What an implicit step needs of the Hessian of a loss."""

import abc

import equinox as eqx
from jaxtyping import Array, Bool, Float


class AbstractCurvature(eqx.Module):
    r"""The Hessian $H$ of a loss, of one run or of many side by side.

    An implicit step needs solves with $H + D$, where $D$ is real or complex; what $D$ is belongs
    to the flow. Arrays begin with the weights; those of many runs have the runs, called lanes,
    as their last axis.
    """

    @abc.abstractmethod
    def shifted(self, shift: Float[Array, "..."]) -> "AbstractShifted":
        """$(H + D)^{-1}$ for a real shift.

        **Arguments:**

        - `shift`: the shift of every weight, shape `(n, *lanes)`, or one for all of a run, shape
            `lanes`.
        """

    @abc.abstractmethod
    def shifted_complex(
        self, real: Float[Array, "..."], imaginary: Float[Array, "..."]
    ) -> "AbstractShiftedComplex":
        """The same for a complex shift, whose parts are kept apart."""

    def without(self, size: Float[Array, " lanes"]) -> "AbstractCurvature":
        """The same where what changes the Hessian by no more than `size` may be left out, which may
        make solves cheaper. What is left out is positive semidefinite."""
        return self

    @abc.abstractmethod
    def product(self, x: Float[Array, "n sides *lanes"]) -> Float[Array, "n sides *lanes"]:
        """The products $Hx$."""

    @abc.abstractmethod
    def bound(self) -> Float[Array, "*lanes"]:
        """An upper bound of the largest eigenvalue, in modulus."""

    @abc.abstractmethod
    def diagonal(self) -> Float[Array, "n *lanes"]:
        """The diagonal of $H$."""

    @abc.abstractmethod
    def inert(self) -> Bool[Array, "n *lanes"]:
        """Which weights have a row of zeros: the loss does not feel them."""

    @abc.abstractmethod
    def dense(self) -> Float[Array, "n n *lanes"]:
        """The Hessian as an array."""


class AbstractShifted(eqx.Module):
    r"""$(H + D)^{-1}$ for a real shift.

    **Attributes:**

    - `definite`: whether $H + D$ is positive definite, shape `lanes`.
    """

    definite: eqx.AbstractVar[Bool[Array, "*lanes"]]

    @abc.abstractmethod
    def __call__(self, x: Float[Array, "n sides *lanes"]) -> Float[Array, "n sides *lanes"]:
        """Solve for every side."""


class AbstractShiftedComplex(eqx.Module):
    r"""$(H + D)^{-1}$ for a complex shift."""

    @abc.abstractmethod
    def __call__(
        self, x: Float[Array, "n *lanes"], y: Float[Array, "n *lanes"]
    ) -> tuple[Float[Array, "n *lanes"], Float[Array, "n *lanes"]]:
        """Solve for `x + iy`, the real and the imaginary part."""
