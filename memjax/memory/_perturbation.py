from typing import Any, get_args

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Real

from .._checks import (
    as_horizon,
    as_increasing,
    as_key,
    check_callable,
    check_choice,
    check_integer,
    check_nonnegative,
    check_scalar,
    shown,
)
from .._deprecation import renamed_arguments
from .._typing import ArrayLike, ScalarLike
from ..losses import AbstractLoss, check_trained
from ..models import DiagonalLinearRNN
from ..targets import AbstractKernel, check_kernel
from ._alternation import find_suprema
from ._ascent import ascend, Loss
from ._ball import Ball, Effort, PerturbationErrors
from ._norms import check_integrable


@renamed_arguments(norm="ball")
def perturbation_error(
    model: PyTree,
    target: AbstractKernel | AbstractLoss | Loss,
    radii: Real[ArrayLike, " radii"],
    *,
    ball: Ball = "max",
    restarts: int = 8,
    steps: int = 30,
    draws: int = 30,
    horizon: Real[ScalarLike, ""] | None = jnp.inf,
    key: PRNGKeyArray,
) -> PerturbationErrors:
    r"""The largest error of a model in balls around its weights.

    $$E_m(\beta) = \sup_{|\theta - \theta_m| \le \beta} \|H - \hat H_\theta\|$$

    All trained weights are perturbed ([`memjax.trainable`][]). The ball is $|\Delta\theta|_\infty
    \le \beta$ over all of them (`"max"`, from which the literature's code draws; of a complex
    weight over both its parts), or $\beta$ bounds the operator 2-norm of each block (`"operator"`,
    the published definition): the spectral norm of a matrix, the Euclidean norm of a vector, and
    the largest modulus of `free_rates` and `frequencies`, which are diagonals of matrices. Arrays
    of more axes are stacks of matrices.

    *A diagonal linear model and a kernel.* The error is $\|\rho - \hat\rho\|_{L^1}$ up to the
    horizon, and its supremum is found as

    $$\sup_\theta \|\rho - \hat\rho_\theta\|_{L^1} = \sup_{s(t) = \pm 1} \sup_\theta
      \int s(t) \Big(\rho(t) - \sum_i a_i e^{-w_i t}\Big) \mathrm{d}t,$$

    where for given signs every mode is on its own: the best amplitude has a closed form and the
    best rate is found on a grid that is refined around it. Signs and modes take turns, which
    never lowers the error, from corners of the ball and from the worst case at the next smaller
    radius. (Moving all rates towards the axis is often the worst case, but not always.) If the
    ball reaches a rate that is not positive, the error over an infinite horizon is infinite.
    `upper` bounds the supremum by the triangle inequality,
    $\|\rho - \hat\rho\| + \sum_i (|a_i| |1/w_i - 1/\tilde w_i| + |\Delta a_i| / \tilde w_i)$.

    *Any model and a loss.* Projected gradient ascent, from the worst case at the next smaller
    radius and from random draws. Steps go to the corner of the ball that the gradient points
    to, and are halved until the loss does not fall.

    Can be vmapped over models, for example over seeds, with one key each.

    **Arguments:**

    - `model`: a [`memjax.DiagonalLinearRNN`][] if `target` is a kernel; otherwise what the loss
        takes.
    - `target`: the kernel to be approximated, or a loss: an `AbstractLoss` such as
        [`memjax.SampledPathLoss`][], or any function from models to numbers that JAX can
        differentiate.
    - `radii`: the radii $\beta \ge 0$, ascending, shape `(radii,)`, in units of the weights.
    - `ball`: `"max"` or `"operator"`.
    - `restarts`: from how many random starts to ascend at each radius, beside those above.
    - `steps`: the number of ascent steps from each start, at most.
    - `draws`: how many perturbations to draw at each radius, at least one: uniform in every
        entry for `"max"`, and for `"operator"` scaled to the surface of the ball block by block.
    - `horizon`: the end of the time over which kernels are compared; for a kernel only.
    - `key`: the PRNG key.

    **Returns:**

    A [`memjax.PerturbationErrors`][].

    **Raises:**

    `TypeError` for a kernel with another model than a diagonal linear one, and for a target that
    is neither kernel nor function; `ValueError` for radii that are negative or do not ascend,
    for an unknown ball, for numbers below 1, for a kernel that is not in $L^1$ without a
    horizon, and for a horizon with a loss.

    ??? cite "Reference"

        Wang, Li, Li, *Inverse Approximation Theory for Nonlinear Recurrent Neural Networks*,
        ICLR 2024, Definitions 3.2 and 3.3 (theory, section 5).
    """
    radii = as_curve_radii(radii)
    check_choice("ball", ball, get_args(Ball))
    key = as_key("key", key)
    for name, value in (("restarts", restarts), ("steps", steps), ("draws", draws)):
        check_integer(name, value)
    effort = Effort(restarts, steps, draws)
    end = as_horizon(horizon)
    if end is not None:
        check_scalar("horizon", end)
    if isinstance(target, AbstractKernel):
        check_kernel("target", target)
        if not isinstance(model, DiagonalLinearRNN):
            raise TypeError(
                f"`model` must be a DiagonalLinearRNN for a kernel as the target, got "
                f"{shown(model)}; pass a loss as the target instead, for example a "
                "memjax.SampledPathLoss."
            )
        if end is None:
            check_integrable("target", target)
        return find_suprema(model, target, radii, end, key, ball, effort)
    check_callable("target", target, "pass a kernel, a loss, or a function of a model")
    if end is not None:
        raise ValueError(
            f"`horizon` must be left out with a loss, got {shown(horizon)}; the loss has its own."
        )
    check_trained(model)
    return ascend(model, target, radii, key, ball, effort)


def as_curve_radii(radii: Any) -> Float[Array, " radii"]:
    """`radii` as an ascending one-dimensional array."""
    check_nonnegative("radii", radii, "a ball has a radius of 0 or more")
    return as_increasing("radii", radii)
