"""The lane engine against compiled stiff solvers in a loop, on short plateaus of three widths.

Run `python benchmarks/engine.py`; README.md next to this file says what is measured and how to
read the result. Everything runs on one core: the script pins itself to one, and restarts with the
libraries' thread pools switched off.
"""

import argparse
import dataclasses
import datetime
import functools
import gc
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

import _peers
import memjax as mj
import plateau_sweep
from _cores import on_one_core
from plateau_sweep import Cells, machine, versions

HERE = Path(__file__).resolve().parent
GRID = "short"
WIDTHS = (4, 16, 64)
TOLERANCES = (1e-3, 1e-4, 1e-6, 1e-8)
# Tolerances of memjax beside those: relative to displacements, they are worth more digits.
LOOSER = (5e-1, 1e-1, 1e-2)
# The engine works on so many times as many memories: what a sweep costs once, whatever its
# size, is a row of its own.
DENSER = {4: 16, 16: 9, 64: 9, 256: 9}
SIZES = (256, 1024, 4096, 16384, 65536)
LANES = (1, 4, 16, 64, 256, 1024)
# Where the methods that run in lock-step are measured: they take minutes elsewhere.
BATCH_WIDTHS, BATCH_RTOLS = (4, 16), (1e-4,)
# A method is not repeated once it has used this many seconds for one row.
PATIENCE = 20.0


# --- Ours ----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Build:
    """The measurement of a cell; equal ones share what was compiled."""

    width: int
    delta: float

    def __call__(self, omega: Any, seed: Any) -> tuple[Any, Any, Any]:
        spec = plateau_sweep.SPEC
        model = spec.model(omega, self.width, seed)
        exit = mj.RelativeLossDrop(self.delta, plateau_sweep.plateau_height(1 / omega))
        return mj.GradientFlow(mj.WhiteNoiseLoss(spec.target(omega))), model, exit


def sweep(width: int, axes: dict[str, Any], rtol: float, lanes: int | None) -> Any:
    options: dict[str, Any] = {} if lanes is None else {"lanes": lanes}
    delta = plateau_sweep.GRIDS[GRID]["delta"]
    build = _Build(width, delta)
    # In float64 alone: peers do not repeat what they could not resolve either.
    return mj.sweep(build, axes, rtol=rtol, precision="float64", progress=False, **options)


def ours(cells: Cells, rtol: float, lanes: int | None = None) -> _peers.Outcome:
    """The cells, which fill a grid of memories and seeds, with more memories between them."""
    memories, row = np.unique(cells.memory, return_inverse=True)
    seeds, column = np.unique(cells.seed, return_inverse=True)
    denser = DENSER.get(cells.width, 1)
    places = np.arange(_dense(cells.width, len(memories))) / denser
    dense = np.interp(places, np.arange(len(memories)), memories)
    dataset = sweep(cells.width, {"omega": 1 / dense, "seed": seeds}, rtol, lanes)
    names = dataset["result"].attrs["flag_meanings"].split()
    place = (denser * row, column)
    statuses = [names[code] for code in dataset["result"].values[place]]
    exited = np.array([status == "exited" for status in statuses])
    times = np.where(exited, dataset["time"].values[place], np.nan)
    steps = {"steps": float(dataset["num_steps"].mean())}
    return _peers.Outcome(times, statuses, steps)


def _dense(width: int, memories: int) -> int:
    return DENSER.get(width, 1) * (memories - 1) + 1


# --- Methods -------------------------------------------------------------------------------

# Runs the cells it was prepared for, at a relative and an absolute tolerance.
Go = Callable[[float, float], _peers.Outcome]


@dataclasses.dataclass(frozen=True)
class Method:
    """`prepare` compiles for the cells. Those that run cells in lock-step get a few of them."""

    title: str
    prepare: Callable[[Cells], Go]
    batch: bool = False


def runs_of(cells: Cells) -> list[_peers.Run]:
    levels = np.asarray(plateau_sweep.plateau_height(jnp.asarray(cells.memory)))
    columns = zip(cells.memory, cells.start, levels, strict=True)
    return [
        _peers.make_run(float(memory), start, cells.delta, level=float(level))
        for memory, start, level in columns
    ]


