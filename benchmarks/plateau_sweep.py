"""The same sweep of plateau times, by memjax and by its peers.

Run `python benchmarks/plateau_sweep.py`; README.md next to this file says how to read the result.
"""

import argparse
import dataclasses
import datetime
import functools
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import optimistix as optx

import memjax as mj

try:
    import scipy.integrate as scipy_integrate
except ImportError:
    scipy_integrate = None
try:
    import sksundae.cvode as sundials
except ImportError:
    sundials = None

jax.config.update("jax_enable_x64", True)

HERE = Path(__file__).resolve().parent

# No bound on training time; the methods stop at the exit, or where they fail.
FOREVER = 1e300
GRIDS: dict[str, dict[str, Any]] = {
    "short": {
        "memories": np.linspace(4, 18, 64),
        "seeds": (0, 1, 2, 3),
        "widths": (4, 16),
        "delta": 0.02,
        "ascending": False,
    },
    "long": {
        "memories": np.linspace(20, 40, 12),
        "seeds": (0,),
        "widths": (2, 4),
        # A spare mode removes 1.6 % of the loss at 1/omega = 40, so that every run has an exit.
        "delta": 0.01,
        "ascending": True,
    },
}


@dataclasses.dataclass(frozen=True)
class Cells:
    """Runs of one width: the memory, the start and the loss at which the plateau is left."""

    grid: str
    width: int
    delta: float
    memory: np.ndarray
    seed: np.ndarray
    start: np.ndarray

    def __len__(self) -> int:
        return len(self.memory)

    def take(self, index: Any) -> "Cells":
        columns = {name: getattr(self, name)[index] for name in ("memory", "seed", "start")}
        return dataclasses.replace(self, **columns)


def make_cells(grid: str, width: int, memories: int | None, seeds: int | None) -> Cells:
    """The cells of a grid, in an order in which every first part is spread over the grid (or
    in that of the memories, where the question is how far a method gets)."""
    what = GRIDS[grid]
    chosen = what["memories"]
    if memories is not None:
        chosen = chosen[np.linspace(0, len(chosen) - 1, memories).round().astype(int)]
    spec = _specification(width)
    columns = np.meshgrid(chosen, what["seeds"][:seeds], indexing="ij")
    memory, seed = (column.ravel() for column in columns)

    def start(memory: Any, seed: Any) -> Any:
        model = spec.model(1 / memory, width, seed)
        return jnp.concatenate([model.amplitudes, model.rates])

    cells = Cells(
        grid, width, what["delta"], memory, seed, np.asarray(jax.vmap(start)(memory, seed))
    )
    golden = (np.sqrt(5) - 1) / 2
    order = np.arange(len(cells))
    return cells.take(order if what["ascending"] else np.argsort(order * golden % 1))


def _specification(width: int) -> mj.PlateauSweep:
    return mj.PlateauSweep(widths=(width,), start="on-plateau", jitter=0.02, curve_points=0)


# What the peers integrate: the closed forms, with the target's exponentials in the Cauchy sum.
SPEC = _specification(2)
AMPLITUDES = jnp.asarray(SPEC.target_amplitudes)
RATES = jnp.asarray(SPEC.target_rates)
SIGMA, HEIGHT = SPEC.bump_width, SPEC.bump_amplitude


def _transform(s: Any, memory: Any) -> tuple[Any, Any]:
    """The bump's Laplace transform and its derivative."""
    slope = s * SIGMA**2 - memory
    factor = HEIGHT * SIGMA * np.sqrt(np.pi / 2) * jnp.exp(s * (s * SIGMA**2 / 2 - memory))
    value = factor * jax.scipy.special.erfc(slope / (SIGMA * np.sqrt(2)))
    tail = HEIGHT * SIGMA**2 * jnp.exp(-(memory**2) / (2 * SIGMA**2))
    return value, slope * value - tail


def plateau_height(memory: Any) -> Any:
    """The squared norm of the bump."""
    return HEIGHT**2 * SIGMA * np.sqrt(np.pi) / 2 * jax.scipy.special.erfc(-memory / SIGMA)


