"""lm-eval's tasks with metrics that may fail: one that does is left out and named, and takes no other one with it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from alignkit.errors import first_line


class Failures:
    """What failed in the metrics of tasks: an aggregation, or the code that scores a document."""

    def __init__(self) -> None:
        self.aggregations: dict[tuple[str, str], str] = {}
        """(task, metric) -> why."""
        self.documents: dict[str, list[str]] = {}
        """Task -> why, for each document that could not be scored."""

    def watch(self, manager: Any) -> None:
        """Have the tasks that ``manager`` loads from now on record their failures here."""
        load = manager.load

        def watched(*names: Any, **options: Any) -> Any:
            found = load(*names, **options)
            for name, task in found["tasks"].items():
                task.process_results = partial(self._score, name, task.process_results)
                task.aggregation = partial(self._aggregations, name, task.aggregation)
            return found

        manager.load = watched

    def _score(self, task: str, score: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return score(*arguments)
        except Exception as error:
            self.documents.setdefault(task, []).append(_cause(error))
            return {}

    def _aggregations(self, task: str, own: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
        return {metric: partial(self._aggregate, task, metric, function) for metric, function in own().items()}

    def _aggregate(self, task: str, metric: str, function: Callable[[Any], Any], values: Any) -> Any:
        try:
            return function(values)
        except Exception as error:
            self.aggregations[task, metric] = _cause(error)
            return math.nan

    def usable(self, task: str, reported: Mapping[str, Any]) -> dict[str, Any]:
        """Return the results of a task, ``{"acc,none": .5}``, without those that failed."""
        if task in self.documents:
            return {}
        return {key: value for key, value in reported.items() if (task, key.partition(",")[0]) not in self.aggregations}

    def notes(self) -> list[str]:
        """Return a sentence on everything that is left out."""
        return [
            *(
                f"{task} is left out: {len(causes):,} documents could not be scored (first: {causes[0]})"
                for task, causes in self.documents.items()
            ),
            *(f"{task}/{metric} is left out: {cause}" for (task, metric), cause in self.aggregations.items()),
        ]


def _cause(error: Exception) -> str:
    if isinstance(error, OverflowError):
        return "the number is too large (it overflows)"
    return f"its code failed with {type(error).__name__}: {first_line(error)}"
