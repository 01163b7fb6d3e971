import functools
import itertools
import operator

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._checks import as_list
from .._typing import ArrayLike
from ._base import AbstractKernel, Memory, slowest_memory
from ._composed import check_kernel, ScaledKernel
from ._exponential import ExponentialSum, kernel_of_modes


class KernelSum(AbstractKernel):
    r"""A sum of kernels, $\rho(t) = \sum_j \rho_j(t)$.

    It stays a sum: the exponential part and a delayed remainder are kept apart, so that a loss
    can cancel the first exactly and resolve an exponentially small second (theory, section 3).
    Usually made by `first + second`. Sums among the terms are flattened.

    **Arguments:**

    - `terms`: the kernels to add, at least one.

    **Raises:** `TypeError` for a term that is no kernel, `ValueError` for no terms.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 5 (theory, section 3).
    """

    terms: tuple[AbstractKernel, ...]

    def __init__(self, terms: tuple[AbstractKernel, ...]) -> None:
        flat: list[AbstractKernel] = []
        for term in as_list("terms", terms, "kernels"):
            check_kernel("terms", term)
            flat.extend(term.terms if isinstance(term, KernelSum) else (term,))
        if not flat:
            raise ValueError(
                "`terms` must hold at least one kernel, got (); "
                "the zero kernel is an `ExponentialSum` of empty arrays."
            )
        self.terms = tuple(flat)

    @property
    def memory(self) -> Memory:
        return slowest_memory(self.terms)

    @property
    def in_l1(self) -> bool:
        return all(term.in_l1 for term in self.terms)

    @property
    def in_l2(self) -> bool:
        return all(term.in_l2 for term in self.terms)

    def breakpoints(self) -> Float[Array, " points"]:
        return jnp.concatenate([term.breakpoints() for term in self.terms])

    def support(self) -> Float[Array, ""]:
        return functools.reduce(jnp.maximum, [term.support() for term in self.terms])

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return functools.reduce(operator.add, [term(t) for term in self.terms])

    def laplace(
        self, s: Real[ArrayLike, "..."], horizon: Real[ArrayLike, "..."] | None = jnp.inf
    ) -> Float[Array, "..."]:
        return functools.reduce(operator.add, [term.laplace(s, horizon) for term in self.terms])

    def squared_norm(self, horizon: Real[ArrayLike, "..."] | None = jnp.inf) -> Float[Array, "..."]:
        r"""The squared norm, the sum of [`memjax.inner_product`][] over all pairs of terms.

        **Raises:** as [`memjax.inner_product`][].
        """
        from ._inner import inner_product

        pairs = [
            2 * inner_product(first, second, horizon)
            for first, second in itertools.combinations(self.terms, 2)
        ]
        squares = [term.squared_norm(horizon) for term in self.terms]
        return functools.reduce(operator.add, squares + pairs)

    def heaviside_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return functools.reduce(operator.add, [term.heaviside_response(t) for term in self.terms])

    def ramp_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        return functools.reduce(operator.add, [term.ramp_response(t) for term in self.terms])


def split_exponential(
    kernel: AbstractKernel,
) -> tuple[ExponentialSum, tuple[AbstractKernel, ...]]:
    """Separate a kernel's exponential part from all the rest.

    **Arguments:**

    - `kernel`: Any kernel; a sum is taken term by term, a scaled kernel with its factor.

    **Returns:**

    One `ExponentialSum` with the terms of all the exponential sums, in order and possibly none,
    and the tuple of the other kernels. They add up to `kernel` (theory, section 3).
    """
    terms = _terms(kernel)
    exponentials = [term for term in terms if isinstance(term, ExponentialSum)]
    rest = tuple(term for term in terms if not isinstance(term, ExponentialSum))
    if not exponentials:
        return ExponentialSum(jnp.zeros(0), jnp.zeros(0)), rest
    amplitudes = jnp.concatenate([term.amplitudes for term in exponentials])
    rates = jnp.concatenate([term.rates for term in exponentials])
    return kernel_of_modes(ExponentialSum, amplitudes=amplitudes, rates=rates), rest


def _terms(kernel: AbstractKernel) -> tuple[AbstractKernel, ...]:
    """The terms of a sum, where factors belong to the terms and join an exponential sum."""
    if isinstance(kernel, KernelSum):
        return tuple(part for term in kernel.terms for part in _terms(term))
    if not isinstance(kernel, ScaledKernel):
        return (kernel,)
    scaled: list[AbstractKernel] = []
    for term in _terms(kernel.kernel):
        if isinstance(term, ExponentialSum):
            amplitudes = kernel.factor * term.amplitudes
            scaled.append(kernel_of_modes(ExponentialSum, amplitudes=amplitudes, rates=term.rates))
        else:
            scaled.append(ScaledKernel(term, kernel.factor))
    return tuple(scaled)
