"""What a measurement asks of a loss, for many displacements side by side.

Lanes, independent training runs, are the last axis of every array, which is how vector units
and accelerators want them. Arrays of stages have one axis more before it.
"""

import abc

import equinox as eqx
from jaxtyping import Array, Float

from ..curvature import AbstractCurvature


class Linearisation(eqx.Module):
    """Everything that a step needs to know of a loss at one state of every lane.

    **Attributes:**

    - `loss`: shape `(lanes,)`.
    - `gradient`: shape `(n, lanes)`.
    - `curvature`: the Hessian.
    - `noise`: an estimate of the rounding error of the gradient, shape `(n, lanes)`.
    """

    loss: Float[Array, "*lanes"]
    gradient: Float[Array, "n *lanes"]
    curvature: AbstractCurvature
    noise: Float[Array, "n *lanes"]


class AbstractLossLanes(eqx.Module):
    """A loss as a function of the displacement from a start.

    An instance holds one run; mapped over runs with the new axis last it holds lanes, and only
    then do its methods apply. A displacement is `y` or, where gradients are there with twice the
    digits (`compensable`), the unevaluated sum `y + low`.
    """

    @property
    @abc.abstractmethod
    def compensable(self) -> bool:
        """Whether the gradient is there in double-double."""

    @property
    @abc.abstractmethod
    def closed(self) -> bool:
        """Whether there are closed forms, so that a Hessian costs no more than some gradients."""

    @abc.abstractmethod
    def descent(
        self,
        y: Float[Array, "n stages lanes"],
        low: Float[Array, "n stages lanes"] | None = None,
    ) -> Float[Array, "n stages lanes"]:
        """Minus the gradient at several displacements of every lane."""

    @abc.abstractmethod
    def linearise(
        self, y: Float[Array, "n lanes"], low: Float[Array, "n lanes"] | None = None
    ) -> Linearisation:
        """Loss, gradient and Hessian at one displacement of every lane."""

    @abc.abstractmethod
    def loss(self, y: Float[Array, "n lanes"]) -> Float[Array, " lanes"]:
        """The loss at one displacement of every lane."""

    @abc.abstractmethod
    def loss_noise(self, y: Float[Array, "n lanes"]) -> Float[Array, " lanes"]:
        """An estimate of the rounding error of `loss`."""
