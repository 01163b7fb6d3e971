import math
from collections.abc import Callable
from typing import Any, get_args, Literal, TypeAlias

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Bool, Float, PRNGKeyArray, PyTree, Real

from .._checks import (
    as_horizon,
    as_increasing,
    as_key,
    check_callable,
    check_choice,
    check_integer,
    check_nonnegative,
    check_scalar,
    check_scalar_of_model,
    shown,
)
from .._typing import ArrayLike, ScalarLike
from ..losses import AbstractLoss, check_trained, from_real_parts, real_parts
from ..models import DiagonalLinearRNN, trainable
from ..numerics import in_batches
from ..reparam import AbstractReparametrisation
from ..targets import AbstractKernel
from ._norms import check_integrable, sign_changes

Ball = Literal["max", "operator"]
Loss: TypeAlias = Callable[[Any], Float[Array, ""]]

# Weights that are the diagonal of a recurrent matrix: its operator norm is their largest modulus.
DIAGONALS = ("free_rates", "frequencies")


class PerturbationErrors(eqx.Module):
    r"""What becomes of a model's error when its weights are perturbed, by radius.

    $$E_m(\beta) = \sup_{|\theta - \theta_m| \le \beta} \|H - \hat H_\theta\|$$

    The result of [`memjax.perturbation_error`][].

    **Attributes:**

    - `radii`: the radii $\beta$, shape `(radii,)`, in units of the weights.
    - `error`: the largest error found in each ball, shape `(radii,)`: the supremum where `exact`
        is true, otherwise a lower bound of it. Infinite where a perturbation makes the model
        unstable or its loss not finite. It does not fall with the radius, since balls are nested.
    - `drawn`: the largest error among the random draws from each ball alone, which is what the
        literature reports; a lower bound of `error`. Shape `(radii,)`.
    - `upper`: an upper bound of the supremum, shape `(radii,)`; infinite where none is known.
    - `perturbation`: the perturbation of the weights that attains `error`, a PyTree of the
        model's structure with a leading axis of radii, `None` in place of leaves that are not
        trained. Where the supremum is infinite and approached only, a perturbation that reaches
        instability.
    - `exact`: whether `error` is the supremum, shape `(radii,)`: true for diagonal linear models
        and kernels (unless the error changes its sign so often that the search lost count), and
        where the error is infinite.
    """

    radii: Float[Array, " radii"]
    error: Float[Array, " radii"]
    drawn: Float[Array, " radii"]
    upper: Float[Array, " radii"]
    perturbation: PyTree[Array]
    exact: Bool[Array, " radii"]


