from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._checks import as_key
from .._typing import ArrayLike
from ..reparam import AbstractReparametrisation
from ._base import AbstractModel
from ._linear import check_sizes, random_input, random_readout
from ._maps import (
    as_activation,
    as_bias,
    as_free_rates,
    as_input,
    as_rates,
    as_readout,
    as_reparametrisation,
    drive,
)


class DiagonalNonlinearRNN(AbstractModel):
    r"""A nonlinear RNN with diagonal recurrence, for one or several inputs and outputs.

    $$\dot h = \sigma(-w \odot h + U x + b), \qquad \hat y = C h, \qquad w = \varphi(v).$$

    It is a [`memjax.NonlinearRNN`][] with $W = -\operatorname{diag}(w)$ whose rates can be
    reparametrised. The arrays $v$, $U$, $b$ and $C$ are trained. Starts from $h = 0$ at the first
    time; `residual` is the discretisation
    $h_{k+1} = h_k + \Delta t\, \sigma(-w \odot h_k + U x_k + b)$ of the papers.

    **Arguments:**

    - `rates`: the decay rates $w_i > 0$, shape `(width,)`, in units of one over the model's
        clock: with an activation of slope 1 at 0, those of small hidden states. `residual` is
        stable for $w_i \Delta t < 2$.
    - `input`: the matrix $U$, shape `(width,)` for scalar inputs or `(width, inputs)`.
    - `bias`: the vector $b$, shape `(width,)`, or `None` for zeros, which are trained too.
    - `readout`: the matrix $C$, shape `(width,)` for scalar outputs or `(outputs, width)`.
    - `activation`: $\sigma$, as in [`memjax.NonlinearRNN`][].
    - `reparametrisation`: the map from free weights to rates. Defaults to [`memjax.Direct`][].

    **Raises:**

    `ValueError` for rates that are not positive, entries that are not finite, shapes that do not
    match, or an unknown activation.

    ??? cite "Reference"

        Wang, Li, Li, *Inverse Approximation Theory for Nonlinear Recurrent Neural Networks*,
        ICLR 2024, Section 3 (theory, section 5).
    """

    free_rates: Float[Array, " width"]
    input: Float[Array, "width *inputs"]
    bias: Float[Array, " width"]
    readout_weights: Float[Array, "*outputs width"]
    activation: Callable[[Array], Array]
    reparametrisation: AbstractReparametrisation

    def __init__(
        self,
        rates: Real[ArrayLike, " width"],
        input: Real[ArrayLike, "width *inputs"],
        bias: Real[ArrayLike, " width"] | None,
        readout: Real[ArrayLike, "*outputs width"],
        activation: str | Callable[[Array], Array] = "tanh",
        reparametrisation: AbstractReparametrisation | None = None,
    ) -> None:
        rates = as_rates(rates)
        self.reparametrisation = as_reparametrisation(reparametrisation)
        self.free_rates = as_free_rates(rates, self.reparametrisation)
        self.input = as_input(input, self.width)
        self.bias = as_bias(bias, self.width, rates.dtype)
        self.readout_weights = as_readout(readout, self.width)
        self.activation = as_activation(activation)

    @classmethod
    def init(
        cls,
        rates: Real[ArrayLike, " width"],
        inputs: int | None = None,
        outputs: int | None = None,
        *,
        activation: str | Callable[[Array], Array] = "tanh",
        reparametrisation: AbstractReparametrisation | None = None,
        key: PRNGKeyArray,
    ) -> "DiagonalNonlinearRNN":
        r"""A model of given rates with Gaussian input and readout weights and biases of 0.

        **Arguments:**

        - `rates`: the decay rates, as those of [`memjax.log_uniform_rates`][] or
            [`memjax.s4d_real`][].
        - `inputs`, `outputs`: how many, or `None` for scalars.
        - `activation`, `reparametrisation`: as above.
        - `key`: the PRNG key.
        """
        width = as_rates(rates).shape[0]
        check_sizes(inputs, outputs)
        activation = as_activation(activation)
        first, second = jax.random.split(as_key("key", key))
        return cls(
            rates,
            random_input(width, inputs, first),
            None,
            random_readout(width, outputs, second),
            activation,
            reparametrisation,
        )

    @property
    def width(self) -> int:
        """The number of neurons."""
        return self.free_rates.shape[0]

    @property
    def rates(self) -> Float[Array, " width"]:
        """The decay rates $w$, shape `(width,)`."""
        return self.reparametrisation(self.free_rates)

    def initial_hidden(self) -> Float[Array, " width"]:
        return jnp.zeros_like(self.free_rates)

    def vector_field(
        self, t: Float[Array, ""], hidden: Float[Array, " width"], x: Float[Array, "*inputs"]
    ) -> Float[Array, " width"]:
        return self.activation(-self.rates * hidden + drive(self.input, x) + self.bias)

    def readout(self, hidden: Float[Array, " width"]) -> Float[Array, "*outputs"]:
        return self.readout_weights @ hidden
