"""The solvers that memjax is compared with, at their best.

The gradient flow of the white-noise loss of a diagonal linear RNN, with the target's exponentials
and a Gaussian bump, in closed form: compiled by Numba for the solvers that call back, and written
in DiffSL for diffsol, which compiles and differentiates it. Each peer runs the cells one by one on
one core, and locates the exit by its own event mechanism.
"""

import ctypes
import dataclasses
import functools
import importlib.util
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numba
import numpy as np
from numba import carray  # pyright: ignore[reportPrivateImportUsage]

# No bound on training time: a run ends at the exit, or where its solver fails.
FOREVER = 1e300
# The solvers' own estimates of the first step start from the length of the interval, and fail.
FIRST_STEP = 1e-3
MAX_STEPS = 100_000
# Attempts after which solvers without a bound on their steps are stopped.
MAX_EVALUATIONS = 50_000


# --- The equations -------------------------------------------------------------------------
#
# A run is a start and a vector of parameters, so that a solver set up once serves all runs of a
# width: the constants below are positions in it, and the target's amplitudes and rates and the
# start follow.

MEMORY, SIGMA, HEIGHT, TAIL, CONSTANT, LEVEL, DELTA, EXIT, FREE, WIDTH, MODES = range(11)
HEAD = 11
DROP, DISTANCE = 0.0, 1.0
DIRECT, EXPONENTIAL = 0.0, 1.0


@dataclasses.dataclass(frozen=True)
class Run:
    """A gradient flow from `start = (a, w)` (or `(a, log w)`) to its exit."""

    start: np.ndarray
    parameters: np.ndarray


def make_run(
    memory: float,
    start: np.ndarray,
    delta: float,
    *,
    level: float | None = None,
    amplitudes: Sequence[float] = (1.0,),
    rates: Sequence[float] = (1.0,),
    sigma: float = 0.5,
    height: float = 1.0,
    exit: float = DROP,
    free: float = DIRECT,
) -> Run:
    """The run that ends when the loss has dropped below `(1 - delta) level` (by default the loss
    at the start), or the weights have moved by `delta`. `start` holds free weights."""
    start = np.ascontiguousarray(start, dtype=float)
    head = np.zeros(HEAD)
    head[[MEMORY, SIGMA, HEIGHT, DELTA, EXIT, FREE]] = memory, sigma, height, delta, exit, free
    head[TAIL] = height * sigma**2 * math.exp(-(memory**2) / (2 * sigma**2))
    head[WIDTH], head[MODES] = len(start) // 2, len(rates)
    target = np.asarray(amplitudes, dtype=float), np.asarray(rates, dtype=float)
    parameters = np.concatenate([head, *target, start])
    norm = height**2 * sigma * math.sqrt(math.pi) / 2 * math.erfc(-memory / sigma)
    cross = sum(a * bump(w, parameters)[0] for a, w in zip(*target, strict=True))
    square = target[0] @ (1 / (target[1][:, None] + target[1])) @ target[0]
    parameters[CONSTANT] = square + 2 * cross + norm
    parameters[LEVEL] = loss(start, parameters) if level is None else level
    return Run(start, parameters)


# Sums may be reordered, which is what lets them be vectorised.
_compiled = functools.partial(numba.njit, fastmath={"reassoc", "contract"}, error_model="numpy")


@_compiled
def scaled_erfc(x: float) -> float:
    """`exp(x^2) erfc(x)` for `x >= 0`."""
    if x < 8.0:
        return math.exp(x * x) * math.erfc(x)
    # Laplace's continued fraction, to the last bit from x = 8 with 16 terms.
    fraction = x
    for k in range(16, 0, -1):
        fraction = x + 0.5 * k / fraction
    return 1 / (math.sqrt(math.pi) * fraction)


@_compiled
def bump(s: float, p: np.ndarray) -> tuple[float, float, float]:
    """The bump's Laplace transform with its first two derivatives."""
    memory, sigma = p[MEMORY], p[SIGMA]
    slope = s * sigma**2 - memory
    x = slope / (sigma * math.sqrt(2.0))
    factor = p[HEIGHT] * sigma * math.sqrt(math.pi / 2)
    if x > 0:
        value = factor * math.exp(-(memory**2) / (2 * sigma**2)) * scaled_erfc(x)
    else:
        tail = 2.0 if x < -6 else math.erfc(x)
        value = factor * tail * math.exp(s * (s * sigma**2 / 2 - memory))
    first = slope * value - p[TAIL]
    return value, first, sigma**2 * value + slope * first


