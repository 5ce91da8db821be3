"""Rules of data checks on rows that differ in what is not text."""

from __future__ import annotations

from typing import Any

from alignkit.config import CheckConfig
from alignkit.contract.rows import Row
from alignkit_checks.rules import contradictions, duplicates


def test_labels_and_tools_tell_rows_apart() -> None:
    """The same answer labelled both ways is a contradiction, no duplicate; one question with other tools is neither."""
    asked = {"prompt": ({"role": "user", "content": "which tool ?"},), "answers": ("this one",)}
    about: list[dict[str, Any]] = [
        *({"prompt": "q ?", "answers": ("a",), "fields": {"label": label}} for label in (True, False, True)),
        *({**asked, "tools": ({"name": name},)} for name in ("one", "other", "one")),
        *({"prompt": "sky ?", "answers": answers} for answers in (("blue", "red"), ("red", "blue"))),
    ]
    rows = [Row(**{"position": i, "id": str(i), "cluster": "", **row}) for i, row in enumerate(about)]
    assert [hit.row for hit in duplicates(rows, (), CheckConfig())] == [2, 5]
    assert [hit.row for hit in contradictions(rows, (), CheckConfig())] == [0, 1, 2, 6, 7]
