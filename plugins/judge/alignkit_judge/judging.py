"""What a judge is asked and what it says, whichever model it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple, Protocol

from alignkit import LoadedModel, plain_text
from alignkit.contract import Text

from alignkit_judge.settings import DEFAULT_TEMPLATE, JudgeSettings

LETTERS = ("A", "B")


class Question(NamedTuple):
    """Two answers to a prompt, to be compared in both orders."""

    id: str
    prompt: str
    first: str
    second: str

    @property
    def same(self) -> bool:
        """Whether both answers are the same text: a tie that no judge is asked about."""
        return self.first == self.second


class Verdict(NamedTuple):
    """The probability that the first answer is better, as the judge sees it: shown as A, and shown as B."""

    as_a: float
    as_b: float

    def orders(self, credit: Literal["letter", "probability"]) -> tuple[float, float]:
        """Return the first answer's credit in both orders: 1, 0 or (a tie) 0.5 by the letter, or the probabilities."""
        return (self.as_a, self.as_b) if credit == "probability" else (_letter(self.as_a), _letter(self.as_b))

    def credit(self, kind: Literal["letter", "probability"]) -> float:
        """Return the first answer's credit, the mean of both orders: 0.5 where the letter follows the position."""
        return sum(self.orders(kind)) / 2

    @property
    def by_position(self) -> bool:
        """Whether the letter follows the position: the same letter in both orders."""
        return {_letter(self.as_a), _letter(self.as_b)} == {0.0, 1.0}


TIE = Verdict(0.5, 0.5)


class Judge(Protocol):
    """A model that compares answers."""

    def __call__(self, questions: Sequence[Question]) -> list[Verdict | None]:
        """Return a verdict for each question; None where the judge cannot read it or names neither answer."""

    @property
    def identity(self) -> Mapping[str, object]:
        """Everything the verdicts depend on: the judge's weights or address, and what it is asked."""

    def models(self) -> list[LoadedModel]:
        """Return the models it loads here, without weights."""

    def report(self) -> list[str]:
        """Return sentences on what was asked since the last report, for the user."""


def asked(settings: JudgeSettings, question: Question) -> tuple[str, str]:
    """Return what the judge is asked in both orders; texts inside the answers are never replaced themselves."""
    first_as_a = {"prompt": question.prompt, "a": question.first, "b": question.second}
    first_as_b = {"prompt": question.prompt, "a": question.second, "b": question.first}
    return _filled(settings, first_as_a), _filled(settings, first_as_b)


def text_of(prompt: Text) -> str:
    """Return a prompt as a judge reads it: text, a single message's content, or the turns of a conversation with their roles."""
    if isinstance(prompt, str) or len(prompt) == 1:
        return plain_text(prompt).strip()
    return "\n\n".join(f"{message['role']}: {plain_text((message,))}" for message in prompt)


def compare(judge: Judge, questions: Sequence[Question]) -> list[Verdict | None]:
    """Return the judge's verdicts; equal answers are ties, and a question that occurs twice is asked once."""
    different = {(q.prompt, q.first, q.second): q for q in questions if not q.same}
    found = dict(zip(different, judge(list(different.values())), strict=True)) if different else {}
    return [TIE if q.same else found[q.prompt, q.first, q.second] for q in questions]


def _filled(settings: JudgeSettings, parts: Mapping[str, str]) -> str:
    template = settings.template or DEFAULT_TEMPLATE
    return re.sub(r"\{(prompt|a|b)\}", lambda found: parts[found[1]], template)


def _letter(probability: float) -> float:
    """Return 1 for the first answer, 0 for the second, 0.5 where both are equally likely.

    >>> _letter(0.7), _letter(0.5), _letter(0.1)
    (1.0, 0.5, 0.0)
    """
    return 0.5 if probability == 0.5 else float(probability > 0.5)
