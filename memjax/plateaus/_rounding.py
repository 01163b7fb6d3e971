"""What floating point does to a step of a stiff gradient-like flow, and where a flow rests.

Every matrix is scaled to a unit diagonal before it is factorised: on a plateau curvatures are
spread over more decades than a float has digits, and only the scaled factors keep the small ones.
"""

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float

from ..flows import DisplacedFlow
from ..numerics import inverse_root

_SHARE = 0.05


def smallest_displacement(
    flow: DisplacedFlow,
    velocity: Float[Array, " state"],
    acceleration: Float[Array, " state"],
    curvature: Float[Array, ""],
) -> Float[Array, " state"]:
    """Down to which displacement errors count relative to it, for every number of the state.

    A share of what the flow moves in the time of its largest curvature. It is taken leaf by leaf,
    since each leaf has units of its own: a rate in samples is 1e-5 of one in seconds.
    """
    time = 1 / jnp.maximum(curvature, 1)
    moved = flow.leaf_norms(velocity) * time + flow.leaf_norms(acceleration) * time**2
    # Its last bits depend on the lane that a run is in, and would make those of the result do so.
    moved = lax.reduce_precision(moved, exponent_bits=11, mantissa_bits=20)
    return jnp.maximum(_SHARE * moved, jnp.finfo(moved.dtype).tiny * 1e10)


class StepResponse(eqx.Module):
    """`(resistance + hessian)^{-1}`, by which an implicit step answers to a change of the
    gradient.

    Kept as a factor and applied to vectors: the products with matrices, of which an explicit
    inverse is made, are a hundred times slower where a multithreaded BLAS finds its cores busy.
    """

    factor: Float[Array, "n n"]
    scale: Float[Array, " n"]
    resistance: Float[Array, "n n"]

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.scale * cho_solve((self.factor, True), self.scale * x)


def step_response(
    hessian: Float[Array, "n n"], resistance: Float[Array, "n n"]
) -> tuple[Bool[Array, ""], StepResponse]:
    """Whether `resistance + hessian` is positive definite, and the response of a step.

    Where it is not definite, an implicit step would damp directions in which the true flow
    escapes, and sit on a saddle for ever.
    """
    matrix = resistance + hessian
    diagonal = jnp.diagonal(matrix)
    scale = inverse_root(diagonal)
    factor = jnp.linalg.cholesky(scale[:, None] * matrix * scale[None, :])
    definite = jnp.all(diagonal > 0) & jnp.all(jnp.isfinite(factor))
    return definite, StepResponse(factor, scale, resistance)


def step_noise(response: StepResponse, noise: Float[Array, " n"]) -> Float[Array, " n"]:
    """By how much errors of the gradient of the size of `noise` move a step: the largest over
    four patterns of their signs."""
    index = jnp.arange(len(noise))
    patterns = [jnp.where(index // block % 2 == 0, 1.0, -1.0) for block in (1, 2, 4, 8)]
    shaken = [jnp.abs(response(sign * noise)) for sign in patterns]
    return jnp.max(jnp.stack(shaken), axis=0)


def newton_to_rest(
    hessian: Float[Array, "n n"],
    gradient: Float[Array, " n"],
    noise: Float[Array, " n"],
    trusted: float,
) -> Float[Array, " n"]:
    """The Newton step to a minimum; NaN unless all curvatures, in units of a unit diagonal,
    exceed `trusted`. Weights without curvature rest only if their gradient has no error."""
    scaled, scale = _scaled(hessian, noise == 0)
    factor = jnp.linalg.cholesky(scaled - trusted * jnp.eye(len(gradient)))
    return scale * cho_solve((factor, True), scale * gradient)


def smallest_curvature(hessian: Float[Array, "n n"]) -> Float[Array, ""]:
    """The smallest eigenvalue of the Hessian scaled to a unit diagonal."""
    return jnp.linalg.eigvalsh(_scaled(hessian)[0])[0]


def _scaled(
    hessian: Float[Array, "n n"], may_rest: Bool[Array, " n"] | bool = True
) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
    scale = inverse_root(jnp.diagonal(hessian))
    scaled = scale[:, None] * hessian * scale[None, :]
    # A weight that neither feels nor makes any gradient is at rest, whatever the others do.
    inert = jnp.all(hessian == 0, axis=1) & may_rest
    return scaled + jnp.diag(jnp.where(inert, 1.0, 0.0)), scale


def escape_growth(response: StepResponse, velocity: Float[Array, " n"]) -> Float[Array, ""]:
    """By how much what lies across the flow's own direction grows within a step, in [0, 1]:
    the slowest mode that is not the flow's own, by a few power iterations."""
    norm = jnp.linalg.norm(velocity)
    unit = velocity / jnp.where(norm > 0, norm, 1)
    across = lambda x: x - unit * (unit @ x)
    direction = across(jnp.cos(jnp.arange(len(velocity)) + 1.0))
    size = jnp.linalg.norm(direction)
    for _ in range(8):
        direction = direction / jnp.where(size > 0, size, 1)
        direction = across(response(response.resistance @ direction))
        size = jnp.linalg.norm(direction)
    return jnp.clip(1 - 1 / jnp.where(size > 0, size, 1), 0, 1)
