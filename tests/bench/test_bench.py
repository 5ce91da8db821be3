"""The benchmark's code at toy size: parity of both sides, refusal of a wrong side, table and JSON."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from alignkit.contract.batch import Example

from bench import __main__ as command
from bench import evaluation, scoring
from bench.cells import SHAPES, SPECIAL, WORKLOADS, BenchCell, Shape, Workload, grid, select
from bench.clock import Seconds, Times, measure, take_turns
from bench.memory import peak
from bench.parity import Parity, check, relative
from bench.report import HEADER, Result, line, missed, table
from bench.sides import Ours, Side, Theirs
from bench.work import compare

pytestmark = pytest.mark.slow

SHAPE = Shape("toy", vocabulary=211, hidden=32, intermediate=48, layers=2, heads=4, key_value_heads=2)
WORK = Workload("toy", rows=3, prompt=(4, 12), completion=(2, 9))
ORPO, DPO = (BenchCell(method, WORK, SHAPE) for method in ("orpo", "dpo"))
PAIRS = scoring.Choices("toy pairs", 2, WORK, None, SHAPE)
EXACT = Parity(0.0, 0.0, 0.0)


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("cell", [ORPO, DPO], ids=["orpo", "dpo"])
def test_both_sides_agree(cell: BenchCell, tuning: str) -> None:
    cell = replace(cell, tuning=tuning)
    found = check(Ours(cell, 1), Theirs(cell, 1))
    assert found.agrees, found
    assert 0 < found.gradient < 1e-5  # rounding, not the same code twice
    assert (found.reference > 0) == (cell.method == "dpo")


def test_checkpointing_changes_no_number() -> None:
    cell = replace(ORPO, checkpointing=True)
    ours, theirs = Ours(cell, 1), Theirs(cell, 1)
    assert ours.model.is_gradient_checkpointing
    assert theirs.model.is_gradient_checkpointing
    assert check(ours, theirs).agrees


def test_both_sides_take_the_same_rows_of_every_step() -> None:
    ours, theirs = Ours(DPO, 4), Theirs(DPO, 4)
    assert sorted(row for k in range(4) for row in ours.rows(k)) == list(range(12))
    for k in range(4):
        assert [example.index for example in ours.trainer.steps.rows_of_step(k).examples] == theirs.rows(k)
        batch = theirs._batch(theirs.rows(k))
        for i, row in enumerate(ours.rows(k)):
            example = ours.examples[row]
            ids = batch["input_ids"][i][batch["attention_mask"][i].bool()].tolist()
            assert ids == [*example.prompt, *example.completions[0]]


class Wrong(Ours):
    """A side that takes other rows than it was given."""

    def __init__(self, cell: BenchCell, steps: int) -> None:
        super().__init__(replace(cell, seed=cell.seed + 1), steps)


@pytest.mark.parametrize("cell", [ORPO, DPO], ids=["orpo", "dpo"])
def test_a_side_that_computes_something_else_is_not_timed(
    cell: BenchCell, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("bench.work.Ours", Wrong)
    results = list(compare(cell, 2))
    assert [result.times for result in results] == [None]
    assert "disagree" in line(results[0])
    assert missed(results)[0].startswith(f"{cell.name}: disagrees with TRL")
    monkeypatch.setattr(command, "grid", lambda checkpointing, bf16: [cell])
    monkeypatch.setattr(scoring, "CHOICES", ())
    chosen = ["--quick", "--only", cell.method]  # not scoring and evaluation, which the whole command measures below
    assert command.main([*chosen, "--output", str(tmp_path / "bench.json")]) == 1
    (row,) = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert (row["quantity"], row["ratio"], row["met"]) == ("parity", None, False)


@pytest.mark.parametrize(
    "parity", [Parity(2e-4, 0, 0), Parity(0, 2e-4, 0), Parity(0, 0, 2e-4), Parity(float("nan"), 0, 0)]
)
def test_any_difference_counts(parity: Parity) -> None:
    assert not parity.agrees
    assert EXACT.agrees


def test_relative_difference_is_of_the_whole_vector() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 5.0])
    assert relative(a, b) == pytest.approx(1 / 34**0.5)


def test_command_prints_a_table_and_writes_json(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "grid", lambda checkpointing, bf16: [ORPO, DPO])
    monkeypatch.setattr(scoring, "CHOICES", (PAIRS,))
    monkeypatch.setattr(evaluation, "SETS", ("data.eval_limit=40", "eval.settings.perplexity.text=null"))
    assert command.main(["--repeats", "2", "--no-memory", "--output", str(tmp_path / "bench.json")]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == HEADER
    assert [row.split()[:5] for row in printed[2:5]] == [
        ["orpo", "toy", "toy", "full", "step"],
        ["dpo", "toy", "toy", "full", "step"],
        ["dpo", "toy", "toy", "full", "reference"],
    ]
    record = json.loads((tmp_path / "bench.json").read_text())
    assert record["complete"] is True
    assert record["environment"]["trl"]
    assert [row["quantity"] for row in record["rows"]] == ["speed"] * 3
    for row in record["rows"]:
        assert len(row["seconds"]["ours"]) == len(row["seconds"]["trl"]) == 2
        assert row["parity"]["agrees"] is True
        assert BenchCell.from_json(row["cell"]) in (ORPO, DPO)
    (scored,) = record["scoring"]
    assert scored["difference"] < scoring.TOLERANCE
    assert len(scored["seconds"]["ours"]) == len(scored["seconds"]["hflm"]) == 2
    assert scored["batch_size"] in scoring.BATCH_SIZES


def test_memory_counts_what_a_step_holds() -> None:
    small = replace(ORPO, shape=replace(SHAPE, vocabulary=20_011))
    ours, theirs = peak(small, "ours", "step"), peak(small, "trl", "step")
    if ours is None or theirs is None:
        pytest.skip("this kernel cannot reset the high-water mark")
    gradients = 4 * sum(p.numel() for p in Ours(small, 1).model.parameters())
    logits = 4 * 20_011 * sum(len(e.prompt) + len(c) for e in small.examples(1) for c in e.completions)
    assert ours > gradients
    assert theirs > gradients + logits


# ------------------------------------------------------------------ arithmetic and selection


def test_ratio_is_the_median_of_neighbours() -> None:
    ours = [Seconds(1.0), Seconds(2.0), Seconds(1.0, 1.0)]
    theirs = [Seconds(2.0), Seconds(6.0), Seconds(2.0, 6.0)]
    times = Times(ours, theirs)
    assert times.ratio == 3.0  # of 2, 3 and 4
    assert times.user_ratio == 2.0  # of 2, 3 and 2


def test_sides_take_turns() -> None:
    calls: list[str] = []
    times = take_turns(
        lambda k: calls.append(f"ours {k}"), lambda k: calls.append(f"theirs {k}"), lambda: calls.append("-"), 2, "cpu"
    )
    assert calls == ["-", "ours 0", "-", "theirs 0", "-", "ours 1", "-", "theirs 1"]
    assert len(times.ours) == len(times.theirs) == 2


def test_cpu_time_is_that_of_the_process() -> None:
    import time

    assert measure(lambda _: time.sleep(1), 0, "cpu").total < 0.9


def test_targets_are_compared_the_right_way_round() -> None:
    cell = BenchCell("orpo", WORKLOADS[0], SHAPES[0])
    good = Result(cell, "step", EXACT, Times([Seconds(1.0)], [Seconds(1.6)]), (55, 101))
    bad = Result(cell, "step", EXACT, Times([Seconds(1.0)], [Seconds(1.4)]), (57, 100))
    assert [row["met"] for row in good.rows()] == [True, True]
    assert [row["met"] for row in bad.rows()] == [False, False]
    assert [row["target"] for row in bad.rows()] == [1.5, 0.55]
    assert missed([good]) == []
    assert missed([bad]) == [
        "orpo/short/32k/full: speed 1.40, target 1.5",
        "orpo/short/32k/full: memory 0.57, target 0.55",
    ]
    assert len(table([good, bad]).splitlines()) == 4
    reference = replace(bad, work="reference")
    assert [row["met"] for row in reference.rows()] == [None, None]  # no target


def test_grid_has_every_combination_once_and_filters_choose_from_it() -> None:
    cells = list(grid(checkpointing=True))
    assert len({cell.name for cell in cells}) == len(cells) == 2 * 2 * 2 * 3 * 2
    assert {cell.name for cell in select(cells, ["orpo", "short,long", "32k", "full"])} == {
        f"orpo/{work}/32k/full{more}" for work in ("short", "long") for more in ("", "/checkpointing")
    }
    with pytest.raises(ValueError, match="no cell has 'shrot'"):
        select(cells, ["shrot"])
    both = list(grid(checkpointing=False, bf16=True))
    assert [cell.name for cell in both if cell.bf16] == [f"{cell.name}/bf16" for cell in both if not cell.bf16]
    assert all(BenchCell.from_json(json.loads(json.dumps(cell.to_json()))) == cell for cell in cells)


def test_rows_have_the_lengths_that_were_asked_for() -> None:
    for cell in (replace(ORPO, workload=work, shape=SHAPES[1]) for work in WORKLOADS):
        rows: list[Example] = cell.examples(3)
        assert len(rows) == 3 * cell.workload.rows // 2  # half as many rows with the large vocabulary
        assert rows == cell.examples(3)
        for row in rows:
            low, high = cell.workload.prompt
            assert low <= len(row.prompt) <= high
            low, high = cell.workload.completion
            assert all(low <= len(completion) <= high for completion in row.completions)
            assert min(row.prompt) >= SPECIAL


@pytest.mark.parametrize("words", [["--only", "shrot"], ["--repeats", "0"], ["--only", "orpo", "dpo"]])
def test_wrong_usage_is_said(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.arguments(words)
    assert stopped.value.code == 2
    assert "bench: error:" in capsys.readouterr().err


def test_every_side_says_who_it_is() -> None:
    assert {side.name for side in (Ours, Theirs)} == {"alignkit", "TRL"}
    assert all(issubclass(side, Side) for side in (Ours, Theirs))


def test_a_share_of_one_process_is_judged_by_wall_time() -> None:
    found = evaluation.Shared(2, one=[(2.0, 2.0), (4.0, 2.0)], all=[(1.0, 1.5), (2.4, 1.0)], difference=1e-7)
    assert (found.share, found.cpu_share) == (0.55, 0.625)
    assert found.met
    assert found.agrees
    assert found.row()["cpu_ratio"] == 0.625
    assert not evaluation.Shared(2, [(1.0, 1.0)], [(0.7, 0.5)], 1e-3).met
    assert found.line().split()[-2:] == ["0.55", "0.62"]
