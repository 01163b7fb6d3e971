"""A hidden state and directions at it, moved on together by one interval of time."""

from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._checks import as_plain, as_positive, as_tolerance, check_instance, check_integer
from ._system import System


class Integrator(eqx.Module):
    """How Diffrax takes a model in continuous time from one sample to the next."""

    solver: diffrax.AbstractSolver
    rtol: float = eqx.field(static=True)
    atol: float = eqx.field(static=True)
    max_steps: int = eqx.field(static=True)


def as_integrator(solver: Any, rtol: Any, atol: Any, max_steps: Any) -> Integrator:
    """The checked options of an integration."""
    if solver is None:
        solver = diffrax.Dopri8()
    check_instance(
        "solver",
        solver,
        diffrax.AbstractSolver,
        "a diffrax.AbstractSolver",
        "pass for example diffrax.Dopri8(), or diffrax.Kvaerno5() for stiff models",
    )
    rtol = as_plain(as_tolerance, "rtol", rtol)
    atol = as_plain(as_positive, "atol", atol)
    return Integrator(solver, rtol, atol, check_integer("max_steps", max_steps))


def advance(
    system: System,
    integrator: Integrator,
    start: Float[Array, ""],
    interval: Float[Array, ""],
    vector: Float[Array, " coordinates"],
    frame: Float[Array, "coordinates directions"],
    xs: Float[Array, "samples ..."],
) -> tuple[Float[Array, " coordinates"], Float[Array, "coordinates directions"]]:
    r"""The state after an interval, and what its derivative with respect to the state before makes
    of the directions.

    In discrete time one step for each sample. In continuous time the variational equation
    $\dot Q = (\partial f / \partial h)\, Q$ is integrated together with the state, and its error is
    controlled too, under an input that runs straight from the first sample to the last. NaN where
    the integration takes too many steps.
    """
    if not system.continuous:

        def step(pair: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], None]:
            return _push(lambda v: system.rate(start, v, x), *pair), None

        return jax.lax.scan(step, (vector, frame), xs)[0]

    def slope(t: Any, pair: tuple[Array, Array], args: Any) -> tuple[Array, Array]:
        x = xs[0] + (t / interval) * (xs[-1] - xs[0])
        return _push(lambda v: system.rate(start + t, v, x), *pair)

    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(slope),
        integrator.solver,
        t0=jnp.zeros_like(interval),
        t1=interval,
        dt0=None,
        y0=(vector, frame),
        stepsize_controller=diffrax.PIDController(integrator.rtol, integrator.atol),
        max_steps=integrator.max_steps,
        throw=False,
    )
    assert solution.ys is not None
    done = solution.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda ys: jnp.where(done, ys[-1], jnp.nan), solution.ys)


def _push(function: Any, vector: Array, frame: Array) -> tuple[Array, Array]:
    """The value of a function, and its derivative along every direction."""
    # Linearised once: the directions then share all that depends on the state alone.
    value, derivative = jax.linearize(function, vector)
    return value, jax.vmap(derivative, in_axes=1, out_axes=1)(frame)
