"""The types of a method plugin: its settings, its declaration, and the arguments and results of its hooks.

Shapes: ``G`` rows, ``S`` completions (sequences) of all rows, ``N`` scored completion tokens.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from alignkit.contract.batch import Batch, Example, Scores

if TYPE_CHECKING:
    import torch

    from alignkit.config import RunConfig
    from alignkit.contract.model import LoadedModel

RowKind = Literal["preference", "completion", "prompt", "unpaired", "ranked"]
"""Kinds of rows: a chosen and a rejected completion, one completion, only a prompt, one with a label, several from best to worst."""

Need = Literal["reference", "start", "value_head", "reward", "distributions"]
"""Needs of a method besides the policy: reference log-probabilities of its rows (``reference``), scoring with the policy of
step 0 (``start``), a critic (``value_head``), sampled answers and their rewards (``reward``), the policy's distributions over
the vocabulary (``distributions``)."""


class Settings(BaseModel):
    """Base of a plugin's settings: unknown keys are errors, numbers must be finite, aliases are the symbols of the paper."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False, validate_default=True
    )


SettingsT = TypeVar("SettingsT", bound=BaseModel)


class Distributions(Protocol):
    """A model's distributions over the vocabulary at ``N`` scored tokens, computed in chunks of ``n`` when they are asked for."""

    def map(self, function: Callable[..., Any], *others: Distributions | torch.Tensor) -> Any:
        """Return the tensors ``[N, ...]`` (or a tuple of them) of ``function(logps, *others)``, called with each chunk.

        ``logps`` are the log-probabilities ``[n, V]`` of a chunk, and ``others`` the same tokens' log-probabilities by another
        model, without gradient, or rows of a tensor ``[N, ...]``. The backward computes each chunk again, so that
        tokens x vocabulary is never in memory.
        """


class Policy(Protocol):
    """The model in training, as methods and suites use it."""

    @property
    def model(self) -> torch.nn.Module:
        """The model, with the engine's wrappers (DDP, FSDP, peft)."""

    def score(
        self,
        examples: Sequence[Example],
        *,
        prompt: bool = False,
        grad: bool = True,
        values: bool = False,
        entropy: bool | Literal["grad"] = False,
        temperature: float = 1.0,
        reference: bool = False,
        distributions: Callable[[Distributions], Any] | None = None,
    ) -> Scores:
        """Return the log-probabilities of every completion of ``examples``.

        Args:
            examples: rows with their completions.
            prompt: also score the tokens of the prompts.
            grad: keep gradients; False also switches dropout off.
            values: also return the critic's values (``needs`` must include ``value_head``).
            entropy: also return the entropy of each scored token's distribution in nats, without gradient or ("grad") with it.
            temperature: divisor of the logits.
            reference: score with the policy of step 0, without gradient (``needs`` must include ``start``).
            distributions: function of the distributions over the vocabulary of the scored tokens; the scores have its result.
        """


class LossTerm(NamedTuple):
    """A named term of a loss: a sum over this micro-batch, and the name of the count to divide it by.

    The engine divides by the count of the whole optimizer step over all ranks, so that loss and gradient do not depend on
    how the step is divided into micro-batches.
    """

    name: str
    sum: torch.Tensor
    per: str
    weight: float = 1.0


class Metric(NamedTuple):
    """A logged quantity: a sum over this micro-batch, and the name of the count to divide it by."""

    sum: torch.Tensor
    per: str


@dataclass(frozen=True)
class LossOutput:
    """The result of ``align_compute_loss`` for one micro-batch; the loss is the weighted sum of its terms."""

    terms: Sequence[LossTerm]
    metrics: Mapping[str, Metric] = field(default_factory=dict)


