"""The configuration of a run, one pydantic model per section; ``alignkit.settings`` reads, merges and writes it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveFloat, model_validator


def split_words(value: Any) -> Any:
    """Split text at commas, as lists are written on the command line: ``"prefs, perplexity"``."""
    return [word.strip() for word in value.split(",") if word.strip()] if isinstance(value, str) else value


Words = Annotated[list[str], BeforeValidator(split_words, json_schema_input_type=list[str] | str)]
"""A list of words, also accepted as text separated by commas."""

Processes = Annotated[int, Field(ge=1, le=1024)] | Literal["auto"]

SHORTHANDS = {"method": "name", "model": "name", "data": "source"}
"""Section that can be written as a single word -> key the word sets."""


class Section(BaseModel):
    """Base of the sections: unknown keys are errors, numbers must be finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, validate_assignment=True, validate_default=True)


class MethodConfig(BaseModel):
    """The method and its settings, which the method's own model validates."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    name: str = Field(description="installed method, or distribution:name if two distributions provide the same name")

    @property
    def settings(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class LoraConfig(Section):
    """Low-rank adapters (arXiv:2106.09685), by peft; other keys of ``peft.LoraConfig`` belong in ``options``."""

    r: int = Field(16, ge=1, description="rank of the adapter")
    alpha: float = Field(32, gt=0, description="scaling numerator: the update is multiplied by alpha / r")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout probability on the adapter's input")
    target_modules: list[str] | str = Field("all-linear", description="names, a regular expression, or all-linear")
    dora: bool = Field(False, description="use weight-decomposed adapters (DoRA, arXiv:2402.09353)")
    modules_to_save: Words | None = Field(None, description="modules to train in full besides the adapter")
    options: dict[str, Any] = Field(default_factory=dict, description="other keys of peft.LoraConfig")


class ModelConfig(Section):
    """The model to train."""

    name: str = Field("demo", description="model or adapter directory, hub id, run directory, or demo")
    revision: str | None = Field(None, description="hub revision: branch, tag or commit (default: main)")
    tokenizer: str | None = Field(None, description="tokenizer directory or hub id (default: the model's tokenizer)")
    chat_template: str | None = Field(
        None, description="Jinja, a file with Jinja, or chatml, zephyr, vicuna, alpaca, plain (default: tokenizer's)"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16", "checkpoint"] = Field(
        "auto",
        description="dtype of weights; auto: float32 if trained, else as in the checkpoint, with train.bf16 where it is faster",
    )
    quantization: Literal["8bit", "4bit"] | None = Field(None, description="quantize the base model (needs lora)")
    lora: LoraConfig | None = Field(None, description="train a low-rank adapter (default: train all weights)")
    dropout: bool = Field(False, description="keep the model's own dropout active in training (false: set it to 0)")
    resize_embeddings: bool = Field(
        False, description="add embeddings for the tokenizer's new tokens (with lora: trained if in modules_to_save)"
    )
    scorer: Literal["auto", "packed", "rows", "padded", "plain"] = Field(
        "auto", description="scoring backend; auto: the first that agrees numerically with plain forwards"
    )
    attention: str = Field("auto", description="sdpa, flash, flex, eager, or a kernel of packed scoring, by name")
    head: Literal["fast", "exact"] = Field("fast", description="products of the output layer; exact: in float32")
    trust_remote_code: bool = Field(False, description="run code that comes with the model (configuration files only)")


class Reading(Section):
    """One data source and its reading options."""

    source: str = Field("demo", description="file, folder, URL (https, s3, hf, ...), saved data set, hub id, or demo")
    subset: str | None = Field(None, description="configuration name of a hub data set (default: its default)")
    split: str | None = Field(None, description="split of the source to train on (default: train, or the only one)")
    limit: int | None = Field(None, ge=1, description="read at most this many rows (default: all)")
    streaming: bool = Field(False, description="read a hub data set or URL as a stream, without a full download")
    delimiter: str | None = Field(None, description="separator of CSV columns, or tab (default: as in the header)")
    columns: dict[str, str] = Field(default_factory=dict, description="column names, e.g. {prompt: instruction}")
    template: dict[str, str] = Field(default_factory=dict, description="by Jinja, e.g. {prompt: 'Q: {{ question }}'}")
    pairs: Literal["best_worst", "all"] | None = Field(
        None, description="pairs of rated answers: best and worst, or all that differ (default: best_worst in a row)"
    )


class SourceConfig(Reading):
    """One of several sources of a mix."""

    name: str | None = Field(None, description="name of the source in the mix (default: file name without suffix)")
    weight: float | None = Field(None, gt=0, description="relative share of an epoch's rows (of all sources or none)")
    repeat: float = Field(1.0, gt=0, description="times an epoch takes each row: 2 up-samples, 0.5 down-samples")

    @model_validator(mode="before")
    @classmethod
    def _shorthand(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _one_of_both(self) -> SourceConfig:
        if self.weight is not None and self.repeat != 1:
            raise ValueError("weight and repeat are mutually exclusive: set one of them")
        return self


class CurriculumConfig(Section):
    """Rows ordered from easy to hard."""

    by: str = Field(
        description="difficulty: length (tokens), margin (chosen minus rejected, start model), or a numeric column"
    )
    descending: bool = Field(False, description="hard rows first: longest, smallest margin, largest number")
    buckets: int | None = Field(None, ge=1, description="levels of difficulty, each shuffled (default: sorted)")
    epochs: int | None = Field(None, ge=1, description="ordered epochs; later ones are shuffled (default: all)")


class PhaseConfig(Section):
    """A part of training with its own mix."""

    until: float = Field(gt=0, le=1, description="share of the training steps at which the phase ends")
    weights: dict[str, Annotated[float, Field(ge=0)]] = Field(description="by source or value of group_by (others: 0)")


class CheckConfig(Section):
    """Checks of the training rows, by ``align data check`` and before training."""

    enabled: bool = Field(True, description="check the training rows before training")
    rows: int = Field(20_000, ge=1, description="maximum rows to check before training; a larger set is sampled evenly")
    near: float = Field(0.8, gt=0, le=1, description="least similarity of near-duplicates (Jaccard, word trigrams)")
    min_words: int = Field(0, ge=0, description="minimum words of a prompt or an answer (0: no minimum)")
    script: str | None = Field(None, description="expected script: Latin, Cyrillic, Greek, ... (default: any)")
    script_share: float = Field(0.8, gt=0, le=1, description="minimum share of a text's letters in that script")
    most: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        default_factory=dict, description="maximum share of rows by rule, above which a run is refused, e.g. {leak: 0}"
    )


class DataConfig(Reading):
    """The training and held-out data."""

    sources: list[SourceConfig] = Field(
        default_factory=list, description="several sources to mix; keys that one does not set are taken from here"
    )
    exhausted: Literal["first", "all"] = Field("first", description="sources whose end ends an epoch, with weights")
    interleave: Literal["random", "even", "in_turn"] = Field("random", description="shuffled, spread, or in turn")
    shuffle: bool = Field(True, description="a new random order in every epoch (false: the order of the data)")
    curriculum: CurriculumConfig | None = Field(None, description="order rows by difficulty (default: random order)")
    phases: list[PhaseConfig] = Field(default_factory=list, description="mixes by training progress (default: one mix)")
    group_by: str | None = Field(
        None, description="source, category, cluster or a column whose value all rows of a step share (default: none)"
    )
    steps_per_group: int = Field(1, ge=1, description="consecutive steps drawn from one group")
    eval_source: str | None = Field(None, description="source of the held-out rows (default: by eval_split)")
    eval_split: str | float = Field(0.1, description="share of the training rows to hold out, or name of a split")
    folds: int | None = Field(None, ge=2, description="divide the rows into this many folds and hold out one of them")
    fold: int = Field(0, ge=0, description="index of the held-out fold, from 0 to folds - 1")
    max_length: int = Field(1024, ge=2, description="most tokens of a row; the prompt is truncated first, on the left")
    max_prompt_length: int | None = Field(
        None, ge=1, description="most tokens of a prompt; the left is cut (default: any)"
    )
    max_completion_length: int | None = Field(None, ge=1, description="most tokens of a completion (default: any)")
    append_eos: bool = Field(True, description="append the EOS token to completions that do not end with an end token")
    train_on: Literal["last", "all"] = Field("last", description="assistant turns to train on, of completion rows")
    cache: bool = Field(True, description="cache tokenised rows on disk, in $ALIGN_CACHE or ~/.cache/alignkit")
    workers: int | None = Field(
        None, ge=1, le=1024, description="tokenisation processes (default: one per core above 8,000 rows, else one)"
    )
    max_dropped: float = Field(0.02, ge=0, le=1, description="maximum share of unusable rows; more are an error")
    eval_limit: int | None = Field(None, ge=1, description="use at most this many held-out rows (default: all)")
    check: CheckConfig = Field(default_factory=CheckConfig, description="checks of the training rows before training")

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        if self.folds is not None and self.fold >= self.folds:
            raise ValueError(f"fold must be less than folds ({self.folds}), not {self.fold}: folds are counted from 0")
        if self.sources and self.source != "demo":
            raise ValueError(f"source ({self.source}) and sources are both set: use only one of them")
        weighted = {source.weight is not None for source in self.sources}
        if len(weighted) > 1:
            raise ValueError("set a weight for every source or for none (then use repeat)")
        ends = [phase.until for phase in self.phases]
        if ends != sorted(set(ends)) or (ends and ends[-1] != 1):
            raise ValueError("until must increase from phase to phase, and the last one must be 1")
        if len(set(self.names)) < len(self.names):
            raise ValueError("two sources have the same name: set a different name for each")
        # Keys not set for a source are taken from the section; filled in here, so that run.yaml lists them per source.
        shared = {name: getattr(self, name) for name in Reading.model_fields if name != "source"}
        self.__dict__["sources"] = [
            part.model_copy(update={name: value for name, value in shared.items() if name not in part.model_fields_set})
            for part in self.sources
        ]
        return self

    @property
    def parts(self) -> list[SourceConfig]:
        """The training sources: ``sources``, or the only ``source``."""
        return self.sources or [SourceConfig(**{key: getattr(self, key) for key in Reading.model_fields})]

    @property
    def names(self) -> list[str]:
        return [p.name or p.source.rstrip("/").rpartition("/")[2].partition(".")[0] or p.source for p in self.parts]


class TrainConfig(BaseModel):
    """Keys of the engine, and any key of ``transformers.TrainingArguments``."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    tokens_per_micro_batch: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        8192, description="maximum tokens of one forward and backward pass; auto: as many as fit, as measured first"
    )
    stop_on: str | None = Field(
        None, description="metric that stops training and chooses the model: SUITE/METRIC, or eval_loss (default: none)"
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="evaluations without a better value until training stops (default: 1 with stop_on)"
    )
    early_stopping_threshold: float = Field(0.0, ge=0, description="a value better by at most this counts as no better")

    @property
    def arguments(self) -> dict[str, Any]:
        """The keys that go to ``transformers.TrainingArguments``."""
        return dict(self.model_extra or {})


