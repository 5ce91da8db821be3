"""alignkit: a plugin-based trainer registry with a shared evaluation harness for aligning language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit.config import CheckConfig as CheckConfig
    from alignkit.config import RunConfig as RunConfig
    from alignkit.contract import *  # noqa: F403
    from alignkit.contract.commands import Command as Command
    from alignkit.contract.hooks import hookimpl as hookimpl
    from alignkit.data.rows import text_digest as text_digest
    from alignkit.models.load import build_classifier as build_classifier
    from alignkit.models.load import build_model as build_model
    from alignkit.onpolicy.reward_model import RewardModel as RewardModel
    from alignkit.onpolicy.rewards import as_reward as as_reward
    from alignkit.onpolicy.rewards import load_function as load_function
    from alignkit.onpolicy.rewards import open_rewards as open_rewards
    from alignkit.onpolicy.rollouts import moments as moments
    from alignkit.onpolicy.rollouts import whiten as whiten
    from alignkit.onpolicy.samplers import rollout_metrics as rollout_metrics
    from alignkit.onpolicy.settings import OnPolicySettings as OnPolicySettings
    from alignkit.runs.api import Run as Run
    from alignkit.runs.api import run as run
    from alignkit.scoring.classifier import policy_of as policy_of
    from alignkit.training.engines import OutsideEngine as OutsideEngine

__version__ = "0.1.0"

# Imported when first asked for, so that `import alignkit` costs nothing.
_NAMES = {
    "config": "CheckConfig RunConfig",
    "contract": "Answered Answers AttentionKernel AttentionLayer Batch Computed Contrast DataFormat DataRule Distributions Engine EngineModel Estimate Example Hit Layout LoadedModel Loss LossOutput LossTerm Method Metric NamedReward "
    "Omission Outcome Pairs Policy RawRows Reuse Reward RewardSpecs Rollouts Row Scheduler SchedulerSettings Scores Segment Settings Stage StageContext Suite "
    "SuiteResult Target Task TrainerParts Wanted carry_out loss nll_term plain_text preference_metrics texts_of",
    "contract.commands": "Command",
    "contract.hooks": "hookimpl",
    "data.rows": "text_digest",
    "models.load": "build_classifier build_model",
    "onpolicy.reward_model": "RewardModel",
    "onpolicy.rewards": "as_reward load_function open_rewards",
    "onpolicy.rollouts": "moments whiten",
    "onpolicy.samplers": "rollout_metrics",
    "onpolicy.settings": "OnPolicySettings",
    "scoring.classifier": "policy_of",
    "runs.api": "Run run",
    "training.engines": "OutsideEngine",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
__all__ = [*_MODULE_OF, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f"alignkit.{_MODULE_OF[name]}"), name)
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
