"""Checks of concrete arguments: a wrong value is refused at once, in one line.

Traced values pass unchecked, since their values are not known while tracing.
"""

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np


def is_traced(value: Any) -> bool:
    """Whether any leaf of `value` is a JAX tracer."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def as_float_array(name: str, value: Any) -> jax.Array:
    """`value` as a floating-point array; complex, text and objects are refused."""
    try:
        array = jnp.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"`{name}` must be a number or an array of numbers, got {value!r}."
        ) from error
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real, got dtype {array.dtype}; pass its real part.")
    # Naming the type makes it a strong one: a weakly typed leaf would compile everything twice.
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return jnp.asarray(array, array.dtype if floating else jnp.result_type(float))


def check_scalar(name: str, value: Any) -> None:
    """Refuse anything with a shape."""
    if jnp.shape(value) != ():
        raise ValueError(
            f"`{name}` must be a scalar, got shape {jnp.shape(value)}; batch with `jax.vmap`."
        )


def check_integer(name: str, value: Any, least: int = 1) -> None:
    """Refuse anything but an integer of at least `least`."""
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not integer or value < least:
        raise ValueError(f"`{name}` must be an integer of at least {least}, got {value!r}.")


def check_finite(name: str, value: Any) -> None:
    """Refuse NaN and infinity."""
    if is_traced(value):
        return
    values = np.asarray(value)
    if not np.all(np.isfinite(values)):
        bad = values[~np.isfinite(values)].ravel()[0]
        raise ValueError(f"`{name}` must be finite, got {bad}; remove or replace that value.")


def check_positive(name: str, value: Any, hint: str = "pass values above 0") -> None:
    """Refuse NaN, infinity, zero and negative values."""
    if is_traced(value):
        return
    check_finite(name, value)
    values = np.asarray(value)
    if not np.all(values > 0):
        bad = values[~(values > 0)].ravel()[0]
        raise ValueError(f"`{name}` must be positive, got {bad}; {hint}.")


def check_nonnegative(name: str, value: Any, hint: str = "pass values of 0 or more") -> None:
    """Refuse NaN, infinity and negative values."""
    if is_traced(value):
        return
    check_finite(name, value)
    values = np.asarray(value)
    if not np.all(values >= 0):
        bad = values[~(values >= 0)].ravel()[0]
        raise ValueError(f"`{name}` must not be negative, got {bad}; {hint}.")


def as_horizon(value: Any) -> jax.Array | None:
    """`value` as an array of finite horizons, or `None` for the whole half line.

    The two cases have different closed forms, so the choice is made from the concrete value
    before tracing: a traced horizon is taken to be finite.
    """
    # Under `jit` the conversion itself yields a tracer, so look at the value as it was given.
    horizon = as_float_array("horizon", value)
    if is_traced(value):
        return horizon
    values = np.asarray(value)
    if values.ndim == 0 and values == np.inf:
        return None
    check_nonnegative("horizon", values, "pass a time of 0 or more, or the scalar `jnp.inf`")
    return horizon


def check_same_shape(first: str, first_value: Any, second: str, second_value: Any) -> None:
    """Refuse two arrays that differ in shape."""
    a, b = jnp.shape(first_value), jnp.shape(second_value)
    if a != b:
        raise ValueError(
            f"`{first}` and `{second}` must have the same shape, got {a} and {b}; "
            f"pass one entry of each per mode."
        )


def check_float64(name: str, value: Any) -> None:
    """Refuse single precision where exponentially small numbers must be resolved."""
    for leaf in jax.tree.leaves(value):
        dtype = jnp.result_type(leaf)
        if jnp.issubdtype(dtype, jnp.floating) and dtype != jnp.float64:
            raise TypeError(
                f"`{name}` needs float64, got {dtype}; call "
                '`jax.config.update("jax_enable_x64", True)` before making any array.'
            )
