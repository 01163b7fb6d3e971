"""Rates from which the search for the best sum of exponentials starts."""

from typing import NamedTuple

import numpy as np

from .._lazy import scipy
from ..targets import (
    AbstractKernel,
    DampedOscillation,
    ExponentialSum,
    joint,
    separate,
    state_space,
)
from ._curve import Curve
from ._hankel import Spectrum
from ._problem import CUTOFF, Problem, Rates, solve

LARGEST = 64  # singular vectors that are kept
_FEW = 5  # rates at a stability margin, or elsewhere, at most: the others are many
_SPREADS = (4.0, 12.0, 36.0)  # of a cluster of rates, in units of the closest
_A_DECADE = 6  # rates that are offered to nonnegative least squares
_CLOSE = 0.1  # relative distance of neighbours that run together
_PAIR = 1e-6  # relative distance of two rates that run together
_ADDS = (1e-5, 1e-7)  # relative size of what the last rate of more of them adds to the others
_TRIED = 3  # rates that take the place of another, of all that are offered
_OFFERED = 200  # of them at most


def make_real(rates: np.ndarray) -> Rates:
    return Rates(np.sort(rates), np.zeros(0), np.zeros(0))


def find_quantiles(problem: Problem, shares: tuple[float, ...]) -> np.ndarray:
    """Times before which given shares of the kernel's L1 norm lie."""
    mass = np.cumsum(problem.weights * np.abs(problem.values))
    found = problem.times[np.searchsorted(mass, np.array(shares) * mass[-1])]
    return np.maximum(found, 0.5 * np.min(problem.times[problem.times > 0]))


def spread_starts(problem: Problem, end: float, m: int) -> list[Rates]:
    """Rates in geometric progression, as the quadrature of Beylkin and Monzon has them."""
    early, middle, late, last = find_quantiles(problem, (0.1, 0.5, 0.95, 0.999))
    ranges = [
        (0.5 / late, 2 / early),
        (0.5 / last, 2 / early),
        (0.05 / last, 4 / early),
        (0.5 / middle, 2 / middle),
        # Close rates make polynomials times exponentials, which reach out to a delay.
        (0.15 * m / middle, 0.6 * m / middle),
        (0.4 * m / late, 1.2 * m / late),
        # From the shortest time to the longest, whatever the norm thinks of them.
        (1 / end, 1.0),
        (0.1 / end, 10.0),
        (1 / end, 0.1),
    ]
    return [make_real(np.geomspace(low, max(high, 2 * low), m)) for low, high in ranges]


def start_at_floor(problem: Problem, m: int) -> list[Rates]:
    """A cluster of rates just above a stability margin, and geometric ones for early times.

    What a kernel keeps for longer than the margin allows is approximated by polynomials times
    the slowest exponential, as by Laguerre functions: the limit of rates that run together.
    """
    min_rate = problem.min_rate
    if min_rate == 0:
        return []
    fast = 1 / find_quantiles(problem, (0.1,))[0]
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
            found.append(make_real(np.append(min_rate * (1 + steps), others)))
    return found


