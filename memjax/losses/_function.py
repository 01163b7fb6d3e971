from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._checks import check_callable, check_scalar_of_model
from ..models import AbstractModel, trainable
from ._base import AbstractLoss, coordinates, displaced


class FunctionLoss(AbstractLoss):
    """Any differentiable function of a model as a loss; derivatives by JAX.

    **Arguments:**

    - `function`: maps a model to a scalar. If it closes over arrays that are to be swept,
        make it an Equinox module with a `__call__`.

    !!! Example

        ```python
        loss = mj.FunctionLoss(lambda model: jnp.sum((model.kernel()(ts) - measured) ** 2))
        ```

    Rounding of the gradient is estimated as that of the weights propagated by the Hessian,
    which misses cancellation inside `function` itself.

    **Raises:**

    `TypeError` if `function` is not callable; when called, `TypeError` or `ValueError` if it
    returns anything but a real scalar.
    """

    function: Callable[[Any], Float[Array, ""]]

    def __check_init__(self) -> None:
        check_callable("function", self.function, "pass a function from models to scalars")

    def __call__(self, model: AbstractModel) -> Float[Array, ""]:
        value = self.function(model)
        check_scalar_of_model("function", value)
        return value

    def gradient(
        self, model: AbstractModel, displacement: PyTree[Array] | None = None
    ) -> PyTree[Array]:
        moved = displaced(model, displacement)
        free, fixed = eqx.partition(moved, trainable(moved))
        gradient = jax.grad(lambda p: self(eqx.combine(p, fixed)))(free)
        return jax.tree.map(jnp.conj, gradient)

    def gradient_noise(
        self, model: AbstractModel, displacement: PyTree[Array] | None = None
    ) -> PyTree[Array]:
        moved = displaced(model, displacement)
        free, fixed = eqx.partition(moved, trainable(moved))
        flat, back = coordinates(free)
        gradient = jax.grad(lambda p: self(eqx.combine(back(p), fixed)))
        hessian = jax.jacfwd(gradient)(flat)
        noise = jnp.abs(hessian) @ jnp.abs(flat) + jnp.abs(gradient(flat))
        # Of several precisions the coarsest decides.
        unit = max((jnp.finfo(leaf.dtype).eps for leaf in jax.tree.leaves(free)), default=0.0)
        return back(unit * noise)
