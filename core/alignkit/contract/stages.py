"""The types of stage plugins (``align.stages``), of which pipelines are made."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal

from pydantic import BaseModel

from alignkit.config import RunConfig
from alignkit.contract.types import SettingsT


@dataclass(frozen=True)
class StageContext:
    """What a stage knows of the pipeline that it is part of."""

    name: str
    place: str
    """Location in the pipeline's file (file:line), for messages."""
    values: Mapping[str, Any]
    """Its mapping in the file."""
    directory: Path
    """Directory of its results; those of other stages lie beside it."""
    earlier: Mapping[str, Stage[Any]]
    """The stages before it, by name."""
    configure: Callable[[Mapping[str, Any]], RunConfig]
    """Returns the configuration of a run: the sections given, over those that the file has for all stages."""


class Stage(ABC, Generic[SettingsT]):
    """Base of a stage of pipelines, registered in ``align.stages``; it must be picklable.

    A pipeline's file names it with ``stage: NAME`` beside its settings. A setting ``stage:OTHER`` or ``stage:OTHER/FILE`` becomes
    the path of that earlier stage's results, which this one then depends on.
    """

    name: ClassVar[str]
    settings_type: ClassVar[type[BaseModel]]
    inputs: ClassVar[Mapping[str, Sequence[str]]] = {}
    """Settings that name earlier stages without ``stage:``, and the kinds of stages that they may name (none: any)."""
    outputs: ClassVar[Sequence[str]] = ()
    """Files and directories that its results contain (checked)."""
    leftovers: ClassVar[Literal["removed", "resumed", "own"]] = "removed"
    """What an interrupted attempt wrote is removed, or given to :meth:`run` again; own: :meth:`run` is given the directory itself."""

    def __init__(self, settings: SettingsT, context: StageContext) -> None:
        self.settings, self.context = settings, context

    def check(self) -> None:
        """Raise ``ConfigError`` for what can be known to fail, before any stage starts: earlier stages may have no results yet."""

    def identity(self) -> Any:
        """Return what its results depend on (None: its settings and the files they name); where it changed, they are not kept."""

    @abstractmethod
    def run(self, directory: Path) -> None:
        """Write the results to ``directory``, which is renamed to the stage's own once complete; maybe on another machine."""

    def finished(self, say: Callable[[str], None]) -> Any:
        """Return what the pipeline's report shows of the results (None: nothing), each time that the pipeline is run."""
