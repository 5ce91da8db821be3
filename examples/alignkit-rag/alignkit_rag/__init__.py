"""Stages of pipelines that build a FAISS index of documents, and evaluate its retrieval."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from alignkit import Estimate, Settings, Stage
from alignkit.errors import ConfigError
from pydantic import Field


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
        """Refuse a file that neither exists nor is an earlier stage's, and one without the column."""
        _rows(self, self.settings.documents, [self.settings.text])

    def run(self, directory: Path) -> None:
        """Embed the documents and write the index."""
        import faiss

        texts = [row[self.settings.text] for row in _rows(self, self.settings.documents, [self.settings.text])]
        vectors = embed(texts, self.settings.model, sentences=self.settings.sentences)
        index = faiss.IndexFlatIP(vectors.shape[1])
        index.add(vectors)
        faiss.write_index(index, str(directory / "index.faiss"))
        (directory / "documents.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        (directory / "settings.json").write_text(self.settings.model_dump_json())

    def finished(self, say: Callable[[str], None]) -> dict[str, int]:
        """Return the number of documents."""
        return {"documents": len((self.context.directory / "documents.jsonl").read_text().splitlines())}


class EvaluateSettings(Settings):
    """Settings of rag-evaluate."""

    index: str = Field(description="directory of an index: stage:NAME")
    questions: str = Field(description="JSON lines file of questions with the number of the document that answers each")
    question: str = Field("question", description="column with the question")
    document: str = Field("document", description="column with the document's number, from 0")
    k: int = Field(5, ge=1, description="documents that are retrieved")


class Evaluate(Stage[EvaluateSettings]):
    """Recall at k and the mean reciprocal rank of the right document, with intervals, and each question's rank."""

    name = "rag-evaluate"
    settings_type = EvaluateSettings
    outputs = ("retrieval.json",)

    def check(self) -> None:
        """Refuse questions that do not exist or lack a column."""
        _rows(self, self.settings.questions, [self.settings.question, self.settings.document])

    def run(self, directory: Path) -> None:
        """Retrieve for every question."""
        from alignkit_eval.statistics import clustered_mean, clustered_proportion

        rows = _rows(self, self.settings.questions, [self.settings.question, self.settings.document])
        found = retrieve(Path(self.settings.index), [row[self.settings.question] for row in rows], self.settings.k)
        wanted = [int(row[self.settings.document]) for row in rows]
        ranks = [list(near).index(one) + 1 if one in near else 0 for near, one in zip(found, wanted, strict=True)]
        recall = clustered_proportion([float(rank > 0) for rank in ranks], wanted)
        mrr = clustered_mean([1 / rank if rank else 0.0 for rank in ranks], wanted)
        result = {"k": self.settings.k, "recall": recall._asdict(), "mrr": mrr._asdict(), "ranks": ranks}
        (directory / "retrieval.json").write_text(json.dumps(result))

    def finished(self, say: Callable[[str], None]) -> dict[str, str]:
        """Return both metrics with their intervals."""
        found = json.loads((self.context.directory / "retrieval.json").read_text())
        return {f"recall@{found['k']}": _shown(found["recall"]), "MRR": _shown(found["mrr"])}


def embed(texts: Sequence[str], model: str, *, sentences: bool = False) -> Any:
    """Return unit vectors ``[texts, size]``: of sentence-transformers, or the mean of a model's last hidden states."""
    import numpy as np

    if sentences:
        from sentence_transformers import SentenceTransformer

        return np.asarray(SentenceTransformer(model).encode(list(texts), normalize_embeddings=True), dtype=np.float32)
    import torch
    from alignkit import build_model
    from alignkit.config import ModelConfig

    loaded = build_model(ModelConfig(name=model, dtype="float32"))
    loaded.model.eval()
    rows = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([loaded.tokenizer(text)["input_ids"]])
            states = loaded.model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0].mean(0)
            rows.append(torch.nn.functional.normalize(states, dim=0).numpy())
    return np.stack(rows).astype(np.float32)


def retrieve(directory: Path, questions: Sequence[str], k: int) -> Any:
    """Return the numbers of the ``k`` documents nearest to each question, ``[questions, k]``."""
    import faiss

    settings = IndexSettings.model_validate_json((directory / "settings.json").read_text())
    index = faiss.read_index(str(directory / "index.faiss"))
    return index.search(embed(questions, settings.model, sentences=settings.sentences), min(k, index.ntotal))[1]


def with_documents(directory: str, prompts: Sequence[str]) -> list[str]:
    """Return each prompt after the three documents nearest to it, for ``align generate --with rag:DIR``."""
    path = Path(directory)
    if not (path / "index.faiss").is_file():
        raise ConfigError(f"{path} holds no index of the stage rag-index")
    texts = [json.loads(line)["text"] for line in (path / "documents.jsonl").read_text().splitlines()]
    found = retrieve(path, prompts, 3)
    return ["\n".join([*(texts[number] for number in near), one]) for near, one in zip(found, prompts, strict=True)]


def _rows(stage: Stage[Any], source: str, columns: Sequence[str]) -> list[dict[str, Any]]:
    """Return the rows of a file; none where an earlier stage has not written it yet."""
    path = Path(source)
    if not path.exists():
        if path.is_relative_to(stage.context.directory.parent):
            return []
        raise ConfigError(f"{stage.context.place}: {path} does not exist")
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line)
            missing = [column for column in columns if column not in row]
        except (ValueError, TypeError) as error:
            raise ConfigError(f"{path}:{number}: not a JSON object: {error}") from None
        if missing:
            raise ConfigError(f"{path}:{number}: there is no column {missing[0]}")
        rows.append(row)
    if not rows:
        raise ConfigError(f"{path} has no rows")
    return rows


def _shown(found: dict[str, float]) -> str:
    estimate = Estimate(**found)
    around = "" if estimate.low is None else f" [{estimate.low:.3f}, {estimate.high:.3f}]"
    return f"{estimate.value:.3f}{around}"
