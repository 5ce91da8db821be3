"""YAML: scalars of YAML 1.2, round trips, command-line values, files that cannot be read."""

import math
from itertools import pairwise

import pytest
from alignkit.settings import yaml_files as files
from hypothesis import given
from hypothesis import strategies as st


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
        ("method: orpo\n  a: b: c\n", "2: invalid YAML: "),
        ("- orpo\n", "1: a configuration must be a mapping of sections"),
        ("data: !!python/object:os.system {}\n", "1: the tag !!python/object:os.system is not supported"),
        ("data: !secret x\n", "1: the tag !!!secret is not supported"),
        (
            "a: &a [1,1,1,1,1,1,1,1,1]\n"
            + "".join(f"{x}: &{x} [{','.join([f'*{y}'] * 9)}]\n" for y, x in pairwise("abcdef")),
            "1: the configuration has more than 100,000 values, aliases expanded",
        ),
        ("data: &a [*a]\n", "1: this alias is inside its own anchor"),
        ("? [a]\n: b\n", "1: a key must be a single word"),
    ],
)
def test_files_that_are_no_configuration(write, text, message, refused):
    path = write(text)
    assert refused(path).startswith(f"{path}:{message}")


def test_files_that_cannot_be_read(tmp_path, write, refused):
    assert refused(tmp_path / "none.yaml") == f"{tmp_path}/none.yaml: no such file"
    write("method: orpo", "run.yaml")
    assert refused(tmp_path) == f"{tmp_path} is a directory: did you mean {tmp_path}/run.yaml?"
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"run: {name: \xe9t\xe9}")
    assert "it is not UTF-8 text" in refused(latin)


def test_anchors_are_shared_values(write):
    read = files.read(write("a: &x {r: 1}\nb: *x\n"))
    assert read.values == {"a": {"r": 1}, "b": {"r": 1}}
