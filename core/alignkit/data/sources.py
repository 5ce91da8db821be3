"""From the name of a source to its rows: a file, a directory, a hub data set, or the demo."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from alignkit.config import DataConfig
from alignkit.data.readers import READERS, read_json, read_jsonl
from alignkit.data.rows import RawRows, first_line, join
from alignkit.errors import DataError, suggest

TRAIN_SPLITS = ("train",)
HELD_OUT_SPLITS = ("test", "validation", "dev", "eval", "train")
"""Splits tried in this order where none is named."""

_EXECUTABLE = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz"})
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SHARD = re.compile(r"-\d+(-of-\d+)?$")


def load_rows(
    source: str,
    split: str | None,
    config: DataConfig,
    *,
    default_splits: Sequence[str] = TRAIN_SPLITS,
    limit: int | None = None,
) -> RawRows:
    """Load the rows of ``source``, at most ``limit`` of them.

    Args:
        source: a file (.jsonl, .json, .csv, .tsv, .parquet, .arrow, .feather; text formats also gzipped), a directory of
            such files, a directory written by ``datasets``' ``save_to_disk``, a hub id, or ``demo``.
        split: the split to read; None takes the first of ``default_splits`` that the source has.
        config: the data section (``subset`` chooses the configuration of a hub data set).
        default_splits: what to look for where no split is named.
        limit: how many rows to read.

    Raises:
        DataError: the source is missing, empty, unreadable or of an unknown kind. No source ever runs code.
    """
    if source == "demo":
        from alignkit.demo import data_path

        return _filled(
            read_jsonl(data_path(_choose_split("demo", ["train", "dev", "test"], split, default_splits)), limit)
        )
    path = Path(source).expanduser()
    try:
        is_directory, is_file = path.is_dir(), path.is_file()
    except OSError as error:
        raise DataError(f"{source} cannot be read: {error.strerror}") from None
    if (is_directory or is_file) and config.subset is not None:
        raise DataError(f'data.subset "{config.subset}" is for hub data sets, and {source} is a local path')
    if is_directory:
        return _filled(_load_directory(path, split, default_splits, limit))
    if is_file:
        return _filled(_load_file(path, split, limit))
    if _looks_like_path(source):
        _refuse_missing(path)
    return _filled(_load_hub(source, split, config.subset, default_splits, limit))


def _filled(raw: RawRows) -> RawRows:
    if not len(raw.rows):
        path = Path(raw.source)
        empty = path.is_file() and not path.stat().st_size
        raise DataError(f"{raw.source} is empty" if empty else f"{raw.source} holds no rows")
    return raw


# ------------------------------------------------------------------------------------------------ files


def _suffix(path: Path) -> str:
    """Return the suffix that tells the format: ``.jsonl`` of ``prefs.jsonl.gz``."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return name.suffix.lower()


def _load_file(path: Path, split: str | None, limit: int | None) -> RawRows:
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
    return read_json(path, limit, split) if suffix == ".json" else READERS[suffix](path, limit)


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


def _load_directory(path: Path, split: str | None, defaults: Sequence[str], limit: int | None) -> RawRows:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _load_saved(path, split, defaults, limit)
    folders = [path, path / "data"] if (path / "data").is_dir() else [path]
    entries = sorted(entry for folder in folders for entry in folder.iterdir())
    files = [entry for entry in entries if entry.is_file() and _suffix(entry) in READERS and entry.name[0] != "."]
    if not files:
        raise DataError(f"{path} is a directory without data files ({', '.join(READERS)})")
    parts: list[RawRows] = []
    left = limit
    for file in _files_of_split(path, files, split, defaults):
        if left is not None and left <= 0:
            break
        parts.append(READERS[_suffix(file)](file, left))
        left = None if left is None else left - len(parts[-1].rows)
    return join(parts, str(path))


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


def _load_saved(path: Path, split: str | None, defaults: Sequence[str], limit: int | None) -> RawRows:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be loaded as a saved data set: {first_line(error)}") from None
    if isinstance(saved, Mapping):
        saved = saved[_choose_split(str(path), list(saved), split, defaults)]
    elif split not in (None, "train"):
        raise DataError(f'{path} is a single data set and has no split "{split}"')
    return _dataset_rows(saved, str(path), limit)


# ------------------------------------------------------------------------------------------------ hub


def _load_hub(
    source: str, split: str | None, subset: str | None, defaults: Sequence[str], limit: int | None
) -> RawRows:
    import datasets

    try:
        names = datasets.get_dataset_split_names(source, subset)
        chosen = _choose_split(source, list(names), split, defaults)
        return _dataset_rows(datasets.load_dataset(source, subset, split=chosen), source, limit)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        here = sorted(entry.name for entry in Path().iterdir())
        hint = suggest(source, here)
        reason = first_line(error)
        raise DataError(
            f'"{source}" is no file or directory here{hint} and cannot be loaded from the hub: {reason}'
        ) from None


def _choose_split(source: str, names: list[str], split: str | None, defaults: Sequence[str]) -> str:
    for wanted in defaults if split is None else (split,):
        if wanted in names:
            return wanted
    if split is None and len(names) == 1:
        return names[0]
    asked = f'has no split "{split}"{suggest(split, names)}' if split is not None else "needs a split: set data.split"
    raise DataError(f"{source} {asked}; its splits are {', '.join(names)}")


def _dataset_rows(dataset: Any, source: str, limit: int | None) -> RawRows:
    rows = (dataset if limit is None else dataset.select(range(min(limit, len(dataset))))).to_list()
    return RawRows(rows, lambda position: f"{source} row {position + 1}", source)
