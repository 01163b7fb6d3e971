import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Real

from .._checks import as_integers, as_key, as_plain, as_positive, check_integer, said
from .._text import readable
from .._typing import ArrayLike, ScalarLike
from ..losses import check_trained, coordinates, real_parts, weights
from ..models import trainable, weight_name
from ._runner import Runner
from ._sensitivity import squared_lengths

# So many sampled inputs can be held.
MOST = 2**31 - 1


@readable()
class GradientSignal(eqx.Module):
    r"""What a dependency at each lag adds to the gradient of the squared loss.

    **Attributes:**

    - `steps`: the lags in steps, shape `(lags,)`.
    - `signal`: the signal $|G|$, shape `(lags,)`, of those arrays of weights in which it stands
        out of the noise, twice over; 0 if there are none.
    - `noise`: the standard error of $G$ over the sampled inputs, as a length in the space of
        these weights, shape `(lags,)`, or of all if there are none; 0 for a linear model.
    - `sensitivity`: the mean square $E|\partial \hat y_T / \partial \theta|^2$ for every trained
        weight, averaged over outputs: a PyTree as `equinox.filter(model,
        memjax.trainable(model))`; for a bare cell, of the [`memjax.GatedRNN`][] that it is in. Of
        a complex weight it is the sum over both its parts.
    - `weights`: the number of trained weights, where a complex one counts twice.
    """

    steps: Int[Array, " lags"]
    signal: Float[Array, " lags"]
    noise: Float[Array, " lags"]
    sensitivity: PyTree[Array]
    weights: int = eqx.field(static=True)

    @property
    def relative(self) -> Float[Array, " lags"]:
        """The signal over its largest over the lags, shape `(lags,)`."""
        return self.signal / jnp.max(self.signal)

    @property
    def seen(self) -> Bool[Array, " lags"]:
        """Whether the signal stands out of its noise, shape `(lags,)`."""
        return self.signal > self.noise

    @property
    def relative_bound(self) -> Float[Array, " lags"]:
        """What the relative signal is at most, shape `(lags,)`: where it is not seen, that of the
        noise, or of the smallest number of the precision."""
        tiny = jnp.finfo(self.signal.dtype).tiny
        return jnp.maximum(jnp.maximum(self.signal, self.noise), tiny) / jnp.max(self.signal)

    @property
    def effort(self) -> Float[Array, " lags"]:
        r"""$E|\partial \hat y / \partial \theta|^2 / |G|^2$, shape `(lags,)`.

        For errors of the size of the dependency it is the number of sequences over which a
        gradient must be averaged before the dependency stands out of it, and about the number of
        steps that gradient descent takes at its largest stable learning rate. Infinite without
        signal.
        """
        total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(self.sensitivity))
        # The square of a small signal would be 0.
        return (jnp.sqrt(total) / self.signal) ** 2

    def most_sensitive(self) -> list[tuple[str, float]]:
        """The arrays of weights by their largest root mean square slope, from the largest on."""
        sizes = [
            (weight_name(self.sensitivity, path), float(jnp.sqrt(jnp.max(leaf))))
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.sensitivity)
            if leaf.size
        ]
        return sorted(sizes, key=lambda item: -item[1])


def gradient_signal(
    model: Any,
    steps: Sequence[int] | Int[ArrayLike, " lags"],
    *,
    step: float = 1.0,
    inputs: int | None = None,
    samples: int = 16,
    scale: Real[ScalarLike, ""] = 1.0,
    key: PRNGKeyArray,
) -> GradientSignal:
    r"""What a dependency at a lag adds to the gradient, for any sequence model.

    A target that depends on the input $L$ steps ago, $y_T = \dots + x_{T-L}$, enters the gradient
    of the squared loss through $E[x_{T-L}\, \partial \hat y_T / \partial \theta]$. For white
    Gaussian inputs of variance $s^2$ Stein's lemma makes this $s^2$ times

    $$G(L) = E\, \frac{\partial^2 \hat y_T}{\partial \theta\, \partial x_{T-L}},$$

    a derivative, computed exactly for each of a few sampled inputs and their negatives. For a
    linear model it does not depend on the input. Its norm is over all trained weights, and its
    root mean square over inputs and outputs.

    **Arguments:**

    - `model`: a model, an `equinox.nn.GRUCell` or `LSTMCell` (which gets a random linear readout
        of one output), or any sequence callable that [`memjax.as_functional`][] takes and whose
        inexact arrays are its weights. Models with a `scan` are scanned, others discretised by
        `residual`.
    - `steps`: the lags, as numbers of steps of 0 or more.
    - `step`: the length $\Delta t$ of a step in units of the model's clock.
    - `inputs`: the number of inputs, or `None` for scalars. Only needed for models that do not
        know it themselves.
    - `samples`: the number of sampled inputs.
    - `scale`: the standard deviation $s$ of the inputs.
    - `key`: the PRNG key for inputs and, where there are several inputs or outputs, for the
        random combinations of them over which the mean is taken.

    **Returns:**

    A [`memjax.GradientSignal`][], with NaN where outputs or derivatives are not finite.

    **Raises:**

    `TypeError` for what is no sequence model; `ValueError` for lags, steps, samples or scales out
    of range, and for a model without trained weights.

    ??? cite "Reference"

        Stein, *Estimation of the Mean of a Multivariate Normal Distribution*, Annals of
        Statistics 9, 1981; Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks*,
        ICLR 2021, Section 5 (theory, section 4). Its use here is our own.
    """
    values = np.asarray(as_integers("steps", steps, 0))
    step, scale = as_plain(as_positive, "step", step), as_positive("scale", scale)
    check_integer("samples", samples, 2)
    # The earliest of these inputs meets a model that has run for as long again.
    times = 2 * int(values.max()) + 2
    if times * samples > MOST:
        raise ValueError(
            f"`steps` must be at most {MOST // samples // 2 - 1} for {samples} samples, got "
            f"{values.max()}; take a larger `step`."
        )
    readout_key, input_key, probe_key = jax.random.split(as_key("key", key), 3)
    runner = Runner.make(model, step, inputs, readout_key)
    check_trained(runner.model)
    flat, back = coordinates(weights(runner.model))
    # Inputs in the precision of the weights, as in training.
    dtype = flat.dtype
    shape = () if runner.inputs is None else (runner.inputs,)
    xs = scale * jax.random.normal(input_key, (samples, times, *shape), dtype)
    try:
        last = jax.eval_shape(lambda x: runner(x)[-1], xs[0])
    except Exception as error:  # of the model's own
        hint = "" if runner.inputs is not None else "; pass `inputs` if it takes several"
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(
            f"`model` must run on inputs of shape {xs.shape[1:]}{hint}; got {said(error)}"
        ) from error
    if not jnp.issubdtype(last.dtype, jnp.floating):
        raise TypeError(
            f"`model` must have real outputs, got dtype {last.dtype}; give their real part, or "
            "real and imaginary part as two outputs."
        )
    output = last.shape
    pairs = math.prod(shape) * math.prod(output)
    probes = jax.random.split(probe_key, min(pairs, 4))
    signs = lambda key, shape: (
        jax.random.rademacher(key, shape, dtype) / math.sqrt(math.prod(shape))
    )
    heads = jax.vmap(lambda key: signs(jax.random.fold_in(key, 0), output))(probes)
    tails = jax.vmap(lambda key: signs(jax.random.fold_in(key, 1), shape))(probes)
    signal, noise, squares = _signals(runner, xs, jnp.asarray(values), heads, tails)
    sensitivity = squared_lengths(back(squares))
    return GradientSignal(jnp.asarray(values), signal, noise, sensitivity, flat.size)


