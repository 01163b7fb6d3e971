import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray, Real

from .._checks import (
    as_key,
    as_nonnegative,
    as_positive_array,
    as_range,
    check_instance,
    check_integer,
    shown,
)
from .._typing import ArrayLike, ScalarLike
from ..models import DiagonalLinearRNN
from ..reparam import AbstractReparametrisation
from ..targets import AbstractKernel, check_kernel, split_exponential


def on_plateau(
    target: AbstractKernel,
    silent_rates: Real[ArrayLike, "..."],
    *,
    copies: int = 1,
    reparametrisation: AbstractReparametrisation | None = None,
) -> DiagonalLinearRNN:
    r"""A model that has learnt the target's exponential part and nothing of its memory.

    Its kernel is exactly the exponential part, so that the loss starts at the squared norm of
    the remainder. The other modes are silent: their amplitude is zero.

    **Arguments:**

    - `target`: a target with an exponential part.
    - `silent_rates`: the rates of the silent modes, shape `(silent,)`.
    - `copies`: among how many equal modes each exponential of the target is shared.
    - `reparametrisation`: as in [`memjax.DiagonalLinearRNN`][].

    **Returns:**

    A model of width `copies * (number of exponentials) + silent`.

    **Raises:**

    `ValueError` if the target has no exponential part, or for rates that are not positive.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks: Approximation
        and Optimization Analysis*, ICLR 2021, Section 5.
    """
    check_kernel("target", target)
    active, _ = split_exponential(target)
    if active.rates.shape[0] == 0:
        raise ValueError(
            f"`target` must have an exponential part to start from, got {shown(target)}; add a "
            "memjax.ExponentialSum, or use memjax.random_start."
        )
    check_integer("copies", copies)
    silent_rates = jnp.atleast_1d(as_positive_array("silent_rates", silent_rates))
    if silent_rates.ndim != 1:
        raise ValueError(
            f"`silent_rates` must be 1-D, got shape {silent_rates.shape}; pass one rate per mode."
        )
    return DiagonalLinearRNN(
        jnp.concatenate(
            [jnp.repeat(active.amplitudes / copies, copies), jnp.zeros_like(silent_rates)]
        ),
        jnp.concatenate([jnp.repeat(active.rates, copies), silent_rates]),
        reparametrisation,
    )


def near_plateau(
    model: DiagonalLinearRNN, *, scale: Real[ScalarLike, ""] = 1e-3, key: PRNGKeyArray
) -> DiagonalLinearRNN:
    """A model moved a little off the plateau, every mode by independent normal numbers.

    **Arguments:**

    - `model`: a model on the plateau.
    - `scale`: the standard deviation of the change of every amplitude and of every log rate.
    - `key`: a `jax.random` key.

    **Returns:**

    A model of the same width and reparametrisation.

    **Raises:**

    `TypeError` for another model, or what is no key; `ValueError` for a negative scale.
    """
    hint = "pass for example that of memjax.on_plateau"
    check_instance("model", model, DiagonalLinearRNN, "a memjax.DiagonalLinearRNN", hint)
    scale = as_nonnegative("scale", scale)
    first, second = jax.random.split(as_key("key", key))
    a, w = model.amplitudes, model.rates
    return DiagonalLinearRNN(
        a + scale * jax.random.normal(first, a.shape, a.dtype),
        # By a factor, which leaves rates positive.
        w * jnp.exp(scale * jax.random.normal(second, w.shape, w.dtype)),
        model.reparametrisation,
    )


def random_start(
    width: int,
    *,
    amplitude: Real[ScalarLike, ""] = 0.5,
    slowest: Real[ScalarLike, ""] = 0.3,
    fastest: Real[ScalarLike, ""] = 3.0,
    reparametrisation: AbstractReparametrisation | None = None,
    key: PRNGKeyArray,
) -> DiagonalLinearRNN:
    """A random model: normal amplitudes, log-uniform rates.

    **Arguments:**

    - `width`: the number of modes.
    - `amplitude`: the standard deviation of the amplitudes.
    - `slowest`, `fastest`: the interval of the rates.
    - `reparametrisation`: as in [`memjax.DiagonalLinearRNN`][].
    - `key`: a `jax.random` key.

    **Returns:**

    A model of width `width`.

    **Raises:**

    `ValueError` for a width below 1, a negative amplitude, or rates that are not positive and
    increasing.
    """
    check_integer("width", width)
    amplitude = as_nonnegative("amplitude", amplitude)
    slowest, fastest = as_range("slowest", slowest, "fastest", fastest)
    first, second = jax.random.split(as_key("key", key))
    uniform = jax.random.uniform(second, (width,), slowest.dtype)
    return DiagonalLinearRNN(
        amplitude * jax.random.normal(first, (width,), slowest.dtype),
        slowest * (fastest / slowest) ** uniform,
        reparametrisation,
    )
