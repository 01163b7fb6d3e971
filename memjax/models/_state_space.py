from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real, Shaped

from .._checks import as_key, as_list, check_flag, check_instance, check_same_shape
from .._typing import ArrayLike
from ..reparam import AbstractReparametrisation, Exp
from ._base import AbstractModel
from ._capabilities import (
    AbstractMapped,
    AbstractModal,
    AbstractScannable,
    complex_recurrence,
    DiagonalRecurrence,
    HasScan,
    known_input_shape,
    scans_every_step,
    scans_exactly,
)
from ._diagonal_network import AbstractDiagonalNetwork
from ._parts import (
    as_activation,
    as_modes,
    as_rates,
    check_sizes,
    ComplexInputMap,
    ComplexReadout,
    random_input,
    random_readout,
    Rates,
)


class StateSpaceLayer(AbstractDiagonalNetwork, AbstractScannable):
    r"""A diagonal state-space model whose nonlinearity acts on the hidden state it reads out.

    $$\dot h = -w \odot h + U x + b, \qquad \hat y = C \sigma(h), \qquad w = \varphi(v).$$

    The recurrence is linear, so that sampled inputs can be scanned. The arrays $v$, $U$, $b$ and
    $C$ are trained. Starts from $h = 0$. Stack layers with [`memjax.StateSpaceStack`][].

    **Arguments:**

    - `rates`: the decay rates $w_i > 0$, shape `(width,)`, in units of one over the model's
        clock.
    - `input`: the matrix $U$, shape `(width,)` for scalar inputs or `(width, inputs)`.
    - `bias`: the vector $b$, shape `(width,)`, or `None` for zeros, which are trained too.
    - `readout`: the matrix $C$, shape `(width,)` for scalar outputs or `(outputs, width)`.
    - `activation`: $\sigma$, as in [`memjax.NonlinearRNN`][].
    - `reparametrisation`: the map from free weights to rates. Defaults to [`memjax.Direct`][].

    **Raises:**

    `ValueError` for rates that are not positive, entries that are not finite, shapes that do not
    match, or an unknown activation.

    ??? cite "Reference"

        Wang, Xue, *State-space Models with Layer-wise Nonlinearity are Universal Approximators
        with Exponential Decaying Memory*, NeurIPS 2023.
    """

    def vector_field(
        self, t: Float[Array, ""], hidden: Float[Array, " width"], x: Float[Array, "*inputs"]
    ) -> Float[Array, " width"]:
        return -self.rates * hidden + self.drive(x) + self.bias

    def readout(self, hidden: Float[Array, " width"]) -> Float[Array, "*outputs"]:
        return self.output(self.activation(hidden))

    def _recurrence(self) -> DiagonalRecurrence:
        return DiagonalRecurrence(-self.rates, lambda x: self.drive(x) + self.bias, self.readout)


