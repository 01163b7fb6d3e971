"""Writes `plateau_references.json`: plateau times by multiprecision integration.

    python tests/reference/make_plateau_references.py

Every case is integrated twice, by different methods at different precisions, and the relative
disagreement is stored with the result. Cases that the file already holds are kept; delete the
file to start anew. Needs mpmath and NumPy; gmpy2, if installed, makes it ten times faster.

Each entry has the start (`a0`, `w0`, exact float64), the target (`A`, `W`, `sigma`, `c0`,
`inverse_omega`), the parametrisation of the rates (`reparam`), the exit (`exit`, `delta`) and

- `result`: `exited`; `converged` to a minimum short of the exit; `saddle`, a stationary point that
    attracts only while equal modes stay equal; `stalled`, no answer within the step budget;
- `time`: of the exit, or, for a stationary point, when Newton's step became negligible, which is
    no property of the flow;
- `loss_start`, `loss_exit` (at the exit or the stationary point), `a_exit`, `w_exit`;
- `digits`, `steps`: of the first integration, Radau IIA of order 13;
- `disagreement`: relative, of the second one, Radau IIA of order 9 with 15 more digits; in the time
    if exited, in the loss if at a stationary point.
"""

from __future__ import annotations

import json
import math
import pathlib
import sys
import time as clock
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

import multiprecision as mp

PATH = pathlib.Path(__file__).with_name("plateau_references.json")
TARGET = {"A": [1.0], "W": [1.0], "sigma": 0.5, "c0": 1.0}
MEMORIES = [8, 12, 16, 20, 24, 28]


def _random_start() -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(2021)
    a0 = rng.normal(size=8) * 0.5
    w0 = np.exp(rng.uniform(math.log(0.3), math.log(3.0), size=8))
    return (np.round(a0 * 2**10) / 2**10).tolist(), (np.round(w0 * 2**10) / 2**10).tolist()


def _beyond_plateau(a0: list[float], w0: list[float], inverse_omega: float) -> float:
    """The relative drop that ends 2 % below the plateau, from a start far above it."""
    mp.set_digits(30)
    problem = _problem({**TARGET, "inverse_omega": inverse_omega, "reparam": "direct"})
    start = [mp.real(x) for x in a0 + w0]
    delta = 1 - 0.98 * float(problem.bump_norm() / problem.loss(start))
    return round(delta * 2**20) / 2**20


def cases() -> Iterator[dict[str, Any]]:
    """The measurements to make, the quick ones first."""
    relative, distance = ("RelativeLossDrop", 0.02), ("ParameterDistance", 0.1)
    small = ("RelativeLossDrop", 0.005)

    def case(name, a0, w0, inverse_omega, leave, reparam="direct"):
        start = {"start": name, "reparam": reparam, "inverse_omega": float(inverse_omega)}
        return {**start, **TARGET, "a0": a0, "w0": w0, "exit": leave[0], "delta": leave[1]}

    pair = [1.0, 0.0], [1.0, 0.6]
    for T in [*MEMORIES, 32, 40, 50, 60]:
        for leave in [relative, distance] + ([small] if T >= 32 else []):
            yield case("on-plateau", *pair, T, leave)
    near = (
        [1.0009765625, 0.00048828125, -0.000244140625, 0.00048828125],
        [1.0009765625, 0.6005859375, 0.8505859375, 1.5],
    )
    for T in MEMORIES:
        for leave in [relative, distance]:
            yield case("near-plateau", *near, T, leave)
    # Where the Cauchy sums of a start off the plateau cancel beyond the digits of a float.
    for T in [40, 50, 60]:
        yield case("near-plateau", *near, T, small)
    for T in [8, 16, 24]:
        for leave in [relative, distance]:
            yield case("on-plateau", *pair, T, leave, reparam="exp")
    for T in [8, 12, 16]:
        yield case("shared", [0.5, 0.5, 0.0], [1.0, 1.0, 0.6], T, relative)
        almost = 0.6000003814697265625
        yield case("nearly-symmetric", [1.0, 0.0, 0.0], [1.0, 0.6, almost], T, relative)
    a0, w0 = _random_start()
    for T in MEMORIES:
        delta = _beyond_plateau(a0, w0, T)
        for leave in [("RelativeLossDrop", delta), distance]:
            yield case("random", a0, w0, T, leave)


def _problem(case: dict[str, Any]) -> mp.Problem:
    return mp.Problem(
        amplitudes=[mp.real(x) for x in case["A"]],
        rates=[mp.real(x) for x in case["W"]],
        inverse_omega=mp.real(case["inverse_omega"]),
        sigma=mp.real(case["sigma"]),
        c0=mp.real(case["c0"]),
        reparam=case["reparam"],
    )


def _run(case: dict[str, Any], stages: int, digits: int) -> tuple[mp.Outcome, dict[str, Any]]:
    mp.set_digits(digits)
    problem = _problem(case)
    start = [mp.real(x) for x in case["a0"]]
    start += problem.free([mp.real(x) for x in case["w0"]])
    reference = problem.bump_norm() if case.get("reference") == "bump" else None
    leave = mp.Exit(case["exit"], mp.real(case["delta"]), reference)
    outcome = mp.integrate(problem, start, leave, stages=stages, rtol=1e-8)
    a, w = problem.modes(outcome.theta)
    return outcome, {
        "result": outcome.result,
        "time": mp.text(outcome.time, 20),
        "loss_start": mp.text(problem.loss(start), 20),
        "loss_exit": mp.text(outcome.loss, 20),
        "a_exit": [float(x) for x in a],
        "w_exit": [float(x) for x in w],
        "digits": digits,
        "steps": outcome.steps,
    }


def measure(case: dict[str, Any], digits: int) -> dict[str, Any]:
    """Integrates `case` twice and returns it with its results."""
    first, results = _run(case, stages=7, digits=digits)
    second, _ = _run(case, stages=5, digits=digits + 15)
    disagreement = None
    if first.result == second.result:
        pair = (first.time, second.time) if first.result == "exited" else (first.loss, second.loss)
        disagreement = float(abs(pair[0] / pair[1] - 1))
    name = f"{case['start']}-{case['reparam']}-m{len(case['a0'])}"
    name += f"-T{case['inverse_omega']:g}-{case['exit']}-{case['delta']:g}"
    return {"name": name, **case, **results, "disagreement": disagreement}


def write(path: pathlib.Path, cases: Iterable[dict[str, Any]], digits: int | None = None) -> None:
    """Adds to the file the measurements of `cases` that it does not hold yet."""
    done = json.loads(path.read_text()) if path.exists() else []
    for case in cases:
        if any(all(entry.get(k) == x for k, x in case.items()) for entry in done):
            continue
        began = clock.perf_counter()
        entry = measure(case, digits or (50 if case["inverse_omega"] <= 28 else 80))
        done.append(entry)
        path.write_text(json.dumps(done, indent=1) + "\n")
        spent = clock.perf_counter() - began
        columns = [entry[k] for k in ("name", "result", "time", "steps", "disagreement")]
        print(*columns, f"{spent:.0f} s", file=sys.stderr, flush=True)


if __name__ == "__main__":
    write(PATH, cases())
