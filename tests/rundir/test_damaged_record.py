"""run.json and metrics.jsonl with values of wrong types: every command that reads them names the file and the key."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from alignkit.__main__ import main
from alignkit.rundir.metrics import MetricsLog
from alignkit.system.manifest import warn_changed

RECORD: dict[str, Any] = {
    "status": "failed",
    "method": "orpo",
    "model": {"name": "demo", "parameters": 3},
    "config": {"method": {"name": "orpo"}, "train": {"max_steps": 4}, "run": {"output": ".", "name": "r"}},
    "evaluation": {"before": {"prefs": {"accuracy_sum": {"value": 0.5, "low": None, "high": None}}}, "after": {}},
    "train": {"loss": 1.0},
    "seconds": 3.0,
    "steps": 4,
}
CHANGES: dict[str, Any] = {
    "status": 3,
    "method": {},
    "config": [],
    "config.run": 3,
    "config.train": "x",
    "evaluation": [],
    "evaluation.before": 3,
    "evaluation.before.prefs": 3,
    "evaluation.before.prefs.accuracy_sum": "x",
    "evaluation.before.prefs.accuracy_sum.value": "x",
    "steps": "many",
    "seconds": "long",
    "started": "now",
    "timings": {"train": 3},
    "error": {"a": 1},
    "model": [],
    "model.parameters": "x",
    "train": 3,
    "train.loss": [],
    "data": "x",
    "data.train": 7,
    "environment": [],
    "seed": "x",
    "conventions": [],
}
RAW = {
    "a list": "[]",
    "nested": '{"a":' * 100_000 + "1" + "}" * 100_000,
    "nested in the configuration": '{"config": ' + '{"a":' * 500 + "1" + "}" * 501,
    "digits": '{"steps": ' + "9" * 5000 + "}",
    "half written": '{"status": ',
    "bytes": "\udcff",
}
METRICS = {
    "step": ['{"step": "one"}', '{"step": null}', '{"step": {"a": 1}}'],
    "epoch": ['{"step": 1, "loss": 2, "epoch": "one"}'],
    "an integer has too many digits": [f'{{"step": {"9" * 5000}}}'],
    "expected a JSON object": ["[1]"],
    "nested too deeply": ["[" * 100_000 + "]" * 100_000],
}


def run_directory(where: Path, record: str, metrics: str = "") -> Path:
    run = where / "r"
    run.mkdir(exist_ok=True)
    (run / "run.json").write_text(record, errors="surrogateescape")
    (run / "run.yaml").write_text("method: orpo\n")
    (run / "metrics.jsonl").write_text(metrics)
    return run


def refused(capfd: pytest.CaptureFixture[str], *arguments: object) -> str:
    code = main([str(argument) for argument in arguments])
    stderr = capfd.readouterr().err.rpartition("loading PyTorch and transformers\n")[2]
    assert code == 2, stderr
    assert stderr.startswith("Error: ")
    assert stderr.count("\n") == 1
    assert "--debug" not in stderr
    return stderr


CASES = [(key, "status") for key in CHANGES]
CASES += [(key, command) for key in ("status", "config", "train.loss") for command in ("resume", "compare", "export")]


@pytest.mark.parametrize(("key", "command"), CASES)
def test_wrong_type_in_the_record(key: str, command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    record = json.loads(json.dumps(RECORD))
    *above, last = key.split(".")
    owner = record
    for part in above:
        owner = owner.setdefault(part, {})
    owner[last] = CHANGES[key]
    run = run_directory(tmp_path, json.dumps(record))
    assert f"{run}/run.json: {key}" in refused(capfd, command, run)


@pytest.mark.parametrize("command", ["status", "resume", "compare"])
@pytest.mark.parametrize("name", RAW)
def test_record_that_is_not_an_object(
    name: str, command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = run_directory(tmp_path, RAW[name])
    for command in ("status", "compare"):
        sentence = refused(capfd, command, run)
        assert sentence.startswith(f"Error: {run}/run.json: ")
        assert len(sentence) < 300


@pytest.mark.parametrize(("says", "line"), [(says, line) for says, found in METRICS.items() for line in found])
def test_damaged_metrics(says: str, line: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_directory(tmp_path, json.dumps(RECORD), f'{{"step": 1, "loss": 2.0, "epoch": 0.5}}\n{line}\n')
    sentence = refused(capfd, "status", run)
    assert sentence.startswith(f"Error: {run}/metrics.jsonl:2: ")
    assert says in sentence


@pytest.mark.parametrize("damage", ["number", "key", "lines", "end", "file"])
def test_a_damaged_log_is_said_by_status(
    damage: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    run = run_directory(tmp_path, json.dumps({**RECORD, "status": "finished", "steps": 3}))
    log = MetricsLog(run / "metrics.jsonl")
    for step in (1, 2, 3):
        log.append({"step": step, "loss": 2.5})
    assert main(["status", str(run)]) == 0
    assert "metrics" not in "".join(capfd.readouterr())
    text = log.path.read_text()
    warn_changed.cache_clear()
    match damage:
        case "number":
            log.path.write_text(text.replace("2.5", "2.7", 1))
        case "key":
            log.path.write_text(text.replace("loss", "lost", 1))
        case "lines":
            log.path.write_text("".join(text.splitlines(keepends=True)[:2]))
        case "end":
            log.path.write_text(text[:-1])
        case _:
            log.path.unlink()
    assert main(["status", str(run)]) == 0
    where = {"number": f"{run}/metrics.jsonl:1 has changed", "file": f"{run}/metrics.jsonl is missing"}
    where["key"] = where["number"]
    said = "".join(capfd.readouterr()) + caplog.text
    assert where.get(damage, f"the metrics are damaged: {run}/metrics.jsonl:2 is the last whole line") in said


@pytest.mark.parametrize("make", [os.mkfifo, lambda file: file.symlink_to("/dev/zero")], ids=["pipe", "device"])
@pytest.mark.parametrize("name", ["run.json", "metrics.jsonl"])
def test_file_that_never_ends(name: str, make: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_directory(tmp_path, json.dumps(RECORD))
    (run / name).unlink()
    make(run / name)
    assert f"{run}" in refused(capfd, "status", run)


def test_damaged_configuration_costs_the_total_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for train in ({"max_steps": "x"}, {"max_steps": [1]}, {"num_train_epochs": "x"}):
        record = {**RECORD, "config": {**RECORD["config"], "train": train}}
        run = run_directory(tmp_path, json.dumps(record), '{"step": 1, "loss": 2.0, "epoch": 0.5}\n')
        assert main(["status", str(run)]) == 0
        assert "step 1\n" in capfd.readouterr().out


def test_whole_record_is_read(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    run = run_directory(tmp_path, json.dumps(RECORD), '{"step": 1, "loss": 2.0, "epoch": 0.5}\n')
    assert main(["status", str(run)]) == 0
    assert "step 1 of 4" in capfd.readouterr().out
