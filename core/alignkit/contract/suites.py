"""The vocabulary of evaluation: what a suite is given, what it hands back, and how two results are compared.

Nothing here imports torch, so that listing stays light.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple

from alignkit.contract.batch import Example
from alignkit.contract.types import Policy, RowKind, SettingsT

if TYPE_CHECKING:
    from pydantic import BaseModel
    from transformers import PreTrainedTokenizerBase

    from alignkit.contract.rows import Row


class Estimate(NamedTuple):
    """A number with its 95 % interval (None where there is none)."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Contrast:
    """How one metric of two targets is compared, item by item.

    The metric is the mean of the items' ``numerator``, or with a ``denominator`` the ratio of the two sums, over the items
    that have every value of ``where``. A contrast on a ``log`` scale is estimated there (the ratio is the metric's
    logarithm) and shown in the metric's own unit.
    """

    metric: str
    """Name of the metric in :attr:`SuiteResult.metrics`."""
    numerator: str
    """Key of the items."""
    denominator: str | None = None
    """Key of the items; None: every item counts once."""
    where: Mapping[str, Any] = field(default_factory=dict)
    """Values an item must have to count: ``{"task": "facts"}``."""
    higher_is_better: bool = True
    log: bool = False
    """Whether the metric is the exponential of the ratio (perplexity)."""
    one_tokenizer: bool = False
    """Whether it means the same for models with one tokenizer only."""
    verdict: tuple[str, ...] = ()
    """Metrics that must agree with this one before a winner is named (itself left out); only such metrics judge."""


@dataclass(frozen=True)
class SuiteResult:
    """What a suite found: metrics, one record an item, and how to compare them with another target's.

    Every item has an ``id`` of its own and a ``cluster``.
    """

    suite: str
    n: int
    clusters: int
    metrics: Mapping[str, Estimate]
    items: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    contrasts: Sequence[Contrast] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What was evaluated, with what, and what it cost: filled in by whoever runs the suite."""


@dataclass(frozen=True)
class Target:
    """A model under evaluation, and held-out data for it."""

    name: str
    policy: Policy
    """Scores, and holds the model: ``policy.model``."""
    tokenizer: PreTrainedTokenizerBase
    examples: Callable[[RowKind], Sequence[Example]]
    """Held-out rows of a kind, tokenised for this model; raises ``NoRowsError`` where the data has none."""
    rows: Callable[[RowKind], Sequence[Row]]
    """The same rows as text or messages: ``rows(kind)[i]`` is ``examples(kind)[i]``."""
    start: SuiteResult | None = None
    """The same suite's result on the run's start model, where there is one."""
    start_policy: Callable[[], Policy] | None = None
    """Loads the run's start model, where there is one."""


class Suite(ABC, Generic[SettingsT]):
    """Base of an evaluation suite, named under the entry-point group ``align.suites``."""

    name: ClassVar[str]
    settings_type: ClassVar[type[BaseModel]]
    classifiers: ClassVar[bool] = False
    """Whether it makes sense of a reward model, whose ``score`` returns rewards in place of log-probabilities."""
    uses_start: ClassVar[bool] = False
    """Whether it asks for :attr:`Target.start` or :attr:`Target.start_policy`."""

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    @abstractmethod
    def evaluate(self, target: Target) -> SuiteResult:
        """Evaluate ``target``.

        Raises :class:`~alignkit.errors.RunFailedError` where a score is not finite, and
        :class:`~alignkit.errors.NoRowsError` where the data has nothing for this suite.
        """

    def content(self, target: Target) -> str | None:
        """Return a digest of what is evaluated: texts and answers, not tokens.

        Results are compared only where it is the same. With one, results are also cached, by it, the weights and the
        settings; None: neither is known, and the items' ids decide. Raises as :meth:`evaluate` does.
        """
        return None
