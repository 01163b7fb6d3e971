"""The arguments of searches for best sums, checked."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np

from .._checks import (
    as_finite_array,
    as_horizon,
    as_nonnegative,
    check_choice,
    check_flag,
    check_float64,
    check_nonnegative,
    check_scalar,
    is_traced,
    shown,
)
from .._typing import ArrayLike
from ..targets import AbstractKernel, SampledKernel
from ._search import Options, Search
from ._sum import NORMS, SAMPLES


def make_search(
    kernel: AbstractKernel,
    norm: str,
    min_rate: ArrayLike,
    complex: bool,
    horizon: ArrayLike | None,
    samples: str = "points",
    weights: ArrayLike | None = None,
    absolute_weights: bool = False,
    offset: bool = False,
) -> Search:
    """The checked arguments of a search."""
    end = check_kernel(kernel, norm, horizon)
    check_choice("samples", samples, SAMPLES, "measured samples are points")
    check_flag("complex", complex)
    check_flag("offset", offset)
    check_flag("absolute_weights", absolute_weights)
    rate = float(as_nonnegative("min_rate", min_rate))
    taken = samples if isinstance(kernel, SampledKernel) else None
    if weights is not None and taken != "points":
        raise ValueError(
            "`weights` must be None for what is no samples taken as points, got an array; a norm "
            "of functions weighs all times alike."
        )
    if offset and math.isinf(end):
        raise ValueError(
            "`offset` must be False for an infinite `horizon`, got True; a constant has no finite "
            "norm, so pass the time up to which errors count."
        )
    shares = None if weights is None else _as_weights(weights, kernel.times.size)  # pyright: ignore
    return Search(
        kernel,
        Options(norm, rate, complex, end, taken, shares, absolute_weights, offset),  # pyright: ignore
    )


def _as_weights(weights: ArrayLike, count: int) -> np.ndarray:
    values = as_finite_array("weights", weights)
    if values.shape != (count,):
        raise ValueError(
            f"`weights` must have one entry per sample, shape ({count},), got shape "
            f"{values.shape}; pass one over the variance of each."
        )
    check_nonnegative("weights", values, "pass one over the variance of each sample")
    return np.asarray(values)


def check_scalar_kernel(kernel: Any) -> None:
    """Refuse what is no kernel, and matrices of kernels."""
    matrix = isinstance(kernel, AbstractKernel) and kernel.shape != ()
    if matrix or not isinstance(kernel, AbstractKernel):
        got = f"one of shape {kernel.shape}" if matrix else None
        raise TypeError(
            f"`kernel` must be a scalar kernel, got {got or shown(kernel)}; pass the "
            "entries of a matrix of kernels one by one, and a model's `kernel()`."
        )


def check_kernel(kernel: AbstractKernel, norm: str, horizon: ArrayLike | None) -> float:
    """Refuse what cannot be approximated, and give the horizon."""
    check_choice("norm", norm, NORMS)
    check_scalar_kernel(kernel)
    if is_traced((kernel, horizon)):
        raise TypeError(
            "`kernel` must be concrete, got a traced one; the search adapts to the values and "
            "cannot run under `jax.jit` or `jax.vmap`."
        )
    check_float64("kernel", (kernel, jnp.zeros(())))
    name = type(kernel).__name__
    if horizon is None:
        end = float(kernel.times[-1]) if isinstance(kernel, SampledKernel) else math.inf
    else:
        finite = as_horizon(horizon)
        check_scalar("horizon", jnp.zeros(()) if finite is None else finite)
        end = math.inf if finite is None else float(finite)
        if not end > 0:
            raise ValueError(f"`horizon` must be positive, got {end}; pass a time above 0.")
    if isinstance(kernel, SampledKernel):
        values = np.asarray(kernel.values)
        if values.size < 4:
            raise ValueError(
                f"`kernel` must hold at least 4 samples, got {values.size}; fewer say nothing "
                "of a decay."
            )
        if np.all(values == values[0]):
            raise ValueError(
                f"`kernel` must vary, got samples that are all {values[0]}; a response that is "
                "constant as long as it was measured has no decay to fit."
            )
    if math.isinf(end):
        inside = {"L1": kernel.in_l1, "L2": kernel.in_l2, "sup": kernel.memory != "none"}
        if not inside[norm]:
            raise ValueError(
                f"`kernel` must have a finite {norm} norm and decay, got {name}; pass a finite "
                "`horizon`."
            )
    return end
