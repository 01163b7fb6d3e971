import abc

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._checks import check_instance, shown
from ..models import AbstractModel, trainable


class AbstractLoss(eqx.Module):
    r"""A population loss $J(\theta)$: how far a model is from a target.

    Training on a plateau moves the weights by exponentially little, so that a loss gives its
    gradient at `model + displacement` with both parts apart: where the structure allows it,
    the terms that cancel at the start are then never formed.

    To write a loss, subclass it and give the three methods, or wrap a plain function in
    [`memjax.FunctionLoss`][].
    """

    @abc.abstractmethod
    def __call__(self, model: AbstractModel) -> Float[Array, ""]:
        """The loss of a model."""

    @abc.abstractmethod
    def gradient(
        self, model: AbstractModel, displacement: PyTree[Array] | None = None
    ) -> PyTree[Array]:
        """The gradient with respect to the trained weights, at `model + displacement`.

        **Arguments:**

        - `model`: where displacements are counted from.
        - `displacement`: a PyTree as `equinox.filter(model, memjax.trainable(model))`, or
            `None` for no displacement.

        **Returns:**

        A PyTree of the structure of `displacement`.
        """

    @abc.abstractmethod
    def gradient_noise(
        self, model: AbstractModel, displacement: PyTree[Array] | None = None
    ) -> PyTree[Array]:
        """An estimate of the rounding error of every component of `gradient`, not negative."""

    def value_noise(self, model: AbstractModel) -> Float[Array, ""]:
        """An estimate of the rounding error of the loss itself, not negative.

        Overridden where a loss is the difference of larger terms.
        """
        value = self(model)
        return 8 * jnp.finfo(value.dtype).eps * jnp.abs(value)


def check_model(model: object) -> None:
    """Refuse what is no model."""
    hint = "pass an instance, for example memjax.DiagonalLinearRNN(amplitudes, rates)"
    check_instance("model", model, AbstractModel, "a memjax model", hint)


def displaced(model: AbstractModel, displacement: PyTree[Array] | None) -> AbstractModel:
    """The model moved by a displacement of its trained weights."""
    if displacement is None:
        return model
    if jax.tree.structure(displacement) != jax.tree.structure(weights(model)):
        raise TypeError(
            f"`displacement` must have the structure of the trained weights, got "
            f"{shown(displacement)}; pass a tree as eqx.filter(model, memjax.trainable(model))."
        )
    return eqx.apply_updates(model, displacement)


def weights(model: AbstractModel) -> PyTree[Array]:
    """The trained weights: the model with `None` in place of every other leaf."""
    return eqx.filter(model, trainable(model))
