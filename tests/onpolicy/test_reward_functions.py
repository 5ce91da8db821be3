"""Functions as rewards: found by name or file, asynchronous, without a judgement, and failing."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from alignkit import as_reward
from alignkit.errors import PluginError, RunFailedError
from alignkit.onpolicy.rewards import LoadedReward, score_answers

from tests.onpolicy.test_rewards import answered, opened


async def later(prompt: Any, answer: str) -> float | None:
    await asyncio.sleep(0)
    return 1 / len(prompt) and (float(len(answer)) if answer else None)


async def later_for_all(completions: list[Any]) -> list[float | None]:
    await asyncio.sleep(0)
    return [float(len(text)) if text else None for text in completions]


@pytest.mark.parametrize("function", [later, later_for_all])
def test_asynchronous_functions_and_answers_that_are_not_judged(function: Any) -> None:
    reward = LoadedReward("f", 0.5, as_reward(function, "f"))
    found = score_answers([reward, *opened("length")], [answered("four"), answered("")])
    assert found.parts["f"][0] == 4.0
    assert math.isnan(found.parts["f"][1])
    assert found.total == pytest.approx([0.5 * 4.0 + found.parts["length"][0], found.parts["length"][1]])


def test_functions_of_the_current_directory_and_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "h6_here.py").write_text("def f(prompt, answer): return 2.0\n")
    (tmp_path / "mine" / "h6_beside.py").write_text("def three(): return 3.0\n")
    (tmp_path / "mine" / "my-file.py").write_text("import h6_beside\ndef f(p, a): return h6_beside.three()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    rewards = opened("h6_here:f", "mine/my-file.py:f")
    assert score_answers(rewards, [answered()]).total == [5.0]


@pytest.mark.parametrize(("source", "says"), [("1 / 0", "ZeroDivisionError"), ("import sys; sys.exit()", "SystemExit")])
def test_a_function_s_file_that_fails(source: str, says: str, tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text(source)
    with pytest.raises(PluginError, match=rf"bad\.py:f cannot be loaded: {says}"):
        opened(f"{tmp_path / 'bad.py'}:f")


def test_an_answer_that_no_reward_judges_counts_as_zero_and_is_named(caplog: pytest.LogCaptureFixture) -> None:
    reward = LoadedReward("f", 1.0, as_reward(lambda prompt, answer: None, "f"))
    assert score_answers([reward], [replace(answered(), place="p.jsonl:7")]).total == [0.0]
    assert "no reward judges 1 answers (row p.jsonl:7)" in caplog.text


def ends(prompt: Any, answer: str) -> float:
    return float(len(prompt)) or sys.exit(0)


def test_only_the_process_of_the_run_is_kept_from_ending() -> None:
    def in_a_fork(prompt: Any, answer: str) -> float:
        child = os.fork() or os._exit(3)
        return float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    leave = os._exit
    assert LoadedReward("f", 1.0, as_reward(in_a_fork, "f"))([answered()]) == [3.0]
    assert os._exit is leave


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda prompt, answer: os._exit(0), r"reward f failed on row row-1: SystemExit: os\._exit\(0\)"),
        (
            lambda prompt, answer: 1 / len(prompt),
            r"reward f failed on row p\.jsonl:7: ZeroDivisionError: division by zero",
        ),
        (later, r"reward f failed on row p\.jsonl:7: ZeroDivisionError: division by zero"),
        (ends, r"reward f failed on row p\.jsonl:7: SystemExit: 0"),
        (lambda completions: completions[9], r"reward f failed on rows row-1, p\.jsonl:7: IndexError: .* out of range"),
        (lambda prompt: 1.0, r"reward f failed on row row-1: TypeError: .* 1 positional argument but 2 were given"),
    ],
)
def test_a_reward_that_raises_is_named_with_the_row(function: Any, says: str) -> None:
    asked = [answered(), replace(answered(prompt=""), place="p.jsonl:7")]
    with pytest.raises(RunFailedError, match=says):
        LoadedReward("f", 1.0, as_reward(function, "f"))(asked)
