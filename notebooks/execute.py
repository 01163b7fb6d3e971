"""Executes notebooks and keeps what they show, with a record of what they were executed with.

    python notebooks/execute.py [notebooks/plateau_law.ipynb ...]

`tests/test_notebooks.py` fails for a notebook that was changed since, or that another version of
memjax has shown; its slow test executes it again and compares.
"""

import hashlib
import os
import sys
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

import memjax

FOLDER = Path(__file__).parent
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def record(notebook: Any) -> dict[str, str]:
    """What the outputs of a notebook depend on: its code, and the version of memjax."""
    code = "\0".join(cell.source for cell in code_cells(notebook))
    return {"version": memjax.__version__, "code": hashlib.sha256(code.encode()).hexdigest()}


def execute(path: Path) -> Any:
    notebook = read(path)
    # As users run it, without what tests set; but a name that is deprecated is an error.
    environment = os.environ | {"PYTHONWARNINGS": "error::DeprecationWarning:__main__"}
    environment.pop("XLA_FLAGS", None)
    NotebookClient(notebook, timeout=1200).execute(cwd=str(path.parent), env=environment)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # the times of day
    notebook.metadata["memjax"] = record(notebook)
    return notebook


def main(paths: list[Path]) -> None:
    for path in paths or NOTEBOOKS:
        nbformat.write(execute(path), path)
        print(path)


if __name__ == "__main__":
    main([Path(argument) for argument in sys.argv[1:]])
