"""Tables of tokenised rows kept on disk, by content: the same rows, tokenizer and rules are tokenised once.

A table appears whole or not at all, and of several processes that want the same one, one makes it and the others wait: the
lock is the kernel's, so it is free again however its holder ends, and what it left half-made is replaced or removed by the next
one. A file that cannot be read is made anew. The directory is ``$ALIGN_CACHE``, else ``$XDG_CACHE_HOME/alignkit``, else
``~/.cache/alignkit``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignkit.data.tokenise.encode import Recipe
from alignkit.system.files import sync
from alignkit.system.lock import file_lock

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_FORMAT = 3
"""Raised whenever the rules of tokenisation or the columns of a table change."""

_PARTIAL = ".partial"
_LOCK = ".lock"


def cache_directory() -> Path:
    """Return the directory that tokenised rows are kept in."""
    if own := os.environ.get("ALIGN_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "alignkit"


def cached(key: str, make: Callable[[], Iterator[pa.RecordBatch]]) -> pa.Table:
    """Return the table kept under ``key``, memory-mapped, else make it and keep it.

    Where the directory cannot be written, that is logged and the table stays in memory.
    """
    path = cache_directory() / "tokens" / f"{key}.arrow"
    if (found := _read(path)) is not None:
        return found
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = file_lock(path.with_suffix(_LOCK), wait=True)
    except OSError as error:
        logger.warning("tokenised rows are not cached: %s", error)
        return in_memory(make())
    with lock:
        if (found := _read(path)) is not None:  # another process made it while this one waited
            return found
        _sweep(path.parent)
        partial = path.with_suffix(_PARTIAL)
        try:
            _write(partial, path, make())
        except OSError as error:
            logger.warning("tokenised rows are not cached: %s", error)
            return in_memory(make())
        finally:
            partial.unlink(missing_ok=True)
    found = _read(path)
    return in_memory(make()) if found is None else found


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
    return hashlib.sha256(json.dumps([*settings, tokenizer_content(tokenizer)]).encode()).hexdigest()


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


def _read(path: Path) -> pa.Table | None:
    import pyarrow as pa

    if not path.exists():
        return None
    try:
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            about = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
            if about.get("alignkit") != path.stem:
                raise ValueError("its content does not fit its name")
            table = reader.read_all()
        table.validate()
    except (pa.ArrowException, OSError, ValueError) as error:
        logger.warning("the cache file %s is unreadable (%s) and is made anew", path, str(error).splitlines()[0])
        return None
    return table


def _write(partial: Path, path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    import pyarrow as pa

    writer = None
    with pa.OSFile(str(partial), "wb") as file:
        try:
            for batch in batches:
                if writer is None:
                    writer = pa.ipc.new_file(file, batch.schema.with_metadata({"alignkit": path.stem}))
                writer.write_batch(batch)
        finally:
            if writer is not None:
                writer.close()
    if writer is None:
        return
    sync(partial)
    partial.replace(path)
    sync(path.parent)


def _sweep(directory: Path) -> None:
    """Remove what processes that were killed left half-made."""
    for partial in directory.glob(f"*{_PARTIAL}"):
        with suppress(OSError), file_lock(partial.with_suffix(_LOCK), wait=False):
            partial.unlink(missing_ok=True)
