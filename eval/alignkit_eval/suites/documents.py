"""Plain documents, read from a file, and long texts cut into windows for scoring."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


def first_token(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the beginning-of-sequence token, or the end-of-sequence token where the tokenizer has none; None without either."""
    found: int | None = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    return found


def document_rows(
    documents: Sequence[Text], tokenizer: PreTrainedTokenizerBase, *, bos: bool = True
) -> list[Example | None]:
    """Return documents as rows whose completion is their tokens; None for one of which no token can be scored.

    The first token is predicted from :func:`first_token`; without one, or without ``bos``, it is not scored.
    """
    texts = [document.text for document in documents]
    found: list[list[int]] = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    start = first_token(tokenizer) if bos else None
    rows = [tokens if start is None else [start, *tokens] for tokens in found]
    return [
        Example(document.id, tokens[:1], (tokens[1:],), cluster=document.cluster) if tokens[1:] else None
        for document, tokens in zip(documents, rows, strict=True)
    ]


def windows(row: Example, length: int | None, stride: int | None = None, before: Sequence[int] = ()) -> list[Example]:
    """Cut a row into rows of at most ``length`` tokens that score each token of its completion once.

    Windows end ``stride`` tokens apart (default: half a window) and begin ``length`` tokens before their end, so that each
    token but the first ones is predicted from at least ``length - stride`` tokens; ``stride = length - 1`` gives the windows of
    lm-eval's rolling log-likelihood. A prompt is context like any other text. Windows without a scored token are omitted.
    ``before`` are tokens that begin every window but the first, within its ``length``.
    """
    tokens, first = [*row.prompt, *row.completions[0]], len(row.prompt)
    if length is None or len(tokens) <= length:
        return [row]
    step = min(stride or length // 2, length - 1)
    room = length - len(before)
    mask = row.masks[0] if row.masks else None
    found = []
    end = min(len(tokens), max(length, first + step))
    while True:
        begin = max(0, end - length)
        head = list(before) if begin else []
        begin = end - room if head else begin
        scored = None if mask is None else list(mask[first - len(row.prompt) : end - len(row.prompt)])
        part = Example(
            row.id, [*head, *tokens[begin:first]], (tokens[first:end],), masks=None if scored is None else (scored,)
        )
        found += [part] if part.scored_tokens(0) else []
        if end == len(tokens):
            return found
        first, end = end, min(len(tokens), end + step)


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
