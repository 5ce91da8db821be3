"""The built-in rewards."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from alignkit import (
    Answered,
    LoadedModel,
    Reward,
    RewardModel,
    RunConfig,
    Settings,
    as_reward,
    build_model,
    load_function,
)
from alignkit.errors import DataError
from pydantic import Field, field_validator


class LengthSettings(Settings):
    target: int | None = Field(None, ge=1, description="desired number of tokens (default: the shorter the better)")
    scale: float = Field(100.0, gt=0, description="number of tokens that cost one point")


class Length(Reward[LengthSettings]):
    """Negative length of the answer, or its distance to a target length, divided by ``scale``."""

    name = "length"
    settings_type = LengthSettings

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        target = self.settings.target or 0
        return [-abs(len(answer.answer_ids) - target) / self.settings.scale for answer in answers]


class RegexSettings(Settings):
    pattern: str = Field(description="Python regular expression")
    whole: bool = Field(False, description="require the whole answer to match, not just a part")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from error
        return value


class Regex(Reward[RegexSettings]):
    """1 if the answer matches a regular expression, else 0."""

    name = "regex"
    settings_type = RegexSettings

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        pattern = re.compile(self.settings.pattern, re.DOTALL)
        find = pattern.fullmatch if self.settings.whole else pattern.search
        return [float(find(answer.answer) is not None) for answer in answers]


class MatchSettings(Settings):
    column: str = Field("answer", description="data column with the correct answer")
    extract: str | None = Field(
        None,
        description="regular expression; the first group (or else the whole) of its last match in a text is compared",
    )
    compare: Literal["text", "number"] = Field(
        "text", description="compare as text (ignoring case and extra white space), or as numbers"
    )


class Match(Reward[MatchSettings]):
    """1 if the answer, or the part extracted from it, equals a column of the data, else 0."""

    name = "match"
    settings_type = MatchSettings

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        return [float(self._right(answer)) for answer in answers]

    def _right(self, answer: Answered) -> bool:
        column = self.settings.column
        if (truth := answer.fields.get(column)) is None:
            raise DataError(f"row {answer.id} has no column {column!r}, which reward match compares the answer with")
        found = self._extracted(answer.answer)
        return found is not None and found == self._extracted(str(truth), whole=True)

    def _extracted(self, text: str, *, whole: bool = False) -> str | float | None:
        if self.settings.extract is not None:
            matches = list(re.finditer(self.settings.extract, text))
            if matches:
                text = matches[-1][1] if matches[-1].re.groups else matches[-1][0]
            elif not whole:
                return None
        if self.settings.compare == "text":
            return " ".join(text.split()).casefold()
        try:
            return float(text.replace(",", "").strip().rstrip("."))
        except ValueError:
            return None


class FunctionSettings(Settings):
    function: str = Field(description="package.module:function or path/to/file.py:function")


class Function(Reward[FunctionSettings]):
    """Any function of (prompt, answer), or, as in TRL, of (prompts, completions, **columns)."""

    name = "function"
    settings_type = FunctionSettings

    def __init__(self, settings: FunctionSettings) -> None:
        super().__init__(settings)
        self.function = as_reward(load_function(settings.function), settings.function)

    def __call__(self, answers: Sequence[Answered]) -> Sequence[float | None]:
        return self.function(answers)


class TrainedRewardSettings(Settings):
    path: str = Field(description="run, model or adapter directory of a reward model")
    max_length: int = Field(
        1024, ge=2, description="maximum tokens of prompt and answer, if the reward model has another tokenizer"
    )


class TrainedReward(Reward[TrainedRewardSettings]):
    """Reward from a trained reward model."""

    name = "model"
    settings_type = TrainedRewardSettings

    def __init__(self, settings: TrainedRewardSettings) -> None:
        super().__init__(settings)
        self.model = RewardModel(settings.path, settings.max_length)

    def models(self, config: RunConfig) -> list[LoadedModel]:
        return [build_model(type(config.model)(name=self.settings.path, dtype="float32"), meta=True)]

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        return self.model.score(answers)
