"""Newton systems of flows that move every weight by its own gradient.

What such a flow remembers is eliminated weight by weight: before a step is solved, which leaves a
shifted Hessian, and at its stages, where memories follow from the gradients there.
"""

from collections.abc import Callable

import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree

from ..curvature import AbstractCurvature, invert_complex, invert_real
from ..numerics import over_lanes
from ._base import AbstractFlow, DisplacedFlow
from ._newton_system import AbstractLinearisedFlow, Solve, SolveComplex


class _LinearisedPointwiseFlow(AbstractLinearisedFlow):
    """`memory` is the number of entries of the state that every weight has besides itself;
    `order` takes the state to weights, memories and scalars."""

    curvature: AbstractCurvature
    order: np.ndarray
    weight_by_gradient: Float[Array, "weights lanes"]
    weight_by_memory: Float[Array, "memory weights lanes"]
    memory_by_gradient: Float[Array, "memory weights lanes"]
    memory_by_memory: Float[Array, "memory memory weights lanes"]

    def _split(self, x: Array) -> tuple[Array, Array, Array]:
        memory, weights = self.memory_by_gradient.shape[:2]
        x = _permuted(x, self.order)
        end = (1 + memory) * weights
        return x[:weights], x[weights:end].reshape(memory, weights, *x.shape[1:]), x[end:]

    def _join(self, weights: Array, memories: Array, scalars: Array) -> Array:
        x = jnp.concatenate([weights, memories.reshape(-1, *weights.shape[1:]), scalars])
        return _permuted(x, np.argsort(self.order))

    def solver(self, mu: Float[Array, " lanes"]) -> Solve:
        # Without pivots: of memories that decay, s_z + s_z^T <= 0, this is definite.
        inverse, _ = invert_real(mu * _eye(self.memory_by_memory) - self.memory_by_memory)
        # M is diagonal, and (mu - M H) d = b is the symmetric shifted system
        #   (H - mu / M) d = -b / M.
        # For a heavy ball M = -1 / (mu + gamma), and the shift is mu (mu + gamma).
        gained, scale = self._scale(inverse)
        solve = self.curvature.shifted(mu * scale)

        def apply(x: Array) -> Array:
            weights, memories, scalars = self._split(x)
            memories = _apply(inverse[:, :, :, None], memories)
            right = weights + _apply(self.weight_by_memory[None, :, :, None], memories)[0]
            out = solve(scale[:, None] * right)
            memories = memories + gained[:, :, None] * self.curvature.product(out)
            # The columns of scalars are left out: `memory_solver` has them exact at the stages, so
            # that their side is 0.
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
            memories = _apply(inverse, memories)
            right = scale * (weights + _apply(self.weight_by_memory[None], memories)[0])
            out = solve(right.real, right.imag)
            turned = self.curvature.product(jnp.stack(out, axis=1))
            memories = memories + gained * lax.complex(turned[:, 0], turned[:, 1])
            joined = self._join(lax.complex(*out), memories, scalars / mu)
            return joined.real, joined.imag

        return apply

    def _scale(self, inverse: Array) -> tuple[Array, Array]:
        """What a change of the gradient does to the memories, and $-1 / M$."""
        gained = _apply(inverse, self.memory_by_gradient)
        gain = self.weight_by_gradient + _apply(self.weight_by_memory[None], gained)[0]
        # A weight that feels no gradient moves as if the shift were infinite. 1e100 times mu is
        # above any curvature, and its square does not overflow.
        return gained, -1 / jnp.where(gain == 0, -1e-100, gain)


def _apply(matrices: Array, x: Array) -> Array:
    """The products of small matrices, one a weight, and vectors. Written out, which is faster than
    a reduction."""
    none = jnp.zeros((len(matrices), *x.shape[1:]), x.dtype)
    return sum((matrices[:, k] * x[k] for k in range(len(x))), none)


def _permuted(x: Array, order: np.ndarray) -> Array:
    """`x[order]`; most states are in that order already, and XLA does not see it."""
    return x if np.array_equal(order, np.arange(len(order))) else x[order]


def _eye(matrices: Array) -> Array:
    memory, lanes = len(matrices), matrices.ndim - 2
    return jnp.eye(memory, dtype=matrices.dtype).reshape(memory, memory, *(1,) * lanes)


