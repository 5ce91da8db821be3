"""Sweeps that cannot be meant, names of cells, and words about the sweep's own options."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from alignkit.errors import ConfigError
from alignkit_eval.cli.sweep import seeds_of
from alignkit_eval.sweeps.grid import SweepSpec, cells
from alignkit_eval.sweeps.manifest import read_spec, write_spec


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
