"""Rates from which the search for the best sum of exponentials starts."""

from typing import NamedTuple

import numpy as np

from ..targets import split_exponential
from ..targets._base import AbstractKernel
from ..targets._inner import Kernel
from ._fit import CUTOFF, Rates
from ._grid import Grid, sample_sums
from ._hankel import Spectrum

_LARGEST = 64  # singular vectors that are kept
_FEW = 5  # rates at a stability margin, or elsewhere, at most: the others are many
_SPREADS = (4.0, 12.0, 36.0)  # of a cluster of rates, in units of the closest


def real(rates: np.ndarray) -> Rates:
    return Rates(np.sort(rates), np.zeros(0), np.zeros(0))


def quantiles(grid: Grid, shares: tuple[float, ...]) -> np.ndarray:
    """Times before which given shares of the kernel's L1 norm lie."""
    mass = np.cumsum(grid.weights * np.abs(grid.values))
    return grid.times[np.searchsorted(mass, np.array(shares) * mass[-1])]


def geometric_starts(grid: Grid, m: int) -> list[Rates]:
    """Rates in geometric progression, as the quadrature of Beylkin and Monzon has them."""
    early, middle, late, last = quantiles(grid, (0.1, 0.5, 0.95, 0.999))
    ranges = [
        (0.5 / late, 2 / early),
        (0.5 / last, 2 / early),
        (0.05 / last, 4 / early),
        (0.5 / middle, 2 / middle),
        # Close rates make polynomials times exponentials, which reach out to a delay.
        (0.15 * m / middle, 0.6 * m / middle),
        (0.4 * m / late, 1.2 * m / late),
    ]
    return [real(np.geomspace(low, high, m)) for low, high in ranges]


def floor_starts(grid: Grid, m: int, min_rate: float) -> list[Rates]:
    """A cluster of rates just above a stability margin, and geometric ones for early times.

    What a kernel keeps for longer than the margin allows is approximated by polynomials times
    the slowest exponential, as by Laguerre functions: the limit of rates that run together.
    """
    if min_rate == 0:
        return []
    fast = 1 / quantiles(grid, (0.1,))[0]
    found = []
    for count in range(2, m + 1):
        if min(count, m - count) > _FEW:
            continue
        # The cluster reaches out to `count` times the slowest time; the others are for before.
        slow = 1.5 * count * min_rate
        others = np.geomspace(slow, max(fast, 4 * slow), m - count)
        # Any closer, and float64 would not tell its rates apart.
        closest = CUTOFF ** (1 / (count - 1))
        for spread in _SPREADS:
            steps = min(spread * closest, 1) * (np.arange(count) + 0.5) / count
            found.append(real(np.append(min_rate * (1 + steps), others)))
    return found


def own_rates(kernel: Kernel, m: int) -> list[Rates]:
    """The rates of the exponential part of a kernel: the largest contributions come first."""
    if not isinstance(kernel, AbstractKernel):
        return []
    part, rest = split_exponential(kernel)
    rates, sizes = np.asarray(part.rates), np.abs(np.asarray(part.amplitudes))
    if rates.size == 0:
        return []
    order = np.argsort(-sizes / np.sqrt(rates))[:m]
    chosen = rates[order]
    if chosen.size < m:
        more = np.geomspace(np.min(rates) / 4, np.max(rates) * 4, m - chosen.size)
        chosen = np.concatenate([chosen, more])
    return [real(chosen)]


class Realisation(NamedTuple):
    """A Hankel operator and two of its images, on its leading singular vectors: of the derivative
    of the kernel, and of the kernel moved on by `step`."""

    singular: np.ndarray
    slope: np.ndarray
    moved: np.ndarray
    step: float


def realise(kernel: Kernel, hankel: Spectrum, step: float) -> Realisation:
    size = np.abs(hankel.values)
    count = min(_LARGEST, int(np.sum(size > 1e-14 * size[0])))
    left = hankel.vectors[:, :count]
    right = left * np.sign(hankel.values[:count])
    times, root = hankel.times, hankel.weights[:, None]
    slope, moved = (
        (root * left).T @ found @ (root * right)
        for found in (sample_sums(kernel, times, order=1), sample_sums(kernel, times, delay=step))
    )
    return Realisation(size[:count], slope, moved, step)


def eigenvalues(realisation: Realisation, m: int) -> list[np.ndarray]:
    """Eigenvalues of the models of order m on the leading singular vectors (balanced truncation
    in the operator's weights): from the derivative, and from the shift, which needs no smooth
    kernel."""
    m = min(m, realisation.singular.size)
    scale = np.sqrt(realisation.singular[:m])
    slope = np.linalg.eigvals(realisation.slope[:m, :m] / scale[:, None] / scale)
    moved = np.linalg.eigvals(realisation.moved[:m, :m] / scale[:, None] / scale)
    moved = np.log(np.where(moved == 0, 1e-300, moved).astype(complex)) / realisation.step
    return [slope, moved]


def as_rates(eigenvalues: np.ndarray, complex: bool, m: int) -> list[Rates]:
    """Stable rates of order m from eigenvalues."""
    values = np.asarray(eigenvalues[np.isfinite(eigenvalues)], dtype=np.complex128)
    size = np.abs(values)
    values = -np.maximum(np.abs(np.real(values)), 1e-3 * size) + 1j * np.imag(values)
    pairs = values[values.imag > 1e-9 * size]
    alone = -values[np.abs(values.imag) <= 1e-9 * size].real
    if complex:
        missing = m - alone.size - 2 * pairs.size
        if missing > 0:
            spread = np.geomspace(0.5, 2, missing) * np.median(np.abs(values))
            alone = np.append(alone, spread)
        return [Rates(np.sort(alone), -pairs.real, pairs.imag)]
    # Real rates have nothing that oscillates; those of its decay and of its size remain.
    found = []
    for part in (np.abs(pairs), -pairs.real):
        rates = np.sort(np.concatenate([alone, 0.9 * part, 1.1 * part]))
        if 0 < rates.size < m:
            rates = np.append(rates, np.median(rates) * np.geomspace(0.5, 2, m - rates.size))
        if rates.size:
            found.append(real(rates))
    return found[: 1 if pairs.size == 0 else 2]
