"""Text that several rooms print: tables, and results in a terminal and in a notebook."""

import base64
import dataclasses
import html
import importlib
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from ._checks import is_traced, shown

_Class = TypeVar("_Class", bound=type)

# How many entries of an array are written, and how long lines are.
_ENTRIES, _LINE = 6, 100
# What comes of taking for a number what is none: an entry of a batch, or of a tree without leaves.
_UNSAID = (AttributeError, IndexError, TypeError, ValueError)


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table with a line under its header, its cells to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * width for width in widths], *rows]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def readable(
    figure: str | None = None, /, **fields: Callable[[Any], Any]
) -> Callable[[_Class], _Class]:
    """A decorator of dataclasses: `print` shows a result with one field a line, and a notebook
    shows a table of them, and a figure.

    Fields that are `None`, and functions, are left out; of a mapping every entry has a line. A
    class that has a `__str__` of its own keeps it, as a report in plain words, where all arrays are
    numbers: those that JAX traces, and batches, are shown by their fields.

    **Arguments:**

    - `figure`: the function of `memjax.viz` that draws it, if any.
    - `fields`: what to write for a field in place of its value, as a function of the result.
    """

    def decorate(cls: _Class) -> _Class:
        report: Any = None if cls.__str__ is object.__str__ else cls.__str__

        def write_report(self: Any) -> str | None:
            if report is None or is_traced(self):
                return None
            try:
                return report(self)
            except _UNSAID:
                return None

        def write(self: Any) -> str:
            text = write_report(self)
            return _write_rows(cls.__name__, [*_rows(self, fields)]) if text is None else text

        def write_html(self: Any) -> str:
            text = write_report(self)
            drawn = "" if figure is None else _draw(figure, self)
            if text is not None:
                return f"<pre>{html.escape(text)}</pre>{drawn}"
            return _write_html(cls.__name__, [*_rows(self, fields)]) + drawn

        for name, function in (("__str__", write), ("_repr_html_", write_html)):
            function.__name__, function.__qualname__ = name, f"{cls.__qualname__}.{name}"
            setattr(cls, name, function)
        return cls

    return decorate


def _draw(function: str, result: Any) -> str:
    """The figure of a result in HTML; none of what cannot be drawn, such as a batch: a notebook is
    to show the table at any rate."""
    if is_traced(result):
        return ""
    # Figures are in a room above this one: it is looked up when a notebook asks for one.
    viz = importlib.import_module("memjax.viz")
    try:
        picture = getattr(viz, function)(result)._repr_png_()
    except Exception:
        return ""
    data = base64.b64encode(picture).decode()
    name = html.escape(type(result).__name__)
    source = f'src="data:image/png;base64,{data}"'
    return f'<img alt="figure of {name}" style="max-width: 100%" {source}>'


def _rows(result: Any, fields: Mapping[str, Callable[[Any], Any]]) -> Iterator[tuple[str, str]]:
    """The names of the fields of a result, and what is written for each."""
    for field in dataclasses.fields(result):
        value = getattr(result, field.name)
        if value is not None and field.name in fields:
            try:
                value = fields[field.name](result)
            except _UNSAID:
                pass
        if isinstance(value, Mapping):
            yield from ((str(name), describe(entry)) for name, entry in value.items())
        elif value is not None and not inspect.isroutine(value):
            yield field.name, describe(value)


def _write_rows(title: str, rows: list[tuple[str, str]]) -> str:
    width = max((len(name) for name, _ in rows), default=0)
    lines = [title]
    for name, text in rows:
        first = f"  {name.ljust(width)}  "
        lines += textwrap.wrap(
            text,
            _LINE,
            initial_indent=first,
            subsequent_indent=" " * len(first),
            break_long_words=False,
            break_on_hyphens=False,
        ) or [first.rstrip()]
    return "\n".join(lines)


def _write_html(title: str, rows: list[tuple[str, str]]) -> str:
    left = "text-align: left; vertical-align: top"
    cells = (
        f'<tr><th style="{left}">{html.escape(name)}</th>'
        f'<td style="{left}; white-space: pre-wrap; font-family: monospace">'
        f"{html.escape(text)}</td></tr>"
        for name, text in rows
    )
    return f"<b>{html.escape(title)}</b><table>{''.join(cells)}</table>"


def describe(value: Any) -> str:
    """A value in a line: numbers, some entries of a list of them, and of anything else its kind."""
    if isinstance(value, str):
        return value
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return _describe_array(value)
    if isinstance(value, (bool, int, float, complex)):
        return _number(value, 7)
    if isinstance(value, (tuple, list)):
        if value and all(isinstance(entry, str) for entry in value):
            return ", ".join(value)
        kinds = dict.fromkeys(
            "arrays" if eqx.is_array(entry) else type(entry).__name__ for entry in value
        )
        return f"{len(value)} of {', '.join(kinds)}" if value else "none"
    return _describe_tree(value)


def _describe_tree(value: Any) -> str:
    leaves = jax.tree.leaves(value)
    arrays = [leaf for leaf in leaves if eqx.is_array(leaf)]
    if not arrays:
        return shown(value)
    text = eqx.tree_pformat(value, width=10**6)
    if len(text) <= 72 and "\n" not in text:
        return text
    return f"{type(value).__name__} of {sum(leaf.size for leaf in arrays)} numbers"


def _describe_array(value: Any) -> str:
    # Only these are numbers that can be read here and now.
    held = not is_traced(value)
    if held and isinstance(value, jax.Array):
        held = value.is_fully_addressable and not value.is_deleted()
    number = jnp.issubdtype(value.dtype, jnp.number) or value.dtype == bool
    if not held or not number:
        kind = f"{value.dtype}[{','.join(map(str, value.shape))}]"
        return f"{kind}, traced" if is_traced(value) else kind
    values = np.asarray(value)
    if values.size == 0:
        return f"none, of shape {values.shape}"
    if values.ndim == 0:
        return _number(values.item(), 7)
    if values.ndim == 1:
        places = np.linspace(0, values.size - 1, min(values.size, _ENTRIES)).round().astype(int)
        # Of one width, so that those of several fields stand in columns.
        entries = "".join(f"{_number(entry, 4):>11}" for entry in values[places].tolist())
        return entries + (f"   of {values.size}" if values.size > _ENTRIES else "")
    return f"shape {values.shape}{_describe_range(values)}"


def _describe_range(values: np.ndarray) -> str:
    if values.dtype == bool:
        return f", {int(values.sum())} of {values.size} True"
    if np.iscomplexobj(values):
        return ", complex"
    finite = values[np.isfinite(values)]
    text, others = "", values.size - finite.size
    if finite.size:
        text = f", from {_number(finite.min().item(), 4)} to {_number(finite.max().item(), 4)}"
    return text + (f", {others} not finite" if others else "")


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}g}" if isinstance(value, (float, complex)) else str(value)
