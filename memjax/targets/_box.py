import math
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Complex, Float, Real

from .._typing import ScalarLike
from ..numerics import complex_exponential_moment, exponential_moment
from ._base import AbstractKernel
from ._complex import complex_transforms
from ._target import Memory
from ._window import as_window


class Box(AbstractKernel):
    r"""Memory of one stretch of the past, $\rho(t) = 1$ for $t_0 < t < t_1$ and 0 elsewhere.

    Its transform is $R(s) = e^{-s t_0} (1 - e^{-s(t_1 - t_0)}) / s$. The "shift" target of Wang
    and Li is `Box(9, 11)`.

    **Arguments:**

    - `start`: the time $t_0 \ge 0$.
    - `stop`: the time $t_1 > t_0$, finite.

    Both are scalars; batch kernels with `jax.vmap`.

    **Raises:** `ValueError` for times in the wrong order or negative, for NaN or infinity,
    and for arrays.

    ??? cite "Reference"

        Wang, Li, *StableSSM: Alleviating the Curse of Memory in State-space Models through Stable
        Reparameterization*, ICML 2024, section 3 (theory, section 3).
    """

    memory: ClassVar[Memory] = "finite"

    start: Float[Array, ""]
    stop: Float[Array, ""]

    def __init__(self, start: Real[ScalarLike, ""], stop: Real[ScalarLike, ""]) -> None:
        self.start, self.stop = as_window(start, stop)

    def breakpoints(self) -> Float[Array, " points"]:
        return jnp.stack([self.start, self.stop])

    def support(self) -> Float[Array, ""]:
        return self.stop

    def _value(self, t: Array) -> Array:
        return jnp.where((t > self.start) & (t < self.stop), jnp.ones_like(t), 0)

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        length = self._length(horizon)
        # The difference of two exponentials over s would lose its digits where s times the length
        # is small.
        return jnp.exp(-s * self.start) * length * exponential_moment(0, s * length)

    def _squared_norm(self, horizon: Array | None) -> Array:
        return self._length(horizon)

    def _heaviside_response(self, t: Array) -> Array:
        return self._length(t)

    def _ramp_response(self, t: Array) -> Array:
        length = self._length(t)
        return length * (jnp.maximum(t - self.start, 0) - length / 2)

    def _length(self, end: Array | None) -> Array:
        """How much of the box lies before `end`."""
        length = self.stop - self.start
        return length if end is None else jnp.clip(end - self.start, 0, length)


@complex_transforms.register(Box)
def _(box: Box, s: Complex[Array, "..."], order: int) -> tuple[Array, ...]:
    length = box.stop - box.start
    moments = [
        length ** (k + 1) * complex_exponential_moment(k, s * length) for k in range(order + 1)
    ]
    decay = jnp.exp(-s * box.start)
    # Of powers of the time, counted from the start of the box: all terms have one sign for a real
    # argument.
    powers = [
        sum(math.comb(k, j) * box.start ** (k - j) * moments[j] for j in range(k + 1))
        for k in range(order + 1)
    ]
    return tuple((-1) ** k * decay * power for k, power in enumerate(powers))
