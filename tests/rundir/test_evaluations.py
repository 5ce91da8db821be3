"""Evaluation results and the metrics log are read as they were written, also after a crash."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from alignkit import Contrast, Estimate, SuiteResult
from alignkit.errors import CheckpointError, ConfigError
from alignkit.rundir.evaluations import read_evaluation, write_evaluation
from alignkit.rundir.metrics import MetricsLog
from alignkit.system.manifest import warn_changed
from hypothesis import given
from hypothesis import strategies as st

ITEMS = [{"id": "a", "cluster": "x"}, {"id": "b", "cluster": "x"}]


def test_an_evaluation_comes_back_as_it_was(tmp_path: Path) -> None:
    metrics = {"accuracy_sum": Estimate(0.5, 0.25, 0.75), "ece": Estimate(0.1), "odd": Estimate(math.inf)}
    result = SuiteResult("prefs", 2, 1, metrics, ITEMS, {"bins": 3})
    contrast = Contrast("accuracy_sum", "credit_sum", where={"task": "facts"}, verdict=("accuracy_mean",))
    result = replace(result, contrasts=[contrast], provenance={"weights": "abc"})
    path = write_evaluation(tmp_path / "eval", result, target="demo")
    assert list(json.loads(path.read_text())) == [
        "suite",
        "target",
        "n",
        "clusters",
        "metrics",
        "settings",
        "contrasts",
        "provenance",
        "left_out",
        "draws",
        "notes",
        "items_sha256",
        "checksum",
    ]
    back = read_evaluation(tmp_path / "eval", "prefs")
    assert (back.n, back.clusters, back.items, back.settings) == (2, 1, ITEMS, {"bins": 3})
    assert (back.contrasts, back.provenance) == ([contrast], {"weights": "abc"})
    assert {k: back.metrics[k] for k in ("accuracy_sum", "ece")} == {k: metrics[k] for k in ("accuracy_sum", "ece")}
    assert math.isnan(back.metrics["odd"].value)
    with pytest.raises(ConfigError, match="suite 'perplexity'"):
        read_evaluation(tmp_path / "eval", "perplexity")


def test_the_log_is_cut_back_to_a_step_and_continues(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.cut_back(0)  # nothing was logged yet
    for step in (5, 10, 15):
        log.append({"step": step, "loss": math.nan if step == 10 else 1.0})
    with log.path.open("a") as file:
        file.write('{"step": 20, "lo')  # killed in the middle of a line
    log.cut_back(10)
    log.append({"step": 11})
    assert log.read() == [{"step": 5, "loss": 1.0}, {"step": 10, "loss": None}, {"step": 11}]


def test_a_half_written_line_is_dropped_even_within_a_character(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append({"step": 1})
    with log.path.open("ab") as file:
        file.write('{"step": 2, "é'.encode()[:-1])
    assert log.read() == [{"step": 1}]
    log.cut_back(2)
    assert log.path.read_text().startswith('{"step": 1, "checksum": ')
    assert log.path.read_text().count("\n") == 1


@given(at=st.integers(0, 500), bit=st.integers(0, 7))
def test_a_flipped_bit_of_the_log_is_said_with_its_line(at: int, bit: int) -> None:
    with TemporaryDirectory() as directory, capture() as said:
        log = MetricsLog(Path(directory) / "metrics.jsonl")
        for step in range(1, 4):
            log.append({"step": step, "loss": 1 / step, "note": "é"})
        whole, content = log.read(), bytearray(log.path.read_bytes())
        at %= len(content) - 1  # without its end, the last line counts as half written
        content[at] ^= 1 << bit
        log.path.write_bytes(content)
        line = bytes(content[:at]).count(b"\n") + 1
        try:
            same = log.read() == whole
        except CheckpointError as error:
            same = False
            said.append(str(error))
        places = tuple(f"metrics.jsonl:{line}{after}" for after in " :")  # changed, or not JSON
        assert same or any(place in one for one in said for place in places), said


@contextmanager
def capture() -> Iterator[list[str]]:
    """Collect what is logged."""
    found: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("alignkit")
    logger.addHandler(handler)
    warn_changed.cache_clear()
    try:
        yield found
    finally:
        logger.removeHandler(handler)


@pytest.mark.parametrize(("line", "message"), [("{broken", "invalid JSON"), ("[1]", "expected a JSON object")])
def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(CheckpointError, match=rf"metrics\.jsonl:2: {message}"):
        MetricsLog(path).cut_back(3)