@eqx.filter_jit
def _signals(
    runner: Runner, xs: Array, steps: Array, heads: Array, tails: Array
) -> tuple[Array, Array, Array]:
    free, fixed = eqx.partition(runner.model, trainable(runner.model))
    flat, back = coordinates(free)

    def last(weights: Array, x: Array, head: Array) -> Array:
        moved = eqx.tree_at(lambda r: r.model, runner, eqx.combine(back(weights), fixed))
        return jnp.sum(head * moved(x)[-1])

    def of_probe(head: Array, tail: Array) -> tuple[Array, Array, Array, Array]:
        def mixed(x: Array, lag: Array) -> Array:
            direction = jnp.zeros_like(x).at[x.shape[0] - 1 - lag].set(tail)
            slope = lambda weights: jax.jvp(lambda x: last(weights, x, head), (x,), (direction,))[1]
            return jax.grad(slope)(flat)

        def add(sums: tuple[Array, ...], now: tuple[Array, Array]) -> tuple[Any, None]:
            mean, square, slope, unit = sums
            x, count = now
            # With each input its negative: what is odd in it has the mean 0, and no part in this.
            of_input = jax.vmap(mixed, in_axes=(None, 0))
            found = jnp.mean(jax.vmap(lambda x: of_input(x, steps))(jnp.stack([x, -x])), axis=0)
            # In units of the first, for each lag: squares of small signals would be 0.
            size = jnp.max(jnp.abs(found), axis=1, keepdims=True)
            unit = jnp.where(count == 1, jnp.where(size > 0, size, 1), unit)
            # Welford's recursion: where all samples agree, nothing is left of the variance.
            apart = found / unit - mean
            mean = mean + apart / count
            square = square + apart**2 * (1 - 1 / count)
            return (mean, square, slope + jax.grad(last)(flat, x, head) ** 2, unit), None

        count = xs.shape[0]
        none = jnp.zeros((steps.size, flat.size), flat.dtype)
        numbers = jnp.arange(1, count + 1, dtype=flat.dtype)
        sums = none, none, jnp.zeros_like(flat), jnp.ones_like(none[:, :1])
        (mean, square, slope, unit), _ = jax.lax.scan(add, sums, (xs, numbers))
        # The square of the mean exceeds that of the expectation by the spread.
        spread = square / (count * (count - 1))
        return mean**2 - spread, spread, slope / count, unit

    sizes, spreads, slopes, units = jax.lax.map(lambda probe: of_probe(*probe), (heads, tails))
    unit = jnp.max(units, axis=0)
    in_arrays = lambda values: jnp.stack(
        [
            jnp.sum(leaf.reshape(steps.size, -1), axis=1)
            for leaf in jax.tree.leaves(
                real_parts(jax.vmap(back)(jnp.mean(values * (units / unit) ** 2, axis=0)))
            )
        ]
    )
    size, spread = in_arrays(sizes), in_arrays(spreads)
    # Arrays of weights whose signal is lost in noise must not hide that of others.
    seen = ~(size <= 3 * spread)
    signal = jnp.sum(jnp.where(seen, size, 0), axis=0)
    noise = jnp.sum(jnp.where(seen | ~jnp.any(seen, axis=0), spread, 0), axis=0)
    unit = unit[:, 0]
    return unit * jnp.sqrt(signal), unit * jnp.sqrt(noise), jnp.mean(slopes, axis=0)


def rank_effort(signal: GradientSignal, index: int) -> float:
    """The effort at a lag, infinite where it is not known."""
    effort = float(signal.effort[index])
    return math.inf if math.isnan(effort) else effort
