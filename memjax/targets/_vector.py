import functools
import operator

import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._checks import as_list
from .._paths import as_samples
from .._typing import ArrayLike
from ._base import AbstractKernel, AbstractTarget, Memory, slowest_memory
from ._composed import check_kernel


class VectorKernel(AbstractTarget):
    r"""A linear functional of $d$ inputs: one scalar kernel for each input and output.

    $$y_k(t) = \sum_{j=1}^d \int_0^\infty \rho_{kj}(s)\, x_j(t - s) \,\mathrm{d}s$$

    **Arguments:**

    - `components`: a tuple of $d$ kernels, for a scalar output, or a tuple of $p$ such
        tuples, one for each output.

    **Raises:** `TypeError` for a component that is no scalar kernel, `ValueError` for none at
    all and for rows of different length.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 3 (theory, section 1).
    """

    components: tuple[AbstractKernel, ...] | tuple[tuple[AbstractKernel, ...], ...]

    def __init__(
        self, components: tuple[AbstractKernel, ...] | tuple[tuple[AbstractKernel, ...], ...]
    ) -> None:
        parts = as_list("components", components, "kernels")
        nested = any(isinstance(part, (tuple, list)) for part in parts)
        rows = [as_list("components", part, "kernels") for part in parts] if nested else [parts]
        for row in rows:
            for entry in row:
                check_kernel("components", entry)
        lengths = [len(row) for row in rows]
        if len(set(lengths)) != 1 or lengths[0] == 0:
            raise ValueError(
                f"`components` must hold as many kernels in every row, at least one, got rows of "
                f"{lengths}; the zero kernel is an `ExponentialSum` of empty arrays."
            )
        self.components = tuple(map(tuple, rows)) if nested else tuple(parts)

    @property
    def shape(self) -> tuple[int, ...]:
        r"""The shape of $\rho(t)$: `(d,)` or `(p, d)`."""
        if isinstance(self.components[0], tuple):
            return (len(self.components), len(self.components[0]))
        return (len(self.components),)

    @property
    def inputs(self) -> int:
        """The number $d$ of inputs."""
        return self.shape[-1]

    @property
    def outputs(self) -> int:
        """The number $p$ of outputs, 1 for a scalar output."""
        return self.shape[0] if len(self.shape) == 2 else 1

    def entries(self) -> tuple[AbstractKernel, ...]:
        """All the kernels in one tuple, row by row."""
        flat: list[AbstractKernel] = []
        for part in self.components:
            flat.extend(part if isinstance(part, tuple) else (part,))
        return tuple(flat)

    @property
    def linear(self) -> bool:
        return True

    @property
    def memory(self) -> Memory:
        return slowest_memory(self.entries())

    @property
    def in_l1(self) -> bool:
        """Whether every component is in $L^1$."""
        return all(entry.in_l1 for entry in self.entries())

    @property
    def in_l2(self) -> bool:
        """Whether every component is in $L^2$."""
        return all(entry.in_l2 for entry in self.entries())

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        r"""The kernel $\rho(t)$, which is 0 for $t < 0$.

        **Arguments:**

        - `t`: Times, any shape.

        **Returns:**

        An array of shape `(*t.shape, *self.shape)`.
        """
        return self._stacked([entry(t) for entry in self.entries()])

    def laplace(
        self, s: Real[ArrayLike, "..."], horizon: Real[ArrayLike, "..."] | None = jnp.inf
    ) -> Float[Array, "..."]:
        r"""The Laplace transform of every component.

        **Arguments:**

        - `s`: The Laplace variable, $s > 0$, in units of one over time.
        - `horizon`: The horizon: the scalar `inf`, or finite times.

        **Returns:**

        An array of the broadcast shape of `s` and `horizon`, followed by `self.shape`.
        """
        return self._stacked([entry.laplace(s, horizon) for entry in self.entries()])

    def squared_norm(self, horizon: Real[ArrayLike, "..."] | None = jnp.inf) -> Float[Array, "..."]:
        r"""The squared norm $\int_0^h |\rho(t)|^2 \,\mathrm{d}t$, summed over all components.

        **Arguments:**

        - `horizon`: The horizon $h$: the scalar `inf`, or finite times.

        **Returns:**

        An array of the shape of `horizon`.
        """
        norms = [entry.squared_norm(horizon) for entry in self.entries()]
        return functools.reduce(operator.add, norms)

    def heaviside_response(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        r"""The responses of every component to the input $1[t \ge 0]$.

        **Arguments:**

        - `t`: Finite times, any shape.

        **Returns:**

        An array of shape `(*t.shape, *self.shape)`.
        """
        return self._stacked([entry.heaviside_response(t) for entry in self.entries()])

    def response(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, "times d"]
    ) -> Float[Array, "times ..."]:
        # `ts` goes on as it was given: evenly spaced concrete times are cheaper.
        _, xs = as_samples(ts, xs, self.inputs)
        columns = [xs[:, j] for j in range(self.inputs)]
        responses = [
            entry.response(ts, columns[k % self.inputs]) for k, entry in enumerate(self.entries())
        ]
        return jnp.sum(self._stacked(responses), axis=-1)

    def _stacked(self, entries: list[Array]) -> Array:
        stack = jnp.stack(entries, axis=-1)
        return stack.reshape(*stack.shape[:-1], *self.shape)
