from collections.abc import Callable
from typing import Any

from jaxtyping import Array, Float, PyTree

from .._checks import check_callable, check_scalar_of_model
from ._base import AbstractLoss


class FunctionLoss(AbstractLoss):
    """Any differentiable function of a model as a loss; derivatives by JAX, as in
    [`memjax.AbstractLoss`][].

    **Arguments:**

    - `function`: maps a model to a scalar. If it closes over arrays that are to be swept,
        make it an Equinox module with a `__call__`.

    !!! Example

        ```python
        loss = mj.FunctionLoss(lambda model: jnp.sum((model.kernel()(ts) - measured) ** 2))
        ```

    **Raises:**

    `TypeError` if `function` is not callable; when called, `TypeError` or `ValueError` if it
    returns anything but a real scalar.
    """

    function: Callable[[Any], Float[Array, ""]]

    def __check_init__(self) -> None:
        check_callable("function", self.function, "pass a function from models to scalars")

    def __call__(self, model: PyTree) -> Float[Array, ""]:
        value = self.function(model)
        check_scalar_of_model("function", value)
        return value
