"""The reward ``judge``: how often an answer wins, by the judge of the suite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from alignkit import Answered, LoadedModel, Reward, RunConfig, plain_text
from alignkit.errors import ConfigError, DataError
from pydantic import Field

from alignkit_judge.judging import Question, Verdict, compare, text_of
from alignkit_judge.opening import open_judge
from alignkit_judge.settings import JudgeSettings

GROUP = "group"


class JudgeRewardSettings(JudgeSettings):
    """Settings of the judge reward."""

    against: str = Field(
        GROUP,
        description="what an answer is compared with: group (the other answers sampled for its prompt), or the data column "
        "that holds a reference answer",
    )
    opponents: int | None = Field(
        None, ge=1, description="compare each answer of a group with at most so many of the others (default: with all)"
    )


class JudgeReward(Reward[JudgeRewardSettings]):
    """Mean win rate of an answer over the other answers to its prompt, or over a reference answer, by a judge."""

    name = "judge"
    settings_type = JudgeRewardSettings

    def __init__(self, settings: JudgeRewardSettings) -> None:
        super().__init__(settings)
        if settings.opponents is not None and settings.against != GROUP:
            raise ConfigError("reward judge: opponents has no effect unless against is group")
        self.judge = open_judge(settings)
        """Every process asks it about its own answers."""

    def models(self, config: RunConfig) -> list[LoadedModel]:
        return self.judge.models()

    def __call__(self, answers: Sequence[Answered]) -> list[float | None]:
        """Return each answer's mean credit in [0, 1]; None where the judge gives no verdict on any of its comparisons."""
        pairs = list(self._pairs(answers))
        verdicts = compare(self.judge, [question for _, _, question in pairs])
        credits: list[list[float]] = [[] for _ in answers]
        for (i, j, _), verdict in zip(pairs, verdicts, strict=True):
            for which, credit in self._credits(i, j, verdict):
                credits[which].append(credit)
        return [sum(found) / len(found) if found else None for found in credits]

    def _credits(self, i: int, j: int | None, verdict: Verdict | None) -> Iterator[tuple[int, float]]:
        if verdict is not None:
            credit = verdict.credit(self.settings.credit)
            yield i, credit
            if j is not None:
                yield j, 1 - credit

    def _pairs(self, answers: Sequence[Answered]) -> Iterator[tuple[int, int | None, Question]]:
        """Yield the positions of two answers that are compared (None: the reference) and the question about them."""
        if self.settings.against != GROUP:
            for i, answer in enumerate(answers):
                yield i, None, _question(answer, self._reference(answer))
            return
        groups: dict[str, list[int]] = {}
        for i, answer in enumerate(answers):
            groups.setdefault(answer.id, []).append(i)
        for group in groups.values():
            if len(group) < 2:
                raise ConfigError(
                    "reward judge compares the answers to a prompt with one another, and there is one: sample several "
                    "(method.num_generations), or set against to a column with a reference answer"
                )
            for a, b in _rounds(len(group), self.settings.opponents):
                yield group[a], group[b], _question(answers[group[a]], answers[group[b]].answer.strip())

    def _reference(self, answer: Answered) -> str:
        value = answer.fields.get(self.settings.against)
        if isinstance(value, str):
            return value.strip()
        if isinstance(value, list | tuple) and value and all(isinstance(turn, dict) for turn in value):
            return plain_text(tuple(value)).strip()
        raise DataError(
            f"{answer.place or answer.id}: the row has no answer in the column {self.settings.against!r} (against of reward judge)"
        )


def _question(answer: Answered, other: str) -> Question:
    return Question(answer.id, text_of(answer.prompt), answer.answer.strip(), other)


def _rounds(count: int, opponents: int | None) -> list[tuple[int, int]]:
    """Return which of ``count`` answers are compared: all pairs, or each with the next ``opponents / 2`` in a circle.

    >>> _rounds(3, None), _rounds(4, 2), len(_rounds(8, 4))
    ([(0, 1), (0, 2), (1, 2)], [(0, 1), (1, 2), (2, 3), (3, 0)], 16)
    """
    if opponents is None or opponents >= count - 1:
        return list(combinations(range(count), 2))
    if opponents == 1:
        return [(i, i + 1) for i in range(0, count - 1, 2)] + ([(count - 1, 0)] if count % 2 else [])
    return [(i, (i + step) % count) for i in range(count) for step in range(1, opponents // 2 + 1)]
