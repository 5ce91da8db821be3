"""Sample answers of the start model and of the trained model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from alignkit import Example, LoadedModel
from alignkit.config import EvalConfig
from alignkit.models.generate import generate
from alignkit.models.positions import position_limit


def sample_answers(
    loaded: LoadedModel,
    rows: Sequence[Example],
    config: EvalConfig,
    earlier: Sequence[Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """Return greedy answers to ``config.samples`` held-out prompts, spread evenly over ``rows``; none for a reward model.

    With the start model's samples ``earlier``, they are those of both models side by side.
    """
    wanted, tokenizer = config.samples, loaded.tokenizer
    if not wanted or not len(rows) or loaded.classifier:
        return []
    chosen = [rows[i * len(rows) // wanted] for i in range(min(wanted, len(rows)))]
    limit = position_limit(loaded.model)
    tokens = config.sample_tokens if limit is None else min(config.sample_tokens, limit - 1)
    prompts = [e.prompt if limit is None else e.prompt[tokens - limit :] for e in chosen]
    answers = generate(loaded.model, tokenizer, prompts, max_new_tokens=tokens)
    texts = [tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts]
    made = [
        {"id": e.id, "prompt": prompt, "answer": tokenizer.decode(answer.tokens, skip_special_tokens=True)}
        for e, prompt, answer in zip(chosen, texts, answers, strict=True)
    ]
    return made if earlier is None else _paired(earlier, made)


def _paired(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    answers = {sample["id"]: sample["answer"] for sample in after}
    return [
        {"id": s["id"], "prompt": s["prompt"], "before": s["answer"], "after": answers[s["id"]]}
        for s in before
        if s["id"] in answers
    ]
