"""User errors on the command line: one clear sentence, exit code 2, no traceback, no files left behind."""

from __future__ import annotations

import json
import pickle
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from alignkit.__main__ import main

from tests.helpers.data import make_tokenizer
from tests.helpers.engine import tiny_llama
from tests.helpers.runs import ALIGN, align

GOOD = {"prompt": "What colour is the sky?", "chosen": " It is blue.", "rejected": " It is green."}
CHAT = {
    "prompt": [{"role": "user", "content": "What colour?"}],
    "chosen": [{"role": "assistant", "content": "Blue."}],
    "rejected": [{"role": "assistant", "content": "Green."}],
}


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def good_data(where: Path, n: int = 20) -> Path:
    rows = [{**GOOD, "prompt": f"{GOOD['prompt']} {i}"} for i in range(n)]
    return lines(where / "good.jsonl", *rows)


def model_directory(where: Path, *, chat: bool = True, tokenizer: bool = True) -> Path:
    made = make_tokenizer(chat=chat)
    path = where / "model"
    tiny_llama(vocab_size=len(made), hidden_size=16, intermediate_size=32).save_pretrained(path)
    if tokenizer:
        made.save_pretrained(path)
    return path


def with_row(row: Any, at: int = 3) -> Callable[[Path], list[str]]:
    """Data whose line ``at`` is ``row``, three good lines around it."""

    def make(where: Path) -> list[str]:
        rows: list[Any] = [{**GOOD, "prompt": f"Question {i}?"} for i in range(4)]
        rows.insert(at - 1, row)
        return ["--data", str(lines(where / "prefs.jsonl", *rows)), "--model", str(model_directory(where))]

    return make


