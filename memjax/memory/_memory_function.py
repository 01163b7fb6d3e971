import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any, cast, get_args, Literal, TypeAlias

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats
import xarray as xr
from jaxtyping import Array, Bool, Float, PyTree, Real

from .._checks import (
    as_pair,
    as_plain,
    as_positive,
    as_share,
    as_tolerance,
    check_choice,
    check_flag,
    check_instance,
    check_integer,
    check_nonnegative,
    check_positive,
    is_traced,
)
from .._paths import as_steps, as_times, even_step, integrating
from .._typing import ArrayLike, ScalarLike
from ..models import AbstractModel
from ..numerics import in_batches
from ..targets import AbstractKernel, sizes, StateSpaceKernel, Teacher, VectorKernel
from ._functional import as_functional, Functional, Method, SampledFunctional

Kind: TypeAlias = Literal["heaviside", "reversed", "impulse"]
Normalisation: TypeAlias = Literal["relative", "shifted"]

# Maps an amplitude a > 0 and a direction v with |v| = 1 to the response to the input a v, less
# that to no input, and over a: shape (times, outputs).
Rates: TypeAlias = Callable[[Array, Array], Array]

_CORNERS = 4  # up to how many inputs all corners of the box are tried
_SIGNS = 8  # at how many times the best direction of small inputs is tried
_GOLDEN = (np.sqrt(5) - 1) / 2
_MOST = 1e8  # steps of a warm-up
_RISING = 1e-2  # the exponent of growth in the amplitude that counts as unbounded


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


