"""alignkit: a plugin-based trainer registry with a shared evaluation harness for aligning language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit.config import RunConfig as RunConfig
    from alignkit.contract.batch import Batch as Batch
    from alignkit.contract.batch import Example as Example
    from alignkit.contract.batch import Scores as Scores
    from alignkit.contract.commands import Command as Command
    from alignkit.contract.hooks import hookimpl as hookimpl
    from alignkit.contract.losses import nll_term as nll_term
    from alignkit.contract.losses import preference_metrics as preference_metrics
    from alignkit.contract.model import LoadedModel as LoadedModel
    from alignkit.contract.rewards import Answered as Answered
    from alignkit.contract.rewards import NamedReward as NamedReward
    from alignkit.contract.rewards import Reward as Reward
    from alignkit.contract.rewards import RewardSpecs as RewardSpecs
    from alignkit.contract.rows import RawRows as RawRows
    from alignkit.contract.rows import Row as Row
    from alignkit.contract.suites import Contrast as Contrast
    from alignkit.contract.suites import Estimate as Estimate
    from alignkit.contract.suites import Suite as Suite
    from alignkit.contract.suites import SuiteResult as SuiteResult
    from alignkit.contract.suites import Target as Target
    from alignkit.contract.trainer_parts import TrainerParts as TrainerParts
    from alignkit.contract.types import LossOutput as LossOutput
    from alignkit.contract.types import LossTerm as LossTerm
    from alignkit.contract.types import Method as Method
    from alignkit.contract.types import Metric as Metric
    from alignkit.contract.types import Policy as Policy
    from alignkit.contract.types import Reuse as Reuse
    from alignkit.contract.types import Rollouts as Rollouts
    from alignkit.contract.types import Settings as Settings
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

__version__ = "0.1.0"

# Name -> module. Loaded when first asked for, so that `import alignkit` costs nothing.
_PUBLIC = {
    "Run": "runs.api",
    "run": "runs.api",
    "RewardModel": "onpolicy.reward_model",
    "RunConfig": "config",
    "Command": "contract.commands",
    "RawRows": "contract.rows",
    "Row": "contract.rows",
    "NamedReward": "contract.rewards",
    "TrainerParts": "contract.trainer_parts",
    "hookimpl": "contract.hooks",
    "nll_term": "contract.losses",
    "preference_metrics": "contract.losses",
    "LoadedModel": "contract.model",
    "build_classifier": "models.load",
    "build_model": "models.load",
    "OnPolicySettings": "onpolicy.settings",
    "rollout_metrics": "onpolicy.samplers",
    "as_reward": "onpolicy.rewards",
    "load_function": "onpolicy.rewards",
    "open_rewards": "onpolicy.rewards",
    "Answered": "contract.rewards",
    "Reward": "contract.rewards",
    "RewardSpecs": "contract.rewards",
    "moments": "onpolicy.rollouts",
    "whiten": "onpolicy.rollouts",
    "Contrast": "contract.suites",
    "Estimate": "contract.suites",
    "Suite": "contract.suites",
    "SuiteResult": "contract.suites",
    "Target": "contract.suites",
    "Batch": "contract.batch",
    "Example": "contract.batch",
    "LossOutput": "contract.types",
    "LossTerm": "contract.types",
    "Method": "contract.types",
    "Metric": "contract.types",
    "Policy": "contract.types",
    "Reuse": "contract.types",
    "Rollouts": "contract.types",
    "Scores": "contract.batch",
    "Settings": "contract.types",
}
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"alignkit.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
