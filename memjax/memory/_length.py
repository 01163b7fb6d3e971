import math
import textwrap
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from .._checks import as_key, as_plain, as_positive, check_integer
from .._text import readable
from ..losses import coordinates
from ..models import has_hidden_states, hidden_states
from ..numerics import in_batches
from ._functional import Functional, named_functional
from ._memory_function import memory_function
from ._runner import Runner
from ._worst_case import WorstCase

Start = Literal["rest", "noisy", "carried"]
Holding = Literal["holds", "fails", "undecided"]

# The growth of a mean square, from the length of training to the extended one, that counts as
# failing: twice, outside two standard errors.
_GROWTH, _ERRORS = 2.0, 2.0
# Numbers held at once: of hidden states, 512 MB in double precision.
_HELD = 2**26


@readable("plot_length_extension")
class LengthExtension(eqx.Module):
    r"""What a model does beyond the length that it is trained at, from
    [`memjax.length_extension`][].

    `print` it for a report in plain words.

    **Attributes:**

    - `ts`: the times, shape `(times,)`, in units of the model's clock.
    - `length`: the length $T$ of training.
    - `starts`: where hidden states start from, one name for each row of what follows.
    - `loss`: the mean squared error at every time, shape `(starts, times)`, or `None` without a
        target.
    - `loss_error`: its standard error over the sampled inputs.
    - `output_size`: the root mean square of the outputs, shape `(starts, times)`.
    - `state_size`: the root mean square of the entries of the hidden state, shape
        `(starts, times)`, or `None` where they are not known.
    - `windows`: the numbers of samples, shape `(windows,)`, that are kept where the input before
        is cut away.
    - `remembrance`: the effective remembrance, shape `(windows,)`: the root mean square distance of
        the last outputs from those of which only the window is kept. It is 0 for the whole input.
    - `remembrance_error`: its standard error over the sampled inputs, shape `(windows,)`.
    - `predicted`: what the memory function says of it, shape `(windows,)`.
    - `growth`: for each start the factor by which a mean square grows from the second half of the
        length of training to the last part of the extended one, shape `(starts,)`: that of the
        error, or without a target the larger of those of outputs and hidden states.
    - `growth_error`: its standard error over the sampled inputs, shape `(starts,)`.
    - `verdict`: `"holds"` if the growth from rest is at most 2, `"fails"` if it is larger, both
        outside two standard errors; `"fails"` too if from some start something is not finite;
        otherwise `"undecided"`.
    - `reason`: what the verdict rests on, in a sentence.
    """

    ts: Float[Array, " times"]
    length: Float[Array, ""]
    starts: tuple[Start, ...] = eqx.field(static=True)
    loss: Float[Array, "starts times"] | None
    loss_error: Float[Array, "starts times"] | None
    output_size: Float[Array, "starts times"]
    state_size: Float[Array, "starts times"] | None
    windows: Int[Array, " windows"]
    remembrance: Float[Array, " windows"]
    remembrance_error: Float[Array, " windows"]
    predicted: Float[Array, " windows"]
    growth: Float[Array, " starts"]
    growth_error: Float[Array, " starts"]
    verdict: Holding = eqx.field(static=True)
    reason: str = eqx.field(static=True)

    def __str__(self) -> str:
        end = float(self.ts[-1] + self.ts[1] - self.ts[0])
        last = int(np.argmin(np.abs(np.asarray(self.ts - self.length))))
        shown = self.output_size if self.loss is None else self.loss
        what = "sizes of outputs" if self.loss is None else "mean squared errors"
        columns = f"{'at the length':>16}{'at the end':>14}{'growth':>18}"
        lines = [
            f"Trained up to {float(self.length):g}, followed up to {end:g}: {what}",
            f"  {'start':8}{columns}",
        ]
        for k, start in enumerate(self.starts):
            growth = f"{float(self.growth[k]):.3g} +- {float(self.growth_error[k]):.1g}"
            sizes = f"{float(shown[k, last]):>16.3g}{float(shown[k, -1]):>14.3g}"
            lines.append(f"  {start:8}{sizes}{growth:>18}")
        kept = int(np.searchsorted(np.asarray(self.windows), last))
        lines.append(
            f"  remembrance of what is older than the length: {float(self.remembrance[kept]):.3g} "
            f"+- {float(self.remembrance_error[kept]):.1g}, by the memory function "
            f"{float(self.predicted[kept]):.3g}"
        )
        lines.append(f"Verdict: {self.verdict.upper()}")
        lines += textwrap.wrap(self.reason, 96, initial_indent="  ", subsequent_indent="  ")
        return "\n".join(lines)


