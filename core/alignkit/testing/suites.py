"""Conformance tests of evaluation suites."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from alignkit.config import DataConfig, EvalConfig, ModelConfig, RunConfig
from alignkit.contract import Suite, SuiteResult, Target
from alignkit.errors import NoRowsError, RunFailedError
from alignkit.rundir.evaluations import read_evaluation, write_evaluation
from alignkit.runs.evaluation import open_suites
from alignkit.testing.installed import InstalledPlugin, check_schema


class SuiteConformance(InstalledPlugin):
    """Tests of one installed suite on the demo model and a few of its held-out rows; set ``name``."""

    group = "align.suites"

    def test_settings_are_complete(self) -> None:
        """Every setting is described, and unknown keys are rejected."""
        check_schema(self._load().settings_type)

    def test_the_result_is_whole(self) -> None:
        """Metrics are finite and inside their intervals, items have unique ids and clusters, contrasts name existing keys."""
        result = self._result()
        assert result.suite == self.name, f"the result says suite {result.suite!r}"
        assert result.n == len(result.items), f"n is {result.n}, and there are {len(result.items)} items"
        ids = [item["id"] for item in result.items]
        assert len(set(ids)) == len(ids), "two items have the same id: runs are compared item by item"
        assert all("cluster" in item for item in result.items), (
            "an item has no cluster: without clusters, intervals are too narrow"
        )
        assert result.clusters == len({item["cluster"] for item in result.items})
        for name, estimate in result.metrics.items():
            assert math.isfinite(estimate.value), f"metric {name} is {estimate.value}"
            if estimate.low is not None and estimate.high is not None:
                assert estimate.low <= estimate.value <= estimate.high, f"metric {name} is outside its interval"
        keys = set(result.items[0])
        for contrast in result.contrasts:
            missing = {contrast.numerator, contrast.denominator or contrast.numerator} - keys
            assert contrast.metric in result.metrics, f"a contrast names {contrast.metric!r}, which is not a metric"
            assert not missing, (
                f"the contrast of {contrast.metric} reads {', '.join(missing)}, which the items do not have"
            )

    def test_metrics_follow_from_the_items(self) -> None:
        """Each contrast, computed from the items, equals the metric it compares."""
        result = self._result()
        for contrast in result.contrasts:
            items = [item for item in result.items if contrast.counts(item)]
            top = sum(item[contrast.numerator] for item in items)
            bottom = sum(item[contrast.denominator] for item in items) if contrast.denominator else len(items)
            value = math.exp(top / bottom) if contrast.log else top / bottom
            assert value == pytest.approx(result.metrics[contrast.metric].value, rel=1e-6), (
                f"the items give {contrast.metric} = {value:.6g}, but the metric is {result.metrics[contrast.metric].value:.6g}"
            )

    def test_it_can_be_written_and_read(self, tmp_path: Path) -> None:
        """A result written to ``eval/SUITE.json`` and read back is equal."""
        result = self._result()
        write_evaluation(tmp_path, result, target="demo")
        again = read_evaluation(tmp_path, self.name)
        assert json.dumps(again.items) == json.dumps([dict(item) for item in result.items]), (
            "items contain values that JSON cannot represent"
        )
        assert again.metrics == result.metrics

    def test_twice_is_the_same(self) -> None:
        """Two evaluations of the same model and rows give the same items."""
        assert self._result().items == self._result().items, (
            "two evaluations differ: take the random seed from the settings"
        )

    def test_a_broken_model_gets_no_score(self) -> None:
        """Log-probabilities that are NaN raise ``RunFailedError``: an argmax over NaN would count as correct."""
        import torch

        target = _target()
        weight = target.policy.model.get_parameter("model.norm.weight")
        with torch.no_grad():
            kept = weight.clone()
            weight.fill_(math.nan)
            try:
                with pytest.raises(RunFailedError):
                    self._suite().evaluate(target)
            finally:
                weight.copy_(kept)

    def test_no_rows_are_said(self) -> None:
        """Without rows, the suite raises ``NoRowsError``, and a run continues without it."""
        with suppress(NoRowsError):
            found = self._suite().evaluate(replace(_target(), examples=lambda _: [], rows=lambda _: []))
            assert found.n, "the suite returned an empty result: raise NoRowsError"  # some suites have their own items

    def _suite(self) -> Suite[Any]:
        return open_suites(EvalConfig(suites=[self.name], settings={self.name: dict(self.settings)}))[self.name]

    def _result(self) -> SuiteResult:
        try:
            return self._suite().evaluate(_target())
        except NoRowsError as error:
            pytest.skip(f"the demo has no rows for it: {error}")


@cache
def _target() -> Target:
    from alignkit.data.load import load_data
    from alignkit.models.load import build_model
    from alignkit.scoring.policy import ModelPolicy

    loaded = build_model(ModelConfig())
    config = RunConfig.model_validate({"method": "none", "data": DataConfig(limit=40, eval_limit=24).model_dump()})
    data = load_data(config, "preference", loaded.tokenizer)
    policy = ModelPolicy(loaded.model)
    return Target(
        "demo", policy, loaded.tokenizer, data.held_out.examples, data.held_out.rows, start_policy=lambda: policy
    )
