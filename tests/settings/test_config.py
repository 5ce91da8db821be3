"""Resolution of configurations: precedence, merging, notes; configurations made in Python, and dumped ones."""

import pytest
import yaml
from alignkit import RunConfig, settings
from alignkit.errors import ConfigError
from alignkit.settings.layers import Layer, from_dotted, merge
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.third_party import METHOD

REAL = "model: some/model\ndata: rows.jsonl\n"  # so that the demo's preset does not apply


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


def test_a_setting_has_one_key_by_whichever_name(write, site, refused):
    site.install("align-mine", METHOD, mine="align_mine:Mine")
    file = write(REAL + "method: {name: mine, strength: 2}\n")
    assert settings.resolve(file, sets=["mu=3"]).config.method.settings["mu"] == 3.0
    file = write(REAL + "method:\n  name: mine\n  mu: 1\n  strength: 2\n")
    assert refused(file) == f"{file}:6: method.mu and method.strength are the same setting"


def test_settings_of_another_method_are_left_and_said(write):
    file = write(REAL + "method: {name: orpo, lambda: 0.5}\n")
    resolved = settings.resolve(file, method="dpo", sets=["beta=0.3"])
    assert resolved.config.method.settings["beta"] == 0.3
    assert resolved.notes == [f"{file}: the settings of orpo (lambda) are not used for dpo"]


def test_a_rival_of_a_built_in_is_said(site):
    site.install("rival", METHOD, orpo="rival:Mine")
    note = "method orpo is also provided by rival; the built-in one is used (rival:orpo selects the other)"
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
    assert repeated.notes == [f"repeating {first}: the new run is named first-2"]
    (tmp_path / "first-2").mkdir()
    assert settings.resolve(first / "run.yaml").config.run.name == "first-3"
    assert settings.resolve(first / "run.yaml", resume=True).config.run.name == "first"
    assert settings.resolve(first / "run.yaml", name="mine").config.run.name == "mine"


def test_a_validator_of_a_plugin_that_fails_is_named(write, site):
    faulty = METHOD.replace("from pydantic import Field", "from pydantic import Field, field_validator")
    validator = """\
    @field_validator("flavour", mode="before")
    @classmethod
    def check(cls, value):
        return len(value) and value

class Mine(Method"""
    site.install("align-mine", faulty.replace("class Mine(Method", validator.lstrip("\n"), 1), mine="align_mine:Mine")
    file = write(REAL + "method: {name: mine, flavour: 5}\n")
    with pytest.raises(ConfigError, match=r"method: align_mine.MineSettings cannot read .*TypeError.*int.* has no len"):
        settings.resolve(file)
