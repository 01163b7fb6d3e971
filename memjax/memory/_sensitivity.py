from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from diffrax import ForwardMode
from jaxtyping import Array, Float, PyTree, Real

from .._checks import (
    as_finite_array,
    as_float_array,
    as_inexact_array,
    as_positive,
    as_positive_array,
    check_finite,
    check_flag,
    check_integer,
    check_scalar,
    is_traced,
    valid_or_nan,
)
from .._paths import as_times
from .._typing import ArrayLike, ScalarLike
from ..losses import check_trained, coordinates
from ..models import as_reparametrisation, trainable
from ..reparam import AbstractReparametrisation
from ._functional import named_functional


def hidden_variance(
    rates: Real[ArrayLike, "*shape"],
    frequencies: Real[ArrayLike, "*shape"] = 0.0,
    *,
    step: Real[ScalarLike, ""] | None = None,
    correlation_rate: Real[ScalarLike, ""] | None = None,
    normalised: bool = False,
) -> Float[Array, "*shape"]:
    r"""The stationary mean square $E|h|^2$ of a linear hidden state.

    In continuous time (`step=None`) and in discrete time, with
    $\lambda = e^{(-w + i\nu) \Delta t}$,

    $$\dot h = (-w + i\nu) h + \gamma x, \qquad h_{k+1} = \lambda h_k + \gamma x_{k+1},$$

    where $\gamma = 1$, or, normalised, $\sqrt{2w}$ and $\sqrt{1 - |\lambda|^2}$. With white input
    of unit intensity $E|h|^2$ is $\gamma^2 / (2w)$, and $\gamma^2 / (1 - |\lambda|^2)$ in
    discrete time. With the autocovariance $e^{-\kappa|\tau|}$ of a coloured input and
    $\rho = e^{-\kappa \Delta t}$,

    $$E|h|^2 = \frac{\gamma^2}{2w} \cdot 2 \operatorname{Re} \frac{1}{\kappa + w - i\nu}
      \quad\text{or}\quad \frac{\gamma^2}{1 - |\lambda|^2}
      \operatorname{Re} \frac{1 + \rho\lambda}{1 - \rho\lambda}.$$

    **Arguments:**

    - `rates`: the decay rates $w > 0$, in units of one over the model's clock.
    - `frequencies`: the angular frequencies $\nu$, in the same units. Defaults to 0.
    - `step`: the time step $\Delta t$ of a recursion, or `None` for continuous time.
    - `correlation_rate`: the rate $\kappa > 0$ of a coloured input of unit variance, or `None`
        for white input: of unit intensity, and of unit variance in discrete time. For a variance
        $\sigma^2$, multiply by it.
    - `normalised`: whether the input is scaled by $\gamma$.

    **Returns:**

    The mean squares, of the shape that the arguments broadcast to, accurate to rounding for rates
    of any size.

    **Raises:**

    `ValueError` for rates, steps or correlation rates that are not positive.

    ??? cite "Reference"

        Zucchet, Orvieto, *Recurrent neural networks: vanishing and exploding gradients are not
        the end of the story*, NeurIPS 2024, Section 3 (theory, section 6). Coloured input in
        continuous time is derived here.
    """
    check_flag("normalised", normalised)
    mode = _Mode(rates, frequencies, step, correlation_rate)
    return mode.spread if normalised else mode.spread / mode.gap


