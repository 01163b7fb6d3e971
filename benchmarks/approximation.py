"""Best exponential sums beside rational approximation and plain nonlinear least squares.

Run `python benchmarks/approximation.py` (`--quick` for one width): the relative L2 error and the
time of `memjax.best_exponential_sum`, of `scipy.interpolate.AAA` on the Laplace transform of the
kernel, and of `scipy.optimize.least_squares` from random starts. All errors are by one quadrature
in NumPy, which shares nothing with any of them, of kernels evaluated by NumPy and SciPy. It writes
`benchmarks/results/approximation.json`.
"""

import argparse
import datetime
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import mpmath
import numpy as np
import scipy.interpolate
import scipy.optimize
import scipy.special

import memjax as mj
from plateau_sweep import machine, versions

HERE = Path(__file__).resolve().parent

jax.config.update("jax_enable_x64", True)

RATES = np.geomspace(0.01, 100, 24)
Function = Callable[[np.ndarray], np.ndarray]


class Case(NamedTuple):
    """A kernel, as memjax has it and as a function of its own, and its Laplace transform."""

    kernel: mj.AbstractKernel
    value: Function
    transform: Function


def _by_quadrature(value: Function, end: float) -> Function:
    """The Laplace transform of a kernel that is negligible from `end` on."""
    times, weights = gauss(np.linspace(0, end, 401), 20)
    return lambda s: np.exp(-np.multiply.outer(s, times)) @ (weights * value(times))


def gauss(edges: np.ndarray, points: int) -> tuple[np.ndarray, np.ndarray]:
    x, w = np.polynomial.legendre.leggauss(points)
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (1 + x)).ravel(), (half * w).ravel()


def _power_law_transform(s: np.ndarray) -> np.ndarray:
    return np.array([complex(mpmath.exp(x) * mpmath.expint(1.5, x)) for x in map(complex, s)])


def cases() -> dict[str, Case]:
    # Beyond it underflows, which SciPy calls NaN.
    airy = lambda t: scipy.special.airy(np.minimum(t, 90) - 6)[0]
    bump = lambda t: np.exp(-((t - 10) ** 2) / 2)
    return {
        "exp-sum": Case(
            mj.ExponentialSum(np.full(24, 1 / 24), RATES),
            lambda t: np.exp(-np.multiply.outer(t, RATES)) @ np.full(24, 1 / 24),
            lambda s: np.sum(1 / (s[:, None] + RATES), axis=1) / 24,
        ),
        "airy": Case(mj.Airy(), airy, _by_quadrature(airy, 30.0)),
        "bump": Case(mj.GaussianBump(0.1), bump, _by_quadrature(bump, 30.0)),
        "power-law": Case(mj.PowerLaw(0.5), lambda t: (1 + t) ** -1.5, _power_law_transform),
    }


class Terms(NamedTuple):
    """The real part of a sum of complex exponentials."""

    amplitudes: np.ndarray
    exponents: np.ndarray

    def __call__(self, t: np.ndarray) -> np.ndarray:
        return np.real(np.exp(np.multiply.outer(t, self.exponents)) @ self.amplitudes)


# Fine panels where kernels oscillate, geometric ones for all scales.
EDGES = np.unique(np.concatenate([[0.0], np.geomspace(1e-8, 1e14, 400), np.linspace(0, 60, 601)]))
TIMES, WEIGHTS = gauss(EDGES, 16)


def error(case: Case, terms: Terms) -> float | None:
    """The relative L2 error; `None` if the model is not stable, for it is infinite then."""
    if np.any(terms.exponents.real >= 0):
        return None
    exact = case.value(TIMES)
    return float(np.sqrt(WEIGHTS @ (exact - terms(TIMES)) ** 2) / np.sqrt(WEIGHTS @ exact**2))


