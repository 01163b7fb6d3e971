"""Stiff solvers on the literature's problems: what accuracy costs, and a batch of a thousand.

Run `taskset -c 1 python benchmarks/solvers.py`: on one core, since times are those of the
processor. It takes about five minutes, and writes `benchmarks/results/solvers.json` and
`benchmarks/results/solvers.svg`. SciPy's Radau calls back to compiled JAX functions from Python,
which costs it most of its time: read its steps, of which it counts only those that it takes.
Curves leave out tolerances at which a solver fails.
"""

import argparse
import datetime
import functools
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import diffrax
import jax
import jax.numpy as jnp
import matplotlib
import matplotlib.figure
import numpy as np
import optimistix as optx
from scipy import integrate

import memjax as mj
from memjax.viz import drawing, look
from plateau_sweep import machine, versions

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "reference"))
from stiff_problems import PROBLEMS, Stiff  # noqa: E402

jax.config.update("jax_enable_x64", True)

with_tolerances = diffrax.with_stepsize_controller_tols
SOLVERS: dict[str, Any] = {
    "Rodas5P": mj.Rodas5P(),
    "RadauIIA5": mj.RadauIIA5(),
    "RadauIIA5, full Newton": mj.RadauIIA5(root_finder=with_tolerances(mj.RadauNewton)(full=True)),
    "Kvaerno5": diffrax.Kvaerno5(),
    "Kvaerno5, full Newton": diffrax.Kvaerno5(root_finder=with_tolerances(optx.Newton)()),
    "SciPy Radau": None,
}
RTOLS = [10.0**-k for k in range(3, 11)]


def solve(case: Stiff, solver: Any, max_steps: int, rtol: Any, args: Any) -> diffrax.Solution:
    return diffrax.diffeqsolve(
        diffrax.ODETerm(case.vector_field),
        solver,
        t0=0.0,
        t1=case.end,
        dt0=None,
        y0=jnp.asarray(case.start),
        args=args,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol * case.atol),
        max_steps=max_steps,
        throw=False,
    )


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """The shortest of the processor times, which a busy machine blurs less, and the result."""
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        result = jax.block_until_ready(function())
        seconds.append(time.process_time() - begin)
    return min(seconds), result