@_compiled
def rates_of(y: np.ndarray, p: np.ndarray) -> np.ndarray:
    m = int(p[WIDTH])
    w = y[m:].copy()
    if p[FREE] == EXPONENTIAL:
        for k in range(m):
            w[k] = math.exp(w[k])
    return w


@_compiled
def loss(y: np.ndarray, p: np.ndarray) -> float:
    m, modes = int(p[WIDTH]), int(p[MODES])
    a, w = y[:m], rates_of(y, p)
    total = 0.0
    for k in range(m):
        inner = 0.0
        for j in range(m):
            inner += a[j] / (w[k] + w[j])
        for j in range(modes):
            inner -= 2 * p[HEAD + j] / (w[k] + p[HEAD + modes + j])
        total += a[k] * (inner - 2 * bump(w[k], p)[0])
    return total + p[CONSTANT]


@_compiled
def velocity(y: np.ndarray, p: np.ndarray, out: np.ndarray) -> None:
    """Minus the gradient of the loss."""
    m, modes = int(p[WIDTH]), int(p[MODES])
    a, w = y[:m], rates_of(y, p)
    for k in range(m):
        first = second = 0.0
        for j in range(m):
            c = 1 / (w[k] + w[j])
            first += a[j] * c
            second += a[j] * c * c
        for j in range(modes):
            c = 1 / (w[k] + p[HEAD + modes + j])
            first -= p[HEAD + j] * c
            second -= p[HEAD + j] * c * c
        value, slope, _ = bump(w[k], p)
        out[k] = -2 * (first - value)
        out[m + k] = 2 * a[k] * (second + slope)
        if p[FREE] == EXPONENTIAL:
            out[m + k] *= w[k]


@_compiled
def jacobian(y: np.ndarray, p: np.ndarray, out: np.ndarray) -> None:
    """Minus the Hessian of the loss."""
    m, modes = int(p[WIDTH]), int(p[MODES])
    a, w = y[:m], rates_of(y, p)
    for k in range(m):
        second = third = 0.0
        for j in range(m):
            c = 1 / (w[k] + w[j])
            square = c * c
            second += a[j] * square
            third += a[j] * square * c
            out[k, j] = -2 * c
            out[k, m + j] = 2 * a[j] * square
            out[m + k, j] = 2 * a[k] * square
            out[m + k, m + j] = -4 * a[k] * a[j] * square * c
        for j in range(modes):
            c = 1 / (w[k] + p[HEAD + modes + j])
            second -= p[HEAD + j] * c * c
            third -= p[HEAD + j] * c * c * c
        _, slope, curvature = bump(w[k], p)
        out[k, m + k] += 2 * (second + slope)
        out[m + k, k] += 2 * (second + slope)
        out[m + k, m + k] -= 2 * a[k] * (2 * third - curvature)
    if p[FREE] == EXPONENTIAL:
        force = np.empty(2 * m)
        velocity(y, p, force)
        for k in range(m):
            for j in range(2 * m):
                out[m + k, j] *= w[k]
                out[j, m + k] *= w[k]
            out[m + k, m + k] += force[m + k]


@_compiled
def margin(y: np.ndarray, p: np.ndarray) -> float:
    """Positive before the exit and not after it."""
    if p[EXIT] == DROP:
        return loss(y, p) / p[LEVEL] - (1 - p[DELTA])
    start = HEAD + 2 * int(p[MODES])
    total = 0.0
    for k in range(len(y)):
        total += (y[k] - p[start + k]) ** 2
    return 1 - math.sqrt(total) / p[DELTA]


# --- Peers ---------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Exit times of the runs (NaN for none), how each ended, and what the solver counted."""

    times: np.ndarray
    statuses: list[str]
    counts: dict[str, float]


class Prepared(Protocol):
    """A solver that is compiled and set up for runs of one width."""

    def __call__(self, runs: Sequence[Run], rtol: float, atol: float) -> Outcome: ...


@dataclasses.dataclass(frozen=True)
class Peer:
    """A solver to compare with.

    `prepare` compiles it for a run of the width to come; a missing package is an ImportError.
    """

    name: str
    title: str
    prepare: Callable[[Run], Prepared]


