"""Tables and records as text."""

from typing import Any

from .._lazy import xr
from .._text import format_table
from ..report import Table


def list_records(fit: "xr.Dataset") -> list[Any]:
    return fit.to_dataframe().reset_index().to_dict("records")


def write_table(table: Table) -> str:
    note = f"\n{table.note}\n" if table.note else ""
    return f"{table.title}\n{format_table(table.header, table.rows)}\n{note}"
