"""Texts of a run for reports: its held-out pairs and its sample answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.errors import AlignError, DataError
from alignkit.rundir.evaluations import read_evaluation
from alignkit.system.files import jsonl_rows

logger = logging.getLogger(__name__)


class Said(NamedTuple):
    """A model's answers: prompt and answer by id, and the digest of the prompts' rows (None: unknown)."""

    answers: Mapping[str, tuple[str, str]]
    content: str | None = None

    def to(self, key: str, prompt: str, content: str | None) -> str | None:
        """Return the answer to a prompt that another model answered; None if this model did not.

        Different chat templates render a prompt differently, so with equal rows the id is sufficient.
        """
        mine = self.answers.get(key)
        if mine is None:
            return None
        return mine[1] if mine[0] == prompt or (content is not None and content == self.content) else None


class PairTexts(NamedTuple):
    """A held-out pair as text."""

    prompt: str
    chosen: str
    rejected: str


def held_out_pairs(run: Path, content: str | None) -> dict[str, PairTexts]:
    """Return a run's held-out pairs by id; logs and returns none if they are unreadable or not the evaluated ones.

    Args:
        run: a run directory with the trained model's tokenizer.
        content: digest of the evaluated pairs (None: unknown).
    """
    from alignkit.models.tokenizer import load_tokenizer

    from alignkit_eval.evaluation.targets import find_target, held_out_rows
    from alignkit_eval.suites.scores import rows_digest

    try:
        source = find_target(str(run))
        tokenizer = load_tokenizer(source.config.model.model_copy(update={"tokenizer": None}), str(run / "model"))
        rows = held_out_rows(source, tokenizer).rows("preference")
    except (AlignError, OSError) as error:
        logger.warning("the report shows ids without texts: %s", error)
        return {}
    if content is not None and rows_digest(rows) != content:
        logger.warning("the report shows ids without texts: the held-out rows of %s have changed since", run)
        return {}
    return {row.id: PairTexts(_text(row.prompt), _text(row.answers[0]), _text(row.answers[1])) for row in rows}


def answers_of(run: Path) -> Said:
    """Return a trained model's answers: those of the generate suite, else the run's samples."""
    return _generated(run / "eval") or _samples(run, "after")


def answers_before(run: Path) -> Said:
    """Return the start model's answers to the prompts of :func:`answers_of`."""
    if (run / "eval" / "generate.json").is_file():
        return _generated(run / "eval" / "before") or Said({})
    return _samples(run, "before")


def _generated(directory: Path) -> Said | None:
    if not (directory / "generate.json").is_file():
        return None
    result = read_evaluation(directory, "generate")
    answers = {str(item["id"]): (str(item["prompt"]), str(item["answer"])) for item in result.items}
    return Said(answers, result.provenance.get("content"))


def _samples(run: Path, which: str) -> Said:
    rows = jsonl(run / "samples.jsonl", ("id", "prompt", which))
    return Said({str(row["id"]): (str(row["prompt"]), str(row[which])) for row in rows})


def jsonl(path: Path, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a JSON Lines file; none if it does not exist.

    Raises:
        DataError: a line is not a JSON object, or lacks one of ``keys``.
    """
    if not path.is_file():
        return []
    rows = list(jsonl_rows(path))
    for place, row in rows:
        missing = next((key for key in keys if key not in row), None)
        if missing is not None:
            raise DataError(f"{place}: the key {missing!r} is missing")
    return [row for _, row in rows]


def _text(value: str | tuple[Mapping[str, Any], ...]) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(f"{message['role']}: {message['content']}" for message in value)
