"""Exact steps of linear recurrences under sampled inputs."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Inexact

from .._checks import check_choice, shown
from .._paths import as_samples, as_steps
from ..numerics import exponential_increments

# Hidden states of a block are the only ones held at once. Measured on CPUs: longer blocks leave
# the cache, and shorter ones are mostly overhead.
_BLOCK = 64


def scan_diagonal(
    eigenvalues: Inexact[Array, " width"],
    ts: Any,
    xs: Any,
    interpolation: str,
    drive: Callable[[Array], Array],
    readout: Callable[[Array], Array],
    start: Array | None = None,
) -> Array:
    r"""The outputs of $\dot h = \lambda h + u(x)$, exactly for the interpolated $u$.

    With $z = \lambda \Delta t$, one step is

    $$h_{k+1} = e^z h_k + \Delta t\, \varphi_1(z)\, u_k + \Delta t\, \varphi_2(z)\,
      (u_{k+1} - u_k).$$

    Within a block of times the steps are composed by an associative scan; the blocks follow each
    other, so that memory grows with the length of the inputs and outputs only. Starts from rest, or
    from the hidden state `start`.
    """
    steps, xs = as_scannable(ts, xs, interpolation)
    count = steps.shape[0]
    block = min(_BLOCK, count)
    blocks = -(-count // block)
    padding = blocks * block - count

    def in_blocks(values: Array) -> Array:
        # Steps of no length, after the last, change nothing.
        padded = jnp.concatenate([values, jnp.zeros((padding, *values.shape[1:]), values.dtype)])
        return padded.reshape(blocks, block, *values.shape[1:])

    def move(hidden: Array, now: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        steps, begin, end = now
        z = eigenvalues * steps[:, None]
        # Not (e^z - 1) / z as it stands, which for short steps or slow modes has no digits left.
        first, second = exponential_increments(z)
        begin = jax.vmap(drive)(begin)
        forced = first * begin
        if interpolation == "linear":
            forced = forced + second * (jax.vmap(drive)(end) - begin)
        forced = forced * steps[:, None]
        decays = jnp.exp(z)
        # An associative scan has no state to start from: it enters as a part of what drives the
        # first step.
        forced = forced.at[0].add(decays[0] * hidden)
        _, hidden = jax.lax.associative_scan(_compose, (decays, forced))
        return hidden[-1], jax.vmap(readout)(hidden)

    driven = jax.eval_shape(drive, xs[0]).dtype
    dtype = jnp.result_type(eigenvalues, steps, driven)
    hidden = jnp.zeros(eigenvalues.shape, dtype) if start is None else start.astype(dtype)
    # Differentiated in reverse, each block is computed again instead of kept.
    _, outputs = jax.lax.scan(
        jax.checkpoint(move),
        hidden,
        (in_blocks(steps), in_blocks(xs[:-1]), in_blocks(xs[1:])),
    )
    outputs = outputs.reshape(blocks * block, *outputs.shape[2:])[:count]
    return jnp.concatenate([readout(hidden)[None], outputs])


def _compose(early: tuple[Array, Array], late: tuple[Array, Array]) -> tuple[Array, Array]:
    # h -> a h + b, the early one first.
    return early[0] * late[0], late[0] * early[1] + late[1]


def as_scannable(ts: Any, xs: Any, interpolation: str) -> tuple[Array, Array]:
    """Steps and samples as arrays, or the reason why a scan of them cannot be exact."""
    if callable(xs):
        raise TypeError(
            f"`xs` must be samples in `scan`, got {shown(xs)}; call the model itself for an input "
            "that is a function of time."
        )
    hint = "call the model itself for other paths"
    check_choice("interpolation", interpolation, ("linear", "previous"), hint)
    _, xs = as_samples(ts, xs)
    return as_steps(ts), xs
