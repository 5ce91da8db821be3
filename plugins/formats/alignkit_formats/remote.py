"""Hub data sets and remote files, read by ``datasets`` and fsspec: downloaded, or as a stream of unknown length."""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import IO, Any

from alignkit.config import Reading
from alignkit.contract.registry import provided
from alignkit.data.sources.chunks import ROWS, Source, numbered
from alignkit.errors import DataError, first_line, suggest
from alignkit.system.terminal import redact

from alignkit_formats.compressed import ZIPPED
from alignkit_formats.fill_ins import without_fill_ins
from alignkit_formats.splits import choose_split, suffix_of

_BUILDERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv"}
_BUILDERS |= {".txt": "text", ".parquet": "parquet", ".arrow": "arrow"}


def open_hub(
    source: str, split: str | None, config: Reading, defaults: Sequence[str], limit: int | None = None
) -> Source:
    """Open a hub data set; see :func:`alignkit_formats.sources.open_source`."""
    import datasets

    check = provided("align.checks", "hub")
    silent = check(source, model=False) if check else ""

    def what() -> str:
        near = suggest(source, sorted(entry.name for entry in Path().iterdir()))
        return f'"{source}" is not a local file or directory{near} and cannot be loaded from the hub{silent and f" ({silent})"}'

    with _as_data_error(what):
        names = datasets.get_dataset_split_names(source, config.subset)
        chosen = choose_split(source, list(names), split, defaults)
        rows = datasets.load_dataset(source, config.subset, split=chosen, streaming=config.streaming)
    return _stream_source(rows, source, limit) if config.streaming else dataset_source(rows, source)


def open_url(source: str, split: str | None, config: Reading, limit: int | None = None) -> Source:
    """Open a remote file (https, s3, gs, hf, ...) through ``datasets`` and fsspec.

    Raises ``DataError`` for a form or split that it does not have.
    """
    import datasets

    name = redact(source)
    if "://***@" in source or "=***" in source:
        raise DataError(
            f"{source} was recorded without its password: name the source again (--data, --set data.source=...)"
        )
    if split not in (None, "train"):
        raise DataError(f'{source} is a single file and has no split "{split}"')
    suffix = suffix_of(Path(source.partition("?")[0]))
    if config.delimiter is not None and _BUILDERS.get(suffix) != "csv":
        raise DataError(f"data.delimiter is for CSV files, and {name} is not one: remove the key")
    if suffix not in _BUILDERS:
        problem = f'unknown file type "{suffix}"' if suffix else "the file name has no extension"
        raise DataError(f"{source}: {problem}; supported are {', '.join(_BUILDERS)}, and {ZIPPED} of the text formats")
    with _as_data_error(lambda: f"{source} cannot be loaded"):
        separator = config.delimiter or ("\t" if suffix == ".tsv" else None)
        options = {"sep": separator} if separator else {}
        rows = datasets.load_dataset(
            _BUILDERS[suffix], data_files=source, split="train", streaming=config.streaming, **options
        )
    return _stream_source(rows, name, limit) if config.streaming else dataset_source(rows, name)


@contextmanager
def _as_data_error(what: Callable[[], str]) -> Iterator[None]:
    """Turn what ``datasets`` and its file systems raise into a :class:`DataError` of one sentence."""
    import datasets

    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, datasets.exceptions.DatasetsError) as error:
        cause: BaseException = error
        while isinstance(cause, datasets.exceptions.DatasetGenerationError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise DataError(f"{what()}: {first_line(cause)}") from None


def dataset_source(dataset: Any, name: str) -> Source:
    """Return a source of the rows of a ``datasets.Dataset``."""

    def rows() -> Iterator[Mapping[str, Any]]:
        for columns in dataset.iter(ROWS):
            for values in zip(*columns.values(), strict=True):
                yield without_fill_ins(dict(zip(columns, values, strict=True)))

    def digest() -> str:
        import pyarrow as pa

        content = hashlib.sha256()
        for table in dataset.with_format("arrow").iter(ROWS):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            content.update(sink.getvalue())
        return content.hexdigest()

    return Source(name, name, lambda: numbered(rows(), name), digest)


def _stream_source(stream: Any, name: str, limit: int | None) -> Source:
    """Return a source of the rows of a stream, spooled to an anonymous temporary file on first use."""
    import datasets

    @cache
    def spool() -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the source)
        try:
            for row in map(without_fill_ins, islice(stream, limit)):
                file.write(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass") + b"\n")
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"reading {name} failed part-way: {first_line(error)}") from None
        return file

    def rewound() -> IO[bytes]:
        spool().seek(0)
        return spool()

    return Source(
        name,
        name,
        lambda: numbered(rewound(), name),
        lambda: hashlib.file_digest(rewound(), "sha256").hexdigest(),  # type: ignore[arg-type]
    )
