"""Settings made from TRL's configuration classes: every field that is not a key of ``train:``."""

from __future__ import annotations

import dataclasses
import json
import warnings
from functools import cache
from importlib import import_module
from typing import Any

from alignkit import RewardSpecs, Settings
from alignkit.errors import PluginError
from pydantic import Field, create_model


@cache
def load(path: str) -> Any:
    """Return the class named ``module:Name``; raises :class:`PluginError` if this version of TRL lacks it."""
    module, _, name = path.partition(":")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # trl.experimental warns that it may change; the README says so
            return getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"this version of trl has no {name} in {module}: {error}") from error


@cache
def settings_of(path: str, *, rewards: bool) -> type[Settings]:
    """Return the settings class for the TRL configuration class ``path``.

    ``max_length`` defaults to ``data.max_length``; with ``rewards`` there is the key ``reward``, as for ppo.
    """
    import transformers

    source = load(path)
    known = {field.name for field in dataclasses.fields(transformers.TrainingArguments)}
    fields: dict[str, Any] = {}
    for field in dataclasses.fields(source):
        default = field.default if field.default is not dataclasses.MISSING else None
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        if field.name in known or not field.init or not _is_plain(default):
            continue
        about = " ".join(str(field.metadata.get("help", "")).split()) or "see TRL's documentation"
        fields[field.name] = (Any, Field(None if field.name == "max_length" else default, description=about))
    if rewards:
        about = "one or several rewards to maximise, as for ppo"
        fields.pop("reward_weights", None)  # reward: {name: ..., weight: ...}
        other_names: Any = {"elsewhere": ["reward_weights", "reward_funcs"]}
        key: Any = Field(default_factory=list, alias="reward", description=about, json_schema_extra=other_names)
        fields["rewards"] = (RewardSpecs, key)
    return create_model(f"{source.__name__}Settings", __base__=Settings, __doc__=source.__doc__, **fields)


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
