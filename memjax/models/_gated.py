from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._checks import as_key, as_positive, check_choice, check_instance, check_integer
from .._typing import ArrayLike, ScalarLike
from ._base import AbstractModel, Fixed
from ._capabilities import known_input_shape
from ._parts import check_input, check_sizes, random_readout, Readout

# The cells of Equinox, which do one step a sample: `cell(input, hidden)`.
CELLS = (eqx.nn.GRUCell, eqx.nn.LSTMCell)


def cell_at_rest(cell: eqx.nn.GRUCell | eqx.nn.LSTMCell, dtype: Any) -> Any:
    """The hidden state of a cell at rest: zeros, of an LSTM a pair of them."""
    rest = jnp.zeros(cell.hidden_size, dtype)
    return (rest, rest) if isinstance(cell, eqx.nn.LSTMCell) else rest


def _shape_of_input(cell: Any) -> tuple[int, ...]:
    return () if cell.input_size == 1 else (cell.input_size,)


for _kind in CELLS:
    known_input_shape.register(_kind, _shape_of_input)


class GatedRNN(AbstractModel):
    r"""A gated cell in continuous time: the hidden state relaxes to what the cell makes of it.

    $$\dot h = r\, (\operatorname{cell}(x, h) - h), \qquad \hat y = C h.$$

    The hidden state of an LSTM is the pair of its output $h$ and its memory, both of which follow
    this equation; the readout sees $h$. With $r \Delta t = 1$ the recursion of `residual` is the
    cell's own in discrete time. The weights of the cell and $C$ are trained, the rate $r$ is not.

    **Arguments:**

    - `cell`: an `equinox.nn.GRUCell` or `equinox.nn.LSTMCell`. A cell of one input takes scalar
        inputs, samples of shape `(times,)`; others take `(times, inputs)`.
    - `readout`: the matrix $C$, shape `(width,)` for scalar outputs or `(outputs, width)`.
    - `rate`: the rate $r > 0$, in units of one over the model's clock. Defaults to 1.

    **Raises:**

    `TypeError` for another cell; `ValueError` for a rate that is not positive, or a readout that
    does not match.

    ??? cite "Reference"

        Cho et al., *Learning Phrase Representations using RNN Encoder-Decoder*, EMNLP 2014;
        Hochreiter, Schmidhuber, *Long Short-Term Memory*, Neural Computation 9, 1997; in
        continuous time: De Brouwer et al., *GRU-ODE-Bayes*, NeurIPS 2019, Section 2.3.
    """

    cell: eqx.nn.GRUCell | eqx.nn.LSTMCell
    output: Readout
    rate: Fixed

    def __init__(
        self,
        cell: eqx.nn.GRUCell | eqx.nn.LSTMCell,
        readout: Real[ArrayLike, "*outputs width"],
        rate: Real[ScalarLike, ""] = 1.0,
    ) -> None:
        hint = "write other cells as a memjax.AbstractModel of your own"
        check_instance("cell", cell, CELLS, "an equinox.nn.GRUCell or LSTMCell", hint)
        self.cell = cell
        self.output = Readout(readout, cell.hidden_size)
        self.rate = Fixed(as_positive("rate", rate))

    @classmethod
    def init(
        cls,
        cell: Literal["gru", "lstm"],
        width: int,
        inputs: int = 1,
        outputs: int | None = None,
        *,
        rate: Real[ScalarLike, ""] = 1.0,
        key: PRNGKeyArray,
    ) -> "GatedRNN":
        r"""A random model: Equinox's own cell, and Gaussian readout weights.

        **Arguments:**

        - `cell`: `"gru"` or `"lstm"`.
        - `width`: the number of neurons.
        - `inputs`: how many; 1 for scalars.
        - `outputs`: how many, or `None` for scalars.
        - `rate`: as above.
        - `key`: the PRNG key.
        """
        check_integer("width", width)
        cells = {"gru": eqx.nn.GRUCell, "lstm": eqx.nn.LSTMCell}
        check_choice("cell", cell, cells)
        check_integer("inputs", inputs)
        check_sizes(None, outputs)
        rate = as_positive("rate", rate)
        first, second = jax.random.split(as_key("key", key))
        return cls(
            cells[cell](inputs, width, key=first), random_readout(width, outputs, second), rate
        )

    @property
    def width(self) -> int:
        """The number of neurons."""
        return self.cell.hidden_size

    @property
    def readout_weights(self) -> Float[Array, "*outputs width"]:
        """The matrix $C$."""
        return self.output.readout_weights

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of one sample of the input; a cell of one input takes scalars."""
        return _shape_of_input(self.cell)

    def initial_hidden(self) -> Any:
        return cell_at_rest(self.cell, self.readout_weights.dtype)

    def vector_field(self, t: Float[Array, ""], hidden: Any, x: Float[Array, "*inputs"]) -> Any:
        check_input(x, self.input_shape)
        moved = self.cell(jnp.atleast_1d(x), hidden)
        return jax.tree.map(lambda new, old: self.rate.value * (new - old), moved, hidden)

    def readout(self, hidden: Any) -> Float[Array, "*outputs"]:
        return self.output(jax.tree.leaves(hidden)[0])
