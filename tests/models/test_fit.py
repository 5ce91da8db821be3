"""Weights that do not fit their configuration are errors; fingerprints cover everything that decides what a model computes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from alignkit.config import ModelConfig
from alignkit.errors import ModelError
from alignkit.models.load import build_classifier, build_model
from safetensors.torch import load_file, save_file

from tests.helpers.eval import byte_tokenizer, tiny_model

Tensors = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a model, ``base``, and a LoRA adapter of it, ``lora``."""
    directory = tmp_path_factory.mktemp("fit")
    model = tiny_model()
    model.save_pretrained(directory / "base")
    byte_tokenizer().save_pretrained(directory / "base")
    model.name_or_path = str(directory / "base")
    adapter = peft.get_peft_model(
        model, peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    adapter.save_pretrained(directory / "lora")
    return directory


@pytest.fixture
def models(stock: Path, tmp_path: Path) -> Path:
    shutil.copytree(stock, tmp_path / "models")
    configure(tmp_path / "models/lora/adapter_config.json", base_model_name_or_path=str(tmp_path / "models/base"))
    return tmp_path / "models"


def configure(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def edit(directory: Path, change: Callable[[Tensors], Tensors]) -> None:
    file = next(directory.glob("*.safetensors"))
    save_file(change(load_file(file)), file, metadata={"format": "pt"})


def fingerprint(path: Path) -> str:
    return build_model(ModelConfig(name=str(path))).fingerprint


UNFIT: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "renamed": (
        "base",
        lambda p: edit(p, lambda t: {k.replace("mlp", "ff"): v for k, v in t.items()}),
        "are missing .* belong",
    ),
    "fewer layers": ("base", lambda p: configure(p / "config.json", num_hidden_layers=1), "tensors belong to nothing"),
    "more layers": ("base", lambda p: configure(p / "config.json", num_hidden_layers=3), "tensors are missing"),
    "wider": ("base", lambda p: configure(p / "config.json", intermediate_size=96), "another shape"),
    "another head": (
        "base",
        lambda p: edit(p, lambda t: t | {"v_head.weight": torch.zeros(3)}),
        "belong to nothing .*v_head",
    ),
    "renamed adapter": (
        "lora",
        lambda p: edit(p, lambda t: {k.replace("layers", "h"): v for k, v in t.items()}),
        "belong",
    ),
    "half an adapter": ("lora", lambda p: edit(p, lambda t: dict(list(t.items())[1:])), "1 tensors are missing"),
    "fewer targets": (
        "lora",
        lambda p: configure(p / "adapter_config.json", target_modules=["q_proj"]),
        "belong to nothing",
    ),
    "more targets": (
        "lora",
        lambda p: configure(p / "adapter_config.json", target_modules=["q_proj", "v_proj", "k_proj"]),
        "are missing",
    ),
    "another rank": ("lora", lambda p: configure(p / "adapter_config.json", r=4), "another shape"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_weights_that_do_not_fit_are_an_error(case: str, models: Path) -> None:
    kind, spoil, problem = UNFIT[case]
    spoil(models / kind)
    with pytest.raises(ModelError, match=f"the weights of .*{kind} do not fit its configuration: .*{problem}"):
        build_model(ModelConfig(name=str(models / kind)))


def test_a_language_model_becomes_a_classifier_with_a_new_head(models: Path) -> None:
    assert build_classifier(ModelConfig(name=str(models / "base"))).classifier


@pytest.mark.parametrize(
    ("tied", "options"),
    [
        (False, {"modules_to_save": ["lm_head"]}),
        (True, {"target_modules": ["q_proj", "lm_head"]}),
        (True, {"trainable_token_indices": [1, 2]}),
        (False, {"use_dora": True}),
        (False, {"rank_pattern": {"q_proj": 1}, "bias": "lora_only"}),
    ],
)
def test_every_kind_of_saved_adapter_loads_again(tied: bool, options: dict[str, Any], models: Path) -> None:
    configure(models / "base/config.json", tie_word_embeddings=tied)
    if tied:
        edit(models / "base", lambda tensors: {k: v for k, v in tensors.items() if k != "lm_head.weight"})
    model = build_model(ModelConfig(name=str(models / "base"))).model
    config = peft.LoraConfig(**{"r": 2, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"} | options)
    adapter = peft.get_peft_model(model, config)
    adapter.save_pretrained(models / "other")
    configure(models / "other/adapter_config.json", base_model_name_or_path=str(models / "base"))
    loaded = build_model(ModelConfig(name=str(models / "other"))).model.state_dict()
    for name, tensor in adapter.state_dict().items():
        assert torch.equal(loaded[name], tensor), name


OTHER: dict[str, tuple[str, Callable[[Path], object]]] = {
    "rope_theta": (
        "base",
        lambda p: configure(p / "base/config.json", rope_parameters={"rope_type": "default", "rope_theta": 77.0}),
    ),
    "rms_norm_eps": ("base", lambda p: configure(p / "base/config.json", rms_norm_eps=0.1)),
    "attention_dropout": ("base", lambda p: configure(p / "base/config.json", attention_dropout=0.1)),
    "end tokens": ("base", lambda p: configure(p / "base/generation_config.json", eos_token_id=[3, 7])),
    "lora_alpha": ("lora", lambda p: configure(p / "lora/adapter_config.json", lora_alpha=64)),
    "use_rslora": ("lora", lambda p: configure(p / "lora/adapter_config.json", use_rslora=True)),
    "alpha_pattern": ("lora", lambda p: configure(p / "lora/adapter_config.json", alpha_pattern={"q_proj": 2})),
    "the adapter's base": (
        "lora",
        lambda p: edit(p / "base", lambda t: t | {"model.norm.weight": t["model.norm.weight"] * 2}),
    ),
    "its base's configuration": ("lora", lambda p: configure(p / "base/config.json", rms_norm_eps=0.1)),
}


@pytest.mark.parametrize("case", OTHER)
def test_whatever_decides_what_is_computed_is_in_the_fingerprint(case: str, models: Path) -> None:
    kind, change = OTHER[case]
    before = fingerprint(models / kind)
    change(models)
    assert fingerprint(models / kind) != before


@pytest.mark.parametrize("kind", ["base", "lora"])
def test_a_saved_copy_has_the_same_fingerprint(kind: str, models: Path) -> None:
    loaded = build_model(ModelConfig(name=str(models / kind)))
    with loaded.as_saved():
        loaded.model.save_pretrained(models / "copy")
    loaded.tokenizer.save_pretrained(models / "copy")
    assert fingerprint(models / "copy") == loaded.fingerprint
