"""What a side's process does in its turn: memory that runs out, memory that is given back, and processes that die."""

from __future__ import annotations

import gc
import json
import os
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

from bench.cells import BenchCell, Workload
from bench.gpu import profile, sides, worker
from bench.gpu.grid import cell as make
from bench.gpu.grid import grid
from bench.gpu.runner import Workers

TINY = list(grid("cpu", tiny=True))


class Greedy:
    """A side whose memory suffices for less than ``rows`` rows at once."""

    fits = 2

    def __init__(self, cell: BenchCell, parts: int) -> None:
        self.rows, self.model = cell.rows / parts, torch.nn.Linear(1, 1)

    def step(self, number: int) -> None:
        if self.rows > self.fits:
            raise torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("fits", "status", "tried"), [(9, "measured", []), (1, "measured", [1, 2]), (0, "out of memory", [1, 2, 4])]
)
def test_memory_that_runs_out_is_a_result(
    fits: int, status: str, tried: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Greedy, "fits", fits)
    monkeypatch.setattr(sides, "build_side", lambda name, cell, steps, parts: sides.Built(Greedy(cell, parts), {}))
    found = worker.measure(worker.Turn(TINY[0], "ours", repeats=2, warm_up=1))
    assert (found["status"], found["out_of_memory_with"]) == (status, tried)
    assert len(found.get("seconds", [])) == (2 if status == "measured" else 0)


def test_each_side_has_a_process_that_starts_again_after_it_died() -> None:
    workers = Workers(limit=60)
    try:
        mine, theirs = workers("ours", os.getpid), workers("trl", os.getpid)
        assert len({mine, theirs, os.getpid()}) == 3
        assert workers("ours", os.getpid) == mine
        with pytest.raises(BrokenProcessPool):
            workers("ours", os._exit, 1)
        assert workers("ours", os.getpid) != mine
        workers.limit = 0.2
        with pytest.raises(TimeoutError):
            workers("trl", time.sleep, 60)
        assert list(workers.pools) == ["ours"]
    finally:
        workers.close()


@pytest.mark.parametrize("side", ["ours", "trl", "trl-reference"])
def test_a_turn_leaves_no_model_behind(side: str) -> None:
    """Sides share a device: what one of them keeps, the others lack."""
    cell = next(c for c in TINY if (c.method, c.workload.name, c.tuning) == ("dpo", "short", "full"))
    gc.collect()
    before = _weights()
    assert worker.measure(worker.Turn(cell, side, repeats=1, warm_up=1))["status"] == "measured"
    assert _weights() <= before


@pytest.mark.parametrize(("method", "answers"), [("orpo", 2), ("dpo", 2), ("sft", 1), ("grpo", 8)])
def test_no_side_cuts_long_rows(method: str, answers: int) -> None:
    """TRL cuts rows to 1,024 tokens by default: a side that computes less than the others is not compared with them."""
    work = Workload("long", rows=1, prompt=(1100, 1100), completion=(4, 4))
    cell = make(method, work, TINY[0].shape, "full", "cpu")
    batch = sides.build_side("trl-default", cell, 1, 1).side._batch([0])
    names = [name for name in batch if name.endswith("input_ids") and name != "prompt_input_ids"] or ["prompt_ids"]
    assert sum(batch[name].shape[0] for name in names) == answers
    assert all(batch[name].shape[1] >= 1100 for name in names)


def test_a_profile_names_the_operations_of_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--device", "cpu", "--tiny", "--only", "sft", "short", "full", "--output", str(tmp_path / "profile.json")]
    assert profile.main(words) == 0
    (found,) = json.loads((tmp_path / "profile.json").read_text())
    assert sum(row["share"] for row in found["operations"]) == pytest.approx(1)
    assert "aten::mm" in {row["name"] for row in found["operations"][:10]}
    assert "s a step" in capsys.readouterr().out
    assert profile.main([*words[:4], "no-such-cell"]) == 2


def _weights() -> int:
    """Return the numbers in all tensors of this process that are weights of a model."""
    return sum(x.numel() for x in gc.get_objects() if type(x) is torch.nn.Parameter)
