"""How much memory the lanes of a measurement take, and whether there is so much."""

import math
import os
from pathlib import Path

import equinox as eqx
import jax

from ..flows import COLUMNS, DENSE, gradient_bytes
from ._runs import Runs

# The vectors that a lane holds while it steps, the arrays of the size of a Hessian that say at its
# end whether it rests, and the gradients side by side in a step without closed forms (measured on
# compiled programs).
_VECTORS, _HESSIANS, _GRADIENTS = 100, 7, 4


def state_size(run: Runs) -> int:
    """The size of the state of a run, of which shapes are enough."""
    return run.size + sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(run.flow.auxiliary))


def automatic_bytes(run: Runs) -> int:
    """What automatic differentiation keeps for a gradient of a run."""
    y = eqx.filter_eval_shape(lambda flow: flow.initial_state()[: run.size], run.flow)
    return gradient_bytes(run.flow, y)


def lane_bytes(run: Runs) -> int:
    """About what one lane takes, of which shapes are enough."""
    n = state_size(run)
    arrays = _HESSIANS * n**2 if run.closed or n <= DENSE else 0
    own = 8 * (_VECTORS * n + arrays)
    if run.closed:
        return own
    return own + (COLUMNS if n <= DENSE else _GRADIENTS) * automatic_bytes(run)


def check_memory(run: Runs) -> None:
    """Refuse a run of which not even one fits into memory; shapes are enough."""
    needed, there = lane_bytes(run), device_bytes()
    if needed > there:
        raise ValueError(
            f"`model` must be small enough for the memory, got {state_size(run):,} numbers to be "
            f"trained, with which one run takes about {needed / 1e9:,.0f} GB of the "
            f"{there / 1e9:,.0f} GB that there are; take fewer neurons, or fewer or shorter paths."
        )


def device_bytes() -> float:
    """The memory of the device, or of what this process may use of the machine."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # a system that does not say
        return float("inf")
    try:
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):  # no limit of its own
        return whole
