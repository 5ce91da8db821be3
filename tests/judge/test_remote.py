"""The judge behind an endpoint: a real server on this machine that answers as OpenAI's does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alignkit.errors import ConfigError, RunFailedError
from alignkit_judge import JudgeSettings, Question, open_judge
from alignkit_judge import remote as remote_module
from alignkit_judge.judging import compare

from tests.helpers.judge_server import Endpoint, serving

QUESTIONS = [
    Question("1", "What is up?", "the sky, and the stars too", "nothing"),
    Question("2", "What is down?", "mud", "the ground, and what is in it"),
    Question("3", "Two?", "one", "two"),
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no waits between attempts."""
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote_module, "_FIRST_WAIT", 0.001)
    return tmp_path / "cache"


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(Endpoint()) as found:
        yield found


def judge(endpoint: Endpoint, **settings: Any) -> Any:
    return open_judge(JudgeSettings(**{"model": "big", "url": endpoint.url, **settings}))


def letters(verdicts: list[Any]) -> list[tuple[float, float]]:
    return [verdict.orders("letter") for verdict in verdicts]


def test_both_orders_are_asked_and_the_probabilities_read(endpoint: Endpoint) -> None:
    verdicts = judge(endpoint)(QUESTIONS)
    assert letters(verdicts) == [(1, 1), (0, 0), (1, 0)]  # A of equal lengths: a tie that follows the position
    assert [verdict.credit("letter") for verdict in verdicts] == [1, 0, 0.5]
    assert verdicts[2].by_position
    assert verdicts[2].as_a == pytest.approx(1 - verdicts[2].as_b)
    assert 0.5 < verdicts[2].as_a < 0.53  # logit 0.1
    assert len(endpoint.asked) == 6


def test_a_server_without_log_probabilities_gives_letters() -> None:
    with serving(Endpoint(logprobs=False)) as endpoint:
        verdicts = judge(endpoint, credit="probability")(QUESTIONS)
    assert [verdict.orders("probability") for verdict in verdicts] == [(1, 1), (0, 0), (1, 0)]


def test_a_server_that_refuses_log_probabilities_is_asked_without(endpoint: Endpoint) -> None:
    endpoint.failures = [(400, {}, "logprobs are not supported with this model")]
    assert letters(judge(endpoint, retries=0, concurrency=1)(QUESTIONS)) == [(1, 1), (0, 0), (1, 0)]
    assert "logprobs" in endpoint.asked[0]
    assert not any("logprobs" in body or "top_logprobs" in body for body in endpoint.asked[1:])


def test_nothing_is_asked_twice_and_an_interrupted_call_asks_for_the_rest(endpoint: Endpoint, own_cache: Path) -> None:
    endpoint.failures = [(200, {}, '{"choices": [{"message": {"content": "A"}}]}')] * 3 + [(500, {}, "broken")] * 9
    with pytest.raises(RunFailedError, match="replies so far are kept"):
        judge(endpoint, retries=2, concurrency=1)(QUESTIONS)
    done = 3
    endpoint.failures, before = [], len(endpoint.asked)
    second = judge(endpoint)
    second(QUESTIONS)
    assert len(endpoint.asked) - before == 6 - done
    assert (second.requests, second.cached) == (6 - done, done)
    third = judge(endpoint)
    third(QUESTIONS)
    assert (third.requests, third.cached) == (0, 6)
    assert judge(endpoint, model="other")(QUESTIONS[:1])  # another model's replies are its own
    assert len(endpoint.asked) - before == 6 - done + 2


def test_a_damaged_reply_is_asked_for_again(endpoint: Endpoint, own_cache: Path) -> None:
    judge(endpoint)(QUESTIONS)
    (path,) = own_cache.rglob("*.jsonl")
    lines = path.read_text().splitlines()
    lines[0], lines[1] = lines[0].replace(", 1, ", ", 7, "), "[1]"
    path.write_text("\n".join(lines)[:-3])  # the last one unfinished
    again = judge(endpoint)
    assert letters(again(QUESTIONS)) == [(1, 1), (0, 0), (1, 0)]
    assert (again.requests, again.cached) == (3, 3)
    assert judge(endpoint)(QUESTIONS) == again(QUESTIONS)
    assert len(endpoint.asked) == 9


def test_a_cache_that_cannot_be_written_costs_only_the_replies(
    endpoint: Endpoint, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    own_cache.write_text("a file")
    found = judge(endpoint)
    assert letters(found(QUESTIONS)) == letters(found(QUESTIONS)) == [(1, 1), (0, 0), (1, 0)]
    assert len(endpoint.asked) == 6
    assert "replies of the judge are not kept" in caplog.text


@pytest.mark.parametrize("failure", [(429, {"Retry-After": "0"}, "slow down"), (503, {}, "busy"), (0, {}, "")])
def test_what_passes_is_tried_again_so_many_times(endpoint: Endpoint, failure: tuple[int, dict[str, str], str]) -> None:
    endpoint.failures = [failure] * 2
    found = judge(endpoint, retries=2, concurrency=1)
    assert letters(found(QUESTIONS[:1])) == [(1, 1)]
    assert found.requests == len(endpoint.asked) == 4
    endpoint.failures = [failure] * 2
    with pytest.raises(RunFailedError, match="failed 2 times"):
        judge(endpoint, retries=1, concurrency=1)(QUESTIONS[1:2])


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((404, {}, "no model big"), "refuses the request: status 404 .no model big."),
        ((307, {"Location": "http://127.0.0.1:1/v1/chat/completions"}, ""), "status 307"),
        ((200, {}, "<html>"), "does not answer with JSON"),
        ((200, {}, '{"choices": []}'), "does not answer as an OpenAI-compatible endpoint"),
        ((200, {}, '{"choices": [{"message": "A"}]}'), "does not answer as an OpenAI-compatible endpoint"),
    ],
)
def test_what_does_not_pass_is_said_at_once(
    endpoint: Endpoint, failure: tuple[int, dict[str, str], str], message: str
) -> None:
    endpoint.failures = [failure]
    with pytest.raises(ConfigError, match=message):
        judge(endpoint, concurrency=1)(QUESTIONS[:1])
    assert len(endpoint.asked) == 1


