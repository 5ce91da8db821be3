"""The columns in which installed plugins are listed."""

from __future__ import annotations

import contextlib
import io
import string

from alignkit_commands.listing import print_columns
from hypothesis import example, given
from hypothesis import strategies as st

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
