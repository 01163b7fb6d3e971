"""Runs side by side, one a lane: what they measure, and where they are."""

import math

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from ..curvature import AbstractCurvature
from ..flows import AbstractFlow, DENSE, DisplacedFlow, GradientFlow, lanes_of, velocities
from ..losses import AbstractLossLanes, Linearisation, SpectralLanes
from ..models import AbstractModel
from ..numerics import fold, over_lanes
from ._crossing import Crossing
from ._exits import (
    AbstractExit,
    ExitCondition,
    FirstOf,
    LossChange,
    ParameterDistance,
    RelativeLossDrop,
    TrainingState,
)
from ._recording import Recording
from ._rounding import Ledger


class Runs(eqx.Module):
    """What a lane measures. An instance is built for one run and mapped with lanes last."""

    dynamics: AbstractLossLanes
    flow: DisplacedFlow
    exit: AbstractExit
    record: dict[str, Array]
    # The number of weights, after which a state holds what else its flow remembers.
    size: int = eqx.field(static=True)
    # For every number of a state the first that always equals it, `None` where none have to.
    twins: Int[Array, "state *lanes"] | None = None
    # Which numbers of a state are padding.
    absent: Bool[Array, "state *lanes"] | None = None

    @staticmethod
    def build(flow: AbstractFlow, model: AbstractModel, exit: AbstractExit, record: dict) -> "Runs":
        displaced = flow.displaced(model)
        size, twins = displaced.size, displaced.twins()
        return Runs(lanes_of(displaced), displaced, exit, record, size, twins)

    @property
    def width(self) -> int | None:
        """The number of modes of one run that may be padded, `None` of one that may not."""
        simple = (RelativeLossDrop, LossChange, ParameterDistance)
        exits = self.exit.exits if isinstance(self.exit, FirstOf) else (self.exit,)
        if not (isinstance(self.dynamics, SpectralLanes) and self.dynamics.can_pad):
            return None
        if not (self.flow.flow.pointwise and all(type(exit) in simple for exit in exits)):
            return None
        return self.dynamics.width

    def padded(self, width: int) -> "Runs":
        """One run with modes added that have no effect and do not move, so that runs of several
        widths share what is compiled."""
        assert isinstance(self.dynamics, SpectralLanes)
        dynamics, size = self.dynamics.padded(width), self.size // 2
        model = eqx.tree_at(
            lambda model: (model.amplitudes, model.free_rates),
            self.flow.model,
            (dynamics.amplitudes, dynamics.free_rates),
        )

        # Amplitudes, then rates: each half gets its own padding.
        def widen(leaf: Array) -> Array:
            if leaf.shape != (2 * size,):
                return leaf
            return jnp.pad(leaf.reshape(2, size), ((0, 0), (0, width - size))).ravel()

        auxiliary = jax.tree.map(widen, self.flow.auxiliary)
        # Ones that become zeros where something was added.
        whole = jax.tree.map(jnp.ones_like, (jnp.zeros(2 * size), self.flow.auxiliary))
        absent = [widen(leaf).ravel() == 0 for leaf in jax.tree.leaves(whole)]
        absent = jnp.concatenate(absent)
        places = jnp.arange(absent.size)
        twins = self.twins
        if twins is not None:
            # Numbers of the padded state for those of the state as it was.
            kept = jnp.nonzero(~absent, size=twins.size)[0]
            twins = places.at[kept].set(kept[twins])
        flow = DisplacedFlow(self.flow.flow, model, auxiliary)
        return Runs(dynamics, flow, self.exit, self.record, 2 * width, twins, absent)

    def places(self) -> Int[Array, "weights *lanes"] | Int[np.ndarray, "weights 1"]:
        """The number of every weight among those of its run."""
        if self.absent is None:
            return np.arange(self.size)[:, None]
        # Without those of padding, so that signs and directions, and with them results, are those
        # of the run alone.
        return jnp.cumsum(~self.absent[: self.size], axis=0) - 1

    def mean(self, x: Float[Array, "state *axes lanes"]) -> Float[Array, " lanes"]:
        """The mean over the weights or the state of every lane, and over further axes."""
        if self.absent is None:
            return _total(x) / math.prod(x.shape[:-1])
        # Padding is 0 and adds nothing to the sum.
        count = jnp.sum(~self.absent[: len(x)], axis=0)
        return _total(x) / (count * math.prod(x.shape[1:-1]))

    def rms(self, x: Float[Array, "state *axes lanes"]) -> Float[Array, " lanes"]:
        """The root of the mean square over the weights or the state of every lane."""
        return jnp.sqrt(self.mean(x**2))

    def alike(self, change: Float[Array, "numbers *axes lanes"]) -> Float[Array, "..."]:
        """A change of every lane's state that is the same for modes that are equal. The equations
        say so, but not their evaluation: a compiler may round the same sums of two modes
        differently, and elimination with pivots does."""
        if self.twins is None:
            return change

        # A change of the weights alone has the first of the numbers.
        twins = self.twins[: len(change)]

        def mean() -> Array:
            # Lanes stay last: under `vmap` the scatter would have them first, and with it all that
            # reads the result of the condition.
            others = np.indices(change.shape[1:], sparse=True)
            first = (twins.reshape(len(twins), *(1,) * (change.ndim - 2), -1), *others)
            total = jnp.zeros_like(change).at[first].add(change)
            count = jnp.zeros_like(change).at[first].add(1)
            return (total / jnp.maximum(count, 1))[first]

        # Most runs have no equal modes, and need not pay for gathers.
        rare = jnp.any(twins != jnp.arange(len(twins))[:, None])
        return lax.cond(rare, mean, lambda: change)

    def anywhere(self) -> Float[Array, "weights *lanes"] | Float[np.ndarray, "weights 1"]:
        """A direction of length one, which is at right angles to none in particular."""
        if self.absent is None:
            direction = np.cos(self.places() + 1.0)
            return direction / np.linalg.norm(direction)
        direction = jnp.where(self.absent[: self.size], 0, jnp.cos(self.places() + 1.0))
        return direction / unit_norm(direction)

    @property
    def compensable(self) -> bool:
        """Whether the gradient is there in double-double."""
        return self.dynamics.compensable

    @property
    def closed(self) -> bool:
        """Whether Hessians are cheap."""
        return self.dynamics.closed

    @property
    def can_harden(self) -> bool:
        """Whether the Jacobians of all stages fit into memory."""
        return self.closed or self.size <= DENSE

    @property
    def monotone(self) -> bool:
        """Whether the margin never rises."""
        return self.exit.monotone and self.flow.flow.descends

    def linearise(
        self, y: Float[Array, "state lanes"], low: Float[Array, "state lanes"] | None
    ) -> Linearisation:
        """The loss of every lane and its first two derivatives at `y`, or at `y + low`."""
        return self.dynamics.linearise(y[: self.size], None if low is None else low[: self.size])

    def loss(self, y: Float[Array, "state lanes"]) -> Float[Array, " lanes"]:
        """The loss of every lane."""
        return self.dynamics.loss(y[: self.size])

    def distance(self, y: Float[Array, "state lanes"]) -> Float[Array, " lanes"]:
        """How far every lane is from its start."""
        return over_lanes(lambda flow, y: flow.distance(y))(self.flow, y)

    def velocity(
        self,
        gradient: Float[Array, "weights *stages lanes"],
        y: Float[Array, "state *stages lanes"],
    ) -> Float[Array, "state *stages lanes"]:
        """The time derivative of the states of every lane, where the gradient is known."""
        if isinstance(self.flow.flow, GradientFlow):
            return -gradient
        return velocities(self.flow, gradient, y)

    def coasting(self, y: Float[Array, "state lanes"]) -> Float[Array, "weights lanes"]:
        """How far the weights of every lane would move on."""
        return over_lanes(lambda flow, y: flow.coasting(y))(self.flow, y)

    def resistance(
        self, y: Float[Array, "state lanes"], dt: Float[Array, " lanes"]
    ) -> Float[Array, " lanes"]:
        """By how much every lane's flow resists a change of its weights, at least."""
        return over_lanes(lambda flow, y, dt: jnp.min(flow.resistance(y, dt)))(self.flow, y, dt)

    def condition(self, initial_loss: Float[Array, " lanes"]) -> ExitCondition:
        """The exit conditions of all lanes, to be mapped over."""
        return ExitCondition(self.exit, self.flow, initial_loss)

    def margin(
        self,
        initial_loss: Float[Array, " lanes"],
        loss: Float[Array, " lanes"],
        y: Float[Array, "state lanes"],
    ) -> Float[Array, " lanes"]:
        """The margin of every lane's exit."""
        margin = lambda condition, loss, y: condition.exit.margin(_seen(condition, loss, y))
        return over_lanes(margin)(self.condition(initial_loss), loss, y)

    def margin_noise(
        self,
        initial_loss: Float[Array, " lanes"],
        loss: Float[Array, " lanes"],
        y: Float[Array, "state lanes"],
    ) -> Float[Array, " lanes"]:
        """An estimate of the margins' rounding errors."""
        noise = lambda condition, loss, y, own: condition.noise(_seen(condition, loss, y), own)
        own = self.dynamics.loss_noise(y[: self.size])
        return over_lanes(noise)(self.condition(initial_loss), loss, y, own)