def perturbation_error(
    model: PyTree,
    target: AbstractKernel | AbstractLoss | Loss,
    radii: Real[ArrayLike, " radii"],
    *,
    norm: Ball = "max",
    restarts: int = 8,
    steps: int = 30,
    draws: int = 30,
    horizon: Real[ScalarLike, ""] = jnp.inf,
    key: PRNGKeyArray,
) -> PerturbationErrors:
    r"""The largest error of a model in balls around its weights.

    $$E_m(\beta) = \sup_{|\theta - \theta_m| \le \beta} \|H - \hat H_\theta\|$$

    All trained weights are perturbed ([`memjax.trainable`][]). The ball is $|\Delta\theta|_\infty
    \le \beta$ over all of them (`"max"`, from which the literature's code draws; of a complex
    weight over both its parts), or $\beta$ bounds the operator 2-norm of each block (`"operator"`,
    the published definition): the spectral norm of a matrix, the Euclidean norm of a vector, and
    the largest modulus of `free_rates` and `frequencies`, which are diagonals of matrices. Arrays
    of more axes are stacks of matrices.

    *A diagonal linear model and a kernel.* The error is $\|\rho - \hat\rho\|_{L^1}$ up to the
    horizon, and its supremum is found as

    $$\sup_\theta \|\rho - \hat\rho_\theta\|_{L^1} = \sup_{s(t) = \pm 1} \sup_\theta
      \int s(t) \Big(\rho(t) - \sum_i a_i e^{-w_i t}\Big) \mathrm{d}t,$$

    where for given signs every mode is on its own: the best amplitude has a closed form and the
    best rate is found on a grid that is refined around it. Signs and modes take turns, which
    never lowers the error, from corners of the ball and from the worst case at the next smaller
    radius. (Moving all rates towards the axis is often the worst case, but not always.) If the
    ball reaches a rate that is not positive, the error over an infinite horizon is infinite.
    `upper` bounds the supremum by the triangle inequality,
    $\|\rho - \hat\rho\| + \sum_i (|a_i| |1/w_i - 1/\tilde w_i| + |\Delta a_i| / \tilde w_i)$.

    *Any model and a loss.* Projected gradient ascent, from the worst case at the next smaller
    radius and from random draws. Steps go to the corner of the ball that the gradient points
    to, and are halved until the loss does not fall.

    Can be vmapped over models, for example over seeds, with one key each.

    **Arguments:**

    - `model`: a [`memjax.DiagonalLinearRNN`][] if `target` is a kernel; otherwise what the loss
        takes.
    - `target`: the kernel to be approximated, or a loss: an `AbstractLoss` such as
        [`memjax.SampledPathLoss`][], or any function from models to numbers that JAX can
        differentiate.
    - `radii`: the radii $\beta \ge 0$, ascending, shape `(radii,)`, in units of the weights.
    - `norm`: `"max"` or `"operator"`.
    - `restarts`: from how many random starts to ascend at each radius, beside those above.
    - `steps`: the number of ascent steps from each start, at most.
    - `draws`: how many perturbations to draw at each radius, at least one: uniform in every
        entry for `"max"`, and for `"operator"` scaled to the surface of the ball block by block.
    - `horizon`: the end of the time over which kernels are compared; for a kernel only.
    - `key`: the PRNG key.

    **Returns:**

    A [`memjax.PerturbationErrors`][].

    **Raises:**

    `TypeError` for a kernel with another model than a diagonal linear one, and for a target that
    is neither kernel nor function; `ValueError` for radii that are negative or do not ascend,
    for an unknown norm, for numbers below 1, for a kernel that is not in $L^1$ without a
    horizon, and for a horizon with a loss.

    ??? cite "Reference"

        Wang, Li, Li, *Inverse Approximation Theory for Nonlinear Recurrent Neural Networks*,
        ICLR 2024, Definitions 3.2 and 3.3 (theory, section 5).
    """
    radii = as_curve_radii(radii)
    check_choice("norm", norm, get_args(Ball))
    key = as_key("key", key)
    for name, value in (("restarts", restarts), ("steps", steps), ("draws", draws)):
        check_integer(name, value)
    end = as_horizon(horizon)
    if end is not None:
        check_scalar("horizon", end)
    if isinstance(target, AbstractKernel):
        if not isinstance(model, DiagonalLinearRNN):
            raise TypeError(
                f"`model` must be a DiagonalLinearRNN for a kernel as the target, got "
                f"{shown(model)}; pass a loss as the target instead, for example a "
                "memjax.SampledPathLoss."
            )
        if end is None:
            check_integrable("target", target)
        return _exact(model, target, radii, end, key, norm, restarts, steps, draws)
    check_callable("target", target, "pass a kernel, a loss, or a function of a model")
    if end is not None:
        raise ValueError(
            f"`horizon` must be left out with a loss, got {shown(horizon)}; the loss has its own."
        )
    check_trained(model)
    return _ascend(model, target, radii, key, norm, restarts, steps, draws)


def as_curve_radii(radii: Any) -> Float[Array, " radii"]:
    """`radii` as an ascending one-dimensional array."""
    check_nonnegative("radii", radii, "a ball has a radius of 0 or more")
    return as_increasing("radii", radii)


# --- Any model and any loss ---------------------------------------------------------------------


