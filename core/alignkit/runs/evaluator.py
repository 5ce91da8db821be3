"""Evaluation of the model of a run as it is at the moment: the start model, in the middle of training, the trained one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from alignkit.config import RunConfig
from alignkit.contract import LoadedModel, Policy, RunPolicy, Suite, SuiteResult
from alignkit.data.load import HeldOut
from alignkit.models.weights import fingerprint
from alignkit.runs.evaluation import Subject, data_rules, run_suites, scored_by
from alignkit.scoring.evaluating import undisturbed
from alignkit.system.files import digest

Results = dict[str, SuiteResult]


@dataclass(frozen=True)
class RunEvaluator:
    """Runs suites on the run's model."""

    suites: Mapping[str, Suite[Any]]
    """Every suite of the run, those that only run during training included."""
    loaded: LoadedModel
    policy: RunPolicy
    config: RunConfig
    held_out: HeldOut
    start_policy: Callable[[], Policy]
    """Loads the start model beside the trained one."""
    warn: Callable[[str], None]
    """Called with the reason of every suite that is skipped."""

    def start_model(self, names: Iterable[str]) -> Results:
        """Evaluate the start model."""
        return self._run(names, "start model", self.loaded.fingerprint, start=None)

    def trained_model(self, names: Iterable[str], start: Results) -> Results:
        """Evaluate the trained model, against the start model's results where a suite compares."""
        return self._run(names, "trained model", self._weights(), start)

    def during_training(self, names: Iterable[str], start: Results) -> Results:
        """Evaluate in the middle of training, without a trace."""
        with undisturbed(self.loaded.model):
            return self._run(names, "in training", self._weights(), start)

    def _weights(self) -> str:
        with self.loaded.as_saved():
            found = fingerprint(self.loaded.model)
        outside = self.loaded.is_adapter and hasattr(self.policy, "engine")  # whose state lacks the frozen weights
        return digest([self.loaded.fingerprint, found]) if outside else found

    def _run(self, names: Iterable[str], label: str, weights: str, start: Results | None) -> Results:
        self.policy.model = self.loaded.model  # not the trainer's wrapper
        subject = Subject(
            name=label,
            policy=self.policy,
            tokenizer=self.loaded.tokenizer,
            held_out=self.held_out,
            weights=weights,
            rules=data_rules(self.config.data),
            scored_by=scored_by(self.policy, self.config.model),
            start_weights=self.loaded.fingerprint,
            start_policy=self.start_policy,
        )
        return run_suites({name: self.suites[name] for name in names}, subject, start=start, skipped=self.warn)


def values_of(results: Results) -> dict[str, float]:
    """Return ``{"SUITE/METRIC": value}``, and the ends of intervals as ``SUITE/METRIC/low`` and ``SUITE/METRIC/high``."""
    named = {f"{suite}/{metric}": e for suite, result in results.items() for metric, e in result.metrics.items()}
    ends = {f"{name}{end}": x for name, e in named.items() for end, x in zip(("", "/low", "/high"), e, strict=True)}
    return {name: x for name, x in ends.items() if x is not None}


def directions_of(results: Results) -> dict[str, bool]:
    """Return whether a higher value is better, for every ``SUITE/METRIC`` for which its suite says so."""
    return {f"{suite}/{c.metric}": c.higher_is_better for suite, result in results.items() for c in result.contrasts}
