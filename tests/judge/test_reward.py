"""The judge as a reward, and a run of online-dpo with it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alignkit import Answered
from alignkit.contract.rewards import RewardSpec
from alignkit.errors import ConfigError, DataError
from alignkit.onpolicy.rewards import open_rewards
from alignkit_judge.reward import _rounds

from tests.helpers.engine import Words
from tests.helpers.judge_server import Endpoint, serving
from tests.helpers.runs import short_run


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(Endpoint()) as found:
        yield found


def answered(row: str, text: str, **fields: Any) -> Answered:
    return Answered(row, f"{row}?", text, [1], [5, 2], True, Words(), fields, f"rows.jsonl:{row}")  # type: ignore[arg-type]


def reward(endpoint: Endpoint, **settings: Any) -> Any:
    (found,) = open_rewards([RewardSpec(name="judge", model="big", url=endpoint.url, **settings)])
    return found


def test_an_answer_is_compared_with_the_others_of_its_prompt(endpoint: Endpoint) -> None:
    """The judge prefers the longer answer: of three, 1 for the longest, 0.5 and 0; equal answers tie."""
    answers = [answered("1", "aaaa"), answered("2", "bb"), answered("1", "a"), answered("1", "aa"), answered("2", "bb")]
    assert reward(endpoint)(answers) == [1.0, 0.5, 0.0, 0.5, 0.5]
    assert len(endpoint.asked) == 2 * 3


def test_an_answer_may_be_compared_with_a_reference(endpoint: Endpoint) -> None:
    gold = [{"role": "assistant", "content": "aaa"}]
    answers = [answered("1", "aaaa", gold=gold), answered("2", "a", gold="aaa"), answered("3", "aaa", gold="aaa")]
    assert reward(endpoint, against="gold")(answers) == [1.0, 0.0, 0.5]
    with pytest.raises(DataError, match=r"rows.jsonl:4: the row has no answer in the column 'gold'"):
        reward(endpoint, against="gold")([answered("4", "a")])


def test_fewer_opponents_ask_less(endpoint: Endpoint) -> None:
    answers = [answered("1", "a" * (i + 1)) for i in range(6)]
    found = reward(endpoint, opponents=2)(answers)
    assert len(endpoint.asked) == 2 * 6
    assert found[0] == 0.0
    assert found[5] == 1.0


@pytest.mark.parametrize("count", [2, 3, 5, 8])
@pytest.mark.parametrize("opponents", [None, 1, 2, 3, 4, 20])
def test_every_answer_has_an_opponent(count: int, opponents: int | None) -> None:
    pairs = _rounds(count, opponents)
    met = [sum(i in pair for pair in pairs) for i in range(count)]
    most = count - 1 if opponents is None else min(count - 1, opponents)
    assert all(1 <= n <= max(most, 2) for n in met)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)


def test_no_verdict_is_no_reward() -> None:
    with serving(Endpoint(logprobs=False, words="neither")) as endpoint:
        values = reward(endpoint)([answered("1", "a"), answered("1", "bb")])
    assert [value != value for value in values] == [True, True]  # not a number: not judged


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"against": "gold", "opponents": 2}, "opponents has no effect"), ({"key_env": "NO_SUCH_KEY"}, "is not set")],
)
def test_settings_that_cannot_be_used_are_refused(endpoint: Endpoint, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        reward(endpoint, **settings)


def test_a_single_answer_has_no_group(endpoint: Endpoint) -> None:
    with pytest.raises(ConfigError, match="sample several"):
        reward(endpoint)([answered("1", "a")])


def test_online_dpo_learns_from_the_judge(endpoint: Endpoint, tmp_path: Path) -> None:
    """The reward of two answers is 1 and 0, or 0.5 for a tie."""
    method = {
        "name": "online-dpo",
        "reward": {"name": "judge", "model": "big", "url": endpoint.url},
        "max_new_tokens": 8,
    }
    quiet = {"suites": [], "samples": 0}
    run = short_run(
        tmp_path,
        "judged",
        method,
        train={"max_steps": 2, "per_device_train_batch_size": 2},
        eval=quiet,
        data={"eval_limit": 4},
    )
    assert run.record["status"] == "finished"
    assert endpoint.asked
    rewards = [row["reward/judge"] for row in run.metrics if "reward/judge" in row]
    assert rewards
    assert all(value == pytest.approx(0.5) for value in rewards)
