import dataclasses
from pathlib import Path
from typing import Annotated

import tyro

from .. import viz
from ..plateaus import find_plateaus, read_log
from ..sweeps import check_output, replacing
from ._output import Format, show, to_json


@dataclasses.dataclass(frozen=True)
class Log:
    """Find the plateaus in the log of a training of your own, and say whether it has left them.

    The file is a CSV with names in its first line, lines of JSON, or an event file of TensorBoard.
    A plateau is flat against its noise and followed by a fall that is much faster; a loss that only
    slows down has none. With --out, writes a folder with log.png (loss against step, plateaus
    marked) and plateaus.json.

    Example: memjax log losses.csv --loss train_loss --out results/log
    """

    path: Annotated[Path, tyro.conf.Positional]
    """File with steps and losses."""
    steps: str | None = None
    """Column of steps; by default step, iteration, epoch or the like, or the first one."""
    loss: str | None = None
    """Column of losses, or tag of an event file; by default loss, train_loss or the like."""
    delta: float = 0.02
    """Share of its height by which the loss leaves a plateau."""
    floor: float = 0.0
    """Level from which heights and drops are counted, in units of the loss."""
    ratio: float = 2.0
    """Least ratio of the last step of a plateau to its first."""
    out: Path | None = None
    """Folder to write; by default none."""
    format: Format = "png"
    """Format of the figure."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    spec: Path | None = None
    """TOML file with any of these values; other options override it."""
    json: bool = False
    """Print JSON instead of a table."""

    def run(self) -> int:
        if self.out is not None:
            check_output(self.out, self.overwrite)
        steps, losses = read_log(self.path, steps=self.steps, loss=self.loss)
        found = find_plateaus(steps, losses, delta=self.delta, floor=self.floor, ratio=self.ratio)
        text = str(found)
        if self.out is not None:
            with replacing(self.out, self.overwrite) as folder:
                folder.mkdir()
                viz.plot_log(found).savefig(folder / f"log.{self.format}")
                (folder / "plateaus.json").write_text(to_json(found.to_dict()) + "\n")
            text += f"\n\nwritten: {self.out}/log.{self.format}, plateaus.json"
        show(self.json, found.to_dict(), text)
        return 0