class Reuse(NamedTuple):
    """The reuse of a prepared batch: number of passes over it, and optimizer steps per pass."""

    epochs: int = 1
    minibatches: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps per prepared batch."""
        return self.epochs * self.minibatches


class Rollouts(Protocol):
    """Sampling, rewards and scoring for ``align_prepare_batch`` of an on-policy method (one that needs ``reward``)."""

    @property
    def training(self) -> bool:
        """Whether the batch is trained on (False: an evaluation, which must not change the method's state)."""

    def sample(self, batch: Batch, n: int = 1, *, greedy: bool = False) -> Batch:
        """Return the rows with ``n`` answers sampled from the policy each (``greedy``: the most likely tokens), and their rewards.

        The columns have one value per answer: ``reward`` (the weighted sum of the rewards), ``reward/NAME``, and ``ended``
        (whether the model ended the answer itself). A sampler other than the model may add ``sampler``, its own
        log-probability of every token.
        """

    def further(self, wanted: Sequence[bool]) -> Batch:
        """Return a further prompt of the run for each marked row of the rollout; every process calls it, maybe without marks.

        The prompts are those that follow in the order of the run, which continues after them.
        """

    def score(self, batch: Batch, *, reference: bool = False, values: bool = False, entropy: bool = False) -> Scores:
        """Score the answers without gradient and return CPU tensors: by the policy, or by the policy of step 0."""

    def reference_weights(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return this process's shard of every trained weight of the policy, and of the reference, to be changed in place."""

    def total(self, *values: float | torch.Tensor) -> list[float]:
        """Return each value summed over all processes."""

    def gather(self, values: torch.Tensor) -> tuple[torch.Tensor, list[int]]:
        """Return the values of all processes' rows, ``[n, ...]`` on each, in the order of the step, and which are this one's."""


class LoadsModels:
    """Base of plugins that may load models beside the trained one."""

    def models(self, config: RunConfig) -> Sequence[LoadedModel]:
        """Return these models, without weights (``meta``), for the estimate of a run's memory."""
        return ()


class Method(LoadsModels, ABC, Generic[SettingsT]):
    """Base of a method plugin: its declaration, and its settings for one run.

    A subclass implements ``align_compute_loss``, and other hooks as needed, with ``@hookimpl``; it is registered in the
    entry-point group ``align.methods``. See :mod:`alignkit.contract.hooks` for all hooks.
    """

    name: ClassVar[str]
    """The method's name (``--method``)."""
    paper: ClassVar[str]
    """Title and URL of the paper."""
    rows: ClassVar[RowKind]
    """The kind of its rows."""
    needs: frozenset[Need] = frozenset()
    """Its needs besides the policy; ``__init__`` may set others, by the settings."""
    settings_type: ClassVar[type[BaseModel]]
    """The pydantic model of its settings; every field has a description."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults of the configuration by dotted key, e.g. ``{"train.learning_rate": 5e-7}``."""
    lora_defaults: ClassVar[Mapping[str, Any]] = {}
    """Defaults where ``model.lora`` is set; they override ``defaults``."""
    unused: ClassVar[Mapping[str, str]] = {}
    """Keys of the configuration without effect on the method, with the reason; a run that sets one is refused."""
    unsharded: str = ""
    """Why it cannot train a model that processes share (run.strategy fsdp, zero3), and what to use instead; empty: it can."""
    contract: ClassVar[int] = 1
    """The version of the plugin contract it was written for; a version later than alignkit's is refused."""
    demo: ClassVar[Mapping[str, Any]] = {}
    """Defaults for the embedded demo; they override ``defaults`` and the demo's preset."""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Defaults by the value of the setting ``variant``, e.g. ``{"dapo": {"method.clip_high": 0.28}}``; they override ``demo``."""

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    @property
    def reuse(self) -> Reuse:
        """The reuse of each batch ``align_prepare_batch`` returns."""
        return Reuse()

    @property
    def whole_step(self) -> bool:
        """Whether ``align_prepare_batch`` is given ``rollouts`` to score with, and held-out rows as one step."""
        return False

    def state(self) -> dict[str, Any]:
        """Return the method's state for a checkpoint: numbers, and lists of tensors of this process."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""

    def conventions(self) -> dict[str, Any]:
        """Return the loss conventions recorded with a run, so that different ones can be distinguished."""
        return self.settings.model_dump(mode="json", by_alias=True)
