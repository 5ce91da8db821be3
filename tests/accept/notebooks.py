"""Acceptance check of the example notebooks: each is executed by a kernel, from the first cell to the last."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from tests.accept.commands import ROOT

SHOWN = {"first_run": 2, "compare_and_decide": 1, "own_loss": 1}
"""Results of alignkit that each notebook shows as HTML."""


def notebooks(work: Path) -> dict[str, Any]:
    """Every example notebook is executed without an error or a line on stderr, and shows its results as HTML."""
    missing = [name for name in ("nbclient", "nbformat", "ipykernel") if not importlib.util.find_spec(name)]
    if missing:
        return {"skipped": f"pip install {' '.join(missing)}"}
    import nbformat
    from nbclient import NotebookClient

    seen = {}
    for path in sorted((ROOT / "examples" / "notebooks").glob("*.ipynb")):
        place = work / path.stem
        place.mkdir()
        notebook = nbformat.read(path, 4)
        NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(place)}}).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        said = [output.text for output in outputs if output.get("name") == "stderr"]
        assert not said, said
        pages = ["".join(output.data["text/html"]) for output in outputs if "text/html" in output.get("data", {})]
        ours = [page for page in pages if page.startswith("<div><strong>")]
        assert len(ours) == SHOWN[path.stem], (path.stem, len(ours))
        seen[path.stem] = f"{len(outputs)} outputs"
    assert seen.keys() == SHOWN.keys(), seen
    return seen