def _seen(condition: ExitCondition, loss: Array, y: Array) -> TrainingState:
    flow = condition.flow
    return TrainingState(loss, condition.initial_loss, flow.distance(y), flow.model_at(y))


class Lanes(eqx.Module):
    """Where every lane is. All arrays have lanes last."""

    y: Float[Array, "state lanes"]
    # What y is short of in float64, if that is kept.
    low: Float[Array, "state lanes"] | None
    initial_loss: Float[Array, " lanes"]
    floor: Float[Array, "state lanes"]
    time: Float[Array, " lanes"]
    dt: Float[Array, " lanes"]
    # The last accepted step, or the one that crosses the exit: its interpolation predicts the
    # stages of the next, or locates the exit.
    polynomial: Float[Array, "state 3 lanes"]
    last_dt: Float[Array, " lanes"]
    last_error: Float[Array, " lanes"]
    # The margin of the exit here, and where in the last step it was met.
    margin: Float[Array, " lanes"]
    crossing: Crossing
    # That of the margin's minima so far that came nearest to 0, and the state there.
    nearest: Float[Array, " lanes"]
    nearest_y: Float[Array, "state lanes"]
    after_rejection: Bool[Array, " lanes"]
    result: Int[Array, " lanes"]
    direction: Float[Array, "weights lanes"]
    # Where Hessians are dear: the last, and which lanes want another.
    curvature: AbstractCurvature | None
    stale: Bool[Array, " lanes"]
    ledger: Ledger
    num_steps: Int[Array, " lanes"]
    num_accepted_steps: Int[Array, " lanes"]
    recording: Recording


def unit_norm(x: Float[Array, "n lanes"]) -> Float[Array, " lanes"]:
    """The length of every lane's vector to divide it by: 1 of nothing."""
    square = fold(jnp.sum, x**2)
    return jnp.where(square > 0, jnp.sqrt(square), 1)


def _total(x: Float[Array, "n *axes lanes"]) -> Float[Array, " lanes"]:
    return fold(jnp.sum, x.reshape(-1, x.shape[-1]))
