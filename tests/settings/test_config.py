"""From files and command lines to one configuration: precedence, places in messages, and the way back to YAML."""

import dataclasses
import math

import pytest
import yaml
from alignkit import RunConfig, settings
from alignkit.errors import ConfigError
from alignkit.settings import train_keys
from alignkit.settings import yaml_files as files
from alignkit.settings.layers import Layer, from_dotted, merge
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.third_party import METHOD

REAL = "model: some/model\ndata: rows.jsonl\n"  # keeps the demo's preset out of the way


@pytest.fixture
def write(tmp_path):
    def to_file(text, name="orpo.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return to_file


def refused(file=None, **options):
    with pytest.raises(ConfigError) as caught:
        settings.resolve(file, **options)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- YAML


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("5E3", 5000.0),
        ("1.5", 1.5),
        (".5", 0.5),
        ("+3", 3),
        ("007", 7),
        ("0x10", 16),
        ("0o17", 15),
        ("-.inf", -math.inf),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        # text, though YAML 1.1 takes it for something else
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("2024-05-06", "2024-05-06"),
        ("nan", "nan"),
        ("e5", "e5"),
    ],
)
def test_scalars_are_read_as_yaml_1_2(write, text, value):
    from_file = files.read(write(f"key: {text}\n")).values["key"]
    assert from_file == value
    assert type(from_file) is type(value)
    assert files.parse_value(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[a, 1e-3]", ["a", 1e-3]),
        ("{r: 4}", {"r": 4}),
        ("'1e-4'", "1e-4"),
        ("{{ bos }}{% for %}", "{{ bos }}{% for %}"),
        ("[^x", "[^x"),
        ("a: b", "a: b"),
        ("a #b", "a #b"),
    ],
)
def test_values_of_the_command_line(text, value):
    assert files.parse_value(text) == value


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
_trees = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(min_size=1, max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text(min_size=1, max_size=8), _trees, max_size=4))
def test_what_is_written_is_read_back(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("yaml") / "values.yaml"
    path.write_text(files.write(values), encoding="utf-8", newline="")
    assert files.read(path).values == values


@pytest.mark.parametrize(
    "text", ["1e-4", "true", "null", "~", "0x1f", "", " a", "a: b", "- a", "#", "no", "1.", "é\n\u2028x"]
)
def test_text_that_looks_like_something_else_stays_text(write, text):
    assert files.read(write(files.write({"key": text}))).values == {"key": text}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("method: orpo\nmethod: dpo\n", "2: method is given twice"),
        ("train:\n  max_steps: 1\n  max_steps: 2\n", "3: train.max_steps is given twice"),
        ("method: orpo\n  a: b: c\n", "2: this is not YAML: "),
        ("- orpo\n", "1: a configuration is a mapping of sections"),
        ("data: !!python/object:os.system {}\n", "1: the tag !!python/object:os.system is not known here"),
        ("data: !secret x\n", "1: the tag !!!secret is not known here"),
        ("data: &a [*a]\n", "1: this alias stands inside its own anchor"),
        ("? [a]\n: b\n", "1: a key must be a word"),
    ],
)
def test_files_that_are_no_configuration(write, text, message):
    path = write(text)
    assert refused(path).startswith(f"{path}:{message}")


def test_files_that_cannot_be_read(tmp_path, write):
    assert refused(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: there is no such file"
    write("method: orpo", "run.yaml")
    assert refused(tmp_path) == f"{tmp_path} is a directory: did you mean {tmp_path}/run.yaml?"
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"run: {name: \xe9t\xe9}")
    assert "cannot be read: 'utf-8' codec" in refused(latin)


def test_anchors_are_shared_values(write):
    read = files.read(write("a: &x {r: 1}\nb: *x\n"))
    assert read.values == {"a": {"r": 1}, "b": {"r": 1}}


# ------------------------------------------------------------------------------------------------- precedence


def test_command_line_over_file_over_method_over_section(write, site):
    site.install("align-mine", METHOD, mine="align_mine:Mine")
    file = write(REAL + "method: {name: mine, mu: 2}\ntrain: {num_train_epochs: 5}\nrun: {seed: 3, name: x}\n")
    config = settings.resolve(file, seed=7, sets=["flavour=rich", "data.limit=9"]).config
    assert config.method.settings == {"mu": 2.0, "flavour": "rich"}
    assert config.train.arguments == {"learning_rate": 3e-5, "num_train_epochs": 5.0}  # the method's, the file's
    assert (config.run.seed, config.run.name, config.data.limit, config.data.max_length) == (7, "x", 9, 1024)


