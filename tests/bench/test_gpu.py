"""The comparison on a GPU, in miniature on a CPU: every side's numbers, the record, pieces, and what goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bench import __main__ as command
from bench.cost_model import rows_of, side_cost, useful
from bench.gpu import command as gpu
from bench.gpu import parity, worker
from bench.gpu.grid import METHODS, MODELS, WORKLOADS, grid, parity_cells
from bench.gpu.summary import summary

pytestmark = pytest.mark.slow

TINY = list(grid("cpu", tiny=True))
SMALL = {(c.method, c.tuning): c for c in parity_cells(TINY, tiny=True)}


def here(side: str, work: Callable[..., Any], *arguments: Any) -> Any:
    """Run a side's work in this process."""
    return work(*arguments)


def options(tmp_path: Path, *words: str) -> Any:
    common = ["--device", "cpu", "--tiny", "--quick", "--output", str(tmp_path / "gpu.json")]
    return command.arguments([*common, *words])


def record(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "gpu.json").read_text())
    return found


# ------------------------------------------------------------------ every side computes the same


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("method", METHODS)
def test_sides_agree(method: str, tuning: str) -> None:
    small = SMALL[method, tuning]
    truth = worker.gradient(parity.exact(small), "trl-default")
    float32 = parity.compare("ours", parity.exact(small), lambda s, c: worker.gradient(c, s), truth)
    assert float32["agrees"], float32
    assert 0 < float32["gradient"] < 1e-5
    for side in ("ours", "trl"):
        found = parity.compare(side, small, lambda s, c: worker.gradient(c, s), truth)
        assert found["agrees"], found
        assert found["gradient"] > 1e-4  # it ran in bfloat16


def test_a_cell_from_parity_to_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = options(tmp_path, "--only", "dpo", "mixed", "lora", "--sides", "ours", "trl", "trl-reference")
    assert gpu.run(words, here) == 0
    found = record(tmp_path)
    assert list(found)[:3] == ["format", "complete", "parity"]
    assert found["complete"] is True
    assert [(p["side"], p["precision"], p["agrees"]) for p in found["parity"]] == [
        ("ours", "float32", True),
        ("ours", "bfloat16", True),
        ("trl", "bfloat16", True),
        ("trl-reference", "bfloat16", True),
    ]
    (cell,) = found["summary"]
    ours, best, each = cell["sides"]
    assert [row["side"] for row in cell["sides"]] == ["ours", "trl", "trl-reference"]
    assert ours["about"]["scorer"].startswith("packed")
    assert best["about"]["no liger"] == "needs a GPU"
    assert (best["about"]["reference"], each["about"]["reference"]) == ("precomputed", "in every step")
    for row in cell["sides"]:
        assert row["seconds"] > 0
        assert row["rows_per_second"] == pytest.approx(4 / row["seconds"])
        assert 0 < row["mfu"] < row["hfu"]  # gradient checkpointing computes twice
        assert row["memory"] is None or row["memory"]["step"] > 0
    assert 1 < best["expected"] < each["expected"]
    assert best["times_ours"] == pytest.approx(best["seconds"] / ours["seconds"])
    printed = capsys.readouterr().out
    assert printed.index("parity dpo lora ours float32: agrees") < printed.index("dpo/mixed/tiny-lora-1k/lora/")


# ------------------------------------------------------------------ pieces


class Canned:
    """Answers of a side's process without a model: seconds by side, in every turn the same."""

    def __init__(self, seconds: dict[str, float], wrong: str = "") -> None:
        self.seconds, self.wrong, self.turns = seconds, wrong, list[str]()

    def __call__(self, side: str, work: Callable[..., Any], *arguments: Any) -> Any:
        if work is worker.peak_rate:
            return 1e12
        if work is worker.gradient:
            return {"loss": 1.0, "gradient": np.array([2.0 if side == self.wrong else 1.0]), "about": {}}
        self.turns.append(f"{arguments[0].cell.workload.name} {side}")
        if side not in self.seconds:
            raise RuntimeError("no kernel image is available")
        memory = {"resident": 10, "step": round(100 * self.seconds[side])}
        return {
            "status": "measured",
            "seconds": [self.seconds[side]],
            "memory": memory,
            "about": {},
            "micro_batches": 1,
        }