def work_precision(problem: str, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    case = PROBLEMS[problem]
    if SOLVERS[name] is None:
        measure = _scipy(case, options)
    else:
        measure = _diffrax(case, SOLVERS[name], options)
    rows = []
    for rtol in options.rtols:
        seconds, final, accepted, rejected, finished = measure(rtol)
        error = float(np.max(np.abs(final / case.solution - 1)))
        rows.append(
            {
                "problem": problem,
                "solver": name,
                "rtol": rtol,
                "finished": finished,
                "error": error if finished else None,
                "cpu_milliseconds": 1e3 * seconds,
                "accepted_steps": accepted,
                "rejected_steps": rejected,
            }
        )
    return rows


def _diffrax(case: Stiff, solver: Any, options: argparse.Namespace) -> Callable[[float], tuple]:
    function = jax.jit(functools.partial(solve, case, solver, options.max_steps))
    program = function.lower(options.rtols[0], case.args).compile()

    def measure(rtol: float) -> tuple:
        seconds, solution = timed(lambda: program(rtol, case.args), options.repeats)
        counts = [int(solution.stats[f"num_{x}_steps"]) for x in ("accepted", "rejected")]
        finished = bool(solution.result == diffrax.RESULTS.successful)
        return seconds, np.asarray(solution.ys[0]), *counts, finished

    return measure


def _scipy(case: Stiff, options: argparse.Namespace) -> Callable[[float], tuple]:
    field = jax.jit(lambda t, y: case.vector_field(t, y, case.args))
    jacobian = jax.jit(jax.jacfwd(field, argnums=1))

    def measure(rtol: float) -> tuple:
        run = lambda: integrate.solve_ivp(
            lambda t, y: np.asarray(field(t, y)),
            (0, case.end),
            case.start,
            method="Radau",
            jac=lambda t, y: np.asarray(jacobian(t, y)),
            rtol=rtol,
            atol=rtol * case.atol,
        )
        seconds, solution = timed(run, 1)
        # SciPy does not count the steps that it refuses.
        return seconds, solution.y[:, -1], len(solution.t) - 1, None, solution.status == 0

    run_once = measure(options.rtols[0])
    assert run_once[-1]
    return measure


def batch(options: argparse.Namespace) -> dict[str, Any]:
    """Robertson's problem with a thousand sets of rates, in one `jax.vmap`."""
    case = PROBLEMS["Robertson"]
    spread = np.random.default_rng(0).uniform(-0.5, 0.5, (options.batch, 3))
    rates = jnp.asarray(np.array(case.args) * 10**spread)

    def run(name: str, rtol: float, repeats: int) -> tuple[float, float, diffrax.Solution]:
        one = functools.partial(solve, case, SOLVERS[name], options.max_steps, rtol)
        begin = time.process_time()
        program = jax.jit(jax.vmap(one)).lower(rates).compile()
        compiling = time.process_time() - begin
        return compiling, *timed(lambda: program(rates), repeats)

    final = lambda solution: np.asarray(solution.ys[:, 0])
    reference = final(run("RadauIIA5, full Newton", 1e-10, 1)[2])
    other = final(run("Kvaerno5, full Newton", 1e-10, 1)[2])
    rows = []
    for rtol in (1e-6, 1e-8):
        for name in SOLVERS:
            if SOLVERS[name] is None:
                continue
            compiling, seconds, solution = run(name, rtol, 1 if name == "Kvaerno5" else 3)
            finished = np.asarray(solution.ts[:, 0]) == case.end
            deviation = np.max(np.abs(final(solution) / reference - 1), axis=1)[finished]
            rows.append(
                {
                    "solver": name,
                    "rtol": rtol,
                    "finished": int(np.sum(finished)),
                    "cpu_seconds": seconds,
                    "compile_cpu_seconds": compiling,
                    "accepted_steps": float(np.mean(solution.stats["num_accepted_steps"])),
                    "rejected_steps": float(np.mean(solution.stats["num_rejected_steps"])),
                    "median_deviation": float(np.median(deviation)),
                    "max_deviation": float(np.max(deviation)),
                }
            )
            print(f"batch: {name}, rtol = {rtol:g}", file=sys.stderr, flush=True)
    return {
        "problem": "Robertson to t = 1e11, rates times 10^U(-1/2, 1/2)",
        "runs": options.batch,
        "atol_over_rtol": case.atol,
        "reference": "RadauIIA5 with full Newton, rtol=1e-10",
        "reference_from_kvaerno5_at_1e-10": float(
            np.median(np.max(np.abs(other / reference - 1), axis=1))
        ),
        "rows": rows,
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        "| problem | solver | rtol | error | CPU ms | steps | rejected |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in result["rows"]:
        if row["rtol"] not in (1e-4, 1e-6, 1e-8):
            continue
        error = f"{row['error']:.1e}" if row["finished"] else "failed"
        rejected = "-" if row["rejected_steps"] is None else row["rejected_steps"]
        lines.append(
            f"| {row['problem']} | {row['solver']} | {row['rtol']:.0e} | {error} "
            f"| {row['cpu_milliseconds']:.2g} | {row['accepted_steps']} | {rejected} |"
        )
    many = result["batch"]
    lines += [
        "",
        f"{many['problem']}, {many['runs']} runs in one `jax.vmap`:",
        "",
        "| rtol | solver | finished | CPU s | compile, s | steps | rejected | deviation |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in many["rows"]:
        lines.append(
            f"| {row['rtol']:.0e} | {row['solver']} | {row['finished']} | {row['cpu_seconds']:.2f} "
            f"| {row['compile_cpu_seconds']:.1f} | {row['accepted_steps']:.0f} "
            f"| {row['rejected_steps']:.1f} | {row['median_deviation']:.1e} |"
        )
    return "\n".join(lines)


def figure(result: dict[str, Any]) -> matplotlib.figure.Figure:
    """Error against time, and against steps tried."""
    problems = list(dict.fromkeys(row["problem"] for row in result["rows"]))
    names = list(dict.fromkeys(row["solver"] for row in result["rows"]))
    with drawing(7.2, 4.6) as made:
        grid: Any = made.subplots(2, len(problems), sharey="col", squeeze=False)
        for column, problem in enumerate(problems):
            for index, name in enumerate(names):
                rows = [
                    row
                    for row in result["rows"]
                    if (row["problem"], row["solver"]) == (problem, name) and row["finished"]
                ]
                own = look(index, ms=3.5, lw=1.1, label=name)
                errors = [row["error"] for row in rows]
                steps = [row["accepted_steps"] + (row["rejected_steps"] or 0) for row in rows]
                grid[0, column].loglog([row["cpu_milliseconds"] for row in rows], errors, **own)
                grid[1, column].loglog(steps, errors, **own)
            grid[0, column].set_title(problem)
            grid[0, column].set_xlabel("processor time (ms)")
            grid[1, column].set_xlabel("steps tried")
        for row in grid:
            row[0].set_ylabel("relative error at the end")
        handles, labels = grid[0, 0].get_legend_handles_labels()
        made.legend(handles, labels, loc="outside lower center", ncols=3)
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--problems", nargs="+", choices=tuple(PROBLEMS), default=list(PROBLEMS))
    parser.add_argument("--rtols", type=float, nargs="+", default=RTOLS)
    parser.add_argument("--repeats", type=int, default=5, help="timings, of which the best counts")
    parser.add_argument("--batch", type=int, default=1000, help="sets of Robertson's rates")
    parser.add_argument("--max-steps", type=int, default=20_000)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "solvers.json")
    parser.add_argument("--table", type=Path, help="only print and draw a saved result")
    options = parser.parse_args(arguments)
    if options.table is not None:
        result = json.loads(options.table.read_text())
    else:
        rows = []
        for problem in options.problems:
            for name in SOLVERS:
                rows += work_precision(problem, name, options)
                print(f"{problem}: {name}", file=sys.stderr, flush=True)
        result = {
            "benchmark": "solvers",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "machine": machine(),
            "versions": versions(),
            "settings": {"repeats": options.repeats, "max_steps": options.max_steps},
            "rows": rows,
            "batch": batch(options),
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    matplotlib.rcParams["svg.hashsalt"] = "memjax"
    figure(result).savefig(
        (options.table or options.out).with_suffix(".svg"), metadata={"Date": None}
    )
    print(table(result))


if __name__ == "__main__":
    main()
