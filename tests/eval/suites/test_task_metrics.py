"""Every aggregation of lm-eval: lm-eval's own number, and an interval where there can be one."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from alignkit import SuiteResult
from alignkit.config import ModelConfig
from alignkit.models.load import build_model
from alignkit_eval.evaluation.evaluate import evaluate
from alignkit_eval.suites.task_metrics import Values, bootstrap

WORDS = ("soup", "rice", "a cat", "a dog", "bread")
UTILS = """
import math

def score(doc, results):
    length = len(results[0].split())
    return {"longest": length, "spread": (length, doc["text"]), "kinds": length, "large": length, "broken": length}

def spread(values):
    lengths = [length for length, _ in values]
    return max(lengths) - min(lengths) + 0.5

def kinds(values):
    return {"number": len(set(values))}

def large(values):
    return math.exp(800)

def broken(values):
    return values["none"]

def lost(doc, results):
    return {"found": doc["missing"]}

def fraction(values):
    return sum(1 for value in values if value > 0) / (1 + len(values))
"""
TASKS = {
    "own_translation": """
output_type: generate_until
doc_to_text: '{{text}}'
doc_to_target: '{{answer}}'
generation_kwargs: {until: ['.'], max_gen_toks: 5, do_sample: false}
metric_list: [{metric: bleu}, {metric: chrf}, {metric: ter}, {metric: exact_match}]
""",
    "own_choices": """
output_type: multiple_choice
doc_to_text: '{{text}}'
doc_to_target: '{{label}}'
doc_to_choice: ['soup', 'rice']
metric_list: [{metric: acc}, {metric: f1}, {metric: mcc}, {metric: brier_score}]
""",
    "own_one_class": """
output_type: multiple_choice
doc_to_text: '{{text}}'
doc_to_target: 1
doc_to_choice: ['zzzz zzzz zzzz zzzz zzzz zzzz', 'soup']
metric_list: [{metric: acc}, {metric: f1}]
""",
    "own_likelihood": """
output_type: loglikelihood
doc_to_text: '{{text}}'
doc_to_target: ' {{answer}}'
metric_list: [{metric: perplexity}, {metric: acc}]
""",
    "own_rolling": """
output_type: loglikelihood_rolling
doc_to_text: ''
doc_to_target: '{{text}}'
metric_list: [{metric: word_perplexity}, {metric: byte_perplexity}, {metric: bits_per_byte}]
""",
    "own_functions": """
output_type: generate_until
doc_to_text: '{{text}}'
doc_to_target: '{{answer}}'
generation_kwargs: {until: ['.'], max_gen_toks: 5, do_sample: false}
process_results: !function utils.score
metric_list:
  - {metric: longest, aggregation: !function utils.fraction, higher_is_better: true}
  - {metric: spread, aggregation: !function utils.spread, higher_is_better: false}
  - {metric: kinds, aggregation: !function utils.kinds, higher_is_better: false}
  - {metric: large, aggregation: !function utils.large, higher_is_better: false}
  - {metric: broken, aggregation: !function utils.broken, higher_is_better: false}
""",
    "own_lost": """
