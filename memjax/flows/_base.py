"""Training dynamics in continuous time, of a model and of its displacement from a start."""

import abc
import functools

import diffrax
import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree, Scalar

from .._checks import check_instance, shown
from ..losses import AbstractLoss, check_trained, coordinates, displaced, real_parts, weights
from ..models import AbstractModel, trainable


class AbstractFlow(diffrax.AbstractTerm):
    r"""Training dynamics of a loss in training time $\tau$.

    $$\dot\theta = f(\nabla J(\theta), z), \qquad \dot z = g(\nabla J(\theta), z),$$

    where $\theta$ is the flat vector of the trained weights, a complex one as its two parts, and
    $z$ holds whatever the dynamics remember besides them, such as a velocity. A flow is a Diffrax
    term: its state is a model, or the pair of a model and $z$ where there is any
    ([`memjax.AbstractFlow.start`][]). `displaced` gives the same dynamics for the displacement
    from a start, a real vector, which is what [`memjax.measure_plateau`][] integrates. Diffrax
    warns of complex states, and takes no models with both real and complex weights; `displaced`
    has no such limits.

    To write a flow, subclass it, give a `loss` and the four methods `auxiliary`, `rates`,
    `resistance` and `coasting`.
    """

    loss: eqx.AbstractVar[AbstractLoss]

    @abc.abstractmethod
    def auxiliary(self, gradient: Float[Array, " weights"]) -> PyTree[Array]:
        """What the dynamics remember besides the weights, at the start; `None` for nothing.

        **Arguments:**

        - `gradient`: the gradient at the start.
        """

    @abc.abstractmethod
    def rates(
        self, gradient: Float[Array, " weights"], auxiliary: PyTree[Array]
    ) -> tuple[Float[Array, " weights"], PyTree[Array]]:
        """The time derivatives of the weights and of `auxiliary`."""

    @abc.abstractmethod
    def resistance(self, auxiliary: PyTree[Array], dt: Scalar) -> Float[Array, "..."]:
        r"""By how much the dynamics resist a change within the time `dt`.

        The weights of an implicit step of length `dt` answer to a change $e$ of the gradient
        by $-(R + \nabla^2 J)^{-1} e$, and this is $R$, a matrix, or its diagonal, or a
        number: for a gradient flow `1 / dt`. It decides how long a step may be where the flow
        is unstable, and what rounding does to it.
        """

    @abc.abstractmethod
    def coasting(self, auxiliary: PyTree[Array]) -> Float[Array, "..."]:
        """How far the weights would move on if the gradient vanished: a flow is at rest only
        if that is nothing."""

    @property
    def descends(self) -> bool:
        """Whether the loss never rises along the dynamics."""
        return False

    @property
    def pointwise(self) -> bool:
        """Whether every weight moves by its own gradient and its own entries of `auxiliary`
        alone: arrays there hold one number a weight, and scalars move by themselves, at a
        constant speed. Steps are then much cheaper."""
        return False

    @property
    def exchangeable(self) -> bool:
        """Whether weights move alike whose gradients are alike, so that equal modes stay equal
        where those of the loss do."""
        return False

    def start(self, model: AbstractModel) -> PyTree[Array]:
        """The state of this term for Diffrax that starts at `model`."""
        check_trained(model)
        for leaf in jax.tree.leaves(model):
            if not eqx.is_array_like(leaf):
                raise TypeError(
                    "`model` must hold nothing but arrays to be a state of Diffrax, got "
                    f"{shown(leaf)}; make it a static field, or solve `flow.displaced(model)`."
                )
        auxiliary = self.auxiliary(coordinates(self.loss.gradient(model))[0])
        return model if auxiliary is None else (model, auxiliary)

    def vf(self, t: Scalar | float, y: PyTree[Array], args: PyTree) -> PyTree[Array]:
        model, auxiliary = (y, None) if isinstance(y, AbstractModel) else y
        kinds = {
            jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(eqx.filter(y, eqx.is_inexact_array))
        }
        if len(kinds) > 1:
            raise TypeError(
                "`y` must not hold both real and complex arrays, which Diffrax cannot integrate "
                "together; solve `flow.displaced(model)` instead, whose state is a real vector."
            )
        gradient, back = coordinates(self.loss.gradient(model))
        velocity, change = self.rates(gradient, auxiliary)
        # Diffrax wants a derivative of every leaf of the state.
        still = jax.tree.map(jnp.zeros_like, eqx.filter(model, trainable(model), inverse=True))
        moving = eqx.combine(back(velocity), still)
        return moving if isinstance(y, AbstractModel) else (moving, change)

    def contr(self, t0: Scalar | float, t1: Scalar | float, **kwargs) -> Scalar | float:
        return t1 - t0

    def prod(self, vf: PyTree[Array], control: Scalar) -> PyTree[Array]:
        return jax.tree.map(lambda v: control * v, vf)

    def displaced(self, model: AbstractModel) -> "DisplacedFlow":
        """The dynamics of the displacement from `model`."""
        check_trained(model)
        gradient = coordinates(self.loss.gradient(model))[0]
        return DisplacedFlow(self, model, self.auxiliary(gradient))


