"""Loss logs from files: columns of text, lines of JSON, and event files of TensorBoard."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from .._checks import as_existing_file, check_instance, shown, unknown_name
from ._event_file import read_scalars

# How columns are called, in the order in which they are looked for, whatever their case.
STEPS = (
    "step", "steps", "global_step", "_step", "iteration", "iterations", "iter", "update", "updates",
    "batch", "epoch", "epochs", "time",
)  # fmt: skip
LOSSES = (
    "loss", "train_loss", "train/loss", "training_loss", "loss/train", "loss_train", "trainloss",
    "train_loss_step", "train_loss_epoch", "train/loss_step", "train/loss_epoch",
)  # fmt: skip

# A line of a file: its number, and its cells by the names of their columns.
Line: TypeAlias = tuple[int, dict[str, Any]]


def read_log(
    path: str | os.PathLike[str], *, steps: str | None = None, loss: str | None = None
) -> tuple[Float[np.ndarray, " entries"], Float[np.ndarray, " entries"]]:
    """Read the steps and losses of a training from a file.

    - A text file with one entry a line, columns separated by commas, semicolons or tabs, and their
      names in the first line; without names, columns are called `"0"`, `"1"`, ...
    - Lines of JSON, each an object (`.jsonl`, `.json`, `.ndjson`, or a file that begins with `{`).
    - An event file of TensorBoard (with `tfevents` in its name), where `loss` is a tag and steps
      are those of the events. Checksums are not compared.

    Lines without a loss are skipped: many logs have lines of their own for validation.

    **Arguments:**

    - `path`: the file, in UTF-8.
    - `steps`: the name of the column of steps. By default `step`, `global_step`, `iteration`,
        `epoch` or the like, and without any of these the first column.
    - `loss`: the name of the column of losses. By default `loss`, `train_loss`, `train/loss` or the
        like, and without any of these the only column whose name has `loss` in it, or the only
        other one.

    **Returns:**

    The steps and the losses, each of shape `(entries,)`, in the order of the file. Losses may be
    NaN or infinite.

    **Raises:**

    `OSError` for what is no file that can be read; `ValueError` for a column that is not there or
    has to be named, and, with the number of the line, for what is no number.
    """
    for name, value in (("steps", steps), ("loss", loss)):
        if value is not None:
            check_instance(name, value, str, "a name", "name a column")
        if value == "":
            raise ValueError(f"`{name}` must be a name, got ''; name a column.")
    path = as_existing_file("path", path)
    data = _read_bytes(path)
    if "tfevents" in path.name:
        return _read_events(path, data, steps, loss)
    try:
        text = data.decode("utf-8-sig")
        if "\0" in text:
            raise ValueError
    except ValueError as error:
        raise ValueError(
            f"`path` must be a text file, got {shown(str(path))}; save the log as UTF-8 text, or "
            "keep the tfevents in the name of an event file."
        ) from error
    as_json = path.suffix in (".jsonl", ".json", ".ndjson") or text.lstrip()[:1] == "{"
    lines = list(_read_json(text) if as_json else _read_table(text))
    names = list(dict.fromkeys(name for _, cells in lines for name in cells))
    if len(names) < 2:
        raise ValueError(
            f"`path` must have a column of steps and one of losses, got {shown(names)} in "
            f"{shown(str(path))}; write both."
        )
    step = _choose("steps", steps, names, STEPS, names[:1])
    others = [name for name in names if name != step]
    named = [name for name in others if "loss" in name.lower()]
    column = _choose("loss", loss, others, LOSSES, named or others)
    return _columns(lines, step, column)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise type(error)(
            f"`path` must be a file that can be read, got {shown(str(path))}: {error.strerror}."
        ) from error


def _read_table(text: str) -> Iterator[Line]:
    """Lines of columns; the first has their names, unless it has numbers."""
    lines = text.splitlines()
    head = next((line for line in lines if line.strip()), "")
    separator = max(",;\t", key=head.count)
    rows = csv.reader(lines, delimiter=separator, skipinitialspace=True)
    names: list[str] | None = None
    while True:
        try:
            cells = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(
                f"`path` line {rows.line_num} must hold cells separated by {separator!r}, got "
                f"{error}; correct the line."
            ) from error
        if not any(cell.strip() for cell in cells):
            continue
        if names is None:
            numbers = all(_number(cell) is not None for cell in cells)
            names = [str(k) if numbers else cell.strip() for k, cell in enumerate(cells)]
            if not numbers:
                continue
        if len(cells) > len(names):
            raise ValueError(
                f"`path` line {rows.line_num} must have {len(names)} cells, got {len(cells)}; "
                "correct the line."
            )
        yield rows.line_num, dict(zip(names, cells, strict=False))


def _read_json(text: str) -> Iterator[Line]:
    """Lines that are objects."""
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            cells = json.loads(line)
        except (ValueError, RecursionError):
            cells = None
        if not isinstance(cells, dict):
            raise ValueError(
                f"`path` line {number} must be an object of JSON, got {shown(line.strip())}; write "
                'one entry a line, such as {"step": 1, "loss": 0.5}.'
            )
        yield number, cells


def _choose(
    name: str, given: str | None, columns: list[str], usual: tuple[str, ...], else_one: list[str]
) -> str:
    """The column of that name, or of a usual one, or the only one that is left."""
    if given is not None:
        if given not in columns:
            raise ValueError(
                f"`{name}` must name a column, got {shown(given)}; {unknown_name(given, columns)}"
            )
        return given
    for wanted in usual:
        for column in columns:
            if column.lower() == wanted:
                return column
    if len(else_one) != 1:
        raise ValueError(
            f"`{name}` must be given, got None where columns are {shown(columns)}; name one."
        )
    return else_one[0]


def _columns(lines: list[Line], step: str, column: str) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for number, cells in lines:
        if _is_empty(cells.get(column)):
            continue
        pair = _number(cells.get(step)), _number(cells[column])
        for name, value in zip((step, column), pair, strict=True):
            if value is None:
                raise ValueError(
                    f"`path` line {number} must hold a number in column {shown(name)}, got "
                    f"{shown(cells.get(name))}; correct it, or leave the loss empty."
                )
        found.append(pair)
    return _arrays(found, column)


def _arrays(pairs: list[Any], column: str) -> tuple[np.ndarray, np.ndarray]:
    if not pairs:
        raise ValueError(f"`loss` must name a column with numbers, got {shown(column)}; name one.")
    steps, losses = np.array(pairs, float).T
    return steps, losses


def _is_empty(cell: Any) -> bool:
    return cell is None or isinstance(cell, str) and not cell.strip()


def _number(cell: Any) -> float | None:
    """A cell as a number; text such as nan and inf is one. JSON has true, lists and objects too."""
    if isinstance(cell, bool) or not isinstance(cell, (str, int, float)):
        return None
    try:
        # Python takes 1_000 for a number.
        return None if isinstance(cell, str) and "_" in cell else float(cell)
    except (ValueError, OverflowError):
        return None


def _read_events(
    path: Path, data: bytes, steps: str | None, loss: str | None
) -> tuple[np.ndarray, np.ndarray]:
    if steps is not None:
        raise ValueError(
            f"`steps` must be None for an event file, got {shown(steps)}; its events have steps."
        )
    try:
        scalars = list(read_scalars(data))
    except ValueError as error:
        raise ValueError(
            f"`path` must be an event file of TensorBoard, got {shown(str(path))} with {error}; "
            "copy it anew."
        ) from error
    tags = list(dict.fromkeys(tag for tag, _, _ in scalars))
    if not tags:
        raise ValueError(
            f"`path` must hold scalars, got none in {shown(str(path))}; log the loss as a scalar."
        )
    named = [tag for tag in tags if "loss" in tag.lower()]
    column = _choose("loss", loss, tags, LOSSES, named or tags)
    return _arrays([(step, value) for tag, step, value in scalars if tag == column], column)
