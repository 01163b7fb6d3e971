"""Balls around weights, and what becomes of errors in them."""

from typing import Literal, NamedTuple

import equinox as eqx
from jaxtyping import Array, Bool, Float, PyTree

from .._text import readable

Ball = Literal["max", "operator"]


class Effort(NamedTuple):
    """How hard is searched at each radius: random starts, steps from each, and draws."""

    restarts: int
    steps: int
    draws: int


@readable()
class PerturbationErrors(eqx.Module):
    r"""What becomes of a model's error when its weights are perturbed, by radius.

    $$E_m(\beta) = \sup_{|\theta - \theta_m| \le \beta} \|H - \hat H_\theta\|$$

    The result of [`memjax.perturbation_error`][].

    **Attributes:**

    - `radii`: the radii $\beta$, shape `(radii,)`, in units of the weights.
    - `error`: the largest error found in each ball, shape `(radii,)`: the supremum where `exact`
        is true, otherwise a lower bound of it. Infinite where a perturbation makes the model
        unstable or its loss not finite. It does not fall with the radius, since balls are nested.
    - `drawn`: the largest error among the random draws from each ball alone, which is what the
        literature reports; a lower bound of `error`. Shape `(radii,)`.
    - `upper`: an upper bound of the supremum, shape `(radii,)`; infinite where none is known.
    - `perturbation`: the perturbation of the weights that attains `error`, a PyTree of the
        model's structure with a leading axis of radii, `None` in place of leaves that are not
        trained. Where the supremum is infinite and approached only, a perturbation that reaches
        instability.
    - `exact`: whether `error` is the supremum, shape `(radii,)`: true for diagonal linear models
        and kernels (unless the error changes its sign so often that the search lost count), and
        where the error is infinite.
    """

    radii: Float[Array, " radii"]
    error: Float[Array, " radii"]
    drawn: Float[Array, " radii"]
    upper: Float[Array, " radii"]
    perturbation: PyTree[Array]
    exact: Bool[Array, " radii"]
