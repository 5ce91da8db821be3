"""The judge's error, measured on pairs whose better answer is known."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from alignkit import Estimate, Target, plain_text, text_digest
from alignkit.contract import Row
from alignkit.errors import NoRowsError
from alignkit.runs.data import held_out_data
from alignkit_eval.statistics import clustered_proportion
from alignkit_eval.suites.scores import evenly_spaced

from alignkit_judge.estimates import Verdicts, bounded
from alignkit_judge.judging import Question, Verdict, text_of
from alignkit_judge.settings import JudgeSuiteSettings


@dataclass(frozen=True)
class Calibration:
    """A judge's verdicts on pairs, the better answer first."""

    rows: Sequence[Row]
    judged: Sequence[Verdict]
    credit: Literal["letter", "probability"]
    unread: int = 0
    """Pairs on which there is no verdict."""

    @property
    def _clusters(self) -> list[str]:
        return [row.cluster or f"prompt-{text_digest(row.prompt)}" for row in self.rows]

    @property
    def _longer(self) -> Any:
        sizes = [[len(plain_text(answer).strip()) for answer in row.answers] for row in self.rows]
        return np.array([better - worse for better, worse in sizes], dtype=np.float64)

    def verdicts(self, scale: float) -> Verdicts:
        """Return the credits of the better answers, with length differences bounded at ``scale``."""
        credits = np.array([verdict.credit(self.credit) for verdict in self.judged])
        return Verdicts(credits, bounded(self._longer, scale), self._clusters)

    def metrics(self) -> dict[str, Estimate]:
        """Return the agreement with the known preference: of both orders, of each, and by which answer is longer."""
        if not self.rows:
            return {}
        orders = np.array([verdict.orders(self.credit) for verdict in self.judged])  # (m, 2)
        parts = {
            "agreement": (orders.mean(1), slice(None)),
            "agreement/better_first": (orders[:, 0], slice(None)),
            "agreement/better_second": (orders[:, 1], slice(None)),
            "agreement/better_longer": (orders.mean(1), self._longer > 0),
            "agreement/better_shorter": (orders.mean(1), self._longer < 0),
        }
        clusters = np.array(self._clusters)
        return {
            name: clustered_proportion(values[which], clusters[which].tolist())
            for name, (values, which) in parts.items()
            if len(values[which])
        }

    def notes(self) -> list[str]:
        """Return the confusion matrix of the letters as a sentence."""
        if not self.rows:
            return []
        orders = np.array([verdict.orders("letter") for verdict in self.judged])
        says = [
            f"A {(column == win).sum()}, B {(column == lose).sum()}"
            for column, win, lose in ((orders[:, 0], 1, 0), (orders[:, 1], 0, 1))
        ]
        left = f", {self.unread} more without a verdict" if self.unread else ""
        return [
            f"calibration on {len(self.rows)} pairs with known preference{left}: where A is better the judge says {says[0]}; "
            f"where B is better, {says[1]}"
        ]


def calibration_rows(settings: JudgeSuiteSettings, target: Target) -> list[Row]:
    """Return the pairs to calibrate on: the held-out pairs, or those of the source that is named; none where there are none.

    Raises:
        DataError: the source that is named has no pairs.
    """
    if not settings.calibration_pairs:
        return []
    if settings.calibration is None:
        try:
            rows = target.rows("preference")
        except NoRowsError:
            return []
    else:
        from alignkit import settings as configuration

        config = configuration.resolve(
            method="sft", model="demo", data=settings.calibration, eval_data=settings.calibration
        ).config
        rows = held_out_data(config, target.tokenizer, None).rows("preference")
    return evenly_spaced(rows, settings.calibration_pairs, by_prompt=False)


def calibrate(
    settings: JudgeSuiteSettings, rows: Sequence[Row], judge: Callable[[Sequence[Question]], list[Verdict | None]]
) -> Calibration:
    """Return the judge's verdicts on pairs with known preference."""
    texts = [[plain_text(answer).strip() for answer in row.answers] for row in rows]
    found = judge([Question(row.id, text_of(row.prompt), *pair) for row, pair in zip(rows, texts, strict=True)])
    kept = [(row, verdict) for row, verdict in zip(rows, found, strict=True) if verdict is not None]
    return Calibration([row for row, _ in kept], [v for _, v in kept], settings.credit, len(rows) - len(kept))
