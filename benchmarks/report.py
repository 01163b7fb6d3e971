"""The report of a sweep of 20,000 runs: how large the page is, and how soon a browser shows it.

Run `.ci/chromium` once, which sets the browser up, and then `python benchmarks/report.py`. It
sweeps 50 memories, 2 widths and 200 seeds with curves of 181 times, writes the report, opens it in
a headless Chromium without a network five times, each in a new browser, and writes
`benchmarks/results/report.json`: the bytes of the page, the seconds it took to write, and for each
opening the seconds until all is drawn and the seconds from a click until a curve is there.
"""

import argparse
import datetime
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import memjax as mj
from plateau_sweep import machine, versions

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent / ".ci"))

DRAWN = "window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"
# A click on a run is one on its point: it is chosen, and the page does the rest.
CHOOSE = """(run) => {
  const models = [...Bokeh.documents[0]._all_models.values()]
  const runs = models.find((model) => model.type === "ColumnDataSource" && "marker" in model.data)
  const curve = models.find(
    (model) => model.type === "ColumnDataSource" && "xs" in model.data && !("slope" in model.data))
  const begin = performance.now()
  return new Promise((resolve) => {
    curve.connect(curve.properties.data.change, () => resolve((performance.now() - begin) / 1000))
    runs.selected.indices = [run]
  })
}"""


def open_page(path: Path) -> dict[str, Any]:
    """Seconds that a new browser takes for the page, and what went wrong."""
    from browser import browser, watch

    with browser() as started:
        page = started.new_page(viewport={"width": 1150, "height": 1000})
        problems = watch(page)
        begin = time.perf_counter()
        page.goto(path.as_uri())
        page.wait_for_function(DRAWN)
        drawn = time.perf_counter() - begin
        first, second = page.evaluate(CHOOSE, 7), page.evaluate(CHOOSE, 8)
    return {
        "seconds_until_drawn": drawn,
        "seconds_until_first_curve": first,
        "seconds_until_second_curve": second,
        "problems": problems,
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "report.json")
    options = parser.parse_args(arguments)
    jax.config.update("jax_enable_x64", True)
    memories = tuple(np.arange(6.0, 31.0, 0.5).tolist())
    spec = mj.PlateauSweep(memories=memories, widths=(2, 4), seeds=tuple(range(options.seeds)))
    dataset = spec.run(progress=False)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "report.html"
        mj.write_report(dataset, path)  # imports
        begin = time.perf_counter()
        mj.write_report(dataset, path, overwrite=True)
        writing = time.perf_counter() - begin
        result = {
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "versions": versions(),
            "runs": int(dataset["time"].size),
            "curve_times": dataset.sizes["training_time"],
            "bytes": path.stat().st_size,
            "seconds_to_write": writing,
            "openings": [open_page(path) for _ in range(options.repeats)],
        }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    drawn = np.median([each["seconds_until_drawn"] for each in result["openings"]])
    print(f"{result['runs']} runs: {result['bytes'] / 1e6:.2f} MB, written in {writing:.2f} s,")
    print(f"drawn after {drawn:.2f} s (median of {options.repeats})")


if __name__ == "__main__":
    main()
