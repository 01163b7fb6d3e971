"""Sampled input paths: their checks, and what evenly spaced times make cheap."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from types import EllipsisType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._checks import as_finite_array, as_float_array, as_increasing, is_traced


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


# Differences of float32 seconds at 16 kHz are wrong by up to 40 % after five minutes. So steps are
# those of times as they were given, before anything rounds them. Where they were rounded before, an
# even clock has one step, and of an uneven one the steps are good to 0.2 %, or refused.
_SHARE = 2e-3


def as_steps(ts: Any, name: str = "ts") -> Float[Array, " steps"]:
    """The steps between times, as exactly as the times tell them.

    Concrete times are looked at as they were given: pass them on unconverted. Traced ones whose
    rounding is more than 0.2 % of a step, and which are not even, have the step NaN.

    **Raises:**

    `ValueError` for concrete times of that kind.
    """
    array = as_float_array(name, ts)
    if not is_traced(ts):
        step = even_step(ts)
        if step is not None:
            return jnp.full(array.size - 1, step, array.dtype)
        check_resolved(ts, name)
        return jnp.asarray(np.diff(_as_given(ts)[0]), array.dtype)
    steps = jnp.diff(array)
    largest = jnp.finfo(array.dtype).eps * jnp.max(jnp.abs(array))
    mean = (array[-1] - array[0]) / (array.size - 1)
    apart = array - (array[0] + mean * jnp.arange(array.size))
    even = jnp.all(jnp.abs(apart) <= 4 * largest) & (largest <= _SHARE * (array[-1] - array[0]))
    better = jnp.where(even, mean - steps, jnp.where(resolved(array), 0, jnp.nan))
    # The value is a better one, the derivatives are those of differences.
    return steps + jax.lax.stop_gradient(better.astype(array.dtype))


def resolved(ts: Any) -> Any:
    """Whether rounding changes the steps between times by less than 0.2 %."""
    if is_traced(ts):
        ends, steps, unit = jnp.abs(ts), jnp.diff(ts), jnp.finfo(ts.dtype).eps
        return jnp.all(unit * jnp.maximum(ends[1:], ends[:-1]) <= _SHARE * steps)
    times, unit = _as_given(ts)
    ends = np.abs(times)
    return bool(np.all(unit * np.maximum(ends[1:], ends[:-1]) <= _SHARE * np.diff(times)))


def check_resolved(ts: Any, name: str = "ts") -> None:
    """Refuse concrete times whose differences are lost in their rounding."""
    if is_traced(ts) or resolved(ts):
        return
    times, unit = _as_given(ts)
    share = float(np.max(unit * np.abs(times[1:]) / np.diff(times)))
    raise ValueError(
        f"`{name}` must tell its steps, got times up to {np.max(np.abs(times)):.6g} that are "
        f"rounded by up to {100 * share:.2g} % of a step; pass them in float64, as a NumPy array "
        "or with `jax_enable_x64`, or count them from a nearer start."
    )


def even_step(ts: Any) -> float | None:
    """The spacing of concrete times that are evenly spaced to rounding, otherwise `None`."""
    if is_traced(ts):
        return None
    if np.ndim(ts) != 1 or np.size(ts) < 2:
        return None
    times, unit = _as_given(ts)
    step = (times[-1] - times[0]) / (times.size - 1)
    even = times[0] + step * np.arange(times.size)
    # `linspace`, `arange` and conversions leave a unit of the largest time behind. The step is
    # known as well as the ends are.
    largest = unit * np.max(np.abs(times))
    known = largest <= _SHARE * (times[-1] - times[0])
    return float(step) if known and np.all(np.abs(times - even) <= 2 * largest) else None


def _as_given(ts: Any) -> tuple[np.ndarray, float]:
    """Concrete times in float64, and the relative rounding that they have been through."""
    values = np.asarray(ts)
    floating = jnp.issubdtype(values.dtype, jnp.floating)
    unit = max(float(jnp.finfo(values.dtype if floating else float).eps), np.finfo(float).eps)
    return values.astype(float), unit


def convolve(weights: Float[Array, " lags"], xs: Float[Array, " lags"]) -> Float[Array, " times"]:
    """The outputs 0, `weights[0] xs[0]`, ... of a causal moving average, one more than inputs."""
    size = xs.size
    length = 2 * size
    spectrum = jnp.fft.rfft(weights, length) * jnp.fft.rfft(xs, length)
    return jnp.concatenate([jnp.zeros_like(xs[:1]), jnp.fft.irfft(spectrum, length)[:size]])
