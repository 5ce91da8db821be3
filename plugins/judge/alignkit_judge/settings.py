"""Settings that every use of a judge has: which model, where it runs, and how it is asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from alignkit import Settings
from pydantic import Field, field_validator, model_validator

DEFAULT_TEMPLATE = """\
Two answers to the same prompt follow. Decide which of them is better: correct, helpful, and as long as it needs to be. \
The order of the answers means nothing.

[Prompt]
{prompt}

[Answer A]
{a}

[Answer B]
{b}

Which answer is better? Reply with one letter, A or B: """
"""What a judge is asked; ``{prompt}``, ``{a}`` and ``{b}`` are replaced."""

_FIELDS = ("{prompt}", "{a}", "{b}")
_OF_ENDPOINT = ("key_env", "options", "timeout", "retries", "concurrency", "price_per_million")
_OF_LOCAL = ("tokens_per_batch",)


class JudgeSettings(Settings):
    """Settings of a judge."""

    model: str = Field(
        description="the judge: a run, model directory or hub id; with url, the name of the model that is served there"
    )
    url: str | None = Field(
        None,
        description="address of an OpenAI-compatible endpoint, such as http://host:8000/v1 (default: a local model)",
    )
    key_env: str | None = Field(
        None, description="NAME of the environment variable with the endpoint's key (default: no key is sent)"
    )
    template: str | None = Field(
        None,
        description="what the judge is asked: a text with {prompt}, {a} and {b}, or the path of a file with it "
        "(default: see docs/judges.md)",
    )
    credit: Literal["letter", "probability"] = Field(
        "letter", description="what an order of the two answers counts: the letter (1 or 0), or its probability"
    )
    options: dict[str, Any] = Field(
        default_factory=dict,
        description="further fields of a request to the endpoint, or other values; null leaves one out: "
        "{max_tokens: null, max_completion_tokens: 500}",
    )
    timeout: float = Field(60.0, gt=0, description="seconds to wait for an answer of the endpoint")
    retries: int = Field(
        5,
        ge=0,
        description="further attempts after status 429 or 5xx, a time-out or a lost connection, after longer and longer waits",
    )
    concurrency: int = Field(8, ge=1, description="requests to the endpoint at a time")
    price_per_million: tuple[float, float] | None = Field(
        None, description="price of a million tokens sent and of a million received, to report the cost"
    )
    tokens_per_batch: int = Field(4096, ge=1, description="maximum tokens per forward pass of a local judge")

    @field_validator("url")
    @classmethod
    def _without_secrets(cls, value: str | None) -> str | None:
        if value is None:
            return None
        try:
            parts = urlsplit(value)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise ValueError("url must be an address such as http://host:8000/v1")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise ValueError(
                "url may hold no key, user or query, which would be recorded: put the key into an environment "
                "variable and its name into key_env"
            )
        return value.rstrip("/").removesuffix("/chat/completions")

    @field_validator("key_env")
    @classmethod
    def _name_of_variable(cls, value: str | None) -> str | None:
        if value is not None and (not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) or len(value) > 60):
            raise ValueError(
                "key_env is the name of an environment variable, such as OPENAI_API_KEY, not the key itself"
            )
        return value

    @field_validator("template")
    @classmethod
    def _filled(cls, value: str | None) -> str | None:
        if value is None:
            return None
        text = value
        if "{a}" not in value and "\n" not in value:
            try:
                text = Path(value).expanduser().read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError):
                raise ValueError(
                    f"template {value!r:.80} is neither a text with {{prompt}}, {{a}} and {{b}} nor a readable file"
                ) from None
        if missing := [name for name in _FIELDS if name not in text]:
            raise ValueError(f"template lacks {', '.join(missing)}")
        return text

    @field_validator("price_per_million")
    @classmethod
    def _not_negative(cls, value: tuple[float, float] | None) -> tuple[float, float] | None:
        if value is not None and min(value) < 0:
            raise ValueError("price_per_million must not be negative")
        return value

    @model_validator(mode="after")
    def _used(self) -> JudgeSettings:
        unread = _OF_LOCAL if self.url else _OF_ENDPOINT
        for key in unread:
            if key in self.model_fields_set and getattr(self, key) != type(self).model_fields[key].get_default(
                call_default_factory=True
            ):
                raise ValueError(f"{key} has no effect {'with' if self.url else 'without'} url")
        return self


REFERENCE = "reference"


class JudgeSuiteSettings(JudgeSettings):
    """Settings of the judge suite."""

    baseline: str = Field(
        REFERENCE,
        description="what the answers are compared with: reference (each row's chosen answer), or the answers of a run, "
        "model directory or hub id",
    )
    prompts: int = Field(100, ge=1, description="number of held-out prompts, evenly spaced over the rows")
    max_new_tokens: int = Field(64, ge=1, description="maximum length of an answer, in tokens (greedy)")
    calibration: str | None = Field(
        None, description="pairs with known preference to measure the judge's error on (default: the held-out pairs)"
    )
    calibration_pairs: int = Field(200, ge=0, description="number of such pairs, evenly spaced over the rows; 0: none")
    ratings: str | None = Field(
        None, description="human ratings of some of the same answers: ratings.csv beside the rate.key.json of its page"
    )