class EvalConfig(Section):
    """Evaluation before, during and after training."""

    suites: Words = Field(default_factory=lambda: ["prefs", "perplexity"], description="run before and after training")
    settings: dict[str, dict[str, Any]] = Field(default_factory=dict, description="by suite: {generate: {top_k: 5}}")
    during: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict, description="suites to run during training, each every N steps, e.g. {prefs: 50}"
    )
    before: bool = Field(True, description="also evaluate the start model, before training")
    samples: int = Field(4, ge=0, description="number of held-out prompts to answer before and after training")
    sample_tokens: int = Field(64, ge=1, description="maximum tokens of such an answer")


class CompareConfig(Section):
    """How the run is compared with others, and with its start model."""

    objective: Words | None = Field(None, description="metrics that decide (default: accuracy_sum, accuracy_mean)")
    guards: Words | None = Field(None, description="metrics that must not be worse (default: perplexity, kl, quality)")
    margins: dict[str, PositiveFloat] = Field(default_factory=dict, description="difference that counts as none")


class TrackerConfig(Section):
    """What the trackers of ``train.report_to`` keep besides metrics, tables, plots and the model card."""

    model: bool = Field(False, description="log the trained model as an artifact of the tracked run")


class RunSection(Section):
    """The run directory, the seed and services."""

    output: str = Field("runs", description="parent of the run directory")
    name: str | None = Field(None, description="name of the run directory (default: method, date and time)")
    project: str | None = Field(None, description="project of the tracked run (default: train.project, or alignkit)")
    engine: str = Field("torch", description="engine that scores and updates the model: torch, mlx, ...")
    seed: int = Field(0, ge=0, description="random seed of data order, adapter initialisation, dropout and sampling")
    services: Words = Field(default_factory=list, description="names of service plugins to activate (default: none)")
    price_per_hour: float | None = Field(None, ge=0, description="price of a process's hour, for --dry-run --measure")
    plots: bool = Field(True, description="write plots/*.png and report.html at the end")
    log_axes: Words = Field(default_factory=list, description="plots or swept keys with a log axis, e.g. loss,lambda")
    pause_at: list[Annotated[float, Field(gt=0, lt=1)]] = Field(
        default_factory=list, description="shares of the steps at which the run is evaluated and pauses, e.g. [0.5]"
    )
    processes: Processes = Field(1, description="processes on each node; auto: one per visible accelerator, else one")
    nodes: int = Field(1, ge=1, le=65536, description="machines that train together (default: as Slurm says, else 1)")
    strategy: Literal["auto", "ddp", "fsdp", "zero2", "zero3"] = Field(
        "auto", description="what processes share: ddp nothing, zero2 all but weights, zero3 and fsdp all; auto: ddp"
    )


class RunConfig(Section):
    """A whole configuration: ``RunConfig(method="orpo", model="path", data="prefs.jsonl", train={...})``."""

    method: MethodConfig
    model: ModelConfig = Field(default_factory=ModelConfig)
    data: DataConfig = Field(default_factory=DataConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    compare: CompareConfig = Field(default_factory=CompareConfig)
    run: RunSection = Field(default_factory=RunSection)
    tracker: TrackerConfig = Field(default_factory=TrackerConfig)

    @model_validator(mode="before")
    @classmethod
    def _shorthands(cls, value: Any) -> Any:
        """Expand ``method: orpo``, ``model: PATH`` and ``data: FILE``."""
        if not isinstance(value, dict):
            return value
        return value | {
            name: {key: value[name]} for name, key in SHORTHANDS.items() if isinstance(value.get(name), str)
        }