def rate_sensitivity(
    rates: Real[ArrayLike, "*shape"],
    frequencies: Real[ArrayLike, "*shape"] = 0.0,
    *,
    step: Real[ScalarLike, ""] | None = None,
    correlation_rate: Real[ScalarLike, ""] | None = None,
    normalised: bool = False,
    reparametrisation: AbstractReparametrisation | None = None,
) -> Float[Array, "*shape"]:
    r"""The mean square $E|\partial h / \partial w|^2$ of the slope of a hidden state in its rate.

    With the hidden states and inputs of [`memjax.hidden_variance`][], where white input gives

    | with $r = \lvert\lambda\rvert$ | input as it is | normalised |
    | --- | --- | --- |
    | continuous time | $1 / (4 w^3)$ | $1 / (4 w^2)$ |
    | discrete time | $\Delta t^2 r^2 (1 + r^2) / (1 - r^2)^3$ | $\Delta t^2 r^2 / (1 - r^2)^2$ |

    Outputs thus grow ever more sensitive as memory grows, without any gradient that explodes.
    Through a reparametrisation $w = \varphi(v)$ it is $E|\partial h / \partial v|^2$, which is
    $\varphi'(v)^2$ times as much: with [`memjax.Exp`][] and normalised input it is bounded. For
    the sensitivity to $\lambda$ itself see [`memjax.multiplier_sensitivity`][].

    Coloured input, with the autocovariance $e^{-\kappa|\tau|}$, has

    $$E \Bigl|\frac{\partial h}{\partial w}\Bigr|^2 = \frac{C}{4 w^3} + \frac{D}{2 w^2}, \qquad
      C = 2 \operatorname{Re} \frac{1}{\kappa + w - i\nu}, \quad
      D = \operatorname{Re} \frac{1}{(\kappa + w - i\nu)^2},$$

    and normalised $C / (4 w^2)$; in discrete time with $z = e^{-\kappa \Delta t} \lambda$

    $$E \Bigl|\frac{\partial h}{\partial |\lambda|}\Bigr|^2
      = \frac{1 + |\lambda|^2}{(1 - |\lambda|^2)^3} \operatorname{Re} \frac{1 + z}{1 - z}
      + \frac{2}{(1 - |\lambda|^2)^2} \operatorname{Re} \frac{z}{(1 - z)^2},$$

    and normalised $\operatorname{Re} \frac{1 + z}{1 - z} / (1 - |\lambda|^2)^2$ *(derived here)*.

    **Arguments:**

    - `rates`, `frequencies`, `step`, `correlation_rate`, `normalised`: as in
        [`memjax.hidden_variance`][].
    - `reparametrisation`: the map from the free weight to the rate. Defaults to
        [`memjax.Direct`][].

    **Returns:**

    The mean squares, accurate to rounding for rates of any size.

    **Raises:** as [`memjax.hidden_variance`][], and `TypeError` for a reparametrisation that is
    none.

    ??? cite "Reference"

        Zucchet, Orvieto, *Recurrent neural networks: vanishing and exploding gradients are not
        the end of the story*, NeurIPS 2024, Section 3 (theory, section 6).
    """
    check_flag("normalised", normalised)
    mode = _Mode(rates, frequencies, step, correlation_rate)
    reparametrisation = as_reparametrisation(reparametrisation)
    slope = reparametrisation.slope(reparametrisation.inverse(mode.rates))
    return mode.modulus(normalised) * (mode.rate_slope * slope) ** 2


def angle_sensitivity(
    rates: Real[ArrayLike, "*shape"],
    frequencies: Real[ArrayLike, "*shape"] = 0.0,
    *,
    step: Real[ScalarLike, ""] | None = None,
    correlation_rate: Real[ScalarLike, ""] | None = None,
    normalised: bool = False,
    scaled: bool = False,
) -> Float[Array, "*shape"]:
    r"""The mean square of the slope of a hidden state in its frequency, or in its angle.

    In continuous time $E|\partial h / \partial \nu|^2$, in discrete time
    $E|\partial h / \partial \vartheta|^2$ with $\lambda = |\lambda| e^{i\vartheta}$ and
    $\vartheta = \nu \Delta t$. With the hidden states and inputs of
    [`memjax.hidden_variance`][], white input gives

    | with $r = \lvert\lambda\rvert$ | input as it is | normalised |
    | --- | --- | --- |
    | continuous time | $1 / (4 w^3)$ | $1 / (2 w^2)$ |
    | discrete time | $r^2 (1 + r^2) / (1 - r^2)^3$ | $r^2 (1 + r^2) / (1 - r^2)^2$ |

    No reparametrisation of the modulus cures this. An angle in units of what the memory
    resolves does: the weight $u$ in $\nu = w u$, or $\vartheta = (1 - |\lambda|) u$.

    **Arguments:**

    - `rates`, `frequencies`, `step`, `correlation_rate`, `normalised`: as in
        [`memjax.hidden_variance`][].
    - `scaled`: whether the weight is $u$, at a fixed rate.

    **Returns:**

    The mean squares, accurate to rounding for rates of any size.

    **Raises:** as [`memjax.hidden_variance`][].

    ??? cite "Reference"

        Zucchet, Orvieto, *Recurrent neural networks: vanishing and exploding gradients are not
        the end of the story*, NeurIPS 2024, Section 4 (theory, section 6).
    """
    check_flag("normalised", normalised)
    check_flag("scaled", scaled)
    mode = _Mode(rates, frequencies, step, correlation_rate)
    slope = mode.modulus(False) * mode.modulus_squared
    if normalised:
        slope = slope * mode.gap
    return slope * mode.angle_scale**2 if scaled else slope


