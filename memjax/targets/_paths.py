"""Sampled input paths: their checks, and what evenly spaced times make cheap."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import EllipsisType
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .._checks import as_finite_array, as_increasing, is_traced


def as_samples(
    ts: Any, xs: Any, inputs: int | None | EllipsisType = ...
) -> tuple[Float[Array, " times"], Float[Array, "times ..."]]:
    """`ts` and `xs` as checked arrays.

    **Arguments:**

    - `ts`, `xs`: The times and the samples.
    - `inputs`: The number $d$ of inputs, for samples of shape `(times, d)`, or `None` for a
        scalar input, with samples of shape `(times,)`. By default samples of any shape pass.
    """
    ts = as_times(ts)
    xs = as_finite_array("xs", xs)
    if inputs is ...:
        inner = xs.shape[1:]
    else:
        inner = () if inputs is None else (inputs,)
    shape = (*ts.shape, *inner)
    if xs.shape != shape:
        raise ValueError(
            f"`xs` must have one sample per time, got shape {xs.shape} for {ts.size} times; "
            f"pass an array of shape {shape}."
        )
    return ts, xs


def as_times(ts: Any) -> Float[Array, " times"]:
    """`ts` as an array of at least two times that increase."""
    return as_increasing("ts", ts, 2)


@contextmanager
def integrating(max_steps: int) -> Iterator[None]:
    """Say in a line why Diffrax gave up; its own error holds the stack of the compiled program."""
    try:
        yield
    except RuntimeError as error:
        found = re.search(r"RuntimeError: (.*)", str(error))
        if "number of solver steps" in str(error):
            raise ValueError(
                f"`max_steps` must be enough for the integration, got {max_steps}; pass more."
            ) from error
        if found is None:
            raise
        raise ValueError(
            f"`solver` must be able to integrate, got an error: {found[1]}; try another, or "
            "smaller inputs."
        ) from error


def even_step(ts: Any) -> float | None:
    """The spacing of concrete times that are evenly spaced to rounding, otherwise `None`."""
    if is_traced(ts):
        return None
    times = np.asarray(ts)
    if times.ndim != 1 or times.size < 2:
        return None
    times = times.astype(float)
    step = (times[-1] - times[0]) / (times.size - 1)
    even = times[0] + step * np.arange(times.size)
    # A few units of rounding of the largest time, as `linspace` and `arange` leave behind.
    tolerance = 4 * np.finfo(float).eps * np.max(np.abs(times))
    return float(step) if np.all(np.abs(times - even) <= tolerance) else None


def convolve(weights: Float[Array, " lags"], xs: Float[Array, " lags"]) -> Float[Array, " times"]:
    """The outputs 0, `weights[0] xs[0]`, ... of a causal moving average, one more than inputs."""
    size = xs.size
    length = 2 * size
    spectrum = jnp.fft.rfft(weights, length) * jnp.fft.rfft(xs, length)
    return jnp.concatenate([jnp.zeros_like(xs[:1]), jnp.fft.irfft(spectrum, length)[:size]])