def test_a_server_that_is_not_there_is_said(endpoint: Endpoint) -> None:
    with serving(Endpoint()) as gone:
        pass
    with pytest.raises(RunFailedError, match="failed 2 times: no answer"):
        judge(gone, retries=1)(QUESTIONS[:1])


def test_the_key_is_sent_and_nowhere_else(
    monkeypatch: pytest.MonkeyPatch, own_cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "sk-secret-1234")
    with serving(Endpoint(key="sk-secret-1234")) as endpoint:
        found = judge(endpoint, key_env="JUDGE_KEY")
        found(QUESTIONS)
        assert found.identity == judge(endpoint).identity
        monkeypatch.setenv("JUDGE_KEY", "sk-wrong-9")
        with pytest.raises(ConfigError) as refused:
            judge(endpoint, key_env="JUDGE_KEY", model="other")(QUESTIONS)
    assert "Bearer ***" in str(refused.value)
    kept = [line for path in own_cache.rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert len(kept) == 6
    said = [
        *kept,
        caplog.text,
        str(refused.value),
        str(found.report()),
        str(found.identity),
        *map(str, own_cache.rglob("*")),
    ]
    assert not any("secret" in text or "sk-wrong" in text for text in said)
    assert f"are sent to {endpoint.url} for the judge big and the key in JUDGE_KEY" in caplog.text
    assert "nothing else is sent" in caplog.text


def test_no_key_of_another_program_is_sent(endpoint: Endpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-other")
    judge(endpoint)(QUESTIONS)
    assert not any("authorization" in map(str.lower, headers) for headers in endpoint.headers)
    usual = {"model", "messages", "temperature", "max_tokens", "logprobs", "top_logprobs"}
    assert all({*body} == usual and len(body["messages"]) == 1 for body in endpoint.asked)


def test_requests_at_a_time_are_bounded_and_the_cost_is_counted(endpoint: Endpoint) -> None:
    many = [Question(str(i), f"{i}?", "a" * (i + 2), "b") for i in range(12)]
    found = judge(endpoint, concurrency=2, price_per_million=(2.0, 10.0))
    found(many)
    assert endpoint.most_at_once <= 2
    sent = sum(len(body["messages"][0]["content"]) for body in endpoint.asked)
    (line,) = found.report()
    assert f"24 requests, 0 replies from the cache, {sent:,} tokens sent, 24 received" in line
    assert f"cost {(sent * 2 + 24 * 10) / 1e6:.4g} at 2 and 10 per million" in line
    found(many)
    assert "0 requests, 24 replies from the cache, 0 tokens sent, 0 received, cost 0 " in found.report()[0]
    assert found.report() == []


def test_replies_that_name_neither_answer_give_no_verdict() -> None:
    with serving(Endpoint(logprobs=False, words="I cannot say")) as endpoint:
        found = judge(endpoint)
        assert found(QUESTIONS) == [None, None, None]
    assert "6 replies of the judge name neither A nor B" in found.report()[1]


def test_fields_of_the_request_are_the_users(endpoint: Endpoint) -> None:
    judge(endpoint, options={"max_tokens": None, "max_completion_tokens": 40, "seed": 1})(QUESTIONS[:1])
    assert "max_tokens" not in endpoint.asked[0]
    assert endpoint.asked[0]["max_completion_tokens"] == 40
    assert endpoint.asked[0]["seed"] == 1


def test_equal_answers_are_ties_that_cost_nothing_and_a_question_is_asked_once(endpoint: Endpoint) -> None:
    same = Question("4", "Same?", "yes", "yes")
    verdicts = compare(judge(endpoint), [same, QUESTIONS[0], QUESTIONS[0]._replace(id="5"), same])
    assert [verdict.credit("letter") for verdict in verdicts if verdict] == [0.5, 1, 1, 0.5]
    assert len(endpoint.asked) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "http://user:sk-1@host/v1"}, "put the key into an environment"),
        ({"url": "http://host/v1?key=sk-1"}, "put the key into an environment"),
        ({"url": "host:80"}, "must be an address such as"),
        ({"url": "file:///etc/passwd"}, "must be an address such as"),
        ({"url": "http://h/v1", "key_env": "sk-abc"}, "not the key itself"),
        ({"url": "http://h/v1", "price_per_million": (-1, 2)}, "must not be negative"),
        ({"url": "http://h/v1", "tokens_per_batch": 7}, "tokens_per_batch has no effect with url"),
        ({"key_env": "KEY"}, "key_env has no effect without url"),
        ({"retries": 7}, "retries has no effect without url"),
        ({"template": "{prompt} {a}"}, "lacks {b}"),
        ({"template": "missing.txt"}, "nor a readable file"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        JudgeSettings(**{"model": "big", **settings})


def test_a_key_that_is_not_there_is_said_before_anything_is_sent() -> None:
    os.environ.pop("NO_SUCH_KEY", None)
    with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
        open_judge(JudgeSettings(model="big", url="http://127.0.0.1:1/v1", key_env="NO_SUCH_KEY"))
