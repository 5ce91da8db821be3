"""The results of a command on disk, apart from times and places: equal for a killed and resumed command and an unkilled one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHANGING = frozenset(
    "checksum started ended finished seconds cpu_seconds timings memory_gb tokens_per_second environment cached hardware "
    "train_runtime flops_per_second peak_memory_gb tokens_per_second_per_device".split()
)
"""Keys whose values differ between two runs of the same command."""
UNREAD = (".html", ".log", ".png", ".svg", ".md")
"""Files made for people, with times and paths inside: only their presence is compared."""
LEFTOVERS = ("*.tmp", "*.partial", ".*.old")
"""Of a killed command; a lock file (``.lock``) may stay, since the kernel has released it."""


def snapshot(directory: Path) -> dict[str, Any]:
    """Return the content of every file by its path, without checkpoints and cache; texts name the directory ``.``."""
    found = {}
    for file in sorted(directory.rglob("*")):
        name = file.relative_to(directory)
        if not file.is_file() or {"checkpoints", "cache"} & set(name.parts) or name.name in ("count", ".lock"):
            continue
        found[str(name)] = _content(file, str(directory))
    return found


def _content(file: Path, here: str) -> Any:
    if file.suffix in UNREAD:
        return "present"
    data = file.read_bytes()
    if file.suffix == ".json" and file.name != "tokenizer.json":
        return _steady(json.loads(data.decode().replace(here, ".")))
    if file.suffix == ".jsonl":
        return [_steady(json.loads(line)) for line in data.decode().replace(here, ".").splitlines()]
    return hashlib.sha256(data.replace(here.encode(), b".")).hexdigest()


def _steady(value: Any) -> Any:
    """Return a JSON value without what changes from run to run."""
    if isinstance(value, Mapping):
        kept = {key: part for key, part in value.items() if key not in CHANGING and (key, part) != ("changes", [])}
        return {key: _steady(part) for key, part in kept.items()}
    return [_steady(part) for part in value] if isinstance(value, list) else value


def differences(before: Any, after: Any, name: str = "") -> list[str]:
    """Return the places where two snapshots differ, with both values."""
    if before == after:
        return []
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        keys = sorted({*before, *after})
        return [
            line for key in keys for line in differences(before.get(key), after.get(key), f"{name}/{key}".strip("/"))
        ]
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        pairs = enumerate(zip(before, after, strict=True))
        return [line for i, (one, other) in pairs for line in differences(one, other, f"{name}/{i}")]
    return [f"{name}: {str(before)[:60]} became {str(after)[:60]}"]


def leftovers(directory: Path) -> list[str]:
    """Return the temporary files and directories that are still there."""
    return sorted({str(path.relative_to(directory)) for pattern in LEFTOVERS for path in directory.rglob(pattern)})
