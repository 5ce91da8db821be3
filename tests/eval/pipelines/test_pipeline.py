"""Pipelines: invalid files, stages that depend on one another, interruption, resumption, redoing; export and soups."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from alignkit.config import ModelConfig
from alignkit.demo import data_path
from alignkit.errors import ConfigError, ModelError
from alignkit.models.load import build_model
from alignkit_commands.chat import ChatModel, Sampling
from alignkit_commands.progress import lines, read_status
from alignkit_eval.export import export
from alignkit_eval.merging import Merging
from alignkit_eval.pipelines.pipeline import run_pipeline
from alignkit_eval.pipelines.stages import read_pipeline
from transformers import AutoModelForCausalLM

from tests.helpers.runs import align, saved_weights

ROOT = Path(__file__).parents[3]
QUICK = ["train.max_steps=2", "train.per_device_train_batch_size=4", "data.eval_limit=20", "eval.samples=0"]
QUICK += ["data.limit=120", "run.plots=false"]
STAGES = """
name: small
eval: {suites: prefs}
stages:
  - name: sft
    method: sft
    model: {lora: {r: 4}}
  - method: reward
    from: sft
  - method: {name: ppo, reward: {name: stage:reward, weight: 0.5}, minibatches: 1}
    from: sft
  - method: orpo
    from: sft
  - name: eval
    eval: all
    baseline: sft
  - export: ppo
