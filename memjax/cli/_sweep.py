import dataclasses
import os
import shutil
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import tyro

from .. import viz
from ..plateaus import fit_scaling_law
from ..report import count_outcomes, REPORT, tabulate_fit, tabulate_times
from ..sweeps import (
    as_executor,
    as_way,
    check_output,
    close,
    holding,
    PlateauSweep,
    replacing,
    sweep_status,
    UNFINISHED,
    write_list,
)
from ._interrupts import INTERRUPTS
from ._output import show
from ._tables import list_records, write_table

STORE, SPECIFICATION = "plateaus.zarr", "sweep.toml"
_FIGURES = ("plateau_law.png", "loss_curves.png")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Measure how long training sits on its plateau, swept over memory, and fit the law.

    Writes a folder with plateaus.zarr (the dataset), plateau_law.png, loss_curves.png and
    sweep.toml (the specification that was run), and prints the plateau times and the fit. The
    dataset is written while the sweep runs: what is finished survives whatever ends it, --resume
    takes it up, and memjax status shows how far it is.

    Example: memjax sweep --memories 8 12 16 20 24 --widths 2 4 --out results/short
    """

    specification: Annotated[PlateauSweep, tyro.conf.arg(name="")]
    out: Path = Path("results/plateau-sweep")
    """Folder to write."""
    spec: Path | None = None
    """TOML file with the specification; other options override it."""
    resume: bool = False
    """Take up the run that is in the folder; its specification need not be given again."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    workers: str | None = None
    """Who computes: a number of processes, or the address of a Dask scheduler such as
    tcp://host:8786; by default the cores, or devices, of this process."""
    shard: str | None = None
    """Compute a part only, such as 3/40: the third of 40, each of which fills the same folder."""
    block_size: int | None = None
    """Number of runs that are stored together, at most; by default some twenty seconds of work."""
    retries: int = 2
    """How many more times a block is computed whose worker died."""
    timeout: float | None = None
    """Seconds after which a block counts as failed."""
    json: bool = False
    """Print JSON instead of tables."""
    quiet: bool = False
    """Show no progress bar."""

    def run(self) -> int:
        out = Path(os.path.abspath(self.out))
        executor, shard = _as_workers(self.workers), _as_shard(self.shard)
        sizes = {"block_size": self.block_size, "retries": self.retries, "timeout": self.timeout}
        as_way(out, self.resume, self.overwrite, executor=executor, shard=shard, **sizes)
        # What is no run is not taken up.
        if self.overwrite or not _is_run(out):
            check_output(out, self.overwrite)
        computer, mine = as_executor(executor, "workers")
        INTERRUPTS.kept = lambda: _kept(out, self.out)
        with ExitStack() as held:
            if mine:
                held.callback(close, computer)
            made = held.enter_context(holding(out, self._make, _is_run, self.overwrite, shard))
            if made:
                # Without a store there is nothing to be taken up.
                held.callback(lambda: (out / STORE).exists() or shutil.rmtree(out))
            held.enter_context(warnings.catch_warnings())
            warnings.showwarning = _warn
            dataset = self.specification.run(
                progress=not self.quiet,
                store=out / STORE,
                resume=self.resume,
                executor=computer,
                shard=shard,
                **sizes,
            )
            if bool((dataset["result"] == UNFINISHED).any()):
                return self._unfinished(out, shard)
            dataset = dataset.load()
            fit = fit_scaling_law(dataset)
            _draw(out / _FIGURES[0], viz.plot_plateau_law(dataset, fit))
            if "curve_loss" in dataset:
                _draw(out / _FIGURES[1], viz.plot_loss_curves(dataset))
            self._list(out)
        summary = {"out": str(self.out), "outcomes": count_outcomes(dataset)}
        tables = map(write_table, (tabulate_times(dataset), tabulate_fit(fit, dataset)))
        written = f"written: {self.out}/{STORE}, *.png, {SPECIFICATION}"
        show(self.json, summary | {"fit": list_records(fit)}, "\n".join([*tables, written]))
        return 0

    def _make(self) -> None:
        """Make the folder, with nothing but the specification in it."""
        with replacing(self.out, self.overwrite) as folder:
            folder.mkdir()
            (folder / SPECIFICATION).write_text(self.specification.to_toml())
            self._list(folder)

    def _list(self, folder: Path) -> None:
        write_list(folder, holds=(STORE, *_FIGURES, REPORT))

    def _unfinished(self, out: Path, shard: Any) -> int:
        status = sweep_status(out)
        if status.errors and not INTERRUPTS.status:
            return 1
        if shard is not None and not INTERRUPTS.status:
            done = f"{status.blocks_done} of {status.blocks} blocks"
            print(f"part {self.shard} is done; {done} are in {self.out}.")
            return 0
        INTERRUPTS.say()
        return INTERRUPTS.status or 130


def _as_workers(value: str | None) -> int | str | None:
    if value is None or "://" in value:
        return value
    try:
        number = int(value)
    except ValueError:
        number = 0
    if number < 1 or number > 10_000:
        raise ValueError(
            f"`workers` must be a number of processes or an address, got {value[:40]!r}; pass for "
            "example 4 or tcp://host:8786."
        )
    return number


def _as_shard(value: str | None) -> tuple[int, int] | None:
    if value is None:
        return None
    first, _, last = value.partition("/")
    try:
        index, number = int(first), int(last)
    except ValueError:
        index = number = 0
    if not 1 <= index <= number < 2**31:
        raise ValueError(f"`shard` must be a part such as 3/40, got {value[:40]!r}; count from 1.")
    return index - 1, number


def _is_run(out: Path) -> bool:
    """Whether a folder is that of a run, finished or not."""
    return (out / SPECIFICATION).is_file() and (out / "memjax.json").is_file()


def _kept(out: Path, name: Path) -> str:
    """What an interrupted run has kept."""
    if not (out / STORE).is_dir():
        return "nothing was written."
    status = sweep_status(out)
    return f"{status.runs_done} of {status.runs} runs are in {name}; go on with --resume."


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    # An interrupt is told at the end.
    if not str(message).startswith("interrupted"):
        print(f"memjax: warning: {message}", file=sys.stderr)


def _draw(path: Path, figure: Any) -> None:
    with replacing(path, True, folder=False) as partial:
        figure.savefig(partial, format=path.suffix.lstrip("."))
