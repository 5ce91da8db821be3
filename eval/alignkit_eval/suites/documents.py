"""Plain documents: read from a file, and cut into windows for scoring."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from alignkit import Example
from alignkit.demo import data_path
from alignkit.errors import ConfigError
from alignkit.system.files import jsonl_rows

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Text(NamedTuple):
    """A plain document."""

    id: str
    cluster: str
    text: str


def read_documents(source: str) -> list[Text]:
    """Read documents from a ``.jsonl`` file with a "text" key per line, or a ``.txt`` file with blank lines in between.

    A .jsonl file may also give "id" and "cluster". The default id is the line (.jsonl) or the number of the document
    (.txt), and by default each document is its own cluster. The source ``demo`` is the demo's neutral texts. Raises
    ``ConfigError``: the file is missing, of another type or has no document, or a line (named) cannot be used.
    """
    path = Path(data_path("neutral") if source == "demo" else source)
    if path.suffix not in {".jsonl", ".txt"}:
        raise ConfigError(f"perplexity's text must be a .jsonl or .txt file, or demo; got {source!r}")
    try:
        documents = list(_lines(path) if path.suffix == ".jsonl" else _paragraphs(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"perplexity's text cannot be read: {path}: {error}") from error
    if not documents:
        raise ConfigError(f"{path} has no documents")
    return documents


def document_windows(document: Text, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Iterator[Example]:
    """Cut a document into rows whose completions are its tokens, each token scored once.

    The first token is predicted from the beginning-of-sequence token, or the end-of-sequence token where the tokenizer
    has none; without either, it is not scored. A window has at most ``max_length`` tokens. Its first token is the last one
    of the previous window and is not scored again; windows do not overlap otherwise, as in lm-eval's rolling
    log-likelihood.
    """
    tokens: list[int] = tokenizer(document.text, add_special_tokens=False, verbose=False)["input_ids"]
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is not None:
        tokens = [start, *tokens]
    for first in range(1, len(tokens), max_length - 1):
        yield Example(
            id=document.id, prompt=tokens[first - 1 : first], completions=(tokens[first : first + max_length - 1],)
        )


def _lines(path: Path) -> Iterator[Text]:
    for place, row in jsonl_rows(path, error=ConfigError):
        if not isinstance(row.get("text"), str) or not row["text"]:
            raise ConfigError(f'{place}: the key "text" must hold a string that is not empty')
        name = str(row.get("id", place.rpartition(":")[2]))
        yield Text(name, str(row.get("cluster", name)), row["text"])


def _paragraphs(content: str) -> Iterator[Text]:
    lines = content.replace("\r\n", "\n").split("\n")
    paragraphs = ("\n".join(group) for filled, group in groupby(lines, lambda line: bool(line.strip())) if filled)
    for number, paragraph in enumerate(paragraphs, start=1):
        yield Text(str(number), str(number), paragraph)