def memjax(case: Case, m: int, complex: bool) -> tuple[Terms, dict[str, Any]]:
    found = mj.best_exponential_sum(case.kernel, m, complex=complex)
    model = found.model
    if isinstance(model, mj.ComplexDiagonalRNN):
        amplitudes = np.asarray(model.cosine) - 1j * np.asarray(model.sine)
        exponents = -np.asarray(model.rates) + 1j * np.asarray(model.frequencies)
    else:
        amplitudes, exponents = np.asarray(model.amplitudes), -np.asarray(model.rates)
    return Terms(amplitudes, exponents), {
        "own_error": float(found.relative_error),
        "lower_bound": float(found.lower_bound * found.relative_error / found.error),
        "confluent": bool(found.confluent),
        "resolved": bool(found.resolved),
    }


def transforms(case: Case) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The data of AAA: the transform at 400 positive numbers, or at 200 pairs of frequencies."""
    s = np.geomspace(1e-6, 1e4, 400)
    pairs = np.concatenate([1j * s[::2], -1j * s[::2]])
    return {"real": (s, case.transform(s).real), "imaginary": (pairs, case.transform(pairs))}


def aaa(
    case: Case, m: int, data: tuple[np.ndarray, np.ndarray], refit: bool
) -> tuple[Terms, dict[str, Any]]:
    """The poles and residues of a rational function near the transform; `refit` keeps the stable
    poles, and gives them the amplitudes of least squares in time."""
    with warnings.catch_warnings():
        # That so few terms do not reach rounding is the point.
        warnings.filterwarnings("ignore", "AAA failed to converge")
        fit = scipy.interpolate.AAA(*data, max_terms=m + 1)
    poles, residues = fit.poles(), fit.residues()
    stable = poles.real < 0
    said = {
        "unstable": int(np.sum(~stable)),
        "complex": int(np.sum(np.abs(poles.imag) > 1e-9 * np.abs(poles))),
    }
    if refit:
        poles = poles[stable]
        times, root = nodes()
        waves = np.exp(np.multiply.outer(times, poles))
        columns = np.concatenate([waves.real, -waves.imag], axis=1) * root[:, None]
        sizes = np.maximum(np.linalg.norm(columns, axis=0), 1e-300)
        found = np.linalg.lstsq(columns / sizes, root * case.value(times), rcond=None)[0] / sizes
        residues = found[: poles.size] + 1j * found[poles.size :]
    return Terms(residues, poles), said


def nodes() -> tuple[np.ndarray, np.ndarray]:
    """Times with the roots of their weights, for least squares."""
    edges = np.unique(np.concatenate([np.geomspace(1e-4, 1e8, 49), np.linspace(0, 40, 41)]))
    times, weights = gauss(edges, 8)
    return times, np.sqrt(weights)


def least_squares(case: Case, m: int, starts: int) -> tuple[Terms, dict[str, Any]]:
    """The best of random starts in all amplitudes and logarithms of rates."""
    times, root = nodes()
    goal = root * case.value(times)
    rng = np.random.default_rng(0)

    def residual(x: np.ndarray) -> np.ndarray:
        return (np.exp(-np.multiply.outer(times, np.exp(x[:m]))) @ x[m:]) * root - goal

    def jacobian(x: np.ndarray) -> np.ndarray:
        rates = np.exp(x[:m])
        decays = np.exp(-np.multiply.outer(times, rates)) * root[:, None]
        return np.concatenate([-times[:, None] * rates * x[m:] * decays, decays], axis=1)

    low, high = (np.repeat([side, np.inf * side], m) for side in (-25.0, 25.0))
    found = [
        scipy.optimize.least_squares(
            residual,
            np.concatenate([rng.uniform(np.log(1e-2), np.log(10), m), rng.normal(size=m)]),
            jacobian,
            bounds=(low, high),
            x_scale="jac",
            max_nfev=300,
        )
        for _ in range(starts)
    ]
    costs = sorted(one.cost for one in found)
    best = min(found, key=lambda one: one.cost)
    # Of all starts, those that end near the best one.
    return Terms(best.x[m:], -np.exp(best.x[:m])), {
        "starts": starts,
        "near_best": int(np.sum(np.sqrt(costs) < 1.1 * np.sqrt(costs[0]))),
    }


def neurons(terms: Terms) -> int:
    """The number of real neurons: a pole without its conjugate takes two, as the pair does."""
    poles = terms.exponents
    paired = [np.min(np.abs(np.conj(pole) - poles)) <= 1e-6 * abs(pole) for pole in poles]
    return int(poles.size + np.sum(np.logical_not(paired)))


METHODS = (
    "memjax-complex",
    "memjax-real",
    "aaa-real-axis",
    "aaa-imaginary-axis",
    "aaa-real-axis-refit",
    "aaa-imaginary-axis-refit",
    "least-squares",
)


def measure(case: Case, data: Any, method: str, m: int, starts: int) -> dict[str, Any]:
    def call() -> tuple[Terms, dict[str, Any]]:
        if method.startswith("memjax"):
            return memjax(case, m, method == "memjax-complex")
        if method == "least-squares":
            return least_squares(case, m, starts)
        axis = "real" if "real" in method else "imaginary"
        return aaa(case, m, data[axis], method.endswith("refit"))

    seconds = []
    # The first call of a method that compiles something takes longer.
    for _ in range(1 if method == "least-squares" else 2):
        begin = time.perf_counter()
        terms, said = call()
        seconds.append(time.perf_counter() - begin)
    largest = float(np.max(np.abs(terms.amplitudes), initial=0.0))
    return {
        "error": error(case, terms),
        "seconds": seconds[-1],
        "first_seconds": seconds[0],
        "neurons": neurons(terms),
        "largest_amplitude": largest,
        **said,
    }


def remarks(row: dict[str, Any]) -> str:
    found = []
    if row.get("unstable"):
        found.append(f"{row['unstable']} unstable poles")
    if row.get("complex"):
        found.append(f"{row['complex']} complex poles")
    if row["neurons"] != row["m"]:
        found.append(f"{row['neurons']} neurons")
    if row.get("confluent"):
        found.append("confluent")
    if row.get("resolved") is False:
        found.append("down to rounding")
    if "near_best" in row:
        found.append(f"{row['near_best']} of {row['starts']} starts near the best")
    if row["largest_amplitude"] > 1e4:
        found.append(f"amplitudes to {row['largest_amplitude']:.0e}")
    return ", ".join(found)


def table(result: dict[str, Any]) -> str:
    lines = ["| kernel | m | method | relative L2 error | s | remarks |", "|" + " --- |" * 6]
    for row in result["rows"]:
        size = "infinite" if row["error"] is None else f"{row['error']:.2e}"
        lines.append(
            f"| {row['kernel']} | {row['m']} | {row['method']} | {size} | {row['seconds']:.2g} "
            f"| {remarks(row)} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernels", nargs="+", choices=tuple(cases()), default=list(cases()))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--widths", nargs="+", type=int, default=[4, 8, 16])
    parser.add_argument("--starts", type=int, default=10, help="of plain least squares")
    parser.add_argument("--quick", action="store_true", help="m = 4 alone, from two starts")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "approximation.json")
    parser.add_argument("--table", type=Path, help="only print a saved result")
    options = parser.parse_args(arguments)
    if options.table is not None:
        print(table(json.loads(options.table.read_text())))
        return
    if options.quick:
        options.widths, options.starts = [4], 2
    # Other work on the machine lengthens every row.
    load = os.getloadavg()[0]
    rows = []
    for name in options.kernels:
        case = cases()[name]
        data = transforms(case)
        for m in options.widths:
            for method in options.methods:
                row = measure(case, data, method, m, options.starts)
                rows.append({"kernel": name, "m": m, "method": method, **row})
                print(f"{name}, m = {m}: {method}", file=sys.stderr, flush=True)
    result = {
        "benchmark": "approximation",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "settings": {
            "norm": "L2",
            "starts": options.starts,
            "samples_of_the_transform": 400,
            "load_at_start": load,
        },
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
