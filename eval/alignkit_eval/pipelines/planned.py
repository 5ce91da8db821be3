"""Every setting of every stage checked before the first one trains: a long pipeline does not end at its last stage's typo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from alignkit import RunConfig
from alignkit.config import EvalConfig, Words, split_words
from alignkit.errors import AlignError, ConfigError
from alignkit.runs.evaluation import open_suites
from alignkit.settings.layers import Layer
from alignkit.settings.messages import validate
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from alignkit_eval.merging import MergeMethod, Merging
from alignkit_eval.pipelines.stages import Kind, Pipeline, Stage, as_list, references, substituted
from alignkit_eval.report.planned import plan_without_weights


class _Values(BaseModel):
    model_config = ConfigDict(extra="allow", allow_inf_nan=False, strict=True)

    name: str | None = None


class TrainValues(_Values):
    """Keys of a training stage that are not sections of a configuration."""

    start: str | None = Field(None, alias="from")


class EvalValues(_Values):
    """Keys of an eval stage."""

    eval: Words | None
    baseline: str | None = None
    suites: Words = []
    settings: dict[str, dict[str, Any]] = {}


class ExportValues(_Values):
    """Keys of an export stage."""

    export: Words
    merge: Words = []
    weights: Annotated[list[Annotated[float, Field(strict=False)]], BeforeValidator(split_words)] | None = None
    merge_method: MergeMethod = "mean"
    density: float | None = None
    seed: int | None = None


VALUES: dict[Kind, type[_Values]] = {"train": TrainValues, "eval": EvalValues, "export": ExportValues}
STARTS: dict[str, tuple[Kind, ...]] = {"from": ("train", "export")}
"""Kinds of stages that a key may name; a training stage for all other keys."""


def check_stages(
    pipeline: Pipeline, directory: Path, sets: Sequence[str], unfinished: Callable[[Stage], bool] = lambda stage: True
) -> None:
    """Raise :class:`AlignError`, with the stage and the line, for whatever of a stage can be known to fail.

    Types, names and weights of all stages are checked; of the ``unfinished`` ones also plugins, suites, training arguments,
    models and data. Rows are read and tokenised as the stage will; they are cached.
    """
    for stage in pipeline.stages:
        head = ("stages", str(pipeline.stages.index(stage)))
        validate(VALUES[stage.kind], stage.values, Layer(places=dict(pipeline.places), default_place=stage.place), head)
        _check_names(pipeline, stage)
        if stage.kind == "train":
            pipeline.config(stage, directory, sets, planned=True)
    for stage in filter(unfinished, pipeline.stages):
        try:
            if stage.kind == "train":
                config = planned_config(pipeline, stage, directory, sets)
                plan_without_weights(config, rewards=not any(references(stage.values)))
            elif stage.kind == "eval":
                settings = substituted(stage.values.get("settings") or {}, directory)
                open_suites(EvalConfig(suites=as_list(stage.values.get("suites", [])), settings=settings))
        except AlignError as error:
            error.add_note(f"in stage {stage.name}, {stage.place}; nothing was trained")
            raise


def _check_names(pipeline: Pipeline, stage: Stage) -> None:
    """Refuse a stage of the wrong kind under a key, a baseline that is not evaluated, and weights that do not fit."""
    kinds = {other.name: other.kind for other in pipeline.stages}
    for key in ("from", "eval", "baseline", "export", "merge"):
        named = [name for name in as_list(stage.values.get(key, [])) if (key, name) != ("eval", "all")]
        for name in named:
            if kinds[name] not in STARTS.get(key, ("train",)):
                raise ConfigError(f"{stage.place}: {key} of stage {stage.name} names {name}, an {kinds[name]} stage")
        if key == "baseline" and named and stage.values["eval"] != "all" and named[0] not in stage.needs:
            raise ConfigError(f"{stage.place}: baseline {named[0]} of stage {stage.name} is not evaluated")
    merged = [*as_list(stage.values.get("export", [])), *as_list(stage.values.get("merge", []))]
    if stage.kind == "export" and not merged:
        raise ConfigError(f"{stage.place}: export of stage {stage.name} names no stage")
    if stage.kind == "export":
        try:
            merging_of(stage).factors(len(merged))
        except ConfigError as error:
            raise ConfigError(f"{stage.place}: stage {stage.name}: {error}") from error


def merging_of(stage: Stage) -> Merging:
    """Return how an export stage combines several models."""
    own = {key: stage.values[key] for key in ("density", "seed") if key in stage.values}
    weights = [float(share) for share in as_list(stage.values.get("weights", []))]
    return Merging(stage.values.get("merge_method", "mean"), weights or None, **own)


def planned_config(pipeline: Pipeline, stage: Stage, directory: Path, sets: Sequence[str]) -> RunConfig:
    """Return a training stage's configuration with the start model of its first ancestor, which has the same tokenizer."""
    config = pipeline.config(stage, directory, sets, planned=True)
    start = stage.values.get("from")
    if start is None:
        return config
    above, merged = pipeline.stage(start, "from"), False
    while above.kind == "export":
        above, merged = pipeline.stage(as_list(above.values["export"])[0], "export"), True
    first = planned_config(pipeline, above, directory, sets).model
    if config.model.lora is not None and first.lora is not None and not merged:
        raise ConfigError(
            f"{stage.place}: stage {stage.name} has model.lora, and {start} trains an adapter already: remove model.lora, or "
            "start from an export of it"
        )
    own = {key: value for key in ("tokenizer", "chat_template") if (value := getattr(config.model, key)) is not None}
    lora = {"lora": config.model.lora or (None if merged else first.lora)}
    config.model = first.model_copy(update=lora | own)
    return config
