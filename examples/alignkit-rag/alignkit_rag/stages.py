"""The stages ``rag-index`` and ``rag-evaluate``, and the context ``rag`` of ``align generate --with``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from alignkit import Estimate, Settings, Stage
from alignkit.errors import ConfigError
from alignkit.rundir.evaluations import read_evaluation, write_evaluation
from pydantic import Field

from alignkit_rag.embedding import Embedded, check_embedder, embed
from alignkit_rag.measuring import content_of, measured
from alignkit_rag.reading import questions_of, read_rows, texts_of


class IndexSettings(Settings):
    """Settings of rag-index."""

    documents: str = Field(description="JSON lines file of documents")
    text: str = Field("text", description="column with the text of a document")
    model: str = Field(
        "demo", description="run or model whose mean hidden states embed texts, or a sentence-transformers model"
    )
    sentences: bool = Field(False, description="whether model is one of sentence-transformers")


class Index(Stage[IndexSettings]):
    """The index ``index.faiss`` of the documents' embeddings, by cosine similarity, and the documents."""

    name = "rag-index"
    settings_type = IndexSettings
    outputs = ("index.faiss", "documents.jsonl", "settings.json")

    def check(self) -> None:
        """Refuse documents and a model that neither exist nor are an earlier stage's, and files without the column."""
        given = self.settings
        if not _of_earlier(self, given.documents):
            texts_of(read_rows(Path(given.documents), [given.text]), given.text)
        if not _of_earlier(self, given.model):
            check_embedder(given.model, sentences=given.sentences, place=self.context.place)

    def run(self, directory: Path) -> None:
        """Embed the documents and write the index."""
        import faiss

        given = self.settings
        texts = texts_of(read_rows(Path(given.documents), [given.text]), given.text)
        vectors, cut = embed(texts, given.model, sentences=given.sentences)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        faiss.write_index(index, str(directory / "index.faiss"))
        (directory / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        (directory / "settings.json").write_text(json.dumps(given.model_dump() | {"cut": cut}))

    def finished(self, say: Callable[[str], None]) -> dict[str, int]:
        """Return the number of documents, and of those that were cut."""
        directory = self.context.directory
        cut = json.loads((directory / "settings.json").read_text()).get("cut", 0)
        return {"documents": len(_documents(directory))} | ({"cut to the model's positions": cut} if cut else {})


class EvaluateSettings(Settings):
    """Settings of rag-evaluate."""

    index: str = Field(description="directory of an index: stage:NAME")
    questions: str = Field(description="JSON lines file of questions with the number of the document that answers each")
    question: str = Field("question", description="column with the question")
    document: str = Field("document", description="column with the document's number, from 0")
    k: int = Field(5, ge=1, description="documents that are retrieved")


class Evaluate(Stage[EvaluateSettings]):
    """Recall at k and the mean reciprocal rank of the right document, with intervals; ``align compare`` reads its directory."""

    name = "rag-evaluate"
    settings_type = EvaluateSettings
    outputs = ("eval/retrieval.json", "eval/retrieval.items.jsonl")

    def check(self) -> None:
        """Refuse questions that do not exist, lack a column or name no document, and an index that is none."""
        columns, index = (self.settings.question, self.settings.document), self.settings.index
        known = None if _of_earlier(self, index) else len(_documents(Path(index)))
        if not _of_earlier(self, self.settings.questions):
            questions_of(read_rows(Path(self.settings.questions), columns), *columns, known)

    def run(self, directory: Path) -> None:
        """Retrieve for every question."""
        columns, index = (self.settings.question, self.settings.document), Path(self.settings.index)
        documents = _documents(index)
        questions = questions_of(read_rows(Path(self.settings.questions), columns), *columns, len(documents))
        found, embedded = retrieve(index, questions.texts, self.settings.k)
        result = measured(found, questions, self.settings.k, [embedded])
        (directory / "eval").mkdir()
        provenance = {"content": content_of(documents, questions)}
        write_evaluation(directory / "eval", replace(result, provenance=provenance), target=index.name)

    def finished(self, say: Callable[[str], None]) -> dict[str, str]:
        """Return both metrics with their intervals."""
        found = read_evaluation(self.context.directory / "eval", "retrieval")
        return {name: _shown(estimate) for name, estimate in found.metrics.items()}


def retrieve(directory: Path, questions: Sequence[str], k: int) -> tuple[Any, Embedded]:
    """Return the numbers of the ``k`` documents nearest to each question, ``[questions, k]``, and the questions' embeddings."""
    import faiss

    settings = json.loads((directory / "settings.json").read_text())
    index = faiss.read_index(str(directory / "index.faiss"))
    embedded = embed(questions, settings["model"], sentences=settings["sentences"])
    return index.search(embedded.vectors, min(k, index.ntotal))[1], embedded


def with_documents(directory: str, prompts: Sequence[str]) -> list[str]:
    """Return each prompt after the three documents nearest to it, for ``align generate --with rag:DIR``."""
    texts = _documents(Path(directory))
    found, _ = retrieve(Path(directory), prompts, 3)
    return ["\n".join([*(texts[number] for number in near), one]) for near, one in zip(found, prompts, strict=True)]


def _documents(index: Path) -> list[str]:
    """Return the documents of an index; raises ``ConfigError`` if there is none."""
    if not all((index / name).is_file() for name in Index.outputs):
        raise ConfigError(f"{index} holds no index of the stage rag-index")
    return [json.loads(line)["text"] for line in (index / "documents.jsonl").read_text().splitlines()]


def _of_earlier(stage: Stage[Any], source: str) -> bool:
    """Whether a path is of an earlier stage that has no results yet."""
    path = Path(source)
    return not path.exists() and path.is_relative_to(stage.context.directory.parent)


def _shown(estimate: Estimate) -> str:
    around = "" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}{around}"