def _gather(one: Callable[[Run], tuple[float, str, dict[str, int]]], runs: Sequence[Run]):
    times, statuses, counts = np.full(len(runs), np.nan), [], {}
    for index, run in enumerate(runs):
        times[index], status, counted = one(run)
        statuses.append(status)
        for key, value in counted.items():
            counts[key] = counts.get(key, 0) + value / len(runs)
    return Outcome(times, statuses, counts)


# CVODE's own library, which scikit-sundae brings, called without Python in between.

_POINTER, _REAL, _INT, _LONG = ctypes.c_void_p, ctypes.c_double, ctypes.c_int, ctypes.c_long
_REALS = ctypes.POINTER(ctypes.c_double)
_BDF, _NORMAL, _ROOT_RETURN = 2, 1, 2
# States from which LAPACK's factorisation beats SUNDIALS' own: slower at 32, 1.6 times faster in
# all at 128.
LAPACK_FROM = 64
_COUNTERS = {
    "steps": "CVodeGetNumSteps",
    "evaluations": "CVodeGetNumRhsEvals",
    "jacobians": "CVodeGetNumJacEvals",
    "newton_iterations": "CVodeGetNumNonlinSolvIters",
    "factorisations": "CVodeGetNumLinSolvSetups",
    "error_test_failures": "CVodeGetNumErrTestFails",
    "events_evaluations": "CVodeGetNumGEvals",
}


@functools.cache
def _sundials() -> dict[str, Any]:
    spec = importlib.util.find_spec("sksundae")
    if spec is None or spec.origin is None:
        raise ImportError("scikit-sundae is not installed")
    # Importing it loads the libraries that those below depend on.
    import sksundae.cvode  # noqa: F401  # pyright: ignore[reportMissingImports]

    folder = Path(spec.origin).parent.parent / "scikit_sundae.libs"
    functions: dict[str, Any] = {}
    for name in (
        "core", "cvode", "nvecserial", "sunmatrixdense", "sunlinsoldense", "sunlinsollapackdense"
    ):  # fmt: skip
        found = sorted(folder.glob(f"libsundials_{name}-*"))
        if not found:
            raise ImportError("this build of scikit-sundae does not bring SUNDIALS' libraries")
        functions[name] = ctypes.CDLL(str(found[0]))
    return functions


def _function(library: str, name: str, *arguments: Any, result: Any = _INT) -> Any:
    function = getattr(_sundials()[library], name)
    function.argtypes, function.restype = arguments, result
    return function


@functools.cache
def _callbacks() -> tuple[Any, Any, Any]:
    """Right-hand side, Jacobian and event as C functions."""
    array_of = _function("core", "N_VGetArrayPointer", _POINTER, result=_REALS)
    matrix_of = _function("sunmatrixdense", "SUNDenseMatrix_Data", _POINTER, result=_REALS)
    real, integer, pointer = numba.types.float64, numba.types.intc, numba.types.voidptr

    @numba.njit
    def unpack(vector, data):
        head = carray(data, (HEAD,), np.float64)
        m, modes = int(head[WIDTH]), int(head[MODES])
        y = carray(array_of(vector), (2 * m,))
        return y, carray(data, (HEAD + 2 * modes + 2 * m,), np.float64)

    @numba.cfunc(integer(real, pointer, pointer, pointer))
    def right_hand_side(t, y, out, data):
        y, p = unpack(y, data)
        velocity(y, p, carray(array_of(out), y.shape))
        return 0

    @numba.cfunc(integer(*[real], *[pointer] * 7))
    def jacobian_matrix(t, y, f, out, data, x, y1, z):
        y, p = unpack(y, data)
        # Columns first, as SUNDIALS has it, is the same for a symmetric matrix.
        jacobian(y, p, carray(matrix_of(out), (len(y), len(y))))
        return 0

    @numba.cfunc(integer(real, pointer, pointer, pointer))
    def event(t, y, out, data):
        y, p = unpack(y, data)
        carray(out, (1,), np.float64)[0] = margin(y, p)
        return 0

    return right_hand_side, jacobian_matrix, event


