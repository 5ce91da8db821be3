"""Invalid keys and values: the messages with file, line and key."""

import dataclasses

import pytest
from alignkit import RunConfig, settings
from alignkit.settings import train_keys
from alignkit.settings.hints import ALIASES
from alignkit.settings.layers import Layer

from tests.helpers.third_party import METHOD

REAL = "model: some/model\ndata: rows.jsonl\n"  # so that the demo's preset does not apply


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}\n", 'unknown key trian, did you mean "train"?'),
        ("max_length: 3\n", 'unknown key max_length, did you mean "data.max_length"?'),
        ("learning_rate: 3\n", 'unknown key learning_rate, did you mean "train.learning_rate"?'),
        ("train.max_steps: 3\n", "unknown key train.max_steps: write `train:` and `max_steps:` under it"),
        ("run: {sede: 1}\n", 'unknown key run.sede, did you mean "seed"?'),
        ("train: {learing_rate: 1}\n", 'unknown key train.learing_rate, did you mean "learning_rate"?'),
        (
            "train: {evaluation_strategy: no}\n",
            'unknown key train.evaluation_strategy, did you mean "train.eval_strategy"?',
        ),
        ("train: {learning_rate: abc}\n", 'train.learning_rate must be a number, not "abc"'),
        ("train: {learning_rate: -1}\n", "train.learning_rate must be at least 0, not -1"),
        ("train: {learning_rate: .nan}\n", "train.learning_rate must be a finite number, not NaN"),
        ("train: {learning_rate: 'nan'}\n", 'train.learning_rate must be a finite number, not "nan"'),
        ("train: {max_steps: 1.5}\n", "train.max_steps must be a whole number, not 1.5"),
        ("train: {max_steps: true}\n", "train.max_steps must be a number, not true"),
        ("train: {bf16: maybe}\n", 'train.bf16 must be true or false, not "maybe"'),
        ("train: {lr_scheduler_type: cosin}\n", "train.lr_scheduler_type cannot be 'cosin', did you mean \"cosine\"?"),
        ("train: {tokens_per_micro_batch: 0}\n", "train.tokens_per_micro_batch must be at least 1 or auto, not 0"),
        ("run: {seed: true}\n", "run.seed must be a number, not true"),
        ("eval: {suites: {a: b}}\n", 'eval.suites must be a list, not {"a": "b"}'),
        ("eval: {suites: [prefs, [a]]}\n", 'eval.suites.1 must be text, not ["a"]'),
        ("run: [a]\n", "run must be a mapping of keys to values"),
    ],
)
def test_wrong_keys_and_values_name_file_line_and_key(write, text, message, refused):
    file = write(f"method: orpo\n{REAL}{text}")
    assert refused(file).startswith(f"{file}:4: {message}")


