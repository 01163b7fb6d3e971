from collections.abc import Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx
from jaxtyping import Array, Bool, Complex, Float, Int, PRNGKeyArray, PyTree, Real, Shaped

from .._checks import (
    as_key,
    as_plain,
    as_positive,
    as_share,
    check_finite,
    check_instance,
    check_integer,
    is_traced,
    shown,
)
from .._text import format_table, readable
from .._typing import ArrayLike
from ..losses import coordinates
from ..numerics import compiled
from ._roots import distinct, residual, search
from ._system import as_input, as_system, shape_of, System

_SOLVERS = (optx.AbstractRootFinder, optx.AbstractLeastSquaresSolver, optx.AbstractMinimiser)
# Newton's method from a root of multiplicity m has the Kantorovich number 1 - 1/m, so 1/2 or more,
# wherever rounding left it; at a simple one it is next to 0.
_KANTOROVICH = 0.25
# How many points a report shows.
_ROWS = 12


@readable()
class FixedPoints(eqx.Module):
    r"""The fixed points of a recurrent model, from [`memjax.fixed_points`][].

    From the one nearest to 0 on. The rows of all arrays are the points.

    **Attributes:**

    - `hidden`: the hidden states, with `points` first in every shape.
    - `eigenvalues`: those of the Jacobian there, in the order of their growth, from the fastest
        growing on, shape `(points, coordinates)`: of $\partial f / \partial h$ in continuous time,
        of $\partial h_{k+1} / \partial h_k$ in discrete time. Of complex hidden states both parts
        are coordinates.
    - `residual`: the norm of $f(h)$, or of $F(h) - h$, shape `(points,)`. It is rounding.
    - `stable`: whether small deviations decay: all real parts are below 0, or all moduli below 1
        in discrete time, by more than their rounding.
    - `unstable`: whether some deviation grows. A point that is neither is on the border, where
        the linearisation does not decide.
    - `degenerate`: whether the point is not isolated to the precision of the numbers: the Jacobian
        is singular, as on a line of fixed points, or as singular as its change over the
        uncertainty of the point, as where two fixed points meet. On a line the points are those
        where searches happened to end.
    - `counts`: how many starts led there.
    - `num_starts`: how many starts there were; `num_failed` of them led to no fixed point.
    - `continuous`: whether time is.
    """

    hidden: PyTree[Array]
    eigenvalues: Complex[Array, "points coordinates"]
    residual: Float[Array, " points"]
    stable: Bool[Array, " points"]
    unstable: Bool[Array, " points"]
    degenerate: Bool[Array, " points"]
    counts: Int[Array, " points"]
    num_starts: int = eqx.field(static=True)
    continuous: bool = eqx.field(static=True)

    def __str__(self) -> str:
        return "\n".join(_write(self))

    @property
    def num_failed(self) -> int:
        """How many starts led to no fixed point."""
        return self.num_starts - int(jnp.sum(self.counts))

    @property
    def time_constants(self) -> Float[Array, "points coordinates"]:
        r"""How long a small deviation along each eigenvector lasts: the time in which it decays by
        the factor $e$, in units of the model's clock, or in steps; negative where it grows, and
        infinite on the border. Shape `(points, coordinates)`."""
        moduli = jnp.abs(self.eigenvalues)
        growth = jnp.real(self.eigenvalues) if self.continuous else jnp.log(moduli)
        # What is lost in one step is lost at once.
        return jnp.where(growth == -jnp.inf, 0.0, jnp.where(growth == 0, jnp.inf, -1 / growth))


def _write(found: FixedPoints) -> Iterator[str]:
    """The report of fixed points: one a line, as far as they fit on a screen."""
    count, size = found.eigenvalues.shape
    time = "continuous" if found.continuous else "discrete"
    led = found.num_starts - found.num_failed
    yield (
        f"FixedPoints: {count} in {time} time, of {size} coordinates; {led} of {found.num_starts} "
        "starts led to one"
    )
    states = np.asarray(jax.vmap(lambda hidden: coordinates(hidden)[0])(found.hidden))
    rows = []
    for k in range(min(count, _ROWS)):
        kind = "stable" if found.stable[k] else "unstable" if found.unstable[k] else "undecided"
        kind += ", degenerate" if found.degenerate[k] else ""
        first = complex(found.eigenvalues[k, 0])
        rows.append(
            [
                f"{np.linalg.norm(states[k]):.4g}",
                f"{first.real:.4g}" + (f"{first.imag:+.4g}i" if first.imag else ""),
                f"{float(found.time_constants[k, 0]):.4g}",
                str(int(found.counts[k])),
                kind,
            ]
        )
    if rows:
        yield format_table(["|h|", "first eigenvalue", "time constant", "starts", ""], rows)
    if count > _ROWS:
        yield f"and {count - _ROWS} more"