def _prepare_cvode(example: Run) -> Prepared:
    size, buffer = len(example.start), example.parameters.copy()
    callbacks = _callbacks()
    context = _POINTER()
    _function("core", "SUNContext_Create", _INT, _POINTER)(0, ctypes.byref(context))
    _function("core", "SUNContext_ClearErrHandlers", _POINTER)(context)
    new = _function("nvecserial", "N_VNew_Serial", _INT, _POINTER, result=_POINTER)
    state = new(size, context)
    data = _function("core", "N_VGetArrayPointer", _POINTER, result=_REALS)(state)
    y = np.ctypeslib.as_array(data, (size,))
    y[:] = example.start
    memory = _function("cvode", "CVodeCreate", _INT, _POINTER, result=_POINTER)(_BDF, context)

    def call(name: str, *arguments: tuple[Any, Any]) -> None:
        flag = _function("cvode", name, _POINTER, *(kind for kind, _ in arguments))(
            memory, *(value for _, value in arguments)
        )
        if flag < 0:
            raise RuntimeError(f"{name} failed with {flag}")

    address = [(_POINTER, ctypes.c_void_p(callback.address)) for callback in callbacks]
    call("CVodeInit", address[0], (_REAL, 0.0), (_POINTER, state))
    call("CVodeSetUserData", (_POINTER, buffer.ctypes.data))
    call("CVodeSStolerances", (_REAL, 1e-4), (_REAL, 1e-6))
    make = _function("sunmatrixdense", "SUNDenseMatrix", _INT, _INT, _POINTER, result=_POINTER)
    matrix = make(size, size, context)
    library = ("sunlinsollapackdense", "SUNLinSol_LapackDense")
    if size < LAPACK_FROM:
        library = ("sunlinsoldense", "SUNLinSol_Dense")
    linear_solver = _function(*library, _POINTER, _POINTER, _POINTER, result=_POINTER)
    call(
        "CVodeSetLinearSolver",
        (_POINTER, linear_solver(state, matrix, context)),
        (_POINTER, matrix),
    )
    call("CVodeSetJacFn", address[1])
    call("CVodeRootInit", (_INT, 1), address[2])
    call("CVodeSetRootDirection", (ctypes.POINTER(_INT), (_INT * 1)(-1)))
    call("CVodeSetInitStep", (_REAL, FIRST_STEP))
    call("CVodeSetMaxNumSteps", (_LONG, MAX_STEPS))
    # It would print a warning at every step that is too small to move the time.
    call("CVodeSetMaxHnilWarns", (_INT, -1))
    restart = _function("cvode", "CVodeReInit", _POINTER, _REAL, _POINTER)
    tolerances = _function("cvode", "CVodeSStolerances", _POINTER, _REAL, _REAL)
    advance = _function("cvode", "CVode", _POINTER, _REAL, _POINTER, _POINTER, _INT)
    counters = {
        key: _function("cvode", name, _POINTER, _POINTER) for key, name in _COUNTERS.items()
    }
    reached, count = _REAL(), _LONG()

    def one(run: Run) -> tuple[float, str, dict[str, int]]:
        buffer[:], y[:] = run.parameters, run.start
        restart(memory, 0.0, state)
        flag = advance(memory, FOREVER, state, ctypes.byref(reached), _NORMAL)
        counts = {}
        for key, counter in counters.items():
            counter(memory, ctypes.byref(count))
            counts[key] = count.value
        if flag == _ROOT_RETURN:
            return reached.value, "exited", counts
        return np.nan, "no_exit" if flag >= 0 else "solver_failed", counts

    def run(runs: Sequence[Run], rtol: float, atol: float) -> Outcome:
        tolerances(memory, rtol, atol)
        return _gather(one, runs)

    return run


def _prepare_sundae(example: Run) -> Prepared:
    from sksundae.cvode import CVODE  # pyright: ignore[reportMissingImports]

    buffer = example.parameters.copy()

    # Numba takes a fast path for arrays that it may write to.
    def right_hand_side(t, y, out):
        y.flags.writeable = True
        velocity(y, buffer, out)

    def jacobian_matrix(t, y, f, out):
        y.flags.writeable = True
        jacobian(y, buffer, out)

    def event(t, y, out):
        y.flags.writeable = True
        out[0] = margin(y, buffer)

    event.terminal, event.direction = [True], [-1]  # pyright: ignore[reportFunctionMemberAccess]

    def run(runs: Sequence[Run], rtol: float, atol: float) -> Outcome:
        solver = CVODE(
            right_hand_side,
            method="BDF",
            rtol=rtol,
            atol=atol,
            linsolver="dense" if len(example.start) < LAPACK_FROM else "lapackdense",
            jacfn=jacobian_matrix,
            eventsfn=event,
            num_events=1,
            first_step=FIRST_STEP,
            max_num_steps=MAX_STEPS,
        )

        def one(run: Run) -> tuple[float, str, dict[str, int]]:
            buffer[:] = run.parameters
            solver.init_step(0.0, run.start)
            result = solver.step(FOREVER, "normal", None)
            counts = {"evaluations": result.nfev, "jacobians": result.njev}
            if result.status == _ROOT_RETURN:
                return float(result.t), "exited", counts
            return np.nan, "no_exit" if result.success else "solver_failed", counts

        return _gather(one, runs)

    run([example], 1e-2, 1e-4)
    return run


