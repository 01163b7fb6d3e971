r"""The Newton systems of implicit steps of a flow, reduced to solves with the Hessian of its loss.

With the gradient $g$ the flow is $\dot\theta = r(g, z)$, $\dot z = s(g, z)$, so that a system
$(\mu - J)\,\delta = b$ with its Jacobian $J$ becomes, once $z$ is eliminated,

$$\bigl(\mu - M H\bigr)\,\delta\theta = b_\theta + r_z (\mu - s_z)^{-1} b_z, \qquad
  M = r_g + r_z (\mu - s_z)^{-1} s_g.$$
"""

import abc
from collections.abc import Callable

import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..curvature import (
    AbstractCurvature,
    AbstractShifted,
    DenseCurvature,
    each_lane,
    invert_complex,
    invert_real,
    multiply,
)
from ..numerics import over_lanes
from ._base import DisplacedFlow
from ._gradient import GradientFlow

# From right-hand sides of shape `(state, sides, lanes)` to solutions.
Solve = Callable[[Array], Array]
SolveComplex = Callable[[Array, Array], tuple[Array, Array]]


class AbstractLinearisedFlow(eqx.Module):
    r"""The Jacobian $J$ of a flow at one state of every lane."""

    @abc.abstractmethod
    def solver(self, mu: Float[Array, " lanes"]) -> Solve:
        r"""$(\mu - J)^{-1}$."""

    @abc.abstractmethod
    def solver_complex(self, real: Float[Array, " lanes"], imaginary: Array) -> SolveComplex:
        r"""The same for a complex $\mu$, for one side."""

    @abc.abstractmethod
    def product(self, x: Float[Array, "state lanes"]) -> Float[Array, "state lanes"]:
        """The product with the Jacobian."""


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
    if isinstance(solve, AbstractShifted):
        return solve, lambda x: mu * x
    resistance = over_lanes(lambda flow, y, dt: flow.resistance(y, dt))(flow, y, 1 / mu)
    if resistance.ndim < 3:
        return curvature.shifted(resistance), lambda x: resistance * x
    moved = DenseCurvature(curvature.dense() + resistance)
    return moved.shifted(jnp.zeros_like(mu)), lambda x: multiply(resistance, x[:, None])[:, 0]


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
    if isinstance(flow.flow, GradientFlow):
        return _LinearisedGradientFlow(curvature)
    if flow.flow.pointwise:
        return _pointwise(flow, y, gradient, curvature, ahead)
    return _general(flow, y, gradient, curvature)


class _LinearisedGradientFlow(AbstractLinearisedFlow):
    curvature: AbstractCurvature

    def solver(self, mu: Float[Array, " lanes"]) -> Solve:
        return self.curvature.shifted(mu)

    def solver_complex(self, real: Float[Array, " lanes"], imaginary: Array) -> SolveComplex:
        return self.curvature.shifted_complex(real, imaginary)

    def product(self, x: Float[Array, "state lanes"]) -> Float[Array, "state lanes"]:
        return -self.curvature.product(x[:, None])[:, 0]


# --- Flows that move every weight by its own gradient -------------------------------------------


