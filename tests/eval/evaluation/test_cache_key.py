"""A cached result is used only where everything that decides it is as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
from alignkit import SuiteResult
from alignkit.demo import data_path
from alignkit_eval.evaluation.evaluate import evaluate

from tests.helpers.eval import byte_tokenizer, tiny_model

ROWS = [json.loads(line) | {"solution": "yes"} for line in data_path("dev").read_text().splitlines()[:4]]

TASK = """\
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {docs}, train: {shots}}}}}
test_split: test
fewshot_split: train
num_fewshot: 1
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: gold
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model, an adapter of it, rows, and lm-eval tasks: one of data alone, and one that calls a function."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    model, tokenizer = tiny_model(), byte_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    model.save_pretrained("base")
    tokenizer.save_pretrained("base")
    model.name_or_path = str(tmp_path / "base")
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    peft.get_peft_model(model, config).save_pretrained("lora")
    write(tmp_path / "rows.jsonl", ROWS)
    chat = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    write(tmp_path / "chat.jsonl", [{"messages": chat}])
    docs = [{"question": "Is it?", "gold": 0}, {"question": "Is it not?", "gold": 1}]
    write(tmp_path / "docs.jsonl", docs)
    write(tmp_path / "shots.jsonl", docs[:1])
    (tmp_path / "tasks").mkdir()
    for name, more in {"plain": "", "coded": "process_docs: !function helper.same\n"}.items():
        text = TASK.format(name=name, docs=tmp_path / "docs.jsonl", shots=tmp_path / "shots.jsonl")
        (tmp_path / f"tasks/{name}.yaml").write_text(text + more)
    (tmp_path / "tasks/helper.py").write_text("def same(docs):\n    return docs\n")
    return tmp_path


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


def replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert re.search(old, text), f"{file} has no {old}"
    file.write_text(re.sub(old, new, text))


def result(directory: Path, model: str, suite: str, *sets: str, data: str = "rows.jsonl") -> SuiteResult:
    (found,) = evaluate([directory / model], [suite], data=str(directory / data), sets=sets, output=directory / "out")
    return found.results[suite]


def cached(*arguments: Any, **options: Any) -> bool:
    return bool(result(*arguments, **options).provenance["cached"])


EDITS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "rope_theta": (
        "base",
        "prefs",
        lambda p: replace(p / "base/config.json", '"rope_theta": [0-9.]+', '"rope_theta": 7.0'),
    ),
    "base of an adapter": (
        "lora",
        "prefs",
        lambda p: replace(p / "base/config.json", '"rms_norm_eps": [^,]+', '"rms_norm_eps": 1.0'),
    ),
    "lora_alpha": (
        "lora",
        "prefs",
        lambda p: replace(p / "lora/adapter_config.json", '"lora_alpha": 8', '"lora_alpha": 64'),
    ),
    "end tokens": (
        "base",
        "generate",
        lambda p: replace(p / "base/generation_config.json", '"eos_token_id": 257', '"eos_token_id": [257, 9]'),
    ),
    "special token": (
        "base",
        "prefs",
        lambda p: replace(p / "base/tokenizer_config.json", '"eos_token": "<eos>"', '"eos_token": "!"'),
    ),
    "a column": ("base", "prefs", lambda p: write(p / "rows.jsonl", [row | {"solution": "no"} for row in ROWS])),
}


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_of_what_decides_a_result_makes_it_anew(edit: str, files: Path) -> None:
    model, suite, change = EDITS[edit]
    few = "eval.settings.generate.max_new_tokens=4"
    assert [cached(files, model, suite, few) for _ in range(2)] == [False, True]
    change(files)
    assert [cached(files, model, suite, few) for _ in range(2)] == [False, True]


def test_an_edited_chat_template_makes_results_anew(files: Path) -> None:
    assert [cached(files, "base", "perplexity", data="chat.jsonl") for _ in range(2)] == [False, True]
    template = files / "base/chat_template.jinja"
    template.write_text(template.read_text().replace("{{ m.content }}", "{{ m.role }}: {{ m.content }}"))
    assert not cached(files, "base", "perplexity", data="chat.jsonl")


def test_what_a_users_function_decides_is_not_cached(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (files / "judge.py").write_text(
        "from pathlib import Path\n\ndef good(prompt, answer):\n    return float(Path('bar').read_text())\n"
    )
    (files / "bar").write_text("1")
    monkeypatch.syspath_prepend(files)
    few = "eval.settings.generate.max_new_tokens=4"
    for setting in ("checker=judge:good", "rewards=judge:good"):
        sets = (few, f"eval.settings.generate.{setting}")
        name = "quality" if "checker" in setting else "reward/good"
        (files / "bar").write_text("1")
        assert result(files, "base", "generate", *sets).metrics[name].value == 1
        (files / "bar").write_text("0")
        again = result(files, "base", "generate", *sets)
        assert (again.metrics[name].value, again.provenance["cached"]) == (0, False)


@pytest.mark.parametrize("edited", ["docs.jsonl", "shots.jsonl", "tasks/plain.yaml"])
def test_every_file_of_a_task_is_in_the_key(edited: str, files: Path) -> None:
    tasks = (f"eval.settings.lm-eval.include_path={files / 'tasks'}", "eval.settings.lm-eval.tasks=plain")
    first = result(files, "base", "lm-eval", *tasks)
    assert cached(files, "base", "lm-eval", *tasks)
    replace(files / edited, "Is it" if edited != "tasks/plain.yaml" else "{{question}}", "Q: was it")
    again = result(files, "base", "lm-eval", *tasks)
    assert not again.provenance["cached"]
    assert again.provenance["content"] != first.provenance["content"]


def test_a_task_with_code_of_ones_own_is_not_cached(files: Path) -> None:
    tasks = (f"eval.settings.lm-eval.include_path={files / 'tasks'}", "eval.settings.lm-eval.tasks=coded")
    assert [cached(files, "base", "lm-eval", *tasks) for _ in range(2)] == [False, False]
