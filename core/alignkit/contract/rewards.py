"""The types of reward plugins and of the configuration's reward lists."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from alignkit.config import split_words
from alignkit.contract.rows import Text
from alignkit.contract.types import LoadsModels, SettingsT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Answered:
    """A prompt and one sampled answer, the input of rewards."""

    id: str
    """Id of the prompt's row."""
    prompt: Text
    """The prompt as in the data: text, or the messages of a conversation."""
    answer: str
    """Text of the answer, without special tokens."""
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]
    """Tokens of the answer, with the end token if the model ended it."""
    ended: bool
    """Whether the model ended the answer itself, before the maximum length."""
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    """The policy's tokenizer, which the ids belong to."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """Other columns of the row, e.g. a solution."""
    place: str = ""
    """Location of the row (file:line)."""


class Reward(LoadsModels, ABC, Generic[SettingsT]):
    """Base of a reward plugin, registered in the entry-point group ``align.rewards``."""

    name: ClassVar[str]
    settings_type: ClassVar[type[BaseModel]]

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    @abstractmethod
    def __call__(self, answers: Sequence[Answered]) -> Sequence[float | None]:
        """Return the reward of each answer in order: a finite number, or None where the reward does not apply."""


class NamedReward(Protocol):
    """A reward of a run, loaded with its settings."""

    @property
    def label(self) -> str:
        """The reward's name in logs."""

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return one reward per answer, NaN where it was not judged.

        Raises :class:`~alignkit.errors.RunFailedError` naming the reward and the rows.
        """


class RewardSpec(BaseModel):
    """One reward of a weighted sum: its name, weight and settings."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str = Field(
        description="an installed reward, the path of a trained reward model, package.module:function or path/to/file.py:function"
    )
    weight: float = Field(1.0, description="weight of the reward in the sum")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def settings(self) -> dict[str, Any]:
        """The reward's settings as given."""
        return dict(self.model_extra or {})


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, dict) else split_words(value)


RewardSpecs = Annotated[list[RewardSpec], BeforeValidator(_one_or_many)]
"""Rewards of a weighted sum: a list, a single reward, or names separated by commas."""
