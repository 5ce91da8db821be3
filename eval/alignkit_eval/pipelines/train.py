"""The stage that trains: a run, from the file's sections or from the model of an earlier stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from alignkit import RunConfig, Stage, StageContext, settings
from alignkit.config import SHORTHANDS
from alignkit.errors import ConfigError
from alignkit.rundir.directory import RunDir
from alignkit.settings.layers import SECTIONS
from alignkit.system.files import digest
from pydantic import BaseModel, ConfigDict, Field

from alignkit_eval.pipelines.export import ExportStage
from alignkit_eval.pipelines.inputs import inputs_digest, named_files
from alignkit_eval.pipelines.stages import references
from alignkit_eval.report import run_report
from alignkit_eval.report.planned import plan_without_data, plan_without_weights
from alignkit_eval.scheduling.work import train


class TrainSettings(BaseModel):
    """The sections of a run's configuration, over those that all stages share, and the stage to start from."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    start: str | None = Field(None, alias="from", description="stage whose model this one starts from")
    method: Any = Field(None, description="method, with its settings")
    model: Any = Field(None, description="section model")
    data: Any = Field(None, description="section data")
    train: Any = Field(None, description="section train")
    eval: Any = Field(None, description="section eval")
    compare: Any = Field(None, description="section compare")
    run: Any = Field(None, description="section run")


class TrainStage(Stage[TrainSettings]):
    """A training run in the stage's directory; an interrupted one is resumed from its last checkpoint."""

    name = "train"
    settings_type = TrainSettings
    inputs = {"from": ("train", "export")}
    outputs = ("model",)
    leftovers = "own"

    def __init__(self, settings: TrainSettings, context: StageContext) -> None:
        super().__init__(settings, context)
        given = {key: getattr(settings, key) for key in SECTIONS if key in settings.model_fields_set}
        model = given.get("model")
        if settings.start is not None and (isinstance(model, str) or (isinstance(model, dict) and "name" in model)):
            raise ConfigError(f"{context.place}: stage {context.name} has both from and model.name")
        self.sections: Mapping[str, Any] = given
        self._planned = context.configure(given)

    def config(self) -> RunConfig:
        """Return the run's configuration, starting from the model of the stage that it names."""
        sections = dict(self.sections)
        if self.settings.start is not None:
            start = {SHORTHANDS["model"]: str(self.context.directory.parent / self.settings.start)}
            sections["model"] = {**(sections.get("model") or {}), **start}
        return self.context.configure(sections)

    def planned(self) -> RunConfig:
        """Return the configuration with the start model of the first stage before it, which has the same tokenizer."""
        config = self._planned.model_copy(deep=True)
        start = self.settings.start
        if start is None:
            return config
        above, merged = self.context.earlier[start], False
        while isinstance(above, ExportStage):
            above, merged = above.context.earlier[above.settings.export[0]], True
        assert isinstance(above, TrainStage)
        first = above.planned().model
        if config.model.lora is not None and first.lora is not None and not merged:
            raise ConfigError(
                f"{self.context.place}: stage {self.context.name} has model.lora, and {start} trains an adapter already: "
                "remove model.lora, or start from an export of it"
            )
        own = {
            key: value for key in ("tokenizer", "chat_template") if (value := getattr(config.model, key)) is not None
        }
        lora = {"lora": config.model.lora or (None if merged else first.lora)}
        config.model = first.model_copy(update=lora | own)
        return config

    def check(self) -> None:
        """Plan the run without weights; without data and model where an earlier stage will write them."""
        config, rewards = self.planned(), not any(references(self.context.values))
        names = [*(part.source for part in config.data.parts), config.data.eval_source or "", config.model.name]
        root = self.context.directory.parent.resolve()
        coming = [path for path in map(Path, names) if path.resolve().is_relative_to(root) and not path.exists()]
        if coming:
            plan_without_data(config, rewards=rewards, model=Path(config.model.name) not in coming)
        else:
            plan_without_weights(config, rewards=rewards)

    def identity(self) -> str:
        """Return the configuration and the content of its data and start model; independent of the pipeline's place."""
        config, root = self.config(), self.context.directory.parent
        config.run.output = config.run.name = "."
        named = named_files([config.method.settings, config.eval.settings], root)  # a teacher, rewards, a checker
        inputs = inputs_digest(config, root) + (digest(named) if named else "")
        return inputs + settings.dump(config).replace(str(root), ".")

    def run(self, directory: Path) -> None:
        """Train in ``directory``, or resume what an earlier attempt left; a finished run is kept."""
        config, run = self.config(), RunDir(directory)
        resumable = run.record.is_file() and any(run.checkpoints.glob("checkpoint-*"))
        train(config, directory if resumable or run.status == "finished" else None, quiet=False)
        if config.run.plots:
            run_report(run.path)