class LRULayer(AbstractModal, AbstractMapped, AbstractScannable):
    r"""A complex diagonal state-space layer with normalised input, in the manner of LRU and S5.

    $$\dot h = (-w + i \nu) \odot h + \sqrt{2 w} \odot U x, \qquad
      \hat y = \sigma(\operatorname{Re} C h), \qquad w = \varphi(v).$$

    Under white noise every $h_j$ has a variance that does not depend on its rate, and neither
    outputs nor gradients grow with memory: $\sqrt{2w}$ is in continuous time what
    $\sqrt{1 - |\lambda|^2}$ is for a recursion. Trained are $v$, $\nu$ and the real and imaginary
    parts of $U$ and $C$.

    **Arguments:**

    - `rates`: the decay rates $w_j > 0$, shape `(width,)`, in units of one over the model's
        clock.
    - `frequencies`: the angular frequencies $\nu_j$, shape `(width,)`.
    - `input`: the complex or real matrix $U$, shape `(width,)` for scalar inputs or
        `(width, inputs)`.
    - `readout`: the complex or real matrix $C$, shape `(width,)` for scalar outputs or
        `(outputs, width)`.
    - `activation`: $\sigma$, as in [`memjax.NonlinearRNN`][]. Defaults to `"gelu"`.
    - `reparametrisation`: the map from free weights to rates. Defaults to [`memjax.Exp`][].

    **Raises:**

    `ValueError` for rates that are not positive, entries that are not finite, shapes that do not
    match, or an unknown activation.

    ??? cite "Reference"

        Orvieto et al., *Resurrecting Recurrent Neural Networks for Long Sequences*, ICML 2023;
        Smith, Warrington, Linderman, *Simplified State Space Layers for Sequence Modeling*, ICLR
        2023; Zucchet, Orvieto, *Recurrent neural networks: vanishing and exploding gradients are
        not the end of the story*, NeurIPS 2024.
    """

    decays: Rates
    frequencies: Float[Array, " width"]
    drive: ComplexInputMap
    output: ComplexReadout
    activation: Callable[[Array], Array]

    def __init__(
        self,
        rates: Real[ArrayLike, " width"],
        frequencies: Real[ArrayLike, " width"],
        input: Shaped[ArrayLike, "width *inputs"],
        readout: Shaped[ArrayLike, "*outputs width"],
        activation: str | Callable[[Array], Array] = "gelu",
        reparametrisation: AbstractReparametrisation | None = None,
    ) -> None:
        self.decays = Rates(rates, Exp() if reparametrisation is None else reparametrisation)
        self.frequencies = as_modes("frequencies", frequencies)
        check_same_shape("rates", self.free_rates, "frequencies", self.frequencies)
        self.drive = ComplexInputMap(input, self.width)
        self.output = ComplexReadout(readout, self.width)
        self.activation = as_activation(activation)

    @classmethod
    def init(
        cls,
        rates: Real[ArrayLike, " width"],
        frequencies: Real[ArrayLike, " width"],
        inputs: int | None = None,
        outputs: int | None = None,
        *,
        activation: str | Callable[[Array], Array] = "gelu",
        reparametrisation: AbstractReparametrisation | None = None,
        key: PRNGKeyArray,
    ) -> "LRULayer":
        r"""A layer of given eigenvalues with complex Gaussian input and readout weights.

        **Arguments:**

        - `rates`, `frequencies`: the eigenvalues, as those of [`memjax.ring`][] or
            [`memjax.s4d_lin`][].
        - `inputs`, `outputs`: how many, or `None` for scalars.
        - `activation`, `reparametrisation`: as above.
        - `key`: the PRNG key.
        """
        width = as_rates(rates).shape[0]
        check_sizes(inputs, outputs)
        activation = as_activation(activation)
        keys = jax.random.split(as_key("key", key), 4)
        # Two parts of half the variance each make complex numbers of the usual one.
        real, imaginary = (random_input(width, inputs, k) / jnp.sqrt(2) for k in keys[:2])
        readouts = [random_readout(width, outputs, k) for k in keys[2:]]
        return cls(
            rates,
            frequencies,
            jax.lax.complex(real, imaginary),
            jax.lax.complex(*readouts),
            activation,
            reparametrisation,
        )

    def initial_hidden(self) -> Float[Array, "2 width"]:
        """The hidden state at rest: real parts, then imaginary parts."""
        return jnp.zeros((2, self.width), self.free_rates.dtype)

    def vector_field(
        self, t: Float[Array, ""], hidden: Float[Array, "2 width"], x: Float[Array, "*inputs"]
    ) -> Float[Array, "2 width"]:
        rates = self.rates
        turned = jnp.stack([-hidden[1], hidden[0]])
        return -rates * hidden + self.frequencies * turned + self._drive(rates, x)

    def readout(self, hidden: Float[Array, "2 width"]) -> Float[Array, "*outputs"]:
        return self.activation(self.output(hidden))

    def _recurrence(self) -> DiagonalRecurrence:
        rates = self.rates
        drive = lambda x: jax.lax.complex(*self._drive(rates, x))
        return complex_recurrence(rates, self.frequencies, drive, self.readout)

    def _drive(
        self, rates: Float[Array, " width"], x: Float[Array, "*inputs"]
    ) -> Float[Array, "2 width"]:
        # Under white noise of unit intensity E |h|^2 = int e^(-2wt) dt = 1 / (2w).
        return jnp.sqrt(2 * rates) * self.drive(x)


