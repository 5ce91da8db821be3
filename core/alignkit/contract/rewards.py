"""The vocabulary of rewards: what one is given, what it is, and how a configuration names it.

Nothing here imports torch, so that listing stays light.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Generic, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from alignkit.contract.types import SettingsT

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from alignkit.contract.rows import Text


@dataclass(frozen=True)
class Answered:
    """A prompt and one answer to it, as rewards see them."""

    id: str
    prompt: Text
    """As the data has it: text, or the messages of a conversation."""
    answer: str
    """The answer's text, without special tokens."""
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]
    """Its tokens, the end token included where the model ended it."""
    ended: bool
    """Whether the model ended the answer itself."""
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    """Of the policy: what the ids are ids of."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """The row's other columns: a solution, a difficulty."""


class Reward(ABC, Generic[SettingsT]):
    """Base of a reward plugin, named under the entry-point group ``align.rewards``."""

    name: ClassVar[str]
    settings_type: ClassVar[type[BaseModel]]

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    @abstractmethod
    def __call__(self, answers: Sequence[Answered]) -> Sequence[float]:
        """Return how good each answer is: one finite number each, in their order."""


class NamedReward(Protocol):
    """A reward of a run, loaded with its settings."""

    @property
    def label(self) -> str:
        """Its name in logs."""
        ...

    def __call__(self, answers: Sequence[Answered]) -> list[float]:
        """Return one finite reward an answer; raises :class:`~alignkit.errors.RunFailedError` naming the rows otherwise."""
        ...


class RewardSpec(BaseModel):
    """One reward of a sum: its name, its weight, and its own settings."""

    model_config = ConfigDict(extra="allow", frozen=True, allow_inf_nan=False)

    name: str = Field(description="an installed reward, the path of a trained reward model, or package.module:function")
    weight: float = Field(1.0, description="what multiplies it in the sum")

    @model_validator(mode="before")
    @classmethod
    def _name_alone(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @property
    def settings(self) -> dict[str, Any]:
        """The reward's own settings as given."""
        return dict(self.model_extra or {})


def _one_or_many(value: Any) -> Any:
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return [value] if isinstance(value, dict) else value


RewardSpecs = Annotated[list[RewardSpec], BeforeValidator(_one_or_many)]
"""Rewards of a sum: a list, one alone, or names with commas."""
