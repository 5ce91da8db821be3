"""The warning of a run that does not learn."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from alignkit_commands.unmoved import moved

from tests.helpers.runs import align, short_options

SAID = "there is no change beyond chance in"


@pytest.mark.parametrize(("rate", "times"), [("1e-7", 1), ("1e-2", 0)])
def test_a_run_that_does_not_learn_says_so_once(tmp_path: Path, rate: str, times: int) -> None:
    sets = [f"train.learning_rate={rate}", "model.lora.r=4"]
    sets += ["train.per_device_train_batch_size=16", "eval.suites=[]"]
    options = [word for one in sets for word in ("--set", one)]
    done = align("run", "--method", "dpo", *short_options(24), *options, "--name", "slow", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert said.count(SAID) == times, said
    if times:
        assert f"train.learning_rate {rate.replace('-7', '-07')} may be too low" in " ".join(said.split())


def test_noise_of_batches_is_no_change_and_a_trend_in_noise_is() -> None:
    draw = random.Random(0)
    noise = [2 + draw.gauss(0, 0.05) for _ in range(40)]
    assert not moved("loss", noise)
    assert moved("loss", [value - 0.004 * i for i, value in enumerate(noise)])
    assert not moved("rewards/margins", [1e-5 * i for i in range(40)])  # a trend, but of no size
    assert moved("rewards/margins", [1e-3 * i for i in range(40)])
