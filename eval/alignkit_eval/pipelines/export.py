"""The stage that exports the model of an earlier stage, or of several combined."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from alignkit import Stage, StageContext
from alignkit.config import Words, split_words
from alignkit.errors import ConfigError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from alignkit_eval.export import export
from alignkit_eval.merging import MergeMethod, Merging

_AT_COMMAS = BeforeValidator(split_words, json_schema_input_type=list[float] | str)


class ExportSettings(BaseModel):
    """What is exported, and how several models are combined."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, strict=True)

    export: Words = Field(description="training stage whose model is exported")
    merge: Words = Field([], description="training stages whose weights are combined with it")
    weights: Annotated[list[Annotated[float, Field(strict=False)]], _AT_COMMAS] | None = Field(
        None, description="factors of the models (default: equal for the mean, else 1 each)"
    )
    merge_method: MergeMethod = Field("mean", description="how several models are combined")
    density: float | None = Field(None, description="share of the changes that ties and dare keep")
    seed: int | None = Field(None, description="random seed of dare")


class ExportStage(Stage[ExportSettings]):
    """A stock model directory, checked against the run that it was made from."""

    name = "export"
    settings_type = ExportSettings
    inputs = {"export": ("train",), "merge": ("train",)}
    outputs = ("config.json",)

    def __init__(self, settings: ExportSettings, context: StageContext) -> None:
        super().__init__(settings, context)
        if not self._models():
            raise ConfigError(f"{context.place}: export of stage {context.name} names no stage")
        try:
            self._merging().factors(len(self._models()))
        except ConfigError as error:
            raise ConfigError(f"{context.place}: stage {context.name}: {error}") from error

    def identity(self) -> dict[str, object]:
        """Return the settings as written."""
        return dict(self.context.values)

    def run(self, directory: Path) -> None:
        """Export the model."""
        export(self._models(), directory, self._merging())

    def _models(self) -> list[Path]:
        return [self.context.directory.parent / name for name in (*self.settings.export, *self.settings.merge)]

    def _merging(self) -> Merging:
        own = {key: value for key in ("density", "seed") if (value := getattr(self.settings, key)) is not None}
        return Merging(self.settings.merge_method, self.settings.weights, **own)
