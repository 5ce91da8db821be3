"""The judge suite on the demo, with an endpoint whose preference is known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alignkit import SuiteResult
from alignkit.demo import data_path
from alignkit.demo.world import quality
from alignkit.errors import ConfigError, DataError
from alignkit.rundir.evaluations import read_evaluation
from alignkit_eval.evaluation.evaluate import evaluate
from alignkit_eval.rating import write_rating_page
from alignkit_eval.statistics import clustered_proportion
from alignkit_judge.ratings import rated
from alignkit_judge.settings import DEFAULT_TEMPLATE, JudgeSuiteSettings

from tests.helpers.judge_server import Endpoint, longer, serving
from tests.helpers.runs import align

FEW = {"prompts": 30, "calibration_pairs": 60, "max_new_tokens": 16}


def mistaken(prompt: str, a: str, b: str) -> float:
    """Prefer the better answer, but on one pair of eight (in both orders) the worse one."""
    wrong = hashlib.sha256((prompt + "".join(sorted((a, b)))).encode()).digest()[0] < 32
    return (quality(prompt, a) - quality(prompt, b) + (len(a) > len(b)) / 100) * (-9 if wrong else 9)


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))
    return tmp_path


def judged(endpoint: Endpoint, output: Path, **settings: Any) -> SuiteResult:
    given = {"model": "big", "url": endpoint.url, **FEW, **settings}
    (found,) = evaluate(
        ["demo"], ["judge"], sets=[f"eval.settings.judge.{k}={v}" for k, v in given.items()], output=output
    )
    return found.results["judge"]


@pytest.fixture(scope="module")
def of_longer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Endpoint, SuiteResult, Path]]:
    """A result by a judge that prefers the longer answer, and its directory."""
    output = tmp_path_factory.mktemp("longer")
    with pytest.MonkeyPatch.context() as patch, serving(Endpoint(prefers=longer)) as endpoint:
        patch.setenv("ALIGN_CACHE", str(output / "cache"))
        yield endpoint, judged(endpoint, output), output


def test_items_and_metrics_are_the_judges(of_longer: tuple[Endpoint, SuiteResult, Path]) -> None:
    _, result, _ = of_longer
    wins = [(1 + np.sign(len(item["answer"]) - len(item["baseline"]))) / 2 for item in result.items]
    assert [item["win"] for item in result.items] == wins
    clusters = [item["cluster"] for item in result.items]
    metrics = result.metrics
    assert metrics["win_rate"] == clustered_proportion(wins, clusters)
    assert metrics["ties"].value == pytest.approx(np.mean([win == 0.5 for win in wins]))
    assert metrics["length_difference"].value == pytest.approx(np.mean([item["longer"] for item in result.items]))
    lengths = [item["longer"] for item in result.items]
    assert result.n == len(lengths)
    assert metrics["agreement/better_longer"].value == 1
    assert metrics["agreement/better_shorter"].value == 0
    assert metrics["position_bias"].value < 0.2  # equal lengths alone
    assert abs(metrics["win_rate/length_controlled"].value - 0.5) < abs(metrics["win_rate"].value - 0.5) + 0.05


def test_a_judge_no_better_than_chance_corrects_nothing(of_longer: tuple[Endpoint, SuiteResult, Path]) -> None:
    _, result, _ = of_longer
    assert "win_rate/corrected" not in result.metrics
    assert any(
        "no corrected win rate: on the calibration pairs the judge is not shown" in note for note in result.notes
    )


def test_the_same_evaluation_asks_nothing_again(of_longer: tuple[Endpoint, SuiteResult, Path], own_cache: Path) -> None:
    endpoint, result, output = of_longer
    before = len(endpoint.asked)
    assert before < 2 * (30 + 60) + 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALIGN_CACHE", str(output / "cache"))
        assert judged(endpoint, output).metrics == result.metrics
        fewer = judged(endpoint, output, calibration_pairs=20, price_per_million="[1,1]")
    assert fewer.n == result.n
    assert len(endpoint.asked) == before  # replies are kept, whatever else is evaluated with them
    assert any("0 requests" in note and "cost 0 at 1" in note for note in fewer.notes)
    stored = read_evaluation(output / "demo" / "eval", "judge")
    assert [dict(item) for item in stored.items] == [dict(item) for item in fewer.items]


def test_known_errors_are_corrected(own_cache: Path) -> None:
    with serving(Endpoint(prefers=mistaken)) as endpoint:
        result = judged(endpoint, own_cache, prompts=60, calibration_pairs=150)
    truth = np.mean(
        [
            (1 + np.sign(quality(i["prompt"], i["answer"]) - quality(i["prompt"], i["baseline"]))) / 2
            for i in result.items
        ]
    )
    raw, corrected = result.metrics["win_rate"], result.metrics["win_rate/corrected"]
    assert result.metrics["agreement"].value == pytest.approx(0.875, abs=0.1)
    assert corrected.low is not None
    assert corrected.high is not None
    assert corrected.low <= truth <= corrected.high
    assert abs(corrected.value - truth) < abs(raw.value - truth)
    assert raw.low is not None
    assert raw.high is not None
    assert corrected.high - corrected.low > raw.high - raw.low or corrected.low == 0


def test_through_the_command(own_cache: Path) -> None:
    """The key is in neither files nor output; keys of a suite may be written without eval.settings."""
    secret = "sk-secret-77"
    sets = {"model": "big", "key_env": "JUDGE_KEY", "prompts": 4, "calibration_pairs": 4, "max_new_tokens": 4}
    with pytest.MonkeyPatch.context() as patch, serving(Endpoint(key=secret)) as endpoint:
        patch.setenv("JUDGE_KEY", secret)
        options = [word for k, v in {**sets, "url": endpoint.url}.items() for word in ("--set", f"judge.{k}={v}")]
        done = align("eval", "demo", "--suite", "judge", *options, "--output", "out", cwd=own_cache)
    assert done.returncode == 0, done.stderr
    assert "win_rate" in done.stderr
    assert f"are sent to {endpoint.url}" in " ".join(done.stderr.split())
    written = [path.read_text(errors="ignore") for path in own_cache.rglob("*") if path.is_file()]
    assert written
    assert not any(secret in text for text in [*written, done.stdout, done.stderr])


def test_ratings_are_of_the_same_models_and_answers(tmp_path: Path) -> None:
    def items(answers: str) -> list[dict[str, Any]]:
        return [{"id": str(i), "cluster": str(i), "prompt": "?", "answer": text} for i, text in enumerate(answers)]

    write_rating_page(items("abcd"), items("xyzd"), ("other", "mine"), tmp_path)
    key = {"0": "b", "1": "tie", "2": "skip"}
    import json

    pairs = json.loads((tmp_path / "rate.key.json").read_text())["pairs"]
    choices = {pair["id"]: pair for pair in pairs}
    lines = [f"{choices[i]['pair']},{choice}" for i, choice in key.items()]
    (tmp_path / "ratings.csv").write_text("pair,choice\n" + "\n".join(lines) + "\n")
    settings = JudgeSuiteSettings(model="m", baseline="runs/other", ratings=str(tmp_path / "ratings.csv"))
    both = [{**item, "baseline": old, "win": 1.0} for item, old in zip(items("xyzd"), "abcd", strict=True)]

    class Mine:
        name = "mine"

    first = 1.0 if choices["0"]["a"] == 0 else 0.0  # B is the second model where A is the first
    human = rated(settings, Mine(), both)  # type: ignore[arg-type]
    assert human.credits == [first, 0.5, None, None]
    assert human.sentence.startswith("2 of 4 items are rated by people")
    turned = [{**item, "answer": item["baseline"], "baseline": item["answer"]} for item in both]
    with pytest.raises(ConfigError, match="rates other answers to 0 than these"):
        rated(settings, Mine(), turned)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="rates other and mine, not mine against third"):
        rated(settings.model_copy(update={"baseline": "third"}), Mine(), both)  # type: ignore[arg-type]


def test_a_calibration_file_is_used_in_place_of_the_held_out_pairs(own_cache: Path) -> None:
    pairs = own_cache / "pairs.jsonl"
    pairs.write_text("\n".join(data_path("dev").read_text().splitlines()[:12]) + "\n")
    with serving(Endpoint()) as endpoint:
        result = judged(endpoint, own_cache, prompts=3, max_new_tokens=4, calibration=pairs)
        assert any("calibration on 12 pairs with known preference" in note for note in result.notes)
        with pytest.raises(DataError, match="does not exist"):
            judged(endpoint, own_cache, prompts=3, max_new_tokens=4, calibration="missing.jsonl")


def test_the_page_has_every_setting_and_the_default_template() -> None:
    page = (Path(__file__).parents[2] / "docs" / "judges.md").read_text()
    cells = [line.split("|")[1] for line in page.partition("## What is asked")[0].splitlines() if line.startswith("| ")]
    named = [key.strip() for cell in cells[1:] for key in cell.split(",")]
    assert sorted(named) == sorted(JudgeSuiteSettings.model_fields)
    assert DEFAULT_TEMPLATE.strip() in page


def test_a_judge_without_a_single_verdict_is_an_error(own_cache: Path) -> None:
    few = {"prompts": 3, "calibration_pairs": 3, "max_new_tokens": 4}
    with (
        serving(Endpoint(logprobs=False, words="neither")) as endpoint,
        pytest.raises(ConfigError, match=r"no verdict on any of the 3 answers: .* 6 replies of the judge name neither"),
    ):
        judged(endpoint, own_cache, **few)
