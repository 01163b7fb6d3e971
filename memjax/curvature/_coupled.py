"""The Newton systems of all stages of a step together."""

from collections.abc import Callable, Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._base import AbstractCurvature
from ._blocks import BlockCurvature, couple_blocks
from ._dense import each_lane, inverse_root, multiply
from ._graded import GradedCurvature, transposed


def couple(
    curvatures: Sequence[AbstractCurvature],
    weights: Float[np.ndarray, "stages stages"],
    rate: Float[Array, "*lanes"],
) -> Callable[[Array], Array]:
    r"""Solves $\sum_k (r\, w_{ik} + \delta_{ik} H_i)\, x_k = b_i$, one Hessian a stage.

    **Arguments:**

    - `curvatures`: the Hessians $H_i$.
    - `weights`: $w$.
    - `rate`: $r$ of every lane.

    **Returns:**

    A function from $b$ to $x$, both of shape `(n, stages, *lanes)`.
    """
    # The eigenvectors of the weights take the system apart only if all stages have the same
    # Hessian. Otherwise blocks and low ranks still cost less than an array of size 3n.
    blocks = [curvature for curvature in curvatures if isinstance(curvature, BlockCurvature)]
    if len(blocks) == len(curvatures):
        solve = couple_blocks(blocks, weights, rate)

        def apply(right: Array) -> Array:
            # Blocks join the stages of a mode, so that weights come stage by stage.
            flat = jnp.moveaxis(right, 1, 0).reshape(-1, 1, *right.shape[2:])
            out = solve(flat).reshape(len(weights), len(right), *right.shape[2:])
            return jnp.moveaxis(out, 0, 1)

        return apply
    graded = [curvature for curvature in curvatures if isinstance(curvature, GradedCurvature)]
    if len(graded) == len(curvatures):
        return _couple_graded(graded, weights, rate)
    return couple_arrays([curvature.dense() for curvature in curvatures], weights, rate)


def _couple_graded(
    curvatures: Sequence[GradedCurvature],
    weights: Float[np.ndarray, "stages stages"],
    rate: Float[Array, "*lanes"],
) -> Callable[[Array], Array]:
    """The same in the bases of the Hessians."""
    count, found = len(curvatures), [curvature.basis(rate) for curvature in curvatures]
    # With x_k = T_k u_k and T_i^T from the left, the Hessians stay on the diagonal, where T makes
    # the large curvatures ones; the coupling becomes r w_ik T_i^T T_k. Every T is exact, so that
    # for telling strong rows from weak ones the rate will do as the shift.
    bases = [basis.vectors for basis in found]
    rows = []
    for i, curvature in enumerate(curvatures):
        row = [weights[i, k] * rate * transposed(bases[i], bases[k]) for k in range(count)]
        row[i] = found[i].hessian(curvature, weights[i, i] * rate)
        rows.append(jnp.concatenate(row, axis=1))
    solve = _eliminate_stages(jnp.concatenate(rows), count)

    def apply(right: Array) -> Array:
        sides = [transposed(basis, right[:, k, None]) for k, basis in enumerate(bases)]
        out = solve(jnp.concatenate(sides, axis=1))
        return jnp.stack(
            [multiply(basis, out[:, k, None])[:, 0] for k, basis in enumerate(bases)], axis=1
        )

    return apply


def couple_arrays(
    matrices: Sequence[Float[Array, "n n *lanes"]],
    weights: Float[np.ndarray, "stages stages"],
    rate: Float[Array, "*lanes"],
) -> Callable[[Array], Array]:
    """The same for any matrices, by elimination with pivots."""
    count, (n, _, *lanes) = len(matrices), matrices[0].shape
    eye = jnp.broadcast_to(jnp.eye(n).reshape(n, n, *(1,) * len(lanes)), (n, n, *lanes))
    rows = []
    for i, matrix in enumerate(matrices):
        row = [weights[i, k] * rate * eye for k in range(count)]
        row[i] = row[i] + matrix
        rows.append(jnp.concatenate(row, axis=1))
    return _eliminate_stages(jnp.concatenate(rows), count)


def _eliminate_stages(
    whole: Float[Array, "all all *lanes"], count: int
) -> Callable[[Array], Array]:
    n, lanes = len(whole) // count, whole.shape[2:]
    # With pivots: the weights of the formula are not symmetric, and Hessians may be indefinite
    # where an iterate is off. Pivots are chosen by comparing weights of different units, hence the
    # scale.
    scale = inverse_root(jnp.stack([whole[i, i] for i in range(count * n)]))
    whole = scale[:, None] * whole * scale[None]

    def apply(right: Array) -> Array:
        flat = scale * jnp.moveaxis(right, 1, 0).reshape(count * n, *lanes)
        out = scale * each_lane(jnp.linalg.solve, whole, flat)
        return jnp.moveaxis(out.reshape(count, n, *lanes), 0, 1)

    return apply
