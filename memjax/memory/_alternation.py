"""The largest distance of a diagonal linear model from a kernel in balls around its weights:
signs of the error and modes that are worst for them, by turns."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PRNGKeyArray

from ..models import DiagonalLinearRNN, trainable
from ..numerics import in_batches, sign_changes
from ..reparam import AbstractReparametrisation
from ..targets import AbstractKernel
from ._ball import Ball, Effort, PerturbationErrors


class _Problem(eqx.Module):
    """The distance of exponential sums from a kernel, and its pieces."""

    target: AbstractKernel
    reparametrisation: AbstractReparametrisation
    end: Array | None
    width: int = eqx.field(static=True)

    def rates(self, free: Array) -> Array:
        # Faster modes have no weight that counts, and infinity times zero would be NaN.
        limit = float(jnp.finfo(free.dtype).max) ** 0.3
        return jnp.clip(self.reparametrisation(free), -limit, limit)

    def grid(self, rates: Array) -> Array:
        """Times that resolve the target and modes of these rates."""
        points = jnp.sort(jnp.append(self.target.breakpoints(), 0.0))
        # Oscillations have up to eight zeros a panel.
        parts = jnp.linspace(0, 1, max(4, min(32, 512 // points.size)), endpoint=False)
        inner = points[:-1, None] + jnp.diff(points)[:, None] * parts
        sides = jnp.concatenate([points * (1 - 1e-12), points * (1 + 1e-12)])
        last = self.stop
        slowest = 60 / jnp.maximum(jnp.min(jnp.abs(rates)), 1e-100)
        slowest = jnp.minimum(slowest, last)
        fastest = jnp.clip(1e-2 / jnp.max(jnp.abs(rates)), slowest * 1e-12, slowest)
        spread = jnp.exp(jnp.linspace(jnp.log(fastest), jnp.log(slowest), 192))
        grid = jnp.concatenate([inner.ravel(), sides, spread, jnp.linspace(0, slowest, 32)])
        return jnp.sort(jnp.minimum(grid, last))

    @property
    def stop(self) -> Array:
        if self.end is not None:
            return self.end
        # In single precision there is no 1e300.
        return jnp.asarray(min(1e300, 1e-8 * float(jnp.finfo(jnp.result_type(float)).max)))

    @property
    def room(self) -> int:
        """How many sign changes the search makes room for: more are treated as no change."""
        return 2 * self.width + 16 + min(self.target.breakpoints().size, 64)

    def pieces(self, point: Array) -> tuple[Array, Array, Array]:
        """The error's integrals between its sign changes, where those are, from the start to
        the end, and whether there was room for all of them."""
        amplitudes, rates = point[0], self.rates(point[1])
        error = lambda t: self.target(t) - jnp.exp(-rates * t[..., None]) @ amplitudes
        # The integral is flat in them, so that their errors enter squared.
        roots, count = sign_changes(error, self.grid(rates), self.room, steps=20)
        cuts = jnp.concatenate([jnp.zeros(1), roots, self.stop[None]])
        whole = self.target.heaviside_response(cuts)
        if self.end is None:
            whole = whole.at[-1].set(self.target.laplace(0.0))
        parts = jnp.diff(whole - amplitudes @ integrate_decay(rates[:, None], cuts))
        return parts, cuts, count <= self.room

    def error(self, point: Array) -> Array:
        value = jnp.sum(jnp.abs(self.pieces(point)[0]))
        if self.end is None:
            stable = jnp.all((self.rates(point[1]) > 0) | (point[0] == 0))
            value = jnp.where(stable, value, jnp.inf)
        return jnp.where(jnp.isnan(value), jnp.inf, value)


def integrate_decay(rate: Array, t: Array) -> Array:
    r"""$\int_0^t e^{-w u} \,\mathrm{d}u$, for rates of any sign and times up to 1e300."""
    small = jnp.abs(rate) * t < 1e-8
    safe = jnp.where(small, 1, rate)
    series = t * (1 - jnp.where(small, rate * t, 0) / 2)
    return jnp.where(small, series, -jnp.expm1(-safe * t) / safe)


@eqx.filter_jit
def find_suprema(
    model: DiagonalLinearRNN,
    target: AbstractKernel,
    radii: Array,
    end: Array | None,
    key: PRNGKeyArray,
    ball: Ball,
    effort: Effort,
) -> PerturbationErrors:
    problem = _Problem(target, model.reparametrisation, end, model.width)
    centre = jnp.stack([model.amplitudes, model.free_rates]).astype(radii.dtype)
    starts_key, draws_key = jax.random.split(key)
    directions = _bring_into_ball(_choose_corners(model, effort.restarts, starts_key), ball)

    def at_radius(state: tuple, now: tuple[Array, Array]) -> tuple[tuple, tuple]:
        before, resolved, worst, last = state
        radius, key = now
        grown = worst * (radius / jnp.where(last > 0, last, 1))
        starts = centre + jnp.concatenate([grown[None], directions * radius])
        climb = lambda start: _alternate(problem, centre, start, radius, ball, effort.steps)
        found, points, whole = jax.vmap(climb)(starts)
        first = jnp.argmax(found)
        value, point, whole = found[first], points[first], whole[first]

        noise = jax.random.uniform(key, (effort.draws, *centre.shape), centre.dtype, -1, 1)
        noise = jnp.concatenate([centre[None], centre + radius * _bring_into_ball(noise, ball)])
        values = in_batches(problem.error, noise)
        upper = _bound_above(problem, centre, radius, values[0], ball)

        if end is None:
            reached, slowest = _find_reach(problem, centre, radius)
            unstable = jnp.any(reached <= 0) & (radius > 0)
            value = jnp.where(unstable, jnp.inf, value)
            point, whole = jnp.where(unstable, slowest, point), whole | unstable
        rises = value > before
        value = jnp.where(rises, value, before)
        whole = jnp.where(rises, whole, resolved)
        change = jnp.where(rises, point - centre, worst)
        out = (value, jnp.max(values[1:]), jnp.maximum(upper, value), change, whole)
        return (value, whole, change, radius), out

    start = (jnp.asarray(-jnp.inf), jnp.asarray(True), jnp.zeros_like(centre), jnp.asarray(0.0))
    keys = jax.random.split(draws_key, radii.size)
    _, (value, drawn, upper, change, whole) = lax.scan(at_radius, start, (radii, keys))
    perturbation = eqx.tree_at(
        lambda m: (m.amplitudes, m.free_rates),
        eqx.filter(model, trainable(model)),
        (
            change[:, 0].astype(model.amplitudes.dtype),
            change[:, 1].astype(model.free_rates.dtype),
        ),
    )
    return PerturbationErrors(radii, value, drawn, upper, perturbation, whole)


def _bring_into_ball(directions: Array, ball: Ball) -> Array:
    """Bring corners of the unit cube to the surface of the ball: `(..., 2, width)`."""
    if ball == "max":
        return directions
    size = jnp.linalg.norm(directions[..., :1, :], axis=-1, keepdims=True)
    return directions / jnp.concatenate([size, jnp.ones_like(size)], axis=-2)


def _choose_corners(model: DiagonalLinearRNN, restarts: int, key: PRNGKeyArray) -> Array:
    """Corners to start from, shape `(starts, 2, width)`: all of them if there are few."""
    width = model.width
    if 4**width <= 64:
        bits = np.arange(4**width)[:, None] >> np.arange(2 * width)
        return jnp.asarray(np.reshape(1.0 - 2 * (bits % 2), (-1, 2, width)))
    slopes = model.reparametrisation.slope(model.free_rates)
    # Towards the imaginary axis, away from it, and by turns in the order of the rates.
    slower = -jnp.where(slopes < 0, -1.0, 1.0)
    turns = jnp.where(jnp.argsort(jnp.argsort(model.rates)) % 2 == 0, 1.0, -1.0)
    signs = jnp.where(model.amplitudes < 0, -1.0, 1.0)
    rates = [slower, -slower, turns, -turns]
    planned = jnp.stack([jnp.stack([a, v]) for a in (signs, -signs) for v in rates])
    drawn = jax.random.rademacher(key, (restarts, 2, width), planned.dtype)
    return jnp.concatenate([planned, drawn])


def _alternate(
    problem: _Problem, centre: Array, start: Array, radius: Array, ball: Ball, steps: int
) -> tuple[Array, Array, Array]:
    """Signs of the error and modes that are worst for them, by turns, while the error grows."""

    def turn(state: tuple) -> tuple:
        best, tried, _, count = state
        parts, cuts, whole = problem.pieces(tried)
        value = jnp.sum(jnp.abs(parts))
        value = jnp.where(jnp.isnan(value), jnp.inf, value)
        # The integral of a decay times the signs, as a sum over the cuts.
        signs = jnp.where(parts < 0, -1.0, 1.0)
        jumps = jnp.concatenate([-signs[:1], signs[:-1] - signs[1:], signs[-1:]])
        rises = value > best[0]
        gain = value - best[0] > 1e-13 * value
        best = jax.tree.map(lambda x, y: jnp.where(rises, x, y), (value, tried, whole), best)
        tried = _find_worst_modes(problem, centre, tried, (cuts, jumps), radius, ball)
        return best, tried, gain, count + 1

    nothing = (jnp.asarray(-jnp.inf), start, jnp.asarray(True))
    state = (nothing, start, jnp.asarray(True), jnp.asarray(0))
    more = lambda state: state[-2] & (state[-1] <= steps)
    return lax.while_loop(more, turn, state)[0]


def _find_worst_modes(
    problem: _Problem,
    centre: Array,
    point: Array,
    weights: tuple[Array, Array],
    radius: Array,
    ball: Ball,
) -> Array:
    """The modes of the ball of which the integral against given signs is smallest."""
    cuts, jumps = weights

    def overlap(free: Array) -> Array:
        return integrate_decay(problem.rates(free)[..., None], cuts) @ jumps

    def best_rates(score: Callable[[Array], Array]) -> Array:
        """For every mode on its own, on a grid that is refined around the best point."""
        low, high = centre[1][:, None] - radius, centre[1][:, None] + radius

        def zoom(k: Array, best: Array) -> Array:
            # Across the ball, then between twice the neighbours of the best point.
            spread = jnp.linspace(-1, 1, 33) * radius / 8.0**k
            free = jnp.clip(best + spread, low, high)
            # Unstable modes, over an infinite horizon, are dealt with elsewhere.
            scores = jnp.nan_to_num(score(free), nan=-jnp.inf)
            return jnp.take_along_axis(free, jnp.argmax(scores, axis=1)[:, None], axis=1)

        return lax.fori_loop(0, 5, zoom, centre[1][:, None])[:, 0]

    if ball == "max":

        def score(free: Array) -> Array:
            f = overlap(free)
            return radius * jnp.abs(f) - centre[0][:, None] * f

        free = best_rates(score)
        return jnp.stack([centre[0] - radius * jnp.sign(overlap(free)), free])

    def farthest(free: Array) -> Array:
        """The amplitudes of the ball that are best for given rates."""
        f = overlap(free)
        return centre[0] - radius * f / jnp.maximum(jnp.linalg.norm(f), 1e-300)

    def turn(_: int, point: Array) -> Array:
        free = best_rates(lambda free: -point[0][:, None] * overlap(free))
        return jnp.stack([farthest(free), free])

    return lax.fori_loop(0, 3, turn, jnp.stack([farthest(point[1]), point[1]]))


def _spread_free(centre: Array, radius: Array) -> Array:
    """Free weights across the ball, with its ends and with 0, where maps turn or are infinite."""
    low, high = centre[1][:, None] - radius, centre[1][:, None] + radius
    inner = low + (high - low) * jnp.linspace(0, 1, 33)
    return jnp.concatenate([inner, high, jnp.clip(jnp.zeros_like(low), low, high)], axis=1)


def _find_reach(problem: _Problem, centre: Array, radius: Array) -> tuple[Array, Array]:
    """The smallest rate that every mode reaches, and a point of the ball where all do."""
    free = _spread_free(centre, radius)
    rates = problem.rates(free)
    least = jnp.argmin(rates, axis=1)[:, None]
    slowest = jnp.take_along_axis(free, least, axis=1)[:, 0]
    amplitudes = centre[0] + jnp.where(centre[0] < 0, -1, 1) * radius / jnp.sqrt(centre.shape[1])
    return jnp.min(rates, axis=1), jnp.stack([amplitudes, slowest])


def _bound_above(
    problem: _Problem, centre: Array, radius: Array, nominal: Array, ball: Ball
) -> Array:
    """The triangle inequality, in which integrals of modes are convex in 1 / rate."""
    if problem.end is None:
        integral = lambda rates: jnp.where(rates > 0, 1 / jnp.maximum(rates, 1e-300), jnp.inf)
    else:
        integral = lambda rates: integrate_decay(rates, problem.stop)
    now = integral(problem.rates(centre[1]))[:, None]
    moved = integral(problem.rates(_spread_free(centre, radius)))
    shifts = jnp.max(jnp.abs(centre[0])[:, None] * jnp.abs(moved - now), axis=1)
    if ball == "max":
        return nominal + jnp.sum(
            jnp.max(jnp.abs(centre[0])[:, None] * jnp.abs(moved - now) + radius * moved, axis=1)
        )
    return nominal + jnp.sum(shifts) + radius * jnp.linalg.norm(jnp.max(moved, axis=1))
