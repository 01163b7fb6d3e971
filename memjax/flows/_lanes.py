"""Many displaced flows side by side, one a lane; lanes are the last axis of every array."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from ..curvature import AbstractCurvature, DenseCurvature, lanczos, LanczosCurvature
from ..losses import (
    AbstractLoss,
    AbstractLossLanes,
    coordinates,
    gradient_rounding,
    Linearisation,
    OscillatingLanes,
    SpectralLanes,
    weights,
)
from ..models import AbstractModel
from ..numerics import over_lanes
from ._base import AbstractFlow, DisplacedFlow

# Up to this number of weights the Hessian is an array, made so many columns at once; for more it
# is of that rank.
DENSE, COLUMNS, _RANK = 256, 16, 32


class FlowLanes(AbstractLossLanes):
    """The loss of any displaced flow, by automatic differentiation."""

    flow: DisplacedFlow

    @property
    def compensable(self) -> bool:
        return False

    @property
    def closed(self) -> bool:
        return False

    def descent(
        self, y: Float[Array, "n stages lanes"], low: Array | None = None
    ) -> Float[Array, "n stages lanes"]:
        def one(flow: DisplacedFlow, y: Float[Array, "n stages"]) -> Array:
            return jax.vmap(lambda y: -flow.gradient(y), -1, -1)(y)

        return over_lanes(one)(self.flow, y)

    def linearise(
        self,
        y: Float[Array, "n lanes"],
        low: Array | None = None,
        kept: AbstractCurvature | None = None,
        due: Bool[Array, ""] | None = None,
    ) -> Linearisation:
        """Loss, gradient and Hessian of every lane.

        **Arguments:**

        - `kept`: Hessians from nearby, to be used again unless `due`: they cost more than all the
            rest of a step.
        """
        gradients = lambda y: over_lanes(lambda flow, y: flow.gradient(y))(self.flow, y)
        # The gradient is evaluated once for all products with the Hessian.
        gradient, product = jax.linearize(gradients, y)

        def fresh() -> AbstractCurvature:
            if len(y) <= DENSE:
                # A column takes the memory of a gradient, hence batches.
                column = lambda unit: product(jnp.broadcast_to(unit[:, None], y.shape))
                columns = lax.map(column, jnp.eye(len(y), dtype=y.dtype), batch_size=COLUMNS)
                return DenseCurvature(columns)
            # The flow's own direction, and something of all others.
            # Lanczos' method finds nothing that its start has no part in.
            anywhere = jnp.cos(jnp.arange(len(y)) + 1.0)[:, None]
            size = jnp.sqrt(jnp.mean(gradient**2, axis=0))
            return lanczos(product, gradient + size * anywhere, _RANK)

        # `due` is one flag for all lanes: with one a lane, `cond` would evaluate both branches.
        curvature = fresh() if kept is None else lax.cond(due, fresh, lambda: kept)
        # The default makes a Hessian of its own. This is the same formula with the one at hand.
        if type(self.flow.loss).gradient_noise is AbstractLoss.gradient_noise:
            moved = over_lanes(lambda flow, y: coordinates(weights(flow.model_at(y)))[0])
            noise = gradient_rounding(_spread(curvature, moved(self.flow, y)), gradient)
        else:
            noise = over_lanes(lambda flow, y: flow.noise(y))(self.flow, y)
        return Linearisation(self.loss(y), gradient, curvature, noise)

    def loss(self, y: Float[Array, "n lanes"]) -> Float[Array, " lanes"]:
        return over_lanes(lambda flow, y: flow.loss(flow.model_at(y)))(self.flow, y)

    def loss_noise(self, y: Float[Array, "n lanes"]) -> Float[Array, " lanes"]:
        noise = lambda flow, y: flow.loss.value_noise(flow.model_at(y))
        return over_lanes(noise)(self.flow, y)


def _spread(curvature: AbstractCurvature, x: Float[Array, "n lanes"]) -> Float[Array, "n lanes"]:
    """$|H| |x|$."""
    if isinstance(curvature, LanczosCurvature):
        # An upper bound: |U^T Lambda U| <= |U|^T |Lambda| |U|.
        sizes = LanczosCurvature(jnp.abs(curvature.values), jnp.abs(curvature.vectors))
    else:
        sizes = DenseCurvature(jnp.abs(curvature.dense()))
    return sizes.product(jnp.abs(x)[:, None])[:, 0]


def velocities(
    flow: DisplacedFlow,
    gradient: Float[Array, "weights *stages lanes"],
    y: Float[Array, "state *stages lanes"],
) -> Float[Array, "state *stages lanes"]:
    """The time derivative of every lane's state, where the gradient is known."""
    # Only what the flow computes is under `vmap`, which puts lanes first: where states are put
    # together there, XLA keeps them so in memory.
    leaves, structure = jax.tree.flatten(flow.auxiliary)
    auxiliary, start = [], len(gradient)
    for leaf in leaves:
        shape = leaf.shape[:-1]
        end = start + math.prod(shape)
        auxiliary.append(y[start:end].reshape(*shape, *y.shape[1:]).astype(leaf.dtype))
        start = end

    def one(flow: AbstractFlow, gradient: Array, auxiliary: PyTree[Array]) -> tuple:
        at = flow.rates if gradient.ndim == 1 else jax.vmap(flow.rates, -1, -1)
        return at(gradient, auxiliary)

    arguments = flow.flow, gradient, jax.tree.unflatten(structure, auxiliary)
    velocity, change = over_lanes(one)(*arguments)
    rows = [x.reshape(-1, *y.shape[1:]) for x in jax.tree.leaves(change)]
    return jnp.concatenate([velocity, *rows]).astype(y.dtype)


def closed_form(
    loss: AbstractLoss, model: AbstractModel
) -> type[SpectralLanes] | type[OscillatingLanes] | None:
    """The closed forms of a loss and a model, if there are any."""
    forms = (SpectralLanes, OscillatingLanes)
    return next((form for form in forms if form.accepts(loss, model)), None)


def lanes_of(flow: DisplacedFlow) -> AbstractLossLanes:
    """The loss of one run in the form of a lane: closed forms where there are any, else the flow's
    own."""
    form = closed_form(flow.loss, flow.model)
    if form is None:
        return FlowLanes(flow)
    return form.build(flow.loss, flow.model)  # pyright: ignore


def gradient_bytes(flow: DisplacedFlow, y: PyTree) -> int:
    """The memory that one gradient of a flow, given as shapes, passes through: that of all its
    intermediate results, of which reverse mode keeps most."""
    jaxpr, *_ = eqx.filter_make_jaxpr(lambda flow, y: flow.gradient(y))(flow, y)
    return _bytes(jaxpr.jaxpr)


def _bytes(jaxpr: Any) -> int:
    total = 0
    for equation in jaxpr.eqns:
        total += sum(v.aval.size * v.aval.dtype.itemsize for v in equation.outvars)
        # What a loop keeps of its rounds it returns; other calls are only wrapped.
        inner = equation.params.get("jaxpr") if equation.primitive.name != "scan" else None
        if inner is not None:
            total += _bytes(getattr(inner, "jaxpr", inner))
    return total
