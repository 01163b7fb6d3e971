import itertools
import math
import textwrap
from collections.abc import Callable, Sequence
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree, Real

from .._checks import (
    as_integers,
    as_key,
    as_plain,
    as_positive,
    as_positive_array,
    check_flag,
    check_integer,
    said,
)
from .._typing import ArrayLike, ScalarLike
from ..losses import check_trained, coordinates, real_parts, weights
from ..models import AbstractModel, GatedRNN, LRULayer, StateSpaceStack, trainable
from ..reparam import AbstractReparametrisation, Best, Exp
from ._functional import CELLS, named_functional
from ._lag import estimate_lag, LagEstimate
from ._memory_function import memory_function
from ._sensitivity import squared_lengths

Verdict = Literal["no plateau", "slow", "plateau", "undecided"]

# Relative signals from which on training at the lag starts about as fast as at short ones, and
# below which it starts on a plateau; and the effort above which it is slow even so, since all
# lags are. Checked on copying tasks (docs/diagnose.md).
_VISIBLE, _FAINT, _EFFORT = 0.1, 0.01, 1e4
# What counts as unstable: outputs that grow so much within half of a run, and modes that decay but
# are amplified so much by Euler's method over the lags. Linearised up to so many states.
_GROWTH, _SWOLLEN, _MODES = 10.0, 1.1, 1000

# So many sampled inputs can be held.
_MOST = 2**31 - 1


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
    if times * samples > _MOST:
        raise ValueError(
            f"`steps` must be at most {_MOST // samples // 2 - 1} for {samples} samples, got "
            f"{values.max()}; take a larger `step`."
        )
    readout_key, input_key, probe_key = jax.random.split(as_key("key", key), 3)
    runner = _Runner.make(model, step, inputs, readout_key)
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
    runner: "_Runner", xs: Array, steps: Array, heads: Array, tails: Array
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


class _Runner(eqx.Module):
    """A sequence model with a fixed step, from samples to outputs."""

    model: Any
    step: float = eqx.field(static=True)
    inputs: int | None = eqx.field(static=True)
    method: Any = eqx.field(static=True)

    @classmethod
    def make(cls, model: Any, step: float, inputs: int | None, key: PRNGKeyArray) -> "_Runner":
        functional = named_functional("model", model, inputs=inputs)
        method = functional.method
        if method == "cell":
            width = model.hidden_size
            dtype = coordinates(weights(model))[0].dtype
            readout = jax.random.normal(key, (width,), dtype) / math.sqrt(width)
            model, method = GatedRNN(model, readout, 1 / step), "residual"
        elif isinstance(model, AbstractModel):
            layers = model.layers if isinstance(model, StateSpaceStack) else (model,)
            method = "scan" if all(hasattr(layer, "scan") for layer in layers) else "residual"
        return cls(model, step, functional.inputs, method)

    def __call__(self, xs: Array) -> Array:
        # Steps are exact in NumPy's float64, and known to be even.
        ts = self.step * np.arange(xs.shape[0])
        if self.method in ("scan", "residual"):
            return getattr(self.model, self.method)(ts, xs)
        return named_functional("model", self.model, inputs=self.inputs)(ts, xs)


class Remedy(eqx.Module):
    """A change of the model that was tried, and what came of it.

    **Attributes:**

    - `name`: what was changed, in words.
    - `model`: the changed model, ready to be trained.
    - `signal`: its [`memjax.GradientSignal`][], at the lags of the diagnosis.
    - `verdict`, `reason`: as in [`memjax.Diagnosis`][].
    """

    name: str = eqx.field(static=True)
    model: Any
    signal: GradientSignal
    verdict: Verdict = eqx.field(static=True)
    reason: str = eqx.field(static=True)


