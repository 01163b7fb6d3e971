import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._checks import as_list
from .._paths import as_samples
from .._typing import ArrayLike
from ._base import AbstractKernel, check_kernel
from ._sums import total
from ._system import side_by_side, state_space, StateSpace


class VectorKernel(AbstractKernel):
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
    def sizes(self) -> tuple[int | None, int | None]:
        first = self.components[0]
        if isinstance(first, tuple):
            return len(self.components), len(first)
        return None, len(self.components)

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

    def _parts(self) -> tuple[AbstractKernel, ...]:
        return self.entries()

    def _value(self, t: Array) -> Array:
        return self._stacked([entry._value(t) for entry in self.entries()])

    def _laplace(self, s: Array, horizon: Array | None) -> Array:
        return self._stacked([entry._laplace(s, horizon) for entry in self.entries()])

    def _squared_norm(self, horizon: Array | None) -> Array:
        return total(entry._squared_norm(horizon) for entry in self.entries())

    def _heaviside_response(self, t: Array) -> Array:
        return self._stacked([entry._heaviside_response(t) for entry in self.entries()])

    def _ramp_response(self, t: Array) -> Array:
        return self._stacked([entry._ramp_response(t) for entry in self.entries()])

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


@state_space.register(VectorKernel)
def _(kernel: VectorKernel) -> StateSpace | None:
    size, systems = kernel.inputs, []
    for k, entry in enumerate(kernel.entries()):
        system = state_space(entry)
        if system is None:
            return None
        column = system.input * jnp.eye(size)[k % size]
        row = jnp.eye(kernel.outputs)[k // size][:, None] * system.readout
        systems.append(StateSpace(system.recurrent, column, row))
    return side_by_side(systems)