@eqx.filter_jit
def _ascend(
    model: PyTree,
    loss: Loss,
    radii: Array,
    key: PRNGKeyArray,
    norm: Ball,
    restarts: int,
    steps: int,
    draws: int,
) -> PerturbationErrors:
    weights, rest = eqx.partition(model, trainable(model))
    # Parts of complex weights are weights of their own but where a block is measured as a whole.
    blocks = real_parts(weights) if norm == "max" else weights

    def error(change: PyTree) -> Array:
        moved = from_real_parts(jax.tree.map(jnp.add, blocks, change))
        value = loss(eqx.combine(moved, rest))
        check_scalar_of_model("target", value)
        return jnp.where(jnp.isfinite(value), value, jnp.inf).astype(radii.dtype)

    slope = jax.value_and_grad(error)
    still = jax.tree.map(jnp.zeros_like, blocks)

    def climb(start: PyTree, radius: Array) -> tuple[Array, PyTree]:
        def step(state: tuple, _: None) -> tuple[tuple, None]:
            at, value, corner, size = state
            # The first step reaches the corner of the ball from anywhere in it.
            ahead = lambda d, c: (d + 2 * radius * size * c).astype(d.dtype)
            moved = jax.tree.map(ahead, at, corner)
            inside = lambda block, kind: _project(block, kind, radius).astype(block.dtype)
            moved = _per_block(inside, norm, moved)
            reached, gradient = slope(moved)
            better = reached >= value
            keep = lambda a, b: jax.tree.map(lambda x, y: jnp.where(better, x, y), a, b)
            size = jnp.where(better, jnp.minimum(2 * size, 1), size / 4)
            state = (moved, reached, _per_block(_corner, norm, gradient))
            return (*keep(state, (at, value, corner)), size), None

        # Without a direction yet, the first step stays where it is, and finds one.
        state = (start, jnp.full_like(radius, -jnp.inf), still, jnp.ones_like(radius))
        (at, value, _, _), _ = lax.scan(step, state, length=steps + 1)
        return value, at

    count = max(draws, restarts)

    def at_radius(state: tuple, now: tuple[Array, Array]) -> tuple[tuple, tuple]:
        before, worst, last = state
        radius, key = now
        draw = lambda key: _noise(key, still, norm, radius)
        keys = jax.random.split(key, count)
        values = in_batches(lambda key: error(draw(key)), keys[:draws], size=32)
        # From the worst case before, the best draw, and the first draws.
        chosen = jnp.insert(jnp.arange(restarts), 0, jnp.argmax(values))
        growth = radius / jnp.where(last > 0, last, 1)
        grown = jax.tree.map(lambda d: (d * growth).astype(d.dtype), worst)
        starts = jax.tree.map(
            lambda first, others: jnp.concatenate([first[None], others]),
            grown,
            jax.vmap(draw)(keys[chosen]),
        )
        found, points = jax.vmap(climb, in_axes=(0, None))(starts, radius)
        first = jnp.argmax(found)
        value = found[first]
        rises = value > before
        change = jax.tree.map(lambda new, old: jnp.where(rises, new[first], old), points, worst)
        value = jnp.where(rises, value, before)
        return (value, change, radius), (value, jnp.max(values), change)

    start = (jnp.full_like(radii[0], -jnp.inf), still, jnp.zeros_like(radii[0]))
    keys = jax.random.split(key, radii.size)
    _, (values, drawn, changes) = lax.scan(at_radius, start, (radii, keys))
    upper = jnp.full_like(values, jnp.inf)
    changes = from_real_parts(changes)
    return PerturbationErrors(radii, values, drawn, upper, changes, jnp.isinf(values))


def _per_block(function: Callable[[Array, str], Array], norm: Ball, tree: PyTree) -> PyTree:
    """Apply a function to every array of weights, together with the kind of its block."""

    def apply(path: tuple, block: Array) -> Array:
        if block.size == 0:
            return block
        if norm == "max" or getattr(path[-1] if path else None, "name", None) in DIAGONALS:
            return function(block, "max")
        return function(block, "vector" if block.ndim < 2 else "matrix")

    return jax.tree_util.tree_map_with_path(apply, tree)


def _corner(gradient: Array, kind: str) -> Array:
    """The point of the unit ball where the loss rises most, to first order."""
    # Where the loss is infinite the gradient is not a number: such starts have arrived already.
    uphill = jnp.nan_to_num(jnp.conj(gradient), posinf=0, neginf=0)
    if kind == "max":
        size = jnp.abs(uphill)
        return jnp.where(size > 0, uphill / jnp.where(size > 0, size, 1), 0)
    # A scale of its own keeps tiny gradients from vanishing in squares.
    largest = jnp.max(jnp.abs(uphill), axis=(-2, -1)[-uphill.ndim :], keepdims=True)
    uphill = uphill / jnp.where(largest > 0, largest, 1)
    if kind == "vector":
        return uphill / jnp.where(largest > 0, jnp.linalg.norm(uphill), 1)
    u, _, v = jnp.linalg.svd(uphill, full_matrices=False)
    return jnp.where(largest > 0, u @ v, 0)


