from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
# The event loop of the kernel's messages warns of its own sockets when it is closed.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_notebook_runs(path):
    notebook = nbformat.read(path, as_version=4)
    assert any(cell.get("outputs") for cell in notebook.cells), "commit it executed"
    NotebookClient(notebook, timeout=300).execute(cwd=str(path.parent))
    # What ran here prints the same results as what is committed.
    committed = nbformat.read(path, as_version=4)
    for here, there in zip(notebook.cells, committed.cells, strict=True):
        assert _printed(here).split()[:1] == _printed(there).split()[:1]


def _printed(cell):
    """What a cell prints; the kernel cuts it into streams as it comes."""
    outputs = cell.get("outputs", [])
    return "".join(out.text for out in outputs if out.output_type == "stream")
