"""Conditions on a comparison, for scripts: is it shown that a metric is at least, or at most, so far from the baseline's?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from alignkit.errors import ConfigError, suggest

from alignkit_eval.comparison.result import Comparison, ContrastResult
from alignkit_eval.headline import signed

_FORM = re.compile(r"\s*([\w./-]+?)\s*(>=|<=)\s*([-+]?[\d.]+(?:[eE][-+]?\d+)?)\s*")


@dataclass(frozen=True)
class Requirement:
    """A bound on the difference of a metric from the baseline's, in the metric's unit."""

    metric: str
    at_least: bool
    bound: float

    @classmethod
    def parse(cls, text: str) -> Requirement:
        """Read ``accuracy_sum>=-0.01``; raises :class:`ConfigError` for anything else."""
        found = _FORM.fullmatch(text)
        try:
            if found is None:
                raise ValueError(text)
            return cls(found[1], found[2] == ">=", float(found[3]))
        except ValueError as error:
            raise ConfigError(
                f'--require {text}: write METRIC>=NUMBER or METRIC<=NUMBER, "accuracy_sum>=-0.01"'
            ) from error

    def unmet(self, comparison: Comparison) -> Iterator[str]:
        """Yield a sentence for every arm for which the condition is not shown; raises for an unknown metric."""
        known = [contrast.metric for contrast in comparison.contrasts]
        if self.metric not in known:
            raise ConfigError(
                f"--require {self}: these runs have no metric {self.metric}{suggest(self.metric, known)} "
                f"(compared are {', '.join(dict.fromkeys(known))})"
            )
        for contrast in comparison.contrasts:
            if contrast.metric == self.metric and not self._shown(contrast):
                low, high = (signed(end) if end is not None else "unknown" for end in (contrast.low, contrast.high))
                yield (
                    f"not shown: {self} of {contrast.arm} against {comparison.baseline} "
                    f"(difference {signed(contrast.diff)}, 95 % interval {low} to {high})"
                )

    def _shown(self, contrast: ContrastResult) -> bool:
        end = contrast.low if self.at_least else contrast.high
        return end is not None and (end >= self.bound if self.at_least else end <= self.bound)

    def __str__(self) -> str:
        return f"{self.metric}{'>=' if self.at_least else '<='}{self.bound:g}"
