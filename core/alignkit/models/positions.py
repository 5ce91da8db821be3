"""The positions a model has for tokens.

Past them, learned positions fail with an index error, and rotary ones give numbers the model was never trained for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from alignkit.config import ModelConfig
from alignkit.contract import Method
from alignkit.data.tokenise.rules import Room
from alignkit.errors import ConfigError, ModelError
from alignkit.models.configuration import read_config
from alignkit.models.paths import adapter_parts, is_classifier, resolve_path

_LIMITS = ("max_position_embeddings", "n_positions", "n_ctx")
_EXTENDED = ("linear", "dynamic", "yarn")
"""Kinds of rotary scaling whose factor extends ``max_position_embeddings`` where the latter was not raised with it."""


def position_limit(model: Any) -> int | None:
    """Return the most tokens that fit into the model's positions, or None where its configuration sets no limit."""
    config = getattr(model, "config", None)
    limit = None if config is None else configured_positions(config)
    return None if limit is None else limit - _skipped(model, limit)


def named_positions(config: ModelConfig) -> int | None:
    """Return the number of positions of the model that is named, by its configuration alone; None where it cannot be read."""
    path = resolve_path(config.name)
    try:
        base, _ = adapter_parts(path, config, weights=False)
        return configured_positions(read_config(base, config, classifier=is_classifier(path), meta=True))
    except ModelError:
        return None


def configured_positions(config: Any) -> int | None:
    """Return the number of positions by a model's configuration; ALiBi and state-space models have no limit (None).

    Rotary positions that are scaled extend to the original length times the factor.
    """
    config = config.get_text_config()
    limit = next((n for name in _LIMITS if isinstance(n := getattr(config, name, None), int) and n > 0), None)
    if limit is None or getattr(config, "alibi", False):
        return None
    for rope in _rotary(getattr(config, "rope_parameters", None)):
        if rope.get("rope_type") in _EXTENDED:
            original = rope.get("original_max_position_embeddings") or limit
            limit = max(limit, int(original * float(rope.get("factor") or 1)))
    return limit


def room(limit: int | None, method: Method[Any] | None = None) -> Room:
    """Return the room of rows in ``limit`` positions; raises ``ConfigError`` if answers that a method samples take all of it."""
    reserved = 0
    if method is not None and "reward" in method.needs:
        reserved = getattr(method.settings, "max_new_tokens", 0)
        if limit is not None and reserved >= limit:
            raise ConfigError(
                f"method.max_new_tokens is {reserved}, and the model has {limit} positions for prompt and answer"
            )
    return Room(limit, reserved)


def _rotary(parameters: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the rotary parameters, of every kind of layer where they differ."""
    if isinstance(parameters, Mapping):
        yield parameters
        yield from (values for values in parameters.values() if isinstance(values, Mapping))


def _skipped(model: Any, limit: int) -> int:
    """Return the number of learned positions in front of the first token: models like RoBERTa begin after the padding id."""
    for name, module in model.named_modules():
        padding = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding is not None and module.num_embeddings == limit:
            return int(padding) + 1
    return 0
