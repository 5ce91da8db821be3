"""Targets of ``align eval``: a run, a model or adapter directory, a hub id, or the demo."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import Example, Policy, RunConfig, Scores, settings
from alignkit.config import DataConfig, ModelConfig, TrainConfig
from alignkit.contract import LoadedModel, RowKind, RunPolicy, registry
from alignkit.contract.registry import provided
from alignkit.data.load import HeldOut
from alignkit.errors import ConfigError, ModelError, NoRowsError
from alignkit.models.load import build_classifier, build_model
from alignkit.models.paths import adapter_parts, is_classifier, resolve_path
from alignkit.models.positions import position_limit
from alignkit.rundir.directory import RunDir
from alignkit.runs.data import held_out_data, run_data
from alignkit.runs.evaluation import Subject, data_rules, scored_by
from alignkit.system.distributed import world_size

from alignkit_eval.evaluation.places import Origin

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_OF_TRAINING = ("torch_compile", "torch_compile_backend", "torch_compile_mode", "use_liger_kernel")
"""Keys of ``train`` that change how a model's layers run, for training alone."""


@dataclass(frozen=True)
class TargetSpec:
    """A target by name: where it is, and the configuration it is evaluated under."""

    name: str
    config: RunConfig
    run: RunDir | None
    own_data: bool
    """Whether it is evaluated on the data it came with: a run's held-out rows, the demo's."""
    has_data: bool
    origin: Origin
    as_trained: bool = False
    """Whether a run's model and data are as its configuration has them."""


def find_target(target: str, *, data: str | None = None, sets: Sequence[str] = ()) -> TargetSpec:
    """Return what ``target`` names and how it is evaluated; nothing is loaded.

    Args:
        target: a run directory, a model or adapter directory, a hub id, or ``demo``.
        data: rows to evaluate on, in place of what the target came with.
        sets: further ``key=value`` texts, as for ``--set``.

    Raises:
        ConfigError: the run or a key cannot be used.
        ModelError: there is no such directory, or it holds no model.
    """
    path = Path(target).expanduser()
    if data is not None:
        _refuse_unread(sets)
    if (path / "run.json").is_file():
        run = RunDir.open(path)
        config = settings.resolve(run.config, eval_data=data, sets=sets, resume=True).config
        if data is not None:
            config.data = _for_other_data(config.data, sets)
        _settle_precision(config, config, sets)
        origin = _origin(target, config)
        same = data is None and not any(text.lstrip().startswith(("data.", "model.")) for text in sets)
        return TargetSpec(origin.name(1), config, run, data is None, has_data=True, origin=origin, as_trained=same)
    is_demo = target == "demo"
    adapter_parts(resolve_path(target), ModelConfig(name=target))  # what is not there is said at once
    # Some method must stand in the configuration; only its model, data and eval sections are read.
    model = None if is_demo else target
    config = settings.resolve(method="sft", model=model, data=data, eval_data=data, sets=sets).config
    own = is_demo and data is None
    above = next((place for place in path.absolute().parents[:2] if (place / "run.json").is_file()), None)
    of_run = path.exists() and above is not None and (above / "run.yaml").is_file()  # RUN/model, RUN/checkpoints/N
    trained = settings.resolve(RunDir.open(above).config, resume=True).config if of_run and above else config
    _settle_precision(config, trained, sets)
    origin = _origin(target, config)
    return TargetSpec(origin.name(1), config, None, own_data=own, has_data=own or data is not None, origin=origin)


def _settle_precision(config: RunConfig, trained: RunConfig, sets: Sequence[str]) -> None:
    """Score in the precision of the run ``trained``; where there is none, or a dtype is set, as a new run would."""
    given = {text.partition("=")[0].strip() for text in sets}
    if "model.head" not in given:
        config.model = config.model.model_copy(update={"head": trained.model.head})
    if "model.dtype" not in given:
        config.model = config.model.model_copy(update={"dtype": trained.model.dtype})
        products = {key: trained.train.arguments.get(key) for key in ("bf16", "fp16")}
    else:
        products = {"bf16": None, "fp16": None}
    config.train = plainly_scored(config.train, **products)
    if settle := provided("align.models", "settle"):
        settle(config)


def plainly_scored(train: TrainConfig, **products: bool | None) -> TrainConfig:
    """Return ``train`` for a model that is only scored, with the types ``products``: layers neither compiled nor exchanged."""
    return train.model_copy(update={**products, **dict.fromkeys(_OF_TRAINING)})


def _origin(target: str, config: RunConfig) -> Origin:
    """Return what a target is: the demo, a directory, or a hub id with its revision."""
    path = Path(target).expanduser()
    if target == "demo":
        return Origin("demo", ("demo",))
    if not path.exists():
        revision = f"@{config.model.revision}" if config.model.revision else ""
        return Origin(f"{target}{revision}", tuple(reversed(f"{target}{revision}".split("/"))))
    named = Path(os.path.normpath(Path.cwd() / path))  # not resolved: a symbolic link keeps its own name
    return Origin(
        str(path.resolve()), tuple(part for part in reversed(named.parts) if part != named.anchor) or ("root",)
    )


_UNREAD = {
    "data.split": "name a split with data.eval_split",
    "data.limit": "data.eval_limit takes the first rows",
    **dict.fromkeys(("data.source", "data.sources", "data.eval_source"), "name the rows with --data"),
    **dict.fromkeys(("data.folds", "data.fold"), "leave it out"),
}
"""Keys about the rows of a run -> what to do where every row of other data is evaluated."""


