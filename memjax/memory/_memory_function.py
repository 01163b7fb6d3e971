from collections.abc import Mapping
from typing import Any, cast, get_args, Literal, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Real

from .._checks import (
    as_plain,
    as_positive,
    as_share,
    as_tolerance,
    check_choice,
    check_flag,
    check_instance,
    check_integer,
    check_nonnegative,
    is_traced,
)
from .._deprecation import moved_arguments
from .._lazy import xr
from .._paths import as_steps, as_times, even_step, integrating
from .._text import readable
from .._typing import ArrayLike, ScalarLike
from ..models import AbstractModel
from ..targets import AbstractKernel, HasKernel, Teacher
from ._functional import as_functional, Functional, Method, SampledFunctional
from ._responses import as_shape, Experiment, get_precision, Kind, maximise_rows
from ._worst_case import find_worst_inputs, WorstCase

Normalisation: TypeAlias = Literal["relative", "shifted"]

_MOST = 1e8  # steps of a warm-up


@readable("plot_memory_functions")
class MemoryFunction(eqx.Module):
    r"""The memory function of a functional, at given times.

    Made by [`memjax.memory_function`][].

    **Attributes:**

    - `ts`: the times, shape `(times,)`.
    - `values`: the memory $M(t)$, shape `(times,)`.
    - `maximiser`: the inputs $x$ that attain the supremum, shape `(times,)` for a scalar input or
        `(times, inputs)`. It is 0 where the supremum is the limit of small inputs, and infinite
        where it is that of large ones.
    - `bounded`: whether the supremum was found, shape `(times,)`. Where it is `False`, the ratio
        still rises at the largest amplitude, or the response to some input was not finite;
        `values` is then the largest that was seen, a lower bound.
    - `small_inputs`: the limit of small inputs alone, shape `(times,)`: the memory of the
        functional linearised at $x = 0$.
    - `exact`: whether the values are those of a kernel in closed form.
    """

    ts: Float[Array, " times"]
    values: Float[Array, " times"]
    maximiser: Float[Array, "times *inputs"]
    bounded: Bool[Array, " times"]
    small_inputs: Float[Array, " times"]
    exact: bool = eqx.field(static=True)

    def half_time(self) -> Float[Array, ""]:
        """The time after which the memory stays below half of its largest value.

        For one exponential it is its half-life. The same as `horizon(0.5)`.

        **Returns:**

        A scalar, in units of the model's own clock.
        """
        return self.horizon(0.5)

    def horizon(self, level: Real[ScalarLike, ""]) -> Float[Array, ""]:
        """The time after which the memory stays below a share of its largest value.

        Between two times the memory is taken to be exponential.

        **Arguments:**

        - `level`: the share, between 0 and 1.

        **Returns:**

        A scalar, in units of the model's own clock: infinity if the memory is above the level at
        the last time, 0 for a functional without memory, and NaN if some value is NaN.

        **Raises:**

        `ValueError` for a level outside of (0, 1).
        """
        return _last_crossing(self.ts, self.values, as_share("level", level))


@jax.jit
def _last_crossing(
    ts: Float[Array, " times"], values: Float[Array, " times"], level: Float[Array, ""]
) -> Float[Array, ""]:
    threshold = level * jnp.max(values)
    above = values > threshold
    last = ts.size - 1 - jnp.argmax(above[::-1])
    k = jnp.minimum(last, ts.size - 2)
    log = lambda value: jnp.log(jnp.maximum(value, jnp.finfo(values.dtype).tiny))
    high, low = log(values[k]), log(values[k + 1])
    share = (high - log(threshold)) / jnp.where(high > low, high - low, 1)
    crossing = ts[k] + share * (ts[k + 1] - ts[k])
    crossing = jnp.where(last == ts.size - 1, jnp.inf, crossing)
    crossing = jnp.where(jnp.any(above), crossing, 0)
    return jnp.where(jnp.any(jnp.isnan(values)), jnp.nan, crossing)


