"""The plugin contract: hooks, methods, suites, rewards, rows, batches and scores, with their checks.

The types that plugins implement and receive can be imported from here; their modules are imported on first use, without
torch, so that listing and configuration stay fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_NAMES = {
    "attention": "AttentionKernel AttentionLayer Layout Segment",
    "batch": "COUNTS Batch Example Scores by_length token_batches",
    "data_formats": "DataFormat Located Unparsed",
    "data_rules": "DataRule Hit plain_text texts_of",
    "engines": "Computed Engine EngineModel RunPolicy Wanted",
    "losses": "NLLReduction NLLScope nll_term preference_metrics",
    "model": "LoadedModel",
    "pairs": "Answers Loss Pairs loss",
    "rewards": "Answered NamedReward Reward RewardSpec RewardSpecs",
    "rows": "Message RawRows Row Text",
    "schedulers": "Outcome Scheduler SchedulerSettings Task carry_out",
    "stages": "Stage StageContext",
    "suites": "Contrast Estimate Omission Suite SuiteResult Target",
    "trainer_parts": "TrainerParts",
    "types": "Distributions LoadsModels LossOutput LossTerm Method Metric Need Policy Reuse Rollouts RowKind Settings SettingsT",
}
_MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}

if TYPE_CHECKING:
    from alignkit.contract.attention import *  # noqa: F403
    from alignkit.contract.batch import *  # noqa: F403
    from alignkit.contract.data_formats import *  # noqa: F403
    from alignkit.contract.data_rules import *  # noqa: F403
    from alignkit.contract.engines import *  # noqa: F403
    from alignkit.contract.losses import *  # noqa: F403
    from alignkit.contract.model import *  # noqa: F403
    from alignkit.contract.pairs import *  # noqa: F403
    from alignkit.contract.rewards import *  # noqa: F403
    from alignkit.contract.rows import *  # noqa: F403
    from alignkit.contract.schedulers import *  # noqa: F403
    from alignkit.contract.stages import *  # noqa: F403
    from alignkit.contract.suites import *  # noqa: F403
    from alignkit.contract.trainer_parts import *  # noqa: F403
    from alignkit.contract.types import *  # noqa: F403
else:

    def __getattr__(name: str) -> Any:
        if name in _MODULE_OF:
            return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
