"""Every key of ``model:`` changes the loaded model, or is refused: a table of all of them, so that a new one needs a row."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import RunConfig
from alignkit.config import ModelConfig
from alignkit.contract import registry
from alignkit.demo import model_path
from alignkit.errors import AlignError, ModelError
from alignkit.models.load import build_model
from alignkit.models.weights import dropouts
from alignkit.scoring.classifier import policy_of
from alignkit_checks.no_effect import refuse_idle
from transformers import AutoTokenizer

from tests.helpers.keys import Row, keys_of

LORA = {"lora": {"r": 2, "target_modules": ["q_proj"]}}


def lora(**keys: Any) -> Row:
    return Row({"lora": {**LORA["lora"], **keys}}, "adapter", LORA)


ROWS: dict[str, Row] = {
    "name": Row("dropping", "name"),
    "revision": Row("v2", "refused"),
    "tokenizer": Row("more", "refused"),
    "chat_template": Row("chatml", "template"),
    "dtype": Row("bfloat16", "dtype"),
    "quantization": Row("4bit", "refused", LORA),
    "lora": Row({"r": 2}, "adapter"),
    "lora.r": lora(r=3),
    "lora.alpha": lora(alpha=7),
    "lora.dropout": lora(dropout=0.5),
    "lora.target_modules": lora(target_modules=["v_proj"]),
    "lora.dora": lora(dora=True),
    "lora.modules_to_save": lora(modules_to_save="lm_head"),
    "lora.options": lora(options={"use_rslora": True}),
    "dropout": Row(True, "dropouts", {"name": "dropping"}),
    "resize_embeddings": Row(True, "refused", {"name": "more"}),
    "scorer": Row("padded", "scorer"),
    "attention": Row("sdpa", "scorer"),
    "head": Row("exact", "precision", {"dtype": "bfloat16"}),
}

ELSEWHERE = {"trust_remote_code": "tests/cli/test_trust.py"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with dropout, and one whose tokenizer has two tokens more."""
    path = tmp_path_factory.mktemp("models")
    for name in ("dropping", "more"):
        shutil.copytree(model_path(), path / name)
    file = path / "dropping" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "attention_dropout": 0.25}))
    tokenizer = AutoTokenizer.from_pretrained(path / "more")
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.save_pretrained(path / "more")
    return path


def outcome(keys: dict[str, Any]) -> dict[str, Any]:
    """Load the model and return everything that a key can change."""
    config = ModelConfig(**keys)
    method = registry.load_method("orpo")[1]
    try:
        refuse_idle(RunConfig(method="orpo", model=config), method(method.settings_type()))
        loaded = build_model(config)
    except AlignError as error:
        return {"refused": str(error)}
    model = loaded.model
    policy: Any = policy_of(loaded, RunConfig(method="orpo", model=config), torch.device("cpu"))
    return {
        "refused": None,
        "name": loaded.path,
        "template": loaded.tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False),
        "dtype": next(model.parameters()).dtype,
        "adapter": (
            str(getattr(model, "peft_config", None)),
            {name: p.shape for name, p in model.named_parameters() if p.requires_grad},
        ),
        "dropouts": len(dropouts(model)),
        "scorer": str(policy.scorer),
        "precision": policy.precision,
    }


def test_every_key_has_a_row() -> None:
    assert {*ROWS, *ELSEWHERE} == {*keys_of(ModelConfig)}
    assert not {*ROWS} & {*ELSEWHERE}


@pytest.mark.parametrize("key", ROWS)
def test_the_key_changes_what_it_says(key: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    row = ROWS[key]
    given = row.value if "." in key else {key: row.value}
    without, with_it = outcome(row.beside), outcome({**row.beside, **given})
    assert row.seen == "refused" or not (with_it["refused"] or without["refused"]), (with_it, without)
    assert with_it[row.seen] != without[row.seen]


def test_dropout_of_a_model_without_any_is_refused() -> None:
    with pytest.raises(ModelError, match=r"model\.dropout has no effect: demo has no dropout"):
        build_model(ModelConfig(dropout=True))