def test_every_option_is_a_key():
    config = settings.resolve(
        method="orpo", model="m", data="d", eval_data="e", output="o", name="n", seed=1, sets=["model.lora.r=4"]
    ).config
    assert (config.method.name, config.model.name, config.data.source, config.data.eval_source) == (
        "orpo",
        "m",
        "d",
        "e",
    )
    assert (config.run.output, config.run.name, config.run.seed, config.model.lora.r) == ("o", "n", 1, 4)


def test_the_demos_preset_stands_between_method_and_file(write):
    from alignkit.demo import PRESET

    demo = settings.resolve(method="orpo").config
    resolved = yaml.safe_load(settings.dump(demo))
    assert PRESET
    for key, value in PRESET.items():
        found = resolved
        for part in key.split("."):
            found = found[part]
        assert found == value, key
    rate = settings.resolve(write("method: orpo\ntrain: {learning_rate: 1e-9}\n")).config.train.arguments
    assert rate["learning_rate"] == 1e-9
    real = settings.resolve(method="orpo", data="rows.jsonl").config.train.arguments
    assert real["learning_rate"] != demo.train.arguments["learning_rate"]


def test_the_length_given_last_counts_in_whichever_unit(write, site):
    """transformers lets max_steps win over num_train_epochs, so a default of the one must yield to the other."""
    site.install("align-mine", METHOD, mine="align_mine:Mine")  # prefers num_train_epochs: 2
    lengths = {"max_steps", "num_train_epochs"}

    def length(file=None, **options):
        config = settings.resolve(file, method="mine", **options).config
        assert settings.check_config(config) == config
        return {key: value for key, value in config.train.arguments.items() if key in lengths}

    steps = write("train: {max_steps: 9}\n")
    assert length(data="d") == {"num_train_epochs": 2}
    assert length(steps) == {"max_steps": 9}
    assert length(steps, sets=["train.num_train_epochs=1"]) == {"num_train_epochs": 1}
    assert length(sets=["train.num_train_epochs=1"]) == {"num_train_epochs": 1}  # the demo's preset is in steps
    assert length(steps, sets=["train.num_train_epochs=1", "train.max_steps=4"]) == {
        "num_train_epochs": 1,
        "max_steps": 4,
    }


def test_lists_may_be_written_with_commas():
    config = settings.resolve(method="orpo", data="d", sets=["eval.suites=prefs, other", "train.report_to=a,b"]).config
    assert config.eval.suites == ["prefs", "other"]
    assert config.train.arguments["report_to"] == ["a", "b"]


def test_a_setting_has_one_key_by_whichever_name(write, site):
    site.install("align-mine", METHOD, mine="align_mine:Mine")
    file = write(REAL + "method: {name: mine, strength: 2}\n")
    assert settings.resolve(file, sets=["mu=3"]).config.method.settings["mu"] == 3.0
    file = write(REAL + "method:\n  name: mine\n  mu: 1\n  strength: 2\n")
    assert refused(file) == f"{file}:6: method.mu and method.strength are the same setting"


def test_settings_of_another_method_are_left_and_said(write):
    file = write(REAL + "method: {name: orpo, lambda: 0.5}\n")
    resolved = settings.resolve(file, method="dpo", sets=["beta=0.3"])
    assert resolved.config.method.settings["beta"] == 0.3
    assert resolved.notes == [f"{file}: the settings of orpo (lambda) do not go to dpo"]


def test_a_rival_of_a_built_in_is_said(site):
    site.install("rival", METHOD, orpo="rival:Mine")
    note = "method orpo is also offered by rival; the built-in one is used (rival:orpo picks the other)"
    assert settings.resolve(method="orpo", data="d").notes == [note]


@given(
    st.lists(st.dictionaries(st.sampled_from(["a.x", "a.y", "b.x", "b.z.q"]), st.integers(), max_size=4), max_size=4)
)
def test_later_layers_win_key_by_key(layers):
    expected = {}
    for layer in layers:
        expected |= layer
    merged = merge(from_dotted(layer, str(i)) for i, layer in enumerate(layers))
    assert {key: merged.get(*key.split(".")) for key in expected} == expected
    for key in expected:
        last = max(i for i, layer in enumerate(layers) if key in layer)
        assert merged.place(tuple(key.split("."))) == str(last)


