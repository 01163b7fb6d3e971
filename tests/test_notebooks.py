"""Notebooks show what memjax computes now."""

import re

import numpy as np
import pytest

from execute import code_cells, execute, NOTEBOOKS, read, record

NUMBER = re.compile(r"[-+]?\d+(?:\.\d*)?(?:e[-+]?\d+)?")
each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@each
def test_notebook_is_as_it_was_executed(path):
    notebook = read(path)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert notebook.metadata.get("memjax") == record(notebook), "run notebooks/execute.py"


@pytest.mark.slow
@each
# The event loop of the kernel's messages warns of its own sockets when it is closed.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::RuntimeWarning")
def test_notebook_shows_what_it_shows_when_executed(path):
    committed, executed = code_cells(read(path)), code_cells(execute(path))
    for there, here in zip(committed, executed, strict=True):
        # The words and, to within what other processors round differently, the numbers.
        assert NUMBER.split(shown(here)) == NUMBER.split(shown(there))
        found, kept = (list(map(float, NUMBER.findall(shown(cell)))) for cell in (here, there))
        np.testing.assert_allclose(found, kept, rtol=1e-2, atol=1e-12)


def shown(cell):
    """The text that a cell shows, spaced alike: the kernel cuts it into streams as it comes, and
    the columns of tables are as wide as their numbers."""
    texts = []
    for output in cell.outputs:
        assert output.output_type != "error"
        if output.output_type == "stream":
            texts.append(output.text)
        elif "image/png" not in output.data:
            texts.append(output.data.get("text/plain", ""))
    return " ".join("".join(texts).split())
