"""Requests for completions, checked: what is not supported is refused, not ignored."""

from __future__ import annotations

import os
from typing import Any, Literal

from alignkit.errors import ConfigError
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

IGNORED = {"user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"}
"""Keys that do not change an answer."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0, None),
    "frequency_penalty": (0, None),
    "logit_bias": ({}, None),
    "best_of": (1, None),
    "suffix": ("", None),
    "tools": ([], None),
    "tool_choice": ("none", "auto", None),
    "response_format": ({"type": "text"}, None),
    "parallel_tool_calls": (True, False, None),
    "reasoning_effort": (None,),
    "modalities": (["text"], None),
}
"""Keys that are not supported, with the values that ask for nothing."""


class Request(BaseModel):
    """What both kinds of completions share."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    model: str
    n: int = Field(1, ge=1, le=128)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    stop: list[str] = []
    seed: int | None = Field(None, ge=0, le=2**62)
    stream: bool = False
    stream_options: dict[str, bool] | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("n", "temperature", "top_p", mode="before")
    @classmethod
    def _default(cls, value: Any) -> Any:
        return 1 if value is None else value

    @property
    def chosen_seed(self) -> int:
        """The seed given, or a new one."""
        return int.from_bytes(os.urandom(7), "big") if self.seed is None else self.seed


class Completion(Request):
    """A request to continue prompts: texts, or lists of token ids."""

    prompt: str | list[str] | list[int] | list[list[int]]
    max_tokens: int | None = Field(16, ge=0)
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: bool = False

    @property
    def prompts(self) -> list[str] | list[list[int]]:
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]
        return self.prompt  # type: ignore[return-value]


class Message(BaseModel):
    """A turn of a conversation, of text alone."""

    model_config = ConfigDict(extra="ignore")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str

    @field_validator("content", mode="before")
    @classmethod
    def _text(cls, value: Any) -> Any:
        parts = value if isinstance(value, list) else []
        if parts and all(isinstance(part, dict) and part.get("type") == "text" for part in parts):
            return "".join(str(part.get("text", "")) for part in parts)
        return value


class Chat(Request):
    """A request to answer a conversation."""

    messages: list[Message] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)


def parse(kind: type[Completion] | type[Chat], body: Any) -> Completion | Chat:
    """Return a checked request; raises :class:`ConfigError` naming the key that is wrong or not supported."""
    if not isinstance(body, dict):
        raise ConfigError("the request must be a JSON object")
    given = {key: value for key, value in body.items() if key not in IGNORED}
    for key, neutral in NEUTRAL.items():
        if key in given and given.pop(key) not in neutral:
            raise ConfigError(f"{key} is not supported by align serve")
    if given.get("top_logprobs", 0) is None:
        del given["top_logprobs"]
    if given.get("logprobs", 0) is None:
        del given["logprobs"]
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the request"
        raise ConfigError(f"{where}: {first['msg'][0].lower()}{first['msg'][1:]}") from None
