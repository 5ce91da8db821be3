"""Evaluation of targets: kinds of targets, where results are stored, and the cache."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from alignkit import Run, settings
from alignkit.demo import data_path, model_path
from alignkit.errors import ConfigError, ModelError, NoRowsError
from alignkit.rundir.directory import RunDir
from alignkit_eval.evaluation.evaluate import default_target, evaluate
from alignkit_eval.evaluation.targets import find_target, held_out_rows

from tests.helpers.data import TOKENIZER
from tests.helpers.runs import align, short_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return short_run(tmp_path_factory.mktemp("runs"), "trained", "dpo", eval={"settings": {}})


@pytest.fixture
def rows(tmp_path: Path) -> str:
    """A file with forty held-out pairs."""
    lines = data_path("dev").read_text().splitlines()[:40]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "rows.jsonl")


def test_a_run_is_evaluated_as_it_was_after_training(run: Run) -> None:
    stored = json.loads((run.directory / "eval/prefs.json").read_text())
    (found,) = evaluate([run.directory], ["prefs"])
    assert found.directory == run.directory
    again = json.loads((run.directory / "eval/prefs.json").read_text())
    assert again["metrics"] == stored["metrics"]
    assert "accuracy_ref" in again["metrics"]
    assert again["provenance"]["weights"] == stored["provenance"]["weights"]
    assert again["notes"] == []


def test_a_run_whose_data_has_changed_says_so(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.directory, tmp_path / "run")
    changed = RunDir(tmp_path / "run")
    data = changed.read_record()["data"]
    changed.update_record(data=data | {"eval": data["eval"] | {"fingerprint": "0" * 64}})
    (found,) = evaluate([changed.path], ["prefs"])
    assert found.results["prefs"].notes == [
        "the held-out rows are not those of the training: the run's data has changed since"
    ]


def test_a_new_suite_joins_the_record(run: Run) -> None:
    evaluate([run.directory], ["perplexity"], sets=["eval.settings.perplexity.text=null"])
    names = {"perplexity", "bits_per_byte", "byte_perplexity", "word_perplexity"}
    assert run.record["evaluation"]["after"]["perplexity"].keys() == names
    fresh = json.loads((run.directory / "run.json").read_text())["evaluation"]
    assert fresh["after"].keys() == {"prefs", "perplexity"}
    assert fresh["before"].keys() == {"prefs", "perplexity"}


def test_other_data_is_what_is_evaluated(run: Run, rows: str, tmp_path: Path) -> None:
    """Of a run that held out a fold of its own rows, too; what would choose among them is refused."""
    folded = RunDir(tmp_path / "folded")
    folded.path.mkdir()
    shutil.copy(run.directory / "run.json", folded.record)
    config = settings.resolve(run.directory / "run.yaml", sets=["data.folds=4"], resume=True).config
    folded.config.write_text(settings.dump(config))
    held_out = held_out_rows(find_target(str(folded.path), data=rows), TOKENIZER).rows("preference")
    assert [row.place for row in held_out] == [f"{rows}:{line}" for line in range(1, 41)]
    for key in ("data.folds=3", "data.limit=5", "data.split=dev", "data.eval_split=0.5", "data.source=demo"):
        with pytest.raises(ConfigError, match=f"--set {key} has no effect with --data"):
            find_target("demo", data=rows, sets=[key])


def test_other_data_leaves_the_run_alone(run: Run, rows: str, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in (run.directory / "eval").glob("*.json*")}
    found = evaluate([run.directory, "demo"], ["prefs"], data=rows, output=tmp_path / "out")
    assert [e.results["prefs"].n for e in found] == [40, 40]
    assert [e.directory for e in found] == [tmp_path / "out/trained", tmp_path / "out/demo"]
    assert {path: path.read_bytes() for path in (run.directory / "eval").glob("*.json*")} == before
    trained, demo = (e.results["prefs"] for e in found)
    assert trained.provenance["content"] == demo.provenance["content"]
    assert "accuracy_ref" in trained.metrics
    assert "accuracy_ref" not in demo.metrics, "a model without a run has no start model"


def test_a_model_directory_gives_what_the_demo_gives(rows: str, tmp_path: Path) -> None:
    (by_path,) = evaluate([model_path()], ["prefs"], data=rows, output=tmp_path)
    (by_name,) = evaluate(["demo"], ["prefs"], data=rows, output=tmp_path)
    assert by_name.results["prefs"].items == by_path.results["prefs"].items
    assert by_name.results["prefs"].provenance["cached"], "the key is made of weights and rows, not of names"


def test_the_cache_knows_weights_rows_and_settings(
    run: Run, rows: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path / "cache"))

    def cached(target: str | Path, *sets: str, data: str = rows) -> bool:
        (found,) = evaluate([target], ["prefs"], data=data, sets=sets, output=tmp_path / "out")
        return bool(found.results["prefs"].provenance["cached"])

    assert [cached("demo"), cached("demo")] == [False, True]
    assert not cached("demo", "eval.settings.prefs.calibration_bins=7")
    assert not cached("demo", "data.max_length=20")
    assert not cached(run.directory)
    Path(rows).write_text(Path(rows).read_text().replace(" ?", " , please ?"))
    assert not cached("demo")


def test_without_data_it_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NoRowsError, match="name a source with --data"):
        evaluate([model_path()], ["prefs"], output=tmp_path)


def test_wrong_words_are_refused_before_anything_is_loaded(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="calibration_bins"):
        evaluate(["demo"], ["prefs"], sets=["eval.settings.prefs.calibration_bin=3"])
    for unread in ("train.max_steps", "eval.samples", "data.curriculum.by", "run.seed", "nll_scope"):
        with pytest.raises(ConfigError, match=f"--set {unread} has no effect on an evaluation"):
            evaluate(["demo"], ["prefs"], sets=[f"{unread}=3"])
    with pytest.raises(ConfigError, match="demo is named twice"):
        evaluate(["demo", "demo"], ["prefs"], output=tmp_path)
    with pytest.raises(ModelError, match="there is no model or run at"):
        evaluate(["./nowhere"], ["prefs"], data="demo", output=tmp_path)


def test_the_newest_run_is_the_default(run: Run, tmp_path: Path) -> None:
    assert default_target(run.directory.parent) == str(run.directory)
    assert default_target(tmp_path / "runs") == "demo"


def test_command_line(run: Run, rows: str, tmp_path: Path) -> None:
    done = align(
        "eval",
        run.directory,
        "demo",
        "--suite",
        "prefs",
        "--suite",
        "perplexity",
        "--data",
        rows,
        "--json",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    trained, demo = json.loads(done.stdout)
    assert (trained["target"], demo["target"]) == ("trained", "demo")
    assert trained["suites"].keys() == {"prefs", "perplexity"}
    assert trained["suites"]["perplexity"]["n"] == 40, "the given rows, not the texts of the demo's preset"
    missing = align("eval", "demo", "--suite", "pref", cwd=tmp_path)
    assert missing.returncode == 2
    assert 'did you mean "prefs"' in missing.stderr


def test_public_names_are_functions_whatever_was_imported_before() -> None:
    import alignkit_eval
    import alignkit_eval.cli.compare

    for name in ("evaluate", "compare", "sweep"):
        assert callable(getattr(alignkit_eval, name))


def test_the_default_target_is_the_newest_finished_run(tmp_path: Path) -> None:
    assert default_target(tmp_path / "none") == "demo"
    for age, (name, status) in enumerate([("new", "finished"), ("old", "finished"), ("failed", "failed")]):
        run = RunDir.create(tmp_path, name)
        run.update_record(status=status)
        os.utime(run.record, (1e9 - age, 1e9 - age))
    os.utime(tmp_path / "failed" / "run.json")
    assert Path(default_target(tmp_path)).name == "new"