class StateSpaceStack(AbstractModel):
    r"""Layers on top of each other: the output of each is the input of the next.

    $$z_1 = L_1(x), \qquad z_l = L_l(z_{l-1}) + z_{l-1}, \qquad \hat y = z_L,$$

    where the skip connection $+\, z_{l-1}$ is there if asked for and if input and output of the
    layer have the same shape. The first layer has none: it would feed the input itself through,
    which is no functional with a kernel.

    **Arguments:**

    - `layers`: one or more models, first to last, such as [`memjax.StateSpaceLayer`][] and
        [`memjax.LRULayer`][]; any [`memjax.AbstractModel`][] will do.
    - `skip`: whether there are skip connections. Defaults to `True`.

    **Raises:**

    `ValueError` for no layers, `TypeError` for a layer that is no model.

    ??? cite "Reference"

        Wang, Xue, *State-space Models with Layer-wise Nonlinearity are Universal Approximators
        with Exponential Decaying Memory*, NeurIPS 2023.
    """

    layers: tuple[AbstractModel, ...]
    skip: bool = eqx.field(static=True)

    def __init__(self, layers: Sequence[AbstractModel], skip: bool = True) -> None:
        self.layers = tuple(as_list("layers", layers, "models"))
        if not self.layers:
            raise ValueError("`layers` must have at least one layer, got none; pass models.")
        for layer in self.layers:
            hint = "pass instances of memjax.AbstractModel"
            check_instance("layers", layer, AbstractModel, "models", hint)
        self.skip = check_flag("skip", skip)

    def initial_hidden(self) -> tuple[Any, ...]:
        return tuple(layer.initial_hidden() for layer in self.layers)

    def vector_field(self, t: Float[Array, ""], hidden: tuple[Any, ...], x: Array) -> Any:
        inputs = (x, *self._outputs(hidden)[:-1])
        return tuple(
            layer.vector_field(t, h, z)
            for layer, h, z in zip(self.layers, hidden, inputs, strict=True)
        )

    def readout(self, hidden: tuple[Any, ...]) -> Array:
        return self._outputs(hidden)[-1]

    def _outputs(self, hidden: tuple[Any, ...]) -> list[Array]:
        outputs: list[Array] = []
        for layer, h in zip(self.layers, hidden, strict=True):
            outputs.append(self._skipped(layer.readout(h), outputs[-1] if outputs else None))
        return outputs

    def _skipped(self, output: Array, below: Array | None) -> Array:
        if self.skip and below is not None and below.shape == output.shape:
            return output + below
        return output

    def scan(
        self,
        ts: Real[ArrayLike, " times"],
        xs: Real[ArrayLike, "times ..."],
        *,
        interpolation: Literal["linear", "previous"] = "linear",
    ) -> Float[Array, "times ..."]:
        """The outputs for sampled inputs, layer by layer through the `scan` of each.

        Exact for one layer. Those above see the outputs of the layer below at the samples only,
        and interpolate between them in the same way: against calling the model, the error is of
        second order in the step with `"linear"`, and of first order with `"previous"`, which is
        what state-space models in discrete time compute.

        Arguments, returns and errors as in [`memjax.StateSpaceLayer.scan`][].

        **Raises:**

        `TypeError` if a layer has no `scan`.
        """
        outputs = None
        for layer in self.layers:
            if not isinstance(layer, HasScan):
                raise TypeError(
                    f"`layers` must all have a `scan`, got {type(layer).__name__}; call the model "
                    "itself, or use `residual`."
                )
            below = outputs
            outputs = layer.scan(ts, xs if below is None else below, interpolation=interpolation)
            outputs = self._skipped(outputs, below)
        assert outputs is not None
        return outputs


# A stack can do what its layers can.


@scans_every_step.register
def _(model: StateSpaceStack) -> bool:
    return all(map(scans_every_step, model.layers))


@scans_exactly.register
def _(model: StateSpaceStack) -> bool:
    # Layers above the first see samples of what is below, and nothing in between.
    return len(model.layers) == 1 and scans_exactly(model.layers[0])


@known_input_shape.register
def _(model: StateSpaceStack) -> tuple[int, ...] | None:
    return known_input_shape(model.layers[0])
