from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._checks import as_finite_array, as_key, check_integer
from .._typing import ArrayLike, ScalarLike
from ..targets import check_stable, StateSpaceKernel
from ._base import AbstractModel
from ._init import stable_gaussian
from ._maps import as_input, as_readout, drive
from ._scan import scan_dense


class LinearRNN(AbstractModel):
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
    input: Float[Array, "width *inputs"]
    readout_weights: Float[Array, "*outputs width"]

    def __init__(
        self,
        recurrent: Real[ArrayLike, "width width"],
        input: Real[ArrayLike, "width *inputs"],
        readout: Real[ArrayLike, "*outputs width"],
    ) -> None:
        self.recurrent = as_recurrent(recurrent)
        check_stable(self.recurrent)
        self.input = as_input(input, self.width)
        self.readout_weights = as_readout(readout, self.width)

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
        return self.recurrent @ hidden + drive(self.input, x)

    def readout(self, hidden: Float[Array, " width"]) -> Float[Array, "*outputs"]:
        return self.readout_weights @ hidden

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
        return scan_dense(
            self.recurrent, ts, xs, interpolation, lambda x: drive(self.input, x), self.readout
        )


def as_recurrent(value: Real[ArrayLike, "width width"]) -> Float[Array, "width width"]:
    array = as_finite_array("recurrent", value)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or array.shape[0] == 0:
        raise ValueError(
            f"`recurrent` must be a square matrix of at least one row, got shape {array.shape}; "
            "pass shape (width, width)."
        )
    return array


def check_sizes(inputs: int | None, outputs: int | None) -> None:
    """Refuse numbers of inputs and outputs below 1; `None` stands for a scalar."""
    for name, value in (("inputs", inputs), ("outputs", outputs)):
        if value is not None:
            check_integer(name, value)


def random_input(width: int, inputs: int | None, key: PRNGKeyArray) -> Float[Array, "..."]:
    shape = (width,) if inputs is None else (width, inputs)
    return jax.random.normal(key, shape) / jnp.sqrt(inputs or 1)


def random_readout(width: int, outputs: int | None, key: PRNGKeyArray) -> Float[Array, "..."]:
    shape = (width,) if outputs is None else (outputs, width)
    return jax.random.normal(key, shape) / jnp.sqrt(width)
