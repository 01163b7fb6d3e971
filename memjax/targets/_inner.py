import functools
import math
import operator

import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

from .._checks import as_horizon
from ._base import AbstractKernel
from ._bump import bump_product, GaussianBump
from ._exponential import ExponentialSum
from ._sampled import SampledKernel
from ._sum import KernelSum


def inner_product(
    first: AbstractKernel,
    second: AbstractKernel,
    horizon: Real[ArrayLike, "..."] = jnp.inf,
) -> Float[Array, "..."]:
    r"""The inner product of two kernels, $\int_0^h \rho_1(t) \rho_2(t) \,\mathrm{d}t$.

    It is the covariance of the two outputs under white-noise input (theory, section 3).
    Sums distribute. An exponential sum with any kernel is $\sum_j a_j R(w_j)$, and a sampled
    kernel with any kernel is integrated by parts through that kernel's responses, so both also
    work with kernels of your own. The integration by parts is accurate to rounding of
    the product of the norms, all else relative to the result.

    **Arguments:**

    - `first`, `second`: The kernels $\rho_1$ and $\rho_2$.
    - `horizon`: The horizon $h$: the scalar `inf`, or finite times.

    **Returns:**

    An array of the shape of `horizon`.

    **Raises:** `TypeError` if no closed form is known for the two types.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 5 (theory, section 3).
    """
    for name, kernel in (("first", first), ("second", second)):
        if not isinstance(kernel, AbstractKernel):
            raise TypeError(
                f"`{name}` must be a kernel, got {type(kernel).__name__}; "
                "pass an instance of `AbstractKernel`."
            )
    if first is second:
        return first.squared_norm(horizon)
    if isinstance(first, KernelSum):
        products = [inner_product(term, second, horizon) for term in first.terms]
        return functools.reduce(operator.add, products)
    if isinstance(second, KernelSum):
        products = [inner_product(first, term, horizon) for term in second.terms]
        return functools.reduce(operator.add, products)
    if isinstance(first, ExponentialSum):
        return _exponential_product(first, second, horizon)
    if isinstance(second, ExponentialSum):
        return _exponential_product(second, first, horizon)
    if isinstance(first, GaussianBump) and isinstance(second, GaussianBump):
        return bump_product(first, second, horizon)
    if isinstance(first, SampledKernel) and isinstance(second, SampledKernel):
        return _sampled_product(first, second, horizon)
    if isinstance(first, SampledKernel):
        return _product_by_parts(first, second, horizon)
    if isinstance(second, SampledKernel):
        return _product_by_parts(second, first, horizon)
    raise TypeError(
        f"`first` and `second` have no known inner product, got {type(first).__name__} and "
        f"{type(second).__name__}; sample one of them into a `SampledKernel`."
    )


def _exponential_product(
    first: ExponentialSum, second: AbstractKernel, horizon: ArrayLike
) -> Array:
    finite = as_horizon(horizon)
    transform = second.laplace(first.rates, jnp.inf if finite is None else finite[..., None])
    return jnp.sum(first.amplitudes * transform, axis=-1)


def _sampled_product(first: SampledKernel, second: SampledKernel, horizon: ArrayLike) -> Array:
    # On the merged grid the product is quadratic between neighbours, and two Gauss points, which
    # never touch a jump at the ends of either kernel, integrate it exactly.
    grid = jnp.sort(jnp.concatenate([first.times, second.times]))
    finite = as_horizon(horizon)
    if finite is not None:
        grid = jnp.minimum(grid, finite[..., None])
    steps = jnp.diff(grid, axis=-1)
    middle = grid[..., :-1] + steps / 2
    offset = steps / (2 * math.sqrt(3))
    total = sum(first(point) * second(point) for point in (middle - offset, middle + offset))
    return jnp.sum(steps * total, axis=-1) / 2


def _product_by_parts(first: SampledKernel, second: AbstractKernel, horizon: ArrayLike) -> Array:
    slopes = jnp.diff(first.values) / jnp.diff(first.times)
    times = first.times
    finite = as_horizon(horizon)
    if finite is not None:
        times = jnp.minimum(times, finite[..., None])
    steps = second.heaviside_response(times[..., [0, -1]])
    ramps = second.ramp_response(times)
    end = jnp.interp(times[..., -1], first.times, first.values)
    return (
        end * steps[..., 1]
        - first.values[0] * steps[..., 0]
        - jnp.sum(slopes * jnp.diff(ramps, axis=-1), axis=-1)
    )
