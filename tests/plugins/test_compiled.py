"""``train.torch_compile``: the trunk is compiled layer by layer, a bounded number of times, and computes the same."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import RunConfig, settings
from alignkit.config import LoraConfig, TrainConfig
from alignkit.errors import ConfigError
from alignkit.models.adapters import add_adapter
from alignkit.runs.api import resume
from alignkit.scoring.backends import innermost
from alignkit_eval.evaluation.targets import plainly_scored
from alignkit_precision import set_precision, settle_precision
from alignkit_precision.compiled import wants_compiled
from alignkit_precision.liger import wants_liger
from torch._dynamo.utils import counters
from transformers import TrainingArguments

from tests.helpers.engine import build_trainer, configuration, random_pairs, tiny_llama
from tests.helpers.runs import saved_weights, short_run

pytestmark = pytest.mark.slow

PLAIN: dict[str, Any] = {"max_steps": 4, "logging_steps": 1, "learning_rate": 1e-2, "tokens_per_micro_batch": 150}


def trained(folder: Path, train: dict[str, Any], lora: bool) -> tuple[list[float], torch.nn.Module]:
    """Train on rows of many lengths; return the losses and the model."""
    torch._dynamo.reset()
    counters.clear()
    model: Any = tiny_llama()
    if lora:
        model = add_adapter(model, LoraConfig(r=2), 0, "CAUSAL_LM")
    config = configuration("dpo", **{**PLAIN, **train})
    trainer, seen = build_trainer(config, folder, random_pairs(32, longest=30), model=model)
    set_precision(innermost(model), config)
    trainer.train()
    return seen.losses(), model


@pytest.mark.parametrize(
    ("backend", "lora", "checkpointing"), [("aot_eager", False, False), ("eager", False, True), ("eager", True, True)]
)
def test_losses_are_the_same_and_compilations_do_not_grow_with_the_lengths_of_rows(
    backend: str, lora: bool, checkpointing: bool, tmp_path: Path
) -> None:
    train = {"gradient_checkpointing": checkpointing}
    plain, same = trained(tmp_path / "plain", train, lora)
    assert not counters["stats"]
    losses, model = trained(tmp_path / "compiled", {**train, "torch_compile_backend": backend}, lora)
    assert losses == pytest.approx(plain, abs=1e-5)
    # Before and after attention, and for the layer after the first one, whose input needs a gradient.
    assert 1 <= counters["stats"]["unique_graphs"] <= 8
    assert not any("recompile_limit" in reason for reason in counters["graph_break"])
    assert [*model.state_dict()] == [*same.state_dict()]


def test_a_run_says_that_it_compiles_saves_a_stock_model_and_resumes_to_the_same_weights(tmp_path: Path) -> None:
    train = {"torch_compile": True, "torch_compile_backend": "eager", "lr_scheduler_type": "constant"}
    quick: dict[str, Any] = {"eval": {"suites": [], "samples": 0}, "run": {"plots": False}}
    run = short_run(tmp_path, "whole", "sft", train=train, **quick)
    assert run.record["precision"] == {"trained": "float32", "products": "float32", "compiled": "eager"}
    assert b"_orig_mod" not in saved_weights(run.directory)
    short_run(tmp_path, "part", "sft", train={**train, "max_steps": 2}, **quick)
    resumed = resume(tmp_path / "part", sets=["train.max_steps=4"], change=True)
    assert saved_weights(resumed.directory) == saved_weights(run.directory)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"run": {"strategy": "fsdp", "processes": 2}}, "cannot be combined with fsdp or DeepSpeed"),
        ({"run": {"strategy": "zero2", "processes": 2}}, "cannot be combined with fsdp or DeepSpeed"),
        ({"model": {"name": "x", "quantization": "4bit", "lora": {}}}, "cannot be combined with model.quantization"),
    ],
)
def test_what_cannot_be_compiled_is_refused(sections: dict[str, Any], message: str) -> None:
    values = {"method": "sft", "model": "x", "data": "y", "train": {"torch_compile": True}, **sections}
    config = settings.check_config(RunConfig.model_validate(values))
    with pytest.raises(ConfigError, match=message):
        settle_precision(config)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({}, "use_liger_kernel needs a GPU"),
        ({"run": {"strategy": "zero2", "processes": 2}}, "is tested with one process and ddp alone"),
    ],
)
def test_ligers_kernels_are_refused_where_they_cannot_run(sections: dict[str, Any], message: str) -> None:
    values = {"model": "x", "data": "y", "train": {"use_liger_kernel": True, "use_cpu": True}, **sections}
    config = settings.check_config(RunConfig.model_validate({"method": "sft", **values}))
    with pytest.raises(ConfigError, match=message):
        settle_precision(config)
    settle_precision(settings.check_config(RunConfig.model_validate({"method": "trl-sft", **values})))  # TRL's own


def test_a_model_that_is_only_scored_is_neither_compiled_nor_exchanged() -> None:
    """Export and evaluation leave out each key that compiles layers or exchanges their kernels."""
    keys = []
    for name in [field.name for field in fields(TrainingArguments)]:
        config = RunConfig(method="sft").model_copy(
            update={"train": TrainConfig.model_validate({name: "max-autotune"})}
        )
        if wants_compiled(config) or wants_liger(config):
            keys.append(name)
            config.train = plainly_scored(config.train, bf16=False)
            assert not wants_compiled(config), name
            assert not wants_liger(config), name
            assert config.train.arguments["bf16"] is False
    assert len(keys) == 4
