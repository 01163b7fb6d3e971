"""Plateau times against the multiprecision references of the tests, up to 1e24 and beyond.

Run `python benchmarks/long_plateaus.py`; it takes a few minutes, most of them compilation, and
writes `benchmarks/results/long_plateaus.json`. README.md next to this file says how to read it.
"""

import argparse
import dataclasses
import datetime
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import _peers
from plateau_sweep import machine, versions

jax.config.update("jax_enable_x64", True)

HERE = Path(__file__).resolve().parent
REFERENCES = HERE.parent / "tests" / "reference" / "plateau_references.json"
sys.path.append(str(REFERENCES.parent))
import reference_sweep  # noqa: E402

OUTCOMES = ("exited", "converged", "max_time_reached", "max_steps_reached", "unresolved")
PEERS = ("cvode", "lsoda", "radau", "diffsol", "diffsol-patient")
# Plateaus from here on are "long"; the bands end at these times.
BANDS = (1e6, 1e8, 1e12, 1e16, 1e20, np.inf)
# The largest deviations that count as the time, and as roughly the time.
CLOSE, NEAR = 1e-3, 1e-2

Case = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Answer:
    """A method's word on a case: how the run ended, when it exited, and what that took."""

    outcome: str
    time: float
    seconds: float
    extra: dict[str, float]


def memjax_answers(rtol: float) -> dict[str, Answer]:
    """All cases as one sweep, by their names; every case is given the mean time of all."""
    reference_sweep.measured(rtol=rtol)  # the first call compiles
    begin = time.perf_counter()
    dataset = reference_sweep.measured(rtol=rtol)
    seconds = (time.perf_counter() - begin) / dataset["time"].size
    return {
        case["name"]: Answer(
            OUTCOMES[int(cell["result"])],
            float(cell["time"]),
            seconds,
            {
                "loss_deviation": abs(float(cell["loss"]) - float(case["loss_exit"])),
                "rounding_estimate": float(cell["rounding"]),
                "steps": int(cell["num_steps"]),
                "double_double": int(cell["precision"]),
            },
        )
        for case, cell in reference_sweep.cells(dataset)
    }


def peer_answer(name: str, case: Case, rtol: float) -> Answer:
    exponential = case["reparam"] == "exp"
    rates = np.log(case["w0"]) if exponential else np.asarray(case["w0"])
    run = _peers.make_run(
        case["inverse_omega"],
        np.concatenate([case["a0"], rates]),
        case["delta"],
        amplitudes=case["A"],
        rates=case["W"],
        sigma=case["sigma"],
        height=case["c0"],
        exit=_peers.DROP if case["exit"] == "RelativeLossDrop" else _peers.DISTANCE,
        free=_peers.EXPONENTIAL if exponential else _peers.DIRECT,
    )
    prepared = _peers.PEERS[name].prepare(run)
    prepared([run], 1e-2, 1e-4)
    begin = time.perf_counter()
    outcome = prepared([run], rtol, rtol / 100)
    seconds = time.perf_counter() - begin
    return Answer(outcome.statuses[0], outcome.times[0], seconds, outcome.counts)


def verdict(case: Case, outcome: str, deviation: float | None) -> str:
    """`right` (within 0.1 %), `near` (within 1 %), `wrong`, or `gave up` if the method said so.

    A run to the end of time without an exit counts as the verdict that there is none.
    """
    if outcome not in ("exited", "converged", "no_exit", "max_time_reached"):
        return "gave up"
    if case["result"] == "exited":
        if outcome != "exited" or deviation is None or not deviation <= NEAR:
            return "wrong"
        return "right" if deviation <= CLOSE else "near"
    return "wrong" if outcome == "exited" else "right"


def row(name: str, title: str, case: Case, rtol: float, answer: Answer) -> dict[str, Any]:
    expected = float(case["time"])
    exited = answer.outcome == "exited"
    comparable = exited and case["result"] == "exited"
    deviation = abs(answer.time / expected - 1) if comparable else None
    return {
        "method": name,
        "title": title,
        "case": case["name"],
        "start": case["start"],
        "rtol": rtol,
        "reference": expected,
        "reference_result": case["result"],
        "result": answer.outcome,
        "verdict": verdict(case, answer.outcome, deviation),
        "time": answer.time if exited else None,
        "deviation": deviation,
        "seconds": answer.seconds,
    } | answer.extra


def table(results: dict) -> str:
    return starts_table(results) + "\n\n" + methods_table(results)


