"""A judge that runs here: log-probabilities of the letters A and B after what it is asked, in both orders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from alignkit import Example, LoadedModel
from alignkit.contract import Policy, Row, by_length
from alignkit.data.table.cache import tokenizer_content
from alignkit.data.tokenise.render import Rendered, common_prefix, render
from alignkit.data.tokenise.rules import Encoder, TokenRules
from alignkit.errors import ConfigError, RunFailedError
from alignkit.models.positions import position_limit
from alignkit.runs.evaluation import Subject
from alignkit.scoring.ranks import share
from alignkit.system.files import digest
from alignkit.system.together import shared_limit
from alignkit_eval.evaluation.targets import built

from alignkit_judge.judging import LETTERS, Question, Verdict, asked
from alignkit_judge.models import ENDLESS, find_model, open_model
from alignkit_judge.settings import JudgeSettings


class _Asked(NamedTuple):
    """The tokens of what a judge is asked in one order, and of the two letters it may answer."""

    prompt: list[int]
    letters: tuple[int, int]


class LocalJudge:
    """A causal language model by path. With ``together``, several processes that ask the same share the work."""

    def __init__(self, settings: JudgeSettings, *, together: bool = False) -> None:
        self.settings, self.together = settings, together
        self._found = find_model(settings.model, "judge.model")
        self.judged = self.too_long = 0

    def models(self) -> list[LoadedModel]:
        return [built(self._found, meta=True)]

    @cached_property
    def _subject(self) -> Subject:
        return open_model(self._found, "judge.model")

    @cached_property
    def _policy(self) -> Policy:
        return share(self._subject.policy) if self.together else self._subject.policy

    @property
    def identity(self) -> Mapping[str, object]:
        tokenizer = digest(tokenizer_content(self._subject.tokenizer))
        return {"weights": self._subject.weights, "tokenizer": tokenizer, "template": self.settings.template}

    def report(self) -> list[str]:
        judged, long, self.judged, self.too_long = self.judged, self.too_long, 0, 0
        limit = position_limit(self._subject.policy.model) if long else None
        left = f"; {long:,} of them do not fit its {limit:,} positions and were left out" if limit else ""
        return [f"judge {self.settings.model}: {judged:,} comparisons in both orders{left}"] if judged else []

    def __call__(self, questions: Sequence[Question]) -> list[Verdict | None]:
        """Return the verdicts; None where a question is longer than the judge's positions.

        Raises:
            ConfigError: A or B is not a single token after what the judge is asked.
            RunFailedError: the judge's log-probabilities are not finite.
        """
        limit = position_limit(self._subject.policy.model) or ENDLESS
        rows = self._rows(questions)
        kept = [i for i, row in enumerate(rows) if max(map(_longest, row)) <= limit]
        self.judged += len(questions)
        self.too_long += len(questions) - len(kept)
        logps = iter(self._scored([example for i in kept for example in rows[i]]))
        verdicts: list[Verdict | None] = [None] * len(questions)
        for i in kept:
            a, b, other_a, other_b = (logp for _ in rows[i] for logp in next(logps))
            if not all(map(math.isfinite, (a, b, other_a, other_b))):
                raise RunFailedError(
                    f"the judge {self.settings.model} gives numbers that are not finite for row {questions[i].id}"
                )
            verdicts[i] = Verdict(_share(a, b), _share(other_b, other_a))
        return verdicts

    def _scored(self, examples: Sequence[Example]) -> list[list[float]]:
        """Return the log-probability of the letter that every completion ends with."""
        found: list[list[float]] = [[] for _ in examples]
        at_once = shared_limit([example.tokens for example in examples], self.settings.tokens_per_batch)
        for batch in by_length(examples, at_once):
            logps = iter(self._policy.score([examples[i] for i in batch], grad=False).logps.tolist())
            for i in batch:
                found[i] = [next(logps) for _ in examples[i].completions]
        return found

    def _rows(self, questions: Sequence[Question]) -> list[list[Example]]:
        """Return each question as two rows, one an order, whose completions are the letters A and B.

        Where what both orders begin with is most of the text, as with a long prompt and short answers, they are one row that
        shares it: of four completions, the rest of an order and a letter, of which the letter is scored.
        """
        rendered = [
            self._rendered(text, question.id) for question in questions for text in asked(self.settings, question)
        ]
        encoded = self._letters(rendered)
        rows = []
        for question, one, other in zip(questions, encoded[::2], encoded[1::2], strict=True):
            common = common_prefix(one.prompt, other.prompt)
            rest = len(one.prompt) + len(other.prompt) - 2 * common
            if 0 < rest < common:
                completions = [[*order.prompt[common:], letter] for order in (one, other) for letter in order.letters]
                masks = tuple([False] * (len(ids) - 1) + [True] for ids in completions)
                rows.append([Example(question.id, one.prompt[:common], tuple(completions), masks=masks)])
            else:
                orders = (one, other)
                rows.append([Example(question.id, o.prompt, tuple([letter] for letter in o.letters)) for o in orders])
        return rows

    def _letters(self, texts: Sequence[str]) -> list[_Asked]:
        """Return the tokens of each text, and those of the letters after it."""
        for space in ("", " "):
            before = [text.rstrip(" ") if space else text for text in texts]
            rows = self._encoder.encode(
                [Rendered(text, tuple(space + letter for letter in LETTERS)) for text in before]
            )
            if all(row.parts and not row.border_merges and [*map(len, row.parts[1:])] == [1, 1] for row in rows):
                return [_Asked(row.parts[0], (row.parts[1][0], row.parts[2][0])) for row in rows]
        raise ConfigError(
            f"judge.model: after the judge's prompt, A and B are not one token each for the tokenizer of {self.settings.model}: "
            "end judge.template where a letter may follow, or use another model"
        )

    @cached_property
    def _encoder(self) -> Encoder:
        return Encoder(self._subject.tokenizer, TokenRules(ENDLESS, append_eos=False))

    def _rendered(self, text: str, place: str) -> str:
        """Return what the judge is asked as a user's message in its chat template, if it has one."""
        tokenizer: Any = self._subject.tokenizer
        if not tokenizer.chat_template:
            return text
        row = Row(0, place, ({"role": "user", "content": text.rstrip()},), (), "")
        return render(row, tokenizer, f"judge {self.settings.model}").prompt


def _longest(example: Example) -> int:
    return len(example.prompt) + max(map(len, example.completions))


def _share(a: float, b: float) -> float:
    """Return the probability of the first of two log-probabilities, normalised over both.

    >>> _share(-1.0, -1.0), _share(0.0, -2000.0)
    (0.5, 1.0)
    """
    return 1 / (1 + math.exp(min(b - a, 700.0)))
