"""Error messages name values, errors of other code, and names that are not known. These functions
write them, each in one short line."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._traced import is_traced

_SAID = 9  # names in an error, of many that there are


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


def unknown_name(name: str, known: Sequence[str]) -> str:
    """What to say of a name that is not among those known: the closest, or all, or some of many."""
    import difflib  # only for errors

    close = difflib.get_close_matches(str(name), known, 1)
    if close:
        return f"did you mean {close[0]!r}?"
    more = f" and {len(known) - _SAID} more" if len(known) > _SAID + 3 else ""
    return f"known are {', '.join(known[: _SAID if more else None])}{more}."
