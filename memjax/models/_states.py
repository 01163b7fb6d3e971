"""Hidden states along a sampled input."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from .._paths import as_samples, as_steps
from ..targets import StateSpace
from ._base import AbstractModel
from ._capabilities import AbstractScannable, HasScan, scans_every_step
from ._linear import LinearRNN
from ._scan import scan_diagonal
from ._state_space import StateSpaceStack


@functools.singledispatch
def has_hidden_states(model: Any) -> bool:
    """Whether `hidden_states` can follow the model, as `scan` or else `residual` does."""
    # What any other scan does to the hidden state is not known.
    exact = isinstance(model, (AbstractScannable, LinearRNN))
    return isinstance(model, AbstractModel) and (exact or not isinstance(model, HasScan))


@has_hidden_states.register
def _(model: StateSpaceStack) -> bool:
    return not scans_every_step(model) or all(map(has_hidden_states, model.layers))


@functools.singledispatch
def hidden_states(model: Any, ts: Any, xs: Any, hidden: PyTree[Array]) -> PyTree[Array]:
    """The hidden states at `ts`, from `hidden` at `ts[0]` on: those of which `scan`, or `residual`
    for a model without one, returns the readout.

    **Arguments:**

    - `model`: a model for which `has_hidden_states`.
    - `ts`, `xs`: increasing times and samples, as in [`memjax.AbstractModel.residual`][].
    - `hidden`: a hidden state, like that at rest.

    **Returns:**

    Such a hidden state, with `times` first in every shape.
    """
    return _follow_euler(model, ts, xs, hidden)


def _follow_euler(model: Any, ts: Any, xs: Any, hidden: PyTree[Array]) -> PyTree[Array]:
    times, xs = as_samples(ts, xs)

    def move(hidden: PyTree[Array], now: tuple[Array, Array, Array]) -> tuple[PyTree, PyTree]:
        t, step, x = now
        slope = model.vector_field(t, hidden, x)
        moved = jax.tree.map(lambda h, f: (h + step * f).astype(h.dtype), hidden, slope)
        return moved, hidden

    return jax.lax.scan(move, hidden, (times, jnp.append(as_steps(ts), 0), xs))[1]


@hidden_states.register
def _(model: AbstractScannable, ts: Any, xs: Any, hidden: Array) -> Array:
    how = model._recurrence()
    # Of modes that come in conjugate pairs real and imaginary parts are rows of the hidden state.
    paired = jnp.iscomplexobj(how.eigenvalues)
    start = jax.lax.complex(hidden[0], hidden[1]) if paired else hidden
    states = scan_diagonal(how.eigenvalues, ts, xs, "linear", how.drive, lambda h: h, start)
    return jnp.stack([states.real, states.imag], axis=1) if paired else states


@hidden_states.register
def _(model: LinearRNN, ts: Any, xs: Any, hidden: Array) -> Array:
    system = StateSpace(model.recurrent, model.input.reshape(model.width, -1), jnp.eye(model.width))
    return system.response(ts, xs.reshape(xs.shape[0], -1), start=hidden)


@hidden_states.register
def _(model: StateSpaceStack, ts: Any, xs: Any, hidden: tuple[Any, ...]) -> tuple[Any, ...]:
    if not scans_every_step(model):
        return _follow_euler(model, ts, xs, hidden)
    states: list[Any] = []
    outputs = None
    for layer, start in zip(model.layers, hidden, strict=True):
        below = outputs
        states.append(hidden_states(layer, ts, xs if below is None else below, start))
        outputs = model._skipped(jax.vmap(layer.readout)(states[-1]), below)
    return tuple(states)
