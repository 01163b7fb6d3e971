import jax.numpy as jnp
import lineax as lx
from jaxtyping import Array, Float, Scalar

from .._checks import check_instance
from ..losses import AbstractLoss
from ._base import AbstractFlow, check_loss


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

    def __check_init__(self) -> None:
        check_loss(self.loss)

    @property
    def descends(self) -> bool:
        return True

    @property
    def pointwise(self) -> bool:
        return True

    @property
    def exchangeable(self) -> bool:
        return True

    def auxiliary(self, gradient: Float[Array, " weights"]) -> None:
        return None

    def rates(
        self, gradient: Float[Array, " weights"], auxiliary: None
    ) -> tuple[Float[Array, " weights"], None]:
        return -gradient, None

    def resistance(self, auxiliary: None, dt: Scalar) -> Float[Array, ""]:
        return 1 / dt

    def coasting(self, auxiliary: None) -> Float[Array, ""]:
        return jnp.zeros(())


class PreconditionedFlow(AbstractFlow):
    r"""Preconditioned gradient flow $d\theta/d\tau = -A^{-1} \nabla J(\theta)$.

    With the metric of a model family for $A$, such as the Gauss-Newton matrix at the start,
    it is a natural gradient flow with a fixed metric.

    **Arguments:**

    - `loss`: the loss $J$.
    - `operator`: $A$, a Lineax operator over the flat vector of the trained weights, positive
        definite. The weights are in the order of `jax.flatten_util.ravel_pytree` of
        `equinox.filter(model, memjax.trainable(model))`; of a complex array the real parts come
        first, then the imaginary parts.

    **Raises:**

    `TypeError` if `loss` is not a loss or `operator` not a Lineax operator; `ValueError` when
    started, if the operator does not act on the trained weights.

    ??? cite "Reference"

        Amari, *Natural gradient works efficiently in learning*, Neural Computation 10, 1998.
    """

    loss: AbstractLoss
    operator: lx.AbstractLinearOperator

    def __check_init__(self) -> None:
        check_loss(self.loss)
        hint = "pass for example lineax.DiagonalLinearOperator(scales)"
        check_instance(
            "operator", self.operator, lx.AbstractLinearOperator, "a Lineax operator", hint
        )

    @property
    def descends(self) -> bool:
        return True

    def auxiliary(self, gradient: Float[Array, " weights"]) -> None:
        if self.operator.in_size() != gradient.size or self.operator.out_size() != gradient.size:
            raise ValueError(
                f"`operator` must act on the {gradient.size} trained weights, got one of "
                f"{self.operator.out_size()} by {self.operator.in_size()}; match the model."
            )
        return None

    def rates(
        self, gradient: Float[Array, " weights"], auxiliary: None
    ) -> tuple[Float[Array, " weights"], None]:
        return -lx.linear_solve(self.operator, gradient).value, None

    def resistance(self, auxiliary: None, dt: Scalar) -> Float[Array, "weights weights"]:
        return self.operator.as_matrix() / dt

    def coasting(self, auxiliary: None) -> Float[Array, ""]:
        return jnp.zeros(())