def fixed_points(
    model: Any,
    x: Real[ArrayLike, "..."] = 0.0,
    *,
    key: PRNGKeyArray,
    starts: int | PyTree[Shaped[ArrayLike, "..."]] = 256,
    scale: float = 1.0,
    hidden: PyTree[Shaped[ArrayLike, "..."]] | None = None,
    separation: float = 1e-6,
    solver: optx.AbstractRootFinder
    | optx.AbstractLeastSquaresSolver
    | optx.AbstractMinimiser
    | None = None,
    max_steps: int = 256,
) -> FixedPoints:
    r"""All fixed points of a recurrent model under a constant input that searches from many starts
    find, with their stability.

    $$f(h^*, x) = 0 \quad\text{in continuous time,}\qquad F(h^*, x) = h^*
      \quad\text{in discrete time.}$$

    From every start the residual is brought to 0 by the solver and then by Newton's method, to
    rounding; what does not get there is dropped, and counted in `num_failed`: in wide networks most
    searches may end in a local minimum of the residual. Stable and unstable points are found alike.
    That none is missing is not proven: look whether `counts` are large, and whether more starts,
    another `scale` or the states of a trajectory as `starts` find more.

    !!! Example

        ```python
        cell = eqx.nn.GRUCell(1, 16, key=key)
        found = mj.fixed_points(cell, key=key)
        found.stable, found.time_constants  # the longest memory, in steps
        ```

    **Arguments:**

    - `model`: an [`memjax.AbstractModel`][], in continuous time; an `equinox.nn.GRUCell` or
        `LSTMCell`, one step of it; or a function, of which the number of required arguments says
        what it is: `f(hidden)` and `f(hidden, x)` give the next hidden state, and
        `f(t, hidden, x)` its time derivative, as in Diffrax (also as a `diffrax.ODETerm`), and is
        taken at $t = 0$. A cell of another kind is `lambda hidden, x: cell(x, hidden)`.
    - `x`: the input, a number or of shape `(inputs,)`.
    - `key`: the PRNG key for the starts.
    - `starts`: how many random starts, or the starts: hidden states with `starts` first in every
        shape, such as those along a trajectory. The first random one is `hidden` itself.
    - `scale`: the standard deviation of random starts around `hidden`.
    - `hidden`: the hidden state around which random starts are. Defaults to that at rest; for a
        function it must be given, with its shape.
    - `separation`: points that are nearer than this, relative to $1 + |h|$, are one.
    - `solver`: a root finder, least-squares solver or minimiser of Optimistix. Defaults to
        `optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)`.
    - `max_steps`: bound on its number of steps from each start.

    **Returns:**

    A [`memjax.FixedPoints`][]. How many points there are is known only when they are compared,
    which is done outside of JAX: not under `jax.jit`, `jax.vmap` or `jax.grad`.

    **Raises:**

    `TypeError` for what is no recurrent model, for traced values, and without float64;
    `ValueError` for inputs or hidden states that do not match the model, and for numbers out of
    range.

    ??? cite "Reference"

        Sussillo, Barak, *Opening the Black Box: Low-Dimensional Dynamics in High-Dimensional
        Recurrent Neural Networks*, Neural Computation 25, 2013; the test for roots that are not
        isolated: Ortega, *The Newton-Kantorovich Theorem*, American Mathematical Monthly 75, 1968.
    """
    key = as_key("key", key)
    scale = as_plain(as_positive, "scale", scale)
    separation = as_plain(as_share, "separation", separation, "pass a distance such as 1e-6")
    check_integer("max_steps", max_steps)
    if solver is None:
        solver = optx.LevenbergMarquardt(rtol=1e-8, atol=1e-8)
    hint = "pass for example optimistix.LevenbergMarquardt(rtol=1e-8, atol=1e-8)"
    check_instance("solver", solver, _SOLVERS, "a root finder of Optimistix", hint)
    for name, value in (("model", model), ("x", x), ("starts", starts), ("hidden", hidden)):
        if is_traced(value):
            raise _traced(name)
    system = as_system(model, hidden)
    x = as_input(system, x)
    vectors = _as_starts(system, starts, scale, key)
    if is_traced((vectors, x)):
        raise _traced("model")
    # Compiling takes longer than running.
    ends, reached, steps = map(
        np.asarray, compiled(search, "least")(system, vectors, x, solver, max_steps)
    )
    points, counts = distinct(ends[reached], steps[reached], separation)
    judged = [_judge(system, jnp.asarray(point), x) for point in points]
    size = system.flat.size
    columns = list(map(np.array, zip(*judged, strict=True))) if judged else [np.empty((0,))] * 5
    eigenvalues, left, stable, unstable, degenerate = columns
    return FixedPoints(
        jax.vmap(system.back)(jnp.asarray(points)),
        jnp.asarray(eigenvalues.reshape(-1, size), complex),
        jnp.asarray(left, float),
        jnp.asarray(stable, bool),
        jnp.asarray(unstable, bool),
        jnp.asarray(degenerate, bool),
        jnp.asarray(counts, int),
        vectors.shape[0],
        system.continuous,
    )


