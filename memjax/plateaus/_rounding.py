"""What floating point does to the steps of a stiff gradient-like flow.

Every matrix is scaled to a unit diagonal before it is factorised: on a plateau curvatures are
spread over more decades than a float has digits, and what rounding leaves of a small one is judged
against its own scale.
"""

from typing import Any

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve
from jaxtyping import Array, Bool, Float, Int

from ..curvature import inverse_root
from ..flows import DisplacedFlow
from ..numerics import one_by_one

_SHARE = 0.05


def smallest_displacement(
    flow: DisplacedFlow,
    velocity: Float[Array, " state"],
    acceleration: Float[Array, " state"],
    curvature: Float[Array, ""],
) -> Float[Array, " state"]:
    """Down to which displacement errors count relative to it, for every number of the state.

    A share of what the flow moves in the time of its largest curvature. It is taken leaf by leaf,
    since each leaf has units of its own: a rate in samples is 1e-5 of one in seconds.
    """
    time = 1 / jnp.maximum(curvature, 1)
    # A flow with momentum has no velocity at first, and moves by its acceleration.
    moved = flow.leaf_norms(velocity) * time + flow.leaf_norms(acceleration) * time**2
    # A memory that is 0 at the start, as that of a weight without gradient, is 0 only to rounding.
    start = flow.leaf_norms(flow.initial_state())
    moved = moved + jnp.finfo(moved.dtype).eps * start
    # Its last bits depend on the lane that a run is in, and would make those of the result do so.
    moved = lax.reduce_precision(moved, exponent_bits=11, mantissa_bits=20)
    # Where nothing moves at first, a number that times a tolerance of 1e-10 is still normal.
    return jnp.maximum(_SHARE * moved, jnp.finfo(moved.dtype).tiny * 1e10)


class StepResponse(eqx.Module):
    """`(resistance + hessian)^{-1}`, by which an implicit step answers to a change of the
    gradient.

    Kept as a factor and applied to vectors: the products with matrices, of which an explicit
    inverse is made, are a hundred times slower where a multithreaded BLAS finds its cores busy.
    """

    factor: Float[Array, "n n"]
    scale: Float[Array, " n"]
    resistance: Float[Array, "n n"]

    def __call__(self, x: Float[Array, " n"]) -> Float[Array, " n"]:
        return self.scale * cho_solve((self.factor, True), self.scale * x)


def step_response(
    hessian: Float[Array, "n n"], resistance: Float[Array, "n n"]
) -> tuple[Bool[Array, ""], StepResponse]:
    """Whether `resistance + hessian` is positive definite, and the response of a step.

    Where it is not definite, an implicit step would damp directions in which the true flow
    escapes, and sit on a saddle for ever.
    """
    matrix = resistance + hessian
    diagonal = jnp.diagonal(matrix)
    scale = inverse_root(diagonal)
    # Cholesky fails, and gives NaN, exactly where the matrix is not definite to rounding.
    factor = one_by_one(jnp.linalg.cholesky)(scale[:, None] * matrix * scale[None, :])
    definite = jnp.all(diagonal > 0) & jnp.all(jnp.isfinite(factor))
    return definite, StepResponse(factor, scale, resistance)


def sign_patterns(places: Int[Any, "n *lanes"]) -> list[Any]:
    """Four patterns of signs, of weights with these numbers. Errors of a gradient are as large as
    their estimates, of signs that nobody knows: what they do to a step is taken as the largest over
    these."""
    return [1.0 - 2.0 * (places // block % 2) for block in (1, 2, 4, 8)]


def escape_growth(response: StepResponse, velocity: Float[Array, " n"]) -> Float[Array, ""]:
    """By how much what lies across the flow's own direction grows within a step, in [0, 1]:
    the slowest mode that is not the flow's own, by a few power iterations."""
    norm = jnp.linalg.norm(velocity)
    unit = velocity / jnp.where(norm > 0, norm, 1)
    across = lambda x: x - unit * (unit @ x)
    direction = across(jnp.cos(jnp.arange(len(velocity)) + 1.0))
    size = jnp.linalg.norm(direction)
    # A few rounds: what grows much stands out after few, and what grows little does not count.
    for _ in range(8):
        direction = direction / jnp.where(size > 0, size, 1)
        # With the resistance 1 / dt a direction of curvature c is multiplied by 1 / (1 + c dt): the
        # most negative one comes out longest, and 1 - 1 / size is its growth -c dt.
        direction = across(response(response.resistance @ direction))
        size = jnp.linalg.norm(direction)
    return jnp.clip(1 - 1 / jnp.where(size > 0, size, 1), 0, 1)


def step_noise(response: StepResponse, noise: Float[Array, " n"]) -> Float[Array, " n"]:
    """By how much errors of the gradient of the size of `noise` move a step."""
    shaken = [jnp.abs(response(sign * noise)) for sign in sign_patterns(np.arange(len(noise)))]
    return jnp.max(jnp.stack(shaken), axis=0)


class Ledger(eqx.Module):
    """What the rounding errors of all steps so far add up to, of one run or many.

    **Attributes:**

    - `time`: by how much they shift the run along its own path, as a time.
    - `across`: by how much they move it across that path.
    - `peak`: their largest effect on one step, in units of the error that it may make.
    """

    time: Float[Array, "..."]
    across: Float[Array, "..."]
    peak: Float[Array, "..."]

    @staticmethod
    def open(zero: Float[Array, "..."]) -> "Ledger":
        """Nothing yet; `zero` has the shape of the runs."""
        return Ledger(zero, zero, zero)

    def add(
        self,
        dt: Float[Array, "..."],
        *,
        moved: Float[Array, "..."],
        tolerances: Float[Array, "..."],
        shaken: Float[Array, "..."],
        lost: Float[Array, "..."] | float,
        growth: Float[Array, "..."],
        peak: Float[Array, "..."],
    ) -> "Ledger":
        """Enter one step.

        **Arguments:**

        - `dt`: its length.
        - `moved`: by how much it moves the weights.
        - `tolerances`: the same in units of the error that it may make.
        - `shaken`: by how much errors of the gradient move it.
        - `lost`: the rounding of the displacement itself: a weight that has been drawn to 0 is
            lost in it.
        - `growth`: by how much what lies across the path grows meanwhile, as a logarithm.
        - `peak`: `shaken` in units of the error that the step may make.
        """
        # Along the path an error is a shift in time. Time means nothing any more where a step
        # moves by less than its tolerance.
        shift = jnp.where(tolerances > 1, shaken / jnp.where(moved > 0, moved, 1), 0)
        return Ledger(
            self.time + shift * dt,
            # Across the path it grows with whatever escapes there.
            self.across * jnp.exp(growth) + shaken + lost,
            jnp.maximum(self.peak, peak),
        )

    def relative(
        self, time: Float[Array, "..."], distance: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """The relative error of `time` that they make, where the weights moved by `distance`."""
        return jnp.maximum(
            self.time / jnp.where(time > 0, time, 1),
            self.across / jnp.where(distance > 0, distance, 1),
        )
