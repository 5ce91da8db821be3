"""Malformed input of every kind ends in one short sentence that says what to do, with exit code 2: the table of command lines."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from alignkit.__main__ import main
from alignkit.system.files import write_text

DEEP = "[" * 500 + "]" * 500
DIGITS = "9" * 5000
LONG = "y" * 70_000
Make = Callable[[Path], object]


def said(capfd: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command line that must be refused and return its sentence."""
    capfd.readouterr()
    code = main(arguments)
    stderr = capfd.readouterr().err
    errors = [line for line in stderr.splitlines() if line.startswith("Error: ")]
    assert code == 2, stderr[-2000:]
    assert len(errors) == 1, stderr[-2000:]
    assert "Traceback" not in stderr
    assert "--debug" not in stderr
    # The table's own paths and values do not count.
    sentence = errors[0].replace(str(Path.cwd()), "")
    assert len(sentence) < 320, sentence
    return errors[0]


def sets(*values: str) -> list[str]:
    return ["run", "--dry-run", "--method", "orpo", *(part for value in values for part in ("--set", value))]


COMMAND_LINES: dict[str, tuple[list[str], tuple[str, ...]]] = {
    # words in the wrong place
    "a prompt as an argument": (["generate", "demo", "Say hi"], ("no model is called 'Say hi'", "--prompt 'Say hi'")),
    "a question as an argument": (["generate", "demo", "why?"], ("--prompt 'why?'",)),
    "fsdp in one process": (["eval", "demo", "--strategy", "fsdp"], ("fsdp needs several processes: add --processes",)),
    # numbers
    "5,000 digits": (sets(f"train.max_steps={DIGITS}"), ("train.max_steps", "5,000 digits")),
    "10 ** 30": (sets(f"train.max_steps=1{'0' * 30}"), ("train.max_steps must be at most 4,294,967,295",)),
    "a digit string in a list": (sets(f"data.phases=[{{until: {DIGITS}}}]"), ("data.phases", "5,000 digits")),
    "a large number in a list": (sets("data.phases=[{until: 1e30, weights: {}}]"), ("data.phases.0.until",)),
    "a large float": (sets("lambda=1e300"), ("method.lambda must be at most",)),
    "an infinite float": (sets("train.learning_rate=1e400"), ("train.learning_rate must be a finite number",)),
    "negative, of transformers": (sets("train.logging_steps=-1"), ("train.logging_steps must be at least 0",)),
    **{
        f"{key} 0": (sets(f"train.{key}=0"), (f"train.{key} must be more than 0",))
        for key in ("max_steps", "num_train_epochs", "eval_steps", "save_steps", "logging_steps")
    },
    "beta of Adam": (sets("train.adam_beta1=1"), ("train.adam_beta1 must be less than 1",)),
    "a number as text": (sets("train.max_steps='99999999999'"), ("train.max_steps must be at most",)),
    # nesting and sizes
    "nested value": (sets(f"data.columns={DEEP}"), ("data.columns", "nested more than 32 deep")),
    "a key twice": (sets("data.columns={a: b, a: c}"), ("a is given twice",)),
    "a long value": (sets(f"train.learning_rate={LONG}"), ("train.learning_rate must be a number",)),
    "a long key": (sets(f"{LONG}=1"), ("unknown key method.yyy", "...")),
    "a long method": (["run", "--method", LONG], ("unknown method", "align methods")),
    "a long seed": (["run", "--method", "orpo", "--seed", DIGITS * 9], ("--seed",)),
    "a long path": (["status", LONG], ("File name too long",)),
    # what was probably meant
    "a method as configuration": (["run", "orpo"], ("did you mean --method orpo?",)),
    **{
        f"alias {given}": (sets(f"{given}=1"), (f'did you mean "{meant}"',))
        for given, meant in {
            "lr": "train.learning_rate",
            "train.lr": "train.learning_rate",
            "epochs": "train.num_train_epochs",
            "train.per_device_batch_size": "train.per_device_train_batch_size",
            "bs": "train.per_device_train_batch_size",
            "grad_accum": "train.gradient_accumulation_steps",
            "train.max_length": "data.max_length",
            "data.max_len": "data.max_length",
            "model.seq_len": "data.max_length",
            "warmup": "train.warmup_steps",
            "wd": "train.weight_decay",
            "train.beta1": "train.adam_beta1",
            "model.lora.rank": "model.lora.r",
            "weight_decay": "train.weight_decay",
            "model.load_in_4bit": "model.quantization",
        }.items()
    },
    "no close key": (sets("model.xyzzy=1"), ("unknown key model.xyzzy (align schema METHOD lists all keys)",)),
    # numbers of options
    **{
        " ".join(arguments[-2:]): ([*arguments], (f"'{arguments[-2]}'", "is not a number between"))
        for arguments in (
            ["generate", "demo", "--prompt", "x", "--temperature", "nan"],
            ["generate", "demo", "--prompt", "x", "--temperature", "inf"],
            ["generate", "demo", "--prompt", "x", "--top-p", "nan"],
            ["generate", "demo", "--prompt", "x", "--max-new-tokens", f"1{'0' * 20}"],
            ["generate", "demo", "--prompt", "x", "--seed", f"1{'0' * 30}"],
            ["data", "check", "demo", "--near", "nan"],
            ["data", "check", "demo", "--limit", f"1{'0' * 20}"],
            ["watch", "r", "--every", "nan"],
            ["cache", "prune", "--older-than", "nan"],
            ["cache", "prune", "--max-size", "inf"],
        )
    },
    "a weight that is not a number": (["export", "r", "--weights", "nan"], ("--weights nan",)),
    # names
    "an empty source": (["data", "check", ""], ("an argument is empty",)),
    "an empty target": (["generate", " ", "--prompt", "x"], ("an argument is empty",)),
    "an empty option": (["run", "--method", "orpo", "--data", ""], ("an argument of --data is empty",)),
    "a name outside the output": (sets("run.name=a/../../b"), ("'a/../../b' points outside runs",)),
    "a long name": (sets(f"run.name={'x' * 300}"), ("is not a valid name of a run directory",)),
    "one of many": (sets("train.optim=nope"), ("train.optim cannot be 'nope' (one of adamw_torch, ",)),
    "a broken pattern": (sets("model.lora={target_modules: '('}"), ("model.lora cannot be applied", "unterminated")),
    "a module that is not there": (sets("model.lora={modules_to_save: [lm_heads]}"), ('did you mean "lm_head"?',)),
    "a broken option of peft": (sets("model.lora={options: {rank_pattern: 3}}"), ("model.lora cannot be applied",)),
    "a plugin like a built-in": (["new-plugin", "orpo"], ("orpo is a built-in method",)),
    "a suite like a built-in": (["new-plugin", "prefs", "--kind", "suite"], ("prefs is a built-in suite",)),
    "a file as tokenizer": (sets("model.tokenizer=/dev/zero"), ("/dev/zero is a file, not the directory of a tok",)),
    # text that is not text
    "an option that is not UTF-8": (["run", "--method", "orpo", "--name", "a\udcff"], (r"a\xff is not UTF-8",)),
    "a file that is not UTF-8": (["run", "\udcff.yaml"], (r"\xff.yaml is not UTF-8",)),
    "a run that is not UTF-8": (["status", "\udcfe"], (r"\xfe is not UTF-8",)),
}


