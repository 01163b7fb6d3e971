"""Reparametrisations: maps from free weights to decay rates (theory: Wang & Li 2024)."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._checks import as_float_array, check_positive, check_scalar


class AbstractReparametrisation(eqx.Module):
    r"""A map $w = \varphi(v)$ from free weights $v$ to decay rates $w$.

    A recurrent eigenvalue is $\lambda = -w$. Gradient flow acts on $v$, so that the rates
    feel the flow multiplied by $\varphi'(v)^2$. Leaves of a reparametrisation (its own
    parameters) are held fixed by every flow; they can still be swept and differentiated.

    To write one, subclass it and give the three methods below.

    ??? cite "Reference"

        Wang, Li, *StableSSM: Alleviating the Curse of Memory in State-space Models through
        Stable Reparameterization*, ICML 2024, Section 3.
    """

    @abc.abstractmethod
    def __call__(self, free: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The decay rates of the free weights, elementwise."""

    @abc.abstractmethod
    def inverse(self, rates: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """The free weights of the decay rates, elementwise."""

    @abc.abstractmethod
    def displacement(
        self, free: Float[Array, "*shape"], change: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        r"""$\varphi(v + \Delta) - \varphi(v)$, to full relative accuracy for tiny $\Delta$.

        Forming the two rates and subtracting them would leave only the digits of the
        difference that reach above the rounding of the rates.
        """


class Direct(AbstractReparametrisation):
    r"""The rates themselves are the weights, $w = v$.

    Not stable in the sense of Wang & Li: a perturbation of fixed size can carry a small rate
    across zero.
    """

    def __call__(self, free: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return free

    def inverse(self, rates: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return rates

    def displacement(
        self, free: Float[Array, "*shape"], change: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return change


class Exp(AbstractReparametrisation):
    r"""Rates as exponentials, $w = e^{g v}$, with a gain $g$ (published: $g = 1$).

    The rates stay positive whatever the flow does. The flow of the rates is that of
    [`memjax.Direct`][] times $g^2 w^2$, so the gain is a relative learning rate of the
    recurrent weights.

    **Arguments:**

    - `gain`: the positive number $g$. Defaults to 1.
    """

    gain: Float[Array, ""]

    def __init__(self, gain: float | Float[Array, ""] = 1.0):
        self.gain = as_float_array("gain", gain)
        check_scalar("gain", self.gain)
        check_positive("gain", self.gain)

    def __call__(self, free: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.exp(self.gain * free)

    def inverse(self, rates: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return jnp.log(rates) / self.gain

    def displacement(
        self, free: Float[Array, "*shape"], change: Float[Array, "*shape"]
    ) -> Float[Array, "*shape"]:
        return jnp.exp(self.gain * free) * jnp.expm1(self.gain * change)
