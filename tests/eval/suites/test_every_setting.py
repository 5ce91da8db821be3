"""Every setting of the built-in suites changes a result or its cost, or is refused: a new one needs a row."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from alignkit import Target
from alignkit.config import EvalConfig, ModelConfig
from alignkit.contract import registry
from alignkit.errors import AlignError, ConfigError
from alignkit.models.load import build_model
from alignkit.runs.evaluation import open_suites
from alignkit.scoring.policy import ModelPolicy

from tests.helpers.eval import ReferencePolicy, byte_tokenizer, random_pairs, target, tiny_model
from tests.helpers.keys import Row

SAMPLED = {"temperature": 1.0}
CHECKED = {**SAMPLED, "samples": 3, "checker": "checking.py:none"}
TASK = {"tasks": "demo_facts", "limit": 6}
JUDGE = {"model": "judge", "template": "{prompt} {a} {b} ", "prompts": 4, "max_new_tokens": 6}
BEST = {"data": "best.jsonl"}
ASKED = {"data": "asked.jsonl", "max_new_tokens": 6}
SERVED = {**JUDGE, "url": "http://127.0.0.1:1/v1", "retries": 0}
"""Nothing answers there: what these settings change is shown in tests/judge/test_remote.py."""

ROWS: dict[str, dict[str, Row]] = {
    "prefs": {"tokens_per_batch": Row(20, "calls"), "calibration_bins": Row(1, "metrics")},
    "perplexity": {
        "text": Row("texts.jsonl", "items"),
        "max_length": Row(16, "metrics", {"text": "texts.jsonl"}),
        "stride": Row(3, "metrics", {"text": "texts.jsonl", "max_length": 16}),
        "bos": Row("every", "metrics", {"text": "texts.jsonl", "max_length": 16}),
        "tokens_per_batch": Row(20, "calls"),
    },
    "kl": {"against": Row("demo", "refused"), "tokens_per_batch": Row(20, "forwards")},
    "generate": {
        "prompts": Row(2, "items"),
        "samples": Row(2, "items", SAMPLED),
        "pass_at": Row([2], "metrics", CHECKED),
        "pass_from": Row(0.0, "metrics", CHECKED),
        "max_new_tokens": Row(3, "items"),
        "temperature": Row(1.0, "items"),
        "top_p": Row(0.1, "items", SAMPLED),
        "seed": Row(1, "items", SAMPLED),
        "rewards": Row("length", "metrics"),
        "checker": Row("checking.py:size", "metrics"),
    },
    "judge": {
        "model": Row("another", "metrics", {**JUDGE, "credit": "probability"}),
        "url": Row("http://key@127.0.0.1:1/v1", "refused", JUDGE),
        "key_env": Row("NO_SUCH_KEY", "refused", JUDGE),
        "template": Row("{b} {a} {prompt} ", "metrics", {**JUDGE, "credit": "probability"}),
        "credit": Row("probability", "metrics", JUDGE),
        "options": Row({"seed": 1}, "refused", JUDGE),
        "timeout": Row(1.0, "refused", JUDGE),
        "retries": Row(1, "refused", JUDGE),
        "concurrency": Row(1, "refused", JUDGE),
        "price_per_million": Row([1.0, 1.0], "refused", JUDGE),
        "tokens_per_batch": Row(1, "refused", SERVED),
        "baseline": Row("another", "items", JUDGE),
        "prompts": Row(2, "items", JUDGE),
        "max_new_tokens": Row(3, "items", JUDGE),
        "calibration": Row("pairs.jsonl", "metrics", JUDGE),
        "calibration_pairs": Row(0, "metrics", JUDGE),
        "ratings": Row("missing.csv", "refused", JUDGE),
    },
    "rewardbench2": {
        "data": Row("more.jsonl", "items", BEST),
        "reference": Row("another", "metrics", BEST),
        "max_length": Row(5, "metrics", BEST),
        "tokens_per_batch": Row(8, "calls", BEST),
    },
    "refusals": {
        "data": Row("more-asked.jsonl", "items", ASKED),
        "column": Row("other", "items", ASKED),
        "harmless": Row(["odd", "safe"], "refused", {**ASKED, "data": "odd.jsonl"}),
        "harmful": Row(["odd", "unsafe"], "refused", {**ASKED, "data": "odd.jsonl"}),
        "prefixes": Row("missing.txt", "refused", ASKED),
        "judge": Row({"model": "./missing"}, "refused", ASKED),
        "max_new_tokens": Row(3, "items", ASKED),
    },
    "lm-eval": {
        "tasks": Row("demo_agreement", "items", TASK),
        "include_path": Row("in-place", "items", TASK),
        "limit": Row(3, "items", TASK),
        "num_fewshot": Row(1, "refused", TASK),
        "batch_size": Row(1, "forwards", TASK),
        "apply_chat_template": Row(True, "metrics", TASK),
        "system_instruction": Row("no no no", "items", TASK),
        "fewshot_as_multiturn": Row(False, "refused", TASK),
        "gen_kwargs": Row("temperature=1", "refused", TASK),
        "resamples": Row(0, "metrics", {**TASK, "tasks": "own_choices", "include_path": "tasks"}),
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Documents, a checker and a task."""
    path = tmp_path_factory.mktemp("settings")
    texts = [f"Mia eats soup number {number}{'.' * number} It is good." for number in range(4)]
    (path / "texts.jsonl").write_text(
        "".join(json.dumps({"text": text, "gold": len(text) % 2}) + "\n" for text in texts)
    )
    for number, name in enumerate(("judge", "another")):
        tiny_model(number + 2).save_pretrained(path / name)
        byte_tokenizer().save_pretrained(path / name)
    (path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "ccc"}\n')
    best = [{"prompt": f"ask {n}", "chosen": "yes", "rejected": ["no" * n, "never"]} for n in (1, 2, 3)]
    (path / "best.jsonl").write_text("".join(json.dumps(row) + "\n" for row in best[:2]))
    (path / "more.jsonl").write_text("".join(json.dumps(row) + "\n" for row in best))
    asked = [
        {"prompt": f"ask {n}", "label": kind, "other": ("safe", "unsafe")[n % 2]}
        for n, kind in enumerate(("safe", "safe", "unsafe"))
    ]
    for name, rows in {
        "asked": asked,
        "more-asked": [*asked, *asked],
        "odd": [*asked, {**asked[0], "label": "odd"}],
    }.items():
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (path / "checking.py").write_text(
        "def size(prompt, answer):\n    return len(answer)\n\n\ndef none(prompt, answer):\n    return 0\n"
    )
    body = (
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {path / 'texts.jsonl'}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: [bad, good]\ndoc_to_target: gold\n"
        "metric_list: [{metric: f1}]\n"
    )
    for place, task in (("tasks", "own_choices"), ("in-place", "demo_facts")):
        (path / place).mkdir()
        (path / place / "task.yaml").write_text(f"task: {task}\n{body}")
    return path