class Diagnosis(eqx.Module):
    r"""Whether training will see a dependency at a lag, from [`memjax.diagnose`][].

    `print` it for a report in plain words.

    **Attributes:**

    - `name`: the type of the model.
    - `lag`: the lag $L$, in units of the model's clock.
    - `step`: the length of a step, in the same units.
    - `index`: where the lag is among `signal.steps`.
    - `signal`: the [`memjax.GradientSignal`][] at lags from one step to beyond $L$.
    - `memory`: the memory function ([`memjax.memory_function`][]) at these lags.
    - `horizon`: the time after which the memory stays below 1 % of its largest value; infinite
        if it does not within twice the lag.
    - `verdict`: `"plateau"` for a relative signal below 0.01 at the lag; `"no plateau"` from 0.1
        on, with an effort of at most 1e4; `"slow"` in between; `"undecided"` where the numbers
        support none of these: the signal does not stand out of its sampling noise, outputs or
        derivatives are not finite, or the model is unstable, as it is or by Euler's method with
        this step.
    - `reason`: what the verdict rests on, and if it is `"undecided"`, what to do, in a sentence.
    - `remedies`: what was tried, from the least to the greatest effort at the lag, and those
        without a verdict last.
    - `data`: the [`memjax.LagEstimate`][], if the lag is from data.
    """

    name: str = eqx.field(static=True)
    lag: Float[Array, ""]
    step: Float[Array, ""]
    index: int = eqx.field(static=True)
    signal: GradientSignal
    memory: Float[Array, " lags"]
    horizon: Float[Array, ""]
    verdict: Verdict = eqx.field(static=True)
    reason: str = eqx.field(static=True)
    remedies: tuple[Remedy, ...]
    data: LagEstimate | None

    @property
    def relative(self) -> Float[Array, ""]:
        """The signal at the lag over the largest at any lag."""
        return self.signal.relative[self.index]

    @property
    def plateau(self) -> tuple[Float[Array, ""], Float[Array, ""]]:
        r"""How many times longer gradient descent stays on its plateau than at the easiest lag.

        From $1 / s$ to $1 / s^2$ for a relative signal $s$: the weights move at a speed in
        proportion to the signal, and the loss falls at one in proportion to its square. The first
        is the published lower bound, and the second the asymptotics of one silent mode (theory,
        section 4). Where the signal is below its noise, or 0 to the precision of the numbers, the
        first is what that still allows, and the second infinite. NaN where the verdict is
        `"undecided"`.
        """
        if self.verdict == "undecided":
            return jnp.asarray(jnp.nan), jnp.asarray(jnp.nan)
        if bool(self.signal.seen[self.index]):
            return 1 / self.relative, (1 / self.relative) ** 2
        return 1 / self.signal.relative_bound[self.index], jnp.asarray(jnp.inf)

    def __str__(self) -> str:
        return "\n".join(_report(self))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain numbers, lists and words, for JSON."""
        low, high = self.plateau
        record = {
            "model": self.name,
            "weights": self.signal.weights,
            "lag": float(self.lag),
            "step": float(self.step),
            "lags": (self.signal.steps * self.step).tolist(),
            "memory": self.memory.tolist(),
            "horizon": float(self.horizon),
            "signal": self.signal.signal.tolist(),
            "noise": self.signal.noise.tolist(),
            "relative_signal": float(self.relative),
            "plateau": [float(low), float(high)],
            "effort": float(self.signal.effort[self.index]),
            "most_sensitive": dict(_sensitive(self.signal.sensitivity)),
            "verdict": self.verdict,
            "reason": self.reason,
            "remedies": [
                {
                    "name": remedy.name,
                    "verdict": remedy.verdict,
                    "reason": remedy.reason,
                    "relative_signal": float(remedy.signal.relative[self.index]),
                    "effort": float(remedy.signal.effort[self.index]),
                }
                for remedy in self.remedies
            ],
        }
        if self.data is not None:
            record["data"] = {
                "explained": float(self.data.explained),
                "reliable": bool(self.data.reliable),
            }
        return record


def diagnose(
    model: Any,
    data_or_lag: float | tuple[Real[ArrayLike, "..."], Real[ArrayLike, "..."]],
    *,
    step: float = 1.0,
    inputs: int | None = None,
    samples: int = 16,
    remedies: bool = True,
    key: PRNGKeyArray | None = None,
) -> Diagnosis:
    """Whether training will sit on a plateau before it learns a dependency at a lag, and the cure.

    Looks at the model as it is, before training. What may help is tried, not only named: models
    with decay rates behind a reparametrisation get rates spread down to one over the lag, and
    inputs scaled so that hidden states keep their size under white noise, with their own
    reparametrisation, [`memjax.Exp`][] and [`memjax.Best`][]; GRU and LSTM cells,
    wherever they are in the model, get biases that keep their memory for up to the lag (chrono
    initialisation).

    !!! Example

        ```python
        cell = eqx.nn.GRUCell(1, 32, key=key)
        diagnosis = mj.diagnose(cell, 100)
        print(diagnosis)
        better = diagnosis.remedies[0].model
        ```

    **Arguments:**

    - `model`: as in [`memjax.gradient_signal`][].
    - `data_or_lag`: the lag, in units of the model's clock; or a pair of inputs and outputs, from
        which [`memjax.estimate_lag`][] has the lag and the scale of the inputs.
    - `step`: the length of a step, in the same units; for sequence models usually 1.
    - `inputs`: as in [`memjax.gradient_signal`][]. With data it is that of the data.
    - `samples`: the number of sampled inputs.
    - `remedies`: whether to try remedies, which costs as much again for each.
    - `key`: the PRNG key. Defaults to `jax.random.key(0)`.

    **Returns:**

    A [`memjax.Diagnosis`][].

    **Raises:**

    `TypeError` for what is no sequence model; `ValueError` for a lag that is not positive or less
    than one step, for data in which no lag stands out of the noise, and for a model without
    trained weights.

    ??? cite "Reference"

        Li, Han, E, Li, *On the Curse of Memory in Recurrent Neural Networks*, ICLR 2021; Zucchet,
        Orvieto, *Recurrent neural networks: vanishing and exploding gradients are not the end of
        the story*, NeurIPS 2024; Wang, Li, *StableSSM*, ICML 2024; Tallec, Ollivier, *Can
        recurrent neural networks warp time?*, ICLR 2018 (theory, sections 4 to 6).
    """
    step = as_plain(as_positive, "step", step)
    check_integer("samples", samples, 2)
    check_flag("remedies", remedies)
    key = jax.random.key(0) if key is None else as_key("key", key)
    named_functional("model", model, inputs=inputs)
    lag, scale, data, inputs = _lag(data_or_lag, step, inputs)
    signal_key, remedy_key = jax.random.split(key)
    count = round(lag / step)
    if count < 1:
        raise ValueError(
            f"`data_or_lag` must be a lag of at least one step, got {lag} for a step of {step}; "
            "make the step smaller."
        )
    if 6 * count * samples > _MOST:
        raise ValueError(
            f"`data_or_lag` must be at most {_MOST // samples // 6} steps for {samples} samples, "
            f"got {lag / step:.6g}; take a larger `step`."
        )
    steps = np.unique(np.rint(np.append(np.geomspace(1, 1.5 * count + 1, 16), count)).astype(int))
    index = int(np.searchsorted(steps, count))
    measure = lambda model: gradient_signal(
        model, steps, step=step, inputs=inputs, samples=samples, scale=scale, key=signal_key
    )
    judge = lambda model, signal: _judge(
        signal, index, _unstable(model, step, inputs, int(steps[-1]), scale, signal_key)
    )
    signal = measure(model)
    tried = []
    for name, changed in _changed(model, count * step, step, remedy_key) if remedies else ():
        found = measure(changed)
        tried.append(Remedy(name, changed, found, *judge(changed, found)))
    tried.sort(key=lambda one: (one.verdict == "undecided", _sortable(one.signal.effort[index])))
    memory, horizon = _memory(
        model, step, inputs, int(steps[-1]), jax.random.split(signal_key, 3)[0]
    )
    return Diagnosis(
        type(model).__name__,
        jnp.asarray(count * step),
        jnp.asarray(step),
        index,
        signal,
        memory[steps],
        horizon,
        *judge(model, signal),
        tuple(tried),
        data,
    )


def _lag(
    data_or_lag: Any, step: float, inputs: int | None
) -> tuple[float, float, LagEstimate | None, int | None]:
    """The lag, the scale of the inputs, the estimate and the number of inputs."""
    if not isinstance(data_or_lag, (tuple, list)):
        lag = as_positive_array("data_or_lag", data_or_lag, "pass a lag above 0")
        if lag.shape != ():
            raise ValueError(
                f"`data_or_lag` must be a lag or a pair (xs, ys), got an array of shape "
                f"{lag.shape}; pass the outputs too."
            )
        return float(lag), 1.0, None, inputs
    if len(data_or_lag) != 2:
        raise ValueError(
            f"`data_or_lag` must be a lag or a pair (xs, ys), got {len(data_or_lag)} entries; pass "
            "inputs and outputs."
        )
    xs, ys = data_or_lag
    data = estimate_lag(xs, ys, step=step)
    if not np.isfinite(data.lag):
        raise ValueError(
            "`data_or_lag` must tell a lag, got data in which no past input explains the outputs "
            f"(held-out share {float(data.explained):.2g}); pass the lag itself."
        )
    shape = np.shape(xs)
    inputs = shape[2] if len(shape) == 3 else inputs
    # What depends on the present input alone is diagnosed at the shortest lag.
    return max(float(data.lag), step), float(np.std(np.asarray(xs))), data, inputs


def _memory(
    model: Any, step: float, inputs: int | None, most: int, key: PRNGKeyArray
) -> tuple[Array, Array]:
    """The memory function at every step, and its horizon."""
    ts = step * np.arange(most + 1.0)
    if hasattr(model, "kernel"):
        memory = memory_function(model, jnp.asarray(ts))
    else:
        runner = _Runner.make(model, step, inputs, key)
        # Amplitudes are not refined: the supremum is wanted to the digits of a report.
        memory = memory_function(
            runner,
            jnp.asarray(ts),
            inputs=runner.inputs,
            num_amplitudes=9,
            directions=4,
            refinements=0,
        )
    return memory.values, memory.horizon(0.01)


def _judge(signal: GradientSignal, index: int, unstable: str | None) -> tuple[Verdict, str]:
    """The verdict, and what it rests on."""
    size, noise = float(signal.signal[index]), float(signal.noise[index])
    largest = float(jnp.max(signal.signal))
    if unstable is not None:
        return "undecided", unstable
    if not np.all(np.isfinite([size, noise, largest])):
        return "undecided", (
            "Outputs of the model, or their derivatives, are not finite: make the model stable, or "
            "its weights smaller."
        )
    more = "take more `samples`" if float(jnp.max(signal.noise)) > 0 else "try another model"
    if not largest > 0:
        return "undecided", f"At no lag does the signal stand out of its noise: {more}."
    bound = float(signal.relative_bound[index])
    if not size > noise:
        # What is lost in the noise is still bounded by it.
        if bound < _FAINT:
            return "plateau", f"The signal is lost below {bound:.2g} of that of the easiest lag."
        return "undecided", (
            f"The signal does not stand out of its noise, which is {bound:.2g} of the signal of "
            f"the easiest lag: {more}."
        )
    relative, effort = size / largest, float(signal.effort[index])
    reason = f"The signal is {relative:.2g} of that of the easiest lag"
    if bound < _FAINT:
        return "plateau", f"{reason}."
    easy = relative >= _VISIBLE and effort <= _EFFORT
    return "no plateau" if easy else "slow", f"{reason}, and its effort {effort:.2g}."


def _unstable(
    model: Any, step: float, inputs: int | None, most: int, scale: float, key: PRNGKeyArray
) -> str | None:
    """Why signals of the model, run with this step, say nothing; `None` if they do.

    In an unstable recursion signals grow with the lag, and the easiest lag is the longest that
    was looked at.
    """
    readout_key, input_key, _ = jax.random.split(key, 3)
    runner = _Runner.make(model, step, inputs, readout_key)
    shape = () if runner.inputs is None else (runner.inputs,)
    dtype = coordinates(weights(runner.model))[0].dtype
    times = max(2 * most + 2, 64)
    xs = scale * jax.random.normal(input_key, (2, times, *shape), dtype)
    # A cell is a recursion of its own, and no Euler step of a model in continuous time.
    if runner.method == "residual" and runner.model is model:
        found = _euler_growth(runner, xs[0], most)
        if found is not None:
            return found
    ys = np.abs(np.asarray(eqx.filter_jit(_run)(runner, xs)))
    if not np.all(np.isfinite(ys)):
        return (
            f"The outputs of the model are not finite within {times} steps of white noise: make "
            "it stable, or take a smaller `step` if it is discretised."
        )
    # What arrives with a delay makes outputs grow once; in an unstable model they always do.
    sizes = [float(np.max(part)) for part in np.array_split(ys[:, times // 2 :], 4, axis=1)]
    if not all(late > 2 * early for early, late in itertools.pairwise(sizes)):
        return None
    if not (sizes[0] > 0 and sizes[-1] > _GROWTH * sizes[0]):
        return None
    return (
        f"The model is unstable: under white noise its outputs grow {sizes[-1] / sizes[0]:.2g}-"
        f"fold from step {times // 2} to {times}. Make it stable, or take a smaller `step` if it "
        "is discretised."
    )


def _run(runner: "_Runner", xs: Array) -> Array:
    return jax.vmap(runner)(xs)


def _euler_growth(runner: "_Runner", xs: Array, most: int) -> str | None:
    """Whether Euler's method lets modes grow that decay in the model, to first order around
    states of rest and under way."""
    model, step = runner.model, runner.step
    rest = model.initial_hidden()
    flat, back = coordinates(rest)

    def slopes(hidden: Array, x: Array) -> Array:
        field = lambda h: coordinates(model.vector_field(jnp.zeros(()), back(h), x))[0]
        return jax.jacfwd(field)(hidden)

    if flat.size > _MODES:
        return None
    index = np.unique(np.linspace(0, xs.shape[0] - 1, 4).astype(int))
    hidden = eqx.filter_jit(_euler_states)(runner, xs)[index]
    matrices = np.concatenate(
        [
            np.asarray(slopes(flat, jnp.zeros_like(xs[0])))[None],
            np.asarray(jax.vmap(slopes)(hidden, xs[index])),
        ]
    )
    # States that are no numbers any more are for the outputs to tell.
    matrices = np.where(np.all(np.isfinite(matrices), axis=(1, 2), keepdims=True), matrices, 0)
    rates = np.linalg.eigvals(matrices.astype(float))
    multipliers = np.abs(1 + step * rates)
    decaying = rates.real <= 1e-9 * np.abs(rates)
    growing = decaying & (most * np.log(np.maximum(multipliers, 1)) > math.log(_SWOLLEN))
    # A nonlinear model may pass through states in which it is unstable, and be stable in the long
    # run.
    if not (np.any(growing[0]) or np.all(np.any(growing[1:], axis=1))):
        return None
    worst = np.argmax(np.where(growing, multipliers, 0))
    rate, multiplier = rates.ravel()[worst], multipliers.ravel()[worst]
    longest = np.min(-2 * rates.real[growing] / np.abs(rates[growing]) ** 2)
    cure = f"a `step` below {longest:.2g}" if longest > 0 else "a far smaller `step`"
    return (
        f"Euler's method with steps of {step:g} is unstable: a mode of decay rate {-rate.real:.2g} "
        f"and frequency {abs(rate.imag):.2g} is multiplied by {multiplier:.3g} in every step. Take "
        f"{cure}, or give the model an exact `scan`."
    )


def _euler_states(runner: "_Runner", xs: Array) -> Array:
    """The hidden states of Euler's method before every step, in real coordinates."""
    model, step = runner.model, runner.step

    def move(hidden: PyTree[Array], x: Array) -> tuple[PyTree[Array], Array]:
        slope = model.vector_field(jnp.zeros(()), hidden, x)
        moved = jax.tree.map(lambda h, f: (h + step * f).astype(h.dtype), hidden, slope)
        return moved, coordinates(hidden)[0]

    return jax.lax.scan(move, model.initial_hidden(), xs)[1]


