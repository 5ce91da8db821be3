"""Models that a judge needs, opened as ``align eval`` opens its targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from alignkit import Omission
from alignkit.contract import Row
from alignkit.data.tokenise.render import Rendered, render
from alignkit.data.tokenise.rules import Encoder, TokenRules
from alignkit.errors import ConfigError, ModelError
from alignkit.models.positions import position_limit
from alignkit.runs.evaluation import Subject
from alignkit_eval.evaluation.targets import TargetSpec, find_target, open_target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ENDLESS = 1 << 30
"""Maximum length of texts that are not cut."""


def find_model(name: str, setting: str) -> TargetSpec:
    """Return what a run, model or adapter directory, hub id or ``demo`` is; nothing is loaded.

    Raises:
        ConfigError, ModelError: there is no such model, or it is a reward model; the message names the ``setting``.
    """
    try:
        return replace(find_target(name), has_data=False, own_data=False)
    except (ConfigError, ModelError) as error:
        raise type(error)(f"{setting}: {error}") from error


def open_model(found: TargetSpec, setting: str) -> Subject:
    """Load a model; raises ``ConfigError`` for a reward model."""
    subject, _ = open_target(found)
    if getattr(subject.policy, "classifier", False):
        raise ConfigError(f"{setting}: {found.name} is a reward model, which gives no answers: name a language model")
    return subject


def prompt_tokens(rows: Sequence[Row], model: Subject, reserved: int) -> tuple[list[list[int]], list[Omission]]:
    """Return the prompts as a model reads them, and how many had to be cut to leave it ``reserved`` positions.

    Raises ``ConfigError`` for an empty prompt, or no room for one.
    """
    limit = position_limit(model.policy.model)
    if limit is not None and reserved >= limit:
        raise ConfigError(f"eval.settings.judge.max_new_tokens is {reserved}, and {model.name} has {limit} positions")
    tokenizer: PreTrainedTokenizerBase = model.tokenizer
    rendered = [Rendered(render(row, tokenizer, row.place or row.id).prompt, ()) for row in rows]
    encoder = Encoder(tokenizer, TokenRules(ENDLESS if limit is None else limit - reserved, append_eos=False))
    encoded = encoder.encode(rendered)
    if unusable := next(
        (row.place or row.id for row, found in zip(rows, encoded, strict=True) if not found.parts), None
    ):
        raise ConfigError(f"{model.name} cannot read the prompt of row {unusable}: it is empty")
    cut = sum(found.prompt_lost > 0 for found in encoded)
    lost = Omission("prompts", cut, len(rows), f"cut on the left for {model.name}, to fit its {limit} positions")
    return [found.parts[0] for found in encoded], [lost] if cut else []
