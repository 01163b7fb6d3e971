"""Newton systems of flows that move every weight by its own gradient.

What such a flow remembers is eliminated weight by weight: before a step is solved, which leaves a
shifted Hessian, and at its stages, where memories follow from the gradients there.
"""

import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..curvature import AbstractCurvature, invert_complex, invert_real
from ..numerics import combine, over_lanes
from ._base import AbstractFlow, DisplacedFlow
from ._newton_system import AbstractLinearisedFlow, Solve, SolveComplex

# The real and the imaginary part of a complex array.
Pair = tuple[Array, Array]
# Matrices for groups of memories that do not depend on one another, one a weight.
Blocks = list[Float[Array, "group group weights *sides lanes"]]


class _LinearisedPointwiseFlow(AbstractLinearisedFlow):
    """`memory` is the number of entries of the state that every weight has besides itself;
    `order` takes the state to weights, memories and scalars. The columns of scalars are left out:
    they move at a constant speed, which the stages of a step have exactly."""

    curvature: AbstractCurvature
    order: np.ndarray
    weight_by_gradient: Float[Array, "weights lanes"]
    weight_by_memory: Float[Array, "memory weights lanes"]
    memory_by_gradient: Float[Array, "memory weights lanes"]
    memory_by_memory: Blocks

    def solver(self, mu: Float[Array, " lanes"]) -> Solve:
        # Without pivots: of memories that decay, s_z + s_z^T <= 0, this is definite.
        inverse = [invert_real(mu * _eye(block) - block)[0] for block in self.memory_by_memory]
        # M is diagonal, and (mu - M H) d = b is the symmetric shifted system
        #   (H - mu / M) d = -b / M.
        # For a heavy ball M = -1 / (mu + gamma), and the shift is mu (mu + gamma).
        gained = _apply(inverse, self.memory_by_gradient)
        gain = self.weight_by_gradient + self._felt(gained)
        scale = -1 / jnp.where(gain == 0, _STILL, gain)
        solve = self.curvature.shifted(mu * scale)

        def apply(x: Array) -> Array:
            weights, others = self._split(x)
            if others is not None:
                memories, scalars = _apply(inverse, others[0]), others[1] / mu
                weights = weights + self._felt(memories)
                others = memories, scalars
            out = solve(scale[:, None] * weights)
            change = gained[:, :, None] * self.curvature.product(out)
            return self._join(out, change, others)

        return apply

    def solver_complex(self, real: Float[Array, " lanes"], imaginary: Array) -> SolveComplex:
        # In pairs of real arrays, since complex numbers stand interleaved in memory.
        mu = real, imaginary
        inverse = [
            invert_complex(real * _eye(block) - block, imaginary * _eye(block))
            for block in self.memory_by_memory
        ]
        a, b = [block[0] for block in inverse], [block[1] for block in inverse]
        gained = _apply(a, self.memory_by_gradient), _apply(b, self.memory_by_gradient)
        gain = self.weight_by_gradient + self._felt(gained[0]), self._felt(gained[1])
        still = (gain[0] == 0) & (gain[1] == 0)
        scale = _reciprocal((-jnp.where(still, _STILL, gain[0]), -gain[1]))
        solve = self.curvature.shifted_complex(*_times(mu, scale))
        slow = _reciprocal(mu)

        def apply(x: Array, y: Array) -> tuple[Array, Array]:
            (x, of_x), (y, of_y) = self._split(x), self._split(y)
            if of_x is not None and of_y is not None:
                (u, x_scalars), (v, y_scalars) = of_x, of_y
                u, v = _apply(a, u) - _apply(b, v), _apply(a, v) + _apply(b, u)
                x, y = x + self._felt(u), y + self._felt(v)
                scalars = _times(slow, (x_scalars, y_scalars))
                of_x, of_y = (u, scalars[0]), (v, scalars[1])
            out = solve(*_times(scale, (x, y)))
            turned = self.curvature.product(jnp.stack(out, axis=1))
            change = _times(gained, (turned[:, 0], turned[:, 1]))
            return self._join(out[0], change[0], of_x), self._join(out[1], change[1], of_y)

        return apply

    def _split(self, x: Array) -> tuple[Array, tuple[Array, Array] | None]:
        """What belongs to weights, and to memories and scalars."""
        memory, weights = self.memory_by_gradient.shape[:2]
        if len(x) == weights:
            return x, None
        x, end = _permuted(x, self.order), (1 + memory) * weights
        return x[:weights], (x[weights:end].reshape(memory, weights, *x.shape[1:]), x[end:])

    def _join(self, weights: Array, change: Array, others: tuple[Array, Array] | None) -> Array:
        """The state, with a change of memories."""
        count = len(self.order) - len(weights) * (1 + len(change))
        still = jnp.zeros((count, *weights.shape[1:]), weights.dtype)
        memories, scalars = (change, still) if others is None else (others[0] + change, others[1])
        x = jnp.concatenate([weights, memories.reshape(-1, *weights.shape[1:]), scalars])
        return _permuted(x, np.argsort(self.order))

    def _felt(self, memories: Float[Array, "memory weights *sides lanes"]) -> Array:
        """What memories do to the weights."""
        return _apply([self.weight_by_memory[None]], memories)[0]


