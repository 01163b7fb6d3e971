import abc
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax as lx
import optax
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray, PyTree, Real

from .._checks import as_key, as_nonnegative, as_positive, check_instance, shown
from .._deprecation import keyword_key
from .._typing import ScalarLike
from ..losses import (
    AbstractLoss,
    check_model,
    check_trained,
    coordinates,
    displaced,
    from_real_parts,
    real_parts,
    weights,
)
from ..models import AbstractModel
from ._base import check_loss


class AbstractTraining(eqx.Module):
    r"""Training by discrete updates of the weights.

    It goes wherever a flow goes: [`memjax.measure_plateau`][] counts its updates until an exit,
    and sweeps vary what it holds. To write one, subclass it, give a `loss` and the `time_step`
    that an update counts for, and the two methods.
    """

    loss: eqx.AbstractVar[AbstractLoss]
    time_step: eqx.AbstractVar[Float[Array, ""]]

    @abc.abstractmethod
    def start(self, model: AbstractModel) -> PyTree[Array]:
        """What the training remembers besides the weights, at the start."""

    @abc.abstractmethod
    def update(
        self, model: AbstractModel, displacement: PyTree[Array], state: PyTree[Array]
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        """One update.

        **Arguments:**

        - `model`: where the training started.
        - `displacement`: how far the trained weights have moved from there, a PyTree as
            `equinox.filter(model, memjax.trainable(model))`.
        - `state`: what `start` or the last update gave.

        **Returns:**

        The displacement and the state after the update.
        """


class OptaxTraining(AbstractTraining):
    """Training by any Optax optimiser.

    A complex weight is trained as two real ones, its parts, by every optimiser alike: Optax sees
    them as two arrays.

    **Arguments:**

    - `loss`: the loss.
    - `optimiser`: a `optax.GradientTransformation`. Optimisers that look at the loss along
        their way, such as `optax.lbfgs`, are given it.
    - `time_step`: the training time that an update counts for. Defaults to 1; with the
        learning rate, the times of gradient descent are those of a gradient flow.

    **Raises:**

    `TypeError` if `loss` is not a loss or `optimiser` not an optimiser, `ValueError` for a
    `time_step` that is not positive.

    !!! Example

        ```python
        training = mj.OptaxTraining(mj.WhiteNoiseLoss(target), optax.adam(1e-3))
        plateau = mj.measure_plateau(training, model, mj.RelativeLossDrop(0.02))
        ```
    """

    loss: AbstractLoss
    optimiser: Any
    time_step: Float[Array, ""]

    def __init__(
        self, loss: AbstractLoss, optimiser: Any, time_step: Real[ScalarLike, ""] = 1.0
    ) -> None:
        check_loss(loss)
        parts = [getattr(optimiser, name, None) for name in ("init", "update")]
        if isinstance(optimiser, type) or not all(map(callable, parts)):
            raise TypeError(
                f"`optimiser` must be an Optax optimiser, got {shown(optimiser)}; pass for "
                "example optax.adam(1e-3)."
            )
        self.loss = loss
        self.optimiser = optax.with_extra_args_support(optimiser)
        self.time_step = as_positive("time_step", time_step)

    def start(self, model: AbstractModel) -> PyTree[Array]:
        check_model(model)
        check_trained(model)
        return self.optimiser.init(real_parts(weights(model)))

    def update(
        self, model: AbstractModel, displacement: PyTree[Array], state: PyTree[Array]
    ) -> tuple[PyTree[Array], PyTree[Array]]:
        here = displaced(model, displacement)
        gradient = real_parts(self.loss.gradient(model, displacement))
        change, state = self.optimiser.update(
            gradient,
            state,
            real_parts(weights(here)),
            value=self.loss(here),
            grad=gradient,
            value_fn=lambda parts: self.loss(eqx.combine(from_real_parts(parts), here)),
        )
        add = lambda old, new: old + new.astype(old.dtype)
        return jax.tree.map(add, displacement, from_real_parts(change)), state


class StochasticGradientFlow(AbstractTraining):
    r"""Stochastic gradient flow $d\theta = -\nabla J(\theta)\,d\tau + \sqrt{2T}\,dB_\tau$, in
    steps of fixed length by a Diffrax solver.

    **Arguments:**

    - `loss`: the loss $J$.
    - `temperature`: $T \ge 0$.
    - `time_step`: the length of a step, in units of training time.
    - `solver`: a Diffrax solver for stochastic equations. Defaults to `diffrax.Euler()`, the
        Euler-Maruyama method; `diffrax.ShARK()` is of order 1.5 here, since the noise is
        additive.
    - `key`: the PRNG key of the noise.

    **Raises:**

    `TypeError` if `loss` is not a loss or `key` not a key, `ValueError` for a negative
    temperature or a `time_step` that is not positive.

    ??? cite "Reference"

        Li, Tai, E, *Stochastic modified equations and adaptive stochastic gradient
        algorithms*, ICML 2017.
    """

    loss: AbstractLoss
    temperature: Float[Array, ""]
    time_step: Float[Array, ""]
    key: Key[Array, ""]
    solver: diffrax.AbstractSolver

    @keyword_key(4)
    def __init__(
        self,
        loss: AbstractLoss,
        temperature: Real[ScalarLike, ""],
        time_step: Real[ScalarLike, ""],
        solver: diffrax.AbstractSolver | None = None,
        *,
        key: PRNGKeyArray,
    ) -> None:
        check_loss(loss)
        self.loss = loss
        self.temperature = as_nonnegative("temperature", temperature)
        self.time_step = as_positive("time_step", time_step)
        self.key = as_key("key", key)
        self.solver = diffrax.Euler() if solver is None else solver
        hint = "pass for example diffrax.Euler()"
        check_instance("solver", self.solver, diffrax.AbstractSolver, "a Diffrax solver", hint)

    def start(self, model: AbstractModel) -> Int[Array, ""]:
        check_model(model)
        check_trained(model)
        return jnp.zeros((), int)

    def update(
        self, model: AbstractModel, displacement: PyTree[Array], state: Int[Array, ""]
    ) -> tuple[PyTree[Array], Int[Array, ""]]:
        y, back = coordinates(displacement)
        descent = lambda t, y, args: -coordinates(self.loss.gradient(model, back(y)))[0]
        size = jnp.sqrt(2 * self.temperature)
        noise = lambda t, y, args: lx.DiagonalLinearOperator(jnp.full(y.shape, size))
        # Every step is one of its own, from time 0: a path to an unknown end is not needed.
        area = getattr(self.solver, "minimal_levy_area", diffrax.AbstractBrownianIncrement)
        kinds = (diffrax.BrownianIncrement, diffrax.SpaceTimeLevyArea)
        kind = next((k for k in kinds if issubclass(k, area)), diffrax.SpaceTimeTimeLevyArea)
        # By the number of the update: the noise does not depend on how many are made in one call.
        key = jax.random.fold_in(self.key, state)
        path = diffrax.UnsafeBrownianPath(y.shape, key, levy_area=kind)
        terms = diffrax.MultiTerm(diffrax.ODETerm(descent), diffrax.ControlTerm(noise, path))
        zero, args = jnp.zeros(()), None
        memory = self.solver.init(terms, zero, self.time_step, y, args)
        y, *_ = self.solver.step(terms, zero, self.time_step, y, args, memory, False)
        return back(y), state + 1
