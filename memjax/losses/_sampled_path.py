import inspect
from collections.abc import Callable
from typing import Any, get_args, Literal

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._checks import (
    as_finite_array,
    as_key,
    as_nonnegative,
    as_positive,
    check_choice,
    check_instance,
    check_integer,
    check_nonnegative,
    shown,
    unknown_name,
)
from .._deprecation import keyword_key, renamed_arguments, renamed_attribute
from .._paths import as_steps, as_times
from .._typing import ArrayLike, ScalarLike
from ..models import AbstractModel, HasScan
from ..targets import AbstractKernel, AbstractTarget
from ._base import AbstractLoss, check_model

Method = Literal["scan", "diffrax", "residual"]


class TemporalWeight(eqx.Module):
    r"""Weights that let errors at late times count for more.

    $$w(t_k) = \frac{t_k^p}{\frac1n \sum_l t_l^p}$$

    with times counted from the first; their mean is 1.

    **Arguments:**

    - `exponent`: the exponent $p \ge 0$; 0 weights all times alike.

    **Raises:**

    `ValueError` for a negative exponent, and when called for times that do not increase.

    ??? cite "Reference"

        Wang, Yan, *Improve Long-term Memory Learning Through Rescaling the Error Temporally*,
        arXiv 2307.11462, 2023.
    """

    exponent: Float[Array, ""]

    power = renamed_attribute("power", "exponent")

    @renamed_arguments(power="exponent")
    def __init__(self, exponent: Real[ScalarLike, ""]) -> None:
        hint = "the weight of the first time would be infinite"
        self.exponent = as_nonnegative("exponent", exponent, hint)

    def __call__(self, ts: Float[Array, " times"]) -> Float[Array, " times"]:
        """The weights at increasing times, shape `(times,)`; at least two of them."""
        ts = as_times(ts)
        since = ts - ts[0]
        later = since > 0
        # The derivative of 0**p in p is asked for nowhere.
        powers = jnp.where(later, jnp.where(later, since, 1) ** self.exponent, self.exponent == 0)
        return powers / jnp.mean(powers)