# A weight that feels no gradient moves as if the shift were infinite. 1e100 times mu is above any
# curvature, and its square does not overflow.
_STILL = -1e-100


def _apply(blocks: Blocks, x: Float[Array, "memory weights *sides lanes"]) -> Array:
    """The products of blocks and vectors. Written out, which is faster than a reduction."""
    products, start = [jnp.zeros((0, *x.shape[1:]), x.dtype)], 0
    for block in blocks:
        none, count = jnp.zeros((len(block), *x.shape[1:]), x.dtype), block.shape[1]
        terms = (_beside(block[:, k], x) * x[start + k] for k in range(count))
        products.append(sum(terms, none))
        start += count
    return jnp.concatenate(products)


def _beside(x: Array, y: Array) -> Array:
    """`x` with the axis of sides that `y` has before its lanes."""
    return x[..., None, :] if y.ndim == 4 else x


def _times(x: Pair, y: Pair) -> Pair:
    return x[0] * y[0] - x[1] * y[1], x[0] * y[1] + x[1] * y[0]


def _reciprocal(x: Pair) -> Pair:
    # As a matrix of one element, for the sake of the scaling there.
    real, imaginary = invert_complex(x[0][None, None], x[1][None, None])
    return real[0, 0], imaginary[0, 0]


def _permuted(x: Array, order: np.ndarray) -> Array:
    """`x[order]`; most states are in that order already, and XLA does not see it."""
    return x if np.array_equal(order, np.arange(len(order))) else x[order]


def _eye(block: Array) -> Array:
    return jnp.eye(len(block), dtype=block.dtype)[:, :, None, None]


