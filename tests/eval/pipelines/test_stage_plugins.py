"""Stages of an outsider's package in a pipeline, the stage ``data``, and the choice of stages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alignkit.demo import data_path
from alignkit.errors import AlignError, ConfigError, RunFailedError
from alignkit_eval.pipelines.pipeline import run_pipeline
from alignkit_eval.testing import StageConformance

from tests.helpers.third_party import Site, site  # noqa: F401

SOURCE = """
from pathlib import Path
from alignkit import Settings, Stage
from alignkit.errors import ConfigError
from pydantic import Field

class CountSettings(Settings):
    text: str = Field(description="file to count")
    times: int = Field(1, ge=1, description="how often")
    fail: str = Field("", description="how to fail")

class Count(Stage[CountSettings]):
    name = "count"
    settings_type = CountSettings
    outputs = ("lines",)
    leftovers = "resumed"

    def check(self):
        path = Path(self.settings.text)
        if not path.exists() and not path.is_relative_to(self.context.directory.parent):
            raise ConfigError(f"{self.context.place}: text: {path} does not exist")

    def run(self, directory):
        for number in range(self.settings.times):
            part = directory / f"part-{number}"
            if not part.exists():
                part.write_text(Path(self.settings.text).read_text())
            if number == 1 and Path(self.settings.fail).is_file():
                raise ValueError("no luck")
        if self.settings.fail != "silent":
            (directory / "lines").write_text(str(len(part.read_text().splitlines())))

    def finished(self, say):
        return {"lines": int((self.context.directory / "lines").read_text())}
