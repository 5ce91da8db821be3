"""What the content cache holds, when it was last used, and what is removed: ``align cache``."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from alignkit.system.cache import ContentCache
from alignkit.system.files import digest
from alignkit_commands.entries import SECTIONS, entries, prune

from tests.helpers.runs import align

CACHE = ContentCache("checks", ".txt")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def use(name: str, days: float = 0) -> None:
    """Use an entry of a megabyte, so many days ago."""
    key = digest(name)
    CACHE.fetch(key, lambda: b"x" * 1_000_000, read=Path.read_bytes, write=lambda path, made: path.write_bytes(made()))
    (path,) = (entry.path for entry in entries() if entry.key == key)
    if days:
        os.utime(path, (time.time() - days * 86_400,) * 2)


def fill(ages: dict[str, float]) -> None:
    for name, days in ages.items():
        use(name, days)


def test_the_use_of_an_entry_is_recorded() -> None:
    fill({"a": 3, "b": 2, "c": 1})
    assert [entry.key for entry in entries()] == [digest(name) for name in "abc"]
    use("a")
    assert [entry.key for entry in entries()] == [digest(name) for name in "bca"]
    assert entries()[-1].last_used == pytest.approx(time.time(), abs=3600)


def test_the_least_recently_used_entries_are_pruned_and_nothing_else(cache: Path) -> None:
    fill({"a": 10, "b": 4, "c": 1})
    (cache / "checks" / "notes.txt").write_text("mine")
    (cache / "mine" / digest("a")).mkdir(parents=True)
    assert [entry.key for entry in prune(time.time() - 5 * 86_400)] == [digest("a")]
    assert [entry.key for entry in prune(max_bytes=1_500_000)] == [digest("b")]
    assert prune(max_bytes=1_500_000) == []
    assert [entry.key for entry in prune(float("inf"))] == [digest("c")]
    assert names(cache / "checks") == ["notes.txt"]
    assert names(cache / "mine") == [digest("a")]


def test_the_command(cache: Path, tmp_path: Path) -> None:
    def said(*arguments: str) -> str:
        done = align("cache", *arguments, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert said("list") == ""
    fill({"a": 10, "b": 4, "c": 1})
    listed = json.loads(said("list", "--json"))
    assert [(e["section"], e["key"], e["bytes"]) for e in listed] == [
        ("checks", digest(name), 1_000_000) for name in "abc"
    ]
    assert [Path(e["path"]).parent for e in listed] == [cache / "checks"] * 3
    assert [line.split()[:4] for line in said("list").splitlines()] == [
        ["checks", digest(name)[:12], "1.0", "MB"] for name in "abc"
    ]
    lines = [line.split() for line in said("size").splitlines()]
    assert [line[0] for line in lines] == [*SECTIONS, "all"]
    assert lines[2][:4] == ["checks", "3", "3.0", "MB"]
    assert lines[-1] == ["all", "3", "3.0", "MB", str(cache)]
    assert said("prune", "--older-than", "5") == "entries removed: 1 (1.0 MB)\n"
    assert said("prune", "--older-than", "5", "--max-size", "0.0015") == "entries removed: 1 (1.0 MB)\n"
    assert [e["key"] for e in json.loads(said("list", "--json"))] == [digest("c")]
    assert said("prune", "--all") == "entries removed: 1 (1.0 MB)\n"
    assert said("list") == ""
    refused = align("cache", "prune", cwd=tmp_path)
    assert refused.returncode == 2
    assert "--older-than DAYS, --max-size GB or --all" in refused.stderr


def test_schemas_of_configurations_are_listed_and_pruned(cache: Path, tmp_path: Path) -> None:
    use("a", days=3)
    (cache / "schema").mkdir()
    for name in ("notes.txt", "sft-c593a94af219.json", "trl-dpo.json"):
        (cache / "schema" / name).write_text("{}")
    (cache / "checks" / "notes.json").write_text("mine")
    listed = align("cache", "list", cwd=tmp_path).stdout.splitlines()
    assert listed[0].split()[:2] == ["checks", digest("a")[:12]]
    assert {tuple(line.split()[:2]) for line in listed[1:]} == {("schema", "sft-c593a94af219"), ("schema", "trl-dpo")}
    assert len({line.index(" MB") for line in listed}) == 1
    os.utime(cache / "schema" / "trl-dpo.json", (time.time() - 9 * 86_400,) * 2)
    assert [entry.key for entry in prune(time.time() - 5 * 86_400)] == ["trl-dpo"]
    assert [entry.section for entry in prune(float("inf"))] == ["checks", "schema"]
    assert (names(cache / "schema"), names(cache / "checks")) == (["notes.txt"], ["notes.json"])
