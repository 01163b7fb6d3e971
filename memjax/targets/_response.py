"""A sampled input is a sum of a jump and of ramps. The response of a kernel to it is the sum of the
responses to these."""

from typing import Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._paths import as_samples, as_steps, convolve, even_step
from .._typing import ArrayLike
from ._system import state_space


@runtime_checkable
class Responsive(Protocol):
    """What knows its responses to a jump and to a ramp."""

    def heaviside_response(self, t: Array, /) -> Array: ...
    def ramp_response(self, t: Array, /) -> Array: ...


def sampled_response(
    kernel: Responsive, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, " times"]
) -> Float[Array, " times"]:
    """The output of a scalar kernel at the times of a sampled input."""
    times, xs = as_samples(ts, xs, inputs=None)
    step = even_step(ts)
    leaves = jax.tree.leaves(eqx.filter(kernel, eqx.is_inexact_array))
    dtype = jnp.result_type(times, *leaves)
    # Weights of samples are second differences of ramp responses, which grow with time: their
    # rounding was up to 15 times `eps * n**1.5` of the outputs where it was measured.
    most = (1e-3 / (20 * float(jnp.finfo(dtype).eps))) ** (2 / 3)
    if times.size > most:
        system = state_space(kernel)
        if system is not None:
            return system.response(ts, xs[:, None])[:, 0]
        raise ValueError(
            f"`ts` must have at most {int(most)} times for {type(kernel).__name__} in {dtype}, "
            f"got {times.size}, since the weights of samples are lost in rounding; call "
            '`jax.config.update("jax_enable_x64", True)` before making any array.'
        )
    if step is None:
        elapsed = times - times[0]
        # The input is a jump and then a sum of ramps, one for each change of slope.
        kinks = jnp.diff(jnp.diff(xs) / as_steps(ts), prepend=0)
        since = lambda t: jnp.dot(kinks, kernel.ramp_response(t - times[:-1]))
        # A matrix of a million responses at a time.
        ramps = jax.lax.map(since, times, batch_size=max(1, 2**20 // times.size))
        return xs[0] * kernel.heaviside_response(elapsed) + ramps
    # Not the differences of the times, whose rounding would come back in the second differences.
    elapsed = jnp.asarray(step * np.arange(times.size), dtype)
    # The input is a hat around each sample. The first hat has no left half, but the jump.
    rises = jnp.diff(kernel.ramp_response(elapsed), prepend=0) / step
    first = kernel.heaviside_response(elapsed) - rises
    return xs[0] * first + convolve(jnp.diff(rises), xs[1:])
