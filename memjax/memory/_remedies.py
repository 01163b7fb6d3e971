"""What may help a model to see a dependency at a lag, as far as it has the parts for it."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ..models import AbstractMapped, CELLS, GatedRNN, InputMap
from ..reparam import Best, Exp
from ._faults import has_rates


def propose_changes(
    model: Any, lag: float, step: float, key: PRNGKeyArray
) -> list[tuple[str, Any]]:
    """What may help, as far as the model has the parts for it."""
    nodes = jax.tree.leaves(model, is_leaf=lambda node: has_rates(node) or _is_gated(node))
    changes: list[tuple[str, Any]] = []

    def replaced(change: Callable[[Any], Any]) -> Any:
        return jax.tree.map(change, model, is_leaf=lambda node: has_rates(node) or _is_gated(node))

    if any(map(has_rates, nodes)):
        for suffix, make in (
            ("", lambda rates, own: own),
            (", with Exp", lambda rates, own: Exp()),
            # Its largest rate must be above those that there are.
            (", with Best", lambda rates, own: Best(1.0, 0.5 / float(jnp.max(rates)))),
        ):

            def slower(node: Any, make: Callable[..., Any] = make) -> Any:
                if not has_rates(node):
                    return node
                old = node.reparametrisation(node.free_rates)
                rates = _spread_rates(old, lag)
                reparametrisation = make(rates, node.reparametrisation)
                where = lambda node: (node.free_rates, node.reparametrisation)
                node = eqx.tree_at(
                    where, node, (reparametrisation.inverse(rates), reparametrisation)
                )
                drive = node.drive if isinstance(node, AbstractMapped) else None
                if not isinstance(drive, InputMap):
                    return node
                # Or else slow modes, whose states are large, would saturate the activation.
                scales = jnp.sqrt(rates / old).reshape(-1, *[1] * (drive.input.ndim - 1))
                return eqx.tree_at(lambda node: node.input, node, drive.input * scales)

            changes.append((f"slower rates, down to 1/{lag:g}{suffix}", replaced(slower)))
    if any(_is_gated(node) and _get_cell(node).use_bias for node in nodes):
        keys = iter(jax.random.split(key, len(nodes)))

        def patient(node: Any) -> Any:
            if not _is_gated(node) or not _get_cell(node).use_bias:
                return node
            if isinstance(node, GatedRNN):
                cell = _set_chrono(node.cell, lag * float(node.rate.value), next(keys))
                return eqx.tree_at(lambda node: node.cell, node, cell)
            return _set_chrono(node, lag / step, next(keys))

        changes.append((f"gate biases for memory up to {lag:g} (chrono)", replaced(patient)))
    return changes


def _is_gated(node: Any) -> bool:
    return isinstance(node, (GatedRNN, *CELLS))


def _get_cell(node: Any) -> Any:
    return node.cell if isinstance(node, GatedRNN) else node


def _spread_rates(rates: Array, lag: float) -> Array:
    """Rates in geometric progression, from the fastest there is to one over the lag."""
    fastest = jnp.maximum(jnp.max(rates), 1 / lag)
    spread = jnp.geomspace(fastest, 1 / lag, rates.size) if rates.size > 1 else 1 / lag
    # Each keeps its place among the others.
    order = jnp.argsort(-rates)
    return jnp.zeros_like(rates).at[order].set(spread)


def _set_chrono(cell: Any, length: float, key: PRNGKeyArray) -> Any:
    """The biases of Tallec & Ollivier: forgetting times uniform up to the length."""
    width = cell.hidden_size
    times = jax.random.uniform(key, (width,), minval=1.0, maxval=max(length - 1, 1.5))
    keep = jnp.log(times).astype(cell.bias.dtype)
    bias = cell.bias.at[width : 2 * width].set(keep)
    if isinstance(cell, eqx.nn.LSTMCell):
        bias = bias.at[:width].set(-keep)
    return eqx.tree_at(lambda cell: cell.bias, cell, bias)
