"""Targets of ``align eval``: a run, a model or adapter directory, a hub id, or the demo."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit import Example, Policy, RunConfig, Scores, settings
from alignkit.config import DataConfig, ModelConfig
from alignkit.contract.model import LoadedModel
from alignkit.data.load import HeldOut
from alignkit.errors import ModelError, NoRowsError
from alignkit.models.load import build_classifier, build_model
from alignkit.models.paths import is_classifier
from alignkit.rundir.directory import RunDir
from alignkit.runs.data import held_out_data, run_data
from alignkit.runs.evaluation import Subject, data_rules

if TYPE_CHECKING:
    from alignkit.contract.types import RowKind
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TargetSpec:
    """A target by name: where it is, and the configuration it is evaluated under."""

    name: str
    config: RunConfig
    run: RunDir | None
    own_data: bool
    """Whether it is evaluated on the data it came with: a run's held-out rows, the demo's."""
    has_data: bool


@dataclass(frozen=True)
class OpenTarget:
    """A target with its model loaded, and the start model of the run it came from (loaded when first used)."""

    source: TargetSpec
    subject: Subject
    start: Subject | None


def find_target(target: str, *, data: str | None = None, sets: Sequence[str] = ()) -> TargetSpec:
    """Return what ``target`` names and how it is evaluated; nothing is loaded.

    Args:
        target: a run directory, a model or adapter directory, a hub id, or ``demo``.
        data: rows to evaluate on, in place of what the target came with.
        sets: further ``key=value`` texts, as ``--set`` takes them.

    Raises:
        ConfigError: the run or a key cannot be used.
    """
    path = Path(target).expanduser()
    if (path / "run.json").is_file():
        run = RunDir.open(path)
        config = settings.resolve(run.config, eval_data=data, sets=sets, resume=True).config
        if data is not None:
            config.data = _for_other_data(config.data, sets)
        return TargetSpec(path.resolve().name, config, run, own_data=data is None, has_data=True)
    is_demo = target == "demo"
    # Some method must stand in the configuration; only its model, data and eval sections are read.
    model = None if is_demo else target
    config = settings.resolve(method="sft", model=model, data=data, eval_data=data, sets=sets).config
    own = is_demo and data is None
    return TargetSpec(
        "demo" if is_demo else path.name or target, config, None, own_data=own, has_data=own or data is not None
    )


def _for_other_data(config: DataConfig, sets: Sequence[str]) -> DataConfig:
    """Return a run's data section for a source it was not written for: what describes the old one goes, unless it was set."""
    given = {text.partition("=")[0].split(".")[1] for text in sets if text.startswith("data.")}
    fresh = DataConfig()
    names = {"subset", "eval_split", "columns", "eval_limit", "max_dropped"} - given
    return config.model_copy(update={name: getattr(fresh, name) for name in names})


def open_target(source: TargetSpec) -> OpenTarget:
    """Load a target's model and tokenizer, and find its held-out rows; raises ``ModelError`` and ``DataError``."""
    config = source.config
    model = config.model.model_copy(update={"lora": None, "dropout": False})
    if source.run is not None:
        if not source.run.model.is_dir():
            raise ModelError(f"{source.run.path} holds no trained model (its status is {source.run.status})")
        model = model.model_copy(update={"name": str(source.run.path), "tokenizer": None, "chat_template": None})
    loaded = build_model(model)
    held_out = held_out_rows(source, loaded.tokenizer)
    subject = Subject(
        name=source.name,
        policy=_policy(loaded, config.model),
        tokenizer=loaded.tokenizer,
        held_out=held_out,
        weights=loaded.fingerprint,
        rules=data_rules(config.data),
    )
    return OpenTarget(source, *_with_start(source, subject))


def _with_start(source: TargetSpec, subject: Subject) -> tuple[Subject, Subject | None]:
    """Tell a run's subject of its start model, and return that one as a subject as well."""
    from dataclasses import replace

    if source.run is None:
        return subject, None
    expected = source.run.read_record().get("model", {}).get("hash")
    policy = LazyPolicy(lambda: _start_policy(source, expected), classifier=_trained_classifier(source))
    subject = replace(subject, start_weights=expected, start_policy=lambda: policy)
    start = replace(subject, name=f"start model of {source.name}", policy=policy, weights=expected)
    return subject, start


def _trained_classifier(source: TargetSpec) -> bool:
    """Whether a run trained a reward model: its start model was a classifier with a new head, drawn by the run's seed."""
    return source.run is not None and is_classifier(str(source.run.model))


def _start_policy(source: TargetSpec, expected: str | None) -> Policy:
    config = source.config
    build = build_classifier if _trained_classifier(source) else build_model
    model = config.model
    found = None if source.run is None else source.run.read_record().get("model", {}).get("path")
    if found is not None and Path(found).is_dir():  # where it was found then, whatever directory we are in now
        model = model.model_copy(update={"name": found})
    loaded = build(model, seed=config.run.seed)
    if loaded.fingerprint != expected:
        raise ModelError(
            f"the start model {config.model.name} of {source.name} has changed since the run: what compares with it "
            "cannot be evaluated"
        )
    return _policy(loaded, config.model)


def _policy(loaded: LoadedModel, config: ModelConfig) -> Policy:
    import torch
    from alignkit.scoring.classifier import policy_of

    loaded.model.eval()
    return policy_of(loaded, config, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def held_out_rows(source: TargetSpec, tokenizer: PreTrainedTokenizerBase) -> HeldOut:
    """Return the rows a target is evaluated on, tokenised with its tokenizer."""
    if not source.has_data:
        return HeldOut(_no_rows)
    if source.own_data and source.run is not None:
        return run_data(source.config, tokenizer).held_out  # which rows are held out follows from the method's row kind
    return held_out_data(source.config, tokenizer)


def _no_rows(kind: RowKind) -> Any:
    raise NoRowsError(f"there are no {kind} rows: name a source with --data")


class LazyPolicy:
    """A policy whose model is loaded when it is first used: a cached evaluation never needs it."""

    def __init__(self, load: Callable[[], Policy], *, classifier: bool = False) -> None:
        self.classifier = classifier
        self._load = load
        self._policy: Policy | None = None

    @property
    def _loaded(self) -> Policy:
        if self._policy is None:
            self._policy = self._load()
        return self._policy

    @property
    def model(self) -> Any:
        """The model."""
        return self._loaded.model

    def score(self, examples: Sequence[Example], **wanted: Any) -> Scores:
        """Score every completion of ``examples``."""
        return self._loaded.score(examples, **wanted)
