"""An export scores like the run it was made of, also where an adapter changes one of two tied embeddings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import Run
from alignkit.config import ModelConfig
from alignkit.errors import ModelError, RunFailedError
from alignkit.models.load import build_model
from alignkit_eval.export import export

from tests.helpers.eval import byte_tokenizer, tiny_model
from tests.helpers.runs import short_run

IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose input and output embeddings share their weights."""
    directory = tmp_path_factory.mktemp("models") / "tied"
    model = tiny_model()
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    model.save_pretrained(directory)
    byte_tokenizer().save_pretrained(directory)
    return directory


def trained(output: Path, model: Path, **lora: Any) -> Run:
    about = {"name": str(model), "chat_template": "chatml"} | ({"lora": {"r": 2} | lora} if lora else {})
    train = {"max_steps": 2, "learning_rate": 0.1, "save_strategy": "no"}
    few = {"limit": 40, "check": {"enabled": False}}
    quiet = {"suites": [], "samples": 0}
    return short_run(output, "run", "sft", model=about, train=train, data=few, eval=quiet)


@torch.no_grad()
def logits(path: Path) -> torch.Tensor:
    found: torch.Tensor = build_model(ModelConfig(name=str(path))).model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize(
    ("lora", "stays_tied"),
    [
        ({"target_modules": ["q_proj", "lm_head"]}, False),
        ({"target_modules": ["embed_tokens"]}, False),
        ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, False),
        ({"target_modules": ["q_proj"], "options": {"trainable_token_indices": [101, 104]}}, True),
        ({"target_modules": ["embed_tokens"], "options": {"ensure_weight_tying": True}}, True),
    ],
)
def test_an_adapter_of_tied_embeddings_is_merged_exactly(
    lora: dict[str, Any], stays_tied: bool, tied: Path, tmp_path: Path
) -> None:
    run = trained(tmp_path, tied, **lora)
    export([run.directory], tmp_path / "export")
    torch.testing.assert_close(logits(tmp_path / "export"), logits(run.directory), atol=1e-4, rtol=1e-4)
    assert json.loads((tmp_path / "export/config.json").read_text())["tie_word_embeddings"] is stays_tied


def test_a_merge_that_changes_the_scores_is_refused(
    tied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is the run with its adapter, not the merged model itself."""
    from peft.tuners.lora import Linear

    run = trained(tmp_path, tied, target_modules=["q_proj", "lm_head"])
    monkeypatch.setattr(Linear, "get_delta_weight", lambda layer, name: torch.zeros_like(layer.get_base_layer().weight))
    with pytest.raises(
        RunFailedError, match=r"the export does not score like .*run: log-probabilities differ by up to"
    ):
        export([run.directory], tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_a_mean_of_other_configurations_is_refused(tied: Path, tmp_path: Path) -> None:
    run = trained(tmp_path / "first", tied)
    other = trained(tmp_path / "second", tied)
    config = other.directory / "model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.1}))
    with pytest.raises(ModelError, match="another architecture"):
        export([run.directory, other.directory], tmp_path / "export")
