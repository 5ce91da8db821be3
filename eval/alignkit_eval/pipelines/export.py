"""The stage that exports the model of an earlier stage, or of several combined."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from alignkit import Stage, StageContext
from alignkit.config import Words, split_words
from alignkit.errors import ConfigError
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from alignkit_eval.export import export
from alignkit_eval.gguf import export_gguf, require_converter
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
    format: Literal["hf", "gguf", "ollama"] = Field("hf", description="for transformers, llama.cpp or Ollama")
    dtype: Literal["auto", "float32", "float16", "bfloat16", "q8_0"] = Field("auto", description="type of the weights")


class ExportStage(Stage[ExportSettings]):
    """A stock model directory, checked against the run that it was made from."""

    name = "export"
    settings_type = ExportSettings
    inputs = {"export": ("train",), "merge": ("train",)}

    def __init__(self, settings: ExportSettings, context: StageContext) -> None:
        super().__init__(settings, context)
        if not self._models():
            raise ConfigError(f"{context.place}: export of stage {context.name} names no stage")
        try:
            self._merging().factors(len(self._models()))
        except ConfigError as error:
            raise ConfigError(f"{context.place}: stage {context.name}: {error}") from error

    def check(self) -> None:
        """Refuse a format whose converter is missing."""
        if self.settings.format != "hf":
            require_converter()
        elif self.settings.dtype == "q8_0":
            raise ConfigError(
                f"{self.context.place}: dtype q8_0 of stage {self.context.name} is for format gguf or ollama"
            )

    def identity(self) -> dict[str, object]:
        """Return the settings as written."""
        return dict(self.context.values)

    def run(self, directory: Path) -> None:
        """Export the model."""
        if self.settings.format == "hf":
            export(self._models(), directory, self._merging(), self.settings.dtype)
            return
        ollama = self.settings.format == "ollama"
        export_gguf(self._models(), directory, self._merging(), self.settings.dtype, ollama=ollama, say=print)

    def _models(self) -> list[Path]:
        return [self.context.directory.parent / name for name in (*self.settings.export, *self.settings.merge)]

    def _merging(self) -> Merging:
        own = {key: value for key in ("density", "seed") if (value := getattr(self.settings, key)) is not None}
        return Merging(self.settings.merge_method, self.settings.weights, **own)
