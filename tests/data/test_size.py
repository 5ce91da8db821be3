"""Large data: worker processes, a shared cache, killed runs, streams and remote files."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pytest
from alignkit.config import DataConfig, RunConfig
from alignkit.data.load import Data, load_data
from alignkit.data.sources import chunks as chunks_module
from alignkit.data.sources.chunks import Source
from alignkit.data.sources.open import open_source
from alignkit.data.tokenise.encode import Recipe, encode
from alignkit.data.tokenise.rules import TokenRules
from alignkit.errors import DataError, RunFailedError

from tests.helpers.data import make_tokenizer, pairs, write_jsonl
from tests.helpers.forked import fork

TOKENIZER = make_tokenizer()
RECIPE = Recipe("preference", TokenRules(64))


def load(source: object, **data: Any) -> Data:
    return load_data(RunConfig(method="m", data={"source": str(source), **data}), "preference", TOKENIZER)


def rows(n: int) -> list[dict[str, Any]]:
    """Rows of which some share an id, have several answers, or are unusable."""
    made = pairs(n)
    for i in range(0, n, 7):
        made[i]["id"] = "again"
    for i in range(3, n, 11):
        made[i]["rejected"] = ["It is not.", f"It is {i}6."]
    for i in range(5, n, 13):
        made[i]["chosen"] = " "
    return made


# ------------------------------------------------------------------------------------------------ chunks and processes


def test_neither_chunks_nor_processes_change_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(write_jsonl(tmp_path / "rows.jsonl", rows(90)))

    def table(size: int, workers: int) -> dict[str, Any]:
        monkeypatch.setattr(chunks_module, "ROWS", size)
        batches = list(encode(open_source(path, None, DataConfig()), RECIPE, TOKENIZER, workers))
        assert len(batches) == -(-90 // size)
        columns: dict[str, list[Any]] = {}
        for batch in batches:
            for name, values in batch.to_pydict().items():
                columns.setdefault(name, []).extend(values)
        return columns

    whole = table(1000, 1)
    assert table(7, 1) == whole
    assert table(7, 3) == whole
    assert whole["position"] == sorted(whole["position"])
    assert set(whole["position"]) == set(range(90)), "rows made of one row of the source share its position"
    assert len(set(whole["id"])) == len(whole["id"])


def test_an_error_in_a_process_is_that_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "ROWS", 4)
    path = write_jsonl(tmp_path / "rows.jsonl", [*pairs(70), {"prompt": "a", "chosen": 3, "rejected": "b"}])
    with pytest.raises(DataError, match=rf'^{path}:71: "chosen" is a number, expected text or a list of messages$'):
        load(path, workers=2)
    assert not list((tmp_path / "cache" / "tokens").iterdir())


class Fatal(bytes):
    """A line whose process is killed, as the kernel does when memory runs out."""

    def decode(self, *_: Any) -> str:
        os.kill(os.getpid(), signal.SIGKILL)
        return ""


def test_a_killed_worker_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunks_module, "ROWS", 2)
    lines = [json.dumps(row).encode() for row in pairs(2)] * 9
    source = Source("f", "f", lambda: iter([(line, "f:1") for line in [*lines, Fatal(lines[0])]]), lambda: "")
    with pytest.raises(RunFailedError, match=r"was killed \(out of memory\?\): set data\.workers"):
        list(encode(source, RECIPE, TOKENIZER, 2))


# ------------------------------------------------------------------------------------------------ one cache, many runs


def print_fingerprint(path: str) -> None:
    print(load(path, workers=2, max_dropped=1.0).report.fingerprint)


@pytest.mark.slow
def test_eight_runs_on_one_cache_of_which_one_is_killed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows(14_000))  # enough for worker processes, which must end with it
    folder = tmp_path / "cache" / "tokens"
    files = [[os.devnull, tmp_path / f"out.{number}", tmp_path / f"err.{number}"] for number in range(8)]
    given = {"cwd": tmp_path, "variables": os.environ}
    running = [fork(print_fingerprint, str(path), files=each, **given) for each in files]
    killed = _kill_the_one_that_writes(folder, {process.pid for process in running})
    codes = {process.pid: process.wait() for process in running}
    outputs = {process.pid: Path(out).read_text().strip() for process, (_, out, _) in zip(running, files, strict=True)}
    assert codes.pop(killed) == -signal.SIGKILL
    assert set(codes.values()) == {0}
    assert len({outputs[pid] for pid in codes}) == 1
    (file,) = folder.iterdir()
    assert file.suffix == ".arrow", "no half file, no lock"
    assert outputs[next(iter(codes))] == load(path, max_dropped=1.0, cache=False).report.fingerprint


def _kill_the_one_that_writes(folder: Path, candidates: set[int]) -> int:
    while not list(folder.glob("*.arrow")):
        for partial in folder.glob("*.partial"):
            lock = partial.with_suffix(".lock")
            holder = lock.read_text().strip() if lock.exists() else ""
            if holder.isdigit() and partial.exists() and partial.stat().st_size > 100_000:
                assert int(holder) in candidates
                os.kill(int(holder), signal.SIGKILL)
                return int(holder)
        time.sleep(0.005)
    raise AssertionError("no process wrote a partial file")


def test_what_a_killed_run_left_is_removed_by_the_next_one(tmp_path: Path) -> None:
    folder = tmp_path / "cache" / "tokens"
    folder.mkdir(parents=True)
    (folder / "0.partial").write_bytes(b"half")
    (folder / "0.lock").write_text("1\n")
    load(write_jsonl(tmp_path / "rows.jsonl", pairs(9)))
    (file,) = folder.iterdir()
    assert file.suffix == ".arrow"


def test_a_moved_file_is_not_tokenised_again_and_its_places_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", rows(30))
    first = load(path, max_dropped=1.0)
    moved = path.rename(tmp_path / "other.jsonl")
    monkeypatch.setattr("alignkit.data.load.encode", lambda *a: pytest.fail("tokenised again"))
    second = load(moved, max_dropped=1.0)
    assert second.report.fingerprint == first.report.fingerprint
    assert second.report.sources[0].dropped["empty completion"].first == f"{moved}:6"


# ------------------------------------------------------------------------------------------------ streams and files elsewhere


def texts(data: Data) -> list[Any]:
    return [(row.id, row.prompt, row.answers) for row in [*data.train_rows, *data.held_out.rows(data.kind)]]


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file on a remote file system."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)  # refuses this file system as well
    monkeypatch.setattr(datasets.config, "DOWNLOADED_DATASETS_PATH", tmp_path / "hf" / "downloads")
    url = f"memory://{tmp_path.name}/rows.jsonl"
    with fsspec.open(url, "w") as file:
        file.write("".join(json.dumps(row) + "\n" for row in pairs(30)))
    return url


@pytest.mark.parametrize("streaming", [False, True])
def test_a_file_elsewhere_gives_the_rows_of_the_file_here(tmp_path: Path, remote: str, streaming: bool) -> None:
    here = load(write_jsonl(tmp_path / "rows.jsonl", pairs(30)))
    there = load(remote, streaming=streaming)
    assert texts(there) == texts(here)
    assert there.train_rows[0].place.startswith(f"{remote} row ")
    assert len(load(remote, streaming=streaming, limit=12, eval_split=0.0).train) == 12


@pytest.mark.parametrize("streaming", [False, True])
def test_a_local_url(tmp_path: Path, remote: str, streaming: bool) -> None:
    path = write_jsonl(tmp_path / "rows.jsonl", pairs(20))
    assert texts(load(path.as_uri(), streaming=streaming)) == texts(load(path))


def test_files_elsewhere_that_cannot_be_read(remote: str) -> None:
    with pytest.raises(DataError, match=r"^memory://absent/rows\.jsonl cannot be loaded: "):
        load("memory://absent/rows.jsonl")
    with pytest.raises(DataError, match=r'^s3://bucket/rows\.pkl: unknown file type "\.pkl"'):
        load("s3://bucket/rows.pkl")
    with pytest.raises(DataError, match=r'^memory://x/rows\.jsonl is a single file and has no split "test"$'):
        load("memory://x/rows.jsonl", split="test")
    with pytest.raises(DataError, match="cannot be loaded"):
        load("gopher://x/rows.jsonl")
