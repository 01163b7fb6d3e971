import abc
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from .._checks import check_instance, check_scalar_of_model, shown
from .._typing import ArrayLike
from ..models import AbstractModel, trainable


class AbstractLoss(eqx.Module):
    r"""A population loss $J(\theta)$: how far a model is from a target.

    Training on a plateau moves the weights by exponentially little, so that a loss gives its
    gradient at `model + displacement` with both parts apart: where the structure allows it,
    the terms that cancel at the start are then never formed.

    To write a loss, subclass it and give `__call__`, the one method that has to be there, or wrap
    a plain function in [`memjax.FunctionLoss`][]. Gradients, products with the Hessian and what
    rounding does to them are then by automatic differentiation. Override them where a closed form
    keeps more digits.
    """

    @abc.abstractmethod
    def __call__(self, model: AbstractModel) -> Float[Array, ""]:
        """The loss of a model."""

    def gradient(
        self, model: AbstractModel, displacement: PyTree[Array] | None = None
    ) -> PyTree[Array]:
        r"""The gradient with respect to the trained weights, at `model + displacement`.

        **Arguments:**

        - `model`: where displacements are counted from.
        - `displacement`: a PyTree as `equinox.filter(model, memjax.trainable(model))`, or
            `None` for no displacement.

        **Returns:**

        A PyTree of the structure of `displacement`. For a complex weight $a + ib$ it holds
        $\partial J/\partial a + i\, \partial J/\partial b$, the direction in which the loss
        rises most: the conjugate of what `jax.grad` gives.
        """
        moved = displaced(model, displacement)
        free, fixed = eqx.partition(moved, trainable(moved))
        gradient = jax.grad(lambda p: self._scalar(eqx.combine(p, fixed)))(free)
        return jax.tree.map(jnp.conj, gradient)

    def hessian_vector_product(
        self,
        model: AbstractModel,
        vector: PyTree[Array],
        displacement: PyTree[Array] | None = None,
    ) -> PyTree[Array]:
        r"""The product $\nabla^2 J\, v$ of the Hessian at `model + displacement` with a vector.

        It is the derivative of `gradient` along $v$, so that what a gradient keeps apart from
        rounding is kept apart here.

        **Arguments:**

        - `model`, `displacement`: as for `gradient`.
        - `vector`: the vector $v$, a PyTree of the same structure and shapes; of a complex weight
            the two real numbers are its parts.

        **Returns:**

        A PyTree of the structure of `vector`.
        """
        _check_weights("vector", model, vector)
        displaced(model, displacement)  # one of another structure is refused by its name
        start = jax.tree.map(jnp.zeros_like, weights(model))
        start = start if displacement is None else displacement
        return jax.jvp(lambda moved: self.gradient(model, moved), (start,), (vector,))[1]

    def gradient_noise(
        self, model: AbstractModel, displacement: PyTree[Array] | None = None
    ) -> PyTree[Array]:
        """An estimate of the rounding error of every component of `gradient`, not negative; of a
        complex component in both its parts.

        By default it is that of the weights propagated by the Hessian, which misses cancellation
        inside the loss itself.
        """
        moved = displaced(model, displacement)
        free, fixed = eqx.partition(moved, trainable(moved))
        flat, back = coordinates(free)
        gradient = jax.grad(lambda p: self._scalar(eqx.combine(back(p), fixed)))
        hessian = jax.jacfwd(gradient)(flat)
        noise = gradient_rounding(jnp.abs(hessian) @ jnp.abs(flat), gradient(flat))
        # Of several precisions the coarsest decides.
        units = [jnp.finfo(leaf.dtype).eps for leaf in jax.tree.leaves(free)]
        return back(noise * (max(units, default=0.0) / jnp.finfo(flat.dtype).eps))

    def _scalar(self, model: PyTree) -> Float[Array, ""]:
        """The loss, which one of a user's own may have got wrong."""
        value = self(model)
        check_scalar_of_model("loss", value)
        return value

    @property
    def exchangeable(self) -> bool:
        """Whether the loss depends on a model through its outputs alone, so that equal modes can be
        exchanged. It is then known that they stay equal in training."""
        return False

    def value_noise(self, model: AbstractModel) -> Float[Array, ""]:
        """An estimate of the rounding error of the loss itself, not negative.

        Overridden where a loss is the difference of larger terms.
        """
        value = self(model)
        # Enough for a sum of terms of one sign, whose relative error is a few units.
        return 8 * jnp.finfo(value.dtype).eps * jnp.abs(value)


