"""Acceptance checks of the examples: notebooks, executed from the first cell to the last, and retrieval."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from pathlib import Path
from typing import Any

from tests.accept.commands import ALIGN, ROOT, command

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


def retrieval(work: Path) -> dict[str, Any]:
    """The example alignkit-rag passes its tests; its pipeline runs on the demo, and two indexes are compared."""
    names = ("alignkit_rag", "faiss", "sentence_transformers")
    if missing := [name for name in names if not importlib.util.find_spec(name)]:
        return {"skipped": f"{', '.join(missing)} not installed: pip install -e 'examples/alignkit-rag[sentences]'"}
    example = Path(shutil.copytree(ROOT / "examples" / "alignkit-rag", work / "rag"))
    kit = ["-q", "-p", "alignkit.testing", "-p", "no:cacheprovider", "--rootdir", str(example)]
    told = command(sys.executable, "-m", "pytest", *kit, example / "tests", cwd=example).stdout
    command(ALIGN, "pipeline", "rag.yaml", cwd=example)
    said = command(ALIGN, "compare", "runs/rag/retrieval-sft", "runs/rag/retrieval", cwd=example).stdout
    return {"tests": told.splitlines()[-1], "verdict": said.splitlines()[0]}
