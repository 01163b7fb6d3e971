import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._checks import (
    as_finite_array,
    as_float_array,
    as_inexact_array,
    as_key,
    as_list,
    check_callable,
    check_choice,
    check_flag,
    check_integer,
)
from .._paths import as_samples, as_steps, even_step
from .._typing import ArrayLike
from ._base import AbstractKernel, check_kernel
from ._exponential import as_decay_rates, ExponentialSum
from ._target import AbstractTarget, MEMORIES, Memory, slowest_memory


class Volterra(AbstractTarget):
    r"""A Volterra series of second order whose quadratic kernel is a sum of products.

    $$H_t(x) = \int_0^\infty \rho(s)\, x_{t-s} \,\mathrm{d}s + \iint_0^\infty
    \sum_r \alpha_r(s)\, \beta_r(s')\, x_{t-s}\, x_{t-s'} \,\mathrm{d}s\,\mathrm{d}s'$$

    Every product is that of two linear responses, so the output is exact for sampled inputs.

    Nonlinear functionals: Li, Han, E, Li, ICLR 2021, section 3 (theory, section 1).

    **Arguments:**

    - `first`: the linear kernel $\rho$, or `None` for none.
    - `second`: the pairs $(\alpha_r, \beta_r)$ of kernels, at least one.

    **Raises:** `TypeError` for what is no kernel, `ValueError` for no pairs and for what is
    no pair.
    """

    linear: ClassVar[bool] = False

    first: AbstractKernel | None
    second: tuple[tuple[AbstractKernel, AbstractKernel], ...]

    def __init__(
        self,
        first: AbstractKernel | None,
        second: Sequence[tuple[AbstractKernel, AbstractKernel]],
    ) -> None:
        if first is not None:
            check_kernel("first", first)
        pairs = [as_list("second", pair, "kernels") for pair in as_list("second", second, "pairs")]
        if not pairs or any(len(pair) != 2 for pair in pairs):
            raise ValueError(
                "`second` must hold at least one pair of kernels, got lengths "
                f"{[len(pair) for pair in pairs]}; a target without one is a plain kernel."
            )
        for pair in pairs:
            for kernel in pair:
                check_kernel("second", kernel)
        self.first = first
        self.second = tuple((pair[0], pair[1]) for pair in pairs)

    @property
    def memory(self) -> Memory:
        kernels = [kernel for pair in self.second for kernel in pair]
        return slowest_memory(kernels if self.first is None else [self.first, *kernels])

    def response(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, " times"]
    ) -> Float[Array, " times"]:
        products = [a.response(ts, xs) * b.response(ts, xs) for a, b in self.second]
        linear = [] if self.first is None else [self.first.response(ts, xs)]
        return functools.reduce(operator.add, linear + products)


class Teacher(AbstractTarget):
    """A fixed function of sampled input paths as a target: a trained model, or any callable.

    A model is itself such a function, so `Teacher(model)` makes it a teacher.

    **Arguments:**

    - `function`: Maps times of shape `(times,)` and samples of shape `(times,)` or
        `(times, d)` to outputs of shape `(times,)` or `(times, p)`, causally.
    - `linear`: whether it is linear in the samples.
    - `memory`: the class of its memory, as in `AbstractTarget.memory`.

    **Raises:** `TypeError` for what cannot be called, `ValueError` for an unknown class.
    """

    function: Callable[[Array, Array], Array]
    stated_linear: bool = eqx.field(static=True)
    stated_memory: Memory = eqx.field(static=True)

    def __init__(
        self,
        function: Callable[[Array, Array], Array],
        linear: bool = False,
        memory: Memory = "unknown",
    ) -> None:
        check_callable("function", function, "pass a function of times and samples")
        check_choice("memory", memory, MEMORIES)
        self.function = function
        self.stated_linear = check_flag("linear", linear)
        self.stated_memory = memory

    @property
    def linear(self) -> bool:
        return self.stated_linear

    @property
    def memory(self) -> Memory:
        return self.stated_memory

    def response(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, "times ..."]
    ) -> Float[Array, "times ..."]:
        xs = as_float_array("xs", xs)
        ts, xs = as_samples(ts, xs, xs.shape[1] if xs.ndim == 2 else None)
        ys = as_inexact_array("function", self.function(ts, xs))
        if ys.ndim not in (1, 2) or ys.shape[0] != ts.size:
            raise ValueError(
                f"`function` must return one output per time, got shape {ys.shape} for "
                f"{ts.size} times; return an array of shape (times,) or (times, p)."
            )
        return ys


