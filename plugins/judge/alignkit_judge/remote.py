"""A judge behind an OpenAI-compatible endpoint (chat completions): cached by content, retried, counted.

What is sent is the judge's prompt with a row's prompt and two answers, to the address in the settings and nowhere else: redirects
are not followed, and no key is sent but that of the named environment variable.
"""

from __future__ import annotations

import logging
import math
import os
import random
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Lock
from typing import Any

import requests
from alignkit import LoadedModel
from alignkit.errors import ConfigError, RunFailedError, first_line, shortened
from alignkit.system.files import digest

from alignkit_judge.judging import LETTERS, Question, Verdict, asked
from alignkit_judge.replies import Replies, Reply
from alignkit_judge.settings import JudgeSettings

logger = logging.getLogger(__name__)

_FIRST_WAIT, _LONGEST_WAIT = 1.0, 60.0
"""Seconds to wait before the second attempt, doubled with each, and at most."""


class RemoteJudge:
    """A model served elsewhere; several threads ask it at a time."""

    def __init__(self, settings: JudgeSettings) -> None:
        self.settings = settings
        self._key = os.environ.get(settings.key_env, "") if settings.key_env else ""
        if settings.key_env and not self._key:
            raise ConfigError(f"judge.key_env: the environment variable {settings.key_env} is not set")
        self._lock = Lock()
        self._kept = Replies(f"{settings.model} at {settings.url}")
        self._session = requests.Session()
        self._session.mount(str(settings.url), requests.adapters.HTTPAdapter(pool_maxsize=settings.concurrency))
        self._logprobs = True
        self._said = False
        self._failed: BaseException | None = None
        self.requests = self.cached = self.sent = self.received = self.unread = 0

    @property
    def identity(self) -> Mapping[str, object]:
        keys = ("url", "model", "template", "options")
        return self.settings.model_dump(mode="json", include=set(keys))

    def models(self) -> list[LoadedModel]:
        return []

    def report(self) -> list[str]:
        """Return what was asked since the last report, where, and what it cost."""
        if not self.requests + self.cached:
            return []
        lines = [
            f"judge {self.settings.model} at {self.settings.url}: {self.requests:,} requests, {self.cached:,} replies from the "
            f"cache, {self.sent:,} tokens sent, {self.received:,} received{self._cost()}"
        ]
        if self.unread:
            lines.append(f"{self.unread:,} replies of the judge name neither A nor B: their items were left out")
        self.requests = self.cached = self.sent = self.received = self.unread = 0
        return lines

    def _cost(self) -> str:
        if self.settings.price_per_million is None:
            return ""
        out, back = self.settings.price_per_million
        return f", cost {(self.sent * out + self.received * back) / 1e6:.4g} at {out:g} and {back:g} per million"

    def __call__(self, questions: Sequence[Question]) -> list[Verdict | None]:
        """Return the verdicts; None where a reply names neither answer.

        Every reply is kept in the cache when it arrives, so that a call that was interrupted asks only for the rest.

        Raises:
            ConfigError: the endpoint refuses the request, as with a wrong key or model.
            RunFailedError: it does not answer after all attempts.
        """
        if not questions:
            return []
        self._say(len(questions))
        self._failed = None
        texts = [text for question in questions for text in asked(self.settings, question)]
        with ThreadPoolExecutor(self.settings.concurrency) as threads:
            try:
                replies = list(threads.map(self._reply, texts))
            except BaseException:
                threads.shutdown(cancel_futures=True)
                raise
        pairs = zip(replies[::2], replies[1::2], strict=True)
        return [None if one is None or other is None else Verdict(one, 1 - other) for one, other in pairs]

    def _say(self, count: int) -> None:
        """Say once what is sent, and where."""
        if not self._said:
            self._said = True
            key = f" and the key in {self.settings.key_env}" if self.settings.key_env else ""
            logger.warning(
                "the prompts and both answers of comparisons (%d now, in both orders) are sent to %s for the judge %s%s, unless the "
                "reply is in the cache; nothing else is sent",
                *(count, self.settings.url, self.settings.model, key),
            )

    def _reply(self, text: str) -> float | None:
        """Return the probability of A, from the cache or the endpoint."""
        body = self._body(text)
        key = digest(body)
        reply = self._kept.get(key)
        cached = reply is not None
        if reply is None:
            if self._failed is not None:  # an earlier request of this call
                raise self._failed
            try:
                reply = self._ask(body)
            except BaseException as error:
                self._failed = self._failed or error
                raise
            self._kept.put(key, reply)
        with self._lock:
            self.cached += cached
            self.unread += reply.a is None
        return reply.a

    def _body(self, text: str) -> dict[str, Any]:
        usual = {"temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": 5}
        message = {"role": "user", "content": text}
        body = {"model": self.settings.model, "messages": [message], **usual, **self.settings.options}
        return {name: value for name, value in body.items() if value is not None}

    def _ask(self, body: Mapping[str, Any]) -> Reply:
        found = self._posted(body)
        try:
            choice, usage = found["choices"][0], found.get("usage") or {}
            text = choice["message"].get("content") or ""
            top = ((choice.get("logprobs") or {}).get("content") or []) if self._logprobs else []
            sent, received = int(usage.get("prompt_tokens") or 0), int(usage.get("completion_tokens") or 0)
            reply = Reply(_probability(top, text), sent, received)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError):
            raise ConfigError(
                f"judge.url: {self.settings.url} does not answer as an OpenAI-compatible endpoint"
            ) from None
        with self._lock:
            self.sent += sent
            self.received += received
        return reply

    def _posted(self, body: Mapping[str, Any]) -> Any:
        """Return the content of the answer, after as many attempts as are allowed."""
        problem = ""
        for attempt in range(self.settings.retries + 1):
            given = dict(body) if self._logprobs else {k: v for k, v in body.items() if "logprobs" not in k}
            wait = min(_FIRST_WAIT * 2**attempt, _LONGEST_WAIT) * random.uniform(0.5, 1)
            try:
                with self._lock:
                    self.requests += 1
                answer = self._session.post(
                    f"{self.settings.url}/chat/completions",
                    json=given,
                    timeout=self.settings.timeout,
                    auth=self._authorise,
                    allow_redirects=False,
                )
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                problem = f"no answer ({self._shown(first_line(error))})"
            else:
                if answer.ok and not answer.is_redirect:
                    return self._content(answer)
                problem = f"status {answer.status_code} ({self._shown(answer.text)})"
                if answer.status_code == 400 and self._logprobs and "logprobs" in answer.text:
                    self._logprobs = False  # as models that reason first: the letter is read from the text
                    return self._posted(body)
                if answer.status_code not in (408, 409, 429) and answer.status_code < 500:
                    raise ConfigError(f"judge.url: {self.settings.url} refuses the request: {problem}")
                wait = max(wait, _asked_wait(answer.headers.get("Retry-After")))
            if attempt < self.settings.retries:
                time.sleep(wait)
        raise RunFailedError(
            f"the judge at {self.settings.url} failed {self.settings.retries + 1} times: {problem}; replies so far are kept, so the "
            "same command asks only for the rest"
        )

    def _content(self, answer: requests.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise ConfigError(
                f"judge.url: {self.settings.url} does not answer with JSON: name the address above chat/completions"
            ) from None

    def _authorise(self, request: Any) -> Any:
        """Send the named key and no other, such as one from .netrc."""
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def _shown(self, text: str) -> str:
        """Return a server's words without the key, which some repeat."""
        plain = " ".join(text.split())
        return shortened(plain.replace(self._key, "***") if self._key else plain, 200)


def _asked_wait(value: str | None) -> float:
    """Return the seconds that a server asks to wait, at most :data:`_LONGEST_WAIT`; 0 for a date or none."""
    try:
        return min(max(float(value or 0), 0.0), _LONGEST_WAIT)
    except ValueError:
        return 0.0


def _probability(top: Sequence[Mapping[str, Any]], text: str) -> float | None:
    """Return the probability of A: from the first token that is a letter, where the server gives its alternatives, or the text's letter.

    >>> _probability([], "B"), _probability([], "**A** is better"), _probability([], "A is as good as B")
    (0.0, 1.0, None)
    """
    for token in top:
        shares = dict.fromkeys(LETTERS, 0.0)
        for entry in token.get("top_logprobs") or [token]:
            if (letter := str(entry["token"]).strip()) in shares:
                shares[letter] += math.exp(min(float(entry["logprob"]), 0.0))
        if str(token["token"]).strip() in shares and sum(shares.values()) > 0:
            return shares["A"] / sum(shares.values())
    named = set(re.findall(r"\b[AB]\b", text))
    return float(named == {"A"}) if len(named) == 1 else None
