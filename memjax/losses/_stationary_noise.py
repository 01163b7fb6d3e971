from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.lax as lax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import as_positive, check_callable, check_integer, is_traced, said
from .._typing import ScalarLike
from ..models import AbstractModel
from ..numerics import last_coefficients, panels, UNRESOLVED
from ..targets import AbstractKernel, StateSpaceKernel
from ._base import AbstractLoss
from ._white_noise import check_target, model_kernel

# The first panel is halved this often towards 0, where kernels of models are steep: of 32 panels
# the shortest is then 1 / 131,072 of the horizon.
_HALVINGS = 12


class StationaryNoiseLoss(AbstractLoss):
    r"""The squared error of a linear model under stationary Gaussian input of any autocovariance.

    The input has mean 0 and autocovariance $C(\tau) = \mathbb{E}\, x_t x_{t+\tau}$,
    independently in each of several inputs. With $e = \hat\rho_\theta - \rho$, summed over
    inputs and outputs,

    $$J(\theta) = \int_0^T \!\! \int_0^T e(s)\, C(s - u)\, e(u) \,ds\,du, \qquad T < \infty.$$

    The horizon is where both kernels are cut off: $J$ is the expected squared error at time $T$
    for an input that is 0 before time 0 and stationary from then on. What the kernels are after
    $T$ does not count. For the error in the stationary state, take a $T$ at which both kernels
    have decayed; doubling it tells how much is left.

    The integral is by Gauss's rule with `nodes` points on each of a number of panels. Their edges
    are `panels` even steps of the horizon, the `breakpoints` of the target, and twelve halvings of
    the first step, for steep decays at time 0. The square of a panel is cut along the diagonal
    and each half mapped to a square (Duffy), so that the kink of $C$ at lag 0 costs no accuracy.
    Panels should not be much longer than the time in which $C$ decays, nor than a few periods of
    the model. The relative error is then about 1e-10 and usually that of rounding. It is up to
    about 1e-6 if $C$ has kinks at other lags, or a root at lag 0, such as
    $e^{-|\tau|^{1/2}}$. Where the panels do not resolve kernels and autocovariance, the loss is
    refused, or NaN under `jax.jit`. Time grows with the square of the number of all nodes, memory
    linearly.

    For $C(\tau) = \sigma^2 e^{-\kappa|\tau|}$, [`memjax.ColouredNoiseLoss`][] has closed forms and
    infinite horizons. Derivatives are by JAX, also those with respect to leaves of an
    autocovariance that is an Equinox module.

    **Arguments:**

    - `target`: the kernel to be learnt, scalar or with several inputs and outputs.
    - `autocovariance`: $C$, a function that acts elementwise on arrays of lags. It is called for
        positive lags only and taken to be even. It must be positive semidefinite, as every
        autocovariance is, which is not checked: if it is not, the loss may be negative.
    - `horizon`: $T$, finite, in units of the model's clock.
    - `panels`: the number of even panels. Defaults to 32.
    - `nodes`: the number of points of the rule, at least 4. Defaults to 16.

    **Raises:**

    `TypeError` if the target is not a kernel, if the autocovariance is not a function or not
    real, or when called if the model has no kernel; `ValueError` for a horizon that is not
    positive and finite, for an autocovariance that does not keep the shape of the lags, for
    numbers that are too small, and when called for a model of other inputs or outputs than the
    target, or if the panels do not resolve the integrand.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation
        and Optimization Analysis*, ICLR 2021, Section 5 (theory, section 3). The rule for the
        diagonal: Duffy, *Quadrature over a Pyramid or Cube of Integrands with a Singularity at
        a Vertex*, SIAM Journal on Numerical Analysis 19, 1982.
    """

    target: AbstractKernel
    autocovariance: Callable[[Float[Array, "..."]], Float[Array, "..."]]
    horizon: Float[Array, ""]
    panels: int = eqx.field(static=True)
    nodes: int = eqx.field(static=True)

    def __init__(
        self,
        target: AbstractKernel,
        autocovariance: Callable[[Float[Array, "..."]], Float[Array, "..."]],
        horizon: Real[ScalarLike, ""],
        *,
        panels: int = 32,
        nodes: int = 16,
    ) -> None:
        check_target(target)
        self.horizon = as_positive("horizon", horizon, "pass a time when the kernels have decayed")
        check_integer("panels", panels)
        check_integer("nodes", nodes, 4)
        _check_autocovariance(autocovariance, self.horizon.dtype)
        self.target = target
        self.autocovariance = autocovariance
        self.panels = panels
        self.nodes = nodes

    @property
    def exchangeable(self) -> bool:
        return True

    def __call__(self, model: AbstractModel) -> Float[Array, ""]:
        value, unresolved, size, magnitude = self._integrals(model)
        # What the error has lost to rounding is noise, which no rule resolves.
        tolerated = UNRESOLVED * size + 64 * jnp.finfo(value.dtype).eps * magnitude
        resolved = ~(unresolved > tolerated)
        if not is_traced(resolved) and not resolved:
            raise ValueError(
                f"`panels` must resolve kernels and autocovariance, got {self.panels} panels of "
                f"{self.nodes} nodes; pass more panels."
            )
        # A factor, since NaN has to reach the derivatives too.
        return value * jnp.where(resolved, 1, jnp.nan)

    def value_noise(self, model: AbstractModel) -> Float[Array, ""]:
        magnitude = self._integrals(model)[3]
        return 16 * jnp.finfo(magnitude.dtype).eps * magnitude

    def _edges(self) -> Float[Array, " edges"]:
        even = jnp.linspace(0, self.horizon, self.panels + 1)
        steep = self.horizon / self.panels * 0.5 ** jnp.arange(1, _HALVINGS + 1)
        # Dense linear models are resolved as those that are trained are.
        points = [
            jnp.clip(entry.breakpoints(), 0, self.horizon)
            for entry in self.target.entries()
            if not isinstance(entry, StateSpaceKernel)
        ]
        return jnp.sort(jnp.concatenate([even, steep, *points]))

    def _integrals(self, model: AbstractModel) -> tuple[Array, Array, Array, Array]:
        # Compiled with the edges as an argument: traced breakpoints would be far more.
        kernel = model_kernel(model, self.target)
        return _integrals(self._edges(), kernel, self.target, self.autocovariance, self.nodes)


