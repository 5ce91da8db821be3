"""alignkit: a plugin-based trainer registry with a shared evaluation harness for aligning language models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from alignkit.api import Run as Run
    from alignkit.api import run as run
    from alignkit.classifier import RewardModel as RewardModel
    from alignkit.config import RunConfig as RunConfig
    from alignkit.data.rows import RawRows as RawRows
    from alignkit.hookspecs import hookimpl as hookimpl
    from alignkit.losses import nll_term as nll_term
    from alignkit.losses import preference_metrics as preference_metrics
    from alignkit.models import LoadedModel as LoadedModel
    from alignkit.models import build_classifier as build_classifier
    from alignkit.models import build_model as build_model
    from alignkit.onpolicy import OnPolicySettings as OnPolicySettings
    from alignkit.onpolicy import rollout_metrics as rollout_metrics
    from alignkit.rewarding import as_reward as as_reward
    from alignkit.rewarding import load_function as load_function
    from alignkit.rewarding import open_rewards as open_rewards
    from alignkit.rewards import Answered as Answered
    from alignkit.rewards import Reward as Reward
    from alignkit.rewards import RewardSpecs as RewardSpecs
    from alignkit.rollouts import moments as moments
    from alignkit.rollouts import whiten as whiten
    from alignkit.suites import Contrast as Contrast
    from alignkit.suites import Estimate as Estimate
    from alignkit.suites import Suite as Suite
    from alignkit.suites import SuiteResult as SuiteResult
    from alignkit.suites import Target as Target
    from alignkit.types import Batch as Batch
    from alignkit.types import Example as Example
    from alignkit.types import LossOutput as LossOutput
    from alignkit.types import LossTerm as LossTerm
    from alignkit.types import Method as Method
    from alignkit.types import Metric as Metric
    from alignkit.types import Policy as Policy
    from alignkit.types import Reuse as Reuse
    from alignkit.types import Rollouts as Rollouts
    from alignkit.types import Scores as Scores
    from alignkit.types import Settings as Settings

__version__ = "0.1.0"

# Name -> module. Loaded when first asked for, so that `import alignkit` costs nothing.
_PUBLIC = {
    "RunConfig": "config",
    "RawRows": "data.rows",
    "hookimpl": "hookspecs",
    "nll_term": "losses",
    "preference_metrics": "losses",
    "OnPolicySettings": "onpolicy",
    "rollout_metrics": "onpolicy",
    "Answered": "rewards",
    "as_reward": "rewarding",
    "load_function": "rewarding",
    "open_rewards": "rewarding",
    "RewardSpecs": "rewards",
    "LoadedModel": "models",
    "RewardModel": "classifier",
    "build_classifier": "models",
    "build_model": "models",
    "Reward": "rewards",
    "moments": "rollouts",
    "whiten": "rollouts",
    "Run": "api",
    "run": "api",
}
_PUBLIC |= dict.fromkeys(
    "Batch Example LossOutput LossTerm Method Metric Policy Reuse Rollouts Scores Settings".split(), "types"
)
_PUBLIC |= dict.fromkeys("Contrast Estimate Suite SuiteResult Target".split(), "suites")
__all__ = [*_PUBLIC, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(import_module(f"alignkit.{_PUBLIC[name]}"), name)
    raise AttributeError(f"module 'alignkit' has no attribute {name!r}")
