"""Results in a notebook: short texts, escaped HTML with plots, data frames; and a notebook's logging is left alone."""

from __future__ import annotations

import json
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from alignkit import Run
from alignkit.errors import ConfigError
from alignkit.system.quiet import LIBRARIES
from alignkit_eval import Sweep, compare, evaluate
from alignkit_eval.sweeps.manifest import CellRecord

from tests.helpers.runs import short_run

NOTEBOOKS = Path(__file__).parents[3] / "examples" / "notebooks"
BAD = "<script>alert(1)</script> & '\" onerror=x"


class Tags(HTMLParser):
    """The tags of a page, and the schemes of their addresses."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.sources: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append(tag)
        assert {name for name, _ in attrs} <= {"style", "src", "alt"}, attrs
        self.sources += [str(value).partition(";")[0] for name, value in attrs if name == "src"]


def state() -> dict[str, Any]:
    """Return what a notebook has set up itself: handlers, where warnings go, filters."""
    loggers = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in LIBRARIES}
    root = logging.getLogger()
    return {
        "loggers": loggers,
        "root": ([*root.handlers], root.level),
        "warnings": (warnings.showwarning, [*warnings.filters]),
        "pyplot": "matplotlib.pyplot" in sys.modules,
    }


@pytest.fixture(scope="module")
def own_logging() -> Iterator[None]:
    """A notebook's own handlers, on loggers that a run takes over while it trains."""
    before = {name: (logging.getLogger(name).handlers, logging.getLogger(name).propagate) for name in LIBRARIES}
    logging.captureWarnings(False)
    for name in LIBRARIES:
        logging.getLogger(name).handlers, logging.getLogger(name).propagate = [logging.StreamHandler()], True
    yield
    for name, (handlers, propagate) in before.items():
        logging.getLogger(name).handlers, logging.getLogger(name).propagate = handlers, propagate


@pytest.fixture(scope="module")
def trained(own_logging: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, dict[str, Any], dict[str, Any]]:
    """A short run, and the state of logging before and after it."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.raises(ConfigError):
        short_run(folder, "refused", train={"logging_steps": 0})
    before = state()
    run = short_run(folder, "<b>&", eval={"suites": ["prefs"], "samples": 0})
    return run, before, state()


def test_logging_warnings_and_plots_of_a_notebook_are_left_alone(trained: tuple[Run, Any, Any]) -> None:
    _, before, after = trained
    assert after == before


def test_a_run_is_shown_with_its_metrics_and_curves(trained: tuple[Run, Any, Any]) -> None:
    run = trained[0]
    page = run._repr_html_()
    assert page is not None
    tags = Tags(page)
    assert "b" not in tags.found
    assert {*tags.sources} == {"data:image/svg+xml"}
    assert "&lt;b&gt;&amp;" in page
    assert "orpo, finished, 4 steps" in page
    assert "accuracy (sum)" in page
    assert len(repr(run)) < 200
    assert [*run.to_pandas()["step"]] == [record["step"] for record in run.metrics]


def test_an_evaluation_is_shown_with_its_intervals(trained: tuple[Run, Any, Any]) -> None:
    run = trained[0]
    (found,) = evaluate([run.directory], ["prefs"])
    found = replace(found, target=BAD, skipped=(BAD,))
    assert {*Tags(str(found._repr_html_())).found} == {"div", "strong", "table", "caption", "tr", "th", "td"}
    assert repr(found) == f"Evaluation of {BAD}: prefs on 30 items"
    row = found.to_pandas().set_index("metric").loc["accuracy_sum"]
    metric = found.results["prefs"].metrics["accuracy_sum"]
    assert (row["value"], row["low"], row["high"], row["n"]) == (*metric, 30)


def test_a_comparison_and_a_sweep_are_shown_with_the_forest_plot(trained: tuple[Run, Any, Any]) -> None:
    run = trained[0]
    found = compare([run.directory], "start", names={run.directory: BAD})
    tags = Tags(str(found._repr_html_()))
    assert tags.found.count("img") == 1
    assert "script" not in tags.found
    assert repr(found).startswith(f"Comparison of start, {BAD} (baseline start): ")
    table = found.to_pandas()
    assert [*zip(table["metric"], table["diff"], table["outcome"], strict=True)] == [
        (c.metric, c.diff, c.outcome) for c in found.contrasts
    ]
    cells = (
        CellRecord("a", {"lambda": 0}, 0, "finished", str(run.directory)),
        CellRecord("b", {"lambda": BAD}, 0, "failed", str(run.directory.parent / "none"), error=BAD),
    )
    sweep = Sweep(run.directory.parent, cells, found)
    assert repr(sweep) == f"Sweep {run.directory.parent}: 1 finished, 1 failed"
    assert "script" not in Tags(sweep._repr_html_()).found
    frame = sweep.to_pandas()
    assert [*frame["lambda"]] == [0, BAD]
    assert frame["prefs/accuracy_sum"][0] == run.evaluation["after"]["prefs"]["accuracy_sum"]["value"]


def code_of(notebook: Path) -> list[str]:
    stored = json.loads(notebook.read_text())
    assert all(not cell["outputs"] for cell in stored["cells"] if cell["cell_type"] == "code"), "clear the outputs"
    return ["".join(cell["source"]) for cell in stored["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_the_code_of_the_example_notebooks_is_python(notebook: Path) -> None:
    for cell in code_of(notebook):
        compile(re.sub(r"^%%writefile .*\n", "", cell), notebook.name, "exec")


def test_the_first_example_notebook_runs(tmp_path: Path) -> None:
    """All of them run in a kernel in ``make accept``."""
    names: dict[str, Any] = {}
    with chdir(tmp_path):
        for cell in code_of(NOTEBOOKS / "first_run.ipynb"):
            exec(cell.replace('"max_steps": 20', '"max_steps": 4'), names)
        assert names["first"].record["status"] == "finished"
        assert len(names["again"].to_pandas())