"""


def written(tmp_path: Path, text: str = STAGES) -> Path:
    file = tmp_path / "p.yaml"
    file.write_text(text)
    return file


def go(tmp_path: Path, text: str = STAGES, **options: Any) -> Any:
    messages: list[str] = []
    sets = options.pop("sets", QUICK)
    done = run_pipeline(
        written(tmp_path, text), output=str(tmp_path / "runs"), sets=sets, say=messages.append, **options
    )
    return done, messages


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("pipeline")
    go(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_stages_build_on_one_another(finished: Path) -> None:
    runs = finished / "runs" / "small"
    record = json.loads((runs / "pipeline.json").read_text())
    assert [stage["status"] for stage in record["stages"]] == ["finished"] * 6
    ppo = json.loads((runs / "ppo" / "run.json").read_text())
    assert ppo["config"]["model"]["name"] == str(runs / "sft")
    assert ppo["config"]["method"]["reward"] == [{"name": str(runs / "reward"), "weight": 0.5}]
    assert ppo["config"]["data"]["max_length"] == 256, "the demo's preset holds for every stage on the demo"
    assert ppo["train"]["rollout_tokens"] > 0
    comparison = json.loads((runs / "eval" / "comparison.json").read_text())
    assert comparison["baseline"] == "sft"
    assert {c["arm"] for c in comparison["contrasts"]} == {"ppo", "orpo"}, (
        "named after stages, the reward model left out"
    )
    page = (runs / "report.html").read_text()
    assert all(f">{stage['name']}<" in page for stage in record["stages"])
    assert "Cost of training" in page
    costs = {arm["name"]: arm["cost"]["tokens"] for arm in comparison["arms"]}
    own = {name: json.loads((runs / name / "run.json").read_text())["train"] for name in ("sft", "reward", "ppo")}
    paid = sum(t["tokens"] + t["reference_tokens"] + t["rollout_tokens"] for t in own.values())
    assert costs["ppo"] == paid, "the costs of its start model and its reward model count once each"


@pytest.mark.slow
def test_the_export_is_a_stock_model(finished: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(finished / "runs" / "small" / "export")
    run = build_model(ModelConfig(name=str(finished / "runs" / "small" / "ppo"), dtype="float32")).model.eval()
    ids = torch.tensor([[1, 9, 8, 7]])
    with torch.no_grad():
        torch.testing.assert_close(model(input_ids=ids).logits, run(input_ids=ids).logits, atol=1e-4, rtol=1e-4)
    assert not (finished / "runs" / "small" / "export" / "adapter_config.json").exists()


@pytest.mark.slow
def test_what_is_finished_is_kept(finished: Path) -> None:
    weights = saved_weights(finished / "runs" / "small" / "sft")
    done, messages = go(finished)
    assert sum("already finished" in line for line in messages) == 6
    assert done.comparison is not None
    assert saved_weights(finished / "runs" / "small" / "sft") == weights
    with pytest.raises(
        ConfigError,
        match=r"sft was run with another configuration, data, function or start model; redo it .* with --from sft",
    ):
        go(finished, sets=[*QUICK, "train.learning_rate=1e-5"])


@pytest.mark.slow
def test_a_finished_stage_whose_data_has_changed_is_not_taken_for_the_same(tmp_path: Path) -> None:
    rows = data_path("dev").read_text().splitlines()[:30]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    checker = tmp_path / "checker.py"
    checker.write_text("def right(prompt, answer): return 1")
    text = f"""
        name: small
        eval: {{suites: [], settings: {{generate: {{checker: "{checker}:right"}}}}}}
        data: {{source: {tmp_path / "rows.jsonl"}}}
        stages: [{{method: sft}}]
        """
    go(tmp_path, text)
    assert go(tmp_path, text)[1] == ["[1/1] sft: already finished"]
    for file, content in ((tmp_path / "rows.jsonl", "\n".join(rows[:-1])), (checker, "def right(*_): return 0")):
        before = file.read_text()
        file.write_text(content)
        with pytest.raises(ConfigError, match=r"sft was run with another configuration, data, function or start model"):
            go(tmp_path, text)
        file.write_text(before)


def test_redo_keeps_the_old_and_skip_leaves_out(tmp_path: Path) -> None:
    text = "name: two\neval: {suites: prefs}\nstages:\n- method: sft\n- {name: more, method: orpo, from: sft}\n- {eval: all}\n"
    _, messages = go(tmp_path, text, skip=["more", "eval"])
    assert sum("skipped" in line for line in messages) == 2
    runs = tmp_path / "runs" / "two"
    sft = saved_weights(runs / "sft")
    go(tmp_path, text, skip=["eval"])
    more = saved_weights(runs / "more")
    go(tmp_path, text, start="more", sets=[*QUICK], skip=["eval"])
    assert saved_weights(runs / "more.old-1") == more
    assert saved_weights(runs / "more") == more, "the same configuration and start: the same weights"
    assert saved_weights(runs / "sft") == sft
    with pytest.raises(ConfigError, match="exists and is not a pipeline directory"):
        run_pipeline(written(tmp_path, text), output=str(tmp_path), name="runs")


@pytest.mark.slow
def test_a_failed_stage_is_named_and_the_rest_goes_on_later(tmp_path: Path) -> None:
    broken = "name: b\neval: {suites: []}\nstages:\n- method: sft\n- {name: bad, method: orpo, from: sft, train: {learning_rate: 1.0e+12}}\n"
    done = align("pipeline", written(tmp_path, broken), *[p for s in QUICK for p in ("--set", s)], cwd=tmp_path)
    assert done.returncode == 1, done.stderr
    assert "stage bad" in done.stderr
    record = json.loads((tmp_path / "runs" / "b" / "pipeline.json").read_text())
    assert [stage["status"] for stage in record["stages"]] == ["finished", "failed"]
    mended = broken.replace(", train: {learning_rate: 1.0e+12}", "")
    _, messages = go(tmp_path, mended)
    assert any("sft: already finished" in line for line in messages)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "p.yaml: a pipeline needs a list of stages"),
        ("stages: sft\n", "p.yaml:1: a pipeline needs a list of stages"),
        ("stages:\n- sft\n", "p.yaml:2: a stage must be a mapping"),
        ("stages:\n- name: a\n", "p.yaml:2: a stage must have one of method, eval and export"),
        ("stages:\n- {method: sft, export: x}\n", "a stage must have one of method, eval and export"),
        ("stages:\n- {method: sft, form: x}\n", 'no key form, did you mean "from"?'),
        ("stage:\n- {method: sft}\n", 'p.yaml:1: unknown key stage, did you mean "stages"?'),
        ("stages:\n- method: sft\n- method: sft\n", "p.yaml:3: two stages are named sft"),
        ("stages:\n- {method: sft, name: ../x}\n", "is not a valid stage name"),
        (
            "stages:\n- {method: orpo, from: stf}\n",
            "p.yaml:2: stage orpo uses stf, which is not an earlier stage",
        ),
        ("stages:\n- method: sft\n- export: ppo\n", "p.yaml:3: stage export uses ppo"),
        ("stages:\n- {method: orpo, train: {learning_rat: 1}}\n", "p.yaml:2: unknown key train.learning_rat"),
        ("stages:\n- method: {name: orpo, lamda: 1}\n", 'p.yaml:2: unknown key method.lamda, did you mean "lambda"?'),
        ("stages:\n- method: orp\n", 'unknown method "orp"'),
        ("train: {max_step: 3}\nstages:\n- method: sft\n", "p.yaml:1: unknown key train.max_step"),
        ("stages:\n- method: sft\n- {method: orpo, from: sft, model: demo}\n", "has both from and model.name"),
        (
            "stages:\n- method: sft\n- {eval: all, settings: [1]}\n",
            "p.yaml:3: stages.1.settings must be a mapping, not [1]",
        ),
    ],
)
def test_files_that_cannot_be_meant(tmp_path: Path, text: str, expected: str) -> None:
    from alignkit.errors import AlignError

    with pytest.raises(AlignError) as caught:
        go(tmp_path, text)
    assert expected in str(caught.value)
    assert not (tmp_path / "runs").exists(), "nothing was made"


def test_options_that_name_no_stage(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match='--from sfd: unknown stage, did you mean "sft"'):
        go(tmp_path, start="sfd")
    with pytest.raises(ConfigError, match=r"write a pipeline's settings with their section: train\.max_steps=10"):
        go(tmp_path, sets=["lambda=1"])


def test_the_examples_read() -> None:
    progressive = read_pipeline(ROOT / "examples" / "progressive.yaml")
    assert [stage.needs for stage in progressive.stages[:3]] == [(), ("imitate",), ("lean",)]
    for name, trained, others in (("rlhf", 7, ["eval", "export"]), ("onpolicy", 8, ["eval"])):
        pipeline = read_pipeline(ROOT / "examples" / f"{name}.yaml")
        assert [stage.kind for stage in pipeline.stages] == ["train"] * trained + others
        opened = pipeline.open(Path("runs") / name)
        for stage in pipeline.stages[:trained]:
            assert opened[stage.name].planned().run.name == stage.name  # type: ignore[attr-defined]


# ------------------------------------------------------------------------------------------------ export


@pytest.mark.slow
def test_a_soup_is_the_mean_of_the_weights(finished: Path, tmp_path: Path) -> None:
    runs = finished / "runs" / "small"
    export([runs / "ppo", runs / "orpo"], tmp_path / "soup", Merging(weights=[0.25, 0.75]))
    export([runs / "ppo"], tmp_path / "a")
    export([runs / "orpo"], tmp_path / "b")
    soup, a, b = (AutoModelForCausalLM.from_pretrained(tmp_path / n).state_dict() for n in ("soup", "a", "b"))
    for name, tensor in soup.items():
        torch.testing.assert_close(tensor, 0.25 * a[name] + 0.75 * b[name], atol=1e-6, rtol=1e-6)
    with pytest.raises(ConfigError, match="exists already"):
        export([runs / "ppo"], tmp_path / "soup")
    with pytest.raises(ConfigError, match=r"the weights sum to 0\.5"):
        export([runs / "ppo", runs / "orpo"], tmp_path / "c", Merging(weights=[0.25, 0.25]))
    with pytest.raises(ModelError, match="another architecture"):
        export([runs / "ppo", runs / "reward"], tmp_path / "d")
    assert not list(tmp_path.glob("*d*"))


@pytest.mark.slow
def test_an_export_that_scores_otherwise_is_refused(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A saver that changes the weights slightly, as mistakes in dtypes or tied weights do."""
    from alignkit.errors import RunFailedError
    from transformers import LlamaForCausalLM

    whole = LlamaForCausalLM.save_pretrained

    def lossy(self: Any, path: Any, **options: Any) -> None:
        whole(self.half().float(), path, **options)
        with torch.no_grad():
            self.model.layers[0].mlp.up_proj.weight.add_(0.01)
        whole(self, path, **options)
        self.model.layers[0].mlp.up_proj.weight.data.sub_(0.01)

    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", lossy)
    with pytest.raises(RunFailedError, match="does not score like"):
        export([finished / "runs" / "small" / "ppo"], tmp_path / "x")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ commands for a run


