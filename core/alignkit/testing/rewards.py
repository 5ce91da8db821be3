"""Conformance tests of rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pytest

from alignkit.contract import Answered, RewardSpec
from alignkit.onpolicy.rewards import open_rewards
from alignkit.testing.installed import InstalledPlugin, check_schema
from alignkit.testing.tiny import END, Words


class RewardConformance(InstalledPlugin):
    """Tests of one installed reward; set ``name``."""

    group = "align.rewards"
    fields: ClassVar[Mapping[str, Any]] = {}
    """Columns of the data that the reward reads, with a value."""
    prompt: ClassVar[str] = "what is two plus two ?"

    def test_settings_are_complete(self) -> None:
        """Every setting is described, and unknown keys are rejected."""
        plugin = self._load()
        if isinstance(plugin, type):
            check_schema(plugin.settings_type)  # type: ignore[attr-defined]

    def test_one_finite_number_an_answer(self) -> None:
        """Every answer gets one finite number, including empty, truncated and meaningless ones."""
        values = self._score(self._answers())
        assert len(values) == 4
        assert all(math.isfinite(value) for value in values)

    def test_answers_are_rewarded_one_by_one(self) -> None:
        """An answer's reward does not depend on the order of the batch or on the other answers."""
        answers = self._answers()
        values = self._score(answers)
        assert self._score(answers[::-1]) == pytest.approx(values[::-1]), "the reward depends on the answers' order"
        alone = [self._score([answer])[0] for answer in answers]
        assert alone == pytest.approx(values, rel=1e-4, abs=1e-4), "the reward depends on the batch's other answers"

    def test_nothing_is_asked_about_nothing(self) -> None:
        """An empty batch, as in a process without rows, gets no rewards."""
        assert self._score([]) == []

    def _score(self, answers: Sequence[Answered]) -> list[float]:
        (reward,) = open_rewards([RewardSpec.model_validate({"name": self.name, **self.settings})])
        return reward(answers)

    def _answers(self) -> list[Answered]:
        words: Any = Words()
        texts = [("two plus two is four .", True), ("", True), ("two plus", False), ("4 " * 40, False)]
        made = []
        for i, (text, ended) in enumerate(texts):
            ids = [*range(5, 5 + len(text.split())), *([END] if ended else [])]
            made.append(Answered(f"row-{i}", self.prompt, text, [1, 7, 9], ids, ended, words, dict(self.fields)))
        return made
