"""The suite ``retrieval``: how well the embeddings of the evaluated model find the document that answers a question."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
from alignkit import Settings, Suite, SuiteResult, Target
from pydantic import Field

from alignkit_rag.embedding import TOKENS, mean_states
from alignkit_rag.measuring import content_of, measured
from alignkit_rag.reading import Questions, questions_of, read_rows, texts_of


class RetrievalSettings(Settings):
    """Settings of the retrieval suite."""

    documents: str = Field(description="JSON lines file of documents")
    text: str = Field("text", description="column with the text of a document")
    questions: str = Field(description="JSON lines file of questions with the number of the document that answers each")
    question: str = Field("question", description="column with the question")
    document: str = Field("document", description="column with the document's number, from 0")
    k: int = Field(5, ge=1, description="documents that are retrieved")
    tokens_per_batch: int = Field(TOKENS, ge=1, description="maximum tokens per forward pass")


class Retrieval(Suite[RetrievalSettings]):
    """Recall at k and mean reciprocal rank of documents, by the mean of the model's last hidden states."""

    name = "retrieval"
    metrics = ("recall@*", "mrr")
    settings_type = RetrievalSettings

    def __init__(self, settings: RetrievalSettings) -> None:
        super().__init__(settings)
        assert self._questions.texts  # files are read, and refused, before a model is loaded

    @cached_property
    def _documents(self) -> list[str]:
        return texts_of(read_rows(Path(self.settings.documents), [self.settings.text]), self.settings.text)

    @cached_property
    def _questions(self) -> Questions:
        columns = self.settings.question, self.settings.document
        return questions_of(read_rows(Path(self.settings.questions), columns), *columns, len(self._documents))

    def content(self, target: Target) -> str:
        return content_of(self._documents, self._questions)

    def evaluate(self, target: Target) -> SuiteResult:
        """Embed documents and questions with the target, and retrieve for every question."""
        documents, questions = (
            mean_states(texts, target.policy.model, target.tokenizer, self.settings.tokens_per_batch)
            for texts in (self._documents, self._questions.texts)
        )
        near = np.argsort(-(questions.vectors @ documents.vectors.T), axis=1, kind="stable")
        return measured(near[:, : self.settings.k], self._questions, self.settings.k, (documents, questions))
