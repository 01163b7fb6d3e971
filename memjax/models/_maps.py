"""Input maps, readouts and activations, which the models share."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import (
    as_finite_array,
    as_inexact_array,
    as_positive_array,
    check_choice,
    check_instance,
    is_traced,
)
from ..reparam import AbstractReparametrisation, as_callable, Direct

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "tanh": jnp.tanh,
    "hardtanh": jax.nn.hard_tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "identity": lambda x: x,
}


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


def as_free_rates(
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


def as_input(value: Any, width: int) -> Float[Array, "width *inputs"]:
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


def drive(weights: Float[Array, "width *inputs"], x: Float[Array, "*inputs"]) -> Array:
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
