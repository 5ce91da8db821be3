"""Opening a source by name: a file, a URL, a directory, a hub data set, or the demo."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NoReturn

from alignkit.config import Reading
from alignkit.contract import DataFormat, Located, registry
from alignkit.contract.guard import running
from alignkit.data.sources.chunks import Source
from alignkit.errors import DataError, PluginError, first_line, suggest
from alignkit.system.code import code_of

from alignkit_formats.compressed import COMPRESSIONS, ZIPPED
from alignkit_formats.remote import dataset_source, open_hub, open_url
from alignkit_formats.splits import choose_split, suffix_of

_EXECUTABLE = frozenset({".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib", ".npy", ".npz"})
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_SHARD = re.compile(r"-(\d+)(?:-of-(\d+))?$")
_OTHER_SPLITS = re.compile(r"(test|validation|valid|dev|eval)([-_.]|$)")
_URL = re.compile(r"[a-z][a-z0-9+.-]*://")


def open_source(source: str, split: str | None, config: Reading, defaults: Sequence[str], limit: int | None) -> Source:
    """Open a source, whose rows are read on iteration. No source ever runs code.

    Args:
        source: a file of an installed format (.jsonl, .json, .csv, .parquet, ...; text formats also gzipped), a URL, a
            directory of such files, a directory written by ``datasets``' ``save_to_disk``, a hub id, or ``demo``.
        split: the split to read; None takes the first of ``defaults`` that the source has.
        config: ``subset`` selects the configuration of a hub data set; ``streaming`` reads without a full download.
        defaults: splits tried in this order if none is named.
        limit: rows that are read of a stream.
    """
    if source == "demo":
        from alignkit.demo import data_path

        chosen = choose_split("demo", ["train", "dev", "test"], split, defaults)
        return replace(_file_source(data_path(chosen), None), name=f"demo {chosen}")
    if _URL.match(source):
        return open_url(source, split, config, limit)
    path = Path(source).expanduser()
    try:
        is_directory, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:
        raise DataError(f"{source!r} cannot be read: {first_line(error)}") from None
    if (is_directory or is_file) and config.subset is not None:
        raise DataError(f'data.subset "{config.subset}" applies to hub data sets only, and {source} is a local path')
    if is_directory:
        return _open_directory(path, split, defaults, config.delimiter)
    if is_file:
        return _file_source(path, split, config.delimiter)
    if path.exists():
        raise DataError(f"{source} is a pipe or device, which cannot be read twice: write the rows to a file")
    if _looks_like_path(source):
        _refuse_missing(path)
    if config.delimiter is not None:
        raise DataError(f"data.delimiter is for CSV files, and {source} is a hub data set: remove the key")
    return open_hub(source, split, config, defaults, limit)


def _file_source(path: Path, split: str | None, delimiter: str | None = None) -> Source:
    suffix = suffix_of(path)
    if suffix in _EXECUTABLE:
        raise DataError(f"{path}: loading a {suffix} file can run code; save the rows as JSON Lines or Parquet")
    if suffix not in (known := formats()):
        problem = f'unknown file type "{suffix}"' if suffix else "the file name has no extension"
        raise DataError(f"{path}: {problem}; supported are {', '.join(known)}, and {ZIPPED} of the text formats")
    if not _loaded(path, delimiter).splits and split not in (None, "train"):
        raise DataError(f'{path} is a single file and has no split "{split}"')
    rows, about = partial(_rows, path, split, delimiter), f"{split or ''}{delimiter or ''}"
    return Source(str(path), str(path), rows, lambda: f"{_digest([path])} {about}")


def formats() -> list[str]:
    """Return the file name suffixes of the installed formats."""
    return list(dict.fromkeys(f".{entry.name}" for entry in registry.usable("align.formats").values()))


def _format(path: Path) -> registry.PluginEntry:
    """Return the format that reads a file: a built-in one, else the only one installed for its suffix."""
    found = [entry for entry in registry.usable("align.formats").values() if f".{entry.name}" == suffix_of(path)]
    if len(found) > 1 and not found[0].built_in:
        raise PluginError(
            f"{path} can be read by {' and by '.join(map(str, found))}: allow one of them (ALIGN_PLUGINS)"
        )
    if not found:
        raise PluginError(
            f"{path}: the package that reads {suffix_of(path)} files is no longer installed, or is being replaced at the moment"
        )
    return found[0]


def _loaded(path: Path, delimiter: str | None = None) -> DataFormat:
    entry = _format(path)
    found: DataFormat = registry.load(entry)
    suffix = path.suffix.lower()
    if suffix in COMPRESSIONS and not (found.gzipped and (suffix == ".gz" or entry.built_in)):
        raise DataError(f"{path}: decompress it first; only text formats can be read compressed")
    if delimiter is not None and not found.delimited:
        raise DataError(f"data.delimiter is for CSV files, and {path} is not one: remove the key")
    return found


def _rows(path: Path, split: str | None = None, delimiter: str | None = None) -> Iterator[Located]:
    """Yield a file's rows; what another package's reader raises, prints or wrongly yields is an error that names it."""
    entry = _format(path)
    what = f"{entry} cannot read {path}"
    with running(what, DataError):
        found = _loaded(path, delimiter)
        rows = iter(found.read(path, split, *[delimiter] * found.delimited))
    if entry.built_in:
        yield from rows
        return
    while True:
        with running(what, DataError):
            row = next(rows, None)
            if row is None:
                return
            columns, place = row
        yield columns, place


def _digest(paths: Sequence[Path]) -> str:
    """Return the SHA-256 of the suffixes and contents of files, and of the code of other packages that reads them."""
    content = hashlib.sha256()
    for entry in dict.fromkeys(map(_format, paths)):
        if not entry.built_in:
            content.update(f"{entry} {code_of(entry.value)}\n".encode())
    try:
        for path in paths:
            content.update(f"{''.join(path.suffixes)} {path.stat().st_size}\n".encode())
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: content)
    except OSError as error:
        raise DataError(f"{error.filename} cannot be read: {first_line(error)}") from None
    return content.hexdigest()


def _looks_like_path(source: str) -> bool:
    path = Path(source)
    known = suffix_of(path) in formats() or suffix_of(path) in _EXECUTABLE
    return known or source.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(source)


def _refuse_missing(path: Path) -> NoReturn:
    if not path.parent.is_dir():
        raise DataError(f"{path} does not exist (directory {path.parent} does not exist)")
    siblings = sorted(entry.name for entry in path.parent.iterdir())
    raise DataError(f"{path} does not exist{suggest(path.name, siblings)}")


def _open_directory(path: Path, split: str | None, defaults: Sequence[str], delimiter: str | None) -> Source:
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return _open_saved(path, split, defaults)
    try:
        folders = [path, path / "data"] if (path / "data").is_dir() else [path]
        entries = sorted(entry for folder in folders for entry in folder.iterdir())
        if not any(map(_is_data, entries)):  # a folder for every split
            entries = sorted(entry for folder in entries if folder.is_dir() for entry in folder.iterdir())
    except OSError as error:
        raise DataError(f"{path} cannot be read: {first_line(error)}") from None
    known = formats()
    files = [entry for entry in entries if _is_data(entry)]
    if not files:
        raise DataError(f"{path} contains no data files ({', '.join(known)})")
    chosen = _files_of_split(path, files, split, defaults)
    _check_all_read(path, chosen, [entry for entry in entries if entry.is_dir()] if chosen is files else [])
    return Source(
        str(path),
        str(path),
        lambda: chain.from_iterable(_rows(file, None, delimiter) for file in chosen),
        lambda: f"{_digest(chosen)} {delimiter}" if delimiter else _digest(chosen),
    )


def _is_data(path: Path) -> bool:
    return path.is_file() and suffix_of(path) in formats() and path.name[0] != "."


def _files_of_split(path: Path, files: list[Path], split: str | None, defaults: Sequence[str]) -> list[Path]:
    """Return the files of a split: ``train.jsonl``, ``train-00000-of-00002.parquet``, ``train_prefs.csv``, ``train/a.txt``."""
    by_name: dict[str, list[Path]] = {}
    for file in files:
        nested = file.parent not in (path, path / "data")
        stem = file.parent.name if nested else file.name[: file.name.lower().rindex(suffix_of(file))]
        by_name.setdefault(_SHARD.sub("", stem), []).append(file)
    for wanted in defaults if split is None else (split,):
        if wanted in by_name:
            return by_name[wanted]
        matching = [file for name in by_name for file in by_name[name] if re.match(rf"{re.escape(wanted)}[-_.]", name)]
        if matching:
            return matching
    others = sorted(name for name in by_name if re.match(_OTHER_SPLITS, name))
    if split is None and others and len(by_name) > 1:  # they are not meant to be trained on
        raise DataError(
            f"{path} has files of other splits ({', '.join(others)}) and none of {defaults[0]}: set data.split to one "
            f"of {', '.join(sorted(by_name))}"
        )
    if split is None:
        return files
    raise DataError(
        f'{path} has no split "{split}"; its files are {", ".join(sorted(by_name))}{suggest(split, [*by_name])}'
    )


def _check_all_read(path: Path, chosen: list[Path], folders: list[Path]) -> None:
    """Raise :class:`DataError` if a shard of the ``chosen`` files is missing, or data files in ``folders`` are not read."""
    read = {file.parent for file in chosen}
    beside = [
        one.name for one in folders if one not in read and os.access(one, os.R_OK) and any(map(_is_data, one.iterdir()))
    ]
    if beside:
        raise DataError(
            f"{path} has data files, and folders with more of them ({', '.join(beside)}), which would not be read: name "
            "one folder or file, or several in data.sources"
        )
    shards: dict[tuple[Path, str, str], set[int]] = {}
    for file in chosen:
        stem = file.name[: file.name.lower().rindex(suffix_of(file))]
        if (numbered := _SHARD.search(stem)) and numbered[2]:
            shards.setdefault((file.parent, stem[: numbered.start()], numbered[2]), set()).add(int(numbered[1]))
    for (_, name, count), found in shards.items():
        if len(found) < int(count):
            raise DataError(
                f"{path} has {len(found)} of the {int(count)} shards {name}-*-of-{count}: download the others, or name the "
                "files to read in data.sources"
            )


def _open_saved(path: Path, split: str | None, defaults: Sequence[str]) -> Source:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be loaded as a saved data set: {first_line(error)}") from None
    if isinstance(saved, Mapping):
        saved = saved[choose_split(str(path), list(saved), split, defaults)]
    elif split not in (None, "train"):
        raise DataError(f'{path} is a single data set and has no split "{split}"')
    return dataset_source(saved, str(path))
