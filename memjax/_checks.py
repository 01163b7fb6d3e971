"""Checks of arguments: a wrong value is refused at once, in one line that names the argument, the
value and the fix.

There is one function for each kind of argument. Those whose name begins with `as_` return what
they were given in the form that memjax works with. Traced values cannot be looked at while
tracing: where one is out of range, `as_` functions return NaN in its place, which ends a
measurement as `invalid`, while `check_` functions let it pass.
"""

import os
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._lazy import xr

# The largest count: arrays of that many numbers cannot be held, and indices are of 32 bits.
_MOST = 2**31 - 1


def shown(value: Any) -> str:
    """A value as an error message shows it: in one line, and not at length."""
    if isinstance(value, (jax.Array, np.ndarray)):
        if is_traced(value) or np.size(value) > 8 or not jnp.issubdtype(value.dtype, jnp.number):
            return f"an array of shape {np.shape(value)} and dtype {value.dtype}"
        value = np.asarray(value).tolist()
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 10**40:
        # Python refuses to write integers of more than 4,300 digits.
        return f"an integer of {value.bit_length()} bits"
    try:
        text = " ".join(repr(value).split())
    except Exception:  # of the value's own
        return f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:77]}..."


def said(error: BaseException) -> str:
    """What an error from a user's own code says, as another message quotes it: in one line."""
    text = ": ".join(filter(None, (type(error).__name__, " ".join(str(error).split()))))
    return text if len(text) <= 160 else f"{text[:157]}..."


def is_traced(value: Any) -> bool:
    """Whether any leaf of `value` is a JAX tracer."""
    return any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(value))


def valid_or_nan(value: Array, valid: Any) -> Array:
    """`value`, or NaN where it is not valid; for concrete values, which were checked, itself."""
    if not is_traced((value, valid)):
        return value
    return jnp.where(valid, value, jnp.asarray(jnp.nan, value.dtype))


def _valid(value: Array, valid: Callable[[Array], Array]) -> Array:
    # What is concrete was checked, and is spared the comparison.
    return valid_or_nan(value, valid(value)) if is_traced(value) else value


# --- Numbers ------------------------------------------------------------------------------------


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


def as_number(name: str, value: Any) -> Array:
    """`value` as a finite scalar."""
    array = as_float_array(name, value)
    check_scalar(name, array)
    check_finite(name, value)
    return _valid(array, jnp.isfinite)


def as_positive(name: str, value: Any, hint: str = "pass values above 0") -> Array:
    """`value` as a positive, finite scalar."""
    array = as_float_array(name, value)
    check_scalar(name, array)
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


def check_float64(name: str, value: Any) -> None:
    """Refuse single precision where exponentially small numbers must be resolved."""
    for leaf in jax.tree.leaves(value):
        dtype = jnp.result_type(leaf)
        if dtype in (jnp.float16, jnp.bfloat16, jnp.float32, jnp.complex64):
            raise TypeError(
                f"`{name}` needs float64, got {dtype}; call "
                '`jax.config.update("jax_enable_x64", True)` before making any array.'
            )


# --- Counts, choices, keys, objects -------------------------------------------------------------


def check_integer(name: str, value: Any, least: int = 1, most: int = _MOST) -> int:
    """Refuse anything but an integer from `least` to `most`; returns a Python integer."""
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not integer:
        wanted = f"an integer of at least {least}" if least > -_MOST else "an integer"
        raise (ValueError if isinstance(value, float) else TypeError)(
            f"`{name}` must be {wanted}, got {shown(value)}; pass an int."
        )
    if value < least:
        raise ValueError(
            f"`{name}` must be an integer of at least {least}, got {shown(value)}; pass a larger "
            "one."
        )
    if value > most:
        raise ValueError(
            f"`{name}` must be an integer of at most {most}, got {shown(value)}; pass a smaller "
            "one."
        )
    return int(value)


def check_scalar_of_model(name: str, value: Any) -> None:
    """Refuse what a function of one's own gives for a model if it is no real scalar."""
    array = as_float_array(name, value)
    if array.shape != ():
        raise ValueError(
            f"`{name}` must map a model to a scalar, got shape {array.shape}; take a mean."
        )


