"""Every key of ``train:`` changes what it says, or is refused: a table of all of them, so that a new one needs a row."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from alignkit import RunConfig, settings
from alignkit.config import TrainConfig
from alignkit.errors import ConfigError
from alignkit.runs.prepare import plan_run
from alignkit.settings import train_keys
from alignkit.settings.training_arguments import training_arguments
from alignkit_checks.no_effect import refuse_without_effect
from alignkit_eval.best import watch_best

from tests.helpers.engine import build_trainer, configuration, random_pairs, tiny_llama

MEMORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
"""Checkpoints are synced to disk: in memory that costs nothing."""


class Row(NamedTuple):
    value: Any
    seen: str
    """What must differ: a key of :func:`outcome`."""
    beside: dict[str, Any] = {}
    """Other keys that the key needs."""


ADAM = {"optim": "adamw_torch"}
LINEAR = {"lr_scheduler_type": "linear"}
SAVING = {"save_strategy": "steps", "save_steps": 1}
EVALUATING = {"eval_strategy": "steps", "eval_steps": 1}
# The held-out loss rises from the first step on.
BEST = {**SAVING, **EVALUATING, "load_best_model_at_end": True}
CHECKPOINTING = {"activation_checkpointing": True}
COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}

ROWS: dict[str, Row] = {
    # the size of a step and the length of a run
    "per_device_train_batch_size": Row(4, "losses"),
    "gradient_accumulation_steps": Row(2, "losses"),
    "tokens_per_micro_batch": Row(40, "micro-batches"),
    "max_steps": Row(3, "steps"),
    "num_train_epochs": Row(2.0, "steps", {"max_steps": -1}),
    # the optimizer and its schedule
    "learning_rate": Row(0.5, "weights"),
    "lr_scheduler_type": Row("cosine", "rates"),
    "lr_scheduler_kwargs": Row({"num_cycles": 2}, "rates", {"lr_scheduler_type": "cosine_with_restarts"}),
    "warmup_steps": Row(2, "rates", LINEAR),
    "optim": Row("adamw_torch", "weights"),
    "optim_args": Row("momentum=0.9", "weights"),
    "weight_decay": Row(0.5, "weights"),
    "adam_beta1": Row(0.1, "weights", ADAM),
    "adam_beta2": Row(0.1, "weights", ADAM),
    "adam_epsilon": Row(1.0, "weights", ADAM),
    "max_grad_norm": Row(0.01, "weights"),
    # how a step is computed
    "bf16": Row(True, "losses"),
    "activation_checkpointing": Row(True, "checkpointed"),
    "activation_checkpointing_kwargs": Row({"every_n_layers": 2}, "checkpointed", CHECKPOINTING),
    "gradient_checkpointing": Row(True, "checkpointed"),
    "gradient_checkpointing_kwargs": Row({"every_n_layers": 2}, "checkpointed", {"gradient_checkpointing": True}),
    "torch_compile": Row(True, "compiled"),
    "torch_compile_backend": Row("aot_eager", "compiled", COMPILED),
    "torch_compile_mode": Row("reduce-overhead", "compiled", COMPILED),
    "full_determinism": Row(True, "deterministic"),
    # logging
    "logging_strategy": Row(
        "epoch", "logged", {"max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 500}
    ),
    "logging_steps": Row(2, "logged", {"max_steps": 3}),
    "logging_first_step": Row(False, "logged", {"logging_steps": 2}),
    "log_level": Row("error", "verbosity"),
    # evaluation
    "eval_strategy": Row("epoch", "evaluated"),
    "eval_steps": Row(2, "evaluated", EVALUATING),
    "eval_delay": Row(2, "evaluated", EVALUATING),
    "eval_on_start": Row(True, "evaluated"),
    # checkpoints and the best of them
    "save_strategy": Row("epoch", "files"),
    "save_steps": Row(1, "files", SAVING),
    "save_total_limit": Row(1, "files", {**SAVING, "max_steps": 3}),
    "load_best_model_at_end": Row(True, "weights", {**SAVING, **EVALUATING}),
    "metric_for_best_model": Row("rewards/margins", "best", BEST),
    "greater_is_better": Row(True, "best", BEST),
    "stop_on": Row("eval_loss/odds_ratio", "best", BEST),
    "early_stopping_patience": Row(1, "steps", {**BEST, "max_steps": 4}),
    "early_stopping_threshold": Row(
        100.0, "steps", {**BEST, "early_stopping_patience": 1, "max_steps": 4, "greater_is_better": True}
    ),
}

ELSEWHERE = {
    "fp16 tf32 use_cpu use_liger_kernel liger_kernel_config": "a GPU",
    "fsdp fsdp_config deepspeed": "a launcher of several processes",
    "ddp_backend ddp_broadcast_buffers ddp_bucket_cap_mb ddp_static_graph ddp_timeout": "several processes",
    "log_level_replica log_on_each_node save_on_each_node": "several processes",
    "report_to project trackio_space_id trackio_bucket_id trackio_static_space_id": "the package of a tracker",
    "optim_target_modules": "the package of an optimizer",
}
"""Keys that need what a test does not have: that they reach the training arguments is all that is shown."""


class Watch(transformers.TrainerCallback):
    """Looks at the model in the middle of training."""

    def __init__(self) -> None:
        self.checkpointed, self.verbosity = 0, 0

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        modules = list(model.modules())
        self.checkpointed = sum(bool(getattr(module, "gradient_checkpointing", False)) for module in modules)
        self.verbosity = transformers.logging.get_verbosity()


@cache
def outcome(given: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    """Train a tiny model and return everything that a key can change."""
    torch.use_deterministic_algorithms(mode=False)
    with tempfile.TemporaryDirectory(dir=MEMORY) as folder:
        config = configuration("orpo", **{"max_steps": 2, **thawed(given)})
        watch, rows = Watch(), random_pairs(16, longest=8)
        best = watch_best(config, training_arguments(config, Path(folder))[0], None, lambda record: None)
        trainer, seen = build_trainer(
            config, Path(folder), rows, held_out=random_pairs(4, seed=1), callbacks=[watch, *best], model=tiny_llama()
        )
        if trainer.args.torch_compile:  # seen without the minutes that compiling takes
            model = trainer.accelerator.prepare_model(trainer.model)
            assert model is trainer.model  # its layers are compiled, not the model: see tests/plugins/test_compiled.py
            return {"compiled": (True, trainer.args.torch_compile_backend, trainer.args.torch_compile_mode)}
        cuts = len(trainer.parts.cut(trainer.steps.batch(0, 0.0)))
        trainer.train()
        logs = [record for record in seen.logs if "loss" in record]
        return {
            "losses": [record["loss"] for record in logs],
            "micro-batches": cuts,
            "steps": trainer.state.global_step,
            "weights": torch.cat([p.detach().flatten() for p in trainer.model.parameters()]).tolist(),
            "rates": [record["learning_rate"] for record in logs],
            "checkpointed": watch.checkpointed,
            "compiled": type(trainer.model_wrapped).__name__,
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "verbosity": watch.verbosity,
            "logged": [record["step"] for record in logs],
            "evaluated": [record["step"] for record in seen.logs if "eval_loss" in record],
            "files": sorted(path.name for path in Path(folder).iterdir()),
            "best": (trainer.state.best_metric, trainer.state.best_global_step),
        }


def frozen(values: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple(sorted((key, tuple(v.items()) if isinstance(v, dict) else v) for key, v in values.items()))


def thawed(values: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return {key: dict(v) if isinstance(v, tuple) else v for key, v in values}


def test_every_key_has_a_row() -> None:
    free = {*train_keys.argument_types(), *TrainConfig.model_fields}
    elsewhere = {key for keys in ELSEWHERE for key in keys.split()}
    assert set(ROWS) | elsewhere | set(train_keys.UNUSED) == free
    assert not set(ROWS) & elsewhere


@pytest.mark.parametrize("key", ROWS)
def test_the_key_changes_what_it_says(key: str) -> None:
    row = ROWS[key]
    with_it = outcome(frozen({**row.beside, key: row.value}))[row.seen]
    without = outcome(frozen({name: value for name, value in row.beside.items() if name != key}))[row.seen]
    assert with_it != without


@pytest.mark.parametrize("key", [key for keys in ELSEWHERE for key in keys.split()])
def test_what_cannot_be_shown_here_is_a_field_of_the_training_arguments(key: str) -> None:
    assert key in transformers.TrainingArguments.__dataclass_fields__
    assert key not in train_keys.OWNED


@pytest.mark.parametrize("key", train_keys.UNUSED)
def test_what_only_other_trainers_use_is_refused(key: str) -> None:
    with pytest.raises(ConfigError) as refused:
        settings.resolve(method="dpo", data="d", sets=[f"train.{key}=1"])
    assert str(refused.value) == f"--set train.{key}=1: train.{key} cannot be set: {train_keys.UNUSED[key]}"
    value = "true" if key.endswith("_eval") else "4"
    config = settings.resolve(method="trl-dpo", data="d", sets=[f"train.{key}={value}"]).config
    assert key in config.train.arguments


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"eval_steps": 5}, "train.eval_steps has no effect: set train.eval_strategy: steps"),
        ({"eval_delay": 5}, "train.eval_delay has no effect: set train.eval_strategy: steps or epoch"),
        ({"greater_is_better": True}, "train.greater_is_better has no effect: set train.stop_on, or"),
        ({"metric_for_best_model": "loss"}, "train.metric_for_best_model has no effect: set train.stop_on, or"),
        ({"early_stopping_threshold": 0.1}, "train.early_stopping_threshold has no effect: set train.stop_on"),
        ({"max_steps": 5, "num_train_epochs": 2}, "train.num_train_epochs has no effect: train.max_steps is set"),
        (
            {"optim_args": "momentum=0.9", "optim": "adamw_torch"},
            "train.optim_args (momentum) has no effect with train.optim: adamw",
        ),
        ({"adam_beta2": 0.9, "optim": "sgd"}, "train.adam_beta2 has no effect with train.optim: sgd"),
        ({"optim_target_modules": "all-linear"}, "train.optim_target_modules has no effect with train.optim: sgd"),
        ({"warmup_steps": 5}, "train.warmup_steps has no effect with train.lr_scheduler_type: constant (constant_with"),
        (
            {"lr_scheduler_kwargs": {"a": 1}},
            "train.lr_scheduler_kwargs has no effect with train.lr_scheduler_type: con",
        ),
        (
            {**LINEAR, "lr_scheduler_kwargs": {"cycles": 2}},
            "train.lr_scheduler_kwargs: get_linear_schedule_with_warmup()",
        ),
        (
            {"activation_checkpointing_kwargs": {"every_n_layers": 2}},
            "train.activation_checkpointing_kwargs has no eff",
        ),
    ],
    ids=str,
)
def test_a_key_that_changes_nothing_beside_the_others_is_refused(train: dict[str, Any], message: str) -> None:
    config = configuration("orpo", **train)
    with pytest.raises(ConfigError) as refused:
        refuse_without_effect(config.train, training_arguments(config, Path("unused"))[0])
    assert message in str(refused.value)


def test_defaults_are_accepted_beside_any_other_key() -> None:
    train = {"warmup_steps": 0, "adam_beta2": 0.999, "eval_delay": 0, "max_steps": -1, "num_train_epochs": 3.0}
    given = RunConfig.model_validate({"method": "orpo", "data": "d", "model": "m", "train": {"optim": "sgd", **train}})
    arguments, _ = training_arguments(settings.check_config(given), Path("unused"))
    refuse_without_effect(given.train, arguments)
    assert arguments.optim == "sgd"


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"optim_args": "foo=1,momentum=0.9"}, "train.optim_args (foo) has no effect with train.optim: sgd"),
        ({"optim_args": "x"}, "train.optim_args must be key=value,key=value, not 'x'"),
        ({"optim_args": "momentum=fast"}, "train.optim_args: could not convert string to float: 'fast'"),
        ({"gradient_checkpointing_kwargs": {"every_n_layers": 2}}, "train.gradient_checkpointing_kwargs has no effect"),
        ({"save_strategy": "epoch", "save_steps": 3}, "train.save_steps has no effect: set train.save_strategy: steps"),
        ({"save_total_limit": 3}, "train.save_total_limit has no effect: set train.save_strategy"),
        ({"logging_strategy": "epoch"}, "train.logging_steps has no effect: set train.logging_strategy: steps"),
        ({**CHECKPOINTING, "activation_checkpointing_kwargs": {"nope": 1}}, "train.activation_checkpointing_kwargs: "),
        (
            {**CHECKPOINTING, "activation_checkpointing_kwargs": {"every_n_layers": 0}},
            "train.activation_checkpointing_kwargs: every_n_layers must be a whole number from 1 on",
        ),
    ],
    ids=str,
)
def test_what_is_wrong_is_refused_before_anything_is_loaded(train: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        plan_run(configuration("orpo", **train))
    assert message in str(refused.value)
