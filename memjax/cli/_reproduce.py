import ast
import dataclasses
import inspect
import json
import sys
import textwrap
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Annotated, Any

import tyro

from .._checks import shown
from ..reproductions import (
    check_options,
    find_reproduction,
    num_failed,
    REPRODUCTIONS,
    Verdict,
)
from ..sweeps import replacing, save_dataset
from ._output import Format, show


@dataclasses.dataclass(frozen=True)
class Reproduce:
    """Measure a published result again, and say whether what is found agrees.

    Writes a folder with dataset.zarr, verdicts.json and the figure, and prints a table of what
    is published and what was found.

    Example: memjax reproduce plateau-flows --out results/plateau-flows
    """

    name: Annotated[str | None, tyro.conf.Positional] = None
    """Name of the reproduction."""
    list: bool = False
    """List the reproductions."""
    out: Path | None = None
    """Folder to write; by default results/ and the name."""
    overwrite: bool = False
    """Replace the folder if it exists."""
    full: bool = False
    """Take the published sizes, where those of the reproduction are smaller."""
    format: Format = "png"
    """Format of the figure."""
    set: tuple[str, ...] = ()
    """Other sizes, as the options of `memjax.reproduce`: for example seeds=3 or widths=8,16."""
    json: bool = False
    """Print JSON instead of tables."""
    quiet: bool = False
    """Show no progress bar."""

    def run(self) -> int:
        if self.list:
            titles = {item.name: item.title for item in REPRODUCTIONS.values()}
            width = max(map(len, titles))
            lines = (f"{name.ljust(width)}  {title}" for name, title in titles.items())
            show(self.json, titles, "\n".join(lines))
            return 0
        if self.name is None:
            raise ValueError(
                f"`name` must be given, got none; they are {', '.join(REPRODUCTIONS)}."
            )
        reproduction = find_reproduction(self.name)
        out = Path("results") / self.name if self.out is None else self.out
        options = dict(map(_as_option, self.set))
        if self.full:
            if "full" not in inspect.signature(reproduction.run).parameters:
                raise ValueError(
                    f"`full` must be left out for {self.name}, got True; it has no larger sizes."
                )
            options["full"] = True
        check_options(reproduction, options)
        with replacing(out, self.overwrite) as folder:
            folder.mkdir()
            dataset = reproduction.run(not self.quiet, **options)
            save_dataset(dataset, folder / "dataset.zarr")
            verdicts = reproduction.check(dataset)
            records = [dataclasses.asdict(verdict) for verdict in verdicts]
            (folder / "verdicts.json").write_text(json.dumps(records, indent=2) + "\n")
            reproduction.plot(dataset).savefig(folder / f"{self.name}.{self.format}")
        failed = num_failed(dataset)
        text = (
            f"{reproduction.title}\n{reproduction.source}\n\n"
            f"{textwrap.fill(reproduction.description, 96)}\n\n{_tabulate(verdicts)}\n"
            f"written: {out}/dataset.zarr, {self.name}.{self.format}, verdicts.json"
        )
        show(self.json, {"out": str(out), "failed": failed, "verdicts": records}, text)
        if failed:
            print(f"{failed} measurements ended without an answer.", file=sys.stderr)
        return 1 if failed else 0


def _as_option(text: str) -> tuple[str, Any]:
    """Name and value of an option: a number, several with commas between them, or words."""
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier() or not value:
        raise ValueError(f"`set` must be NAME=VALUE, got {shown(text)}; write for example seeds=3.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _tabulate(verdicts: Sequence[Verdict]) -> str:
    """What is published and what was found, side by side."""
    words = {True: "yes", False: "NO", None: "not decided"}
    column = 42
    lines = [f"{'published':{column}}  {'found':{column}}  agrees"]
    lines.append(f"{'-' * column}  {'-' * column}  {'-' * 11}")
    for verdict in verdicts:
        cells = [textwrap.wrap(text, column) for text in (verdict.published, verdict.found)]
        for left, right, last in zip_longest(*cells, [words[verdict.agrees]], fillvalue=""):
            lines.append(f"{left:{column}}  {right:{column}}  {last}".rstrip())
        lines.append("")
    return "\n".join(lines)
