"""The engines' trainers: that of torch, and one around the model of any other engine."""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from alignkit.config import RunConfig
from alignkit.contract import Engine, EngineModel, LoadedModel, Method, Need, RunPolicy
from alignkit.contract.checks import implementations
from alignkit.errors import ConfigError
from alignkit.scoring.classifier import torch_policy
from alignkit.settings.strategies import processes_of
from alignkit.training.trainer import AlignTrainer

if TYPE_CHECKING:
    from transformers import Trainer, TrainingArguments

    from alignkit.contract.trainer_parts import TrainerParts


class TorchEngine(Engine):
    """PyTorch: the model is scored, differentiated and updated where it was loaded."""

    name = "torch"
    needs: ClassVar[frozenset[Need]] = frozenset({"reference", "start", "value_head", "reward", "distributions"})

    def policy(self, loaded: LoadedModel, config: RunConfig, device: torch.device) -> RunPolicy:
        return torch_policy(loaded, config, device)

    def trainer(self, parts: TrainerParts) -> Trainer:
        return AlignTrainer(parts)  # type: ignore[arg-type]


class OutsideEngine(Engine):
    """Base of an engine outside torch: it defines :meth:`open`, and ``transformers.Trainer`` drives its model."""

    several_processes = False
    optimizers: ClassVar[Sequence[str]] = ("adamw_torch",)
    """Values of ``train.optim`` that it knows."""
    packages: ClassVar[Mapping[str, str]] = {}
    """Packages that it imports, and what ``pip install`` needs to be given for each."""

    def check(self, config: RunConfig, method: Method[Any]) -> None:
        """Refuse what needs torch: a method's own trainer, samplers, other optimizers, processes, measurements of memory."""
        super().check(config, method)
        for package, given in self.packages.items():
            if importlib.util.find_spec(package) is None:
                raise ConfigError(f"run.engine {self.name} needs the package {package}: pip install {given}")
        own = {found.hook for found in implementations(method)}
        if "align_build_trainer" in own:
            raise ConfigError(f"method {method.name} has a trainer of its own, for torch: set run.engine: torch")
        optim = config.train.arguments.get("optim") or "adamw_torch"
        if (optim := str(getattr(optim, "value", optim))) not in self.optimizers:
            known = ", ".join(self.optimizers)
            raise ConfigError(f"run.engine {self.name} has no optimizer {optim}: set train.optim to one of {known}")
        if getattr(method.settings, "sampler", "model") != "model":
            raise ConfigError(f"run.engine {self.name} generates with its own model: set method.sampler: model")
        if getattr(method.settings, "reference_update_every", None) is not None:
            raise ConfigError("method.reference_update_every needs run.engine: torch, whose weights it changes")
        self.check_processes(processes_of(config))
        if config.train.tokens_per_micro_batch == "auto":
            raise ConfigError(f"run.engine {self.name} cannot measure train.tokens_per_micro_batch: set a number")

    def base(self, config: RunConfig) -> RunConfig:
        """Return the configuration with torch on the CPU, where its part is small."""
        return config.model_copy(update={"train": config.train.model_copy(update={"use_cpu": True})})

    @abstractmethod
    def open(self, loaded: LoadedModel, config: RunConfig) -> EngineModel:
        """Return a model with the weights of ``loaded``, whose own are freed afterwards.

        Raises ``ModelError`` for a model that it does not know.
        """

    def policy(self, loaded: LoadedModel, config: RunConfig, device: torch.device) -> RunPolicy:
        from alignkit.scoring.outside import OutsidePolicy

        return OutsidePolicy(loaded, self.open(loaded, config), self.name)

    def trainer(self, parts: TrainerParts) -> Trainer:
        return OutsideTrainer(parts)


class OutsideTrainer(AlignTrainer):
    """The trainer of a model in another engine's memory: gradients, their norm, clipping and updates are the engine's."""

    def __init__(self, parts: Any) -> None:
        self.engine: EngineModel = parts.policy.engine
        super().__init__(parts)
        self.numbers.memory = self.engine.memory_gb

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        self.engine.begin(self.args, self.get_decay_parameter_names(self.model))
        self.optimizer: Any = EngineOptimizer(self.engine, self.args)
        return self.optimizer

    def gradient_norm(self, model: torch.nn.Module) -> torch.Tensor:
        self.norm = self.engine.gradient_norm()  # the guard asks for it first; clipping and the log use the same one
        return torch.tensor(self.norm)

    def _clip_grad_norm(self, model: Any) -> float:
        optimizer: Any = getattr(self.optimizer, "optimizer", self.optimizer)  # inside accelerate's
        optimizer.scale = min(1.0, self.args.max_grad_norm / (self.norm + 1e-6))  # as torch.nn.utils.clip_grad_norm_
        return self.norm

    def _get_grad_norm(self, model: Any, grad_norm: float | None = None) -> float:
        return self.norm

    def passes(self, model: Any, batch: Any) -> Any:
        self.engine.clear()  # a step that is repeated begins anew
        return super().passes(model, batch)

    # ------------------------------------------------------------------ checkpoints

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        self.parts.policy.restore(partial(super()._load_from_checkpoint, resume_from_checkpoint))  # type: ignore[attr-defined]

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(str(self.state.best_model_checkpoint))


class EngineOptimizer(torch.optim.Optimizer):
    """An engine's optimizer as torch's schedulers and ``Trainer`` see it: one group, whose learning rate it reads."""

    def __init__(self, engine: EngineModel, arguments: TrainingArguments) -> None:
        self.engine, self.scale = engine, 1.0
        super().__init__([torch.zeros(())], {"lr": arguments.learning_rate})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.engine.step(float(self.param_groups[0]["lr"]), self.scale)
        self.scale = 1.0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.engine.clear()

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"engine": self.engine.state()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict({key: value for key, value in state_dict.items() if key != "engine"})
        self.engine.load_state(state_dict["engine"])
