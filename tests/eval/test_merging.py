"""Models made of several: closed forms of the methods, and the command on real runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from alignkit.errors import ConfigError
from alignkit_eval.merging import Merging
from safetensors.torch import load_file

from tests.helpers.runs import align, short_options

START = {"w": torch.zeros(4)}
A = {"w": torch.tensor([4.0, -3.0, 0.1, 1.0])}
B = {"w": torch.tensor([2.0, 5.0, -0.2, 0.0])}


@pytest.mark.parametrize(
    ("merging", "expected"),
    [
        (Merging(), [3.0, 1.0, -0.05, 0.5]),
        (Merging(weights=[0.25, 0.75]), [2.5, 3.0, -0.125, 0.25]),
        (Merging("task_arithmetic"), [6.0, 2.0, -0.1, 1.0]),
        (Merging("task_arithmetic", weights=[1.0, -1.0]), [2.0, -8.0, 0.3, 1.0]),  # what b learned is taken away
        # Of each the two largest are kept; of -3 and 5 the sign of the larger sum, 5; a mean over those that agree.
        (Merging("ties", density=0.5), [3.0, 5.0, 0.0, 0.0]),
        (Merging("dare_linear", density=1.0), [6.0, 2.0, -0.1, 1.0]),
        (Merging("dare_ties", density=1.0), [3.0, 5.0, -0.2, 1.0]),
    ],
)
@pytest.mark.parametrize("begin", [0.0, 7.0])
def test_closed_forms(merging: Merging, expected: list[float], begin: float) -> None:
    start, *runs = ({"w": state["w"] + begin} for state in (START, A, B))
    found = merging.combine(start, iter(runs), 2)["w"]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64) + begin, atol=1e-6, rtol=0)


def test_dare_keeps_its_share_and_the_expected_change_and_repeats_with_its_seed() -> None:
    start, run = {"w": torch.zeros(20_000)}, {"w": torch.ones(20_000)}
    first, same, other = (
        Merging("dare_linear", [1.0, 0.0], 0.1, seed).combine(start, [run, run], 2)["w"] for seed in (3, 3, 4)
    )
    assert first.count_nonzero() / 20_000 == pytest.approx(0.1, abs=0.01)
    assert first.mean() == pytest.approx(1.0, abs=0.1)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("merging", "count", "said"),
    [
        (Merging("ties"), 1, "ties combines several runs, and there is one: name others with --merge"),
        (Merging(density=0.5), 2, "a density has no effect with mean"),
        (Merging("ties", density=0.0), 2, "the density is 0, not above 0"),
        (Merging("ties", seed=1), 2, "a seed has no effect with ties"),
        (Merging("ties", [1.0]), 2, "2 runs are merged, and 1 weights were given"),
        (Merging(weights=[1.0, 1.0]), 2, "the weights sum to 2, not to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(merging: Merging, count: int, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        merging.factors(count)


def test_runs_of_one_start_are_merged_and_others_refused(tmp_path: Path) -> None:
    run = partial(align, cwd=tmp_path)

    quiet = ["--set", "eval.suites=[]", "--set", "train.per_device_train_batch_size=4"]
    for name, more in {"a": [], "b": ["--set", "model.lora.r=4"], "c": ["--model", "runs/a", "--data", "demo"]}.items():
        done = run("run", "--method", "sft", *short_options(2), *quiet, *more, "--name", name)
        assert done.returncode == 0, done.stderr
    merged = run("export", "runs/a", "--merge", "runs/b", "--merge-method", "task_arithmetic", "--output", "sum")
    assert merged.returncode == 0, merged.stderr
    run("export", "runs/b", "--output", "whole")
    from alignkit.demo import model_path

    start, a, b, both = (
        load_file(path / "model.safetensors")
        for path in (model_path(), tmp_path / "runs/a/model", tmp_path / "whole", tmp_path / "sum")
    )
    for name, tensor in both.items():
        torch.testing.assert_close(tensor, a[name] + b[name] - start[name], atol=1e-6, rtol=1e-5)
    assert "combined by task_arithmetic, of 2 models" in (tmp_path / "sum/README.md").read_text()
    refused = run("export", "runs/a", "--merge", "runs/c", "--merge-method", "ties", "--output", "x")
    assert refused.returncode == 2
    assert "runs/c started from other weights than runs/a: their changes cannot be combined, only their mean" in (
        " ".join(refused.stderr.split())
    )
    assert not (tmp_path / "x").exists()