class SampledPathLoss(AbstractLoss):
    r"""The mean squared error along sampled inputs, for any model and any target.

    $$J(\theta) = \frac{1}{BN} \sum_{b=1}^B \sum_{k=1}^N
      w(t_k)\, |\hat y^{(b)}_\theta(t_k) - y^{(b)}(t_k)|^2$$

    Model and target see the same inputs: 0 before `ts[0]`, and from then on linear from sample
    to sample. The outputs of the target are computed once, when the loss is built, and the
    inputs stay the same for every model (common random numbers), so that the loss is a smooth
    function of the weights. Errors in several outputs are added up. The mean is over samples:
    with uneven times it is not one over time.

    **Arguments:**

    - `target`: the functional to be learnt.
    - `ts`: increasing times, shape `(times,)`, in units of the model's clock.
    - `xs`: inputs, shape `(batch, times)`, or `(batch, times, d)` for $d$ inputs.
    - `weight`: the weights $w(t_k) \ge 0$: a [`memjax.TemporalWeight`][], an array of shape
        `(times,)`, or `None` for 1.
    - `method`: how the outputs of a model are computed. `"scan"` is exact in every step, for
        models that offer it; `"diffrax"` integrates with error control; `"residual"` is Euler's
        method, the discrete model of the papers, cheap and of first order in the time step.
        Defaults to `"scan"` for a model that has it, otherwise to `"diffrax"`.
    - `options`: for `"diffrax"`, keyword arguments of the model's call as a dictionary, such as
        `solver` or `max_steps`. The adjoint defaults to `diffrax.DirectAdjoint()`, through which
        Hessians can be had. Other methods take none.

    **Raises:**

    `TypeError` if the target is not a target; `ValueError` for times that do not increase or, in
    single precision, do not tell their steps ([`memjax.DiagonalLinearRNN.scan`][]), for inputs
    that do not fit times or target, for weights that are negative or not one a time, for an
    unknown method, for options without `"diffrax"` as the method, and when called, for a model
    with other outputs than the target, or without a scan if that is the method.

    Derivatives are by JAX, as in [`memjax.AbstractLoss`][].

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation
        and Optimization Analysis*, ICLR 2021, Section 5 (theory, section 3).
    """

    ts: Float[Array, " times"]
    xs: Float[Array, "batch times ..."]
    ys: Float[Array, "batch times ..."]
    weights: Float[Array, " times"]
    options: dict[str, Any]
    method: Method | None = eqx.field(static=True)

    def __init__(
        self,
        target: AbstractTarget,
        ts: Real[ArrayLike, " times"],
        xs: Real[ArrayLike, "batch times ..."],
        weight: TemporalWeight | Real[ArrayLike, " times"] | None = None,
        method: Method | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:
        _check_target(target)
        self.ts = as_times(ts)
        # In the precision in which they are kept: models are to tell their steps.
        as_steps(self.ts)
        self.xs = as_finite_array("xs", xs)
        if self.xs.ndim < 2 or self.xs.shape[1] != self.ts.size:
            raise ValueError(
                f"`xs` must have shape (batch, times) or (batch, times, d), got {self.xs.shape} "
                f"for `ts` of shape {self.ts.shape}; add an axis of length 1 for a single path."
            )
        if self.xs.shape[0] == 0:
            raise ValueError("`xs` must hold at least one path, got none; the mean needs a sample.")
        if isinstance(target, AbstractKernel):
            inputs = target.sizes[1]
            if self.xs.shape[2:] != (() if inputs is None else (inputs,)):
                raise ValueError(
                    f"`xs` must have the inputs of the target, got shape {self.xs.shape} for "
                    f"{'a scalar input' if inputs is None else f'{inputs} inputs'}."
                )
        if weight is None:
            self.weights = jnp.ones_like(self.ts)
        elif isinstance(weight, TemporalWeight):
            self.weights = weight(self.ts)
        else:
            self.weights = as_finite_array("weight", weight)
            check_nonnegative("weight", self.weights)
            if self.weights.shape != self.ts.shape:
                raise ValueError(
                    f"`weight` must have one entry per time, got shape {self.weights.shape} for "
                    f"{self.ts.size} times."
                )
        hint = "choose one, or None for the best that the model offers"
        check_choice("method", method, (None, *get_args(Method)), hint)
        options = {} if options is None else options
        check_instance("options", options, dict, "a dictionary", "pass keyword arguments by name")
        known = inspect.signature(AbstractModel.__call__).parameters
        # All arguments after the model itself, times and inputs.
        for name in options:
            if name not in list(known)[3:]:
                raise ValueError(
                    f"`options` must be arguments of a model's call, got {shown(name)}; "
                    f"{unknown_name(name, list(known)[3:])}"
                )
        if options and method != "diffrax":
            raise ValueError(
                f"`options` are for the method 'diffrax', got method {method!r}; pass "
                "method='diffrax' or no options."
            )
        self.method = method
        self.options = dict(options)
        # `ts` stays outside, since concrete even times allow a faster response.
        self.ys = jax.vmap(lambda x: target.response(self.ts, x))(self.xs)

    @classmethod
    @keyword_key(3)
    def white_noise(
        cls,
        target: AbstractTarget,
        ts: Real[ArrayLike, " times"],
        batch: int,
        inputs: int | None = None,
        *,
        key: PRNGKeyArray,
        **kwargs: Any,
    ) -> "SampledPathLoss":
        r"""The loss along samples of white noise of unit intensity.

        The samples are independent, of mean 0 and variance $1 / \Delta_k$, with $\Delta_k$ half
        the time between the two neighbours. For a linear error of kernel $e$ the expected
        squared error at time $t$ tends to $\int_0^t |e|^2$ as the time step goes to 0, with an
        error of the order of the step in the variance of what varies within one step.

        **Arguments:**

        - `target`, `ts`: as above.
        - `batch`: the number of paths.
        - `inputs`: the number of inputs. Defaults to that of the target's kernel, and to a
            scalar input for targets without one.
        - `key`: the PRNG key.
        - `kwargs`: `weight`, `method` and `options`.

        **Raises:** as above, and `ValueError` for numbers of paths or inputs below 1.
        """
        given, ts = ts, as_times(ts)
        gaps = as_steps(given)
        shape = _input_shape(target, inputs)
        check_integer("batch", batch)
        # The area of the hat of a sample between its neighbours: an output is about the sum of rho
        # Delta x over samples, and its variance that of rho^2 Delta.
        widths = (jnp.append(gaps, 0) + jnp.insert(gaps, 0, 0)) / 2
        noise = jax.random.normal(as_key("key", key), (batch, ts.size, *shape), ts.dtype)
        scale = jnp.reshape(1 / jnp.sqrt(widths), (-1, *(1 for _ in shape)))
        return cls(target, ts, scale * noise, **kwargs)

    @classmethod
    @keyword_key(3)
    def ornstein_uhlenbeck(
        cls,
        target: AbstractTarget,
        ts: Real[ArrayLike, " times"],
        batch: int,
        correlation_rate: Real[ScalarLike, ""],
        sigma: Real[ScalarLike, ""] = 1.0,
        inputs: int | None = None,
        *,
        key: PRNGKeyArray,
        **kwargs: Any,
    ) -> "SampledPathLoss":
        r"""The loss along stationary Gaussian inputs of covariance $\sigma^2 e^{-\kappa|\tau|}$.

        The samples have exactly this covariance; between them the input is linear.

        **Arguments:**

        - `target`, `ts`: as above.
        - `batch`: the number of paths.
        - `correlation_rate`: the rate $\kappa > 0$, in units of one over time.
        - `sigma`: the standard deviation $\sigma > 0$.
        - `inputs`: as in `white_noise`; several inputs are independent.
        - `key`: the PRNG key.
        - `kwargs`: `weight`, `method` and `options`.

        **Raises:** as `white_noise`, and `ValueError` for a rate or deviation that is not
        positive.
        """
        given, ts = ts, as_times(ts)
        shape = _input_shape(target, inputs)
        check_integer("batch", batch)
        rate = as_positive("correlation_rate", correlation_rate)
        sigma = as_positive("sigma", sigma)
        noise = jax.random.normal(as_key("key", key), (ts.size, batch, *shape), ts.dtype)
        steps = as_steps(given)
        # Stationary from the first sample on: decay^2 + innovation^2 = 1. Where samples are dense
        # the decay is near 1, and 1 - decay^2 would lose its digits.
        decays = jnp.exp(-rate * steps)
        innovations = jnp.sqrt(-jnp.expm1(-2 * rate * steps))

        def move(x: Array, step: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            decay, innovation, noise = step
            x = decay * x + innovation * noise
            return x, x

        _, later = jax.lax.scan(move, noise[0], (decays, innovations, noise[1:]))
        xs = sigma * jnp.concatenate([noise[:1], later])
        return cls(target, ts, jnp.moveaxis(xs, 0, 1), **kwargs)

    @property
    def exchangeable(self) -> bool:
        return True

    def __call__(self, model: AbstractModel) -> Float[Array, ""]:
        error, _ = self._errors(model)
        # Not the square of a modulus: at a match that has no second derivative.
        return self._mean(jnp.real(error * jnp.conj(error)))

    def value_noise(self, model: AbstractModel) -> Float[Array, ""]:
        error, size = self._errors(model)
        noise = 4 * jnp.finfo(size.dtype).eps * size
        # (e + n)^2 - e^2: where model and target match, the square of the noise is all there is.
        return self._mean(2 * jnp.abs(error) * noise + noise**2)

    def _errors(self, model: AbstractModel) -> tuple[Array, Array]:
        """The errors in all outputs, and the sizes of what they are differences of."""
        outputs = jax.vmap(self._outputs(model))(self.xs)
        if outputs.shape != self.ys.shape:
            raise ValueError(
                f"`model` must have the outputs of the target, got shape {outputs.shape[2:]}, "
                f"but the target has {self.ys.shape[2:]}; () stands for a scalar."
            )
        return outputs - self.ys, jnp.abs(outputs) + jnp.abs(self.ys)

    def _mean(self, squares: Array) -> Float[Array, ""]:
        return jnp.mean(self.weights * jnp.sum(squares, axis=tuple(range(2, squares.ndim))))

    def _outputs(self, model: AbstractModel) -> Callable[[Array], Array]:
        """How the model's outputs come from one input path."""
        check_model(model)
        method = self.method
        if method is None:
            method = "scan" if isinstance(model, HasScan) else "diffrax"
        if method == "residual":
            return lambda x: model.residual(self.ts, x)
        if method == "scan":
            if not isinstance(model, HasScan):
                raise ValueError(
                    f"`method` must be one that the model offers, got 'scan' for "
                    f"{type(model).__name__}; pass 'diffrax' or 'residual'."
                )
            return lambda x: model.scan(self.ts, x)
        # Hessians are forward over reverse mode, which the checkpoints of the default do not allow.
        options = {"adjoint": diffrax.DirectAdjoint(), **self.options}
        return lambda x: model(self.ts, x, **options)


def _check_target(target: Any) -> None:
    hint = "pass an instance of memjax.AbstractTarget, for example a kernel"
    check_instance("target", target, AbstractTarget, "a target", hint)


def _input_shape(target: Any, inputs: int | None) -> tuple[int, ...]:
    """The shape of one sample of the input."""
    _check_target(target)
    if inputs is not None:
        check_integer("inputs", inputs)
    elif isinstance(target, AbstractKernel):
        inputs = target.sizes[1]
    return () if inputs is None else (inputs,)