@pytest.mark.slow
def test_status_watch_generate_chat(finished: Path, tmp_path: Path) -> None:
    run = finished / "runs" / "small" / "orpo"
    status = align("status", run, cwd=tmp_path)
    assert status.returncode == 0, status.stderr
    assert "orpo, finished, step 2 of 2" in status.stdout
    assert "loss/odds_ratio" in status.stdout
    found = read_status(run).to_json()
    assert (found["status"], found["steps"]) == ("finished", 2)
    assert "accuracy (sum)" in align("watch", run, cwd=tmp_path).stdout
    asked = ["--prompt", "what is two plus two ?", "--max-new-tokens", "8"]
    (one,) = ChatModel(str(run)).answers([[{"role": "user", "content": asked[1]}]], Sampling(max_new_tokens=8))
    several = align(
        "generate", run, "demo", finished / "runs" / "small" / "export", *asked, "--vote", "--json", cwd=tmp_path
    )
    answer = json.loads(several.stdout)
    assert len(answer["answers"]) == 3
    assert answer["answers"][str(run)] == one
    assert answer["vote"] in answer["answers"].values()
    with pytest.raises(ModelError, match="is a reward model: it scores answers and cannot generate"):
        ChatModel(str(finished / "runs" / "small" / "reward"))
    talk = align("chat", run, cwd=tmp_path, input="what is two plus two ?\n/new\nwhat is two plus one ?\n\n")
    assert talk.returncode == 0, talk.stderr
    assert len(talk.stdout.splitlines()) == 2


def test_status_of_what_is_not_finished(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    record = {
        "status": "running",
        "method": "orpo",
        "started": 0.0,
        "config": {"method": {"name": "orpo"}, "train": {"max_steps": 50}},
    }
    (run / "run.json").write_text(json.dumps(record))
    (run / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n{"step": 10, "loss": 1.0, "epoch": 0.5}\n{"step": 2')
    found = read_status(run)
    assert (found.status, found.step, found.steps) == ("dead", 10, 50)
    assert any("the process has died; resume with: align resume" in line for line in lines(found))
    (run / "run.json").write_text(json.dumps(record | {"status": "failed", "error": "non-finite loss"}))
    assert any("non-finite loss" in line for line in lines(read_status(run)))
    done = align("status", tmp_path / "nothing", cwd=tmp_path)
    assert done.returncode == 2
    assert "is not a run directory" in done.stderr
