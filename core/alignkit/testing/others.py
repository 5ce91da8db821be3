"""What suites, rewards and services have to hold to."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from alignkit import settings
from alignkit.config import DataConfig, EvalConfig, ModelConfig, RunConfig
from alignkit.contract import registry
from alignkit.errors import AlignError, NoRowsError, RunFailedError
from alignkit.testing.installed import check_listing, check_schema
from alignkit.testing.tiny import END, Words

if TYPE_CHECKING:
    from alignkit.contract.rewards import Answered
    from alignkit.contract.suites import Suite, SuiteResult, Target


class SuiteConformance:
    """Tests of one installed suite, on the demo's model and a few of its held-out rows."""

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}

    def test_listing_does_not_import_it(self) -> None:
        """``align suites`` reads metadata alone."""
        check_listing("align.suites", self.name)

    def test_settings_are_complete(self) -> None:
        """Every setting is described, and unknown ones are refused."""
        check_schema(type(self._suite()).settings_type)

    def test_the_result_is_whole(self) -> None:
        """Metrics are finite, intervals hold them, items have ids and clusters, contrasts name what is there."""
        result = self._result()
        assert result.suite == self.name, f"the result says suite {result.suite!r}"
        assert result.n == len(result.items), f"n is {result.n}, and there are {len(result.items)} items"
        ids = [item["id"] for item in result.items]
        assert len(set(ids)) == len(ids), "two items have one id: runs are compared item by item"
        assert all("cluster" in item for item in result.items), (
            "an item has no cluster: without one intervals are too narrow"
        )
        assert result.clusters == len({item["cluster"] for item in result.items})
        for name, estimate in result.metrics.items():
            assert math.isfinite(estimate.value), f"metric {name} is {estimate.value}"
            if estimate.low is not None and estimate.high is not None:
                assert estimate.low <= estimate.value <= estimate.high, f"metric {name} lies outside its interval"
        keys = set(result.items[0])
        for contrast in result.contrasts:
            missing = {contrast.numerator, *([contrast.denominator] if contrast.denominator else [])} - keys
            assert contrast.metric in result.metrics, f"a contrast is about {contrast.metric!r}, which is no metric"
            assert not missing, f"the contrast of {contrast.metric} reads {', '.join(missing)}, which items do not have"

    def test_metrics_follow_from_the_items(self) -> None:
        """A contrast's ratio over the items is the metric, so that comparisons mean what the metric means."""
        result = self._result()
        for contrast in result.contrasts:
            items = [item for item in result.items if all(item.get(k) == v for k, v in contrast.where.items())]
            top = sum(item[contrast.numerator] for item in items)
            bottom = sum(item[contrast.denominator] for item in items) if contrast.denominator else len(items)
            value = math.exp(top / bottom) if contrast.log else top / bottom
            assert value == pytest.approx(result.metrics[contrast.metric].value, rel=1e-6), (
                f"the items give {contrast.metric} = {value:.6g}, and the metric says {result.metrics[contrast.metric].value:.6g}"
            )

    def test_it_can_be_written_and_read(self, tmp_path: Path) -> None:
        """Nothing is lost on the way to ``eval/SUITE.json`` and back."""
        from alignkit.rundir.evaluations import read_evaluation, write_evaluation

        result = self._result()
        write_evaluation(tmp_path, result, target="demo")
        again = read_evaluation(tmp_path, self.name)
        assert json.dumps(again.items) == json.dumps([dict(item) for item in result.items]), (
            "items hold more than plain values"
        )
        assert again.metrics == result.metrics

    def test_twice_is_the_same(self) -> None:
        """The same model, rows and settings give the same items."""
        assert self._result().items == self._result().items, (
            "two evaluations differ: a seed is not taken from the settings"
        )

    def test_a_broken_model_gets_no_score(self) -> None:
        """Log-probabilities that are no numbers must stop it: argmax over NaN would score 1."""
        import torch

        target = _target()
        weight = target.policy.model.get_parameter("model.norm.weight")
        kept = weight.detach().clone()
        try:
            with torch.no_grad():
                weight.fill_(math.nan)
            with pytest.raises(RunFailedError):
                self._suite().evaluate(target)
        finally:
            with torch.no_grad():
                weight.copy_(kept)

    def test_no_rows_are_said(self) -> None:
        """Without rows it raises ``NoRowsError``, and the run goes on without it."""
        from dataclasses import replace

        def none(_kind: Any) -> Any:
            return []

        try:
            found = self._suite().evaluate(replace(_target(), examples=none, rows=none))
        except NoRowsError:
            return
        assert found.n, "it returned a result about nothing: raise NoRowsError"  # it has items of its own

    def _suite(self) -> Suite[Any]:
        from alignkit.runs.evaluation import open_suites

        return open_suites(EvalConfig(suites=[self.name], settings={self.name: dict(self.settings)}))[self.name]

    def _result(self) -> SuiteResult:
        try:
            return self._suite().evaluate(_target())
        except NoRowsError as error:
            pytest.skip(f"the demo has nothing for it: {error}")


@cache
def _target() -> Target:
    from alignkit.contract.suites import Target
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


