"""Critics: estimate the value of a state from the policy's hidden states or from a separate trunk.

A critic is a submodule of the innermost causal language model, so that wrappers, optimizer and gradient checkpointing see
one model. It is saved separately (``critic.safetensors``), so that the trained model stays a stock one.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from alignkit.errors import CheckpointError, ConfigError
from alignkit.scoring.backends import hidden_states, innermost, text_config
from alignkit.scoring.plan import Plan
from alignkit.system.sharded import is_partitioned, is_sharded, shard_alike, whole

FILE = "critic.safetensors"
_NAME = "critic"


class Critic(nn.Module):
    """V(s) = w . h(s) + b in float32, initialised to zero; h comes from the policy, or from ``trunk``."""

    def __init__(self, hidden_size: int, trunk: nn.Module | None = None) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, hidden: torch.Tensor, model: Any, plan: Plan) -> torch.Tensor:
        """Return the value of the state before every scored completion token, float32 ``[N]``.

        ``hidden`` is the policy's hidden states at those positions, ``[N, H]``; ``model`` the innermost causal LM.
        """
        if self.trunk is not None:
            hidden = hidden_states(model, plan, self.trunk).flatten(0, 1).index_select(0, plan.source)
        with torch.autocast(hidden.device.type, enabled=False):
            values: torch.Tensor = self.head(hidden.float()).squeeze(-1)
        return values


def add_critic(model: nn.Module, kind: Literal["shared", "separate"]) -> None:
    """Add a critic to the innermost model; a ``separate`` one has its own copy of every trained weight.

    Frozen weights are shared with the policy: with LoRA, a separate critic is a second set of adapters.
    """
    base = innermost(model)
    trunk = None
    if kind == "separate" and is_sharded(model):
        raise ConfigError(
            "method.critic separate copies the model, which cannot be copied once it is sharded: use shared"
        )
    if kind == "separate":
        kept: dict[int, Any] = {id(p): p for p in base.base_model.parameters() if not p.requires_grad}
        # One attention implementation for both.
        kept |= {id(config): config for config in (base.config, text_config(base))}
        trunk = copy.deepcopy(base.base_model, kept)
    critic = Critic(int(text_config(base).hidden_size), trunk).to(next(model.parameters()).device)
    base.add_module(_NAME, critic)
    shard_alike(critic, model)


def critic_of(model: nn.Module) -> Critic | None:
    critic: Critic | None = getattr(innermost(model), _NAME, None)
    return critic


def is_critics(name: str) -> bool:
    """Whether a parameter of a model belongs to its critic."""
    return _NAME in name.split(".")


def save_critic(model: nn.Module, directory: Path, *, write: bool = True) -> None:
    """Write the critic's trained weights to ``critic.safetensors``, if the model has a critic.

    Every process of a sharded model calls this, and one has to ``write``.
    """
    from safetensors.torch import save_file

    critic = critic_of(model)
    if critic is not None:
        weights = {name: whole(p).contiguous() for name, p in critic.named_parameters() if p.requires_grad}
        if write:
            save_file(weights, directory / FILE)


def load_critic(model: nn.Module, directory: Path) -> None:
    """Load the critic's trained weights; raises :class:`CheckpointError` if they are missing or do not match."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    critic = critic_of(model)
    if critic is None or is_partitioned(critic):  # which DeepSpeed loads
        return
    path = directory / FILE
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if found.keys() != {name for name, p in critic.named_parameters() if p.requires_grad}:
        raise CheckpointError(f"{path} belongs to a critic of another kind")
    critic.load_state_dict(found, strict=False)  # frozen weights are the policy's