@eqx.filter_jit
def _integrals(
    edges: Array,
    kernel: AbstractKernel,
    target: AbstractKernel,
    autocovariance: Callable,
    nodes: int,
) -> tuple[Array, Array, Array, Array]:
    """The loss; of the moduli of what is added up, what panels do not resolve and the sum;
    and that sum without the cancellation of model and target."""
    t, weights = panels(edges, nodes)
    # Below the diagonal of a panel the earlier time runs from its start to the later one, with
    # nodes of its own for each: the kink at lag 0 lies at an end, where Gauss's rule does not feel
    # it.
    starts, widths = edges[:-1, None], jnp.diff(edges)
    own, own_weights = panels(jnp.stack([jnp.broadcast_to(starts, t.shape), t], -1), nodes)
    own, own_weights = own[..., 0, :], own_weights[..., 0, :]

    times = jnp.concatenate([t[..., None], own], axis=-1)
    flat = lambda values: values.reshape(*times.shape, -1)
    ours, theirs = flat(kernel(times)), flat(target(times))
    error, magnitude = ours - theirs, jnp.abs(ours) + jnp.abs(theirs)
    sampled = (error[:, :, 0], magnitude[:, :, 0])

    def covariance(lags: Array, mask: Array | bool) -> Array:
        # Lag 0, in panels of no width, is where roots and logarithms have no derivative.
        safe = mask & (lags > 0)
        return jnp.where(safe, autocovariance(jnp.where(safe, lags, edges[-1])), 0)

    def row(args: tuple) -> tuple[Array, Array, Array, Array]:
        """The contributions of one panel of later times."""
        k, t_k, weights_k, own_k, own_weights_k, (error_k, magnitude_k), below = args
        earlier = (jnp.arange(t.shape[0]) < k)[:, None]
        across = covariance(t_k[:, None, None] - t, earlier)
        within = covariance(t_k[:, None] - own_k, True)

        def form(later: Array, across: Array, others: Array, within: Array, same: Array):
            inner = jnp.einsum("iqj,qj,qjd->id", across, weights, others)
            inner = inner + jnp.einsum("ij,ij,ijd->id", within, own_weights_k, same)
            # The integrand is symmetric: only earlier times are summed.
            return 2 * jnp.einsum("i,id,id->", weights_k, later, inner)

        value = form(error_k, across, sampled[0], within, below[0])
        # Estimates of errors have no derivatives, whose arrays reverse mode would keep.
        detached = lax.stop_gradient((sampled, across, within, error_k, magnitude_k, below))
        (error_q, magnitude_q), across, within, error_k, magnitude_k, below = detached
        moduli = jnp.abs(across), jnp.abs(within)
        error_k = jnp.abs(error_k)
        size = form(error_k, moduli[0], jnp.abs(error_q), moduli[1], jnp.abs(below[0]))
        total = form(magnitude_k, moduli[0], magnitude_q, moduli[1], below[1])

        # What every panel leaves open of the inner integral, at each later time.
        last = last_coefficients(nodes)
        tails = jnp.abs(jnp.einsum("iqj,qjd,jl->iqdl", across, error_q, last))
        tails = jnp.einsum("q,iqdl->id", widths, tails)
        own_tails = jnp.abs(jnp.einsum("ij,ijd,jl->idl", within, below[0], last))
        own_widths = jnp.sum(own_weights_k, axis=-1)
        tails = tails + own_widths[:, None] * jnp.sum(own_tails, axis=-1)
        unresolved = 2 * jnp.einsum("i,id,id->", weights_k, error_k, tails)
        return value, lax.stop_gradient(unresolved), size, total

    below = (error[:, :, 1:], magnitude[:, :, 1:])
    rows = (jnp.arange(t.shape[0]), t, weights, own, own_weights, sampled, below)
    # The matrix of all autocovariances is formed a row of panels at a time, also in reverse.
    value, unresolved, size, total = map(jnp.sum, lax.map(jax.checkpoint(row), rows))
    return value, unresolved, size, total


def _check_autocovariance(autocovariance: Any, dtype: np.dtype) -> None:
    check_callable("autocovariance", autocovariance, "pass a function from lags to covariances")
    try:
        found = jax.eval_shape(autocovariance, jax.ShapeDtypeStruct((2, 3), dtype))
    except Exception as error:
        raise TypeError(
            f"`autocovariance` must map lags to covariances, got an error: {said(error)}"
        ) from error
    if not isinstance(found, jax.ShapeDtypeStruct) or found.shape != (2, 3):
        raise ValueError(
            "`autocovariance` must act elementwise on lags of any shape, got "
            f"{getattr(found, 'shape', found)} for lags of shape (2, 3); use jax.vmap if needed."
        )
    if jnp.issubdtype(found.dtype, jnp.complexfloating):
        raise TypeError(
            f"`autocovariance` must be real, got dtype {found.dtype}; pass its real part."
        )
