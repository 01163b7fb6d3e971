from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._checks import as_key
from .._typing import ArrayLike, ScalarLike
from ..targets import check_stable, StateSpace, StateSpaceKernel
from ._capabilities import AbstractMapped
from ._init import stable_gaussian
from ._parts import (
    as_recurrent,
    check_input,
    check_sizes,
    InputMap,
    random_input,
    random_readout,
    Readout,
)
from ._scan import as_scannable


class LinearRNN(AbstractMapped):
    r"""A linear RNN with dense recurrence, for one or several inputs and outputs.

    $$\dot h = W h + U x, \qquad \hat y = C h, \qquad \hat\rho(t) = C e^{W t} U.$$

    All three matrices are trained. Training may carry an eigenvalue of $W$ across the imaginary
    axis; losses over an infinite horizon then have no value.

    **Arguments:**

    - `recurrent`: the matrix $W$, shape `(width, width)`, in units of one over the model's clock.
    - `input`: the matrix $U$, shape `(width,)` for scalar inputs or `(width, inputs)`.
    - `readout`: the matrix $C$, shape `(width,)` for scalar outputs or `(outputs, width)`.

    **Raises:**

    `ValueError` if an eigenvalue of $W$ is not in the open left half-plane, for entries that are
    not finite, or shapes that do not match.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation
        and Optimization Analysis*, ICLR 2021, Section 3.
    """

    recurrent: Float[Array, "width width"]
    drive: InputMap
    output: Readout

    def __init__(
        self,
        recurrent: Real[ArrayLike, "width width"],
        input: Real[ArrayLike, "width *inputs"],
        readout: Real[ArrayLike, "*outputs width"],
    ) -> None:
        self.recurrent = as_recurrent(recurrent)
        check_stable(self.recurrent)
        self.drive = InputMap(input, self.width)
        self.output = Readout(readout, self.width)

    @classmethod
    def init(
        cls,
        width: int,
        inputs: int | None = None,
        outputs: int | None = None,
        *,
        gain: Real[ScalarLike, ""] = 1.0,
        margin: Real[ScalarLike, ""] = 0.1,
        key: PRNGKeyArray,
    ) -> "LinearRNN":
        r"""A random model: a stable Gaussian $W$, Gaussian $U$ and $C$ of unit input and output.

        **Arguments:**

        - `width`: the number of neurons.
        - `inputs`, `outputs`: how many, or `None` for scalars.
        - `gain`, `margin`: as in [`memjax.stable_gaussian`][].
        - `key`: the PRNG key.
        """
        check_sizes(inputs, outputs)
        first, second, third = jax.random.split(as_key("key", key), 3)
        return cls(
            stable_gaussian(width, gain=gain, margin=margin, key=first),
            random_input(width, inputs, second),
            random_readout(width, outputs, third),
        )

    @property
    def width(self) -> int:
        """The number of neurons."""
        return self.recurrent.shape[0]

    def kernel(self) -> StateSpaceKernel:
        """The memory kernel of the model, in closed form."""
        return StateSpaceKernel(self.recurrent, self.input, self.readout_weights)

    def initial_hidden(self) -> Float[Array, " width"]:
        return jnp.zeros(self.width, self.recurrent.dtype)

    def vector_field(
        self, t: Float[Array, ""], hidden: Float[Array, " width"], x: Float[Array, "*inputs"]
    ) -> Float[Array, " width"]:
        return self.recurrent @ hidden + self.drive(x)

    def readout(self, hidden: Float[Array, " width"]) -> Float[Array, "*outputs"]:
        return self.output(hidden)

    def scan(
        self,
        ts: Real[ArrayLike, " times"],
        xs: Real[ArrayLike, "times *inputs"],
        *,
        interpolation: Literal["linear", "previous"] = "linear",
    ) -> Float[Array, "times *outputs"]:
        """The outputs for sampled inputs, exactly in every step, by matrix exponentials.

        One exponential serves all steps if the times are even and known; on uneven ones, and on
        those that `jax.jit` traces, every step costs its own. Arguments and errors as in
        [`memjax.DiagonalLinearRNN.scan`][], with `xs` of shape `(times, inputs)` and the returned
        outputs of shape `(times, outputs)` where there are several.
        """
        _, xs = as_scannable(ts, xs, interpolation)
        check_input(xs[0], self.input_shape)
        # A dense recurrence has no diagonal to scan associatively: products of its matrices cost
        # the cube of the width.
        inputs, readout = jnp.reshape(self.input, (self.width, -1)), self.readout_weights
        system = StateSpace(self.recurrent, inputs, jnp.atleast_2d(readout))
        ys = system.response(ts, xs.reshape(xs.shape[0], -1), interpolation == "previous")
        return ys.reshape(xs.shape[0], *readout.shape[:-1])