def length_extension(
    model: Any,
    length: float,
    *,
    target: Functional | None = None,
    factor: float = 4.0,
    step: float = 1.0,
    inputs: int | None = None,
    samples: int = 64,
    scale: float = 1.0,
    num_windows: int = 8,
    key: PRNGKeyArray,
) -> LengthExtension:
    r"""Whether a model holds beyond the length that it was trained at, and what it remembers there.

    The model is followed for `factor` times its length of training under white Gaussian inputs,
    from three hidden states:

    - `"rest"`: where training starts from;
    - `"carried"`: the one that another input of the length of training leaves behind;
    - `"noisy"`: a Gaussian one, every entry with the mean and the variance that it has over such
        inputs.

    A model that is trained from rest only has not seen the others, and hidden states at late times
    may be like none of those that it was trained on. Whether it holds is judged from rest; what is
    left at the end from the other starts says whether it forgets a start that has nothing to do
    with the input. Its *effective remembrance*

    $$R(w) = \sqrt{E\, |\hat y_n(x_1, \dots, x_n) - \hat y_n(x_{n-w+1}, \dots, x_n)|^2}$$

    is how much the last output depends on what is more than $w$ samples old. For a model that is
    linear in one input the memory function $M$ predicts it, with the standard deviation $s$ of the
    inputs and the length $\Delta t$ of a step:

    $$R(w)^2 = s^2 \sum_{k = w}^{n - 1} (M_{k-1} \Delta t)^2,$$

    up to the part of an interval that is cut with the sample at its end, where inputs are
    interpolated. Of several inputs it is an upper bound, of a nonlinear model a first guess, for
    which $M$ is searched among inputs of the size of the samples.

    !!! Example

        ```python
        found = mj.length_extension(model, 100, target=target, key=key)
        print(found)
        ```

    **Arguments:**

    - `model`: a model, an `equinox.nn.GRUCell` or `LSTMCell` (which gets a random linear readout
        of one output), or any sequence callable that [`memjax.as_functional`][] takes. Models with
        a `scan` are scanned, others discretised by `residual`. Of callables, and of models with a
        `scan` of their own, the hidden state is not known: there are no noisy starts and no sizes
        of states.
    - `length`: the length $T$ of training, in units of the model's clock.
    - `target`: what the model is trained on, as in [`memjax.as_functional`][]; it starts from rest
        with the input. Without one there are no errors, and the growth of outputs and states is
        judged.
    - `factor`: how many times as long the model is followed, above 1.
    - `step`: the length of a step, in the same units.
    - `inputs`: the number of inputs, or `None` for scalars, of models that do not know it.
    - `samples`: the number of sampled inputs.
    - `scale`: their standard deviation $s$.
    - `num_windows`: how many windows, from 2 samples to all in geometric progression, beside that
        of the length of training. Each is a length of its own, for which the model is compiled.
    - `key`: the PRNG key.

    **Returns:**

    A [`memjax.LengthExtension`][].

    **Raises:**

    `TypeError` for what is no sequence model; `ValueError` for a length of less than four steps,
    numbers out of range, and a target whose outputs are not like those of the model.

    ??? cite "Reference"

        Wang, *LongSSM: On the Length Extension of State-space Models in Language Modelling*, 2024
        (arXiv:2406.02080); Buitrago Ruiz, Gu, *Understanding and Improving Length Generalization in
        Recurrent Models*, ICML 2025, sections 3 and 4 (starts, effective remembrance).
    """
    step = as_plain(as_positive, "step", step)
    length = as_plain(as_positive, "length", length)
    factor = as_plain(as_positive, "factor", factor)
    scale = as_plain(as_positive, "scale", scale)
    check_integer("samples", samples, 2)
    check_integer("num_windows", num_windows, 2)
    key = as_key("key", key)
    trained = round(length / step)
    times = round(factor * length / step)
    if trained < 4:
        raise ValueError(
            f"`length` must be at least four steps, got {length:g} for a step of {step:g}; make "
            "the step smaller."
        )
    if times < trained + 2:
        raise ValueError(
            f"`factor` must extend the length by two steps or more, got {factor:g} for {trained} "
            "steps; pass 4 for example."
        )
    readout_key, input_key, noise_key = jax.random.split(key, 3)
    runner = Runner.make(model, step, inputs, readout_key)
    goal = None if target is None else named_functional("target", target, inputs=runner.inputs)
    shape = () if runner.inputs is None else (runner.inputs,)
    arrays = jax.tree.leaves(eqx.filter(runner.model, eqx.is_inexact_array))
    dtype = jnp.finfo(jnp.result_type(*arrays or [float])).dtype
    # The first part is the input that leaves a state behind.
    xs = scale * jax.random.normal(input_key, (samples, trained + times, *shape), dtype)
    noise = jax.random.normal(noise_key, (samples, _state_size(runner)), dtype)
    plan = _Plan(trained, times, goal)
    _check_target(runner, plan, xs[0])
    followed = _follow(runner, plan, xs, noise)
    windows = np.rint(np.append(np.geomspace(2, times, num_windows), trained)).astype(int)
    windows = np.unique(windows)
    remembrance, remembrance_error = _measure_remembrance(runner, xs[:, trained:], windows)
    predicted = _predict_remembrance(runner, times, windows, scale)
    starts: tuple[Start, ...] = ("rest", "carried")
    starts = (*starts, "noisy") if _follows_states(runner) else starts
    mean, spread = followed.means, followed.spreads
    growth, error = followed.growth, followed.growth_error
    return LengthExtension(
        step * jnp.arange(times, dtype=mean["output"].dtype),
        jnp.asarray(step * trained),
        starts,
        mean.get("error"),
        spread["error"] / math.sqrt(samples) if "error" in spread else None,
        jnp.sqrt(mean["output"]),
        jnp.sqrt(mean["state"]) if "state" in mean else None,
        jnp.asarray(windows),
        remembrance,
        remembrance_error,
        predicted,
        growth,
        error,
        *_judge(starts, np.asarray(growth), np.asarray(error), goal is not None),
    )


