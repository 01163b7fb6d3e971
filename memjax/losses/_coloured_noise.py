import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import as_positive
from .._typing import ScalarLike
from ..models import AbstractModel
from ..numerics import DECAYS, gauss_rule, gramian, panels, POINTS, resolved
from ..targets import (
    AbstractKernel,
    edges,
    inner_product,
    joint,
    multiple,
    separate,
    state_space,
    StateSpace,
    StateSpaceKernel,
    total,
)
from ._base import AbstractLoss
from ._white_noise import (
    as_loss_horizon,
    check_target,
    finite_if_stable,
    model_kernel,
    squared_norms,
)


class ColouredNoiseLoss(AbstractLoss):
    r"""The squared error of a linear model under coloured, exponentially correlated input.

    The input is stationary with autocovariance $\sigma^2 e^{-\kappa|\tau|}$ (an
    Ornstein-Uhlenbeck process), independently in each of several inputs. With
    $e = \hat\rho_\theta - \rho$, summed over inputs and outputs,

    $$J(\theta) = \sigma^2 \int_0^T \!\! \int_0^T e(s)\, e(u)\, e^{-\kappa|s-u|}
      \,ds\,du, \qquad T \le \infty.$$

    A finite horizon is that of an input which is 0 before time 0 and stationary from then on:
    $J$ is the expected squared error at time $T$. As $\kappa$ grows with
    $\sigma^2 = \kappa / 2$ the loss tends to that of white noise,
    [`memjax.WhiteNoiseLoss`][].

    Where model and target have finite dimension, the noise is one more state and $J$ the
    solution of a Lyapunov equation. With an infinite horizon, the model's part of the loss for
    other targets is an inner product with the model's kernel filtered by the autocovariance,
    which has finite dimension too; what the target alone contributes is integrated by
    collocation on the panels of [`memjax.inner_product`][], to about 1e-10. With a finite
    horizon, targets must have finite dimension; [`memjax.StationaryNoiseLoss`][] takes all
    others. Derivatives are by JAX.

    With an infinite horizon the loss of an unstable model is infinite.

    **Arguments:**

    - `target`: the kernel to be learnt, scalar or with several inputs and outputs.
    - `correlation_rate`: $\kappa > 0$, in units of one over time.
    - `sigma`: the standard deviation $\sigma > 0$ of the input. Defaults to 1.
    - `horizon`: $T$, in units of the model's clock; infinity, for which `None` stands too, is the
        default.

    **Raises:**

    `TypeError` if the target is not a kernel, or when called if the model has none or one of
    infinite dimension; `ValueError` for a rate, deviation or horizon that is not positive, for an
    infinite horizon with a target that is not square integrable, for a finite one with a target
    that has no state space, and when called for a model of other inputs or outputs than the
    target.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation
        and Optimization Analysis*, ICLR 2021, Section 5 (theory, section 3).
    """

    target: AbstractKernel
    correlation_rate: Float[Array, ""]
    sigma: Float[Array, ""]
    horizon: Float[Array, ""] | None

    def __init__(
        self,
        target: AbstractKernel,
        correlation_rate: Real[ScalarLike, ""],
        sigma: Real[ScalarLike, ""] = 1.0,
        horizon: Real[ScalarLike, ""] | None = jnp.inf,
    ) -> None:
        check_target(target)
        self.correlation_rate = as_positive("correlation_rate", correlation_rate)
        self.sigma = as_positive("sigma", sigma)
        self.horizon = as_loss_horizon(target, horizon)
        if self.horizon is not None and state_space(target) is None:
            raise ValueError(
                "`horizon` must be infinite for a target without a state space, got "
                f"{type(target).__name__}; use memjax.StationaryNoiseLoss."
            )
        self.target = target

    @property
    def exchangeable(self) -> bool:
        return True

    def __call__(self, model: AbstractModel) -> Float[Array, ""]:
        kernel = model_kernel(model, self.target)
        systems = state_space(kernel), state_space(self.target)
        if systems[0] is None:
            raise TypeError(
                "`model` must have a kernel of finite dimension, got "
                f"{type(kernel).__name__}; use memjax.StationaryNoiseLoss."
            )
        if systems[1] is not None:
            value = self._state_space_loss(systems[0] + -1.0 * systems[1])
        else:
            pairs = zip(kernel.entries(), self.target.entries(), strict=True)
            value = total(self._scalar_loss(*pair) for pair in pairs)
        return finite_if_stable(self.sigma**2 * value, kernel, self.horizon)

    def value_noise(self, model: AbstractModel) -> Float[Array, ""]:
        # The spectrum of the input, 2 sigma^2 kappa / (kappa^2 + nu^2), nowhere exceeds that of
        # white noise of this intensity.
        kernel = model_kernel(model, self.target)
        size = squared_norms(kernel, self.target, self.horizon)
        intensity = 2 * self.sigma**2 / self.correlation_rate
        return 16 * jnp.finfo(size.dtype).eps * intensity * size

    def _noise(self, inputs: int) -> StateSpace:
        """The noise as a system that is driven by white noise, but for its strength."""
        unit = jnp.eye(inputs, dtype=self.correlation_rate.dtype)
        return StateSpace(-self.correlation_rate * unit, unit, unit)

    def _state_space_loss(self, error: StateSpace) -> Array:
        """The loss of an error kernel, for sigma = 1, the noise as further states."""
        w, drive, c = driven = error.after(self._noise(error.input.shape[1]))
        # Driven by white noise of intensity 2 kappa, the noise has the variance
        # 2 kappa int e^(-2 kappa t) dt = 1.
        strength = 2 * self.correlation_rate * drive @ drive.T
        value = jnp.sum((c @ gramian(w, w.T, strength, self.horizon)) * c)
        if self.horizon is not None:
            # The noise is stationary already at the start. Its covariance there, B B^T with the
            # input B of the system, has become e^(WT) B B^T e^(W^T T) at the horizon.
            value = value + jnp.sum(driven(self.horizon) ** 2)
        return value

    def _scalar_loss(self, kernel: AbstractKernel, target: AbstractKernel) -> Array:
        """The loss over the half line of one input and one output, for sigma = 1."""
        (own, _), (shared, rest) = separate(kernel), separate(target)
        error = state_space(joint(own + [(-factor, term) for factor, term in shared]))
        assert error is not None
        value = self._state_space_loss(error)
        if not rest:
            return value
        # With the error e of finite dimension, the rest r of the target, and K the convolution with
        # the autocovariance, J(e - r) = J(e) - 2 <K e, r> + J(r).
        filtered = self._filtered(error)
        for factor, term in rest:
            value = value - 2 * factor * inner_product(filtered, term)
        others = [multiple(factor, term) for factor, term in rest]
        return value + self._remainder_loss(sum(others[1:], others[0]))

    def _filtered(self, error: StateSpace) -> StateSpaceKernel:
        r"""The kernel $\int_0^\infty e^{-\kappa|t-s|} \rho(s) ds$ for $t \ge 0$."""
        # What comes after t is C e^(Wt) (kappa - W)^(-1) U. What came before it is the convolution
        # with e^(-kappa t): the output of the system behind a noise that starts from 1. Both start
        # together as one system.
        shifted = self.correlation_rate * jnp.eye(error.recurrent.shape[0]) - error.recurrent
        later = jnp.linalg.solve(shifted, error.input)
        w, _, c = error.after(self._noise(1))
        return StateSpaceKernel(w, jnp.append(later, 1.0), c[0])

    def _remainder_loss(self, kernel: AbstractKernel) -> Array:
        r"""The loss of a kernel of any kind, by collocation of $\dot f = -\kappa f + \rho$."""
        rate = self.correlation_rate
        coarse = edges((kernel,), None)
        # After every point of the kernel the filtered one relaxes at the rate kappa. Where that is
        # fast, only panels of its own resolve it.
        decays = coarse[:, None] + DECAYS / rate
        t, weights = panels(jnp.sort(jnp.minimum(decays.ravel(), coarse[-1])))
        rho = kernel(t)
        widths = jnp.sum(weights, axis=-1)[:, None, None]
        # In integrated form, f = f(start) + int (-kappa f + rho), the system of a short panel is
        # near the identity; one for the slopes would be badly conditioned. It is linear in
        # f(start): all panels are solved at once, and the scan carries a single number.
        system = jnp.eye(POINTS) + rate * widths * _INTEGRATION
        drive = widths * _INTEGRATION @ rho[..., None]
        ones = jnp.ones_like(drive)
        from_start, from_drive = jnp.moveaxis(
            jnp.linalg.solve(system, jnp.concatenate([ones, drive], axis=-1)), -1, 0
        )

        def move(start: Array, panel: tuple[Array, Array]) -> tuple[Array, Array]:
            values = start * panel[0] + panel[1]
            # The end of the polynomial: the sum over its slopes would magnify rounding.
            return _END[0] * start + _END[1:] @ values, values

        start = jnp.zeros((), rho.dtype)
        values = jax.lax.scan(move, start, (from_start, from_drive))[1]
        # The double integral is symmetric, and f holds the earlier half of it.
        return 2 * resolved(rho * values, weights)


def _collocation() -> tuple[np.ndarray, np.ndarray]:
    """On [0, 1], the integrals from 0 to every node of the polynomial through the nodes, and
    the value at 1 of the one through 0 and the nodes."""
    legendre = np.polynomial.legendre
    nodes, _ = gauss_rule(POINTS)
    # At Gauss's nodes Legendre polynomials are orthogonal but for weights: the condition number of
    # this matrix is 10.
    coefficients = np.linalg.inv(legendre.legvander(nodes, POINTS - 1))
    integrals = np.stack([legendre.legint(row, lbnd=-1) for row in np.eye(POINTS)])
    integration = legendre.legval(nodes, (coefficients.T @ integrals).T).T / 2
    points = np.append(-1.0, nodes)
    end = np.array(
        [np.prod([(1 - q) / (p - q) for q in points if q != p]) for p in points], dtype=float
    )
    return integration, end


_INTEGRATION, _END = _collocation()
