"""The texts behind the ids: a run's held-out pairs and its sample answers, read from disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from alignkit.errors import AlignError

logger = logging.getLogger(__name__)


class Pair(NamedTuple):
    """A held-out pair as text."""

    prompt: str
    chosen: str
    rejected: str


def held_out_pairs(run: Path) -> dict[str, Pair]:
    """Return the run's held-out pairs by id; none where the run's data cannot be read any more (which is logged)."""
    from alignkit.models import load_tokenizer

    from alignkit_eval.targets import find_target, held_out_rows

    try:
        source = find_target(str(run))
        tokenizer = load_tokenizer(source.config.model.model_copy(update={"tokenizer": None}), str(run / "model"))
        rows = held_out_rows(source, tokenizer).rows("preference")
    except AlignError as error:
        logger.warning("the report shows ids without texts: %s", error)
        return {}
    return {row.id: Pair(_text(row.prompt), _text(row.answers[0]), _text(row.answers[1])) for row in rows}


def jsonl(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON-lines file, none where it is missing."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]


def answers_of(run: Path) -> dict[str, tuple[str, str]]:
    """Return prompt and answer of a trained model by id: of the generate suite, else of the run's samples."""
    items = jsonl(run / "eval" / "generate.items.jsonl")
    if items:
        return {str(item["id"]): (item["prompt"], item["answer"]) for item in items}
    return {str(row["id"]): (row["prompt"], row["after"]) for row in jsonl(run / "samples.jsonl")}


def answers_before(run: Path) -> dict[str, tuple[str, str]]:
    """Return prompt and answer of the run's start model by id."""
    items = jsonl(run / "eval" / "before" / "generate.items.jsonl")
    if items and (run / "eval" / "generate.items.jsonl").is_file():
        return {str(item["id"]): (item["prompt"], item["answer"]) for item in items}
    return {str(row["id"]): (row["prompt"], row["before"]) for row in jsonl(run / "samples.jsonl")}


def _text(value: str | tuple[Mapping[str, Any], ...]) -> str:
    if isinstance(value, str):
        return value
    return "\n".join(f"{message['role']}: {message['content']}" for message in value)
