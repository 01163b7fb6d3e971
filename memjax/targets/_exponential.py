import dataclasses
from collections.abc import Collection, Sequence
from typing import ClassVar, TypeVar

import jax.lax as lax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from .._checks import as_finite_array, as_positive_array, check_positive, check_same_shape
from .._typing import ArrayLike
from ..numerics import exponential_moment
from ._base import AbstractKernel
from ._product import register_inner_product
from ._sums import multiple, terms
from ._system import state_space, StateSpace
from ._target import Memory

_DECAY = "a kernel decays only with rates above 0"
_Kernel = TypeVar("_Kernel", bound=AbstractKernel)


class ExponentialSum(AbstractKernel):
    r"""A sum of decaying exponentials, $\rho(t) = \sum_j a_j e^{-w_j t}$ for $t \ge 0$.

    Its transform is $R(s) = \sum_j a_j / (s + w_j)$ and its memory decays exponentially: it is
    what a diagonal linear model represents exactly.

    **Arguments:**

    - `amplitudes`: the amplitudes $a_j$, shape `(terms,)`; a scalar is one term, and no
        terms at all is the zero kernel.
    - `rates`: the rates $w_j > 0$, of the same shape, in units of one over time.

    **Raises:** `ValueError` for a rate that is not positive, for NaN or infinity, and for
    shapes that differ or have more than one dimension.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 5 (theory, section 3).
    """

    memory: ClassVar[Memory] = "exponential"

    amplitudes: Float[Array, " terms"]
    rates: Float[Array, " terms"]

    def __init__(
        self,
        amplitudes: Real[ArrayLike, "..."],
        rates: Real[ArrayLike, "..."],
    ) -> None:
        self.amplitudes = as_mode_array("amplitudes", as_finite_array("amplitudes", amplitudes))
        self.rates = as_decay_rates(rates)
        check_same_shape("amplitudes", self.amplitudes, "rates", self.rates)

    def decays(self) -> Bool[Array, ""]:
        return jnp.all(self.rates > 0)

    def breakpoints(self) -> Float[Array, " points"]:
        return decay_breakpoints(self.rates)

    def support(self) -> Float[Array, ""]:
        return decay_support(jnp.abs(self.amplitudes), self.rates, self.squared_norm())

    def _value(self, t: Array) -> Array:
        return jnp.sum(self.amplitudes * jnp.exp(-self.rates * t[..., None]), axis=-1)

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        integrals = _decay_integral(s[..., None] + self.rates, horizon, 1)
        return jnp.sum(self.amplitudes * integrals, axis=-1)

    def _squared_norm(self, horizon: Array | None) -> Array:
        pairs = self.amplitudes[:, None] * self.amplitudes
        decays = self.rates[:, None] + self.rates
        return jnp.sum(pairs * _decay_integral(decays, horizon, 2), axis=(-2, -1))

    def _ramp_response(self, t: Array) -> Array:
        t = t[..., None]
        # int_0^1 (1 - u) e^(-xu) du: the difference is a third of the sum or more.
        x = self.rates * t
        moments = exponential_moment(0, x) - exponential_moment(1, x)
        return jnp.sum(self.amplitudes * t**2 * moments, axis=-1)


@state_space.register(ExponentialSum)
def _(kernel: ExponentialSum) -> StateSpace:
    ones = jnp.ones_like(kernel.rates)
    return StateSpace(-jnp.diag(kernel.rates), ones[:, None], kernel.amplitudes[None, :])


@register_inner_product(ExponentialSum, AbstractKernel)
def exponential_product(
    first: ExponentialSum, second: AbstractKernel, horizon: Array | None
) -> Float[Array, "..."]:
    """The inner product of an exponential sum and any kernel, by that kernel's transform."""
    transform = second._laplace(first.rates, None if horizon is None else horizon[..., None])
    return jnp.sum(first.amplitudes * transform, axis=-1)


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
    exponentials, rest = [], []
    for factor, term in terms(kernel):
        if isinstance(term, ExponentialSum):
            exponentials.append((factor, term))
        else:
            rest.append(multiple(factor, term))
    return join_modes(ExponentialSum, exponentials, ("amplitudes",)), tuple(rest)


def as_mode_array(name: str, array: Array) -> Float[Array, " modes"]:
    """One entry for each mode; a scalar is one mode."""
    array = jnp.atleast_1d(array)
    if array.ndim > 1:
        raise ValueError(
            f"`{name}` must have one dimension, got shape {array.shape}; batch kernels with "
            "`jax.vmap`."
        )
    return array


def as_decay_rates(rates: Real[ArrayLike, "..."]) -> Float[Array, " modes"]:
    """A rate above 0 for each mode."""
    return as_mode_array("rates", as_positive_array("rates", rates, _DECAY))


def kernel_of_modes(kind: type[_Kernel], **leaves: Array) -> _Kernel:
    """The kernel of a model, of checked leaves.

    Other than in a target, traced rates may have any sign here: training can carry them below 0,
    and over a finite horizon that is a kernel like others.
    """
    check_positive("rates", leaves["rates"], _DECAY)
    kernel = object.__new__(kind)
    for name, leaf in leaves.items():
        object.__setattr__(kernel, name, leaf)
    return kernel


def join_modes(
    kind: type[_Kernel],
    kernels: Sequence[tuple[float | Array, _Kernel]],
    linear: Collection[str],
) -> _Kernel:
    """The sum of factors times kernels of one kind, whose `linear` leaves carry the factors."""
    leaves = {}
    for name in (field.name for field in dataclasses.fields(kind)):
        scale = lambda factor, leaf, name=name: factor * leaf if name in linear else leaf
        parts = [scale(factor, getattr(kernel, name)) for factor, kernel in kernels]
        # Side by side and not merged: equal rates of traced kernels cannot be told, and derivatives
        # in each are those of its own term.
        leaves[name] = jnp.concatenate(parts or [jnp.zeros(0)])
    return kernel_of_modes(kind, **leaves)


def decay_breakpoints(rates: Float[Array, " terms"]) -> Float[Array, " points"]:
    """Panels for decays at `rates`, to 40 times the decay time."""
    return jnp.concatenate(
        # Ever longer panels, on which Gauss's rule still resolves the decay: e^(-40) is 4e-18.
        [jnp.zeros(1), (jnp.array([1.0, 4.0, 12.0, 40.0]) / rates[:, None]).ravel()]
    )


def decay_support(
    sizes: Float[Array, " terms"], rates: Float[Array, " terms"], squared_norm: Float[Array, ""]
) -> Float[Array, ""]:
    """When what is left of `sizes * exp(-rates t)` has 1e-16 of the norm of their sum."""
    # From a time T on each term has the norm `tails * exp(-rates * T)`.
    tails = sizes / jnp.sqrt(2 * rates)  # each term's own norm, to be shared among all of them
    norm = jnp.sqrt(jnp.maximum(squared_norm, jnp.finfo(squared_norm.dtype).tiny))
    excess = jnp.log(jnp.maximum(1e16 * sizes.size * tails / norm, 1))
    # An end at which nothing jumps has no derivative that counts.
    return lax.stop_gradient(jnp.max(excess / rates, initial=0))


def _decay_integral(rate: Array, horizon: Array | None, trailing: int) -> Array:
    """`int_0^horizon exp(-rate t) dt`, where `rate` ends in `trailing` axes of its own."""
    if horizon is None:
        return 1 / rate
    horizon = jnp.expand_dims(horizon, tuple(range(-trailing, 0)))
    return horizon * exponential_moment(0, rate * horizon)