@pytest.mark.parametrize(
    ("method", "text", "message"),
    [
        ("orpo", "orpo_alpha: 0.1", 'unknown key orpo_alpha, did you mean "method.lambda"?'),
        ("orpo", "pref_beta: 0.1", 'unknown key pref_beta, did you mean "method.lambda"?'),
        ("dpo", "pref_beta: 0.1", 'unknown key pref_beta, did you mean "method.beta"?'),
        ("dpo", "lambda: 0.1", 'unknown key lambda, did you mean "method.lambda", a setting of orpo?'),
        ("orpo", "beta_orpo: 0.1", 'unknown key beta_orpo, did you mean "method.lambda"?'),
        ("orpo", "steps_per_topic: 4", 'unknown key steps_per_topic, did you mean "data.steps_per_group", with'),
        ("orpo", "model: {lora_alpha: 8}", 'unknown key model.lora_alpha, did you mean "model.lora.alpha"?'),
        (
            "orpo",
            "train: {per_device_batch_size: 8}",
            'unknown key train.per_device_batch_size, did you mean "train.per_',
        ),
        ("orpo", "data: {source: d, max_prompt_len: 8}", "unknown key data.max_prompt_len, did you mean"),
        ("orpo", "model: {quantization: int4}", 'or 4bit, not "int4": here it is called 4bit'),
        ("orpo", "model: {dtype: bf16}", 'not "bf16": here it is called bfloat16'),
        ("orpo", "run: {strategy: deepspeed}", 'not "deepspeed": here it is called zero3'),
    ],
)
def test_names_of_other_libraries_are_answered_with_ours(write, method, text, message, refused):
    error = refused(write(f"# a comment\n{text}\n"), method=method, data=None if "data:" in text else "d")
    assert message in error
    assert ":2:" in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {lora: {r: 0}}\n", "model.lora.r must be at least 1, not 0"),
        ("model: {lora: {rank: 0}}\n", 'unknown key model.lora.rank, did you mean "model.lora.r"?'),
        ("model: {lora: 3}\n", "model.lora must be a mapping of keys (r, alpha, dropout, ...), not 3"),
        (
            "model: {dtype: fp8}\n",
            'model.dtype must be one of auto, float32, bfloat16, float16 or checkpoint, not "fp8"',
        ),
        ("model: {lora: {dropout: .inf}}\n", "model.lora.dropout must be a finite number, not Infinity"),
        ("model: 3\n", "model must be a mapping of keys to values"),
        ("data: {source: d, eval_split: [a]}\n", 'data.eval_split must be text or a number, not ["a"]'),
    ],
)
def test_wrong_values_deep_in_a_section(write, text, message, refused):
    file = write(f"method: orpo\n{text}")
    assert refused(file, data="d") == f"{file}:2: {message}"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("lamda=1", 'unknown key method.lamda, did you mean "lambda"?'),
        ("method.lamda=1", 'unknown key method.lamda, did you mean "lambda"?'),
        ("lambda=-1", "method.lambda must be at least 0, not -1"),
        ("lambda=many", 'method.lambda must be a number, not "many"'),
        ("lambda=true", "method.lambda must be a number, not true"),
        ("lambda=nan", 'method.lambda must be a finite number, not "nan"'),
        ("lambda=.inf", "method.lambda must be a finite number, not Infinity"),
        ("learning_rate=1", 'unknown key method.learning_rate, did you mean "train.learning_rate"?'),
        ("model=x", "the method has no setting model; write model.KEY for a key of that section"),
        ("modle.name=x", 'unknown section modle, did you mean "model"?'),
        ("lora.r=8", 'unknown section lora, did you mean "model.lora"?'),
        ("lambda", "write key=value"),
        ("train.=1", 'write a key as "lambda" or "train.learning_rate"'),
    ],
)
def test_wrong_settings_of_the_command_line(setting, message, refused):
    error = refused(method="orpo", data="d", sets=[setting])
    assert error.startswith("--set ")
    assert error.endswith(f": {message}")


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (["lambda=1", "method.lambda=2"], "method.lambda=2: method.lambda and lambda are the same setting, leave one"),
        (["data.source=e"], "data.source=e: --data sets data.source too, leave one of them out"),
        (["method=dpo"], "method=dpo: --method sets method.name too, leave one of them out"),
    ],
)
def test_a_setting_given_in_two_ways(sets, message, refused):
    assert refused(method="orpo", data="d", sets=sets).startswith(f"--set {message}")


def test_no_method_is_said(write, refused):
    assert refused().startswith("no method given: use --method NAME")
    assert refused(write(REAL)).startswith("no method given")
    file = write("method: {name: 3}\n")
    assert refused(file) == f"{file}:1: method.name must be text, not 3"


def test_a_misspelt_setting_is_refused_even_where_the_plugins_model_would_ignore_it(site, refused):
    loose = METHOD.replace("(Settings)", "(BaseModel)").replace("import Field", "import BaseModel, Field")
    site.install("align-mine", loose, mine="align_mine:Mine")
    assert 'unknown key method.flavor, did you mean "flavour"?' in refused(method="mine", data="d", sets=["flavor=x"])
    assert "method.mu must be a finite number" in refused(method="mine", data="d", sets=["mu=.nan"])


@pytest.mark.parametrize("key", sorted(train_keys.OWNED))
def test_keys_the_engine_owns_are_refused_with_what_to_do(key, refused):
    error = refused(method="orpo", data="d", sets=[f"train.{key}=1"])
    assert error == f"--set train.{key}=1: train.{key} cannot be set: {train_keys.OWNED[key]}"


def test_every_other_training_argument_can_be_set():
    from transformers import TrainingArguments

    fields = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    free = train_keys.argument_types()
    assert set(free) == set(fields) - set(train_keys.OWNED)
    ours = {key.partition(",")[0] for keys in ALIASES.values() for key in keys}
    aliased = {key.removeprefix("train.") for key in ours if key.startswith("train.")}
    assert aliased <= set(fields) | {"early_stopping_patience"}
    assert not set(ALIASES) & (set(free) | {"early_stopping_patience"})
    for key in free.keys() - train_keys.UNUSED:
        default = fields[key].default
        if default is dataclasses.MISSING:
            default = fields[key].default_factory()
        train = RunConfig(method="orpo", train={key: default}).train
        assert train_keys.check_train(train, Layer()) == {key: getattr(default, "value", default)}


def test_what_the_engine_overrides_is_owned():
    """A key the engine sets over the user's would be ignored without a word."""
    from pathlib import Path

    from alignkit.settings.training_arguments import training_arguments

    plain = settings.resolve(method="orpo", data="d").config
    arguments, _ = training_arguments(plain, Path("unused"))
    for key in ("output_dir", "seed", "remove_unused_columns", "logging_nan_inf_filter", "disable_tqdm"):
        assert key in train_keys.OWNED, key
        assert hasattr(arguments, key)