class Attention(AbstractTarget):
    r"""A fixed layer of causal softmax attention over the past of the input.

    $$y_t = \sum_h c_h \cdot \frac{\int_{-\infty}^{t} w_h(t, r)\, V_h x_r \,\mathrm{d}r}
    {\int_{-\infty}^{t} w_h(t, r) \,\mathrm{d}r}, \qquad w_h(t, r) = \exp\left(
    \frac{(Q_h x_t) \cdot (K_h x_r)}{\sqrt n}\right) p_h(t - r)$$

    The positional weight $p_h$ is $e^{-\lambda_h (t - r)}$, or any positive integrable kernel. The
    input is 0 before the first sample; that part of the integrals is exact, and the rest is taken
    by the trapezoidal rule over the samples, with an error of second order in their spacing.

    **Arguments:**

    - `queries`, `keys`: the matrices $Q_h$ and $K_h$, shape `(heads, n, d)`.
    - `values`: the row vectors $c_h V_h$ that carry inputs to the output, shape `(heads, d)`.
    - `positions`: the positional weight $p_h$ of every head, a kernel that is positive and in
        $L^1$, for example `memjax.ExponentialSum(1.0, rate)` or `memjax.PowerLaw(omega)`.
    - `scalar`: whether the input is a scalar, with samples of shape `(times,)`, and $d = 1$.

    **Raises:** `TypeError` for positions that are no kernels, `ValueError` for shapes that do
    not fit, positions that are not integrable, and for NaN or infinity.

    ??? cite "Reference"

        Vaswani et al., *Attention Is All You Need*, NeurIPS 2017; as a functional with memory,
        theory, section 1.
    """

    linear: ClassVar[bool] = False

    queries: Float[Array, "heads size inputs"]
    keys: Float[Array, "heads size inputs"]
    values: Float[Array, "heads inputs"]
    positions: tuple[AbstractKernel, ...]
    scalar: bool = eqx.field(static=True)

    def __init__(
        self,
        queries: Real[ArrayLike, "heads size inputs"],
        keys: Real[ArrayLike, "heads size inputs"],
        values: Real[ArrayLike, "heads inputs"],
        positions: Sequence[AbstractKernel],
        *,
        scalar: bool = False,
    ) -> None:
        queries = as_finite_array("queries", queries)
        keys = as_finite_array("keys", keys)
        values = as_finite_array("values", values)
        positions = tuple(as_list("positions", positions, "kernels"))
        for position in positions:
            check_kernel("positions", position)
            if not position.in_l1:
                raise ValueError(
                    f"`positions` must be integrable, got {type(position).__name__}; the weight "
                    "of the whole past has to be finite."
                )
        if queries.ndim != 3 or 0 in queries.shape or keys.shape != queries.shape:
            raise ValueError(
                f"`queries` and `keys` must have one shape (heads, n, d), got {queries.shape} and "
                f"{keys.shape}; pass one matrix of each per head."
            )
        heads, _, inputs = queries.shape
        if values.shape != (heads, inputs) or len(positions) != heads:
            raise ValueError(
                f"`values` must have shape {(heads, inputs)} and `positions` length {heads}, got "
                f"{values.shape} and {len(positions)}; pass one entry of each per head."
            )
        if check_flag("scalar", scalar) and inputs != 1:
            raise ValueError(
                f"`scalar` needs matrices with d = 1, got {inputs}; pass columns of one entry."
            )
        self.queries = queries
        self.keys = keys
        self.values = values
        self.positions = positions
        self.scalar = bool(scalar)

    @classmethod
    def random(
        cls, rates: Real[ArrayLike, " heads"], size: int = 4, *, key: PRNGKeyArray
    ) -> "Attention":
        r"""A layer for scalar inputs with random matrices and exponential positional weights.

        **Arguments:**

        - `rates`: The rates $\lambda_h > 0$ of the positional weights, shape `(heads,)`.
        - `size`: The size $n$ of queries and keys.
        - `key`: A PRNG key.

        **Returns:**

        An `Attention` with standard normal queries and keys, and values over $\sqrt{heads}$.
        """
        check_integer("size", size)
        rates = as_decay_rates(rates)
        heads = rates.shape[0]
        if heads == 0:
            raise ValueError("`rates` must hold at least one rate, got none; pass one per head.")
        shape = (heads, size, 1)
        query_key, key_key, value_key = jax.random.split(as_key("key", key), 3)
        return cls(
            jax.random.normal(query_key, shape),
            jax.random.normal(key_key, shape),
            jax.random.normal(value_key, (heads, 1)) / math.sqrt(heads),
            [ExponentialSum(1.0, rate) for rate in rates],
            scalar=True,
        )

    @property
    def memory(self) -> Memory:
        return slowest_memory(self.positions)

    def response(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, "times ..."]
    ) -> Float[Array, " times"]:
        given = ts
        ts, xs = as_samples(given, xs, None if self.scalar else self.queries.shape[2])
        xs = xs.reshape(ts.size, -1)
        gaps, step = as_steps(given), even_step(given)
        before, after = jnp.pad(gaps, (1, 0)), jnp.pad(gaps, (0, 1))
        if step is None:
            elapsed = ts[:, None] - ts
        else:
            count = jnp.arange(ts.size, dtype=ts.dtype)
            # On even times the lags are whole steps, free of the rounding of the times.
            elapsed = step * (count[:, None] - count)
        # A trapezoid reaches from sample to sample, and the last one ends at the present.
        past = jnp.where(elapsed > 0, before + after, before) / 2
        weighed = (elapsed >= 0) & (past > 0)

        total = jnp.zeros(ts.shape)
        for query, key, value, position in zip(
            self.queries, self.keys, self.values, self.positions, strict=True
        ):
            scores = (xs @ query.T) @ (xs @ key.T).T / math.sqrt(query.shape[0])
            # The scores of the silent past are 0; together with them none overflows. Numerator and
            # denominator carry the same factor.
            top = jnp.maximum(jnp.max(jnp.where(weighed, scores, 0), axis=1), 0)
            weights = (
                past * position(elapsed) * jnp.exp(jnp.where(weighed, scores, 0) - top[:, None])
            )
            weights = jnp.where(weighed, weights, 0)
            # The weight of the past before the first sample, where the input is 0, is a tail of the
            # kernel: below rounding it may come out negative.
            whole = position.laplace(0.0) - position.heaviside_response(elapsed[:, 0])
            silent = jnp.maximum(whole, 0) * jnp.exp(-top)
            total = total + (weights @ (xs @ value)) / (jnp.sum(weights, axis=1) + silent)
        return total