def _modes(y: Any) -> tuple[Any, Any, Any, Any]:
    a, w = jnp.split(y, 2)
    return a, w, jnp.concatenate([a, -AMPLITUDES]), jnp.concatenate([w, RATES])


def loss(y: Any, memory: Any) -> Any:
    _, _, b, v = _modes(y)
    cross = jnp.dot(b, _transform(v, memory)[0])
    return b @ (1 / (v[:, None] + v[None, :])) @ b - 2 * cross + plateau_height(memory)


def gradient(y: Any, memory: Any) -> Any:
    a, w, b, v = _modes(y)
    value, slope = _transform(w, memory)
    cauchy = 1 / (w[:, None] + v[None, :])
    return jnp.concatenate([2 * (cauchy @ b - value), -2 * a * (cauchy**2 @ b + slope)])


def descent(y: Any, memory: Any) -> Any:
    return -gradient(y, memory)


def margin(y: Any, memory: Any, delta: Any) -> Any:
    """Positive on the plateau and not after it."""
    return loss(y, memory) / plateau_height(memory) - (1 - delta)


# --- Methods -------------------------------------------------------------------------------
#
# A method prepares (compiles) for cells of one width, and then yields pieces of the work: how
# many cells were tried, with their exit times (NaN for none) and how each ended. Between two
# pieces the clock is read, and the method stopped once it has used its budget.

Piece = tuple[np.ndarray, list[str]]
Runner = Callable[[Cells], Iterator[Piece]]


@dataclasses.dataclass(frozen=True)
class Settings:
    rtol: float
    atol: float
    loop_runs: int
    budget: float
    run_budget: float
    lanes: int
    max_steps: int


@dataclasses.dataclass(frozen=True)
class Method:
    """How to measure the cells.

    `prepare` compiles and returns the runner; its time is the difference of cold and warm. A
    method without one (`call`) is called twice, since it compiles by itself.
    """

    title: str
    looped: bool
    prepare: Callable[[Cells, Settings], Runner] | None = None
    call: Callable[[Cells, Settings], Piece] | None = None
    needs: tuple[str, ...] = ()


def memjax_sweep(cells: Cells, settings: Settings | None = None, *, rtol: float) -> Piece:
    dataset = mj.sweep(_builder(cells), {"cell": range(len(cells))}, rtol=rtol, progress=False)
    names = dataset["result"].attrs["flag_meanings"].split()
    return dataset["time"].values, [names[code] for code in dataset["result"].values]


_BUILDERS: dict[int, Callable] = {}


def _builder(cells: Cells) -> Callable:
    """One function for the same cells, so that a second sweep over them finds it compiled."""
    return _BUILDERS.setdefault(id(cells), functools.partial(_build, cells))


def _build(cells: Cells, cell: Any) -> tuple[Any, Any, Any]:
    return _measurement(
        jnp.asarray(cells.memory)[cell], jnp.asarray(cells.start)[cell], cells.delta
    )


def _measurement(memory: Any, start: Any, delta: float) -> tuple[Any, Any, Any]:
    amplitudes, rates = jnp.split(start, 2)
    model = mj.DiagonalLinearRNN(amplitudes, rates)
    exit = mj.RelativeLossDrop(delta, plateau_height(memory))
    return mj.GradientFlow(mj.WhiteNoiseLoss(SPEC.target(1 / memory))), model, exit


def _batched(
    one: Callable, how: Callable, names: Callable[[Any], str], chunk: int | None
) -> Callable[[Cells, Settings], Runner]:
    """A method that is one compiled program for `chunk` cells: `one(memory, start, cells)`
    gives the exit time and the outcome of a cell, `how` is `jax.vmap` or a map."""

    def prepare(cells: Cells, settings: Settings) -> Runner:
        size = min(chunk or settings.lanes, len(cells))
        function = jax.jit(how(lambda memory, start: one(memory, start, cells.delta, settings)))
        program = function.lower(cells.memory[:size], cells.start[:size]).compile()

        def run(cells: Cells) -> Iterator[Piece]:
            for first in range(0, len(cells), size):
                # The last chunk is filled up, so that one compilation serves them all.
                rows = np.minimum(np.arange(first, first + size), len(cells) - 1)
                times, outcome = program(cells.memory[rows], cells.start[rows])
                count = min(size, len(cells) - first)
                yield np.asarray(times)[:count], [names(x) for x in np.asarray(outcome)[:count]]

        return run

    return prepare


