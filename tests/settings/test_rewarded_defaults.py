"""The evaluation that a run with a reward has by default."""

from __future__ import annotations

from typing import Any

import pytest
from alignkit import settings


def evaluation(method: str, *sets: str, **given: Any) -> Any:
    return settings.resolve(method=method, sets=sets, **({"model": "m", "data": "d"} | given)).config.eval


@pytest.mark.parametrize("method", ["grpo", "ppo", "online-dpo", "raft", "trl-grpo"])
@pytest.mark.parametrize("key", ["reward", "rewards"])
def test_the_reward_is_evaluated_on_held_out_prompts(method: str, key: str) -> None:
    found = evaluation(method, f"method.{key}=./mine.py:good")
    assert found.suites == ["generate", "prefs", "perplexity"]
    assert found.settings == {"generate": {"rewards": "./mine.py:good"}}


def test_every_reward_and_the_length_of_answers_are_the_method_s() -> None:
    rewards = [{"name": "length", "weight": 0.1}, "./mine.py:good"]
    found = evaluation("grpo", f"reward={rewards}", "max_new_tokens=200")
    assert found.settings == {"generate": {"rewards": rewards, "max_new_tokens": 200}}


def test_what_a_user_sets_stays() -> None:
    assert evaluation("grpo", "reward=length", "eval.suites=[]").suites == []
    found = evaluation("grpo", "reward=length", "eval.settings.generate.prompts=7")
    assert found.settings == {"generate": {"rewards": "length", "prompts": 7}}
    repeated = settings.resolve(method="grpo", sets=["reward=length", "eval.suites=prefs"], model="m", data="d").config
    assert settings.check_config(repeated).eval == repeated.eval


def test_without_a_reward_nothing_changes() -> None:
    for method, sets in (("orpo", ()), ("distill", ("teacher=t",))):
        assert evaluation(method, *sets).suites == ["prefs", "perplexity"]
    demo = evaluation("grpo", model="demo", data="demo")
    assert "rewards" not in demo.settings["generate"], "its preset has suites of its own, and a checker"
