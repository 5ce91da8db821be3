"""Keys that would change nothing beside a run's other keys, and settings that training would fail with."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.config import ModelConfig, Reading, RunConfig, TrainConfig
from alignkit.contract import Method, registry
from alignkit.demo import PRESET
from alignkit.errors import ConfigError, ModelError, PluginError, first_line
from alignkit.models.paths import adapter_parts, resolve_path
from alignkit.settings.strategies import named_strategy
from alignkit.settings.training_arguments import trackers
from pydantic import BaseModel

from alignkit_checks.compared import refuse_comparison
from alignkit_checks.fitting import require_fitting
from alignkit_checks.scales import refuse_inverted
from alignkit_checks.trial import checkpointing, try_trainer

if TYPE_CHECKING:
    from transformers import TrainingArguments


def _finds_best(a: TrainingArguments) -> bool:
    by_metric = a.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy")
    return bool(a.load_best_model_at_end or a.save_strategy == "best" or by_metric)


_NEEDS: Mapping[str, tuple[Callable[[TrainingArguments], bool], str]] = {
    "eval_steps": (lambda a: a.eval_strategy == "steps", "set train.eval_strategy: steps"),
    "eval_delay": (lambda a: a.eval_strategy != "no", "set train.eval_strategy: steps or epoch"),
    "metric_for_best_model": (_finds_best, "set train.stop_on, or train.load_best_model_at_end: true"),
    "greater_is_better": (_finds_best, "set train.stop_on, or train.load_best_model_at_end: true"),
    **dict.fromkeys(
        ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs"),
        (lambda a: checkpointing(a)[0], "set train.activation_checkpointing: true"),
    ),
    "save_steps": (lambda a: a.save_strategy == "steps", "set train.save_strategy: steps"),
    "save_total_limit": (lambda a: a.save_strategy != "no", "set train.save_strategy: steps or epoch"),
    "logging_steps": (lambda a: a.logging_strategy == "steps", "set train.logging_strategy: steps"),
    "num_train_epochs": (lambda a: a.max_steps <= 0, "train.max_steps is set as well: remove one of them"),
}
"""Key -> whether it has an effect, and what to do if it has none."""


_TORCH_ONLY: Mapping[str, str] = {
    "train.fp16": "it does not scale losses (set train.bf16)",
    "train.tf32": "it is a mode of NVIDIA's GPUs",
    "train.full_determinism": "it is a mode of torch",
    **dict.fromkeys((f"train.torch_compile{part}" for part in ("", "_backend", "_mode")), "it compiles torch's layers"),
    **dict.fromkeys(("train.use_liger_kernel", "train.liger_kernel_config"), "they are kernels for torch"),
    **dict.fromkeys(("train.fsdp", "train.fsdp_config", "train.deepspeed"), "it trains in one process"),
    **dict.fromkeys(
        (f"train.ddp_{part}" for part in ("bucket_cap_mb", "broadcast_buffers", "static_graph", "backend")),
        "it trains in one process",
    ),
}
"""Keys without effect on every engine outside torch, and why."""


def _is_local(name: str) -> bool:
    return name == "demo" or Path(name).expanduser().exists()


def _idle(config: RunConfig, method: Method[Any]) -> Iterator[tuple[str, str]]:
    """Yield keys that change nothing beside the others, or with the method, and why."""
    from alignkit import OutsideEngine

    d, local = config.data, _is_local(config.model.name)
    share, mix = not isinstance(d.eval_split, str), len(d.sources) > 1
    engine = registry.open_engine(config)
    foreign = _TORCH_ONLY if isinstance(engine, OutsideEngine) else {}
    on_demo = share and d.source == "demo" and not d.sources
    streamed = [part.source for part in d.parts if part.streaming] + [d.eval_source or "demo"] * d.streaming
    for idle, keys, why in (
        (d.folds is None, "data.fold", "without data.folds"),
        (d.folds is not None, "data.eval_source data.eval_split", "beside data.folds"),
        (share and d.eval_source, "data.eval_split", "as a share beside data.eval_source (name a split of it)"),
        (on_demo, "data.eval_split", "as a share on the demo, which has held-out rows (name its split: dev or test)"),
        (d.eval_split == 0 and not d.eval_source and not d.folds, "data.eval_limit", "with data.eval_split: 0"),
        (not mix, "data.sources.weight", "without several data.sources"),
        (d.phases, "data.sources.weight data.sources.repeat", "beside data.phases, which have weights of their own"),
        (not (d.phases or any(s.weight for s in d.sources)), "data.exhausted", "without a weight for every source"),
        (not (mix or (d.group_by and d.phases)), "data.interleave", "without several data.sources"),
        (d.curriculum and not d.curriculum.epochs, "data.interleave", "beside data.curriculum"),
        (d.group_by is None, "data.steps_per_group", "without data.group_by"),
        (all(map(_is_local, streamed)), "data.streaming data.sources.streaming", "without a hub data set or a URL"),
        (d.check.script is None, "data.check.script_share", "without data.check.script"),
        (not d.check.enabled, "data.check.rows data.check.most", "with data.check.enabled: false"),
        (method.rows != "completion", "data.train_on", f"with {method.name}: it does not train on completion rows"),
        *(
            ((getattr(d, key) or 0) >= d.max_length, f"data.{key}", f"with data.max_length: {d.max_length}: set less")
            for key in ("max_prompt_length", "max_completion_length")
        ),
        (
            method.rows == "prompt",
            "data.max_completion_length",
            f"with {method.name}: it samples its answers, and their length is a setting of the method",
        ),
        (local, "model.revision", f"on {config.model.name}, which is not on the hub"),
        (not config.eval.suites, "eval.before", "without eval.suites"),
        (not config.eval.samples, "eval.sample_tokens", "with eval.samples: 0"),
        (
            config.tracker.model and not _keeps_models(config),
            "tracker.model",
            "without a tracker that keeps models: train.report_to: wandb, ...",
        ),
        *((True, key, f"with {method.name}: {why}") for key, why in method.unused.items()),
        *((True, key, f"with run.engine {engine.name}: {why}") for key, why in {**foreign, **engine.unused}.items()),
    ):
        yield from ((key, why) for key in keys.split() if idle)


def _keeps_models(config: RunConfig) -> bool:
    """Return whether a service of the run logs models as artifacts."""
    entries = [registry.find("align.services", name) for name in [*trackers(config), *config.run.services]]
    return any(getattr(registry.load(entry), "keeps_models", False) for entry in entries)


def check_settings(config: RunConfig, method: Method[Any], arguments: TrainingArguments) -> None:
    """Raise :class:`ConfigError` for a key without effect, and for settings that training would fail with."""
    refuse_idle(config, method)
    refuse_comparison(config)
    refuse_inverted(config.data)
    refuse_attention(config.model, method)
    refuse_sharding(config, method)
    refuse_without_effect(config.train, arguments)
    refuse_all_trackers(config)
    try_trainer(arguments)
    require_fitting(config.model, arguments)
    refuse_quantization(config.model)


def refuse_quantization(model: ModelConfig) -> None:
    """Raise :class:`ConfigError` for a quantized base without an adapter, whichever engine quantizes it."""
    if model.quantization is None or model.lora is not None:
        return
    with suppress(ModelError):  # an earlier stage has yet to make it, or loading says what is wrong with it
        if adapter_parts(resolve_path(model.name), model, weights=False)[1] is None:
            raise ConfigError("model.quantization needs model.lora: a quantized base model cannot be trained")


def refuse_all_trackers(config: RunConfig) -> None:
    """Raise :class:`ConfigError` for ``train.report_to: all``, which depends on what happens to be installed."""
    if config.train.arguments.get("report_to") in ("all", ["all"]):
        raise ConfigError("train.report_to: all depends on the machine: name the trackers, e.g. tensorboard,wandb")


def refuse_sharding(config: RunConfig, method: Method[Any]) -> None:
    """Raise :class:`ConfigError` where processes would share the weights of a model that the method needs whole."""
    strategy = named_strategy(config.train.arguments) or config.run.strategy
    if method.unsharded and strategy in ("fsdp", "zero3"):
        raise ConfigError(f"method {method.name} cannot be combined with run.strategy {strategy}: {method.unsharded}")


def refuse_attention(model: ModelConfig, method: Method[Any]) -> None:
    """Raise :class:`ConfigError` for an attention that is unknown or excluded by another key, before a model is loaded."""
    kernel = model.attention not in ("auto", "sdpa", "flash", "flex", "eager")
    if kernel:
        try:
            registry.find("align.attention", model.attention)
        except PluginError as error:
            raise ConfigError(f"model.attention: {error}") from error
        if "model.scorer" in method.unused:
            why = f"{method.unused['model.scorer']}, not scored: set sdpa, flash, flex or eager"
            raise ConfigError(f"model.attention: {model.attention} has no effect with {method.name}: {why}")
    packed = {"auto": None, "packed": True}.get(model.scorer, False)
    if (kernel and packed is False) or (model.attention == "eager" and packed):
        raise ConfigError(
            f"model.attention: {model.attention} excludes model.scorer: {model.scorer}: set one of them to auto"
        )


def refuse_idle(config: RunConfig, method: Method[Any]) -> None:
    """Raise :class:`ConfigError` for a key that is not at its default and changes nothing beside others, or with the method."""
    data, preset = config.data, {**PRESET, **method.defaults, **method.demo}
    for key, why in _idle(config, method):
        if any(value != preset.get(key) for value in _changed(config, key.split("."))):
            raise ConfigError(f"{key} has no effect {why}")
    for key in [key for key in Reading.model_fields if key != "source" and data.sources and not data.eval_source]:
        if any(_changed(data, [key])) and all(getattr(part, key) != getattr(data, key) for part in data.sources):
            raise ConfigError(f"data.{key} has no effect: every one of data.sources sets its own")


def _changed(section: BaseModel, path: Sequence[str]) -> Iterator[Any]:
    """Yield the values at ``path`` that are not the default; a list of sections is one value for each."""
    key, *rest = path
    field, value = type(section).model_fields.get(key), getattr(section, key, None)
    default = _default(key) if field is None else field.get_default(call_default_factory=True)
    if not rest and value != default and (field or value is not None):
        yield value
    for part in (value if isinstance(value, list) else [value]) if rest else ():
        yield from () if part is None else _changed(part, rest)


def refuse_without_effect(train: TrainConfig, arguments: TrainingArguments) -> None:
    """Raise :class:`ConfigError` for a key that is not at its default and changes nothing."""
    given = [k for k, value in train.arguments.items() if value not in (_default(k), PRESET.get(f"train.{k}"))]
    for key in (key for key in given if key in _NEEDS):
        has_effect, remedy = _NEEDS[key]
        if not has_effect(arguments):
            raise ConfigError(f"train.{key} has no effect: {remedy}")
    if train.early_stopping_threshold and train.early_stopping_patience is None and train.stop_on is None:
        raise ConfigError("train.early_stopping_threshold has no effect: set train.stop_on, or early_stopping_patience")
    for made, decider, keys in _MADE:
        with_it = _try(made, arguments)
        for key, part, rest in ((k, *found) for k in given if k in keys for found in _parts(k, getattr(arguments, k))):
            without = copy.copy(arguments)
            setattr(without, key, rest)
            if isinstance(other := _try(made, without), Exception):
                continue  # a package or a model that is missing is reported where it is used
            if isinstance(with_it, Exception):
                raise ConfigError(f"train.{key}: {first_line(with_it)}") from with_it
            if other == with_it:
                hint = " (constant_with_warmup has a warm-up)" if key == "warmup_steps" else ""
                chosen = getattr(arguments, decider)
                raise ConfigError(
                    f"train.{key}{part} has no effect with train.{decider}: {getattr(chosen, 'value', chosen)}{hint}"
                )
        if isinstance(with_it, TypeError):
            raise ConfigError(f"train.{decider}: {first_line(with_it)}") from with_it


def _parts(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name of each part of a key's value, and the value without it; most values are one part without a name."""
    if key != "optim_args":
        yield "", _default(key)
        return
    entries = value.split(",")
    if wrong := [entry for entry in entries if entry.count("=") != 1]:
        raise ConfigError(f"train.optim_args must be key=value,key=value, not {wrong[0]!r}")
    for entry in entries:
        yield f" ({entry.partition('=')[0].strip()})", ",".join(e for e in entries if e is not entry) or None


