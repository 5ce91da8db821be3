"""Set-up of a measuring process."""

from __future__ import annotations

import os
from importlib.util import find_spec


def prepare(threads: int) -> None:
    """Set the number of threads and silence libraries; call it before torch is imported."""
    from alignkit.system.quiet import quiet_libraries, set_environment

    set_environment()
    os.environ.setdefault("TQDM_DISABLE", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    import torch

    if find_spec("datasets") is not None:
        import datasets  # noqa: F401  # its progress bars can only be switched off after import

    torch.set_num_threads(threads)
    quiet_libraries()
