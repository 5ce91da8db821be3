"""``python -m bench --device cuda``: the comparison on a GPU; ``--device cpu --tiny`` runs the same code in miniature."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.cells import select
from bench.gpu.grid import grid
from bench.gpu.sides import NAMES

FORMAT = 1
UNFINISHED = 3


def run(options: argparse.Namespace, execute: Callable[..., Any] | None = None) -> int:
    """Measure; return 0 when all is done, 1 if a side disagrees, 2 for wrong usage, 3 if time ran out before the end.

    ``execute`` runs a side's work (None: in a process of the side's own).
    """
    try:
        cells = select(list(grid(options.device, tiny=options.tiny)), options.only)
    except ValueError as error:
        print(f"bench: error: {error}", file=sys.stderr)
        return 2
    if not cells:
        print(f"bench: error: no cell matches {' '.join(options.only)}", file=sys.stderr)
        return 2
    import torch

    from bench.gpu.runner import Piece, Workers
    from bench.gpu.summary import HEADER

    if options.device == "cuda" and not torch.cuda.is_available():
        print(
            "bench: error: no CUDA device is available; --device cpu --tiny runs the same code in miniature",
            file=sys.stderr,
        )
        return 2
    sides = options.sides or list(NAMES)
    settings = {key: getattr(options, key) for key in ("device", "tiny", "rounds", "repeats", "warm_up")}
    record = _opened(options.output, environment(options.device), settings, resume=options.resume, retry=options.retry)
    if record is None:
        return 2
    # In pieces, a turn that hangs is given up before the piece is cut off, so that the next piece does not hang at it again.
    workers = Workers(limit=min(options.turn_limit, 54 * (options.minutes or 1e9)))
    piece = Piece(
        cells,
        sides,
        options.output,
        record,
        execute or workers,
        options.rounds,
        options.repeats,
        options.warm_up,
        options.tiny,
        options.minutes,
    )
    print(HEADER, flush=True)
    try:
        done = piece()
    finally:
        workers.close()
    print(f"written to {options.output}" if done else f"out of time: {options.output} is resumed with --resume")
    if not done:
        return UNFINISHED
    return 0 if all(one["agrees"] for one in record["parity"]) else 1


def environment(device: str) -> dict[str, str]:
    """Return the versions and the hardware of the measurements."""
    from importlib.metadata import PackageNotFoundError, version

    import torch

    from bench.__main__ import environment as common

    more = {"cuda": str(torch.version.cuda)}
    for name in ("triton", "liger-kernel", "flash-attn", "prefix-grouper"):
        try:
            more[name] = version(name)
        except PackageNotFoundError:
            more[name] = "not installed"
    return common(device) | more


def _opened(
    path: Path, about: dict[str, str], settings: dict[str, Any], *, resume: bool, retry: bool
) -> dict[str, Any] | None:
    """Return the record to add to: a new one, or with ``resume`` the file's (None: it is of another machine or settings)."""
    if resume and path.is_file():
        try:
            record: Any = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            record = None
        wanted = {"format": FORMAT, "settings": settings, "environment": about}
        found = record if isinstance(record, dict) else {}
        if differing := [name for name, value in wanted.items() if found.get(name) != value]:
            print(
                f"bench: error: --resume: {path} is not a record of this measurement (another {differing[0].removesuffix('s')}): "
                "choose another --output, or leave out --resume to write a new one",
                file=sys.stderr,
            )
            return None
        record["complete"] = False
        return _without_failures(record) if retry else record
    return {
        "format": FORMAT,
        "complete": False,
        "parity": [],
        "environment": about,
        "settings": settings,
        "turns": [],
        "summary": [],
    }


def _without_failures(record: dict[str, Any]) -> dict[str, Any]:
    """Return the record without what failed, was missing, or was not timed for want of parity."""
    again = {turn["cell"] for turn in record["turns"] if turn["status"] in ("failed", "not measured")}
    return record | {
        "parity": [one for one in record["parity"] if "reason" not in one],
        "turns": [turn for turn in record["turns"] if turn["status"] not in ("failed", "not measured")],
        "summary": [one for one in record["summary"] if one["cell"] not in again],
    }
