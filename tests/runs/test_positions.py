"""Rows longer than the model's positions are cut as by ``data.max_length``, and said, wherever they are read or written."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from alignkit.__main__ import main
from alignkit.config import ModelConfig, RunConfig
from alignkit.contract import Answered
from alignkit.data.load import Data
from alignkit.data.tokenise.rules import Room
from alignkit.errors import ConfigError
from alignkit.models.generate import generate
from alignkit.models.load import build_classifier, build_model
from alignkit.models.positions import named_positions
from alignkit.onpolicy.reward_model import RewardModel
from alignkit.runs.prepare import load_parts, plan_run
from alignkit_checks.check import check_source

from tests.helpers.eval import POSITIONED, save_positioned
from tests.helpers.runs import short_run

METHODS: dict[str, dict[str, Any]] = {
    "orpo": {},
    "sft": {},
    "grpo": {"reward": "length", "max_new_tokens": 16, "num_generations": 2},
}
CUT = {"orpo": "64 positions", "sft": "64 positions", "grpo": "64 positions with 16 new tokens"}


@pytest.fixture(scope="module")
def at(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models with 64 positions, and rows of which some are longer."""
    path = tmp_path_factory.mktemp("positions")
    save_positioned(path)
    rows = [{"prompt": f"{i} words" + " more" * (i % 4 * 6), "chosen": " yes", "rejected": " no"} for i in range(16)]
    rows[5]["chosen"] = " yes" * 20
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def config(at: Path, kind: str, method: str) -> RunConfig:
    sections = {"model": str(at / kind), "data": {"source": str(at / "rows.jsonl"), "eval_split": 0.25}}
    return RunConfig(method={"name": method, **METHODS[method]}, **sections)  # type: ignore[arg-type]


def loaded_data(given: RunConfig) -> Data:
    return load_parts(given, plan_run(given).session, meta=True)[1]


@pytest.mark.parametrize("method", ["orpo", "grpo"])
def test_a_run_cuts_rows_to_the_positions_and_says_so(at: Path, method: str, tmp_path: Path) -> None:
    sections = config(at, "learned", method).model_dump(include={"model", "data"})
    short = {"max_steps": 1, "per_device_train_batch_size": 12}
    more = {"eval": {"sample_tokens": 99, "samples": 4, "suites": []}, "run": {"plots": False}}
    done = short_run(tmp_path, "x", {"name": method, **METHODS[method]}, train=short, **sections, **more)
    assert (
        f"prompts truncated on the left to fit the model's {CUT[method]}" in (done.directory / "train.log").read_text()
    )
    assert done.record["data"]["train"]["longest"] == (64 if method == "orpo" else 48)


@pytest.mark.parametrize("kind", POSITIONED)
@pytest.mark.parametrize("method", METHODS)
def test_a_plan_and_a_data_check_say_the_same(
    at: Path, kind: str, method: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    configured = config(at, kind, method)
    (said,) = [line for line in loaded_data(configured).report.lines() if "prompts truncated" in line]
    assert said.endswith(f" prompts truncated on the left to fit the model's {CUT[method]}")
    values = configured.model_dump(include={"model", "data"}) | {"method": {"name": method, **METHODS[method]}}
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    assert main(["data", "check", str(tmp_path / "run.yaml"), "--json"]) == 0
    (checked,) = json.loads(capsys.readouterr().out)
    assert f": {checked['tokens']['truncated_prompts']} prompts" in said
    assert f"rows truncated to the model's {CUT[method]}" in [finding["title"] for finding in checked["findings"]]


@pytest.mark.parametrize("long", ["prompt", "completion"])
def test_trl_is_given_the_positions_as_its_limit(at: Path, long: str, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i} ", "completion": " yes"} for i in range(8)]
    rows[3][long] += "more " * 20
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sections = {"model": {"name": str(at / "learned")}, "data": {"source": str(tmp_path / "rows.jsonl")}}
    short = {"max_steps": 1, "per_device_train_batch_size": 7, "logging_steps": 1}
    done = partial(short_run, tmp_path, "x", "trl-sft", train=short, eval={"samples": 0, "suites": []}, **sections)
    if long == "completion":
        assert done().record["status"] == "finished"
    else:
        with pytest.raises(ConfigError, match="1 prompts alone fill max_length 64, which leaves no answer"):
            done()


def test_a_smaller_max_length_is_the_limit_that_is_named(at: Path) -> None:
    given = config(at, "rotary", "orpo")
    given.data.max_length = 40
    data = loaded_data(given)
    assert any("to fit data.max_length" in line for line in data.report.lines())
    assert data.report.train.longest == 40


def test_positions_are_known_from_a_configuration_alone(at: Path, tmp_path: Path) -> None:
    assert [named_positions(ModelConfig(name=str(at / kind))) for kind in POSITIONED] == [64, 64]
    assert named_positions(ModelConfig(name=str(tmp_path))) is None


def test_every_prompt_longer_than_the_positions_is_an_error(at: Path, tmp_path: Path) -> None:
    (tmp_path / "long.jsonl").write_text(json.dumps({"prompt": "x" * 99, "chosen": "y", "rejected": "z"}) + "\n")
    given = config(at, "learned", "orpo")
    given.data.source = str(tmp_path / "long.jsonl")
    with pytest.raises(
        Exception, match=r"the model's 64 positions are too few for every prompt with one completion token"
    ):
        loaded_data(given)


def test_answers_that_leave_no_room_for_a_prompt_are_refused(at: Path) -> None:
    given = RunConfig(method={"name": "grpo", **METHODS["grpo"], "max_new_tokens": 64}, model=str(at / "learned"))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"max_new_tokens is 64, and the model has 64 positions"):
        loaded_data(given)


def test_a_prompt_and_answer_longer_than_the_positions_are_not_generated(
    at: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loaded = build_model(ModelConfig(name=str(at / "learned")))
    with pytest.raises(ConfigError, match=r"64 positions, too few for a prompt of 60 tokens and an answer of 5 "):
        generate(loaded.model, loaded.tokenizer, [[1] * 60], max_new_tokens=5)
    assert generate(loaded.model, loaded.tokenizer, [[1] * 60], max_new_tokens=4)
    assert main(["generate", str(at / "rotary"), "--prompt", "a" * 64, "--max-new-tokens", "2"]) == 2
    assert "the model has 64 positions" in capsys.readouterr().err


def test_a_reward_model_judges_what_fits_its_positions(
    at: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = build_classifier(ModelConfig(name=str(at / "learned")))
    loaded.model.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    prompt, answer = [*range(1, 60)], [*range(60, 80)]
    asked = Answered("r", "", "", prompt, answer, True, loaded.tokenizer)
    long, short = RewardModel(str(tmp_path)).score([asked, replace(asked, prompt_ids=prompt[-44:])])
    assert long == pytest.approx(short)
    assert "64 tokens" in caplog.text


def test_a_check_names_the_limit_on_its_page(at: Path) -> None:
    tokenizer = build_model(ModelConfig(name=str(at / "rotary")), meta=True).tokenizer
    found = check_source(str(at / "rows.jsonl"), tokenizer=tokenizer, room=Room(64))
    assert (found.max_length, found.limit) == (64, "the model's 64 positions")
