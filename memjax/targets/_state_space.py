from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real

from .._checks import as_finite_array, as_number
from .._paths import as_samples
from .._typing import ArrayLike
from ..numerics import decay_time
from ._base import AbstractKernel
from ._exponential import ExponentialSum
from ._product import oscillation_points, product_without_a_form, register_inner_product
from ._sampled import SampledKernel
from ._sums import KernelSum
from ._system import check_stable, state_space, StateSpace
from ._target import AbstractTarget, Memory


class StateSpaceKernel(AbstractKernel):
    r"""The kernel of a dense linear model, $\rho(t) = C e^{Wt} U$ for $t \ge 0$.

    It is the functional $\dot h = W h + U x$, $y = C h$. Its transform is
    $R(s) = C (s - W)^{-1} U$. Sums of it and of what else has a state space, of equal shape, are
    of its kind again, and so are its multiples; a scalar one adds to all kernels.

    **Arguments:**

    - `recurrent`: the matrix $W$, shape `(m, m)`, every eigenvalue of which has a negative
        real part, in units of one over time.
    - `input`: the matrix $U$, shape `(m, d)`, or `(m,)` for a scalar input.
    - `readout`: the matrix $C$, shape `(p, m)`, or `(m,)` for a scalar output.

    **Raises:** `ValueError` for an eigenvalue on or to the right of the imaginary axis, for
    shapes that do not fit, and for NaN or infinity.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 3 (theory, section 1).
    """

    memory: ClassVar[Memory] = "exponential"

    recurrent: Float[Array, "hidden hidden"]
    input: Float[Array, "hidden ..."]
    readout: Float[Array, "... hidden"]

    def __init__(
        self,
        recurrent: Real[ArrayLike, "..."],
        input: Real[ArrayLike, "..."],
        readout: Real[ArrayLike, "..."],
    ) -> None:
        recurrent = as_finite_array("recurrent", recurrent)
        input = as_finite_array("input", input)
        readout = as_finite_array("readout", readout)
        if recurrent.ndim != 2 or recurrent.shape[0] != recurrent.shape[1]:
            raise ValueError(
                f"`recurrent` must be a square matrix, got shape {recurrent.shape}; "
                "pass W of shape (m, m)."
            )
        width = recurrent.shape[0]
        if input.ndim not in (1, 2) or input.shape[0] != width:
            raise ValueError(
                f"`input` must have shape ({width},) or ({width}, d), got {input.shape}; "
                "pass one row per hidden unit."
            )
        if readout.ndim not in (1, 2) or readout.shape[-1] != width:
            raise ValueError(
                f"`readout` must have shape ({width},) or (p, {width}), got {readout.shape}; "
                "pass one column per hidden unit."
            )
        check_stable(recurrent)
        self.recurrent = recurrent
        self.input = input
        self.readout = readout

    @property
    def system(self) -> StateSpace:
        """The state space, where scalar inputs and outputs have size 1."""
        width = self.recurrent.shape[0]
        inputs, readout = self.input.reshape(width, -1), self.readout.reshape(-1, width)
        return StateSpace(self.recurrent, inputs, readout)

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        outputs = self.readout.shape[0] if self.readout.ndim == 2 else None
        return outputs, self.input.shape[1] if self.input.ndim == 2 else None

    def entries(self) -> tuple[AbstractKernel, ...]:
        if self.shape == ():
            return (self,)
        system = self.system
        return tuple(
            StateSpaceKernel(self.recurrent, u, c) for c in system.readout for u in system.input.T
        )

    def decays(self) -> Bool[Array, ""]:
        return jnp.isfinite(decay_time(self.recurrent))

    def breakpoints(self) -> Float[Array, " points"]:
        return self._panels(self.support())[0]

    def support(self) -> Float[Array, ""]:
        return decay_time(self.recurrent)

    def _panels(self, end: Array) -> tuple[Array, bool]:
        find = lambda recurrent: np.linalg.eigvals(recurrent).imag
        return oscillation_points(self.recurrent, find, end)

    def _value(self, t: Array) -> Array:
        return self._shaped(self.system(t))

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        return self._shaped(self.system.laplace(s, horizon))

    def _squared_norm(self, horizon: Array | None) -> Array:
        return self.system.inner_product(self.system, horizon)

    def _heaviside_response(self, t: Array) -> Array:
        return self._shaped(self.system.integral(t))

    def _ramp_response(self, t: Array) -> Array:
        step = self.system.integral
        # One integrator more for each response, so that all are one matrix exponential.
        ramp = step.integral
        # Beyond the reach of exponentials it is a straight line.
        inner = jnp.minimum(t, ramp.reach)
        return self._shaped(ramp(inner) + step(inner) * (t - inner)[..., None, None])

    def response(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, "times ..."]
    ) -> Float[Array, "times ..."]:
        # Times go on as they were given.
        times, xs = as_samples(ts, xs, self.sizes[1])
        ys = self.system.response(ts, xs.reshape(times.size, -1))
        return ys.reshape(times.size, *self.readout.shape[:-1])

    def __add__(self, other: object) -> AbstractKernel:
        if not isinstance(other, AbstractKernel):
            return NotImplemented
        system = state_space(other)
        if system is None:
            return KernelSum((self, other))
        if other.shape != self.shape:
            raise ValueError(
                f"kernels that are added must have the same shape, got {self.shape} and "
                f"{other.shape}; add entry by entry what belongs together."
            )
        return self._like(self.system + system)

    def __radd__(self, other: object) -> AbstractKernel:
        if not isinstance(other, AbstractKernel):
            return super().__radd__(other)
        return KernelSum((other, self)) if state_space(other) is None else self + other

    def __mul__(self, factor: object) -> AbstractKernel:
        if isinstance(factor, AbstractTarget):
            return NotImplemented
        return self._like(as_number("factor", factor) * self.system)

    def _like(self, system: StateSpace) -> "StateSpaceKernel":
        """A system as a kernel of the same shape."""
        inputs = system.input.reshape(-1, *self.input.shape[1:])
        readout = system.readout.reshape(*self.readout.shape[:-1], -1)
        return StateSpaceKernel(system.recurrent, inputs, readout)

    def _shaped(self, values: Array) -> Array:
        return values.reshape(*values.shape[:-2], *self.shape)


@state_space.register(StateSpaceKernel)
def _(kernel: StateSpaceKernel) -> StateSpace:
    return kernel.system


# Exponentials too are resolved by Sylvester's equation beside it, and samples by quadrature, to
# rounding of the integral of the modulus.
for _kind in (ExponentialSum, SampledKernel, AbstractKernel):
    register_inner_product(StateSpaceKernel, _kind)(product_without_a_form)
