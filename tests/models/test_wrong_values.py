"""Values of wrong types in a model's JSON files: one sentence with the file and the key, without a library's own words."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from alignkit.config import ModelConfig
from alignkit.errors import ModelError
from alignkit.models.load import build_model

from tests.accept.campaign.judge import INTERNAL
from tests.helpers.eval import save_positioned

WRONG: dict[str, dict[str, tuple[Any, ...]]] = {
    "config.json": {
        "vocab_size": ("many", None, [1]),
        "max_position_embeddings": (2.5, {"a": 1}),
        "rms_norm_eps": ("x", []),
        "hidden_act": ("none", 3),
        "hidden_size": (-3,),
        "head_dim": (-3, 10**30),
        "rope_parameters": ("x", [1], {"rope_type": 3}),
        "architectures": (3, [1]),
        "dtype": ("x", [1]),
        "model_type": (3, None, "x", [1]),
        "bos_token_id": ("x", 2.5),
    },
    "generation_config.json": {"pad_token_id": ("x", [1])},
    "tokenizer_config.json": {"eos_token": (3, [1]), "tokenizer_class": ([1], 3)},
    "adapter_config.json": {"peft_type": (None, "x"), "bias": (3, "x"), "alpha_pattern": ("x",), "r": ("x", -1, None)},
}
CASES = [(file, key, value) for file, keys in WRONG.items() for key, values in keys.items() for value in values]


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """A model directory, and that of an adapter of it (True)."""
    model = save_positioned(tmp_path_factory.mktemp("models")) / "rotary"
    loaded = build_model(ModelConfig(name=str(model), lora={"r": 2}))  # type: ignore[arg-type]
    adapter = model.parent / "adapter"
    loaded.model.save_pretrained(adapter)
    loaded.tokenizer.save_pretrained(adapter)
    return {False: model, True: adapter}


@pytest.mark.parametrize(("file", "key", "value"), CASES)
def test_a_wrong_value_is_named(directories: dict[bool, Path], file: str, key: str, value: Any, tmp_path: Path) -> None:
    shutil.copytree(directories["adapter" in file], tmp_path / "m")
    place = tmp_path / "m" / file
    values = json.loads(place.read_text()) | {key: value}
    place.write_text(json.dumps(values))
    with pytest.raises(ModelError) as refused:
        build_model(ModelConfig(name=str(tmp_path / "m")))
    said = str(refused.value)
    assert said.startswith(f"{place}: {key} ")
    assert not INTERNAL.search(said)
    assert len(said.replace(str(tmp_path), "")) < 200


def test_what_no_key_explains_keeps_the_librarys_words(directories: dict[bool, Path], tmp_path: Path) -> None:
    shutil.copytree(directories[False], tmp_path / "m")
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match="cannot load a tokenizer from") as refused:
        build_model(ModelConfig(name=str(tmp_path / "m")))
    assert "tokenizer_config" not in str(refused.value)
