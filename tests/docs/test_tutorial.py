"""The tutorial notebook runs from the first cell to the last."""

from pathlib import Path

import nbclient
import nbformat
import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs/tutorials/spdf.ipynb"


@pytest.mark.slow
def test_the_tutorial_runs() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    figures = [output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in str(output)]
    assert len(figures) == 3
    assert any("removed weights are not zero" in str(cell.get("outputs")) for cell in notebook.cells)
