"""Every setting of the ``trl-*`` methods reaches TRL's configuration, or is refused: a table, so that a new one needs a row."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
from alignkit import settings
from alignkit.contract import registry
from alignkit.errors import ConfigError
from alignkit_trl.settings import load
from pydantic import ValidationError

from tests.settings.test_every_data_key import idle

METHODS = ("trl-sft", "trl-dpo", "trl-kto", "trl-orpo", "trl-grpo", "trl-rloo")

VALUES: dict[str, Any] = {
    # the loss
    "beta": 0.3,
    "loss_type": {"trl-sft": "dft", "trl-dpo": ["ipo"], "trl-kto": "apo_zero_unpaired", "trl-grpo": "bnpo"},
    "loss_weights": [1.0],
    "ld_alpha": 0.5,
    "label_smoothing": 0.1,
    "use_weighting": True,
    "f_divergence_type": "js_divergence",
    "desirable_weight": 1.5,
    "undesirable_weight": 0.5,
    "completion_only_loss": False,
    "assistant_only_loss": True,
    "router_aux_loss_coef": 0.1,
    "num_iterations": 2,
    "epsilon": 0.1,
    "epsilon_high": 0.3,
    "delta": 1.5,
    "importance_sampling_level": "sequence",
    "multi_objective_aggregation": "normalize_then_sum",
    "scale_rewards": "none",
    "normalize_advantages": True,
    "reward_clip_range": [-1.0, 1.0],
    "mask_truncated_completions": True,
    "top_entropy_quantile": 0.5,
    "entropy_coef": 0.1,
    "use_adaptive_entropy": True,
    "off_policy_mask_threshold": 0.5,
    "use_bias_correction_kl": False,
    # rows and lengths
    "max_length": 32,
    "truncation_mode": "keep_end",
    "dataset_num_proc": 2,
    "dataset_kwargs": {"skip_prepare_dataset": False},
    "shuffle_dataset": {"trl-sft": True, "trl-grpo": False, "trl-rloo": False},
    "padding_free": True,
    "pad_to_multiple_of": 8,
    "padding_value": 7,
    "pad_token": "<pad>",
    "eos_token": "</s>",
    "chat_template_path": "template.jinja",
    "chat_template_kwargs": {"enable_thinking": False},
    "is_encoder_decoder": False,
    # the reference
    "precompute_ref_log_probs": True,
    "sync_ref_model": True,
    # sampling
    "num_generations": 4,
    "num_generations_eval": 4,
    "max_completion_length": 8,
    "generation_batch_size": 32,
    "steps_per_generation": 4,
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 5,
    "min_p": 0.1,
    "repetition_penalty": 1.1,
    "generation_kwargs": {"no_repeat_ngram_size": 3},
    "cache_implementation": "static",
    "use_vllm": True,
    "use_transformers_continuous_batching": True,
    "use_transformers_paged": True,
    "ds3_gather_for_generation": False,
    # how it is computed and logged
    "disable_dropout": {"trl-grpo": True, "trl-rloo": True},
    "cast_lm_head_to_fp32": True,
    "activation_offloading": True,
    "generate_during_eval": True,
    "log_completions": True,
}
"""A value that is not the default; by method where the defaults differ."""

NEEDED: dict[str, tuple[Any, dict[str, Any]]] = {
    "f_alpha_divergence_coef": (0.7, {"f_divergence_type": "alpha_divergence"}),
    "discopop_tau": (0.1, {"loss_type": ["discopop"]}),
    "precompute_ref_batch_size": (2, {"precompute_ref_log_probs": True}),
    "ref_model_mixup_alpha": (0.5, {"sync_ref_model": True}),
    "ref_model_sync_steps": (2, {"sync_ref_model": True}),
    "sapo_temperature_neg": (2.0, {"loss_type": "sapo"}),
    "sapo_temperature_pos": (2.0, {"loss_type": "sapo"}),
    "vespo_k_pos": (1.0, {"loss_type": "vespo"}),
    "vespo_lambda_pos": (1.0, {"loss_type": "vespo"}),
    "vespo_k_neg": (1.0, {"loss_type": "vespo"}),
    "vespo_lambda_neg": (1.0, {"loss_type": "vespo"}),
    **{f"entropy_coef_{part}": (0.5, {"use_adaptive_entropy": True}) for part in ("min", "max", "delta")},
    "entropy_target": (0.5, {"use_adaptive_entropy": True}),
    "num_completions_to_print": (2, {"log_completions": True}),
    "log_unique_prompts": (True, {"log_completions": True}),
    "log_completions_hub_repo": ("org/repo", {"log_completions": True}),
    "transformers_continuous_batching_config": ({}, {"use_transformers_continuous_batching": True}),
}
"""Setting -> a value, and what it needs: without it, it is refused."""

VLLM = (
    "mode model_impl enable_sleep_mode structured_outputs_regex server_base_url server_host server_port server_timeout "
    "group_port gpu_memory_utilization max_model_length tensor_parallel_size importance_sampling_correction "
    "importance_sampling_mode importance_sampling_clip_max importance_sampling_clip_min importance_sampling_cap"
).split()
"""Settings of vLLM, which needs a GPU: refused without ``use_vllm``."""

REFUSED = (
    "model_init_kwargs trust_remote_code dataset_text_field log_multimodal max_tool_calling_iterations packing "
    "packing_strategy eval_packing"
).split()


def settings_of(method: str) -> dict[str, Any]:
    return {**registry.load_method(method)[1].settings_type.model_fields}


def known(method: str) -> set[str]:
    return {*VALUES, *NEEDED, *(f"vllm_{name}" for name in VLLM), *REFUSED} & {*settings_of(method)}


def reached(method: str, values: dict[str, Any], folder: Path) -> Any:
    """Return TRL's configuration as the method makes it."""
    made = registry.load_method(method)[1]
    given = made(made.settings_type(**values)).given()  # type: ignore[attr-defined]
    return load(made.config)(output_dir=str(folder), use_cpu=True, bf16=False, **given)  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_has_a_row(method: str) -> None:
    assert known(method) == {*settings_of(method)} - {"rewards"}  # tests/plugins/test_trl.py
    vllm = {key.removeprefix("vllm_") for m in METHODS for key in settings_of(m) if key.startswith("vllm_")}
    assert {*VALUES, *NEEDED, *REFUSED} <= {key for m in METHODS for key in settings_of(m)}
    assert {*VLLM} == vllm


