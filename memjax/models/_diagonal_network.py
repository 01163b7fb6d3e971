from collections.abc import Callable
from typing import Self

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._typing import ArrayLike
from ..reparam import AbstractReparametrisation
from ._capabilities import AbstractMapped, AbstractModal
from ._parts import (
    as_activation,
    as_bias,
    as_rates,
    check_sizes,
    InputMap,
    RandomMaps,
    Rates,
    Readout,
)


class AbstractDiagonalNetwork(AbstractModal, AbstractMapped):
    """A real mode a neuron, with biases and an activation; where it acts, subclasses say."""

    decays: Rates
    drive: InputMap
    bias: Float[Array, " width"]
    output: Readout
    activation: Callable[[Array], Array]

    def __init__(
        self,
        rates: Real[ArrayLike, " width"],
        input: Real[ArrayLike, "width *inputs"],
        bias: Real[ArrayLike, " width"] | None,
        readout: Real[ArrayLike, "*outputs width"],
        activation: str | Callable[[Array], Array] = "tanh",
        reparametrisation: AbstractReparametrisation | None = None,
    ) -> None:
        self.decays = Rates(rates, reparametrisation)
        self.drive = InputMap(input, self.width)
        self.bias = as_bias(bias, self.width, as_rates(rates).dtype)
        self.output = Readout(readout, self.width)
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
    ) -> Self:
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
        maps = RandomMaps.draw(width, inputs, outputs, key=key)
        return cls(rates, maps.input, None, maps.readout, activation, reparametrisation)

    def initial_hidden(self) -> Float[Array, " width"]:
        return jnp.zeros_like(self.free_rates)
