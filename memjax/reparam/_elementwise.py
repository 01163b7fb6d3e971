"""Any function of a free weight as a reparametrisation."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._checks import as_float_array, as_positive_array, check_callable, is_traced
from .._typing import ArrayLike
from ..numerics import gauss_rule
from ._base import AbstractReparametrisation

# The nodes and weights of Gauss's quadrature on [0, 1].
_GAUSS = tuple(x.tolist() for x in ((gauss_rule(8)[0] + 1) / 2, gauss_rule(8)[1] / 2))


class Elementwise(AbstractReparametrisation):
    r"""Any function of a free weight as the rate, $w = f(v)$.

    **Arguments:**

    - `function`: a smooth positive function of one number, applied to arrays elementwise and
        differentiable by JAX. If it is an `equinox.Module`, its arrays are leaves, and held
        fixed like those of every reparametrisation.
    - `inverse`: the free weight of a rate, as a function alike. Needed wherever a model is made
        from its rates, which all constructors do.

    The displacement is found by Gauss's quadrature of $f'$ where that is small against the
    rate, to full relative accuracy, and by subtraction elsewhere.
    """

    function: Callable[[Array], Array]
    inverse_function: Callable[[Array], Array] | None

    def __init__(
        self,
        function: Callable[[Array], Array],
        inverse: Callable[[Array], Array] | None = None,
    ) -> None:
        self.function = as_callable("function", function)
        self.inverse_function = None if inverse is None else as_callable("inverse", inverse)

    def __call__(self, free: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        return as_float_array("function", self.function(as_float_array("free", free)))

    def inverse(self, rates: Real[ArrayLike, "*shape"]) -> Float[Array, "*shape"]:
        if self.inverse_function is None:
            raise ValueError(
                "`inverse` must be given to make free weights from rates, got None; pass "
                "memjax.Elementwise(function, inverse)."
            )
        rates = as_positive_array("rates", rates)
        free = as_float_array("inverse", self.inverse_function(rates))
        if not is_traced((rates, free, self)):
            again, asked = np.asarray(self.function(free)), np.asarray(rates)
            wrong = ~(np.abs(again - asked) <= 1e-3 * asked)
            if np.any(wrong):
                raise ValueError(
                    f"`inverse` must undo `function`, got rate {again[wrong].ravel()[0]} back "
                    f"for {asked[wrong].ravel()[0]}; correct it, or keep to rates in its range."
                )
        return free

    def displacement(
        self, free: Float[Array, "*#shape"], change: Float[Array, "*#shape"]
    ) -> Float[Array, "*#shape"]:
        free, change = jnp.broadcast_arrays(free, change)
        slope = lambda v: jax.jvp(self.function, (v,), (jnp.ones_like(v),))[1]
        rates = self.function(free)
        difference = self.function(free + change) - rates
        # Small by its derivatives at both ends and by its value: then the interval is short
        # against the scale on which the rate varies, and the quadrature is exact to rounding.
        largest = jnp.maximum(jnp.abs(slope(free)), jnp.abs(slope(free + change)))
        small = jnp.maximum(jnp.abs(change) * largest, jnp.abs(difference)) < rates / 8
        short = jnp.where(small, change, 0)
        mean = sum(
            weight * slope(free + node * short) for node, weight in zip(*_GAUSS, strict=True)
        )
        return jnp.where(small, short * mean, difference)


def as_callable(name: str, value: Any) -> Any:
    """A callable that is a PyTree: a module as it is, any other function without leaves."""
    check_callable(name, value, "pass one, as jnp.tanh is")
    return _Function(value) if not isinstance(value, eqx.Module) else value


class _Function(eqx.Module):
    function: Callable[..., Any] = eqx.field(static=True)

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)
