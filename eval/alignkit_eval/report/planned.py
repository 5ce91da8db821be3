"""A run that is planned: everything of it but the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from alignkit import LoadedModel, RunConfig, build_model
from alignkit.contract.registry import provided
from alignkit.data.load import Data
from alignkit.runs.prepare import RunPlan, load_parts, plan_run


@dataclass(frozen=True)
class DryRun:
    """All of a run that can be known without weights."""

    plan: RunPlan
    loaded: LoadedModel
    """The model on the meta device: its modules and the sizes of their parameters."""
    data: Data
    findings: list[str]
    """A line for each finding of the data check."""


def plan_without_data(config: RunConfig, *, rewards: bool, model: bool) -> None:
    """Plan a run whose data, and maybe ``model``, do not exist yet."""
    plan_run(config, rewards=rewards)
    if model:
        build_model(config.model, seed=config.run.seed, meta=True)


def plan_without_weights(config: RunConfig, *, rewards: bool = True) -> DryRun:
    """Plan a run and check its data, without weights."""
    plan = plan_run(config, rewards=rewards)
    loaded, data = load_parts(config, plan.session, meta=True)
    check = provided("align.checks", "data")
    return DryRun(plan, loaded, data, check(data, config.data.check) if check else [])


def require_loadable(configs: Sequence[RunConfig]) -> None:
    """Check the model and data of several runs, each once, so that the first is refused before any is trained."""
    distinct = dict[tuple[str, ...], RunConfig]()
    for config in configs:
        key = (config.method.name, config.model.model_dump_json(), config.data.model_dump_json())
        distinct.setdefault(key, config)
    for config in distinct.values():
        plan_without_weights(config)
