"""These checks are for numbers and arrays of numbers: of what kind they are, in which precision, of
which shape, and in which range."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._messages import shown
from ._traced import is_traced, valid_or_nan


def as_float_array(name: str, value: Any) -> Array:
    """`value` as a floating-point array; complex numbers, text and objects are refused."""
    array = as_number_array(name, value)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        raise TypeError(f"`{name}` must be real, got dtype {array.dtype}; pass its real part.")
    # Naming the type makes it a strong one: a weakly typed leaf would compile everything twice.
    floating = jnp.issubdtype(array.dtype, jnp.floating)
    return jnp.asarray(array, array.dtype if floating else jnp.result_type(float))


def as_inexact_array(name: str, value: Any) -> Array:
    """`value` as an array of real or complex floating-point numbers."""
    array = as_number_array(name, value)
    if jnp.issubdtype(array.dtype, jnp.complexfloating):
        return jnp.asarray(array, array.dtype)
    return as_float_array(name, array)


def as_number_array(name: str, value: Any) -> Array:
    """`value` as an array of integers, real or complex numbers."""
    given = value
    try:
        if isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        # JAX would take a list of text for the name of a type.
        if any(isinstance(leaf, (str, bytes)) for leaf in jax.tree.leaves(value)):
            raise TypeError
        number = jnp.asarray(value)
        # Booleans and keys are arrays to JAX, and no numbers.
        if jnp.issubdtype(number.dtype, jnp.number):
            return number
    except OverflowError as error:
        raise ValueError(
            f"`{name}` must fit in 64 bits, got {shown(given)}; pass a smaller number."
        ) from error
    except (TypeError, ValueError):
        pass
    raise _no_number(name, given)


def _as_numpy(name: str, value: Any) -> np.ndarray:
    """A concrete value as a NumPy array of numbers: under `jit` JAX would make a tracer of it."""
    try:
        plain = isinstance(value, int) and not isinstance(value, bool)
        values = np.asarray(float(value) if plain else value)
        if jnp.issubdtype(values.dtype, jnp.number):
            return values
    except (TypeError, ValueError, OverflowError):
        pass
    as_number_array(name, value)
    raise _no_number(name, value)


def _no_number(name: str, value: Any) -> TypeError:
    return TypeError(
        f"`{name}` must be a number or an array of numbers, got {shown(value)}; pass numbers."
    )


def _valid(value: Array, valid: Callable[[Array], Array]) -> Array:
    # What is concrete was checked, and is spared the comparison.
    return valid_or_nan(value, valid(value)) if is_traced(value) else value


def as_number(name: str, value: Any) -> Array:
    """`value` as a finite scalar."""
    array = as_float_array(name, value)
    check_scalar(name, array)
    check_finite(name, value)
    return _valid(array, jnp.isfinite)


def as_positive(name: str, value: Any, hint: str = "pass values above 0") -> Array:
    """`value` as a positive, finite scalar."""
    check_scalar(name, as_float_array(name, value))
    return as_positive_array(name, value, hint)


def as_nonnegative(name: str, value: Any, hint: str = "pass values of 0 or more") -> Array:
    """`value` as a finite scalar of at least 0."""
    array = as_float_array(name, value)
    check_scalar(name, array)
    check_nonnegative(name, value, hint)
    return _valid(array, lambda array: (array >= 0) & jnp.isfinite(array))


def as_finite_array(name: str, value: Any) -> Array:
    """`value` as an array of finite numbers."""
    array = as_float_array(name, value)
    check_finite(name, value)
    return _valid(array, jnp.isfinite)


def as_positive_array(name: str, value: Any, hint: str = "pass values above 0") -> Array:
    """`value` as an array of positive, finite numbers."""
    array = as_float_array(name, value)
    check_positive(name, value, hint)
    return _valid(array, lambda array: (array > 0) & jnp.isfinite(array))


def as_share(name: str, value: Any, hint: str = "pass a number between 0 and 1") -> Array:
    """`value` as a scalar above 0 and below 1."""
    array = as_positive(name, value, hint)
    if not is_traced(value) and not _as_numpy(name, value) < 1:
        raise ValueError(f"`{name}` must be below 1, got {shown(value)}; {hint}.")
    return _valid(array, lambda array: array < 1)


def as_tolerance(name: str, value: Any) -> Array:
    """`value` as a relative tolerance."""
    return as_share(name, value, "pass a relative tolerance such as 1e-6")


def as_plain(check: Callable[..., Any], name: str, value: Any, *options: Any) -> float:
    """`value` as a number of Python, checked by one of the above, also while JAX traces others."""
    _refuse_traced(name, value)
    with jax.ensure_compile_time_eval():
        check(name, value, *options)
    return float(value)


def as_pair(name: str, value: Any, hint: str) -> tuple[float, float]:
    """`value` as two increasing numbers of Python, of which the last may be infinite."""
    _refuse_traced(name, value)
    with jax.ensure_compile_time_eval():
        array = as_float_array(name, value)
        if array.shape != (2,) or not -jnp.inf < array[0] < array[1]:
            raise ValueError(
                f"`{name}` must be two increasing numbers, got {shown(value)}; {hint}."
            )
    first, last = value
    return float(first), float(last)


def as_host_array(name: str, value: Any) -> np.ndarray:
    """`value` as an array of NumPy of real numbers in float64, for what is done without JAX."""
    _refuse_traced(name, value)
    values = _as_numpy(name, value)
    if np.iscomplexobj(values):
        raise TypeError(f"`{name}` must be real, got dtype {values.dtype}; pass its real part.")
    return values.astype(np.float64)


def _refuse_traced(name: str, value: Any) -> None:
    if is_traced(value):
        raise TypeError(
            f"`{name}` must be concrete, got a traced value; pass a number from outside of "
            "`jax.jit` and `jax.vmap`."
        )


def as_range(low_name: str, low: Any, high_name: str, high: Any) -> tuple[Array, Array]:
    """Two positive scalars, the first of which is the smaller one."""
    least, most = as_positive(low_name, low), as_positive(high_name, high)
    if not is_traced((least, most)) and not least < most:
        raise ValueError(
            f"`{low_name}` must be less than `{high_name}`, got {shown(low)} and {shown(high)}; "
            "swap or spread them."
        )
    return least, valid_or_nan(most, least < most)


def as_increasing(name: str, value: Any, least: int = 1) -> Array:
    """`value` as at least `least` increasing, finite numbers, shape `(times,)`."""
    array = as_float_array(name, value)
    if array.ndim != 1 or array.size < least:
        raise ValueError(
            f"`{name}` must be 1-D with at least {least} entries, got shape {array.shape}; pass a "
            "list of increasing numbers."
        )
    check_finite(name, value)
    if not is_traced(value):
        values = _as_numpy(name, value)
        if np.any(np.diff(values) <= 0):
            k = int(np.argmax(np.diff(values) <= 0))
            raise ValueError(
                f"`{name}` must increase, got {values[k]} and then {values[k + 1]}; sort the "
                "values and remove repeats."
            )
    return _valid(
        array, lambda array: jnp.all(jnp.isfinite(array) & (jnp.diff(array, append=jnp.inf) > 0))
    )


def as_horizon(value: Any) -> Array | None:
    """`value` as an array of finite horizons, or `None` for the whole half line, which is given
    as infinity or `None`.

    The two cases have different closed forms, so the choice is made from the concrete value
    before tracing: a traced horizon is taken to be finite.
    """
    if value is None:
        return None
    # Under `jit` the conversion itself yields a tracer, so look at the value as it was given.
    horizon = as_float_array("horizon", value)
    if is_traced(value):
        return _valid(horizon, lambda horizon: (horizon >= 0) & jnp.isfinite(horizon))
    values = np.asarray(value)
    if values.ndim == 0 and values == np.inf:
        return None
    check_nonnegative("horizon", values, "pass a time of 0 or more, or the scalar `jnp.inf`")
    return horizon


def check_scalar(name: str, value: Any) -> None:
    """Refuse anything with a shape."""
    if np.shape(value) != ():
        raise ValueError(
            f"`{name}` must be a scalar, got shape {np.shape(value)}; batch with `jax.vmap`."
        )


def check_finite(name: str, value: Any) -> None:
    """Refuse NaN and infinity."""
    _refuse(name, value, np.isfinite, "must be finite", "remove or replace that value")


def check_positive(name: str, value: Any, hint: str = "pass values above 0") -> None:
    """Refuse NaN, infinity, zero and negative values."""
    check_finite(name, value)
    _refuse(name, value, lambda x: np.isreal(x) & (x > 0), "must be positive", hint)


def check_nonnegative(name: str, value: Any, hint: str = "pass values of 0 or more") -> None:
    """Refuse NaN, infinity and negative values."""
    check_finite(name, value)
    _refuse(name, value, lambda x: np.isreal(x) & (x >= 0), "must not be negative", hint)


def _refuse(name: str, value: Any, good: Callable, wanted: str, hint: str) -> None:
    if is_traced(value):
        return
    values = _as_numpy(name, value)
    if not np.all(good(values)):
        bad = values[~good(values)].ravel()[0]
        raise ValueError(f"`{name}` {wanted}, got {bad}; {hint}.")


def check_same_shape(
    first: str, first_value: Any, second: str, second_value: Any, entry: str = "mode"
) -> None:
    """Refuse two arrays that differ in shape."""
    a, b = jnp.shape(first_value), jnp.shape(second_value)
    if a != b:
        raise ValueError(
            f"`{first}` and `{second}` must have the same shape, got {a} and {b}; "
            f"pass one entry of each per {entry}."
        )


def check_scalar_of_model(name: str, value: Any) -> None:
    """Refuse what a function of one's own gives for a model if it is no real scalar."""
    array = as_float_array(name, value)
    if array.shape != ():
        raise ValueError(
            f"`{name}` must map a model to a scalar, got shape {array.shape}; take a mean."
        )


def check_float64(name: str, value: Any) -> None:
    """Refuse single precision where exponentially small numbers must be resolved."""
    for leaf in jax.tree.leaves(value):
        dtype = jnp.result_type(leaf)
        if dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64):
            raise TypeError(
                f"`{name}` needs float64, got {dtype}; call "
                '`jax.config.update("jax_enable_x64", True)` before making any array.'
            )