class _Plan(eqx.Module):
    """The number of steps of training and altogether, and the target."""

    trained: int = eqx.field(static=True)
    times: int = eqx.field(static=True)
    goal: Any


class _Followed(NamedTuple):
    """Mean squares and their standard deviations over samples, by what they are of, each of shape
    `(starts, times)`; and how much they grow."""

    means: dict[str, Array]
    spreads: dict[str, Array]
    growth: Float[Array, " starts"]
    growth_error: Float[Array, " starts"]


def _follows_states(runner: Runner) -> bool:
    return has_hidden_states(runner.model)


def _state_size(runner: Runner) -> int:
    if not _follows_states(runner):
        return 0
    return coordinates(runner.model.initial_hidden())[0].size


def _check_target(runner: Runner, plan: _Plan, xs: Array) -> None:
    if plan.goal is None:
        return
    ts = runner.step * np.arange(plan.times)
    wanted = jax.eval_shape(lambda x: plan.goal(ts, x), xs[plan.trained :]).shape
    found = eqx.filter_eval_shape(lambda run, x: run(x), runner, xs[plan.trained :]).shape
    if wanted != found:
        raise ValueError(
            f"`target` must have outputs like those of the model, of shape {found}, got {wanted}; "
            "pass a target with as many outputs."
        )


def _run(runner: Runner, xs: Array, start: PyTree[Array] | None) -> tuple[Array, Array | None]:
    """Outputs, and the hidden states in real coordinates where they are known."""
    if not _follows_states(runner):
        return runner(xs), None
    ts = runner.step * np.arange(xs.shape[0])
    start = runner.model.initial_hidden() if start is None else start
    states = hidden_states(runner.model, ts, xs, start)
    flat = jax.vmap(lambda hidden: coordinates(hidden)[0])(states)
    return jax.vmap(runner.model.readout)(states), flat


