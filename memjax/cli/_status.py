import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated

import tyro

from .._checks import check_positive
from ..sweeps import Watch
from ._output import show


@dataclasses.dataclass(frozen=True)
class Status:
    """Say how far a sweep is, from another process or machine, without disturbing it.

    The exit status is 0 if it is complete or running, and 1 if it is neither.

    Example: memjax status results/plateau-sweep --follow
    """

    run_folder: Annotated[Path, tyro.conf.Positional]
    """Folder of `memjax sweep`, or the store of a sweep."""
    follow: bool = False
    """Show it anew until the sweep is complete."""
    interval: float = 2.0
    """Seconds between two looks with --follow."""
    json: bool = False
    """Print JSON instead of text, with --follow a line for each look."""

    def run(self) -> int:
        check_positive("interval", self.interval)
        watch = Watch(self.run_folder)
        lines = 0
        while True:
            status = watch.look()
            if self.json and self.follow:
                show(True, status.to_dict(), "", indent=None)
            else:
                # The look before is written over.
                if lines and sys.stdout.isatty():
                    print(f"\x1b[{lines}A\x1b[J", end="")
                show(self.json, status.to_dict(), str(status))
                lines = str(status).count("\n") + 1
            sys.stdout.flush()
            if status.complete or not self.follow:
                return 0 if status.complete or status.running else 1
            time.sleep(self.interval)
