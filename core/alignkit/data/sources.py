"""From the name of a source to its rows: a file, a URL, a directory, a hub data set, or the demo."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, NoReturn

from alignkit.config import Reading
from alignkit.data.chunks import ROWS, Chunk, LineChunk, RowChunk, Source, file_digest
from alignkit.data.readers import READERS, read_json
from alignkit.data.rows import RawRows, first_line
from alignkit.errors import DataError, SourceError, suggest

TRAIN_SPLITS = ("train",)
HELD_OUT_SPLITS = ("test", "validation", "dev", "eval", "train")
"""Splits tried in this order where none is named."""

_EXECUTABLE = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz"})
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SHARD = re.compile(r"-\d+(-of-\d+)?$")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")
_BUILDERS = {".jsonl": "json", ".ndjson": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
_BUILDERS |= {".arrow": "arrow"}


def load_rows(
    source: str,
    split: str | None,
    config: Reading,
    *,
    default_splits: Sequence[str] = TRAIN_SPLITS,
    limit: int | None = None,
) -> RawRows:
    """Load the rows of ``source``, at most ``limit`` of them, at once; see :func:`open_source`."""
    return open_source(source, split, config, default_splits=default_splits).head(limit).read()


def open_source(
    source: str, split: str | None, config: Reading, *, default_splits: Sequence[str] = TRAIN_SPLITS
) -> Source:
    """Open a source, to be read a chunk at a time.

    Args:
        source: a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, .feather; text formats also gzipped), a URL of one, a
            directory of such files, a directory written by ``datasets``' ``save_to_disk``, a hub id, or ``demo``.
        split: the split to read; None takes the first of ``default_splits`` that the source has.
        config: ``subset`` chooses the configuration of a hub data set, ``streaming`` reads without downloading whole.
        default_splits: what to look for where no split is named.

    Raises:
        DataError: the source is missing or of an unknown kind; when it is read, also empty or unreadable. No source ever
            runs code.
    """
    return _filled(_open(source, split, config, default_splits))


def _open(source: str, split: str | None, config: Reading, defaults: Sequence[str]) -> Source:
    if source == "demo":
        from alignkit.demo import data_path

        return _file_source(data_path(_choose_split("demo", ["train", "dev", "test"], split, defaults)), None)
    if _URL.match(source):
        return _open_url(source, split, config)
    path = Path(source).expanduser()
    try:
        is_directory, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise DataError(f"{source!r} cannot be read: {first_line(error)}") from None
    if (is_directory or is_file) and config.subset is not None:
        raise DataError(f'data.subset "{config.subset}" is for hub data sets, and {source} is a local path')
    if is_directory:
        return _open_directory(path, split, defaults)
    if is_file:
        return _file_source(path, split)
    if path.exists():
        raise DataError(f"{source} is no file that can be read twice (a pipe or device): write the rows to a file")
    if _looks_like_path(source):
        _refuse_missing(path)
    return _open_hub(source, split, config, defaults)


def _filled(source: Source) -> Source:
    """Return the source; reading it raises where it has no rows, or they cannot be read."""

    def chunks() -> Iterator[Chunk]:
        some = False
        try:
            for chunk in source.chunks():
                some = True
                yield chunk
        except DataError as error:
            raise SourceError(str(error)) from error.__cause__
        if not some:
            path = Path(source.name)
            empty = path.is_file() and not path.stat().st_size
            raise SourceError(f"{source.name} is empty" if empty else f"{source.name} holds no rows")

    return Source(source.name, source.root, chunks, source.digest)


# ------------------------------------------------------------------------------------------------ files


def _suffix(path: Path) -> str:
    """Return the suffix that tells the format: ``.jsonl`` of ``prefs.jsonl.gz``."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return name.suffix.lower()