"""
SECTIONS = (
    "data: {limit: 40, eval_limit: 8}\neval: {samples: 0, suites: []}\nrun: {plots: false}\ntrain: {max_steps: 1}\n"
)


@pytest.fixture
def outside(site: Site) -> Site:  # noqa: F811
    site.install("align-count", SOURCE, group="stages", count="align_count:Count")
    return site


def go(file: Path, text: str, **options: object) -> list[str]:
    file.write_text(SECTIONS + text)
    messages: list[str] = []
    run_pipeline(file, output=str(file.parent / "runs"), say=messages.append, **options)
    return messages


def test_an_outsiders_stage_is_kept_and_depends_on_its_files(outside: Site, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a\nb\n")
    text = f"stages:\n- {{stage: count, text: {tmp_path / 'a.txt'}}}\n- {{stage: count, name: more, text: stage:count/lines}}\n"
    first = go(tmp_path / "p.yaml", text)
    assert first == ["[1/2] count: count", "count: lines 2", "[2/2] more: count", "more: lines 1"]
    assert "[1/2] count: already finished" in go(tmp_path / "p.yaml", text)
    record = json.loads((tmp_path / "runs/p/pipeline.json").read_text())["stages"][0]
    assert (record["kind"], record["results"]) == ("count", {"lines": 2})
    assert ">lines 2<" in (tmp_path / "runs/p/report.html").read_text()
    (tmp_path / "a.txt").write_text("a\n")
    with pytest.raises(ConfigError, match="count was run with another configuration, data, function or start model"):
        go(tmp_path / "p.yaml", text)


def test_a_failed_stage_is_absent_and_resumed(outside: Site, tmp_path: Path) -> None:
    for name in ("a.txt", "fail"):
        (tmp_path / name).write_text("a\n")
    text = f"stages:\n- {{stage: count, times: 3, text: {tmp_path / 'a.txt'}, fail: {tmp_path / 'fail'}}}\n"
    with pytest.raises(RunFailedError, match=r'stage "count" \(align-count 1.2.3\) failed: ValueError: no luck'):
        go(tmp_path / "p.yaml", text)
    partly = tmp_path / "runs/p/.count.partial"
    assert not (tmp_path / "runs/p/count").exists()
    (partly / "part-0").write_text("kept\nby\nthe\nnext\n")
    (tmp_path / "fail").unlink()
    with pytest.raises(RunFailedError, match="ended without its output lines"):
        go(tmp_path / "p.yaml", text.replace(str(tmp_path / "fail"), "silent"))
    assert (partly / "part-0").read_text() == "a\n", "other settings: nothing of the earlier attempt is used"
    assert go(tmp_path / "p.yaml", text)[-1] == "count: lines 1"
    assert not partly.exists()


MISTAKES = {
    "{stage: count}": r"p\.yaml:7: stages\.1\.text must be set|p\.yaml:7: .*text",
    "{stage: count, text: nofile}": r"p\.yaml:7: text: nofile does not exist",
    "{stage: count, txet: x}": r'p\.yaml:7: a count stage has no key txet, did you mean "text"',
    "{stage: count, text: stage:a, times: 0}": r"p\.yaml:7: stages\.1\.times must be at least 1",
    "{stage: count, text: stage:a, times: many}": r"p\.yaml:7: stages\.1\.times must be a whole number",
    "{stage: cuont, text: x}": r'p\.yaml:7: unknown stage "cuont", did you mean "count"',
    "{stage: 3, text: x}": r"p\.yaml:7: stage must be the name of a kind of stage",
    "{stage: count, text: stage:b}": r"p\.yaml:7: stage count uses b, which is not an earlier stage",
    "{stage: count, text: stage:a/weights}": r"p\.yaml:7: stage count uses stage:a/weights, and stage a writes model",
    "{stage: data, data: {source: nofile.jsonl}}": r"nofile\.jsonl does not exist",
    "{stage: data, rows: pairs}": r"p\.yaml:7: stages\.1\.rows must be one of",
    "{stage: train, method: sft, name: c, from: a, train: {max_step: 3}}": r"p\.yaml:7: unknown key train\.max_step",
    "{stage: export, name: c}": r"p\.yaml:7: .*export",
}


@pytest.mark.parametrize("stage", MISTAKES)
def test_a_mistake_is_found_before_the_first_stage(outside: Site, tmp_path: Path, stage: str) -> None:
    with pytest.raises(AlignError, match=MISTAKES[stage]):
        go(tmp_path / "p.yaml", f"stages:\n- {{method: sft, name: a}}\n- {stage}\n")
    assert not (tmp_path / "runs/p/a").exists()


def test_only_the_chosen_stages_run(outside: Site, tmp_path: Path) -> None:
    text = (
        f"stages:\n- {{stage: count, text: {data_path('dev')}}}\n- {{stage: count, name: b, text: stage:count/lines}}\n"
    )
    text += "- {stage: count, name: c, text: stage:b/lines}\n"
    with pytest.raises(ConfigError, match="stage c uses b, which is waiting: add it to --stages"):
        go(tmp_path / "p.yaml", text, only=["count", "c"])
    assert not (tmp_path / "runs/p/count").exists(), "found before anything ran"
    with pytest.raises(ConfigError, match="--stages d: unknown stage"):
        go(tmp_path / "p.yaml", text, only=["d"])
    with pytest.raises(ConfigError, match="--from count: the stage is left out"):
        go(tmp_path / "p.yaml", text, only=["b"], start="count")
    with pytest.raises(ConfigError, match="stage b uses count, which is skipped"):
        go(tmp_path / "p.yaml", text, skip=["count"])
    assert [line for line in go(tmp_path / "p.yaml", text, only=["count", "b"]) if "/3]" in line] == [
        "[1/3] count: count",
        "[2/3] b: count",
    ]
    assert [line for line in go(tmp_path / "p.yaml", text, only=["c"]) if "/3]" in line] == ["[3/3] c: count"]


class TestData(StageConformance):
    name = "data"
    settings = {"rows": "preference", "data": {"limit": 30}}


def test_training_uses_the_rows_of_a_data_stage(tmp_path: Path) -> None:
    data = "{source: stage:rows/train.jsonl, eval_source: stage:rows/eval.jsonl}"
    text = f"stages:\n- {{stage: data, name: rows, data: {{limit: 30}}}}\n- {{method: orpo, data: {data}}}\n"
    assert "rows: training rows 30, held-out rows 8" in go(tmp_path / "p.yaml", text)
    record = json.loads((tmp_path / "runs/p/orpo/run.json").read_text())
    assert record["data"]["train"]["rows"] == 30