def read_modes(kernel: AbstractKernel) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rates, frequencies and sizes of the exponentials that a kernel holds."""
    finite = joint(separate(kernel)[0])
    if isinstance(finite, ExponentialSum):
        rates, sizes = np.asarray(finite.rates), np.abs(np.asarray(finite.amplitudes))
        return rates, np.zeros_like(rates), sizes
    if isinstance(finite, DampedOscillation):
        sizes = np.hypot(np.asarray(finite.cosine), np.asarray(finite.sine))
        return np.asarray(finite.rates), np.abs(np.asarray(finite.frequencies)), sizes
    system = state_space(finite)
    assert system is not None
    values, vectors = np.linalg.eig(np.asarray(system.recurrent))
    inputs = np.linalg.lstsq(vectors, np.asarray(system.input)[:, 0])[0]
    sizes = np.abs(np.asarray(system.readout)[0] @ vectors * inputs)
    rates, frequencies = -np.real(values), np.imag(values)
    kept = frequencies >= 0
    return rates[kept], frequencies[kept], sizes[kept]


def list_own_rates(kernel: AbstractKernel, time: float, complex: bool, m: int) -> list[Rates]:
    """The rates of the exponentials that a kernel holds, in a unit of time."""
    rates, frequencies, sizes = read_modes(kernel)
    if rates.size == 0:
        return []
    rates, frequencies = rates * time, frequencies * time
    if not complex:
        return [make_real(reduce_rates(np.hypot(rates, frequencies), sizes, m))]
    paired = np.flatnonzero(frequencies > 1e-12 * rates)
    order = np.argsort(-sizes[paired] / np.sqrt(rates[paired]), kind="stable")
    paired = paired[order[: m // 2]]
    alone = frequencies <= 1e-12 * rates
    left = m - 2 * paired.size
    if np.any(alone):
        others = reduce_rates(rates[alone], sizes[alone], left)
    else:
        others = np.geomspace(0.5, 2, left) * np.median(rates)
    return [Rates(np.sort(others), rates[paired], frequencies[paired])]


def reduce_rates(rates: np.ndarray, sizes: np.ndarray, m: int) -> np.ndarray:
    """As many rates as asked for: neighbours are joined where that matters least, or others are
    put around them."""
    order = np.argsort(rates, kind="stable")
    logs, sizes = np.log(rates[order]), np.maximum(sizes[order], 1e-300)
    while logs.size > m and logs.size > 1:
        left, right = sizes[:-1], sizes[1:]
        # What the joined term misses grows like the square of the distance.
        k = int(np.argmin(left * right / (left + right) * np.diff(logs) ** 2))
        share = sizes[k + 1] / (sizes[k] + sizes[k + 1])
        logs[k] += share * (logs[k + 1] - logs[k])
        sizes[k] += sizes[k + 1]
        logs, sizes = np.delete(logs, k + 1), np.delete(sizes, k + 1)
    found = np.exp(logs)[:m]
    more = np.geomspace(np.min(rates) / 4, np.max(rates) * 4, max(m - found.size, 0))
    return np.append(found, more)


def find_lines(problem: Problem, weights: np.ndarray, end: float) -> tuple[np.ndarray, np.ndarray]:
    """Rates and sizes of a sum with many rates on a logarithmic grid and few amplitudes that are
    not 0, by nonnegative least squares: of both signs, if one does not do."""
    decades = np.log10(end) + 2
    offered = np.geomspace(0.1 / end, 10.0, int(min(_A_DECADE * decades, _OFFERED)))
    root = np.sqrt(weights)
    columns = root[:, None] * problem.columns(make_real(offered))
    values = root * problem.factors * problem.values
    norms = np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
    q, r = np.linalg.qr(columns / norms)
    signs = [1.0, -1.0]
    matrix, target = np.concatenate([s * r for s in signs], axis=1), q.T @ values
    try:
        found = scipy.optimize.nnls(matrix, target, maxiter=2 * matrix.shape[1])[0]
    except RuntimeError:
        return np.zeros(0), np.zeros(0)
    sizes = np.abs(np.subtract(*np.split(found, 2)))[: offered.size]
    kept = sizes > 1e-12 * np.max(sizes, initial=0)
    return offered[kept], sizes[kept]


def exchange_rates(problem: Problem, rates: Rates, weights: np.ndarray) -> list[Rates]:
    """Sums of the same order, in which a rate that misses most joins, and the one least missed
    leaves."""
    root = np.sqrt(weights)
    columns, values = (
        root[:, None] * problem.columns(rates),
        root * problem.factors * problem.values,
    )
    linear = solve(columns, values)
    known = np.concatenate([rates.real, rates.pairs])
    offered = np.geomspace(np.min(known) / 30, np.max(known) * 30, _OFFERED)
    offered = np.clip(offered, max(problem.slowest, problem.min_rate), problem.fastest)
    # What is left of them beside the span of the sum, and what it has in common with the error.
    more = root[:, None] * problem._replace(offset=False).columns(make_real(offered))
    more = more - linear.range @ (linear.range.T @ more)
    gains = np.abs(linear.residual @ more) / np.maximum(np.linalg.norm(more, axis=0), 1e-300)
    inner = np.concatenate([[-1.0], gains, [-1.0]])
    tops = np.flatnonzero((gains >= inner[:-2]) & (gains > inner[2:]))
    found = []
    for k in tops[np.argsort(-gains[tops])][:_TRIED]:
        more = make_real(np.append(rates.real, offered[k]))
        wider = rates._replace(real=more.real)
        fit = solve(root[:, None] * problem.columns(wider), values)
        # How much the squares grow without a column, by the diagonal of the inverse Gram matrix.
        missed = np.abs(fit.amplitudes[: more.real.size]) / fit.spreads[: more.real.size]
        gone = int(np.argmin(missed))
        if more.real[gone] != offered[k]:
            found.append(rates._replace(real=np.delete(more.real, gone)))
    return found


def gather_rates(problem: Problem, rates: Rates) -> list[tuple[Rates, np.ndarray]]:
    """Rates that run together set apart by fixed distances, and the mixing that moves each cluster
    of them as a whole; nothing if there is no cluster.

    The closer they are, the better, until amplitudes drown in rounding: how close a search comes
    is chance. At distances at which the last rate of a cluster still adds something well above
    rounding, the result is definite, and is seldom worse.
    """
    real, margin = np.sort(rates.real), problem.min_rate
    edges = np.flatnonzero(np.diff(real) > _CLOSE * real[1:]) + 1
    clusters = np.split(real, edges)
    if all(part.size < 2 for part in clusters):
        return []
    fixed = [part.size > 1 and part[0] < margin * (1 + _CLOSE) for part in clusters]
    # One coordinate moves each cluster that is free; those of pairs follow.
    which = np.repeat(np.cumsum(np.logical_not(fixed)) - 1, [part.size for part in clusters])
    free = np.repeat(np.logical_not(fixed), [part.size for part in clusters])
    count, pairs = len(clusters) - sum(fixed), 2 * rates.pairs.size
    mixing = np.zeros((real.size + pairs, count + pairs))
    mixing[np.flatnonzero(free), which[free]] = 1
    mixing[real.size :, count:] = np.eye(pairs)
    found = []
    for adds in _ADDS:
        apart = []
        for part, still in zip(clusters, fixed, strict=True):
            steps = np.linspace(0, 1, part.size) if part.size > 1 else np.zeros(1)
            width = adds ** (1 / (part.size - 1)) if part.size > 2 else _PAIR
            logs = np.mean(np.log(part)) + width * (steps - np.mean(steps))
            apart.append(margin * (1 + width * steps) if still else np.exp(logs))
        found.append((rates._replace(real=np.concatenate(apart)), mixing))
    return found


class Realisation(NamedTuple):
    """A Hankel operator and two of its images, on its leading singular vectors: of the derivative
    of the kernel, if it is known, and of the kernel moved on by `step`."""

    singular: np.ndarray
    slope: np.ndarray | None
    moved: np.ndarray
    step: float


def realise(curve: Curve, hankel: Spectrum, step: float) -> Realisation:
    size = np.abs(hankel.values)
    count = min(LARGEST, int(np.sum(size > 1e-14 * size[0])))
    left = hankel.vectors[:, :count]
    right = left * np.sign(hankel.values[:count])
    times, root = hankel.times, hankel.weights[:, None]
    slope, moved = (
        (root * left).T @ found @ (root * right)
        for found in (curve.at_sums(times, order=1), curve.at_sums(times, delay=step))
    )
    return Realisation(size[:count], slope, moved, step)


def find_eigenvalues(realisation: Realisation, m: int) -> list[np.ndarray]:
    """Eigenvalues of the models of order m on the leading singular vectors (balanced truncation
    in the operator's weights): from the derivative, and from the shift, which needs no smooth
    kernel."""
    m = min(m, realisation.singular.size)
    scale = np.sqrt(realisation.singular[:m])
    moved = np.linalg.eigvals(realisation.moved[:m, :m] / scale[:, None] / scale)
    moved = np.log(np.where(moved == 0, 1e-300, moved).astype(complex)) / realisation.step
    if realisation.slope is None:
        return [moved]
    return [moved, np.linalg.eigvals(realisation.slope[:m, :m] / scale[:, None] / scale)]


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
            found.append(make_real(rates))
    return found[: 1 if pairs.size == 0 else 2]
