"""Times at which a kernel and sums of exponentials are compared, and what they weigh.

Panels whose ends grow geometrically away from 0 resolve exponentials of every rate; a kernel's
breakpoints say what more it needs.
"""

from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_horizon
from ..targets import SampledKernel, StateSpaceKernel
from ..targets._base import elementwise_derivative
from ..targets._inner import edges, Kernel, values
from ..targets._lyapunov import exponential_action
from ..targets._quadrature import gauss_rule

Edges = Float[np.ndarray, " edges"]

_FLOOR = 2.0**-14  # the first panel, in units of the kernel's shortest own
_RATIO = 4.0  # of the ends of one panel
_FAR = 1e100  # where panels stop at the latest, in the kernel's own times
_BEYOND = 64.0  # how far past the end of a kernel the error of a model is followed
_CHUNK = 8192  # times at which a kernel is evaluated at once
_FAST = 8.0  # the fastest rate that is tried, times the length of the first panel


class Grid(NamedTuple):
    """Quadrature nodes of a kernel on `[0, horizon]`.

    `slowest` and `fastest` are the rates between which exponentials are resolved, `scale` is the
    shortest time on which the kernel changes, and `kernel_end` where it has become negligible.
    """

    times: Float[np.ndarray, " nodes"]
    weights: Float[np.ndarray, " nodes"]
    values: Float[np.ndarray, " nodes"]
    edges: Edges
    slowest: float
    fastest: float
    scale: float
    kernel_end: float


@eqx.filter_jit
def _values(kernel: Kernel, times: Array, order: int) -> Array:
    function: Callable[[Array], Array] = lambda t: values(kernel, t[None])[0]
    for _ in range(order):
        function = elementwise_derivative(function)
    return function(times)


