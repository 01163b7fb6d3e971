"""PyTrees as wholes."""

from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PyTree

_Tree = TypeVar("_Tree", bound=PyTree)


def as_constant(tree: _Tree) -> _Tree:
    """The same values, cut off from differentiation."""
    constant = lambda leaf: lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf
    return jax.tree.map(constant, tree)


def choose(mask: Bool[Array | np.ndarray, "..."], new: _Tree, old: _Tree) -> _Tree:
    """Every array of `new` where `mask` holds, and of `old` elsewhere; what is no array in either,
    of `new`. With lanes last one mask serves arrays of any shape."""

    def pick(a: Any, b: Any) -> Any:
        # A number of Python may stand against an array: Diffrax's solvers return `False` in the
        # place of a flag that they were given as an array.
        return jnp.where(mask, a, b) if eqx.is_array(a) or eqx.is_array(b) else a

    return jax.tree.map(pick, new, old)
