"""Processes of which one keeps the others waiting, or fails alone."""

from __future__ import annotations

import json
import os
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from alignkit.errors import AlignError
from alignkit.system.cache import ContentCache
from alignkit.system.distributed import leave, rank
from alignkit.system.together import together

from tests.helpers.runs import short_run


def fetch(folder: Path, key: str) -> None:
    """Take an entry of the cache together, in a group whose operations may take three seconds."""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    store.add("here", 1)
    while store.add("here", 0) < 2:
        pass
    dist.init_process_group("gloo", timeout=timedelta(seconds=3))

    def made() -> tuple[str, bool]:
        (folder / f"waiting.{rank()}").touch()
        return ContentCache("checks").fetch_together(
            key, lambda: "made", read=Path.read_text, write=lambda path, make: path.write_text(make())
        )

    (folder / f"found.{rank()}").write_text(json.dumps(together("the entry", made)))
    leave()


def fail(folder: Path) -> None:
    """Train with a method that fails in one process, and keep what this one is told."""
    try:
        short_run(folder / "runs", "one", {"name": "mine"}, eval={"suites": [], "samples": 0})
    except AlignError as error:
        (folder / f"error.{rank()}").write_text(str(error))
        os._exit(0)
