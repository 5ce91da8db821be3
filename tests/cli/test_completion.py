"""What a shell completes, by click's protocol, through ``align``."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
from collections.abc import Iterable
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
        ("run --method dpo --set be", {"beta="}),
        ("run --method dpo --set loss=dpop --set pen", {"penalty="}),
        ("run --method dpo --set ratio=m", {"ratio=mean"}),
        ("run --set mod", {"model."}),
        ("run runs/first/run.yaml --set lambda_w", {"lambda_warmup="}),
        ("sweep --over met", {"method.", "method="}),
        ("sweep --over method=sft,orp", {"method=sft,orpo"}),
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


COMPLETED = {
    ("align run --method dpo --set ", "loss=sli"): "loss=slic ",
    ("align run --method ", "or"): "orpo ",  # not the first time in a shell
    ("align run --set ", "mod"): "model.",
    ("align run --set ", "'model.head=ex"): "'model.head=exact' ",
    ("align eval --suite ", "prefs,perp"): "prefs,perplexity ",
    ("align status ", "runs/12:3"): "runs/12:30 ",
    ("align status ", "runs/my"): r"runs/my\ run ",
    ("align run ", "con"): "config.yaml ",
}
"""What stands on a line, the word before a tab, and what a shell makes of the word."""

STARTS = {
    "bash": r"""
PS1= HISTFILE=
source _align
bind -x '"\C-t": printf "%s\n" "$READLINE_LINE" >> typed; READLINE_LINE='
""",
    "zsh": r"""
fpath=($PWD $fpath)
autoload -Uz compinit && compinit -u -d $PWD/dump
zle-line-init() {
    local line=${"${(@f)$(<lines)}"[++count]}
    [[ -n $line ]] || exit
    BUFFER=$line CURSOR=$#line
    zle complete-word
    print -r -- "$BUFFER" >> typed
    BUFFER=
    zle accept-line
}
zle -N zle-line-init
""",
    "fish": r"""
source _align
while read --local line
    complete --escape -C $line | string replace --regex '\t.*' '' >> typed
end < lines
""",
}
"""What a shell runs as it starts: it completes every line of a file as a tab does."""

COMMANDS = {"bash": ["--norc", "--noprofile", "-i"], "zsh": ["-d", "-i"], "fish": ["--no-config", ".zshrc"]}


def typed(shell: str, lines: Iterable[str], cwd: Path) -> list[str]:
    """Return what stands on the command line of a real shell after each line and a tab were typed; of fish, the last words."""
    (cwd / "_align").write_text(align("completion", shell, cwd=cwd).stdout)
    (cwd / ".zshrc").write_text(STARTS[shell])
    (cwd / "lines").write_text("".join(f"{line}\n" for line in lines))
    terminal, inner = pty.openpty()
    places = {"PATH": f"{ALIGN.parent}:{os.environ['PATH']}", "ZDOTDIR": str(cwd), "HOME": str(cwd), "TERM": "dumb"}
    process = subprocess.Popen(
        [shell, *COMMANDS[shell]],
        stdin=inner,
        stdout=inner,
        stderr=inner,
        env={**os.environ, **places},
        cwd=cwd,
        start_new_session=True,
    )
    os.close(inner)
    if shell == "bash":
        keys = "".join(f"{line}\t\x14" for line in lines)
        os.write(terminal, f"source .zshrc\n{keys}exit\n".encode())
    try:
        while os.read(terminal, 4096):
            pass
    except OSError:  # how Linux says that the shell has ended
        pass
    os.close(terminal)
    process.wait()
    return (cwd / "typed").read_text().splitlines()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_real_shell_completes_words(tmp_path: Path, shell: str) -> None:
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    for run in ("12:30", "my run"):
        (tmp_path / "runs" / run).mkdir(parents=True)
        (tmp_path / "runs" / run / "run.yaml").write_text("method: orpo\n")
    (tmp_path / "config.yaml").write_text("method: orpo\n")
    expected = [before + word for (before, _), word in COMPLETED.items()]
    if shell == "fish":  # it adds the space itself, unless a word ends with . or =
        expected = [word.rstrip(" ") for word in COMPLETED.values()]
    assert typed(shell, ["".join(line) for line in COMPLETED], tmp_path) == expected
