"""The harness's metrics as ``evaluate.Metric`` classes, for log-probabilities from any source. They work offline.

    metric = PreferenceAccuracy()
    metric.add_batch(chosen=[-3.0], rejected=[-4.5], chosen_tokens=[4], rejected_tokens=[3])
    metric.compute()

The suites' own functions compute the results. Importing this module takes seconds because importing ``evaluate`` does.
"""

from __future__ import annotations

from typing import Any

import datasets
import evaluate
from alignkit import Estimate

from alignkit_eval.suites.perplexity import Document, perplexity_metrics
from alignkit_eval.suites.prefs import ScoredPair, pair_metrics
from alignkit_eval.suites.scores import CompletionScore

_NUMBER, _COUNT, _WORD = "float64", "int64", "string"


def _metric_info(description: str, inputs: str, features: dict[str, str]) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=description,
        citation="",
        inputs_description=inputs,
        features=datasets.Features({name: datasets.Value(kind) for name, kind in features.items()}),
    )


class _OfflineMetric(evaluate.Metric):
    """A metric that needs neither the hub nor a script."""

    def _info(self) -> evaluate.MetricInfo:
        raise NotImplementedError

    def _plain(self, metrics: dict[str, Estimate]) -> dict[str, Any]:
        return {name: estimate._asdict() for name, estimate in metrics.items()}


class PreferenceAccuracy(_OfflineMetric):
    """Preference accuracy and margins, from the log-probabilities of chosen and rejected completions."""

    def _info(self) -> evaluate.MetricInfo:
        return _metric_info(
            "Preference accuracy by sum and by mean, with clustered 95 % intervals.",
            "chosen, rejected: summed log-probability of each completion; chosen_tokens, rejected_tokens: its scored tokens; "
            "cluster: pairs of one cluster are not independent (empty: each pair is its own cluster).",
            {
                "chosen": _NUMBER,
                "rejected": _NUMBER,
                "chosen_tokens": _COUNT,
                "rejected_tokens": _COUNT,
                "cluster": _WORD,
            },
        )

    def _compute(self, **columns: Any) -> dict[str, Any]:
        pairs = [
            ScoredPair(
                id=str(i),
                cluster=cluster or f"row-{i}",
                category="",
                chosen=CompletionScore(chosen, chosen_tokens),
                rejected=CompletionScore(rejected, rejected_tokens),
            )
            for i, (chosen, rejected, chosen_tokens, rejected_tokens, cluster) in enumerate(
                zip(*(columns[name] for name in self.features), strict=True)
            )
        ]
        return self._plain(pair_metrics(pairs, bins=10))


class CorpusPerplexity(_OfflineMetric):
    """Perplexity and bits per byte of a corpus: ratios of sums, not means of per-text values."""

    def _info(self) -> evaluate.MetricInfo:
        return _metric_info(
            "Corpus perplexity and bits per byte, with clustered 95 % intervals.",
            "nll: negative log-likelihood of each text in nats; tokens: its scored tokens; bytes: its UTF-8 bytes; "
            "cluster: texts of one cluster are not independent (empty: each text is its own cluster).",
            {"nll": _NUMBER, "tokens": _COUNT, "bytes": _COUNT, "cluster": _WORD},
        )

    def _compute(self, **columns: Any) -> dict[str, Any]:
        documents = [
            Document(str(i), cluster or f"text-{i}", nll, tokens, size)
            for i, (nll, tokens, size, cluster) in enumerate(
                zip(*(columns[name] for name in self.features), strict=True)
            )
        ]
        return self._plain(perplexity_metrics(documents))
