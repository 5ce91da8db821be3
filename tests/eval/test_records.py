"""Records of sweeps and pipelines read from disk: wrong types are one sentence with the file and the key."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignkit.errors import CheckpointError
from alignkit.system.files import write_json
from alignkit_eval.pipelines.pipeline import StageRecord
from alignkit_eval.records import read_records

GOOD = {
    "name": "sft",
    "kind": "train",
    "status": "finished",
    "seconds": 1.5,
    "cpu_seconds": 1.0,
    "of a later version": 1,
}


def test_records_come_back_without_unknown_keys(tmp_path: Path) -> None:
    path = tmp_path / "pipeline.json"
    assert read_records(path, "stages", StageRecord) == []
    write_json(path, {"stages": [GOOD]})
    (record,) = read_records(path, "stages", StageRecord)
    assert record == StageRecord("sft", "train", "finished", 1.5, 1.0)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"stages": [{"name": "a", "kind": "train", "seconds": []}]}', "stages.0.seconds: input should be"),
        ('{"stages": [{"name": null, "kind": "train"}]}', "stages.0.name: input should be"),
        ('{"stages": {"name": 1}}', "stages: input should be a valid list"),
        ('{"stages": [1]}', "stages.0: "),
        ("{}", "expected an object with the key stages"),
        ("[]", "expected an object with the key stages"),
        ("[" * 5000, "invalid JSON: nested too deeply"),
        ('{"stages": [', "invalid JSON: column 13"),
        ('{"stages": ' + "9" * 5000 + "}", "too many digits"),
    ],
)
def test_a_damaged_record_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "pipeline.json"
    path.write_text(text)
    with pytest.raises(CheckpointError) as caught:
        read_records(path, "stages", StageRecord)
    assert str(caught.value).startswith(str(path))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
