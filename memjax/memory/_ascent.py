"""The largest error of any model and any loss in balls around its weights, by ascent."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, PRNGKeyArray, PyTree

from .._checks import check_scalar_of_model
from ..losses import from_real_parts, real_parts
from ..models import trainable
from ..numerics import in_batches, one_by_one
from ._ball import Ball, Effort, PerturbationErrors

Loss: TypeAlias = Callable[[Any], Float[Array, ""]]

# Weights that are the diagonal of a recurrent matrix: its operator norm is their largest modulus.
DIAGONALS = ("free_rates", "frequencies")


@eqx.filter_jit
def ascend(
    model: PyTree,
    loss: Loss,
    radii: Array,
    key: PRNGKeyArray,
    ball: Ball,
    effort: Effort,
) -> PerturbationErrors:
    weights, rest = eqx.partition(model, trainable(model))
    # Parts of complex weights are weights of their own but where a block is measured as a whole.
    blocks = real_parts(weights) if ball == "max" else weights

    def error(change: PyTree) -> Array:
        moved = from_real_parts(jax.tree.map(jnp.add, blocks, change))
        value = loss(eqx.combine(moved, rest))
        check_scalar_of_model("target", value)
        return jnp.where(jnp.isfinite(value), value, jnp.inf).astype(radii.dtype)

    slope = jax.value_and_grad(error)
    still = jax.tree.map(jnp.zeros_like, blocks)

    def climb(start: PyTree, radius: Array) -> tuple[Array, PyTree]:
        def step(state: tuple, _: None) -> tuple[tuple, None]:
            at, value, corner, size = state
            # The first step reaches the corner of the ball from anywhere in it.
            ahead = lambda d, c: (d + 2 * radius * size * c).astype(d.dtype)
            moved = jax.tree.map(ahead, at, corner)
            inside = lambda block, kind: _project(block, kind, radius).astype(block.dtype)
            moved = _map_blocks(inside, ball, moved)
            reached, gradient = slope(moved)
            better = reached >= value
            keep = lambda a, b: jax.tree.map(lambda x, y: jnp.where(better, x, y), a, b)
            size = jnp.where(better, jnp.minimum(2 * size, 1), size / 4)
            state = (moved, reached, _map_blocks(_find_corner, ball, gradient))
            return (*keep(state, (at, value, corner)), size), None

        # Without a direction yet, the first step stays where it is, and finds one.
        state = (start, jnp.full_like(radius, -jnp.inf), still, jnp.ones_like(radius))
        (at, value, _, _), _ = lax.scan(step, state, length=effort.steps + 1)
        return value, at

    count = max(effort.draws, effort.restarts)

    def at_radius(state: tuple, now: tuple[Array, Array]) -> tuple[tuple, tuple]:
        before, worst, last = state
        radius, key = now
        draw = lambda key: _draw_noise(key, still, ball, radius)
        keys = jax.random.split(key, count)
        values = in_batches(lambda key: error(draw(key)), keys[: effort.draws], size=32)
        # From the worst case before, the best draw, and the first draws.
        chosen = jnp.insert(jnp.arange(effort.restarts), 0, jnp.argmax(values))
        growth = radius / jnp.where(last > 0, last, 1)
        grown = jax.tree.map(lambda d: (d * growth).astype(d.dtype), worst)
        starts = jax.tree.map(
            lambda first, others: jnp.concatenate([first[None], others]),
            grown,
            jax.vmap(draw)(keys[chosen]),
        )
        found, points = jax.vmap(climb, in_axes=(0, None))(starts, radius)
        first = jnp.argmax(found)
        value = found[first]
        rises = value > before
        change = jax.tree.map(lambda new, old: jnp.where(rises, new[first], old), points, worst)
        value = jnp.where(rises, value, before)
        return (value, change, radius), (value, jnp.max(values), change)

    start = (jnp.full_like(radii[0], -jnp.inf), still, jnp.zeros_like(radii[0]))
    keys = jax.random.split(key, radii.size)
    _, (values, drawn, changes) = lax.scan(at_radius, start, (radii, keys))
    upper = jnp.full_like(values, jnp.inf)
    changes = from_real_parts(changes)
    return PerturbationErrors(radii, values, drawn, upper, changes, jnp.isinf(values))


def _map_blocks(function: Callable[[Array, str], Array], ball: Ball, tree: PyTree) -> PyTree:
    """Apply a function to every array of weights, together with the kind of its block."""

    def apply(path: tuple, block: Array) -> Array:
        if block.size == 0:
            return block
        if ball == "max" or getattr(path[-1] if path else None, "name", None) in DIAGONALS:
            return function(block, "max")
        return function(block, "vector" if block.ndim < 2 else "matrix")

    return jax.tree_util.tree_map_with_path(apply, tree)


def _decompose(block: Array) -> tuple[Array, Array, Array]:
    """The singular value decomposition of a matrix, or of every one."""
    alone = one_by_one(lambda matrix: tuple(jnp.linalg.svd(matrix, full_matrices=False)))
    return jnp.vectorize(alone, signature="(m,n)->(m,k),(k),(k,n)")(block)


def _find_corner(gradient: Array, kind: str) -> Array:
    """The point of the unit ball where the loss rises most, to first order."""
    # Where the loss is infinite the gradient is not a number: such starts have arrived already.
    uphill = jnp.nan_to_num(jnp.conj(gradient), posinf=0, neginf=0)
    if kind == "max":
        size = jnp.abs(uphill)
        return jnp.where(size > 0, uphill / jnp.where(size > 0, size, 1), 0)
    # A scale of its own keeps tiny gradients from vanishing in squares.
    largest = jnp.max(jnp.abs(uphill), axis=(-2, -1)[-uphill.ndim :], keepdims=True)
    uphill = uphill / jnp.where(largest > 0, largest, 1)
    if kind == "vector":
        return uphill / jnp.where(largest > 0, jnp.linalg.norm(uphill), 1)
    u, _, v = _decompose(uphill)
    return jnp.where(largest > 0, u @ v, 0)


def _project(block: Array, kind: str, radius: Array) -> Array:
    if kind == "matrix":
        u, s, v = _decompose(block)
        return (u * jnp.minimum(s, radius)[..., None, :]) @ v
    size = jnp.abs(block) if kind == "max" else jnp.linalg.norm(block)
    return block * jnp.where(size > radius, radius / jnp.where(size > 0, size, 1), 1)


def _draw_noise(key: PRNGKeyArray, like: PyTree, ball: Ball, radius: Array) -> PyTree:
    """A random perturbation of the ball."""
    # One draw for all weights together, since every one costs a compilation of its own.
    parts = jax.tree.map(lambda x: (x.real, x.imag) if jnp.iscomplexobj(x) else (x,), like)
    flat, unravel = ravel_pytree(parts)
    drawn = unravel(jax.random.uniform(key, flat.shape, flat.dtype, -1, 1))
    whole = lambda x, part: lax.complex(*part) / math.sqrt(2) if len(part) == 2 else part[0]
    noise = jax.tree.map(whole, like, drawn)

    def scale(block: Array, kind: str) -> Array:
        if kind == "vector":
            block = block / jnp.linalg.norm(block)
        elif kind == "matrix":
            block = block / _decompose(block)[1][..., :1, None]
        return (radius * block).astype(block.dtype)

    return _map_blocks(scale, ball, noise)
