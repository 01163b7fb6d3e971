r"""The Newton systems of implicit steps of a flow, reduced to solves with the Hessian of its loss.

With the gradient $g$ the flow is $\dot\theta = r(g, z)$, $\dot z = s(g, z)$, so that a system
$(\mu - J)\,\delta = b$ with its Jacobian $J$ becomes, once $z$ is eliminated,

$$\bigl(\mu - M H\bigr)\,\delta\theta = b_\theta + r_z (\mu - s_z)^{-1} b_z, \qquad
  M = r_g + r_z (\mu - s_z)^{-1} s_g.$$
"""

import jax
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact

from ..curvature import AbstractCurvature, AbstractShifted, DenseCurvature, each_lane, multiply
from ..numerics import over_lanes
from ._base import DisplacedFlow
from ._gradient import GradientFlow
from ._lanes import velocities
from ._newton_system import AbstractLinearisedFlow, Solve, SolveComplex
from ._pointwise import linearise_pointwise


def step_response(
    flow: DisplacedFlow,
    y: Float[Array, "state lanes"],
    curvature: AbstractCurvature,
    mu: Float[Array, " lanes"],
    solve: Solve,
) -> tuple[AbstractShifted, Solve]:
    r"""$(R + H)^{-1}$ of every lane, by which the weights of a step of length $1 / \mu$ answer to
    a change of the gradient, and the product with $R$, see [`memjax.AbstractFlow.resistance`][].

    **Arguments:**

    - `solve`: $(\mu - J)^{-1}$, which is the same for a gradient flow.
    """
    # For a gradient flow R = mu and J = -H, and both inverses are the same.
    if isinstance(solve, AbstractShifted):
        return solve, lambda x: mu * x
    resistance = over_lanes(lambda flow, y, dt: flow.resistance(y, dt))(flow, y, 1 / mu)
    if resistance.ndim < 3:
        return curvature.shifted(resistance), lambda x: resistance * x
    moved = DenseCurvature(curvature.dense() + resistance)
    return moved.shifted(jnp.zeros_like(mu)), lambda x: multiply(resistance, x[:, None])[:, 0]


def acceleration(
    flow: DisplacedFlow,
    y: Float[Array, "state lanes"],
    gradient: Float[Array, "weights lanes"],
    curvature: AbstractCurvature,
) -> Float[Array, "state lanes"]:
    """The second derivative of every lane's state."""

    velocity = velocities(flow, gradient, y)
    turned = curvature.product(velocity[: len(gradient), None])[:, 0]
    # The chain rule with H, so that the loss is not differentiated again.
    at = lambda gradient, y: velocities(flow, gradient, y)
    return jax.jvp(at, (gradient, y), (turned, velocity))[1]


def linearise_flow(
    flow: DisplacedFlow,
    y: Float[Array, "state lanes"],
    gradient: Float[Array, "weights lanes"],
    curvature: AbstractCurvature,
    ahead: Float[Array, " lanes"],
) -> AbstractLinearisedFlow:
    """The Jacobian of every lane's flow at the start of a step.

    **Arguments:**

    - `flow`, `y`: the flows and their states.
    - `gradient`, `curvature`: gradient and Hessian of the loss there.
    - `ahead`: by how much scalars of the state that move by themselves, such as a time, are moved
        on before: coefficients that depend on them are those of the middle of a step.
    """
    # The cheapest first: solves with H + mu, with H and a diagonal, with an array of all the state.
    if isinstance(flow.flow, GradientFlow):
        return _LinearisedGradientFlow(curvature)
    if flow.flow.pointwise:
        return linearise_pointwise(flow, y, gradient, curvature, ahead)
    return _general(flow, y, gradient, curvature)


class _LinearisedGradientFlow(AbstractLinearisedFlow):
    curvature: AbstractCurvature

    def solver(self, mu: Float[Array, " lanes"]) -> Solve:
        return self.curvature.shifted(mu)

    def solver_complex(self, real: Float[Array, " lanes"], imaginary: Array) -> SolveComplex:
        return self.curvature.shifted_complex(real, imaginary)


class _LinearisedGeneralFlow(AbstractLinearisedFlow):
    jacobian: Float[Array, "state state lanes"]

    def solver(self, mu: Float[Array, " lanes"]) -> Solve:
        # With pivots: a memory or a metric makes the Jacobian unsymmetric.
        factors = each_lane(jax.scipy.linalg.lu_factor, self._shifted(mu))
        return lambda x: each_lane(jax.scipy.linalg.lu_solve, factors, x)

    def solver_complex(self, real: Float[Array, " lanes"], imaginary: Array) -> SolveComplex:
        matrix = self._shifted(lax.complex(real, imaginary))
        factors = each_lane(jax.scipy.linalg.lu_factor, matrix)

        def apply(x: Array, y: Array) -> tuple[Array, Array]:
            out = each_lane(jax.scipy.linalg.lu_solve, factors, lax.complex(x, y))
            return out.real, out.imag

        return apply

    def _shifted(self, mu: Inexact[Array, " lanes"]) -> Inexact[Array, "state state lanes"]:
        eye = jnp.eye(len(self.jacobian), dtype=self.jacobian.dtype)
        return mu * eye[:, :, None] - self.jacobian


def _general(
    flow: DisplacedFlow, y: Array, gradient: Array, curvature: AbstractCurvature
) -> _LinearisedGeneralFlow:
    return _LinearisedGeneralFlow(flow_jacobian(flow, y, gradient, curvature))


def flow_jacobian(
    flow: DisplacedFlow,
    y: Float[Array, "state lanes"],
    gradient: Float[Array, "weights lanes"],
    curvature: AbstractCurvature,
) -> Float[Array, "state state lanes"]:
    """The Jacobian of every lane's flow as an array."""
    hessian = curvature.dense()
    if isinstance(flow.flow, GradientFlow):
        return -hessian

    def one(flow: DisplacedFlow, y: Array, gradient: Array, hessian: Array) -> Array:
        size = gradient.shape[0]

        def velocity(moved: Array) -> Array:
            # The tangent of the gradient in its place, so that the loss is not differentiated
            # again.
            return flow.velocity(gradient + hessian @ (moved - y)[:size], moved)

        return jax.jacfwd(velocity)(y)

    return over_lanes(one)(flow, y, gradient, hessian)
