"""Conformance tests of the rules of data checks."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from alignkit.config import CheckConfig
from alignkit.contract import DataRule, Hit, Row, Text
from alignkit.testing.installed import InstalledPlugin


class RuleConformance(InstalledPlugin):
    """Tests of one installed set of rules; set ``name``."""

    group = "align.rules"

    def test_rules_are_described(self) -> None:
        """Every rule has a name of its own and a title of one line."""
        rules = self._load()
        assert len({rule.name for rule in rules}) == len(rules), "two rules have the same name"
        bare = [rule.name for rule in rules if len(rule.title.splitlines()) != 1]
        assert not bare, f"the title of a rule is one line: {', '.join(bare)}"

    def test_any_rows_can_be_checked(self) -> None:
        """Rules take rows of every kind, with and without held-out rows, and find each row at most once, with a description."""
        for rule in self._load():
            for rows in ([], _rows()):
                for held_out in ([], _rows()[:2]):
                    found = _found(rule, rows, held_out)
                    numbers = [hit.row for hit in found]
                    assert len(set(numbers)) == len(numbers), f"{rule.name} finds a row twice"
                    assert set(numbers) <= set(range(len(rows))), f"{rule.name} finds rows that do not exist: {numbers}"
                    assert all(hit.about for hit in found), f"{rule.name} does not describe what it finds"

    def test_checking_changes_nothing(self) -> None:
        """The rows are unchanged, and a second check finds the same."""
        for rule in self._load():
            rows = _rows()
            first = _found(rule, rows, [])
            assert rows == _rows(), f"{rule.name} changes the rows"
            assert _found(rule, rows, []) == first, f"{rule.name} finds something else the second time"


def _found(rule: DataRule, rows: Sequence[Row], held_out: Sequence[Row]) -> list[Hit]:
    return list(rule.find(rows, held_out, CheckConfig()))


def _rows() -> list[Row]:
    turns: Text = ({"role": "user", "content": "2 + 2 ?"},)
    texts: list[tuple[Text, tuple[Text, ...]]] = [
        ("2 + 2 ?", ("4", "5")),
        ("2 + 2 ?", ("5", "4")),
        (turns, (({"role": "assistant", "content": "4"},), ({"role": "assistant", "content": ""},))),
        ("", ("a text",)),
        ("a prompt", ()),
    ]
    rows = [Row(i, f"row-{i}", deepcopy(prompt), answers, f"{i}") for i, (prompt, answers) in enumerate(texts)]
    return [*rows, Row(len(rows), "broken", "", (), "", unusable="chosen and rejected are equal")]
