"""The types of engine plugins, which hold the model of a run: they score it, differentiate it and update its weights.

Rows, losses, order, schedule, logging, checkpoints and evaluation are the same for every engine.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol

from alignkit.contract.types import Policy
from alignkit.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import Trainer, TrainingArguments

    from alignkit.config import RunConfig
    from alignkit.contract.batch import Example
    from alignkit.contract.model import LoadedModel
    from alignkit.contract.trainer_parts import TrainerParts
    from alignkit.contract.types import Method, Need


class RunPolicy(Policy, Protocol):
    """The policy of a run, as an engine makes it."""

    model: Any
    """May be replaced by its wrapped form at any time: gradients are synchronised between processes only by the wrapper's forward."""
    meeting: Any
    """The passes that processes of a sharded model make together (see :mod:`alignkit.scoring.in_step`)."""
    precision: Mapping[str, str]
    """Types of the weights and of the matrix products, for the record."""


class Engine(ABC):
    """Base of an engine, registered in ``align.engines`` and chosen by ``run.engine``.

    An engine outside torch derives from :class:`~alignkit.training.engines.OutsideEngine`, which has the abstract methods.
    """

    name: ClassVar[str]
    needs: ClassVar[frozenset[Need]]
    """Needs of a method that it meets; a method with another need is refused."""
    unused: ClassVar[Mapping[str, str]] = {}
    """Keys of the configuration without effect on it, with the reason; a run that sets one is refused."""
    several_processes: ClassVar[bool] = True
    """Whether it trains in more than one process."""
    contract: ClassVar[int] = 1

    def check_processes(self, number: int) -> None:
        """Raise ``ConfigError`` if it cannot train in so many processes; called before they are started."""
        if number > 1 and not self.several_processes:
            raise ConfigError(f"run.engine {self.name} trains in one process: set run.processes: 1 and run.nodes: 1")

    def check(self, config: RunConfig, method: Method[Any]) -> None:
        """Raise ``ConfigError`` for what it cannot do, before anything is loaded; a subclass adds its own (a missing package)."""
        if missing := method.needs - self.needs:
            raise ConfigError(f"method {method.name} needs {min(missing)}, which engine {self.name} does not provide")

    def base(self, config: RunConfig) -> RunConfig:
        """Return the configuration that torch has its part with: without a quantization that the engine makes itself."""
        return config

    @abstractmethod
    def policy(self, loaded: LoadedModel, config: RunConfig, device: torch.device) -> RunPolicy:
        """Return the policy that scores with a model that was loaded by torch, whose weights it may take over."""

    @abstractmethod
    def trainer(self, parts: TrainerParts) -> Trainer:
        """Return the trainer of a run."""


class Wanted(NamedTuple):
    """What is wanted of a forward pass."""

    prompt: bool = False
    """Also score the tokens of the prompts, but the first of each."""
    grad: bool = False
    """Return ``pull``; without it dropout is off as well."""
    entropy: bool = False
    temperature: float = 1.0
    reference: bool = False
    """Score with the weights of step 0 (see :meth:`EngineModel.keep_start`)."""


class Computed(NamedTuple):
    """The result of a forward pass: float32 CPU tensors."""

    logps: torch.Tensor
    """Log-probability of each scored completion token, in the order of rows and completions, ``[N]``; of a reward model the
    reward of each completion, ``[S]``."""
    prompt_logps: torch.Tensor
    """Log-probability of each prompt token but the first of each prompt, ``[M]``; empty unless wanted."""
    entropy: torch.Tensor | None = None
    """Entropy in nats of the distribution of each scored token, ``[N]``, if wanted."""
    pull: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], None] | None = None
    """Adds the gradients of the trained weights, given those of ``logps``, ``prompt_logps`` and ``entropy``; called at most once."""


class EngineModel(ABC):
    """The model of a run in the memory of an engine outside torch.

    It begins with the weights of a model that torch has loaded. Names of weights are those of that model's ``state_dict``.
    """

    precision: Mapping[str, str] = {}
    """Types of the weights and of the matrix products, for the record."""
    scorer: str
    """How it scores, in a few words for the record."""

    @abstractmethod
    def compute(self, examples: Sequence[Example], wanted: Wanted) -> Computed:
        """Score every completion of ``examples`` by the current weights."""

    @abstractmethod
    def logits(self, ids: torch.Tensor, mask: torch.Tensor, cache: dict[str, Any] | None = None) -> torch.Tensor:
        """Return the logits ``[B, T, V]`` (of a reward model ``[B, 1]``) of token ids and their attention mask, ``[B, T]``.

        Masked tokens are before or after a row's own. ``cache``: empty in the first call of a generation and the same
        dictionary in the others, in which ``ids`` are the new tokens and ``mask`` covers all of them (None: no cache); the
        logits may then be those of the last token alone. It is used only by a model that :attr:`caches`.
        """

    caches: bool = False
    """Whether :meth:`logits` keeps keys and values in its ``cache``."""

    # ------------------------------------------------------------------ training

    @abstractmethod
    def begin(self, arguments: TrainingArguments, decayed: Collection[str]) -> None:
        """Make the optimizer that ``arguments`` name, with weight decay for the ``decayed`` weights."""

    @abstractmethod
    def gradient_norm(self) -> float:
        """Return the 2-norm of all gradients of the step; called once a step."""

    @abstractmethod
    def step(self, learning_rate: float, scale: float) -> None:
        """Multiply the gradients by ``scale``, update the weights, and clear the gradients."""

    @abstractmethod
    def clear(self) -> None:
        """Clear the gradients."""

    @abstractmethod
    def keep_start(self) -> None:
        """Keep the current weights as the reference (a method that needs ``start``)."""

    # ------------------------------------------------------------------ weights and state

    @abstractmethod
    def weights(self) -> dict[str, torch.Tensor]:
        """Return the trained weights by name, as CPU tensors that do not change later; tied weights by one of their names."""

    @abstractmethod
    def load_weights(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Restore what :meth:`weights` returned."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """Return the state of optimizer and random numbers for a checkpoint: tensors, numbers, texts, and lists and dicts of them."""

    @abstractmethod
    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what :meth:`state` returned, to the bit."""

    @abstractmethod
    def memory_gb(self) -> float:
        """Return the peak memory in GiB since the process began."""