@moved_arguments("search", WorstCase)
def memory_function(
    functional: Functional | SampledFunctional,
    ts: Real[ArrayLike, " times"],
    *,
    kind: Kind = "heaviside",
    normalisation: Normalisation = "relative",
    method: Method | None = None,
    inputs: int | None = None,
    batched: bool = False,
    search: WorstCase | None = None,
    warm_up: float | None = None,
    pulse: float | None = None,
    solver: diffrax.AbstractSolver | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    max_steps: int = 4096,
) -> MemoryFunction:
    r"""How strongly a functional still responds, a time $t$ after its input changed.

    With the Heaviside input $u^x_t = x\, 1[t \ge 0]$ and the maximum norm of $x \in \mathbb{R}^d$,

    $$M(t) = \sup_{x \ne 0} \frac{|\frac{d}{dt} (H_t(u^x) - H_t(0))|_\infty}{|x|_\infty}.$$

    Of several outputs it is that of the largest. $H_t(0)$ is taken off since a model with biases
    moves without any input, which is no memory and would make the ratio infinite for small $x$.

    How it is computed depends on the functional:

    - **Kernels, and models with a `kernel()`**: exactly, $M(t) = |\rho(t)|_1$, the largest over
        outputs of $\sum_j |\rho_{kj}(t)|$.
    - **Other models**, unless a discrete `method` is asked for: in continuous time. The
        difference to the response to no input is integrated by Diffrax, divided by $|x|$, so that
        small inputs do not cancel, and its limit $x \to 0$ is integrated along. The time
        derivative is exact: that of the readout along the vector field.
    - **Everything else**, on the grid `ts`, one step longer than given: $|y_{k+1} - y_k| /
        (t_{k+1} - t_k)$ for the time $t_k$. Of first order in the step; of second order if it is
        read as the value in the middle between $t_k$ and $t_{k+1}$ and the outputs are exact. For
        a sequence model the value at $t_k$ is what an input has left $k + 1$ samples later.

    How the supremum is searched for is said by a [`memjax.WorstCase`][]. As of any global search,
    the values are lower bounds, and never above the supremum.

    The supremum is over inputs of any size, and a nonlinear model may owe it to others at every
    time. In a GRU each input has an exponential decay of its own, but the larger it is the more it
    closes the gates: with rates $w(x) \sim e^{-c|x|}$, the supremum of $w e^{-wt} / |x|$ is about
    $1 / (t \log t)$, a power law, attained by inputs that grow like $\log t$. What an ordinary
    input leaves is told by a smaller range of `amplitudes` of the search, or by `small_inputs`.

    **Arguments:**

    - `functional`: a target, a model, or anything that [`memjax.as_functional`][] takes.
    - `ts`: increasing, concrete times from 0 on, shape `(times,)`, in units of the model's own
        clock. Where they are the grid of a discrete functional, they start at 0.
    - `kind`: `"heaviside"`; `"reversed"` for the input that is $x$ before time 0 and 0 from then
        on; or `"impulse"`, $|H_t - H_t(0)| / (|x|\, \delta)$ after a pulse $x$ of length
        $\delta$, without a derivative. All three agree for linear functionals.
    - `normalisation`: `"relative"` divides by $|x|_\infty$, `"shifted"` by $|x|_\infty + 1$.
        For linear functionals the suprema are the same.
    - `method`, `inputs`, `batched`: as in [`memjax.as_functional`][]. A model is taken in
        continuous time by default and with `"diffrax"`, and on the grid with `"scan"` and
        `"residual"` (Euler's method).
    - `search`: a [`memjax.WorstCase`][], how the supremum is searched for; by default
        `WorstCase()`.
    - `warm_up`: for `"reversed"`, how long the input was on. Infinite for kernels by default,
        otherwise as long as `ts`.
    - `pulse`: for `"impulse"` in continuous time, the length $\delta$; time is counted from the
        end of the pulse. Defaults to the smallest step of `ts`. On a grid the pulse is one step,
        and for kernels it is infinitely short.
    - `solver`, `rtol`, `atol`, `max_steps`: of Diffrax, in continuous time. The solver defaults to
        `diffrax.Tsit5()`; pass `diffrax.Kvaerno5()` for stiff models. The tolerances default to
        1e-8 and 1e-10 in double precision, and to 1e-4 and 1e-6 in single. Memory below `rtol`
        times the largest is not resolved.

    **Returns:**

    A [`memjax.MemoryFunction`][].

    **Raises:**

    `TypeError` and `ValueError` as [`memjax.as_functional`][] does, and `ValueError` for unknown
    kinds and normalisations, times or other numbers out of range, and times that are traced.

    ??? cite "Reference"

        Wang, Li, Li, *Inverse Approximation Theory for Nonlinear Recurrent Neural Networks*,
        ICLR 2024, Section 2 (theory, section 1).
    """
    check_choice("kind", kind, get_args(Kind))
    check_choice("normalisation", normalisation, get_args(Normalisation))
    check_choice("method", method, (None, *get_args(Method)))
    check_flag("batched", batched)
    times = _as_lags(ts)
    search = WorstCase() if search is None else search
    check_instance("search", search, WorstCase, "a WorstCase", "pass memjax.WorstCase()")
    check_integer("max_steps", max_steps)
    warm_up = None if warm_up is None else as_plain(as_positive, "warm_up", warm_up)
    pulse = None if pulse is None else as_plain(as_positive, "pulse", pulse)
    rtol = None if rtol is None else as_plain(as_tolerance, "rtol", rtol)
    atol = None if atol is None else as_plain(as_positive, "atol", atol)
    solver = diffrax.Tsit5() if solver is None else solver
    hint = "pass for example diffrax.Kvaerno5()"
    check_instance("solver", solver, diffrax.AbstractSolver, "a Diffrax solver", hint)
    if inputs is not None:
        check_integer("inputs", inputs)

    if isinstance(functional, Teacher) and isinstance(functional.function, AbstractModel):
        functional = functional.function
    kernel = _get_kernel(functional, method)
    if kernel is not None:
        return _solve_kernel(kernel, jnp.asarray(times), kind, normalisation, warm_up)

    sampled = as_functional(functional, method=method, batched=batched, inputs=inputs)
    experiment = Experiment(
        times=tuple(times.tolist()),
        kind=kind,
        shifted=normalisation == "shifted",
        warm_up=float(times[-1] if warm_up is None else warm_up),
        pulse=float(np.min(np.diff(times)) if pulse is None else pulse),
        max_steps=max_steps,
    )
    continuous = isinstance(sampled.source, AbstractModel) and method in (None, "diffrax")
    if not continuous and times[0] != 0:
        raise ValueError(
            f"`ts` must start at 0 where it is the grid of a discrete functional, got {times[0]}; "
            "pass all times from 0 on."
        )
    if kind == "reversed" and not continuous and experiment.warm_up > _MOST * (times[1] - times[0]):
        raise ValueError(
            f"`warm_up` must be at most {_MOST:g} steps of `ts`, got {warm_up}; shorten it."
        )
    if not continuous:
        as_steps(ts)
    sampled.check_clock(times)
    double = not continuous or get_precision(sampled.source) == jnp.float64
    rtol = (1e-8 if double else 1e-4) if rtol is None else rtol
    atol = (1e-10 if double else 1e-6) if atol is None else atol
    tolerances = (jnp.asarray(rtol, float), jnp.asarray(atol, float))
    with integrating(max_steps):
        found = find_worst_inputs(sampled, continuous, experiment, search, solver, tolerances)
    return MemoryFunction(jnp.asarray(times), *found, exact=False)


