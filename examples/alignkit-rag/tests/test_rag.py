"""Conformance tests of the stages."""

from pathlib import Path

from alignkit_eval.testing import StageConformance

HERE = Path(__file__).parents[1]


class TestIndex(StageConformance):
    name = "rag-index"
    settings = {"documents": str(HERE / "documents.jsonl")}


class TestEvaluate(StageConformance):
    name = "rag-evaluate"
    before = ({"stage": "rag-index", "name": "index", "documents": str(HERE / "documents.jsonl")},)
    settings = {"index": "stage:index", "questions": str(HERE / "questions.jsonl")}
