"""Results of other tools as arms of a comparison, and ours in lm-eval's form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from alignkit.demo import model_path
from alignkit.errors import ConfigError
from alignkit_eval.comparison.arms import read_run
from alignkit_eval.comparison.compare import compare
from alignkit_eval.comparison.result import Comparison
from alignkit_eval.elsewhere.export import write_lm_eval
from alignkit_eval.evaluation.evaluate import evaluate
from alignkit_eval.suites.lm_eval import TASKS

from tests.helpers.runs import align, short_run

TASK = "demo_facts"
LIMIT = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The demo's model, and one that was trained so fast that it forgot facts."""
    output = tmp_path_factory.mktemp("models")
    run = short_run(output, "moved", "sft", train={"learning_rate": 0.02}, eval={"suites": [], "samples": 0})
    (output / "demo").symlink_to(model_path())
    return [output / "demo", run.directory / "model"]


@pytest.fixture(scope="module")
def theirs(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What ``lm_eval --log_samples --output_path`` writes for two models, by lm-eval's own code."""
    from lm_eval import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    found = []
    for name, model in zip(("before", "after"), models, strict=True):
        folder = tmp_path_factory.mktemp(name) / name
        tracker = EvaluationTracker(output_path=str(folder))
        results = simple_evaluate(
            model=HFLM(pretrained=str(model), dtype="float32", device="cpu"),
            tasks=[TASK],
            task_manager=TaskManager(include_defaults=False, include_path=str(TASKS)),
            limit=LIMIT,
            log_samples=True,
            bootstrap_iters=0,
        )
        samples = results.pop("samples")
        tracker.save_results_aggregated(results=results, samples=samples)
        tracker.save_results_samples(task_name=TASK, samples=samples[TASK])
        found.append(folder)
    return found


@pytest.fixture(scope="module")
def ours(models: list[Path], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    keys = [f"eval.settings.lm-eval.tasks={TASK}", f"eval.settings.lm-eval.limit={LIMIT}"]
    output = tmp_path_factory.mktemp("ours")
    return [
        evaluate([model], ["lm-eval"], sets=keys, output=output / str(i))[0].directory for i, model in enumerate(models)
    ]


def numbers(comparison: Comparison) -> list[tuple[Any, ...]]:
    return [(c.metric, c.diff, c.low, c.high, c.p, c.n) for c in comparison.contrasts]


def test_two_models_evaluated_by_lm_eval_compare_as_if_we_had_evaluated_them(
    theirs: list[Path], ours: list[Path]
) -> None:
    found, expected = numbers(compare(theirs)), numbers(compare(ours))
    assert found == expected
    assert any(diff != 0 for _, diff, *_ in found), "the models differ"
    item, own = (read_run(path).results[suite].items[0] for path, suite in ((theirs[0], TASK), (ours[0], "lm-eval")))
    assert item["prompt"] == own["prompt"]
    assert item["answers"] == own["answers"]
    assert len(own["answers"]) == len(own["logps"]) > 1
    assert item["logps"] == pytest.approx(own["logps"], abs=1e-4)


def test_results_in_lm_evals_form_compare_as_the_stored_ones(ours: list[Path], tmp_path: Path) -> None:
    exported = []
    for number, directory in enumerate(ours):
        write_lm_eval(read_run(directory).results, "model", tmp_path / str(number))
        _, left_out = write_lm_eval(read_run(directory).results, "model", tmp_path / str(number))
        assert left_out == []
        exported.append(tmp_path / str(number))
    assert numbers(compare(exported)) == numbers(compare(ours))


def test_eval_exports_every_suite_that_has_a_value_of_each_item(models: list[Path], tmp_path: Path) -> None:
    run = models[1].parent
    asked = ["--suite", "prefs,perplexity", "--set", "data.eval_limit=20", "--export", "lm-eval"]
    done = align("eval", str(run), *asked, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (path,) = (run / "eval" / "lm-eval").glob("results_*.json")
    assert path.name in done.stderr.replace("\n", "")
    (again,) = (read_run(path).results,) if (written := json.loads(path.read_text())) else ()
    stored = read_run_metrics(run)
    assert written["results"]["perplexity"]["perplexity,none"] == stored["perplexity"]["perplexity"]
    for suite in ("prefs", "perplexity"):
        for metric, estimate in again[suite].metrics.items():
            assert estimate.value == pytest.approx(stored[suite][metric.removeprefix(f"{suite}/")], rel=1e-12), metric


def read_run_metrics(run: Path) -> dict[str, dict[str, float]]:
    return {
        suite: {
            name: found["value"]
            for name, found in json.loads((run / f"eval/{suite}.json").read_text())["metrics"].items()
        }
        for suite in ("prefs", "perplexity")
    }


# ------------------------------------------------------------------------------------------------- Inspect


def inspect_log(path: Path, values: list[Any], **changes: Any) -> Path:
    """Write a log as Inspect 0.3.285 does, with two epochs of each question."""
    samples = [
        {
            "id": f"q{i}",
            "epoch": epoch,
            "input": f"{i} + 1?",
            "target": str(i + 1),
            "scores": {"match": {"value": value}},
        }
        for epoch in (1, 2)
        for i, value in enumerate(values)
    ]
    about = {"task": "sums", "task_version": 0, "task_args": {}, "model": "m", "config": {"epochs": 2}, "packages": {}}
    path.write_text(json.dumps({"version": 2, "status": "success", "eval": about, "samples": samples} | changes))
    return path


def test_inspect_logs_are_arms(tmp_path: Path) -> None:
    first = inspect_log(tmp_path / "first.json", ["I", "C", "P", "N"] * 6)
    second = inspect_log(tmp_path / "second.json", [True, 1, 0.5, {"a": 1, "b": 0}] * 6)
    assert read_run(first).results["inspect"].metrics["sums/match"].value == pytest.approx(1.5 / 4)
    log = json.loads(first.read_text())
    for sample in log["samples"]:
        if sample["epoch"] == 2:
            sample["scores"]["match"]["value"] = "C"
    second.write_text(json.dumps(log))
    (contrast,) = compare([first, second]).contrasts
    assert contrast.diff == pytest.approx((1 - 1.5 / 4) / 2)
    assert contrast.n == 24


def test_a_score_that_some_samples_lack_is_left_out_with_a_note(tmp_path: Path) -> None:
    path = inspect_log(tmp_path / "log.json", [1, {"a": 1, "b": 0}, 0])
    result = read_run(path).results["inspect"]
    assert result.metrics == {}
    assert "sums/match is left out: 1 samples do not have it" in result.notes


# --------------------------------------------------------------------------------------------- RewardBench


def test_outputs_of_rewardbench_are_arms(tmp_path: Path) -> None:
    lines = tmp_path / "model_all.jsonl"
    lines.write_text(
        "".join(f'{{"chosen": {c}, "rejected": {r}}}\n' for c, r in [(1.5, 1), ("[2]", 3), (1, 1), (2, 0)])
    )
    assert read_run(lines).results["rewardbench"].metrics["accuracy"].value == 0.5
    table = {
        "id": [1, 2, 1, 2],
        "subset": ["chat", "chat", "math", "math"],
        "results": [1, 0, 1, 1],
        "scores": [[1]] * 4,
    }
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    paths[0].write_text(json.dumps(table))
    pandas = {key: dict(enumerate(column)) for key, column in table.items()} | {"model": "m"}
    pandas["results"] = {"0": 1, "1": 1, "2": 0.5, "3": 1}
    paths[1].write_text(json.dumps(pandas))
    found = {c.metric: c.diff for c in compare(paths).contrasts}
    assert found == {"accuracy": 0.125, "accuracy/chat": 0.5, "accuracy/math": -0.25}


# ------------------------------------------------------------------------------------------------ bad files


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda folder: next(folder.glob("*/samples*")).unlink(),
            r"samples_demo_facts_.* is missing: run lm-eval with",
        ),
        (lambda folder: cut(next(folder.glob("*/samples*"))), r"samples_demo_facts_.*jsonl has 11 of 12 documents"),
        (
            lambda folder: double(next(folder.glob("*/results*"))),
            r"has 2 results: name one of them, such as .*results_2",
        ),
        (lambda folder: next(folder.glob("*/results*")).write_text('{"results": '), r"results_.*json: "),
        (
            lambda folder: next(folder.glob("*/samples*")).write_text('{"doc_id": 1}\n'),
            r"jsonl:1: a sample of lm-eval has",
        ),
    ],
)
def test_results_that_cannot_be_used_are_refused(theirs: list[Path], tmp_path: Path, spoil: Any, message: str) -> None:
    import shutil

    folder = tmp_path / "lm"
    shutil.copytree(theirs[0], folder)
    spoil(folder)
    with pytest.raises(ConfigError, match=message):
        compare([folder, theirs[1]])


def cut(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def double(path: Path) -> None:
    path.with_name("results_2026-11-26T00-00-00.000000.json").write_bytes(path.read_bytes())


def test_what_cannot_be_read_is_said_in_a_sentence(tmp_path: Path) -> None:
    ended = inspect_log(tmp_path / "log.json", [1], status="error")
    unscored = inspect_log(tmp_path / "unscored.json", [1])
    log = json.loads(unscored.read_text())
    log["samples"][0]["scores"] = None
    log["samples"][0]["error"] = {"message": "out of time\nmore"}
    unscored.write_text(json.dumps(log))
    (tmp_path / "zipped.eval").write_bytes(b"PK")
    (tmp_path / "empty").mkdir()
    for path, words in (
        (ended, "did not end (its status is error)"),
        (unscored, "sample 'q0' has no score: out of time"),
        (tmp_path / "zipped.eval", "needs inspect-ai to be read: pip install inspect-ai"),
        (tmp_path / "empty", "no results of inspect or lm-eval or rewardbench"),
    ):
        done = align("compare", path, ended, cwd=tmp_path)
        assert done.returncode == 2
        assert words in done.stderr.replace("\n", " "), done.stderr
        assert "Traceback" not in done.stderr
