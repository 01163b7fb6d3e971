import jax.numpy as jnp
from jaxtyping import Array, Float, Real, Scalar

from .._checks import as_positive, as_positive_array
from .._typing import ScalarLike
from ..losses import AbstractLoss
from ._base import AbstractFlow, check_loss


class Adam(AbstractFlow):
    r"""Adam in continuous time.

    $$\dot\theta = -\frac{m}{\sqrt{v} + \varepsilon}, \qquad
      \dot m = \frac{\nabla J - m}{t_1 (1 - e^{-\tau/t_1})}, \qquad
      \dot v = \frac{(\nabla J)^2 - v}{t_2 (1 - e^{-\tau/t_2})},$$

    the averages with Adam's correction of their bias. Training time is the learning rate
    times the number of updates, so that the averaging times of a discrete run are
    $t_k = \eta / (1 - \beta_k)$. The weights move at unit speed until the gradients fall
    under $\varepsilon$: that is where the plateau returns.

    **Arguments:**

    - `loss`: the loss $J$.
    - `epsilon`: $\varepsilon > 0$. Defaults to 1e-8.
    - `averaging_times`: $(t_1, t_2)$, in units of training time. Default to those of
        $\beta = (0.9, 0.999)$ at the learning rate 1e-3, $(0.01, 1)$.

    **Raises:**

    `TypeError` if `loss` is not a loss, `ValueError` for an epsilon or times that are not positive,
    or of another shape.

    ??? cite "Reference"

        Kingma, Ba, *Adam: A method for stochastic optimization*, ICLR 2015; Barakat, Bianchi,
        *Convergence and dynamical behavior of the ADAM algorithm for nonconvex stochastic
        optimization*, SIAM Journal on Optimization 31, 2021, for the differential equation.
    """

    loss: AbstractLoss
    epsilon: Float[Array, ""]
    averaging_times: Float[Array, "2"]

    def __init__(
        self,
        loss: AbstractLoss,
        epsilon: Real[ScalarLike, ""] = 1e-8,
        averaging_times: tuple[float, float] | Float[Array, "2"] = (0.01, 1.0),
    ) -> None:
        check_loss(loss)
        self.loss = loss
        self.epsilon = as_positive("epsilon", epsilon)
        self.averaging_times = as_positive_array("averaging_times", averaging_times)
        if self.averaging_times.shape != (2,):
            raise ValueError(
                "`averaging_times` must be two times, got shape "
                f"{self.averaging_times.shape}; pass that of the mean and that of the square."
            )

    @property
    def pointwise(self) -> bool:
        return True

    @property
    def exchangeable(self) -> bool:
        return True

    def auxiliary(self, gradient: Float[Array, " weights"]) -> dict[str, Array]:
        # In units of the first gradient, so that tolerances mean the same for both averages.
        # The unit is kept in the state, where it does not move: a flow has no other place for what
        # depends on its start.
        unit = jnp.sqrt(jnp.sum(gradient**2))
        unit = jnp.where(unit > 0, unit, 1)
        scaled = gradient / unit
        zero = jnp.zeros((), gradient.dtype)
        return {"unit": unit, "mean": scaled, "square": scaled**2, "time": zero}

    def rates(
        self, gradient: Float[Array, " weights"], auxiliary: dict[str, Array]
    ) -> tuple[Float[Array, " weights"], dict[str, Array]]:
        mean, square, unit = (auxiliary[k] for k in ("mean", "square", "unit"))
        scaled = gradient / unit
        velocity = -mean / (_root(square) + self.epsilon / unit)
        return velocity, {
            "unit": jnp.zeros_like(unit),
            "mean": self._towards(scaled - mean, 0, auxiliary["time"]),
            "square": self._towards(scaled**2 - square, 1, auxiliary["time"]),
            "time": jnp.ones_like(unit),
        }

    def _towards(self, distance: Array, which: int, time: Scalar) -> Array:
        """The pace of an average; at the start it is all there is to average."""
        # From t m' = g - m, the corrected average M = m / (1 - e^{-tau / t}) obeys
        #   M' = (g - M) / (t (1 - e^{-tau / t})).
        # `expm1` keeps the digits of short times. At time 0 M = g, and this is 0 / 0. The limit,
        # half the derivative of g, cannot be had from the gradient alone; 0 stands in for it.
        span = -self.averaging_times[which] * jnp.expm1(-time / self.averaging_times[which])
        return distance * jnp.where(time > 0, 1 / jnp.where(time > 0, span, 1), 0)

    def resistance(self, auxiliary: dict[str, Array], dt: Scalar) -> Float[Array, " weights"]:
        # From an implicit Euler step with the square held: t_1 (m - m_0) / dt = e - m and (theta -
        # theta_0) / dt = -m / size.
        unit = auxiliary["unit"]
        size = unit * _root(auxiliary["square"]) + self.epsilon
        return size * (1 + self.averaging_times[0] / dt) / dt

    def coasting(self, auxiliary: dict[str, Array]) -> Float[Array, " weights"]:
        # Without a gradient m decays as e^{-tau / t_1}, with the integral t_1 m.
        unit = auxiliary["unit"]
        size = _root(auxiliary["square"]) + self.epsilon / unit
        return self.averaging_times[0] * auxiliary["mean"] / size


def _root(square: Array) -> Array:
    # A step may end a little below zero, and the root has no derivative at it.
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1)), 0)