def check_flag(name: str, value: Any) -> bool:
    """Refuse anything but `True` and `False`."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"`{name}` must be True or False, got {shown(value)}; pass one of them.")
    return bool(value)


def check_choice(name: str, value: Any, choices: Iterable[Any], hint: str = "choose one") -> None:
    """Refuse anything but one of the choices."""
    choices = list(choices)
    if not any(value is choice or isinstance(value, str) and value == choice for choice in choices):
        listed = ", ".join(map(repr, choices))
        raise (ValueError if isinstance(value, str) else TypeError)(
            f"`{name}` must be one of {listed}, got {shown(value)}; {hint}."
        )


def as_key(name: str, value: Any) -> Array:
    """`value` as a single PRNG key of JAX; keys of the old kind (`jax.random.PRNGKey`) will do."""
    if isinstance(value, (jax.Array, np.ndarray)):
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) and value.shape == ():
            return jnp.asarray(value)
        shape = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0))).shape
        if value.dtype == jnp.uint32 and value.shape == shape:
            return jax.random.wrap_key_data(jnp.asarray(value))
    raise TypeError(
        f"`{name}` must be a single PRNG key, got {shown(value)}; pass jax.random.key(0), with a "
        "seed of your own for 0."
    )


def as_seed(name: str, value: Any) -> Any:
    """`value` as a seed of `jax.random.key`: an integer of 64 bits, or an array of one."""
    if isinstance(value, (jax.Array, np.ndarray)) and value.shape == ():
        if jnp.issubdtype(value.dtype, jnp.integer):
            return value
    return check_integer(name, value, -(2**63), 2**63 - 1)


def check_instance(name: str, value: Any, kinds: Any, wanted: str, hint: str) -> None:
    """Refuse what is no instance of `kinds`: "`name` must be `wanted`, got ...; `hint`."."""
    if not isinstance(value, kinds):
        got = f"the class {value.__name__}" if isinstance(value, type) else shown(value)
        raise TypeError(f"`{name}` must be {wanted}, got {got}; {hint}.")


def check_callable(name: str, value: Any, hint: str = "pass a function") -> None:
    """Refuse what cannot be called, and classes."""
    if not callable(value) or isinstance(value, type):
        raise TypeError(f"`{name}` must be a function, got {shown(value)}; {hint}.")


def as_list(name: str, value: Any, wanted: str) -> list[Any]:
    """`value` as a list; text, mappings and what cannot be iterated over are refused."""
    if isinstance(value, (str, bytes, Mapping, Set)) or not np.iterable(value):
        raise TypeError(f"`{name}` must be a list of {wanted}, got {shown(value)}; pass a list.")
    return list(value)


def check_dataset(
    name: str, value: Any, needed: Mapping[Any, Collection[Hashable]], source: str
) -> None:
    """Refuse anything but a dataset with certain variables, each over certain dimensions."""
    check_instance(name, value, xr.Dataset, "an xarray.Dataset", f"pass that of {source}")
    for variable, dims in needed.items():
        if variable not in value:
            found = shown(sorted(map(str, value)))
            raise ValueError(
                f"`{name}` must have a variable {variable!r}, got {found}; pass that of {source}."
            )
        if not set(dims) <= set(value[variable].dims):
            raise ValueError(
                f"`{name}` must have {variable!r} over {', '.join(map(repr, dims))}, got "
                f"{value[variable].dims}; pass that of {source}."
            )


def as_integers(name: str, value: Any, least: int = 1) -> list[int]:
    """`value` as a list of at least one integer, each of at least `least`."""
    if isinstance(value, (jax.Array, np.ndarray)) and value.ndim > 0:
        value = np.asarray(value).tolist() if jnp.issubdtype(value.dtype, jnp.number) else None
    entries = as_list(name, value, "integers")
    if not entries:
        raise ValueError(f"`{name}` must hold at least one integer, got none; pass some.")
    return [check_integer(name, entry, least) for entry in entries]


# --- Times and files ----------------------------------------------------------------------------


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


def as_path(name: str, value: Any) -> Path:
    """`value` as a path."""
    if not isinstance(value, (str, os.PathLike)) or isinstance(os.fspath(value), bytes):
        raise TypeError(f"`{name}` must be a path, got {shown(value)}; pass text or a Path.")
    if not os.fspath(value) or "\0" in os.fspath(value):
        raise ValueError(f"`{name}` must be a path, got {shown(value)}; name a file or folder.")
    return Path(value)


def as_existing_file(name: str, value: Any) -> Path:
    """`value` as the path of a file that is there."""
    path = as_path(name, value)
    try:
        if path.is_dir():
            raise IsADirectoryError(
                f"`{name}` must be a file, got the folder {str(path)!r}; name a file in it."
            )
        if not path.exists():
            raise FileNotFoundError(
                f"`{name}` must be a file that exists, got {str(path)!r}; check the name."
            )
    except OSError as error:
        if isinstance(error, (FileNotFoundError, IsADirectoryError)):
            raise
        # A name that is too long, a folder that may not be entered.
        raise type(error)(
            f"`{name}` must be a file that can be read, got {shown(str(path))}: {error.strerror}."
        ) from error
    return path


_SAID = 9  # names in an error, of many that there are


def unknown_name(name: str, known: Sequence[str]) -> str:
    """What to say of a name that is not among those known: the closest, or all, or some of many."""
    import difflib  # only for errors

    close = difflib.get_close_matches(str(name), known, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f" and {len(known) - _SAID} more" if len(known) > _SAID + 3 else ""
    return f"known are {', '.join(known[: _SAID if more else None])}{more}."
