import abc
from collections.abc import Callable
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Real

if TYPE_CHECKING:
    from ._sum import KernelSum


class AbstractTarget(eqx.Module):
    r"""What a model is to learn: a causal, continuous, time-homogeneous functional.

    A target maps an input path $x: \mathbb{R} \to \mathbb{R}^d$ to an output path
    $y_t = H_t(x)$ that depends on $x_s$ for $s \le t$ only, and shifting the input in time
    shifts the output by the same amount. Time is in units of the model's own clock.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 3 (theory, section 1).
    """


class AbstractKernel(AbstractTarget):
    r"""A linear functional of a scalar input, given by its kernel $\rho$.

    $$H_t(x) = \int_0^\infty \rho(s)\, x_{t-s} \,\mathrm{d}s$$

    To define a kernel of your own, subclass this and write the five methods below. Each acts
    elementwise on arrays of any shape, broadcasts its arguments, and has to be differentiable
    with JAX in them and in the kernel's own leaves. The losses need `laplace` and `squared_norm`;
    products with measured kernels need the two responses. Kernels add: `first + second` and
    `sum(kernels)` give a [`memjax.KernelSum`][].

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, sections 3 and 5 (theory, sections 1 and 3).
    """

    @abc.abstractmethod
    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        r"""The kernel $\rho(t)$, which is 0 for $t < 0$.

        **Arguments:**

        - `t`: Times, any shape.

        **Returns:**

        An array of the shape of `t`.
        """

    @abc.abstractmethod
    def laplace(
        self, s: Real[ArrayLike, "..."], horizon: Real[ArrayLike, "..."] = jnp.inf
    ) -> Float[Array, "..."]:
        r"""The Laplace transform $R(s) = \int_0^h e^{-st} \rho(t) \,\mathrm{d}t$.

        Differentiable in `s` to any order, and in a finite `horizon`.

        **Arguments:**

        - `s`: The Laplace variable, $s > 0$, in units of one over time.
        - `horizon`: The horizon $h$: the scalar `inf`, or finite times.

        **Returns:**

        An array of the broadcast shape of `s` and `horizon`.
        """

    def laplace_derivatives(
        self, s: Float[Array, "..."], order: int
    ) -> tuple[Float[Array, "..."], ...]:
        r"""The transform $R(s)$ over the half line and its derivatives, elementwise.

        Overridden where all of them together are cheaper than one by one.

        **Arguments:**

        - `s`: The Laplace variable, $s > 0$, in units of one over time.
        - `order`: The order of the highest derivative.

        **Returns:**

        The tuple $R(s), R'(s), \dots$ of `order + 1` arrays of the shape of `s`.
        """
        function = self.laplace
        values = [function(s)]
        for _ in range(order):
            function = elementwise_derivative(function)
            values.append(function(s))
        return tuple(values)

    @abc.abstractmethod
    def squared_norm(self, horizon: Real[ArrayLike, "..."] = jnp.inf) -> Float[Array, "..."]:
        r"""The squared norm $\int_0^h \rho(t)^2 \,\mathrm{d}t$.

        **Arguments:**

        - `horizon`: The horizon $h$: the scalar `inf`, or finite times.

        **Returns:**

        An array of the shape of `horizon`.
        """

    @abc.abstractmethod
    def heaviside_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        r"""The response $\int_0^t \rho(s) \,\mathrm{d}s$ to the input $1[t \ge 0]$.

        **Arguments:**

        - `t`: Finite times, any shape; the response is 0 for $t \le 0$.

        **Returns:**

        An array of the shape of `t`.
        """

    @abc.abstractmethod
    def ramp_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        r"""The response $\int_0^t (t - s) \rho(s) \,\mathrm{d}s$ to the input $\max(t, 0)$.

        It is the integral of `heaviside_response`.

        **Arguments:**

        - `t`: Finite times, any shape; the response is 0 for $t \le 0$.

        **Returns:**

        An array of the shape of `t`.
        """

    def __add__(self, other: object) -> "KernelSum":
        from ._sum import KernelSum  # the sum is itself a kernel, hence not at the top

        if not isinstance(other, AbstractKernel):
            return NotImplemented
        return KernelSum((self, other))

    def __radd__(self, other: object) -> "AbstractKernel":
        # `sum(kernels)` starts from the integer 0.
        if isinstance(other, int) and other == 0:
            return self
        return NotImplemented


def elementwise_derivative(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda s: jax.jvp(function, (s,), (jnp.ones_like(s),))[1]