@eqx.filter_jit
def _follow(runner: Runner, plan: _Plan, xs: Array, noise: Array) -> _Followed:
    begin, known = plan.trained, _follows_states(runner)
    held = max(1, _HELD // (xs.shape[1] * max(noise.shape[1], 1)))

    def squares(xs: Array, outputs: Array, states: Array | None) -> dict[str, Array]:
        """Mean squares of outputs, hidden states and errors at every time."""
        mean = lambda values: jnp.mean(values.reshape(plan.times, -1) ** 2, axis=1)
        found = {"output": mean(outputs)}
        if states is not None:
            found["state"] = mean(states)
        if plan.goal is not None:
            found["error"] = mean(outputs - plan.goal(runner.step * np.arange(plan.times), xs))
        return found

    def from_rest(xs: Array) -> dict[str, Array]:
        return squares(xs[begin:], *_run(runner, xs[begin:], None))

    def carried(xs: Array) -> dict[str, Array]:
        outputs, states = _run(runner, xs, None)
        return squares(xs[begin:], outputs[begin:], None if states is None else states[begin:])

    rows = [in_batches(from_rest, xs, size=held), in_batches(carried, xs, size=held)]
    if known:
        left = in_batches(lambda xs: _run(runner, xs[: begin + 1], None)[1][-1], xs, size=held)  # pyright: ignore
        middle, wide = jnp.mean(left, axis=0), jnp.std(left, axis=0)
        back = coordinates(runner.model.initial_hidden())[1]

        def noisy(xs: Array, noise: Array) -> dict[str, Array]:
            return squares(xs[begin:], *_run(runner, xs[begin:], back(middle + wide * noise)))

        rows.append(in_batches(noisy, xs, noise, size=held))
    values = {name: jnp.stack([row[name] for row in rows]) for name in rows[0]}
    judged = ["error"] if plan.goal is not None else list(values)
    grown = [_grow(values[name], plan) for name in judged]
    growth, error = (jnp.stack(each) for each in zip(*grown, strict=True))
    # The largest, and what is not finite first.
    largest = jnp.argmax(jnp.where(jnp.isnan(growth), jnp.inf, growth), axis=0)[None]
    pick = lambda each: jnp.take_along_axis(each, largest, axis=0)[0]
    mean = {name: jnp.mean(value, axis=1) for name, value in values.items()}
    spread = {name: jnp.std(value, axis=1, ddof=1) for name, value in values.items()}
    return _Followed(mean, spread, pick(growth), pick(error))


def _grow(values: Float[Array, "starts samples times"], plan: _Plan) -> tuple[Array, Array]:
    """How much a mean square grows, and the standard error of that.

    What it is compared with is its size from rest, in the second half of the length of training.
    """
    half = max(plan.trained // 2, 1)
    early = jnp.mean(values[:1, :, plan.trained - half : plan.trained], axis=2)
    late = jnp.mean(values[:, :, plan.times - half :], axis=2)
    before, after = jnp.mean(early, axis=1), jnp.mean(late, axis=1)
    # Outputs that are 0 and stay 0 do not grow.
    still = (before == 0) & (after == 0)
    ratio = jnp.where(still, 1, after / jnp.where(before == 0, 1, before))
    ratio = jnp.where((before == 0) & ~still, jnp.inf, ratio)
    apart = jnp.std(late - ratio[:, None] * early, axis=1, ddof=1) / math.sqrt(early.shape[1])
    return ratio, jnp.where(still, 0, apart / jnp.where(before == 0, 1, before))


def _measure_remembrance(runner: Runner, xs: Array, windows: np.ndarray) -> tuple[Array, Array]:
    whole = _last_outputs(runner, xs)
    apart = [whole - _last_outputs(runner, xs[:, xs.shape[1] - window :]) for window in windows]
    # One square for each sampled input: those of several outputs are not independent.
    squares = jnp.mean(jnp.stack(apart).reshape(len(windows), xs.shape[0], -1) ** 2, axis=2)
    size = jnp.sqrt(jnp.mean(squares, axis=1))
    spread = jnp.std(squares, axis=1, ddof=1) / math.sqrt(xs.shape[0])
    return size, jnp.where(size > 0, spread / jnp.where(size > 0, 2 * size, 1), 0)


@eqx.filter_jit
def _last_outputs(runner: Runner, xs: Array) -> Array:
    return in_batches(lambda xs: runner(xs)[-1], xs)


def _predict_remembrance(runner: Runner, times: int, windows: np.ndarray, scale: float) -> Array:
    search = WorstCase(amplitudes=(0.1 * scale, 3 * scale), num_amplitudes=5, refinements=0)
    ts = runner.step * np.arange(times)
    memory = memory_function(runner, ts, inputs=runner.inputs, search=search)
    # A sample k steps old acts as the memory function at the time before.
    squares = (scale * runner.step * memory.values[:-1]) ** 2
    left = jnp.cumsum(squares[::-1])[::-1]
    left = jnp.append(left, 0)
    return jnp.sqrt(left[windows - 1])


def _judge(
    starts: tuple[Start, ...], growth: np.ndarray, error: np.ndarray, against_target: bool
) -> tuple[Holding, str]:
    what = "mean squared error" if against_target else "mean square of outputs or hidden states"
    if not np.all(np.isfinite(growth)):
        start = starts[int(np.argmax(~np.isfinite(growth)))]
        return "fails", f"From {start} the {what} does not stay finite, or grows from 0."
    reason = (
        f"The {what} is {growth[0]:.3g} +- {error[0]:.1g} times that at the length of training."
    )
    if growth[0] - _ERRORS * error[0] > _GROWTH:
        return "fails", reason
    if growth[0] + _ERRORS * error[0] <= _GROWTH:
        return "holds", reason
    return "undecided", f"{reason} Take more `samples`."