class _TooManyEvaluations(Exception):
    pass


def _prepare_scipy(method: str, example: Run) -> Prepared:
    from scipy.integrate import solve_ivp

    def run(runs: Sequence[Run], rtol: float, atol: float) -> Outcome:
        return _gather(functools.partial(one, rtol=rtol, atol=atol), runs)

    def one(run: Run, rtol: float, atol: float) -> tuple[float, str, dict[str, int]]:
        p, size, spent = run.parameters, len(run.start), 0

        def right_hand_side(t, y):
            nonlocal spent
            spent += 1
            if spent > MAX_EVALUATIONS:
                raise _TooManyEvaluations
            out = np.empty(size)
            velocity(y, p, out)
            return out

        def jacobian_matrix(t, y):
            out = np.empty((size, size))
            jacobian(y, p, out)
            return out

        event = lambda t, y: margin(y, p)
        event.terminal, event.direction = True, -1  # pyright: ignore[reportFunctionMemberAccess]
        try:
            solution = solve_ivp(
                right_hand_side,
                (0.0, FOREVER),
                run.start,
                method=method,  # pyright: ignore[reportArgumentType]
                jac=jacobian_matrix,
                events=event,
                first_step=FIRST_STEP,
                rtol=rtol,
                atol=atol,
            )
        except _TooManyEvaluations:
            return np.nan, "too_many_steps", {"evaluations": spent}
        except (ValueError, np.linalg.LinAlgError):
            # A step out of the domain (a rate below zero) ends in numbers that are not finite.
            return np.nan, "solver_failed", {"evaluations": spent}
        counts = {
            "steps": len(solution.t) - 1,
            "evaluations": int(solution.nfev),
            "jacobians": int(solution.njev),
        }
        if solution.status == 1:
            return float(solution.t_events[0][0]), "exited", counts
        return np.nan, "no_exit" if solution.status == 0 else "solver_failed", counts

    run([example], 1e-2, 1e-4)
    return run


def diffsl(example: Run) -> str:
    """The flow in DiffSL, with the memory, the level and the start as inputs.

    The language has no error function. In the bump's transform `erfc(x)` is taken as 2, which at
    a rate `w` is exact to `erfc(-x) / 2`, `x = (w sigma^2 - 1/omega) / (sigma sqrt 2)`: at
    sigma = 0.5 to 2e-8 for 1/omega >= 4 and w <= 5, and to rounding for 1/omega >= 8 and w <= 9.
    """
    p = example.parameters
    m, modes, sigma, height = int(p[WIDTH]), int(p[MODES]), p[SIGMA], p[HEIGHT]
    amplitudes, rates = p[HEAD : HEAD + modes], p[HEAD + modes : HEAD + 2 * modes]
    factor = float(height * sigma * math.sqrt(2 * math.pi))
    size, half = 2 * m, float(sigma**2 / 2)
    target = [(float(a), f"q{k}_i") for k, a in enumerate(amplitudes)]
    first = "".join(f" - {a!r} * {q}" for a, q in target)
    second = "".join(f" - {a!r} * {q} * {q}" for a, q in target)
    free = "exp(u_i[{0}:{1}])" if p[FREE] == EXPONENTIAL else "u_i[{0}:{1}]"
    chain = " * w_i" if p[FREE] == EXPONENTIAL else ""
    starts = ", ".join(f"y{k}" for k in range(size))
    lines = [
        "in_i { T = 10.0, level = 1.0, delta = 0.02, constant = 1.0, "
        + ", ".join(f"y{k} = 0.5" for k in range(size))
        + " }",
        f"u_i {{ {starts} }}",
        f"a_i {{ u_i[0:{m}] }}",
        f"w_i {{ {free.format(m, size)} }}",
        "c_ij { 1.0 / (w_i + w_j) }",
        *(f"{q} {{ 1.0 / (w_i + {float(w)!r}) }}" for (_, q), w in zip(target, rates, strict=True)),
        f"R_i {{ {factor!r} * exp(w_i * (w_i * {half!r} - T)) }}",
        "s_i { c_ij * a_j }",
        "h_ij { c_ij * c_ij }",
        "r_i { h_ij * a_j }",
        f"g_i {{ s_i{first} - R_i }}",
        "F_i { -2.0 * g_i, 2.0 * a_i"
        + f" * (r_i{second} + R_i * (w_i * {float(sigma**2)!r} - T)){chain} }}",
    ]
    if p[EXIT] == DROP:
        lines += [
            f"one_ij {{ (0:1, 0:{m}): 1.0 }}",
            f"z_i {{ a_i * (g_i{first} - R_i) }}",
            "l_i { one_ij * z_j }",
            "stop_i { (l_i + constant) / level - 1.0 + delta }",
        ]
    else:
        lines += [
            f"one_ij {{ (0:1, 0:{size}): 1.0 }}",
            f"start_i {{ {starts} }}",
            "z_i { (u_i - start_i) * (u_i - start_i) }",
            "l_i { one_ij * z_j }",
            # Without the root, whose derivative is infinite at the start.
            "stop_i { 1.0 - l_i / (delta * delta) }",
        ]
    return "\n".join(lines)


