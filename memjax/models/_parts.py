"""What models are made of: rates, input maps and readouts, each with its checks."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Real, Shaped

from .._checks import (
    as_finite_array,
    as_inexact_array,
    as_key,
    as_positive_array,
    check_choice,
    check_instance,
    check_integer,
    is_traced,
)
from .._typing import ArrayLike
from ..reparam import AbstractReparametrisation, as_callable, Direct

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "hardtanh": jax.nn.hard_tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "identity": lambda x: x,
}


class AbstractPart(eqx.Module):
    """A part of a model. Its weights go by the names that they have in the part, as if they were
    the model's own ([`weight_name`][])."""


class Rates(AbstractPart):
    r"""Decay rates behind a reparametrisation, $w = \varphi(v)$; calling it gives the rates.

    The free weights $v$ are trained.

    **Arguments:**

    - `rates`: the decay rates $w_i > 0$, shape `(width,)`, in units of one over the model's
        clock.
    - `reparametrisation`: the map from free weights to rates. Defaults to [`memjax.Direct`][].

    **Raises:**

    `ValueError` for rates that are not positive, or out of reach of the map.
    """

    free_rates: Float[Array, " width"]
    reparametrisation: AbstractReparametrisation

    def __init__(
        self,
        rates: Real[ArrayLike, " width"],
        reparametrisation: AbstractReparametrisation | None = None,
    ) -> None:
        rates = as_rates(rates)
        self.reparametrisation = as_reparametrisation(reparametrisation)
        self.free_rates = _as_free_rates(rates, self.reparametrisation)

    def __call__(self) -> Float[Array, "*models width"]:
        return self.reparametrisation(self.free_rates)


class InputMap(AbstractPart):
    """What the input adds to the hidden state: a column times a scalar, or a matrix times a
    vector."""

    input: Float[Array, "width *inputs"]

    def __init__(self, input: Real[ArrayLike, "width *inputs"], width: int) -> None:
        self.input = _as_input(input, width)

    def __call__(self, x: Float[Array, "*inputs"]) -> Float[Array, " width"]:
        return _drive(self.input, x)

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.input.shape[1:]


class ComplexInputMap(AbstractPart):
    """An `InputMap` of complex weights: real parts, then imaginary parts."""

    input: Float[Array, "2 width *inputs"]

    def __init__(self, input: Shaped[ArrayLike, "..."], width: int) -> None:
        self.input = jnp.stack([_as_input(part, width) for part in complex_parts("input", input)])

    def __call__(self, x: Float[Array, "*inputs"]) -> Float[Array, "2 width"]:
        return jnp.stack([_drive(part, x) for part in self.input])

    @property
    def input_shape(self) -> tuple[int, ...]:
        return self.input.shape[2:]


class Readout(AbstractPart):
    """A scalar output, or several, as linear functions of a hidden state."""

    readout_weights: Float[Array, "*outputs width"]

    def __init__(self, readout: Real[ArrayLike, "*outputs width"], width: int) -> None:
        self.readout_weights = as_readout(readout, width)

    def __call__(self, hidden: Float[Array, " width"]) -> Float[Array, "*outputs"]:
        return self.readout_weights @ hidden


class ComplexReadout(AbstractPart):
    """The real part of a `Readout` of complex weights: their real parts, then imaginary parts."""

    readout_weights: Float[Array, "2 *outputs width"]

    def __init__(self, readout: Shaped[ArrayLike, "..."], width: int) -> None:
        parts = [as_readout(part, width) for part in complex_parts("readout", readout)]
        self.readout_weights = jnp.stack(parts)

    def __call__(self, hidden: Float[Array, "2 width"]) -> Float[Array, "*outputs"]:
        real, imaginary = self.readout_weights
        return real @ hidden[0] - imaginary @ hidden[1]


class RandomMaps(NamedTuple):
    """Gaussian weights of unit input and output, as a model takes them."""

    input: Array
    readout: Array

    @classmethod
    def draw(
        cls, width: int, inputs: int | None, outputs: int | None, *, key: PRNGKeyArray
    ) -> "RandomMaps":
        first, second = jax.random.split(as_key("key", key))
        return cls(random_input(width, inputs, first), random_readout(width, outputs, second))


def weight_name(tree: PyTree, path: tuple[Any, ...]) -> str:
    """The name of an array of weights by its path in a model, or in a tree of its structure."""
    shown: list[Any] = []
    node: Any = tree
    for key in path:
        if isinstance(key, jax.tree_util.GetAttrKey):
            node = getattr(node, key.name)
        elif isinstance(key, jax.tree_util.SequenceKey):
            node = node[key.idx]
        elif isinstance(key, jax.tree_util.DictKey):
            node = node[key.key]
        if not issubclass(type(node), AbstractPart):
            shown.append(key)
    return jax.tree_util.keystr(tuple(shown)).lstrip(".")


# --- Checks ---------------------------------------------------------------------------------------


def as_activation(value: Any) -> Callable[[Array], Array]:
    """An activation by its name, or any function of an array."""
    if isinstance(value, str):
        check_choice("activation", value, ACTIVATIONS, "choose one, or pass a function")
        value = ACTIVATIONS[value]
    return as_callable("activation", value)


