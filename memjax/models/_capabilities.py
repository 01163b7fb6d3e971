"""What models can do besides being integrated, and how they say so."""

import abc
import functools
from collections.abc import Callable
from typing import Any, Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Inexact, Real

from .._deprecation import warn_deprecated
from .._typing import ArrayLike
from ..reparam import AbstractReparametrisation
from ._base import AbstractModel
from ._parts import Rates
from ._scan import scan_diagonal

# Protocols, not base classes: a model of one's own has a capability by having the method.


@runtime_checkable
class HasKernelDisplacement(Protocol):
    """A model with an exponential sum as its kernel, of which it knows without cancellation how
    amplitudes and rates change with the weights."""

    def kernel_displacement(self, displacement: Any) -> tuple[Array, Array]: ...


@runtime_checkable
class HasScan(Protocol):
    """A model that computes its outputs for sampled inputs without a solver."""

    def scan(self, ts: Any, xs: Any, *, interpolation: Any = ...) -> Array: ...


@runtime_checkable
class HasInputShape(Protocol):
    """A model that says what one sample of its input is like: `()` for a scalar, `(inputs,)`."""

    @property
    def input_shape(self) -> tuple[int, ...]: ...


@runtime_checkable
class HasRates(Protocol):
    """A model, or a part of one, with decay rates behind a reparametrisation."""

    @property
    def free_rates(self) -> Array: ...

    @property
    def reparametrisation(self) -> AbstractReparametrisation: ...


@functools.singledispatch
def scans_every_step(model: Any) -> bool:
    """Whether the model can be scanned, its parts included."""
    return isinstance(model, AbstractModel) and isinstance(model, HasScan)


@functools.singledispatch
def scans_exactly(model: Any) -> bool:
    """Whether the scan of the model is what calling it would give, for interpolated inputs."""
    return scans_every_step(model)


@functools.singledispatch
def known_input_shape(model: Any) -> tuple[int, ...] | None:
    """The shape of one sample of the model's input, or `None` if it does not say."""
    if isinstance(model, HasInputShape):
        return model.input_shape
    weights = getattr(model, "input", None) if isinstance(model, AbstractModel) else None
    if weights is None or not eqx.is_array(weights):
        return None
    warn_deprecated("the input shape of a model by a field `input`", "a property `input_shape`")
    return weights.shape[1:]


class AbstractModal(AbstractModel):
    """A model of modes with decay rates behind a reparametrisation."""

    decays: eqx.AbstractVar[Rates]

    @property
    def width(self) -> int:
        """The number of modes: neurons, or conjugate pairs."""
        return self.decays.free_rates.shape[0]

    @property
    def rates(self) -> Float[Array, "*models width"]:
        """The decay rates $w$, shape `(width,)`; of a batch of models, such as a solution of
        Diffrax holds, the shape of the batch comes first."""
        return self.decays()

    @property
    def free_rates(self) -> Float[Array, "*models width"]:
        """The free weights $v$ of the rates, of the same shape."""
        return self.decays.free_rates

    @property
    def reparametrisation(self) -> AbstractReparametrisation:
        """The map from free weights to rates."""
        return self.decays.reparametrisation


class AbstractMapped(AbstractModel):
    """A model with matrices for one or several inputs and outputs."""

    # An input map and a readout, real or complex: a model says which.
    drive: eqx.AbstractVar[Any]
    output: eqx.AbstractVar[Any]

    @property
    def input(self) -> Float[Array, "..."]:
        """The matrix $U$; of a complex one real parts, then imaginary parts."""
        return self.drive.input

    @property
    def readout_weights(self) -> Float[Array, "..."]:
        """The matrix $C$; of a complex one real parts, then imaginary parts."""
        return self.output.readout_weights

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample of the input."""
        return self.drive.input_shape


class DiagonalRecurrence(eqx.Module):
    r"""The recurrence $\dot h = \lambda h + u(x)$ of a model, and what it reads out of $h$."""

    eigenvalues: Inexact[Array, " width"]
    drive: Callable[[Array], Array]
    readout: Callable[[Array], Array]


class AbstractScannable(AbstractModel):
    """A model with diagonal linear recurrence, whose steps are exact for sampled inputs."""

    @abc.abstractmethod
    def _recurrence(self) -> DiagonalRecurrence:
        """The recurrence, with what does not depend on the input computed once."""

    def scan(
        self,
        ts: Real[ArrayLike, " times"],
        xs: Real[ArrayLike, "times ..."],
        *,
        interpolation: Literal["linear", "previous"] = "linear",
    ) -> Float[Array, "times ..."]:
        """The outputs for sampled inputs, exactly in every step, by an associative scan.

        The same as calling the model, without a solver and its tolerances. Memory is linear in
        the number of times, and small beside that of the hidden states, which are not kept.

        **Arguments:**

        - `ts`: increasing times, shape `(times,)`, even or not. Steps are their differences in the
            precision in which they are given, a NumPy array's being float64 whatever JAX's is;
            of times that are even to their rounding there is one, exactly.
        - `xs`: the inputs at `ts`, shape `(times,)`, or `(times, inputs)` where there are several.
        - `interpolation`: `"linear"`, or `"previous"` (held constant until the next sample).

        **Returns:**

        The outputs at `ts`, shape `(times,)`, or `(times, outputs)` where there are several,
        starting from rest at `ts[0]`.

        **Raises:**

        `ValueError` if `ts` does not increase or does not match `xs`, for uneven times whose
        rounding is more than 0.2 % of a step (traced ones give NaN), or for another
        interpolation; `TypeError` if `xs` is a function.
        """
        how = self._recurrence()
        return scan_diagonal(how.eigenvalues, ts, xs, interpolation, how.drive, how.readout)


def complex_recurrence(
    rates: Float[Array, " width"],
    frequencies: Float[Array, " width"],
    drive: Callable[[Array], Array],
    readout: Callable[[Array], Array],
) -> DiagonalRecurrence:
    """That of a hidden state whose real and imaginary parts are stacked, in complex numbers."""
    return DiagonalRecurrence(
        jax.lax.complex(-rates, frequencies),
        drive,
        lambda hidden: readout(jnp.stack([hidden.real, hidden.imag])),
    )
