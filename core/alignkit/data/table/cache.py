"""The cache of tokenised rows, by the content of rows, tokenizer and settings."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.data.shapes import shapes_code
from alignkit.data.tokenise.encode import Recipe
from alignkit.system.cache import ContentCache
from alignkit.system.code import code_beside
from alignkit.system.files import digest

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

_FORMAT = 6
"""Version of the cached tables; incremented when the rules of tokenisation or the columns change."""

_SETTINGS = ("add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "split_special_tokens")
"""Settings of a tokenizer that are not in its backend."""

_TABLES = ContentCache("tokens", ".arrow")


def cached(key: str, make: Callable[[], Iterator[pa.RecordBatch]]) -> pa.Table:
    """Return the table cached under ``key``, memory-mapped, or make and cache it; in memory if it cannot be cached."""
    return _TABLES.fetch(key, lambda: in_memory(make()), read=_read, write=lambda path, _: _write(path, make()))[0]


def in_memory(batches: Iterator[pa.RecordBatch]) -> pa.Table:
    """Return the batches as a table; without batches, an empty table without columns."""
    import pyarrow as pa

    found = list(batches)
    return pa.Table.from_batches(found) if found else pa.table({})


def cache_key(source: str, tokenizer: PreTrainedTokenizerBase, recipe: Recipe) -> str:
    """Return a SHA-256 of everything a table depends on; ``source`` is the digest of the source's content."""
    import tokenizers
    import transformers

    settings = [_FORMAT, transformers.__version__, tokenizers.__version__, asdict(recipe), source]
    return digest([*settings, tokenizer_content(tokenizer), *shapes_code()])


def tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return everything that determines tokenisation, as text: vocabulary, rules, special tokens, chat template."""
    about: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "settings": {name: str(getattr(tokenizer, name, None)) for name in _SETTINGS},
        "code": code_beside(type(tokenizer)),
    }
    if tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        backend.no_truncation()  # settings left by earlier calls, which alignkit's calls override
        backend.no_padding()
        about["backend"] = hashlib.sha256(backend.to_str().encode()).hexdigest()
    else:
        about["vocabulary"] = tokenizer.get_vocab()
        about["init"] = {name: str(value) for name, value in tokenizer.init_kwargs.items()}
        files = filter(None, (getattr(tokenizer, name, None) for name in tokenizer.vocab_files_names))
        about["files"] = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
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
