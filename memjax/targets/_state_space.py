import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import block_diag
from jaxtyping import Array, Float, Real

from .._checks import as_finite_array, as_float_array, check_nonnegative, is_traced
from .._paths import as_samples, as_steps, even_step
from .._typing import ArrayLike
from ..numerics import exponential_action
from ._base import AbstractTarget, Memory
from ._composed import ScaledKernel
from ._exponential import ExponentialSum
from ._oscillation import DampedOscillation
from ._sum import KernelSum
from ._vector import VectorKernel


class StateSpaceKernel(AbstractTarget):
    r"""The kernel of a dense linear model, $\rho(t) = C e^{Wt} U$ for $t \ge 0$.

    It is the functional $\dot h = W h + U x$, $y = C h$. Its transform is
    $R(s) = C (s - W)^{-1} U$. Kernels of equal shape add.

    **Arguments:**

    - `recurrent`: the matrix $W$, shape `(m, m)`, every eigenvalue of which has a negative
        real part, in units of one over time.
    - `input`: the matrix $U$, shape `(m, d)`, or `(m,)` for a scalar input.
    - `readout`: the matrix $C$, shape `(p, m)`, or `(m,)` for a scalar output.

    **Raises:** `ValueError` for an eigenvalue on or to the right of the imaginary axis, for
    shapes that do not fit, and for NaN or infinity.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation and
        Optimization Analysis*, ICLR 2021, section 3 (theory, section 1).
    """

    recurrent: Float[Array, "hidden hidden"]
    input: Float[Array, "hidden ..."]
    readout: Float[Array, "... hidden"]

    def __init__(
        self,
        recurrent: Real[ArrayLike, "..."],
        input: Real[ArrayLike, "..."],
        readout: Real[ArrayLike, "..."],
    ) -> None:
        recurrent = as_finite_array("recurrent", recurrent)
        input = as_finite_array("input", input)
        readout = as_finite_array("readout", readout)
        if recurrent.ndim != 2 or recurrent.shape[0] != recurrent.shape[1]:
            raise ValueError(
                f"`recurrent` must be a square matrix, got shape {recurrent.shape}; "
                "pass W of shape (m, m)."
            )
        width = recurrent.shape[0]
        if input.ndim not in (1, 2) or input.shape[0] != width:
            raise ValueError(
                f"`input` must have shape ({width},) or ({width}, d), got {input.shape}; "
                "pass one row per hidden unit."
            )
        if readout.ndim not in (1, 2) or readout.shape[-1] != width:
            raise ValueError(
                f"`readout` must have shape ({width},) or (p, {width}), got {readout.shape}; "
                "pass one column per hidden unit."
            )
        check_stable(recurrent)
        self.recurrent = recurrent
        self.input = input
        self.readout = readout

    @property
    def shape(self) -> tuple[int, ...]:
        r"""The shape of $\rho(t)$: `()`, `(d,)`, `(p, d)`, or `(p,)` for a scalar input."""
        return self.readout.shape[:-1] + self.input.shape[1:]

    @property
    def linear(self) -> bool:
        return True

    @property
    def memory(self) -> Memory:
        return "exponential"

    @property
    def in_l1(self) -> bool:
        """Whether every entry is integrable, as every stable one is."""
        return True

    @property
    def in_l2(self) -> bool:
        """Whether every entry is square integrable, as every stable one is."""
        return True

    def __call__(self, t: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        r"""The kernel $\rho(t)$, which is 0 for $t < 0$.

        **Arguments:**

        - `t`: Times, any shape.

        **Returns:**

        An array of shape `(*t.shape, *self.shape)`.
        """
        t = as_float_array("t", t)

        inputs = self.input.reshape(self.recurrent.shape[0], -1)
        times = jnp.maximum(t, 0).ravel()
        values = self.readout @ exponential_action(self.recurrent, inputs, times)
        values = jnp.where(t.ravel()[:, None] < 0, 0, values.reshape(t.size, -1))
        return values.reshape(*t.shape, *self.shape)

    def laplace(self, s: Real[ArrayLike, "..."]) -> Float[Array, "..."]:
        r"""The Laplace transform $R(s) = C (s - W)^{-1} U$ over the half line.

        **Arguments:**

        - `s`: The Laplace variable, $s \ge 0$, in units of one over time.

        **Returns:**

        An array of shape `(*s.shape, *self.shape)`.
        """
        s = as_float_array("s", s)
        check_nonnegative("s", s)
        width = self.recurrent.shape[0]
        inputs = self.input.reshape(width, -1)
        resolvent = s[..., None, None] * jnp.eye(width) - self.recurrent
        solved = jnp.linalg.solve(resolvent, jnp.broadcast_to(inputs, (*s.shape, *inputs.shape)))
        return (self.readout.reshape(-1, width) @ solved).reshape(*s.shape, *self.shape)

    def response(
        self, ts: Real[ArrayLike, " times"], xs: Real[ArrayLike, "times ..."]
    ) -> Float[Array, "times ..."]:
        width = self.recurrent.shape[0]
        given = ts
        ts, xs = as_samples(ts, xs, None if self.input.ndim == 1 else self.input.shape[1])
        step = even_step(given)
        inputs = self.input.reshape(width, -1)
        xs = xs.reshape(ts.size, -1)
        size = inputs.shape[1]

        # Hidden state, input and slope in one system, whose exponential is exact over a step.
        generator = jnp.block(
            [
                [self.recurrent, inputs, jnp.zeros_like(inputs)],
                [jnp.zeros((size, width + size)), jnp.eye(size)],
                [jnp.zeros((size, width + 2 * size))],
            ]
        )

        def propagator(step: Array) -> Array:
            return exponential_action(generator, jnp.eye(width + 2 * size), step[None])[0, :width]

        steps = as_steps(given)
        shared = None if step is None else propagator(steps[0])

        def advance(hidden: Array, interval: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            step, start, end = interval
            matrix = propagator(step) if shared is None else shared
            hidden = matrix @ jnp.concatenate([hidden, start, (end - start) / step])
            return hidden, hidden

        rest = jnp.zeros(width, generator.dtype)
        _, hidden = jax.lax.scan(advance, rest, (steps, xs[:-1], xs[1:]))
        return jnp.concatenate([rest[None], hidden]) @ self.readout.T

    def __add__(self, other: object) -> "StateSpaceKernel":
        system = state_space(other)
        if system is None:
            return NotImplemented
        if kernel_shape(other) != self.shape:
            raise ValueError(
                f"kernels that are added must have the same shape, got {self.shape} and "
                f"{kernel_shape(other)}; add entry by entry what belongs together."
            )
        recurrent, inputs, readout = system
        width = recurrent.shape[0]
        return StateSpaceKernel(
            block_diag(self.recurrent, recurrent),
            jnp.concatenate([self.input, inputs.reshape(width, *self.input.shape[1:])]),
            jnp.concatenate([self.readout, readout.reshape(*self.readout.shape[:-1], width)], -1),
        )

    def __radd__(self, other: object) -> "StateSpaceKernel":
        # `sum(kernels)` starts from the integer 0.
        if isinstance(other, int) and other == 0:
            return self
        return self + other


def check_stable(recurrent: Float[Array, "m m"]) -> None:
    """Refuse a matrix with an eigenvalue outside the open left half-plane."""
    if is_traced(recurrent):
        return
    largest = np.max(np.linalg.eigvals(np.asarray(recurrent)).real, initial=-np.inf)
    if largest >= 0:
        raise ValueError(
            f"`recurrent` must have all eigenvalues in the open left half-plane, got one of real "
            f"part {largest:.6g}; subtract a larger multiple of the unit matrix."
        )


def kernel_shape(kernel: object) -> tuple[int, ...]:
    """The shape of a kernel's value at one time."""
    return kernel.shape if isinstance(kernel, (StateSpaceKernel, VectorKernel)) else ()


def state_space(
    kernel: object,
) -> tuple[Float[Array, "m m"], Float[Array, "m d"], Float[Array, "p m"]] | None:
    r"""A state space of finite dimension for a kernel, $\rho(t) = C e^{Wt} U$, if it has one.

    **Arguments:**

    - `kernel`: Anything; a state space is known for exponential sums, damped oscillations, dense
        linear models, and for sums, scalings and vectors of those.

    **Returns:**

    `(W, U, C)` with two axes each, where scalar inputs and outputs have size 1, or `None`.
    A damped oscillation takes a real block of two for each mode.
    """
    if isinstance(kernel, StateSpaceKernel):
        width = kernel.recurrent.shape[0]
        inputs, readout = kernel.input.reshape(width, -1), kernel.readout.reshape(-1, width)
        return kernel.recurrent, inputs, readout
    if isinstance(kernel, ExponentialSum):
        ones = jnp.ones_like(kernel.rates)
        return -jnp.diag(kernel.rates), ones[:, None], kernel.amplitudes[None, :]
    if isinstance(kernel, DampedOscillation):
        # exp(Wt) (1, 0) = exp(-wt) (cos, sin) for W = [[-w, -nu], [nu, -w]].
        modes = kernel.rates.size
        blocks = (-kernel.rates, -kernel.frequencies, kernel.frequencies, -kernel.rates)
        corners = [jnp.diag(block) for block in blocks]
        recurrent = jnp.block([corners[:2], corners[2:]])
        first = jnp.concatenate([jnp.ones(modes), jnp.zeros(modes)])
        return recurrent, first[:, None], jnp.concatenate([kernel.cosine, kernel.sine])[None, :]
    if isinstance(kernel, ScaledKernel):
        system = state_space(kernel.kernel)
        return None if system is None else (*system[:2], kernel.factor * system[2])
    if isinstance(kernel, KernelSum):
        systems = [state_space(term) for term in kernel.terms]
        known = [system for system in systems if system is not None]
        if len(known) < len(systems):
            return None
        recurrents, inputs, readouts = zip(*known, strict=True)
        return block_diag(*recurrents), jnp.concatenate(inputs), jnp.concatenate(readouts, axis=1)
    if isinstance(kernel, VectorKernel):
        entries, (outputs, size) = kernel.entries(), (kernel.outputs, kernel.inputs)
        systems = [state_space(entry) for entry in entries]
        known = [system for system in systems if system is not None]
        if len(known) < len(systems):
            return None
        recurrents, inputs, readouts = [], [], []
        for k, (recurrent, column, row) in enumerate(known):
            recurrents.append(recurrent)
            inputs.append(column * jnp.eye(size)[k % size])
            readouts.append(jnp.eye(outputs)[k // size][:, None] * row)
        return block_diag(*recurrents), jnp.concatenate(inputs), jnp.concatenate(readouts, axis=1)
    return None