class _Parts:
    """Where weights, memories and scalars stand in the state of a pointwise flow whose arrays have
    lanes last. Memories that depend on one another are neighbours, in groups of some `sizes`."""

    def __init__(self, flow: DisplacedFlow, y: Array, gradient: Array) -> None:
        leaves, self.structure = jax.tree.flatten(flow.auxiliary)
        shapes = [leaf.shape[:-1] for leaf in leaves]
        self.size = size = len(gradient)
        for shape in shapes:
            if shape not in ((), (size,)):
                raise ValueError(
                    f"`auxiliary` of a pointwise flow must hold one number a weight, shape "
                    f"{(size,)}, or scalars, got shape {shape}; leave `pointwise` out."
                )
        self.places = _neighbours([size, *(size if shape else 1 for shape in shapes)])[1:]
        # Numbers of leaves.
        self.memories = [k for k, shape in enumerate(shapes) if shape]
        self.scalars = [k for k, shape in enumerate(shapes) if not shape]
        memories, scalars = self.split(y)
        changes = lambda flow, gradient, scalars, memories: self.rates(
            flow, gradient, memories, scalars
        )[1]
        groups = _joined(_Trace(changes, flow.flow, gradient, scalars, memories).sources)
        self.sizes = [len(group) for group in groups]
        self.memories = [self.memories[m] for group in groups for m in group]

    def are_linear(
        self, flow: AbstractFlow, gradient: Array, memories: list[Array], scalars: list[Array]
    ) -> bool:
        """Whether memories enter their changes linearly, those of every weight its own alone, and
        scalars move at a constant speed: as far as the program shows."""

        def changes(flow: AbstractFlow, scalars: list[Array], inputs: list[Array]) -> list[Array]:
            return self.rates(flow, inputs[0], inputs[1:], scalars)[1]

        def slopes(flow: AbstractFlow, scalars: list[Array], inputs: list[Array]) -> list:
            columns = self.slopes(flow, inputs[0], inputs[1:], scalars)[1:]
            return [column for _, column in columns]

        def speeds(flow: AbstractFlow, inputs: list[Array]) -> list[Array]:
            gradient, *others = inputs
            count = len(self.memories)
            return self.rates(flow, gradient, others[:count], others[count:])[2]

        inputs = [gradient, *memories]
        return (
            not any(_Trace(speeds, flow, [*inputs, *scalars]).sources)
            and not any(_Trace(slopes, flow, scalars, inputs).sources)
            and _Trace(changes, flow, scalars, inputs).is_elementwise
        )

    @property
    def order(self) -> np.ndarray:
        places = [self.places[k] for k in (*self.memories, *self.scalars)]
        numbers = [np.arange(place.start, place.stop) for place in places]
        return np.concatenate([np.arange(self.size), *numbers])

    def split(self, y: Float[Array, "state *stages lanes"]) -> tuple[list[Array], list[Array]]:
        """Memories and scalars."""
        return (
            [y[self.places[k]] for k in self.memories],
            [y[self.places[k].start] for k in self.scalars],
        )

    def leaves(self, memories: list[Array], scalars: list[Array]) -> list[Array]:
        """Both in the order of the state."""
        of = dict(zip((*self.memories, *self.scalars), (*memories, *scalars), strict=True))
        return [of[k] for k in range(len(of))]

    def rates(
        self, flow: AbstractFlow, gradient: Array, memories: list[Array], scalars: list[Array]
    ) -> tuple[Array, list[Array], list[Array]]:
        """The velocity of the weights, and the changes of memories and of scalars, of one run."""
        auxiliary = jax.tree.unflatten(self.structure, self.leaves(memories, scalars))
        velocity, change = flow.rates(gradient, auxiliary)
        changes = jax.tree.leaves(change)
        return velocity, [changes[k] for k in self.memories], [changes[k] for k in self.scalars]

    def blocks(self, columns: list[list[Array]]) -> Blocks:
        """What there is of a matrix within groups."""
        return [
            jnp.stack([jnp.stack(column[place]) for column in columns[place]], axis=1)
            for place in _neighbours(self.sizes)
        ]

    def slopes(
        self, flow: AbstractFlow, gradient: Array, memories: list[Array], scalars: list[Array]
    ) -> list[tuple[Array, list[Array]]]:
        """The derivatives of the velocity and of the changes of memories by the gradient and by
        every memory, of one run. Every weight has its own, so that one direction for all of them
        tells them all."""
        inputs = [gradient, *memories]

        def along(which: int) -> tuple[Array, list[Array]]:
            # Of one input alone: products of the others with tangents that are 0 would be computed.
            def rates(x: Array) -> tuple[Array, list[Array]]:
                gradient, *memories = [*inputs[:which], x, *inputs[which + 1 :]]
                return self.rates(flow, gradient, memories, scalars)[:2]

            return jax.jvp(rates, (inputs[which],), (jnp.ones_like(inputs[which]),))[1]

        return [along(k) for k in range(len(inputs))]


