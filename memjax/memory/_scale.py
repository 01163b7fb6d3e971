import functools
from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from .._checks import as_finite_array, check_nonnegative, shown
from .._paths import as_times
from .._typing import ArrayLike
from ..models import AbstractModel, ComplexDiagonalRNN, DiagonalLinearRNN, LinearRNN
from ..numerics import gauss_rule
from ..targets import AbstractKernel, HasKernel

_POINTS = 4  # of the Gauss rule between two times


def generalisation_measure(
    kernel: AbstractKernel | AbstractModel | Real[ArrayLike, "times ..."],
    ts: Real[ArrayLike, " times"] | None = None,
    *,
    variance: Real[ArrayLike, "..."] = 1.0,
    mean: Real[ArrayLike, "..."] = 0.0,
) -> Float[Array, "*outputs"]:
    r"""The complexity of a linear state-space model on inputs with given statistics.

    $$\tau = \Bigl( \int_0^T |\rho(T - s)| \sqrt{K(s, s)} \,\mathrm{d}s
      + \Bigl| \int_0^T \rho(T - s)\, \mu(s) \,\mathrm{d}s \Bigr| \Bigr)^2$$

    with the mean $\mu$ and the variance $K(s, s)$ of the input. Its root bounds
    $\sqrt{E |\hat y_T|^2}$, whatever the correlations in time are, and with it the generalisation
    gap. A readout that is divided by it starts at outputs of size at most 1
    ([`memjax.scale_readout`][]); $\lambda \tau$ is a penalty for training:

    !!! Example

        ```python
        ts = jnp.linspace(0.0, 50.0, 501)
        tau = lambda model: mj.generalisation_measure(model, ts, variance=xs.var(axis=0))
        loss = mj.FunctionLoss(lambda model: error(model) + 1e-3 * tau(model))
        ```

    Works under `jax.jit`, `jax.vmap` and `jax.grad`.

    **Arguments:**

    - `kernel`: a kernel, a model that has one, or the samples of a convolution kernel in discrete
        time, from lag 0 on, shape `(times, ...)` (as of [`memjax.S4Layer.discrete_kernel`][],
        transposed). Matrices have the axes of outputs and inputs last; samples of more axes have
        one input and many outputs.
    - `ts`: increasing times from the start of the input to $T$, shape `(times,)`; none for samples.
        Between them statistics are interpolated linearly.
    - `variance`: $K(s, s)$, a number, or shape `(times,)` or `(times, inputs)`.
    - `mean`: $\mu(s)$, alike.

    **Returns:**

    $\tau$, a scalar, or shape `(outputs,)`.

    **Raises:**

    `TypeError` for what has no kernel; `ValueError` for a variance that is negative, and for shapes
    that do not match.

    ??? cite "Reference"

        Liu, Li, *From Generalization Analysis to Optimization Designs for State Space Models*, ICML
        2024, Theorem 1, equations 4 to 6.
    """
    hint = "pass a variance of 0 or more"
    check_nonnegative("variance", variance, hint)
    if isinstance(kernel, AbstractModel) and isinstance(kernel, HasKernel):
        kernel = kernel.kernel()
    if not isinstance(kernel, AbstractKernel):
        return _of_samples(kernel, ts, variance, mean)
    if ts is None:
        raise ValueError(
            "`ts` must be given for a kernel in continuous time, got None; pass the times of the "
            "input."
        )
    times = as_times(ts)
    sizes = kernel.sizes
    deviation = jnp.sqrt(_at_times("variance", variance, times.size, sizes[1]))
    mean = _at_times("mean", mean, times.size, sizes[1])
    places, weights = gauss_rule(_POINTS)
    shares = (1 + jnp.asarray(places)) / 2
    steps = jnp.diff(times)
    nodes = (times[:-1, None] + steps[:, None] * shares).ravel()
    weights = (steps[:, None] * jnp.asarray(weights) / 2).ravel()
    rho = kernel(times[-1] - nodes).reshape(nodes.size, -1, 1 if sizes[1] is None else sizes[1])
    between = lambda values: (
        values[:-1, None] + shares[:, None] * (values[1:] - values[:-1])[:, None]
    ).reshape(nodes.size, -1)
    found = _combine(rho * weights[:, None, None], between(deviation), between(mean))
    return found if sizes[0] is not None else found[0]