def test_merging_changes_no_layer():
    below, above = Layer({"model": {"lora": {"r": 1}}}), Layer({"model": {"lora": None}})
    assert merge([below, above]).values == {"model": {"lora": None}}
    assert merge([above, below]).values == {"model": {"lora": {"r": 1}}}
    assert (below.values, above.values) == ({"model": {"lora": {"r": 1}}}, {"model": {"lora": None}})


# ------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}\n", 'unknown key trian, did you mean "train"?'),
        ("max_length: 3\n", 'unknown key max_length, did you mean "data.max_length"?'),
        ("learning_rate: 3\n", 'unknown key learning_rate, did you mean "train.learning_rate"?'),
        ("train.max_steps: 3\n", "unknown key train.max_steps: write `train:` and `max_steps:` under it"),
        ("run: {sede: 1}\n", 'unknown key run.sede, did you mean "seed"?'),
        ("train: {learing_rate: 1}\n", 'unknown key train.learing_rate, did you mean "learning_rate"?'),
        ("train: {evaluation_strategy: no}\n", "unknown key train.evaluation_strategy: it is called eval_strategy"),
        ("train: {learning_rate: abc}\n", 'train.learning_rate must be a number, not "abc"'),
        ("train: {learning_rate: -1}\n", "train.learning_rate must be at least 0, not -1"),
        ("train: {learning_rate: .nan}\n", "train.learning_rate must be a finite number, not NaN"),
        ("train: {learning_rate: 'nan'}\n", 'train.learning_rate must be a finite number, not "nan"'),
        ("train: {max_steps: 1.5}\n", "train.max_steps must be a whole number, not 1.5"),
        ("train: {max_steps: true}\n", "train.max_steps must be a number, not true"),
        ("train: {bf16: maybe}\n", 'train.bf16 must be true or false, not "maybe"'),
        ("train: {lr_scheduler_type: cosin}\n", "train.lr_scheduler_type cannot be 'cosin', did you mean \"cosine\"?"),
        ("train: {tokens_per_micro_batch: 0}\n", "train.tokens_per_micro_batch must be at least 1, not 0"),
        ("run: {seed: true}\n", "run.seed must be a number, not true"),
        ("eval: {suites: {a: b}}\n", 'eval.suites must be a list, not {"a": "b"}'),
        ("eval: {suites: [prefs, [a]]}\n", 'eval.suites.1 must be text, not ["a"]'),
        ("run: [a]\n", "run must be a mapping of keys to values"),
    ],
)
def test_wrong_keys_and_values_name_file_line_and_key(write, text, message):
    file = write(f"method: orpo\n{REAL}{text}")
    assert refused(file).startswith(f"{file}:4: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model: {lora: {r: 0}}\n", "model.lora.r must be at least 1, not 0"),
        ("model: {lora: {rank: 0}}\n", "unknown key model.lora.rank"),
        ("model: {lora: 3}\n", "model.lora must be a mapping, not 3"),
        ("model: {dtype: fp8}\n", 'model.dtype must be one of float32, bfloat16, float16 or auto, not "fp8"'),
        ("model: {lora: {dropout: .inf}}\n", "model.lora.dropout must be a finite number, not Infinity"),
        ("model: 3\n", "model must be a mapping of keys to values"),
        ("data: {source: d, eval_split: [a]}\n", 'data.eval_split must be text or a number, not ["a"]'),
    ],
)
def test_wrong_values_deep_in_a_section(write, text, message):
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
        ("model=x", "the method has no setting model; a key of that section is written model.KEY"),
        ("modle.name=x", 'there is no section modle, did you mean "model"?'),
        ("lambda", "write key=value"),
        ("train.=1", 'a key is written as "lambda" or "train.learning_rate"'),
    ],
)
def test_wrong_settings_of_the_command_line(setting, message):
    said = refused(method="orpo", data="d", sets=[setting])
    assert said.startswith("--set ")
    assert said.endswith(f": {message}")


def test_no_method_is_said(write):
    assert refused().startswith("no method is given: use --method NAME")
    assert refused(write(REAL)).startswith("no method is given")
    file = write("method: {name: 3}\n")
    assert refused(file) == f"{file}:1: method.name must be text, not 3"


def test_a_misspelt_setting_is_refused_even_where_the_plugins_model_would_ignore_it(site):
    loose = METHOD.replace("(Settings)", "(BaseModel)").replace("import Field", "import BaseModel, Field")
    site.install("align-mine", loose, mine="align_mine:Mine")
    assert 'unknown key method.flavor, did you mean "flavour"?' in refused(method="mine", data="d", sets=["flavor=x"])
    assert "method.mu must be a finite number" in refused(method="mine", data="d", sets=["mu=.nan"])


