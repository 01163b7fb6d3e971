import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Scalar

from .._checks import as_nonnegative, as_positive
from .._typing import ScalarLike
from ..losses import AbstractLoss
from ._base import AbstractFlow, check_loss


class HeavyBall(AbstractFlow):
    r"""The heavy ball $\ddot\theta + \gamma\dot\theta = -\nabla J(\theta)$, starting at rest.

    On a plateau it is overdamped and takes $\gamma$ times as long as gradient flow; without
    friction the exponent of the plateau time is halved.

    **Arguments:**

    - `loss`: the loss $J$.
    - `friction`: $\gamma \ge 0$, in units of one over training time.

    **Raises:**

    `TypeError` if `loss` is not a loss, `ValueError` for a friction that is negative or no scalar.

    ??? cite "Reference"

        Polyak, *Some methods of speeding up the convergence of iteration methods*, USSR
        Computational Mathematics and Mathematical Physics 4, 1964.
    """

    loss: AbstractLoss
    friction: Float[Array, ""]

    def __init__(self, loss: AbstractLoss, friction: Real[ScalarLike, ""] = 1.0) -> None:
        check_loss(loss)
        self.loss = loss
        self.friction = as_nonnegative("friction", friction)

    @property
    def pointwise(self) -> bool:
        return True

    @property
    def exchangeable(self) -> bool:
        return True

    def auxiliary(self, gradient: Float[Array, " weights"]) -> Float[Array, " weights"]:
        return jnp.zeros_like(gradient)

    def rates(
        self, gradient: Float[Array, " weights"], auxiliary: Float[Array, " weights"]
    ) -> tuple[Float[Array, " weights"], Float[Array, " weights"]]:
        return auxiliary, -self.friction * auxiliary - gradient

    def resistance(self, auxiliary: Float[Array, " weights"], dt: Scalar) -> Float[Array, ""]:
        # From an implicit Euler step: (v - v_0) / dt = -gamma v - e, (theta - theta_0) / dt = v.
        return (1 / dt + self.friction) / dt

    def coasting(self, auxiliary: Float[Array, " weights"]) -> Float[Array, " weights"]:
        # The integral of v e^{-gamma tau}: infinite without friction, so that what moves never
        # rests.
        return jnp.where(auxiliary == 0, 0, auxiliary / self.friction)


class Nesterov(AbstractFlow):
    r"""Nesterov's method in continuous time, $\ddot\theta + (r/\tau)\,\dot\theta = -\nabla J$.

    The friction vanishes with time, so that the exponent of a plateau time is half that of
    gradient flow.

    **Arguments:**

    - `loss`: the loss $J$.
    - `damping`: the number $r > 0$. Defaults to 3, Nesterov's own.

    **Raises:**

    `TypeError` if `loss` is not a loss, `ValueError` for a damping that is not positive or no
    scalar.

    ??? cite "Reference"

        Su, Boyd, Candès, *A differential equation for modeling Nesterov's accelerated gradient
        method*, JMLR 17, 2016, Section 1.
    """

    loss: AbstractLoss
    damping: Float[Array, ""]

    def __init__(self, loss: AbstractLoss, damping: Real[ScalarLike, ""] = 3.0) -> None:
        check_loss(loss)
        self.loss = loss
        self.damping = as_positive("damping", damping)

    @property
    def pointwise(self) -> bool:
        return True

    @property
    def exchangeable(self) -> bool:
        return True

    def auxiliary(
        self, gradient: Float[Array, " weights"]
    ) -> tuple[Float[Array, " weights"], Float[Array, ""]]:
        # The velocity over the time, p, is regular at the start, the velocity's equation is not:
        #   tau p' = -(1 + r) p - g.
        # At the start p' = 0, since g changes as tau^2 there.
        return -gradient / (1 + self.damping), jnp.zeros((), gradient.dtype)

    def rates(
        self,
        gradient: Float[Array, " weights"],
        auxiliary: tuple[Float[Array, " weights"], Float[Array, ""]],
    ) -> tuple[Float[Array, " weights"], tuple[Float[Array, " weights"], Float[Array, ""]]]:
        pace, time = auxiliary
        started = time > 0
        rate = jnp.where(started, 1 / jnp.where(started, time, 1), 0)
        change = -((1 + self.damping) * pace + gradient) * rate
        return time * pace, (change, jnp.ones_like(time))

    def resistance(self, auxiliary: tuple[Array, Array], dt: Scalar) -> Float[Array, ""]:
        # The friction at the end of the step, as in an implicit Euler step. At time 0 it is
        # infinite.
        return (1 / dt + self.damping / (auxiliary[1] + dt)) / dt

    def coasting(self, auxiliary: tuple[Array, Array]) -> Float[Array, " weights"]:
        pace, time = auxiliary
        # Without a gradient v falls as tau^{-r}, with the integral tau v / (r - 1). For r <= 1 it
        # is infinite, so that what moves never rests.
        excess = self.damping - 1
        far = jnp.where(excess > 0, time**2 / jnp.where(excess > 0, excess, 1), jnp.inf)
        return jnp.where(pace == 0, 0, pace * far)
