"""The types of a method plugin: its settings, its declaration, and what its hooks receive and return.

Nothing here imports torch, so that listing and configuration stay light.
"""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Literal, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import torch

    from alignkit.contract.batch import Batch, Example, Scores

RowKind = Literal["preference", "completion", "prompt", "unpaired"]
"""What one row of a method's data is: chosen and rejected, one completion, a prompt alone, a completion with a label."""

Need = Literal["reference", "start", "value_head", "reward"]
"""What a method needs besides the policy: reference log-probabilities of its rows, the policy as it was at step 0 to score
anything with, a critic, rewards for its own answers."""


class Settings(BaseModel):
    """Base of a plugin's settings: unknown keys are refused, numbers are finite, aliases are the field's symbols."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False, validate_default=True
    )


SettingsT = TypeVar("SettingsT", bound=BaseModel)


class Policy(Protocol):
    """What a method sees of the model that is trained."""

    @property
    def model(self) -> torch.nn.Module:
        """The model as the engine wrapped it (DDP, FSDP, peft)."""
        ...

    def score(
        self,
        examples: Sequence[Example],
        *,
        prompt: bool = False,
        grad: bool = True,
        values: bool = False,
        entropy: bool = False,
        temperature: float = 1.0,
        reference: bool = False,
    ) -> Scores:
        """Score every completion of ``examples``.

        Args:
            examples: rows with their completions.
            prompt: score the prompts' tokens as well.
            grad: with gradient; False: without, and with dropout off.
            values: the critic's value of every state a scored token was chosen in (``needs`` must name ``value_head``).
            entropy: the entropy in nats of every distribution a scored token was chosen from, without gradient.
            temperature: divides the logits.
            reference: by the policy as it was at step 0, without gradient (``needs`` must name ``start``).
        """
        ...


class LossTerm(NamedTuple):
    """One named part of a loss: a sum over this micro-batch and the name of the count that divides it.

    The engine divides by the count over the whole optimizer step and all ranks, so that neither the loss nor its gradient
    depends on how the step was cut.
    """

    name: str
    sum: torch.Tensor
    per: str
    weight: float = 1.0


class Metric(NamedTuple):
    """A logged quantity as a sum over this micro-batch and the name of the count that divides it."""

    sum: torch.Tensor
    per: str


@dataclass(frozen=True)
class LossOutput:
    """What ``align_compute_loss`` returns for one micro-batch."""

    terms: Sequence[LossTerm]
    metrics: Mapping[str, Metric] = field(default_factory=dict)


class Reuse(NamedTuple):
    """How often a prepared batch serves: passes over it, and optimizer steps a pass takes."""

    epochs: int = 1
    minibatches: int = 1

    @property
    def steps(self) -> int:
        """Optimizer steps one prepared batch serves."""
        return self.epochs * self.minibatches


class Rollouts(Protocol):
    """What the engine gives ``align_prepare_batch`` of an on-policy method (one that needs ``reward``)."""

    @property
    def training(self) -> bool:
        """Whether the batch is trained on (False: the method is being evaluated and must not change its state)."""
        ...

    def sample(self, batch: Batch, n: int = 1) -> Batch:
        """Return the rows with ``n`` answers of the policy each, and per-answer columns ``reward`` (the weighted sum of the
        rewards), ``reward/NAME`` and ``ended``, one list a row.
        """
        ...

    def score(self, batch: Batch, *, reference: bool = False, values: bool = False, entropy: bool = False) -> Scores:
        """Score the answers without gradient, on the host: by the policy, or by the reference it was at step 0."""
        ...

    def total(self, *values: float | torch.Tensor) -> list[float]:
        """Return each number summed over all processes."""
        ...


class Method(ABC, Generic[SettingsT]):
    """Base of a method plugin: its declaration, and its settings for one run.

    A subclass implements ``align_compute_loss`` (and other hooks where it needs them) with ``@hookimpl`` and is named
    under the entry-point group ``align.methods``. See ``hookspecs`` for every hook.
    """

    name: ClassVar[str]
    """The method's name, as ``--method`` takes it."""
    paper: ClassVar[str]
    """Title and address of the paper."""
    rows: ClassVar[RowKind]
    """What one row of its data is."""
    needs: ClassVar[frozenset[Need]] = frozenset()
    """What it needs besides the policy."""
    settings_type: ClassVar[type[BaseModel]]
    """Its settings: a pydantic model, every field described."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """Configuration the method prefers where the user says nothing, by dotted key: ``{"train.learning_rate": 5e-7}``."""
    contract: ClassVar[int] = 1
    """The version of the plugin contract it was written for; a later one than this alignkit's is refused with that reason."""
    demo: ClassVar[Mapping[str, Any]] = {}
    """The same for the embedded demo, whose preset stands over ``defaults``."""

    def __init__(self, settings: SettingsT) -> None:
        self.settings = settings

    @property
    def reuse(self) -> Reuse:
        """How often what ``align_prepare_batch`` returned serves before it is called again."""
        return Reuse()

    def state(self) -> dict[str, float]:
        """Return what the method learnt on its way, for a checkpoint (an adaptive coefficient)."""
        return {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint's state."""

    def conventions(self) -> dict[str, Any]:
        """Return the loss conventions a run records, so that runs with different ones are told apart."""
        return self.settings.model_dump(mode="json", by_alias=True)