def _refuse_unread(sets: Sequence[str]) -> None:
    """Raise ``ConfigError`` for a key of which nothing would be read beside ``--data``."""
    for key, _, value in (text.partition("=") for text in sets):
        share = key.strip() == "data.eval_split" and value.strip().replace(".", "", 1).isdigit()
        if advice := "leave it out" if share else _UNREAD.get(key.strip()):
            raise ConfigError(
                f"--set {key}={value} has no effect with --data, of which every row is evaluated: {advice}"
            )


def _for_other_data(config: DataConfig, sets: Sequence[str]) -> DataConfig:
    """Return a run's data section for a source it was not written for: what describes the old one goes, unless it was set."""
    given = {text.partition("=")[0].split(".")[1] for text in sets if text.startswith("data.")}
    names = {"subset", "eval_split", "folds", "fold", "delimiter", "columns", "eval_limit", "max_dropped"} - given
    return config.model_copy(update={name: getattr(DataConfig(), name) for name in names})


def built(source: TargetSpec, *, meta: bool = False) -> LoadedModel:
    """Load a target's model and tokenizer; ``meta``: without weights. Raises ``ModelError``."""
    base = registry.open_engine(source.config).base(source.config)
    model = base.model.model_copy(update={"lora": None, "dropout": False})
    if source.run is not None:
        if not source.run.model.is_dir():
            raise ModelError(f"{source.run.path} holds no trained model (its status is {source.run.status})")
        model = model.model_copy(update={"name": str(source.run.path), "tokenizer": None, "chat_template": None})
    whole = adapter_parts(resolve_path(model.name), model)[1] is None
    if model.dtype == "auto" and whole and source.config.train.arguments.get("bf16"):
        model = model.model_copy(update={"dtype": "checkpoint"})  # no weights are trained
    return build_model(model, meta=meta)


def open_target(source: TargetSpec) -> tuple[Subject, Subject | None]:
    """Load a target's model and tokenizer, and find its held-out rows; raises ``ModelError`` and ``DataError``.

    Returns the target, and the start model of the run it came from (loaded when first used).
    """
    config = source.config
    loaded = built(source)
    policy = _policy(loaded, config)
    subject = Subject(
        name=source.name,
        policy=policy,
        tokenizer=loaded.tokenizer,
        held_out=held_out_rows(source, loaded.tokenizer, position_limit(loaded.model)),
        weights=loaded.fingerprint,
        rules=data_rules(config.data),
        scored_by=scored_by(policy, config.model),
    )
    if source.run is None:
        return subject, None
    recorded = source.run.read_record().get("model", {})
    # A run that trained a reward model started from a classifier with a new head, initialized with the run's seed.
    classifier = is_classifier(str(source.run.model))
    start = LazyPolicy(lambda: _start_policy(source, recorded, classifier), classifier=classifier)
    subject = replace(subject, start_weights=recorded.get("hash"), start_policy=lambda: start)
    name = f"start model of {source.name}"
    return subject, replace(subject, name=name, policy=start, weights=recorded.get("hash"))


def _start_policy(source: TargetSpec, recorded: Mapping[str, Any], classifier: bool) -> Policy:
    import torch

    config = registry.open_engine(source.config).base(source.config)
    build = build_classifier if classifier else build_model
    found, model = recorded.get("path"), config.model
    if found is not None and Path(found).is_dir():  # where it was found then, whatever directory we are in now
        model = model.model_copy(update={"name": found})
    own = source.run.read_record().get("config", {}).get("model", {}) if source.run else {}
    loaded = build(model.model_copy(update={"dtype": own.get("dtype", model.dtype)}), seed=config.run.seed)
    if loaded.fingerprint != recorded.get("hash"):
        raise ModelError(
            f"the start model {config.model.name} of {source.name} has changed since the run: what compares with it "
            "cannot be evaluated"
        )
    if model.dtype != own.get("dtype") and (dtype := getattr(torch, model.dtype, None)) is not None:
        loaded.model.to(dtype)
    return _policy(loaded, source.config)


def _policy(loaded: LoadedModel, config: RunConfig) -> RunPolicy:
    from alignkit.scoring.classifier import policy_of

    loaded.model.eval()
    return policy_of(loaded, config, _device())


def join() -> None:
    """Make the process group of a command that has no trainer to make it, and choose this process's accelerator."""
    import torch
    import torch.distributed as dist

    if world_size() > 1 and not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        dist.init_process_group()


def _device() -> torch.device:
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def held_out_rows(source: TargetSpec, tokenizer: PreTrainedTokenizerBase, limit: int | None = None) -> HeldOut:
    """Return the rows a target is evaluated on, tokenised with its tokenizer; ``limit`` is its model's positions."""

    def no_rows(kind: RowKind, _whole: bool) -> Any:
        raise NoRowsError(f"there are no {kind} rows: name a source with --data")

    if not source.has_data:
        return HeldOut(no_rows)
    if source.own_data and source.run is not None:
        # Which rows are held out follows from the method's row kind.
        return run_data(source.config, tokenizer, limit).held_out
    return held_out_data(source.config, tokenizer, limit)


class LazyPolicy:
    """A policy whose model is loaded when it is first used: a cached evaluation never needs it."""

    def __init__(self, load: Callable[[], Policy], *, classifier: bool = False) -> None:
        self.classifier = classifier
        self._policy = cache(load)

    @property
    def model(self) -> Any:
        return self._policy().model

    def score(self, examples: Sequence[Example], **wanted: Any) -> Scores:
        return self._policy().score(examples, **wanted)
