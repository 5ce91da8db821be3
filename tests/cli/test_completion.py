"""What a shell completes, by click's protocol, through ``align``."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from alignkit.config import RunConfig
from alignkit.settings.train_keys import argument_types
from alignkit_commands.known_keys import keys_of

from tests.helpers.runs import ALIGN, align


def completed(line: str, cwd: Path) -> list[str]:
    """Return what fish is given for the last word of a command line."""
    words = f"align {line}"
    *_, last = words.split(" ")
    found = align(cwd=cwd, _ALIGN_COMPLETE="fish_complete", COMP_WORDS=words.removesuffix(last), COMP_CWORD=last)
    return [each.partition(",")[2].partition("\t")[0] for each in found.stdout.splitlines()]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("comp", {"compare", "completion"}),
        ("run --method or", {"orpo"}),
        ("sweep --method trl-d", {"trl-dpo"}),
        ("schema simp", {"simpo"}),
        ("eval --suite prefs,perp", {"prefs,perplexity"}),
        ("run --method orpo --set lambda_s", {"lambda_schedule=", "lambda_start="}),
        ("run --method orpo --set model.lora.dr", {"model.lora.dropout="}),
        ("run --set train.adam_beta", {"train.adam_beta1=", "train.adam_beta2="}),
        ("run --set data.check.scr", {"data.check.script=", "data.check.script_share="}),
        ("run --set model.head=", {"model.head=fast", "model.head=exact"}),
        ("run --set data.shuffle=f", {"data.shuffle=false"}),
        ("run --method dpo --set loss=sli", {"loss=slic"}),
        ("run --set eval.suites=prefs,per", {"eval.suites=prefs,perplexity"}),
        ("sweep --over data.fol", {"data.folds=", "data.fold="}),
        ("status ", {"runs/first", "runs/second"}),
        ("compare runs/first runs/s", {"runs/second"}),
        ("chat other/t", {"other/third"}),
    ],
)
def test_words_are_completed(tmp_path: Path, line: str, expected: set[str]) -> None:
    for run in ("runs/first", "runs/second", "other/third"):
        (tmp_path / run).mkdir(parents=True)
        (tmp_path / run / "run.yaml").write_text("method: orpo\n")
    (tmp_path / "runs" / "atlas").mkdir()
    assert set(completed(line, tmp_path)) == expected


def test_every_key_is_known_from_the_source() -> None:
    for section, field in RunConfig.model_fields.items():
        keys = {name for name, _ in keys_of(section, None)}
        kind: object = field.annotation
        if section == "method" or not isinstance(kind, type):
            continue
        assert {f"{section}.{name}" for name in kind.model_fields} <= keys  # type: ignore[attr-defined]
    train = {name for name, _ in keys_of("train", None)}
    assert {f"train.{name}" for name in argument_types()} <= train
    assert {name for name, _ in keys_of(None, "grpo")} >= {"num_generations", "reward", "max_new_tokens", "model."}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_every_shell_names_the_command(tmp_path: Path, shell: str) -> None:
    found = align("completion", shell, cwd=tmp_path)
    assert found.returncode == 0
    assert f"_ALIGN_COMPLETE={shell}_complete" in found.stdout


def test_completion_imports_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
from alignkit.__main__ import main
try:
    main()
except SystemExit:
    pass
print([name for name in ("torch", "transformers", "pydantic", "numpy") if name in sys.modules])
"""
    words = {
        "_ALIGN_COMPLETE": "fish_complete",
        "COMP_WORDS": "align run --method grpo --set ",
        "COMP_CWORD": "train.lear",
    }

    found = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **words},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.splitlines() == ["plain,train.learning_rate=", "[]"]


def typed(line: str, script: Path) -> str:
    """Return what stands on the command line of a real bash after a line and a tab were typed."""
    terminal, inner = pty.openpty()
    shell = subprocess.Popen(
        ["bash", "--norc", "--noprofile", "-i"],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={**os.environ, "PS1": "", "TERM": "dumb", "HISTFILE": "", "PATH": f"{ALIGN.parent}:{os.environ['PATH']}"},
        cwd=script.parent,
        start_new_session=True,
    )
    os.close(inner)
    to_the_start = "\x01"
    os.write(terminal, f"source {script}\n{line}\t{to_the_start}echo typed: \nexit\n".encode())
    shown = b""
    try:
        while piece := os.read(terminal, 4096):
            shown += piece
    except OSError:  # how Linux says that the shell has ended
        pass
    os.close(terminal)
    shell.wait()
    (found,) = re.findall(r"^typed: (.*?)\r?$", shown.decode(), re.MULTILINE)
    return found


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("align run --method dpo --set loss=sli", "align run --method dpo --set loss=slic"),
        ("align sweep --over model.lora.dora=t", "align sweep --over model.lora.dora=true"),
        ("align run --set 'model.head=ex", "align run --set model.head=exact"),
        ("align status runs/12:3", "align status runs/12:30"),
    ],
)
def test_bash_completes_words_with_the_characters_at_which_it_cuts_them(
    tmp_path: Path, line: str, expected: str
) -> None:
    script = tmp_path / "align.bash"
    (tmp_path / "runs/12:30").mkdir(parents=True)
    (tmp_path / "runs/12:30/run.yaml").write_text("method: orpo\n")
    script.write_text(align("completion", "bash", cwd=tmp_path).stdout)
    assert typed(line, script) == expected
