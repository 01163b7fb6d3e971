"""The Laplace transforms of what a target holds besides its exponentials, for every lane."""

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from ..numerics import double_double as dd
from ..numerics import over_lanes, Pair
from ..targets import AbstractKernel, GaussianBump, KernelSum


def remainder_transforms(kernel: AbstractKernel, s: Array, order: int) -> tuple[Any, ...]:
    """The Laplace transform of every lane's kernel, and its derivatives."""
    if isinstance(kernel, KernelSum):
        each = [remainder_transforms(term, s, order) for term in kernel.terms]
        return tuple(sum(values) for values in zip(*each, strict=True))
    if type(kernel) is GaussianBump:
        # Its scalars broadcast against the lanes as they are.
        return kernel.laplace_derivatives(s, order)
    of_lane = lambda kernel, s: kernel.laplace_derivatives(s, order)
    return over_lanes(of_lane)(kernel, s)


def remainder_pairs(
    kernel: AbstractKernel, s: Pair
) -> tuple[Pair, Pair, Array, tuple[Array, Array]]:
    """The transform of every lane's kernel and its derivative as pairs, the second derivative, and
    the errors of the first two."""
    if isinstance(kernel, KernelSum):
        each = [remainder_pairs(term, s) for term in kernel.terms]
        total = each[0]
        for t0, t1, t2, unknown in each[1:]:
            errors = total[3][0] + unknown[0], total[3][1] + unknown[1]
            total = dd.add(total[0], t0), dd.add(total[1], t1), total[2] + t2, errors
        return total
    t0, t1, t2 = remainder_transforms(kernel, s[0], 2)
    # The transform is exponential in the rates, which makes much of what they round off: their
    # lower parts count to first order.
    rounded = (t0, t1 * s[1]), (t1, t2 * s[1])
    eps = float(jnp.finfo(t0.dtype).eps)
    errors = 8 * eps * jnp.abs(t0), 8 * eps * jnp.abs(t1)
    if type(kernel) is not GaussianBump:
        return *rounded, t2, errors
    # Its scalars broadcast against the lanes as they are.
    *pairs, known = kernel.transform_pairs(s)
    first, second = (
        (jnp.where(known, pair[0], other[0]), jnp.where(known, pair[1], other[1]))
        for pair, other in zip(pairs, rounded, strict=True)
    )
    # That is 4e-29. Pairs were right to 3e-29 at rates from 0.1 to 8 and delays from 20 to 60.
    share = jnp.where(known, 100 * eps, 1.0)
    return first, second, t2, (share * errors[0], share * errors[1])
