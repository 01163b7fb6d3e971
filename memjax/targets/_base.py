import abc
from collections.abc import Callable, Iterable
from typing import get_args, Literal, TYPE_CHECKING

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from .._paths import as_samples, as_steps, convolve, even_step
from .._typing import ArrayLike

if TYPE_CHECKING:
    from ._composed import ScaledKernel
    from ._sum import KernelSum

Memory = Literal["finite", "exponential", "polynomial", "none", "unknown"]

# In the order of how slowly they decay.
MEMORIES: tuple[Memory, ...] = get_args(Memory)


class AbstractTarget(eqx.Module):
    r"""What a model is to learn: a causal, continuous, time-homogeneous functional.

    A target maps an input path $x: \mathbb{R} \to \mathbb{R}^d$ to an output path
    $y_t = H_t(x)$ that depends on $x_s$ for $s \le t$ only, and shifting the input in time
    shifts the output by the same amount. Time is in units of the model's own clock.

    To define a target of your own, subclass this and write `linear`, `memory` and `response`; a
    linear functional of a scalar input is better written as an [`memjax.AbstractKernel`][].

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 3 (theory, section 1).
    """

    @property
    @abc.abstractmethod
    def linear(self) -> bool:
        """Whether the output is linear in the input path."""

    @property
    @abc.abstractmethod
    def memory(self) -> Memory:
        r"""How fast the memory function decays (theory, section 1).

        One of `"finite"` (0 beyond some time), `"exponential"` (exponential decay or faster),
        `"polynomial"` (some power of time, but no exponential), `"none"` (it does not decay at
        all, so no class applies) and `"unknown"` (nothing is stated).
        """

    @abc.abstractmethod
    def response(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, "times ..."]
    ) -> Float[Array, "times ..."]:
        """The output at the times of a sampled input.

        The input is 0 before `ts[0]`, may jump there, and runs linearly from sample to sample.

        **Arguments:**

        - `ts`: Increasing times, shape `(times,)`, in units of the model's own clock.
        - `xs`: The samples, shape `(times,)` for a scalar input or `(times, d)`.

        **Returns:**

        The outputs at `ts`, shape `(times,)` or `(times, p)`.

        **Raises:** `ValueError` for times that do not increase, for samples that do not match
        them, and for NaN or infinity.
        """


