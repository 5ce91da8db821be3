"""What vLLM calls in each of its processes (entry point ``vllm.general_plugins``)."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress

BACKEND = "alignkit"
"""Name of the backend: ``vllm serve MODEL --weight-transfer-config '{"backend": "alignkit"}'``."""

OWNER = "ALIGNKIT_VLLM_OWNER"
"""Environment variable with the process that an engine belongs to, and without which it ends."""


def register() -> None:
    """Make the backend known to vLLM's weight transfer; it may be called several times."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    with suppress(ValueError):  # it is known
        WeightTransferEngineFactory.register_engine(BACKEND, "alignkit_vllm.receive", "FilesEngine")
    parent = os.getppid()
    if os.environ.get(OWNER) == str(parent):
        threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent: int) -> None:
    """End this process when its parent has ended, killed for example: it would keep the device's memory."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