def multiplier_sensitivity(
    multipliers: ArrayLike,
    correlation: Real[ScalarLike, ""] = 0.0,
    *,
    normalised: bool = False,
) -> Float[Array, "*shape"]:
    r"""The mean square $E|\partial h / \partial \lambda|^2$ for $h_{k+1} = \lambda h_k + x_{k+1}$.

    With white input of unit variance it is

    $$\frac{1 + |\lambda|^2}{(1 - |\lambda|^2)^3}, \quad\text{or normalised}\quad
      \frac{1}{(1 - |\lambda|^2)^2}.$$

    For a complex $\lambda$ the slope is that in its modulus; that in its angle is
    $|\lambda|$ times as large if the input is not normalised. Where $1 - |\lambda|$ comes near
    rounding, pass rates to [`memjax.rate_sensitivity`][] instead.

    **Arguments:**

    - `multipliers`: real or complex $\lambda$, inside the unit circle.
    - `correlation`: the correlation $0 \le \rho < 1$ of an input of autocovariance
        $\rho^{|k|}$. Defaults to 0, white input.
    - `normalised`: whether the input is scaled by $\sqrt{1 - |\lambda|^2}$.

    **Returns:**

    The mean squares, of the shape of `multipliers`.

    **Raises:**

    `ValueError` for multipliers on or outside the unit circle, and for a correlation outside
    $[0, 1)$.

    ??? cite "Reference"

        Zucchet, Orvieto, *Recurrent neural networks: vanishing and exploding gradients are not
        the end of the story*, NeurIPS 2024, Section 3 (theory, section 6).
    """
    values = as_inexact_array("multipliers", multipliers)
    check_flag("normalised", normalised)
    check_scalar("correlation", as_float_array("correlation", correlation))
    sizes = {
        "multipliers": jnp.abs(values),
        "correlation": as_float_array("correlation", correlation),
    }
    for name, value in sizes.items():
        check_finite(name, value)
        inside = (value >= 0) & (value < 1)
        if not is_traced(inside) and not jnp.all(inside):
            raise ValueError(
                f"`{name}` must be of modulus in [0, 1), got {value[~inside].ravel()[0]}; only "
                "then is there a stationary state."
            )
        sizes[name] = valid_or_nan(value, inside)
    moduli, correlation = sizes.values()
    return _Mode(
        -jnp.log(moduli), jnp.angle(values), 1.0, -jnp.log(correlation), checked=True
    ).modulus(normalised)


class _Mode:
    """What the closed forms of one mode have in common, free of cancellation.

    In discrete time the modulus of the multiplier takes the place of the rate.
    """

    def __init__(
        self, rates: Any, frequencies: Any, step: Any, correlation_rate: Any, checked: bool = False
    ) -> None:
        w, nu = rates, frequencies
        if not checked:
            hint = "a mode of rate w decays as exp(-w t), so pass w > 0"
            w, nu = as_positive_array("rates", w, hint), as_finite_array("frequencies", nu)
            step = None if step is None else as_positive("step", step)
            if correlation_rate is not None:
                correlation_rate = as_positive("correlation_rate", correlation_rate)
        try:
            self.rates, nu = w, nu = jnp.broadcast_arrays(w, nu)
        except ValueError as error:
            raise ValueError(
                f"`frequencies` must broadcast with `rates`, got shapes {nu.shape} and {w.shape}; "
                "pass one frequency per rate."
            ) from error
        self.discrete = step is not None
        kappa = correlation_rate
        if step is None:
            self.gap, self.rate_slope, self.modulus_squared = 2 * w, 1.0, 1.0
            self.angle_scale = w
            # The spread is C, and the bend is D.
            if kappa is None:
                self.spread, self.bend = jnp.ones_like(w), jnp.zeros_like(w)
            else:
                size = (kappa + w) ** 2 + nu**2
                self.spread = 2 * (kappa + w) / size
                self.bend = (kappa + w - nu) * (kappa + w + nu) / size**2
            return
        self.gap = -jnp.expm1(-2 * w * step)
        self.modulus_squared = jnp.exp(-2 * w * step)
        self.angle_scale = -jnp.expm1(-w * step)
        self.rate_slope = step * jnp.exp(-w * step)
        total = jnp.inf if kappa is None else (kappa + w) * step
        # With z of modulus q: |1 - z|^2, and Re z / (1 - z)^2.
        q, short = jnp.exp(-total), -jnp.expm1(-total)
        half = jnp.sin(nu * step / 2) ** 2
        size = short**2 + 4 * q * half
        self.spread = -jnp.expm1(-2 * total) / size
        self.bend = q * (short**2 - 2 * (1 + q**2) * half) / size**2

    def modulus(self, normalised: bool) -> Array:
        """The mean squared slope in the rate, or in the modulus of the multiplier."""
        if normalised:
            return self.spread / self.gap**2
        factor = 1 + self.modulus_squared
        # In this order nothing overflows unless the result does.
        return (factor * self.spread / self.gap + 2 * self.bend) / self.gap / self.gap


