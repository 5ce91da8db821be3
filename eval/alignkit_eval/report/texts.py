"""Texts of a run for reports: its held-out pairs and its sample answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from alignkit import Row, SuiteResult
from alignkit.errors import AlignError, DataError
from alignkit.rundir.evaluations import read_evaluation
from alignkit.system.files import jsonl_rows

logger = logging.getLogger(__name__)


class ReportedModel(NamedTuple):
    """A model's name, the directory of its evaluations, and the run with its held-out rows and samples (None: unknown)."""

    name: str
    evaluations: Path
    run: Path | None

    def result(self, suite: str) -> SuiteResult | None:
        """Return the result of a suite; None if the model was not evaluated by it."""
        stored = (self.evaluations / f"{suite}.json").is_file()
        return read_evaluation(self.evaluations, suite) if stored else None

    def answers(self) -> ModelAnswers:
        """Return the answers of the generate suite; if the trained model has none, the samples of the run."""
        start = self.evaluations.name == "before"
        trained = self.evaluations.parent if start else self.evaluations
        if not (trained / "generate.json").is_file():
            samples = {} if self.run is None else _samples(self.run / "samples.jsonl", "before" if start else "after")
            return ModelAnswers(samples)
        result = self.result("generate")
        if result is None:
            return ModelAnswers({})
        answers = {str(item["id"]): (str(item["prompt"]), str(item["answer"])) for item in result.items}
        return ModelAnswers(answers, result.provenance.get("content"))


class ModelAnswers(NamedTuple):
    """A model's answers: prompt and answer by id, and the digest of the prompts' rows (None: unknown)."""

    by_id: Mapping[str, tuple[str, str]]
    content: str | None = None

    def to(self, key: str, prompt: str, content: str | None) -> str | None:
        """Return the answer to a prompt that another model answered; None if this model did not.

        Different chat templates render a prompt differently, so with equal rows the id is sufficient.
        """
        own_prompt, answer = self.by_id.get(key, (None, None))
        return answer if own_prompt == prompt or (content is not None and content == self.content) else None


class PairTexts(NamedTuple):
    """A held-out pair as text."""

    prompt: str
    chosen: str
    rejected: str


class HeldOutTexts:
    """A run's held-out pairs, read when they are first asked for."""

    def __init__(self, run: Path | None) -> None:
        self._run = run

    @cached_property
    def _rows(self) -> Sequence[Row]:
        """The rows; logs and is empty if they are unreadable."""
        try:
            return [] if self._run is None else _held_out(self._run)
        except (AlignError, OSError) as error:
            logger.warning("the report shows ids without texts: %s", error)
            return []

    def pairs(self, content: str | None) -> dict[str, PairTexts]:
        """Return the pairs by id; logs and returns none if their digest is not ``content``, that of the evaluated pairs."""
        from alignkit_eval.suites.scores import rows_digest

        if self._rows and content is not None and rows_digest(self._rows) != content:
            logger.warning("the report shows ids without texts: the held-out rows of %s have changed since", self._run)
            return {}
        return {
            row.id: PairTexts(_text(row.prompt), _text(row.answers[0]), _text(row.answers[1])) for row in self._rows
        }

    @cached_property
    def _right(self) -> dict[str, tuple[str, str]]:
        """Last turn of the prompt, and right answer, by id."""
        return {row.id: (_squashed(_last(row.prompt)), _last(row.answers[0])) for row in self._rows}

    def right(self, key: str, prompt: str) -> str:
        """Return the chosen answer to a prompt as a model was given it; empty if it is not known, or the prompt is another."""
        asked, answer = self._right.get(key.partition("#")[0], ("", ""))
        return answer if asked and asked in _squashed(prompt) else ""


def _held_out(run: Path) -> Sequence[Row]:
    from alignkit.models.positions import named_positions
    from alignkit.models.tokenizer import load_tokenizer

    from alignkit_eval.evaluation.targets import find_target, held_out_rows

    source = find_target(str(run))
    model = source.config.model.model_copy(update={"name": str(run), "tokenizer": None})
    tokenizer = load_tokenizer(model, str(run / "model"))
    return held_out_rows(source, tokenizer, named_positions(model)).rows("preference")


def _samples(path: Path, column: str) -> dict[str, tuple[str, str]]:
    """Return prompt and answer by id from samples.jsonl; raises ``DataError`` if a line lacks a key."""
    answers: dict[str, tuple[str, str]] = {}
    for place, row in jsonl_rows(path) if path.is_file() else ():
        try:
            answers[str(row["id"])] = str(row["prompt"]), str(row[column])
        except KeyError as error:
            raise DataError(f"{place}: the key {error} is missing") from error
    return answers


def _text(value: str | tuple[Mapping[str, Any], ...]) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(f"{message['role']}: {message['content']}" for message in value)


def _last(value: str | tuple[Mapping[str, Any], ...]) -> str:
    """Return a text, or the content of the last message."""
    return value if isinstance(value, str) else str(value[-1]["content"])


def _squashed(text: str) -> str:
    """Return a text without white space, which tokenizers may add."""
    return "".join(text.split())
