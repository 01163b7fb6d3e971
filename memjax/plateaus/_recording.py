"""Training curves, written down at given times while runs go on."""

from collections.abc import Callable

import equinox as eqx
import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Recording(eqx.Module):
    """The curves of one run or, with lanes last, of many; NaN where nothing is written yet.

    **Attributes:**

    - `index`: how many of the times are written.
    - `values`: what is recorded, by name, each of shape `(times, ...)`.
    """

    index: Int[Array, "..."]
    values: dict[str, Float[Array, "times ..."]]

    @staticmethod
    def open(times: Float[Array, " times"], like: Float[Array, "..."], *names: str) -> "Recording":
        """Nothing yet; `like` has the shape of the runs."""
        nothing = jnp.full((times.shape[0], *like.shape), jnp.nan, like.dtype)
        return Recording(jnp.zeros(like.shape, jnp.int32), dict.fromkeys(names, nothing))

    def write(
        self,
        times: Float[Array, " times"],
        due: Callable[[Float[Array, "..."]], Bool[Array, "..."]],
        see: Callable[[Float[Array, "..."]], dict[str, Float[Array, "..."]]],
    ) -> "Recording":
        """Write all that is due.

        **Arguments:**

        - `times`: increasing, all that are to be written.
        - `due`: whether a time has been reached.
        - `see`: what is recorded at a time.
        """
        last = times.shape[0]
        if last == 0:
            return self

        def next_due(carry: "Recording") -> tuple[Array, Array, Array]:
            row = jnp.minimum(carry.index, last - 1)
            return (carry.index < last) & due(times[row]), row, times[row]

        def write_row(carry: "Recording") -> "Recording":
            here, row, time = next_due(carry)
            # Every lane may be at another time: a mask over all rows does for one run and for many,
            # without a scatter.
            rows = jnp.arange(last).reshape(-1, *(1,) * row.ndim) == row
            seen = see(time)
            values = {
                name: jnp.where(rows & here, seen[name], old) for name, old in carry.values.items()
            }
            return Recording(carry.index + here, values)

        # Most steps pass over no time, and evaluate nothing.
        return lax.while_loop(lambda carry: jnp.any(next_due(carry)[0]), write_row, self)