def output_sensitivity(
    model: Any,
    ts: Real[ArrayLike, " times"],
    xs: Real[ArrayLike, "batch times ..."],
    *,
    burn_in: int = 0,
    chunk: int = 256,
) -> PyTree[Array]:
    r"""The measured mean square $E|\partial \hat y / \partial \theta|^2$ for every trained weight.

    Squares are added up over outputs and averaged over input paths and times; the derivatives
    are exact. With white inputs and times long after the start they tend to the closed forms of
    [`memjax.rate_sensitivity`][] and [`memjax.angle_sensitivity`][] where there are such.

    **Arguments:**

    - `model`: a model, or any other functional that [`memjax.as_functional`][] takes. Models
        with a `scan` are scanned, other models are integrated with Diffrax.
    - `ts`: increasing times, shape `(times,)`, in units of the model's clock.
    - `xs`: inputs, shape `(batch, times)`, or `(batch, times, d)` for $d$ inputs.
    - `burn_in`: how many of the first times to leave out.
    - `chunk`: how many weights are differentiated at a time; fewer need less memory.

    **Returns:**

    The mean squares: a PyTree as `equinox.filter(model, memjax.trainable(model))`. Their square
    roots are the scales on which weights may move.

    **Raises:**

    `ValueError` for times that do not increase, inputs that do not fit, a `burn_in` that leaves
    no time, or a model without trained weights.

    ??? cite "Reference"

        Zucchet, Orvieto, *Recurrent neural networks: vanishing and exploding gradients are not
        the end of the story*, NeurIPS 2024 (theory, section 6).
    """
    given, ts = ts, as_times(ts)
    xs = as_finite_array("xs", xs)
    check_integer("burn_in", burn_in, 0)
    check_integer("chunk", chunk)
    if xs.ndim < 2 or xs.shape[1] != ts.size or xs.shape[0] == 0:
        raise ValueError(
            f"`xs` must have shape (batch, times) or (batch, times, d), got {xs.shape} for `ts` "
            f"of shape {ts.shape}; add an axis of length 1 for a single path."
        )
    if burn_in >= ts.size:
        raise ValueError(
            f"`burn_in` must leave at least one of {ts.size} times, got {burn_in}; shorten it."
        )
    named_functional("model", model)
    free, fixed = eqx.partition(model, trainable(model))
    check_trained(model)
    flat, back = coordinates(free)

    def outputs(weights: Array, x: Array) -> Array:
        functional = named_functional("model", eqx.combine(back(weights), fixed))
        # Differentiated forwards, through every step of a solver.
        forwards = functional.method == "diffrax"
        run = partial(functional.source, adjoint=ForwardMode()) if forwards else functional
        return run(given, x)[burn_in:]

    def of_path(x: Array) -> Array:
        def slope(index: Array) -> Array:
            direction = jnp.zeros_like(flat).at[index].set(1)
            moved = jax.jvp(lambda weights: outputs(weights, x), (flat,), (direction,))[1]
            return jnp.sum(jnp.abs(moved) ** 2) / moved.shape[0]

        indices = jnp.arange(flat.size)
        return jax.lax.map(slope, indices, batch_size=min(chunk, flat.size))

    return squared_lengths(back(jnp.mean(jax.lax.map(of_path, xs), axis=0)))


def squared_lengths(squares: PyTree[Array]) -> PyTree[Array]:
    """Squares of both parts of complex weights added up: of one real number for every weight."""
    add = lambda leaf: leaf.real + leaf.imag if jnp.iscomplexobj(leaf) else leaf
    return jax.tree.map(add, squares)