def _map(function: Callable) -> Callable:
    return lambda memory, start: jax.lax.map(lambda x: function(*x), (memory, start))


def _memjax_one(
    rtol: float, memory: Any, start: Any, delta: float, settings: Settings
) -> tuple[Any, Any]:
    plateau = mj.measure_plateau(*_measurement(memory, start, delta), rtol=rtol, throw=False)
    return plateau.time, plateau.result_code


def _memjax_name(code: Any) -> str:
    order = ("exited", "converged", "max_time_reached", "max_steps_reached", "unresolved")
    return order[int(code)]


def _diffrax_one(
    solver: diffrax.AbstractSolver, memory: Any, start: Any, delta: float, settings: Settings
) -> tuple[Any, Any]:
    condition = lambda t, y, args, **kwargs: margin(y, memory, delta)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: descent(y, args)),
        solver,
        t0=0.0,
        t1=FOREVER,
        dt0=None,
        y0=start,
        args=memory,
        stepsize_controller=diffrax.PIDController(rtol=settings.rtol, atol=settings.atol),
        event=diffrax.Event(condition, optx.Newton(1e-8, 1e-8)),
        max_steps=settings.max_steps,
        throw=False,
    )
    assert solution.ts is not None
    exited = solution.result == diffrax.RESULTS.event_occurred
    outcome = jnp.where(solution.result == diffrax.RESULTS.max_steps_reached, 1, 2)
    return jnp.where(exited, solution.ts[0], jnp.nan), jnp.where(exited, 0, outcome)


def _diffrax_name(code: Any) -> str:
    return ("exited", "max_steps_reached", "solver_failed")[int(code)]


def _full_newton() -> diffrax.AbstractSolver:
    newton = diffrax.with_stepsize_controller_tols(optx.Newton)()
    return diffrax.Kvaerno5(root_finder=newton)


class _TimeLimit(Exception):
    """Raised by a callback, since the looped solvers have no limit of their own."""


def _looped(one: Callable[..., tuple[float, str]]) -> Callable[[Cells, Settings], Runner]:
    """A method that runs the cells one by one, with compiled callbacks."""

    def prepare(cells: Cells, settings: Settings) -> Runner:
        functions = [
            jax.jit(descent),
            jax.jit(jax.jacfwd(descent)),
            jax.jit(functools.partial(margin, delta=cells.delta)),
        ]
        for function in functions:
            jax.block_until_ready(function(cells.start[0], cells.memory[0]))

        def run(cells: Cells) -> Iterator[Piece]:
            for memory, start in zip(cells.memory, cells.start, strict=True):
                limit = time.perf_counter() + settings.run_budget
                on_device = jnp.asarray(memory)

                def checked(y: np.ndarray, limit=limit, memory=on_device) -> np.ndarray:
                    if time.perf_counter() > limit:
                        raise _TimeLimit
                    return np.asarray(functions[0](y, memory))

                jacobian, level = (
                    lambda y, f=f, memory=on_device: np.asarray(f(y, memory)) for f in functions[1:]
                )
                try:
                    exit_time, outcome = one(checked, jacobian, level, start, settings)
                except _TimeLimit:
                    exit_time, outcome = np.nan, "time_limit"
                yield np.asarray([exit_time]), [outcome]

        return run

    return prepare


def _scipy_one(
    method: str,
    velocity: Callable,
    jacobian: Callable,
    level: Callable,
    start: np.ndarray,
    settings: Settings,
) -> tuple[float, str]:
    event = lambda t, y: float(level(y))
    event.terminal, event.direction = True, -1  # pyright: ignore[reportFunctionMemberAccess]
    try:
        solution = scipy_integrate.solve_ivp(  # pyright: ignore[reportOptionalMemberAccess]
            lambda t, y: velocity(y),
            (0.0, FOREVER),
            start,
            method=method,
            jac=lambda t, y: jacobian(y),
            events=event,
            rtol=settings.rtol,
            atol=settings.atol,
        )
    except (ValueError, np.linalg.LinAlgError):
        # A step out of the domain (a rate below zero) ends in numbers that are not finite.
        return np.nan, "solver_failed"
    if solution.status == 1:
        return float(solution.t_events[0][0]), "exited"
    return np.nan, "solver_failed" if solution.status < 0 else "max_time_reached"