@pytest.mark.parametrize("name", COMMAND_LINES)
def test_command_line(
    name: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, fragments = COMMAND_LINES[name]
    sentence = said(capfd, arguments)
    for fragment in fragments:
        assert fragment in sentence
    assert not list(tmp_path.iterdir())


LAUGHS = "".join(f"l{i}: &l{i} [{', '.join([f'*l{i - 1}'] * 9)}]\n" for i in range(1, 9))


def bind(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path))


FILES: dict[str, tuple[Make | str | bytes, str]] = {
    "nested lists": (f"method: orpo\ntrain: {DEEP}\n", "nested more than 32 deep"),
    "nested mappings": ("method: orpo\ndata: " + "{a: " * 500 + "1" + "}" * 500, "nested more than 32 deep"),
    "nested by indentation": ("".join(f"{' ' * i}a:\n" for i in range(60)), ":33: the values are nested"),
    "aliases": (f"l0: &l0 [a]\n{LAUGHS}", "more than 100,000 values"),
    "digits": (f"method: orpo\ntrain:\n  max_steps: {DIGITS}\n", ":3: an integer of 5,000 digits is too large"),
    "a method's setting": ("method: orpo\nlambda: 0.5\n", ":2: unknown key lambda: it is a setting of the method"),
    "a method's setting, method last": ("beta: 1\nmethod: {name: dpo}\n", ":1: unknown key beta: it is a setting"),
    "an alias at the top": ("method: orpo\nepochs: 3\n", ':2: unknown key epochs, did you mean "train.num_train'),
    "bytes": (b"\xff\xfe\x00m", "not UTF-8"),
    "a NUL": ("method: orpo\x00", "invalid YAML"),
    "a named pipe": (os.mkfifo, "it is a named pipe, not a file"),
    "a socket": (bind, "it is a socket, not a file"),
    "a directory": (os.mkdir, "is a directory, not a file"),
    "a device": (lambda path: path.symlink_to("/dev/zero"), "it is a device, not a file"),
    "a huge file": (
        lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 10**11),
        "more than 64,000,000 bytes",
    ),
}


@pytest.mark.parametrize("name", FILES)
def test_configuration(
    name: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    content, fragment = FILES[name]
    file = Path("c.yaml")
    if callable(content):
        content(file)
    else:
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
    sentence = said(capfd, ["run", "--dry-run", "c.yaml"])
    assert sentence.startswith("Error: c.yaml")
    assert fragment in sentence


def entry_of(path: Path) -> tuple[int, ...]:
    """Type, inode and device: a replaced entry has others; its times change by being read."""
    found = path.lstat()
    return found.st_mode, found.st_ino, found.st_dev


@pytest.mark.parametrize("kind", ["a named pipe", "a socket", "a directory", "a device"])
def test_place_to_write_to(
    kind: str, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page never replaces a pipe or device, as renaming a file over it would."""
    monkeypatch.chdir(tmp_path)
    make = FILES[kind][0]
    assert callable(make)
    make(Path("place"))
    before = entry_of(Path("place"))
    assert "place" in said(capfd, ["data", "check", "demo", "--html", "place"])
    with pytest.raises(OSError, match="not a file"):
        write_text(Path("place"), "page")
    assert entry_of(Path("place")) == before


def test_unknown_acceptance_check(capfd: pytest.CaptureFixture[str]) -> None:
    from tests.accept.__main__ import main as accept

    assert accept(["demo_run", "nope"]) == 2
    assert "unknown checks: nope; the checks are demo_run, " in capfd.readouterr().err


def test_a_pipe_of_the_shell_is_read(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """``align run <(echo method: orop)``."""
    reading, writing = os.pipe()
    os.write(writing, b"method: orop\n")
    os.close(writing)
    assert 'did you mean "orpo"' in said(capfd, ["run", f"/dev/fd/{reading}"])
    os.close(reading)
