"""``align schema``: what the loader accepts, the schema accepts; what it refuses for its key or type, the schema refuses."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from alignkit import settings
from alignkit.errors import AlignError
from alignkit.runs.evaluation import open_suites
from alignkit.settings import train_keys
from alignkit.settings.layers import Layer
from alignkit.settings.yaml_files import read
from alignkit_eval.pipelines.stages import read_pipeline
from alignkit_eval.schemas.files import run_schema, whole_schema
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from jsonschema import Draft7Validator

from tests.helpers.runs import align

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.yaml"))
VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, 1, 2, -1, 0.5, 1.5, 1e-4, 1e13),
    *("5", "-5", "0.5", "1e-4", "inf", "1_000", "yes", "auto", "x", "", "prefs,kl", "all", "cosine", "8bit", "sigmoid"),
    *([], ["x"], [1], [True], ["prefs"], {}, {"a": 1}, {"a": "b"}, {"a": True}, {"prefs": 5}, {"prefs": {"zzz": 1}}),
)
BASE = {"model": "some/model", "data": {"source": "rows.jsonl"}}


def loaded(values: dict[str, Any]) -> str | None:
    """Return why the loader refuses a configuration; None if it does not."""
    try:
        config = settings.resolve_layers([Layer(copy.deepcopy(values), default_place="file")]).config
        open_suites(config.eval)
    except AlignError as error:
        return str(error)
    return None


class Checked(Draft7Validator):
    """A validator with a short representation, for messages of failed tests."""

    def __repr__(self) -> str:
        return f"schema of {self.schema['title']}"


@pytest.fixture(scope="module")
def validators() -> dict[str, Checked]:
    schemas = {method: run_schema(method) for method in ("orpo", "dpo", "grpo")}
    for schema in schemas.values():
        Draft7Validator.check_schema(schema)
    return {method: Checked(schema) for method, schema in schemas.items()}


@pytest.fixture(scope="module")
def any_file() -> Checked:
    return Checked(whole_schema())


def paths(schema: dict[str, Any], node: dict[str, Any], path: tuple[str, ...] = ()) -> Any:
    """Yield the path of every key that a schema names."""
    node = schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node
    for part in node.get("anyOf", []):
        yield from paths(schema, part, path)
    for key, inner in node.get("properties", {}).items():
        yield (*path, key)
        if len(path) < 3 and (*path, key) != ("method", "loss"):
            yield from paths(schema, inner, (*path, key))


def with_value(method: str, path: tuple[str, ...], value: Any) -> dict[str, Any]:
    values: dict[str, Any] = copy.deepcopy(BASE) | {"method": {"name": method}}
    here = values
    for key in path[:-1]:
        inner = here.get(key)
        here[key] = inner if isinstance(inner, dict) else {}
        here = here[key]
    here[path[-1]] = value
    return values


@given(data=st.data())
@hypothesis_settings(max_examples=100)
def test_one_changed_value_is_refused_by_both_or_accepted_by_both(
    validators: dict[str, Checked], data: st.DataObject
) -> None:
    method = data.draw(st.sampled_from(sorted(validators)))
    schema = validators[method].schema
    known = [path for path in dict.fromkeys(paths(schema, schema)) if path != ("method", "name")]
    path = data.draw(st.sampled_from(known))
    if data.draw(st.integers(0, 9)) == 0:
        path = (*path[:-1], path[-1] + "x")  # an unknown key
    values = with_value(method, path, data.draw(st.sampled_from(VALUES)))
    why, accepted = loaded(values), validators[method].is_valid(values)
    if why is None:
        assert accepted, values
    elif ("unknown key" in why or "must be" in why) and not is_number_as_text(values, path):
        assert not accepted, (values, why)


def is_number_as_text(values: dict[str, Any], path: tuple[str, ...]) -> bool:
    """Whether a bound is all that is wrong: a schema has none for a number that is written as text."""
    for key in path:
        values = values[key]
    return isinstance(values, str) and values[:1] in "-0123456789"


@pytest.mark.parametrize(
    ("value", "fine"), [("1_000", True), (5, True), (-1, True), ("-1", True), (0, False), (1.5, False)]
)
def test_how_many_steps(validators: dict[str, Checked], value: Any, fine: bool) -> None:
    values = with_value("orpo", ("train", "max_steps"), value)
    assert (loaded(values) is None) is validators["orpo"].is_valid(values) is fine


@pytest.mark.parametrize("text", ["prefs,kl", "prefs", " prefs , kl,", "alignkit:prefs,perplexity"])
def test_suites_separated_by_commas_are_accepted(validators: dict[str, Checked], text: str) -> None:
    values = with_value("orpo", ("eval", "suites"), text)
    assert loaded(values) is None
    assert validators["orpo"].is_valid(values)


@pytest.mark.parametrize(
    "method",
    [
        {"loss": "sigmoid", "label_smoothing": 0.1},
        {"loss": "hinge", "label_smoothing": 0.1},
        {"loss": "hinge", "label_smoothing": 0},
        {"loss": {"sigmoid": 0.8, "bco": {"weight": 0.2, "beta": 0.2}}},
        {"loss": {"sigmoid": 0.8, "bco": {"gamma": 0.2}}},
        {"loss": {"sigmoid": 0.8, "nothing": 1}},
        {"loss": {}},
        {"loss": "nothing"},
        {"loss": "bco", "shift": "none"},
        {"loss": "sigmoid", "shift": "mean"},
        {"alpha": 0.1},
        {"nll_weight": 0.1},
        {"nll_weight": 0.1, "alpha": 0.1},
    ],
    ids=str,
)
def test_a_loss_decides_which_settings_there_are(validators: dict[str, Checked], method: dict[str, Any]) -> None:
    values = BASE | {"method": {"name": "dpo", **method}}
    assert validators["dpo"].is_valid(values) == (loaded(values) is None)


@pytest.mark.parametrize(
    ("reward", "fine"),
    [
        ("length,match", True),
        ({"name": "length", "weight": 2}, True),
        ([{"name": "length", "target": 5}, "match"], True),
        ({"name": "length", "tarjet": 5}, False),
        ({"weight": 1}, False),
        (3, False),
    ],
)
def test_rewards_have_their_own_settings(validators: dict[str, Checked], reward: Any, fine: bool) -> None:
    assert validators["grpo"].is_valid(with_value("grpo", ("method", "reward"), reward)) is fine


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_every_example_is_accepted(any_file: Checked, file: Path) -> None:
    assert list(any_file.iter_errors(read(file).values)) == []


@pytest.mark.parametrize(
    ("change", "fine"),
    [
        (lambda stages: None, True),
        (lambda stages: stages[0].update(from_="x"), False),
        (lambda stages: stages[0].update(train={"learning_rate": "fast"}), False),
        (lambda stages: stages[0].update(train={"bf16_full_eval": True}), False),
        (lambda stages: stages[-1].update(suites=["prefs", "kl"], settings={"generate": {"prompts": 5}}), True),
        (lambda stages: stages[-1].update(method="orpo"), False),
        (lambda stages: stages.append({"export": "imitate", "merge": ["lean"], "weights": "0.5,0.5"}), True),
        (lambda stages: stages.append({"export": "imitate", "eval": "all"}), False),
        (lambda stages: stages.append({"name": "a b", "method": "sft"}), False),
        (lambda stages: stages.append({"method": "trl-sft", "train": {"bf16_full_eval": False}}), True),
        (lambda stages: stages.append({"stage": "data", "rows": "prompt", "data": {"limit": 5}}), True),
        (lambda stages: stages.append({"stage": "data", "rows": "prompts"}), False),
        (lambda stages: stages.append({"rows": "prompt"}), False),
        (lambda stages: stages.append({"stage": "index"}), False),
    ],
)
def test_the_stages_of_a_pipeline(any_file: Checked, tmp_path: Path, change: Any, fine: bool) -> None:
    values = read(next(file for file in EXAMPLES if file.name == "progressive.yaml")).values
    change(values["stages"])
    assert any_file.is_valid(values) is fine
    file = tmp_path / "pipeline.yaml"
    file.write_text(json.dumps(values))
    try:
        read_pipeline(file).open(tmp_path)
    except AlignError:
        assert not fine
    else:
        assert fine


def test_a_race_belongs_to_a_sweeps_file_and_unknown_methods_are_refused(any_file: Checked) -> None:
    assert any_file.is_valid({"method": "orpo", "race": {"rungs": [0.5], "objective": "accuracy_sum"}})
    assert not any_file.is_valid({"method": "orpo", "race": {"rungs": []}})
    assert not any_file.is_valid({"method": "orop"})
    assert not any_file.is_valid({"model": "demo"})


def test_every_key_has_a_description_and_every_reference_leads_somewhere(any_file: Checked) -> None:
    schema = any_file.schema
    sections = schema["$defs"]
    assert not set(sections["TrainConfig"]["properties"]) & set(train_keys.OWNED)
    assert "cosine" in str(sections["TrainConfig"]["properties"]["lr_scheduler_type"])
    bare = [
        (name, key)
        for name, section in sections.items()
        for key, value in section.get("properties", {}).items()
        if not value.get("description") and name != "TrainConfig"
    ]
    assert bare == []
    references = [text.split('"')[0] for text in json.dumps(schema).split('"#/$defs/')[1:]]
    assert set(references) <= set(sections)


def test_attach_begins_a_file_with_the_line_of_its_schema(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("# mine\nmethod: orpo\n")
    for _ in range(2):
        assert align("schema", "orpo", "--attach", "mine.yaml", cwd=tmp_path).returncode == 0
    line, rest = file.read_text().split("\n", 1)
    assert rest == "# mine\nmethod: orpo\n"
    path = line.removeprefix("# yaml-language-server: $schema=file://")
    assert json.loads(Path(path).read_text())["title"] == "align run: orpo"
    refused = align("schema", "orpo", "--attach", "nowhere.yaml", cwd=tmp_path)
    assert (refused.returncode, refused.stderr) == (2, "Error: nowhere.yaml: no such file\n")
