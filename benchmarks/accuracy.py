"""Plateau times against the multiprecision references of the tests, at several tolerances.

Run `python benchmarks/accuracy.py`; it takes about two minutes, most of it compilation, and writes
`benchmarks/results/accuracy.json`.
"""

import argparse
import datetime
import importlib.metadata
import json
import platform
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import memjax as mj

jax.config.update("jax_enable_x64", True)

HERE = Path(__file__).resolve().parent
REFERENCES = HERE.parent / "tests" / "reference" / "plateau_references.json"
EXITS = {"RelativeLossDrop": mj.RelativeLossDrop, "ParameterDistance": mj.ParameterDistance}
REPARAMETRISATIONS = {"direct": mj.Direct, "exp": mj.Exp}
OUTCOMES = ("exited", "converged", "max_time_reached", "max_steps_reached", "unresolved")


def measure(case: dict, rtol: float) -> mj.Plateau:
    target = mj.ExponentialSum(case["A"], case["W"]) + mj.GaussianBump(
        1 / case["inverse_omega"], case["c0"], case["sigma"]
    )
    reparametrisation = REPARAMETRISATIONS[case["reparam"]]()
    model = mj.DiagonalLinearRNN(
        jnp.asarray(case["a0"]), jnp.asarray(case["w0"]), reparametrisation
    )
    exit = EXITS[case["exit"]](case["delta"])
    flow = mj.GradientFlow(mj.WhiteNoiseLoss(target))
    return mj.measure_plateau(flow, model, exit, rtol=rtol, throw=False)


def row(case: dict, rtol: float) -> dict:
    plateau = measure(case, rtol)
    got, expected = OUTCOMES[int(plateau.result_code)], float(case["time"])
    exited = got == case["result"] == "exited"
    return {
        "case": case["name"],
        "start": case["start"],
        "rtol": rtol,
        "reference": expected,
        "reference_result": case["result"],
        "result": got,
        "time": float(plateau.time) if exited else None,
        "deviation": abs(float(plateau.time) / expected - 1) if exited else None,
        "loss_deviation": abs(float(plateau.loss) - float(case["loss_exit"])),
        "rounding_estimate": float(plateau.rounding),
        "steps": int(plateau.stats["num_steps"]),
    }


def table(results: dict) -> str:
    lines = [
        "| start | cases | longest time | "
        + " | ".join(f"worst deviation, rtol {rtol:g}" for rtol in results["rtols"])
        + " | median steps |",
        "| --- | --- | --- |" + " --- |" * (len(results["rtols"]) + 1),
    ]
    for start in dict.fromkeys(row["start"] for row in results["rows"]):
        rows = [row for row in results["rows"] if row["start"] == start]
        cells, default = [], results["rtols"][len(results["rtols"]) // 2]
        for rtol in results["rtols"]:
            some = [row for row in rows if row["rtol"] == rtol]
            wrong = sum(row["result"] != row["reference_result"] for row in some)
            worst = max(row["deviation"] for row in some if row["deviation"] is not None)
            cells.append(f"{worst:.1e}" + (f" ({wrong} not resolved)" if wrong else ""))
        some = [row for row in rows if row["rtol"] == default]
        longest = max(row["reference"] for row in some if row["reference_result"] == "exited")
        steps = np.median([row["steps"] for row in some])
        lines.append(
            f"| {start} | {len(some)} | {longest:.1e} | {' | '.join(cells)} | {steps:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rtols", type=float, nargs="+", default=[1e-4, 1e-6, 1e-8])
    parser.add_argument("--out", type=Path, default=HERE / "results" / "accuracy.json")
    parser.add_argument("--table", type=Path, help="only print the table of a saved result")
    arguments = parser.parse_args()
    if arguments.table:
        print(table(json.loads(arguments.table.read_text())))
        return
    cases = json.loads(REFERENCES.read_text())
    results = {
        "date": datetime.date.today().isoformat(),
        "machine": {"machine": platform.machine(), "system": platform.system()},
        "versions": {
            name: importlib.metadata.version(name) for name in ("memjax", "jax", "diffrax")
        },
        "rtols": arguments.rtols,
        "rows": [row(case, rtol) for case in cases for rtol in arguments.rtols],
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
