"""A traced value has no number yet. These functions find traced values, and replace those that are
not valid by NaN."""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
from jaxtyping import Array


def is_traced(value: Any) -> bool:
    """Whether any leaf of `value` is a JAX tracer."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def valid_or_nan(value: Array, valid: Any) -> Array:
    """`value`, or NaN where it is not valid; for concrete values, which were checked, itself."""
    if not is_traced((value, valid)):
        return value
    return jnp.where(valid, value, jnp.asarray(jnp.nan, value.dtype))
