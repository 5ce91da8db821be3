"""Files that alignkit writes and reads back say when they were changed in between."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from alignkit import Estimate, SuiteResult
from alignkit.rundir.directory import RunDir
from alignkit.rundir.evaluations import read_evaluation, write_evaluation

RESULT = SuiteResult("s", 1, 1, {"m": Estimate(0.5, 0.25, None)}, [{"id": "a", "cluster": "a", "x": 1.5}])


def changed(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [found[1] for r in caplog.records if (found := re.match(r".*/([\w.]+) has changed since", r.message))]
    caplog.clear()
    return found


@pytest.mark.parametrize(("file", "old", "new"), [("s.json", "0.25", "0.26"), ("s.items.jsonl", "1.5", "1.6")])
def test_a_changed_result_is_said(
    file: str, old: str, new: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_evaluation(tmp_path, RESULT, target="t")
    assert read_evaluation(tmp_path, "s").metrics == RESULT.metrics
    assert changed(caplog) == []
    (tmp_path / file).write_text((tmp_path / file).read_text().replace(old, new))
    read_evaluation(tmp_path, "s")
    assert changed(caplog) == [file]


def test_a_changed_record_is_said_once_and_its_status_may_be_overwritten(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunDir(tmp_path)
    run.update_record(status="running", seed=3, method="orpo")
    run.overwrite_status("failed")
    assert run.read_record() == {"status": "failed", "seed": 3, "method": "orpo"}
    assert changed(caplog) == []
    run.record.write_text(run.record.read_text().replace('"seed": 3', '"seed": 7'))
    assert [run.read_record()["seed"] for _ in range(2)] == [7, 7]
    assert changed(caplog) == ["run.json"]


def test_a_file_without_a_checksum_is_read_as_before(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write_evaluation(tmp_path, RESULT, target="t")
    stored = json.loads(path.read_text())
    path.write_text(json.dumps({key: stored[key] for key in stored if key not in ("checksum", "items_sha256")}))
    (tmp_path / "s.items.jsonl").write_text('{"id": "a", "cluster": "a", "x": 2.5}\n')
    read_evaluation(tmp_path, "s")
    assert changed(caplog) == []
