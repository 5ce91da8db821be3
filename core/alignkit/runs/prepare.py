"""Everything a run needs before its first step: plugins, suites, model, data, scorer, reference log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.config import RunConfig
from alignkit.contract.model import LoadedModel
from alignkit.contract.suites import Suite
from alignkit.contract.types import Method, Need
from alignkit.errors import ConfigError, ModelError, PluginError
from alignkit.models.load import build_model
from alignkit.models.weights import fingerprint
from alignkit.onpolicy.rewards import open_rewards
from alignkit.runs.data import run_data
from alignkit.runs.evaluation import Subject, data_rules, open_suites
from alignkit.scoring.classifier import policy_of
from alignkit.training.session import Session

if TYPE_CHECKING:
    import torch

    from alignkit.data.load import Data
    from alignkit.data.order.row_order import RowOrder
    from alignkit.data.table.tokenised_rows import TokenisedRows
    from alignkit.scoring.classifier import ClassifierPolicy
    from alignkit.scoring.plan import Scorer
    from alignkit.scoring.policy import ModelPolicy

SUPPORTED_NEEDS: frozenset[Need] = frozenset({"reference", "start", "value_head", "reward"})


@dataclass
class PreparedRun:
    """A run that could start: its plugins, model, data and scorer."""

    config: RunConfig
    session: Session
    suites: dict[str, Suite[Any]]
    loaded: LoadedModel
    data: Data
    policy: ModelPolicy | ClassifierPolicy
    order: RowOrder
    """Of the training rows, all margins taken for 0."""

    @property
    def scoring(self) -> Scorer | None:
        """How the model is scored; None for a reward model, whose own forward is used."""
        return getattr(self.policy, "scorer", None)

    def split(self, name: str) -> TokenisedRows:
        """Return the rows of a split: ``train`` or ``eval``."""
        return {"train": self.data.train, "eval": self.data.eval}[name]


def open_plugins(config: RunConfig) -> tuple[Session, dict[str, Suite[Any]]]:
    """Load method, services and suites: whatever is wrong with a name or a setting shows before anything is loaded."""
    session = Session.open(config)
    missing = session.method.needs - SUPPORTED_NEEDS
    if missing:
        raise ConfigError(f"method {session.method.name} needs a {min(missing)}, which this version cannot give it")
    _check_rewards(session.method)
    if config.data.group_by is not None and "reward" in session.method.needs:
        raise ConfigError("data.group_by is for methods that train on the rows themselves, not on answers to them")
    return session, open_suites(config.eval)


def _check_rewards(method: Method[Any]) -> None:
    """Refuse a method that needs a reward where none is named, and a reward that cannot be used."""
    if "reward" not in method.needs:
        return
    specs = getattr(method.settings, "rewards", None)
    if specs is None:
        raise PluginError(f"method {method.name} needs a reward, but its settings do not derive from OnPolicySettings")
    if not specs:
        raise ConfigError(
            f"method {method.name} needs a reward: --set reward=NAME (align rewards lists them), the path of a reward "
            "model, or package.module:function"
        )
    open_rewards(specs)


def load_parts(config: RunConfig, session: Session, *, meta: bool = False) -> tuple[LoadedModel, Data]:
    """Load the start model and the tokenised data; ``meta`` leaves the weights out."""
    loaded = None if meta else session.build_model()
    if loaded is None:
        loaded = build_model(config.model, seed=config.run.seed, meta=meta)
        if loaded.classifier:
            raise ModelError(
                f"{config.model.name} is a reward model, and method {session.method.name} trains language models"
            )
    if "value_head" in session.method.needs and not meta:
        from alignkit.scoring.critic import add_critic

        add_critic(loaded.model, getattr(session.method.settings, "critic", "shared"))
    return loaded, run_data(config, loaded.tokenizer, session)


def prepare(config: RunConfig, session: Session, suites: dict[str, Suite[Any]], device: torch.device) -> PreparedRun:
    """Load model and data, put the model on its device, and choose the scoring backend by a probe."""
    from alignkit.data.order.mixing import row_order

    loaded, data = load_parts(config, session)
    # What is wrong with the order shows before anything is evaluated.
    order = row_order(config.data, data.train, config.run.seed, lambda: np.zeros(len(data.train)))
    return PreparedRun(config, session, suites, loaded, data, policy_of(loaded, config.model, device), order)


def subject(prepared: PreparedRun, name: str, *, trained: bool) -> Subject:
    """Return the run's model, as it is now, and its held-out data for evaluation."""
    config, loaded = prepared.config, prepared.loaded
    return Subject(
        name=name,
        policy=prepared.policy,
        tokenizer=loaded.tokenizer,
        held_out=prepared.data.held_out,
        weights=fingerprint(loaded.model) if trained else loaded.fingerprint,
        rules=data_rules(config.data),
        start_weights=loaded.fingerprint,
        start_policy=lambda: _start_policy(prepared),
    )


def _start_policy(prepared: PreparedRun) -> ModelPolicy | ClassifierPolicy:
    """Load the start model once more, beside the trained one."""
    loaded = prepared.session.build_model() or build_model(prepared.config.model, seed=prepared.config.run.seed)
    if loaded.fingerprint != prepared.loaded.fingerprint:
        raise ModelError(f"the start model {prepared.config.model.name} has changed since the run began")
    return policy_of(loaded, prepared.config.model, next(prepared.loaded.model.parameters()).device)