class _LinearisedPointwiseFlow(AbstractLinearisedFlow):
    """`memory` is the number of entries of the state that every weight has besides itself;
    `order` takes the state to weights, memories and scalars."""

    curvature: AbstractCurvature
    order: Array
    weight_by_gradient: Float[Array, "weights lanes"]
    weight_by_memory: Float[Array, "memory weights lanes"]
    memory_by_gradient: Float[Array, "memory weights lanes"]
    memory_by_memory: Float[Array, "memory memory weights lanes"]

    def _split(self, x: Array) -> tuple[Array, Array, Array]:
        memory, weights = self.memory_by_gradient.shape[:2]
        x = x[self.order]
        end = (1 + memory) * weights
        return x[:weights], x[weights:end].reshape(memory, weights, *x.shape[1:]), x[end:]

    def _join(self, weights: Array, memories: Array, scalars: Array) -> Array:
        x = jnp.concatenate([weights, memories.reshape(-1, *weights.shape[1:]), scalars])
        return jnp.zeros_like(x).at[self.order].set(x)

    def solver(self, mu: Float[Array, " lanes"]) -> Solve:
        inverse, _ = invert_real(mu * _eye(self.memory_by_memory) - self.memory_by_memory)
        gained, scale = self._scale(inverse)
        solve = self.curvature.shifted(mu * scale)

        def apply(x: Array) -> Array:
            weights, memories, scalars = self._split(x)
            memories = jnp.sum(inverse[:, :, :, None] * memories[None], axis=1)
            right = weights + jnp.sum(self.weight_by_memory[:, :, None] * memories, axis=0)
            out = solve(scale[:, None] * right)
            memories = memories + gained[:, :, None] * self.curvature.product(out)
            return self._join(out, memories, scalars / mu)

        return apply

    def solver_complex(self, real: Float[Array, " lanes"], imaginary: Array) -> SolveComplex:
        eye = _eye(self.memory_by_memory)
        parts = invert_complex(real * eye - self.memory_by_memory, imaginary * eye)
        inverse, mu = lax.complex(*parts), lax.complex(real, imaginary)
        gained, scale = self._scale(inverse)
        shift = mu * scale
        solve = self.curvature.shifted_complex(shift.real, shift.imag)

        def apply(x: Array, y: Array) -> tuple[Array, Array]:
            weights, memories, scalars = self._split(lax.complex(x, y))
            memories = jnp.sum(inverse * memories[None], axis=1)
            right = scale * (weights + jnp.sum(self.weight_by_memory * memories, axis=0))
            out = solve(right.real, right.imag)
            turned = self.curvature.product(jnp.stack(out, axis=1))
            memories = memories + gained * lax.complex(turned[:, 0], turned[:, 1])
            joined = self._join(lax.complex(*out), memories, scalars / mu)
            return joined.real, joined.imag

        return apply

    def _scale(self, inverse: Array) -> tuple[Array, Array]:
        """What a change of the gradient does to the memories, and $-1 / M$."""
        gained = jnp.sum(inverse * self.memory_by_gradient[None], axis=1)
        gain = self.weight_by_gradient + jnp.sum(self.weight_by_memory * gained, axis=0)
        # A weight that feels no gradient moves as if the shift were infinite.
        return gained, -1 / jnp.where(gain == 0, -1e-100, gain)

    def product(self, x: Float[Array, "state lanes"]) -> Float[Array, "state lanes"]:
        weights, memories, scalars = self._split(x)
        turned = self.curvature.product(weights[:, None])[:, 0]
        moved = self.weight_by_gradient * turned + jnp.sum(self.weight_by_memory * memories, axis=0)
        change = self.memory_by_gradient * turned
        change = change + jnp.sum(self.memory_by_memory * memories[None], axis=1)
        return self._join(moved, change, jnp.zeros_like(scalars))


def _eye(matrices: Array) -> Array:
    memory, lanes = len(matrices), matrices.ndim - 2
    return jnp.eye(memory, dtype=matrices.dtype).reshape(memory, memory, *(1,) * lanes)


