"""The examples run as a reader would run them, on the demo model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

EXAMPLES = Path(__file__).parent.parent / "examples"

SAYS = {
    "ask.py": "stringed instrument",
    "conversation.py": "Your name is Anna.",
    "certainty.py": "####",
    "quantizers.py": "8x7B",
    "routing.py": "dog",
    "speculation.py": "guessed",
}


def test_every_example_is_tried():
    assert {p.name for p in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", SAYS)
def test_example(name: str):
    run = subprocess.run([sys.executable, EXAMPLES / name], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert SAYS[name] in run.stdout


def test_notebook():
    notebook = nbformat.read(EXAMPLES / "tour.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": EXAMPLES}}).execute()
    printed = [o.get("text", "") for c in notebook.cells for o in c.get("outputs", [])]
    assert any("stringed instrument" in text for text in printed)
    assert any("Your favorite color is green." in text for text in printed)
