"""The inputs to which a functional responds most, at every time."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from .._checks import as_pair, check_integer, check_positive
from .._lazy import scipy
from ..numerics import golden_section, in_batches
from ._functional import SampledFunctional
from ._responses import as_shape, Experiment, maximise_rows, respond_continuously, respond_on_grid

_CORNERS = 4  # up to how many inputs all corners of the box are tried
_SIGNS = 8  # at how many times the best direction of small inputs is tried
_RISING = 1e-2  # the exponent of growth in the amplitude that counts as unbounded


class WorstCase(eqx.Module):
    r"""How the supremum over inputs is searched for, for [`memjax.memory_function`][].

    Over amplitudes on a log range and directions: both signs for one input; otherwise corners and
    axes of the box, a low-discrepancy sequence, and the directions that are best for small inputs,
    whose limit is itself a candidate. From the best local maxima among them each time goes on by
    golden sections in the amplitude and in every coordinate of the direction.

    **Arguments:**

    - `amplitudes`: the least and the largest $|x|_\infty$ to try.
    - `num_amplitudes`: how many, evenly on a log scale.
    - `directions`: how many directions of the low-discrepancy sequence, for several inputs.
    - `starts`: from how many of the best local maxima each time goes on.
    - `refinements`: golden sections of each coordinate; 0 for none. Each makes the bracket 0.618
        times as long; the value is of second order in it.

    **Raises:**

    `ValueError` for numbers out of range.
    """

    amplitudes: tuple[float, float] = eqx.field(static=True)
    num_amplitudes: int = eqx.field(static=True)
    directions: int = eqx.field(static=True)
    starts: int = eqx.field(static=True)
    refinements: int = eqx.field(static=True)

    def __init__(
        self,
        *,
        amplitudes: tuple[float, float] = (1e-3, 1e3),
        num_amplitudes: int = 49,
        directions: int = 32,
        starts: int = 4,
        refinements: int = 14,
    ) -> None:
        check_positive("amplitudes", amplitudes)
        self.amplitudes = as_pair("amplitudes", amplitudes, "pass the least and the largest")
        self.num_amplitudes = check_integer("num_amplitudes", num_amplitudes, 2)
        self.directions = check_integer("directions", directions, 0)
        self.starts = check_integer("starts", starts)
        self.refinements = check_integer("refinements", refinements, 0)


class Found(NamedTuple):
    """Values, maximisers, whether they are bounded, and the limit of small inputs."""

    values: Float[Array, " times"]
    maximiser: Float[Array, "times *inputs"]
    bounded: Bool[Array, " times"]
    small_inputs: Float[Array, " times"]


@eqx.filter_jit
def find_worst_inputs(
    sampled: SampledFunctional,
    continuous: bool,
    experiment: Experiment,
    by: WorstCase,
    solver: diffrax.AbstractSolver,
    tolerances: tuple[Array, Array],
) -> Found:
    ts = np.asarray(experiment.times)
    if continuous:
        rates, limit, at_time = respond_continuously(sampled, ts, experiment, solver, tolerances)
    else:
        rates, limit, at_time = respond_on_grid(sampled, ts, experiment)
    small, signs = maximise_rows(limit)
    if sampled.linear:
        largest = jnp.inf if experiment.shifted else 1.0
        return Found(small, signs * largest, jnp.isfinite(small), small)

    def score(rates: Array, a: Array) -> Array:
        size = jnp.max(jnp.abs(rates), axis=-1)
        return size * a / (1 + a) if experiment.shifted else size

    def split(z: Array) -> tuple[Array, Array]:
        """The amplitude and the direction, of norm 1, of a point of the search."""
        a, v = jnp.exp(z[0]), z[1:].reshape(as_shape(sampled.inputs))
        norm = jnp.max(jnp.abs(v))
        return a, v / jnp.where(norm > 0, norm, 1)

    # Every direction at every amplitude, each for all times.
    directions = _choose_directions(sampled.inputs, by.directions, signs)
    low, high = np.log(by.amplitudes)
    logs = jnp.linspace(low, high, by.num_amplitudes)
    points = jnp.concatenate(
        [
            jnp.tile(logs, directions.shape[0])[:, None],
            jnp.repeat(directions, logs.size, axis=0),
        ],
        axis=1,
    )

    def everywhere(z: Array) -> Array:
        a, v = split(z)
        return score(rates(a, v), a)

    scores = in_batches(everywhere, points)
    finite = jnp.all(jnp.isfinite(scores), axis=0)
    scores = jnp.where(jnp.isfinite(scores), scores, -jnp.inf)

    # From the best local maxima along the amplitude, each time goes its own way.
    profiles = scores.reshape(-1, logs.size, ts.size)
    inner = jnp.pad(profiles, ((0, 0), (1, 1), (0, 0)), constant_values=-jnp.inf)
    peaks = (profiles >= inner[:, :-2]) & (profiles >= inner[:, 2:])
    peaks = jnp.where(peaks, profiles, -jnp.inf).reshape(scores.shape)
    values, chosen = jax.lax.top_k(peaks.T, min(by.starts, points.shape[0]))
    # Does the ratio still rise at the largest amplitude, in the best direction?
    along = profiles[chosen[:, 0] // logs.size, :, jnp.arange(ts.size)]
    rising = along[:, -1] > along[:, -2] * jnp.exp(_RISING * (logs[-1] - logs[-2]))

    indices = jnp.repeat(jnp.arange(ts.size), chosen.shape[1])

    def here(z: Array, k: Array) -> Array:
        a, v = split(z)
        value = score(at_time(a, v, k), a)
        return jnp.where(jnp.isfinite(value), value, -jnp.inf)

    def each(zs: Array) -> Array:
        return in_batches(here, zs, indices)

    values, best = _refine(
        each, points[chosen.ravel()], values.ravel(), logs, directions.shape[1], by.refinements
    )
    winner = jnp.argmax(values.reshape(chosen.shape), axis=1)
    values = jnp.max(values.reshape(chosen.shape), axis=1)
    best = best.reshape(*chosen.shape, -1)[jnp.arange(ts.size), winner]

    a, v = jax.vmap(split)(best)
    rising = rising & (best[:, 0] >= logs[-1] - 1e-3)
    inputs = a.reshape(-1, *(1,) * len(as_shape(sampled.inputs))) * v
    if not experiment.shifted:
        # Inputs that do no better than the limit only repeat it with rounding.
        limited = small >= values * (1 - 1e-7)
        inputs = jnp.where(limited.reshape(-1, *(1,) * (inputs.ndim - 1)), 0, inputs)
        values = jnp.where(jnp.isnan(small), jnp.nan, jnp.maximum(values, small))
        rising = rising & ~limited
    return Found(values, inputs, finite & ~rising & jnp.isfinite(values), small)


def _refine(
    each: Callable[[Array], Array],
    best: Float[Array, "starts coordinates"],
    values: Float[Array, " starts"],
    logs: Float[Array, " amplitudes"],
    dimension: int,
    sections: int,
) -> tuple[Float[Array, " starts"], Float[Array, "starts coordinates"]]:
    """Golden sections of one coordinate after the other, all times side by side."""
    if sections == 0:
        return values, best
    # In one dimension the direction is a sign, which stays; otherwise all coordinates take turns,
    # first in wide and then in narrow brackets.
    spacing = logs[1] - logs[0]
    rounds = [(0, 0.0)]
    if dimension > 1:
        rounds = [(c, w) for w in (0.5, 0.2) for c in range(1 + dimension)]
    coordinates = jnp.array([c for c, _ in rounds])
    widths = jnp.array([w for _, w in rounds])

    def search(state: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[Any, None]:
        best, values = state
        coordinate, width = now
        amplitude = coordinate == 0
        low = jnp.where(amplitude, logs[0], -1.0)
        high = jnp.where(amplitude, logs[-1], 1.0)
        reach = jnp.where(amplitude, spacing, width)
        centre = best[:, coordinate]
        low, high = jnp.maximum(low, centre - reach), jnp.minimum(high, centre + reach)
        at = lambda s: best.at[:, coordinate].set(s)
        found = (centre, -values)
        point, lowest = golden_section(lambda s: -each(at(s)), low, high, sections, found)
        return (at(point), -lowest), None

    (best, values), _ = jax.lax.scan(search, (best, values), (coordinates, widths))
    return values, best


def _choose_directions(
    inputs: int | None, count: int, signs: Float[Array, "times *inputs"]
) -> Float[Array, "directions inputs"]:
    """Points on the surface of the box, from which the search starts."""
    if inputs in (None, 1):
        return jnp.array([[1.0], [-1.0]])
    axes = np.concatenate([np.eye(inputs), -np.eye(inputs)])
    if inputs <= _CORNERS:
        corners = np.array(list(itertools.product([1.0, -1.0], repeat=inputs)))
    else:
        corners = np.array([np.ones(inputs), -np.ones(inputs)])
    spread = np.zeros((0, inputs))
    if count > 0:
        # The first point of the unscrambled sequence is a corner of the unit cube.
        spread = 2 * scipy.stats.qmc.Halton(inputs, scramble=False).random(count + 1)[1:] - 1
        spread = spread / np.max(np.abs(spread), axis=1, keepdims=True)
    chosen = signs[np.unique(np.linspace(0, signs.shape[0] - 1, _SIGNS).round().astype(int))]
    return jnp.concatenate([axes, corners, spread, chosen, -chosen])