def _pointwise(
    flow: DisplacedFlow, y: Array, gradient: Array, curvature: AbstractCurvature, ahead: Array
) -> _LinearisedPointwiseFlow:
    size = gradient.shape[0]
    leaves, structure = jax.tree.flatten(flow.auxiliary)
    # The flow itself has lanes last, and so have the leaves.
    own = [leaf.shape[:-1] == (size,) for leaf in leaves]
    for leaf, is_own in zip(leaves, own, strict=True):
        if not is_own and leaf.ndim > 1:
            raise ValueError(
                f"`auxiliary` of a pointwise flow must hold one number a weight, shape {(size,)}, "
                f"or scalars, got shape {leaf.shape[:-1]}; leave `pointwise` out."
            )
    places, start = [], size
    for is_own in own:
        places.append(jnp.arange(start, start + size) if is_own else jnp.asarray([start]))
        start += size if is_own else 1
    kept = [place for place, is_own in zip(places, own, strict=True) if is_own]
    moving = [place for place, is_own in zip(places, own, strict=True) if not is_own]
    order = jnp.concatenate([jnp.arange(size), *kept, *moving])
    memory = len(kept)

    def one(flow: DisplacedFlow, y: Array, gradient: Array, ahead: Array) -> tuple[Array, ...]:
        back = jfu.ravel_pytree(flow.auxiliary)[1]
        auxiliary = jax.tree.leaves(back(y[size:]))
        change = jax.tree.leaves(flow.flow.rates(gradient, back(y[size:]))[1])
        auxiliary = [
            z if is_own else z + ahead * dz
            for z, dz, is_own in zip(auxiliary, change, own, strict=True)
        ]

        def rates(gradient: Array, memories: list[Array]) -> tuple[Array, list[Array]]:
            left = iter(memories)
            full = [next(left) if is_own else z for z, is_own in zip(auxiliary, own, strict=True)]
            velocity, change = flow.flow.rates(gradient, jax.tree.unflatten(structure, full))
            leaves = jax.tree.leaves(change)
            return velocity, [z for z, is_own in zip(leaves, own, strict=True) if is_own]

        memories = [z for z, is_own in zip(auxiliary, own, strict=True) if is_own]
        ones, still = jnp.ones_like(gradient), [jnp.zeros_like(z) for z in memories]
        _, (first, firsts) = jax.jvp(rates, (gradient, memories), (ones, still))
        by_memory = []
        for k in range(memory):
            along = [ones if i == k else zero for i, zero in enumerate(still)]
            by_memory.append(
                jax.jvp(rates, (gradient, memories), (jnp.zeros_like(gradient), along))[1]
            )
        stack = lambda rows: jnp.stack(rows) if rows else jnp.zeros((0, size), gradient.dtype)
        matrix = [stack([column[1][i] for column in by_memory]) for i in range(memory)]
        empty = jnp.zeros((0, 0, size), gradient.dtype)
        return (
            first,
            stack([column[0] for column in by_memory]),
            stack(firsts),
            jnp.stack(matrix) if matrix else empty,
        )

    return _LinearisedPointwiseFlow(curvature, order, *over_lanes(one)(flow, y, gradient, ahead))


# --- All other flows ----------------------------------------------------------------------------


class _LinearisedGeneralFlow(AbstractLinearisedFlow):
    jacobian: Float[Array, "state state lanes"]

    def solver(self, mu: Float[Array, " lanes"]) -> Solve:
        factors = each_lane(jax.scipy.linalg.lu_factor, mu * _eye(self.jacobian) - self.jacobian)
        return lambda x: each_lane(jax.scipy.linalg.lu_solve, factors, x)

    def solver_complex(self, real: Float[Array, " lanes"], imaginary: Array) -> SolveComplex:
        matrix = lax.complex(real, imaginary) * _eye(self.jacobian) - self.jacobian
        factors = each_lane(jax.scipy.linalg.lu_factor, matrix)

        def apply(x: Array, y: Array) -> tuple[Array, Array]:
            out = each_lane(jax.scipy.linalg.lu_solve, factors, lax.complex(x, y))
            return out.real, out.imag

        return apply

    def product(self, x: Float[Array, "state lanes"]) -> Float[Array, "state lanes"]:
        return DenseCurvature(self.jacobian).product(x[:, None])[:, 0]


def _general(
    flow: DisplacedFlow, y: Array, gradient: Array, curvature: AbstractCurvature
) -> _LinearisedGeneralFlow:
    hessian = curvature.dense()

    def one(flow: DisplacedFlow, y: Array, gradient: Array, hessian: Array) -> Array:
        size = gradient.shape[0]

        def velocity(moved: Array) -> Array:
            return flow.velocity(gradient + hessian @ (moved - y)[:size], moved)

        return jax.jacfwd(velocity)(y)

    jacobian = over_lanes(one)(flow, y, gradient, hessian)
    return _LinearisedGeneralFlow(jacobian)