@cache
def demo() -> Target:
    loaded = build_model(ModelConfig(name="demo"))
    return replace(target(ModelPolicy(loaded.model), []), tokenizer=loaded.tokenizer)


def suite_of(name: str, settings: dict[str, Any]) -> Any:
    return open_suites(EvalConfig(suites=[name], settings={name: settings}))[name]


@cache
def outcome(name: str, given: str) -> dict[str, Any]:
    """Evaluate a tiny model with settings written as JSON, and return everything that a setting can change."""
    settings = json.loads(given)
    policy = ReferencePolicy(tiny_model())
    where = replace(target(policy, random_pairs(6)), start_policy=lambda: ReferencePolicy(tiny_model(1)))
    where = demo() if name == "lm-eval" else where
    forwards: list[int] = []
    hook = where.policy.model.register_forward_hook(lambda *_: forwards.append(1))
    try:
        result = suite_of(name, settings).evaluate(where)
    except AlignError as error:
        return {"refused": str(error)}
    finally:
        hook.remove()
    return {
        "refused": None,
        "metrics": dict(result.metrics),
        "items": [dict(item) for item in result.items],
        "calls": policy.calls,
        "forwards": len(forwards),
    }


def test_every_setting_has_a_row() -> None:
    assert {*ROWS} == {*registry.usable("align.suites")}
    for name, rows in ROWS.items():
        fields = registry.load_suite(name)[1].settings_type.model_fields
        assert {*rows} == {field.alias or key for key, field in fields.items()}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, rows in ROWS.items() for key in rows])
def test_the_setting_changes_what_it_says(name: str, key: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    row = ROWS[name][key]
    few = {"max_new_tokens": 6} if name == "generate" else {}
    without, with_it = (
        outcome(name, json.dumps({**few, **row.beside, **changed})) for changed in ({}, {key: row.value})
    )
    assert row.seen == "refused" or not (with_it["refused"] or without["refused"])
    assert with_it[row.seen] != without[row.seen]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("generate", {"top_p": 0.5}, "eval.settings.generate: top_p has no effect with temperature: 0"),
        ("generate", {"seed": 5}, "eval.settings.generate: seed has no effect with temperature: 0"),
        ("generate", {"samples": 2}, "eval.settings.generate: samples are all the same with temperature: 0"),
        ("generate", {**SAMPLED, "samples": 2, "pass_at": [2]}, "pass_at needs several samples, and a checker"),
        ("generate", {**CHECKED, "pass_at": [4]}, "pass_at 4 needs as many samples, and samples is 3"),
        ("generate", {"pass_from": 0.5}, "pass_from has no effect without several samples"),
        ("perplexity", {"max_length": 64}, "eval.settings.perplexity: max_length has no effect without text"),
    ],
)
def test_a_setting_that_changes_nothing_is_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        suite_of(name, settings)
    assert message in str(refused.value)
