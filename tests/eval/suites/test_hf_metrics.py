"""The metrics as evaluate.Metric classes: offline, in batches, and equal to those of the suites."""

from __future__ import annotations

import math

import pytest
from alignkit_eval.suites.hf_metrics import CorpusPerplexity, PreferenceAccuracy


def test_preference_accuracy_by_hand() -> None:
    metric = PreferenceAccuracy()
    # By sum: right, wrong, tie. By mean: -1 > -1.5, -.5 > -1, -1 < -.5.
    metric.add_batch(
        chosen=[-2.0, -2.0], rejected=[-3.0, -1.0], chosen_tokens=[2, 4], rejected_tokens=[2, 1], cluster=["", ""]
    )
    metric.add_batch(chosen=[-1.0], rejected=[-1.0], chosen_tokens=[1], rejected_tokens=[2], cluster=[""])
    found = metric.compute()
    assert found["accuracy_sum"]["value"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert found["accuracy_mean"]["value"] == pytest.approx(2 / 3)
    assert found["margin_sum"]["value"] == pytest.approx((1 - 1 + 0) / 3)


def test_clusters_widen_the_interval() -> None:
    def width(clusters: list[str]) -> float:
        values = {"chosen": [0.0, 0.0, -2.0, -2.0], "rejected": [-1.0] * 4}
        found = PreferenceAccuracy().compute(**values, chosen_tokens=[1] * 4, rejected_tokens=[1] * 4, cluster=clusters)
        assert found is not None
        return float(found["margin_sum"]["high"] - found["margin_sum"]["low"])

    assert width(["a", "a", "b", "b"]) > width([""] * 4)


def test_corpus_perplexity_by_hand() -> None:
    found = CorpusPerplexity().compute(nll=[6.0, 4.0], tokens=[3, 1], bytes=[3, 1], cluster=["", ""])
    assert found["perplexity"]["value"] == pytest.approx(math.exp(10 / 4))
    assert found["bits_per_byte"]["value"] == pytest.approx(10 / 4 / math.log(2))
