"""Retrieval: a FAISS index of documents and its evaluation as stages of pipelines, and the suite ``retrieval``."""

from alignkit_rag.stages import Evaluate, Index, with_documents
from alignkit_rag.suite import Retrieval

__all__ = ["Evaluate", "Index", "Retrieval", "with_documents"]