def _of_samples(samples: Any, ts: Any, variance: Any, mean: Any) -> Array:
    if isinstance(samples, (AbstractModel, str)) or callable(samples):
        raise TypeError(
            f"`kernel` must be a kernel, a linear model or samples, got {shown(samples)}; of other "
            "models pass the kernel of their linear part."
        )
    samples = as_finite_array("kernel", samples)
    if ts is not None or samples.ndim == 0 or samples.size == 0:
        raise ValueError(
            f"`ts` must be left out where `kernel` is an array of samples, and these must have "
            f"times on axis 0 and one value or more, got shape {samples.shape}; pass (times, ...)."
        )
    count = samples.shape[0]
    inputs = samples.shape[2] if samples.ndim == 3 else None
    # The last input meets the lag 0.
    rho = samples[::-1].reshape(count, -1, 1 if inputs is None else inputs)
    deviation = jnp.sqrt(_at_times("variance", variance, count, inputs))
    found = _combine(rho, deviation, _at_times("mean", mean, count, inputs))
    return found.reshape(samples.shape[1:2] if inputs else samples.shape[1:])


def _at_times(name: str, values: Any, times: int, inputs: int | None) -> Array:
    """Statistics at every time for every input."""
    array = as_finite_array(name, values)
    number = 1 if inputs is None else inputs
    allowed = [(), (times,)] + ([] if inputs is None else [(times, inputs)])
    if array.shape not in allowed:
        shapes = " or ".join(map(str, allowed[1:]))
        raise ValueError(
            f"`{name}` must be a number or of shape {shapes}, got shape {array.shape}; pass one "
            "value a time."
        )
    array = array if array.ndim == 2 else jnp.reshape(array, (-1, 1))
    return jnp.broadcast_to(array, (times, number))


def _combine(
    rho: Float[Array, "nodes outputs inputs"],
    deviation: Float[Array, "nodes inputs"],
    mean: Float[Array, "nodes inputs"],
) -> Float[Array, " outputs"]:
    spread = jnp.einsum("koi,ki->o", jnp.abs(rho), deviation)
    return (spread + jnp.abs(jnp.einsum("koi,ki->o", rho, mean))) ** 2


@functools.singledispatch
def multiply_outputs(model: Any, factors: Float[Array, "*outputs"]) -> Any:
    """A linear model with each of its outputs times a factor."""
    raise TypeError(
        f"`model` must be a linear model with a kernel, got {shown(model)}; divide the readout of "
        "others by the root of memjax.generalisation_measure yourself."
    )


@multiply_outputs.register
def _(model: DiagonalLinearRNN, factors: Array) -> DiagonalLinearRNN:
    return eqx.tree_at(lambda m: m.amplitudes, model, factors * model.amplitudes)


@multiply_outputs.register
def _(model: ComplexDiagonalRNN, factors: Array) -> ComplexDiagonalRNN:
    parts = lambda m: (m.cosine, m.sine)
    return eqx.tree_at(parts, model, tuple(factors * part for part in parts(model)))


@multiply_outputs.register
def _(model: LinearRNN, factors: Array) -> LinearRNN:
    weights = model.readout_weights
    return eqx.tree_at(lambda m: m.output.readout_weights, model, factors[..., None] * weights)


def scale_readout(
    model: Any,
    ts: Real[ArrayLike, " times"],
    *,
    variance: Real[ArrayLike, "..."] = 1.0,
    mean: Real[ArrayLike, "..."] = 0.0,
) -> Any:
    r"""A linear model whose outputs have size at most 1 on inputs with given statistics.

    Its readout is divided by $\sqrt\tau$, each output by its own, with the
    [`memjax.generalisation_measure`][] $\tau$: a start for training that does not depend on the
    length of the memory, or on the scale and the mean of the inputs.

    **Arguments:**

    - `model`: a [`memjax.DiagonalLinearRNN`][], [`memjax.ComplexDiagonalRNN`][] or
        [`memjax.LinearRNN`][].
    - `ts`, `variance`, `mean`: as in [`memjax.generalisation_measure`][].

    **Returns:**

    A model of the same kind. An output that is 0 stays 0.

    **Raises:**

    `TypeError` for other models, and `ValueError` as [`memjax.generalisation_measure`][] does.

    ??? cite "Reference"

        Liu, Li, *From Generalization Analysis to Optimization Designs for State Space Models*, ICML
        2024, Algorithm 1.
    """
    if multiply_outputs.dispatch(type(model)) is multiply_outputs.dispatch(object):
        return multiply_outputs(model, jnp.ones(()))
    measure = generalisation_measure(model, ts, variance=variance, mean=mean)
    return multiply_outputs(model, jnp.where(measure == 0, 1, measure) ** -0.5)