def test_sides_take_turns_and_a_piece_resumes_where_the_last_one_stopped(tmp_path: Path) -> None:
    words = ["--only", "sft", "mixed,short", "full", "--sides", "ours", "trl"]
    both = ["mixed ours", "mixed trl", "mixed ours", "mixed trl", "short ours", "short trl", "short ours", "short trl"]
    whole = Canned({"ours": 1.0, "trl": 2.0})
    asked = options(tmp_path, *words)
    asked.rounds = 2
    assert gpu.run(asked, whole) == 0
    assert whole.turns == both
    (tmp_path / "gpu.json").unlink()

    pieces = list[list[str]]()
    for _ in range(20):
        canned = Canned({"ours": 1.0, "trl": 2.0})
        asked = options(tmp_path, *words, "--minutes", "1e-9", "--resume")  # time for one unit of work
        asked.rounds = 2
        code = gpu.run(asked, canned)
        pieces.append(canned.turns)
        assert record(tmp_path)["complete"] is (code == 0)
        if code == 0:
            break
        assert code == gpu.UNFINISHED
    assert [turn for turns in pieces for turn in turns] == both
    assert all(len(turns) <= 1 for turns in pieces)
    assert [one["cell"].split("/")[1] for one in record(tmp_path)["summary"]] == ["mixed", "short"]
    assert gpu.run(asked, canned) == 0
    assert record(tmp_path)["summary"][0]["sides"][1]["times_ours"] == 2.0


def test_a_record_of_other_settings_is_not_resumed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--only", "sft", "mixed", "full", "--sides", "ours"]
    assert gpu.run(options(tmp_path, *words), Canned({"ours": 1.0})) == 0
    other = options(tmp_path, *words, "--resume")
    other.repeats = 7
    before = (tmp_path / "gpu.json").read_bytes()
    assert gpu.run(other, Canned({"ours": 1.0})) == 2
    assert "(another setting)" in capsys.readouterr().err
    assert (tmp_path / "gpu.json").read_bytes() == before
    for broken in ("", "[]", '{"rows": []}'):
        (tmp_path / "gpu.json").write_text(broken)
        assert gpu.run(options(tmp_path, *words, "--resume"), Canned({"ours": 1.0})) == 2
        assert "is not a record of this measurement" in capsys.readouterr().err
        assert (tmp_path / "gpu.json").read_text() == broken


def test_what_failed_is_measured_again_where_that_is_asked_for(tmp_path: Path) -> None:
    words = ["--only", "sft", "mixed", "full", "--sides", "ours", "trl"]
    assert gpu.run(options(tmp_path, *words), Canned({"ours": 1.0})) == 0
    kept, again = Canned({"ours": 1.0, "trl": 2.0}), Canned({"ours": 1.0, "trl": 2.0})
    assert gpu.run(options(tmp_path, *words, "--resume"), kept) == 0
    assert kept.turns == []
    assert gpu.run(options(tmp_path, *words, "--resume", "--retry"), again) == 0
    assert again.turns == ["mixed trl"]
    (found,) = record(tmp_path)["summary"]
    assert [row["status"] for row in found["sides"]] == ["measured", "measured"]


def test_a_side_that_disagrees_is_not_timed(tmp_path: Path) -> None:
    canned = Canned({"ours": 1.0, "trl": 2.0, "trl-default": 3.0}, wrong="trl")
    words = ["--only", "sft", "mixed", "full", "--sides", "ours", "trl", "trl-default"]
    assert gpu.run(options(tmp_path, *words), canned) == 1
    assert canned.turns == ["mixed ours", "mixed trl-default"]
    found = {row["side"]: row for row in record(tmp_path)["summary"][0]["sides"]}
    assert found["trl"]["status"] == "not measured"
    assert "see parity" in found["trl"]["reason"]