def as_reparametrisation(value: Any) -> AbstractReparametrisation:
    """A reparametrisation, by default the direct one."""
    if value is None:
        return Direct()
    hint = "pass for example memjax.Exp(), or wrap a function in memjax.Elementwise"
    check_instance("reparametrisation", value, AbstractReparametrisation, "a map of rates", hint)
    return value


def _as_free_rates(
    rates: Float[Array, " width"], reparametrisation: AbstractReparametrisation
) -> Float[Array, " width"]:
    """The free weights of rates, which a map of one's own may not reach."""
    free = reparametrisation.inverse(rates)
    if jnp.shape(free) != rates.shape:
        raise ValueError(
            f"`reparametrisation` must have an elementwise `inverse`, got shape {jnp.shape(free)} "
            f"for rates of shape {rates.shape}; return one free weight per rate."
        )
    if not is_traced(free) and not np.all(np.isfinite(free)):
        missed = np.asarray(rates)[~np.isfinite(free)][0]
        raise ValueError(
            f"`rates` must be in the reach of {type(reparametrisation).__name__}, got {missed}; "
            "pass others, or another map."
        )
    return free


def as_rates(value: Any) -> Float[Array, " width"]:
    """A positive rate for each of at least one mode."""
    dtype = as_inexact_array("rates", value).dtype
    if jnp.issubdtype(dtype, jnp.complexfloating):
        # Without its conjugate an eigenvalue has no real output.
        raise TypeError(
            f"`rates` must be real, got dtype {dtype}; a complex eigenvalue needs its conjugate, "
            "so pass rates and frequencies to memjax.ComplexDiagonalRNN."
        )
    hint = "a mode of rate w decays as exp(-w t), so pass w > 0"
    return _one_each("rates", as_positive_array("rates", value, hint))


def as_modes(name: str, value: Any) -> Float[Array, " width"]:
    """One finite number for each of at least one mode."""
    return _one_each(name, as_finite_array(name, value))


def _one_each(name: str, array: Array) -> Float[Array, " width"]:
    if array.ndim != 1 or array.shape[0] == 0:
        raise ValueError(
            f"`{name}` must be a 1-D array of at least one mode, got shape {array.shape}; "
            f"pass one entry per mode."
        )
    return array


def _as_input(value: Any, width: int) -> Float[Array, "width *inputs"]:
    """The weights of a scalar input, shape `(width,)`, or of several, `(width, inputs)`."""
    array = as_finite_array("input", value)
    if array.ndim not in (1, 2) or array.shape[0] != width:
        raise ValueError(
            f"`input` must have shape ({width},) or ({width}, inputs), got {array.shape}; "
            "pass one row per neuron."
        )
    return array


def as_readout(value: Any, width: int) -> Float[Array, "*outputs width"]:
    """The weights of a scalar output, shape `(width,)`, or of several, `(outputs, width)`."""
    array = as_finite_array("readout", value)
    if array.ndim not in (1, 2) or array.shape[-1] != width:
        raise ValueError(
            f"`readout` must have shape ({width},) or (outputs, {width}), got {array.shape}; "
            "pass one column per neuron."
        )
    return array


def as_bias(value: Any, width: int, dtype: Any) -> Float[Array, " width"]:
    """One bias for each neuron, by default 0."""
    array = as_finite_array("bias", jnp.zeros(width, dtype) if value is None else value)
    if array.shape != (width,):
        raise ValueError(
            f"`bias` must have shape ({width},), got {array.shape}; pass one entry per neuron."
        )
    return array


def _drive(weights: Float[Array, "width *inputs"], x: Float[Array, "*inputs"]) -> Array:
    """What an input of the shape that the weights are made for adds to the hidden state."""
    check_input(x, weights.shape[1:])
    return weights * x if weights.ndim == 1 else weights @ x


def check_input(x: Float[Array, "..."], shape: tuple[int, ...]) -> None:
    """Refuse inputs that would broadcast to something else than meant."""
    if jnp.shape(x) != shape:
        raise ValueError(
            f"`xs` must hold inputs of shape {shape}, got {jnp.shape(x)} at each time; pass "
            f"samples of shape {('times', *shape)}."
        )


def as_recurrent(value: Any) -> Float[Array, "width width"]:
    array = as_finite_array("recurrent", value)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.shape[0] == 0:
        raise ValueError(
            f"`recurrent` must be a square matrix of at least one row, got shape {array.shape}; "
            "pass shape (width, width)."
        )
    return array


def check_sizes(inputs: int | None, outputs: int | None) -> None:
    """Refuse numbers of inputs and outputs below 1; `None` stands for a scalar."""
    for name, value in (("inputs", inputs), ("outputs", outputs)):
        if value is not None:
            check_integer(name, value)


def random_input(width: int, inputs: int | None, key: PRNGKeyArray) -> Float[Array, "..."]:
    shape = (width,) if inputs is None else (width, inputs)
    return jax.random.normal(key, shape) / jnp.sqrt(inputs or 1)


def random_readout(width: int, outputs: int | None, key: PRNGKeyArray) -> Float[Array, "..."]:
    shape = (width,) if outputs is None else (outputs, width)
    return jax.random.normal(key, shape) / jnp.sqrt(width)


def complex_parts(name: str, value: Any) -> tuple[Array, Array]:
    """Real and imaginary parts, of which a real array has but one."""
    array = as_inexact_array(name, value)
    return array.real, array.imag
