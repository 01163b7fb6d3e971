from jaxtyping import Array, Float

from ._diagonal_network import AbstractDiagonalNetwork


class DiagonalNonlinearRNN(AbstractDiagonalNetwork):
    r"""A nonlinear RNN with diagonal recurrence, for one or several inputs and outputs.

    $$\dot h = \sigma(-w \odot h + U x + b), \qquad \hat y = C h, \qquad w = \varphi(v).$$

    It is a [`memjax.NonlinearRNN`][] with $W = -\operatorname{diag}(w)$ whose rates can be
    reparametrised. The arrays $v$, $U$, $b$ and $C$ are trained. Starts from $h = 0$ at the first
    time; `residual` is the discretisation
    $h_{k+1} = h_k + \Delta t\, \sigma(-w \odot h_k + U x_k + b)$ of the papers.

    **Arguments:**

    - `rates`: the decay rates $w_i > 0$, shape `(width,)`, in units of one over the model's
        clock: with an activation of slope 1 at 0, those of small hidden states. `residual` is
        stable for $w_i \Delta t < 2$.
    - `input`: the matrix $U$, shape `(width,)` for scalar inputs or `(width, inputs)`.
    - `bias`: the vector $b$, shape `(width,)`, or `None` for zeros, which are trained too.
    - `readout`: the matrix $C$, shape `(width,)` for scalar outputs or `(outputs, width)`.
    - `activation`: $\sigma$, as in [`memjax.NonlinearRNN`][].
    - `reparametrisation`: the map from free weights to rates. Defaults to [`memjax.Direct`][].

    **Raises:**

    `ValueError` for rates that are not positive, entries that are not finite, shapes that do not
    match, or an unknown activation.

    ??? cite "Reference"

        Wang, Li, Li, *Inverse Approximation Theory for Nonlinear Recurrent Neural Networks*,
        ICLR 2024, Section 3 (theory, section 5).
    """

    def vector_field(
        self, t: Float[Array, ""], hidden: Float[Array, " width"], x: Float[Array, "*inputs"]
    ) -> Float[Array, " width"]:
        return self.activation(-self.rates * hidden + self.drive(x) + self.bias)

    def readout(self, hidden: Float[Array, " width"]) -> Float[Array, "*outputs"]:
        return self.output(hidden)