def memory_function(
    functional: Functional | SampledFunctional,
    ts: Real[ArrayLike, " times"],
    *,
    kind: Kind = "heaviside",
    normalisation: Normalisation = "relative",
    method: Method | None = None,
    inputs: int | None = None,
    batched: bool = False,
    amplitudes: tuple[float, float] = (1e-3, 1e3),
    num_amplitudes: int = 49,
    directions: int = 32,
    starts: int = 4,
    refinements: int = 14,
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

    The supremum is over amplitudes on a log range and directions: both signs for $d = 1$;
    otherwise corners and axes of the box, a low-discrepancy sequence, and the directions that are
    best for small inputs, whose limit is itself a candidate. From the best local maxima among them
    each time goes on by golden sections in the amplitude and in every coordinate of the direction.
    As of any global search, the values are lower bounds, and never above the supremum.

    The supremum is over inputs of any size, and a nonlinear model may owe it to others at every
    time. In a GRU each input has an exponential decay of its own, but the larger it is the more it
    closes the gates: with rates $w(x) \sim e^{-c|x|}$, the supremum of $w e^{-wt} / |x|$ is about
    $1 / (t \log t)$, a power law, attained by inputs that grow like $\log t$. What an ordinary
    input leaves is told by a smaller range of `amplitudes`, or by `small_inputs`.

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
    - `amplitudes`: the least and the largest $|x|_\infty$ to try.
    - `num_amplitudes`: how many, evenly on a log scale.
    - `directions`: how many directions of the low-discrepancy sequence, for $d > 1$.
    - `starts`: from how many of the best local maxima each time goes on.
    - `refinements`: golden sections of each coordinate; 0 for none. Each makes the bracket 0.618
        times as long; the value is of second order in it.
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
    check_integer("num_amplitudes", num_amplitudes, 2)
    check_integer("directions", directions, 0)
    check_integer("starts", starts)
    check_integer("refinements", refinements, 0)
    check_integer("max_steps", max_steps)
    check_positive("amplitudes", amplitudes)
    low, high = as_pair("amplitudes", amplitudes, "pass the least and the largest")
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
    kernel = _kernel(functional, method)
    if kernel is not None:
        return _of_kernel(kernel, jnp.asarray(times), kind, normalisation, warm_up)

    sampled = as_functional(functional, method=method, batched=batched, inputs=inputs)
    options = _Options(
        times=tuple(times.tolist()),
        kind=kind,
        shifted=normalisation == "shifted",
        amplitudes=(low, high),
        num_amplitudes=num_amplitudes,
        directions=directions,
        starts=starts,
        refinements=refinements,
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
    if kind == "reversed" and not continuous and options.warm_up > _MOST * (times[1] - times[0]):
        raise ValueError(
            f"`warm_up` must be at most {_MOST:g} steps of `ts`, got {warm_up}; shorten it."
        )
    if not continuous:
        as_steps(ts)
    sampled.check_clock(times)
    double = not continuous or _precision(sampled.source) == jnp.float64
    rtol = (1e-8 if double else 1e-4) if rtol is None else rtol
    atol = (1e-10 if double else 1e-6) if atol is None else atol
    tolerances = (jnp.asarray(rtol, float), jnp.asarray(atol, float))
    with integrating(max_steps):
        found = _search(sampled, continuous, options, solver, tolerances)
    return MemoryFunction(jnp.asarray(times), *found, exact=False)


def memory_dataset(memories: Mapping[str, MemoryFunction]) -> xr.Dataset:
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
    parts = []
    for label, memory in memories.items():
        hint = "make them by memjax.memory_function"
        check_instance("memories", memory, MemoryFunction, "memory functions", hint)
        variables = {
            "memory": ("time", np.asarray(memory.values)),
            "bounded": ("time", np.asarray(memory.bounded, float)),
            "half_time": float(memory.half_time()),
        }
        part = xr.Dataset(variables, {"time": np.asarray(memory.ts)})
        parts.append(part.expand_dims(functional=[label]))
    return cast(xr.Dataset, xr.concat(parts, "functional", join="outer"))


@dataclasses.dataclass(frozen=True)
class _Options:
    """What a search is compiled for."""

    times: tuple[float, ...]
    kind: Kind
    shifted: bool
    amplitudes: tuple[float, float]
    num_amplitudes: int
    directions: int
    starts: int
    refinements: int
    warm_up: float
    pulse: float
    max_steps: int


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


def _shape(inputs: int | None) -> tuple[int, ...]:
    return () if inputs is None else (inputs,)


def _precision(model: AbstractModel) -> Any:
    """The real type of the hidden state."""
    leaves = jax.tree.leaves(jax.eval_shape(model.initial_hidden))
    return jnp.finfo(jnp.result_type(*(leaf.dtype for leaf in leaves))).dtype


def _kernel(functional: Any, method: Method | None) -> Any:
    """The kernel of a functional that has one, unless a discretisation is asked for."""
    if isinstance(functional, SampledFunctional):
        asked = functional.method not in ("response", "scan", "diffrax")
        return None if asked else _kernel(functional.source, method)
    if isinstance(functional, (AbstractKernel, StateSpaceKernel, VectorKernel)):
        return functional if method is None else None
    if isinstance(functional, AbstractModel) and hasattr(functional, "kernel") and method is None:
        return functional.kernel()  # pyright: ignore[reportAttributeAccessIssue]
    return None


@eqx.filter_jit
def _of_kernel(
    kernel: Any,
    ts: Float[Array, " times"],
    kind: Kind,
    normalisation: Normalisation,
    warm_up: float | None,
) -> MemoryFunction:
    rho = kernel(ts)
    if kind == "reversed" and warm_up is not None:
        rho = rho - kernel(ts + warm_up)
    outputs, inputs = sizes(kernel)
    rows = rho.reshape(ts.size, 1 if outputs is None else outputs, *_shape(inputs))
    values, direction = _of_matrix(rows)
    # Any amplitude attains the relative supremum, and none the shifted one.
    largest = jnp.inf if normalisation == "shifted" else 1.0
    bounded = jnp.isfinite(values)
    return MemoryFunction(ts, values, direction * largest, bounded, values, exact=True)


def _of_matrix(rows: Float[Array, "times outputs *inputs"]) -> tuple[Array, Array]:
    """The norm of matrices between maximum norms, and the sign vectors that attain it."""
    norms = jnp.abs(rows) if rows.ndim == 2 else jnp.sum(jnp.abs(rows), axis=2)
    best = jnp.argmax(norms, axis=1)
    row = jax.vmap(lambda matrix, k: matrix[k])(rows, best)
    return jnp.max(norms, axis=1), jnp.where(row < 0, -1.0, 1.0).astype(rows.dtype)


@eqx.filter_jit
def _search(
    sampled: SampledFunctional,
    continuous: bool,
    options: _Options,
    solver: diffrax.AbstractSolver,
    tolerances: tuple[Array, Array],
) -> tuple[Array, Array, Array, Array]:
    """Values, maximisers, whether they are bounded, and the limit of small inputs."""
    ts = np.asarray(options.times)
    if continuous:
        rates, limit, at_time = _continuous(sampled, ts, options, solver, tolerances)
    else:
        rates, limit = _discrete(sampled, ts, options)
        at_time = lambda a, v, k: rates(a, v)[k]
    small, signs = _of_matrix(limit)
    if sampled.linear:
        largest = jnp.inf if options.shifted else 1.0
        return small, signs * largest, jnp.isfinite(small), small

    def score(rates: Array, a: Array) -> Array:
        size = jnp.max(jnp.abs(rates), axis=-1)
        return size * a / (1 + a) if options.shifted else size

    def split(z: Array) -> tuple[Array, Array]:
        """The amplitude and the direction, of norm 1, of a point of the search."""
        a, v = jnp.exp(z[0]), z[1:].reshape(_shape(sampled.inputs))
        norm = jnp.max(jnp.abs(v))
        return a, v / jnp.where(norm > 0, norm, 1)

    # Every direction at every amplitude, each for all times.
    directions = _directions(sampled.inputs, options.directions, signs)
    low, high = np.log(options.amplitudes)
    logs = jnp.linspace(low, high, options.num_amplitudes)
    points = jnp.concatenate(
        [
            jnp.tile(logs, directions.shape[0])[:, None],
            jnp.repeat(directions, logs.size, axis=0),
        ],
        axis=1,
    )

    def everywhere(z: Array) -> Array:
        a, v = split(z)
        return score(rates(a, v), a)

    scores = in_batches(everywhere, points)
    finite = jnp.all(jnp.isfinite(scores), axis=0)
    scores = jnp.where(jnp.isfinite(scores), scores, -jnp.inf)

    # From the best local maxima along the amplitude, each time goes its own way.
    profiles = scores.reshape(-1, logs.size, ts.size)
    inner = jnp.pad(profiles, ((0, 0), (1, 1), (0, 0)), constant_values=-jnp.inf)
    peaks = (profiles >= inner[:, :-2]) & (profiles >= inner[:, 2:])
    peaks = jnp.where(peaks, profiles, -jnp.inf).reshape(scores.shape)
    values, chosen = jax.lax.top_k(peaks.T, min(options.starts, points.shape[0]))
    # Does the ratio still rise at the largest amplitude, in the best direction?
    along = profiles[chosen[:, 0] // logs.size, :, jnp.arange(ts.size)]
    rising = along[:, -1] > along[:, -2] * jnp.exp(_RISING * (logs[-1] - logs[-2]))

    indices = jnp.repeat(jnp.arange(ts.size), chosen.shape[1])

    def here(z: Array, k: Array) -> Array:
        a, v = split(z)
        value = score(at_time(a, v, k), a)
        return jnp.where(jnp.isfinite(value), value, -jnp.inf)

    def each(zs: Array) -> Array:
        return in_batches(here, zs, indices)

    values, best = _refine(
        each, points[chosen.ravel()], values.ravel(), logs, directions.shape[1], options.refinements
    )
    winner = jnp.argmax(values.reshape(chosen.shape), axis=1)
    values = jnp.max(values.reshape(chosen.shape), axis=1)
    best = best.reshape(*chosen.shape, -1)[jnp.arange(ts.size), winner]

    a, v = jax.vmap(split)(best)
    rising = rising & (best[:, 0] >= logs[-1] - 1e-3)
    inputs = a.reshape(-1, *(1,) * len(_shape(sampled.inputs))) * v
    if not options.shifted:
        # Inputs that do no better than the limit only repeat it with rounding.
        limited = small >= values * (1 - 1e-7)
        inputs = jnp.where(limited.reshape(-1, *(1,) * (inputs.ndim - 1)), 0, inputs)
        values = jnp.where(jnp.isnan(small), jnp.nan, jnp.maximum(values, small))
        rising = rising & ~limited
    return values, inputs, finite & ~rising & jnp.isfinite(values), small


def _refine(
    each: Callable[[Array], Array],
    best: Float[Array, "starts coordinates"],
    values: Float[Array, " starts"],
    logs: Float[Array, " amplitudes"],
    dimension: int,
    sections: int,
) -> tuple[Float[Array, " starts"], Float[Array, "starts coordinates"]]:
    """Golden sections of one coordinate after the other, all times side by side.

    Optimistix's `GoldenSearch` has the function in its program twice, at its start and in its
    step; here it is an integration, which takes long to compile.
    """
    if sections == 0:
        return values, best
    # In one dimension the direction is a sign, which stays; otherwise all coordinates take turns,
    # first in wide and then in narrow brackets.
    spacing = logs[1] - logs[0]
    rounds = [(0, 0.0)]
    if dimension > 1:
        rounds = [(c, w) for w in (0.5, 0.2) for c in range(1 + dimension)]
    coordinates = jnp.array([c for c, _ in rounds])
    widths = jnp.array([w for _, w in rounds])

    def search(state: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[Any, None]:
        best, values = state
        coordinate, width = now
        amplitude = coordinate == 0
        low = jnp.where(amplitude, logs[0], -1.0)
        high = jnp.where(amplitude, logs[-1], 1.0)
        reach = jnp.where(amplitude, spacing, width)
        centre = best[:, coordinate]
        low, high = jnp.maximum(low, centre - reach), jnp.minimum(high, centre + reach)
        at = lambda s: best.at[:, coordinate].set(s)

        def section(i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            low, high, left, at_left, right, at_right, best_s, best_value = state
            # The first two sections only fill in the two inner points.
            started = i > 1
            drop_right = at_left > at_right
            new_low = jnp.where(drop_right, low, left)
            new_high = jnp.where(drop_right, right, high)
            length = _GOLDEN * (new_high - new_low)
            moved = jnp.where(drop_right, new_high - length, new_low + length)
            s = jnp.where(started, moved, jnp.where(i == 0, left, right))
            value = each(at(s))
            kept = lambda new, old: jnp.where(started, new, old)
            first, second = (i == 0), (i == 1)
            new_left = kept(jnp.where(drop_right, s, right), left)
            new_at_left = kept(
                jnp.where(drop_right, value, at_right), jnp.where(first, value, at_left)
            )
            new_right = kept(jnp.where(drop_right, left, s), right)
            new_at_right = kept(
                jnp.where(drop_right, at_left, value), jnp.where(second, value, at_right)
            )
            better = value > best_value
            return (
                kept(new_low, low),
                kept(new_high, high),
                new_left,
                new_at_left,
                new_right,
                new_at_right,
                jnp.where(better, s, best_s),
                jnp.where(better, value, best_value),
            )

        length = _GOLDEN * (high - low)
        none = jnp.full_like(values, -jnp.inf)
        start = (low, high, high - length, none, low + length, none, centre, values)
        *_, best_s, best_value = jax.lax.fori_loop(0, sections, section, start)
        return (at(best_s), best_value), None

    (best, values), _ = jax.lax.scan(search, (best, values), (coordinates, widths))
    return values, best


def _directions(
    inputs: int | None, count: int, signs: Float[Array, "times *inputs"]
) -> Float[Array, "directions inputs"]:
    """Points on the surface of the box, from which the search starts."""
    if inputs in (None, 1):
        return jnp.array([[1.0], [-1.0]])
    axes = np.concatenate([np.eye(inputs), -np.eye(inputs)])
    if inputs <= _CORNERS:
        corners = np.array(list(itertools.product([1.0, -1.0], repeat=inputs)))
    else:
        corners = np.array([np.ones(inputs), -np.ones(inputs)])
    spread = np.zeros((0, inputs))
    if count > 0:
        # The first point of the unscrambled sequence is a corner of the unit cube.
        spread = 2 * scipy.stats.qmc.Halton(inputs, scramble=False).random(count + 1)[1:] - 1
        spread = spread / np.max(np.abs(spread), axis=1, keepdims=True)
    chosen = signs[np.unique(np.linspace(0, signs.shape[0] - 1, _SIGNS).round().astype(int))]
    return jnp.concatenate([axes, corners, spread, chosen, -chosen])


def _discrete(
    sampled: SampledFunctional, ts: np.ndarray, options: _Options
) -> tuple[Rates, Float[Array, "times outputs *inputs"]]:
    """Differences of the outputs on a grid, and their derivative in the input at 0."""
    last, first = ts[-1] - ts[-2], ts[1] - ts[0]
    grid = np.append(ts, ts[-1] + last)
    # Before the Heaviside input there is nothing, before the others a past.
    if options.kind == "reversed":
        past = first * np.arange(-int(np.ceil(options.warm_up / first - 1e-9)), 0)
    else:
        past = -first * np.ones(1 if options.kind == "impulse" else 0)
    grid = np.concatenate([past, grid])
    if options.kind == "heaviside":
        on = np.ones(grid.size)
    elif options.kind == "reversed":
        on = (grid < 0).astype(float)
    else:
        on = (grid == 0).astype(float)
    if even_step(ts) is not None:
        # A grid that is even to rounding stays so.
        grid = grid[0] + first * np.arange(grid.size)

    def outputs(x: Array) -> Array:
        xs = on.reshape(-1, *(1,) * x.ndim) * x
        ys = sampled(grid, xs).reshape(grid.size, -1)[past.size :]
        if options.kind == "impulse":
            return ys[1:] / first
        return jnp.diff(ys, axis=0) / np.append(np.diff(ts), last)[:, None]

    zero = jnp.zeros(_shape(sampled.inputs), float)
    silent = outputs(zero)
    rates = lambda a, v: (outputs(a * v) - silent) / a
    try:
        return rates, jax.jacfwd(outputs)(zero)
    except TypeError:
        # Functions with a reverse-mode rule of their own have no forward mode.
        return rates, jax.jacrev(outputs)(zero)


def _continuous(
    sampled: SampledFunctional,
    ts: np.ndarray,
    options: _Options,
    solver: diffrax.AbstractSolver,
    tolerances: tuple[Array, Array],
) -> tuple[Rates, Array, Callable[[Array, Array, Array], Array]]:
    """The response to an input, integrated beside that to none."""
    model = sampled.source
    length = {"heaviside": 0.0, "reversed": options.warm_up, "impulse": options.pulse}[options.kind]
    constant = options.kind == "heaviside"
    dtype = _precision(model)
    zero = jnp.zeros(_shape(sampled.inputs), dtype)
    rest = model.initial_hidden()
    start = (rest, jax.tree.map(jnp.zeros_like, rest))

    def output(t: Array, h: PyTree, x: Array) -> Array:
        if options.kind == "impulse":
            return model.readout(h) / options.pulse
        return jax.jvp(model.readout, (h,), (model.vector_field(t, h, x),))[1]

    def quotient(function: Callable, a: Array | None) -> Callable:
        """The difference in the response to an input of amplitude `a`, over `a`, of what
        `function` makes of it; for `None` the limit of small inputs."""

        def small(h: PyTree, g: PyTree, v: Array) -> PyTree:
            return jax.jvp(function, (h, zero), (g, v))[1]

        def large(h: PyTree, g: PyTree, v: Array) -> PyTree:
            assert a is not None
            moved = jax.tree.map(lambda h, g: h + a * g, h, g)
            change = lambda new, old: (new - old) / a
            return jax.tree.map(change, function(moved, a * v), function(h, zero))

        return small if a is None else large

    def run(a: Array | None, v: Array, save: Array, throw: bool) -> Array:
        a, v = None if a is None else a.astype(dtype), v.astype(dtype)

        def field(t: Any, state: tuple[PyTree, PyTree], v: Array) -> tuple[PyTree, PyTree]:
            h, g = state
            function = lambda h, x: model.vector_field(t, h, x)
            return function(h, zero), quotient(function, a)(h, g, v)

        def result(t: Array, state: tuple[PyTree, PyTree], v: Array) -> Array:
            return jnp.ravel(quotient(lambda h, x: output(t, h, x), a)(*state, v))

        def solve(t0: Any, t1: Any, state: Any, v: Array, saveat: diffrax.SaveAt) -> Any:
            return diffrax.diffeqsolve(
                diffrax.ODETerm(field),
                solver,
                t0=t0,
                t1=t1,
                dt0=None,
                y0=state,
                args=v,
                saveat=saveat,
                stepsize_controller=diffrax.PIDController(*tolerances),
                max_steps=options.max_steps,
                adjoint=diffrax.ForwardMode(),
                throw=throw,
            ).ys

        state = start
        if length > 0:
            state = solve(-length, 0.0, state, v, diffrax.SaveAt(t1=True))
            state = jax.tree.map(lambda leaf: leaf[0], state)
        after = v if constant else jnp.zeros_like(v)
        # A solve has to go somewhere, also for the value at its start.
        end = jnp.maximum(save[-1], ts[1])
        return solve(0.0, end, state, after, diffrax.SaveAt(ts=save, fn=result))

    if sampled.inputs is None:
        limit = run(None, jnp.ones(()), jnp.asarray(ts), True)
    else:
        columns = jax.lax.map(lambda v: run(None, v, jnp.asarray(ts), True), jnp.eye(zero.size))
        limit = jnp.moveaxis(columns, 0, -1)
    return (
        lambda a, v: run(a, v, jnp.asarray(ts), False),
        limit,
        lambda a, v, k: run(a, v, jnp.asarray(ts)[k][None], False)[0],
    )
