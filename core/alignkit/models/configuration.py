"""Reading of a model's configuration."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.config import ModelConfig
from alignkit.contract.registry import provided
from alignkit.errors import ModelError
from alignkit.models.directory import blamed, read_object
from alignkit.models.own_code import with_own_code

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def read_config(path: str, config: ModelConfig, *, classifier: bool, meta: bool) -> PreTrainedConfig:
    """Return the configuration in ``path``; with ``meta`` the model may be larger than this machine's memory.

    Raises:
        ModelError: it cannot be read, or an installed package refuses it (``align.checks``).
    """
    from transformers import AutoConfig

    def load(trusted: bool) -> PreTrainedConfig:
        try:
            return AutoConfig.from_pretrained(path, revision=config.revision, trust_remote_code=trusted)
        except Exception as error:
            raise unreadable(path, error) from error

    found = with_own_code(load, path, config)
    if check := provided("align.checks", "model"):
        check(path, found, config, classifier=classifier, meta=meta)
    return found


def unreadable(path: str, error: Exception, use: Callable[[Any], object] = bool) -> ModelError:
    """Return an error that names the key of ``config.json`` without which it can be read, and ``use`` works on it."""
    from transformers import CONFIG_MAPPING, AutoConfig, __version__

    file = Path(path) / "config.json"
    if file.is_file() and "auto_map" not in (values := read_object(file)):
        name = values.get("model_type")
        if not isinstance(name, str) or name not in CONFIG_MAPPING:
            known = f"none of those that transformers {__version__} has; if it is newer, upgrade transformers"
            return ModelError(f"{file}: model_type {name!r} is {known}")
    return blamed(
        f"cannot read a model configuration from {path}",
        (file,),
        error,
        lambda place: use(AutoConfig.from_pretrained(place)),
    )