def memory_dataset(memories: Mapping[str, MemoryFunction]) -> "xr.Dataset":
    """Memory functions side by side, for tables and [`memjax.viz.plot_memory_functions`][].

    **Arguments:**

    - `memories`: labels and [`memjax.MemoryFunction`][]s, on the same times or on different ones.

    **Returns:**

    A dataset with the dimensions `functional` (the labels) and `time`, and the variables `memory`,
    `bounded` (1, or 0 where `memory` is a lower bound) and `half_time`. At times that one memory
    function has and another has not, it is NaN.

    **Raises:**

    `ValueError` for no memory function, `TypeError` for anything else.
    """
    check_instance(
        "memories", memories, Mapping, "a mapping of memory functions", "name each by a label"
    )
    if not memories:
        raise ValueError(
            "`memories` must hold at least one memory function, got none; make one by "
            "memjax.memory_function."
        )
    clock, parts = {"units": "clock"}, []
    for label, memory in memories.items():
        hint = "make them by memjax.memory_function"
        check_instance("memories", memory, MemoryFunction, "memory functions", hint)
        variables = {
            "memory": ("time", np.asarray(memory.values), {"long_name": "memory function"}),
            "bounded": (
                "time",
                np.asarray(memory.bounded, float),
                {"long_name": "whether the supremum was found"},
            ),
            "half_time": (
                (),
                float(memory.half_time()),
                {"long_name": "time after which less than half is left"} | clock,
            ),
        }
        since = {"long_name": "time since the input changed"} | clock
        part = xr.Dataset(variables, {"time": ("time", np.asarray(memory.ts), since)})
        parts.append(part.expand_dims(functional=[label]))
    return cast("xr.Dataset", xr.concat(parts, "functional", join="outer"))


def _as_lags(ts: Any) -> np.ndarray:
    if is_traced(ts):
        raise ValueError(
            "`ts` must be concrete, got a traced array; make the times outside of jit and vmap."
        )
    as_times(ts)
    step = even_step(ts)
    times = np.asarray(ts, float)
    if step is not None:
        # Without what rounding in single precision left behind.
        times = times[0] + step * np.arange(times.size)
    check_nonnegative("ts", times, "memory is counted from the time of the change")
    return times


def _get_kernel(functional: Any, method: Method | None) -> Any:
    """The kernel of a functional that has one, unless a discretisation is asked for."""
    if isinstance(functional, SampledFunctional):
        asked = functional.method not in ("response", "scan", "diffrax")
        return None if asked else _get_kernel(functional.source, method)
    if isinstance(functional, AbstractKernel):
        return functional if method is None else None
    if isinstance(functional, AbstractModel) and isinstance(functional, HasKernel):
        return functional.kernel() if method is None else None
    return None


@eqx.filter_jit
def _solve_kernel(
    kernel: Any,
    ts: Float[Array, " times"],
    kind: Kind,
    normalisation: Normalisation,
    warm_up: float | None,
) -> MemoryFunction:
    rho = kernel(ts)
    if kind == "reversed" and warm_up is not None:
        rho = rho - kernel(ts + warm_up)
    outputs, inputs = kernel.sizes
    rows = rho.reshape(ts.size, 1 if outputs is None else outputs, *as_shape(inputs))
    values, direction = maximise_rows(rows)
    # Any amplitude attains the relative supremum, and none the shifted one.
    largest = jnp.inf if normalisation == "shifted" else 1.0
    bounded = jnp.isfinite(values)
    return MemoryFunction(ts, values, direction * largest, bounded, values, exact=True)
