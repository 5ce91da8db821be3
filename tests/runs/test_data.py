"""A run whose rows a service loads: everything that needs the rows later opens the run's plugins to get them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alignkit.demo import data_path

from tests.helpers.runs import short_options
from tests.helpers.third_party import Site

SERVICE = """
    import json
    from alignkit import RawRows, hookimpl
    from alignkit.demo import data_path

    class Mine:
        @hookimpl
        def align_load_data(self, source, split):
            if not source.startswith("mine:"):
                return None
            lines = data_path("train").read_text().splitlines()[:60]
            rows = [json.loads(line) for line in lines]
            return RawRows(rows, lambda i: f"{source}:{i + 1}", source)
"""
TRACKER = """
    from alignkit import hookimpl

    class Tracker:
        def __init__(self):
            open("tracker.txt", "a").write("opened\\n")

        @hookimpl
        def align_log(self, record):
            pass
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Site, Path]:
    """A finished run in a directory where both services are installed."""
    folder = tmp_path_factory.mktemp("site")
    site = Site(folder)
    site.install("mine-rows", SERVICE, group="services", mine="mine_rows:Mine")
    site.install("tracker", TRACKER, group="services", tracker="tracker:Tracker")
    options = [
        *short_options(6),
        "--set",
        "train.learning_rate=0.01",
        "--set",
        "run.services=mine,tracker",
        "--set",
        "run.plots=true",
    ]
    done = site.align("run", "--method", "orpo", "--model", "demo", "--data", "mine:a", "--name", "first", *options)
    assert done.returncode == 0, done.stderr
    return site, folder / "runs" / "first"


def test_its_rows_come_from_the_service(trained: tuple[Site, Path]) -> None:
    _, run = trained
    (source,) = json.loads((run / "run.json").read_text())["data"]["sources"]
    assert (source["source"], source["read"]) == ("mine:a", 60)


def test_evaluation_uses_the_rows_it_held_out(trained: tuple[Site, Path]) -> None:
    site, run = trained
    before = json.loads((run / "run.json").read_text())["evaluation"]["after"]["prefs"]
    (run / "eval" / "prefs.json").unlink()
    done = site.align("eval", run, "--suite", "prefs")
    assert done.returncode == 0, done.stderr
    assert json.loads((run / "eval" / "prefs.json").read_text())["metrics"] == before


def test_the_report_of_a_comparison_shows_its_texts(trained: tuple[Site, Path]) -> None:
    site, run = trained
    done = site.align("compare", run, "--baseline", "start", "--html", "page.html")
    assert done.returncode == 0, done.stderr
    page = (site.path / "page.html").read_text()
    held_out = {item["id"] for item in map(json.loads, (run / "eval" / "prefs.items.jsonl").read_text().splitlines())}
    rows = map(json.loads, data_path("train").read_text().splitlines())
    assert any(row["chosen"][-1]["content"] in page for row in rows if row["id"] in held_out)


def test_data_check_of_its_configuration_reads_them(trained: tuple[Site, Path]) -> None:
    site, run = trained
    done = site.align("data", "check", run / "run.yaml", "--json")
    assert done.returncode == 0, done.stderr
    assert [(found["source"], found["rows"]) for found in json.loads(done.stdout)] == [("mine:a", 60)]


def test_its_export_is_checked_on_them(trained: tuple[Site, Path]) -> None:
    site, run = trained
    done = site.align("export", run)
    assert done.returncode == 0, done.stderr


def test_a_service_that_loads_no_data_is_left_out_where_only_data_is_wanted(trained: tuple[Site, Path]) -> None:
    site, run = trained
    opened = (site.path / "tracker.txt").read_text()
    assert site.align("data", "check", run / "run.yaml").returncode == 0
    assert (site.path / "tracker.txt").read_text() == opened == "opened\n"


def test_without_the_service_the_message_names_it(trained: tuple[Site, Path]) -> None:
    site, run = trained
    done = site.align("eval", run, "--suite", "prefs", ALIGN_PLUGINS="tracker")
    assert done.returncode == 2
    assert "mine" in done.stderr
    assert "ALIGN_PLUGINS" in done.stderr