def _cvode_one(
    velocity: Callable, jacobian: Callable, level: Callable, start: np.ndarray, settings: Settings
) -> tuple[float, str]:
    def rhsfn(t, y, yp):
        yp[:] = velocity(y)

    def jacfn(t, y, yp, matrix):
        matrix[:, :] = jacobian(y)

    def eventsfn(t, y, events):
        events[0] = level(y)

    solver = sundials.CVODE(  # pyright: ignore[reportOptionalMemberAccess]
        rhsfn,
        method="BDF",
        rtol=settings.rtol,
        atol=settings.atol,
        jacfn=jacfn,
        eventsfn=eventsfn,
        num_events=1,
        # The estimate of the first step starts from the length of the interval, and fails.
        first_step=1e-3,
        max_num_steps=100 * settings.max_steps,
    )
    solution = solver.solve(np.array([0.0, FOREVER]), start)
    if solution.t_events is not None and len(solution.t_events) > 0:
        return float(solution.t_events[0]), "exited"
    return np.nan, "max_time_reached" if solution.success else "solver_failed"


def prepare_gradient_descent(cells: Cells, settings: Settings) -> Runner:
    """Steps of 0.9 * 2 / (largest curvature at the start), 1e6 of them at most."""
    block, most = 20_000, 1_000_000

    @jax.jit
    def rate(start: Any, memory: Any) -> Any:
        return 0.9 * 2 / jnp.linalg.eigvalsh(jax.jacfwd(gradient)(start, memory))[-1]

    @jax.jit
    def advance(state: Any, memory: Any, size: Any) -> Any:
        def step(state: Any) -> Any:
            count, y, _, _ = state
            y = y + size * descent(y, memory)
            return count + 1, y, state[3], margin(y, memory, cells.delta)

        def going(state: Any) -> Any:
            return (state[0] < until) & (state[3] > 0)

        until = state[0] + block
        return jax.lax.while_loop(going, step, state)

    def begin(start: Any, memory: Any) -> Any:
        value = jnp.asarray(margin(start, memory, cells.delta))
        return jnp.asarray(0), jnp.asarray(start), value, value

    first = begin(cells.start[0], cells.memory[0])
    size = rate(cells.start[0], cells.memory[0])
    jax.block_until_ready(advance((first[0], *first[1:3], -first[3]), cells.memory[0], size))

    def run(cells: Cells) -> Iterator[Piece]:
        for memory, start in zip(cells.memory, cells.start, strict=True):
            size, state = rate(start, memory), begin(start, memory)
            limit = time.perf_counter() + settings.run_budget
            outcome = "max_steps_reached"
            while int(state[0]) < most and float(state[3]) > 0:
                if time.perf_counter() > limit:
                    outcome = "time_limit"
                    break
                state = advance(state, memory, size)
            count, _, before, after = (np.asarray(x) for x in state)
            if after <= 0:
                exit_time = size * (count - 1 + before / (before - after))
                yield np.asarray([exit_time]), ["exited"]
            else:
                yield np.asarray([np.nan]), [outcome if np.isfinite(after) else "diverged"]

    return run


