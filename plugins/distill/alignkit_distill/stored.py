"""A file with a teacher's log-probabilities: one row per completion, in Parquet.

| column | type | |
|---|---|---|
| `prompt`, `completion` | list of int32 | token ids |
| `ids` | list of int32 | the k most likely tokens at every scored token, one after the other |
| `logps` | list of float32 | log-probabilities of these k, then of all other tokens together: k + 1 for every scored token |

The file's metadata (`alignkit_distill`, JSON) has `teacher`, `k`, `temperature`, `width` (tokens of the vocabulary that
were compared) and `tokens`, a digest of the vocabulary.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from alignkit import Batch, Example, TrainerParts
from alignkit.errors import ConfigError, DataError, first_line
from torch import Tensor

from alignkit_distill.settings import DistillSettings
from alignkit_distill.teacher import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_KEY = b"alignkit_distill"
_KEYS = {"k": "teacher_top_k"}


class StoredTeacher:
    """The teacher's log-probabilities of completions, read from a file."""

    def __init__(self, path: Path, table: Any, about: dict[str, Any]) -> None:
        self.path, self.table, self.about, self.k = path, table, about, int(about["k"])
        self.width = int(about["width"])
        pairs = zip(table["prompt"], table["completion"], strict=True)
        self.places = {
            _key(prompt.values.to_numpy(), answer.values.to_numpy()): i for i, (prompt, answer) in enumerate(pairs)
        }

    @classmethod
    def read(cls, settings: DistillSettings) -> StoredTeacher:
        """Open the file of the settings; raises :class:`ConfigError` if it is not one, or was written with other settings."""
        import pyarrow
        import pyarrow.parquet as parquet

        path = Path(settings.teacher_logps or "")

        try:
            table = parquet.read_table(path, memory_map=True)
            about = json.loads((table.schema.metadata or {})[_KEY])
            stored = cls(path, table.combine_chunks(), about)
        except FileNotFoundError as error:
            raise ConfigError(
                f"method.teacher_logps: there is no file {path}: set method.teacher as well to write it"
            ) from error
        except (OSError, KeyError, ValueError, pyarrow.ArrowException) as error:
            raise ConfigError(
                f"method.teacher_logps: {path} is not a file of a teacher's log-probabilities: {first_line(error)}"
            ) from error
        given: dict[str, Any] = {"temperature": settings.temperature}
        if settings.teacher is not None:
            given |= {"teacher": settings.teacher, "k": min(settings.teacher_top_k, stored.width - 1)}
        for name, value in given.items():
            if about[name] != value:
                raise ConfigError(
                    f"method.teacher_logps: {path} was written with {_KEYS.get(name, name)} {about[name]}, and it is {value} "
                    "here: set the same value, or write another file"
                )
        return stored

    def require_same_tokens(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Raise :class:`ConfigError` if the file was written with another vocabulary."""
        if self.about["tokens"] != _tokens(tokenizer):
            raise ConfigError(
                f"method.teacher_logps: {self.path} was written with another tokenizer than the student's: its token ids mean "
                "other tokens; write it with a teacher that has the student's tokenizer"
            )

    def require(self, examples: Sequence[Example]) -> None:
        """Raise :class:`DataError` unless the file has every completion, with as many scored tokens."""
        missing = [
            example.id
            for example in examples
            if not all(self._has(example, i) for i in range(len(example.completions)))
        ]
        if missing:
            raise DataError(
                f"method.teacher_logps: {self.path} lacks {len(missing):,} of {len(examples):,} rows (first: {missing[0]}): "
                "it was written for other data, or with other settings of data or tokenizer; write another file"
            )

    def of(self, examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the ids ``[N, k]`` and log-probabilities ``[N, k + 1]`` of all scored tokens of ``examples``."""
        rows = [self.places[_of(example, i)] for example in examples for i in range(len(example.completions))]

        def joined(name: str, width: int) -> Tensor:
            parts = [self.table[name][row].values.to_numpy() for row in rows]
            return torch.from_numpy(np.concatenate(parts).reshape(-1, width)).to(device)

        return joined("ids", self.k).long(), joined("logps", self.k + 1)

    def _has(self, example: Example, i: int) -> bool:
        row = self.places.get(_of(example, i))
        return row is not None and len(self.table["ids"][row].values) == self.k * example.scored_tokens(i)


def write_stored(
    path: Path, teacher: Teacher, rows: Sequence[Example], settings: DistillSettings, parts: TrainerParts
) -> None:
    """Write the teacher's log-probabilities of every completion of ``rows``, all or nothing.

    Raises ``ConfigError`` in a run of several processes, where there is no file yet.
    """
    import pyarrow
    import pyarrow.parquet as parquet

    if parts.arguments.world_size > 1:
        raise ConfigError(f"method.teacher_logps: {path} does not exist: write it with a run of one process first")
    width = teacher.width(parts.model)
    k = min(settings.teacher_top_k, width - 1)
    about = {
        "teacher": teacher.name,
        "k": k,
        "width": width,
        "temperature": settings.temperature,
        "tokens": _tokens(parts.tokenizer),
    }
    lists = {name: pyarrow.list_(pyarrow.int32()) for name in ("prompt", "completion", "ids")}
    fields = {**lists, "logps": pyarrow.list_(pyarrow.float32())}
    schema = pyarrow.schema(list(fields.items()), {_KEY: json.dumps(about)})
    part = path.with_name(f".{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    logger.info("writing the teacher's log-probabilities of %d rows to %s", len(rows), path)
    try:
        with parquet.ParquetWriter(part, schema, compression="zstd") as writer:
            for batch in (one.examples for one in Batch(rows).cut(len(rows), parts.tokens_per_micro_batch)):
                ids, logps = teacher.most_likely(batch, parts.arguments.device, settings, width)
                sizes = [example.scored_tokens(i) for example in batch for i in range(len(example.completions))]
                answers = [(e.prompt, completion) for e in batch for completion in e.completions]
                columns = {
                    "prompt": [list(prompt) for prompt, _ in answers],
                    "completion": [list(completion) for _, completion in answers],
                    "ids": [one.flatten().cpu().numpy() for one in ids.split_with_sizes(sizes)],
                    "logps": [one.flatten().cpu().numpy() for one in logps.split_with_sizes(sizes)],
                }
                writer.write_table(pyarrow.table(columns, schema=schema))
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def _tokens(tokenizer: PreTrainedTokenizerBase) -> str:
    return hashlib.sha256(json.dumps(sorted(tokenizer.get_vocab().items())).encode()).hexdigest()


def _of(example: Example, i: int) -> bytes:
    return _key(np.asarray(example.prompt), np.asarray(example.completions[i]))


def _key(prompt: Any, completion: Any) -> bytes:
    sizes = np.array([len(prompt), len(completion)], np.int32)
    return hashlib.sha256(b"".join(part.astype(np.int32).tobytes() for part in (sizes, prompt, completion))).digest()
