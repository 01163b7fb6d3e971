"""Many displaced flows side by side, one a lane; lanes are the last axis of every array."""

import equinox as eqx
import jax
from jaxtyping import Array, Float

from ..curvature import DenseCurvature
from ..losses import Linearisation, SpectralLanes
from ..numerics import over_lanes
from ._base import DisplacedFlow


class FlowLanes(eqx.Module):
    """The loss of any displaced flow, mapped over lanes.

    An instance holds one run; mapped over runs with the new axis last it holds lanes, and only
    then do its methods apply. `memjax.losses.SpectralLanes` has the same methods; it
    alone knows what to do with `low`, the part of a displacement below float64.
    """

    flow: DisplacedFlow

    @property
    def compensable(self) -> bool:
        """Whether the gradient is there in double-double."""
        return False

    def descent(
        self, y: Float[Array, "n stages lanes"], low: Array | None = None
    ) -> Float[Array, "n stages lanes"]:
        """Minus the gradient at several displacements of every lane."""

        def one(flow: DisplacedFlow, y: Float[Array, "n stages"]) -> Array:
            return jax.vmap(lambda y: -flow.gradient(y), -1, -1)(y)

        return over_lanes(one)(self.flow, y)

    def linearise(self, y: Float[Array, "n lanes"], low: Array | None = None) -> Linearisation:
        """Loss, gradient and Hessian of every lane."""

        def one(flow: DisplacedFlow, y: Float[Array, " n"]) -> Linearisation:
            return Linearisation(
                loss=flow.loss(flow.model_at(y)),
                gradient=flow.gradient(y),
                curvature=DenseCurvature(flow.hessian(y)),
                noise=flow.noise(y),
            )

        return over_lanes(one)(self.flow, y)

    def loss(self, y: Float[Array, "n lanes"]) -> Float[Array, " lanes"]:
        """The loss at one displacement of every lane."""
        return over_lanes(lambda flow, y: flow.loss(flow.model_at(y)))(self.flow, y)

    def loss_noise(self, y: Float[Array, "n lanes"]) -> Float[Array, " lanes"]:
        """An estimate of the rounding error of `loss`."""
        noise = lambda flow, y: flow.loss.value_noise(flow.model_at(y))
        return over_lanes(noise)(self.flow, y)


def lanes_of(flow: DisplacedFlow) -> SpectralLanes | FlowLanes:
    """The loss of one run in the form of a lane: closed forms where there are any, else
    the flow's own."""
    if SpectralLanes.accepts(flow.loss, flow.model):
        return SpectralLanes.build(flow.loss, flow.model)  # pyright: ignore
    return FlowLanes(flow)
