"""The end of a run: sample answers, plots, and the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit.config import EvalConfig
from alignkit.contract import Example, LoadedModel
from alignkit.contract.registry import provided
from alignkit.display.console import Console
from alignkit.errors import AlignError
from alignkit.models.generate import generate
from alignkit.models.positions import position_limit
from alignkit.rundir.directory import RunDir
from alignkit.rundir.record import RunRecord


def sample_answers(loaded: LoadedModel, rows: Sequence[Example], config: EvalConfig) -> list[dict[str, Any]]:
    """Return greedy answers to ``config.samples`` held-out prompts, spread evenly over ``rows``; none for a reward model."""
    wanted, tokenizer = config.samples, loaded.tokenizer
    if not wanted or not len(rows) or loaded.classifier:
        return []
    chosen = [rows[i * len(rows) // wanted] for i in range(min(wanted, len(rows)))]
    limit = position_limit(loaded.model)
    tokens = config.sample_tokens if limit is None else min(config.sample_tokens, limit - 1)
    prompts = [e.prompt if limit is None else e.prompt[tokens - limit :] for e in chosen]
    answers = generate(loaded.model, tokenizer, prompts, max_new_tokens=tokens)
    texts = [tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts]
    return [
        {"id": e.id, "prompt": prompt, "answer": tokenizer.decode(answer.tokens, skip_special_tokens=True)}
        for e, prompt, answer in zip(chosen, texts, answers, strict=True)
    ]


def pair_samples(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the samples of the start model and of the trained model side by side."""
    answers = {sample["id"]: sample["answer"] for sample in after}
    return [
        {"id": s["id"], "prompt": s["prompt"], "before": s["answer"], "after": answers[s["id"]]}
        for s in before
        if s["id"] in answers
    ]


def write_documents(console: Console, directory: RunDir, record: Mapping[str, Any]) -> None:
    """Write the model card and the plots; what fails is a warning, because the run has its results already."""
    try:
        if (card := provided("align.reports", "card")) is not None:
            card(directory.model, RunRecord.parse(record, directory.record))
        if record["config"]["run"]["plots"] and (draw := provided("align.reports", "plots")) is not None:
            draw(directory.path)
    except AlignError as error:
        console.warn(f"no card or plots were written: {error}")
