"""Sweeps that cannot be meant, names of cells, and words about the sweep's own options."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from alignkit.errors import ConfigError
from alignkit_eval.cli.sweep import seeds_of
from alignkit_eval.sweeps.grid import SweepSpec, cells
from alignkit_eval.sweeps.manifest import extended, read_spec, write_spec


@pytest.mark.parametrize(
    ("over", "seeds", "message"),
    [
        ({"lamda": ["0", "1"]}, [0], '--over lamda=0: unknown key method.lamda, did you mean "lambda"'),
        ({"lambda": ["0", "x"]}, [0], "--over lambda=x: method.lambda must be a number"),
        ({"lambda": ["0"]}, [2**32], "--seeds: run.seed must be at most 4,294,967,295"),
        ({"lambda": [str(i) for i in range(100)]}, range(10_000), r"1,000,000 cells \(100 lambda x 10,000 seeds\)"),
    ],
)
def test_wrong_sweeps_are_refused_in_their_own_words(
    over: dict[str, list[str]], seeds: list[int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        cells(SweepSpec(over=over, seeds=seeds, method="orpo"), tmp_path)


def test_two_files_of_one_name_are_two_cells(tmp_path: Path) -> None:
    for folder, strength in (("a", 0.1), ("b", 0.2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.yaml").write_text(f"method: {{lambda: {strength}}}\n")
    files = [str(tmp_path / folder / "x.yaml") for folder in "ab"]
    found, _ = cells(SweepSpec(over={"config": files}, method="orpo"), tmp_path)
    assert [cell.name for cell in found] == ["x-seed=0", "x-seed=0-2"]
    assert [cell.config.method.settings["lambda"] for cell in found] == [0.1, 0.2]


@pytest.mark.parametrize("text", ["", "0,,1", "1e3", "-1", "0,1.5", "9" * 5000, "x" * 5000])
def test_seeds_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="whole numbers from 0 to 4294967295") as caught:
        seeds_of(text)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(("key", "value"), [("over", "[1, 2]"), ("seeds", "many"), ("sets", "{a: 1}"), ("file", "[x]")])
def test_a_damaged_definition_names_file_and_key(key: str, value: str, tmp_path: Path) -> None:
    write_spec(tmp_path, SweepSpec(over={"lambda": ["0"]}, method="orpo"))
    path = tmp_path / "sweep.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: yaml.safe_load(value)}))
    with pytest.raises(ConfigError, match=rf"sweep\.yaml: {key}"):
        read_spec(tmp_path)


def test_values_and_seeds_are_added_to_a_sweep_after_those_it_has(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text("")
    first = SweepSpec(
        over={"config": [str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")], "beta": ["1", "2"]}, seeds=[0], sets=[]
    )
    write_spec(tmp_path, first)
    assert extended(tmp_path, first) == (first, [])
    again = str(tmp_path / "x" / ".." / "b.yaml")  # the same file
    more = SweepSpec(over={"beta": ["3", "2"], "config": [again, str(tmp_path / "c.yaml")]}, seeds=[1, 0], sets=[])
    found, notes = extended(tmp_path, more)
    assert found.over == {"config": [first.over["config"][0], again, more.over["config"][1]], "beta": ["1", "2", "3"]}
    assert list(found.seeds) == [0, 1]
    assert notes == [
        f"{tmp_path} has a sweep already, which is extended: config c; beta 3; seeds 1",
        f"the sweep in {tmp_path} also has config a; beta 1, which is kept",
    ]
    write_spec(tmp_path, found)
    assert read_spec(tmp_path) == found
    with pytest.raises(ConfigError, match="extended meanwhile: run the same command again"):
        write_spec(tmp_path, more)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"over": {"beta": ["1"]}}, "a different over"),
        ({"seeds": [1]}, r"a different seeds \(\[0\], now \[1\]\): choose another --name"),
        ({"sets": ["alpha=1"]}, r"a different alpha \(not set, now 1\): choose another --name"),
        ({"model": "other"}, "a different model"),
        ({"data": "other"}, "a different data"),
        ({"over": {"lambda": ["0", "1"]}, "race": {"rungs": [0.5]}}, "a different (over|race)"),
    ],
)
def test_another_sweep_in_its_directory_is_refused_with_the_key_that_differs(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    spec = SweepSpec(over={"lambda": ["0"]}, method="orpo")
    write_spec(tmp_path, spec)
    with pytest.raises(ConfigError, match=message):
        extended(tmp_path, replace(spec, **changed))
