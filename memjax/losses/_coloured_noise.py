import functools
import operator

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Real

from .._checks import as_positive
from .._typing import ScalarLike
from ..models import AbstractModel
from ..numerics import DECAYS, exponential_action, gauss_rule, gramian, panels, POINTS, resolved
from ..targets import (
    AbstractKernel,
    edges,
    entries,
    inner_product,
    join,
    joint,
    Kernel,
    KernelSum,
    ScaledKernel,
    separate,
    state_space,
    StateSpaceKernel,
)
from ._base import AbstractLoss
from ._function import FunctionLoss
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

    target: Kernel
    correlation_rate: Float[Array, ""]
    sigma: Float[Array, ""]
    horizon: Float[Array, ""] | None

    def __init__(
        self,
        target: Kernel,
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
            error = join([(1.0, systems[0]), (-1.0, systems[1])])
            value = self._state_space_loss(*error)
        else:
            pairs = zip(entries(kernel), entries(self.target), strict=True)
            value = functools.reduce(operator.add, [self._scalar_loss(*pair) for pair in pairs])
        return finite_if_stable(self.sigma**2 * value, kernel, self.horizon)

    def gradient(
        self, model: AbstractModel, displacement: PyTree[Array] | None = None
    ) -> PyTree[Array]:
        return FunctionLoss(self).gradient(model, displacement)

    def gradient_noise(
        self, model: AbstractModel, displacement: PyTree[Array] | None = None
    ) -> PyTree[Array]:
        return FunctionLoss(self).gradient_noise(model, displacement)

    def value_noise(self, model: AbstractModel) -> Float[Array, ""]:
        # The spectrum of the input nowhere exceeds that of white noise of this intensity.
        kernel = model_kernel(model, self.target)
        size = squared_norms(kernel, self.target, self.horizon)
        intensity = 2 * self.sigma**2 / self.correlation_rate
        return 16 * jnp.finfo(size.dtype).eps * intensity * size

    def _state_space_loss(self, w: Array, u: Array, c: Array) -> Array:
        """The loss of an error kernel $C e^{Wt} U$, for sigma = 1, the noise as further states."""
        inputs = u.shape[1]
        noise = jnp.eye(inputs, dtype=w.dtype)
        below = jnp.zeros((inputs, w.shape[0]), w.dtype)
        w = jnp.block([[w, u], [below, -self.correlation_rate * noise]])
        drive = jnp.concatenate([below.T, noise])
        c = jnp.concatenate([c, jnp.zeros((c.shape[0], inputs), c.dtype)], axis=1)
        strength = 2 * self.correlation_rate * drive @ drive.T
        value = jnp.sum((c @ gramian(w, w.T, strength, self.horizon)) * c)
        if self.horizon is not None:
            # The noise is stationary already at the start.
            value = value + jnp.sum((c @ exponential_action(w, drive, self.horizon[None])[0]) ** 2)
        return value

    def _scalar_loss(self, kernel: Kernel, target: Kernel) -> Array:
        """The loss over the half line of one input and one output, for sigma = 1."""
        (own, _), (shared, rest) = separate(kernel), separate(target)
        error = joint(own + [(-factor, term) for factor, term in shared])
        system = state_space(error)
        assert system is not None
        value = self._state_space_loss(*system)
        if not rest:
            return value
        filtered = self._filtered(*system)
        for factor, term in rest:
            value = value - 2 * factor * inner_product(filtered, term)
        scaled = tuple(ScaledKernel(term, factor) for factor, term in rest)  # pyright: ignore
        return value + self._remainder_loss(KernelSum(scaled))

    def _filtered(self, w: Array, u: Array, c: Array) -> StateSpaceKernel:
        r"""The kernel $\int_0^\infty e^{-\kappa|t-s|} \rho(s) ds$ for $t \ge 0$."""
        size = w.shape[0]
        # What comes after t, and what came before it, which is a convolution.
        later = jnp.linalg.solve(self.correlation_rate * jnp.eye(size) - w, u)
        w = jnp.block([[w, u], [jnp.zeros((1, size)), -self.correlation_rate[None, None]]])
        return StateSpaceKernel(w, jnp.append(later, 1.0), jnp.append(c, 0.0))

    def _remainder_loss(self, kernel: AbstractKernel) -> Array:
        r"""The loss of a kernel of any kind, by collocation of $\dot f = -\kappa f + \rho$."""
        rate = self.correlation_rate
        coarse = edges((kernel,), None)
        decays = coarse[:, None] + DECAYS / rate
        t, weights = panels(jnp.sort(jnp.minimum(decays.ravel(), coarse[-1])))
        rho = kernel(t)
        widths = jnp.sum(weights, axis=-1)[:, None, None]
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
        return 2 * resolved(rho * values, weights)


def _collocation() -> tuple[np.ndarray, np.ndarray]:
    """On [0, 1], the integrals from 0 to every node of the polynomial through the nodes, and
    the value at 1 of the one through 0 and the nodes."""
    legendre = np.polynomial.legendre
    nodes, _ = gauss_rule(POINTS)
    coefficients = np.linalg.inv(legendre.legvander(nodes, POINTS - 1))
    integrals = np.stack([legendre.legint(row, lbnd=-1) for row in np.eye(POINTS)])
    integration = legendre.legval(nodes, (coefficients.T @ integrals).T).T / 2
    points = np.append(-1.0, nodes)
    end = np.array(
        [np.prod([(1 - q) / (p - q) for q in points if q != p]) for p in points], dtype=float
    )
    return integration, end


_INTEGRATION, _END = _collocation()
