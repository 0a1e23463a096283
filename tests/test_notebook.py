"""`docs/notebook.ipynb` runs from the first cell to the last, and finds what its words say."""

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).parent.parent / "docs" / "notebook.ipynb"


def printed(notebook, words):
    """What the one cell with these words in its code prints."""
    [cell] = [cell for cell in notebook.cells if cell.cell_type == "code" and words in cell.source]
    return "".join(output.get("text", "") for output in cell.outputs if output.get("name") == "stdout")


def test_what_is_stored_names_no_folder_of_a_machine():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "execution_count" in text  # it is stored with its results, which the site shows
    assert not re.search(r"/(root|home|tmp|Users|work)/", text)


@pytest.mark.slow
def test_the_notebook_runs_and_the_model_agrees_with_the_gold_reward(tmp_path):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    accuracy = float(printed(notebook, "gold_reward(one.prompt, one.response_a)").split()[0])
    assert 0.65 < accuracy <= 1.0
    best, random = map(float, re.findall(r"-?\d+\.\d+", printed(notebook, "picked.append")))
    assert best > random
