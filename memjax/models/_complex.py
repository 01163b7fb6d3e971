import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._checks import as_key, check_same_shape
from .._typing import ArrayLike
from ..reparam import AbstractReparametrisation
from ..targets import DampedOscillation, kernel_of_modes
from ._capabilities import (
    AbstractModal,
    AbstractScannable,
    complex_recurrence,
    DiagonalRecurrence,
)
from ._parts import as_modes, as_rates, check_input, Rates


class ComplexDiagonalRNN(AbstractModal, AbstractScannable):
    r"""A linear RNN whose diagonal recurrence has conjugate pairs of complex eigenvalues.

    One hidden number of each pair $-w_j \pm i \nu_j$ suffices, since outputs are real:

    $$\dot h_j = (-w_j + i \nu_j) h_j + x, \qquad
      \hat y = \operatorname{Re} \sum_j (a_j - i b_j) h_j, \qquad w = \varphi(v),$$

    $$\hat\rho(t) = \sum_j e^{-w_j t} (a_j \cos \nu_j t + b_j \sin \nu_j t).$$

    All weights are real: $a$, $b$, $v$ and $\nu$ are trained. A real eigenvalue is a pair with
    $\nu_j = 0$, whose $b_j$ then has no effect.

    **Arguments:**

    - `cosine`, `sine`: the amplitudes $a_j$ and $b_j$, shape `(width,)` each.
    - `rates`: the decay rates $w_j > 0$, shape `(width,)`, in units of one over the model's
        clock.
    - `frequencies`: the angular frequencies $\nu_j$, shape `(width,)`, in the same units.
    - `reparametrisation`: the map from free weights to rates. Defaults to
        [`memjax.Direct`][].

    **Raises:**

    `ValueError` for rates that are not positive, entries that are not finite, or shapes that
    differ.

    ??? cite "Reference"

        Li, Han, E, Li, *Approximation and Optimization Theory for Linear Continuous-Time
        Recurrent Neural Networks*, JMLR 23, 2022; Orvieto et al., *Resurrecting Recurrent
        Neural Networks for Long Sequences*, ICML 2023, Section 3.2.
    """

    cosine: Float[Array, " width"]
    sine: Float[Array, " width"]
    decays: Rates
    frequencies: Float[Array, " width"]

    def __init__(
        self,
        cosine: Real[ArrayLike, " width"],
        sine: Real[ArrayLike, " width"],
        rates: Real[ArrayLike, " width"],
        frequencies: Real[ArrayLike, " width"],
        reparametrisation: AbstractReparametrisation | None = None,
    ) -> None:
        self.cosine = as_modes("cosine", cosine)
        self.sine = as_modes("sine", sine)
        self.decays = Rates(rates, reparametrisation)
        self.frequencies = as_modes("frequencies", frequencies)
        check_same_shape("cosine", self.cosine, "sine", self.sine)
        check_same_shape("cosine", self.cosine, "rates", self.free_rates)
        check_same_shape("cosine", self.cosine, "frequencies", self.frequencies)

    @classmethod
    def init(
        cls,
        rates: Real[ArrayLike, " width"],
        frequencies: Real[ArrayLike, " width"],
        *,
        reparametrisation: AbstractReparametrisation | None = None,
        key: PRNGKeyArray,
    ) -> "ComplexDiagonalRNN":
        r"""A model of given eigenvalues with independent amplitudes of variance `1 / width`.

        **Arguments:**

        - `rates`, `frequencies`: the eigenvalues, as those of [`memjax.ring`][] or
            [`memjax.s4d_lin`][].
        - `reparametrisation`: as above.
        - `key`: the PRNG key.
        """
        rates = as_rates(rates)
        amplitudes = jax.random.normal(as_key("key", key), (2, *rates.shape), rates.dtype)
        cosine, sine = amplitudes / jnp.sqrt(rates.size)
        return cls(cosine, sine, rates, frequencies, reparametrisation)

    @property
    def modes(self) -> tuple[Float[Array, " width"], ...]:
        return self.cosine, self.sine, self.rates, self.frequencies

    @property
    def input_shape(self) -> tuple[int, ...]:
        """That of a scalar."""
        return ()

    def kernel(self) -> DampedOscillation:
        """The memory kernel of the model, in closed form."""
        return kernel_of_modes(
            DampedOscillation,
            cosine=self.cosine,
            sine=self.sine,
            rates=self.rates,
            frequencies=self.frequencies,
        )

    def initial_hidden(self) -> Float[Array, "2 width"]:
        """The hidden state at rest: real parts, then imaginary parts."""
        return jnp.zeros((2, self.width), self.cosine.dtype)

    def vector_field(
        self, t: Float[Array, ""], hidden: Float[Array, "2 width"], x: Float[Array, ""]
    ) -> Float[Array, "2 width"]:
        check_input(x, ())
        # h' = (-w + i nu) h + x by its parts: Diffrax warns of complex states.
        real, imaginary = hidden
        rates = self.rates
        return jnp.stack(
            [
                -rates * real - self.frequencies * imaginary + x,
                -rates * imaginary + self.frequencies * real,
            ]
        )

    def readout(self, hidden: Float[Array, "2 width"]) -> Float[Array, ""]:
        # Re (a - i b) h.
        return jnp.dot(self.cosine, hidden[0]) + jnp.dot(self.sine, hidden[1])

    def _recurrence(self) -> DiagonalRecurrence:
        def drive(x: Float[Array, ""]) -> Float[Array, " width"]:
            check_input(x, ())
            return jnp.broadcast_to(x, self.cosine.shape)

        return complex_recurrence(self.rates, self.frequencies, drive, self.readout)