METHODS: dict[str, Method] = {
    "memjax": Method(
        "memjax `sweep`, all cores",
        False,
        call=functools.partial(memjax_sweep, rtol=1e-5),
    ),
    "memjax-map": Method(
        "memjax `measure_plateau`, `jax.lax.map`",
        True,
        _batched(functools.partial(_memjax_one, 1e-6), _map, _memjax_name, 1),
    ),
    "memjax-map-1e-4": Method(
        "memjax `measure_plateau`, rtol=1e-4, `jax.lax.map`",
        True,
        _batched(functools.partial(_memjax_one, 1e-4), _map, _memjax_name, 1),
    ),
    "diffrax-default-vmap": Method(
        "Diffrax Kvaerno5, `jax.vmap`",
        False,
        _batched(functools.partial(_diffrax_one, diffrax.Kvaerno5()), jax.vmap, _diffrax_name, 0),
    ),
    "diffrax-newton-vmap": Method(
        "Diffrax Kvaerno5, full Newton, `jax.vmap`",
        False,
        _batched(functools.partial(_diffrax_one, _full_newton()), jax.vmap, _diffrax_name, None),
    ),
    "diffrax-newton-map": Method(
        "Diffrax Kvaerno5, full Newton, `jax.lax.map`",
        True,
        _batched(functools.partial(_diffrax_one, _full_newton()), _map, _diffrax_name, 1),
    ),
    "scipy-bdf": Method(
        "SciPy BDF, loop", True, _looped(functools.partial(_scipy_one, "BDF")), needs=("scipy",)
    ),
    "scipy-radau": Method(
        "SciPy Radau, loop",
        True,
        _looped(functools.partial(_scipy_one, "Radau")),
        needs=("scipy",),
    ),
    "cvode": Method("SUNDIALS CVODE, loop", True, _looped(_cvode_one), needs=("scikit-sundae",)),
    "gradient-descent": Method(
        "gradient descent, largest stable step", True, prepare_gradient_descent
    ),
}


# --- Reference -----------------------------------------------------------------------------


def reference_times(cells: Cells) -> np.ndarray:
    return memjax_sweep(cells, rtol=1e-9)[0]


