"""The columns in which installed plugins are listed."""

from __future__ import annotations

import contextlib
import io
import string
from pathlib import Path

import pytest
from alignkit.contract import registry
from alignkit_commands.descriptions import description
from alignkit_commands.listing import print_columns
from hypothesis import example, given
from hypothesis import strategies as st

DESCRIBED: tuple[registry.Group, ...] = (
    *(
        "align.methods",
        "align.suites",
        "align.rewards",
        "align.losses",
        "align.samplers",
        "align.schedulers",
        "align.engines",
    ),
    "align.stages",
)

words = st.text(string.ascii_letters + "-._:", max_size=120)


@given(st.lists(st.tuples(words, words, words), min_size=1, max_size=6))
@example([("a" * 100, "b", "c"), ("d", "e", "f")])
def test_columns_are_aligned_and_whole(rows: list[tuple[str, str, str]]) -> None:
    stream = io.StringIO()
    with contextlib.redirect_stdout(stream):
        print_columns(rows)
    lines = stream.getvalue().split("\n")[:-1]
    second, third = (sum(max(len(row[i]) for row in rows) + 2 for i in range(n)) for n in (1, 2))
    assert len(lines) == len(rows)
    for line, row in zip(lines, rows, strict=True):
        assert (line[:second].rstrip(), line[second:third].rstrip(), line[third:]) == row
        assert line == line.rstrip()


@pytest.mark.parametrize("columns", [60, 100, 400])
def test_descriptions_are_cut_to_the_width_of_a_terminal(monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("COLUMNS", str(columns))
    rows = [("NAME", "ABOUT", "PAPER"), ("a" * 8, "words " * 40, "arXiv:1"), ("b", "few words", "arXiv:22")]
    with contextlib.redirect_stdout(Terminal()) as stream:
        print_columns(rows, flexible=1)
    _, first, second = stream.getvalue().splitlines()
    assert max(len(first), len(second)) <= columns
    assert second.split("  ")[0] == "b"
    assert ("…" in first) == (columns < 270)
    assert "few words" in second
    assert first.endswith("arXiv:1")


@pytest.mark.parametrize(
    "entry", [e for group in DESCRIBED for e in registry.entries(group)], ids=lambda e: e.qualified
)
def test_every_built_in_plugin_describes_itself(entry: registry.PluginEntry) -> None:
    about = description(entry.value)
    assert len(about) > 15, f"{entry}: {about!r}"
    assert "\n" not in about


def test_descriptions_are_read_without_importing_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "unseen"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')\nfrom unseen.inner.deep import Thing as Named\n")
    (package / "inner" / "__init__.py").write_text("raise SystemExit('imported')\n")
    deep = 'class Thing:\n    """A ``thing``. And more.\n\n    Long.\n    """\n\nother = Thing()\n"""An object."""\nbare = 1\n'
    (package / "inner" / "deep.py").write_text(deep)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert description("unseen:Named") == "A thing"
    assert description("unseen.inner.deep:other") == "An object"
    for nothing in ("unseen.inner.deep:bare", "unseen.inner.deep:absent", "unseen.absent:x", "absent:x", "unseen"):
        assert description(nothing) == ""
