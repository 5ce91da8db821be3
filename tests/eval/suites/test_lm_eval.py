"""The lm-eval suite: lm-eval's own numbers, agreement with our scorer, and errors for models that return NaN."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from alignkit import Example, SuiteResult, Target
from alignkit.config import ModelConfig
from alignkit.errors import ConfigError, DataError, NoRowsError, RunFailedError
from alignkit.models.load import build_model
from alignkit.scoring.policy import ModelPolicy
from alignkit_eval.evaluation.evaluate import evaluate
from alignkit_eval.suites import lm_eval
from alignkit_eval.suites.lm_eval import HarnessSettings, HarnessSuite

from tests.helpers.eval import target
from tests.helpers.runs import align


@pytest.fixture(scope="module")
def demo() -> Target:
    from dataclasses import replace

    loaded = build_model(ModelConfig(name="demo"))
    return replace(target(ModelPolicy(loaded.model), []), tokenizer=loaded.tokenizer)


def run(where: Target, tasks: str = "demo_facts", **settings: Any) -> SuiteResult:
    return HarnessSuite(HarnessSettings(tasks=tasks, **settings)).evaluate(where)  # type: ignore[arg-type]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A directory of user-defined tasks: perplexity of texts, generation, and multiple choice."""
    rows = [{"text": f"Mia eats soup . {word} .", "cluster": "a" if i < 2 else f"c{i}"} for i, word in enumerate("xyz")]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = "dataset_path: json\ndataset_kwargs: {data_files: {test: %s}}\ntest_split: test\n" % (
        tmp_path / "texts.jsonl"
    )
    (tmp_path / "own_perplexity.yaml").write_text(
        f"task: own_perplexity\n{head}output_type: loglikelihood_rolling\ndoc_to_text: ''\ndoc_to_target: '{{{{text}}}}'\n"
        "metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]\n"
    )
    (tmp_path / "own_answers.yaml").write_text(
        f"task: own_answers\n{head}output_type: generate_until\ndoc_to_text: '{{{{text}}}}'\ndoc_to_target: 'soup'\n"
        "generation_kwargs: {until: ['.'], max_gen_toks: 4, do_sample: false}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    return tmp_path


def test_a_task_by_its_file_and_settings_of_generation(demo: Target, tasks: Path) -> None:
    file = tasks / "own_answers.yaml"
    known = run(demo, "own_answers", include_path=str(tasks))
    named = run(demo, str(file))
    assert (named.metrics, named.items) == (known.metrics, known.items)
    longer = run(demo, str(file), gen_kwargs="max_gen_toks=12,until=!")
    assert max(len(answer) for item in longer.items for answer in item["answers"]) > max(
        len(answer) for item in named.items for answer in item["answers"]
    )
    told = run(demo, str(file), system_instruction="be brief")
    assert [item["prompt"] for item in told.items] == [f"be brief{item['prompt']}" for item in named.items]
    for broken, message in (
        (tasks / "none.yaml", f"there is no task file {tasks / 'none.yaml'}"),
        (tasks / "broken.yaml", "lm-eval cannot load"),
    ):
        (tasks / "broken.yaml").write_text("task: [\n")
        with pytest.raises((ConfigError, DataError), match=message):
            run(demo, str(broken))


def test_the_code_of_a_task_file_runs_only_when_it_is_trusted(tmp_path: Path, tasks: Path) -> None:
    (tasks / "own.py").write_text("def choices(doc): return ['a', 'b']\n")
    (tasks / "run.yaml").write_text(
        f"method: sft\neval: {{suites: [lm-eval], settings: {{lm-eval: {{tasks: {tasks}/own_answers.yaml}}}}}}\n"
    )
    done = align("run", tasks / "run.yaml", "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert f"runs {tasks}/own_answers.yaml" in done.stderr.replace("\n", "")


def test_our_scorer_and_theirs_agree(demo: Target) -> None:
    """On the same token ids, without the end token, which lm-eval does not score."""
    from lm_eval.models.huggingface import HFLM

    draw = random.Random(0)
    rows = [
        Example(
            str(i),
            [1, *(draw.randrange(5, 300) for _ in range(draw.randint(1, 20)))],
            tuple([draw.randrange(5, 300) for _ in range(draw.randint(1, 12))] for _ in range(4)),
        )
        for i in range(12)
    ]
    ours = demo.policy.score(rows, grad=False).sums().tolist()
    harness = HFLM(pretrained=demo.policy.model, tokenizer=demo.tokenizer, batch_size=8)
    requests = [(("", ""), list(row.prompt), list(answer)) for row in rows for answer in row.completions]
    theirs = [value for value, _greedy in harness._loglikelihood_tokens(requests, disable_tqdm=True)]
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-4)


def test_metrics_are_lm_eval_s_and_intervals_ours(demo: Target) -> None:
    result = run(demo, "demo_facts,demo_agreement")
    by_task = {task: [i for i in result.items if i["task"] == task] for task in ("demo_facts", "demo_agreement")}
    for task, items in by_task.items():
        accuracy = result.metrics[f"{task}/acc"]
        assert accuracy.value == pytest.approx(sum(item["acc"] for item in items) / len(items))
        assert accuracy.low is not None
        assert accuracy.high is not None
        assert 0 <= accuracy.low <= accuracy.value <= accuracy.high <= 1
    assert result.metrics["demo_facts/acc"].value > 0.8, "the base model has learnt the demo's facts"
    first = by_task["demo_facts"][0]
    assert first["id"] == "demo_facts:0"
    assert len({item["cluster"] for item in by_task["demo_facts"]}) == 16, "one cluster per person"
    contrasts = {c.metric: c for c in result.contrasts}
    assert contrasts["demo_facts/acc"].where == {"task": "demo_facts"}
    assert contrasts["demo_facts/acc"].higher_is_better


def test_perplexities_of_one_s_own_tasks(demo: Target, tasks: Path) -> None:
    result = run(demo, "own_perplexity", include_path=str(tasks))
    nll = sum(item["word_perplexity:nll"] for item in result.items)
    words = sum(item["word_perplexity:weight"] for item in result.items)
    found = result.metrics["own_perplexity/word_perplexity"]
    assert found.value == pytest.approx(math.exp(nll / words))
    assert found.low is not None
    assert result.clusters == 2
    contrast = next(c for c in result.contrasts if c.metric == "own_perplexity/word_perplexity")
    assert contrast.log
    assert not contrast.higher_is_better
    assert result.metrics["own_perplexity/bits_per_byte"].low is not None


def test_nothing_is_left_changed(demo: Target) -> None:
    demo.policy.model.train()
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    expected = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(3), np.random.seed(3), torch.manual_seed(3)
    run(demo, limit=3)
    assert (random.random(), np.random.rand(), float(torch.rand(()))) == expected
    assert demo.policy.model.training


@pytest.mark.parametrize("task", ["demo_facts", "own_answers"])
def test_a_model_of_nan_fails(demo: Target, tasks: Path, task: str) -> None:
    broken = build_model(ModelConfig(name="demo"))
    with torch.no_grad():
        broken.model.lm_head.weight.fill_(math.nan)
    with pytest.raises(RunFailedError, match="are NaN"):
        run(_with(demo, broken.model), task, include_path=str(tasks))


def _with(where: Target, model: Any) -> Target:
    from dataclasses import replace

    class Bare:
        """A policy without the scorer's probe, which would reject a broken model first."""

        def __init__(self) -> None:
            self.model = model

    return replace(where, policy=Bare())  # type: ignore[arg-type]


def test_a_single_log_likelihood_that_is_nan_fails() -> None:
    from alignkit_eval.suites.lm_eval import _require_finite

    samples = [{"doc_id": 0, "resps": [[(-1.0, False)]]}, {"doc_id": 7, "resps": [[(-1.0, False)], [(math.nan, True)]]}]
    with pytest.raises(RunFailedError, match=r"demo are not finite on 1 of 2 documents \(first: 7\)"):
        _require_finite("demo", samples)
    _require_finite("texts", [{"doc_id": 0, "resps": [["an answer"]]}])


def test_content_follows_documents_and_configuration(demo: Target, tasks: Path) -> None:
    def content(names: str) -> str:
        return HarnessSuite(HarnessSettings(tasks=names, include_path=str(tasks))).content(demo)  # type: ignore[arg-type]

    before = content("own_perplexity")
    assert before == content("own_perplexity")
    assert before != content("own_answers")
    (tasks / "texts.jsonl").write_text((tasks / "texts.jsonl").read_text().replace("soup", "rice"))
    assert before != content("own_perplexity")


@pytest.fixture
def few_stock_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let lm-eval have the files of two stock tasks, read as it reads its 14,000, which takes half a minute."""
    from lm_eval.tasks import manager

    own = Path(manager.__file__)
    for name in ("hellaswag", "piqa"):
        shutil.copytree(own.with_name(name), tmp_path / "stock" / name)
    monkeypatch.setattr(manager, "__file__", str(tmp_path / "stock" / own.name))
    lm_eval._stock_tasks.cache_clear()
    yield
    lm_eval._stock_tasks.cache_clear()


@pytest.mark.usefixtures("few_stock_tasks")
def test_what_cannot_be_run(demo: Target, tmp_path: Path) -> None:
    with pytest.raises(NoRowsError, match="name them with --tasks"):
        HarnessSuite(HarnessSettings()).evaluate(demo)
    with pytest.raises(ConfigError, match=r'no task .demo_fact., did you mean "demo_facts"'):
        run(demo, "demo_fact")
    with pytest.raises(ConfigError, match="there is no task directory"):
        run(demo, include_path=str(tmp_path / "nowhere"))
    with pytest.raises(DataError, match=r"cannot load hellaswag: .*needs its data set on disk"):
        run(demo, "hellaswag")


def test_on_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "git").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "git").chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    done = align("eval", "demo", "--tasks", "demo_agreement", "--json", cwd=tmp_path, PATH=path)
    assert done.returncode == 0
    assert not (tmp_path / "called").exists()  # lm-eval would describe the machine, with pip as well
    assert done.stderr == ""
    (found,) = json.loads(done.stdout)
    assert set(found["suites"]["lm-eval"]["metrics"]) == {"demo_agreement/acc", "demo_agreement/acc_norm"}


def test_results_are_cached_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    tries = [
        evaluate(["demo"], ["lm-eval"], sets=[f"eval.settings.lm-eval.limit={limit}"], output=tmp_path)
        for limit in (4, 4, 5)
    ]
    assert [e.results["lm-eval"].provenance["cached"] for (e,) in tries] == [False, True, False]