def gradient_rounding(
    turned: Float[Array, "..."], gradient: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The rounding error of a gradient that is due to that of the weights, where `turned` is the
    product of the moduli of Hessian and weights."""
    # Weights are known to `eps |theta|` only, which moves the gradient by up to `eps |H| |theta|`.
    # The second term is the rounding of the gradient itself.
    return jnp.finfo(gradient.dtype).eps * (turned + jnp.abs(gradient))


def check_model(model: object) -> None:
    """Refuse what is no model."""
    hint = "pass an instance, for example memjax.DiagonalLinearRNN(amplitudes, rates)"
    check_instance("model", model, AbstractModel, "a memjax model", hint)


def displaced(model: AbstractModel, displacement: PyTree[Array] | None) -> AbstractModel:
    """The model moved by a displacement of its trained weights."""
    if displacement is None:
        return model
    _check_weights("displacement", model, displacement)
    return eqx.apply_updates(model, displacement)


def _check_weights(name: str, model: AbstractModel, tree: PyTree) -> None:
    """Refuse what is not a tree like that of the trained weights."""
    if jax.tree.structure(tree) != jax.tree.structure(weights(model)):
        raise TypeError(
            f"`{name}` must have the structure of the trained weights, got {shown(tree)}; pass a "
            "tree as eqx.filter(model, memjax.trainable(model)), with the same `model`."
        )


def weights(model: AbstractModel) -> PyTree[Array]:
    """The trained weights: the model with `None` in place of every other leaf."""
    return eqx.filter(model, trainable(model))


# --- Real coordinates -----------------------------------------------------------------------------

# What is trained are real numbers: a complex weight is two of them. Everything that moves weights
# or measures how they move does so in these coordinates, in which gradients, norms and Hessians
# are the usual ones.


class _Parts(NamedTuple):
    """A complex array of weights as two real ones."""

    real: Array
    imaginary: Array


def real_parts(tree: PyTree[ArrayLike]) -> PyTree[Array]:
    """The weights with every complex array as the pair of its real and imaginary parts."""
    split = lambda leaf: _Parts(jnp.real(leaf), jnp.imag(leaf)) if jnp.iscomplexobj(leaf) else leaf
    return jax.tree.map(split, tree)


def from_real_parts(tree: PyTree[Array]) -> PyTree[Array]:
    """The inverse of `real_parts`."""
    join = lambda node: jax.lax.complex(*node) if isinstance(node, _Parts) else node
    return jax.tree.map(join, tree, is_leaf=lambda node: isinstance(node, _Parts))


def coordinates(
    tree: PyTree[ArrayLike],
) -> tuple[Float[Array, " coordinates"], Callable[[Float[Array, " coordinates"]], PyTree[Array]]]:
    """The real coordinates of weights as one vector, and the way back.

    They are those of `jax.flatten_util.ravel_pytree`, where the real parts of a complex array are
    followed by its imaginary parts. On the way back every array has its own precision again.
    """
    # Where precisions are mixed, `unravel` refuses vectors of any but the common one.
    flat, unravel = jfu.ravel_pytree(real_parts(tree))
    return flat, lambda vector: from_real_parts(unravel(vector.astype(flat.dtype)))


def check_trained(model: PyTree) -> None:
    """Refuse a model in which there is nothing to train."""
    if not any(leaf.size for leaf in jax.tree.leaves(weights(model))):
        raise ValueError(
            "`model` must have trained weights, got none; they are its inexact arrays outside "
            "reparametrisations and memjax.Fixed."
        )