def _sortable(value: Any) -> float:
    value = float(value)
    return math.inf if math.isnan(value) else value


def _has_rates(node: Any) -> bool:
    reparametrisation = getattr(node, "reparametrisation", None)
    return isinstance(reparametrisation, AbstractReparametrisation) and hasattr(node, "free_rates")


def _changed(model: Any, lag: float, step: float, key: PRNGKeyArray) -> list[tuple[str, Any]]:
    """What may help, as far as the model has the parts for it."""
    nodes = jax.tree.leaves(model, is_leaf=lambda node: _has_rates(node) or _is_gated(node))
    changes: list[tuple[str, Any]] = []

    def replaced(change: Callable[[Any], Any]) -> Any:
        return jax.tree.map(change, model, is_leaf=lambda node: _has_rates(node) or _is_gated(node))

    if any(map(_has_rates, nodes)):
        for suffix, make in (
            ("", lambda rates, own: own),
            (", with Exp", lambda rates, own: Exp()),
            # Its largest rate must be above those that there are.
            (", with Best", lambda rates, own: Best(1.0, 0.5 / float(jnp.max(rates)))),
        ):

            def slower(node: Any, make: Callable[..., Any] = make) -> Any:
                if not _has_rates(node):
                    return node
                old = node.reparametrisation(node.free_rates)
                rates = _spread_rates(old, lag)
                reparametrisation = make(rates, node.reparametrisation)
                where = lambda node: (node.free_rates, node.reparametrisation)
                node = eqx.tree_at(
                    where, node, (reparametrisation.inverse(rates), reparametrisation)
                )
                if isinstance(node, LRULayer) or not hasattr(node, "input"):
                    return node
                # Or else slow modes, whose states are large, would saturate the activation.
                scales = jnp.sqrt(rates / old).reshape(-1, *[1] * (node.input.ndim - 1))
                return eqx.tree_at(lambda node: node.input, node, node.input * scales)

            changes.append((f"slower rates, down to 1/{lag:g}{suffix}", replaced(slower)))
    if any(_is_gated(node) and _cell(node).use_bias for node in nodes):
        keys = iter(jax.random.split(key, len(nodes)))

        def patient(node: Any) -> Any:
            if not _is_gated(node) or not _cell(node).use_bias:
                return node
            if isinstance(node, GatedRNN):
                cell = _chrono(node.cell, lag * float(node.rate.value), next(keys))
                return eqx.tree_at(lambda node: node.cell, node, cell)
            return _chrono(node, lag / step, next(keys))

        changes.append((f"gate biases for memory up to {lag:g} (chrono)", replaced(patient)))
    return changes


