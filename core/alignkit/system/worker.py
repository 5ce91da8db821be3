"""What a worker tells the launcher that started it: its run's directory, and how it ended."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path

from alignkit.system.distributed import rank

FOLDER = "ALIGN_LAUNCHER"  # variable with the directory where workers leave their files; set by the launcher


@dataclass(frozen=True)
class Ended:
    """How a worker ended: exit code and sentence of its command, as if it were the only process."""

    code: int = 0
    head: str = ""
    message: str = ""
    traceback: str = ""
    together: bool = False
    """Whether all processes stopped at the same step, after a signal to any of them."""
    lost: bool = False
    """Whether it failed because another process had ended."""
    rank: int = field(default_factory=rank)
    time: float = field(default_factory=time.time)


def is_worker() -> bool:
    """Return whether ``align`` itself started this process."""
    return FOLDER in os.environ


def follow_launcher() -> None:
    """Receive SIGTERM once when the launcher is killed, so that this process saves a checkpoint and ends."""
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(0.5)
        os.kill(os.getpid(), signal.SIGTERM)

    if is_worker():
        threading.Thread(target=watch, daemon=True).start()


def tell(name: str, text: str) -> None:
    """Leave a file for the launcher."""
    with suppress(OSError, KeyError):  # the launcher is gone, or there is none
        partial = Path(os.environ[FOLDER], f".{name}-{rank()}")
        partial.write_text(text)
        partial.rename(partial.with_name(name))


def tell_end(ended: Ended) -> None:
    """Leave the end for the launcher, who tells one of all workers' ends."""
    tell(f"end-{rank()}", json.dumps(asdict(ended)))


def last_word(text: str | None = None) -> str:
    """Keep why this process failed for those that lose the connection to it, or return what another one kept."""
    import torch.distributed as dist

    with suppress(Exception):  # the processes did not meet at an address, or no process answers there
        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = dist.TCPStore(*address, is_master=False, timeout=timedelta(seconds=9))  # type: ignore[attr-defined]
        if text is not None:
            store.set("align/failed", text)
        if store.check(["align/failed"]):
            return str(store.get("align/failed").decode())
    return "another process of the run has ended; its error says why"


def lost_connection(error: BaseException | None) -> bool:
    """Return whether an error is that of a collective operation whose peer has ended, or comes from one."""
    words = ("gloo/", "closed by peer", "NCCL", "DistBackendError", "DistNetworkError")
    while error is not None and not any(word in f"{type(error).__name__}: {error}" for word in words):
        error = error.__cause__ or error.__context__
    return error is not None