def _prepare_diffsol(method: str, example: Run, newton_iterations: int | None = None) -> Prepared:
    import pydiffsol  # pyright: ignore[reportMissingImports]

    ode = pydiffsol.Ode(
        diffsl(example),
        matrix_type=pydiffsol.nalgebra_dense,
        ode_solver=getattr(pydiffsol, method),
    )
    if newton_iterations is not None:
        ode.options.max_nonlinear_solver_iterations = newton_iterations

    def one(run: Run) -> tuple[float, str, dict[str, int]]:
        p = run.parameters
        inputs = np.concatenate([p[[MEMORY, LEVEL, DELTA, CONSTANT]], run.start])
        try:
            solution = ode.solve(inputs, FOREVER)
        except Exception:
            return np.nan, "solver_failed", {}
        counts, reached = {"steps": len(solution.ts) - 1}, float(solution.ts[-1])
        return (reached, "exited", counts) if reached < FOREVER / 2 else (np.nan, "no_exit", counts)

    def run(runs: Sequence[Run], rtol: float, atol: float) -> Outcome:
        ode.rtol, ode.atol, ode.h0 = rtol, atol, FIRST_STEP
        return _gather(one, runs)

    return run


PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer("cvode", "SUNDIALS CVODE, compiled callbacks", _prepare_cvode),
        Peer("cvode-sundae", "SUNDIALS CVODE (scikit-sundae), Numba callbacks", _prepare_sundae),
        Peer(
            "lsoda",
            "SciPy LSODA, Numba callbacks",
            functools.partial(_prepare_scipy, "LSODA"),
        ),
        Peer(
            "radau",
            "SciPy Radau, Numba callbacks",
            functools.partial(_prepare_scipy, "Radau"),
        ),
        Peer("diffsol", "diffsol BDF", functools.partial(_prepare_diffsol, "bdf")),
        # It gives up after 50 steps whose Newton iteration does not converge, 10 by default.
        Peer(
            "diffsol-patient",
            "diffsol BDF, 50 Newton iterations",
            functools.partial(_prepare_diffsol, "bdf", newton_iterations=50),
        ),
        Peer("diffsol-tr-bdf2", "diffsol TR-BDF2", functools.partial(_prepare_diffsol, "tr_bdf2")),
        Peer(
            "diffsol-esdirk34",
            "diffsol ESDIRK34",
            functools.partial(_prepare_diffsol, "esdirk34"),
        ),
    )
}


def save_runs(path: Path, runs: Sequence[Run]) -> None:
    starts = np.array([run.start for run in runs])
    np.savez(path, start=starts, parameters=np.array([run.parameters for run in runs]))


def main() -> None:
    """CVODE's loop over saved runs, and when its first and its last result were there."""
    path, rtol = sys.argv[1:]
    saved = np.load(path)
    runs = [Run(*row) for row in zip(saved["start"], saved["parameters"], strict=True)]
    prepared = PEERS["cvode"].prepare(runs[0])
    prepared(runs[:1], float(rtol), float(rtol) / 100)
    first, begin = time.time(), time.perf_counter()
    prepared(runs, float(rtol), float(rtol) / 100)
    spent = time.perf_counter() - begin
    print(json.dumps({"first": first, "done": time.time(), "loop_seconds": spent}))


if __name__ == "__main__":
    main()