def linearise_pointwise(
    flow: DisplacedFlow, y: Array, gradient: Array, curvature: AbstractCurvature, ahead: Array
) -> _LinearisedPointwiseFlow:
    parts = _Parts(flow, y, gradient)

    def one(
        flow: AbstractFlow, gradient: Array, memories: list, scalars: list, ahead: Array
    ) -> list[tuple[Array, list[Array]]]:
        # At time 0 Nesterov's friction and the pace of Adam's averages are infinite, and the flows
        # put 0 in their place. They are finite at `ahead`.
        speeds = parts.rates(flow, gradient, memories, scalars)[2]
        scalars = [z + ahead * speed for z, speed in zip(scalars, speeds, strict=True)]
        return parts.slopes(flow, gradient, memories, scalars)

    (by_gradient, changes), *by_memory = over_lanes(one)(
        flow.flow, gradient, *parts.split(y), ahead
    )
    stack = lambda rows: jnp.stack(rows) if rows else jnp.zeros((0, *gradient.shape))
    return _LinearisedPointwiseFlow(
        curvature,
        parts.order,
        by_gradient,
        stack([velocity for velocity, _ in by_memory]),
        stack(changes),
        parts.blocks([changes for _, changes in by_memory]),
    )


def memory_solver(
    flow: DisplacedFlow,
    y: Float[Array, "state lanes"],
    gradient: Float[Array, "weights lanes"],
    dt: Float[Array, " lanes"],
    times: Float[np.ndarray, " stages"],
    inverse: Float[np.ndarray, "stages stages"],
) -> tuple[Callable[[Array, Array], Array], bool]:
    """What makes the memories of a pointwise flow fit the gradients at the stages of a step.

    Coefficients that change much within a step, such as those of an average that has just begun,
    would keep Newton's iteration with those of one time from converging.

    **Arguments:**

    - `flow`, `y`, `dt`: the flows, their states and the lengths of their steps.
    - `gradient`: that at the start of the step.
    - `times`, `inverse`: those of the Runge--Kutta formula, and the inverse of its weights.

    **Returns:**

    A function from the gradients at the stages, shape `(weights, stages, lanes)`, and the
    increments up to there, shape `(state, stages, lanes)`, to increments; and whether all but the
    weights then obey their equations, up to rounding.
    """
    if not flow.flow.pointwise or flow.auxiliary is None:
        return (lambda gradients, stages: stages), False
    size, count, rate = len(gradient), len(times), 1 / dt
    parts = _Parts(flow, y, gradient)
    memories, scalars = parts.split(y)
    speeds = over_lanes(lambda *args: parts.rates(*args)[2])(flow.flow, gradient, memories, scalars)
    # Exact: the speed is constant, and A^{-1} times the times is 1.
    moves = [speed * dt * times[:, None] for speed in speeds]
    then = [z + move for z, move in zip(scalars, moves, strict=True)]

    def slopes(flow: AbstractFlow, gradient: Array, memories: list, then: list) -> list:
        at = lambda scalars: [
            column for _, column in parts.slopes(flow, gradient, memories, scalars)[1:]
        ]
        return jax.vmap(at, -1, -1, axis_size=count)(then)

    def changes(flow: AbstractFlow, gradients: Array, memories: list, then: list) -> list[Array]:
        at = lambda *state: parts.rates(flow, *state)[1]
        return jax.vmap(at, -1, -1)(gradients, memories, then)

    def system(slope: Float[Array, "group group weights stages lanes"]) -> Array:
        """The inverse that takes the memories of every weight to where they belong."""
        # With z_i the increment up to stage i, the memories of a weight obey
        #   sum_k (A^{-1})_ik z_k / dt = s(g_i, z_0 + z_i).
        # They enter linearly in momentum and in averages, and one Newton update is then exact.
        eye = jnp.broadcast_to(_eye(slope), slope[:, :, :, 0].shape)
        block = lambda i, k: inverse[i, k] * rate * eye - (slope[:, :, :, i] if i == k else 0)
        row = lambda i: jnp.concatenate([block(i, k) for k in range(count)], axis=1)
        return invert_real(jnp.concatenate([row(i) for i in range(count)]))[0]

    columns = over_lanes(slopes)(flow.flow, gradient, memories, then)
    systems = [system(slope) for slope in parts.blocks(columns)]

    def recall(gradients: Array, stages: Array) -> Array:
        gained, _ = parts.split(stages)
        here = [z[:, None] + gain for z, gain in zip(memories, gained, strict=True)]
        wanted = over_lanes(changes)(flow.flow, gradients, here, then)
        missed = [
            want - combine(inverse, gain) * rate for want, gain in zip(wanted, gained, strict=True)
        ]
        found = []
        for solve, own in zip(systems, _neighbours(parts.sizes), strict=True):
            right = jnp.stack([x[:, i] for i in range(count) for x in missed[own]])
            change, group = _apply([solve], right), len(missed[own])
            for k, gain in enumerate(gained[own]):
                found.append(gain + jnp.moveaxis(change[k::group], 0, 1))
        rows = parts.leaves(found, [move[None] for move in moves])
        return jnp.concatenate([stages[:size], *rows])

    return recall, parts.are_linear(flow.flow, gradient, memories, scalars)