def _traced(name: str) -> TypeError:
    return TypeError(
        f"`{name}` must be concrete, got a traced value; call fixed_points from outside of "
        "`jax.jit`, `jax.vmap` and `jax.grad`."
    )


def _as_starts(system: System, starts: Any, scale: float, key: Array) -> Array:
    """The starts in real coordinates."""
    flat = system.flat
    if isinstance(starts, (int, float, np.number)):
        number = check_integer("starts", starts)
        noise = jax.random.normal(key, (number, flat.size), flat.dtype).at[0].set(0)
        return flat + scale * noise
    leaves, tree = jax.tree.flatten(starts)
    like, wanted = jax.tree.flatten(system.hidden)
    shapes = [shape_of(leaf) for leaf in leaves]
    numbers = {shape[:1] for shape in shapes if shape is not None}
    if (
        tree != wanted
        or len(numbers) != 1
        or shapes != [(*next(iter(numbers)), *leaf.shape) for leaf in like]
    ):
        raise ValueError(
            f"`starts` must be a number, or hidden states of the shapes "
            f"{shown([leaf.shape for leaf in like])} with one axis more in front, got "
            f"{shown(shapes)}; pass one of them."
        )
    for leaf in leaves:
        check_finite("starts", leaf)
    if numbers == {(0,)}:
        raise ValueError("`starts` must hold at least one state, got none; pass some.")
    return jax.vmap(lambda start: coordinates(start)[0])(
        jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), starts, system.hidden)
    )


class _Judged(NamedTuple):
    eigenvalues: np.ndarray
    residual: float
    stable: bool
    unstable: bool
    degenerate: bool


def _judge(system: System, point: Array, x: Array) -> _Judged:
    """The stability of a fixed point, as far as the numbers tell it."""
    value, matrix = map(np.asarray, compiled(_linearise, "least")(system, point, x))
    left, sizes, right = np.linalg.svd(matrix)
    size, largest, smallest = len(sizes), sizes[0], sizes[-1]
    eps = np.finfo(float).eps
    bend = compiled(_curvature, "least")(system, point, x, jnp.asarray(right[-1]))
    curvature = float(bend)
    rounding = 100 * size * eps * largest
    # How far off the point may be along the direction that is known least.
    step = abs(left[:, -1] @ value) / smallest if smallest > 0 else 0.0
    off = max(step, eps * (1 + float(jnp.linalg.norm(point))))
    degenerate = smallest <= rounding or curvature * off >= _KANTOROVICH * smallest
    eigenvalues = np.linalg.eigvals(matrix + (0 if system.continuous else np.eye(size)))
    growth = eigenvalues.real if system.continuous else np.abs(eigenvalues) - 1
    border = 10 * curvature * off + rounding + (0 if system.continuous else 100 * size * eps)
    order = np.argsort(-growth, kind="stable")
    return _Judged(
        eigenvalues[order].astype(complex),
        float(np.linalg.norm(value)),
        bool(np.all(growth < -border)),
        bool(np.any(growth > border)),
        bool(degenerate),
    )


def _linearise(system: System, point: Array, x: Array) -> tuple[Array, Array]:
    function = lambda vector: residual(system, vector, x)
    return function(point), jax.jacfwd(function)(point)


def _curvature(system: System, point: Array, x: Array, direction: Array) -> Array:
    """The norm of the second derivative along a direction."""
    function = lambda vector: residual(system, vector, x)
    slope = lambda vector: jax.jvp(function, (vector,), (direction,))[1]
    return jnp.linalg.norm(jax.jvp(slope, (point,), (direction,))[1])