def _file_source(path: Path, split: str | None) -> Source:
    suffix = _suffix(path)
    if suffix in _EXECUTABLE:
        raise DataError(
            f"{path}: {suffix} files can run code when they are loaded; save the rows as JSON Lines or Parquet"
        )
    if suffix not in READERS:
        named = f'unknown file type "{suffix}"' if suffix else "no file type in the name"
        raise DataError(f"{path}: {named}; known are {', '.join(READERS)}, and .gz of the text formats")
    if path.suffix.lower() == ".gz" and suffix in (".parquet", ".arrow", ".feather"):
        raise DataError(f"{path}: unpack it first; only the text formats are read gzipped")
    if split not in (None, "train") and suffix != ".json":
        raise DataError(f'{path} is one file and has no split "{split}"')
    read: Callable[[], Iterator[Chunk]] = lambda: READERS[suffix](path)  # noqa: E731
    if suffix == ".json":
        read = lambda: read_json(path, split)  # noqa: E731
    return Source(str(path), str(path), read, lambda: f"{_files_digest([path])} {split or ''}")


def _files_digest(paths: Sequence[Path]) -> str:
    try:
        return file_digest(paths)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {first_line(error)}") from None


def _looks_like_path(source: str) -> bool:
    path = Path(source)
    known = _suffix(path) in READERS or _suffix(path) in _EXECUTABLE
    return known or source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source)


def _refuse_missing(path: Path) -> NoReturn:
    parent = path.parent
    siblings = sorted(entry.name for entry in parent.iterdir()) if parent.is_dir() else []
    hint = suggest(path.name, siblings) if siblings else ""
    missing = "" if parent.is_dir() else f" (there is no directory {parent})"
    raise DataError(f"{path} does not exist{missing}{hint}")


# ------------------------------------------------------------------------------------------------ directories


def _open_directory(path: Path, split: str | None, defaults: Sequence[str]) -> Source:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _open_saved(path, split, defaults)
    try:
        folders = [path, path / "data"] if (path / "data").is_dir() else [path]
        entries = sorted(entry for folder in folders for entry in folder.iterdir())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    files = [entry for entry in entries if entry.is_file() and _suffix(entry) in READERS and entry.name[0] != "."]
    if not files:
        raise DataError(f"{path} is a directory without data files ({', '.join(READERS)})")
    chosen = _files_of_split(path, files, split, defaults)
    return Source(
        str(path),
        str(path),
        lambda: chain.from_iterable(READERS[_suffix(file)](file) for file in chosen),
        lambda: _files_digest(chosen),
    )


def _files_of_split(path: Path, files: list[Path], split: str | None, defaults: Sequence[str]) -> list[Path]:
    """Return the files that make up a split: ``train.jsonl``, ``train-00000-of-00002.parquet``, ``train_prefs.csv``."""
    by_name: dict[str, list[Path]] = {}
    for file in files:
        stem = file.name[: file.name.lower().rindex(_suffix(file))]
        by_name.setdefault(_SHARD.sub("", stem), []).append(file)
    for wanted in defaults if split is None else (split,):
        if wanted in by_name:
            return by_name[wanted]
        beginning = [file for name in by_name for file in by_name[name] if re.match(rf"{re.escape(wanted)}[-_.]", name)]
        if beginning:
            return beginning
    if split is None:
        return files
    raise DataError(
        f'{path} has no split "{split}"; its files are {", ".join(sorted(by_name))}{suggest(split, [*by_name])}'
    )


def _open_saved(path: Path, split: str | None, defaults: Sequence[str]) -> Source:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be loaded as a saved data set: {first_line(error)}") from None
    if isinstance(saved, Mapping):
        saved = saved[_choose_split(str(path), list(saved), split, defaults)]
    elif split not in (None, "train"):
        raise DataError(f'{path} is a single data set and has no split "{split}"')
    return _dataset_source(saved, str(path))


# ------------------------------------------------------------------------------------------------ hub and URLs