@pytest.mark.parametrize("method", METHODS)
def test_the_setting_reaches_trl(method: str, tmp_path: Path) -> None:
    fields = settings_of(method)
    for key in sorted({*VALUES, *NEEDED} & {*fields}):
        if (key, method) == ("max_completion_length", "trl-orpo"):
            continue  # it is for encoder-decoder models
        value, beside = NEEDED.get(key, (VALUES.get(key), {}))
        value = value[method] if isinstance(value, dict) and method in value else value
        assert value != fields[key].default, key
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = reached(method, {**beside, key: value}, tmp_path)
        assert getattr(config, key) == value, key


@pytest.mark.parametrize("method", METHODS)
def test_a_setting_that_changes_nothing_is_refused(method: str) -> None:
    settings_type = registry.load_method(method)[1].settings_type
    needed = {**{key: value for key, (value, _) in NEEDED.items()}, **{f"vllm_{name}": "x" for name in VLLM}}
    refused = sorted({*needed, *REFUSED} & {*settings_type.model_fields})
    for key in refused:
        with pytest.raises(ValidationError, match=rf"{key} (has no effect|cannot be used)"):
            settings_type(**{key: needed.get(key, "x")})
    with pytest.raises(ConfigError, match=rf": {refused[0]} (has no effect|cannot be used)"):
        settings.resolve(method=method, sets=[f"{refused[0]}={needed.get(refused[0], 'x')}"])


@pytest.mark.parametrize(
    ("method", "sets", "message"),
    [
        (
            "trl-dpo",
            ["train.tokens_per_micro_batch=9"],
            "train.tokens_per_micro_batch has no effect with trl-dpo: TRL divides",
        ),
        (
            "trl-sft",
            ["data.append_eos=false"],
            "data.append_eos has no effect with trl-sft: TRL tokenises the rows itself",
        ),
        (
            "trl-grpo",
            ["data.shuffle=false"],
            "data.shuffle has no effect with trl-grpo: TRL's trainer takes the prompts in",
        ),
        ("trl-rloo", ["data.curriculum={by: length}"], "data.curriculum has no effect with trl-rloo"),
        (
            "trl-grpo",
            ["data.sources=[{source: demo, repeat: 2}, d]"],
            "data.sources.repeat has no effect with trl-grpo",
        ),
        ("trl-kto", ["data.curriculum={by: length, epochs: 1}"], "data.curriculum.epochs has no effect with trl-kto"),
        ("reward", ["model.scorer=plain"], "model.scorer has no effect with reward: a reward model is called directly"),
    ],
    ids=str,
)
def test_a_key_that_the_method_does_not_use_is_refused(method: str, sets: list[str], message: str) -> None:
    assert idle(method, sets).startswith(message)