class _Parts:
    """Where weights, memories and scalars stand in the state of a pointwise flow, whose
    `auxiliary` has lanes as the last axis of every leaf."""

    def __init__(self, auxiliary: PyTree, size: int) -> None:
        leaves, self.structure = jax.tree.flatten(auxiliary)
        shapes = [leaf.shape[:-1] for leaf in leaves]
        self.size, self.own = size, [shape == (size,) for shape in shapes]
        for shape in shapes:
            if shape not in ((), (size,)):
                raise ValueError(
                    f"`auxiliary` of a pointwise flow must hold one number a weight, shape "
                    f"{(size,)}, or scalars, got shape {shape}; leave `pointwise` out."
                )
        self.memories, self.scalars, start = [], [], size
        for is_own in self.own:
            end = start + (size if is_own else 1)
            (self.memories if is_own else self.scalars).append(np.arange(start, end))
            start = end

    @property
    def order(self) -> np.ndarray:
        return np.concatenate([np.arange(self.size), *self.memories, *self.scalars])

    def split(self, y: Array) -> tuple[list[Array], list[Array]]:
        return [y[place] for place in self.memories], [y[place[0]] for place in self.scalars]

    def rates(
        self, flow: AbstractFlow, gradient: Array, memories: list[Array], scalars: list[Array]
    ) -> tuple[Array, list[Array], list[Array]]:
        """The velocity of the weights, and the changes of memories and of scalars."""
        kept, rest = iter(memories), iter(scalars)
        leaves = [next(kept) if is_own else next(rest) for is_own in self.own]
        velocity, change = flow.rates(gradient, jax.tree.unflatten(self.structure, leaves))
        changes = jax.tree.leaves(change)
        chosen = lambda own: [
            z for z, is_own in zip(changes, self.own, strict=True) if is_own is own
        ]
        return velocity, chosen(True), chosen(False)

    def groups(
        self, flow: AbstractFlow, gradient: Array, memories: list[Array], scalars: list[Array]
    ) -> list[list[int]]:
        """Which memories depend on one another, by what their rates are computed from. Those of
        Adam are two groups of one."""
        rates = lambda memories: self.rates(flow, gradient, memories, scalars)[1]
        jaxpr = jax.make_jaxpr(rates)(memories).jaxpr
        felt = {id(variable): {k} for k, variable in enumerate(jaxpr.invars)}
        of = lambda variables: set().union(*(felt.get(id(v), set()) for v in variables))
        for equation in jaxpr.eqns:
            felt |= dict.fromkeys(map(id, equation.outvars), of(equation.invars))
        groups: list[set[int]] = []
        for k, change in enumerate(jaxpr.outvars):
            joined = {k} | of([change])
            apart = [group for group in groups if not group & joined]
            groups = [*apart, joined.union(*(group for group in groups if group & joined))]
        return [sorted(group) for group in groups]

    def slopes(
        self, flow: AbstractFlow, gradient: Array, memories: list[Array], scalars: list[Array]
    ) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """The derivatives of the velocity and of the changes of memories, by the gradient and, one
        row a memory, by the memories. Every weight has its own, so that one direction for all of
        them tells them all."""
        rates = lambda gradient, memories: self.rates(flow, gradient, memories, scalars)[:2]
        still = jnp.zeros_like(gradient)
        stack = lambda rows: jnp.stack(rows) if rows else jnp.zeros((0, self.size), still.dtype)

        def along(which: int) -> tuple[Array, Array]:
            directions = [still] * (1 + len(memories))
            directions[which] = jnp.ones_like(gradient)
            tangents = (directions[0], directions[1:])
            velocity, changes = jax.jvp(rates, (gradient, memories), tangents)[1]
            return velocity, stack(changes)

        columns = [along(1 + k) for k in range(len(memories))]
        matrix = [column[1] for column in columns]
        empty = jnp.zeros((0, 0, self.size), still.dtype)
        by_memory = jnp.stack(matrix, axis=1) if matrix else empty
        return along(0), (stack([column[0] for column in columns]), by_memory)


def linearise_pointwise(
    flow: DisplacedFlow, y: Array, gradient: Array, curvature: AbstractCurvature, ahead: Array
) -> _LinearisedPointwiseFlow:
    parts = _Parts(flow.auxiliary, len(gradient))

    def one(flow: DisplacedFlow, y: Array, gradient: Array, ahead: Array) -> tuple[Array, ...]:
        # At time 0 Nesterov's friction and the pace of Adam's averages are infinite, and the flows
        # put 0 in their place. They are finite at `ahead`.
        memories, scalars = parts.split(y)
        speeds = parts.rates(flow.flow, gradient, memories, scalars)[2]
        scalars = [z + ahead * speed for z, speed in zip(scalars, speeds, strict=True)]
        by_gradient, by_memory = parts.slopes(flow.flow, gradient, memories, scalars)
        return by_gradient[0], by_memory[0], by_gradient[1], by_memory[1]

    return _LinearisedPointwiseFlow(
        curvature, parts.order, *over_lanes(one)(flow, y, gradient, ahead)
    )