def _default(key: str) -> Any:
    from transformers import TrainingArguments

    return getattr(TrainingArguments, key, None)


def _optimizer(arguments: TrainingArguments) -> Any:
    from transformers import Trainer

    return Trainer.get_optimizer_cls_and_kwargs(arguments)


def _schedule(arguments: TrainingArguments, steps: int = 20) -> Any:
    """Return the learning rate of every step as a share, or the settings of a schedule that follows a metric."""
    import torch
    from transformers import get_scheduler

    made: Any = get_scheduler(
        arguments.lr_scheduler_type,
        torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]),
        arguments.get_warmup_steps(steps),
        steps,
        arguments.lr_scheduler_kwargs,
    )
    lambdas = getattr(made, "lr_lambdas", None)
    return made.state_dict() if lambdas is None else [lambdas[0](step) for step in range(steps)]


_MADE = (
    (_optimizer, "optim", ("adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "optim_target_modules")),
    (_schedule, "lr_scheduler_type", ("warmup_steps", "lr_scheduler_kwargs")),
)
"""What a key decides the making of, the key that names it, and the keys of its details."""


def _try(make: Callable[[TrainingArguments], Any], arguments: TrainingArguments) -> Any:
    """Return what is made, or the error it ends with."""
    try:
        return make(arguments)
    except Exception as error:
        return error
