"""Cases of runs: what would fail at the end, early stopping, resuming, exports, adapters and the cache."""

from __future__ import annotations

import json
import shutil

from safetensors.torch import load_file, save_file

from tests.accept.campaign.base import interrupt
from tests.accept.cases.place import METALS, QUIET, Place, refused


def _settings(**values: object) -> list[str]:
    return [part for key, value in values.items() for part in ("--set", f"{key.replace('__', '.')}={value}")]


def a_generation_config_that_cannot_be_saved(at: Place) -> str:
    """do_sample false with a temperature is refused before training, or the model is saved all the same."""
    shutil.copytree(at.model("llama3"), at.path / "model")
    odd = {"bos_token_id": 0, "eos_token_id": 4, "do_sample": False, "temperature": 0.9, "top_p": 0.6}
    (at.path / "model" / "generation_config.json").write_text(json.dumps(odd))
    data = at.rows("rows.jsonl", METALS)
    options = ["--method", "dpo", "--model", "model", "--data", data, *QUIET, *_settings(train__max_steps=2)]
    ended = at("run", *options, "--name", "x")
    if ended.code == 2:
        assert not (at.path / "runs/x").exists(), "refused, with a directory left"
        return refused(ended)
    assert ended.code == 0, ended
    assert (at.path / "runs/x/model/model.safetensors").is_file()
    return "trained and saved"


def lora_on_tied_embeddings(at: Place) -> str:
    """An export of LoRA on the head of a model with tied embeddings scores like the run, or is refused."""
    data = at.rows("rows.jsonl", METALS)
    lora = _settings(model__lora__r=4, model__lora__target_modules="[q_proj, lm_head]", eval__suites="prefs")
    train = _settings(train__learning_rate=1e-2, train__max_steps=4)
    run = at(
        "run",
        "--method",
        "dpo",
        "--model",
        at.model("qwen3"),
        "--data",
        data,
        "--eval-data",
        data,
        *lora,
        *train,
        *QUIET,
        "--name",
        "x",
    )
    if run.code == 2:
        return refused(run)
    assert run.code == 0, run
    export = at("export", "runs/x", "--output", "out")
    if export.code == 2:
        return refused(export)
    assert export.code == 0, export
    found = json.loads(at.good("eval", "runs/x", "out", "--suite", "perplexity", "--json", "--data", data).out)
    values = [result["suites"]["perplexity"]["metrics"]["perplexity"]["value"] for result in found]
    assert abs(values[0] - values[1]) < 1e-3 * values[0], f"perplexity of run and export: {values}"
    return f"perplexity of run and export: {values}"


def patience(at: Place) -> str:
    """Patience 1 with a held-out loss that rises ends the run at step 2."""
    data = at.rows("rows.jsonl", METALS)
    steps = _settings(train__early_stopping_patience=1, train__eval_steps=1, train__max_steps=10)
    rate = _settings(train__learning_rate=3, train__lr_scheduler_type="constant")
    options = ["--model", at.model("llama3"), "--data", data, "--eval-data", data, *steps, *rate, *QUIET]
    at.good("run", "--method", "dpo", *options, "--name", "x")
    records = [json.loads(line) for line in (at.path / "runs/x/metrics.jsonl").read_text().splitlines()]
    losses = {record["step"]: round(record["eval_loss"], 3) for record in records if "eval_loss" in record}
    assert losses[2] > losses[1], losses
    assert max(losses) == 2, losses
    return f"held-out losses {losses}"


def resuming_after_the_last_step(at: Place) -> str:
    """A run killed while its model is saved is resumed to the same model and the same number of steps."""
    steps = _settings(train__max_steps=12, train__save_steps=3, train__logging_steps=1, train__save_strategy="steps")
    data = at.rows("rows.jsonl", METALS)
    options = ["--model", at.model("tiny"), "--data", data, "--eval-data", data, *steps, *QUIET]
    options += _settings(train__lr_scheduler_type="constant", train__per_device_train_batch_size=4)
    at.good("run", "--method", "orpo", *options, "--name", "whole")
    shutil.copytree(at.path / "runs/whole", at.path / "runs/killed")
    interrupt(at.path / "runs/killed", step=12)
    at.good("resume", "runs/killed")
    whole, killed = (at.path / "runs" / name for name in ("whole", "killed"))
    taken = [at.read(f"runs/{name}/run.json")["steps"] for name in ("whole", "killed")]
    assert taken == [12, 12], taken
    weights = [(run / "model/model.safetensors").read_bytes() for run in (whole, killed)]
    assert weights[0] == weights[1], "the models differ"
    return f"equal models, steps {taken}"


def an_adapter_with_foreign_tensors(at: Place) -> str:
    """An adapter whose tensors have other names is an error, not its base."""
    data = at.rows("rows.jsonl", METALS)
    lora = _settings(model__lora__r=4, train__max_steps=2)
    at.good("run", "--method", "dpo", "--model", at.model("tiny"), "--data", data, *lora, *QUIET, "--name", "lora")
    shutil.copytree(at.path / "runs/lora/model", at.path / "foreign")
    file = at.path / "foreign" / "adapter_model.safetensors"
    tensors = {name.replace("layers", "h"): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    return refused(at("eval", "foreign", "--suite", "perplexity", "--data", data))


def a_cache_that_cannot_be_written(at: Place) -> str:
    """A cache directory that cannot be made or written never ends a run."""
    (at.path / "file").write_text("")
    data = at.rows("rows.jsonl", METALS)
    options = ["--method", "dpo", "--model", at.model("tiny"), "--data", data, *_settings(train__max_steps=1), *QUIET]
    for number, cache in enumerate(("/proc/alignkit", "file", "file/below", "/dev/null")):
        ended = at("run", *options, "--name", f"x{number}", cache=cache)
        assert ended.code == 0, f"{cache}: {ended}"
        assert at.read(f"runs/x{number}/run.json")["status"] == "finished"
    return "four runs finished"