def _is_gated(node: Any) -> bool:
    return isinstance(node, (GatedRNN, *CELLS))


def _cell(node: Any) -> Any:
    return node.cell if isinstance(node, GatedRNN) else node


def _spread_rates(rates: Array, lag: float) -> Array:
    """Rates in geometric progression, from the fastest there is to one over the lag."""
    fastest = jnp.maximum(jnp.max(rates), 1 / lag)
    spread = jnp.geomspace(fastest, 1 / lag, rates.size) if rates.size > 1 else 1 / lag
    # Each keeps its place among the others.
    order = jnp.argsort(-rates)
    return jnp.zeros_like(rates).at[order].set(spread)


def _chrono(cell: Any, length: float, key: PRNGKeyArray) -> Any:
    """The biases of Tallec & Ollivier: forgetting times uniform up to the length."""
    width = cell.hidden_size
    times = jax.random.uniform(key, (width,), minval=1.0, maxval=max(length - 1, 1.5))
    keep = jnp.log(times).astype(cell.bias.dtype)
    bias = cell.bias.at[width : 2 * width].set(keep)
    if isinstance(cell, eqx.nn.LSTMCell):
        bias = bias.at[:width].set(-keep)
    return eqx.tree_at(lambda cell: cell.bias, cell, bias)


