from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


def in_batches(function: Callable[..., Any], *arrays: Array, size: int = 256) -> Any:
    """`function` of every row, `size` of them at once, which bounds the memory."""
    count = arrays[0].shape[0]
    if count <= size:
        return jax.vmap(function)(*arrays)
    batches = -(-count // size)
    # Filled up with repeats: `lax.map` would compile what is left over a second time.
    index = (jnp.arange(batches * size) % count).reshape(batches, size)
    split = [x[index] for x in arrays]
    values = jax.lax.map(lambda xs: jax.vmap(function)(*xs), split)
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:count], values)


def over_lanes(function: Callable) -> Callable:
    """`function` of one run as that of many: lanes are the last axis of all arrays, of its
    arguments and of what it returns."""
    return eqx.filter_vmap(function, in_axes=eqx.if_array(-1), out_axes=-1)


def one_by_one(function: Callable) -> Callable:
    """`function` of matrices, which takes them one after the other under `jax.vmap` on a CPU.

    XLA's LAPACK hands a batch of decompositions to a pool of threads and waits; two programs that
    do so at the same time, in two threads of this process, wait for ever (jaxlib 0.10.2).
    """
    # Default arguments of `function` would be taken for arrays.
    alone = jax.custom_batching.sequential_vmap(lambda *args: function(*args))
    return lambda *args: (alone if jax.default_backend() == "cpu" else function)(*args)


def combine(
    weights: Float[np.ndarray, "*sums terms"], x: Float[Array, "n terms *lanes"]
) -> Float[Array, "n ..."]:
    """The weighted sums of a few terms, the second axis of an array.

    Written out: with `einsum`, of which XLA makes a product of matrices, steps of lanes took 15 %
    longer on a CPU.
    """
    if weights.ndim == 2:
        return jnp.stack([combine(row, x) for row in weights], axis=1)
    # At least one term, so that 0 is not added.
    terms = [float(weight) * x[:, k] for k, weight in enumerate(weights)]
    return sum(terms[1:], terms[0])


# The operations of two that reductions repeat.
_OF_TWO = {
    jnp.sum: jnp.add,
    jnp.max: jnp.maximum,
    jnp.all: jnp.logical_and,
    jnp.any: jnp.logical_or,
}


def fold(reduction: Callable[..., Array], x: Array, axis: int = 0) -> Array:
    """A reduction of one axis: `jnp.sum`, `jnp.max`, `jnp.all` or `jnp.any`.

    For what costs little, since it is written out for every number; else see `sum_over`. By
    halves, which are operations of whole vectors of lanes: on a CPU XLA's own reductions run over
    one number after the other, or are handed to a library with copies of what they take. The last
    two numbers of a lane are left to XLA, since what a reduction returns stands in memory, and all
    else may be evaluated anew wherever it is used.
    """
    left = 2 if x.ndim == 2 else 1
    while x.shape[axis] > left:
        half = x.shape[axis] // 2
        first, second, rest = jnp.split(x, [half, 2 * half], axis)
        x = _OF_TWO[reduction](first, second)
        if rest.shape[axis] > 0:
            x = jnp.concatenate([x, rest], axis)
    return reduction(x, axis)


def sum_over(term: Callable[[Any], Any], count: int | Int[Array, ""], start: Any) -> Any:
    """`start` and the sum of `term(j)` over all `j < count`, PyTrees of arrays.

    A sum over leading axes as a loop around whole vectors of lanes: XLA's own would run over the
    terms of one number after the other, ten times slower on a CPU.
    """
    if isinstance(count, int) and count == 0:  # not even traced
        return start
    add = lambda j, total: jax.tree.map(jnp.add, total, term(j))
    return jax.lax.fori_loop(0, count, add, start)
