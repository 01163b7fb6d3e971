import dataclasses
import time
from pathlib import Path
from typing import Annotated

import tyro

from .._checks import check_positive
from ..report import REPORT, write_report
from ..sweeps import sweep_status
from ._output import show
from ._sweep import STORE


@dataclasses.dataclass(frozen=True)
class Report:
    """Write a report of a sweep: one HTML file for a browser, which needs no network.

    It has the law with its fits, the values of every run, its loss curve after a click, filters,
    the table of fits and where the numbers come from. A sweep that is not finished is shown as far
    as it is; with --follow the page is written anew until the sweep is complete, and the browser
    loads it by itself.

    Example: memjax report results/plateau-sweep
    """

    run_folder: Annotated[Path, tyro.conf.Positional]
    """Folder of `memjax sweep`, or a Zarr store of a sweep."""
    out: Path | None = None
    """File to write; by default report.html in the folder, and for a store a file beside it."""
    axis: str | None = None
    """Axis of the sweep, or coordinate along one, in place of the memory."""
    follow: bool = False
    """Write it anew until the sweep is complete."""
    interval: float = 10.0
    """Seconds between two writings with --follow."""
    overwrite: bool = False
    """Replace the file if it exists."""
    spec: Path | None = None
    """TOML file with any of these values; other options override it."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        check_positive("interval", self.interval)
        out = self.out or _choose_path(self.run_folder)
        overwrite = self.overwrite
        while True:
            # Before it is read: what is finished meanwhile is written the next time.
            complete = not self.follow or sweep_status(self.run_folder).complete
            write_report(
                self.run_folder,
                out,
                axis=self.axis,
                refresh=self.interval if self.follow else None,
                overwrite=overwrite,
            )
            if complete:
                show(self.json, {"out": str(out)}, f"written: {out}")
                return 0
            overwrite = True
            time.sleep(self.interval)


def _choose_path(run: Path) -> Path:
    """Inside the folder of a run, and beside a store: a store holds nothing but itself."""
    if (run / STORE).is_dir():
        return run / REPORT
    run = run.absolute()
    return run.with_name(f"{run.name.removesuffix('.zarr')}.html")
