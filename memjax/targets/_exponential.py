from typing import TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._checks import (
    as_finite_array,
    as_float_array,
    as_horizon,
    as_positive_array,
    check_nonnegative,
    check_positive,
    check_same_shape,
)
from .._typing import ArrayLike
from ..numerics import exponential_moment
from ._base import AbstractKernel, Memory

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

    @property
    def memory(self) -> Memory:
        return "exponential"

    def breakpoints(self) -> Float[Array, " points"]:
        return decay_breakpoints(self.rates)

    def support(self) -> Float[Array, ""]:
        return decay_support(jnp.abs(self.amplitudes), self.rates, self.squared_norm())

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        t = as_float_array("t", t)
        decays = jnp.exp(-self.rates * jnp.maximum(t, 0)[..., None])
        return jnp.where(t < 0, 0, jnp.sum(self.amplitudes * decays, axis=-1))

    def laplace(
        self, s: Real[ArrayLike, "..."], horizon: Real[ArrayLike, "..."] | None = jnp.inf
    ) -> Float[Array, "..."]:
        s = as_float_array("s", s)
        check_nonnegative("s", s)
        return jnp.sum(
            self.amplitudes * _decay_integral(s[..., None] + self.rates, as_horizon(horizon), 1),
            axis=-1,
        )

    def squared_norm(self, horizon: Real[ArrayLike, "..."] | None = jnp.inf) -> Float[Array, "..."]:
        pairs = self.amplitudes[:, None] * self.amplitudes
        decays = self.rates[:, None] + self.rates
        return jnp.sum(pairs * _decay_integral(decays, as_horizon(horizon), 2), axis=(-2, -1))

    def heaviside_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        t = jnp.maximum(as_float_array("t", t), 0)
        return jnp.sum(self.amplitudes * _decay_integral(self.rates, t, 1), axis=-1)

    def ramp_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        t = jnp.maximum(as_float_array("t", t), 0)[..., None]
        x = self.rates * t
        moments = exponential_moment(0, x) - exponential_moment(1, x)
        return jnp.sum(self.amplitudes * t**2 * moments, axis=-1)


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


def decay_breakpoints(rates: Float[Array, " terms"]) -> Float[Array, " points"]:
    """Panels for decays at `rates`, to 40 times the decay time."""
    return jnp.concatenate(
        [jnp.zeros(1), (jnp.array([1.0, 4.0, 12.0, 40.0]) / rates[:, None]).ravel()]
    )


def decay_support(
    sizes: Float[Array, " terms"], rates: Float[Array, " terms"], squared_norm: Float[Array, ""]
) -> Float[Array, ""]:
    """When what is left of `sizes * exp(-rates t)` has 1e-16 of the norm of their sum."""
    tails = sizes / jnp.sqrt(2 * rates)  # each term's own norm, to be shared among all of them
    norm = jnp.sqrt(jnp.maximum(squared_norm, jnp.finfo(squared_norm.dtype).tiny))
    excess = jnp.log(jnp.maximum(1e16 * sizes.size * tails / norm, 1))
    return jnp.max(excess / rates, initial=0)


def _decay_integral(rate: Array, horizon: Array | None, trailing: int) -> Array:
    """`int_0^horizon exp(-rate t) dt`, where `rate` ends in `trailing` axes of its own."""
    if horizon is None:
        return 1 / rate
    horizon = jnp.expand_dims(horizon, tuple(range(-trailing, 0)))
    return horizon * exponential_moment(0, rate * horizon)
