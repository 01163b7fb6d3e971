from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._checks import as_key, as_positive, check_flag, check_integer
from .._typing import ArrayLike, ScalarLike
from ._capabilities import AbstractMapped
from ._init import stable_gaussian
from ._parts import (
    as_activation,
    as_bias,
    as_recurrent,
    check_sizes,
    InputMap,
    random_input,
    random_readout,
    Readout,
)


class NonlinearRNN(AbstractMapped):
    r"""A nonlinear RNN with dense recurrence, for one or several inputs and outputs.

    $$\dot h = \sigma(W h + U x + b) \quad\text{or, leaky,}\quad
      \dot h = -h + \sigma(W h + U x + b), \qquad \hat y = C h.$$

    All four arrays are trained. Starts from $h = 0$ at the first time; `residual` is the
    discretisation $h_{k+1} = h_k + \Delta t\, \sigma(W h_k + U x_k + b)$ of the papers.

    **Arguments:**

    - `recurrent`: the matrix $W$, shape `(width, width)`.
    - `input`: the matrix $U$, shape `(width,)` for scalar inputs or `(width, inputs)`.
    - `bias`: the vector $b$, shape `(width,)`, or `None` for zeros, which are trained too.
    - `readout`: the matrix $C$, shape `(width,)` for scalar outputs or `(outputs, width)`.
    - `activation`: $\sigma$: `"tanh"`, `"hardtanh"`, `"relu"`, `"gelu"`, `"identity"`, or a
        function of an array. A function that is an `equinox.Module` is trained with the rest.
    - `leak`: whether the vector field has the term $-h$. Defaults to `False`.

    **Raises:**

    `ValueError` for entries that are not finite, shapes that do not match, or an unknown
    activation.

    ??? cite "Reference"

        Wang, Li, Li, *Inverse Approximation Theory for Nonlinear Recurrent Neural Networks*,
        ICLR 2024, Section 2.
    """

    recurrent: Float[Array, "width width"]
    drive: InputMap
    bias: Float[Array, " width"]
    output: Readout
    activation: Callable[[Array], Array]
    leak: bool = eqx.field(static=True)

    def __init__(
        self,
        recurrent: Real[ArrayLike, "width width"],
        input: Real[ArrayLike, "width *inputs"],
        bias: Real[ArrayLike, " width"] | None,
        readout: Real[ArrayLike, "*outputs width"],
        activation: str | Callable[[Array], Array] = "tanh",
        leak: bool = False,
    ) -> None:
        self.recurrent = as_recurrent(recurrent)
        self.drive = InputMap(input, self.width)
        self.bias = as_bias(bias, self.width, self.recurrent.dtype)
        self.output = Readout(readout, self.width)
        self.activation = as_activation(activation)
        self.leak = check_flag("leak", leak)

    @classmethod
    def init(
        cls,
        width: int,
        inputs: int | None = None,
        outputs: int | None = None,
        *,
        gain: Real[ScalarLike, ""] = 1.0,
        margin: Real[ScalarLike, ""] = 0.1,
        activation: str | Callable[[Array], Array] = "tanh",
        leak: bool = False,
        key: PRNGKeyArray,
    ) -> "NonlinearRNN":
        r"""A random model with Gaussian weights and biases of 0.

        The recurrent matrix is $g\, G / \sqrt m$ with leak, and that of
        [`memjax.stable_gaussian`][] without, which keeps a hidden state near 0 from growing.

        **Arguments:**

        - `width`: the number $m$ of neurons.
        - `inputs`, `outputs`: how many, or `None` for scalars.
        - `gain`, `margin`: as in [`memjax.stable_gaussian`][]; with leak there is no margin.
        - `activation`, `leak`: as above.
        - `key`: the PRNG key.
        """
        check_integer("width", width)
        check_sizes(inputs, outputs)
        check_flag("leak", leak)
        activation = as_activation(activation)
        gain, margin = as_positive("gain", gain), as_positive("margin", margin)
        first, second, third = jax.random.split(as_key("key", key), 3)
        if leak:
            recurrent = gain * jax.random.normal(first, (width, width)) / jnp.sqrt(width)
        else:
            recurrent = stable_gaussian(width, gain=gain, margin=margin, key=first)
        return cls(
            recurrent,
            random_input(width, inputs, second),
            None,
            random_readout(width, outputs, third),
            activation,
            leak,
        )

    @property
    def width(self) -> int:
        """The number of neurons."""
        return self.recurrent.shape[0]

    def initial_hidden(self) -> Float[Array, " width"]:
        return jnp.zeros(self.width, self.recurrent.dtype)

    def vector_field(
        self, t: Float[Array, ""], hidden: Float[Array, " width"], x: Float[Array, "*inputs"]
    ) -> Float[Array, " width"]:
        slope = self.activation(self.recurrent @ hidden + self.drive(x) + self.bias)
        return slope - hidden if self.leak else slope

    def readout(self, hidden: Float[Array, " width"]) -> Float[Array, "*outputs"]:
        return self.output(hidden)
