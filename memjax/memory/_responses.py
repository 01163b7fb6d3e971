"""Responses to inputs of an amplitude and a direction, less that to no input."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from .._paths import even_step
from ..models import AbstractModel
from ._functional import SampledFunctional

Kind: TypeAlias = Literal["heaviside", "reversed", "impulse"]

# Maps an amplitude a > 0 and a direction v with |v| = 1 to the response to the input a v, less
# that to no input, and over a: shape (times, outputs).
Rates: TypeAlias = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What is done to a functional, as static values that a search is compiled for."""

    times: tuple[float, ...]
    kind: Kind
    shifted: bool
    warm_up: float
    pulse: float
    max_steps: int


class Responses(NamedTuple):
    """The responses, their limit for small inputs, and those at the time of an index alone."""

    rates: Rates
    limit: Float[Array, "times outputs *inputs"]
    at_time: Callable[[Array, Array, Array], Array]


def respond_on_grid(
    sampled: SampledFunctional, ts: np.ndarray, experiment: Experiment
) -> Responses:
    """Differences of the outputs on a grid, and their derivative in the input at 0."""
    last, first = ts[-1] - ts[-2], ts[1] - ts[0]
    grid = np.append(ts, ts[-1] + last)
    # Before the Heaviside input there is nothing, before the others a past.
    if experiment.kind == "reversed":
        past = first * np.arange(-int(np.ceil(experiment.warm_up / first - 1e-9)), 0)
    else:
        past = -first * np.ones(1 if experiment.kind == "impulse" else 0)
    grid = np.concatenate([past, grid])
    if experiment.kind == "heaviside":
        on = np.ones(grid.size)
    elif experiment.kind == "reversed":
        on = (grid < 0).astype(float)
    else:
        on = (grid == 0).astype(float)
    if even_step(ts) is not None:
        # A grid that is even to rounding stays so.
        grid = grid[0] + first * np.arange(grid.size)

    def outputs(x: Array) -> Array:
        xs = on.reshape(-1, *(1,) * x.ndim) * x
        ys = sampled(grid, xs).reshape(grid.size, -1)[past.size :]
        if experiment.kind == "impulse":
            return ys[1:] / first
        return jnp.diff(ys, axis=0) / np.append(np.diff(ts), last)[:, None]

    zero = jnp.zeros(as_shape(sampled.inputs), float)
    silent = outputs(zero)
    rates = lambda a, v: (outputs(a * v) - silent) / a
    try:
        limit = jax.jacfwd(outputs)(zero)
    except TypeError:
        # Functions with a reverse-mode rule of their own have no forward mode.
        limit = jax.jacrev(outputs)(zero)
    return Responses(rates, limit, lambda a, v, k: rates(a, v)[k])


def respond_continuously(
    sampled: SampledFunctional,
    ts: np.ndarray,
    experiment: Experiment,
    solver: diffrax.AbstractSolver,
    tolerances: tuple[Array, Array],
) -> Responses:
    """The response to an input, integrated beside that to none."""
    model = sampled.source
    lengths = {"heaviside": 0.0, "reversed": experiment.warm_up, "impulse": experiment.pulse}
    length = lengths[experiment.kind]
    constant = experiment.kind == "heaviside"
    dtype = get_precision(model)
    zero = jnp.zeros(as_shape(sampled.inputs), dtype)
    rest = model.initial_hidden()
    start = (rest, jax.tree.map(jnp.zeros_like, rest))

    def output(t: Array, h: PyTree, x: Array) -> Array:
        if experiment.kind == "impulse":
            return model.readout(h) / experiment.pulse
        return jax.jvp(model.readout, (h,), (model.vector_field(t, h, x),))[1]

    def quotient(function: Callable, a: Array | None) -> Callable:
        """The difference in the response to an input of amplitude `a`, over `a`, of what
        `function` makes of it; for `None` the limit of small inputs."""

        def small(h: PyTree, g: PyTree, v: Array) -> PyTree:
            return jax.jvp(function, (h, zero), (g, v))[1]

        def large(h: PyTree, g: PyTree, v: Array) -> PyTree:
            assert a is not None
            moved = jax.tree.map(lambda h, g: h + a * g, h, g)
            change = lambda new, old: (new - old) / a
            return jax.tree.map(change, function(moved, a * v), function(h, zero))

        return small if a is None else large

    def run(a: Array | None, v: Array, save: Array, throw: bool) -> Array:
        a, v = None if a is None else a.astype(dtype), v.astype(dtype)

        def field(t: Any, state: tuple[PyTree, PyTree], v: Array) -> tuple[PyTree, PyTree]:
            h, g = state
            function = lambda h, x: model.vector_field(t, h, x)
            return function(h, zero), quotient(function, a)(h, g, v)

        def result(t: Array, state: tuple[PyTree, PyTree], v: Array) -> Array:
            return jnp.ravel(quotient(lambda h, x: output(t, h, x), a)(*state, v))

        def solve(t0: Any, t1: Any, state: Any, v: Array, saveat: diffrax.SaveAt) -> Any:
            return diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                solver,
                t0=t0,
                t1=t1,
                dt0=None,
                y0=state,
                args=v,
                saveat=saveat,
                stepsize_controller=diffrax.PIDController(*tolerances),
                max_steps=experiment.max_steps,
                adjoint=diffrax.ForwardMode(),
                throw=throw,
            ).ys

        state = start
        if length > 0:
            state = solve(-length, 0.0, state, v, diffrax.SaveAt(t1=True))
            state = jax.tree.map(lambda leaf: leaf[0], state)
        after = v if constant else jnp.zeros_like(v)
        # A solve has to go somewhere, also for the value at its start.
        end = jnp.maximum(save[-1], ts[1])
        return solve(0.0, end, state, after, diffrax.SaveAt(ts=save, fn=result))

    if sampled.inputs is None:
        limit = run(None, jnp.ones(()), jnp.asarray(ts), True)
    else:
        columns = jax.lax.map(lambda v: run(None, v, jnp.asarray(ts), True), jnp.eye(zero.size))
        limit = jnp.moveaxis(columns, 0, -1)
    return Responses(
        lambda a, v: run(a, v, jnp.asarray(ts), False),
        limit,
        lambda a, v, k: run(a, v, jnp.asarray(ts)[k][None], False)[0],
    )


def maximise_rows(rows: Float[Array, "times outputs *inputs"]) -> tuple[Array, Array]:
    """The norm of matrices between maximum norms, and the sign vectors that attain it."""
    norms = jnp.abs(rows) if rows.ndim == 2 else jnp.sum(jnp.abs(rows), axis=2)
    best = jnp.argmax(norms, axis=1)
    row = jax.vmap(lambda matrix, k: matrix[k])(rows, best)
    return jnp.max(norms, axis=1), jnp.where(row < 0, -1.0, 1.0).astype(rows.dtype)


def as_shape(inputs: int | None) -> tuple[int, ...]:
    return () if inputs is None else (inputs,)


def get_precision(model: AbstractModel) -> Any:
    """The real type of the hidden state."""
    leaves = jax.tree.leaves(jax.eval_shape(model.initial_hidden))
    return jnp.finfo(jnp.result_type(*(leaf.dtype for leaf in leaves))).dtype
