"""The comparison of output layers in miniature: parity, the JSON, and why a side is not measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench import heads


@pytest.mark.parametrize("side", ["ours", "ours exact", "full logits"])
def test_sides_agree_with_float64(side: str) -> None:
    limit = 1e-5 if side == "ours exact" else 0.02
    assert max(heads.errors(heads.SIDES[side], "cpu").values()) < limit


def test_fused_kernels_are_named_with_the_reason_where_they_cannot_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "heads.json"
    assert heads.main(["--device", "cpu", "--repeats", "1", "--output", str(output)]) == 0
    shown = capsys.readouterr().out
    assert "liger: not measured: its kernels need a GPU" in shown
    assert "cut: not measured: its kernels need a GPU" in shown
    measured = {"ours", "ours exact", "full logits"}
    assert {one["side"] for one in json.loads(output.read_text())["spent"]} == measured
    if not torch.cuda.is_available():
        assert heads.main(["--output", str(output)]) == 2
        assert "not measured: there is no GPU" in capsys.readouterr().err
