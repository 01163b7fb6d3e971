"""A kernel gives a linear functional. This module holds what every kernel has."""

import abc
import functools
import operator
from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Real

from .._checks import as_float_array, as_horizon, check_instance, check_nonnegative
from .._typing import ArrayLike
from ._hooks import forward, HOOKS, own
from ._product import product_without_a_form, register_inner_product
from ._response import sampled_response
from ._target import AbstractTarget, Memory, slowest_memory


class AbstractKernel(AbstractTarget):
    r"""A linear functional given by its kernel $\rho$: of a scalar input, unless said otherwise.

    $$H_t(x) = \int_0^\infty \rho(s)\, x_{t-s} \,\mathrm{d}s$$

    To define a kernel of your own, subclass this and write `_value` and `_laplace`. Arguments have
    been checked before: `t` are finite times of 0 or more, `s` is not negative, and `horizon` is
    `None` for the half line, or an array of finite times. Everything acts elementwise on arrays of
    any shape, broadcasts its arguments, and has to be differentiable with JAX in them and in the
    kernel's own leaves.

    What follows from these two may be overridden by something cheaper or more accurate:
    `_squared_norm` is that of a registered state space, or else by quadrature on panels between
    the `breakpoints`, and refused where they do not resolve it; `_heaviside_response` is the
    transform at 0, and `_ramp_response` comes from its derivative there. (So may the public
    methods, which then check for themselves.)

    Kernels add: `first + second` and `sum(kernels)` give a [`memjax.KernelSum`][]; a number times
    a kernel is a [`memjax.ScaledKernel`][].

    What a kernel says of itself has defaults that suit most: it is taken to be in $L^1$ and in
    $L^2$, with `memory` `"unknown"`. Override `breakpoints` and `support` if it has kinks, jumps,
    or structure away from $t = 0$; quadrature relies on them. Register a state space
    ([`memjax.targets.state_space`][]) or closed forms of inner products
    ([`memjax.targets.register_inner_product`][]) if it has them.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, sections 3 and 5 (theory, sections 1 and 3).
    """

    linear: ClassVar[bool] = True

    # NumPy's arrays leave it to kernels what a product with them is, and do not try entry by entry.
    __array_ufunc__ = None

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        for public, hook in HOOKS.items():
            if public in cls.__dict__ and hook not in cls.__dict__:
                setattr(cls, hook, forward(public))

    # --- What a kernel has to say ---

    @abc.abstractmethod
    def _value(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""The kernel $\rho(t)$ at times of 0 or more."""

    @abc.abstractmethod
    def _laplace(
        self, s: Float[Array, "..."], horizon: Float[Array, "..."] | None
    ) -> Float[Array, "..."]:
        r"""The Laplace transform $\int_0^h e^{-st} \rho(t) \,\mathrm{d}t$."""

    # --- What it may say ---

    def _squared_norm(self, horizon: Float[Array, "..."] | None) -> Float[Array, "..."]:
        r"""The squared norm $\int_0^h \rho(t)^2 \,\mathrm{d}t$."""
        return product_without_a_form(self, self, horizon)

    def _heaviside_response(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""The integral $\int_0^t \rho(s) \,\mathrm{d}s$ for $t \ge 0$."""
        return self._laplace(jnp.zeros_like(t), t)

    def _ramp_response(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        r"""The integral $\int_0^t (t - s) \rho(s) \,\mathrm{d}s$ for $t \ge 0$."""
        transform = lambda s: self._laplace(s, t)
        # t times the integral, plus that of -s rho(s), the derivative of the transform at 0.
        value, slope = jax.jvp(transform, (jnp.zeros_like(t),), (jnp.ones_like(t),))
        return t * value + slope

    def _parts(self) -> "tuple[AbstractKernel, ...]":
        """The kernels that a kernel is a combination of, from which it has what follows."""
        return ()

    @property
    def memory(self) -> Memory:
        return slowest_memory(self._parts()) if self._parts() else "unknown"

    @property
    def in_l1(self) -> bool:
        r"""Whether $\int_0^\infty |\rho(t)| \,\mathrm{d}t$ is finite.

        If so, bounded inputs that started long ago have bounded outputs.
        """
        return all(part.in_l1 for part in self._parts())

    @property
    def in_l2(self) -> bool:
        r"""Whether $\int_0^\infty \rho(t)^2 \,\mathrm{d}t$ is finite.

        If so, the white-noise loss over an infinite horizon is.
        """
        return all(part.in_l2 for part in self._parts())

    def breakpoints(self) -> Float[Array, " points"]:
        r"""Where quadrature panels begin and end.

        Between two neighbouring points the kernel is smooth enough for one 32-point Gauss rule to
        integrate its square in float64, and after the last point what is left of it is negligible
        or, if `support` is infinite, it changes on the scale of `t` itself. The number of points
        is static, their order is arbitrary, and they may repeat.
        """
        points = [part.breakpoints() for part in self._parts()]
        return jnp.concatenate(points or [jnp.zeros(1)])

    def support(self) -> Float[Array, ""]:
        r"""A time after which the kernel is negligible: the $L^2$ norm of what follows is under
        1e-16 of the whole. Infinity if there is none, or none is known."""
        ends = [part.support() for part in self._parts()]
        return functools.reduce(jnp.maximum, ends) if ends else jnp.asarray(jnp.inf)

    @property
    def sizes(self) -> tuple[int | None, int | None]:
        """The numbers of outputs and of inputs, `None` for a scalar."""
        return None, None

    @property
    def shape(self) -> tuple[int, ...]:
        r"""The shape of $\rho(t)$, `()` for a scalar kernel."""
        return tuple(size for size in self.sizes if size is not None)

    def entries(self) -> "tuple[AbstractKernel, ...]":
        """The scalar kernels of a matrix of them, row by row."""
        return (self,)

    def decays(self) -> Bool[Array, ""]:
        """Whether the kernel decays: that of a model need not, since training carries rates and
        eigenvalues across the imaginary axis."""
        decaying = [part.decays() for part in self._parts()]
        return functools.reduce(operator.and_, decaying, jnp.asarray(True))

    def _panels(self, end: Array) -> tuple[Array, bool]:
        """Where panels begin that resolve the kernel up to a time, and whether they reach it by
        themselves."""
        return self.breakpoints(), False

    # --- What everyone may ask ---

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
        return sampled_response(self, ts, xs)

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        r"""The kernel $\rho(t)$, which is 0 for $t < 0$.

        **Arguments:**

        - `t`: Times, any shape.

        **Returns:**

        An array of the shape of `t`.
        """
        t = as_float_array("t", t)
        past = t.reshape(*t.shape, *(1 for _ in self.shape)) < 0
        return jnp.where(past, 0, own(self, "_value")(_elapsed(t)))

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
        s = as_float_array("s", s)
        check_nonnegative("s", s)
        return own(self, "_laplace")(s, as_horizon(horizon))

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

    def squared_norm(self, horizon: Real[ArrayLike, "..."] | None = jnp.inf) -> Float[Array, "..."]:
        r"""The squared norm $\int_0^h \rho(t)^2 \,\mathrm{d}t$.

        **Arguments:**

        - `horizon`: The horizon $h$: the scalar `inf`, or finite times.

        **Returns:**

        An array of the shape of `horizon`.
        """
        return own(self, "_squared_norm")(as_horizon(horizon))

    def heaviside_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        r"""The response $\int_0^t \rho(s) \,\mathrm{d}s$ to the input $1[t \ge 0]$.

        **Arguments:**

        - `t`: Finite times, any shape; the response is 0 for $t \le 0$.

        **Returns:**

        An array of the shape of `t`.
        """
        return own(self, "_heaviside_response")(_elapsed(as_float_array("t", t)))

    def ramp_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        r"""The response $\int_0^t (t - s) \rho(s) \,\mathrm{d}s$ to the input $\max(t, 0)$.

        It is the integral of `heaviside_response`.

        **Arguments:**

        - `t`: Finite times, any shape; the response is 0 for $t \le 0$.

        **Returns:**

        An array of the shape of `t`.
        """
        return own(self, "_ramp_response")(_elapsed(as_float_array("t", t)))

    def __add__(self, other: object) -> "AbstractKernel":
        # A kernel that has its own way of being added to others, as state spaces have, is asked.
        if (
            not isinstance(other, AbstractKernel)
            or type(other).__radd__ is not AbstractKernel.__radd__
        ):
            return NotImplemented
        return added(self, other)

    def __radd__(self, other: object) -> "AbstractKernel":
        # `sum(kernels)` starts from the integer 0.
        if isinstance(other, int) and other == 0:
            return self
        return NotImplemented

    def __mul__(self, factor: object) -> "AbstractKernel":
        if isinstance(factor, AbstractTarget):
            return NotImplemented
        return scaled(self, factor)

    def __rmul__(self, factor: object) -> "AbstractKernel":
        return self * factor

    def __neg__(self) -> "AbstractKernel":
        return self * -1.0

    def __sub__(self, other: object) -> "AbstractKernel":
        if not isinstance(other, AbstractKernel):
            return NotImplemented
        return self + -other


def _elapsed(t: Array) -> Array:
    """Times of 0 or more, with the derivative from the right at 0."""
    return jnp.where(t < 0, 0, t)


@runtime_checkable
class HasKernel(Protocol):
    """What is linear and says its kernel: a linear model."""

    def kernel(self) -> AbstractKernel: ...


def check_kernel(name: str, kernel: object) -> None:
    """Refuse anything but a scalar kernel."""
    scalar = not isinstance(kernel, AbstractKernel) or kernel.shape == ()
    check_instance(
        name,
        kernel,
        AbstractKernel if scalar else (),
        "a scalar kernel",
        "pass an instance of memjax.AbstractKernel",
    )


def elementwise_derivative(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return lambda s: jax.jvp(function, (s,), (jnp.ones_like(s),))[1]


# Sums and multiples are kernels too. Their module builds on this one, and registers these.


@functools.singledispatch
def added(first: Any, second: AbstractKernel) -> AbstractKernel:
    """The sum of two kernels."""
    raise NotImplementedError


@functools.singledispatch
def scaled(kernel: Any, factor: Any) -> AbstractKernel:
    """A number times a kernel."""
    raise NotImplementedError


register_inner_product(AbstractKernel, AbstractKernel)(product_without_a_form)