def options(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda where: list(arguments)


def model(make: Callable[[Path], Path]) -> Callable[[Path], list[str]]:
    return lambda where: ["--model", str(make(where)), "--data", str(good_data(where))]


def data(make: Callable[[Path], Path]) -> Callable[[Path], list[str]]:
    return lambda where: ["--data", str(make(where)), "--model", str(model_directory(where))]


def written(name: str, content: str | bytes) -> Callable[[Path], Path]:
    def make(where: Path) -> Path:
        (where / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return where / name

    return make


def empty_directory(where: Path) -> Path:
    (where / "nothing").mkdir()
    return where / "nothing"


def half_written_model(where: Path) -> Path:
    path = model_directory(where)
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return path


def weightless_model(where: Path) -> Path:
    path = model_directory(where)
    (path / "model.safetensors").unlink()
    return path


def broken_adapter(where: Path) -> Path:
    from peft import LoraConfig, get_peft_model

    base = model_directory(where)
    adapted = get_peft_model(tiny_llama(vocab_size=300, hidden_size=16, intermediate_size=32), LoraConfig(r=2))  # type: ignore[arg-type]
    adapted.save_pretrained(str(where / "adapter"))
    config = json.loads((where / "adapter" / "adapter_config.json").read_text())
    (where / "adapter" / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": str(base)}))
    (where / "adapter" / "adapter_model.safetensors").write_bytes(b"not safetensors at all")
    return where / "adapter"


def plain_template_model(where: Path) -> list[str]:
    return ["--model", str(model_directory(where, chat=False)), "--data", str(lines(where / "chat.jsonl", *[CHAT] * 9))]


def in_the_way(where: Path) -> list[str]:
    """An output directory that cannot be created, even by root: its parent is a file."""
    (where / "taken").write_text("")
    return ["--output", str(where / "taken" / "runs")]


def config_file(text: str) -> Callable[[Path], list[str]]:
    def make(where: Path) -> list[str]:
        (where / "config.yaml").write_text(text)
        return [str(where / "config.yaml")]

    return make


def too_short(where: Path) -> list[str]:
    return [*data(good_data)(where), "--set", "data.max_length=2"]


def quantized(where: Path) -> list[str]:
    return [*data(good_data)(where), "--set", "model.quantization=4bit", "--set", "model.lora.r=4"]


class Case(NamedTuple):
    name: str
    arguments: Callable[[Path], list[str]]
    says: tuple[str, ...]
    method: str | None = "orpo"


CASES = [
    Case("unknown method", options(), ("orop", 'did you mean "orpo"'), "orop"),
    Case("no method", options(), ("--method",), None),
    Case("unknown key", config_file("method: orpo\nmodle: x\n"), ("config.yaml:2", "modle", "model"), None),
    Case("misspelt setting", options("--set", "lamda=0.1"), ("lamda", 'did you mean "lambda"')),
    Case(
        "misspelt train key",
        options("--set", "train.learing_rate=1"),
        ("train.learing_rate", 'did you mean "learning_rate"'),
    ),
    Case("wrong type", options("--set", "lambda=strong"), ("method.lambda", "strong")),
    Case("wrong type of a train key", options("--set", "train.max_steps=many"), ("train.max_steps", "many")),
    Case("out of range", options("--set", "lambda=-1"), ("method.lambda", "-1")),
    Case("NaN", options("--set", "lambda=.nan"), ("method.lambda", "finite")),
    Case("key the engine owns", options("--set", "train.output_dir=x"), ("train.output_dir", "--output")),
    Case("unknown suite", options("--set", "eval.suites=pref"), ("pref", 'did you mean "prefs"')),
    Case("unknown service", options("--set", "run.services=[nope]"), ("nope",)),
    Case("broken YAML", config_file("method: [orpo\n"), ("config.yaml:",), None),
    Case("missing config", options("nowhere.yaml"), ("nowhere.yaml",), None),
    Case("missing data", data(lambda where: where / "absent.jsonl"), ("absent.jsonl",)),
    Case("empty file", data(written("empty.jsonl", "")), ("empty.jsonl is empty",)),
    Case("broken JSON", with_row('{"prompt": "a", '), ("prefs.jsonl:3", "JSON")),
    Case("CSV without columns", data(written("t.csv", "question,answer\na,b\n")), ("t.csv", "question")),
    Case("wrong field type", with_row({**GOOD, "chosen": 7}), ("prefs.jsonl:3", "chosen")),
    Case("missing field", with_row({"prompt": "a", "chosen": "b"}), ("prefs.jsonl:3", "rejected")),
    Case("chosen equals rejected", with_row({**GOOD, "rejected": GOOD["chosen"]}), ("prefs.jsonl:3", "chosen")),
    Case("empty completion", with_row({**GOOD, "chosen": " "}), ("prefs.jsonl:3", "empty")),
    Case(
        "all rows dropped", data(lambda w: lines(w / "all.jsonl", *[{**GOOD, "chosen": ""}] * 5)), ("all.jsonl:1", "5")
    ),
    Case(
        "not UTF-8", data(written("latin.jsonl", '{"prompt": "caf\xe9"}\n'.encode("latin-1"))), ("latin.jsonl", "UTF-8")
    ),
    Case("a pickle", data(written("rows.pkl", pickle.dumps([GOOD]))), ("rows.pkl", "can run code")),
    Case("directory without a model", model(empty_directory), ("nothing", "holds no model")),
    Case("missing model directory", model(lambda where: where / "absent"), ("absent", "no model")),
    Case("unknown hub id", model(lambda where: Path("no-one/nothing")), ("no-one/nothing",)),
    Case("a file as model", model(written("model.gguf", "x")), ("model.gguf", "not a model directory")),
    Case(
        "model without tokenizer",
        model(lambda w: model_directory(w, tokenizer=False)),
        ("no tokenizer", "model.tokenizer"),
    ),
    Case("no chat template", plain_template_model, ("chat template", "model.chat_template")),
    Case("max_length too short", too_short, ("data.max_length 2", "shorter")),
    Case("broken adapter", model(broken_adapter), ("adapter_model.safetensors is damaged", "copy it again")),
    Case("half-written checkpoint", model(half_written_model), ("model.safetensors is damaged or half-written",)),
    Case("model without weights", model(weightless_model), ("no weights",)),
    Case("name leaves the output", options("--name", "../../elsewhere"), ("../../elsewhere", "--output")),
    Case("output in the way", in_the_way, ("taken",)),
    Case("quantization without a GPU", quantized, ("model.quantization", "GPU")),
    *(
        Case(f"attention: {' '.join(sets)}", options(*(word for one in sets for word in ("--set", one))), said)
        for sets, said in {
            ("model.attention=flax",): ("model.attention", 'did you mean "flex"?', "align plugins lists them"),
            ("model.attention=eager", "model.scorer=packed"): ("model.attention: eager excludes model.scorer: packed",),
            ("model.attention=varlen", "model.scorer=rows"): ("model.attention: varlen excludes model.scorer: rows",),
            ("model.attention=varlen",): ("varlen does not run on cpu",),
            ("model.attention=flex",): ("FlexAttention has no backward on the CPU", "choose model.attention: auto"),
            ("model.attention=flash", "model.scorer=padded"): ("cannot use flash_attention_2", "auto"),
        }.items()
    ),
    Case(
        "misspelt curriculum", options("--set", "data.curriculum={by: lenght}"), ('"lenght"', 'did you mean "length"')
    ),
    Case(
        "groups of answers",
        options("--set", "reward=length", "--set", "data.group_by=category"),
        ("data.group_by applies to methods that train on the rows themselves",),
        "grpo",
    ),
    Case("resume of nothing", options("--resume", "--name", "absent"), ("absent",)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_one_sentence_and_exit_code_two(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    method = [] if case.method is None else ["--method", case.method]
    arguments = case.arguments(tmp_path)
    capfd.readouterr()
    code = main(["run", *arguments, *method])
    stderr = capfd.readouterr().err
    errors = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert code == 2, stderr
    assert len(errors) == 1, stderr
    for fragment in case.says:
        assert fragment in errors[0]
    assert "Traceback" not in stderr
    assert not list(work.rglob("run.json")), "a run that never began left a directory behind"


def test_through_the_installed_command(tmp_path: Path) -> None:
    done = align("run", "--method", "orpo", "--set", "lamda=1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    loading, error = done.stderr.splitlines()
    assert loading == "orpo on demo: loading PyTorch and transformers"
    assert error.startswith("Error: ")
    assert list(tmp_path.iterdir()) == []


def test_plugin_that_raises_on_import(tmp_path: Path) -> None:
    """A broken installed package affects only the runs that use it."""
    package = tmp_path / "site"
    info = package / "broken_method-0.3.dist-info"
    info.mkdir(parents=True)
    (package / "broken_method.py").write_text("raise RuntimeError('no such luck')\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-method\nVersion: 0.3\n")
    (info / "entry_points.txt").write_text("[align.methods]\nbroken = broken_method:Broken\n")
    done = align("run", "--method", "broken", cwd=tmp_path, PYTHONPATH=str(package))
    assert done.returncode == 2
    for fragment in ("broken", "broken-method", "0.3", "no such luck"):
        assert fragment in done.stderr
    listed = align("methods", cwd=tmp_path, PYTHONPATH=str(package))
    assert listed.returncode == 0
    assert "broken" in listed.stdout


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = align("--debug", "run", "--method", "orpo", "--data", "absent.jsonl", cwd=tmp_path)
    assert done.returncode == 2
    assert "Traceback" in done.stderr


def test_resume_from_half_written_checkpoints_only(tmp_path: Path) -> None:
    from tests.helpers.runs import short_run

    run = short_run(tmp_path, "half", eval={"suites": [], "samples": 0}).directory
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "interrupted"}))
    for checkpoint in (run / "checkpoints").glob("checkpoint-*"):
        (checkpoint / "optimizer.pt").unlink()
    kept = shutil.copytree(run, tmp_path / "kept")
    done = align("resume", run, cwd=tmp_path)
    assert done.returncode == 2
    assert "optimizer.pt is missing" in done.stderr
    assert {p.relative_to(run) for p in run.rglob("*")} == {p.relative_to(kept) for p in kept.rglob("*")}


def test_a_deleted_working_directory_is_one_sentence(tmp_path: Path) -> None:
    for arguments in ("run --method orpo", "data check x.jsonl"):
        script = f"mkdir gone && cd gone && rmdir ../gone && {ALIGN} {arguments}"
        done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == "Error: the current directory has been deleted: change to another one\n"
