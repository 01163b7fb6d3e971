"""Kernels in units of their own, and the grids on which sums are fitted to them."""

from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._checks import as_horizon
from .._lazy import scipy
from ..targets import (
    AbstractKernel,
    edges,
    elementwise_derivative,
    SampledKernel,
    state_space,
    StateSpaceKernel,
)
from ._grid import Edges, geometric, Grid, nodes

_FLOOR = 2.0**-14  # the first panel, in units of the kernel's shortest own
_FAR = 1e100  # where panels stop at the latest, in the kernel's own times
_BEYOND = 64.0  # how far past the end of a kernel the error of a model is followed
_CHUNK = 8192  # times at which a kernel is evaluated at once
_FAST = 8.0  # the fastest rate that is tried, times the length of the first panel


@eqx.filter_jit
def _values(kernel: AbstractKernel, times: Array, order: int) -> Array:
    function: Callable[[Array], Array] = kernel
    for _ in range(order):
        function = elementwise_derivative(function)
    return function(times)


@eqx.filter_jit
def _ramps(kernel: AbstractKernel, times: Array) -> Array:
    return kernel.ramp_response(times)


def sample(kernel: AbstractKernel, times: np.ndarray, order: int = 0) -> np.ndarray:
    """The kernel, or a derivative of it, at times of any shape."""
    if isinstance(kernel, SampledKernel):
        own, samples = np.asarray(kernel.times), np.asarray(kernel.values)
        if order == 0:
            return np.interp(times, own, samples, left=0, right=0)
        slopes = np.concatenate([[0.0], np.diff(samples) / np.diff(own), [0.0]])
        return slopes[np.searchsorted(own, times, side="right")] * (order == 1)
    flat = np.ravel(times)
    # One program serves any number of times.
    padded = np.zeros(-(-max(flat.size, 1) // _CHUNK) * _CHUNK)
    padded[: flat.size] = flat
    parts = [_values(kernel, jnp.asarray(part), order) for part in padded.reshape(-1, _CHUNK)]
    return np.concatenate(parts)[: flat.size].reshape(np.shape(times))


class Curve:
    """A scalar kernel up to a horizon, in units of time and of size of its own.

    What searches knows no other units, and so does the same in all of them.

    **Attributes:**

    - `kernel`: the kernel, in the units of the user.
    - `time`, `size`: the units: the shortest time on which the kernel changes, and its maximum.
    - `horizon`: the time up to which errors count, possibly infinite.
    - `own`: edges between which the kernel is smooth, from 0 on.
    - `grid`: Gauss nodes for a norm, with the kernel's values.
    - `cuts`: the panels on which they lie.
    """

    def __init__(
        self, kernel: AbstractKernel, horizon: float, norm: str, oscillating: bool
    ) -> None:
        self.kernel, self.size = kernel, 1.0
        own = np.unique(np.asarray(edges((kernel,), as_horizon(horizon)), float))
        self.time = shortest(kernel, own)
        if own.size < 3:
            # A kernel that says nothing of itself.
            own = self.time * np.append(0, 2.0 ** np.arange(-40, 120))
            own = np.unique(np.minimum(own, horizon))
        self.horizon, self.own = horizon / self.time, own / self.time
        self.grid, self.cuts = self._grid(norm, oscillating)
        self.size = float(np.max(np.abs(self.grid.values))) or 1.0
        self.grid = self.grid._replace(values=self.grid.values / self.size)

    def __call__(self, times: np.ndarray, order: int = 0) -> np.ndarray:
        """The kernel, or a derivative of it, at times of any shape."""
        factor = self.time**order / self.size
        return factor * sample(self.kernel, times * self.time, order)

    def at_sums(self, times: np.ndarray, order: int = 0, delay: float = 0.0) -> np.ndarray:
        """The kernel, or a derivative of it, at all sums of two times and a delay."""
        if not isinstance(self.kernel, StateSpaceKernel):
            return self(times[:, None] + times + delay, order)
        # It factors, and a matrix exponential a time will do.
        system = self.kernel.system
        late, early = (jnp.asarray(t * self.time) for t in (times + delay, times))
        rows, columns = system.transposed.states(late), system.states(early)
        power = np.linalg.matrix_power(np.asarray(system.recurrent) * self.time, order) / self.size
        return np.asarray(rows)[..., 0] @ power @ np.asarray(columns)[..., 0].T

    def ramps(self, times: np.ndarray) -> np.ndarray:
        """The responses to ramps."""
        found = np.asarray(_ramps(self.kernel, jnp.asarray(times * self.time)))
        return found / (self.time**2 * self.size)

    @property
    def ends(self) -> bool:
        """Whether the kernel becomes negligible before any horizon."""
        return bool(np.isfinite(float(self.kernel.support())))

    def _grid(self, norm: str, oscillating: bool) -> tuple[Grid, Edges]:
        own, last = self.own, float(self.own[-1])
        if np.isfinite(self.horizon):
            end, slowest, kernel_end = self.horizon, 1e-6 / self.horizon, min(last, self.horizon)
        elif self.ends:
            end, kernel_end = _BEYOND * last, last
            slowest = 40 / end
        else:
            end = kernel_end = self._reach(norm)
            slowest = 1e-3 / end
        first = min(_FLOOR, end / 2)
        cuts = geometric(np.unique(np.append(np.clip(own, 0, end), end)), first)
        if oscillating:
            reach = min(4 * kernel_end, end)
            steps = np.arange(0, 96) if self.ends or np.isfinite(self.horizon) else np.zeros(1)
            cuts = np.unique(np.append(cuts, reach * steps / 96))
        count = cuts.size - 1
        points = 24 if count <= 64 else 12 if count <= 200 else 4 if count <= 1000 else 2
        times, weights = nodes(cuts, points)
        if norm == "sup":
            # The maximum may lie at 0, or on either side of a jump.
            sides = np.concatenate([[0.0], own[1:] * (1 - 1e-15), own[1:] * (1 + 1e-15)])
            sides = sides[sides <= end]
            order = np.argsort(np.append(times, sides), kind="stable")
            times = np.append(times, sides)[order]
            weights = np.append(weights, np.full(sides.size, weights[0]))[order]
        grid = Grid(times, weights, self(times), slowest, _FAST / first, 1.0, kernel_end)
        return grid, cuts

    def _reach(self, norm: str) -> float:
        """Where what is left of the norm of a kernel without an end is rounding."""
        times = 2.0 ** np.arange(0.0, np.log2(_FAR))
        sizes = np.abs(self(times))
        # What is left of a power of time from t on is about what lies between t and 2 t.
        left = sizes * {"L1": times, "L2": np.sqrt(times), "sup": 1.0}[norm]
        kept = np.flatnonzero(left > 1e-17 * np.max(left))
        return float(times[min(kept[-1] + 1, times.size - 1)])


def shortest(kernel: AbstractKernel, own: Edges) -> float:
    """The shortest time on which a kernel changes."""
    if isinstance(kernel, StateSpaceKernel):
        return 1 / float(np.linalg.norm(np.asarray(kernel.recurrent), 2))
    points = np.asarray(kernel.breakpoints(), float)
    points = np.unique(np.append(np.clip(points, 0, own[-1]), 0.0))
    if isinstance(kernel, SampledKernel):
        return mean_spacing(points[points > 0] if kernel.times[0] > 0 else points)
    if points.size == 1:
        return _typical(kernel)
    # Points that nearly coincide are those of different terms.
    steps = np.diff(points)
    return float(np.min(steps[steps > 1e-6 * points[1:]]))


def mean_spacing(times: np.ndarray) -> float:
    """The smallest mean distance of samples from the first to any other: that of even samples,
    and of others that of the early ones."""
    return float(np.min((times[1:] - times[0]) / np.arange(1, times.size)))


def _typical(kernel: AbstractKernel) -> float:
    """The time around which most of a kernel lies, on a logarithmic scale."""
    logs = np.arange(-120.0, 120.0) * np.log(2)
    with np.errstate(divide="ignore"):
        mass = lambda u: np.log(np.abs(sample(kernel, np.exp(u)))) + u
        top = logs[int(np.argmax(np.nan_to_num(mass(logs), nan=-np.inf)))]
        bounds = (top - np.log(2), top + np.log(2))
        found = scipy.optimize.minimize_scalar(
            lambda u: -float(mass(np.asarray(u))), bounds=bounds, method="bounded"
        )
    return float(np.exp(found.x))  # pyright: ignore


def first_jump(kernel: AbstractKernel, orders: int) -> int | None:
    """The lowest derivative, of order below `orders`, that jumps at a time above 0, if any does.

    Jumps are looked for at the breakpoints that the kernel states.
    """
    if state_space(kernel) is not None:
        return None
    points = np.unique(np.asarray(kernel.breakpoints(), float))
    points = points[points > 0]
    if points.size == 0:
        return None
    for order in range(orders):
        before, after = (sample(kernel, points * side, order) for side in (1 - 1e-9, 1 + 1e-9))
        size = np.maximum(np.max(np.abs(before)), np.max(np.abs(after)))
        if np.any(np.abs(after - before) > 1e-6 * size):
            return order
    return None