def _sensitive(sensitivity: PyTree[Array]) -> list[tuple[str, float]]:
    """The arrays of weights by their largest root mean square slope."""
    paths = jax.tree_util.tree_leaves_with_path(sensitivity)
    sizes = [
        (jax.tree_util.keystr(path).lstrip("."), float(jnp.sqrt(jnp.max(leaf))))
        for path, leaf in paths
        if leaf.size
    ]
    return sorted(sizes, key=lambda item: -item[1])


def _report(diagnosis: Diagnosis) -> list[str]:
    signal, index, step = diagnosis.signal, diagnosis.index, float(diagnosis.step)
    lag, relative = float(diagnosis.lag), float(diagnosis.relative)
    lines = [
        f"{diagnosis.name}, {signal.weights} trained weights, at lag {lag:g} (steps of {step:g})"
    ]
    if diagnosis.data is not None:
        lines.append(
            f"The lag is from data, of which a linear response explains "
            f"{100 * float(diagnosis.data.explained):.0f} % on held-out parts."
        )
        if not bool(diagnosis.data.reliable):
            lines.append("The data do not tell it reliably: give the lag if you know it.")
    shown = sorted({0, (index + 1) // 3, 2 * (index + 1) // 3, index, signal.steps.size - 1})
    rows = [
        ("lag", signal.steps * diagnosis.step),
        ("memory function", diagnosis.memory),
        ("gradient signal", signal.signal),
        ("  over its largest", signal.relative),
        ("  effort (updates)", signal.effort),
    ]
    for name, values in rows:
        lines.append(f"  {name:20}" + "".join(f"{float(values[k]):>11.3g}" for k in shown))
    horizon = float(diagnosis.horizon)
    text = f"after {horizon:.3g}" if np.isfinite(horizon) else "beyond what was looked at"
    text = "at a time that is not known" if np.isnan(horizon) else text
    lines.append(f"  memory below 1 % of its largest {text}")
    worst = _sensitive(signal.sensitivity)[:3]
    lines.append("  most sensitive weights: " + ", ".join(f"{n} ({v:.2g})" for n, v in worst))
    lines.append("")
    lines.append(f"Verdict: {diagnosis.verdict.upper()}")
    lines += _verdict_words(diagnosis, lag, relative)
    if diagnosis.remedies:
        lines.append(f"{'Tried at this lag:':46}{'relative':>10}{'effort':>11}  verdict")
        own = float(signal.effort[index])
        lines.append(f"  {'as it is':44}{relative:>10.2g}{own:>11.2g}  {diagnosis.verdict}")
        for remedy in diagnosis.remedies:
            share = float(remedy.signal.relative[index])
            effort = float(remedy.signal.effort[index])
            lines.append(f"  {remedy.name:44}{share:>10.2g}{effort:>11.2g}  {remedy.verdict}")
    lines.append(_advice(diagnosis))
    return lines


def _verdict_words(diagnosis: Diagnosis, lag: float, relative: float) -> list[str]:
    wrapped = lambda text: textwrap.wrap(text, 96, initial_indent="  ", subsequent_indent="  ")
    if diagnosis.verdict == "undecided":
        return wrapped(diagnosis.reason)
    low, high = (float(value) for value in diagnosis.plateau)
    if diagnosis.verdict == "no plateau":
        return [f"  The gradient sees a dependency at lag {lag:g} about as well as shorter ones."]
    if not bool(diagnosis.signal.seen[diagnosis.index]):
        return wrapped(
            f"What a dependency at lag {lag:g} gives is lost in its noise, or in the smallest "
            f"numbers, below {1 / low:.2g} of the gradient of the easiest lag: gradient descent "
            f"stays on its plateau more than {low:.2g} times as long."
        )
    times = f"{low:.2g} to {high:.2g}" if np.isfinite(high) else f"more than {low:.2g}"
    lines = [
        f"  A dependency at lag {lag:g} gives {relative:.2g} of the gradient of the easiest lag:",
        f"  gradient descent stays on its plateau {times} times as long.",
    ]
    component = float(diagnosis.signal.signal[diagnosis.index]) / math.sqrt(
        diagnosis.signal.weights
    )
    if component < 1e-8:
        lines.append("  Adam too: the gradient is below its epsilon of 1e-8.")
    else:
        lines.append("  Adam rescales it, as far as it stands out of the noise of the batches.")
    return lines


def _advice(diagnosis: Diagnosis) -> str:
    decided = diagnosis.verdict != "undecided"
    if not diagnosis.remedies:
        if diagnosis.verdict == "no plateau":
            return "Nothing to cure."
        untried = "Nothing was tried on this kind of model."
        if not decided:
            return untried
        return (
            f"{untried} Untested here: slower initial time scales, gates, or a shorter way to the "
            "lag (dilation, skips)."
        )
    best = diagnosis.remedies[0]
    if best.verdict == "undecided":
        return "Of these nothing can be recommended, since none has a verdict."
    recommended = f"Recommended: {best.name}"
    own, other = (_sortable(each.signal.effort[diagnosis.index]) for each in (diagnosis, best))
    if not decided:
        return f"{recommended}, which has a verdict: remedies[0].model"
    if not np.isfinite(own) and np.isfinite(other):
        return f"{recommended}, with which there is a signal at all: remedies[0].model"
    if not own > 2 * other:
        return "Of these nothing helps much; the model as it is will do as well."
    return f"{recommended}, {own / other:.2g} times less effort: remedies[0].model"
