from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float, PRNGKeyArray, Real, Shaped

from .._checks import (
    as_finite_array,
    as_key,
    as_positive,
    as_positive_array,
    as_range,
    check_choice,
    check_flag,
    check_integer,
)
from .._typing import ArrayLike, ScalarLike
from ..reparam import AbstractReparametrisation, Exp
from ..targets import StateSpace
from ._capabilities import AbstractMapped, AbstractModal
from ._diagonal_low_rank import DiagonalLowRank
from ._hippo import hippo_legs
from ._parts import (
    as_activation,
    check_input,
    check_sizes,
    complex_parts,
    InputMap,
    random_input,
    random_readout,
    Rates,
    Readout,
)
from ._scan import as_scannable

Discretisation = Literal["bilinear", "zoh"]


class S4Layer(AbstractModal, AbstractMapped):
    r"""A structured state-space layer: S4, or with diagonal recurrence S4D.

    Every channel $c$ is a linear system of conjugate pairs of complex modes with its own clock,
    whose recurrence is a diagonal plus a matrix of rank one:

    $$\dot h_c = \Delta_c \big( (\Lambda_c - p_c p_c^*) h_c + b_c\, (U x)_c \big), \qquad
      \hat y = C\, \sigma(s), \qquad s_c = 2 \operatorname{Re} \sum_n k_{cn} h_{cn},$$

    with $\Lambda = -w + i\nu$ and $w = \varphi(v)$. One hidden number stands for each pair, so that
    $p^* h$ is $2 \operatorname{Re} \sum_n \bar p_n h_n$. Trained are $\log \Delta$, $v$, $\nu$,
    $U$, $C$ and the real and imaginary parts of $p$, $b$ and $k$.

    There is no feedthrough $D x$, which S4 has beside the recurrence: it is no functional with a
    memory. Since $p p^*$ is positive, no eigenvalue of $\Lambda - p p^*$ lies to the right of
    $-\min w$: a layer with positive rates is stable whatever $p$ is.

    **Arguments:**

    - `rates`: the decay rates $w_{cn} > 0$, shape `(channels, modes)`, in units of one over the
        channel's clock.
    - `frequencies`: the angular frequencies $\nu_{cn}$, shape `(channels, modes)`.
    - `clock_rates`: the rates $\Delta_c > 0$ of the channels' clocks, shape `(channels,)`, in units
        of one over the model's clock. For samples at distance 1 they are the step sizes of S4.
    - `low_rank`: the vectors $p_c$, complex or real, shape `(channels, modes)`, or `None` for S4D.
    - `state_input`, `state_readout`: the vectors $b_c$ and $k_c$, complex or real, shape
        `(channels, modes)`.
    - `input`: the matrix $U$, shape `(channels,)` for scalar inputs or `(channels, inputs)`.
    - `readout`: the matrix $C$, shape `(channels,)` for scalar outputs or `(outputs, channels)`.
    - `activation`: $\sigma$, as in [`memjax.NonlinearRNN`][]. Defaults to `"gelu"`.
    - `reparametrisation`: the map from free weights to rates. Defaults to [`memjax.Exp`][].

    **Raises:**

    `ValueError` for rates or clock rates that are not positive, entries that are not finite,
    shapes that do not match, or an unknown activation.

    ??? cite "Reference"

        Gu, Goel, Ré, *Efficiently Modeling Long Sequences with Structured State Spaces*, ICLR
        2022; Gu, Gupta, Goel, Ré, *On the Parameterization and Initialization of Diagonal State
        Space Models*, NeurIPS 2022.
    """

    decays: Rates
    frequencies: Float[Array, " width"]
    log_clock_rates: Float[Array, " channels"]
    low_rank: Float[Array, "2 channels modes"] | None
    state_input: Float[Array, "2 channels modes"]
    state_readout: Float[Array, "2 channels modes"]
    drive: InputMap
    output: Readout
    activation: Callable[[Array], Array]

    def __init__(
        self,
        rates: Real[ArrayLike, "channels modes"],
        frequencies: Real[ArrayLike, "channels modes"],
        clock_rates: Real[ArrayLike, " channels"],
        low_rank: Shaped[ArrayLike, "channels modes"] | None,
        state_input: Shaped[ArrayLike, "channels modes"],
        state_readout: Shaped[ArrayLike, "channels modes"],
        input: Real[ArrayLike, "channels *inputs"],
        readout: Real[ArrayLike, "*outputs channels"],
        activation: str | Callable[[Array], Array] = "gelu",
        reparametrisation: AbstractReparametrisation | None = None,
    ) -> None:
        hint = "a mode of rate w decays as exp(-w t), so pass w > 0"
        rates = as_positive_array("rates", rates, hint)
        if rates.ndim != 2 or rates.size == 0:
            raise ValueError(
                f"`rates` must have shape (channels, modes), got {rates.shape}; pass one row per "
                "channel."
            )
        self.decays = Rates(
            rates.ravel(), Exp() if reparametrisation is None else reparametrisation
        )
        frequencies = as_finite_array("frequencies", frequencies)
        _check_shape("frequencies", frequencies, rates.shape)
        self.frequencies = frequencies.ravel()
        clocks = as_positive_array("clock_rates", clock_rates)
        _check_shape("clock_rates", clocks, rates.shape[:1])
        self.log_clock_rates = jnp.log(clocks)
        self.low_rank = None if low_rank is None else _as_parts("low_rank", low_rank, rates.shape)
        self.state_input = _as_parts("state_input", state_input, rates.shape)
        self.state_readout = _as_parts("state_readout", state_readout, rates.shape)
        self.drive = InputMap(input, rates.shape[0])
        self.output = Readout(readout, rates.shape[0])
        self.activation = as_activation(activation)

    @classmethod
    def init(
        cls,
        channels: int,
        modes: int,
        inputs: int | None = None,
        outputs: int | None = None,
        *,
        diagonal: bool = False,
        slowest: Real[ScalarLike, ""] = 1e-3,
        fastest: Real[ScalarLike, ""] = 0.1,
        activation: str | Callable[[Array], Array] = "gelu",
        reparametrisation: AbstractReparametrisation | None = None,
        key: PRNGKeyArray,
    ) -> "S4Layer":
        r"""A layer that starts from HiPPO-LegS in every channel ([`memjax.hippo_legs`][]).

        **Arguments:**

        - `channels`: how many linear systems.
        - `modes`: the number of conjugate pairs of each, half of the number of its states.
        - `inputs`, `outputs`: how many, or `None` for scalars.
        - `diagonal`: whether to leave out the matrix of rank one, as S4D-LegS does.
        - `slowest`, `fastest`: between which clock rates are drawn, with uniform logarithms.
        - `activation`, `reparametrisation`: as above.
        - `key`: the PRNG key.
        """
        check_integer("channels", channels)
        system = hippo_legs(modes)
        check_sizes(inputs, outputs)
        diagonal = check_flag("diagonal", diagonal)
        slowest, fastest = as_range("slowest", slowest, "fastest", fastest)
        activation = as_activation(activation)
        keys = jax.random.split(as_key("key", key), 5)
        clocks = jax.random.uniform(
            keys[0], (channels,), minval=jnp.log(slowest), maxval=jnp.log(fastest)
        )
        rows = lambda row: jnp.broadcast_to(row, (channels, modes))
        # Two parts of half the variance each make complex numbers of the usual one.
        parts = jax.random.normal(keys[1], (2, channels, modes)) / jnp.sqrt(2)
        return cls(
            rows(system.rates),
            rows(system.frequencies),
            jnp.exp(clocks),
            None if diagonal else rows(system.low_rank),
            rows(system.input),
            jax.lax.complex(*parts),
            random_input(channels, inputs, keys[2]),
            random_readout(channels, outputs, keys[3]),
            activation,
            reparametrisation,
        )

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.log_clock_rates.shape[0]

    @property
    def clock_rates(self) -> Float[Array, " channels"]:
        r"""The rates $\Delta$ of the channels' clocks."""
        return jnp.exp(self.log_clock_rates)

    def initial_hidden(self) -> Float[Array, "2 channels modes"]:
        """The hidden state at rest: real parts, then imaginary parts."""
        return jnp.zeros_like(self.state_input)

    def vector_field(
        self,
        t: Float[Array, ""],
        hidden: Float[Array, "2 channels modes"],
        x: Float[Array, "*inputs"],
    ) -> Float[Array, "2 channels modes"]:
        state = jax.lax.complex(*hidden)
        driven = jax.lax.complex(*self.state_input) * self.drive(x)[:, None]
        slope = self.clock_rates[:, None] * (self._matrix()(state) + driven)
        return jnp.stack([slope.real, slope.imag])

    def readout(self, hidden: Float[Array, "2 channels modes"]) -> Float[Array, "*outputs"]:
        real, imaginary = self.state_readout
        signals = 2 * jnp.sum(real * hidden[0] - imaginary * hidden[1], axis=1)
        return self.output(self.activation(signals))

    def scan(
        self,
        ts: Real[ArrayLike, " times"],
        xs: Real[ArrayLike, "times *inputs"],
        *,
        interpolation: Literal["linear", "previous"] = "linear",
    ) -> Float[Array, "times *outputs"]:
        """The outputs for sampled inputs, exactly in every step, by matrix exponentials.

        Every channel is a dense system of twice as many real states as it has modes. For long
        inputs and for training, `convolve` is the faster one. Arguments, returns and errors as in
        [`memjax.LinearRNN.scan`][].
        """
        _, xs = as_scannable(ts, xs, interpolation)
        check_input(xs[0], self.input_shape)
        signals = self._respond(ts, jax.vmap(self.drive)(xs), interpolation == "previous")
        return jax.vmap(lambda signal: self.output(self.activation(signal)))(signals)

    def discrete_kernel(
        self,
        times: int,
        *,
        step: Real[ScalarLike, ""] = 1.0,
        discretisation: Discretisation = "bilinear",
    ) -> Float[Array, "channels times"]:
        r"""The convolution kernels of the channels in discrete time.

        $$K_{cj} = 2 \operatorname{Re} k_c^\mathsf{T} \bar A_c^j \bar b_c, \qquad
          \bar A = (1 - \tfrac{\delta}{2} A)^{-1} (1 + \tfrac{\delta}{2} A), \quad
          \bar b = (1 - \tfrac{\delta}{2} A)^{-1} \delta b$$

        with $A_c = \Lambda_c - p_c p_c^*$ and $\delta = \Delta_c$ times the step for `"bilinear"`,
        and $\bar A = e^{\delta A}$, $\bar b = A^{-1} (e^{\delta A} - 1) b$ for `"zoh"`, the input
        held between samples. The inverse takes one division a mode, by the formula of Sherman and
        Morrison, so that `"bilinear"` costs as many operations as there are modes and times.

        **Arguments:**

        - `times`: how many.
        - `step`: the distance of samples, in units of the model's clock.
        - `discretisation`: `"bilinear"` as in S4, or `"zoh"` as in S4D.

        **Returns:**

        The kernels, shape `(channels, times)`.

        **Raises:**

        `ValueError` for numbers that are not positive or another discretisation.
        """
        check_integer("times", times)
        step = as_positive("step", step).astype(self.log_clock_rates.dtype)
        check_choice("discretisation", discretisation, ("bilinear", "zoh"), "choose one of both")
        if discretisation == "zoh":
            return self._held_kernel(times, step)
        half = 0.5 * step * self.clock_rates[:, None]
        inverse = self._matrix().diagonal_inverse(half)
        solve = lambda state: self._matrix().solve(half, inverse, state)
        start = solve(2 * half * jax.lax.complex(*self.state_input))

        # Step by step, where S4 evaluates a generating function at the roots of unity: that takes
        # the power of the transition matrix by the whole length.
        def advance(state: Array, _: None) -> tuple[Array, Array]:
            return solve(state + half * self._matrix()(state)), self._read(state)

        return jax.lax.scan(advance, start, length=times)[1].T

    def convolve(
        self,
        xs: Real[ArrayLike, "times *inputs"],
        *,
        step: Real[ScalarLike, ""] = 1.0,
        discretisation: Discretisation = "bilinear",
    ) -> Float[Array, "times *outputs"]:
        r"""The outputs in discrete time, as S4 computes them, by Fourier transforms.

        $$\hat y_k = C\, \sigma\Big(\sum_{j \le k} K_j\, U x_{k-j}\Big),$$

        so that an output sees the input of its own time already, other than in `scan`.

        **Arguments:**

        - `xs`: the inputs, shape `(times,)`, or `(times, inputs)` where there are several.
        - `step`, `discretisation`: as in `discrete_kernel`.

        **Returns:**

        The outputs, shape `(times,)`, or `(times, outputs)` where there are several.

        **Raises:**

        `ValueError` for inputs of another shape, and as `discrete_kernel` does.
        """
        xs = as_finite_array("xs", xs)
        if xs.ndim == 0 or xs.shape[0] == 0:
            raise ValueError(
                f"`xs` must have at least one time, got shape {xs.shape}; pass samples."
            )
        check_input(xs[0], self.input_shape)
        times = xs.shape[0]
        kernel = self.discrete_kernel(times, step=step, discretisation=discretisation)
        driven = jax.vmap(self.drive, out_axes=1)(xs)
        # Twice the length, so that what runs over the end does not come back at the start.
        transform = lambda signal: jnp.fft.rfft(signal, 2 * times)
        signals = jnp.fft.irfft(transform(kernel) * transform(driven), 2 * times)[:, :times]
        return jax.vmap(lambda signal: self.output(self.activation(signal)), 1)(signals)

    def _matrix(self) -> DiagonalLowRank:
        diagonal = jax.lax.complex(-self.rates, self.frequencies)
        low_rank = None if self.low_rank is None else jax.lax.complex(*self.low_rank)
        return DiagonalLowRank(diagonal.reshape(self.state_input.shape[1:]), low_rank)

    def _read(self, state: Complex[Array, "channels modes"]) -> Float[Array, " channels"]:
        return 2 * jnp.sum(jax.lax.complex(*self.state_readout) * state, axis=1).real

    def _held_kernel(self, times: int, step: Array) -> Float[Array, "channels times"]:
        if self.low_rank is None:
            diagonal = self._matrix().diagonal
            z = step * self.clock_rates[:, None] * diagonal
            weights = jax.lax.complex(*self.state_readout) * jax.lax.complex(*self.state_input)
            # For slow clocks e^z - 1 would be what is left of two numbers near 1.
            weights = weights * jnp.expm1(z) / diagonal
            powers = jnp.exp(z[:, :, None] * jnp.arange(times))
            return 2 * jnp.einsum("cn,cnt->ct", weights, powers).real
        # With the rank one the inverse and the exponential of A are dense. The response to an input
        # that is held for one step has both.
        impulse = jnp.zeros((times + 1, self.channels), self.state_input.dtype).at[0].set(1.0)
        return self._respond(step * np.arange(times + 1), impulse, True)[1:].T

    def _respond(
        self, ts: Real[ArrayLike, " times"], driven: Float[Array, "times channels"], held: bool
    ) -> Float[Array, "times channels"]:
        """What the channels read out, exactly, as dense systems of real states."""
        modes = self.state_input.shape[2]
        clocks = self.clock_rates[:, None]
        flat = lambda state: jnp.concatenate([state.real, state.imag], axis=1)
        # The real states of a channel are the real parts, then the imaginary parts; each of them
        # is moved on its own, in all channels at once.
        units = jnp.eye(2 * modes, dtype=self.state_input.dtype).reshape(-1, 2, 1, modes)
        ones = jnp.ones((self.channels, 1), self.state_input.dtype)
        move = lambda unit: clocks * flat(self._matrix()(jax.lax.complex(*(ones * unit))))
        recurrent = jnp.moveaxis(jax.vmap(move)(units), 0, 2)
        columns = clocks * flat(jax.lax.complex(*self.state_input))
        # 2 Re k h = 2 (Re k Re h - Im k Im h).
        rows = 2 * flat(jax.lax.complex(*self.state_readout).conj())

        def respond(matrix: Array, column: Array, row: Array, signal: Array) -> Array:
            system = StateSpace(matrix, column[:, None], row[None])
            return system.response(ts, signal[:, None], held)[:, 0]

        return jax.vmap(respond, (0, 0, 0, 1), 1)(recurrent, columns, rows, driven)


def _as_parts(
    name: str, value: Shaped[ArrayLike, "..."], shape: tuple[int, ...]
) -> Float[Array, "2 channels modes"]:
    """Real parts, then imaginary parts, checked."""
    parts = complex_parts(name, value)
    _check_shape(name, parts[0], shape)
    return jnp.stack([as_finite_array(name, part) for part in parts])


def _check_shape(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(
            f"`{name}` must have shape {shape} as `rates` have it, got {array.shape}; pass an "
            "entry for each."
        )
