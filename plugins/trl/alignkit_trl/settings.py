"""Settings made from TRL's configuration classes: every field that is not a key of ``train:``."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import Any

from alignkit import RewardSpecs, Settings
from alignkit.errors import PluginError
from pydantic import Field, create_model, model_validator


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
    return create_model(f"{source.__name__}Settings", __base__=TRLSettings, __doc__=source.__doc__, **fields)


class TRLSettings(Settings):
    """Base of the settings of TRL's configurations; a key without effect is refused."""

    @model_validator(mode="after")
    def _have_effect(self) -> TRLSettings:
        fields = type(self).model_fields
        given = {key for key, field in fields.items() if key != "rewards" and getattr(self, key) != field.default}
        for key in sorted(given):
            if key in _REFUSED:
                raise ValueError(f"{key} {_REFUSED[key]}")
            for beginning, other, wanted in _NEEDS:
                if key.startswith(beginning) and key != other and other in fields:
                    value = getattr(self, other)
                    values = value if isinstance(value, list) else [value]
                    if not (any(v in wanted for v in values) if wanted else value):
                        raise ValueError(f"{key} has no effect without {other}" + (f": {wanted[0]}" if wanted else ""))
        return self


_PACKED = "cannot be used: rows come in alignkit's order, one by one"
_REFUSED = {
    "model_init_kwargs": "has no effect: alignkit loads the model (keys of model:)",
    "trust_remote_code": "has no effect: alignkit loads the model, set model.trust_remote_code in a configuration file",
    "dataset_text_field": "has no effect: rows are prompts and completions",
    "log_multimodal": "has no effect: rows have no images",
    "max_tool_calling_iterations": "has no effect: rows have no tools",
    **dict.fromkeys(("packing", "packing_strategy", "eval_packing"), _PACKED),
}
"""Keys for what alignkit gives TRL itself, and why they are refused."""

_NEEDS: Sequence[tuple[str, str, Sequence[str]]] = (
    ("f_alpha_divergence_coef", "f_divergence_type", ("alpha_divergence",)),
    ("discopop_tau", "loss_type", ("discopop",)),
    ("precompute_ref_batch_size", "precompute_ref_log_probs", ()),
    ("ref_model_", "sync_ref_model", ()),
    ("vllm_", "use_vllm", ()),
    ("sapo_", "loss_type", ("sapo",)),
    ("vespo_", "loss_type", ("vespo",)),
    ("entropy_coef_", "use_adaptive_entropy", ()),
    ("entropy_target", "use_adaptive_entropy", ()),
    ("num_completions_to_print", "log_completions", ()),
    ("log_unique_prompts", "log_completions", ()),
    ("log_completions_hub_repo", "log_completions", ()),
    ("max_completion_length", "is_encoder_decoder", ()),
    ("transformers_continuous_batching_config", "use_transformers_continuous_batching", ()),
)
"""Beginning of a key, the key it needs, and the values that it needs (empty: any that is set)."""


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
