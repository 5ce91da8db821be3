"""Targets with the same base name keep results of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from alignkit.demo import model_path
from alignkit.errors import ConfigError, ModelError
from alignkit_eval.comparison.compare import compare
from alignkit_eval.evaluation.evaluate import evaluate
from alignkit_eval.evaluation.places import Origin, claim, names_of, release
from alignkit_eval.evaluation.targets import find_target
from huggingface_hub import constants


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``A/model``, ``B/model``, and three pairs."""
    path = tmp_path_factory.mktemp("folder")
    for parent in "AB":
        shutil.copytree(model_path(), path / parent / "model")
    config = path / "B/model/config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": 0.5}))
    rows = [{"prompt": f"what pet does {n} have ?", "chosen": "a cat .", "rejected": "a dog ."} for n in ("Mia", "Leo")]
    (path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def places(folder: Path, *targets: str) -> list[str]:
    data = str(folder / "rows.jsonl")
    found = evaluate([str(folder / t) for t in targets], ["prefs"], data=data, output=folder / "out")
    return [evaluation.directory.name for evaluation in found]


def test_two_models_of_one_name(folder: Path) -> None:
    assert places(folder, "A/model") == ["model"]
    first = (folder / "out/model/eval/prefs.json").read_bytes()
    assert places(folder, "B/model") == ["B--model"]
    assert (folder / "out/model/eval/prefs.json").read_bytes() == first
    assert places(folder, "B/model/") == ["B--model"], "again, its own is replaced"
    assert places(folder, "A/../A/model") == ["model"]
    names = [arm.name for arm in compare([folder / "out/model", folder / "out/B--model"]).arms]
    assert names == ["model", "B--model"]


def test_two_of_one_name_in_one_call(folder: Path, tmp_path: Path) -> None:
    data = str(folder / "rows.jsonl")
    found = evaluate([folder / "A/model", folder / "B/model"], ["prefs"], data=data, output=tmp_path)
    assert [e.target for e in found] == ["A/model", "B/model"]
    assert [e.directory.name for e in found] == ["A--model", "B--model"]
    with pytest.raises(ConfigError, match="model is named twice"):
        evaluate([folder / "A/model", f"{folder}/A/./model"], ["prefs"], data=data, output=tmp_path)


def test_other_rows_are_said(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "rows.jsonl", tmp_path / "one.jsonl")
    said: list[str] = []
    for take in (2, 2, 1):
        lines = (folder / "rows.jsonl").read_text().splitlines(keepends=True)[:take]
        (tmp_path / "one.jsonl").write_text("".join(lines))
        evaluate(["demo"], ["prefs"], data=str(tmp_path / "one.jsonl"), output=tmp_path / "out", say=said.append)
    assert said == ["demo: prefs replaces an earlier result on other rows or with other settings"]


@pytest.mark.parametrize(
    ("target", "name"),
    [("org1/m", "m"), (".", "here"), ("./", "here"), ("../here", "here"), ("link", "link"), ("demo", "demo")],
)
def test_names_of_targets(target: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(model_path(), tmp_path / "here")
    (tmp_path / "here/link").symlink_to(tmp_path / "here")
    kept = tmp_path / "cache" / "models--org1--m"
    shutil.copytree(model_path(), kept / "snapshots" / ("a" * 40))
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("a" * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path / "here")
    assert find_target(target).name == name


def test_directories_are_claimed_once(tmp_path: Path) -> None:
    one, two = (Origin(f"org{i}/m", ("m", f"org{i}")) for i in (1, 2))
    assert names_of([one, two]) == ["org1/m", "org2/m"]
    assert claim(tmp_path, one, "m") == ("m", tmp_path / "m")
    assert claim(tmp_path, two, "m") == ("org2/m", tmp_path / "org2--m")
    assert claim(tmp_path, one, "m") == ("m", tmp_path / "m")
    (tmp_path / "run/eval").mkdir(parents=True)
    (tmp_path / "run/run.json").write_text("{}")
    assert claim(tmp_path, Origin("/x/run", ("run", "x")), "run")[0] == "x/run", (
        "a run's own evaluation is not replaced"
    )
    release(tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_where_nothing_can_be_written(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cannot write results to .*file/demo"):
        evaluate(["demo"], ["prefs"], data=str(folder / "rows.jsonl"), output=tmp_path / "file")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_evaluation_that_fails_leaves_no_directory(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n')
    with pytest.raises(Exception, match="nothing could be evaluated"):
        evaluate(["demo"], ["prefs"], data=str(tmp_path / "bad.jsonl"), output=tmp_path / "out")
    assert not list((tmp_path / "out").glob("*"))


def test_a_run_that_does_not_exist_is_not_looked_for_on_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs/sft-1").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for target, message in (
        ("runs/sft-2", r'there is no model or run at runs/sft-2, did you mean "sft-1"'),
        ("a/b/c", "there is no model or run at a/b/c"),
        ("nope/", "there is no model or run at nope/"),
    ):
        with pytest.raises(ModelError, match=message):
            evaluate([target], ["prefs"], data="demo")