@pytest.mark.parametrize("key", sorted(train_keys.OWNED))
def test_keys_the_engine_owns_are_refused_with_what_to_do(key):
    said = refused(method="orpo", data="d", sets=[f"train.{key}=1"])
    assert said == f"--set train.{key}=1: train.{key} cannot be set: {train_keys.OWNED[key]}"


def test_every_other_training_argument_can_be_set():
    from transformers import TrainingArguments

    fields = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    free = train_keys.argument_types()
    assert set(free) == set(fields) - set(train_keys.OWNED)
    assert not set(train_keys.RENAMED) & set(fields)
    for key in free:
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


# ------------------------------------------------------------------------------------------------- from Python, and back


def test_a_python_configuration_is_checked_like_a_file():
    config = settings.check_config(RunConfig(method="orpo", data="rows.jsonl", train={"learning_rate": "1e-4"}))
    assert config.train.arguments["learning_rate"] == 1e-4
    assert config.method.settings["lambda"] == 0.1
    assert config == settings.resolve(method="orpo", data="rows.jsonl", sets=["train.learning_rate=1e-4"]).config
    with pytest.raises(ConfigError, match=r'RunConfig: unknown key train\.learing_rate, did you mean "learning_rate"'):
        settings.check_config(RunConfig(method="orpo", data="d", train={"learing_rate": 1}))
    with pytest.raises(ConfigError, match=r"RunConfig: method\.lambda must be at least 0"):
        settings.check_config(RunConfig(method={"name": "orpo", "lambda": -1}, data="d"))


def test_a_configuration_changed_in_place_keeps_the_change():
    config = RunConfig(method="orpo", data="d")
    config.run.seed = 5
    config.model.lora = {"r": 2}
    checked = settings.check_config(config)
    assert (checked.run.seed, checked.model.lora.r) == (5, 2)


@pytest.mark.parametrize("method", ["sft", "dpo", "orpo"])
def test_the_dumped_configuration_repeats_itself(write, method):
    sets = ["model.lora.r=4", "train.report_to=[none]", "train.weight_decay=1e-3", "data.columns.prompt='1e-4'"]
    config = settings.resolve(method=method, data="d", name="n", sets=sets).config
    assert settings.check_config(config) == config
    again = settings.resolve(write(settings.dump(config))).config
    assert again == config
    assert settings.dump(again) == settings.dump(config)


def test_a_repeat_of_a_run_takes_the_next_free_name(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    config = settings.resolve(method="orpo", data="d", output=str(tmp_path), name="first").config
    (first / "run.yaml").write_text(settings.dump(config))
    assert settings.resolve(first / "run.yaml").config.run.name == "first"  # no run was made from it yet
    (first / "run.json").write_text("{}")
    repeated = settings.resolve(first / "run.yaml")
    assert repeated.config.run.name == "first-2"
    assert repeated.notes == [f"repeating {first}: the run is called first-2"]
    (tmp_path / "first-2").mkdir()
    assert settings.resolve(first / "run.yaml").config.run.name == "first-3"
    assert settings.resolve(first / "run.yaml", resume=True).config.run.name == "first"
    assert settings.resolve(first / "run.yaml", name="mine").config.run.name == "mine"


def test_the_schema_covers_every_section_and_the_methods_settings():
    schema = settings.schema("orpo")
    sections = schema["$defs"]
    assert sections["MethodConfig"]["properties"]["lambda"]["minimum"] == 0
    assert sections["MethodConfig"]["properties"]["name"]["const"] == "orpo"
    assert sections["TrainConfig"]["properties"]["learning_rate"]["type"] == "number"
    assert "cosine" in str(sections["TrainConfig"]["properties"]["lr_scheduler_type"])
    assert not set(sections["TrainConfig"]["properties"]) & set(train_keys.OWNED)
    assert {"const": "orpo", "description": "the method"} in schema["properties"]["method"]["anyOf"]
    described = [
        (name, key)
        for name, section in sections.items()
        for key, value in section.get("properties", {}).items()
        if "description" not in value and name != "TrainConfig"
    ]
    assert described == []
    references = [text.split('"')[0] for text in str(schema).replace("'", '"').split("#/$defs/")[1:]]
    assert set(references) <= set(sections)
