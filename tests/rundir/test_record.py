"""The typed record of run.json: unknown keys, metrics, errors, hub ids."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from alignkit import Estimate
from alignkit.errors import CheckpointError
from alignkit.rundir.record import RunRecord

FILE = Path("runs/a/run.json")
RECORD: dict[str, Any] = {"status": "finished", "method": "orpo", "model": {"name": "demo", "path": "/demo"}}


def test_keys_of_other_versions_are_ignored() -> None:
    newer = RECORD | {"colour": "blue", "model": RECORD["model"] | {"layers": 4}, "train": {"watts": 3.0, "tokens": 7}}
    record = RunRecord.parse(newer, FILE)
    assert (record.status, record.model.name, record.train.tokens) == ("finished", "demo", 7)
    assert not hasattr(record, "colour")


def test_metrics_are_estimates_and_null_is_not_a_number() -> None:
    stored = {"prefs": {"accuracy_sum": {"value": 0.5, "low": 0.4, "high": 0.6}, "ece": {"value": None, "low": None}}}
    after = RunRecord.parse(RECORD | {"evaluation": {"after": stored}}, FILE).evaluation.after["prefs"]
    assert after["accuracy_sum"] == Estimate(0.5, 0.4, 0.6)
    assert math.isnan(after["ece"].value)
    assert after["ece"].low is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"steps": "many"}, "steps: input should be a valid integer"),
        ({"model": {}}, "model.name: field required"),
        ({"train": {"loss": [1]}}, "train.loss: input should be a valid number"),
        ({"evaluation": {"before": {"prefs": {"ece": {"value": "x"}}}}}, r"evaluation\.before\.prefs\.ece\."),
    ],
)
def test_a_wrong_type_is_one_sentence_with_file_and_key(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(CheckpointError, match=f"^runs/a/run.json: {expected}") as caught:
        RunRecord.parse(RECORD | change, FILE)
    assert "\n" not in str(caught.value)


def test_only_a_name_that_resolves_to_itself_is_a_hub_id() -> None:
    def hub(name: str, path: str) -> bool:
        return RunRecord.parse(RECORD | {"model": {"name": name, "path": path}}, FILE).model.is_hub_id

    assert hub("org/model", "org/model")
    assert not hub("runs/a", "/work/runs/a/model")
    assert not hub("/models/a", "/models/a")
