"""The configuration of a run: one pydantic model a section. Reading, merging and writing it is in ``alignkit.settings``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _split_words(value: Any) -> Any:
    """Split ``"prefs, perplexity"``, as a command line gives a list."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Words = Annotated[list[str], BeforeValidator(_split_words)]
"""A list of words, also written as one text with commas."""


class Section(BaseModel):
    """A section of the configuration: unknown keys are refused, numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_assignment=True, validate_default=True)


class MethodConfig(BaseModel):
    """Which method, and its own settings (validated by the method when it is loaded)."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    name: str = Field(description="name of an installed method, or distribution:name where two offer the same name")

    @property
    def settings(self) -> dict[str, Any]:
        """The method's settings as given."""
        return dict(self.__pydantic_extra__ or {})


class LoraConfig(Section):
    """Low-rank adapters (arXiv:2106.09685), trained by peft. Every other key of ``peft.LoraConfig`` goes to ``options``."""

    r: int = Field(16, ge=1, description="rank")
    alpha: float = Field(32, gt=0, description="scaling numerator: the update is multiplied by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapter's input")
    target_modules: list[str] | str = Field("all-linear", description="modules to adapt, as peft takes them")
    dora: bool = Field(False, description="weight-decomposed adapters (arXiv:2402.09353)")
    modules_to_save: Words | None = Field(None, description="modules trained in full beside the adapter")
    options: dict[str, Any] = Field(default_factory=dict, description="any other key of peft.LoraConfig")


class ModelConfig(Section):
    """The model that is trained."""

    name: str = Field("demo", description="model or adapter directory, hub id, run directory, or demo")
    revision: str | None = Field(None, description="hub revision")
    tokenizer: str | None = Field(None, description="tokenizer directory or hub id (default: the model's own)")
    chat_template: str | None = Field(None, description="Jinja chat template, or a file that holds one")
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32", description="dtype the weights train in"
    )
    quantization: Literal["8bit", "4bit"] | None = Field(None, description="load the base in 8 or 4 bits (needs lora)")
    lora: LoraConfig | None = Field(None, description="train a low-rank adapter in place of all weights")
    dropout: bool = Field(False, description="keep the model's own dropout on while training")
    scorer: Literal["auto", "packed", "rows", "padded", "plain"] = Field("auto", description="scoring backend")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


class DataConfig(Section):
    """The data."""

    source: str = Field("demo", description="file, saved data set directory, hub id, or demo")
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str | None = Field(None, description="split of the source to train on (default: train)")
    eval_source: str | None = Field(None, description="a second source, held out")
    eval_split: str | float = Field(0.1, description="split name, or share of the training source held out")
    columns: dict[str, str] = Field(default_factory=dict, description="ours: theirs, e.g. {prompt: instruction}")
    max_length: int = Field(1024, ge=2, description="tokens of prompt and completion; the prompt loses its left first")
    append_eos: bool = Field(True, description="end every completion with the end token where it has none")
    cache: bool = Field(True, description="keep tokenised rows on disk, so that they are tokenised once")
    max_dropped: float = Field(0.02, ge=0, le=1, description="share of rows that may be unusable before it is an error")
    limit: int | None = Field(None, ge=1, description="use only the first rows of the source")
    eval_limit: int | None = Field(None, ge=1, description="use only the first held-out rows")


class TrainConfig(BaseModel):
    """Any key of ``transformers.TrainingArguments``, and the engine's own."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    tokens_per_micro_batch: int = Field(8192, ge=1, description="tokens computed at once; the rest of the step follows")
    early_stopping_patience: int | None = Field(
        None, ge=1, description="evaluations without improvement before it ends"
    )

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that go to ``transformers.TrainingArguments``."""
        return dict(self.__pydantic_extra__ or {})


class EvalConfig(Section):
    """What is measured before and after training."""

    suites: Words = Field(default_factory=lambda: ["prefs", "perplexity"], description="evaluation suites")
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict, description="settings by suite")
    during: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="suites to run while training: every how many steps, e.g. {prefs: 50}"
    )
    before: bool = Field(True, description="evaluate the start model as well")
    samples: int = Field(4, ge=0, description="prompts to answer before and after training")
    sample_tokens: int = Field(64, ge=1, description="longest sample, in tokens")


class RunSection(Section):
    """Where the run goes and what watches it."""

    output: str = Field("runs", description="parent of the run directory")
    name: str | None = Field(None, description="name of the run directory (default: made from the method)")
    seed: int = Field(0, ge=0, description="seed of data order, adapter initialisation and dropout")
    services: Words = Field(default_factory=list, description="service plugins to switch on")
    plots: bool = Field(True, description="draw plots/*.png and write report.html at the end")


class RunConfig(Section):
    """The whole configuration: ``RunConfig(method="orpo", model="path", data="prefs.jsonl", train={...})``."""

    method: MethodConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    run: RunSection = Field(default_factory=RunSection)

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, value: Any) -> Any:
        """``method: orpo``, ``model: PATH`` and ``data: FILE`` stand for the section with only its name."""
        if isinstance(value, dict):
            value = dict(value)
            for section, key in (("method", "name"), ("model", "name"), ("data", "source")):
                if isinstance(value.get(section), str):
                    value[section] = {key: value[section]}
        return value
