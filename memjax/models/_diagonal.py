import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._checks import as_key, check_same_shape
from .._typing import ArrayLike
from ..reparam import AbstractReparametrisation
from ..targets import ExponentialSum, kernel_of_modes
from ._capabilities import AbstractModal, AbstractScannable, DiagonalRecurrence
from ._parts import as_modes, as_rates, check_input, Rates


class DiagonalLinearRNN(AbstractModal, AbstractScannable):
    r"""A linear RNN with real diagonal recurrence, whose kernel is an exponential sum.

    $$\dot h_i = -w_i h_i + x, \qquad \hat y = \sum_i a_i h_i, \qquad
      \hat\rho(t) = \sum_i a_i e^{-w_i t}, \qquad w = \varphi(v).$$

    The amplitudes $a_i = c_i u_i$ and the free weights $v_i$ are trained.

    **Arguments:**

    - `amplitudes`: the $a_i$, shape `(width,)`.
    - `rates`: the decay rates $w_i > 0$, shape `(width,)`, in units of one over the model's
        clock.
    - `reparametrisation`: the map from free weights to rates. Defaults to
        [`memjax.Direct`][].

    **Raises:**

    `ValueError` for rates that are not positive, entries that are not finite, or shapes that
    differ.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation
        and Optimization Analysis*, ICLR 2021, Section 5.
    """

    amplitudes: Float[Array, " width"]
    decays: Rates

    def __init__(
        self,
        amplitudes: Real[ArrayLike, " width"],
        rates: Real[ArrayLike, " width"],
        reparametrisation: AbstractReparametrisation | None = None,
    ) -> None:
        self.amplitudes = as_modes("amplitudes", amplitudes)
        self.decays = Rates(rates, reparametrisation)
        check_same_shape("amplitudes", self.amplitudes, "rates", self.free_rates)

    @classmethod
    def init(
        cls,
        rates: Real[ArrayLike, " width"],
        *,
        reparametrisation: AbstractReparametrisation | None = None,
        key: PRNGKeyArray,
    ) -> "DiagonalLinearRNN":
        r"""A model of given rates with independent amplitudes of variance `1 / width`.

        **Arguments:**

        - `rates`: the decay rates, as those of [`memjax.uniform_rates`][],
            [`memjax.log_uniform_rates`][] or [`memjax.s4d_real`][].
        - `reparametrisation`: as above.
        - `key`: the PRNG key.
        """
        rates = as_rates(rates)
        normal = jax.random.normal(as_key("key", key), rates.shape, rates.dtype)
        return cls(normal / jnp.sqrt(rates.size), rates, reparametrisation)

    @property
    def input_shape(self) -> tuple[int, ...]:
        """That of a scalar."""
        return ()

    @property
    def modes(self) -> tuple[Float[Array, " width"], ...]:
        return self.amplitudes, self.rates

    def kernel(self) -> ExponentialSum:
        """The memory kernel of the model, in closed form."""
        return kernel_of_modes(ExponentialSum, amplitudes=self.amplitudes, rates=self.rates)

    def kernel_displacement(
        self, displacement: "DiagonalLinearRNN"
    ) -> tuple[Float[Array, " width"], Float[Array, " width"]]:
        """By how much amplitudes and rates change when the weights move by `displacement`.

        **Arguments:**

        - `displacement`: a model of the same structure that holds the changes of
            `amplitudes` and `free_rates`.

        **Returns:**

        The changes of amplitudes and of rates, shape `(width,)` each, free of cancellation
        however small the displacement is.
        """
        change = self.reparametrisation.displacement(self.free_rates, displacement.free_rates)
        return displacement.amplitudes, change

    def initial_hidden(self) -> Float[Array, " width"]:
        return jnp.zeros_like(self.amplitudes)

    def vector_field(
        self, t: Float[Array, ""], hidden: Float[Array, " width"], x: Float[Array, ""]
    ) -> Float[Array, " width"]:
        check_input(x, ())
        return -self.rates * hidden + x

    def readout(self, hidden: Float[Array, " width"]) -> Float[Array, ""]:
        return jnp.dot(self.amplitudes, hidden)

    def _recurrence(self) -> DiagonalRecurrence:
        def drive(x: Float[Array, ""]) -> Float[Array, " width"]:
            check_input(x, ())
            return jnp.broadcast_to(x, self.free_rates.shape)

        return DiagonalRecurrence(-self.rates, drive, self.readout)
