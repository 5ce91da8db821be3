"""The types of evaluation suites: their targets, their results, and how results are compared."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, NamedTuple

from alignkit.contract.batch import Example
from alignkit.contract.rows import Row
from alignkit.contract.types import LoadsModels, Policy, RowKind, SettingsT

if TYPE_CHECKING:
    from pydantic import BaseModel
    from transformers import PreTrainedTokenizerBase


class Estimate(NamedTuple):
    """A value with its 95 % confidence interval (None: no interval)."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Contrast:
    """The paired comparison of one metric between two targets, by items.

    The metric is the mean of ``numerator`` over the items, or with a ``denominator`` the ratio of the two sums, over the
    items that match ``where``. With ``log`` this ratio is the logarithm of the metric: the difference is estimated on the
    log scale and shown in the metric's unit.
    """

    metric: str
    """Name of the metric in :attr:`SuiteResult.metrics`."""
    numerator: str
    """Item key that is summed; empty: the metric is not a mean, and is compared by :attr:`SuiteResult.draws`."""
    denominator: str | None = None
    """Item key that the sum is divided by; None: the number of items."""
    where: Mapping[str, Any] = field(default_factory=dict)
    """Values an item must have to be included: ``{"task": "facts"}``."""
    higher_is_better: bool = True
    log: bool = False
    """Whether the metric is the exponential of the ratio (perplexity)."""
    one_tokenizer: bool = False
    """Whether the metric is only comparable between models with the same tokenizer."""
    against_start: bool = False
    """Whether the metric is measured against the start model, so that it is only comparable between runs of one start."""
    verdict: tuple[str, ...] = ()
    """Metrics that must agree with this one before a winner is named (or the metric itself); empty: not used for verdicts."""
    guard: bool = False
    """Whether this metric must not get worse for a winner; one with a ``verdict`` too decides where no other metric does."""
    margin: float | None = None
    """Difference that is small enough to count as none, in the metric's unit (with ``log`` as a share of it); None: not known."""
    bounds: tuple[float | None, float | None] = (None, None)
    """Smallest and largest value the metric can have; intervals keep to them."""

    def counts(self, item: Mapping[str, Any]) -> bool:
        """Whether an item is included, by :attr:`where`."""
        return all(item.get(key) == value for key, value in self.where.items())


class Omission(NamedTuple):
    """What an evaluation left out or cut: ``1 of 4 rows left out: empty completion (first: pairs.jsonl:3)``."""

    what: str
    """``rows``, ``prompts``, ``completions``, ``requests``."""
    n: int
    of: int
    why: str
    first: str = ""  # its location

    def __str__(self) -> str:
        first = f" (first: {self.first})" if self.first else ""
        return f"{self.n:,} of {self.of:,} {self.what} {self.why}{first}"


@dataclass(frozen=True)
class SuiteResult:
    """The result of a suite on one target: metrics, items, and contrasts for comparisons with other targets."""

    suite: str
    n: int
    """Number of items."""
    clusters: int
    """Number of distinct clusters among the items."""
    metrics: Mapping[str, Estimate]
    items: Sequence[Mapping[str, Any]]
    """One record per item, each with a unique ``id`` and a ``cluster``."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    contrasts: Sequence[Contrast] = ()
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """Model, data, software and cost of the evaluation; filled in by the caller of the suite."""
    left_out: Sequence[Omission] = ()
    """What was left out or cut; unusable and truncated held-out rows are added by the caller."""
    draws: Mapping[str, Sequence[float | None]] = field(default_factory=dict)
    """Values of metrics that are not means, on bootstrap draws of the clusters, the same draws for every target; None: undefined."""
    notes: Sequence[str] = ()
    """Sentences on how to read the result, such as why a metric has no interval."""


@dataclass(frozen=True)
class Target:
    """A model to evaluate, with held-out data."""

    name: str
    policy: Policy
    """The model (``policy.model``) with its scorer."""
    tokenizer: PreTrainedTokenizerBase
    examples: Callable[[RowKind], Sequence[Example]]
    """Returns the held-out rows of a kind, tokenised for this model; raises ``NoRowsError`` if the data has none."""
    rows: Callable[[RowKind], Sequence[Row]]
    """Returns the same rows as text or messages: ``rows(kind)[i]`` is ``examples(kind)[i]``."""
    start: SuiteResult | None = None
    """The suite's result on the run's start model, if known."""
    start_policy: Callable[[], Policy] | None = None
    """Loads the run's start model, if known."""
    whole: Callable[[RowKind], Sequence[Example]] | None = None
    """Returns the rows of a kind without truncation to ``data.max_length``, for suites that score in windows."""


class Suite(LoadsModels, ABC, Generic[SettingsT]):
    """Base of an evaluation suite, registered in the entry-point group ``align.suites``."""

    name: ClassVar[str]
    settings_type: ClassVar[type[BaseModel]]
    classifiers: ClassVar[bool] = False
    """Whether it can evaluate a reward model, whose ``score`` returns rewards instead of log-probabilities."""
    metrics: ClassVar[Sequence[str] | None] = None
    """Metrics that models can be compared by, ``reward/*`` for any ending; None: known only once they are evaluated."""
    uses_start: ClassVar[bool] = False
    """Whether it uses :attr:`Target.start` or :attr:`Target.start_policy`."""

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    @property
    def cacheable(self) -> bool:
        """Whether content, model, settings and installed code decide the results: not where a suite calls a user's functions."""
        return True

    @abstractmethod
    def evaluate(self, target: Target) -> SuiteResult:
        """Evaluate ``target``; raise ``RunFailedError`` if a score is not finite, ``NoRowsError`` if there are no rows for it."""

    def content(self, target: Target) -> str | None:
        """Return a hash of the evaluated texts and answers (not of tokens), or None.

        Results with different hashes are not compared; with None, items are matched by id. With a hash and if :attr:`cacheable`,
        results are cached by it, all columns of the rows asked for, model, settings and code. Raises as :meth:`evaluate`.
        """
        return None
