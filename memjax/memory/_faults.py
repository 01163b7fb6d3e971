"""Faults of a model that no training mends: modes that do not decay, and weights without effect."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from ..models import HasRates, weight_name
from ..reparam import AbstractReparametrisation


def has_rates(node: Any) -> bool:
    """Whether a part of a model has rates behind a reparametrisation of memjax."""
    return isinstance(node, HasRates) and isinstance(
        node.reparametrisation, AbstractReparametrisation
    )


def find_faults(model: Any, sensitivity: PyTree[Array]) -> tuple[str, ...]:
    """What is wrong with a model, each in a sentence.

    **Arguments:**

    - `model`: the model.
    - `sensitivity`: the mean square of the slope of its outputs in every trained weight.
    """
    faults = []
    for node in filter(has_rates, jax.tree.leaves(model, is_leaf=has_rates)):
        rates = node.reparametrisation(node.free_rates)
        bad = int(jnp.sum(~(rates > 0)))
        if bad:
            faults.append(
                f"{bad} of {rates.size} decay rates of {type(node).__name__} are not above 0: "
                "these modes do not decay. Take a reparametrisation with positive rates."
            )
    dead = {
        weight_name(sensitivity, path): (int(jnp.sum(leaf == 0)), leaf.size)
        for path, leaf in jax.tree_util.tree_leaves_with_path(sensitivity)
    }
    dead = {name: counts for name, counts in dead.items() if counts[0]}
    if dead:
        named = ", ".join(f"{name} ({count} of {size})" for name, (count, size) in dead.items())
        faults.append(
            f"Outputs do not depend on some trained weights, which gradients cannot move: {named}."
        )
    return tuple(faults)
