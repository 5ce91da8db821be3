"""ARCHITECTURE.md is true: what it names exists, and its reading path explains everything before it is used."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
CORE = ROOT / "core" / "alignkit"
PAGE = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
MOST_LINES = 4_000
MOST_MODULES = 20
LONGEST_FILE = 320


def reading_path() -> list[str]:
    """Return the files of the reading path, in their order."""
    section = PAGE.partition("## Reading path")[2].partition("\n## ")[0]
    return [
        name
        for row in section.splitlines()
        if row.startswith("| `")
        for name in re.findall(r"`([^`]+)`", row.split("|")[1])
    ]


def imported_files(file: Path) -> set[str]:
    """Return the files of core that a file imports, imports for type checkers included."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("alignkit."):
            module = node.module.removeprefix("alignkit.").replace(".", "/")
            found |= {f"{module}.py", *(f"{module}/{alias.name}.py" for alias in node.names)}
    return found


def test_the_reading_path_explains_before_it_uses() -> None:
    path = reading_path()
    assert len(path) > 20
    for position, name in enumerate(path):
        later = imported_files(CORE / name) & set(path[position + 1 :])
        assert not later, f"{name} imports {sorted(later)}, which come later"


def test_the_reading_path_is_short_enough_to_read() -> None:
    lines = sum(len((CORE / name).read_text(encoding="utf-8").splitlines()) for name in reading_path())
    assert lines <= MOST_LINES


def test_every_package_and_file_it_names_exists() -> None:
    for name in re.findall(r"`((?:\w+/)+\w+\.py)`", PAGE):
        assert (CORE / name).is_file(), name
    for dotted in re.findall(
        r"`((?:contract|data|scoring|training|runs|system|models|onpolicy|evaluation)\.[a-z_.]+)`", PAGE
    ):
        places = [root / dotted.replace(".", "/") for root in (CORE, ROOT / "eval" / "alignkit_eval")]
        assert any(place.is_dir() or place.with_suffix(".py").is_file() for place in places), dotted


def test_few_modules_lie_directly_in_core() -> None:
    entries = [entry for entry in CORE.iterdir() if entry.suffix == ".py" or (entry / "__init__.py").is_file()]
    assert len(entries) <= MOST_MODULES


def test_no_file_is_long() -> None:
    parts = ("core", "eval", "plugins", "tests", "bench", "docs", "examples")
    files = [file for part in parts for file in (ROOT / part).rglob("*.py")]
    lengths = {str(file.relative_to(ROOT)): len(file.read_bytes().splitlines()) for file in files}
    assert len(lengths) > 300
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FILE} == {}
