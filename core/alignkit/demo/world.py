"""The quality of answers to the demo's questions, as a reward and a checker: ``alignkit.demo.world:quality``.

The questions and their answers from worst to best are in ``questions.jsonl``; the world they come from is defined in the
package ``alignkit_demo``, which writes the file.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import cache

from alignkit.demo import ASSETS
from alignkit.errors import DataError

_SPECIAL = re.compile(r"<s>|<pad>|<\|\w+\|>")


@cache
def _graded() -> Mapping[str, Sequence[str]]:
    """Return the answers to every question, from worst to best."""
    with (ASSETS / "data" / "questions.jsonl").open(encoding="utf-8") as lines:
        return {row["prompt"]: row["answers"] for row in map(json.loads, lines)}


def _plain(text: str | Sequence[Mapping[str, str]]) -> str:
    """Return the plain text: content of the last message, without special tokens, with single spaces."""
    content = text if isinstance(text, str) else text[-1]["content"]
    return " ".join(_SPECIAL.sub(" ", content).split())


def quality(prompt: str | Sequence[Mapping[str, str]], answer: str | Sequence[Mapping[str, str]]) -> float:
    """Return the exact quality of an answer.

    1 is the best answer, 0.5 the one in between, 0 the worst or any other text. Prompt and answer are text (special tokens
    are ignored) or chat messages, of which the last one counts.

    >>> quality("what is two plus two ?", "two plus two is four .")
    1.0
    >>> quality([{"role": "user", "content": "what is two plus two ?"}], "two plus two is two .")
    0.0

    Raises:
        DataError: the prompt is not a question of the demo world.
    """
    answers, given = _graded().get(_plain(prompt)), _plain(answer)
    if answers is None:
        raise DataError(f"the demo world has no question {_plain(prompt)!r}")
    return answers.index(given) / (len(answers) - 1) if given in answers else 0.0
