"""Checkpoints of models whose trained weights are sharded: every process writes and reads its own slices.

transformers loads such models and refuses to checkpoint their optimizer. Here each process keeps its slices of weights and
optimizer state in ``shard_RANK.pt`` (ZeRO-3: in DeepSpeed's files); the model that is saved in the end is whole and a stock one.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from alignkit.errors import CheckpointError
from alignkit.scoring.critic import is_critics
from alignkit.system.sharded import (
    is_partitioned,
    is_sharded,
    like,
    local,
    localised,
    plain_state,
    reshard,
    saving_what_is_given,
    trains_shards,
    whole_state,
)

if TYPE_CHECKING:
    from transformers import Trainer as Base
else:
    Base = object  # a mixin: Trainer comes after it in the class that uses it

SCHEDULER = "scheduler.pt"
SHARD = "shard_{rank}.pt"


class ShardedState(Base):
    """Mixin for ``transformers.Trainer``: checkpoints and the saved model where trained weights are sharded."""

    _stage: Path | None = None
    """Directory of the checkpoint that is being written."""

    def __init__(self, model: Any, args: Any, **named: Any) -> None:
        kept, args.save_only_model = args.save_only_model, args.save_only_model or is_sharded(model)
        super().__init__(model=model, args=args, **named)  # which asks for it, as it cannot save the optimizer
        args.save_only_model = kept
        self._partitioned = is_partitioned(self.model)
        self._shards = trains_shards(self.model)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; of ZeRO-3 as :meth:`_save` does, where DeepSpeed's way depends on its configuration."""
        if self._partitioned:
            self._save(output_dir)
        else:
            super().save_model(output_dir, _internal_call)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """Write the whole model or adapter; in a checkpoint its configuration only where its weights are in the shards."""
        if not is_sharded(self.model):
            # Under ZeRO-2 every process has all weights, and accelerate's clones of them are not tied.
            super()._save(output_dir, None if self.is_deepspeed_enabled else state_dict)
            return
        shards = self._shards or self._partitioned
        if shards and self._stage is not None:
            if self.args.should_save:
                self.model.config.save_pretrained(output_dir)
            return
        first, adapter = self.args.should_save, hasattr(self.model, "peft_config")
        state = whole_state(self.model, first=first, trained=adapter) if shards else plain_state(self.model)
        policy = {name: tensor for name, tensor in state.items() if not is_critics(name)}
        self.is_distributed_loading_by_transformers = False  # the first process alone writes
        with saving_what_is_given(self.model):
            super()._save(output_dir, policy)
        self.is_distributed_loading_by_transformers = not self._partitioned

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self._shards:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        state = {"model": self._trained_slices(), "optimizer": localised(self.optimizer.state_dict())}
        Path(output_dir).mkdir(parents=True, exist_ok=True)  # whichever process comes first
        torch.save(state, Path(output_dir) / SHARD.format(rank=self.args.process_index))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER)

    def _trained_slices(self) -> dict[str, torch.Tensor]:
        """Return this process's slices of the weights that are trained, sharing their memory."""
        reshard(self.model)
        return {name: local(p) for name, p in self.model.named_parameters() if p.requires_grad}

    def _read_shard(self, checkpoint: str) -> dict[str, Any]:
        file = Path(checkpoint) / SHARD.format(rank=self.args.process_index)
        try:
            state: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
        except (OSError, pickle.UnpicklingError) as error:
            raise CheckpointError(
                f"{file} is missing or holds other things than tensors: a sharded run resumes with as many processes as saved it"
            ) from error
        return state

    def _load_shards(self, checkpoint: str) -> None:
        trained = self._trained_slices()
        found = self._read_shard(checkpoint)["model"]
        if {name: tensor.shape for name, tensor in found.items()} != {n: t.shape for n, t in trained.items()}:
            raise CheckpointError(
                f"{checkpoint} belongs to another model, or was sharded over another number of processes"
            )
        for name, tensor in trained.items():
            tensor.copy_(found[name])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if self._shards:
            self._load_shards(resume_from_checkpoint)
        else:
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if self._shards:
            self._load_shards(str(self.state.best_model_checkpoint))
        else:
            super()._load_best_model()

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if not self._shards or checkpoint is None:
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        state = self._read_shard(checkpoint)["optimizer"]
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, values in state["state"].items():
            for name, value in values.items():
                if isinstance(value, torch.Tensor):
                    values[name] = like(value, parameters[index])
        self.optimizer.load_state_dict(state)
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER, weights_only=True))
