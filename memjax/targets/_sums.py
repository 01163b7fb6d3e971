"""Sums and multiples of kernels are kernels, and every kernel is a sum of factors times terms."""

import functools
import itertools
import operator
from collections.abc import Iterable

from jaxtyping import Array, Float, Real

from .._checks import as_list, as_number
from .._typing import ScalarLike
from ._base import AbstractKernel, added, check_kernel, scaled
from ._product import pair_product
from ._system import side_by_side, state_space, StateSpace


class ScaledKernel(AbstractKernel):
    r"""A number times a kernel, $\rho(t) = c\, \rho_0(t)$. Usually made by `c * kernel`.

    **Arguments:**

    - `kernel`: the kernel to scale.
    - `factor`: the number $c$, a scalar.

    **Raises:** `TypeError` for what is no kernel or no number, `ValueError` for NaN, infinity
    and arrays.
    """

    kernel: AbstractKernel
    factor: Float[Array, ""]

    def __init__(self, kernel: AbstractKernel, factor: Real[ScalarLike, ""]) -> None:
        check_kernel("kernel", kernel)
        self.kernel = kernel
        self.factor = as_number("factor", factor)

    def _parts(self) -> tuple[AbstractKernel, ...]:
        return (self.kernel,)

    def laplace_derivatives(self, s: Float[Array, "..."], order: int) -> tuple[Array, ...]:
        values = self.kernel.laplace_derivatives(s, order)
        return tuple(self.factor * value for value in values)

    def _value(self, t: Array) -> Array:
        return self.factor * self.kernel._value(t)

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        return self.factor * self.kernel._laplace(s, horizon)

    def _squared_norm(self, horizon: Array | None) -> Array:
        return self.factor**2 * self.kernel._squared_norm(horizon)

    def _heaviside_response(self, t: Array) -> Array:
        return self.factor * self.kernel._heaviside_response(t)

    def _ramp_response(self, t: Array) -> Array:
        return self.factor * self.kernel._ramp_response(t)


class KernelSum(AbstractKernel):
    r"""A sum of kernels, $\rho(t) = \sum_j \rho_j(t)$.

    It stays a sum: the exponential part and a delayed remainder are kept apart, so that a loss
    can cancel the first exactly and resolve an exponentially small second (theory, section 3).
    Usually made by `first + second`. Sums among the terms are flattened. The squared norm is the
    sum of [`memjax.inner_product`][] over all pairs of terms, with its errors.

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

    def _parts(self) -> tuple[AbstractKernel, ...]:
        return self.terms

    def _value(self, t: Array) -> Array:
        return total(term._value(t) for term in self.terms)

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        return total(term._laplace(s, horizon) for term in self.terms)

    def _squared_norm(self, horizon: Array | None) -> Array:
        squares = [term._squared_norm(horizon) for term in self.terms]
        pairs = itertools.combinations(self.terms, 2)
        return total(squares + [2 * scalar_product(a, b, horizon) for a, b in pairs])

    def _heaviside_response(self, t: Array) -> Array:
        return total(term._heaviside_response(t) for term in self.terms)

    def _ramp_response(self, t: Array) -> Array:
        return total(term._ramp_response(t) for term in self.terms)


def terms(kernel: AbstractKernel) -> tuple[tuple[float | Array, AbstractKernel], ...]:
    """A scalar kernel as a sum of factors times kernels that are neither sums nor multiples.

    **Arguments:**

    - `kernel`: Any kernel.

    **Returns:**

    The pairs of factor and kernel, in order; a kernel that is not scaled has the factor `1.0`.
    """
    if isinstance(kernel, KernelSum):
        return tuple(pair for term in kernel.terms for pair in terms(term))
    if isinstance(kernel, ScaledKernel):
        return tuple((kernel.factor * factor, term) for factor, term in terms(kernel.kernel))
    return ((1.0, kernel),)


def multiple(factor: float | Array, kernel: AbstractKernel) -> AbstractKernel:
    """A kernel of one of the `terms`."""
    return kernel if isinstance(factor, float) and factor == 1 else ScaledKernel(kernel, factor)


def scalar_product(
    first: AbstractKernel, second: AbstractKernel, horizon: Array | None
) -> Float[Array, "..."]:
    """The inner product of two scalar kernels, which distributes over their terms."""
    if first is second:
        return first._squared_norm(horizon)
    rows = []
    for factor, term in terms(first):
        row = [
            other_factor * pair_product(term, other, horizon)
            for other_factor, other in terms(second)
        ]
        rows.append(factor * total(row))
    return total(rows)


@added.register(AbstractKernel)
def _(first: AbstractKernel, second: AbstractKernel) -> KernelSum:
    return KernelSum((first, second))


@scaled.register(AbstractKernel)
def _(kernel: AbstractKernel, factor: Real[ScalarLike, ""]) -> ScaledKernel:
    return ScaledKernel(kernel, factor)


@state_space.register(ScaledKernel)
@state_space.register(KernelSum)
def _(kernel: AbstractKernel) -> StateSpace | None:
    systems = [(factor, state_space(term)) for factor, term in terms(kernel)]
    if any(system is None for _, system in systems):
        return None
    return side_by_side([factor * system for factor, system in systems])  # pyright: ignore


def total(values: Iterable[Array]) -> Array:
    """The sum of arrays, from the first to the last."""
    return functools.reduce(operator.add, values)