def memory_solver(
    flow: DisplacedFlow,
    y: Float[Array, "state lanes"],
    gradient: Float[Array, "weights lanes"],
    dt: Float[Array, " lanes"],
    times: Float[np.ndarray, " stages"],
    inverse: Float[np.ndarray, "stages stages"],
) -> Callable[[Array, Array], Array]:
    """What makes the memories of a pointwise flow fit the gradients at the stages of a step.

    Coefficients that change much within a step, such as those of an average that has just begun,
    would keep Newton's iteration with those of one time from converging.

    **Arguments:**

    - `flow`, `y`, `dt`: the flows, their states and the lengths of their steps.
    - `gradient`: that at the start of the step.
    - `times`, `inverse`: those of the Runge--Kutta formula, and the inverse of its weights.

    **Returns:**

    A function from the gradients at the stages, shape `(weights, stages, lanes)`, and the
    increments up to there, shape `(state, stages, lanes)`, to increments.
    """
    if not flow.flow.pointwise or flow.auxiliary is None:
        return lambda gradients, stages: stages
    size, count = len(gradient), len(times)
    parts = _Parts(flow.auxiliary, size)

    def prepare(flow: DisplacedFlow, y: Array, gradient: Array, dt: Array) -> tuple:
        memories, scalars = parts.split(y)
        speeds = parts.rates(flow.flow, gradient, memories, scalars)[2]
        # Exact: the speed is constant, and A^{-1} times the times is 1.
        moves = [speed * dt * times for speed in speeds]
        slopes = []
        for k in range(count):
            then = [z + move[k] for z, move in zip(scalars, moves, strict=True)]
            slopes.append(parts.slopes(flow.flow, gradient, memories, then)[1][1])
        groups = parts.groups(flow.flow, gradient, memories, scalars)
        return moves, [
            system([slope[np.ix_(group, group)] for slope in slopes], dt) for group in groups
        ]

    def system(slopes: list[Array], dt: Array) -> Array:
        """The inverse that takes the memories of every weight to where they belong."""
        # With z_i the increment up to stage i, the memories of a weight obey
        #   sum_k (A^{-1})_ik z_k / dt = s(g_i, z_0 + z_i).
        # They enter linearly in momentum and in averages, and one Newton update is then exact.
        eye = jnp.broadcast_to(np.eye(len(slopes[0]))[:, :, None], slopes[0].shape)
        block = lambda i, k: inverse[i, k] / dt * eye - (slopes[i] if i == k else 0)
        row = lambda i: jnp.concatenate([block(i, k) for k in range(count)], axis=1)
        return invert_real(jnp.concatenate([row(i) for i in range(count)]))[0]

    def recall(
        flow: DisplacedFlow, y: Array, gradients: Array, stages: Array, dt: Array, prepared: tuple
    ) -> Array:
        memories, scalars = parts.split(y)
        moves, solves = prepared
        for place, move in zip(parts.scalars, moves, strict=True):
            stages = stages.at[place[0]].set(move)
        gained, _ = parts.split(stages)
        values = []
        for k in range(count):
            here = [z + gain[:, k] for z, gain in zip(memories, gained, strict=True)]
            then = [z + move[k] for z, move in zip(scalars, moves, strict=True)]
            values.append(parts.rates(flow.flow, gradients[:, k], here, then)[1])
        groups = parts.groups(flow.flow, gradients[:, 0], memories, scalars)
        for group, solve in zip(groups, solves, strict=True):
            increments = jnp.stack([gained[m] for m in group])  # memory, weights, stages
            right = [
                jnp.stack([values[i][m] for m in group])
                - sum(inverse[i, k] / dt * increments[:, :, k] for k in range(count))
                for i in range(count)
            ]
            change = _apply(solve, jnp.concatenate(right))
            change = change.reshape(count, len(group), size)
            for k, m in enumerate(group):
                stages = stages.at[parts.memories[m]].add(change[:, k].T)
        return stages

    prepared = over_lanes(prepare)(flow, y, gradient, dt)
    return lambda gradients, stages: over_lanes(recall)(flow, y, gradients, stages, dt, prepared)
