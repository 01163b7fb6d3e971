from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array


def in_batches(function: Callable[..., Array], *arrays: Array, size: int = 256) -> Array:
    """`function` of every row, `size` of them at once, which bounds the memory."""
    count = arrays[0].shape[0]
    if count <= size:
        return jax.vmap(function)(*arrays)
    batches = -(-count // size)
    # Filled up with repeats: `lax.map` would compile what is left over a second time.
    index = (jnp.arange(batches * size) % count).reshape(batches, size)
    split = [x[index] for x in arrays]
    values = jax.lax.map(lambda xs: jax.vmap(function)(*xs), split)
    return values.reshape(-1, *values.shape[2:])[:count]


def over_lanes(function: Callable) -> Callable:
    """`function` of one run as that of many: lanes are the last axis of all arrays, of its
    arguments and of what it returns."""
    return eqx.filter_vmap(function, in_axes=eqx.if_array(-1), out_axes=-1)