def validate(cells: Cells, times: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The reference against solvers that share no code with it.

    On the short grid SciPy's Radau at rtol=1e-10; on the long one, where float64 does not hold
    that tolerance, the multiprecision solver of the tests.
    """
    index = np.flatnonzero(np.isfinite(times))[:count]
    if cells.grid == "short" and scipy_integrate is None:
        return []
    rows = []
    for i in index:
        cell = cells.take(slice(i, i + 1))
        if cells.grid == "short":
            name = "SciPy Radau, rtol=1e-10, atol=1e-14"
            tight = Settings(1e-10, 1e-14, 1, np.inf, 30.0, 1, 1)
            runner = _looped(functools.partial(_scipy_one, "Radau"))(cell, tight)
            other = float(next(runner(cell))[0][0])
        else:
            name = "multiprecision Radau IIA, 5 stages, 40 digits"
            other = _multiprecision(cell)
        rows.append(
            {
                "memory": float(cell.memory[0]),
                "seed": int(cell.seed[0]),
                "solver": name,
                "time": other if np.isfinite(other) else None,
                "reference": float(times[i]),
                "disagreement": abs(other / float(times[i]) - 1) if np.isfinite(other) else None,
            }
        )
    return rows


def _multiprecision(cell: Cells) -> float:
    sys.path.insert(0, str(HERE.parent / "tests" / "reference"))
    import multiprecision as mp  # pyright: ignore[reportMissingImports]

    mp.set_digits(40)
    numbers = lambda values: [mp.real(float(x)) for x in values]
    problem = mp.Problem(
        numbers(AMPLITUDES),
        numbers(RATES),
        mp.real(float(cell.memory[0])),
        mp.real(SIGMA),
        mp.real(HEIGHT),
    )
    # The model starts on the plateau: its own loss is the height that the drop is relative to.
    leave = mp.Exit("RelativeLossDrop", mp.real(cell.delta))
    outcome = mp.integrate(problem, numbers(cell.start[0]), leave, stages=5, rtol=1e-8)
    return float(outcome.time) if outcome.result == "exited" else np.nan


# --- Measuring and reporting ---------------------------------------------------------------


def row_of(name: str, cells: Cells, settings: Settings, reference: np.ndarray) -> dict[str, Any]:
    """A row of the result, also where a method is missing or breaks down."""
    row: dict[str, Any] = {
        "grid": cells.grid,
        "width": cells.width,
        "method": name,
        "title": METHODS[name].title,
        "runs": len(cells),
    }
    if any(_version(package) is None for package in METHODS[name].needs):
        return row | {"status": "not installed"}
    try:
        return row | {"status": "measured"} | measure(name, cells, settings, reference)
    except Exception as error:
        # One method's crash is its result, and no reason to lose those of the others.
        return row | {"status": f"crashed: {type(error).__name__}"}


def measure(name: str, cells: Cells, settings: Settings, reference: np.ndarray) -> dict[str, Any]:
    """What a method needs for the cells of one width, and how good its answers are."""
    method = METHODS[name]
    if method.looped:
        cells = cells.take(slice(settings.loop_runs))
    if method.call is not None:
        begin = time.perf_counter()
        method.call(cells, settings)
        cold = time.perf_counter() - begin
        begin, cpu = time.perf_counter(), time.process_time()
        times, outcomes = method.call(cells, settings)
        warm, cpu = time.perf_counter() - begin, time.process_time() - cpu
    else:
        assert method.prepare is not None
        begin = time.perf_counter()
        run = method.prepare(cells, settings)
        compiling = time.perf_counter() - begin
        begin, cpu = time.perf_counter(), time.process_time()
        times, outcomes = np.zeros(0), []
        for piece in run(cells):
            times, outcomes = np.concatenate([times, piece[0]]), outcomes + piece[1]
            if time.perf_counter() - begin > settings.budget:
                break
        warm, cpu = time.perf_counter() - begin, time.process_time() - cpu
        cold = compiling + warm
    return _summary(cells, times, outcomes, reference) | {
        "cold_seconds": cold,
        "warm_seconds": warm,
        "cpu_seconds": cpu,
        "ms_per_finished_run": _ratio(1e3 * warm, np.sum(np.isfinite(times))),
    }


def _summary(
    cells: Cells, times: np.ndarray, outcomes: list[str], reference: np.ndarray
) -> dict[str, Any]:
    reached = len(times)
    outcomes = outcomes + ["not_reached"] * (len(cells) - reached)
    finished = np.isfinite(times)
    both = min(reached, len(reference))
    deviation = np.abs(times[:both] / reference[:both] - 1)
    deviation = deviation[np.isfinite(deviation)]
    memories = cells.memory[:reached][finished]
    failed = cells.memory[:reached][~finished]
    return {
        "runs_measured": reached,
        "runs_asked": len(cells),
        "runs_finished": int(np.sum(finished)),
        "share_finished": _ratio(np.sum(finished), len(cells)),
        "outcomes": dict(Counter(outcomes)),
        "longest_memory_finished": float(np.max(memories)) if memories.size else None,
        "shortest_memory_unfinished": float(np.min(failed)) if failed.size else None,
        "runs_compared": int(deviation.size),
        "median_deviation": float(np.median(deviation)) if deviation.size else None,
        "max_deviation": float(np.max(deviation)) if deviation.size else None,
    }


def _ratio(first: Any, second: Any) -> float | None:
    return float(first) / float(second) if second else None


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """Time per finished run over that of the two memjax rows of the same grid and width."""
    for row in rows:
        for base in ("memjax", "memjax-map"):
            same = [
                other["ms_per_finished_run"]
                for other in rows
                if (other["grid"], other["width"]) == (row["grid"], row["width"])
                and other["method"] == base
                and other.get("ms_per_finished_run")
            ]
            own = row.get("ms_per_finished_run")
            row[f"time_over_{base}"] = own / same[0] if own and same else None


def table(result: dict[str, Any]) -> str:
    """The rows as a Markdown table."""
    head = (
        "grid", "m", "method", "runs", "finished", "cold s", "warm s", "ms/run",
        "x memjax", "x memjax-map", "deviation: median", "max", "1/omega: reached", "lost from",
    )  # fmt: skip
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for row in result["rows"]:
        start = [row["grid"], str(row["width"]), row["title"]]
        if row["status"] != "measured":
            cells = [*start, row["status"], *[""] * (len(head) - 4)]
        else:
            cells = [
                *start,
                str(row["runs_measured"]),
                f"{100 * row['share_finished']:.0f} %",
                *(_number(row[key], ".3g") for key in (
                    "cold_seconds", "warm_seconds", "ms_per_finished_run", "time_over_memjax",
                    "time_over_memjax-map",
                )),
                *(_number(row[key], ".1e") for key in ("median_deviation", "max_deviation")),
                *(_number(row[key], ".3g") for key in (
                    "longest_memory_finished", "shortest_memory_unfinished",
                )),
            ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    checks = []
    for what in result["references"]:
        off = [row["disagreement"] for row in what["validation"] if row["disagreement"] is not None]
        if off:
            checks.append(
                f"Reference, {what['grid']} grid, m = {what['width']}: within {max(off):.1e} of "
                f"{what['validation'][0]['solver']} on {len(off)} runs."
            )
    return "\n".join([*lines, "", *checks])


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def machine() -> dict[str, Any]:
    model = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [x.split(":", 1)[1] for x in info.read_text().splitlines() if "model name" in x]
        model = names[0].strip() if names else model
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "jax_backend": jax.default_backend(),
    }


def versions() -> dict[str, str | None]:
    packages = (
        "memjax", "jax", "jaxlib", "equinox", "diffrax", "optimistix", "lineax", "numpy",
        "scipy", "scikit-sundae",
    )  # fmt: skip
    return {"python": platform.python_version()} | {name: _version(name) for name in packages}


def write_result(out: Path, benchmark: str, **content: Any) -> None:
    """What was measured, with the date, the machine and the versions."""
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    result = {"benchmark": benchmark, "date": date, "machine": machine(), "versions": versions()}
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result | content, indent=1) + "\n")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", choices=(*GRIDS, "all"), default="all")
    parser.add_argument("--methods", nargs="+", choices=tuple(METHODS), default=list(METHODS))
    parser.add_argument("--widths", nargs="+", type=int, help="instead of the grid's own")
    parser.add_argument("--memories", type=int, help="so many of the grid's memories")
    parser.add_argument("--seeds", type=int, help="so many of the grid's seeds")
    parser.add_argument("--rtol", type=float, default=1e-4, help="of the general solvers")
    parser.add_argument("--atol", type=float, default=1e-6, help="of the general solvers")
    parser.add_argument("--loop-runs", type=int, default=32, help="runs for methods that loop")
    parser.add_argument("--budget", type=float, default=20.0, help="seconds for each row")
    parser.add_argument("--run-budget", type=float, default=5.0, help="seconds for one run")
    parser.add_argument("--lanes", type=int, default=64, help="runs in one vmapped call")
    parser.add_argument("--max-steps", type=int, default=4096, help="of Diffrax, as of memjax")
    parser.add_argument("--validate", type=int, default=4, help="runs to check the reference on")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "plateau_sweep.json")
    parser.add_argument("--table", type=Path, help="only print the table of this result")
    options = parser.parse_args(arguments)
    if options.table is not None:
        print(table(json.loads(options.table.read_text())))
        return

    names = [field.name for field in dataclasses.fields(Settings)]
    settings = Settings(**{name: getattr(options, name) for name in names})
    rows, references = [], []
    begin = time.perf_counter()
    for grid in GRIDS if options.grid == "all" else (options.grid,):
        for width in options.widths or GRIDS[grid]["widths"]:
            cells = make_cells(grid, width, options.memories, options.seeds)
            # Methods start with the same runs in the same order: all are compared on these.
            compared = cells.take(slice(settings.loop_runs))
            reference = reference_times(compared)
            references.append(
                {
                    "grid": grid,
                    "width": width,
                    "solver": "memjax, rtol=1e-9",
                    "runs": len(compared),
                    "runs_finished": int(np.sum(np.isfinite(reference))),
                    "validation": validate(compared, reference, options.validate),
                }
            )
            for name in options.methods:
                rows.append(row_of(name, cells, settings, reference))
                spent = time.perf_counter() - begin
                print(f"{spent:6.0f} s  {grid}, m = {width}: {name}", file=sys.stderr, flush=True)
    add_ratios(rows)
    result = {
        "benchmark": "plateau_sweep",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "settings": dataclasses.asdict(settings)
        | {"memjax_rtol": 1e-6, "exit": "relative loss drop", "start": "on the plateau"}
        | {"memories": options.memories, "seeds": options.seeds},
        "grids": {
            name: {
                "memories": [float(x) for x in what["memories"]],
                "seeds": list(what["seeds"]),
                "widths": list(what["widths"]),
                "delta": what["delta"],
            }
            for name, what in GRIDS.items()
        },
        "total_seconds": time.perf_counter() - begin,
        "references": references,
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
