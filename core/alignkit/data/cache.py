"""Tokenised rows kept on disk, by content: the same rows, tokenizer and rules are tokenised once.

A file appears whole or not at all (temporary name, fsync, rename), so processes may share the directory. A file that cannot
be read is made anew. The directory is ``$ALIGN_CACHE``, else ``$XDG_CACHE_HOME/alignkit``, else ``~/.cache/alignkit``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from alignkit.data.rows import Row
from alignkit.data.tokens import Tokenised, TokenRules

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_FORMAT = 1
"""Raised whenever the rules of tokenisation or the file change."""


def cache_directory() -> Path:
    """Return the directory that tokenised rows are kept in."""
    if own := os.environ.get("ALIGN_CACHE"):
        return Path(own).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base).expanduser() if base else Path.home() / ".cache") / "alignkit"


def cached(key: str, make: Callable[[], Tokenised]) -> Tokenised:
    """Return what is kept under ``key``, else make it and keep it.

    Where the directory cannot be written, that is logged and nothing is kept.
    """
    path = cache_directory() / "tokens" / f"{key}.npz"
    if (found := _read(path, key)) is not None:
        return found
    made = make()
    try:
        _write(path, key, made)
    except OSError as error:
        logger.warning("tokenised rows are not cached: %s", error)
    return made


def cache_key(rows: Sequence[Row], tokenizer: PreTrainedTokenizerBase, rules: TokenRules) -> str:
    """Return SHA-256 over everything that tokenisation depends on."""
    import tokenizers
    import transformers

    settings = [_FORMAT, transformers.__version__, tokenizers.__version__, asdict(rules)]
    content = hashlib.sha256(json.dumps(settings).encode())
    content.update(tokenizer_content(tokenizer).encode())
    for row in rows:
        content.update(json.dumps((row.prompt, row.answers), ensure_ascii=False, default=str).encode())
    return content.hexdigest()


def tokenizer_content(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return everything that decides how text becomes ids: vocabulary, rules, special tokens, chat template."""
    about: dict[str, Any] = {
        "class": type(tokenizer).__name__,
        "template": tokenizer.chat_template,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "settings": {name: str(getattr(tokenizer, name, None)) for name in ("add_bos_token", "add_eos_token")},
    }
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        # Left behind by earlier calls, and set anew by ours.
        about["backend"] = {name: part for name, part in backend.items() if name not in ("truncation", "padding")}
    else:
        about["vocabulary"] = tokenizer.get_vocab()
        about["init"] = {name: str(value) for name, value in tokenizer.init_kwargs.items()}
    return json.dumps(about, sort_keys=True)


def _read(path: Path, key: str) -> Tokenised | None:
    if not path.exists():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(file["about"].tobytes())
            found = Tokenised(
                tokens=file["tokens"],
                offsets=file["offsets"],
                kept=file["kept"],
                dropped={int(index): reason for index, reason in about["dropped"].items()},
                counts=about["counts"],
            )
        if about["key"] != key or int(found.offsets[-1]) != len(found.tokens):
            raise ValueError("its content does not fit its name")
    except (OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        logger.warning("the cache file %s is unreadable (%s) and is made anew", path, error)
        return None
    return found


def _write(path: Path, key: str, made: Tokenised) -> None:
    about = json.dumps({"key": key, "dropped": made.dropped, "counts": made.counts}).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=".tmp")
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            np.savez(
                file,
                tokens=made.tokens,
                offsets=made.offsets,
                kept=made.kept,
                about=np.frombuffer(about, dtype=np.uint8),
            )
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