def _prepare_peer(peer: _peers.Peer, cells: Cells) -> Go:
    runs = runs_of(cells)
    prepared = peer.prepare(runs[0])
    # The first call of each callback compiles it.
    prepared(runs[:1], 1e-2, 1e-4)
    return lambda rtol, atol: prepared(runs, rtol, atol)


def _prepare_diffrax(name: str, cells: Cells) -> Go:
    compiled: dict[tuple[float, float], Callable] = {}

    def go(rtol: float, atol: float) -> _peers.Outcome:
        if (rtol, atol) not in compiled:
            settings = plateau_sweep.Settings(
                rtol, atol, len(cells), np.inf, np.inf, min(64, len(cells)), 4096
            )
            prepare = plateau_sweep.METHODS[name].prepare
            assert prepare is not None
            compiled[rtol, atol] = prepare(cells, settings)
        pieces = list(compiled[rtol, atol](cells))
        times = np.concatenate([piece[0] for piece in pieces])
        return _peers.Outcome(times, [status for piece in pieces for status in piece[1]], {})

    return go


def methods(lanes: int | None) -> dict[str, Method]:
    loops = {
        name: Method(peer.title, functools.partial(_prepare_peer, peer))
        for name, peer in _peers.PEERS.items()
        if name not in ("radau", "diffsol-patient")
    }
    batches = {
        name: Method(
            plateau_sweep.METHODS[name].title,
            functools.partial(_prepare_diffrax, name),
            batch=True,
        )
        for name in ("diffrax-default-vmap", "diffrax-newton-vmap")
    }
    engine = Method("memjax `sweep`", lambda cells: lambda rtol, atol: ours(cells, rtol, lanes))
    return {"memjax": engine} | loops | batches


# --- Comparison ----------------------------------------------------------------------------


def reference(cells: Cells, checks: int) -> tuple[np.ndarray, dict[str, Any]]:
    """Exit times by CVODE at rtol 1e-13, and how far memjax at rtol 1e-9 and the multiprecision
    solver of the tests are from them on a few cells."""
    runs = runs_of(cells)
    times = _peers.PEERS["cvode"].prepare(runs[0])(runs, 1e-13, 1e-16).times
    some = cells.take(np.arange(min(checks, len(cells))))
    check = {"width": cells.width, "solver": "CVODE, rtol=1e-13, atol=1e-16", "cells": len(some)}
    if checks:
        ours_too = plateau_sweep.memjax_sweep(some, rtol=1e-9)[0]
        off = np.abs(ours_too / times[: len(some)] - 1)
        check["memjax_disagreement"] = float(np.max(off))
    # Its cost grows with the cube of the width.
    if checks and cells.width <= 4:
        exact = np.array([plateau_sweep._multiprecision(some.take([i])) for i in (0, 1)])
        check["multiprecision_disagreement"] = float(np.max(np.abs(exact / times[:2] - 1)))
    return times, check


