from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray, Real

from .._checks import (
    as_key,
    as_plain,
    as_positive,
    as_positive_array,
    check_flag,
    check_integer,
)
from .._deprecation import warn_deprecated
from .._text import readable
from .._typing import ArrayLike
from ..models import AbstractModel
from ..targets import HasKernel
from ._faults import find_faults
from ._functional import named_functional
from ._instability import find_instability
from ._lag import estimate_lag, LagEstimate
from ._length import length_extension, LengthExtension
from ._memory_function import memory_function
from ._remedies import propose_changes
from ._runner import Runner
from ._signal import gradient_signal, GradientSignal, MOST, rank_effort
from ._words import write_report
from ._worst_case import WorstCase

Verdict = Literal["no plateau", "slow", "plateau", "undecided"]

# Relative signals from which on training at the lag starts about as fast as at short ones, and
# below which it starts on a plateau; and the effort above which it is slow even so, since all
# lags are. Checked on copying tasks (docs/diagnose.md).
_VISIBLE, _FAINT, _EFFORT = 0.1, 0.01, 1e4


@readable()
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


@readable()
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
    - `faults`: what training cannot mend, each in a sentence: decay rates that are not above 0, and
        trained weights that have no effect on the outputs.
    - `data`: the [`memjax.LagEstimate`][], if the lag is from data.
    - `extension`: the [`memjax.LengthExtension`][] to four times the length of training, if that
        was given.
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
    extension: LengthExtension | None = None
    faults: tuple[str, ...] = eqx.field(static=True, default=())

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
        return "\n".join(write_report(self))

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
            "most_sensitive": dict(self.signal.most_sensitive()),
            "verdict": self.verdict,
            "reason": self.reason,
            "faults": list(self.faults),
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
        if self.extension is not None:
            record["extension"] = {
                "length": float(self.extension.length),
                "verdict": self.extension.verdict,
                "reason": self.extension.reason,
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
    length: float | None = None,
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
        diagnosis = mj.diagnose(cell, 100, key=key)
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
    - `length`: the length of training, to say too whether outputs and hidden states will hold at
        four times that length ([`memjax.length_extension`][]).
    - `key`: the PRNG key. Leaving it out is deprecated, and stands for `jax.random.key(0)`.

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
    if length is not None:
        length = as_plain(as_positive, "length", length)
    if key is None:
        warn_deprecated("diagnose without `key`", "`key=jax.random.key(0)`")
        key = jax.random.key(0)
    key = as_key("key", key)
    named_functional("model", model, inputs=inputs)
    lag, scale, data, inputs = _read_lag(data_or_lag, step, inputs)
    signal_key, remedy_key = jax.random.split(key)
    count = round(lag / step)
    if count < 1:
        raise ValueError(
            f"`data_or_lag` must be a lag of at least one step, got {lag} for a step of {step}; "
            "make the step smaller."
        )
    if 6 * count * samples > MOST:
        raise ValueError(
            f"`data_or_lag` must be at most {MOST // samples // 6} steps for {samples} samples, "
            f"got {lag / step:.6g}; take a larger `step`."
        )
    steps = np.unique(np.rint(np.append(np.geomspace(1, 1.5 * count + 1, 16), count)).astype(int))
    index = int(np.searchsorted(steps, count))
    measure = lambda model: gradient_signal(
        model, steps, step=step, inputs=inputs, samples=samples, scale=scale, key=signal_key
    )
    judge = lambda model, signal: _judge(
        signal, index, find_instability(model, step, inputs, int(steps[-1]), scale, signal_key)
    )
    signal = measure(model)
    tried = []
    for name, changed in propose_changes(model, count * step, step, remedy_key) if remedies else ():
        found = measure(changed)
        tried.append(Remedy(name, changed, found, *judge(changed, found)))
    tried.sort(key=lambda one: (one.verdict == "undecided", rank_effort(one.signal, index)))
    extension = None
    if length is not None:
        extension = length_extension(
            model, length, step=step, inputs=inputs, samples=samples, scale=scale, key=signal_key
        )
    memory, horizon = _measure_memory(
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
        extension,
        find_faults(model, signal.sensitivity),
    )


class _Asked(NamedTuple):
    """The lag, the scale of the inputs, the estimate and the number of inputs."""

    lag: float
    scale: float
    data: LagEstimate | None
    inputs: int | None


def _read_lag(data_or_lag: Any, step: float, inputs: int | None) -> _Asked:
    if not isinstance(data_or_lag, (tuple, list)):
        lag = as_positive_array("data_or_lag", data_or_lag, "pass a lag above 0")
        if lag.shape != ():
            raise ValueError(
                f"`data_or_lag` must be a lag or a pair (xs, ys), got an array of shape "
                f"{lag.shape}; pass the outputs too."
            )
        return _Asked(float(lag), 1.0, None, inputs)
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
    return _Asked(max(float(data.lag), step), float(np.std(np.asarray(xs))), data, inputs)


def _measure_memory(
    model: Any, step: float, inputs: int | None, most: int, key: PRNGKeyArray
) -> tuple[Array, Array]:
    """The memory function at every step, and its horizon."""
    ts = step * np.arange(most + 1.0)
    if isinstance(model, AbstractModel) and isinstance(model, HasKernel):
        memory = memory_function(model, jnp.asarray(ts))
    else:
        runner = Runner.make(model, step, inputs, key)
        # Amplitudes are not refined: the supremum is wanted to the digits of a report.
        memory = memory_function(
            runner,
            jnp.asarray(ts),
            inputs=runner.inputs,
            search=WorstCase(num_amplitudes=9, directions=4, refinements=0),
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