def _project(block: Array, kind: str, radius: Array) -> Array:
    if kind == "matrix":
        u, s, v = jnp.linalg.svd(block, full_matrices=False)
        return (u * jnp.minimum(s, radius)[..., None, :]) @ v
    size = jnp.abs(block) if kind == "max" else jnp.linalg.norm(block)
    return block * jnp.where(size > radius, radius / jnp.where(size > 0, size, 1), 1)


def _noise(key: PRNGKeyArray, like: PyTree, norm: Ball, radius: Array) -> PyTree:
    """A random perturbation of the ball."""
    # One draw for all weights together, since every one costs a compilation of its own.
    parts = jax.tree.map(lambda x: (x.real, x.imag) if jnp.iscomplexobj(x) else (x,), like)
    flat, unravel = ravel_pytree(parts)
    drawn = unravel(jax.random.uniform(key, flat.shape, flat.dtype, -1, 1))
    whole = lambda x, part: lax.complex(*part) / math.sqrt(2) if len(part) == 2 else part[0]
    noise = jax.tree.map(whole, like, drawn)

    def scale(block: Array, kind: str) -> Array:
        if kind == "vector":
            block = block / jnp.linalg.norm(block)
        elif kind == "matrix":
            block = block / jnp.linalg.norm(block, 2, (-2, -1), keepdims=True)
        return (radius * block).astype(block.dtype)

    return _per_block(scale, norm, noise)


# --- Diagonal linear models and kernels ---------------------------------------------------------


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
        parts = jnp.diff(whole - amplitudes @ decay_integral(rates[:, None], cuts))
        return parts, cuts, count <= self.room

    def error(self, point: Array) -> Array:
        value = jnp.sum(jnp.abs(self.pieces(point)[0]))
        if self.end is None:
            stable = jnp.all((self.rates(point[1]) > 0) | (point[0] == 0))
            value = jnp.where(stable, value, jnp.inf)
        return jnp.where(jnp.isnan(value), jnp.inf, value)


def decay_integral(rate: Array, t: Array) -> Array:
    r"""$\int_0^t e^{-w u} \,\mathrm{d}u$, for rates of any sign and times up to 1e300."""
    small = jnp.abs(rate) * t < 1e-8
    safe = jnp.where(small, 1, rate)
    series = t * (1 - jnp.where(small, rate * t, 0) / 2)
    return jnp.where(small, series, -jnp.expm1(-safe * t) / safe)


@eqx.filter_jit
def _exact(
    model: DiagonalLinearRNN,
    target: AbstractKernel,
    radii: Array,
    end: Array | None,
    key: PRNGKeyArray,
    norm: Ball,
    restarts: int,
    steps: int,
    draws: int,
) -> PerturbationErrors:
    problem = _Problem(target, model.reparametrisation, end, model.width)
    centre = jnp.stack([model.amplitudes, model.free_rates]).astype(radii.dtype)
    starts_key, draws_key = jax.random.split(key)
    directions = _into_ball(_directions(model, restarts, starts_key), norm)

    def at_radius(state: tuple, now: tuple[Array, Array]) -> tuple[tuple, tuple]:
        before, resolved, worst, last = state
        radius, key = now
        grown = worst * (radius / jnp.where(last > 0, last, 1))
        starts = centre + jnp.concatenate([grown[None], directions * radius])
        climb = lambda start: _alternate(problem, centre, start, radius, norm, steps)
        found, points, whole = jax.vmap(climb)(starts)
        first = jnp.argmax(found)
        value, point, whole = found[first], points[first], whole[first]

        noise = jax.random.uniform(key, (draws, *centre.shape), centre.dtype, -1, 1)
        noise = jnp.concatenate([centre[None], centre + radius * _into_ball(noise, norm)])
        values = in_batches(problem.error, noise)
        upper = _upper(problem, centre, radius, values[0], norm)

        if end is None:
            reached, slowest = _reach(problem, centre, radius)
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


