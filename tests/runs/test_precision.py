"""Precision: the types of weights and matrix products, the same in training, reference and evaluation, and recorded."""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit import Run, RunConfig, settings
from alignkit.config import LoraConfig, ModelConfig
from alignkit.demo import model_path
from alignkit.errors import ConfigError
from alignkit.models.load import build_classifier, build_model
from alignkit.scoring.backends import innermost
from alignkit.scoring.classifier import policy_of
from alignkit_checks.changes import accepted_changes
from alignkit_eval.comparison.compare import compare
from alignkit_eval.evaluation.evaluate import evaluate
from alignkit_eval.evaluation.targets import find_target
from alignkit_precision import set_precision, settle_precision
from alignkit_precision.settle import faster_in_bfloat16

from tests.helpers.engine import random_pairs, tiny_llama
from tests.helpers.runs import align, records, short_run

pytestmark = pytest.mark.slow

HALF, FULL = torch.bfloat16, torch.float32
LIMIT = ["data.eval_limit=30"]
ADAPTER = {"r": 2, "modules_to_save": "embed_tokens"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint whose weights are bfloat16, and which is not the demo by name."""
    path = tmp_path_factory.mktemp("models") / "half"
    shutil.copytree(model_path(), path)
    return str(path)


@pytest.fixture(scope="module")
def tuned(stored: str, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run of DPO that trains an adapter and the embeddings on frozen bfloat16 weights."""
    train = {"bf16": True, "logging_steps": 1}
    return short_run(
        tmp_path_factory.mktemp("runs"), "tuned", "dpo", model={"name": stored, "lora": ADAPTER}, train=train
    )


def types(model: torch.nn.Module) -> dict[str, set[torch.dtype]]:
    return {
        kind: {p.dtype for p in model.parameters() if p.requires_grad == trained}
        for kind, trained in (("trained", True), ("frozen", False))
    }


@pytest.mark.parametrize(
    ("keys", "trained", "frozen"),
    [
        ({}, {FULL}, set()),
        ({"lora": LoraConfig(r=2)}, {FULL}, {HALF}),
        ({"lora": LoraConfig(r=2, modules_to_save=["lm_head", "embed_tokens"])}, {FULL}, {HALF}),
        ({"dtype": "float32", "lora": LoraConfig(r=2)}, {FULL}, {FULL}),
        ({"dtype": "checkpoint"}, {HALF}, set()),
        ({"dtype": "bfloat16"}, {HALF}, set()),
    ],
)
def test_trained_weights_are_float32_and_frozen_ones_stay_in_the_checkpoints_type(
    stored: str, keys: dict[str, Any], trained: set[torch.dtype], frozen: set[torch.dtype]
) -> None:
    assert types(build_model(ModelConfig(name=stored, **keys)).model) == {"trained": trained, "frozen": frozen}


def settled(**sections: Any) -> RunConfig:
    config = settings.check_config(RunConfig.model_validate({"method": "sft", "model": "x", "data": "y", **sections}))
    settle_precision(config)
    return config


@pytest.mark.parametrize(
    ("model", "train", "bf16"),
    [
        ({}, {}, None),
        ({}, {"bf16": False}, False),
        ({}, {"bf16": True}, True),
        ({}, {"fp16": True}, False),
        ({"dtype": "float32"}, {}, False),
        ({"dtype": "float32"}, {"bf16": True}, True),
        ({"dtype": "checkpoint"}, {}, False),
    ],
)
def test_products_are_bfloat16_where_the_hardware_is_faster_at_it_unless_the_configuration_says_otherwise(
    model: dict[str, Any], train: dict[str, Any], bf16: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for isa in ("AVX512_CORE_VNNI", ""):
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", isa)
        given = settled(model={"name": "x", **model}, train=train).train.arguments
        assert bool(given.get("bf16")) == (faster_in_bfloat16() if bf16 is None else bf16)
        assert isa == "" or not faster_in_bfloat16() or torch.cuda.is_available()


@pytest.mark.parametrize(
    ("model", "train", "message"),
    [
        ({}, {"bf16": True, "fp16": True}, "train.bf16 and train.fp16 are both true: set one of them"),
        ({"dtype": "float16"}, {"bf16": True}, "train.bf16 is true, but model.dtype is float16: remove one of them"),
        ({"dtype": "bfloat16"}, {"fp16": True}, "train.fp16 is true, but model.dtype is bfloat16: remove one of them"),
        ({"dtype": "float16"}, {"fp16": True}, "train.fp16 trains weights of float32, but model.dtype is float16"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    model: dict[str, Any], train: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        settled(model={"name": "x", **model}, train=train)


@pytest.mark.parametrize("data", [{}, {"data": "pairs.jsonl"}])
def test_the_demos_model_is_float32_on_every_machine(data: dict[str, str]) -> None:
    assert settings.resolve(method="orpo", **data).config.model.dtype == "float32"
    assert settings.resolve(method="orpo", sets=["model.dtype=auto"], **data).config.model.dtype == "auto"
    assert settings.resolve(method="orpo", model="other", **data).config.model.dtype == "auto"


def test_the_policy_starts_at_its_reference_exactly_and_evaluation_scores_as_the_run_did(tuned: Run) -> None:
    first = records(tuned.directory)[0]
    assert first["rewards/margins"] == first["rewards/chosen"] == 0
    assert first["loss"] == pytest.approx(0.6931471805599453, abs=1e-7)
    assert tuned.record["precision"] == {"trained": "float32", "frozen": "bfloat16", "products": "bfloat16"}
    stored = json.loads((tuned.directory / "eval/prefs.json").read_text())
    assert stored["provenance"]["scored_by"] == "cpu auto auto bfloat16"
    (again,) = evaluate([tuned.directory], ["prefs"])
    assert again.results["prefs"].provenance["cached"]
    assert {name: e._asdict() for name, e in again.results["prefs"].metrics.items()} == stored["metrics"]
    assert again.lines()[0].startswith("prefs: n 30; products bfloat16")


def test_another_precision_is_another_result_with_a_note(tuned: Run, tmp_path: Path) -> None:
    run = tmp_path / "tuned"
    shutil.copytree(tuned.directory, run)
    (exact,) = evaluate([run], ["prefs"], sets=["model.dtype=float32"])
    assert not exact.results["prefs"].provenance["cached"]
    assert exact.lines()[0].startswith("prefs: n 30; products float32")
    (inside,) = evaluate([tuned.directory / "model"], ["prefs"], data="demo", sets=LIMIT, output=tmp_path)
    assert inside.lines()[0].endswith("products bfloat16") or "products bfloat16;" in inside.lines()[0]
    notes = compare([tuned.directory, inside.directory]).notes + compare([inside.directory, run]).notes
    assert [note for note in notes if "matrix products" in note] == [
        "suite prefs: matrix products had different types (bfloat16 and float32)"
    ]


def test_results_with_an_exact_head_are_others_with_a_note(tuned: Run, tmp_path: Path) -> None:
    run = tmp_path / "tuned"
    shutil.copytree(tuned.directory, run)
    (exact,) = evaluate([run / "model"], ["prefs"], data="demo", sets=[*LIMIT, "model.head=exact"], output=tmp_path)
    assert "products bfloat16 (head float32)" in exact.lines()[0]
    stored = json.loads((tuned.directory / "eval/prefs.json").read_text())["metrics"]
    assert {name: e._asdict() for name, e in exact.results["prefs"].metrics.items()} != stored
    assert [note for note in compare([tuned.directory, exact.directory]).notes if "matrix products" in note] == [
        "suite prefs: matrix products had different types (bfloat16 and bfloat16 (head float32))"
    ]
    given = (run / "run.yaml").read_text()
    (run / "run.yaml").write_text(given.replace("  head: fast\n", "  head: exact\n"))
    assert find_target(str(run / "model")).config.model.head == "exact"
    assert find_target(str(run / "model"), sets=["model.head=fast"]).config.model.head == "fast"


@pytest.mark.parametrize("scorer", ["packed", "rows", "padded", "plain"])
@pytest.mark.parametrize("keys", [{"dtype": "bfloat16"}, {"lora": LoraConfig(r=2)}, {"dtype": "float32"}])
def test_every_way_to_the_logits_uses_the_exact_head(stored: str, keys: dict[str, Any], scorer: Any) -> None:
    """Scores, and the logits of a forward that is not scored, as in generation, in every scoring backend."""
    model = ModelConfig(name=stored, head="exact", scorer=scorer, **keys)
    config = RunConfig(method="sft", model=model, train={"bf16": True})
    policy: Any = policy_of(build_model(model), config, torch.device("cpu"))
    assert policy.precision["products"] == "bfloat16 (head float32)"
    row = random_pairs(1)[0].narrow(0)
    ids = torch.tensor([[*row.prompt, *row.completions[0]]])
    base = innermost(policy.model)
    with torch.no_grad():
        logits = policy.model(input_ids=ids).logits
        with base.forward_context() if "forward_context" in vars(base) else nullcontext():
            hidden = base.model(input_ids=ids).last_hidden_state
        expected = hidden.float() @ base.lm_head.weight.float().t()
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    if scorer in ("padded", "plain"):  # the hidden states of the others are rounded elsewhere
        picked = expected[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        scores = policy.score([row], grad=False).logps
        torch.testing.assert_close(scores, picked[-len(row.completions[0]) :], atol=1e-5, rtol=1e-5)


def test_an_output_layer_that_cannot_be_exact_is_refused(stored: str) -> None:
    class Other(torch.nn.Linear):
        pass

    config = RunConfig(method="sft", model={"name": stored, "head": "exact"})
    model: Any = tiny_llama()
    model.set_output_embeddings(Other(32, 64))
    with pytest.raises(ConfigError, match=r"an output layer of type Other: set model\.head=fast"):
        set_precision(model, config)


def test_the_precision_of_accelerates_launcher_is_the_runs_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trainer would take it from the environment: the run would be computed otherwise than its record says."""
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")  # nothing is faster by itself
    for asked, train in {"bf16": {}, "fp16": {}, "no": {"bf16": True}}.items():
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        found = settled(train=train).train.arguments
        assert {key for key in ("bf16", "fp16") if found.get(key)} == {"bf16" if train else asked}
    for asked, train in {"bf16": {"bf16": False}, "fp16": {"bf16": True}, "fp8": {}}.items():
        monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", asked)
        with pytest.raises(
            ConfigError, match=rf"accelerate launch asks for mixed precision {asked} .* use train\.bf16"
        ):
            settled(train=train)


def test_a_resumed_run_keeps_its_precision(tuned: Run) -> None:
    again = settings.resolve(tuned.directory / "run.yaml", resume=True).config
    settle_precision(again)
    assert again.train.arguments["bf16"] is True
    assert accepted_changes(tuned_directory(tuned), again, accept=False) == []
    elsewhere = again.model_copy(update={"train": again.train.model_copy(update={"bf16": False})})
    with pytest.raises(Exception, match=r"train\.bf16 \(True, now False\)"):
        accepted_changes(tuned_directory(tuned), elsewhere, accept=False)


def tuned_directory(run: Run) -> Any:
    from alignkit.rundir.directory import RunDir

    return RunDir.open(run.directory)


def test_a_dry_run_shows_the_types(stored: str, tmp_path: Path) -> None:
    options = ["--set", "model.lora.r=2", "--set", "train.bf16=true", "--set", "data.limit=8"]
    done = align("run", "--method", "sft", "--model", stored, *options, "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    shown = " ".join((done.stdout + done.stderr).split())
    assert "trained float32, frozen bfloat16, products bfloat16" in shown


def test_a_reward_model_makes_its_products_in_the_same_type_and_returns_float32(stored: str) -> None:
    config = RunConfig(method="reward", model={"name": stored, "lora": ADAPTER}, train={"bf16": True})
    loaded = build_classifier(config.model)
    policy = policy_of(loaded, config, torch.device("cpu"))
    assert policy.precision == {"trained": "float32", "frozen": "bfloat16", "products": "bfloat16"}
    found = loaded.model(input_ids=torch.arange(3, 9)[None]).logits
    assert found.dtype == FULL
    found.sum().backward()
