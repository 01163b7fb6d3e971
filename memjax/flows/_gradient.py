"""Gradient flow, of a model and of its displacement from a start."""

import abc

import diffrax
import equinox as eqx
import jax
import jax.flatten_util as jfu
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree, Scalar

from ..losses import AbstractLoss, displaced, weights
from ..models import AbstractModel, trainable


class AbstractFlow(diffrax.AbstractTerm):
    r"""Training dynamics of a loss, $\dot\theta = F(\theta)$ in training time $\tau$.

    A flow is a Diffrax term whose state is a model, and `displaced` gives the same dynamics
    for the displacement from a start, which is what [`memjax.measure_plateau`][] integrates.
    """

    loss: eqx.AbstractVar[AbstractLoss]

    @abc.abstractmethod
    def displaced(self, model: AbstractModel) -> "AbstractDisplacedFlow":
        """The dynamics of the displacement from `model`."""


class AbstractDisplacedFlow(diffrax.AbstractTerm):
    r"""A flow started at a model, as a Diffrax term for the flat displacement vector.

    The state is $y = \theta(\tau) - \theta(0)$, starting from zero. On a plateau it is
    exponentially small, and in floating point its own digits are worth far more than those
    that it leaves in $\theta$.
    """

    loss: eqx.AbstractVar[AbstractLoss]
    model: eqx.AbstractVar[AbstractModel]

    @abc.abstractmethod
    def initial_state(self) -> Float[Array, " weights"]:
        """The state at the start."""

    @abc.abstractmethod
    def model_at(self, y: Float[Array, " weights"]) -> AbstractModel:
        """The model of a state."""

    @abc.abstractmethod
    def distance(self, y: Float[Array, " weights"]) -> Scalar:
        r"""$\|\theta - \theta(0)\|_2$ of a state."""

    @abc.abstractmethod
    def noise(self, y: Float[Array, " weights"]) -> Float[Array, " weights"]:
        """An estimate of the rounding error of every component of the vector field."""


class GradientFlow(AbstractFlow):
    r"""Gradient flow $d\theta/d\tau = -\nabla J(\theta)$.

    As a Diffrax term its state is the model itself; leaves that are not trained stand still.

    **Arguments:**

    - `loss`: the loss $J$.

    !!! Example

        ```python
        flow = mj.GradientFlow(mj.WhiteNoiseLoss(target))
        solution = diffrax.diffeqsolve(
            flow, diffrax.Kvaerno5(), t0=0, t1=100, dt0=0.01, y0=model,
            stepsize_controller=diffrax.PIDController(rtol=1e-6, atol=1e-9),
        )
        ```

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation
        and Optimization Analysis*, ICLR 2021, Section 5.
    """

    loss: AbstractLoss

    def __check_init__(self):
        if not isinstance(self.loss, AbstractLoss):
            raise TypeError(
                f"`loss` must be a memjax loss, got {type(self.loss).__name__}; pass for "
                "example memjax.WhiteNoiseLoss(target)."
            )

    def vf(self, t: Scalar, y: AbstractModel, args: PyTree) -> AbstractModel:
        descent = jax.tree.map(jnp.negative, self.loss.gradient(y))
        still = jax.tree.map(jnp.zeros_like, eqx.filter(y, trainable(y), inverse=True))
        return eqx.combine(descent, still)

    def contr(self, t0: Scalar, t1: Scalar, **kwargs) -> Scalar:
        return t1 - t0

    def prod(self, vf: AbstractModel, control: Scalar) -> AbstractModel:
        return jax.tree.map(lambda v: control * v, vf)

    def displaced(self, model: AbstractModel) -> "DisplacedGradientFlow":
        return DisplacedGradientFlow(self.loss, model)


class DisplacedGradientFlow(AbstractDisplacedFlow):
    r"""Gradient flow of the displacement, $\dot y = -\nabla J(\theta(0) + y)$, $y(0) = 0$.

    **Arguments:**

    - `loss`: the loss $J$.
    - `model`: the start $\theta(0)$.
    """

    loss: AbstractLoss
    model: AbstractModel

    def initial_state(self) -> Float[Array, " weights"]:
        return jnp.zeros_like(self._flat(weights(self.model)))

    def model_at(self, y: Float[Array, " weights"]) -> AbstractModel:
        return displaced(self.model, self._tree(y))

    def distance(self, y: Float[Array, " weights"]) -> Scalar:
        # A norm whose derivative at the start is zero instead of NaN.
        square = jnp.sum(y**2)
        return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)

    def noise(self, y: Float[Array, " weights"]) -> Float[Array, " weights"]:
        return self._flat(self.loss.gradient_noise(self.model, self._tree(y)))

    def vf(self, t: Scalar, y: Float[Array, " weights"], args: PyTree) -> Float[Array, " weights"]:
        return -self._flat(self.loss.gradient(self.model, self._tree(y)))

    def contr(self, t0: Scalar, t1: Scalar, **kwargs) -> Scalar:
        return t1 - t0

    def prod(self, vf: Float[Array, " weights"], control: Scalar) -> Float[Array, " weights"]:
        return control * vf

    def _flat(self, tree: PyTree[Array]) -> Float[Array, " weights"]:
        return jfu.ravel_pytree(tree)[0]

    def _tree(self, y: Float[Array, " weights"]) -> PyTree[Array]:
        return jfu.ravel_pytree(weights(self.model))[1](y)
