"""Tables of tokenised rows in the content cache: the same rows, tokenizer and rules are tokenised once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.data.tokenise.encode import Recipe
from alignkit.system.cache import ContentCache
from alignkit.system.files import digest

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

_FORMAT = 3
"""Raised whenever the rules of tokenisation or the columns of a table change."""

_TABLES = ContentCache("tokens", ".arrow")


def cached(key: str, make: Callable[[], Iterator[pa.RecordBatch]]) -> pa.Table:
    """Return the table kept under ``key``, memory-mapped, else make and keep it; in memory where it cannot be kept."""
    return _TABLES.fetch(key, lambda: in_memory(make()), read=_read, write=lambda path, _: _write(path, make()))[0]


def in_memory(batches: Iterator[pa.RecordBatch]) -> pa.Table:
    """Return a table of batches; of none, an empty one without columns."""
    import pyarrow as pa

    found = list(batches)
    return pa.Table.from_batches(found) if found else pa.table({})


def cache_key(source: str, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> str:
    """Return SHA-256 over everything a table depends on; ``source`` is the digest of the source's content."""
    import tokenizers
    import transformers

    settings = [_FORMAT, transformers.__version__, tokenizers.__version__, recipe.key(), source]
    return digest([*settings, tokenizer_content(tokenizer)])


def tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return everything that decides how text becomes ids: vocabulary, rules, special tokens, chat template."""
    about: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "settings": {name: str(getattr(tokenizer, name, None)) for name in ("add_bos_token", "add_eos_token")},
    }
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # left behind by earlier calls, and set anew by ours
        backend.no_padding()
        about["backend"] = hashlib.sha256(backend.to_str().encode()).hexdigest()
    else:
        about["vocabulary"] = tokenizer.get_vocab()
        about["init"] = {name: str(value) for name, value in tokenizer.init_kwargs.items()}
    return json.dumps(about, sort_keys=True)


def _read(path: Path) -> pa.Table:
    import pyarrow as pa

    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    table.validate()
    return table


def _write(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    import pyarrow as pa

    first = list(islice(batches, 1))
    with (
        pa.OSFile(str(path), "wb") as file,
        pa.ipc.new_file(file, first[0].schema if first else pa.schema([])) as writer,
    ):
        for batch in chain(first, batches):
            writer.write_batch(batch)