def _neighbours(sizes: list[int]) -> list[slice]:
    """Where parts of some sizes are if each begins where the last ends."""
    ends = itertools.accumulate(sizes)
    return [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]


class _Trace:
    """What the program of a function of one run shows, given arguments with lanes last. The last
    argument is a list of arrays."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        lane = lambda x: jax.ShapeDtypeStruct(x.shape[:-1], x.dtype)
        arrays, fixed = eqx.partition(arguments, eqx.is_array)
        program = lambda arrays: function(*eqx.combine(arrays, fixed))
        self._jaxpr = jax.make_jaxpr(program)(jax.tree.map(lane, arrays)).jaxpr
        inputs = self._jaxpr.invars[len(self._jaxpr.invars) - len(arguments[-1]) :]
        self._found = {id(variable): {k} for k, variable in enumerate(inputs)}
        for equation in self._jaxpr.eqns:
            found = self._sources_of(equation.invars)
            self._found |= dict.fromkeys(map(id, equation.outvars), found)

    @property
    def sources(self) -> list[set[int]]:
        """From which of the list each of the results is computed."""
        return [self._sources_of([variable]) for variable in self._jaxpr.outvars]

    @property
    def is_elementwise(self) -> bool:
        """Whether numbers of the list meet those at the same place only."""
        using = (e for e in self._jaxpr.eqns if self._sources_of(e.invars))
        return all(map(_is_elementwise, using))

    def _sources_of(self, variables: list[Any]) -> set[int]:
        return set().union(*(self._found.get(id(variable), set()) for variable in variables))


# What makes numbers of those at the same place, as far as flows are made of it.
_ELEMENTWISE = frozenset(
    "abs add and broadcast_in_dim clamp convert_element_type copy cos div eq erf exp expm1 ge gt "
    "integer_pow is_finite le log log1p logistic lt max min mul ne neg not or pow rsqrt select_n "
    "sign sin sqrt square stop_gradient sub tanh".split()
)


def _is_elementwise(equation: Any) -> bool:
    inner = equation.params.get("jaxpr") or equation.params.get("call_jaxpr")
    if equation.primitive.name in ("pjit", "jit", "custom_jvp_call") and inner is not None:
        return all(map(_is_elementwise, inner.eqns))
    return equation.primitive.name in _ELEMENTWISE


def _joined(sources: list[set[int]]) -> list[list[int]]:
    """Groups that do not depend on one another. The averages of Adam are two groups of one."""
    groups: list[set[int]] = []
    for k, source in enumerate(sources):
        joined = {k} | source
        apart = [group for group in groups if not group & joined]
        groups = [*apart, joined.union(*(group for group in groups if group & joined))]
    return [sorted(group) for group in groups]
