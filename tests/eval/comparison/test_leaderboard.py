"""Leaderboards: runs on the same items ranked together, groups, the front of quality and cost, and what is left out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alignkit.errors import ConfigError
from alignkit_eval.comparison.compare import compare
from alignkit_eval.leaderboard.board import Entry, leaderboard
from alignkit_eval.leaderboard.find import Filter

from tests.helpers.comparison import evaluated
from tests.helpers.runs import align

LOW, HIGH = "orpo lambda=0.0", "orpo lambda=5.0"


@pytest.fixture
def directory(grid: dict[str, Path], tmp_path: Path) -> Path:
    """Return a directory with the runs of a grid, one of them in a directory of its own."""
    for name, run in grid.items():
        shutil.copytree(run, tmp_path / "all" / ("deeper" if name == "l5-s1" else "") / name)
    return tmp_path / "all"


def entries(directory: Path, **about: Any) -> dict[str, Entry]:
    (board,) = leaderboard(directory, **about).boards
    return {entry.name: entry for entry in board.entries}


def test_arms_are_ranked_with_the_numbers_of_a_comparison(directory: Path) -> None:
    found = entries(directory)
    comparison = compare(sorted(path.parent for path in directory.rglob("run.json")))
    assert set(found) == {LOW, HIGH}
    assert next(iter(found)) == max(found, key=lambda name: found[name].value.value)
    assert next(iter(found.values())).letters == "a"
    for arm in comparison.arms:
        entry = found[arm.name]
        assert entry.seeds == (0, 1)
        assert entry.value.value == pytest.approx(arm.metrics["prefs"]["accuracy_sum"].value)
        assert (entry.cost["tokens"], entry.cost["memory_gb"]) == (arm.cost.tokens, arm.cost.memory_gb)
        timings = [json.loads((run / "run.json").read_text())["timings"] for run in arm.runs]
        spent = [timing[stage]["cpu_seconds"] for timing in timings for stage in ("train", "reference")]
        assert entry.cost["cpu_seconds"] == pytest.approx(sum(spent) / 2)


def test_the_front_has_whatever_is_not_worse_in_both(directory: Path) -> None:
    def costs(low: float, high: float) -> dict[str, Entry]:
        for path in directory.rglob("run.json"):
            record = json.loads(path.read_text())
            record["train"]["tokens"] = low if "l0" in path.parent.name else high
            path.write_text(json.dumps(record))
        return entries(directory)

    best = next(iter(costs(10, 10)))
    other = ({LOW, HIGH} - {best}).pop()
    found = costs(10, 20) if best == LOW else costs(20, 10)
    assert "tokens" in found[best].front
    assert "tokens" not in found[other].front  # worse and dearer
    found = costs(20, 10) if best == LOW else costs(10, 20)
    assert all("tokens" in entry.front for entry in found.values())


def test_other_items_and_other_metrics_are_listed_apart(
    directory: Path, edited: Callable[..., Path], grid: dict[str, Path]
) -> None:
    shorter = edited("l5-s0", "eval/prefs.items.jsonl", lambda rows: rows[1:], "shorter")
    running = edited("l0-s0", "run.json", lambda record: record | {"status": "running"}, "running")
    no_prefs = evaluated(grid["l0-s0"] / "eval", edited)
    (no_prefs / "eval/prefs.json").unlink()
    for run in (shorter, running, no_prefs):
        shutil.move(run, directory / run.name)
    record = json.loads((directory / "shorter/run.json").read_text())
    record["config"]["method"]["lambda"] = 7.0
    (directory / "shorter/run.json").write_text(json.dumps(record))
    found = leaderboard(directory)
    assert [[entry.name for entry in board.entries] for board in found.boards][1] == ["orpo"]
    assert "evaluated on other items" in found.boards[1].reason
    assert "0 only here, 1 only there" in found.boards[1].reason
    reasons = {apart.path.name: apart.reason for apart in found.apart}
    assert reasons["running"] == "is not a finished run (its status is running)"
    assert reasons["model"] == "was not evaluated by accuracy_sum"


def test_of_two_runs_of_one_configuration_and_seed_the_newer_is_ranked(directory: Path) -> None:
    shutil.copytree(directory / "l0-s0", directory / "older")
    record = json.loads((directory / "older/run.json").read_text())
    (directory / "older/run.json").write_text(json.dumps(record | {"started": 0.0}))
    found = leaderboard(directory)
    assert [(apart.path.name, "which is newer" in apart.reason) for apart in found.apart] == [("older", True)]


def test_filters_metrics_and_orders(directory: Path) -> None:
    assert list(entries(directory, where=["lambda=5"])) == ["orpo"]
    assert len(entries(directory, where=["method=orpo", "lambda=0,5", "seed=1"])) == 2
    ordered = entries(directory, metric="perplexity", sort="tokens").values()
    assert [entry.cost["tokens"] for entry in ordered] == sorted(entry.cost["tokens"] or 0 for entry in ordered)
    assert list(entries(directory, sort="name")) == [LOW, HIGH]
    lower = list(entries(directory, metric="perplexity/perplexity").values())
    assert lower[0].value.value <= lower[1].value.value


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ({"metric": "acuracy_sum"}, 'no run has it, did you mean "accuracy_sum"'),
        ({"where": ["lamda=1"]}, '--where lamda: no run has this key, did you mean "lambda"'),
        ({"where": ["lambda=9"]}, "the filters leave none"),
        ({"where": ["lambda"]}, "write KEY=VALUE"),
        ({"sort": "price"}, "--sort price: sort by quality"),
    ],
)
def test_what_cannot_be_meant_is_refused(about: dict[str, Any], message: str, directory: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        leaderboard(directory, **about)


def test_a_directory_without_runs(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no run below"):
        leaderboard(tmp_path)
    with pytest.raises(ConfigError, match="is not a directory"):
        leaderboard(tmp_path / "none")
    assert Filter("a=1, x").values == [1, "x"]


def test_the_command_prints_it_as_table_page_and_json(directory: Path, tmp_path: Path) -> None:
    done = align("leaderboard", directory, "--html", tmp_path / "board.html", "--top", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "has the best accuracy (sum) of 2 arms" in done.stdout
    assert "1 more: leave out --top" in done.stdout
    page = (tmp_path / "board.html").read_text()
    assert all(name in page for name in (LOW, HIGH, "Quality against cost"))
    done = align("leaderboard", directory, "--json", cwd=tmp_path)
    assert [len(board["entries"]) for board in json.loads(done.stdout)["boards"]] == [2]
