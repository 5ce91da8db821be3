"""A run on the demo from Python: its directory, its record, what it hands back, and that it can be repeated."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from alignkit import Run, RunConfig, run
from alignkit.errors import CheckpointError, ConfigError
from alignkit.models.weights import switch_off_dropout
from alignkit.runs.api import resume

from tests.helpers.runs import records, saved_weights, short_run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def orpo(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return short_run(tmp_path_factory.mktemp("runs"), "orpo", run={"plots": True}, eval={"settings": {}})


def test_run_directory_holds_what_the_design_says(orpo: Run) -> None:
    names = {p.name for p in orpo.directory.iterdir()}
    assert {
        "run.yaml",
        "run.json",
        "metrics.jsonl",
        "model",
        "train.log",
        "checkpoints",
        "eval",
        "samples.jsonl",
    } <= names
    assert {p.name for p in (orpo.directory / "eval").iterdir()} >= {
        "prefs.json",
        "prefs.items.jsonl",
        "perplexity.json",
        "perplexity.items.jsonl",
    }
    assert {p.suffix for p in (orpo.directory / "plots").iterdir()} <= {".png", ".svg"}
    assert not [p for p in orpo.directory.rglob("*") if p.name.endswith(".tmp") or ".partial" in p.name]


def test_record_has_the_keys_others_read(orpo: Run) -> None:
    record = orpo.record
    assert (record["status"], record["method"], record["steps"]) == ("finished", "orpo", 4)
    assert record["seconds"] > 0
    assert record["train"].keys() >= {"loss", "tokens", "tokens_per_second"}
    assert record["conventions"]["lambda"] == 0.1
    assert record["conventions"]["nll_scope"] == "completion"
    for when in ("before", "after"):
        prefs = record["evaluation"][when]["prefs"]
        assert prefs.keys() >= {"accuracy_sum", "accuracy_mean", "margin_sum", "margin_mean"}
        assert prefs["accuracy_sum"].keys() == {"value", "low", "high"}
        assert record["evaluation"][when]["perplexity"].keys() >= {"perplexity", "bits_per_byte"}
    assert "accuracy_ref" in record["evaluation"]["after"]["prefs"]
    assert len(record["model"]["hash"]) == 64


def test_metrics_have_each_loss_term_and_each_step_once(orpo: Run) -> None:
    training = [r for r in orpo.metrics if "loss" in r]
    assert [r["step"] for r in training] == [1, 2, 4]
    for record in training:
        assert record.keys() >= {
            "epoch",
            "learning_rate",
            "grad_norm",
            "loss/nll",
            "loss/odds_ratio",
            "log_odds_chosen",
            "rewards/chosen",
            "rewards/rejected",
            "rewards/margins",
            "rewards/accuracies",
            "logps/chosen",
            "logps/rejected",
            "tokens",
            "tokens_per_second",
            "memory_gb",
        }
        assert record["loss"] == pytest.approx(record["loss/nll"] + 0.1 * record["loss/odds_ratio"], rel=1e-5)


def test_saved_model_loads_with_plain_transformers_and_scores_alike(orpo: Run) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain = AutoModelForCausalLM.from_pretrained(orpo.directory / "model")
    tokenizer = AutoTokenizer.from_pretrained(orpo.directory / "model")
    model, _ = orpo.load()
    ids = tokenizer("what pet does Mia have ?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(plain(ids).logits, model(ids).logits)
    assert tokenizer.chat_template
    assert (orpo.directory / "model" / "README.md").read_text().startswith("---\n")
    assert not list((orpo.directory / "model").glob("*.bin")), "a pickle among the saved files"


def test_the_same_configuration_gives_the_same_weights(orpo: Run, tmp_path: Path) -> None:
    again = short_run(tmp_path, "again")
    assert saved_weights(again.directory) == saved_weights(orpo.directory)
    other = short_run(tmp_path, "other", run={"seed": 1}, eval={"suites": []})
    assert saved_weights(other.directory) != saved_weights(orpo.directory)


def test_adapter_run_saves_an_adapter_peft_loads(tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    finished = short_run(tmp_path, "lora", "dpo", model={"lora": {"r": 4}}, eval={"suites": ["prefs"]})
    assert (finished.directory / "model" / "adapter_model.safetensors").is_file()
    assert finished.record["model"]["trainable"] < finished.record["model"]["parameters"]
    loaded = AutoPeftModelForCausalLM.from_pretrained(finished.directory / "model", dtype=torch.float32)
    ids = torch.tensor([[1, 9, 12, 30]])
    model, _ = finished.load()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, model(ids).logits)
    on = short_run(tmp_path, "on", "orpo", model={"name": str(finished.directory)}, eval={"suites": []})
    assert on.record["model"]["adapter"], "training an adapter on keeps it an adapter"


def test_reference_is_computed_once_and_reused_across_beta(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    said = []
    for beta in (0.1, 0.5):
        done = short_run(tmp_path, f"b{beta}", {"name": "dpo", "beta": beta}, eval={"suites": []})
        said.append((done.directory / "train.log").read_text())
        assert records(done.directory)[0]["loss"] == pytest.approx(0.6931471805599453, abs=1e-6)
    assert "reference log-probabilities computed" in said[0]
    assert "reference log-probabilities from the cache" in said[1]
    assert len(list((tmp_path / "cache" / "reference").iterdir())) == 1


def test_finished_run_is_not_overwritten_and_resume_says_so(orpo: Run) -> None:
    with pytest.raises(ConfigError, match="holds a finished run"):
        short_run(orpo.directory.parent, "orpo")
    assert resume(orpo.directory).directory == orpo.directory


@pytest.mark.parametrize("what", ["model", "data"])
def test_resume_refuses_what_has_changed(tmp_path: Path, what: str) -> None:
    done = short_run(tmp_path, "changed", eval={"suites": []})
    record = json.loads((done.directory / "run.json").read_text())
    assert len(record[what]["hash"]) == 64
    record["status"], record[what]["hash"] = "interrupted", "0" * 64
    (done.directory / "run.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=rf"the {what} of .* has changed since the run began"):
        resume(done.directory)


def test_suites_run_during_training_are_in_the_metrics_and_change_nothing(orpo: Run, tmp_path: Path) -> None:
    watched = short_run(tmp_path, "watched", eval={"suites": ["prefs"], "during": {"prefs": 1, "perplexity": 3}})
    assert saved_weights(watched.directory) == saved_weights(orpo.directory)
    found = {r["step"]: r for r in watched.metrics if "prefs/accuracy_sum" in r}
    assert list(found) == [1, 2, 3], "the last step is what the evaluation after training measures"
    assert [step for step, record in found.items() if "perplexity/perplexity" in record] == [3]
    values = [found[step]["prefs/margin_sum"] for step in found]
    assert len(set(values)) == 3, "each evaluation saw other weights"
    assert set(watched.evaluation["after"]) == {"prefs"}


def test_record_says_what_it_cost(orpo: Run) -> None:
    train, timings = orpo.record["train"], orpo.record["timings"]
    assert train["flops"] == 6 * orpo.record["model"]["parameters"] * train["tokens"]
    assert train["reference_tokens"] == 0
    assert train["seconds"] == timings["train"]["seconds"] > 0
    assert timings.keys() == {"prepare", "evaluate before", "reference", "train", "save", "evaluate after", "present"}
    assert sum(stage["seconds"] for stage in timings.values()) <= orpo.record["seconds"]


def test_dry_run_writes_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = RunConfig.model_validate({"method": "orpo", "train": {"per_device_train_batch_size": 1}})
    assert run(config, dry_run=True) is None
    assert list(tmp_path.iterdir()) == []
    said = capfd.readouterr().err
    for word in ("parameters", "trained", "steps", "tokens", "memory"):
        assert word in said


def test_dropout_is_switched_off_everywhere_but_in_adapters() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import GPT2Config, GPT2LMHeadModel

    base = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=16, n_embd=8, n_layer=1, n_head=2))
    model = get_peft_model(base, LoraConfig(r=2, lora_dropout=0.3, target_modules=["c_attn"], fan_in_fan_out=True))
    own = switch_off_dropout(model)  # type: ignore[arg-type]
    rates = {name: m.p for name, m in model.named_modules() if isinstance(m, torch.nn.Dropout)}
    assert {p for name, p in rates.items() if "lora" in name} == {0.3}
    assert {p for name, p in rates.items() if "lora" not in name} == {0.0}
    assert own.keys() >= {"attn_pdrop", "embd_pdrop", "resid_pdrop"}
    assert base.config.attn_pdrop == 0.0


def test_saved_model_keeps_its_own_dropout(tmp_path: Path) -> None:
    import shutil

    from alignkit.demo import model_path

    start = shutil.copytree(model_path(), tmp_path / "start")
    config = json.loads((start / "config.json").read_text())
    (start / "config.json").write_text(json.dumps({**config, "attention_dropout": 0.25}))
    done = short_run(
        tmp_path, "dropout", model={"name": str(start)}, data={"source": "demo"}, eval={"suites": [], "samples": 0}
    )
    assert done.record["model"]["scorer"] == "packed (blocks)"
    assert json.loads((done.directory / "model" / "config.json").read_text())["attention_dropout"] == 0.25
