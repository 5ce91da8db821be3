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
        return dict(self.model_extra or {})


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
    chat_template: str | None = Field(
        None, description="Jinja chat template, a file that holds one, or a name: chatml, zephyr, vicuna, alpaca, plain"
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "float32", description="dtype the weights train in"
    )
    quantization: Literal["8bit", "4bit"] | None = Field(None, description="load the base in 8 or 4 bits (needs lora)")
    lora: LoraConfig | None = Field(None, description="train a low-rank adapter in place of all weights")
    dropout: bool = Field(False, description="keep the model's own dropout on while training")
    scorer: Literal["auto", "packed", "rows", "padded", "plain"] = Field("auto", description="scoring backend")
    trust_remote_code: bool = Field(False, description="run code that comes with the model")


class Reading(Section):
    """How the rows of one source are read."""

    source: str = Field(
        "demo", description="file, URL, saved data set directory, hub id, or demo (https, s3 and hf URLs by datasets)"
    )
    subset: str | None = Field(None, description="configuration name of a hub data set")
    split: str | None = Field(None, description="split of the source to train on (default: train)")
    limit: int | None = Field(None, ge=1, description="use only the first rows of the source")
    streaming: bool = Field(
        False, description="read a hub data set or URL as a stream, in place of downloading it whole"
    )
    columns: dict[str, str] = Field(default_factory=dict, description="ours: theirs, e.g. {prompt: instruction}")
    template: dict[str, str] = Field(
        default_factory=dict, description="columns made from others by Jinja, e.g. {prompt: 'Q: {{ question }}'}"
    )
    pairs: Literal["best_worst", "all"] | None = Field(
        None, description="pairs made of several answers to a prompt: the best with the worst, or every two that differ"
    )


class SourceConfig(Reading):
    """One of several sources."""

    name: str | None = Field(None, description="name of the source (default: its file name)")
    weight: float | None = Field(
        None, gt=0, description="share of the training rows, relative to the other sources' (all have one, or none)"
    )
    repeat: float = Field(
        1.0, gt=0, description="how often an epoch passes over its rows: 2 up-samples, 0.5 down-samples"
    )

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        """A text stands for the source of that name."""
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of_both(self) -> SourceConfig:
        if self.weight is not None and self.repeat != 1:
            raise ValueError("weight and repeat both say how many rows the source gives: set one of them")
        return self


class CurriculumConfig(Section):
    """Easy rows before hard ones."""

    by: str = Field(
        description="length (tokens of a row), margin (how sure the start model is of the chosen answer), or a column of numbers"
    )
    descending: bool = Field(
        False, description="hard before easy: the longest, the smallest margin, the largest number first"
    )
    buckets: int | None = Field(
        None, ge=1, description="rows are shuffled within so many levels (default: strictly sorted)"
    )
    epochs: int | None = Field(None, ge=1, description="epochs that are ordered; the rest is shuffled (default: all)")


class PhaseConfig(Section):
    """A part of training with a mix of its own."""

    until: float = Field(gt=0, le=1, description="share of the training steps at which the phase ends")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(
        description="sources (or values of data.group_by) and their shares; what is not named is left out"
    )


class CheckConfig(Section):
    """What is looked for in the training rows, by ``align data check`` and before training."""

    enabled: bool = Field(True, description="look at the training rows before training")
    rows: int = Field(
        20_000, ge=1, description="look at so many rows, evenly drawn where there are more, before training"
    )
    near: float = Field(
        0.8, gt=0, le=1, description="share of runs of three words two texts must share to be nearly the same"
    )
    min_words: int = Field(0, ge=0, description="fewest words of a prompt or an answer (0: any number)")
    script: str | None = Field(
        None, description="script the text is to be in, as Unicode names it: Latin, Cyrillic, Greek"
    )
    script_share: float = Field(0.8, gt=0, le=1, description="least share of letters of that script")
    most: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="rule: share of rows beyond which a run is refused, e.g. {leak: 0}"
    )


class DataConfig(Reading):
    """The data."""

    sources: list[SourceConfig] = Field(
        default_factory=list,
        description="several sources to mix, in place of source; what they leave open is as said here",
    )
    exhausted: Literal["first", "all"] = Field(
        "first", description="with weights, an epoch ends when the first source, or every source, was passed over once"
    )
    interleave: Literal["random", "even", "in_turn"] = Field(
        "random", description="several sources: shuffled together, spread evenly over an epoch, or one after another"
    )
    shuffle: bool = Field(True, description="a new random order in every epoch (false: as the rows stand)")
    curriculum: CurriculumConfig | None = Field(None, description="easy rows before hard ones")
    phases: list[PhaseConfig] = Field(default_factory=list, description="mixes over training progress")
    group_by: str | None = Field(
        None, description="source, category, cluster or a column: what the rows of a step share"
    )
    steps_per_group: int = Field(1, ge=1, description="steps on one group before the next one's turn")
    eval_source: str | None = Field(None, description="a second source, held out")
    eval_split: str | float = Field(0.1, description="split name, or share of the training source held out")
    folds: int | None = Field(None, ge=2, description="hold out one of so many folds in place of a share")
    fold: int = Field(0, ge=0, description="which fold is held out, from 0")
    max_length: int = Field(1024, ge=2, description="tokens of prompt and completion; the prompt loses its left first")
    append_eos: bool = Field(True, description="end every completion with the end token where it has none")
    train_on: Literal["last", "all"] = Field(
        "last", description="assistant turns of a conversation that completions are made of"
    )
    cache: bool = Field(True, description="keep tokenised rows on disk, so that they are tokenised once")
    workers: int | None = Field(None, ge=1, description="processes that tokenise (default: one a core, where it pays)")
    max_dropped: float = Field(0.02, ge=0, le=1, description="share of rows that may be unusable before it is an error")
    eval_limit: int | None = Field(None, ge=1, description="use only the first held-out rows")
    check: CheckConfig = Field(default_factory=CheckConfig, description="what is looked for before training")

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold {self.fold} of {self.folds} folds, which are counted from 0")
        if self.sources and self.source != "demo":
            raise ValueError(f"source ({self.source}) and sources are both given: name the data in one of them")
        weighted = {source.weight is not None for source in self.sources}
        if len(weighted) > 1:
            raise ValueError("some sources have a weight and some have none: give every source one, or use repeat")
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)) or (ends and ends[-1] != 1):
            raise ValueError("the phases' until must rise, and the last one must be 1")
        if len(set(self.names)) < len(self.names):
            raise ValueError("two sources have one name: give each a name of its own")
        # What a source leaves open is as the section has it; written here, so that run.yaml says it of each.
        shared = {name: getattr(self, name) for name in Reading.model_fields if name != "source"}
        self.__dict__["sources"] = [
            part.model_copy(update={name: value for name, value in shared.items() if name not in part.model_fields_set})
            for part in self.sources
        ]
        return self

    @property
    def parts(self) -> list[SourceConfig]:
        """The sources that are trained on: ``sources``, or ``source`` alone."""
        if self.sources:
            return self.sources
        return [SourceConfig(**{key: getattr(self, key) for key in Reading.model_fields})]

    @property
    def names(self) -> list[str]:
        """The sources' names."""
        return [
            part.name or part.source.rstrip("/").rpartition("/")[2].partition(".")[0] or part.source
            for part in self.parts
        ]


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
        return dict(self.model_extra or {})


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