def compare(
    width: int,
    chosen: Sequence[str],
    tolerances: Sequence[float],
    repeats: int,
    lanes: int | None,
    memories: int | None,
    few: int,
    checks: int,
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Every method at every tolerance, the repeats of one tolerance interleaved."""
    cells = plateau_sweep.make_cells(GRID, width, memories, None)
    times, check = reference(cells, checks)
    known = methods(lanes)
    prepared: dict[str, tuple[Go, int, float]] = {}
    rows = []
    for name in chosen:
        method = known[name]
        if method.batch and width not in BATCH_WIDTHS:
            continue
        # Spread over all memories.
        some = np.arange(0, len(cells), max(1, len(cells) // few))
        part = cells.take(some) if method.batch else cells
        begin = time.perf_counter()
        try:
            count = len(part)
            if name == "memjax":
                memories_, seeds = len(np.unique(part.memory)), len(np.unique(part.seed))
                count = _dense(width, memories_) * seeds
            prepared[name] = method.prepare(part), count, time.perf_counter() - begin
        except ImportError as error:
            rows.append(
                {"width": width, "method": name, "title": method.title, "rtol": None}
                | {"status": f"not installed: {error}"}
            )
    for tolerance in sorted({*tolerances, *LOOSER} if "memjax" in chosen else tolerances):
        names = [name for name in prepared if not known[name].batch or tolerance in BATCH_RTOLS]
        names = [name for name in names if name == "memjax" or tolerance in tolerances]
        spent: dict[str, list[float]] = {name: [] for name in names}
        outcomes: dict[str, _peers.Outcome] = {}
        cold: dict[str, float] = {}
        for name in names:
            # Of wide models a single one takes minutes.
            print(f"m = {width}, rtol {tolerance:g}: {name}", file=sys.stderr, flush=True)
            go, _, preparing = prepared[name]
            begin = time.perf_counter()
            outcomes[name] = go(tolerance, tolerance / 100)
            cold[name] = preparing + time.perf_counter() - begin
        for _ in range(repeats):
            for name in names:
                if sum(spent[name]) > PATIENCE:
                    continue
                gc.collect()
                begin = time.perf_counter()
                outcomes[name] = prepared[name][0](tolerance, tolerance / 100)
                spent[name].append(time.perf_counter() - begin)
        for name in names:
            count = prepared[name][1]
            rows.append(
                {
                    "width": width,
                    "method": name,
                    "title": known[name].title,
                    "rtol": tolerance,
                    "status": "measured",
                    "cold_seconds": cold[name],
                    "warm_seconds": spent[name],
                    "ms_per_run": 1e3 * float(np.median(spent[name])) / count,
                }
                | {"runs_timed": count}
                | _summary(outcomes[name], times[some] if known[name].batch else times)
            )
    return rows, check


def _summary(outcome: _peers.Outcome, times: np.ndarray) -> dict[str, Any]:
    finished = np.isfinite(outcome.times)
    deviation = np.abs(outcome.times / times - 1)[finished]
    return {
        "runs": len(times),
        "share_finished": float(np.mean(finished)),
        "outcomes": dict(Counter(outcome.statuses)),
        "median_deviation": float(np.median(deviation)) if deviation.size else None,
        "max_deviation": float(np.max(deviation)) if deviation.size else None,
        "counts_per_run": outcome.counts,
    }


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """The time of every row over that of memjax at the same median deviation.

    Memjax's time there is interpolated between its tolerances, in logarithms. Where the row is
    less accurate than memjax at its loosest, that is what it is compared with; where it is more
    accurate than memjax at its tightest, there is no ratio.
    """
    for row in rows:
        mine = [
            (math.log(other["median_deviation"]), math.log(other["ms_per_run"]))
            for other in rows
            if other["method"] == "memjax" and other["width"] == row["width"]
            and other.get("median_deviation") and other["share_finished"] == 1
        ]  # fmt: skip
        own = row.get("median_deviation")
        row["time_over_memjax"] = None
        if mine and own and math.log(own) >= min(mine)[0]:
            mine.sort()
            at = np.interp(math.log(own), *np.transpose(mine))
            row["time_over_memjax"] = row["ms_per_run"] / math.exp(float(at))


# --- Sizes, lanes and cold starts ----------------------------------------------------------
#
# Each in a process of its own, since memory is the largest that a process ever had, and a start is
# cold only once.


def _axes(size: int) -> dict[str, Any]:
    seeds = min(size, 4)
    return {"omega": 1 / np.linspace(4, 18, size // seeds), "seed": range(seeds)}


def child(size: int, width: int, rtol: float, lanes: int | None, warm: bool) -> dict[str, Any]:
    """A sweep of `size` runs, cold, and then once more."""
    dataset = sweep(width, _axes(size), rtol, lanes)
    done = time.time()
    peak = _peak_bytes()
    seconds = None
    if warm:
        begin = time.perf_counter()
        dataset = sweep(width, _axes(size), rtol, lanes)
        seconds = time.perf_counter() - begin
        peak = _peak_bytes()
    steps = int(dataset["num_steps"].sum())
    return {
        "size": size,
        "width": width,
        "rtol": rtol,
        "lanes": lanes,
        "done": done,
        "warm_seconds": seconds,
        "steps": steps,
        "us_per_step": 1e6 * seconds / steps if seconds else None,
        "runs_per_second": size / seconds if seconds else None,
        "share_finished": float(np.mean(dataset["result"].values == 0)),
        "peak_bytes": peak,
    }


def _peak_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def engine_in_child(**arguments: Any) -> dict[str, Any]:
    begin = time.time()
    row = _child([str(Path(__file__).resolve()), "--child", json.dumps(arguments)])
    row["cold_seconds"] = row.pop("done") - begin
    return row


def cvode_in_child(size: int, width: int, rtol: float) -> dict[str, Any]:
    """CVODE's loop over a sweep, from its start, in a process that never imports JAX.

    At most 4096 runs are measured, and the others taken to need as long.
    """
    cells = plateau_sweep.make_cells(GRID, width, None, None)
    cells = cells.take(np.arange(min(size, 4096)) % len(cells))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.npz"
        _peers.save_runs(path, runs_of(cells))
        begin = time.time()
        row = _child([str(HERE / "_peers.py"), str(path), str(rtol)])
    row["measured_runs"] = len(cells)
    row["first_seconds"] = row.pop("first") - begin
    row["cold_seconds"] = row.pop("done") - begin
    row["cold_seconds"] += row["loop_seconds"] * (size / len(cells) - 1)
    return row


def _child(command: list[str]) -> dict[str, Any]:
    done = subprocess.run([sys.executable, *command], check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


# --- Reporting -----------------------------------------------------------------------------


def page_table(result: dict[str, Any], rtol: float = 1e-4) -> str:
    """The comparison at one tolerance as a Markdown table for a page."""
    rows = [row for row in result["comparison"] if row.get("rtol") == rtol]
    widths = sorted({row["width"] for row in rows})
    head = ["method"]
    for width in widths:
        head += [f"m = {width}: ms a run", "deviation", "finished", "time over memjax's"]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for name in dict.fromkeys(row["method"] for row in rows):
        cells = [next(row["title"] for row in rows if row["method"] == name)]
        for width in widths:
            same = [row for row in rows if row["method"] == name and row["width"] == width]
            cells += _cells(same[0]) if same else [""] * 4
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    if row["status"] != "measured":
        return [row["status"], "", "", ""]
    return [
        _number(row["ms_per_run"], ".3g"),
        _number(row["median_deviation"], ".1e"),
        f"{100 * row['share_finished']:.0f} %",
        _number(row["time_over_memjax"], ".2f"),
    ]


def table(result: dict[str, Any]) -> str:
    """All that was measured, as Markdown."""
    lines = []
    if result["comparison"]:
        lines += [
            "| m | rtol | method | runs | ms a run | finished | deviation: median | max "
            "| time over memjax's | cold s | steps |",
            "|" + " --- |" * 11,
        ]
    for row in result["comparison"]:
        start = f"| {row['width']} | {_number(row['rtol'], 'g')} | {row['title']} |"
        if row["status"] != "measured":
            lines.append(f"{start} {row['status']}" + " |" * 8)
            continue
        ms, median, finished, ratio = _cells(row)
        steps = _number(row["counts_per_run"].get("steps"), ".0f")
        lines.append(
            f"{start} {row['runs']} | {ms} | {finished} | {median} | "
            f"{_number(row['max_deviation'], '.1e')} | {ratio} | "
            f"{_number(row['cold_seconds'], '.3g')} | {steps} |"
        )
    for check in result["references"]:
        lines += ["", f"Reference: {json.dumps(check)}"]
    for title in ("sizes", "lanes"):
        if result[title]:
            lines += [
                "",
                f"| {title}: runs | lanes | cold s | warm s | us a step | runs/s | peak MB |",
                "|" + " --- |" * 7,
            ]
        for row in result[title]:
            lines.append(
                f"| {row['size']} | {row['lanes']} | {row['cold_seconds']:.3g} | "
                f"{_number(row['warm_seconds'], '.3g')} | {_number(row['us_per_step'], '.3g')} | "
                f"{_number(row['runs_per_second'], '.3g')} | {row['peak_bytes'] / 1e6:.0f} |"
            )
    if result["cold"]:
        lines += [
            "",
            "| cold start: runs | memjax s | CVODE's loop s | memjax: first results s "
            "| CVODE: first result s |",
            "|" + " --- |" * 5,
        ]
    for row in result["cold"]:
        lines.append(
            f"| {row['size']} | {_number(row['memjax_seconds'], '.3g')} | "
            f"{row['cvode_seconds']:.3g} | {_number(row['memjax_first_seconds'], '.3g')} | "
            f"{row['cvode_first_seconds']:.3g} |"
        )
    return "\n".join(lines)


def _number(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = list(methods(None))
    parser.add_argument("--widths", nargs="*", type=int, default=list(WIDTHS))
    parser.add_argument("--rtols", nargs="+", type=float, default=list(TOLERANCES))
    parser.add_argument("--methods", nargs="+", choices=names, default=names)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--memories", type=int, help="so many of the grid's 64")
    parser.add_argument("--few", type=int, default=64, help="runs for Diffrax under vmap")
    parser.add_argument("--checks", type=int, default=8, help="runs to check the reference on")
    parser.add_argument("--lanes", type=int, help="lanes of memjax's sweep; its own choice if left")
    parser.add_argument("--sizes", nargs="*", type=int, default=list(SIZES))
    parser.add_argument("--lane-counts", nargs="*", type=int, default=list(LANES))
    parser.add_argument("--size-width", type=int, default=4, help="width for sizes and lanes")
    parser.add_argument("--size-rtol", type=float, default=1e-4, help="rtol for sizes and lanes")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "engine.json")
    parser.add_argument("--table", type=Path, help="only print the tables of this result")
    parser.add_argument("--page", type=Path, help="only print the table of docs/measured.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child is not None:
        print(json.dumps(child(**json.loads(options.child))))
        return
    if options.table is not None:
        print(table(json.loads(options.table.read_text())))
        return
    if options.page is not None:
        print(page_table(json.loads(options.page.read_text())))
        return

    result: dict[str, Any] = {
        "benchmark": "engine",
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "machine": machine() | {"cores_used": 1},
        "versions": versions()
        | {name: plateau_sweep._version(name) for name in ("pydiffsol", "numba")},
        "settings": {
            key: value
            for key, value in vars(options).items()
            if key not in ("out", "table", "page", "child")
        }
        | {"atol": "rtol / 100", "grid": "256 runs, 1/omega in [4, 18]", "delta": 0.02},
        "comparison": [],
        "references": [],
        "sizes": [],
        "lanes": [],
        "cold": [],
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)

    def save() -> None:
        options.out.write_text(json.dumps(result, indent=1) + "\n")

    for width in options.widths:
        rows, check = compare(
            width,
            options.methods,
            options.rtols,
            options.repeats,
            options.lanes,
            options.memories,
            options.few,
            options.checks,
        )
        result["comparison"] += rows
        result["references"].append(check)
        add_ratios(result["comparison"])
        save()
    shared = {"width": options.size_width, "rtol": options.size_rtol}
    engine = functools.partial(engine_in_child, **shared)
    # Nothing but the engine's own choice of lanes is in a first result.
    first = engine(size=1, lanes=options.lanes, warm=False) if options.sizes else None
    for size in options.sizes:
        row = engine(size=size, lanes=options.lanes, warm=True)
        result["sizes"].append(row)
        loop = cvode_in_child(size, **shared)
        result["cold"].append(
            {
                "size": size,
                "memjax_seconds": row["cold_seconds"],
                "memjax_first_seconds": first and first["cold_seconds"],
                "cvode_seconds": loop["cold_seconds"],
                "cvode_first_seconds": loop["first_seconds"],
                "cvode_measured_runs": loop["measured_runs"],
            }
        )
        save()
        print(f"{size} runs", file=sys.stderr, flush=True)
    for lanes in options.lane_counts:
        result["lanes"].append(engine(size=max(4 * lanes, 1024), lanes=lanes, warm=True))
        save()
        print(f"{lanes} lanes", file=sys.stderr, flush=True)
    save()
    print(table(result))


if __name__ == "__main__":
    on_one_core()
    main()
