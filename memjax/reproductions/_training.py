"""Training for comparison: many runs of one structure as one compiled program."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree

from ..models import trainable


class Training(eqx.Module):
    """What became of the runs of `train`.

    **Attributes:**

    - `models`: the trained models, every array with the leading axis of the runs. A run that
        diverged has the last weights that were finite.
    - `losses`: the loss before every update, shape `(runs, updates)`; not finite from where a
        run diverged.
    - `diverged`: whether a loss or a gradient was not finite, shape `(runs,)`.
    - `watched`: the largest value of `watch` until then, shape `(runs,)`.
    - `memory`: what the optimiser remembers of every run, to go on from.
    """

    models: Any
    losses: Float[Array, "runs updates"]
    diverged: Bool[Array, " runs"]
    watched: Float[Array, " runs"]
    memory: PyTree[Array]


def batched(make: Callable[[PRNGKeyArray], Any], keys: PRNGKeyArray) -> Any:
    """Models of one structure as one module, every array with a leading axis, one model a key."""
    models = [make(key) for key in keys]
    arrays = [eqx.filter(model, eqx.is_array) for model in models]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *arrays)
    return eqx.combine(stacked, eqx.filter(models[0], eqx.is_array, inverse=True))


@eqx.filter_jit
def train(
    models: Any,
    loss: Callable[[Any, PRNGKeyArray, Any], Float[Array, ""]],
    optimiser: optax.GradientTransformation,
    updates: int,
    *,
    key: PRNGKeyArray,
    data: PyTree[Array] = None,
    trained: Callable[[Any], PyTree[bool]] = trainable,
    scales: Float[Array, " runs"] | None = None,
    watch: Callable[[Any, Any], Float[Array, ""]] = lambda weights, slopes: jnp.zeros(()),
    memory: PyTree[Array] | None = None,
) -> Training:
    """Train runs beside each other, all in one scan over updates.

    It compiles once for a structure of models, data, loss and optimiser: functions are told
    apart by identity, so make them once.

    **Arguments:**

    - `models`: as those of `batched`.
    - `loss`: `loss(model, key, data)` of one run. The key is another one at every update, the
        same for all runs; a loss that uses it to draw a batch trains on fresh samples.
    - `optimiser`: an Optax optimiser.
    - `updates`: how many.
    - `key`: the PRNG key of the batches.
    - `data`: what the runs differ in besides their weights: arrays with the axis of the runs.
    - `trained`: which leaves are trained, `memjax.trainable` or, for what is not a
        [`memjax.AbstractModel`][] of ours, another filter specification of a model.
    - `scales`: what the updates of each run are multiplied with; 1 by default.
    - `watch`: a number made of weights and slopes, of which the largest is kept.
    - `memory`: that of an earlier training, to go on with it; by default the optimiser starts
        anew.
    """
    weights, rest = eqx.partition(models, trained(models))
    if memory is None:
        memory = jax.vmap(optimiser.init)(weights)

    def start(weights: PyTree[Array], memory: PyTree[Array]) -> tuple:
        return weights, memory, jnp.asarray(False), jnp.zeros(())

    def update(
        state: tuple, rest: Any, data: Any, scale: Array | None, key: PRNGKeyArray
    ) -> tuple[tuple, Array]:
        weights, memory, diverged, most = state
        value, slopes = jax.value_and_grad(
            lambda weights: loss(eqx.combine(weights, rest), key, data)
        )(weights)
        changes, memory_after = optimiser.update(slopes, memory, weights)
        if scale is not None:
            changes = jax.tree.map(lambda change: scale * change, changes)
        moved = optax.apply_updates(weights, changes)
        finite = jnp.isfinite(value)
        for leaf in jax.tree.leaves(moved):
            finite &= jnp.all(jnp.isfinite(leaf))
        diverged |= ~finite
        keep = lambda after, before: jax.tree.map(
            lambda new, old: jnp.where(diverged, old, new), after, before
        )
        most = jnp.where(diverged, most, jnp.maximum(most, watch(weights, slopes)))
        state = keep(moved, weights), keep(memory_after, memory), diverged, most
        return state, jnp.where(diverged & jnp.isfinite(value), jnp.nan, value)

    in_axes = (0, eqx.if_array(0), eqx.if_array(0), eqx.if_array(0), None)

    def step(state: tuple, key: PRNGKeyArray) -> tuple[tuple, Array]:
        return eqx.filter_vmap(update, in_axes=in_axes)(state, rest, data, scales, key)

    state = jax.vmap(start)(weights, memory)
    (weights, memory, diverged, most), losses = jax.lax.scan(
        step, state, jax.random.split(key, updates)
    )
    return Training(eqx.combine(weights, rest), losses.T, diverged, most, memory)


def select(models: Any, index: Any) -> Any:
    """One of the models, or several of them, of a batch."""
    return jax.tree.map(lambda leaf: leaf[index] if eqx.is_array(leaf) else leaf, models)
