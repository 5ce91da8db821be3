"""Reward functions that come with alignkit."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from alignkit import Answered, Reward, RewardModel, Settings, as_reward, load_function
from alignkit.errors import DataError
from pydantic import Field, field_validator


class LengthSettings(Settings):
    """Settings of the length reward."""

    target: int | None = Field(None, ge=1, description="tokens an answer should have (None: the shorter the better)")
    scale: float = Field(100.0, gt=0, description="tokens that cost one point")


class Length(Reward[LengthSettings]):
    """Minus the tokens an answer has, or is away from a target, over ``scale``."""

    name = "length"
    settings_type = LengthSettings

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return -|tokens - target| / scale."""
        target = self.settings.target or 0
        return [-abs(len(answer.answer_ids) - target) / self.settings.scale for answer in answers]


class RegexSettings(Settings):
    """Settings of the regex reward."""

    pattern: str = Field(description="Python regular expression")
    whole: bool = Field(False, description="the whole answer must match, not a part of it")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is no regular expression: {error}") from error
        return value


class Regex(Reward[RegexSettings]):
    """1 where an answer has the wanted form, else 0."""

    name = "regex"
    settings_type = RegexSettings

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return 1.0 or 0.0 each."""
        pattern = re.compile(self.settings.pattern, re.DOTALL)
        find = pattern.fullmatch if self.settings.whole else pattern.search
        return [float(find(answer.answer) is not None) for answer in answers]


class MatchSettings(Settings):
    """Settings of the match reward."""

    column: str = Field("answer", description="column of the data that holds the right answer")
    extract: str | None = Field(
        None, description="regular expression whose first group (or whole match) is compared, its last place in a text"
    )
    compare: Literal["text", "number"] = Field(
        "text", description="as text without outer spaces and case, or as numbers"
    )


class Match(Reward[MatchSettings]):
    """1 where an answer, or what is extracted from it, is the right one, else 0."""

    name = "match"
    settings_type = MatchSettings

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return 1.0 or 0.0 each; raises :class:`DataError` naming a row without the column."""
        return [float(self._right(answer)) for answer in answers]

    def _right(self, answer: Answered) -> bool:
        truth = answer.fields.get(self.settings.column)
        if truth is None:
            raise DataError(f"row {answer.id} has no column {self.settings.column!r} for reward match to compare with")
        said = self._extracted(answer.answer)
        return said is not None and said == self._extracted(str(truth), whole=True)

    def _extracted(self, text: str, *, whole: bool = False) -> str | float | None:
        if self.settings.extract is not None:
            found = list(re.finditer(self.settings.extract, text))
            if found:
                text = found[-1][1] if found[-1].re.groups else found[-1][0]
            elif not whole:
                return None
        if self.settings.compare == "text":
            return " ".join(text.split()).casefold()
        try:
            return float(text.replace(",", "").strip().rstrip("."))
        except ValueError:
            return None


class FunctionSettings(Settings):
    """Settings of the function reward."""

    function: str = Field(description="package.module:function")


class Function(Reward[FunctionSettings]):
    """Any function: of (prompt, answer), or in trl's form of (prompts, completions, **columns)."""

    name = "function"
    settings_type = FunctionSettings

    def __init__(self, settings: FunctionSettings) -> None:
        super().__init__(settings)
        self.ask = as_reward(load_function(settings.function), settings.function)

    def __call__(self, answers: Sequence[Answered]) -> Sequence[float]:
        """Return what the function says."""
        return self.ask(answers)


class TrainedRewardSettings(Settings):
    """Settings of the model reward."""

    path: str = Field(description="run, model or adapter directory of a trained reward model")
    max_length: int = Field(
        1024, ge=2, description="tokens of prompt and answer it reads, where it has another tokenizer"
    )


class TrainedReward(Reward[TrainedRewardSettings]):
    """What a trained reward model says of an answer."""

    name = "model"
    settings_type = TrainedRewardSettings

    def __init__(self, settings: TrainedRewardSettings) -> None:
        super().__init__(settings)
        self.model = RewardModel(settings.path, settings.max_length)

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return the rewards; the model is loaded when first asked."""
        return self.model.score(answers)
