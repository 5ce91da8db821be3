"""Audit hook of the kill campaign, loaded by every Python process whose PYTHONPATH holds this folder.

It counts the file operations under ``$KILL_ROOT``, over all processes of a command, by the size of ``$KILL_COUNT``: a byte each.
At operation ``$KILL_AT`` the whole process group is killed, ``$KILL_DELAY`` milliseconds later if that is set: inside a write.
"""

import os
import signal
import sys
import threading
import time

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
CHANGES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}


def install() -> None:
    """Count, and kill, according to the environment; do nothing without ``$KILL_COUNT``."""
    if "KILL_COUNT" not in os.environ:
        return
    root, last = os.environ["KILL_ROOT"], int(os.environ.get("KILL_AT", "0"))
    delay = float(os.environ.get("KILL_DELAY", "0")) / 1000
    counter = os.open(os.environ["KILL_COUNT"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def end() -> None:
        time.sleep(delay)
        os.killpg(os.getpgrp(), signal.SIGKILL)

    def hook(event, arguments):  # type: ignore[no-untyped-def]
        if event == "open":
            if not (isinstance(arguments[2], int) and arguments[2] & WRITING):
                return
        elif event not in CHANGES:
            return
        path = arguments[0]
        if not isinstance(path, str | bytes):
            return
        if not os.path.abspath(os.fsdecode(path)).startswith(root):  # noqa: PTH100  resolve() would read links
            return
        os.write(counter, b".")
        if os.fstat(counter).st_size == last:
            threading.Thread(target=end).start() if delay else end()

    sys.addaudithook(hook)


install()