def test_what_fails_or_is_missing_is_part_of_the_result(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    canned = Canned({"ours": 1.0, "trl-default": 3.0})
    assert gpu.run(options(tmp_path, "--only", "grpo", "mixed", "full"), canned) == 0
    found = {row["side"]: row for row in record(tmp_path)["summary"][0]["sides"]}
    assert (found["trl"]["status"], found["trl"]["reason"]) == ("failed", "RuntimeError: no kernel image is available")
    assert found["trl-default"]["times_ours"] == 3.0
    assert found["unsloth"]["status"] == "not measured"
    printed = capsys.readouterr().out
    assert "failed: RuntimeError: no kernel image" in printed
    assert "not measured: unsloth is not installed" in printed


# ------------------------------------------------------------------ numbers


def test_summary_of_one_cell() -> None:
    cell = next(c for c in TINY if (c.method, c.workload.name, c.tuning) == ("dpo", "mixed", "full"))
    about = {"cell": cell.name, "status": "measured", "about": {}}

    def turn(side: str, number: int, seconds: list[float], resident: int, step: int) -> dict[str, Any]:
        return about | {
            "side": side,
            "round": number,
            "seconds": seconds,
            "memory": {"resident": resident, "step": step},
        }

    turns = [
        turn("ours", 0, [1.0, 2.0], 10, 20),
        turn("trl", 0, [4.0, 5.0], 10, 80),
        turn("ours", 1, [1.0, 1.0], 10, 30),
        turn("trl", 1, [2.0, 2.0], 10, 70),
    ]
    given = {"environment": {"hardware": "NVIDIA H100 80GB HBM3"}, "peak": {"measured": 1.0}}
    found = summary(cell, turns, given, warm_up=1, repeats=2)
    assert (found["peak"], found["peak_from"]) == (989e12, "data sheet")
    ours, trl = found["sides"]
    assert trl["times_ours"] == pytest.approx((4.5 / 1.5 + 2.0 / 1.0) / 2)  # the median over rounds
    assert (ours["memory"], trl["memory"]) == ({"resident": 10, "step": 30}, {"resident": 10, "step": 80})
    assert trl["our_share_of_memory"] == pytest.approx(40 / 90)
    rows = rows_of(cell, range(1, 3), 3)
    tokens = [sum(row.prompt + sum(row.completions) for row in step) for step in rows]
    expected = np.median([tokens[0] / 1.0, tokens[1] / 2.0, tokens[0] / 1.0, tokens[1] / 1.0])
    assert ours["useful_tokens_per_second"] == pytest.approx(expected)
    rate = np.median(
        [useful(cell, step).operations / s for s, step in zip([4.0, 5.0, 2.0, 2.0], rows * 2, strict=True)]
    )
    assert trl["mfu"] == pytest.approx(rate / 989e12)
    assert trl["expected"] == pytest.approx(
        np.median([side_cost("trl", cell, step).seconds / side_cost("ours", cell, step).seconds for step in rows])
    )
    unknown = summary(cell, turns, given | {"environment": {"hardware": "a new GPU"}}, 1, 2)
    assert (unknown["peak"], unknown["peak_from"]) == (1.0, "a matrix product, measured")


def test_the_grid_has_what_was_asked_for() -> None:
    cells = list(grid("cuda"))
    assert len(cells) == len({cell.name for cell in cells}) == 3 * 2 * len(WORKLOADS) * 4
    sizes = {}
    for model in MODELS:
        shape = model.shape("32k", 32_000)
        head = shape.hidden // shape.heads
        layer = (
            2 * shape.hidden**2
            + 2 * shape.hidden * shape.key_value_heads * head
            + 3 * shape.hidden * shape.intermediate
        )
        sizes[model.name] = (shape.layers * layer + (1 if shape.tied else 2) * 32_000 * shape.hidden) / 1e9
    assert sizes == pytest.approx({"0.5b": 0.39, "1.5b": 1.36, "8b": 7.24}, rel=0.01)
    assert all(cell.bf16 and cell.frozen_bf16 == cell.checkpointing == (cell.tuning == "lora") for cell in cells)


# ------------------------------------------------------------------ usage


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--device", "cpu", "--tiny", "--only", "shrot"], "no cell has 'shrot'"),
        (["--device", "cpu", "--tiny", "--only", "orpo", "dpo"], "no cell matches orpo dpo"),
        (["--device", "cpu", "--tiny", "--rounds", "0"], "at least 1"),
        (["--device", "cpu", "--tiny", "--minutes", "0"], "must be above 0"),
        (["--device", "cpu", "--tiny", "--bf16"], "are options of the comparison on a CPU"),
        (["--device", "cuda", "--sides", "tlr"], "invalid choice: 'tlr'"),
    ],
)
def test_wrong_usage_is_said(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        code = gpu.run(command.arguments(words), here)
    except SystemExit as stopped:
        code = stopped.code  # type: ignore[assignment]
    assert code == 2
    assert message in capsys.readouterr().err


def test_without_a_gpu_the_miniature_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if torch.cuda.is_available():
        return
    asked = replace_device(options(tmp_path))
    assert gpu.run(asked, here) == 2
    assert "--device cpu --tiny" in capsys.readouterr().err


def replace_device(asked: Any) -> Any:
    asked.device, asked.tiny = "cuda", False
    return asked