def starts_table(results: dict) -> str:
    """Memjax by kind of start, at every tolerance."""
    own = [row for row in results["rows"] if row["method"] == "memjax"]
    rtols = results["rtols"]
    lines = [
        "| start | cases | longest time | "
        + " | ".join(f"worst deviation, rtol {rtol:g}" for rtol in rtols)
        + " | median steps |",
        "| --- | --- | --- |" + " --- |" * (len(rtols) + 1),
    ]
    for start in dict.fromkeys(row["start"] for row in own):
        rows = [row for row in own if row["start"] == start]
        cells, default = [], rtols[len(rtols) // 2]
        for rtol in rtols:
            some = [row for row in rows if row["rtol"] == rtol]
            missed = sum(row["result"] != row["reference_result"] for row in some)
            deviations = [row["deviation"] for row in some if row["deviation"] is not None]
            worst = f"{max(deviations):.1e}" if deviations else "-"
            cells.append(worst + (f" ({missed} not resolved)" if missed else ""))
        some = [row for row in rows if row["rtol"] == default]
        longest = max(row["reference"] for row in some if row["reference_result"] == "exited")
        steps = np.median([row["steps"] for row in some])
        lines.append(
            f"| {start} | {len(some)} | {longest:.1e} | {' | '.join(cells)} | {steps:.0f} |"
        )
    return "\n".join(lines)


def methods_table(results: dict) -> str:
    """All methods on the long plateaus, by the length of the plateau."""
    rows = [row for row in results["rows"] if row["reference"] >= BANDS[0]]
    bands = [
        (low, high)
        for low, high in zip(BANDS[:-1], BANDS[1:], strict=True)
        if any(low <= row["reference"] < high for row in rows)
    ]
    names = [f"{low:.0e} to {high:.0e}" if high < np.inf else f"from {low:.0e}" for low, high in
             bands]  # fmt: skip
    lines = [
        "| method | rtol | " + " | ".join(names) + " | worst deviation | median ms |",
        "| --- | --- |" + " --- |" * (len(bands) + 2),
    ]
    for name, rtol in dict.fromkeys((row["method"], row["rtol"]) for row in rows):
        some = [row for row in rows if (row["method"], row["rtol"]) == (name, rtol)]
        cells = []
        for low, high in bands:
            counted = Counter(row["verdict"] for row in some if low <= row["reference"] < high)
            order = ("right", "near", "wrong", "gave up")
            cells.append(", ".join(f"{counted[x]} {x}" for x in order if counted[x]) or "-")
        deviations = [row["deviation"] for row in some if row["deviation"] is not None]
        worst = f"{max(deviations):.1e}" if deviations else "-"
        milliseconds = 1e3 * float(np.median([row["seconds"] for row in some]))
        lines.append(
            f"| {some[0]['title']} | {rtol:g} | {' | '.join(cells)} | {worst} "
            f"| {milliseconds:.2g} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtols", type=float, nargs="*", default=[1e-3, 1e-5, 1e-8])
    parser.add_argument("--peers", nargs="*", choices=tuple(_peers.PEERS), default=list(PEERS))
    parser.add_argument("--peer-rtols", type=float, nargs="+", default=[1e-6, 1e-10])
    parser.add_argument("--from-time", type=float, default=BANDS[0], help="of the peers' cases")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "long_plateaus.json")
    parser.add_argument("--table", type=Path, help="only print the tables of a saved result")
    options = parser.parse_args(arguments)
    if options.table:
        print(table(json.loads(options.table.read_text())))
        return
    cases = json.loads(REFERENCES.read_text())
    rows = []
    for rtol in options.rtols:
        answers = memjax_answers(rtol)
        rows += [row("memjax", "memjax", case, rtol, answers[case["name"]]) for case in cases]
    missing = {}
    for name in options.peers:
        title = _peers.PEERS[name].title
        answer: Callable[[Case, float], Answer] = lambda case, rtol, name=name: peer_answer(
            name, case, rtol
        )
        try:
            rows += [
                row(name, title, case, rtol, answer(case, rtol))
                for rtol in options.peer_rtols
                for case in cases
                if float(case["time"]) >= options.from_time
            ]
        except ImportError as error:
            missing[name] = str(error)
    results = {
        "benchmark": "long_plateaus",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "rtols": options.rtols,
        "peers": {"rtols": options.peer_rtols, "atol": "rtol / 100", "not_installed": missing},
        "rows": rows,
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