class RewardConformance:
    """Tests of one installed reward."""

    name: ClassVar[str]
    settings: ClassVar[Mapping[str, Any]] = {}
    fields: ClassVar[Mapping[str, Any]] = {}
    """Columns of the data that it reads."""
    prompt: ClassVar[str] = "what is two plus two ?"

    def test_listing_does_not_import_it(self) -> None:
        """``align rewards`` reads metadata alone."""
        check_listing("align.rewards", self.name)

    def test_settings_are_complete(self) -> None:
        """Every setting is described, and unknown ones are refused."""
        plugin: Any = registry.load(registry.find("align.rewards", self.name))
        if isinstance(plugin, type):
            check_schema(getattr(plugin, "settings_type"))  # noqa: B009

    def test_one_finite_number_an_answer(self) -> None:
        """Also for an empty answer, a cut-off one, and one without sense."""
        values = self._ask(self._answers())
        assert len(values) == 4
        assert all(math.isfinite(value) for value in values)

    def test_answers_are_rewarded_one_by_one(self) -> None:
        """Neither their order nor their company changes anything."""
        answers = self._answers()
        values = self._ask(answers)
        assert self._ask(answers[::-1]) == pytest.approx(values[::-1]), "the reward depends on the order of the answers"
        alone = [self._ask([answer])[0] for answer in answers]
        assert alone == pytest.approx(values, rel=1e-4, abs=1e-4), "the reward depends on what else is asked about"

    def test_nothing_is_asked_about_nothing(self) -> None:
        """An empty batch (a process without rows) is fine."""
        assert self._ask([]) == []

    def _ask(self, answers: Sequence[Answered]) -> list[float]:
        from alignkit.contract.rewards import RewardSpec
        from alignkit.onpolicy.rewards import open_rewards

        (reward,) = open_rewards([RewardSpec.model_validate({"name": self.name, **self.settings})])
        return reward(answers)

    def _answers(self) -> list[Answered]:
        from alignkit.contract.rewards import Answered

        words: Any = Words()
        said = [("two plus two is four .", True), ("", True), ("two plus", False), ("4 " * 40, False)]
        made = []
        for i, (text, ended) in enumerate(said):
            ids = [*range(5, 5 + len(text.split())), *([END] if ended else [])]
            made.append(Answered(f"row-{i}", self.prompt, text, [1, 7, 9], ids, ended, words, dict(self.fields)))
        return made


class ServiceConformance:
    """Tests of one installed service: a logger, a data source, a callback."""

    name: ClassVar[str]
    source: ClassVar[Callable[[Path], str] | None] = None
    """Of a data source: writes preference rows below a directory and returns the source's name, as ``--data`` takes it."""

    def test_listing_does_not_import_it(self) -> None:
        """``align services`` reads metadata alone."""
        check_listing("align.services", self.name)

    def test_a_run_finishes_with_it(self, tmp_path: Path) -> None:
        """It implements its hooks rightly, takes no place of the method's, and a short run on the demo finishes."""
        from alignkit.runs.api import run

        values = _short(tmp_path, self.name)
        finished = run(settings.check_config(RunConfig.model_validate(values)), quiet=True)
        assert finished is not None
        assert finished.record["status"] == "finished"

    def test_other_sources_are_left_alone(self) -> None:
        """What is not its own to load, it answers with None."""
        from alignkit.training.session import Session

        config = settings.check_config(RunConfig.model_validate(_short(Path("unused"), self.name)))
        assert Session.open(config).load_data("a-file-of-nobody.jsonl", None) is None, (
            "align_load_data answered for a source that is not its own: return None"
        )

    def test_its_rows_train(self, tmp_path: Path) -> None:
        """Rows of its own source load, name their places, and train."""
        from alignkit.runs.api import run
        from alignkit.training.session import Session

        if type(self).source is None:
            pytest.skip("it is no data source")
        source = type(self).source(tmp_path)  # type: ignore[misc]
        values = _short(tmp_path, self.name)
        values["data"] = {"source": source, "eval_split": 0.3}
        values["model"] = "demo"
        config = settings.check_config(RunConfig.model_validate(values))
        rows = Session.open(config).load_data(source, None)
        assert rows is not None, f"align_load_data does not know its own source {source}"
        assert len(rows.rows) >= 10, "write at least ten rows for this test"
        assert rows.where(0) != rows.where(1), "where(position) names one place for two rows: errors need file and line"
        assert rows.source, "the rows do not say where they come from"
        finished = run(config, quiet=True)
        assert finished is not None
        assert finished.record["status"] == "finished"


def _short(output: Path, service: str) -> dict[str, Any]:
    try:
        registry.find("align.services", service)
    except AlignError as error:
        pytest.fail(f"{error}: is the package installed, and its entry point under align.services?")
    return {
        "method": "orpo",
        "train": {"max_steps": 2, "logging_steps": 1, "save_strategy": "steps", "save_steps": 1, "use_cpu": True},
        "data": {"eval_limit": 10},
        "eval": {"samples": 0, "suites": []},
        "run": {"output": str(output), "name": "run", "services": [service], "plots": False},
    }
