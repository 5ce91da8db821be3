"""Everything a run needs before its first step: plugins and settings checked, then model, data, scorer and row order."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.config import RunConfig
from alignkit.contract import Engine, LoadedModel, Method, RunPolicy, Suite, registry
from alignkit.contract.registry import open_engine
from alignkit.data.load import Data
from alignkit.data.order import RowOrder, row_order
from alignkit.errors import ConfigError, ModelError, PluginError
from alignkit.models.load import build_model
from alignkit.models.positions import position_limit
from alignkit.onpolicy.rewards import open_rewards
from alignkit.onpolicy.samplers import check_sampler
from alignkit.onpolicy.settings import OnPolicySettings
from alignkit.runs.data import run_data
from alignkit.runs.evaluation import open_suites
from alignkit.scoring.classifier import policy_of
from alignkit.settings.training_arguments import StepShape, best_settings, training_arguments
from alignkit.system.distributed import world_size
from alignkit.system.sharded import sharded_loading
from alignkit.training.session import Session

if TYPE_CHECKING:
    from transformers import TrainingArguments


@dataclass(frozen=True)
class RunPlan:
    """The plugins, suites and arguments that a configuration names, checked; model and data are not loaded yet."""

    config: RunConfig
    session: Session
    engine: Engine
    suites: dict[str, Suite[Any]]
    arguments: TrainingArguments
    shape: StepShape
    watched: str | None = None
    """The suite whose metric chooses the best model."""


@dataclass(frozen=True)
class PreparedRun:
    """The model, data and scorer of a run, ready to train."""

    loaded: LoadedModel
    data: Data
    policy: RunPolicy
    order: RowOrder
    """Order of the training rows, with every margin taken as 0."""

    @property
    def scorer(self) -> str:
        """The scoring backend in use, with its kernels; ``classifier`` for a reward model, which is called directly."""
        return str(getattr(self.policy, "scorer", "classifier"))

    @property
    def notes(self) -> list[str]:
        """Notes of the probe of scoring backends."""
        return list(getattr(getattr(self.policy, "scorer", None), "notes", ()))


def plan_run(config: RunConfig, *, rewards: bool = True) -> RunPlan:
    """Load and check the plugins, suites, ``rewards`` (unless they do not exist yet) and training arguments of a run.

    Raises ``ConfigError`` for a name, setting or combination of settings, and ``PluginError`` for a plugin.
    """
    if distribute := registry.provided("align.launchers", "distribute"):
        distribute(config)
    if settle := registry.provided("align.models", "settle"):
        settle(config)
    engine = open_engine(config)
    base = engine.base(config)
    session = Session.open(base)
    method = session.method
    engine.check(config, method)
    if rewards:
        _check_rewards(method)
    if isinstance(method.settings, OnPolicySettings):
        check_sampler(method.settings)
    if config.data.group_by is not None and "reward" in method.needs:
        raise ConfigError("data.group_by applies to methods that train on the rows themselves, not on sampled answers")
    watched, _ = best_settings(config)
    suites = open_suites(config.eval, watched)
    arguments, shape = training_arguments(base, Path("unused"))
    if check := registry.provided("align.checks", "settings"):
        check(config, method, arguments)
    return RunPlan(config, session, engine, suites, arguments, shape, watched)


def _check_rewards(method: Method[Any]) -> None:
    """Refuse a method that needs a reward and has none, and a reward that cannot be used."""
    specs = getattr(method.settings, "rewards", None)
    if specs is None and "reward" in method.needs:
        raise PluginError(f"method {method.name} needs a reward, but its settings do not derive from OnPolicySettings")
    if not specs and "reward" in method.needs and not method.settings.reward_optional:
        raise ConfigError(
            f"method {method.name} needs a reward: --set reward=NAME (align rewards lists them), the path of a reward "
            "model, package.module:function, or path/to/file.py:function"
        )
    open_rewards(specs or [])


def load_parts(config: RunConfig, session: Session, *, meta: bool = False) -> tuple[LoadedModel, Data]:
    """Load the start model (``meta``: without weights) and the tokenised data; raises ``ModelError`` for a reward model."""
    loaded = None if meta else session.build_model()
    if loaded is None:
        loaded = build_model(session.config.model, seed=config.run.seed, meta=meta)
        if loaded.classifier and not (meta and session.plugins.hook.align_build_model.get_hookimpls()):
            raise ModelError(
                f"{config.model.name} is a reward model, but method {session.method.name} trains language models"
            )
    if "value_head" in session.method.needs and not meta:
        from alignkit.scoring.critic import add_critic

        add_critic(loaded.model, getattr(session.method.settings, "critic", "shared"))
    return loaded, run_data(config, loaded.tokenizer, position_limit(loaded.model), session)


def shards_of(config: RunConfig) -> int:
    """Return the number of processes that a run's models are sharded over."""
    return world_size() if config.run.strategy in ("fsdp", "zero3") else 1


def prepare(plan: RunPlan) -> PreparedRun:
    """Load model and data, move the model to its device, and choose the scoring backend by a probe."""
    config = plan.config
    with sharded_loading(shards_of(config)):
        loaded, data = load_parts(config, plan.session)
    # An order that cannot be made is refused here, before anything is evaluated.
    order = row_order(config.data, data.train, config.run.seed, lambda: np.zeros(len(data.train)))
    return PreparedRun(loaded, data, policy_of(loaded, config, plan.arguments.device), order)


def load_start_policy(config: RunConfig, session: Session, like: LoadedModel) -> RunPolicy:
    """Load the start model once more, beside the trained one ``like``; raises :class:`ModelError` if it has changed."""
    with sharded_loading(shards_of(config)):
        loaded = session.build_model() or build_model(session.config.model, seed=config.run.seed)
    if loaded.fingerprint != like.fingerprint:
        raise ModelError(f"the start model {config.model.name} has changed since the run began")
    return policy_of(loaded, config, next(like.model.parameters()).device)