output_type: generate_until
doc_to_text: '{{text}}'
doc_to_target: '{{answer}}'
generation_kwargs: {until: ['.'], max_gen_toks: 5, do_sample: false}
process_results: !function utils.lost
metric_list: [{metric: found, aggregation: mean, higher_is_better: true}]
""",
}
GROUP = "group: own_group\ntask: [own_choices, own_one_class]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
NAMES = ["own_group", *(name for name in TASKS if name not in GROUP)]
"""What is evaluated: the group has two of the tasks."""

FAIL = ("large", "broken", "own_lost")
"""Metrics and tasks that lm-eval itself cannot do with."""


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tasks")
    rows = [
        {"text": f"Mia eats {w} . {v}", "answer": v, "label": (i + j) % 2}
        for i, w in enumerate(WORDS)
        for j, v in enumerate(WORDS)
    ]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    head = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {path / 'rows.jsonl'}}}}}\ntest_split: test\n"
    for name, text in TASKS.items():
        (path / f"{name}.yaml").write_text(f"task: {name}\n{head}{text}")
    (path / "own_group.yaml").write_text(GROUP)
    (path / "utils.py").write_text(UTILS)
    return path


@pytest.fixture(scope="module")
def ours(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> SuiteResult:
    sets = [f"eval.settings.lm-eval.{key}={value}" for key, value in _settings(tasks).items()]
    (found,) = evaluate(["demo"], ["lm-eval"], sets=sets, output=tmp_path_factory.mktemp("out"))
    return found.results["lm-eval"]


def _settings(tasks: Path) -> dict[str, Any]:
    return {"tasks": f"[{','.join(NAMES)}]", "include_path": tasks}


@pytest.fixture(scope="module")
def theirs(tasks: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    usable = tmp_path_factory.mktemp("usable")
    for file in (path for path in tasks.iterdir() if path.is_file()):
        lines = file.read_text().splitlines(keepends=True)
        (usable / file.name).write_text("".join(x for x in lines if not any(f"metric: {name}" in x for name in FAIL)))
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    loaded = build_model(ModelConfig(name="demo"))
    found = simple_evaluate(
        model=HFLM(loaded.model.eval(), tokenizer=loaded.tokenizer, batch_size=16),
        tasks=[name for name in NAMES if name not in FAIL],
        task_manager=TaskManager(include_defaults=False, include_path=str(usable)),
        bootstrap_iters=0,
    )
    assert found is not None
    return dict(found["results"])


def test_every_number_is_lm_evals(ours: SuiteResult, theirs: dict[str, Any]) -> None:
    expected = {
        f"{task}/{key.removesuffix(',none')}": value
        for task, results in theirs.items()
        for key, value in results.items()
        if key.endswith(",none")
        and "_stderr" not in key
        and isinstance(value, float | int)
        and not key.startswith(FAIL)
    }
    assert len(expected) == 18
    assert {name: estimate.value for name, estimate in ours.metrics.items()} == pytest.approx(expected, rel=1e-6)


def test_each_has_an_interval_that_holds_it_or_a_reason(ours: SuiteResult) -> None:
    reasons = {note.partition(" ")[0] for note in ours.notes}
    for name, (value, low, high) in ours.metrics.items():
        if low is None or high is None:
            assert name in reasons, name
        else:
            assert low <= value <= high, name
            assert low < high, name
    with_interval = {name for name, estimate in ours.metrics.items() if estimate.low is not None}
    bootstrapped = {"own_translation/chrf", "own_translation/ter", "own_choices/mcc", "own_choices/brier_score"}
    assert with_interval >= {*bootstrapped, "own_choices/f1", "own_rolling/bits_per_byte", "own_likelihood/perplexity"}
    assert "own_group/acc has no interval: it combines several tasks" in ours.notes
    assert "own_functions/kinds is left out: lm-eval gives dict, not a number" in ours.notes


def test_a_metric_that_fails_is_named_and_takes_no_other_with_it(ours: SuiteResult) -> None:
    assert "own_functions/large is left out: the number is too large (it overflows)" in ours.notes
    assert any(n.startswith("own_functions/broken is left out: its code failed with TypeError: ") for n in ours.notes)
    lost = "own_lost is left out: 25 documents could not be scored (first: its code failed with KeyError: 'missing'"
    assert any(note.startswith(lost) for note in ours.notes)
    assert "own_functions/longest" in ours.metrics


def test_contrasts_are_those_that_follow_from_the_documents(ours: SuiteResult) -> None:
    for contrast in (c for c in ours.contrasts if c.numerator):
        items = [item for item in ours.items if all(item.get(k) == v for k, v in contrast.where.items())]
        top = sum(item[contrast.numerator] for item in items)
        ratio = top / (sum(item[contrast.denominator] for item in items) if contrast.denominator else len(items))
        value = math.exp(ratio) if contrast.log else ratio
        assert value == pytest.approx(ours.metrics[contrast.metric].value), contrast.metric
    drawn = {c.metric for c in ours.contrasts if not c.numerator}
    assert drawn == ours.draws.keys() >= {"own_translation/chrf", "own_choices/mcc", "own_choices/brier_score"}
    assert {len(draws) for draws in ours.draws.values()} == {200}
    assert {c.metric for c in ours.contrasts if c.numerator} == {
        *("own_translation/exact_match", "own_choices/acc", "own_one_class/acc", "own_likelihood/perplexity"),
        *("own_likelihood/acc", "own_rolling/word_perplexity", "own_rolling/byte_perplexity"),
    }


def test_bootstrap_by_clusters() -> None:
    items = [{"cluster": str(i // 2)} for i in range(40)]
    values = Values([float(i % 5) for i in range(40)], items, lambda chosen: sorted(chosen)[len(chosen) // 2])
    estimate, why, drawn = bootstrap(values, 2.0, 200)
    assert len(drawn) == 200
    assert not why
    assert estimate.low is not None
    assert estimate.high is not None
    assert 1.0 <= estimate.low <= 2.0 <= estimate.high <= 3.0
    assert bootstrap(values, 2.0, 200)[0] == estimate, "the same on every call"


@pytest.mark.parametrize(
    ("values", "aggregate", "why"),
    [
        ([1.0] * 20, max, "the same in 50"),
        ([0.0] * 19 + [1.0], lambda chosen: 1 / sum(chosen), r"undefined in \d+ of 50"),
        ([math.nan] * 20, max, "not finite"),
    ],
)
def test_why_there_is_no_interval(values: list[float], aggregate: Any, why: str) -> None:
    items = [{"cluster": str(i)} for i in range(20)]
    made = Values(values, items, aggregate)
    estimate, reason, _ = bootstrap(made, made.value(), 50)
    assert estimate.low is None
    assert re.search(why, reason)
