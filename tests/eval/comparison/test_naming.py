"""Names of arms: the settings that somebody chose, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
from alignkit import settings
from alignkit.settings.layers import dotted
from alignkit_eval.comparison.arms import RunResult, group


def arm(method: str, *sets: str) -> RunResult:
    config = settings.resolve(method=method, sets=sets).config.model_dump(mode="json")
    flat = {key: value for key, value in dotted(config).items() if key != "method.name" and not key.startswith("run.")}
    return RunResult(Path(method, *sets), 0, method, flat, {}, config=config)


@pytest.mark.parametrize(
    ("method", "runs", "names"),
    [
        ("dpo", ["loss=sigmoid", "loss=ipo"], ["loss=sigmoid", "loss=ipo"]),
        ("dpo", ["loss=sigmoid label_smoothing=0.1", "loss=ipo"], ["loss=sigmoid label_smoothing=0.1", "loss=ipo"]),
        ("dpo", ["beta=0.1", "beta=0.5"], ["beta=0.1", "beta=0.5"]),
        ("grpo", ["reward=length variant=dapo", "reward=length variant=gspo"], ["variant=dapo", "variant=gspo"]),
        ("dpo", ["loss=ipo train.learning_rate=1e-5", "loss=bco"], None),
    ],
)
def test_a_default_that_follows_from_another_setting_is_left_out(
    method: str, runs: list[str], names: list[str] | None
) -> None:
    found = [one.name for one in group([arm(method, *sets.split()) for sets in runs])]
    if names is None:  # every section but the method's is named in full
        assert all("train.learning_rate=" in name for name in found)
    else:
        assert found == [f"{method} {name}" for name in names]


def test_a_run_of_another_version_keeps_all_its_settings() -> None:
    old = arm("dpo", "loss=ipo")
    old.config["method"]["gone"] = 1
    old.settings["method.gone"] = 1
    assert group([old, arm("dpo", "loss=sigmoid")])[0].name == "dpo loss=ipo ratio=mean gone=1"