def _open_hub(source: str, split: str | None, config: Reading, defaults: Sequence[str]) -> Source:
    import datasets

    with _said(lambda: f'"{source}" is no file or directory here{_near(source)} and cannot be loaded from the hub'):
        names = datasets.get_dataset_split_names(source, config.subset)
        chosen = _choose_split(source, list(names), split, defaults)
        rows = datasets.load_dataset(source, config.subset, split=chosen, streaming=config.streaming)
        return _stream_source(rows, source, config.limit) if config.streaming else _dataset_source(rows, source)


def _near(source: str) -> str:
    return suggest(source, sorted(entry.name for entry in Path().iterdir()))


def _open_url(source: str, split: str | None, config: Reading) -> Source:
    """Open a file that is not here (https, s3, gs, hf, ...), through ``datasets`` and fsspec."""
    import datasets

    if split not in (None, "train"):
        raise DataError(f'{source} is one file and has no split "{split}"')
    suffix = _suffix(Path(source.partition("?")[0]))
    if suffix not in _BUILDERS:
        named = f'unknown file type "{suffix}"' if suffix else "no file type in the name"
        raise DataError(f"{source}: {named}; known are {', '.join(_BUILDERS)}, and .gz of the text formats")
    with _said(lambda: f"{source} cannot be loaded"):
        options = {"sep": "\t"} if suffix == ".tsv" else {}
        rows = datasets.load_dataset(
            _BUILDERS[suffix], data_files=source, split="train", streaming=config.streaming, **options
        )
        return _stream_source(rows, source, config.limit) if config.streaming else _dataset_source(rows, source)


@contextmanager
def _said(what: Callable[[], str]) -> Iterator[None]:
    """Say in one sentence what ``datasets`` and the file systems behind it raise."""
    import datasets

    try:
        yield
    except DataError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, KeyError, datasets.exceptions.DatasetsError) as error:
        cause: BaseException = error
        while isinstance(cause, datasets.exceptions.DatasetGenerationError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise DataError(f"{what()}: {first_line(cause) if isinstance(cause, Exception) else cause}") from None


def _choose_split(source: str, names: list[str], split: str | None, defaults: Sequence[str]) -> str:
    for wanted in defaults if split is None else (split,):
        if wanted in names:
            return wanted
    if split is None and len(names) == 1:
        return names[0]
    asked = f'has no split "{split}"{suggest(split, names)}' if split is not None else "needs a split: set data.split"
    raise DataError(f"{source} {asked}; its splits are {', '.join(names)}")


def _dataset_source(dataset: Any, name: str) -> Source:
    """Return the rows of a ``datasets.Dataset``, which is memory-mapped."""

    def chunks() -> Iterator[Chunk]:
        for begin in range(0, len(dataset), ROWS):
            columns = dataset[begin : begin + ROWS]
            rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
            yield RowChunk(rows, [f"{name} row {begin + i + 1}" for i in range(len(rows))])

    @cache
    def digest() -> str:
        import pyarrow as pa

        content = hashlib.sha256()
        for table in dataset.with_format("arrow").iter(ROWS):
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, table.schema) as stream:
                stream.write_table(table)
            content.update(sink.getvalue())
        return content.hexdigest()

    return Source(name, name, chunks, digest)


def _stream_source(stream: Any, name: str, limit: int | None) -> Source:
    """Return the rows of a stream of unknown length, written to a file without a name when they are first asked for."""
    import datasets

    @cache
    def spool() -> IO[bytes]:
        file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the source, and dies with the process)
        try:
            for row in islice(stream, limit):
                file.write(json.dumps(row, ensure_ascii=False, default=str).encode("utf-8", "surrogatepass") + b"\n")
        except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
            raise DataError(f"{name} broke off while it was read: {first_line(error)}") from None
        return file

    def chunks() -> Iterator[Chunk]:
        file, count = spool(), 0
        file.seek(0)
        while lines := list(islice(file, ROWS)):
            yield LineChunk(lines, [f"{name} row {count + i + 1}" for i in range(len(lines))])
            count += len(lines)

    def digest() -> str:
        file = spool()
        file.seek(0)
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]

    return Source(name, name, chunks, digest)