def sample(kernel: Kernel, times: np.ndarray, order: int = 0) -> np.ndarray:
    """The kernel, or a derivative of it, at times of any shape."""
    flat = np.ravel(times)
    # One program serves any number of times.
    padded = np.zeros(-(-max(flat.size, 1) // _CHUNK) * _CHUNK)
    padded[: flat.size] = flat
    parts = [_values(kernel, jnp.asarray(part), order) for part in padded.reshape(-1, _CHUNK)]
    return np.concatenate(parts)[: flat.size].reshape(np.shape(times))


def sample_sums(
    kernel: Kernel, times: np.ndarray, order: int = 0, delay: float = 0.0
) -> Float[np.ndarray, "times times"]:
    """The kernel, or a derivative of it, at all sums of two times and a delay."""
    if not isinstance(kernel, StateSpaceKernel):
        return sample(kernel, times[:, None] + times + delay, order)
    # It factors, and a matrix exponential a time will do.
    recurrent = np.asarray(kernel.recurrent)
    late, early = jnp.asarray(times + delay), jnp.asarray(times)
    rows = exponential_action(kernel.recurrent.T, kernel.readout[:, None], late)
    columns = exponential_action(kernel.recurrent, kernel.input[:, None], early)
    power = np.linalg.matrix_power(recurrent, order)
    return np.asarray(rows)[..., 0] @ power @ np.asarray(columns)[..., 0].T


def make_grid(kernel: Kernel, horizon: float, norm: str, oscillating: bool) -> Grid:
    """Nodes on which the error of a sum of exponentials is optimised.

    **Arguments:**

    - `kernel`: The kernel, of scalar input and output.
    - `horizon`: The time up to which errors count, possibly infinite.
    - `norm`: The norm; it decides how far a kernel without an end is followed.
    - `oscillating`: Whether the sums may oscillate, on the kernel's own times everywhere.
    """
    own = np.unique(np.asarray(edges((kernel,), as_horizon(horizon)), float))
    scale = _shortest(kernel, own)
    last = float(own[-1])
    if np.isfinite(horizon):
        end, slowest, kernel_end = float(horizon), 1e-6 / float(horizon), min(last, horizon)
    elif _ends(kernel):
        end, kernel_end = _BEYOND * last, last
        slowest = 40 / end
    else:
        end = kernel_end = _reach(kernel, scale, norm)
        slowest = 1e-3 / end
    first = min(_FLOOR * scale, end / 2)
    cuts = geometric(np.unique(np.append(np.clip(own, 0, end), end)), first)
    if oscillating:
        reach = min(4 * kernel_end, end)
        steps = np.arange(0, 96) if _ends(kernel) or np.isfinite(horizon) else np.zeros(1)
        cuts = np.unique(np.append(cuts, reach * steps / 96))
    count = cuts.size - 1
    points = 24 if count <= 64 else 12 if count <= 200 else 4 if count <= 1000 else 1
    times, weights = nodes(cuts, points)
    if norm == "sup":
        # The maximum may lie at 0, or on either side of a jump.
        sides = np.concatenate([[0.0], np.nextafter(own[1:], 0), np.nextafter(own[1:], np.inf)])
        sides = sides[sides <= end]
        order = np.argsort(np.append(times, sides), kind="stable")
        times = np.append(times, sides)[order]
        weights = np.append(weights, np.full(sides.size, weights[0]))[order]
    return Grid(
        times, weights, sample(kernel, times), cuts, slowest, _FAST / first, scale, kernel_end
    )


def nodes(cuts: Edges, points: int) -> tuple[np.ndarray, np.ndarray]:
    """Gauss nodes and weights of all panels, in order."""
    x, weights = gauss_rule(points)
    widths = np.diff(cuts)[:, None]
    return (cuts[:-1, None] + widths * (1 + x) / 2).ravel(), (widths * weights / 2).ravel()


def geometric(points: Edges, first: float, ratio: float = _RATIO) -> Edges:
    """Edges with further ones in between, so that no panel is longer than `ratio` times its
    start but for the first, of length `first`."""
    parts = [points[:1]]
    for start, stop in zip(points[:-1], points[1:], strict=True):
        low = max(start, first)
        steps = int(np.ceil(np.log(max(stop / low, 1)) / np.log(ratio)))
        parts.append(low * (stop / low) ** (np.arange(steps) / max(steps, 1)))
        parts.append(np.array([stop]))
    return np.unique(np.concatenate(parts))


def _ends(kernel: Kernel) -> bool:
    if isinstance(kernel, StateSpaceKernel):
        return True
    return bool(np.isfinite(float(kernel.support())))  # pyright: ignore


def _shortest(kernel: Kernel, own: Edges) -> float:
    """The shortest time on which a kernel changes."""
    if isinstance(kernel, StateSpaceKernel):
        return 1 / float(np.linalg.norm(np.asarray(kernel.recurrent), 2))
    points = np.asarray(kernel.breakpoints(), float)  # pyright: ignore
    points = np.unique(np.append(np.clip(points, 0, own[-1]), [0.0, own[-1]]))
    steps = np.diff(points)
    if isinstance(kernel, SampledKernel):
        return float(np.median(np.diff(np.asarray(kernel.times))))
    return float(max(np.min(steps), 1e-6 * np.median(steps)))


def _reach(kernel: Kernel, scale: float, norm: str) -> float:
    """Where what is left of the norm of a kernel without an end is rounding."""
    times = scale * 2.0 ** np.arange(0.0, np.log2(_FAR))
    sizes = np.abs(sample(kernel, times))
    # What is left of a power of time from t on is about what lies between t and 2 t.
    if norm == "L1":
        left = sizes * times
    elif norm == "L2":
        left = sizes * np.sqrt(times)
    else:
        left = sizes
    small = left <= 1e-17 * np.max(left)
    kept = np.flatnonzero(~small)
    return float(times[min(kept[-1] + 1, times.size - 1)])


def first_jump(kernel: Kernel, orders: int) -> int | None:
    """The lowest derivative, of order below `orders`, that jumps at a time above 0, if any does.

    Jumps are looked for at the breakpoints that the kernel states.
    """
    if isinstance(kernel, StateSpaceKernel):
        return None
    points = np.unique(np.asarray(kernel.breakpoints(), float))  # pyright: ignore
    points = points[points > 0]
    if points.size == 0:
        return None
    for order in range(orders):
        before, after = (sample(kernel, points * side, order) for side in (1 - 1e-9, 1 + 1e-9))
        size = np.maximum(np.max(np.abs(before)), np.max(np.abs(after)))
        if np.any(np.abs(after - before) > 1e-6 * size):
            return order
    return None