class DisplacedFlow(diffrax.AbstractTerm):
    r"""A flow started at a model, as a Diffrax term for a flat vector.

    The state begins with the displacement $\theta(\tau) - \theta(0)$, followed by what else
    the flow remembers. On a plateau the displacement is exponentially small, and in floating
    point its own digits are worth far more than those that it leaves in $\theta$.

    **Attributes:**

    - `flow`: the flow.
    - `model`: the start $\theta(0)$.
    - `auxiliary`: what the flow remembers besides the weights, at the start.
    """

    flow: AbstractFlow
    model: AbstractModel
    auxiliary: PyTree[Array]

    @property
    def loss(self) -> AbstractLoss:
        """The loss of the flow."""
        return self.flow.loss

    @property
    def size(self) -> int:
        """The number of trained weights, where a complex one counts twice."""
        return coordinates(weights(self.model))[0].size

    def initial_state(self) -> Float[Array, " state"]:
        """The state at the start."""
        still = jnp.zeros_like(coordinates(weights(self.model))[0])
        # Nothing to remember has single precision, to which weights of weak types would yield.
        return jnp.concatenate([still, _flat(self.auxiliary).astype(still.dtype)])

    def model_at(self, y: Float[Array, " state"]) -> AbstractModel:
        """The model of a state."""
        return displaced(self.model, self._displacement(y))

    def distance(self, y: Float[Array, " state"]) -> Scalar:
        r"""$\|\theta - \theta(0)\|_2$ of a state."""
        return _norm(y[: self.size])

    def leaf_norms(self, y: Float[Array, " state"]) -> Float[Array, " state"]:
        """The length of each leaf of weights, and of what else the flow remembers, in place of
        all its numbers."""

        def alike(leaf: Array) -> PyTree[Array]:
            size = _norm(coordinates(leaf)[0])
            return jax.tree.map(lambda part: jnp.full_like(part, size), real_parts(leaf))

        return _flat(jax.tree.map(alike, (self._displacement(y), self._auxiliary(y))))

    def gradient(self, y: Float[Array, " state"]) -> Float[Array, " weights"]:
        """The gradient of the loss at a state."""
        return coordinates(self.loss.gradient(self.model, self._displacement(y)))[0]

    def noise(self, y: Float[Array, " state"]) -> Float[Array, " weights"]:
        """An estimate of the rounding error of every component of the gradient."""
        return coordinates(self.loss.gradient_noise(self.model, self._displacement(y)))[0]

    def hessian(self, y: Float[Array, " state"]) -> Float[Array, "weights weights"]:
        """The Hessian of the loss at a state."""
        # Derivatives of the gradient and not of the loss: closed forms of it keep their digits.
        return jax.jacfwd(self.gradient)(y[: self.size])

    def _equal_modes(self) -> Bool[Array, "modes modes"] | None:
        """Which modes start as equals, and so stay equal; `None` where none have to."""
        alike = self.loss.exchangeable and self.flow.exchangeable
        modes = self.model.modes if alike else None
        if modes is None:
            return None
        equal = lambda x: x[:, None] == x[None, :]
        return functools.reduce(jnp.logical_and, map(equal, modes))

    def symmetry(self) -> Float[Array, "weights weights"] | None:
        """The projection on what the flow can reach, `None` where that is all: of modes that start
        as equals their mean is all that moves."""
        same = self._equal_modes()
        if same is None:
            return None
        # The same for every leaf of weights, since each has one number a mode.
        mean = same / jnp.sum(same, axis=1, keepdims=True)
        return jnp.kron(jnp.eye(self.size // len(mean)), mean)

    def twins(self) -> Int[Array, " state"] | None:
        """For every number of a state the first that always equals it, itself perhaps; `None` where
        none have to be equal."""
        same = self._equal_modes()
        if same is None:
            return None
        first = jnp.argmax(same, axis=1)
        # The state has the weights leaf by leaf, each with one number a mode.
        own = (jnp.arange(0, self.size, len(first))[:, None] + first).ravel()
        twins, start = [own], self.size
        for leaf in jax.tree.leaves(self.auxiliary):
            like = own if leaf.shape == own.shape else jnp.arange(leaf.size)
            twins.append(start + like)
            start += leaf.size
        return jnp.concatenate(twins)

    def resistance(self, y: Float[Array, " state"], dt: Scalar) -> Float[Array, "..."]:
        """By how much the dynamics resist a change, see [`memjax.AbstractFlow.resistance`][]."""
        return self.flow.resistance(self._auxiliary(y), dt)

    def coasting(self, y: Float[Array, " state"]) -> Float[Array, " weights"]:
        """How far the weights would move on, see [`memjax.AbstractFlow.coasting`][]."""
        return jnp.broadcast_to(self.flow.coasting(self._auxiliary(y)), (self.size,))

    def vf(
        self, t: Scalar | float, y: Float[Array, " state"], args: PyTree
    ) -> Float[Array, " state"]:
        return self.velocity(self.gradient(y), y)

    def velocity(
        self, gradient: Float[Array, " weights"], y: Float[Array, " state"]
    ) -> Float[Array, " state"]:
        """The time derivative of a state where the gradient is known."""
        velocity, change = self.flow.rates(gradient, self._auxiliary(y))
        # Diffrax has states in the precision of time, also of weights in single precision.
        return jnp.concatenate([velocity, _flat(change)]).astype(y.dtype)

    def contr(self, t0: Scalar | float, t1: Scalar | float, **kwargs) -> Scalar | float:
        return t1 - t0

    def prod(self, vf: Float[Array, " state"], control: Scalar) -> Float[Array, " state"]:
        return control * vf

    def _displacement(self, y: Float[Array, " state"]) -> PyTree[Array]:
        return coordinates(weights(self.model))[1](y[: self.size])

    def _auxiliary(self, y: Float[Array, " state"]) -> PyTree[Array]:
        return jfu.ravel_pytree(self.auxiliary)[1](y[self.size :])


def _norm(x: Array) -> Scalar:
    """A norm whose derivative at 0 is 0 instead of NaN."""
    square = jnp.sum(x**2)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def _flat(tree: PyTree[Array]) -> Float[Array, " n"]:
    return jfu.ravel_pytree(tree)[0]


def check_loss(loss: AbstractLoss) -> None:
    """Refuse what is not a loss."""
    hint = "pass for example memjax.WhiteNoiseLoss(target)"
    check_instance("loss", loss, AbstractLoss, "a memjax loss", hint)
