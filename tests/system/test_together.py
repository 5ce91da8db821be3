"""Processes that wait for one another: for as long as it takes, and with the reason if one of them fails."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alignkit.system.cache import cache_directory, private_directory
from alignkit.system.lock import file_lock

from tests.helpers import patience_worker
from tests.helpers.forked import run_ranks
from tests.helpers.third_party import METHOD, Site

pytestmark = pytest.mark.slow


def failed(folder: Path, method: str) -> None:
    """Train with a method in two processes, whose errors are in files."""
    (folder / "site").mkdir()
    Site(folder / "site").install("failing-method", method, mine="failing_method:Mine")
    run_ranks(2, patience_worker.fail, folder, cwd=folder, path=[folder / "site"])


def test_another_runs_lock_is_waited_for_longer_than_the_groups_time(tmp_path: Path) -> None:
    key = "0" * 64
    private_directory(cache_directory() / "checks")
    with ThreadPoolExecutor(1) as pool:
        with file_lock(cache_directory() / "checks" / f"{key}.lock", wait=True):
            ranks = pool.submit(run_ranks, 2, patience_worker.fetch, tmp_path, key, cwd=tmp_path)
            while len([*tmp_path.glob("waiting.*")]) < 2 and not ranks.done():
                time.sleep(0.02)
            time.sleep(4)
        ranks.result()
    assert [json.loads((tmp_path / f"found.{rank}").read_text()) for rank in (0, 1)] == [["made", False]] * 2


def test_what_fails_in_the_last_stage_fails_on_all(tmp_path: Path) -> None:
    """The second process waits for the hooks at the end of the run, which the first one calls."""
    hook = """
    @hookimpl
    def align_run_finished(self, summary, directory):
        raise OverflowError(summary["status"])
"""
    failed(tmp_path, METHOD + hook)
    assert (tmp_path / "error.0").read_text() == (tmp_path / "error.1").read_text()
    record = json.loads((tmp_path / "runs/one/run.json").read_text())
    assert record["status"] == "finished"
    assert record["error"].startswith('method "mine" (failing-method 1.2.3) failed in align_run_finished')
    assert (tmp_path / "error.1").read_text() == record["error"]


def test_the_record_has_the_reason_of_the_process_that_failed(tmp_path: Path) -> None:
    alone = "if rank() == 1:\n            raise OverflowError('too much')\n        weight ="
    source = "from alignkit.system.distributed import rank\n" + METHOD.replace("weight =", alone)
    failed(tmp_path, source)
    record = json.loads((tmp_path / "runs/one/run.json").read_text())
    assert record["status"] == "failed"
    assert record["error"] == (tmp_path / "error.0").read_text()
    assert record["error"].startswith('rank 1 failed: method "mine" (failing-method 1.2.3) failed')
    assert "OverflowError: too much" in record["error"]
    assert record["error"].endswith(f"resume with: align resume {tmp_path / 'runs/one'}")
