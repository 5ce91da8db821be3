"""What a command prints before it loads large libraries."""

from __future__ import annotations

import pytest

from tests.helpers.runs import ALIGN
from tests.helpers.third_party import Site

SLOW = """
import click
from alignkit import Command

SLOW = Command("align_slow:slow", "Load a library.")

@click.command()
@click.argument("library", required=False)
def slow(library):
    if library:
        __import__(library)
    click.echo("done", err=True)
"""


def said(site: Site, *words: str) -> list[str]:
    return list(site.run(ALIGN, *words).stderr.splitlines())


@pytest.fixture
def slow(site: Site) -> Site:
    """A command of another package, and libraries that say when they are imported."""
    site.install("align-slow", SLOW, group="commands", slow="align_slow:SLOW")
    for library in ("torch", "scipy", "other"):
        (site.path / f"{library}.py").write_text(f"import sys\nprint('{library} is imported', file=sys.stderr)\n")
    return site


@pytest.mark.parametrize("library", ["torch", "scipy"])
def test_a_command_speaks_before_it_loads_a_large_library(slow: Site, library: str) -> None:
    assert said(slow, "slow", library) == ["align slow: loading libraries", f"{library} is imported", "done"]


@pytest.mark.parametrize(("words", "expected"), [((), ["done"]), (("other",), ["other is imported", "done"])])
def test_a_quick_command_says_nothing_more(slow: Site, words: tuple[str, ...], expected: list[str]) -> None:
    assert said(slow, "slow", *words) == expected


@pytest.mark.parametrize("command", ["pipeline", "sweep"])
def test_a_missing_file_is_named_before_libraries_are_loaded(slow: Site, command: str) -> None:
    (line,) = said(slow, command, "absent.yaml")
    assert line.startswith("Error: absent.yaml: no such file")
    assert ("align examples" in line) == (command == "pipeline")
