import abc
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import optimistix as optx
from jaxtyping import Array, Float, PyTree, Real, Scalar

from .._checks import as_positive, check_instance, is_traced, valid_or_nan
from .._typing import ScalarLike
from ..flows import DisplacedFlow


class TrainingState(eqx.Module):
    r"""What an exit condition sees of a training run.

    **Attributes:**

    - `loss`: $J(\theta(\tau))$.
    - `initial_loss`: $J(\theta(0))$.
    - `distance`: $\|\theta(\tau) - \theta(0)\|_2$ over the trained weights.
    - `model`: the model at $\tau$.
    """

    loss: Float[Array, ""]
    initial_loss: Float[Array, ""]
    distance: Float[Array, ""]
    model: Any  # what an exit reads of it is for the exit to know


class AbstractExit(eqx.Module):
    """A condition that ends the plateau, at the first zero of its `margin`.

    To write one, subclass it and give `margin`.
    """

    @abc.abstractmethod
    def margin(self, state: TrainingState) -> Float[Array, ""]:
        """A continuous number, positive on the plateau and not after it.

        It should be of order one on the plateau: it is located to an absolute 1e-10.
        """

    @property
    def monotone(self) -> bool:
        """Whether the margin falls whenever the loss does.

        Then it is enough to look at the ends of the steps of a flow that only descends. Others
        are looked at within every step, since the margin may fall to 0 and rise again there.
        """
        return False

    def event(
        self,
        flow: DisplacedFlow,
        root_finder: optx.AbstractRootFinder | None = None,
    ) -> diffrax.Event:
        """The exit as a Diffrax event of a displaced flow.

        **Arguments:**

        - `flow`: a flow at its start, from `GradientFlow(loss).displaced(model)`.
        - `root_finder`: locates the exit inside a step. Defaults to bisection to rounding,
            which needs no derivative and cannot leave the step.

        **Returns:**

        A `diffrax.Event` for `diffrax.diffeqsolve(flow, ..., y0=flow.initial_state())`.
        """
        if root_finder is None:
            # The margin falls within its bracket. A tolerance of 0 is never met: brackets end at
            # two neighbouring numbers.
            root_finder = optx.Bisection(rtol=1e-12, atol=1e-10, flip=True)
        return diffrax.Event(ExitCondition(self, flow, flow.loss(flow.model)), root_finder)


def check_exit(name: str, value: Any) -> None:
    """Refuse what is not an exit condition."""
    hint = "pass for example memjax.RelativeLossDrop(0.02)"
    check_instance(name, value, AbstractExit, "an exit condition", hint)


class ExitCondition(eqx.Module):
    """The condition function of [`memjax.AbstractExit.event`][]."""

    exit: AbstractExit
    flow: DisplacedFlow
    # With lanes where it is to be mapped over.
    initial_loss: Float[Array, " *lanes"]

    def state(self, y: Float[Array, " weights"]) -> TrainingState:
        """What is seen of the training run at a state of the flow."""
        model = self.flow.model_at(y)
        return TrainingState(self.flow.loss(model), self.initial_loss, self.flow.distance(y), model)

    def __call__(self, t: Scalar, y: Float[Array, " weights"], args: PyTree, **kwargs) -> Scalar:
        return self.exit.margin(self.state(y))

    def noise(self, state: TrainingState, loss_noise: Float[Array, ""]) -> Float[Array, ""]:
        """An estimate of the rounding error of the margin: that of the losses it sees."""

        def margin(losses: tuple[Array, Array]) -> Float[Array, ""]:
            return self.exit.margin(
                TrainingState(losses[0], losses[1], state.distance, state.model)
            )

        # Both losses are taken to be off by as much, in whichever direction is worse.
        slopes = jax.grad(margin)((state.loss, state.initial_loss))
        return loss_noise * (jnp.abs(slopes[0]) + jnp.abs(slopes[1]))


class RelativeLossDrop(AbstractExit):
    r"""The loss has fallen by a share of its start: $J(\theta(\tau)) \le (1 - \delta) J_0$.

    What is read off a loss curve. One spare mode removes at most a share of about
    $(2\sqrt\pi/e)\,\sigma\omega$ of a Gaussian bump's loss, so a long memory can put a given
    drop out of reach; the flow then converges above the exit level.

    **Arguments:**

    - `delta`: the share $\delta$, in (0, 1).
    - `reference`: the level $J_0$. Defaults to the loss at the start; for random starts pass
        the height of the plateau.
    """

    delta: Float[Array, ""]
    reference: Float[Array, ""] | None

    def __init__(
        self, delta: Real[ScalarLike, ""], reference: Real[ScalarLike, ""] | None = None
    ) -> None:
        delta = as_positive("delta", delta, "pass a share between 0 and 1")
        if not is_traced(delta) and delta >= 1:
            raise ValueError(
                f"`delta` must be below 1, got {delta}; the loss cannot fall by more than all of "
                "itself, so pass a share between 0 and 1."
            )
        self.delta = valid_or_nan(delta, delta < 1)
        self.reference = None if reference is None else as_positive("reference", reference)

    @property
    def monotone(self) -> bool:
        return True

    def margin(self, state: TrainingState) -> Float[Array, ""]:
        reference = state.initial_loss if self.reference is None else self.reference
        # A loss that starts at zero has nothing to fall by.
        nothing = reference <= 0
        # The difference from 1 first: near the start it is exact, where 1 - delta would be rounded.
        share = state.loss / jnp.where(nothing, 1, reference)
        return jnp.where(nothing, 1.0, (share - 1) / self.delta + 1)


class LossChange(AbstractExit):
    r"""The loss has changed: $|J(\theta(\tau)) - J(\theta(0))| > \delta$.

    The hitting time $\tau_J(\delta)$ of Li et al. 2021, Section 5.

    **Arguments:**

    - `delta`: the change $\delta > 0$, in units of the loss.
    """

    delta: Float[Array, ""]

    def __init__(self, delta: Real[ScalarLike, ""]) -> None:
        self.delta = as_positive("delta", delta)

    @property
    def monotone(self) -> bool:
        return True

    def margin(self, state: TrainingState) -> Float[Array, ""]:
        return 1 - jnp.abs(state.loss - state.initial_loss) / self.delta


class ParameterDistance(AbstractExit):
    r"""The weights have moved: $\|\theta(\tau) - \theta(0)\|_2 > \delta$.

    The hitting time $\tau_\theta(\delta)$ of Li et al. 2021, Section 5. The weights are those
    that are trained: with a reparametrisation, the free ones.

    **Arguments:**

    - `delta`: the distance $\delta > 0$.
    """

    delta: Float[Array, ""]

    def __init__(self, delta: Real[ScalarLike, ""]) -> None:
        self.delta = as_positive("delta", delta)

    def margin(self, state: TrainingState) -> Float[Array, ""]:
        return 1 - state.distance / self.delta


class FirstOf(AbstractExit):
    """The first of several exits.

    **Arguments:**

    - `exits`: one or more exit conditions, as separate arguments.
    """

    exits: tuple[AbstractExit, ...]

    def __init__(self, *exits: AbstractExit) -> None:
        for exit in exits:
            check_exit("exits", exit)
        if not exits:
            raise ValueError("`exits` must not be empty, got (); pass at least one exit.")
        self.exits = exits

    @property
    def monotone(self) -> bool:
        return all(exit.monotone for exit in self.exits)

    def margin(self, state: TrainingState) -> Float[Array, ""]:
        return jnp.min(jnp.stack([exit.margin(state) for exit in self.exits]))
