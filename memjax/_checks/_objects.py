"""These checks are for what is no array of numbers: counts, flags, choices, keys, instances,
functions, lists and datasets."""

from collections.abc import Collection, Hashable, Iterable, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from .._lazy import xr
from ._messages import shown

# The largest count: arrays of that many numbers cannot be held, and indices are of 32 bits.
_MOST = 2**31 - 1


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


def as_integers(name: str, value: Any, least: int = 1) -> list[int]:
    """`value` as a list of at least one integer, each of at least `least`."""
    if isinstance(value, (jax.Array, np.ndarray)) and value.ndim > 0:
        value = np.asarray(value).tolist() if jnp.issubdtype(value.dtype, jnp.number) else None
    entries = as_list(name, value, "integers")
    if not entries:
        raise ValueError(f"`{name}` must hold at least one integer, got none; pass some.")
    return [check_integer(name, entry, least) for entry in entries]


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
