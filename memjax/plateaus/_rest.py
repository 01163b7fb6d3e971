"""Where a flow rests, told by its gradient and its Hessian.

Every matrix is scaled to a unit diagonal before it is factorised: curvatures are spread over more
decades than a float has digits, and what rounding leaves of a small one is judged against its own
scale.
"""

import jax.numpy as jnp
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float

from ..curvature import inverse_root
from ..numerics import one_by_one


def trusted_curvature(size: int, dtype: jnp.dtype) -> float:
    """The curvature, in units of a unit diagonal, above which rounding leaves its sign alone."""
    # The factor of a matrix of unit diagonal is exactly that of one whose entries differ by up to
    # about `size * eps`, and entries have rounding errors of their own.
    return size * 100 * float(jnp.finfo(dtype).eps)


def comes_to_rest(
    hessian: Float[Array, "n n"],
    gradient: Float[Array, " n"],
    noise: Float[Array, " n"],
    scale: Float[Array, " n"],
    *,
    coasting: Float[Array, " n"] | float = 0.0,
    symmetry: Float[Array, "n n"] | None = None,
) -> tuple[Bool[Array, ""], Float[Array, " n"]]:
    """Whether a flow is at rest: at a minimum, but for its tolerance, or without any gradient.

    **Arguments:**

    - `hessian`, `gradient`: those of the loss.
    - `noise`: an estimate of the rounding errors of the gradient.
    - `scale`: the error that a step may make in every weight.
    - `coasting`: how far the weights would move on without a gradient.
    - `symmetry`: the projection on what the flow can reach, all of it by default. Modes that
        started as equals stay equal, whatever the curvature across: without it such a run would
        be taken for one that rounding keeps on a saddle.

    **Returns:**

    The answer, and the Newton step to the minimum, NaN where there is none.
    """
    if symmetry is not None:
        # What cannot be reached gets a curvature that is no obstacle.
        across = (jnp.eye(len(gradient)) - symmetry) * jnp.max(jnp.abs(hessian))
        hessian, gradient = symmetry @ hessian @ symmetry + across, symmetry @ gradient
    newton = _newton_to_rest(hessian, gradient, noise)
    away = (jnp.abs(newton) + jnp.abs(coasting)) / scale
    close = jnp.sqrt(jnp.mean(away**2)) <= 1
    still = jnp.all((gradient == 0) & (noise == 0)) & ~jnp.any(jnp.abs(coasting) > scale)
    return close | still, newton


def _newton_to_rest(
    hessian: Float[Array, "n n"],
    gradient: Float[Array, " n"],
    noise: Float[Array, " n"],
) -> Float[Array, " n"]:
    """The Newton step to a minimum; NaN unless all curvatures can be trusted to be positive.
    Weights without curvature rest only if their gradient has no error."""
    scaled, scale = _scaled(hessian, noise == 0)
    trusted = trusted_curvature(len(gradient), gradient.dtype)
    # NaN unless all eigenvalues are above what is taken off.
    factor = one_by_one(jnp.linalg.cholesky)(scaled - trusted * jnp.eye(len(gradient)))
    return scale * cho_solve((factor, True), scale * gradient)


def smallest_curvature(hessian: Float[Array, "n n"]) -> Float[Array, ""]:
    """The smallest eigenvalue of the Hessian scaled to a unit diagonal."""
    return one_by_one(jnp.linalg.eigvalsh)(_scaled(hessian)[0])[0]


def _scaled(
    hessian: Float[Array, "n n"], may_rest: Bool[Array, " n"] | bool = True
) -> tuple[Float[Array, "n n"], Float[Array, " n"]]:
    scale = inverse_root(jnp.diagonal(hessian))
    scaled = scale[:, None] * hessian * scale[None, :]
    # A weight that neither feels nor makes any gradient is at rest, whatever the others do.
    inert = jnp.all(hessian == 0, axis=1) & may_rest
    return scaled + jnp.diag(jnp.where(inert, 1.0, 0.0)), scale
