"""Conformance tests of the stages and the suite, and comparisons of indexes and of models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from alignkit.cli import run_command
from alignkit.errors import ConfigError, DataError, ModelError
from alignkit.rundir.evaluations import read_evaluation
from alignkit.testing import SuiteConformance
from alignkit_eval.pipelines.pipeline import run_pipeline
from alignkit_eval.testing import StageConformance
from alignkit_rag.suite import Retrieval, RetrievalSettings

HERE = Path(__file__).parents[1]
DOCUMENTS, QUESTIONS = (str(HERE / f"{name}.jsonl") for name in ("documents", "questions"))
INDEX = {"stage": "rag-index", "documents": DOCUMENTS}
EVALUATE = {"stage": "rag-evaluate", "questions": QUESTIONS}


class TestIndex(StageConformance):
    name = "rag-index"
    settings = {"documents": DOCUMENTS}


class TestEvaluate(StageConformance):
    name = "rag-evaluate"
    before = ({"name": "index", **INDEX},)
    settings = {"index": "stage:index", "questions": QUESTIONS}


class TestRetrieval(SuiteConformance):
    name = "retrieval"
    settings = {"documents": DOCUMENTS, "questions": QUESTIONS}


def pipeline(place: Path, *stages: dict[str, Any]) -> Path:
    file = place / "p.yaml"
    file.write_text(yaml.safe_dump({"stages": [*stages]}))
    run_pipeline(file, output=str(place / "runs"))
    return place / "runs" / "p"


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model of sentence-transformers: the maximum over the first 8 tokens of the demo's last hidden states."""
    transformers = pytest.importorskip("sentence_transformers", reason='pip install "alignkit-rag[sentences]"')
    modules = pytest.importorskip("sentence_transformers.models")
    from alignkit import build_model
    from alignkit.config import ModelConfig

    folder = tmp_path_factory.mktemp("sentences")
    loaded: Any = build_model(ModelConfig(name="demo"))
    loaded.tokenizer.pad_token = loaded.tokenizer.pad_token or loaded.tokenizer.eos_token
    loaded.model.model.save_pretrained(folder / "transformer")
    loaded.tokenizer.save_pretrained(folder / "transformer")
    words = modules.Transformer(str(folder / "transformer"), max_seq_length=8)
    pooling = modules.Pooling(loaded.model.config.hidden_size, pooling_mode="max")
    transformers.SentenceTransformer(modules=[words, pooling], device="cpu").save(str(folder / "model"))
    return str(folder / "model")


def test_two_indexes_are_compared(tmp_path: Path, sentences: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One by a model's hidden states, one by sentence-transformers, on the same questions."""
    place = pipeline(
        tmp_path,
        {"name": "one", **INDEX},
        {"name": "two", **INDEX, "model": sentences, "sentences": True},
        {"name": "found-one", **EVALUATE, "index": "stage:one"},
        {"name": "found-two", **EVALUATE, "index": "stage:two"},
    )
    one, two = (read_evaluation(place / f"found-{name}" / "eval", "retrieval") for name in ("one", "two"))
    assert one.metrics != two.metrics
    assert run_command(["compare", str(place / "found-one"), str(place / "found-two"), "--json"]) == 0
    found = {contrast["metric"]: contrast for contrast in json.loads(capsys.readouterr().out)["contrasts"]}
    assert found.keys() == {"recall@5", "mrr"}
    for metric, contrast in found.items():
        assert contrast["n"] == len(one.items)
        assert contrast["diff"] == pytest.approx(two.metrics[metric].value - one.metrics[metric].value)
    assert json.loads((place / "two" / "settings.json").read_text())["cut"] > 0


def test_the_suite_equals_the_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A model that embeds by itself finds what an index of its hidden states finds; both are compared with one another."""
    place = pipeline(tmp_path, {"name": "index", **INDEX}, {"name": "found", **EVALUATE, "index": "stage:index"})
    given = ["--set", f"retrieval.documents={DOCUMENTS}", "--set", f"retrieval.questions={QUESTIONS}"]
    words = ["eval", "demo", "--suite", "retrieval", *given, "--output", str(tmp_path / "out")]
    assert run_command(words) == 0
    ours = read_evaluation(tmp_path / "out" / "demo" / "eval", "retrieval")
    stage = read_evaluation(place / "found" / "eval", "retrieval")
    assert ours.metrics == stage.metrics
    assert ours.items == stage.items
    assert ours.metrics["mrr"].value == pytest.approx(sum(i["reciprocal"] for i in ours.items) / len(ours.items))
    assert run_command(["compare", str(tmp_path / "out" / "demo"), str(place / "found")]) == 0
    assert "mrr" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("questions", "message"),
    [
        (
            '{"question": "a", "document": 99}',
            r"q.jsonl:1: column 'document' is 99, not the number of a document, from 0 to 52",
        ),
        (
            '{"question": "a", "document": 0}\n{"question": "a", "document": "x"}',
            r"q.jsonl:2: column 'document' is 'x'",
        ),
        ('{"question": "", "document": 0}', r"q.jsonl:1: column 'question' is '', not a text"),
        ('{"question": "a"}', r"q.jsonl:1: there is no column 'document'"),
        ("[]", r"q.jsonl:1: expected a JSON object"),
        ("", "q.jsonl has no rows"),
    ],
)
def test_questions_are_checked_before_a_model_is_loaded(tmp_path: Path, questions: str, message: str) -> None:
    (tmp_path / "q.jsonl").write_text(questions)
    with pytest.raises(DataError, match=message):
        Retrieval(RetrievalSettings(documents=DOCUMENTS, questions=str(tmp_path / "q.jsonl")))


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({**INDEX, "documents": "absent.jsonl"}, "absent.jsonl does not exist"),
        ({**INDEX, "text": "body"}, r"documents.jsonl:1: there is no column 'body'"),
        ({**INDEX, "model": "./absent"}, "absent"),
        ({**INDEX, "model": "demo-copy", "sentences": True}, "demo-copy is not a model of sentence-transformers"),
        ({**EVALUATE, "index": "absent"}, "absent holds no index"),
        ({**EVALUATE, "index": "stage:index", "document": "number"}, r"questions.jsonl:1: there is no column 'number'"),
    ],
)
def test_settings_are_checked_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: dict[str, Any], message: str
) -> None:
    if stage.get("sentences"):
        pytest.importorskip("sentence_transformers")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo-copy").mkdir()
    with pytest.raises((ConfigError, DataError, ModelError), match=message):
        pipeline(tmp_path, {"name": "index", **INDEX}, {"name": "own", **stage})
    assert not (tmp_path / "runs" / "p" / "index").exists()


def test_a_model_of_sentence_transformers_says_so(tmp_path: Path, sentences: str) -> None:
    with pytest.raises(ConfigError, match="set sentences: true"):
        pipeline(tmp_path, {"name": "own", **INDEX, "model": sentences})
