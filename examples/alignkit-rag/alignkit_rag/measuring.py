"""Recall at k and the mean reciprocal rank of the right document, as a result that ``align compare`` reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from alignkit import Contrast, Omission, SuiteResult
from alignkit.system.files import digest
from alignkit_eval.statistics import clustered_mean, clustered_proportion

from alignkit_rag.embedding import Embedded
from alignkit_rag.reading import Questions


def measured(found: Any, questions: Questions, k: int, cut: Sequence[Embedded] = ()) -> SuiteResult:
    """Return the result of documents ``found`` for each question, nearest first, ``[questions, k]``."""
    ranks = [
        list(near[:k]).index(one) + 1 if one in near[:k] else 0
        for near, one in zip(found.tolist(), questions.wanted, strict=True)
    ]
    items = [
        {
            "id": f"question-{number}",
            "cluster": f"document-{one}",
            "question": text,
            "document": one,
            "found": list(near[:k]),
            "rank": rank or None,
            "recall": float(rank > 0),
            "reciprocal": 1 / rank if rank else 0.0,
        }
        for number, (text, one, near, rank) in enumerate(
            zip(questions.texts, questions.wanted, found.tolist(), ranks, strict=True)
        )
    ]
    clusters = [item["cluster"] for item in items]
    name = f"recall@{k}"
    lost, texts = sum(one.cut for one in cut), sum(len(one.vectors) for one in cut)
    return SuiteResult(
        suite="retrieval",
        n=len(items),
        clusters=len(set(clusters)),
        metrics={
            name: clustered_proportion([item["recall"] for item in items], clusters),
            "mrr": clustered_mean([item["reciprocal"] for item in items], clusters),
        },
        items=items,
        settings={"k": k},
        contrasts=[
            Contrast(name, "recall", verdict=("mrr",), margin=0.03, bounds=(0, 1)),
            Contrast("mrr", "reciprocal", verdict=(name,), margin=0.03, bounds=(0, 1)),
        ],
        left_out=[Omission("texts", lost, texts, "cut to the positions of the model that embeds them")] if lost else [],
    )


def content_of(documents: Sequence[str], questions: Questions) -> str:
    """Return a digest of what is retrieved from and asked: results of other texts are not compared."""
    return digest([list(documents), questions.texts, questions.wanted])
