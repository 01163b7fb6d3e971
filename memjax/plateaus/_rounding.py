"""What floating point does to a step of a stiff gradient-like flow, and where a flow rests."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Scalar


def is_definite(hessian: Float[Array, "n n"], dt: Scalar) -> Bool[Array, ""]:
    """Whether `I + dt * hessian` is positive definite.

    Beyond that, an implicit step damps the directions in which the true flow escapes, and
    would sit on a saddle for ever.
    """
    matrix = jnp.eye(hessian.shape[0]) / dt + hessian
    diagonal = jnp.diagonal(matrix)
    scale = _inverse_root(diagonal)
    # Scaling to a unit diagonal keeps the sign right where the curvatures of `hessian` are
    # spread over more decades than a float has digits.
    factor = jnp.linalg.cholesky(scale[:, None] * matrix * scale[None, :])
    return jnp.all(diagonal > 0) & jnp.all(jnp.isfinite(factor))


def _inverse_root(diagonal: Float[Array, " n"]) -> Float[Array, " n"]:
    return 1 / jnp.sqrt(jnp.where(diagonal == 0, 1, jnp.abs(diagonal)))


def rest_point(
    hessian: Float[Array, "n n"], gradient: Float[Array, " n"]
) -> tuple[Float[Array, ""], Float[Array, " n"]]:
    """The smallest curvature, in units of a unit diagonal, and the Newton step to rest.

    A weight that neither feels nor makes any gradient (a zero row) counts as at rest.
    """
    diagonal = jnp.diagonal(hessian)
    scale = _inverse_root(diagonal)
    scaled = scale[:, None] * hessian * scale[None, :]
    inert = jnp.all(hessian == 0, axis=1)
    scaled = jnp.where(inert[:, None] & jnp.eye(len(gradient), dtype=bool), 1.0, scaled)
    curvatures, directions = jnp.linalg.eigh(scaled)
    newton = scale * (directions @ ((directions.T @ (scale * gradient)) / curvatures))
    return curvatures[0], newton


def step_noise(
    hessian: Float[Array, "n n"], dt: Scalar, noise: Float[Array, " n"]
) -> Float[Array, " n"]:
    """What an error of up to `noise` in the gradient does to an implicit step."""
    matrix = jnp.eye(hessian.shape[0]) / dt + hessian
    scale = _inverse_root(jnp.diagonal(matrix))
    inverse = jnp.linalg.inv(scale[:, None] * matrix * scale[None, :])
    return scale * (jnp.abs(inverse) @ (scale * noise))


def escape_rate(hessian: Float[Array, "n n"], velocity: Float[Array, " n"]) -> Float[Array, ""]:
    """The fastest rate at which the flow escapes across its own direction, at least 0."""
    norm = jnp.linalg.norm(velocity)
    unit = velocity / jnp.where(norm > 0, norm, 1)
    across = jnp.eye(len(velocity)) - unit[:, None] * unit[None, :]
    curvatures = jnp.linalg.eigvalsh(across @ hessian @ across)
    floor = 10 * len(velocity) * jnp.finfo(hessian.dtype).eps * jnp.abs(curvatures[-1])
    return jnp.where(-curvatures[0] > floor, -curvatures[0], 0.0)