class AbstractKernel(AbstractTarget):
    r"""A linear functional of a scalar input, given by its kernel $\rho$.

    $$H_t(x) = \int_0^\infty \rho(s)\, x_{t-s} \,\mathrm{d}s$$

    To define a kernel of your own, subclass this and write the five methods below. Each acts
    elementwise on arrays of any shape, broadcasts its arguments, and has to be differentiable
    with JAX in them and in the kernel's own leaves. The losses need `laplace` and `squared_norm`;
    products with measured kernels need the two responses. Kernels add: `first + second` and
    `sum(kernels)` give a [`memjax.KernelSum`][]; a number times a kernel is a
    [`memjax.ScaledKernel`][].

    What a kernel says of itself has defaults that suit most: it is taken to be in $L^1$ and in
    $L^2$, with `memory` `"unknown"`. Override `breakpoints` and `support` if it has kinks, jumps,
    or structure away from $t = 0$; quadrature relies on them.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, sections 3 and 5 (theory, sections 1 and 3).
    """

    # NumPy's arrays leave it to kernels what a product with them is, and do not try entry by entry.
    __array_ufunc__ = None

    @property
    def linear(self) -> bool:
        return True

    @property
    def memory(self) -> Memory:
        return "unknown"

    @property
    def in_l1(self) -> bool:
        r"""Whether $\int_0^\infty |\rho(t)| \,\mathrm{d}t$ is finite.

        If so, bounded inputs that started long ago have bounded outputs.
        """
        return True

    @property
    def in_l2(self) -> bool:
        r"""Whether $\int_0^\infty \rho(t)^2 \,\mathrm{d}t$ is finite.

        If so, the white-noise loss over an infinite horizon is.
        """
        return True

    def breakpoints(self) -> Float[Array, " points"]:
        r"""Where quadrature panels begin and end.

        Between two neighbouring points the kernel is smooth enough for one 32-point Gauss rule to
        integrate its square in float64, and after the last point what is left of it is negligible
        or, if `support` is infinite, it changes on the scale of `t` itself. The number of points
        is static, their order is arbitrary, and they may repeat.
        """
        return jnp.zeros(1)

    def support(self) -> Float[Array, ""]:
        r"""A time after which the kernel is negligible: the $L^2$ norm of what follows is under
        1e-16 of the whole. Infinity if there is none, or none is known."""
        return jnp.asarray(jnp.inf)

    def response(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, " times"]
    ) -> Float[Array, " times"]:
        r"""The output at the times of a sampled scalar input.

        The input is 0 before `ts[0]`, may jump there, and runs linearly from sample to sample;
        the output is exact for it, by `heaviside_response` and `ramp_response`. On concrete evenly
        spaced times it takes $O(n \log n)$ operations for $n$ samples, otherwise $O(n^2)$.

        **Arguments:**

        - `ts`: Increasing times, shape `(times,)`, in units of the model's own clock.
        - `xs`: The samples, shape `(times,)`.

        **Returns:**

        The outputs at `ts`, shape `(times,)`.

        **Raises:** `ValueError` for times that do not increase, for samples that do not match
        them, and for NaN or infinity; in single precision also for more than 88 samples, unless
        the kernel has a state space, and for uneven times that are rounded by more than a
        0.2 % of a step (traced ones give NaN).
        """
        given = ts
        ts, xs = as_samples(given, xs, inputs=None)
        step = even_step(given)
        leaves = jax.tree.leaves(eqx.filter(self, eqx.is_inexact_array))
        dtype = jnp.result_type(ts, *leaves)
        # Weights of samples are second differences of ramp responses, which grow with time: their
        # rounding was up to ten times `eps * n**1.5` of the outputs where it was measured.
        most = (1e-3 / (10 * float(jnp.finfo(dtype).eps))) ** (2 / 3)
        if ts.size > most:
            from ._state_space import state_space, StateSpaceKernel

            system = state_space(self)
            if system is not None:
                recurrent, inputs, readout = system
                return StateSpaceKernel(recurrent, inputs[:, 0], readout[0]).response(given, xs)
            raise ValueError(
                f"`ts` must have at most {int(most)} times for {type(self).__name__} in {dtype}, "
                f"got {ts.size}, since the weights of samples are lost in rounding; call "
                '`jax.config.update("jax_enable_x64", True)` before making any array.'
            )
        if step is None:
            elapsed = ts - ts[0]
            # The input is a jump and then a sum of ramps, one for each change of slope.
            kinks = jnp.diff(jnp.diff(xs) / as_steps(given), prepend=0)
            since = lambda t: jnp.dot(kinks, self.ramp_response(t - ts[:-1]))
            ramps = jax.lax.map(since, ts, batch_size=max(1, 2**20 // ts.size))
            return xs[0] * self.heaviside_response(elapsed) + ramps
        elapsed = jnp.asarray(step * np.arange(ts.size), dtype)
        # The input is a hat around each sample. The first hat has no left half, but the jump.
        rises = jnp.diff(self.ramp_response(elapsed), prepend=0) / step
        first = self.heaviside_response(elapsed) - rises
        return xs[0] * first + convolve(jnp.diff(rises), xs[1:])

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
        self, s: Real[ArrayLike, "..."], horizon: Real[ArrayLike, "..."] | None = jnp.inf
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
    def squared_norm(self, horizon: Real[ArrayLike, "..."] | None = jnp.inf) -> Float[Array, "..."]:
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
        from ._sum import KernelSum

        if not isinstance(other, AbstractKernel):
            return NotImplemented
        return KernelSum((self, other))

    def __mul__(self, factor: object) -> "ScaledKernel":
        from ._composed import ScaledKernel

        if isinstance(factor, AbstractTarget):
            return NotImplemented
        return ScaledKernel(self, factor)  # pyright: ignore[reportArgumentType]

    __rmul__ = __mul__

    def __neg__(self) -> "ScaledKernel":
        return self * -1.0

    def __sub__(self, other: object) -> "KernelSum":
        if not isinstance(other, AbstractKernel):
            return NotImplemented
        return self + -other

    def __radd__(self, other: object) -> "AbstractKernel":
        # `sum(kernels)` starts from the integer 0.
        if isinstance(other, int) and other == 0:
            return self
        return NotImplemented


def slowest_memory(targets: Iterable[AbstractTarget]) -> Memory:
    """The memory class of a sum: that of its slowest term, unless one does not say."""
    return MEMORIES[max(MEMORIES.index(target.memory) for target in targets)]


def elementwise_derivative(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda s: jax.jvp(function, (s,), (jnp.ones_like(s),))[1]