def _into_ball(directions: Array, norm: Ball) -> Array:
    """Bring corners of the unit cube to the surface of the ball: `(..., 2, width)`."""
    if norm == "max":
        return directions
    size = jnp.linalg.norm(directions[..., :1, :], axis=-1, keepdims=True)
    return directions / jnp.concatenate([size, jnp.ones_like(size)], axis=-2)


def _directions(model: DiagonalLinearRNN, restarts: int, key: PRNGKeyArray) -> Array:
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
    problem: _Problem, centre: Array, start: Array, radius: Array, norm: Ball, steps: int
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
        tried = _worst_modes(problem, centre, tried, (cuts, jumps), radius, norm)
        return best, tried, gain, count + 1

    nothing = (jnp.asarray(-jnp.inf), start, jnp.asarray(True))
    state = (nothing, start, jnp.asarray(True), jnp.asarray(0))
    more = lambda state: state[-2] & (state[-1] <= steps)
    return lax.while_loop(more, turn, state)[0]


def _worst_modes(
    problem: _Problem,
    centre: Array,
    point: Array,
    weights: tuple[Array, Array],
    radius: Array,
    norm: Ball,
) -> Array:
    """The modes of the ball of which the integral against given signs is smallest."""
    cuts, jumps = weights

    def overlap(free: Array) -> Array:
        return decay_integral(problem.rates(free)[..., None], cuts) @ jumps

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

    if norm == "max":

        def score(free: Array) -> Array:
            f = overlap(free)
            return radius * jnp.abs(f) - centre[0][:, None] * f

        free = best_rates(score)
        return jnp.stack([centre[0] - radius * jnp.sign(overlap(free)), free])

    def ball(free: Array) -> Array:
        f = overlap(free)
        return centre[0] - radius * f / jnp.maximum(jnp.linalg.norm(f), 1e-300)

    def turn(_: int, point: Array) -> Array:
        free = best_rates(lambda free: -point[0][:, None] * overlap(free))
        return jnp.stack([ball(free), free])

    return lax.fori_loop(0, 3, turn, jnp.stack([ball(point[1]), point[1]]))


def _free_range(centre: Array, radius: Array) -> Array:
    """Free weights across the ball, with its ends and with 0, where maps turn or are infinite."""
    low, high = centre[1][:, None] - radius, centre[1][:, None] + radius
    inner = low + (high - low) * jnp.linspace(0, 1, 33)
    return jnp.concatenate([inner, high, jnp.clip(jnp.zeros_like(low), low, high)], axis=1)


def _reach(problem: _Problem, centre: Array, radius: Array) -> tuple[Array, Array]:
    """The smallest rate that every mode reaches, and a point of the ball where all do."""
    free = _free_range(centre, radius)
    rates = problem.rates(free)
    least = jnp.argmin(rates, axis=1)[:, None]
    slowest = jnp.take_along_axis(free, least, axis=1)[:, 0]
    amplitudes = centre[0] + jnp.where(centre[0] < 0, -1, 1) * radius / jnp.sqrt(centre.shape[1])
    return jnp.min(rates, axis=1), jnp.stack([amplitudes, slowest])


def _upper(problem: _Problem, centre: Array, radius: Array, nominal: Array, norm: Ball) -> Array:
    """The triangle inequality, in which integrals of modes are convex in 1 / rate."""
    if problem.end is None:
        integral = lambda rates: jnp.where(rates > 0, 1 / jnp.maximum(rates, 1e-300), jnp.inf)
    else:
        integral = lambda rates: decay_integral(rates, problem.stop)
    now = integral(problem.rates(centre[1]))[:, None]
    moved = integral(problem.rates(_free_range(centre, radius)))
    shifts = jnp.max(jnp.abs(centre[0])[:, None] * jnp.abs(moved - now), axis=1)
    if norm == "max":
        return nominal + jnp.sum(
            jnp.max(jnp.abs(centre[0])[:, None] * jnp.abs(moved - now) + radius * moved, axis=1)
        )
    return nominal + jnp.sum(shifts) + radius * jnp.linalg.norm(jnp.max(moved, axis=1))
