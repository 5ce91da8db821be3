"""The typed record of a run, read from run.json."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from alignkit.contract import Estimate
from alignkit.errors import AlignError, CheckpointError


def stored_estimate(entry: Any) -> Any:
    """Return the :class:`Estimate` stored as ``{value, low, high}`` (null stands for NaN); anything else unchanged."""
    if not isinstance(entry, Mapping):
        return entry
    value = entry.get("value")
    return Estimate(math.nan if value is None else value, entry.get("low"), entry.get("high"))


StoredEstimates = dict[str, Annotated[Estimate, BeforeValidator(stored_estimate)]]
Metrics = dict[str, StoredEstimates]
"""Metrics by suite and name."""

ModelT = TypeVar("ModelT", bound=BaseModel)


def validated(model: type[ModelT], values: Any, file: Path, error: type[AlignError], *, strict: bool = False) -> ModelT:
    """Return the typed form of a file's content; raises ``error`` naming ``file`` and the key that is wrong."""
    try:
        return model.model_validate(values, strict=strict)
    except ValidationError as cause:
        first = cause.errors()[0]
        key = "".join(f"{part}." for part in first["loc"]).rstrip(".")
        wrong = f"{first['msg'][0].lower()}{first['msg'][1:]}"
        raise error(f"{file}: {f'{key}: ' if key else ''}{wrong} (the file was damaged or edited)") from None


class _Record(BaseModel):
    """Immutable; keys written by other versions are ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class ModelRecord(_Record):
    """The start model, and how much of it was trained."""

    name: str
    """As configured: a hub id, a directory or ``demo``."""
    path: str = ""
    """Where it was loaded from: a hub id or an absolute path."""
    hash: str = ""
    parameters: int = 0
    trainable: int = 0
    adapter: bool = False
    scorer: str = ""

    @property
    def is_hub_id(self) -> bool:
        """Whether the model came from the hub: a local name resolves to an absolute path."""
        return self.path == self.name and not Path(self.name).is_absolute()

    @property
    def is_classifier(self) -> bool:
        """Whether it is a reward model."""
        return self.scorer == "classifier"


class RowsRecord(_Record):
    """Size of the training or held-out rows."""

    rows: int = 0
    clusters: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class DataRecord(_Record):
    """The rows, and the SHA-256 of all of them."""

    hash: str = ""
    train: RowsRecord = RowsRecord()
    eval: RowsRecord = RowsRecord()


class EnvironmentRecord(_Record):
    versions: dict[str, str] = {}
    hardware: dict[str, Any] = {}


class EvaluationRecord(_Record):
    before: Metrics = {}
    after: Metrics = {}


class TrainRecord(_Record):
    """The outcome of training; None where it was not measured."""

    loss: float | None = None
    tokens: int | None = None
    tokens_per_second: float | None = None
    tokens_per_second_per_device: float | None = None
    seconds: float | None = None
    memory_gb: float | None = None
    flops: float | None = None


class ProcessesRecord(_Record):
    """The processes that trained, with the device and the peak memory (GiB) of every rank."""

    world_size: int = 1
    nodes: int = 1
    strategy: str = "none"
    devices: list[str] = []
    peak_memory_gb: list[float] = []

    def __str__(self) -> str:
        many = f"{self.world_size} process{'es' * (self.world_size > 1)} on {self.nodes} node{'s' * (self.nodes > 1)}"
        devices = ", ".join(f"{count} x {name}" for name, count in Counter(self.devices).items())
        return f"{many}, strategy {self.strategy}, devices {devices or 'unknown'}"


class BestRecord(_Record):
    """The best evaluation by the watched metric, and whether the saved model is the one of its step."""

    metric: str
    value: float | None = None
    step: int
    saved: bool = False


class ChangeRecord(_Record):
    """A setting that was changed when the run was resumed."""

    step: int
    key: str
    before: Any = Field(None, alias="from")
    after: Any = Field(None, alias="to")


class RunRecord(_Record):
    """Everything that readers of run.json use."""

    status: str
    method: str
    paper: str = ""
    conventions: dict[str, Any] = {}
    """The method's settings and loss conventions."""
    config: dict[str, dict[str, Any]] = {}
    seed: int = 0
    model: ModelRecord
    data: DataRecord = DataRecord()
    environment: EnvironmentRecord = EnvironmentRecord()
    processes: ProcessesRecord = ProcessesRecord()
    evaluation: EvaluationRecord = EvaluationRecord()
    steps: int | None = None
    train: TrainRecord = TrainRecord()
    best: BestRecord | None = None
    stopped: str | None = None
    """Why training was stopped early."""
    changes: list[ChangeRecord] = []
    """Settings changed by a resume; ``config`` has the last values."""
    started: float = 0
    seconds: float = 0
    timings: dict[str, dict[str, float]] = {}
    error: str | None = None

    @classmethod
    def check(cls, record: dict[str, Any], file: Path) -> None:
        """Raise :class:`CheckpointError` if a value has a wrong type; any key may be missing, as while a run starts."""
        cls.parse({"status": "", "method": "", "model": {"name": ""}} | record, file)

    @classmethod
    def parse(cls, record: Mapping[str, Any], file: Path) -> RunRecord:
        """Return the typed form of a record; raises :class:`CheckpointError` naming ``file`` and the key that is wrong."""
        return validated(cls, record, file, CheckpointError, strict=True)
